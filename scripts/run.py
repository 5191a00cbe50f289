#!/usr/bin/env python3
"""Runs hmm-tests and hmm-selftests on managed generic memory, with one driver.

Fails when a test fails, when the kernel complains, or when a guest does not get to the
end.
"""

import argparse

from harness import guest, hmm_tests, options, selftests, tables, target, vm
from harness.results import Report, Run

TARGET = "run"
MEMORY_TYPE = "generic"


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_seed(parser)
    parser.add_argument("--driver", default=guest.RUST_DRIVER, choices=guest.DRIVERS)
    args = parser.parse_args()
    folder = target.default_folder(TARGET)

    with target.reporting(TARGET, folder, args.seed) as report:
        hmm_tests.build("series")
        selftests.build()
        kernels = Run("series", "series", args.driver, MEMORY_TYPE)
        own = Run(selftests.SOURCE, "series", args.driver, MEMORY_TYPE)
        report.runs = [kernels, own]
        vm.in_parallel(
            lambda run: (
                hmm_tests.run_tests(run, folder, benchmark=False)
                if run is kernels
                else selftests.run_tests(run, folder, [], selftests.TIMEOUT, args.seed)
            ),
            report.runs,
        )
    columns = ("source", "driver", "memory_type")
    both = [tables.table([kernels], columns, tables.hmm_test_name), tables.table([own], columns)]
    tables.conclude("".join(both), report.runs, folder)
    return report


if __name__ == "__main__":
    target.exit_with(main)
