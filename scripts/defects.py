#!/usr/bin/env python3
"""Runs the tests of the group `defects` of hmm-selftests, one for each known defect
of the driver in C.

The driver in C gets a VM for each test, because many of them crash or hang its
kernel; the driver in Rust one for each memory type. Prints a table. What becomes of the
driver in C is for information: this fails when the driver in Rust does.
"""

import argparse
import fnmatch
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import guest, kernel_log, ktap, options, selftests, tables, target, vm
from harness.errors import MachineError
from harness.guest import C_DRIVER, RUST_DRIVER
from harness.results import Outcome, Report, Run, Test

TARGET = "defects"
GROUP = "defects"
TIMEOUT = 90  # seconds for a VM of one test, which itself gives up after 60

ROW = re.compile(r"d(\d+)_")


def list_tests(program: Path, filters: Sequence[str]) -> dict[str, list[str]]:
    """The tests by name, each with its types; the first one shows the defect best."""
    listing = subprocess.run(
        [program, "--list", "--group", GROUP], capture_output=True, text=True, check=True
    )
    tests = {}
    for line in listing.stdout.splitlines():
        name, types = line.split()
        name = name.removeprefix(f"{GROUP}.")
        if not filters or any(fnmatch.fnmatchcase(name, f"*{part}*") for part in filters):
            tests[name] = types.split(",")
    if not tests:
        raise MachineError(f"no test matches {' '.join(filters)}")
    return tests


def run_c(program: Path, name: str, memory_type: str, kernel: str, seed: int, results: Path) -> Run:
    """Boots a VM for one test with the driver in C."""
    run = Run(selftests.SOURCE, kernel, C_DRIVER, memory_type, decides=False)
    factor = guest.DEBUG_TIMEOUT_FACTOR if kernel == "debug" else 1
    arguments = ["--type", memory_type, "--seed", str(seed), "--timeout-factor", str(factor)]
    command = shlex.join([str(program), *arguments, f"{GROUP}.{name}"])
    # The driver may have died, and would not go.
    command = guest.with_driver(run, f"{command}; exit")
    print(f"==> {run.name}: {name}", file=sys.stderr)
    result, output = guest.boot(run, command, results / run.name / name, TIMEOUT * factor, None)
    cases = {path[-1]: test for path, test in ktap.cases(ktap.parse(output))}
    case = cases.get(f"{GROUP}.{name}")
    log = list(case.log) if case else []
    outcome, reasons = judge(result, ktap.outcome(case) if case else None, log)
    detail = [] if outcome == Outcome.PASS else [*reasons, *log]
    run.tests.append(Test(f"{GROUP}.{name}", outcome, run.seconds, detail))
    return run


def judge(result: vm.Result, outcome: Outcome | None, log: Sequence[str]) -> tuple[Outcome, list[str]]:
    """The worst that can be said of a VM with one test, and why."""
    crash = kernel_log.crash_line(result.splats)
    if crash:
        return Outcome.CRASH, [crash]
    hung = [line for line in log if "hung: " in line]
    if result.timed_out or hung:
        return Outcome.HANG, hung or [str(result.problem())]
    if result.splats:
        return Outcome.SPLAT, [result.splats[0][0]]
    if outcome is None:
        return Outcome.CRASH, [result.problem() or "the test did not run"]
    return outcome, []


def information(runs: Sequence[Run]) -> Run:
    """What became of the driver in C, for readers of what has no more than pass and fail."""
    found = Run("known-defects", driver=C_DRIVER, derived=True)
    for run in runs:
        for test in run.tests:
            if run.driver == C_DRIVER:
                said = f"{test.outcome} on {run.memory_type} memory"
                found.tests.append(Test(test.name, Outcome.SKIP, 0, [said]))
    return found


def cell(runs: Sequence[Run], driver: str, name: str) -> str:
    outcomes: dict[Outcome, list[str]] = {}
    for run in runs:
        for test in run.tests:
            if run.driver == driver and test.name == f"{GROUP}.{name}":
                outcomes.setdefault(test.outcome, []).append(run.memory_type)
    if driver == RUST_DRIVER and len(outcomes) == 1:
        return next(iter(outcomes))
    return ", ".join(f"{outcome} ({' '.join(types)})" for outcome, types in outcomes.items()) or "-"


def table(tests: Sequence[str], runs: Sequence[Run]) -> str:
    """One line for each test, one column for each driver."""
    rows = [("row", "test", C_DRIVER, RUST_DRIVER)]
    for name in tests:
        found = ROW.match(name)
        number = found[1].lstrip("0") if found else ""
        rows.append((number, name, cell(runs, C_DRIVER, name), cell(runs, RUST_DRIVER, name)))
    width = max(map(len, tests))
    return "".join(f"{r:>3}  {name:{width}}  {c:20}  {rust}\n" for r, name, c, rust in rows)


def print_reasons(runs: Sequence[Run]) -> None:
    for run in runs:
        for test in run.tests:
            if run.driver == C_DRIVER and test.outcome != Outcome.PASS:
                print(f"{test.name} on {run.memory_type} memory:", *test.detail[:4], sep="\n    ")


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    options.add_seed(parser)
    parser.add_argument("--driver", choices=guest.DRIVERS, help="only this one")
    parser.add_argument(
        "--type",
        dest="types",
        action="append",
        choices=selftests.TYPES,
        help="memory type; without, all in Rust, and in C the one that shows a defect best",
    )
    parser.add_argument("filter", nargs="*", help="a part of the tests' names, or a glob")
    args = parser.parse_args()
    folder = target.default_folder(TARGET, args.kernel)

    with target.reporting(folder.name, folder, args.seed) as report:
        program = selftests.build()
        tests = list_tests(program, args.filter)
        if args.driver != C_DRIVER:
            for memory_type in args.types or selftests.TYPES:
                names = [f"{GROUP}.{name}" for name, types in tests.items() if memory_type in types]
                if names:
                    run = Run(selftests.SOURCE, args.kernel, RUST_DRIVER, memory_type)
                    report.runs.append(run)
                    selftests.run_tests(run, folder, names, selftests.TIMEOUT, args.seed)
        if args.driver != RUST_DRIVER:
            for name, types in tests.items():
                wanted = [t for t in types if t in args.types] if args.types else types[:1]
                report.runs += [run_c(program, name, t, args.kernel, args.seed, folder) for t in wanted]
        if not report.runs:
            raise MachineError("these tests are not for this memory type")
        runs = list(report.runs)
        report.runs.append(information(runs))
    print_reasons(runs)
    tables.print_failures(run for run in runs if run.driver == RUST_DRIVER)
    tables.save(table(list(tests), runs), folder)
    return report


if __name__ == "__main__":
    target.exit_with(main)
