#!/usr/bin/env python3
"""Runs KUnit suites in the VM, in one boot: what is built in runs by itself, and
the suites of modules when those are loaded.

Prints a table of suites. Fails when a test fails, when a test is skipped for want
of special-purpose memory, when suites do not run at all, or when the kernel
complains.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from harness import guest, ktap, options, tables, target
from harness.results import Outcome, Report, Run, Test

TARGET = "kunit"
TIMEOUT = 600  # seconds

# In order of loading, with parameters.
MODULES = ("zone_device_kunit", "test_hmm_rs device_type=private")
# Of these nothing may be skipped: the VM has what they need.
OWN_SUITES = "zone_device"

DOCUMENT = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? KTAP version 1$")


def documents(console: str) -> list[list[str]]:
    """The KTAP documents in a console log, each as lines."""
    found: list[list[str]] = []
    for line in console.splitlines():
        if DOCUMENT.match(line):
            found.append([])
        if found:
            found[-1].append(line)
    return found


def boot(run: Run, folder: Path) -> None:
    """Boots a VM, fills in run."""
    commands = ["set -e"]
    for module in MODULES:
        commands += [f"modprobe {module}", f"modprobe -r {module.split()[0]}"]
    print(f"==> KUnit suites on the {run.kernel} kernel", file=sys.stderr)
    result, output = guest.boot(run, "\n".join(commands), folder, TIMEOUT, None)
    if result.status and not run.problem:
        run.problem = "\n".join([f"loading the modules: status {result.status}", *output[-5:]])
    console = (folder / "console.log").read_text(errors="replace")
    parsed = [ktap.parse(lines) for lines in documents(console)]
    problems = list(filter(None, map(ktap.problem, parsed)))
    if len(parsed) != 1 + len(MODULES):
        problems.append(f"{len(parsed)} runs of suites, not one at boot and one for each module")
    for document in parsed:
        for path, case in ktap.cases(document):
            run.tests.append(new_test(".".join(path), case))
    run.problem = run.problem or "\n".join(problems) or None


def new_test(name: str, case: "ktap.ParsedTest") -> Test:
    outcome = ktap.outcome(case)
    if outcome == Outcome.SKIP:
        if name.startswith(OWN_SUITES):
            return Test(name, Outcome.FAIL, 0, ["skipped, though the VM has what it needs", case.skip_reason])
        return Test(name, outcome, 0, [case.skip_reason])
    return Test(name, outcome, 0, [] if outcome == Outcome.PASS else list(case.log))


def table(run: Run) -> str:
    suites: dict[str, Counter[str]] = {}
    for test in run.tests:
        column = "failed" if test.outcome.bad else "skipped" if test.outcome == Outcome.SKIP else "passed"
        suites.setdefault(test.name.split(".")[0], Counter())[column] += 1
    width = max([*map(len, suites), len("suite")])
    lines = [f"{'suite':{width}}  passed  skipped  failed"]
    for suite, count in suites.items():
        lines.append(f"{suite:{width}}  {count['passed']:6}  {count['skipped']:7}  {count['failed']:6}")
    return "\n".join(lines) + "\n"


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    args = parser.parse_args()
    folder = target.default_folder(TARGET, args.kernel)

    with target.reporting(folder.name, folder) as report:
        run = Run("kunit", args.kernel)
        report.runs = [run]
        boot(run, folder)
    tables.save(table(run), folder)
    tables.print_failures([run])
    tables.print_totals([run])
    return report


if __name__ == "__main__":
    target.exit_with(main)
