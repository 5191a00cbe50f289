"""Tests of taking blocks from a file whose pages are in use."""

import contextlib
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import libc
from checks import KB, MB, MUST, MUST_NOT, PAGE, check, digest, equal, note, pattern
from file_system import OTHER_PMEM, FileSystem
from mapping import Mapping
from page_references import Pages
from pins import Spliced
from processes import Child, touched

# Of a folio of 2 MB the first page, which has its reference count.
PINNED = 2 * MB


def waits_for_pin(fs: FileSystem, change: Callable[[Path], None]) -> tuple[Path, int, Pages]:
    """Something that takes a block from a file waits while a pipe has a reference to
    its page, and the page stays what it was."""
    pages = Pages()
    path = fs.file(seed=6)
    expected = path.read_bytes()[PINNED : PINNED + PAGE]
    with Mapping(path, 4 * MB) as mapping:
        frame = mapping.touch(PINNED)
        pipe = Spliced(mapping, PINNED)
    note(f"in a pipe, unmapped: {pages.refcount(frame)}")
    with pipe:
        child = Child(change, path)
        waiting = child.runs_after(MUST_NOT)
        in_use = fs.file(16 * MB, seed=7)
        note(f"waits: {waiting}, reference count {pages.refcount(frame)}")
        content = pipe.read()
        child.result()
    check(waiting, "it did not wait for the pinned page")
    equal(digest(content), digest(expected), "data in the pipe")
    equal(digest(in_use.read_bytes()), digest(pattern(16 * MB, 7)), "data of another file")
    note(f"reference count at the end: {pages.refcount(frame)}")
    return path, frame, pages


def fs_truncate_pinned(fs: FileSystem) -> None:
    """ftruncate() waits for a pinned page."""
    path, frame, pages = waits_for_pin(fs, lambda path: os.truncate(path, 0))
    equal(path.stat().st_size, 0, "size")
    equal(pages.refcount(frame), 0, "reference count of a free page")


def fs_punch_pinned(fs: FileSystem) -> None:
    """Punching a hole waits for a pinned page."""
    mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
    path, frame, pages = waits_for_pin(fs, lambda path: libc.fallocate(path, mode, PINNED, MB))
    data = pattern(4 * MB, 6)
    equal(digest(path.read_bytes()), digest(data[:PINNED] + bytes(MB) + data[PINNED + MB :]), "data")
    equal(pages.refcount(frame), 0, "reference count of a free page")


def fs_collapse_pinned(fs: FileSystem) -> None:
    """Collapsing a range waits for a pinned page."""
    path, *_ = waits_for_pin(fs, lambda path: libc.fallocate(path, libc.FALLOC_FL_COLLAPSE_RANGE, PINNED, MB))
    data = pattern(4 * MB, 6)
    equal(digest(path.read_bytes()), digest(data[:PINNED] + data[PINNED + MB :]), "data")


def fs_zero_pinned(fs: FileSystem) -> None:
    """Zeroing a range waits for a pinned page."""
    path, *_ = waits_for_pin(fs, lambda path: libc.fallocate(path, libc.FALLOC_FL_ZERO_RANGE, PINNED, MB))
    data = pattern(4 * MB, 6)
    equal(digest(path.read_bytes()), digest(data[:PINNED] + bytes(MB) + data[PINNED + MB :]), "data")


def fs_unlink_pinned(fs: FileSystem) -> None:
    """The last unlink() waits for a pinned page, which is not used again before."""
    path, frame, pages = waits_for_pin(fs, os.unlink)
    check(not path.exists(), "the file is still there")
    equal(pages.refcount(frame), 0, "reference count of a free page")


def fs_truncate_mapped(fs: FileSystem) -> None:
    """Truncating and punching unmap the pages."""
    path = fs.file(seed=8)
    with Mapping(path, 4 * MB) as mapping:
        check(any(mapping.data[2 * MB : 2 * MB + PAGE]), "no data")
        libc.fallocate(path, libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE, 2 * MB, PAGE)
        check(not any(mapping.data[2 * MB : 2 * MB + PAGE]), "data in the hole")
        # A write to the hole, which the zero page was mapped for.
        mapping.data[2 * MB] = 7
        equal(path.read_bytes()[2 * MB], 7, "data written to the hole")
        os.truncate(path, MB)
        equal(touched(mapping, MB - 1), "read", "touching the last page")
        equal(touched(mapping, MB), "SIGBUS", "touching what was truncated")
        os.truncate(path, 4 * MB)
        check(not any(mapping.data[MB:]), "data behind the former end")


def fs_truncate_direct_io(fs: FileSystem) -> None:
    """Direct I/O into a mapped file that is truncated all the time never writes to the
    blocks after they are another file's."""
    length = 256 * KB
    path = fs.file(length)
    contents = [pattern(length, seed) for seed in range(8)]
    # Shared with the child.
    reads, stop = (memoryview(mmap.mmap(-1, PAGE)).cast("L") for _ in range(2))
    with Mapping(path, length) as mapping:

        def direct_reads() -> None:
            fd = os.open(OTHER_PMEM, os.O_RDONLY | os.O_DIRECT)
            while not stop[0]:
                with contextlib.suppress(OSError):  # when it is just truncated
                    reads[0] += bool(os.preadv(fd, [mapping.data], 0))
                # XFS waits until it finds no page in use; without a break, that may never be.
                time.sleep(0.002)

        child = Child(direct_reads)
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
        child.result()
