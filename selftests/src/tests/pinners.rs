// SPDX-License-Identifier: GPL-2.0
//! Those who pin for the long term: as `pinned`, but by what programs really use.

use std::fs::{File, OpenOptions};
use std::io;

use nix::errno::Errno;

use super::pinned::NO_EBUSY;
use super::support::{ensure_device_reads, ensure_snapshot, migrate, migrate_back};
use super::{Context, Test};
use crate::device::Device;
use crate::failure::{Context as _, Result, skip};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, Pages};
use crate::uapi::MemoryType::{self, Coherent, Generic};
use crate::uapi::prot;
use crate::vfio::{Container, DeviceAccess, TRANSFER};
use crate::{ensure, ensure_eq, ensure_errno, fail, pagemap, pattern, test};

mod rdma;
mod registered;
mod uring;

use rdma::{rdma, rdma_huge, rdma_killed, rdma_memlock};
use uring::{uring, uring_huge, uring_killed, uring_memlock};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(uring).except(NO_EBUSY),
    test!(uring_huge).except(NO_EBUSY),
    test!(uring_killed).except(NO_EBUSY),
    test!(uring_memlock).except(NO_EBUSY),
    test!(rdma).except(NO_EBUSY),
    test!(rdma_huge).except(NO_EBUSY),
    test!(rdma_killed).except(NO_EBUSY),
    test!(rdma_memlock).except(NO_EBUSY),
    test!(vfio),
    test!(vfio_dma),
    test!(iommufd),
    test!(iommufd_dma),
    test!(vfio_frame_in_use).only(&[Coherent, Generic]),
    test!(vfio_frame_free).only(&[Coherent, Generic]),
];

const COUNT: usize = 8;
const MEMORY: &str = "/dev/mem";

/// Pages of generation 1 on the device.
fn on_device(device: &Device) -> Result<Mapping> {
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    migrate(device, &mapping, 0..COUNT, 1)?;
    Ok(mapping)
}

/// Numbers of the pages' frames.
fn pfns(pages: Pages) -> Result<Vec<u64>> {
    Ok(pagemap::entries(pages)?.into_iter().map(|entry| entry.pfn()).collect())
}

fn vfio(ctx: &mut Context) -> Result {
    pinned_until_unmapped(ctx, &Container::type1()?)
}

fn iommufd(ctx: &mut Context) -> Result {
    pinned_until_unmapped(ctx, &Container::iommufd()?)
}

fn vfio_dma(ctx: &mut Context) -> Result {
    read_and_written(ctx, &Container::type1()?)
}

fn iommufd_dma(ctx: &mut Context) -> Result {
    read_and_written(ctx, &Container::iommufd()?)
}

/// What is mapped for a device is pinned until it is unmapped, and not longer.
fn pinned_until_unmapped(ctx: &Context, container: &Container) -> Result {
    let device = ctx.device(0)?;
    let mapping = on_device(&device)?;
    for generation in 1..3 {
        let before = pfns(mapping.all())?;
        let access = container.map(mapping.all())?;
        match ctx.memory_type {
            MemoryType::Generic => {
                ensure_eq!(pfns(mapping.all())?, before);
                migrate_back(&device, mapping.all(), 0)?;
                ensure_errno!(device.release(), Errno::EBUSY);
                ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
            }
            MemoryType::Private | MemoryType::Coherent => {
                ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
                ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
                device.release()?;
            }
        }
        mapping.check(0..COUNT, generation)?;
        mapping.fill(0..COUNT, generation + 1);
        ensure_device_reads(&device, &mapping, 0..COUNT, generation + 1)?;
        drop(access);

        device.release()?;
        ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
        mapping.check(0..COUNT, generation + 1)?;
        migrate(&device, &mapping, 0..COUNT, generation + 1)?;
    }
    device.release()?;
    Ok(())
}

/// A device reads and writes the pages, of generation 1, wherever they were pinned.
fn read_and_written(ctx: &Context, container: &Container) -> Result {
    const FROM: usize = 2;
    const TO: usize = 5;

    let edu = container.edu()?;
    let device = ctx.device(0)?;
    let mapping = on_device(&device)?;
    let before = pfns(mapping.all())?;
    let access = container.map(mapping.all())?;
    edu.read(FROM)?;
    edu.write(TO)?;
    let place = match ctx.memory_type {
        MemoryType::Generic => {
            ensure_eq!(pfns(mapping.all())?, before);
            ctx.local_write()
        }
        MemoryType::Private | MemoryType::Coherent => prot::WRITE,
    };
    ensure_snapshot(&device, mapping.all(), place)?;
    let expected = |to, generation| {
        let mut contents = pattern::pages(FROM, 1, generation);
        contents.truncate(TRANSFER);
        contents.extend_from_slice(&pattern::pages(to, 1, 1)[TRANSFER..]);
        contents
    };
    ensure!(mapping.contents(TO..TO + 1) == expected(TO, 1));
    ensure!(device.read(mapping.pages(TO..TO + 1))?.data == expected(TO, 1));
    // What the CPU writes, the device reads.
    mapping.fill(FROM..FROM + 1, 2);
    edu.read(FROM)?;
    edu.write(FROM + 1)?;
    drop(access);

    device.release()?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    ensure!(mapping.contents(TO..TO + 1) == expected(TO, 1));
    ensure!(mapping.contents(FROM + 1..FROM + 2) == expected(FROM + 1, 2));
    mapping.check(0..FROM, 1)?;
    mapping.check(TO + 1..COUNT, 1)?;
    Ok(())
}

/// A page of device memory in a mapping without references (`VM_PFNMAP`), which is in use
/// when VFIO is to map it, and free when it is unmapped.
fn vfio_frame_in_use(ctx: &mut Context) -> Result {
    let container = Container::type1()?;
    let memory = open_memory()?;
    let device = ctx.device(0)?;
    let mapping = on_device(&device)?;
    let pfn = pfns(mapping.all())?[COUNT / 2];
    let frame = Mapping::frame(&memory, pfn)?;
    let page = COUNT / 2..COUNT / 2 + 1;
    ensure_eq!(frame.contents(0..1), mapping.contents(page.clone()), "it is the same page");
    let access = map_frame(ctx, &container, &frame)?;
    // Nobody but the process has a reference.
    device.release()?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(0..COUNT, 1)?;
    drop(access);
    ensure_usable(&device, pfn, |_| Ok(()))
}

/// The same with a page that is free, and then in use by somebody who knows nothing of it.
fn vfio_frame_free(ctx: &mut Context) -> Result {
    let container = Container::type1()?;
    let memory = open_memory()?;
    let device = ctx.device(0)?;
    let mapping = on_device(&device)?;
    let pfn = pfns(mapping.all())?[COUNT / 2];
    device.release()?;
    let frame = Mapping::frame(&memory, pfn)?;
    let access = map_frame(ctx, &container, &frame)?;
    drop(frame);
    ensure_usable(&device, pfn, |pages| {
        drop(access);
        ensure_snapshot(&device, pages, ctx.local_write())
    })?;
    ensure_usable(&device, pfn, |_| Ok(()))
}

/// Opens physical memory; skips the test if the kernel does not give it away.
fn open_memory() -> Result<File> {
    match OpenOptions::new().read(true).write(true).open(MEMORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skip(format!("no {MEMORY}: CONFIG_DEVMEM"))
        }
        result => result.context(MEMORY),
    }
}

/// Has VFIO map a page frame. It refuses memory that can be pinned for the long term, which
/// it could not tell from pinned memory later. Other memory it maps without pinning it.
fn map_frame<'a>(
    ctx: &Context,
    container: &'a Container,
    frame: &Mapping,
) -> Result<Option<DeviceAccess<'a>>> {
    let access = container.map(frame.all());
    if ctx.memory_type == MemoryType::Generic {
        ensure_errno!(access, Errno::EFAULT);
        return Ok(None);
    }
    Ok(Some(access.context("mapping coherent memory by its page frame")?))
}

/// Has the device hand out this page frame, and checks that a process can use it and that
/// it can be evicted. Does something in between, with the page that has it.
fn ensure_usable(device: &Device, pfn: u64, meanwhile: impl FnOnce(Pages) -> Result) -> Result {
    /// Much more than the device has.
    const STEPS: usize = 1024;
    let mapping = Mapping::small(STEPS * HUGE_PAGES)?;
    for step in 0..STEPS {
        let pages = step * HUGE_PAGES..(step + 1) * HUGE_PAGES;
        device.migrate_to_dev(mapping.pages(pages.clone())).context("handing out the page")?;
        let found = pfns(mapping.pages(pages.clone()))?.iter().position(|&each| each == pfn);
        let Some(number) = found else { continue };
        let page = pages.start + number..pages.start + number + 1;
        mapping.fill(page.clone(), 1);
        meanwhile(mapping.pages(page.clone()))?;
        mapping.check(page.clone(), 1)?;
        device.release()?;
        ensure_snapshot(device, mapping.pages(page.clone()), prot::WRITE)?;
        mapping.check(page, 1)?;
        return Ok(());
    }
    fail!("page frame {pfn:#x} is never handed out")
}
