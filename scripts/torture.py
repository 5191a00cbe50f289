#!/usr/bin/env python3
"""Runs the group torture of hmm-selftests in the VM, one boot for each driver and memory type:
all that can be done with memory and devices, at random and at once.

Prints a table. Fails when a test fails, when the kernel complains, when memory is lost, or when
the guest does not get to the end.
"""

import argparse

from harness import guest, options, selftests, tables, target, torture, vm
from harness.results import Report, Run

TARGET = "torture"


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="debug", choices=torture.KERNELS)
    options.add_seed(parser)
    parser.add_argument("--drivers", default=",".join(guest.DRIVERS), help="comma-separated")
    parser.add_argument("--types", default=",".join(selftests.TYPES), help="comma-separated")
    parser.add_argument("--minutes", default=2, type=int, help="for each test that could go on for ever")
    parser.add_argument("arguments", nargs="*", help="for hmm-selftests, after --, instead of the group")
    args = parser.parse_args()
    drivers = options.choices(parser, args.drivers, guest.DRIVERS)
    types = options.choices(parser, args.types, selftests.TYPES)
    folder = target.default_folder(TARGET, args.kernel)

    with target.reporting(folder.name, folder, args.seed) as report:
        selftests.build()
        report.runs = [Run(TARGET, args.kernel, driver, t) for driver in drivers for t in types]
        vm.in_parallel(
            lambda run: torture.run_tests(run, folder, args.minutes, args.seed, args.arguments), report.runs
        )
    tables.conclude(tables.table(report.runs, ("driver", "memory_type")), report.runs, folder)
    return report


if __name__ == "__main__":
    target.exit_with(main)
