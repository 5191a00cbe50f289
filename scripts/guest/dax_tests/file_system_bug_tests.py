"""Tests of bugs of v7.3 in file systems with DAX, which are those of make bugs."""

import fcntl
import mmap
import os
import struct
from functools import partial

from checks import MB, PAGE, equal, until
from file_system import FileSystem
from mapping import Mapping
from processes import Child

# linux/fiemap.h: struct fiemap with one struct fiemap_extent.
FS_IOC_FIEMAP, FIEMAP_EXTENT_UNWRITTEN = 0xC020660B, 0x800
FIEMAP = struct.Struct("=QQIIII QQQQQIIII")


def unwritten(file: int, offset: int) -> bool:
    """Whether the blocks of a page are allocated, but have no data yet."""
    found = FIEMAP.unpack(fcntl.ioctl(file, FS_IOC_FIEMAP, FIEMAP.pack(offset, PAGE, 0, 0, 1, *[0] * 10)))
    equal(found[3], 1, f"extents of the file at {offset:#x}")
    return bool(found[11] & FIEMAP_EXTENT_UNWRITTEN)


def bug_write_unwritten(fs: FileSystem) -> None:
    """What pwrite() writes is not lost when another process stores to the same 2 MB of
    unwritten blocks, for which these are zeroed: they have data only after that."""
    size, huge = 32 * MB, 2 * MB
    path = fs.file(size)
    file = os.open(path, os.O_RDWR)
    # The last ones of every other 2 MB: ext4 adds blocks to a written neighbour another way.
    pages = range(huge - PAGE, size, 2 * huge)
    waiting = mmap.mmap(-1, PAGE)  # shared

    def waits(number: int) -> bool:
        return waiting[0] == number

    def write() -> None:
        for number, offset in enumerate(pages, 1):
            waiting[0] = number
            while unwritten(file, offset):
                pass
            os.pwrite(file, b"by pwrite()", offset)

    with Mapping(path, size) as mapping:
        writer = Child(write)
        for number, offset in enumerate(pages, 1):
            until(partial(waits, number), f"the other process waits at {offset:#x}")
            mapping.data[offset + PAGE - huge] = 1
        writer.result()
    lost = [hex(offset) for offset in pages if os.pread(file, 11, offset) != b"by pwrite()"]
    os.close(file)
    equal(lost, [], "where pwrite() was lost")


FILE_SYSTEM_BUGS = [bug_write_unwritten]
