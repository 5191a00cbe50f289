"""Runs the tests of one driver and prints KTAP."""

import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bug_tests import BUGS
from checks import MB, PAGE, Failure, Skip, note
from device import DeviceDax
from device_tests import DEVICE_TESTS
from file_system import FileSystem
from file_system_bug_tests import FILE_SYSTEM_BUGS
from file_system_tests import FILE_SYSTEM_TESTS

TIMEOUT = 180  # seconds for a test; fsx takes 20 without KVM, and more on a busy machine
FILE_SYSTEMS = tuple(FileSystem.MKFS)
DRIVERS = (*DeviceDax.MODULES, *FILE_SYSTEMS)


@dataclass(frozen=True)
class Test:
    name: str
    function: Callable[[Any], None]  # takes what is under test
    align: int | None = None  # of device-dax, if it matters


def short_name(function: Callable[[Any], None]) -> str:
    """Without dev_, fs_ or bug_."""
    return function.__name__.partition("_")[2]


def choose(driver: str, only: list[str]) -> list[Test]:
    """The tests whose names have one of the parts in them, without any all. Those of bugs
    only by their whole names: after one the kernel may be in no state for another."""
    bugs: Sequence[Callable[[Any], None]]
    if driver in FILE_SYSTEMS:
        tests = [Test(f"{driver}.{short_name(function)}", function) for function in FILE_SYSTEM_TESTS]
        bugs = FILE_SYSTEM_BUGS
    else:
        tests = [
            Test(f"{driver}.{size}.{short_name(function)}", function, align)
            for size, align in (("4k", PAGE), ("2m", 2 * MB))
            for function in DEVICE_TESTS
        ]
        bugs = BUGS
    chosen = [test for test in tests if not only or any(part in test.name for part in only)]
    of_bugs = [Test(f"bugs.{short_name(function)}", function) for function in bugs]
    return chosen + [test for test in of_bugs if test.name in only]


def raise_timeout(*_: object) -> None:
    raise Failure(f"no end after {TIMEOUT} s")


def run_test(test: Test, subject: DeviceDax | FileSystem) -> tuple[str, str]:
    """Returns KTAP's "ok" or "not ok", and why it was skipped."""
    signal.signal(signal.SIGALRM, raise_timeout)
    signal.alarm(TIMEOUT)
    try:
        if isinstance(subject, DeviceDax) and test.align and subject.align != test.align:
            subject.set_align(test.align)
        test.function(subject)
        return "ok", ""
    except Skip as reason:
        return "ok", f" # SKIP {reason}"
    except Failure as failure:
        for line in str(failure).splitlines():
            note(line)
    except Exception:
        for line in traceback.format_exc().splitlines():
            note(line)
    finally:
        signal.alarm(0)
    return "not ok", ""


def run_all(driver: str, only: list[str]) -> bool:
    """Whether all tests have passed."""
    print("KTAP version 1")
    tests = choose(driver, only)
    print(f"1..{len(tests)}", flush=True)
    subject: DeviceDax | FileSystem
    try:
        subject = FileSystem(driver) if driver in FILE_SYSTEMS else DeviceDax(driver)
    except Failure as failure:
        print(f"Bail out! {driver}: {failure}")
        return False
    failed = 0
    for number, test in enumerate(tests, 1):
        result, skipped = run_test(test, subject)
        failed += result != "ok"
        print(f"{result} {number} {test.name}{skipped}", flush=True)
    return not failed
