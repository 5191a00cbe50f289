"""Ways to take references to pages, and to pin them."""

import ctypes
import fcntl
import os
import struct
from pathlib import Path

import libc
from checks import PAGE, Failure, check, equal, run, until, write_sysfs
from mapping import Mapping

GUP_TEST = struct.Struct("=QQQQIII8I4x")
GUP_LONGTERM_TEST = struct.Struct("=QQII")


def gup_ioctl(direction: int, number: int, size: int = GUP_TEST.size) -> int:
    """As _IOC() of the kernel."""
    return direction << 30 | size << 16 | ord("g") << 8 | number


class GupTest:
    """/sys/kernel/debug/gup_test, see mm/gup_test.h."""

    GET_FAST, PIN_FAST, PIN_LONGTERM, GET, PIN = (gup_ioctl(3, number) for number in range(1, 6))
    START = gup_ioctl(1, 7, GUP_LONGTERM_TEST.size)
    STOP = gup_ioctl(0, 8, 0)
    READ = gup_ioctl(1, 9, 8)
    FOLL_WRITE = 1

    def __init__(self) -> None:
        self.fd = os.open("/sys/kernel/debug/gup_test", os.O_RDWR)

    def __enter__(self) -> "GupTest":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def pages(self, command: int, mapping: Mapping) -> int:
        """Takes references and drops them; returns how many bytes it got."""
        # Not all at once: of a call that gets less, only the next one says so.
        at_once = 64
        argument = bytearray(
            GUP_TEST.pack(0, 0, mapping.address, mapping.length, at_once, self.FOLL_WRITE, 0, *[0] * 8)
        )
        fcntl.ioctl(self.fd, command, argument)
        return int(GUP_TEST.unpack(argument)[3])

    def pin(self, mapping: Mapping, length: int | None = None, fast: bool = False) -> None:
        """Pins for the long term, until unpin() or close."""
        argument = GUP_LONGTERM_TEST.pack(mapping.address, length or mapping.length, 1 | fast << 1, 0)
        fcntl.ioctl(self.fd, self.START, argument)

    def unpin(self) -> None:
        fcntl.ioctl(self.fd, self.STOP)

    def read(self, length: int) -> bytes:
        """The content of the pinned pages, by the kernel."""
        buffer = ctypes.create_string_buffer(length)
        fcntl.ioctl(self.fd, self.READ, struct.pack("Q", ctypes.addressof(buffer)))
        return buffer.raw


class Spliced:
    """References to the pages of a mapping that a pipe holds, until it is read."""

    def __init__(self, mapping: Mapping, offset: int = 0, length: int = PAGE) -> None:
        self.length = length
        self.reader, self.writer = os.pipe()
        iov = struct.pack("QQ", mapping.address + offset, length)
        equal(libc.call(libc.vmsplice, self.writer, iov, 1, 0), length, "length of vmsplice")

    def __enter__(self) -> "Spliced":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self.reader, self.writer):
            os.close(fd)

    def read(self) -> bytes:
        return os.read(self.reader, self.length)


class Vfio:
    """A container of VFIO with QEMU's educational PCI device, which needs an IOMMU."""

    EDU = ("0x1234", "0x11e8")
    SET_IOMMU, SET_CONTAINER, MAP_DMA, UNMAP_DMA = (ord(";") << 8 | 100 + number for number in (2, 4, 13, 14))
    TYPE1V2, READ, WRITE = 3, 1, 2
    # Anywhere but in what x86 reserves for interrupts.
    ADDRESS = 1 << 30

    def __init__(self) -> None:
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

    def find(self) -> Path:
        for device in Path("/sys/bus/pci/devices").iterdir():
            if tuple((device / name).read_text().strip() for name in ("vendor", "device")) == self.EDU:
                check((device / "iommu_group").exists(), f"{device.name} is in no IOMMU group")
                return device
        raise Failure("no device of QEMU's, edu")

    def __enter__(self) -> "Vfio":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.group)
        os.close(self.container)

    def map(self, mapping: Mapping) -> None:
        """Lets the device access the memory."""
        access = self.READ | self.WRITE
        argument = struct.pack("IIQQQ", 32, access, mapping.address, self.ADDRESS, mapping.length)
        fcntl.ioctl(self.container, self.MAP_DMA, argument)

    def unmap(self, mapping: Mapping) -> None:
        argument = struct.pack("IIQQ", 24, 0, self.ADDRESS, mapping.length)
        (*_, length) = struct.unpack("IIQQ", fcntl.ioctl(self.container, self.UNMAP_DMA, argument))
        equal(length, mapping.length, "length that was unmapped")
