"""Tests of any mapped memory, that of a device and that of a file."""

import os
import signal
import time

import libc
from checks import KB, MB, MUST, PAGE, digest, equal, error_of, note, pattern, write_sysfs
from file_system import OTHER_PMEM
from mapping import Mapping
from processes import Child, touched

# What must leave the memory where it is.
ADVICE = {"PAGEOUT": 21, "COLD": 20, "DONTNEED": 4, "MERGEABLE": 12, "COLLAPSE": 25}


def direct_io(mapping: Mapping) -> None:
    """Between a block device and the memory."""
    length = 2 * MB
    data = pattern(length, 4)
    mapping.data[:length] = data
    fd = os.open(OTHER_PMEM, os.O_RDWR | os.O_DIRECT)
    equal(os.pwritev(fd, [mapping.data[:length]], 0), length, "length written")
    mapping.data[:length] = bytes(length)
    equal(os.preadv(fd, [mapping.data[:length]], 0), length, "length read")
    os.close(fd)
    equal(digest(mapping.data[:length]), digest(data), "data read")


def foreign(mapping: Mapping) -> None:
    """By /proc/PID/mem of another process."""
    data = pattern(64 * KB, 5)
    mapping.data[: len(data)] = data
    child = Child(time.sleep, MUST)
    memory = os.open(f"/proc/{child.process.pid}/mem", os.O_RDWR)
    found = os.pread(memory, len(data), mapping.address)
    os.pwrite(memory, b"written", mapping.address)
    os.close(memory)
    child.kill()
    equal(digest(found), digest(data), "data read")
    equal(bytes(mapping.data[:8]), b"written" + data[7:8], "data written")


def advice(mapping: Mapping) -> None:
    data = pattern(mapping.length, 6)
    mapping.data[:] = data
    frame = mapping.page_frame()
    note(f"mlock: {error_of(mapping.call, libc.mlock)}, Locked {mapping.smaps('Locked')}")
    note(f"munlock: {error_of(mapping.call, libc.munlock)}, Locked {mapping.smaps('Locked')}")
    for name, number in ADVICE.items():
        note(f"MADV_{name}: {error_of(mapping.call, libc.madvise, number)}")
        equal(digest(mapping.data), digest(data), f"data after MADV_{name}")
        equal(mapping.page_frame(), frame, f"page frame after MADV_{name}")
    write_sysfs("/proc/self/clear_refs", "4")
    after_clearing = mapping.soft_dirty()
    mapping.data[0] = 1
    note(f"soft-dirty: after clearing {after_clearing}, after a write {mapping.soft_dirty()}")
    note(f"soft-dirty of the last page: {mapping.soft_dirty(mapping.length - PAGE)}")


def hwpoison(mapping: Mapping) -> None:
    """A memory error in its first page."""
    outcome = os.memfd_create("outcome")

    def poison() -> int:
        error = error_of(mapping.call, libc.madvise, libc.MADV_HWPOISON, length=PAGE)
        os.pwrite(outcome, str(error).encode(), 0)
        return mapping.data[0]

    status = Child(poison).end()
    note(f"madvise: {os.pread(outcome, 20, 0).decode() or 'killed'}")
    os.close(outcome)
    equal(status, -signal.SIGBUS, "status of the process with the page")
    note(f"another process: {touched(mapping, 0)}, the next page: {touched(mapping, PAGE)}")
    note(f"2 MB on: {touched(mapping, 2 * MB)}")
