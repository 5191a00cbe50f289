#!/usr/bin/env python3
"""Ends with what the results of a target say: 0 passed, 1 a test failed (or the kernel
complained, crashed or hung), 2 no verdict (something is missing, does not build or does
not start). make itself ends with 2 whatever went wrong.

    make test || scripts/verdict.py test
"""

import argparse
import sys

from harness import summary, target
from harness.paths import RESULTS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="a folder of build/results")
    args = parser.parse_args()
    status = summary.status(RESULTS / args.target)
    print(f"{args.target}: {status}", file=sys.stderr)
    return target.EXIT[status]


if __name__ == "__main__":
    target.exit_with(main)
