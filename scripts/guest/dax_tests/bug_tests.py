"""Tests of bugs of v7.3 in device-dax, which are those of make bugs."""

import mmap
import os
import re
from pathlib import Path

import libc
from checks import MB, MUST_NOT, Skip, check, digest, equal, error_of, note, pattern, until, write_sysfs
from device import DeviceDax
from page_references import Pages
from pins import GupTest, Vfio
from processes import Child


def bug_mmap_unbound(dev: DeviceDax) -> None:
    """A device without a driver cannot be mapped by who has it open, nor be opened again."""
    file = os.open(dev.path, os.O_RDWR)
    dev.unbind()
    address = libc.mmap(None, 4 * MB, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    equal(address, libc.MAP_FAILED, "mapping a file opened before")
    equal(error_of(dev.map), "ENXIO", "opening and mapping it")
    os.close(file)
    dev.bind()
    dev.map().close()


def bug_rebind_open(dev: DeviceDax) -> None:
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


def bug_unbind_pinned(dev: DeviceDax) -> None:
    """Unbinding the driver waits for a long-term pin, and the pages stay what they were."""
    data = pattern(2 * MB, 10)
    with GupTest() as gup:
        with dev.map() as mapping:
            mapping.data[: 2 * MB] = data
            gup.pin(mapping, length=2 * MB)
        child = Child(dev.unbind)
        waiting = child.runs_after(MUST_NOT)
        note(f"waits: {waiting}")
        gup.unpin()
        child.result()
    check(waiting, "it did not wait for the pinned pages")
    dev.bind()
    with dev.map() as mapping:
        equal(digest(mapping.data[: 2 * MB]), digest(data), "data after binding again")


def bug_unbind_region_pinned(dev: DeviceDax) -> None:
    """Unbinding the driver of the whole region waits for a long-term pin, too, and does
    not block whoever uses the region's files meanwhile for ever. No device is left."""
    if dev.driver != "dax_hmem":
        raise Skip("devices cannot be deleted from the region")
    region = dev.sysfs.resolve().parent
    driver = (region / "driver").resolve()
    # Half of it, for one more device to be possible.
    dev.unbind()
    write_sysfs(dev.sysfs / "size", str(int(dev.attribute("size")) // 2))
    dev.bind()
    with GupTest() as gup:
        with dev.map() as mapping:
            gup.pin(mapping, length=2 * MB)
        unbind = Child(write_sysfs, driver / "unbind", region.name)
        unbind.runs_after(MUST_NOT)
        delete = Child(error_of, write_sysfs, region / "dax_region/delete", dev.sysfs.name)
        create = Child(error_of, write_sysfs, region / "dax_region/create", "1")
        delete.runs_after(MUST_NOT)
        waiting = unbind.running()
        note(f"waits: {waiting}")
        gup.unpin()
        unbind.result()
        # It tries again: it finds the device gone, or soon after that the region's files.
        gone = delete.result()
        check(gone in ("ENXIO", "ENODEV"), f"deleting a device meanwhile: {gone}")
        equal(create.result(), "ENODEV", "making a device meanwhile")
    check(waiting, "it did not wait for the pinned pages")
    equal(dev.devices(), [], "devices of a region without a driver")
    write_sysfs(driver / "bind", region.name)
    until(dev.path.exists, f"{dev.path} is there")
    dev.map().close()


def locked() -> str:
    """What counts for this process' limit of locked memory, in KB."""
    (size,) = re.findall(r"VmLck:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return str(size)


def bug_vfio(dev: DeviceDax) -> None:
    """Memory that a device can access by VFIO is pinned, and no longer after that."""
    pages = Pages()
    with Vfio() as vfio, dev.map() as mapping:
        mapping.data[0] = 1
        frame = mapping.page_frame()
        before = pages.refcount(frame)
        for _ in range(2):
            vfio.map(mapping)
            during = pages.refcount(frame)
            note(f"reference count {before}, mapped by VFIO {during}, locked {locked()} KB")
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
