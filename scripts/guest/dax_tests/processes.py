"""Child processes."""

import multiprocessing
import signal
import sys
from collections.abc import Callable
from typing import Any

from checks import MUST, check, equal
from mapping import Mapping


class Child:
    """A process that runs a function; its result comes by a pipe."""

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        context = multiprocessing.get_context("fork")
        self.receiver, sender = context.Pipe(duplex=False)

        def main() -> None:
            signal.alarm(0)
            sender.send(function(*args))

        sys.stdout.flush()
        self.process = context.Process(target=main, daemon=True)
        self.process.start()
        sender.close()

    def running(self) -> bool:
        return self.process.is_alive()

    def runs_after(self, seconds: float) -> bool:
        """Whether it has not ended by then."""
        self.process.join(seconds)
        return self.running()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def end(self, seconds: float = MUST) -> int | None:
        """Its exit status, minus the number of the signal that it died of."""
        check(not self.runs_after(seconds), f"the child has not ended after {seconds} s")
        return self.process.exitcode

    def result(self, seconds: float = MUST) -> Any:
        equal(self.end(seconds), 0, "status of the child")
        return self.receiver.recv()


def touched(mapping: Mapping, offset: int) -> str:
    """What becomes of a process that reads a byte."""
    status = Child(lambda: mapping.data[offset]).end()
    return {0: "read", -signal.SIGBUS: "SIGBUS", -signal.SIGSEGV: "SIGSEGV"}.get(
        status or 0, f"status {status}"
    )
