#!/usr/bin/env python3
"""Writes the results of a shell script, for results.sh: what it noted in tests.tsv of
the target's folder, a test a line: name, outcome, seconds, file of the output.
"""

import argparse
from pathlib import Path

from harness import environment, summary, tables
from harness import target as targets
from harness.paths import RESULTS
from harness.results import Outcome, Report, Run, Status, Test

DETAIL_LINES = 40  # the end of what a failed test has to say


def read_test(line: str) -> Test:
    name, outcome, seconds, log = line.split("\t")
    detail = []
    if outcome != Outcome.PASS:
        detail = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-DETAIL_LINES:]
    return Test(name, Outcome(outcome), float(seconds), detail)


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("start", help="UTC, ISO 8601")
    parser.add_argument("seconds", type=float)
    parser.add_argument("error", nargs="?", help="why there is no verdict")
    args = parser.parse_args()
    folder = RESULTS / args.target
    lines = (folder / "tests.tsv").read_text(encoding="utf-8").splitlines()
    run = Run(args.target, seconds=args.seconds, tests=[read_test(line) for line in lines])
    report = Report(args.target, args.start, args.seconds, error=args.error, runs=[run])
    if report.status == Status.FAILED:
        tables.print_failures([run])
    if lines:  # else it only begins
        report.environment = environment.collect(set(), None)
    summary.write(report, folder)
    return report


if __name__ == "__main__":
    targets.exit_with(main)
