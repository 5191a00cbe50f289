#!/usr/bin/env python3
"""Compares kernels by hmm-tests: one table of test by (kernel, tests, type).

Runs base's unmodified hmm-tests on the unpatched and on the patched kernel, and
the series' on the patched one. Fails when a test that passes on the unpatched
kernel does not on the patched one, when one of the series' own tests fails, or
when the patched kernel complains. What fails on the unpatched kernel is listed.
"""

import contextlib
import sys

import hmm_tests
import vm
from hmm_tests import Run

RESULTS = vm.BUILD / "results/compare"

# Of the unpatched driver: it has these two types, by one way of loading.
BASE_TYPES = ("private", "coherent")
BASE_BOOTS = 4


def headings(runs):
    return [f"{run.kernel} kernel\n{run.source}'s tests\n{run.type}" for run in runs]


def results(run):
    return {test["name"]: test["result"] for test in run.tests}


def run_base(run):
    """On the unpatched kernel, of which a test may leave nothing: boots it again."""
    hmm_tests.run_tests(run, RESULTS, all_types=True)
    for _ in range(BASE_BOOTS - 1):
        missing = [test["name"] for test in run.tests if test["result"] == "not run"]
        if not missing:
            break
        again = Run(run.kernel, run.source, run.driver, run.type)
        hmm_tests.run_tests(again, RESULTS, all_types=True, only=missing)
        run.tests = [test for test in run.tests if test["result"] != "not run"] + again.tests
        run.splats += again.splats
        run.seconds += again.seconds


def main():
    before = [Run("base", "base", "test_hmm", t) for t in BASE_TYPES]
    after = [Run("series", "base", "test_hmm", t) for t in BASE_TYPES]
    new = [Run("series", "series", "test_hmm", t) for t in hmm_tests.TYPES]

    hmm_tests.write_summary(RESULTS, [], False)
    for run in before:
        run_base(run)
    for run in after:
        hmm_tests.run_tests(run, RESULTS, all_types=True)
    for run in new:
        hmm_tests.run_tests(run, RESULTS)

    runs = before + after + new
    with open(RESULTS / "table", "w", encoding="utf-8") as table:
        with contextlib.redirect_stdout(table):
            hmm_tests.print_table(runs, headings(runs))
    print((RESULTS / "table").read_text(), end="")

    ok = True
    for old, patched in zip(before, after):
        was, now = results(old), results(patched)
        for name, result in was.items():
            if result == "not run":
                print(f"error: {name}: base did not get to it, so there is nothing to compare")
                ok = False
            elif result != "pass":
                print(f"fails on base: {name}: {result}, patched: {now.get(name)}")
            elif now.get(name) != "pass":
                print(f"WORSE: {name}: {result} on base, patched: {now.get(name)}")
                ok = False
        if old.problem:
            print(f"base: {old.name}: {old.problem}")
    for run in after:
        if run.problem:
            print(f"error: {run.name}: {run.problem}")
            ok = False
    hmm_tests.print_failures(new)
    ok = ok and all(run.ok() for run in new)
    hmm_tests.write_summary(RESULTS, runs, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except vm.VmError as error:
        sys.exit(f"error: {error}")
