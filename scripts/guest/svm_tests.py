"""Tests of the sample driver rust_svm, run in the VM by sample.py; prints KTAP.

    PYTHONPATH=scripts/guest/dax_tests python3 -B scripts/guest/svm_tests.py [part of a test's name...]

Takes the first NVMe controller of QEMU's that has a persistent memory region. All that
is in that is overwritten.
"""

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libc
from checks import MB, PAGE, Failure, check, equal, error_of, note, run, until, write_sysfs
from processes import Child

MODULE = "rust_svm"
PCI = Path("/sys/bus/pci")
QEMU_NVME = ("0x1b36", "0x0010")
MEMORY_SIZE = 128 * MB
TIMEOUT = 240  # seconds for a test
# How much COPY copies at a time.
PIECE = 64 * PAGE

# struct drm_rust_svm_info, drm_rust_svm_prefetch, drm_rust_svm_copy and drm_rust_svm_add
INFO, PREFETCH, COPY, ADD = (struct.Struct(members) for members in ("QQQQ", "QQQ", "QQQQ", "QQQ"))
IOCTL_INFO = 2 << 30 | INFO.size << 16 | ord("d") << 8 | 0x40
IOCTL_PREFETCH = 3 << 30 | PREFETCH.size << 16 | ord("d") << 8 | 0x41
IOCTL_COPY = 3 << 30 | COPY.size << 16 | ord("d") << 8 | 0x42
IOCTL_ADD = 3 << 30 | ADD.size << 16 | ord("d") << 8 | 0x43


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
        self.check_copy_of(self)

    def check_copy_of(self, source: "Memory") -> None:
        for offset in range(0, self.length, PAGE):
            if self.data[offset : offset + PAGE] != source.page(offset):
                raise Failure(f"page {offset // PAGE} is not what it should be")


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


def copy(fd: int, to: int, source: int, length: int) -> int:
    data = bytearray(COPY.pack(to, source, length, 0))
    fcntl.ioctl(fd, IOCTL_COPY, data)
    return int(COPY.unpack(data)[3])


def copy_in_vain(fd: int, to: int, source: int, length: int) -> tuple[str | None, int]:
    """The error, and how much was copied before."""
    data = bytearray(COPY.pack(to, source, length, 0))
    error = error_of(lambda: fcntl.ioctl(fd, IOCTL_COPY, data))
    return error, COPY.unpack(data)[3]


def copy_all(fd: int, to: Memory, source: Memory) -> None:
    equal(copy(fd, to.address, source.address, source.length), source.length, "bytes copied")


def add(fd: int, address: int, operand: int) -> int:
    """Returns what was there before."""
    data = bytearray(ADD.pack(address, operand, 0))
    fcntl.ioctl(fd, IOCTL_ADD, data)
    return int(ADD.unpack(data)[2])


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


def test_copy(device: Device) -> None:
    """Between memory of the device and of the system, without that the CPU has a part in it."""
    places = ("system", "device")
    for source_place, target_place in itertools.product(places, places):
        what = f"from {source_place} to {target_place}"
        source, target = Memory(MB, 1), Memory(MB, 2)
        with device.opened() as fd:
            for memory, place in (source, source_place), (target, target_place):
                if place == "device":
                    prefetch_all(fd, memory)
            before = Info(fd)
            copy_all(fd, target, source)
            after = Info(fd)
        to_device, to_system = (0, MB) if target_place == "system" else (MB, 0)
        equal(after.in_use, before.in_use, f"{what}: in use")
        equal(after.to_device - before.to_device, to_device, f"{what}: copied to the device")
        equal(after.to_system - before.to_system, to_system, f"{what}: copied to system memory")
        target.check_copy_of(source)
        source.check()


def test_copy_mixed(device: Device) -> None:
    """Of a few pages here and there, the rest in the other memory."""
    source, target = Memory(MB, 1), Memory(MB, 2)
    with device.opened() as fd:
        for first, step, memory in (0, 3, source), (1, 5, target):
            for offset in range(first * PAGE, MB, step * PAGE):
                prefetch(fd, memory.address + offset, PAGE)
        in_use = Info(fd).in_use
        copy_all(fd, target, source)
        equal(Info(fd).in_use, in_use, "in use")
    target.check_copy_of(source)
    source.check()


def test_copy_hole(device: Device) -> None:
    """Memory that was never touched is zeroes, and is there once it was written to."""
    source, target = Memory(MB, None), Memory(MB, 2)
    with device.opened() as fd:
        # Some have the page of zeroes, the others nothing.
        for offset in range(0, MB // 2, PAGE):
            equal(source.data[offset], 0, "what was read of a hole")
        copy_all(fd, target, source)
        target.check_copy_of(source)
        source, target = Memory(MB, 1), Memory(MB, None)
        copy_all(fd, target, source)
        target.check_copy_of(source)
        # Memory that is on the device without ever having been touched.
        source, target = Memory(MB, None), Memory(MB, 2)
        prefetch_all(fd, source)
        copy_all(fd, target, source)
        target.check_copy_of(source)


def test_copy_files(device: Device) -> None:
    """Memory of files, shared and private: only pages that are written to are copied by fork()."""
    source = Memory(MB)
    shared, private = Memory(MB, None), Memory(MB, None)
    with device.opened() as fd, os.fdopen(os.memfd_create(MODULE), "w+b") as file:
        os.truncate(file.fileno(), MB)
        libc.map_at(shared.address, MB, mmap.MAP_SHARED, file.fileno())
        libc.map_at(private.address, MB, mmap.MAP_PRIVATE, file.fileno())
        copy_all(fd, shared, source)
        equal(os.pread(file.fileno(), MB, 0), source.data[:], "the file")
        private.check_copy_of(source)
        copy_all(fd, private, Memory(MB, 3))
        private.check_copy_of(Memory(MB, 3))
        shared.check_copy_of(source)


def test_copy_errors(device: Device) -> None:
    memory, target = Memory(MB), Memory(MB, 2)
    half = MB // 2
    with device.opened() as fd:
        for what, to, source, length in (
            ("unaligned source", target.address, memory.address + 1, PAGE),
            ("unaligned target", target.address + 8, memory.address, PAGE),
            ("unaligned length", target.address, memory.address, PAGE - 1),
            ("the same", memory.address, memory.address, PAGE),
            ("overlap, forwards", memory.address + PAGE, memory.address, half),
            ("overlap, backwards", memory.address, memory.address + half - PAGE, half),
            ("end of addresses", target.address, memory.address, (1 << 64) - PAGE),
            ("overflow", (1 << 64) - PAGE, memory.address, 2 * PAGE),
        ):
            equal(copy_in_vain(fd, to, source, length), ("EINVAL", 0), what)
        equal(copy(fd, target.address, memory.address, 0), 0, "bytes copied of none")
        equal(copy(fd, memory.address + half, memory.address, half), half, "side by side")
        memory = Memory(MB)
        equal(copy_in_vain(fd, target.address, 0, PAGE), ("EFAULT", 0), "nothing to copy from")
        equal(copy_in_vain(fd, 0, memory.address, PAGE), ("EFAULT", 0), "nothing to copy to")
        libc.call(libc.mprotect, target.address + half, half, mmap.PROT_READ)
        equal(copy_in_vain(fd, target.address, memory.address, MB), ("EPERM", half), "read-only target")
        libc.call(libc.mprotect, target.address, MB, mmap.PROT_READ | mmap.PROT_WRITE)
        for offset in range(0, MB, PAGE):
            expected = memory if offset < half else target
            equal(target.data[offset : offset + PAGE], expected.page(offset), f"page {offset // PAGE}")
        memory.check()
        equal(
            Child(lambda: copy_in_vain(fd, target.address, memory.address, PAGE)).result(),
            ("EBADF", 0),
            "of another process than opened the file",
        )


def test_copy_fork(device: Device) -> None:
    """The memory of a child is its own, wherever it is."""
    source, target = Memory(MB, 1), Memory(MB, 2)
    with device.opened() as fd:
        for memory in source, target:
            prefetch(fd, memory.address, MB // 2)
        copy_all(fd, target, source)
        receiver, sender = os.pipe()

        def check_when_told() -> None:
            os.read(receiver, 1)
            target.check_copy_of(source)

        child = Child(check_when_told)
        copy_all(fd, target, Memory(MB, 3))
        os.write(sender, b" ")
        child.result()
        os.close(receiver)
        os.close(sender)
        target.check_copy_of(Memory(MB, 3))


def test_copy_under_load(device: Device) -> None:
    """What core mm and the CPU do meanwhile: nothing is written to memory that is not there."""
    source, target = Memory(2 * MB, 1), Memory(2 * MB, 2)
    errors: list[str | None] = []
    stop = threading.Event()

    def copy_on(fd: int) -> None:
        while not stop.is_set():
            errors.append(copy_in_vain(fd, target.address, source.address, source.length)[0])

    def map_anew(address: int, length: int) -> None:
        # There must not be a hole, where this program might map something else.
        libc.map_at(address, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # What was freed may be here now.
        others.append(Memory(length, 4))
        if len(others) > 32:
            others.pop(0).check()

    def protect(address: int, length: int) -> None:
        for protection in 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE:
            libc.call(libc.mprotect, address, length, protection)

    def touch(address: int, length: int) -> None:
        offset = address - target.address
        target.data[offset : offset + length] = bytes(length)
        source.check()

    others: list[Memory] = []
    choices = random.Random(1)
    with device.opened() as fd:
        actions: tuple[Callable[[int, int], object], ...] = (
            map_anew,
            protect,
            touch,
            lambda address, length: libc.call(libc.madvise, address, length, mmap.MADV_DONTNEED),
            lambda address, length: prefetch_in_vain(fd, address, length),
            lambda address, length: prefetch_in_vain(fd, address - target.address + source.address, length),
            lambda _address, _length: Child(source.check).result(),
        )
        thread = threading.Thread(target=copy_on, args=(fd,))
        thread.start()
        end = time.monotonic() + 15
        while time.monotonic() < end or not errors:
            start, length = choices.randrange(256), choices.randrange(1, 256)
            choices.choice(actions)(target.address + start * PAGE, length * PAGE)
        stop.set()
        thread.join()
        copy_all(fd, target, source)
    for memory in others:
        memory.check()
    target.check_copy_of(source)
    source.check()
    equal(set(errors) - {None, "EFAULT", "EPERM"}, set(), "errors")
    equal(None in errors, True, "a copy has succeeded")


def test_copy_exit(device: Device) -> None:
    """A process is killed while the device copies."""

    def main() -> None:
        source, target = Memory(4 * MB, 1), Memory(4 * MB, 2)
        with device.opened() as fd:
            prefetch(fd, source.address, 2 * MB)
            prefetch(fd, target.address + MB, 2 * MB)
            while True:
                copy_all(fd, target, source)

    for _ in range(5):
        before = device.info()
        child = Child(main)
        while device.info().to_system == before.to_system:
            check(child.running(), "the child has ended")
        child.kill()
        until(lambda: device.info().in_use == 0, "all is free")


def test_add(device: Device) -> None:
    """To values at the start, and at the end of a page that is on the device at first."""
    memory, last = Memory(2 * PAGE, None), PAGE - 8
    with device.opened() as fd:
        prefetch_all(fd, memory)
        equal(add(fd, memory.address + last, 5), 0, "old value")
        equal(add(fd, memory.address + last, (1 << 64) - 2), 5, "second old value")
        equal(add(fd, memory.address + PAGE, 7), 0, "old value of the next page")
        equal(struct.unpack_from("Q", memory.data, last)[0], 3, "sum")
        equal(add(fd, memory.address + last, 1), 3, "old value when it was read")
        struct.pack_into("Q", memory.data, last, 10)
        equal(add(fd, memory.address + last, 1), 10, "old value when it was written to")
        equal(struct.unpack_from("QQ", memory.data, last), (11, 7), "values")
        equal(memory.data[:last], bytes(last), "what is beside it")

        for what, address, error in (
            ("unaligned", memory.address + 4, "EINVAL"),
            ("nothing mapped", 0, "EFAULT"),
            ("end of addresses", (1 << 64) - 8, "EINVAL"),
        ):
            equal(error_of(lambda address=address: add(fd, address, 1)), error, what)
        libc.call(libc.mprotect, memory.address, PAGE, mmap.PROT_READ)
        equal(error_of(lambda: add(fd, memory.address, 1)), "EFAULT", "read-only memory")
        equal(memory.data[:last], bytes(last), "read-only memory")
        equal(
            Child(lambda: error_of(lambda: add(fd, memory.address, 1))).result(),
            "EBADF",
            "of another process than opened the file",
        )


def test_add_under_load(device: Device) -> None:
    """The sum is right, whatever happens to the page meanwhile."""
    memory, operations, threads = Memory(PAGE, None), 200, 3
    errors: list[str | None] = []

    def add_on(fd: int) -> None:
        errors.extend(error_of(lambda: add(fd, memory.address, 3)) for _ in range(operations))

    def value() -> int:
        return int(struct.unpack_from("Q", memory.data)[0])

    with device.opened() as fd:
        adding = [threading.Thread(target=add_on, args=(fd,)) for _ in range(threads)]
        for thread in adding:
            thread.start()
        last = 0
        while any(thread.is_alive() for thread in adding):
            now = value()
            check(now >= last and now % 3 == 0, f"{now} after {last}")
            last = now
            memory.data[PAGE - 1] = 1
            prefetch_in_vain(fd, memory.address, PAGE)
            Child(value).result()
    equal(set(errors) - {"EBUSY"}, {None}, "errors")
    equal(value(), 3 * errors.count(None), "sum")


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
        memory, target = Memory(MB), Memory(MB, 2)
        for binding in range(bindings + 1):
            until(lambda: error_of(device.info) is None, "the device is there")
            with device.opened() as fd:
                error = None
                while not error:
                    error = error_of(lambda fd=fd: prefetch(fd, memory.address, memory.length))
                    if not error:
                        error = error_of(lambda fd=fd: copy_all(fd, target, memory))
                    if not error:
                        target.check_copy_of(memory)
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


def test_dead_engine(device: Device) -> None:
    """All but the first transfer to the disk fail: the device can be unbound all the same."""
    memory, there = Memory(16 * PAGE), Memory(16 * PAGE)
    with device.opened() as fd:
        prefetch_all(fd, there)
        equal(prefetch_in_vain(fd, memory.address, memory.length), ("EIO", 0), "PREFETCH")
        equal(copy_in_vain(fd, memory.address, there.address, PAGE), ("EIO", 0), "COPY")
        equal(Info(fd).in_use, there.length, "in use")
    device.unbind()
    memory.check()
    for offset in range(0, there.length, PAGE):
        status = Child(lambda offset=offset: there.data[offset]).end()
        equal(status, -signal.SIGBUS, f"status of who touches page {offset // PAGE}")
    lost = [line for line in run("dmesg").splitlines() if "are lost" in line]
    equal(len(lost), 1, "lines of the log")
    equal("of 16 pages" in lost[0], True, lost[0])
    # The addresses can be used again.
    libc.call(libc.madvise, there.address, PAGE, mmap.MADV_DONTNEED)
    equal(there.data[:PAGE], bytes(PAGE), "what was discarded")
    there.data.close()
    device.bind()


# Run only if asked for by the whole name.
SPECIAL = (test_engine_error, test_dead_engine)

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
    test_copy,
    test_copy_mixed,
    test_copy_hole,
    test_copy_files,
    test_copy_errors,
    test_copy_fork,
    test_copy_under_load,
    test_copy_exit,
    test_add,
    test_add_under_load,
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
