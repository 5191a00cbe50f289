#!/usr/bin/env python3
"""Shows upstream's bugs that the series fixes: a test for each that the unpatched
kernel fails, or that makes it complain, and that the patched one passes.

Prints a table and fails when a test does not do what it should. Also a part of
compare.py.
"""

import argparse

from harness import bugs, options, tables, target
from harness.errors import MachineError
from harness.results import Report


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    options.add_base(parser)
    options.add_seed(parser)
    parser.add_argument("filter", nargs="*", help="a part of the tests' names")
    args = parser.parse_args()
    folder = bugs.folder(args.kernel)
    with target.reporting("bugs", folder, args.seed) as report:
        chosen = [
            bug for bug in bugs.BUGS if not args.filter or any(part in bug.test for part in args.filter)
        ]
        if not chosen:
            raise MachineError("no test matches")
        report.runs, table, report.warnings = bugs.run(args.kernel, chosen, args.base, args.seed)
    tables.save(table, folder)
    tables.print_failures(run for run in report.runs if run.decides)
    return report


if __name__ == "__main__":
    target.exit_with(main)
