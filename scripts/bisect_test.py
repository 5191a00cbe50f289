#!/usr/bin/env python3
"""The test of scripts/bisect: chooses it, and runs it on the kernel "bisect".

    bisect_test.py choose --type TYPE FILTER       prints the one test that matches
    bisect_test.py run --driver DRIVER --type TYPE [--attempts N] TEST

The status of run is one that git bisect run knows: 0 if the test passes, 1 if it fails,
or the kernel complains, crashes or hangs, and 125 if it cannot run. The test programs
are the series', whatever commit the kernel is of.
"""

import argparse
import enum
import fnmatch
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

from harness import guest, hmm_tests, selftests, target, vm
from harness.errors import MachineError
from harness.paths import BUILD, RESULTS, SCRIPTS
from harness.results import Run

KERNEL = "bisect"
HMM_TESTS, HMM_SELFTESTS = "hmm-tests", "hmm-selftests"
PROGRAMS = {
    HMM_TESTS: BUILD / "hmm-tests/series/hmm-tests",
    HMM_SELFTESTS: BUILD / "selftests/release/hmm-selftests",
}
TIMEOUT = 300  # seconds for a boot
# A crash ends the VM at once, and hangs nothing.
OPTIONS = ["oops=panic", "panic=-1"]
SEED = "1"  # the same on all commits
BEGIN = "the test begins"
VERDICT = re.compile(r"^ *(ok|not ok) \d+ (\S+)(?: # (SKIP).*)?$")


class Status(enum.IntEnum):
    PASSES = 0
    FAILS = 1
    CANNOT_RUN = 125


def programs_tests(memory_type: str) -> Iterator[list[str]]:
    """hmm-tests as fixture.variant.test, then those of hmm-selftests as group.test."""
    yield hmm_tests.select("series", memory_type, "*")
    command = [str(selftests.build()), "--list", "--type", memory_type]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    yield [line.split()[0] for line in listing.splitlines()]


def short_name(test: str) -> str:
    """Without the variant, which says only the type."""
    parts = test.split(".")
    return f"{parts[0]}.{parts[-1]}"


def choose(memory_type: str, text: str) -> str:
    """The one test that has this name, or whose name matches the glob or has this part;
    of hmm-selftests if there is none among hmm-tests."""
    pattern = text if any(c in text for c in "*?[") else f"*{text}*"
    matching: list[str] = []
    for names in programs_tests(memory_type):
        matching = [name for name in names if text in (name, short_name(name))] or [
            name
            for name in names
            if any(fnmatch.fnmatchcase(each, pattern) for each in (short_name(name), name.split(".")[-1]))
        ]
        if matching:
            break
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise MachineError(f"no test of type {memory_type} matches '{text}'")
    shown = ", ".join(map(short_name, matching[:10])) + (", ..." if len(matching) > 10 else "")
    raise MachineError(f"one test at a time: {len(matching)} match '{text}': {shown}")


def suite_of(test: str) -> str:
    return HMM_TESTS if test.count(".") == 2 else HMM_SELFTESTS


def commands(run: Run, test: str) -> str:
    """Without unloading the driver at the end: one with a bug may hang then."""
    load = shlex.join([str(SCRIPTS / "guest/load-driver"), run.driver])
    program = [str(PROGRAMS[run.source])]
    program += ["-r", test] if run.source == HMM_TESTS else ["--type", run.memory_type, "--seed", SEED, test]
    return f"{load} {' '.join(guest.module_parameters(run))} || exit\necho {BEGIN}\n{shlex.join(program)}"


def status(result: vm.Result, test: str) -> tuple[Status, str]:
    """And why."""
    output = [line for _, line in result.lines]
    if BEGIN not in output:
        return Status.CANNOT_RUN, "\n    ".join(
            ["the test did not begin:", *output[-5:], *result.console_tail[-5:]]
        )
    verdicts = [match for line in output if (match := VERDICT.match(line)) and match[2] == test]
    problem = result.problem()
    if not verdicts and result.status is not None:
        return Status.CANNOT_RUN, "\n    ".join(["the test printed no result:", *output[-5:]])
    if verdicts and verdicts[0][3]:
        return Status.CANNOT_RUN, "the test was skipped"
    if verdicts and verdicts[0][1] == "not ok":
        return Status.FAILS, "the test failed"
    return (Status.FAILS, problem) if problem else (Status.PASSES, "the test passed")


def run_test(driver: str, memory_type: str, test: str, attempts: int) -> Status:
    """Fails if one of the attempts does."""
    run = Run(suite_of(test), KERNEL, driver, memory_type)
    for _ in range(attempts):
        result, _ = guest.boot(run, commands(run, test), RESULTS / KERNEL, TIMEOUT, None, OPTIONS)
        outcome, reason = status(result, test)
        print(f"    {test}: {reason}", file=sys.stderr)
        if outcome != Status.PASSES:
            break
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    chooses, runs = verbs.add_parser("choose"), verbs.add_parser("run")
    for verb in (chooses, runs):
        verb.add_argument("--type", required=True, choices=hmm_tests.TYPES["series"])
        verb.add_argument("test")
    runs.add_argument("--driver", required=True, choices=guest.DRIVERS)
    runs.add_argument("--attempts", type=int, default=1)
    args = parser.parse_args()
    if args.verb == "choose":
        print(choose(args.type, args.test))
        return 0
    return run_test(args.driver, args.type, args.test, args.attempts)


if __name__ == "__main__":
    target.exit_with(main)
