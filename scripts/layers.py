#!/usr/bin/env python3
"""Checks that the modules of Rust crates form layers, see harness/layers.py.

layers.py ROOT...   by the files of the crates' roots; ends with 1 if one has a ring
"""

import sys
from pathlib import Path

from harness import layers


def main() -> int:
    found = [violation for root in sys.argv[1:] for violation in layers.check(Path(root))]
    for violation in found:
        print(violation, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
