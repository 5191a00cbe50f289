"""Tests of the sample driver rust_svm, run in the VM by sample.py; prints KTAP.

    PYTHONPATH=scripts/guest/dax_tests python3 -B scripts/guest/svm_tests.py [part of a test's name...]

Takes the first NVMe controller of QEMU's that has a persistent memory region. All that
is in that is overwritten.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libc
from checks import MB, PAGE, Failure, equal, error_of, note, run, until, write_sysfs
from processes import Child

MODULE = "rust_svm"
PCI = Path("/sys/bus/pci")
QEMU_NVME = ("0x1b36", "0x0010")
MEMORY_SIZE = 128 * MB
TIMEOUT = 240  # seconds for a test

# struct drm_rust_svm_info and struct drm_rust_svm_prefetch
INFO, PREFETCH = struct.Struct("QQQQ"), struct.Struct("QQQ")
IOCTL_INFO = 2 << 30 | INFO.size << 16 | ord("d") << 8 | 0x40
IOCTL_PREFETCH = 3 << 30 | PREFETCH.size << 16 | ord("d") << 8 | 0x41


class Memory:
    """Anonymous memory, each page of which begins with a number of its own."""

    def __init__(self, length: int, seed: int | None = 1) -> None:
        self.data = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.length, self.seed = length, seed
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        if seed is not None:
            for offset in range(0, length, PAGE):
                self.data[offset : offset + PAGE] = self.page(offset)

    def page(self, offset: int) -> bytes:
        if self.seed is None:
            return bytes(PAGE)
        return struct.pack("QQ", self.seed, offset) * (PAGE // 16)

    def check(self) -> None:
        for offset in range(0, self.length, PAGE):
            if self.data[offset : offset + PAGE] != self.page(offset):
                raise Failure(f"page {offset // PAGE} has changed")


class Info:
    def __init__(self, fd: int) -> None:
        data = fcntl.ioctl(fd, IOCTL_INFO, bytes(INFO.size))
        self.size, self.in_use, self.to_device, self.to_system = INFO.unpack(data)


class Device:
    """The controller, bound to the driver."""

    def __init__(self) -> None:
        run("modprobe", MODULE)
        for folder in (PCI / "devices").iterdir():
            ids = tuple((folder / name).read_text().strip() for name in ("vendor", "device"))
            if ids == QEMU_NVME:
                self.name = folder.name
                break
        else:
            raise Failure("QEMU has no NVMe controller")
        self.folder = PCI / "devices" / self.name
        self.bind()

    def bind(self) -> None:
        write_sysfs(self.folder / "driver_override", MODULE)
        write_sysfs(PCI / "drivers_probe", self.name)
        equal((self.folder / "driver").resolve().name, MODULE, "driver")
        until(lambda: error_of(self.info) is None, "it can be opened")

    def unbind(self) -> None:
        write_sysfs(self.folder / "driver/unbind", self.name)

    def open(self) -> int:
        """Its name is another one each time it is bound while somebody has it open."""
        for node in (self.folder / "drm").glob("renderD*"):
            return os.open(Path("/dev/dri") / node.name, os.O_RDWR | os.O_CLOEXEC)
        raise FileNotFoundError(errno.ENOENT, "no render node")

    @contextmanager
    def opened(self) -> Iterator[int]:
        fd = self.open()
        try:
            yield fd
        finally:
            os.close(fd)

    def info(self) -> Info:
        with self.opened() as fd:
            return Info(fd)


def prefetch(fd: int, address: int, length: int) -> int:
    data = bytearray(PREFETCH.pack(address, length, 0))
    fcntl.ioctl(fd, IOCTL_PREFETCH, data)
    return int(PREFETCH.unpack(data)[2])


def prefetch_in_vain(fd: int, address: int, length: int) -> tuple[str | None, int]:
    """The error, and how much was migrated before."""
    data = bytearray(PREFETCH.pack(address, length, 0))
    error = error_of(lambda: fcntl.ioctl(fd, IOCTL_PREFETCH, data))
    return error, PREFETCH.unpack(data)[2]


def prefetch_all(fd: int, memory: Memory) -> None:
    equal(prefetch(fd, memory.address, memory.length), memory.length, "bytes migrated")


def test_there_and_back(device: Device) -> None:
    memory = Memory(4 * MB)
    before = device.info()
    equal(before.size, MEMORY_SIZE, "size")
    equal(before.in_use, 0, "in use before")
    with device.opened() as fd:
        prefetch_all(fd, memory)
        there = Info(fd)
        equal(there.in_use, memory.length, "in use")
        equal(there.to_device - before.to_device, memory.length, "copied to the device")
        equal(there.to_system - before.to_system, 0, "copied to system memory before it is touched")
        memory.check()
        back = Info(fd)
        equal(back.in_use, 0, "in use after")
        equal(back.to_system - before.to_system, memory.length, "copied to system memory")


def test_hole(device: Device) -> None:
    """Memory that was never touched is zeroes, whatever the device's memory has had before."""
    used, memory = Memory(MEMORY_SIZE // 2), Memory(MEMORY_SIZE // 2, None)
    with device.opened() as fd:
        prefetch_all(fd, used)
        used.data.close()
        equal(Info(fd).in_use, 0, "in use when unmapped")
        prefetch_all(fd, memory)
    memory.check()


def test_write(device: Device) -> None:
    memory = Memory(MB)
    with device.opened() as fd:
        prefetch_all(fd, memory)
    memory.data[5 * PAGE + 7] = 0xFF
    equal(device.info().in_use, memory.length - PAGE, "in use when one page was written to")
    equal(memory.data[5 * PAGE + 7], 0xFF, "what was written")
    memory.data[5 * PAGE : 6 * PAGE] = memory.page(5 * PAGE)
    memory.check()


def test_again(device: Device) -> None:
    """What is on the device already is left there."""
    memory = Memory(MB)
    with device.opened() as fd:
        prefetch_all(fd, memory)
        equal(prefetch(fd, memory.address, memory.length), 0, "bytes migrated again")
    memory.check()


def test_fork(device: Device) -> None:
    memory = Memory(MB)
    with device.opened() as fd:
        prefetch_all(fd, memory)
        child = Child(memory.check)
        memory.data[:PAGE] = bytes(PAGE)
        child.result()
        memory.data[:PAGE] = memory.page(0)
        memory.check()
        equal(Info(fd).in_use, 0, "in use")


def test_exit(device: Device) -> None:
    memory = Memory(MB)
    with device.opened() as fd:
        Child(lambda: prefetch(fd, memory.address, memory.length)).result()
        # The pages were shared by fork(), so what the child leaves is the parent's.
        memory.check()
        Child(lambda: prefetch_all(fd, Memory(MB))).result()
        equal(Info(fd).in_use, 0, "in use")


def test_errors(device: Device) -> None:
    memory = Memory(MB)
    end = memory.address + memory.length
    with device.opened() as fd:
        equal(error_of(lambda: prefetch(fd, memory.address + 1, PAGE)), "EINVAL", "unaligned address")
        equal(error_of(lambda: prefetch(fd, memory.address, 1)), "EINVAL", "unaligned length")
        equal(error_of(lambda: prefetch(fd, memory.address, (1 << 64) - PAGE)), "EINVAL", "end of addresses")
        equal(error_of(lambda: prefetch(fd, 0, PAGE)), "EINVAL", "nothing mapped")
        equal(prefetch(fd, end, 0), 0, "bytes migrated of none")
        memory.check()
        equal(Info(fd).in_use, 0, "in use")


def test_gap(device: Device) -> None:
    """What is before an address that nothing is mapped at has been migrated."""
    memory = Memory(MB)
    half = memory.length // 2

    def main() -> None:
        libc.call(libc.munmap, memory.address + half, half)
        with device.opened() as fd:
            equal(prefetch_in_vain(fd, memory.address, memory.length), ("EINVAL", half), "migrated")
            equal(Info(fd).in_use, half, "in use")

    Child(main).result()
    memory.check()


def test_exhausted(device: Device) -> None:
    """What there is no memory for stays where it is."""
    memory = Memory(MEMORY_SIZE + 16 * MB)
    with device.opened() as fd:
        equal(prefetch(fd, memory.address, memory.length), MEMORY_SIZE, "bytes migrated")
        equal(Info(fd).in_use, MEMORY_SIZE, "in use")
    memory.check()


def test_unbind(device: Device) -> None:
    """Memory in use is evicted, and the file that is open is of no use."""
    memory = Memory(8 * MB)
    with device.opened() as fd:
        prefetch_all(fd, memory)
        device.unbind()
        equal(error_of(lambda: Info(fd)), "ENODEV", "INFO without a device")
        equal(error_of(lambda: prefetch(fd, memory.address, PAGE)), "ENODEV", "PREFETCH without a device")
        memory.check()
        device.bind()
        equal(error_of(lambda: Info(fd)), "ENODEV", "INFO of what was another device")
    with device.opened() as fd:
        equal(Info(fd).to_device, 0, "copied to the device")
        prefetch_all(fd, memory)
    memory.check()


def test_unbind_under_load(device: Device) -> None:
    """A process goes on while the device comes and goes."""
    bindings = 5

    def load() -> None:
        memory = Memory(MB)
        for binding in range(bindings + 1):
            until(lambda: error_of(device.info) is None, "the device is there")
            with device.opened() as fd:
                error = None
                while not error:
                    error = error_of(lambda fd=fd: prefetch(fd, memory.address, memory.length))
                    memory.check()
                    if binding == bindings:
                        return
            equal(error, "ENODEV", "error")

    child = Child(load)
    for _ in range(bindings):
        until(lambda: device.info().to_device, "the other process goes on")
        time.sleep(0.2)
        device.unbind()
        time.sleep(0.1)
        device.bind()
    child.result()


def test_unload(device: Device) -> None:
    memory = Memory(8 * MB)
    with device.opened() as fd:
        prefetch_all(fd, memory)
    run("rmmod", MODULE)
    memory.check()
    run("modprobe", MODULE)
    device.bind()


def test_remove(device: Device) -> None:
    """The PCI device is removed, and found again."""
    memory = Memory(8 * MB)
    with device.opened() as fd:
        prefetch_all(fd, memory)
        write_sysfs(device.folder / "remove", "1")
        equal(error_of(lambda: Info(fd)), "ENODEV", "INFO without a device")
    memory.check()
    write_sysfs(PCI / "rescan", "1")
    device.bind()
    with device.opened() as fd:
        prefetch_all(fd, memory)
    memory.check()


def test_no_dma_faults(_device: Device) -> None:
    """What the IOMMU has refused, in this and all tests before. It is the last one."""
    faults = [line for line in run("dmesg").splitlines() if "DMAR" in line and "fault" in line.lower()]
    equal(faults, [], "faults")


def test_engine_error(device: Device) -> None:
    """The second transfer to the disk fails, see sample.py. The first one is of a prefetch."""
    memory = Memory(16 * PAGE)
    with device.opened() as fd:
        prefetch_all(fd, memory)
        equal(
            Child(lambda: memory.data[0]).end(), -signal.SIGBUS, "status of who touches what cannot be copied"
        )
        equal(Info(fd).in_use, memory.length, "in use")
    memory.check()


# Run only if asked for by the whole name.
SPECIAL = (test_engine_error,)

TESTS = (
    test_there_and_back,
    test_hole,
    test_write,
    test_again,
    test_fork,
    test_exit,
    test_errors,
    test_gap,
    test_exhausted,
    test_unbind,
    test_unbind_under_load,
    test_unload,
    test_remove,
    test_no_dma_faults,
)


def raise_timeout(*_: object) -> None:
    raise Failure(f"no end after {TIMEOUT} s")


def run_test(function: Callable[[Device], None], device: Device) -> bool:
    signal.signal(signal.SIGALRM, raise_timeout)
    signal.alarm(TIMEOUT)
    try:
        function(device)
        equal(device.info().in_use, 0, "in use after the test")
        return True
    except Failure as failure:
        note(str(failure))
    except Exception:
        for line in traceback.format_exc().splitlines():
            note(line)
    finally:
        signal.alarm(0)
    return False


def main(only: list[str]) -> int:
    tests = [
        (function.__name__.removeprefix("test_"), function)
        for function in TESTS
        if not only or any(part in function.__name__ for part in only)
    ]
    tests += [
        (name, function) for function in SPECIAL if (name := function.__name__.removeprefix("test_")) in only
    ]
    print(f"KTAP version 1\n1..{len(tests)}", flush=True)
    try:
        device = Device()
    except (Failure, OSError) as failure:
        print(f"Bail out! {failure}")
        return 1
    failed = 0
    for number, (name, function) in enumerate(tests, 1):
        passed = run_test(function, device)
        failed += not passed
        print(f"{'ok' if passed else 'not ok'} {number} {name}", flush=True)
    device.unbind()
    run("rmmod", MODULE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
