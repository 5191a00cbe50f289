"""Reference counts of pages."""

import re
import struct

from checks import Failure, check

PT_LOAD, PT_NOTE = 1, 4


class Pages:
    """Reads struct page of any page frame from /proc/kcore.

    That has the vmemmap of system memory only, so the page tables are walked to the
    memory that the rest of the vmemmap is in.
    """

    def __init__(self) -> None:
        self.file = open("/proc/kcore", "rb", buffering=0)  # noqa: SIM115, for as long as the test runs
        header = self.file.read(64)
        (offset,) = struct.unpack_from("Q", header, 32)
        size, number = struct.unpack_from("HH", header, 54)
        self.segments: list[tuple[int, int, int, int]] = []
        notes = b""
        for index in range(number):
            self.file.seek(offset + index * size)
            kind, _, start, virtual, physical, length = struct.unpack("IIQQQQ", self.file.read(40))
            if kind == PT_LOAD:
                self.segments.append((virtual, physical, start, length))
            elif kind == PT_NOTE:
                self.file.seek(start)
                notes = self.file.read(length)
        info = dict(re.findall(r"([A-Z]+\([\w.]+\))=(\w+)", notes.decode("latin1")))
        self.top = int(info["SYMBOL(init_top_pgt)"], 16)
        self.five_levels = int(info["NUMBER(pgtable_l5_enabled)"])
        self.page_size = int(info["SIZE(page)"])
        self.refcount_offset = int(info["OFFSET(page._refcount)"])
        # As without KASLR.
        self.vmemmap = 0xFFD4000000000000 if self.five_levels else 0xFFFFEA0000000000

    def at_virtual(self, address: int, length: int) -> bytes:
        for virtual, _, start, size in self.segments:
            if virtual <= address < virtual + size:
                self.file.seek(start + address - virtual)
                return self.file.read(length)
        raise Failure(f"{address:#x} is not in /proc/kcore")

    def at_physical(self, address: int, length: int) -> bytes:
        for virtual, physical, _, size in self.segments:
            # Others than system memory have no address, which is -1, or are text.
            if physical <= address < physical + size and virtual < self.vmemmap:
                return self.at_virtual(virtual + address - physical, length)
        raise Failure(f"physical {address:#x} is not in /proc/kcore")

    def read(self, address: int, length: int) -> bytes:
        """Reads kernel memory by the page tables."""
        shifts = (48, 39, 30, 21, 12) if self.five_levels else (39, 30, 21, 12)
        table = None
        for shift in shifts:
            position = (address >> shift & 511) * 8
            if table is None:
                raw = self.at_virtual(self.top + position, 8)
            else:
                raw = self.at_physical(table + position, 8)
            (entry,) = struct.unpack("Q", raw)
            check(entry & 1, f"{address:#x} is not mapped in the kernel")
            table = entry & 0x000FFFFFFFFFF000
            if shift == 12 or (entry & 0x80 and shift in (21, 30)):
                base = table & ~((1 << shift) - 1)
                return self.at_physical(base + (address & ((1 << shift) - 1)), length)
        raise Failure("no leaf in the page tables")

    def refcount(self, frame: int) -> int:
        page = self.vmemmap + frame * self.page_size
        (count,) = struct.unpack("i", self.read(page + self.refcount_offset, 4))
        return int(count)
