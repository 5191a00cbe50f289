// SPDX-License-Identifier: GPL-2.0
//! Large and small pages of device memory, and their way back.

use std::fs::File;
use std::io::Write;

use nix::errno::Errno;
use nix::sys::mman::ProtFlags;

use super::{local_pages, ramfs};
use crate::failure::Result;
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::pins::{GupTest, PipePin};
use crate::process::{Child, Gate, stay_on_one_cpu};
use crate::tests::Context;
use crate::uapi::{MemoryType, prot};
use crate::{ensure_eq, ensure_errno, iomem, pagemap, pattern};

/// A mapping of one huge page, filled with generation 1.
fn huge_page() -> Result<Mapping> {
    let mapping = Mapping::huge(HUGE_PAGES)?;
    mapping.fill(0..HUGE_PAGES, 1);
    ensure_eq!(pagemap::huge_pages(mapping.all())?, HUGE_PAGES);
    Ok(mapping)
}

/// A huge page on the device is split, and small parts of it are freed and used for
/// something else. In C the memory behind the rest kept a size that it was then read
/// from there.
pub fn d03_split_backing_folio(ctx: &mut Context) -> Result {
    const FILE_PAGES: usize = 64;
    // So that the file gets what the fault has freed.
    stay_on_one_cpu()?;
    let mut file = File::create(ramfs::mount()?.join("file"))?;

    let device = ctx.device(0)?;
    let mut mapping = huge_page()?;
    device.migrate_to_dev(mapping.all())?;
    mapping.munmap(HUGE_PAGES - 1..HUGE_PAGES)?;
    mapping.check(1..2, 1)?;
    file.write_all(&pattern::pages(0, FILE_PAGES, 2))?;
    mapping.check(0..HUGE_PAGES - 1, 1)?;
    Ok(())
}

/// RELEASE gives up, for a while, on a page that somebody else has a reference to. In C
/// it waited forever.
pub fn d08_release_of_referenced_page(ctx: &mut Context) -> Result {
    const COUNT: usize = 4;
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    device.migrate_to_dev(mapping.all())?;
    let in_pipe = PipePin::new(mapping.pages(0..1))?;
    if ctx.memory_type.is_cpu_accessible() {
        ensure_errno!(device.release(), Errno::EBUSY);
        ensure_eq!(local_pages(ctx, &device, mapping.all())?, 1);
    } else {
        // The pipe's reference is on system memory.
        device.release()?;
        ensure_eq!(local_pages(ctx, &device, mapping.all())?, 0);
    }
    mapping.check(0..COUNT, 1)?;
    pattern::check(&in_pipe.into_contents()?, 0, 1)?;
    device.release()?;
    ensure_eq!(local_pages(ctx, &device, mapping.all())?, 0);
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// There is no large page on the device for a huge page, but there are small ones. In
/// C those were taken for granted.
pub fn d10_allocation_of_huge_page_fails(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    // If the device sets memory aside for large pages, it has done so now.
    device.release()?;
    let before = huge_page()?;
    device.migrate_to_dev(before.all())?;

    let mapping = huge_page()?;
    device.fail_next_allocation()?;
    let migrated = device.migrate_to_dev(mapping.all())?;
    ensure_eq!(migrated.cpages, HUGE_PAGES as u64);
    pattern::check(&migrated.data, 0, 1)?;
    let byte = ctx.memory_type.local() | prot::WRITE;
    ensure_eq!(device.snapshot(mapping.all())?, vec![byte; HUGE_PAGES]);
    mapping.check(0..HUGE_PAGES, 1)?;
    before.check(0..HUGE_PAGES, 1)?;
    Ok(())
}

/// Everything that can be done with a huge page on a device whose memory the CPU can
/// access. In C most of it failed, warned or hung.
pub fn d16_huge_page_to_cpu_accessible(ctx: &mut Context) -> Result {
    const ALL: u64 = HUGE_PAGES as u64;
    let device = ctx.device(0)?;
    device.release()?;
    let mut mapping = huge_page()?;
    let local = |mapping: &Mapping| local_pages(ctx, &device, mapping.all());

    for _ in 0..2 {
        ensure_eq!(device.migrate_to_dev(mapping.all())?.cpages, ALL);
        ensure_eq!(local(&mapping)?, HUGE_PAGES);
        ensure_eq!(device.migrate_to_sys(mapping.all())?.cpages, ALL);
        ensure_eq!(local(&mapping)?, 0);
        mapping.check(0..HUGE_PAGES, 1)?;
    }

    device.migrate_to_dev(mapping.all())?;
    // What was migrated before need not be migrated again.
    ensure_eq!(device.migrate_to_dev(mapping.all())?.cpages, ALL);
    let gup_test = GupTest::open()?;
    let pinned = gup_test.pin(mapping.all(), true, false)?;
    pattern::check(&pinned.contents()?, 0, 1)?;
    let stay = ctx.memory_type == MemoryType::Generic;
    ensure_eq!(local(&mapping)?, if stay { HUGE_PAGES } else { 0 });
    drop(pinned);

    ensure_eq!(device.migrate_to_dev(mapping.all())?.cpages, ALL);
    mapping.mprotect(0..HUGE_PAGES / 2, ProtFlags::PROT_READ)?;
    ensure_eq!(device.migrate_to_sys(mapping.all())?.cpages, ALL);
    mapping.check(0..HUGE_PAGES, 1)?;

    ensure_eq!(device.migrate_to_dev(mapping.all())?.cpages, ALL);
    mapping.munmap(0..HUGE_PAGES / 2)?;
    device.release()?;
    mapping.check(HUGE_PAGES / 2..HUGE_PAGES, 1)?;
    Ok(())
}

/// Huge pages are split on the device, over and over, and freed: the device needs no
/// more memory for that. In C, small pages never became large ones again.
pub fn d17_split_folios_used_up(ctx: &mut Context) -> Result {
    /// More than there are in a chunk of memory.
    const TIMES: usize = 140;
    let device = ctx.device(0)?;
    let mut regions = None;
    for _ in 0..TIMES {
        let mut mapping = Mapping::huge(HUGE_PAGES)?;
        mapping.write(0, 0, 1);
        ensure_eq!(device.migrate_to_dev(mapping.all())?.cpages, HUGE_PAGES as u64);
        mapping.munmap(HUGE_PAGES / 2..HUGE_PAGES)?;
        ensure_eq!(mapping.read(0, 0), 1);
        mapping.touch(1..2);
        drop(mapping);
        let now = iomem::device_regions()?.len();
        ensure_eq!(now, *regions.get_or_insert(now), "regions of memory");
    }
    Ok(())
}

/// Another process opens and closes the device: that evicts nobody else's pages.
pub fn d22_close_evicts_others(ctx: &mut Context) -> Result {
    const COUNT: usize = 16;
    let migrated = Gate::new()?;
    let child = Child::fork(|| {
        migrated.pass()?;
        drop(ctx.device(0)?);
        Ok(())
    })?;
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    device.migrate_to_dev(mapping.all())?;
    migrated.open()?;
    child.join()?;
    let byte = ctx.memory_type.local() | prot::WRITE;
    ensure_eq!(device.snapshot(mapping.all())?, [byte; COUNT]);
    mapping.check(0..COUNT, 1)?;
    Ok(())
}
