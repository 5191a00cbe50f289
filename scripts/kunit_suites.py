#!/usr/bin/env python3
"""Runs KUnit suites in the VM, in one boot: what is built in runs by itself, and
the suites of modules when those are loaded.

Prints a table of suites. Fails when a test fails, when a test is skipped for want
of special-purpose memory, when suites do not run at all, or when the kernel
complains.
"""

import argparse
import json
import re
import sys

import ktap
import vm

RESULTS = vm.BUILD / "results/kunit"
TIMEOUT = 600  # seconds

# In order of loading, with parameters.
MODULES = ("zone_device_kunit", "test_hmm_rs device_type=private")

DOCUMENT = re.compile(r"^\[ *\d+\.\d+\] KTAP version 1$")


def documents(console):
    """The KTAP documents in a console log, each as a list of lines."""
    found = []
    for line in console.splitlines():
        if DOCUMENT.match(line):
            found.append([])
        if found:
            found[-1].append(line)
    return found


def run(kernel):
    """Boots a VM; returns what happened, and the console log's path."""
    commands = ["set -e", "exec 2>&1"]
    for module in MODULES:
        commands += [f"modprobe {module}", f"modprobe -r {module.split()[0]}"]
    console = RESULTS / "console.log"
    print(f"==> KUnit suites on the {kernel} kernel", file=sys.stderr)
    result = vm.run(kernel, "\n".join(commands), console, TIMEOUT)
    print(f"    done in {result.seconds:.0f} s", file=sys.stderr)
    return result, console


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="series", choices=("series", "debug"))
    args = parser.parse_args()

    result, console = run(args.kernel)
    ok = vm.report(result, console)
    if result.status:
        print(f"error: loading the modules: status {result.status}:", *(l for _, l in result.lines))
        ok = False
    suites = {}
    parsed = [ktap.parse(lines) for lines in documents(console.read_text(errors="replace"))]
    if len(parsed) != 1 + len(MODULES):
        print(f"error: {len(parsed)} runs of suites, not one at boot and one for each module")
        ok = False
    for document in parsed:
        problem = ktap.problem(document)
        if problem:
            print(f"error: {problem}")
            ok = False
        for path, test in ktap.cases(document):
            suites.setdefault(path[0], []).append((".".join(path), test))

    width = max(map(len, suites), default=0)
    print("suite".ljust(width), "passed", "skipped", "failed", sep="  ")
    summary = []
    for suite, tests in suites.items():
        results = [test.status.name for _, test in tests]
        passed, skipped = results.count("SUCCESS"), results.count("SKIPPED")
        failed = len(results) - passed - skipped
        print(suite.ljust(width), f"{passed:6}", f"{skipped:7}", f"{failed:6}", sep="  ")
        for name, test in tests:
            summary.append({"name": name, "result": test.status.name})
            if test.status.name == "SUCCESS":
                continue
            print(f"    {test.status.name}: {name}", *test.log, sep="\n        ")
            # The VM has what they need.
            if test.status.name != "SKIPPED" or suite.startswith("zone_device"):
                ok = False
    total = [test["result"] for test in summary]
    print(f"{total.count('SUCCESS')} of {len(total)} tests passed")
    text = json.dumps({"target": "kunit", "ok": ok, "kernel": args.kernel, "tests": summary}, indent=1)
    (RESULTS / "summary.json").write_text(text + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    vm.exit_with(main)
