"""The file system under test."""

import itertools
import os
from pathlib import Path
from typing import ClassVar

from checks import MB, pattern, run, until

PMEM, OTHER_PMEM = Path("/dev/pmem0"), Path("/dev/pmem1")


def load_pmem(*devices: Path) -> None:
    # By hand: there may be no udev.
    for module in ("nd_e820", "nd_pmem"):
        run("modprobe", module)
    for device in devices:
        until(device.exists, f"{device} is there")


class FileSystem:
    """A new file system on PMEM, mounted with dax=always."""

    MKFS: ClassVar = {
        # Extents of 2 MB, for huge mappings. The log of XFS has to fit in one of its groups.
        "ext4": "mkfs.ext4 -q -F -b 4096 -E stride=512,stripe_width=512",
        "xfs": "mkfs.xfs -q -f -m reflink=1,rmapbt=1 -d su=2m,sw=1,agcount=2 -l su=4k",
    }
    CHECK: ClassVar = {"ext4": ["e2fsck", "-f", "-n"], "xfs": ["xfs_repair", "-n"]}

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.folder = Path("/tmp/dax")
        load_pmem(PMEM, OTHER_PMEM)
        run(*self.MKFS[kind].split(), PMEM)
        self.folder.mkdir(exist_ok=True)
        self.mount()
        self.numbers = itertools.count()

    def mount(self) -> None:
        run("mount", "-t", self.kind, "-o", "dax=always", PMEM, self.folder)

    def unmount(self) -> None:
        run("umount", self.folder)

    def check(self) -> None:
        """Fails when it is not consistent; it must not be mounted."""
        run(*self.CHECK[self.kind], PMEM)

    def file(self, length: int = 4 * MB, seed: int | None = None) -> Path:
        """A new file, with its blocks allocated; with a seed, with data."""
        path = self.folder / f"file{next(self.numbers)}"
        with open(path, "wb") as file:
            if length:
                os.posix_fallocate(file.fileno(), 0, length)
            if seed is not None:
                file.write(pattern(length, seed))
        return path
