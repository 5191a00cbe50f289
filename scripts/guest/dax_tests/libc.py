"""Functions of the C library that Python does not have, and their constants."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

mmap, munmap, msync, madvise = _libc.mmap, _libc.munmap, _libc.msync, _libc.madvise
mlock, munlock, vmsplice, _fallocate = _libc.mlock, _libc.munlock, _libc.vmsplice, _libc.fallocate
mprotect = _libc.mprotect

mmap.restype = ctypes.c_void_p
mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
munmap.argtypes = mlock.argtypes = munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
msync.argtypes = madvise.argtypes = mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

MAP_FIXED, MAP_SHARED_VALIDATE, MAP_SYNC, MAP_FAILED = 0x10, 3, 0x80000, ctypes.c_void_p(-1).value
MS_SYNC, MADV_HWPOISON = 4, 100
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE = 8, 16
FICLONE = 0x40049409


def last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def call(function: Callable[..., int], *args: Any) -> int:
    """A function of the C library that returns -1 on error."""
    result = function(*args)
    if result == -1:
        raise last_error(function.__name__)
    return result


def map_at(address: int, length: int, flags: int, fd: int = -1) -> None:
    """Memory to read and write, in place of what is there."""
    if mmap(address, length, 1 | 2, flags | MAP_FIXED, fd, 0) == MAP_FAILED:
        raise last_error("mmap")


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        call(_fallocate, fd, mode, offset, length)
    finally:
        os.close(fd)
