#!/usr/bin/env python3
"""Tests of device-dax and fs-dax, run in the VM by dax.py; prints KTAP.

    dax_tests.py dax_hmem|dax_pmem|ext4|xfs [test...]

dax_hmem is device-dax on special-purpose memory, dax_pmem on persistent memory;
ext4 and xfs are mounted with -o dax=always on persistent memory. It all overwrites
/dev/pmem0 and /dev/pmem1.

Tests of bugs of v7.3, "bugs.", run only when asked for: after one the kernel may be in
no state for another.

What a test finds out without expecting it, such as reference counts, it prints as a
diagnostic: dax.py compares that, too. So nothing is printed there that differs from
run to run.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import itertools
import json
import mmap
import multiprocessing
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

KB, MB = 1 << 10, 1 << 20
PAGE = 4 * KB
TIMEOUT = 90  # seconds for a test
# For what must not happen, seconds to wait whether it does.
MUST_NOT = 5
# For what must happen, much longer than it takes.
MUST = 30

PMEM, OTHER_PMEM = "/dev/pmem0", "/dev/pmem1"
MOUNT = Path("/tmp/dax")

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.msync.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

MAP_SHARED_VALIDATE, MAP_SYNC, MAP_FAILED = 3, 0x80000, ctypes.c_void_p(-1).value
MS_SYNC, MADV_HWPOISON = 4, 100
# What must leave the memory where it is.
ADVICE = {"PAGEOUT": 21, "COLD": 20, "DONTNEED": 4, "MERGEABLE": 12, "COLLAPSE": 25}
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE = 8, 16
FICLONE = 0x40049409


class Failure(Exception):
    """A test has failed; the message says why."""


class Skip(Exception):
    """A test does not apply; the message says why."""


def check(true, message):
    if not true:
        raise Failure(message)


def equal(found, expected, what):
    check(found == expected, f"{what}: {found!r}, expected {expected!r}")


def note(text):
    print(f"# {text}", flush=True)


def call(function, *args):
    """A function of the C library that returns -1 on error."""
    result = function(*args)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function.__name__)
    return result


def error_of(function, *args, **kwargs):
    """The name of the error that it fails with, or None."""
    try:
        function(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


def run(*command):
    """Runs a program, returns what it prints."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout


def until(condition, what, seconds=MUST):
    """Waits until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, f"not within {seconds} s: {what}")
        time.sleep(0.05)


def pattern(length, seed):
    return random.Random(seed).randbytes(length)


def digest(data):
    return hashlib.sha256(bytes(data)).hexdigest()[:16]


class Mapping:
    """Memory mapped from a file; as a context manager, unmapped at the end."""

    def __init__(self, path, length, offset=0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE):
        fd = os.open(path, os.O_RDWR)
        try:
            self.address = libc.mmap(None, length, prot, flags, fd, offset)
        finally:
            os.close(fd)
        if self.address == MAP_FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"mmap of {path}")
        self.length = length
        self.data = memoryview((ctypes.c_char * length).from_address(self.address)).cast("B")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.address:
            call(libc.munmap, self.address, self.length)
        self.address = None

    def call(self, function, *args, offset=0, length=None):
        """A function on a range of it, by default all."""
        length = self.length - offset if length is None else length
        return call(function, self.address + offset, length, *args)

    def page_frame(self, offset=0):
        """The page's frame number, of a page that was touched."""
        return self.pagemap(offset) & ((1 << 55) - 1)

    def pagemap(self, offset=0):
        with open("/proc/self/pagemap", "rb") as pagemap:
            pagemap.seek((self.address + offset) // PAGE * 8)
            (entry,) = struct.unpack("Q", pagemap.read(8))
        check(entry >> 63, f"the page at {offset:#x} of the mapping is not present")
        return entry

    def smaps(self, field):
        """A field of this mapping in smaps, in KB."""
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(match[1], 16) <= self.address < int(match[2], 16)
            elif inside and line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise Failure(f"no {field} in smaps")


class Child:
    """A process that runs a function; its result comes by a pipe."""

    def __init__(self, function, *args):
        context = multiprocessing.get_context("fork")
        self.receiver, sender = context.Pipe(duplex=False)

        def main():
            signal.alarm(0)
            sender.send(function(*args))

        sys.stdout.flush()
        self.process = context.Process(target=main, daemon=True)
        self.process.start()
        sender.close()

    def running(self):
        return self.process.is_alive()

    def end(self, seconds=MUST):
        """Its exit status, minus the number of the signal that it died of."""
        self.process.join(seconds)
        check(not self.running(), f"the child has not ended after {seconds} s")
        return self.process.exitcode

    def result(self, seconds=MUST):
        equal(self.end(seconds), 0, "status of the child")
        return self.receiver.recv()


def touched(mapping, offset):
    """What becomes of a process that reads a byte."""
    status = Child(lambda: mapping.data[offset]).end()
    return {0: "read", -signal.SIGBUS: "SIGBUS", -signal.SIGSEGV: "SIGSEGV"}.get(status, f"status {status}")


def ioctl(direction, number, size):
    """As _IOC() of the kernel."""
    return direction << 30 | size << 16 | ord("g") << 8 | number


class GupTest:
    """/sys/kernel/debug/gup_test, see mm/gup_test.h."""

    TEST = struct.Struct("=QQQQIII8I4x")
    LONGTERM = struct.Struct("=QQII")
    GET_FAST, PIN_FAST, PIN_LONGTERM, GET, PIN = map(ioctl, [3] * 5, range(1, 6), [TEST.size] * 5)
    START, STOP, READ = ioctl(1, 7, LONGTERM.size), ioctl(0, 8, 0), ioctl(1, 9, 8)
    FOLL_WRITE = 1

    def __init__(self):
        self.fd = os.open("/sys/kernel/debug/gup_test", os.O_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def pages(self, command, mapping, length=None):
        """Takes references and drops them; returns how many bytes it got."""
        length = length or mapping.length
        # Not all at once: of a call that gets less, only the next one says so.
        at_once = 64
        argument = bytearray(
            self.TEST.pack(0, 0, mapping.address, length, at_once, self.FOLL_WRITE, 0, *[0] * 8)
        )
        fcntl.ioctl(self.fd, command, argument)
        return self.TEST.unpack(argument)[3]

    def pin(self, mapping, length=None, fast=False):
        """Pins for the long term, until unpin() or close."""
        fcntl.ioctl(
            self.fd,
            self.START,
            self.LONGTERM.pack(mapping.address, length or mapping.length, 1 | fast << 1, 0),
        )

    def unpin(self):
        fcntl.ioctl(self.fd, self.STOP)

    def read(self, length):
        """The content of the pinned pages, by the kernel."""
        buffer = ctypes.create_string_buffer(length)
        fcntl.ioctl(self.fd, self.READ, struct.pack("Q", ctypes.addressof(buffer)))
        return buffer.raw


class Pages:
    """Reads struct page of any page frame from /proc/kcore.

    That has the vmemmap of system memory only, so the page tables are walked to the
    memory that the rest of the vmemmap is in.
    """

    def __init__(self):
        self.file = open("/proc/kcore", "rb", buffering=0)  # pylint: disable=consider-using-with
        header = self.file.read(64)
        (offset,) = struct.unpack_from("Q", header, 32)
        size, number = struct.unpack_from("HH", header, 54)
        self.segments, notes = [], b""
        for index in range(number):
            self.file.seek(offset + index * size)
            kind, _, start, virtual, physical, length = struct.unpack("IIQQQQ", self.file.read(40))
            if kind == 1:
                self.segments.append((virtual, physical, start, length))
            elif kind == 4:
                self.file.seek(start)
                notes = self.file.read(length)
        info = dict(re.findall(r"([A-Z]+\([\w.]+\))=(\w+)", notes.decode("latin1")))
        self.top = int(info["SYMBOL(init_top_pgt)"], 16)
        self.five_levels = int(info["NUMBER(pgtable_l5_enabled)"])
        self.page_size = int(info["SIZE(page)"])
        self.refcount_offset = int(info["OFFSET(page._refcount)"])
        # As without KASLR.
        self.vmemmap = 0xFFD4000000000000 if self.five_levels else 0xFFFFEA0000000000

    def at_virtual(self, address, length):
        for virtual, _, start, size in self.segments:
            if virtual <= address < virtual + size:
                self.file.seek(start + address - virtual)
                return self.file.read(length)
        raise Failure(f"{address:#x} is not in /proc/kcore")

    def at_physical(self, address, length):
        for virtual, physical, _, size in self.segments:
            # Others than system memory have no address, which is -1, or are text.
            if physical <= address < physical + size and virtual < self.vmemmap:
                return self.at_virtual(virtual + address - physical, length)
        raise Failure(f"physical {address:#x} is not in /proc/kcore")

    def read(self, address, length):
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

    def refcount(self, frame):
        page = self.vmemmap + frame * self.page_size
        return struct.unpack("i", self.read(page + self.refcount_offset, 4))[0]


class Spliced:
    """References to the pages of a mapping that a pipe holds, until it is read."""

    def __init__(self, mapping, offset=0, length=PAGE):
        self.length = length
        self.reader, self.writer = os.pipe()
        iov = struct.pack("QQ", mapping.address + offset, length)
        equal(call(libc.vmsplice, self.writer, iov, 1, 0), length, "length of vmsplice")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for fd in (self.reader, self.writer):
            os.close(fd)

    def read(self):
        return os.read(self.reader, self.length)


def raise_timeout(*_):
    raise Failure(f"no end after {TIMEOUT} s")


def write_sysfs(path, text):
    with open(path, "w", encoding="ascii", buffering=1) as file:
        file.write(text)


# Device-dax


class DeviceDax:
    """A device-dax device, with an alignment."""

    def __init__(self, driver):
        self.driver = driver
        if driver == "dax_hmem":
            run("modprobe", "dax_hmem")
        else:
            run("modprobe", "nd_e820")
            self.create_namespace(PAGE)
        run("modprobe", "device_dax")
        run("udevadm", "settle")
        self.align = None
        self.sysfs = self.find()
        note(f"{self.driver}: size {self.attribute('size')}")

    @staticmethod
    def find():
        devices = sorted(Path("/sys/bus/dax/devices").glob("dax*"))
        check(devices, "no device on the dax bus")
        return devices[0]

    @property
    def path(self):
        return Path("/dev") / self.sysfs.name

    def attribute(self, name):
        return (self.sysfs / name).read_text().strip()

    def create_namespace(self, align):
        options = ["--force", "--reconfig=namespace0.0", "--mode=devdax", "--map=mem"]
        run("ndctl", "create-namespace", *options, f"--align={align}")

    def unbind(self):
        run("daxctl", "disable-device", self.sysfs.name)

    def bind(self):
        run("daxctl", "enable-device", self.sysfs.name)

    def set_align(self, align):
        """Of special-purpose memory the alignment is an attribute, of persistent memory
        a part of the namespace's superblock."""
        if self.driver == "dax_hmem":
            self.unbind()
            write_sysfs(self.sysfs / "align", str(align))
            self.bind()
        else:
            self.create_namespace(align)
            self.sysfs = self.find()
            until(self.path.exists, f"{self.path} is there")
        equal(int(self.attribute("align")), align, "alignment")
        self.align = align

    def map(self, length=4 * MB, **kwargs):
        return Mapping(self.path, length, **kwargs)


def dev_mmap(dev):
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


def dev_refused(dev):
    """What device-dax refuses: private mappings, and what is not aligned."""
    unaligned = None if dev.align == PAGE else "EINVAL"

    def error(**kwargs):
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


def dev_fork(dev):
    """Parent and child see each other's writes, in memory mapped before the fork."""
    with dev.map() as mapping:
        mapping.data[: 2 * PAGE] = bytes(2 * PAGE)
        turn, other = os.pipe(), os.pipe()

        def child():
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


def dev_gup(dev):
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


def dev_refcount(dev):
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


def dev_pin_longterm(dev):
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


def dev_direct_io(dev):
    """Direct I/O between a block device and the memory."""
    if dev.driver == "dax_hmem":
        run("modprobe", "nd_e820")
        until(Path(OTHER_PMEM).exists, f"{OTHER_PMEM} is there")
    direct_io(dev.map())


def direct_io(mapping):
    length = 2 * MB
    data = pattern(length, 4)
    with mapping:
        mapping.data[:length] = data
        fd = os.open(OTHER_PMEM, os.O_RDWR | os.O_DIRECT)
        equal(os.pwritev(fd, [mapping.data[:length]], 0), length, "length written")
        mapping.data[:length] = bytes(length)
        equal(os.preadv(fd, [mapping.data[:length]], 0), length, "length read")
        os.close(fd)
        equal(digest(mapping.data[:length]), digest(data), "data read")


def dev_foreign(dev):
    """Another process' memory, by /proc/PID/mem."""
    with dev.map() as mapping:
        foreign(mapping)


def foreign(mapping):
    data = pattern(64 * KB, 5)
    mapping.data[: len(data)] = data
    process = Child(time.sleep, MUST)
    memory = os.open(f"/proc/{process.process.pid}/mem", os.O_RDWR)
    found = os.pread(memory, len(data), mapping.address)
    os.pwrite(memory, b"written", mapping.address)
    os.close(memory)
    process.process.kill()
    process.process.join()
    equal(digest(found), digest(data), "data read")
    equal(bytes(mapping.data[:8]), b"written" + data[7:8], "data written")


def dev_advice(dev):
    """Memory management asked to lock, page out, write-protect and move the memory."""
    with dev.map() as mapping:
        advice(mapping)


def advice(mapping):
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
    after_clearing = mapping.pagemap() >> 55 & 1
    mapping.data[0] = 1
    note(f"soft-dirty: after clearing {after_clearing}, after a write {mapping.pagemap() >> 55 & 1}")
    note(f"soft-dirty of the last page: {mapping.pagemap(mapping.length - PAGE) >> 55 & 1}")


def dev_unbind_mapped(dev):
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


def dev_realign(dev):
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


def dev_hwpoison(dev):
    """A memory error kills those that have the page mapped, and nobody else. Binding
    the driver again makes new page structures."""
    with dev.map(offset=16 * MB) as mapping:
        mapping.data[:] = bytes(mapping.length)
        hwpoison(mapping)
    dev.unbind()
    dev.bind()
    with dev.map(offset=16 * MB) as mapping:
        note(f"after binding again: {touched(mapping, 0)}")


def hwpoison(mapping):
    outcome = os.memfd_create("outcome")

    def poison():
        os.pwrite(outcome, str(error_of(mapping.call, libc.madvise, MADV_HWPOISON, length=PAGE)).encode(), 0)
        return mapping.data[0]

    status = Child(poison).end()
    note(f"madvise: {os.pread(outcome, 20, 0).decode() or 'killed'}")
    os.close(outcome)
    equal(status, -signal.SIGBUS, "status of the process with the page")
    note(f"another process: {touched(mapping, 0)}, the next page: {touched(mapping, PAGE)}")
    note(f"2 MB on: {touched(mapping, 2 * MB)}")


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


# Bugs


def bug_mmap_unbound(dev):
    """A device without a driver cannot be mapped by who has it open, nor be opened again."""
    file = os.open(dev.path, os.O_RDWR)
    dev.unbind()
    address = libc.mmap(None, 4 * MB, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    equal(address, MAP_FAILED, "mapping a file opened before")
    equal(error_of(dev.map), "ENXIO", "opening and mapping it")
    os.close(file)
    dev.bind()
    dev.map().close()


def bug_rebind_open(dev):
    """A file that was open while the driver was unbound and bound again is no more than
    one file: it can be closed, and the device be opened and unbound."""
    data = pattern(2 * MB, 9)
    with dev.map() as mapping:
        mapping.data[: 2 * MB] = data
    file = os.open(dev.path, os.O_RDWR)
    dev.unbind()
    dev.bind()
    with dev.map(length=2 * MB) as mapping:
        equal(digest(mapping.data), digest(data), "data after binding again")
    os.close(file)
    errors = [error_of(lambda: dev.map().close()) for _ in range(2)]
    dev.unbind()
    dev.bind()
    equal(errors, [None] * 2, "mapping it after the old file was closed")
    with dev.map(length=2 * MB) as mapping:
        equal(digest(mapping.data), digest(data), "data at the end")


def bug_unbind_pinned(dev):
    """Unbinding the driver waits for a long-term pin, and the pages stay what they were."""
    data = pattern(2 * MB, 10)
    with GupTest() as gup:
        with dev.map() as mapping:
            mapping.data[: 2 * MB] = data
            gup.pin(mapping, length=2 * MB)
        process = Child(dev.unbind)
        process.process.join(MUST_NOT)
        waiting = process.running()
        note(f"waits: {waiting}")
        gup.unpin()
        process.result()
    check(waiting, "it did not wait for the pinned pages")
    dev.bind()
    with dev.map() as mapping:
        equal(digest(mapping.data[: 2 * MB]), digest(data), "data after binding again")


def bug_unbind_region_pinned(dev):
    """Unbinding the driver of the whole region waits for a long-term pin, too, and does
    not block whoever uses the region's files meanwhile for ever."""
    if dev.driver != "dax_hmem":
        raise Skip("devices cannot be deleted from the region")
    region = dev.sysfs.resolve().parent
    driver = (region / "driver").resolve()
    with GupTest() as gup:
        with dev.map() as mapping:
            gup.pin(mapping, length=2 * MB)
        unbind = Child(write_sysfs, driver / "unbind", region.name)
        unbind.process.join(MUST_NOT)
        delete = Child(error_of, write_sysfs, region / "dax_region/delete", dev.sysfs.name)
        delete.process.join(MUST_NOT)
        waiting = unbind.running()
        note(f"waits: {waiting}")
        gup.unpin()
        unbind.result()
        equal(delete.result(), "ENODEV", "deleting a device meanwhile")
    check(waiting, "it did not wait for the pinned pages")
    write_sysfs(driver / "bind", region.name)
    until(dev.path.exists, f"{dev.path} is there")
    dev.map().close()


class Vfio:
    """A container of VFIO with QEMU's educational PCI device, which needs an IOMMU."""

    EDU = ("0x1234", "0x11e8")
    SET_IOMMU, SET_CONTAINER, MAP_DMA, UNMAP_DMA = (ord(";") << 8 | 100 + number for number in (2, 4, 13, 14))
    TYPE1V2, READ, WRITE = 3, 1, 2
    # Anywhere but in what x86 reserves for interrupts.
    ADDRESS = 1 << 30

    def __init__(self):
        # QEMU's IOMMU can be without what this wants for interrupts.
        run("modprobe", "vfio_iommu_type1", "allow_unsafe_interrupts=1")
        run("modprobe", "vfio-pci")
        device = self.find()
        write_sysfs(device / "driver_override", "vfio-pci")
        write_sysfs("/sys/bus/pci/drivers_probe", device.name)
        group = Path("/dev/vfio") / (device / "iommu_group").resolve().name
        until(group.exists, f"{group} is there")
        self.container = os.open("/dev/vfio/vfio", os.O_RDWR)
        self.group = os.open(group, os.O_RDWR)
        fcntl.ioctl(self.group, self.SET_CONTAINER, struct.pack("i", self.container))
        fcntl.ioctl(self.container, self.SET_IOMMU, self.TYPE1V2)

    def find(self):
        for device in Path("/sys/bus/pci/devices").iterdir():
            if tuple((device / name).read_text().strip() for name in ("vendor", "device")) == self.EDU:
                check((device / "iommu_group").exists(), f"{device.name} is in no IOMMU group")
                return device
        raise Failure("no device of QEMU's, edu")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.group)
        os.close(self.container)

    def map(self, mapping):
        """Lets the device access the memory."""
        access = self.READ | self.WRITE
        argument = struct.pack("IIQQQ", 32, access, mapping.address, self.ADDRESS, mapping.length)
        fcntl.ioctl(self.container, self.MAP_DMA, argument)

    def unmap(self, mapping):
        argument = struct.pack("IIQQ", 24, 0, self.ADDRESS, mapping.length)
        (*_, length) = struct.unpack("IIQQ", fcntl.ioctl(self.container, self.UNMAP_DMA, argument))
        equal(length, mapping.length, "length that was unmapped")


def bug_vfio(dev):
    """Memory that a device can access by VFIO is pinned, and no longer after that."""
    pages = Pages()
    with Vfio() as vfio, dev.map() as mapping:
        mapping.data[0] = 1
        frame = mapping.page_frame()
        before = pages.refcount(frame)
        for _ in range(2):
            vfio.map(mapping)
            during = pages.refcount(frame)
            locked = re.search(r"VmLck:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]
            note(f"reference count {before}, mapped by VFIO {during}, locked {locked} KB")
            vfio.unmap(mapping)
        after = pages.refcount(frame)
    check(during > before, "VFIO did not pin the page")
    equal(after, before, "reference count after VFIO")
    equal(pages.refcount(frame), 1, "reference count of a page that nobody uses")


BUGS = [
    bug_mmap_unbound,
    bug_rebind_open,
    bug_unbind_pinned,
    bug_unbind_region_pinned,
    bug_vfio,
]


# File systems


class FileSystem:
    """A new file system on PMEM, mounted with dax=always."""

    MKFS = {
        # Extents of 2 MB, for huge mappings. The log of XFS has to fit in one of its groups.
        "ext4": "mkfs.ext4 -q -F -b 4096 -E stride=512,stripe_width=512",
        "xfs": "mkfs.xfs -q -f -m reflink=1,rmapbt=1 -d su=2m,sw=1,agcount=2 -l su=4k",
    }
    CHECK = {"ext4": ["e2fsck", "-f", "-n"], "xfs": ["xfs_repair", "-n"]}

    def __init__(self, kind):
        self.kind = kind
        run("modprobe", "nd_e820")
        for device in (PMEM, OTHER_PMEM):
            until(Path(device).exists, f"{device} is there")
        run(*self.MKFS[kind].split(), PMEM)
        MOUNT.mkdir(exist_ok=True)
        self.mount()
        self.numbers = itertools.count()

    def mount(self):
        run("mount", "-t", self.kind, "-o", "dax=always", PMEM, MOUNT)

    def unmount(self):
        run("umount", MOUNT)

    def file(self, length=4 * MB, seed=None):
        """A new file, with its blocks allocated; with a seed, with data."""
        path = MOUNT / f"file{next(self.numbers)}"
        with open(path, "wb") as file:
            if length:
                os.posix_fallocate(file.fileno(), 0, length)
            if seed is not None:
                file.write(pattern(length, seed))
        return path


def fallocate(path, mode, offset, length):
    fd = os.open(path, os.O_RDWR)
    try:
        call(libc.fallocate, fd, mode, offset, length)
    finally:
        os.close(fd)


def fs_map_sync(fs):
    """The file is mapped with DAX, or MAP_SYNC is refused."""
    with Mapping(fs.file(), 2 * MB, flags=MAP_SHARED_VALIDATE | MAP_SYNC) as mapping:
        mapping.data[0] = 1
        note(f"KernelPageSize {mapping.smaps('KernelPageSize')}, Rss {mapping.smaps('Rss')}")


def fs_mmap(fs):
    """Written by mmap and read by read(), and the other way round; all is there after
    msync() and another mount."""
    data = pattern(4 * MB, 1)
    path = fs.file()
    with Mapping(path, 4 * MB) as mapping:
        mapping.data[:] = data
        equal(digest(path.read_bytes()), digest(data), "data by read()")
        with open(path, "r+b") as file:
            file.seek(PAGE)
            file.write(b"by write()")
        equal(bytes(mapping.data[PAGE : PAGE + 10]), b"by write()", "data by mmap")
        mapping.call(libc.msync, MS_SYNC)
        expected = digest(mapping.data)
    fs.unmount()
    fs.mount()
    equal(digest(path.read_bytes()), expected, "data after another mount")


def fs_huge(fs):
    """Memory of 2 MB at once."""
    pages = Pages()
    path = fs.file(8 * MB)
    # Only an aligned address can be mapped so.
    with Mapping(path, 8 * MB) as mapping:
        offset = -mapping.address % (2 * MB)
        for position in range(0, 8 * MB, PAGE):
            mapping.data[position] = 1
        for name in ("Rss", "FilePmdMapped", "KernelPageSize"):
            note(f"{name} {mapping.smaps(name)}")
        note(f"offset of 2 MB in the mapping: {offset}")
        frame = mapping.page_frame(offset)
        equal(frame % 512, 0, "page frame modulo 2 MB")
        note(f"mapped: {pages.refcount(frame)}")
        with Spliced(mapping, offset):
            note(f"in a pipe: {pages.refcount(frame)}")
    os.truncate(path, 0)
    equal(pages.refcount(frame), 0, "reference count of a free page")


def fs_fork(fs):
    """A shared mapping is shared with a child, a private one is copied on write."""
    path = fs.file(seed=2)
    old = path.read_bytes()[:5]
    with Mapping(path, PAGE) as shared, Mapping(path, PAGE, flags=mmap.MAP_PRIVATE) as private:

        def child():
            private.data[:5] = b"child"
            shared.data[100:105] = b"child"
            return bytes(shared.data[:5]), bytes(private.data[:5])

        equal(Child(child).result(), (old, b"child"), "what the child has")
        equal(bytes(private.data[:5]), old, "private memory of the parent")
        equal(bytes(shared.data[100:105]), b"child", "shared memory")
        private.data[:6] = b"parent"
        equal(bytes(shared.data[:5]), old, "the file, when private memory is written")


def fs_gup(fs):
    """Short-term references work, long-term pins are refused."""
    pages = Pages()
    with Mapping(fs.file(seed=3), 4 * MB) as mapping, GupTest() as gup:
        mapping.data[0] = 1
        frame = mapping.page_frame()
        before = pages.refcount(frame)
        for command in (gup.GET_FAST, gup.PIN_FAST, gup.GET, gup.PIN):
            equal(gup.pages(command, mapping), mapping.length, f"length, command {command & 0xFF}")
            equal(pages.refcount(frame), before, f"reference count after command {command & 0xFF}")
        for fast in (False, True):
            error = error_of(gup.pin, mapping, fast=fast)
            equal(error, errno.errorcode[errno.EOPNOTSUPP], f"long-term pin, fast {fast}")
        equal(pages.refcount(frame), before, "reference count after long-term pins")


def fs_refcount(fs):
    """The reference count of a page that is mapped, in a pipe, and free."""
    pages = Pages()
    path = fs.file(seed=4)
    with Mapping(path, PAGE) as one:
        one.data[0] = 1
        frame = one.page_frame()
        note(f"mapped once: {pages.refcount(frame)}")
        with Mapping(path, PAGE) as two:
            two.data[0] = 1
            note(f"mapped twice: {pages.refcount(frame)}")
        with Spliced(one) as pipe:
            note(f"in a pipe: {pages.refcount(frame)}")
            pipe.read()
            note(f"out of the pipe: {pages.refcount(frame)}")
    note(f"unmapped: {pages.refcount(frame)}")
    os.truncate(path, 0)
    equal(pages.refcount(frame), 0, "reference count of a free page")
    # And when it is used again.
    again = fs.file(seed=5)
    with Mapping(again, 4 * MB) as mapping:
        mapping.data[0] = 1
        note(f"another file's page: {pages.refcount(mapping.page_frame())}")


# Of a folio of 2 MB the first page, which has its reference count.
PINNED = 2 * MB


def waits_for_pin(fs, change):
    """Something that takes a block from a file waits while a pipe has a reference to
    its page, and the page stays what it was."""
    pages = Pages()
    path = fs.file(seed=6)
    expected = path.read_bytes()[PINNED : PINNED + PAGE]
    with Mapping(path, 4 * MB) as mapping:
        frame = (mapping.data[PINNED], mapping.page_frame(PINNED))[1]
        pipe = Spliced(mapping, PINNED)
    note(f"in a pipe, unmapped: {pages.refcount(frame)}")
    with pipe:
        process = Child(change, path)
        process.process.join(MUST_NOT)
        waiting = process.running()
        in_use = fs.file(16 * MB, seed=7)
        note(f"waits: {waiting}, reference count {pages.refcount(frame)}")
        content = pipe.read()
        process.result()
    check(waiting, "it did not wait for the pinned page")
    equal(digest(content), digest(expected), "data in the pipe")
    equal(digest(in_use.read_bytes()), digest(pattern(16 * MB, 7)), "data of another file")
    note(f"reference count at the end: {pages.refcount(frame)}")
    return path, frame, pages


def fs_truncate_pinned(fs):
    """ftruncate() waits for a pinned page."""
    path, frame, pages = waits_for_pin(fs, lambda path: os.truncate(path, 0))
    equal(path.stat().st_size, 0, "size")
    equal(pages.refcount(frame), 0, "reference count of a free page")


def fs_punch_pinned(fs):
    """Punching a hole waits for a pinned page."""
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    path, frame, pages = waits_for_pin(fs, lambda path: fallocate(path, mode, PINNED, MB))
    data = pattern(4 * MB, 6)
    equal(digest(path.read_bytes()), digest(data[:PINNED] + bytes(MB) + data[PINNED + MB :]), "data")
    equal(pages.refcount(frame), 0, "reference count of a free page")


def fs_collapse_pinned(fs):
    """Collapsing a range waits for a pinned page."""
    path, *_ = waits_for_pin(fs, lambda path: fallocate(path, FALLOC_FL_COLLAPSE_RANGE, PINNED, MB))
    data = pattern(4 * MB, 6)
    equal(digest(path.read_bytes()), digest(data[:PINNED] + data[PINNED + MB :]), "data")


def fs_zero_pinned(fs):
    """Zeroing a range waits for a pinned page."""
    path, *_ = waits_for_pin(fs, lambda path: fallocate(path, FALLOC_FL_ZERO_RANGE, PINNED, MB))
    data = pattern(4 * MB, 6)
    equal(digest(path.read_bytes()), digest(data[:PINNED] + bytes(MB) + data[PINNED + MB :]), "data")


def fs_unlink_pinned(fs):
    """The last unlink() waits for a pinned page, which is not used again before."""
    path, frame, pages = waits_for_pin(fs, os.unlink)
    check(not path.exists(), "the file is still there")
    equal(pages.refcount(frame), 0, "reference count of a free page")


def fs_truncate_mapped(fs):
    """Truncating and punching unmap the pages."""
    path = fs.file(seed=8)
    with Mapping(path, 4 * MB) as mapping:
        check(any(mapping.data[2 * MB : 2 * MB + PAGE]), "no data")
        fallocate(path, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * MB, PAGE)
        check(not any(mapping.data[2 * MB : 2 * MB + PAGE]), "data in the hole")
        # A write to the hole, which the zero page was mapped for.
        mapping.data[2 * MB] = 7
        equal(path.read_bytes()[2 * MB], 7, "data written to the hole")
        os.truncate(path, MB)
        equal(touched(mapping, MB - 1), "read", "touching the last page")
        equal(touched(mapping, MB), "SIGBUS", "touching what was truncated")
        os.truncate(path, 4 * MB)
        check(not any(mapping.data[MB:]), "data behind the former end")


def fs_truncate_direct_io(fs):
    """Direct I/O into a mapped file that is truncated all the time never writes to the
    blocks after they are another file's."""
    length = 256 * KB
    path = fs.file(length)
    contents = [pattern(length, seed) for seed in range(8)]
    # Shared with the child.
    reads, stop = (memoryview(mmap.mmap(-1, PAGE)).cast("L") for _ in range(2))
    with Mapping(path, length) as mapping:

        def direct_reads():
            fd = os.open(OTHER_PMEM, os.O_RDONLY | os.O_DIRECT)
            while not stop[0]:
                with contextlib.suppress(OSError):  # when it is just truncated
                    reads[0] += bool(os.preadv(fd, [mapping.data], 0))
                # XFS waits until it finds no page in use; without a break, that may never be.
                time.sleep(0.002)

        process = Child(direct_reads)
        end = time.monotonic() + MUST
        rounds = 0
        while rounds < 20 or reads[0] < 20:
            check(time.monotonic() < end, f"only {rounds} rounds and {reads[0]} reads in {MUST} s")
            content = contents[rounds % len(contents)]
            os.truncate(path, 0)
            other = fs.file(length)
            other.write_bytes(content)
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, length)
            time.sleep(0.02)
            equal(digest(other.read_bytes()), digest(content), f"data of another file, round {rounds}")
            other.unlink()
            rounds += 1
        stop[0] = 1
        process.result()


def fs_direct_io(fs):
    """Direct I/O between a block device and a mapped file."""
    direct_io(Mapping(fs.file(), 4 * MB))


def fs_foreign(fs):
    """Another process' memory, by /proc/PID/mem."""
    with Mapping(fs.file(), 4 * MB) as mapping:
        foreign(mapping)


def fs_advice(fs):
    """Memory management asked to lock, page out, write-protect and move the memory."""
    with Mapping(fs.file(), 4 * MB) as mapping:
        advice(mapping)


def fs_rename(fs):
    """A file that is renamed over stays for who has it mapped."""
    pages = Pages()
    old, new = fs.file(seed=9), fs.file(seed=10)
    with Mapping(old, 4 * MB) as mapping:
        frame = (mapping.data[0], mapping.page_frame())[1]
        os.rename(new, old)
        equal(digest(mapping.data), digest(pattern(4 * MB, 9)), "data that are mapped")
        mapping.data[:5] = b"write"
        equal(digest(old.read_bytes()), digest(pattern(4 * MB, 10)), "data by the name")
        equal(mapping.page_frame(), frame, "page frame")
        note(f"renamed over, mapped: {pages.refcount(frame)}")
    until(lambda: not pages.refcount(frame), "the page is free after the last unmap")


def fs_reflink(fs):
    """Files that share blocks: a write to one, by either way, leaves the other alone."""
    pages = Pages()
    one = fs.file(seed=11)
    two = fs.file(0)
    source, target = os.open(one, os.O_RDONLY), os.open(two, os.O_RDWR)
    error = error_of(fcntl.ioctl, target, FICLONE, source)
    os.close(source)
    os.close(target)
    if fs.kind == "ext4":
        equal(error, errno.errorcode[errno.EOPNOTSUPP], "FICLONE on ext4")
        raise Skip("ext4 has no reflink")
    equal(error, None, "FICLONE")
    data = pattern(4 * MB, 11)
    with Mapping(one, 4 * MB) as first, Mapping(two, 4 * MB) as second:
        equal(digest(first.data), digest(data), "data of the first file")
        equal(digest(second.data), digest(data), "data of the second file")
        frame = first.page_frame()
        equal(second.page_frame(), frame, "page frame")
        note(f"shared: {pages.refcount(frame)}")
        with Spliced(second):
            note(f"shared, in a pipe: {pages.refcount(frame)}")
        second.data[0] = data[0] ^ 1
        check(second.page_frame() != frame, "no copy on write")
        note(f"no longer shared: {pages.refcount(frame)}, the copy {pages.refcount(second.page_frame())}")
        equal(digest(first.data), digest(data), "data of the first file after a write to the second")
        with open(two, "r+b") as file:
            file.seek(MB)
            file.write(b"by write()")
        equal(digest(first.data), digest(data), "data of the first file after a write() to the second")
        equal(bytes(second.data[MB : MB + 10]), b"by write()", "data of the second file")
    one.unlink()
    equal(digest(two.read_bytes()[2 * MB :]), digest(data[2 * MB :]), "data without the first file")


def fs_fsx(fs):
    """Random operations, checked against a copy in memory."""
    config = Path("/tmp/fsx.toml")
    config.write_text(
        "flen = 1048576\n[opsize]\nmax = 131072\n[weights]\nclose_open = 1\ninvalidate = 1\n"
        "truncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 1\npunch_hole = 5\n"
        "sendfile = 1\ncopy_file_range = 2\n"
    )
    for seed in (1, 2):
        run("fsx", "-f", config, "-N", "1000", "-S", seed, "-P", "/tmp", MOUNT / f"fsx{seed}")


def fs_fio(fs):
    """Random writes that are verified, by mmap and by pwrite()."""
    options = [
        f"--directory={MOUNT}", "--size=16M", "--rw=randwrite", "--bsrange=512-64k",
        "--verify=crc32c", "--verify_fatal=1", "--randseed=1", "--fallocate=none", "--output-format=json",
    ]  # fmt: skip
    for engine in ("mmap", "psync"):
        report = json.loads(run("fio", f"--name={engine}", f"--ioengine={engine}", *options))
        job = report["jobs"][0]
        equal(job["error"], 0, f"error of fio, {engine}")
        verified = job["read"]["io_bytes"]
        check(verified >= 16 * MB, f"fio, {engine}: only {verified} bytes verified")


def fs_hwpoison(fs):
    """A memory error kills those that have the page mapped. Last: the page stays bad."""
    fs.mount()
    path = fs.file()
    with Mapping(path, 4 * MB) as mapping:
        mapping.data[:] = bytes(mapping.length)
        hwpoison(mapping)


def fs_check(fs):
    """The file system is consistent."""
    fs.unmount()
    run(*fs.CHECK[fs.kind], PMEM)


FILE_SYSTEM_TESTS = [
    fs_map_sync,
    fs_mmap,
    fs_huge,
    fs_fork,
    fs_gup,
    fs_refcount,
    fs_truncate_pinned,
    fs_punch_pinned,
    fs_collapse_pinned,
    fs_zero_pinned,
    fs_unlink_pinned,
    fs_truncate_mapped,
    fs_truncate_direct_io,
    fs_direct_io,
    fs_foreign,
    fs_advice,
    fs_rename,
    fs_reflink,
    fs_fsx,
    fs_fio,
    fs_check,
    fs_hwpoison,
]


def plan(kind, only):
    """(name, test, alignment) of all tests."""

    def short(test):
        return test.__name__.partition("_")[2]

    if kind in FileSystem.MKFS:
        tests = [(f"{kind}.{short(test)}", test, None) for test in FILE_SYSTEM_TESTS]
    else:
        tests = [
            (f"{kind}.{size}.{short(test)}", test, align)
            for size, align in (("4k", PAGE), ("2m", 2 * MB))
            for test in DEVICE_TESTS
        ]
    bugs = [(f"bugs.{short(test)}", test, None) for test in BUGS]
    return [t for t in tests if not only or any(part in t[0] for part in only)] + [
        t for t in bugs if t[0] in only
    ]


def run_test(test, subject, align):
    """Returns KTAP's "ok" or "not ok", and why it was skipped."""
    signal.signal(signal.SIGALRM, raise_timeout)
    signal.alarm(TIMEOUT)
    try:
        if align and subject.align != align:
            subject.set_align(align)
        test(subject)
        return "ok", ""
    except Skip as reason:
        return "ok", f" # SKIP {reason}"
    except Failure as failure:
        for line in str(failure).splitlines():
            note(line)
    except Exception:  # pylint: disable=broad-exception-caught
        for line in traceback.format_exc().splitlines():
            note(line)
    finally:
        signal.alarm(0)
    return "not ok", ""


def main():
    kind, only = sys.argv[1], sys.argv[2:]
    if not os.path.ismount("/sys/kernel/debug"):
        run("mount", "-t", "debugfs", "none", "/sys/kernel/debug")
    print("KTAP version 1")
    tests = plan(kind, only)
    print(f"1..{len(tests)}", flush=True)
    try:
        subject = FileSystem(kind) if kind in FileSystem.MKFS else DeviceDax(kind)
    except Failure as failure:
        print(f"Bail out! {kind}: {failure}")
        return 1
    failed = 0
    for number, (name, test, align) in enumerate(tests, 1):
        result, skipped = run_test(test, subject, align)
        failed += result != "ok"
        print(f"{result} {number} {name}{skipped}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    STATUS = main()
    sys.stdout.flush()
    # Without waiting for children, one of which may hang.
    os._exit(STATUS)
