#!/usr/bin/env python3
"""Compares kernels and drivers by hmm-tests, in one table.

Runs base's unmodified hmm-tests on the patched kernel, and on the unpatched one unless
its results are taken from the record, and the series' on the patched kernel; there with
the driver in C and with the one in Rust. Fails when a test that passes on the unpatched
kernel does not on the patched one, when one of the series' own tests fails, or when the
patched kernel complains. What fails on the unpatched kernel is listed. A second table
shows the bugs of the unpatched kernel that the series fixes.
"""

import argparse
import fnmatch
from collections.abc import Sequence
from pathlib import Path

from harness import base_record, bugs, guest, hmm_tests, options, tables, target, vm
from harness.base_record import Mode
from harness.errors import MachineError
from harness.results import Outcome, Report, Run, Test

TARGET = "compare"
SUITE = "hmm-tests"  # in the record of base
BASE_BOOTS = 4


def run_base(run: Run, folder: Path) -> None:
    """On the unpatched kernel, of which a test may leave nothing: boots it again."""
    hmm_tests.run_tests(run, folder)
    for _ in range(BASE_BOOTS - 1):
        missing = [test.name for test in run.tests if test.outcome == Outcome.NOT_RUN]
        if not missing:
            break
        again = Run(run.source, run.kernel, run.driver, run.memory_type)
        hmm_tests.run_tests(again, folder, only=missing)
        run.tests = [test for test in run.tests if test.outcome != Outcome.NOT_RUN] + again.tests
        run.splats += again.splats
        run.seconds += again.seconds
    # What it fails is what there is to compare with.
    run.decides = False


def is_benchmark(name: str) -> bool:
    return fnmatch.fnmatchcase(name.rpartition(".")[2], hmm_tests.BENCHMARK)


def run_patched(run: Run, folder: Path, mode: Mode) -> None:
    # The series does not change the benchmark, and it takes longer than all tests: it is
    # left to when base is measured, and then runs once for each driver and type.
    benchmark = mode != Mode.USE and (run.source == "base" or run.memory_type not in hmm_tests.TYPES["base"])
    hmm_tests.run_tests(run, folder, benchmark=benchmark)
    # Of base's tests, some fail on any kernel; the comparison says which matter.
    run.decides = run.source != "base"


def plan(kernel: str, source: str, driver: str) -> list[Run]:
    return [Run(source, kernel, driver, memory_type) for memory_type in hmm_tests.TYPES[source]]


def base_runs(mode: Mode, report: Report, folder: Path) -> list[Run]:
    """The unpatched kernel's, out of the record or measured."""
    runs = plan("base", "base", guest.C_DRIVER)
    if mode == Mode.USE:
        section, warnings = base_record.use(SUITE)
        report.warnings += warnings
        for run in runs:
            base_record.recorded_run(section, run, run.memory_type)
            run.tests = [test for test in run.tests if not is_benchmark(test.name)]
    else:
        vm.in_parallel(lambda run: run_base(run, folder), runs)
    return runs


def comparison(kernel: str, before: Sequence[Run], patched: Sequence[Run]) -> Run:
    """A test for each of base's, which fails when the patched kernel does worse."""
    found = Run("comparison with base", kernel, derived=True)
    for old in before:
        after = [run for run in patched if (run.source, run.memory_type) == ("base", old.memory_type)]
        for test in old.tests:
            now = {run.driver: run.outcomes().get(test.name, Outcome.NOT_RUN) for run in after}
            said = f"{test.outcome} on base, patched: {', '.join(f'{d}: {o}' for d, o in now.items())}"
            if test.outcome == Outcome.NOT_RUN:
                said = "base did not get to it, so there is nothing to compare"
                found.tests.append(Test(test.name, Outcome.NOT_RUN, 0, [said]))
            elif test.outcome != Outcome.PASS:
                found.tests.append(Test(test.name, Outcome.SKIP, 0, [said]))
            elif set(now.values()) != {Outcome.PASS}:
                found.tests.append(Test(test.name, Outcome.FAIL, 0, [said]))
            else:
                found.tests.append(Test(test.name, Outcome.PASS))
        unknown = {test.name: None for run in after for test in run.tests if test.name not in old.outcomes()}
        for name in unknown:
            found.tests.append(Test(name, Outcome.NOT_RUN, 0, ["what it does on base is not known"]))
        # Also the kernel's complaints.
        for run in after:
            problem = [run.problem] if run.problem else []
            found.tests.append(
                Test(f"kernel of {run.name}", Outcome.FAIL if problem else Outcome.PASS, 0, problem)
            )
    return found


def record(runs: Sequence[Run]) -> None:
    unknown = base_record.update(SUITE, runs, "memory_type")
    if unknown:
        raise MachineError(f"not recorded, base did not get to it: {', '.join(unknown)}")


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    options.add_base(parser)
    options.add_seed(parser)
    args = parser.parse_args()
    folder = target.default_folder(TARGET, args.kernel)

    with target.reporting(TARGET, folder, args.seed) as report:
        for source in hmm_tests.TYPES:
            hmm_tests.build(source)
        before = base_runs(args.base, report, folder)
        report.runs += before
        if args.base == Mode.RECORD:
            record(before)
        patched = [
            run
            for driver in guest.DRIVERS
            for source in ("base", "series")
            for run in plan(args.kernel, source, driver)
        ]
        report.runs += patched
        vm.in_parallel(lambda run: run_patched(run, folder, args.base), patched)
        report.runs.append(comparison(args.kernel, before, patched))
        if args.base == Mode.MEASURE:
            report.runs.append(base_record.compare(SUITE, before, "memory_type"))
        columns = ("kernel", "source", "driver", "memory_type")
        tables.save(tables.table(before + patched, columns, tables.hmm_test_name), folder)
        tables.print_failures(run for run in report.runs if run.decides)
        bug_runs, table, warnings = bugs.run(args.kernel, bugs.BUGS, args.base, args.seed)
        report.runs += bug_runs
        report.warnings += warnings
        tables.save(table, bugs.folder(args.kernel))
        tables.print_failures(run for run in bug_runs if run.decides)
    return report


if __name__ == "__main__":
    target.exit_with(main)
