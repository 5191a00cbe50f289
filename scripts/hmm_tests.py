#!/usr/bin/env python3
"""Runs hmm-tests in the VM, one boot for each memory type.

Prints a table. Fails when a test fails, when the kernel complains, or when the guest
does not get to the end.
"""

import argparse
from pathlib import Path

from harness import guest, hmm_tests, options, tables, target, vm
from harness.results import Report, Run

TARGET = "hmm-tests"


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    parser.add_argument("--driver", default=guest.RUST_DRIVER, choices=guest.DRIVERS)
    parser.add_argument("--source", default="series", choices=hmm_tests.TYPES, help="whose hmm-tests")
    parser.add_argument("--types", help="comma-separated, all without")
    parser.add_argument("--filter", default="*", help="glob over test names")
    parser.add_argument("--timeout", default=hmm_tests.TIMEOUT, type=float, help="seconds for each type")
    parser.add_argument("--results", type=Path, help="folder")
    args = parser.parse_args()
    known = hmm_tests.TYPES[args.source]
    types = options.choices(parser, args.types or ",".join(known), known)
    folder = args.results or target.default_folder(TARGET, args.kernel)

    with target.reporting(folder.name, folder) as report:
        hmm_tests.build(args.source)
        report.runs = [Run(args.source, args.kernel, args.driver, memory_type) for memory_type in types]
        vm.in_parallel(lambda run: hmm_tests.run_tests(run, folder, args.filter, args.timeout), report.runs)
    tables.conclude(
        tables.table(report.runs, ("driver", "memory_type"), tables.hmm_test_name), report.runs, folder
    )
    return report


if __name__ == "__main__":
    target.exit_with(main)
