#!/usr/bin/env python3
"""Runs hmm-selftests in the VM, one boot for each driver and memory type.

Writes KTAP, the console log and summary.json to the results folder and prints a
table. Fails when a test fails, when the kernel complains, or when the guest
does not get to the end.
"""

import argparse
import functools
import shlex
import subprocess
import sys
from pathlib import Path

import hmm_tests
import vm
from hmm_tests import DRIVERS, Run

TYPES = hmm_tests.TYPES["series"]
TIMEOUT = 900  # seconds for all tests of a type
# A debug kernel is that much slower.
DEBUG_TIMEOUT_FACTOR = 4


@functools.cache
def build():
    """Builds the program and returns its path. To be called before threads do."""
    if subprocess.run([vm.TOP / "scripts/cargo", "build"], check=False).returncode:
        raise vm.VmError("cannot build hmm-selftests")
    return vm.BUILD / "selftests/release/hmm-selftests"


def run_tests(run, results, arguments, timeout, options=()):
    """Boots a VM and fills in run; options are for the kernel's command line."""
    arguments = ["--type", run.type, *arguments]
    if run.kernel == "debug":
        timeout *= DEBUG_TIMEOUT_FACTOR
        arguments += ["--timeout-factor", str(DEBUG_TIMEOUT_FACTOR)]
    print(f"==> hmm-selftests: {run.name}", file=sys.stderr)
    command = shlex.join([str(build()), *arguments])
    commands = hmm_tests.with_driver(run, command)
    hmm_tests.run_ktap(run, commands, results / run.name, timeout, options)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="series", choices=("series", "debug"))
    parser.add_argument("--drivers", default=",".join(DRIVERS), help="comma-separated")
    parser.add_argument("--types", default=",".join(TYPES), help="comma-separated")
    parser.add_argument("--timeout", default=TIMEOUT, type=float, help="seconds for each boot")
    parser.add_argument("--results", default=vm.BUILD / "results/selftests", type=Path)
    parser.add_argument("arguments", nargs="*", help="for hmm-selftests, after --")
    args = parser.parse_args()
    drivers, types = args.drivers.split(","), args.types.split(",")
    for name, known in [(d, DRIVERS) for d in drivers] + [(t, TYPES) for t in types]:
        if name not in known:
            parser.error(f"unknown '{name}', use {','.join(known)}")

    runs = [Run(args.kernel, "selftests", driver, t) for driver in drivers for t in types]
    hmm_tests.write_summary(args.results, [], False)
    build()
    vm.in_parallel(lambda run: run_tests(run, args.results, args.arguments, args.timeout), runs)
    ok = all(run.ok() for run in runs)
    hmm_tests.write_summary(args.results, runs, ok)
    hmm_tests.print_table(runs, ("driver", "type"), str)
    hmm_tests.print_failures(runs)
    hmm_tests.print_totals(runs)
    return 0 if ok else 1


if __name__ == "__main__":
    vm.exit_with(main)
