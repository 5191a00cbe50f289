"""What every test uses: how to fail, what to print, and how long to wait."""

import errno
import hashlib
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KB, MB = 1 << 10, 1 << 20
PAGE = 4 * KB
# For what must not happen, seconds to wait whether it does.
MUST_NOT = 5
# For what must happen, much longer than it takes.
MUST = 30


class Failure(Exception):  # noqa: N818, a result
    """A test has failed; the message says why."""


class Skip(Exception):  # noqa: N818, a result
    """A test does not apply; the message says why."""


def check(true: object, message: str) -> None:
    if not true:
        raise Failure(message)


def equal(found: object, expected: object, what: str) -> None:
    check(found == expected, f"{what}: {found!r}, expected {expected!r}")


def note(text: str) -> None:
    """Prints what a test finds out, which dax.py compares on both kernels: nothing that
    differs from run to run."""
    print(f"# {text}", flush=True)


def error_of(function: Callable[..., object], *args: Any, **kwargs: Any) -> str | None:
    """The name of the error that it fails with, or None."""
    try:
        function(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def run(*command: object) -> str:
    """Runs a program, returns what it prints."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout


def write_sysfs(path: str | Path, text: str) -> None:
    with open(path, "w", encoding="ascii", buffering=1) as file:
        file.write(text)


def until(condition: Callable[[], object], what: str, seconds: float = MUST) -> None:
    """Waits until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, f"not within {seconds} s: {what}")
        time.sleep(0.05)


def pattern(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(bytes(data)).hexdigest()[:16]
