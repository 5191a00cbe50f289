"""Tests of ext4 and XFS with DAX."""

import errno
import fcntl
import json
import mmap
import os
from pathlib import Path

import libc
import memory_tests
from checks import MB, PAGE, Skip, check, digest, equal, error_of, note, pattern, run, until
from file_system import FileSystem
from mapping import Mapping
from page_references import Pages
from pins import GupTest, Spliced
from processes import Child
from truncate_tests import (
    fs_collapse_pinned,
    fs_punch_pinned,
    fs_truncate_direct_io,
    fs_truncate_mapped,
    fs_truncate_pinned,
    fs_unlink_pinned,
    fs_zero_pinned,
)


def fs_map_sync(fs: FileSystem) -> None:
    """The file is mapped with DAX, or MAP_SYNC is refused."""
    with Mapping(fs.file(), 2 * MB, flags=libc.MAP_SHARED_VALIDATE | libc.MAP_SYNC) as mapping:
        mapping.data[0] = 1
        note(f"KernelPageSize {mapping.smaps('KernelPageSize')}, Rss {mapping.smaps('Rss')}")


def fs_mmap(fs: FileSystem) -> None:
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
        mapping.call(libc.msync, libc.MS_SYNC)
        expected = digest(mapping.data)
    fs.unmount()
    fs.mount()
    equal(digest(path.read_bytes()), expected, "data after another mount")


def fs_huge(fs: FileSystem) -> None:
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


def fs_fork(fs: FileSystem) -> None:
    """A shared mapping is shared with a child, a private one is copied on write."""
    path = fs.file(seed=2)
    old = path.read_bytes()[:5]
    with Mapping(path, PAGE) as shared, Mapping(path, PAGE, flags=mmap.MAP_PRIVATE) as private:

        def child() -> tuple[bytes, bytes]:
            private.data[:5] = b"child"
            shared.data[100:105] = b"child"
            return bytes(shared.data[:5]), bytes(private.data[:5])

        equal(Child(child).result(), (old, b"child"), "what the child has")
        equal(bytes(private.data[:5]), old, "private memory of the parent")
        equal(bytes(shared.data[100:105]), b"child", "shared memory")
        private.data[:6] = b"parent"
        equal(bytes(shared.data[:5]), old, "the file, when private memory is written")


def fs_gup(fs: FileSystem) -> None:
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


def fs_refcount(fs: FileSystem) -> None:
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


def fs_direct_io(fs: FileSystem) -> None:
    """Direct I/O between a block device and a mapped file."""
    with Mapping(fs.file(), 4 * MB) as mapping:
        memory_tests.direct_io(mapping)


def fs_foreign(fs: FileSystem) -> None:
    """Another process' memory, by /proc/PID/mem."""
    with Mapping(fs.file(), 4 * MB) as mapping:
        memory_tests.foreign(mapping)


def fs_advice(fs: FileSystem) -> None:
    """Memory management asked to lock, page out, write-protect and move the memory."""
    with Mapping(fs.file(), 4 * MB) as mapping:
        memory_tests.advice(mapping)


def fs_rename(fs: FileSystem) -> None:
    """A file that is renamed over stays for who has it mapped."""
    pages = Pages()
    old, new = fs.file(seed=9), fs.file(seed=10)
    with Mapping(old, 4 * MB) as mapping:
        frame = mapping.touch()
        os.rename(new, old)
        equal(digest(mapping.data), digest(pattern(4 * MB, 9)), "data that are mapped")
        mapping.data[:5] = b"write"
        equal(digest(old.read_bytes()), digest(pattern(4 * MB, 10)), "data by the name")
        equal(mapping.page_frame(), frame, "page frame")
        note(f"renamed over, mapped: {pages.refcount(frame)}")
    until(lambda: not pages.refcount(frame), "the page is free after the last unmap")


def fs_reflink(fs: FileSystem) -> None:
    """Files that share blocks: a write to one, by either way, leaves the other alone."""
    pages = Pages()
    one = fs.file(seed=11)
    two = fs.file(0)
    source, target = os.open(one, os.O_RDONLY), os.open(two, os.O_RDWR)
    error = error_of(fcntl.ioctl, target, libc.FICLONE, source)
    os.close(source)
    os.close(target)
    if fs.kind == "ext4":
        equal(error, errno.errorcode[errno.EOPNOTSUPP], "libc.FICLONE on ext4")
        raise Skip("ext4 has no reflink")
    equal(error, None, "libc.FICLONE")
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


def fs_fsx(fs: FileSystem) -> None:
    """Random operations, checked against a copy in memory."""
    config = Path("/tmp/fsx.toml")
    config.write_text(
        "flen = 1048576\n[opsize]\nmax = 131072\n[weights]\nclose_open = 1\ninvalidate = 1\n"
        "truncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 1\npunch_hole = 5\n"
        "sendfile = 1\ncopy_file_range = 2\n"
    )
    for seed in (1, 2):
        run("fsx", "-f", config, "-N", "1000", "-S", seed, "-P", "/tmp", fs.folder / f"fsx{seed}")


def fs_fio(fs: FileSystem) -> None:
    """Random writes that are verified, by mmap and by pwrite()."""
    options = [
        f"--directory={fs.folder}", "--size=16M", "--rw=randwrite", "--bsrange=512-64k",
        "--verify=crc32c", "--verify_fatal=1", "--randseed=1", "--fallocate=none", "--output-format=json",
    ]  # fmt: skip
    for engine in ("mmap", "psync"):
        report = json.loads(run("fio", f"--name={engine}", f"--ioengine={engine}", *options))
        job = report["jobs"][0]
        equal(job["error"], 0, f"error of fio, {engine}")
        verified = job["read"]["io_bytes"]
        check(verified >= 16 * MB, f"fio, {engine}: only {verified} bytes verified")


def fs_hwpoison(fs: FileSystem) -> None:
    """A memory error kills those that have the page mapped. Last: the page stays bad."""
    fs.mount()
    path = fs.file()
    with Mapping(path, 4 * MB) as mapping:
        mapping.data[:] = bytes(mapping.length)
        memory_tests.hwpoison(mapping)


def fs_check(fs: FileSystem) -> None:
    """The file system is consistent."""
    fs.unmount()
    fs.check()


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
