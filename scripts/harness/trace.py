"""An exact trace of what a VM executes, counted by address.

QEMU translates one instruction at a time and writes a line for each one, between two of its
monitor's commands. The guest marks what is to be counted by a function of the kernel that it
calls right before and right after. To be used with a VM that counts, whose clock does not go on
while QEMU writes.
"""

import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from harness import vm
from harness.errors import MachineError

# [code segment/address/flags/flags of the translation], and symbols if QEMU has some.
ADDRESS = re.compile(rb"^Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]{16})/", re.MULTILINE)
CHUNK = 1 << 20
# The first is the name in QEMU before 8.1; the other one is not known then, which is no error.
ONE_AT_A_TIME = ("singlestep", "one-insn-per-tb")


def fold(chunks: Iterable[bytes], mark: int) -> Iterator[Counter[int]]:
    """How often the instruction at each address is executed between the first mark and the
    second one, between the third one and the fourth one, and so on."""
    marked = b"%016x" % mark
    found: Counter[bytes] | None = None
    rest = b""
    for chunk in chunks:
        whole, _, rest = (rest + chunk).rpartition(b"\n")
        addresses = ADDRESS.findall(whole)
        while addresses:
            end = addresses.index(marked) if marked in addresses else len(addresses)
            if found is not None:
                found.update(addresses[:end])
            if end < len(addresses):
                if found is not None:
                    yield Counter({int(address, 16): count for address, count in found.items()})
                found = Counter() if found is None else None
            del addresses[: end + 1]


class Tracer:
    """Counts what a VM that is booted meanwhile, with these options of QEMU, executes."""

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.counts: list[Counter[int]] = []

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory()
        pipe, self.monitor = (Path(self.folder.name) / name for name in ("trace", "qmp"))
        os.mkfifo(pipe)
        self.qemu = [f"-D {pipe}", f"-qmp unix:{self.monitor},server=on,wait=off"]
        # Having both ends, neither QEMU nor this waits for the other one to open it.
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self.writer = os.open(pipe, os.O_WRONLY)
        os.set_blocking(reader, True)
        self.thread = threading.Thread(target=self.read, args=[reader])
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # QEMU has ended.
        os.close(self.writer)
        self.thread.join()
        self.folder.cleanup()

    def read(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as file:
            self.counts.extend(fold(iter(lambda: file.read(CHUNK), b""), self.mark))

    def switch(self, on: bool) -> None:
        """Has QEMU begin or end."""
        commands = [f"{command} {'on' if on else 'off'}" for command in ONE_AT_A_TIME]
        commands.append("log exec,nochain" if on else "log none")
        if vm.ask(self.monitor, commands, "--hmp").returncode:
            raise MachineError("QEMU's monitor does not answer")
