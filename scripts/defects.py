#!/usr/bin/env python3
"""Runs the tests of the group `defects` of hmm-selftests, one for each known defect
of the driver in C.

The driver in C gets a VM for each test, because many of them crash or hang its
kernel; the driver in Rust one for each memory type. Prints a table, and writes KTAP,
console logs and summary.json to the results folder. What becomes of the driver in C
is for information: this fails when the driver in Rust does.
"""

import argparse
import fnmatch
import re
import shlex
import subprocess
import sys

import hmm_tests
import ktap
import selftests
import vm
from hmm_tests import Run

C, RUST = hmm_tests.DRIVERS
RESULTS = vm.BUILD / "results/defects"
GROUP = "defects"
TIMEOUT = 90  # seconds for a VM of one test, which itself gives up after 60

ROW = re.compile(r"d(\d+)_")
CRASH = re.compile(
    r"BUG: unable|BUG: kernel NULL|kernel BUG at|KASAN: |Oops: |general protection fault|"
    r"Kernel panic|BUG: Bad page|BUG kmalloc"
)


def list_tests(program, filters):
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
        raise vm.VmError(f"no test matches {' '.join(filters)}")
    return tests


def run_c(program, name, memory_type, kernel):
    """Boots a VM for one test with the driver in C."""
    run = Run(kernel, "selftests", C, memory_type)
    factor = selftests.DEBUG_TIMEOUT_FACTOR if kernel == "debug" else 1
    arguments = ["--type", memory_type, "--timeout-factor", str(factor), f"{GROUP}.{name}"]
    # The driver may have died, and would not go.
    command = hmm_tests.with_driver(run, shlex.join([str(program), *arguments]) + "; exit")
    print(f"==> {run.name}: {name}", file=sys.stderr)
    folder = RESULTS / run.name / name
    result, output = hmm_tests.boot(run, command, folder, TIMEOUT * factor, None)
    cases = {path[-1]: test for path, test in ktap.cases(ktap.parse(output))}
    test = cases.get(f"{GROUP}.{name}")
    outcome, reasons = judge(result, test)
    detail = [] if outcome == "pass" else [*reasons, *(test.log if test else [])]
    run.tests.append(
        {"name": f"{GROUP}.{name}", "result": outcome, "seconds": run.seconds, "detail": detail}
    )
    return run


def judge(result, test):
    """The worst that can be said of a VM with one test, and why."""
    complaints = [line for splat in result.splats for line in splat]
    crashes = [line for line in complaints if CRASH.search(line)]
    if crashes:
        return "crash", crashes[:1]
    hung = [line for line in test.log if "hung: " in line] if test else []
    if result.timed_out or hung:
        return "hang", hung or [result.problem()]
    if result.splats:
        return "splat", complaints[:1]
    if test is None:
        return "crash", [result.problem() or "the test did not run"]
    return hmm_tests.KTAP_RESULTS.get(test.status.name, "crash"), []


def run_rust(tests, memory_type, kernel):
    """Boots a VM for all tests of a memory type with the driver in Rust."""
    run = Run(kernel, "selftests", RUST, memory_type)
    names = [f"{GROUP}.{name}" for name in tests]
    selftests.run_tests(run, RESULTS, names, hmm_tests.TIMEOUT)
    return run


def print_table(tests, runs):
    """One line for each test, one column for each driver."""
    width = max(map(len, tests))

    def cell(driver, name):
        results = {}
        for run in runs:
            for test in run.tests:
                if run.driver == driver and test["name"] == f"{GROUP}.{name}":
                    results.setdefault(test["result"], []).append(run.type)
        if driver == RUST and len(results) == 1:
            return next(iter(results))
        return ", ".join(f"{result} ({' '.join(types)})" for result, types in results.items()) or "-"

    print("row", "test".ljust(width), C.ljust(20), RUST, sep="  ")
    for name in tests:
        row = int(ROW.match(name)[1])
        print(f"{row:3}", name.ljust(width), cell(C, name).ljust(20), cell(RUST, name), sep="  ")


def print_reasons(runs):
    for run in runs:
        for test in run.tests:
            if run.driver == C and test["result"] != "pass":
                print(f"{test['name']} on {run.type} memory:", *test["detail"][:4], sep="\n    ")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="series", choices=("series", "debug"))
    parser.add_argument("--driver", choices=hmm_tests.DRIVERS, help="only this one")
    parser.add_argument(
        "--type",
        dest="types",
        action="append",
        choices=selftests.TYPES,
        help="memory type; without, all in Rust, and in C the one that shows a defect best",
    )
    parser.add_argument("filter", nargs="*", help="a part of the tests' names, or a glob")
    args = parser.parse_args()

    runs = []
    hmm_tests.write_summary(RESULTS, runs, False)
    program = selftests.build()
    tests = list_tests(program, args.filter)
    if args.driver != C:
        for memory_type in args.types or selftests.TYPES:
            of_type = [name for name, types in tests.items() if memory_type in types]
            if of_type:
                runs.append(run_rust(of_type, memory_type, args.kernel))
    ok = all(run.ok() for run in runs)
    if args.driver != RUST:
        for name, types in tests.items():
            wanted = [t for t in types if t in args.types] if args.types else types[:1]
            runs += [run_c(program, name, t, args.kernel) for t in wanted]
    if not runs:
        raise vm.VmError("these tests are not for this memory type")
    hmm_tests.write_summary(RESULTS, runs, ok)
    print_reasons(runs)
    hmm_tests.print_failures([run for run in runs if run.driver == RUST])
    print_table(tests, runs)
    return 0 if ok else 1


if __name__ == "__main__":
    vm.exit_with(main)
