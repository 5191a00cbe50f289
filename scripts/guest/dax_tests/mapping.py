"""Memory that is mapped from a file, and what the kernel says of it."""

import ctypes
import mmap
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libc
from checks import PAGE, Failure, check


class Mapping:
    """Memory mapped from a file; as a context manager, unmapped at the end."""

    def __init__(
        self,
        path: Path,
        length: int,
        offset: int = 0,
        flags: int = mmap.MAP_SHARED,
        prot: int = mmap.PROT_READ | mmap.PROT_WRITE,
    ) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            self.address: int = libc.mmap(None, length, prot, flags, fd, offset)
        finally:
            os.close(fd)
        if self.address == libc.MAP_FAILED:
            raise libc.last_error(f"mmap of {path}")
        self.length = length
        self.mapped = True
        self.data = memoryview((ctypes.c_char * length).from_address(self.address)).cast("B")

    def __enter__(self) -> "Mapping":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.mapped:
            libc.call(libc.munmap, self.address, self.length)
        self.mapped = False

    def call(
        self, function: Callable[..., int], *args: Any, offset: int = 0, length: int | None = None
    ) -> int:
        """A function on a range of it, by default all."""
        length = self.length - offset if length is None else length
        return libc.call(function, self.address + offset, length, *args)

    def touch(self, offset: int = 0) -> int:
        """Has the page mapped, and returns its frame number."""
        _ = self.data[offset]
        return self.page_frame(offset)

    def page_frame(self, offset: int = 0) -> int:
        """The page's frame number, of a page that was touched."""
        return self.pagemap(offset) & ((1 << 55) - 1)

    def soft_dirty(self, offset: int = 0) -> int:
        return self.pagemap(offset) >> 55 & 1

    def pagemap(self, offset: int) -> int:
        with open("/proc/self/pagemap", "rb") as pagemap:
            pagemap.seek((self.address + offset) // PAGE * 8)
            (entry,) = struct.unpack("Q", pagemap.read(8))
        check(entry >> 63, f"the page at {offset:#x} of the mapping is not present")
        return int(entry)

    def smaps(self, field: str) -> int:
        """A field of this mapping in smaps, in KB."""
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(match[1], 16) <= self.address < int(match[2], 16)
            elif inside and line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise Failure(f"no {field} in smaps")
