"""Tests of device-dax, which has unmanaged generic memory."""

import mmap
import os
from pathlib import Path

import libc
import memory_tests
from checks import MB, PAGE, check, digest, equal, error_of, note, pattern
from device import DeviceDax
from file_system import OTHER_PMEM, load_pmem
from page_references import Pages
from pins import GupTest, Spliced
from processes import Child, touched


def dev_mmap(dev: DeviceDax) -> None:
    """Two mappings of the same memory."""
    data = pattern(4 * MB, dev.align)
    with dev.map() as one, dev.map() as two:
        one.data[:] = data
        equal(digest(two.data), digest(data), "data in the second mapping")
        note(f"KernelPageSize {two.smaps('KernelPageSize')}, MMUPageSize {two.smaps('MMUPageSize')}")
        note(f"Rss {two.smaps('Rss')}, Pss {two.smaps('Pss')}, Anonymous {two.smaps('Anonymous')}")
        note("numa_maps can be read: " + str(bool(Path("/proc/self/numa_maps").read_text())))
    with dev.map(offset=2 * MB, length=2 * MB) as upper:
        equal(digest(upper.data), digest(data[2 * MB :]), "data at an offset")


def dev_refused(dev: DeviceDax) -> None:
    """What device-dax refuses: private mappings, and what is not aligned."""
    unaligned = None if dev.align == PAGE else "EINVAL"

    def error(**kwargs: int) -> str | None:
        return error_of(lambda: dev.map(**kwargs).close())

    equal(error(flags=mmap.MAP_PRIVATE), "EINVAL", "a private mapping")
    equal(error(length=PAGE), unaligned, "a mapping of 4 KB")
    equal(error(length=2 * MB + PAGE), unaligned, "a mapping of 2 MB and 4 KB")
    equal(error(length=2 * MB, offset=PAGE), unaligned, "a mapping from 4 KB on")
    with dev.map() as mapping:
        mapping.data[0] = 1
        unmap = error_of(mapping.call, libc.munmap, offset=PAGE, length=PAGE)
        equal(unmap, unaligned, "unmapping 4 KB")
    size = int(dev.attribute("size"))
    with dev.map(length=2 * MB, offset=size - 2 * MB) as last:
        last.data[2 * MB - 1] = 1
    with dev.map(length=2 * MB, offset=size) as beyond:
        equal(touched(beyond, 0), "SIGBUS", "touching what is beyond the end")
    fd = os.open(dev.path, os.O_RDWR)
    equal(error_of(os.read, fd, 1), "EINVAL", "read()")
    equal(error_of(os.write, fd, b"1"), "EINVAL", "write()")
    os.close(fd)


def dev_fork(dev: DeviceDax) -> None:
    """Parent and child see each other's writes, in memory mapped before the fork."""
    with dev.map() as mapping:
        mapping.data[: 2 * PAGE] = bytes(2 * PAGE)
        turn, other = os.pipe(), os.pipe()

        def child() -> bytes:
            os.read(turn[0], 1)
            seen = bytes(mapping.data[:7])
            mapping.data[PAGE : PAGE + 5] = b"child"
            os.write(other[1], b"x")
            return seen

        process = Child(child)
        mapping.data[:7] = b"parent!"
        os.write(turn[1], b"x")
        os.read(other[0], 1)
        equal(bytes(mapping.data[PAGE : PAGE + 5]), b"child", "what the child wrote")
        equal(process.result(), b"parent!", "what the child read")
        for fd in turn + other:
            os.close(fd)


def dev_gup(dev: DeviceDax) -> None:
    """Every way to take references gets all pages, and leaves none behind."""
    pages = Pages()
    with dev.map() as mapping, GupTest() as gup:
        mapping.data[:] = bytes(mapping.length)
        frame = mapping.page_frame()
        before = pages.refcount(frame)
        for command in (gup.GET_FAST, gup.PIN_FAST, gup.PIN_LONGTERM, gup.GET, gup.PIN):
            equal(gup.pages(command, mapping), mapping.length, f"length, command {command & 0xFF}")
            equal(pages.refcount(frame), before, f"reference count after command {command & 0xFF}")
    # Faulted in by it.
    with dev.map() as mapping, GupTest() as gup:
        equal(gup.pages(gup.PIN_LONGTERM, mapping), mapping.length, "length in untouched memory")


def dev_refcount(dev: DeviceDax) -> None:
    """The reference count of a page that is free, mapped, pinned, and free again."""
    pages = Pages()
    with dev.map() as one:
        one.data[0] = 1
        frame = one.page_frame()
        note(f"mapped once: {pages.refcount(frame)}")
        with dev.map() as two:
            two.data[0] = 1
            equal(two.page_frame(), frame, "page frame")
            note(f"mapped twice: {pages.refcount(frame)}")
        with GupTest() as gup:
            for fast in (False, True):
                gup.pin(one, length=2 * MB, fast=fast)
                note(f"pinned, fast {fast}: {pages.refcount(frame)}")
                gup.unpin()
        with Spliced(one) as pipe:
            note(f"in a pipe: {pages.refcount(frame)}")
            pipe.read()
        note(f"mapped once again: {pages.refcount(frame)}")
    # A page of device-dax is never free.
    equal(pages.refcount(frame), 1, "reference count of a page that nobody uses")


def dev_pin_longterm(dev: DeviceDax) -> None:
    """A long-term pin outlives the mapping, and the kernel reads what is in it."""
    pages = Pages()
    data = pattern(2 * MB, 3)
    with GupTest() as gup:
        with dev.map() as mapping:
            mapping.data[: 2 * MB] = data
            frame = mapping.page_frame()
            gup.pin(mapping, length=2 * MB)
            equal(digest(gup.read(2 * MB)), digest(data), "data in pinned memory")
            mapping.data[:5] = b"later"
        with dev.map() as mapping:
            mapping.data[5:10] = b" on.."
            equal(mapping.page_frame(), frame, "page frame")
        equal(gup.read(2 * MB)[:10], b"later on..", "data in pinned memory, unmapped")
        note(f"pinned, unmapped: {pages.refcount(frame)}")
        gup.unpin()
    equal(pages.refcount(frame), 1, "reference count after unpinning")


def dev_direct_io(dev: DeviceDax) -> None:
    """Direct I/O between a block device and the memory."""
    load_pmem(OTHER_PMEM)
    with dev.map() as mapping:
        memory_tests.direct_io(mapping)


def dev_foreign(dev: DeviceDax) -> None:
    """Another process' memory, by /proc/PID/mem."""
    with dev.map() as mapping:
        memory_tests.foreign(mapping)


def dev_advice(dev: DeviceDax) -> None:
    """Memory management asked to lock, page out, write-protect and move the memory."""
    with dev.map() as mapping:
        memory_tests.advice(mapping)


def dev_unbind_mapped(dev: DeviceDax) -> None:
    """Unbinding the driver takes the memory from a process that has it mapped; the data
    are there when it is bound again.

    Not so with a long-term pin: v7.3 does not wait for it, and crashes when it is gone.
    """
    data = pattern(2 * MB, 7)
    mapping = dev.map()
    mapping.data[: 2 * MB] = data
    dev.unbind()
    equal(touched(mapping, 0), "SIGBUS", "touching memory of an unbound device")
    # With the file still open, v7.3 initializes a cdev again that is in use when it binds
    # the device, and crashes in mmap() when it was opened unbound.
    mapping.close()
    dev.bind()
    with dev.map() as again:
        equal(digest(again.data[: 2 * MB]), digest(data), "data after binding again")


def dev_realign(dev: DeviceDax) -> None:
    """The data of special-purpose memory are there after a change of its alignment; of
    persistent memory, they start at the alignment."""
    data = pattern(2 * MB, 8)
    align = dev.align
    with dev.map() as mapping:
        mapping.data[: 2 * MB] = data
    dev.set_align(2 * MB if align == PAGE else PAGE)
    with dev.map() as mapping:
        there = digest(mapping.data[: 2 * MB]) == digest(data)
    note(f"data at the same offset with another alignment: {there}")
    check(there or dev.driver != "dax_hmem", "the data are gone")
    dev.set_align(align)
    with dev.map() as mapping:
        equal(digest(mapping.data[: 2 * MB]), digest(data), "data with the first alignment again")


def dev_hwpoison(dev: DeviceDax) -> None:
    """A memory error kills those that have the page mapped, and nobody else. Binding
    the driver again makes new page structures."""
    with dev.map(offset=16 * MB) as mapping:
        mapping.data[:] = bytes(mapping.length)
        memory_tests.hwpoison(mapping)
    dev.unbind()
    dev.bind()
    with dev.map(offset=16 * MB) as mapping:
        note(f"after binding again: {touched(mapping, 0)}")


DEVICE_TESTS = [
    dev_mmap,
    dev_refused,
    dev_fork,
    dev_gup,
    dev_refcount,
    dev_pin_longterm,
    dev_direct_io,
    dev_foreign,
    dev_advice,
    dev_unbind_mapped,
    dev_realign,
    dev_hwpoison,
]
