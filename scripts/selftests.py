#!/usr/bin/env python3
"""Runs hmm-selftests in the VM, one boot for each driver and memory type.

Prints a table. Fails when a test fails, when the kernel complains, or when the guest
does not get to the end.
"""

import argparse
from pathlib import Path

from harness import guest, options, selftests, tables, target, vm
from harness.results import Report, Run

TARGET = "selftests"


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    options.add_seed(parser)
    parser.add_argument("--drivers", default=",".join(guest.DRIVERS), help="comma-separated")
    parser.add_argument("--types", default=",".join(selftests.TYPES), help="comma-separated")
    parser.add_argument("--timeout", default=selftests.TIMEOUT, type=float, help="seconds for each boot")
    parser.add_argument("--results", type=Path, help="folder")
    parser.add_argument("arguments", nargs="*", help="for hmm-selftests, after --")
    args = parser.parse_args()
    drivers = options.choices(parser, args.drivers, guest.DRIVERS)
    types = options.choices(parser, args.types, selftests.TYPES)
    if any(argument.startswith("--seed") for argument in args.arguments):
        parser.error("the seed is an option of its own: --seed, or SEED=... for make")
    folder = args.results or target.default_folder(TARGET, args.kernel)

    with target.reporting(folder.name, folder, args.seed) as report:
        selftests.build()
        report.runs = [Run(selftests.SOURCE, args.kernel, driver, t) for driver in drivers for t in types]
        vm.in_parallel(
            lambda run: selftests.run_tests(run, folder, args.arguments, args.timeout, args.seed), report.runs
        )
    tables.conclude(tables.table(report.runs, ("driver", "memory_type")), report.runs, folder)
    return report


if __name__ == "__main__":
    target.exit_with(main)
