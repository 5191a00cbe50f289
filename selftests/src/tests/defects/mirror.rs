// SPDX-License-Identifier: GPL-2.0
//! What a device has mapped: all of it, only that, and until it changes.

use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};

use super::local_pages;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::process::{Child, Gate, stay_on_one_cpu};
use crate::tests::Context;
use crate::{ensure, ensure_eq, ensure_errno, pattern};

const PAGES: usize = 256;
/// Enough to get all pages that were freed just before.
const MANY_PAGES: usize = 4 * PAGES;

/// The device maps its own page again after it was invalidated, or for the first
/// time, and finds the data. The driver in C took the page itself, which no CPU can
/// access, for the memory behind it.
pub fn d01_stale_backing_page(ctx: &mut Context) -> Result {
    read_after_mprotect(ctx).context("after mprotect")?;
    read_after_fork(ctx).context("after fork")?;
    read_by_second_file(ctx).context("by a second file")?;
    write_to_untouched(ctx).context("untouched memory")
}

fn on_device(ctx: &Context) -> Result<(crate::device::Device, Mapping)> {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(PAGES)?;
    mapping.fill(0..PAGES, 1);
    device.migrate_to_dev(mapping.all())?;
    Ok((device, mapping))
}

fn read_after_mprotect(ctx: &Context) -> Result {
    let (device, mapping) = on_device(ctx)?;
    mapping.mprotect(0..PAGES, ProtFlags::PROT_READ)?;
    pattern::check(&device.read(mapping.all())?.data, 0, 1)?;
    ensure_eq!(local_pages(ctx, &device, mapping.all())?, PAGES);
    Ok(())
}

fn read_after_fork(ctx: &Context) -> Result {
    let (device, mapping) = on_device(ctx)?;
    Child::fork(|| Ok(()))?.join()?;
    pattern::check(&device.read(mapping.all())?.data, 0, 1)?;
    ensure_eq!(local_pages(ctx, &device, mapping.all())?, PAGES);
    Ok(())
}

fn read_by_second_file(ctx: &Context) -> Result {
    let (device, mapping) = on_device(ctx)?;
    let second = ctx.device(0)?;
    pattern::check(&second.read(mapping.all())?.data, 0, 1)?;
    ensure_eq!(local_pages(ctx, &device, mapping.all())?, PAGES);
    Ok(())
}

fn write_to_untouched(ctx: &Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(PAGES)?;
    pattern::check(&device.migrate_to_dev(mapping.all())?.data, 0, 0)?;
    device.write(mapping.all(), &pattern::pages(0, PAGES, 2))?;
    ensure_eq!(local_pages(ctx, &device, mapping.all())?, PAGES);
    mapping.check(0..PAGES, 2)?;
    Ok(())
}

/// A migration by one file is seen by the other files of the device. In C these kept
/// the pages as they were before: freed ones, in use for something else meanwhile.
pub fn d02_other_mirrors_not_told(ctx: &mut Context) -> Result {
    to_device(ctx).context("to the device")?;
    to_system(ctx).context("to system memory")
}

fn to_device(ctx: &Context) -> Result {
    let (first, second) = (ctx.device(0)?, ctx.device(0)?);
    let mapping = Mapping::small(PAGES)?;
    mapping.fill(0..PAGES, 1);
    second.write(mapping.all(), &pattern::pages(0, PAGES, 2))?;
    pattern::check(&first.migrate_to_dev(mapping.all())?.data, 0, 2)?;

    let other = Mapping::small(MANY_PAGES)?;
    other.fill(0..MANY_PAGES, 3);
    second.write(mapping.all(), &pattern::pages(0, PAGES, 4))?;
    other.check(0..MANY_PAGES, 3).context("data of others")?;
    pattern::check(&first.read(mapping.all())?.data, 0, 4)?;
    mapping.check(0..PAGES, 4)?;
    Ok(())
}

fn to_system(ctx: &Context) -> Result {
    let (first, mapping) = on_device(ctx)?;
    let second = ctx.device(0)?;
    ensure_eq!(second.migrate_to_sys(mapping.all())?.cpages, PAGES as u64);

    mapping.fill(0..PAGES, 2);
    let other = Mapping::small(MANY_PAGES)?;
    other.fill(0..MANY_PAGES, 3);
    pattern::check(&first.read(mapping.all())?.data, 0, 2)?;
    Ok(())
}

/// The device writes to its page, which a fork has made read-only: it gets a copy, and
/// the child keeps its own. In C this failed, with a warning.
pub fn d11_write_after_fork(ctx: &mut Context) -> Result {
    let (device, mapping) = on_device(ctx)?;
    let written = Gate::new()?;
    let child = Child::fork(|| {
        written.pass()?;
        mapping.check(0..PAGES, 1)?;
        Ok(())
    })?;
    device.write(mapping.all(), &pattern::pages(0, PAGES, 2))?;
    written.open()?;
    child.join()?;
    pattern::check(&device.read(mapping.all())?.data, 0, 2)?;
    mapping.check(0..PAGES, 2)?;
    Ok(())
}

/// What happens to a page does not take the next one away from the device.
pub fn d14_neighbour_invalidated(ctx: &mut Context) -> Result {
    const COUNT: usize = 4;
    let device = ctx.device(0)?;
    let mut mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    device.read(mapping.all())?;
    mapping.munmap(0..1)?;
    let neighbour = device.read(mapping.pages(1..2))?;
    ensure_eq!(neighbour.faults, 0);
    pattern::check(&neighbour.data, 1, 1)?;

    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    device.exclusive(mapping.all())?;
    mapping.touch(0..1);
    ensure_eq!(device.check_exclusive(mapping.pages(0..1)), Ok(()));
    for page in 1..COUNT {
        ensure_errno!(device.check_exclusive(mapping.pages(page..page + 1)), Errno::EPERM);
    }
    Ok(())
}

/// What the device writes to a page makes it dirty, so that reclaim must not drop it,
/// though MADV_FREE has allowed to drop what was there before.
pub fn d15_write_not_dirty(ctx: &mut Context) -> Result {
    // The batches of other CPUs have references on pages that MADV_FREE was called for.
    stay_on_one_cpu()?;
    let device = ctx.device(0)?;
    let written = [Mapping::small(PAGES)?, Mapping::small(PAGES)?];
    let [in_system, on_device] = &written;
    let left = Mapping::small(PAGES)?;
    for mapping in [in_system, on_device, &left] {
        mapping.fill(0..PAGES, 1);
        mapping.madvise(0..PAGES, MmapAdvise::MADV_FREE)?;
    }
    device.migrate_to_dev(on_device.all())?;
    for mapping in &written {
        device.write(mapping.all(), &pattern::pages(0, PAGES, 2))?;
    }
    device.migrate_to_sys(on_device.all())?;
    for mapping in [in_system, on_device, &left] {
        mapping.madvise(0..PAGES, MmapAdvise::MADV_PAGEOUT)?;
    }

    let dropped = (0..PAGES).filter(|&page| left.check(page..page + 1, 0).is_ok()).count();
    ensure!(dropped > 0, "reclaim has dropped none of the pages");
    in_system.check(0..PAGES, 2).context("written in system memory")?;
    on_device.check(0..PAGES, 2).context("written on the device")?;
    Ok(())
}
