import contextlib
import time
import unittest
from pathlib import Path

SECONDS = 10


def runs(pid: int) -> bool:
    # It may end between the two.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def assert_ends(test: unittest.TestCase, pid: int) -> None:
    """Who has sent a signal to a process that is not its child cannot wait for the end."""
    end = time.monotonic() + SECONDS
    while runs(pid) and time.monotonic() < end:
        time.sleep(0.05)
    test.assertFalse(runs(pid), f"process {pid} goes on")
