// SPDX-License-Identifier: GPL-2.0
//! Memory that userfaultfd(2) has a say in: pages on the device are moved by
//! `UFFDIO_MOVE`, and `PAGEMAP_SCAN` tells which were written to.

use nix::errno::Errno;

use super::support::{device_writes, ensure_device_reads, ensure_snapshot, migrate};
use super::{Context, Test};
use crate::failure::Result;
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::uapi::prot;
use crate::userfault::UserFaults;
use crate::{ensure, ensure_eq, fail, pagemap, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(move_small),
    test!(move_huge),
    test!(move_part_of_huge),
    test!(written_small),
    test!(written_huge),
];

const SMALL: usize = 16;

/// Pages of generation 1.
fn filled(is_huge: bool) -> Result<Mapping> {
    let mapping = if is_huge { Mapping::huge(HUGE_PAGES)? } else { Mapping::small(SMALL)? };
    mapping.fill(0..mapping.count(), 1);
    ensure_eq!(pagemap::huge_pages(mapping.all())?, if is_huge { HUGE_PAGES } else { 0 });
    Ok(mapping)
}

fn move_small(ctx: &mut Context) -> Result {
    move_range(ctx, &filled(false)?, 0, SMALL)
}

fn move_huge(ctx: &mut Context) -> Result {
    move_range(ctx, &filled(true)?, 0, HUGE_PAGES)
}

fn move_part_of_huge(ctx: &mut Context) -> Result {
    move_range(ctx, &filled(true)?, 64, 96)
}

/// Pages on the device are moved, or the process is told that they cannot be. They never
/// count as missing, and nothing gets lost.
fn move_range(ctx: &Context, src: &Mapping, start: usize, end: usize) -> Result {
    let count = src.count();
    let device = ctx.device(0)?;
    let dst = Mapping::small(count)?;
    let faults = UserFaults::tracking(dst.all())?;
    migrate(&device, src, 0..count, 1)?;
    let moved = match faults.move_to(dst.pages(start..end), src.pages(start..end)) {
        Ok(()) => end,
        // Entries of the page table that are no pages.
        Err((done, Errno::EFAULT)) if !ctx.memory_type.is_cpu_accessible() => start + done,
        Err((done, errno)) => fail!("{errno} after {done} pages"),
    };
    if start < moved {
        ensure_snapshot(&device, src.pages(start..moved), prot::NONE)?;
        ensure_device_reads(&device, &dst, start..moved, 1)?;
    }
    if moved < count {
        ensure_snapshot(&device, dst.pages(moved..count), prot::NONE)?;
    }
    dst.check(start..moved, 1)?;
    src.check(0..start, 1)?;
    src.check(moved..count, 1)?;
    src.check(start..moved, 0)?;

    // They can be migrated where they are now.
    if start < moved {
        migrate(&device, &dst, start..moved, 1)?;
        dst.fill(start..moved, 2);
        dst.check(start..moved, 2)?;
    }
    if moved < count {
        migrate(&device, src, moved..count, 1)?;
        src.check(moved..count, 1)?;
    }
    Ok(())
}

fn written_small(ctx: &mut Context) -> Result {
    written(ctx, &filled(false)?)
}

fn written_huge(ctx: &mut Context) -> Result {
    written(ctx, &filled(true)?)
}

/// Who writes to a page is noticed, wherever it is; that it comes and goes is no writing.
fn written(ctx: &Context, mapping: &Mapping) -> Result {
    let all = 0..mapping.count();
    let device = ctx.device(0)?;
    let _tracking = UserFaults::tracking(mapping.all())?;
    let take = || pagemap::take_written(mapping.all());
    migrate(&device, mapping, all.clone(), 1)?;
    ensure_eq!(take()?.len(), all.len(), "all pages were written at first");
    ensure_eq!(take()?, [], "nobody wrote to what is on the device");

    device_writes(&device, mapping, 5..6, 2)?;
    ensure!(take()?.contains(&5), "the device wrote");
    ensure_eq!(take()?, [], "since the device wrote");
    mapping.fill(6..7, 2);
    ensure!(take()?.contains(&6), "the CPU wrote");
    ensure_eq!(take()?, [], "since the CPU wrote");

    // What is protected in system memory stays so on the device.
    device.migrate_to_sys(mapping.all())?;
    ensure_eq!(take()?, [], "all came back");
    device.migrate_to_dev(mapping.all())?;
    ensure_eq!(take()?, [], "all went to the device");
    device.migrate_to_sys(mapping.all())?;
    ensure_eq!(take()?, [], "all came back again");
    device.migrate_to_dev(mapping.all())?;
    device_writes(&device, mapping, 7..9, 2)?;
    device.migrate_to_sys(mapping.all())?;
    let found = take()?;
    ensure!(found.contains(&7) && found.contains(&8), "the device wrote to 7 and 8: {found:?}");
    mapping.check(0..5, 1)?;
    mapping.check(5..9, 2)?;
    mapping.check(9..all.end, 1)?;
    Ok(())
}
