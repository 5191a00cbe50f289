#!/usr/bin/env python3
"""Compares kernels and drivers by hmm-tests, in one table.

Runs base's unmodified hmm-tests on the unpatched and on the patched kernel, and
the series' on the patched one; on the patched kernel, with the driver in C and
with the one in Rust. Fails when a test that passes on the unpatched kernel does
not on the patched one, when one of the series' own tests fails, or when the
patched kernel complains. What fails on the unpatched kernel is listed. A second
table shows the bugs of the unpatched kernel that the series fixes.
"""

import bugs
import hmm_tests
import vm
from hmm_tests import Run

RESULTS = vm.BUILD / "results/compare"

BASE_BOOTS = 4


def results(run):
    return {test["name"]: test["result"] for test in run.tests}


def run_base(run):
    """On the unpatched kernel, of which a test may leave nothing: boots it again."""
    hmm_tests.run_tests(run, RESULTS)
    for _ in range(BASE_BOOTS - 1):
        missing = [test["name"] for test in run.tests if test["result"] == "not run"]
        if not missing:
            break
        again = Run(run.kernel, run.source, run.driver, run.type)
        hmm_tests.run_tests(again, RESULTS, only=missing)
        run.tests = [test for test in run.tests if test["result"] != "not run"] + again.tests
        run.splats += again.splats
        run.seconds += again.seconds


def run_patched(run):
    # The series does not change the benchmark: once will do for each driver and type.
    benchmark = run.source == "base" or run.type not in hmm_tests.TYPES["base"]
    hmm_tests.run_tests(run, RESULTS, benchmark=benchmark)


def plan(kernel, source, driver):
    return [Run(kernel, source, driver, t) for t in hmm_tests.TYPES[source]]


def main():
    before = plan("base", "base", "test_hmm")
    patched = [
        run
        for driver in hmm_tests.DRIVERS
        for source in ("base", "series")
        for run in plan("series", source, driver)
    ]
    hmm_tests.write_summary(RESULTS, [], False)
    for source in hmm_tests.TYPES:
        hmm_tests.build_tests(source)
    vm.in_parallel(run_base, before)
    vm.in_parallel(run_patched, patched)

    runs = before + patched
    hmm_tests.save_table(RESULTS, runs, ("kernel", "source", "driver", "type"))

    ok = True
    for old in before:
        after = [run for run in patched if (run.source, run.type) == ("base", old.type)]
        for name, result in results(old).items():
            now = {run.driver: results(run).get(name) for run in after}
            patched_results = ", ".join(f"{driver}: {r}" for driver, r in now.items())
            if result == "not run":
                print(f"error: {name}: base did not get to it, so there is nothing to compare")
                ok = False
            elif result != "pass":
                print(f"fails on base: {name}: {result}, patched: {patched_results}")
            elif set(now.values()) != {"pass"}:
                print(f"WORSE: {name}: {result} on base, patched: {patched_results}")
                ok = False
        if old.problem:
            print(f"base: {old.name}: {old.problem}")
        for run in after:
            if run.problem:
                print(f"error: {run.name}: {run.problem}")
                ok = False
    new = [run for run in patched if run.source == "series"]
    hmm_tests.print_failures(new)
    ok = ok and all(run.ok() for run in new)
    ok = bugs.run() and ok
    hmm_tests.write_summary(RESULTS, runs, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    vm.exit_with(main)
