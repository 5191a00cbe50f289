#!/usr/bin/env python3
"""Compares device-dax and fs-dax on the unpatched and on the patched kernel.

Boots the patched kernel once for each driver, and the unpatched one unless its results
are taken from the record; prints one table. Fails when a test fails, when anything is
different on the two kernels, down to what the tests note, and when the patched kernel
complains.
"""

import argparse
from collections.abc import Iterator, Sequence

from harness import base_record, dax, options, tables, target
from harness.base_record import Mode
from harness.errors import MachineError
from harness.results import Outcome, Report, Run, Test

TARGET = "dax"
SUITE = "dax"  # in the record of base


def column(kernel: str, runs: Sequence[Run]) -> Run:
    """The runs of a kernel as one column of the table."""
    merged = Run(dax.SOURCE, kernel, "all", recorded=any(run.recorded for run in runs))
    for run in runs:
        merged.tests += run.tests
        merged.splats += run.splats
    return merged


def differences(base: Run, patched: Run) -> Iterator[Test]:
    """A test for each, which fails when it says something else on the other kernel."""
    before, after = ({test.name: test for test in run.tests} for run in (base, patched))
    for name in {**before, **after}:
        old, new = (tests.get(name, Test(name, Outcome.NOT_RUN)) for tests in (before, after))
        said = []
        if old.outcome != new.outcome:
            said = [f"{old.outcome} on base, {new.outcome} on the patched kernel"]
        elif old.detail != new.detail:
            said = [f"{old.outcome} on both, but it says something else"]
            said += [f"base:    {line}" for line in old.detail if line not in new.detail]
            said += [f"patched: {line}" for line in new.detail if line not in old.detail]
        yield Test(f"{patched.driver} {name}", Outcome.FAIL if said else Outcome.PASS, 0, said)


def recorded(driver: str, patched: Run, filters: Sequence[str]) -> tuple[Run, list[str]]:
    """The record's run of a driver; with a filter, of the tests that the patched kernel ran."""
    section, warnings = base_record.use(SUITE)
    only = [test.name for test in patched.tests] if filters else None
    return base_record.recorded_run(section, dax.new_run("base", driver), driver, only), warnings


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_base(parser)
    parser.add_argument("--drivers", default=",".join(dax.DRIVERS), help="comma-separated")
    parser.add_argument("filter", nargs="*", help="a part of the tests' names")
    args = parser.parse_args()
    drivers = options.choices(parser, args.drivers, list(dax.DRIVERS))
    folder = target.default_folder(TARGET)

    base: list[Run] = []
    with target.reporting(TARGET, folder) as report:
        if args.base == Mode.USE:  # before anything takes long
            base_record.use(SUITE)
        patched = [dax.new_run("series", driver) for driver in drivers]
        for run in patched:
            if args.base == Mode.USE:
                dax.run_tests(run, args.filter, folder)
                old, warnings = recorded(run.driver, run, args.filter)
                report.warnings = list(dict.fromkeys(report.warnings + warnings))
            else:
                old = dax.new_run("base", run.driver)
                dax.run_tests(old, args.filter, folder)
                dax.run_tests(run, args.filter, folder)
            base.append(old)
            report.runs += [old, run]
        if not any(run.tests for run in patched):
            raise MachineError("no test ran")
        comparison = Run("comparison with base", "series", derived=True)
        for old, new in zip(base, patched, strict=True):
            comparison.tests += differences(old, new)
        report.runs.append(comparison)
        if args.base == Mode.MEASURE:
            report.runs.append(
                base_record.compare(SUITE, base, "driver", details=True, whole=not args.filter)
            )
        elif args.base == Mode.RECORD:
            refuse_incomplete(base)
            base_record.update(SUITE, base, "driver", details=True)

    columns = [column("base", base), column("series", patched)]
    tables.save(tables.table(columns, ("kernel",)), folder)
    tables.print_failures(report.runs)
    tables.print_totals(run for run in report.runs if not run.derived)
    return report


def refuse_incomplete(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.problem or not run.tests:
            raise MachineError(f"not recorded: {run.name}: {run.problem or 'no test ran'}")


if __name__ == "__main__":
    target.exit_with(main)
