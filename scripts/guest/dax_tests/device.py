"""The device-dax device under test."""

import mmap
from pathlib import Path
from typing import ClassVar

from checks import MB, PAGE, check, equal, note, run, until, write_sysfs
from mapping import Mapping


class DeviceDax:
    """A device-dax device, with an alignment."""

    # Who has the memory, and what takes it from there. By hand: there may be no udev.
    MODULES: ClassVar = {
        "dax_hmem": ("dax_hmem", "device_dax"),
        "dax_pmem": ("nd_e820", "nd_pmem", "dax_pmem", "device_dax"),
    }

    def __init__(self, driver: str) -> None:
        self.driver = driver
        for module in self.MODULES[driver]:
            run("modprobe", module)
        if driver == "dax_pmem":
            self.create_namespace(PAGE)
        until(self.devices, "a device is on the dax bus")
        self.align = 0  # not set yet
        self.sysfs = self.devices()[0]
        until(self.path.exists, f"{self.path} is there")
        note(f"{self.driver}: size {self.attribute('size')}")

    @staticmethod
    def devices() -> list[Path]:
        return sorted(Path("/sys/bus/dax/devices").glob("dax*"))

    @property
    def path(self) -> Path:
        return Path("/dev") / self.sysfs.name

    def attribute(self, name: str) -> str:
        return (self.sysfs / name).read_text().strip()

    def create_namespace(self, align: int) -> None:
        options = ["--force", "--reconfig=namespace0.0", "--mode=devdax", "--map=mem"]
        run("ndctl", "create-namespace", *options, f"--align={align}")

    def unbind(self) -> None:
        run("daxctl", "disable-device", self.sysfs.name)

    def bind(self) -> None:
        run("daxctl", "enable-device", self.sysfs.name)

    def set_align(self, align: int) -> None:
        """Of special-purpose memory the alignment is an attribute, of persistent memory
        a part of the namespace's superblock."""
        if self.driver == "dax_hmem":
            self.unbind()
            write_sysfs(self.sysfs / "align", str(align))
            self.bind()
        else:
            self.create_namespace(align)
            devices = self.devices()
            check(devices, "no device on the dax bus")
            self.sysfs = devices[0]
            until(self.path.exists, f"{self.path} is there")
        equal(int(self.attribute("align")), align, "alignment")
        self.align = align

    def map(self, length: int = 4 * MB, offset: int = 0, flags: int = mmap.MAP_SHARED) -> Mapping:
        return Mapping(self.path, length, offset, flags)
