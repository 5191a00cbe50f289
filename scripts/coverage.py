#!/usr/bin/env python3
"""Says which lines of the series' code no test reaches: in mm, in both drivers, and in the
abstractions in Rust. To be run by the Python of build/venv, as `make coverage` does.

Boots the kernel of its own once for each suite, driver and memory type, emulated. Prints a
table of files; the lines that were not reached are in the results folder. Fails when a test
does, whatever was reached.
"""

import argparse
import sys

from harness import coverage, guest, hmm_tests, kunit, options, selftests, tables, target, vm
from harness.paths import LINUX
from harness.results import Report, Run

TARGET = "coverage"
HMM_TESTS, KUNIT, SELFTESTS = WHAT = ("hmm-tests", "kunit", "selftests")
UNREACHED = "unreached"
# Elsewhere, what the suites that are built in reach is not to count.
NO_KUNIT = ("kunit.enable=0",)
# It loads drivers itself, and nobody notes where.
SKIPPED = ("--skip", "parameters.*")


def runs(what: list[str], drivers: list[str], types: list[str]) -> list[Run]:
    source = {HMM_TESTS: "series", SELFTESTS: selftests.SOURCE}
    found = [
        Run(source[suite], coverage.KERNEL, driver, memory_type)
        for driver in drivers
        for memory_type in types
        for suite in what
        if suite != KUNIT
    ]
    return [*found, Run(KUNIT, coverage.KERNEL)] if KUNIT in what else found


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_seed(parser)
    parser.add_argument("--what", default=",".join(WHAT), help="suites, comma-separated")
    parser.add_argument("--drivers", default=",".join(guest.DRIVERS), help="comma-separated")
    parser.add_argument("--types", default=",".join(selftests.TYPES), help="comma-separated")
    args = parser.parse_args()
    what = options.choices(parser, args.what, WHAT)
    drivers = options.choices(parser, args.drivers, guest.DRIVERS)
    types = options.choices(parser, args.types, selftests.TYPES)
    folder = target.default_folder(TARGET)

    with target.reporting(TARGET, folder, args.seed) as report:
        code = coverage.read_code()
        ranges = code.ranges()
        if HMM_TESTS in what:
            hmm_tests.build("series")
        if SELFTESTS in what:
            selftests.build()
        tested = runs(what, drivers, types)

        def boot(run: Run) -> coverage.Lines:
            if run.source == KUNIT:
                kunit.boot(run, folder / run.name, ranges)
            elif run.source == selftests.SOURCE:
                selftests.run_tests(run, folder, SKIPPED, selftests.TIMEOUT, args.seed, NO_KUNIT, code=ranges)
            else:
                hmm_tests.run_tests(run, folder, options=NO_KUNIT, benchmark=False, code=ranges)
            return coverage.reached(folder / run.name, code)

        columns: dict[str, coverage.Lines] = {}
        for run, found in zip(tested, vm.in_parallel(boot, tested), strict=True):
            columns.setdefault(run.driver or run.source, set()).update(found)
        lines, reached = code.lines(), set().union(*columns.values())
        report.runs = [*tested, coverage.run(lines, reached)]
        (folder / UNREACHED).write_text(coverage.unreached(lines, reached, LINUX), encoding="utf-8")
    tables.save(coverage.table(lines, columns), folder)
    tables.print_failures(tested)
    tables.print_totals(tested)
    print(f"the lines that were not reached: {folder / UNREACHED}", file=sys.stderr)
    return report


if __name__ == "__main__":
    target.exit_with(main)
