// SPDX-License-Identifier: GPL-2.0
//! Huge pages, which stay huge on the device.

use std::fs;
use std::ops::Range;
use std::process;

use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};

use super::support::{device_writes, ensure_device_reads, ensure_snapshot, migrate, migrate_back};
use super::{Context, Test};
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::process::{Child, Gate};
use crate::settings::SharedHugePagesIfAdvised;
use crate::uapi::{MemoryType, prot};
use crate::{ensure, ensure_eq, ensure_errno, pagemap, pattern, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(there_and_back),
    test!(untouched),
    test!(huge_zero_page),
    test!(cpu_access),
    test!(read_only),
    test!(part_migrated),
    test!(part_migrated_back),
    test!(unaligned_range),
    test!(other_device),
    test!(part_unmapped),
    test!(part_discarded),
    test!(part_protected),
    test!(part_moved),
    test!(part_left_and_released),
    test!(part_left_under_pressure),
    test!(split_by_debugfs).only(&[MemoryType::Coherent, MemoryType::Generic]),
    test!(moved),
    test!(freed_lazily),
    test!(fail_alloc_to_device),
    test!(fail_alloc_untouched),
    test!(fail_alloc_of_shared_memory),
    test!(fail_alloc_to_system),
    test!(fail_alloc_in_fault).only(&[MemoryType::Private]),
    test!(released),
    test!(shared_by_fork),
    test!(forked_on_device),
];

const ALL: usize = 2 * HUGE_PAGES;

/// Two huge pages of generation 1.
fn filled() -> Result<Mapping> {
    let mapping = Mapping::huge(ALL)?;
    mapping.fill(0..ALL, 1);
    ensure_eq!(pagemap::huge_pages(mapping.all())?, ALL);
    Ok(mapping)
}

fn there_and_back(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_huge_write())?;
    device_writes(&device, &mapping, 0..ALL, 2)?;
    ensure_device_reads(&device, &mapping, 0..ALL, 2)?;

    migrate_back(&device, mapping.all(), ctx.counts_of_huge(2, HUGE_PAGES))?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE | prot::PMD)?;
    ensure_eq!(pagemap::huge_pages(mapping.all())?, ALL);
    mapping.check(0..ALL, 2)?;
    Ok(())
}

/// Where nothing is, huge pages are made if nothing but them is asked for.
fn untouched(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(ALL)?;
    migrate(&device, &mapping, 0..ALL, 0)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_huge_write())?;
    mapping.check(0..ALL, 0)?;
    mapping.fill(0..ALL, 1);
    migrate(&device, &mapping, 0..ALL, 1)?;
    migrate_back(&device, mapping.all(), ctx.counts_of_huge(2, HUGE_PAGES))?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

fn huge_zero_page(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(ALL)?;
    mapping.touch(0..1);
    mapping.touch(HUGE_PAGES..HUGE_PAGES + 1);
    ensure_snapshot(&device, mapping.all(), prot::READ | prot::PMD)?;
    migrate(&device, &mapping, 0..ALL, 0)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_huge_write())?;
    migrate_back(&device, mapping.all(), ctx.counts_of_huge(2, HUGE_PAGES))?;
    mapping.check(0..ALL, 0)?;
    Ok(())
}

/// A CPU access brings the whole huge page back, and leaves the other one.
fn cpu_access(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    mapping.check(7..8, 1)?;
    let touched = match ctx.memory_type {
        MemoryType::Private => prot::WRITE | prot::PMD,
        MemoryType::Coherent | MemoryType::Generic => ctx.local_huge_write(),
    };
    ensure_snapshot(&device, mapping.pages(0..HUGE_PAGES), touched)?;
    ensure_snapshot(&device, mapping.pages(HUGE_PAGES..ALL), ctx.local_huge_write())?;
    mapping.check(0..HUGE_PAGES, 1)?;
    mapping.fill(HUGE_PAGES..ALL, 2);
    migrate(&device, &mapping, HUGE_PAGES..ALL, 2)?;
    migrate(&device, &mapping, 0..HUGE_PAGES, 1)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_huge_write())
}

fn read_only(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    mapping.mprotect(0..ALL, ProtFlags::PROT_READ)?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    let expected = ctx.local_huge_write() & !prot::WRITE | prot::READ;
    ensure_snapshot(&device, mapping.all(), expected)?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

/// Part of a huge page of the system is split off.
fn part_migrated(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 100..200, 1)?;
    ensure_snapshot(&device, mapping.pages(0..100), prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(100..200), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(200..HUGE_PAGES), prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(HUGE_PAGES..ALL), prot::WRITE | prot::PMD)?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

/// Part of a huge page of the device is split off.
fn part_migrated_back(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    migrate_back(&device, mapping.pages(100..200), 100)?;
    ensure_snapshot(&device, mapping.pages(0..100), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(100..200), prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(200..HUGE_PAGES), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(HUGE_PAGES..ALL), ctx.local_huge_write())?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

/// The ends of a range are in the middle of huge pages.
fn unaligned_range(ctx: &mut Context) -> Result {
    const START: usize = 300;
    const END: usize = ALL - 300;
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, START..END, 1)?;
    ensure_snapshot(&device, mapping.pages(0..START), prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(START..END), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(END..ALL), prot::WRITE)?;
    migrate_back(&device, mapping.all(), (END - START) as u64)?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

fn other_device(ctx: &mut Context) -> Result {
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    ensure_errno!(other.migrate_to_dev(mapping.all()), Errno::ENOENT);
    migrate_back(&other, mapping.all(), 0)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_huge_write())?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

/// The rest of a huge page on the device is as before.
fn part_unmapped(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    mapping.munmap(100..200)?;
    mapping.munmap(ALL - 1..ALL)?;
    ensure_snapshot(&device, mapping.pages(0..100), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(200..ALL - 1), ctx.local_write())?;
    ensure_device_reads(&device, &mapping, 0..100, 1)?;
    mapping.check(0..50, 1)?;
    mapping.check(200..HUGE_PAGES, 1)?;
    migrate_back(&device, mapping.pages(HUGE_PAGES..ALL - 1), HUGE_PAGES as u64 - 1)?;
    mapping.check(0..100, 1)?;
    mapping.check(HUGE_PAGES..ALL - 1, 1)?;
    Ok(())
}

fn part_discarded(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    mapping.madvise(100..200, MmapAdvise::MADV_DONTNEED)?;
    ensure_snapshot(&device, mapping.pages(100..200), prot::NONE)?;
    ensure_device_reads(&device, &mapping, 200..300, 1)?;
    mapping.check(100..200, 0)?;
    mapping.check(0..100, 1)?;
    mapping.check(200..ALL, 1)?;
    Ok(())
}

fn part_protected(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    mapping.mprotect(100..200, ProtFlags::PROT_READ)?;
    ensure_snapshot(&device, mapping.pages(0..100), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(100..200), ctx.local_read())?;
    ensure_snapshot(&device, mapping.pages(200..HUGE_PAGES), ctx.local_write())?;
    let data = pattern::pages(0, 200, 2);
    ensure_errno!(device.write(mapping.pages(0..200), &data), Errno::EPERM);
    mapping.check(100..200, 1)?;
    device_writes(&device, &mapping, 200..300, 3)?;
    mapping.fill(300..400, 3);
    mapping.check(200..400, 3)?;
    mapping.check(400..ALL, 1)?;
    Ok(())
}

/// What a process has unmapped of a huge page does not keep device memory in use.
fn part_left_and_released(ctx: &mut Context) -> Result {
    const LEFT: Range<usize> = HUGE_PAGES - 1..ALL - 3;
    let device = ctx.device(0)?;
    let mut mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    mapping.munmap(0..LEFT.start)?;
    mapping.madvise(LEFT.end..ALL, MmapAdvise::MADV_DONTNEED)?;
    // Fails if any page of the device is in use afterwards.
    device.release()?;
    ensure_snapshot(&device, mapping.pages(LEFT), prot::WRITE)?;
    mapping.check(LEFT, 1)?;
    migrate(&device, &mapping, LEFT, 1)?;
    ensure_snapshot(&device, mapping.pages(LEFT), ctx.local_write())?;
    mapping.check(LEFT, 1)?;
    Ok(())
}

/// Nobody splits huge pages of a device for what a process has unmapped of them, which would
/// give no system memory back.
fn part_left_under_pressure(ctx: &mut Context) -> Result {
    const LEFT: Range<usize> = 1..HUGE_PAGES;
    let device = ctx.device(0)?;
    for generation in 1..4 {
        let mut mapping = Mapping::huge(HUGE_PAGES)?;
        mapping.fill(0..HUGE_PAGES, generation);
        migrate(&device, &mapping, 0..HUGE_PAGES, generation)?;
        mapping.munmap(0..LEFT.start)?;
        let before = pagemap::entries(mapping.pages(LEFT))?;
        shrink_slabs()?;
        ensure_snapshot(&device, mapping.pages(LEFT), ctx.local_write())?;
        ensure!(pagemap::entries(mapping.pages(LEFT))? == before, "pages have moved");
        ensure_device_reads(&device, &mapping, LEFT, generation)?;
        // The huge page is freed, and handed out again.
    }
    device.release()?;
    Ok(())
}

/// Has all shrinkers run, that of the deferred split queue among them.
fn shrink_slabs() -> Result {
    const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
    fs::write(DROP_CACHES, "2").context(DROP_CACHES)
}

/// A split leaves all pages on the device, also those of zeroes.
fn split_by_debugfs(ctx: &mut Context) -> Result {
    const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(ALL)?;
    mapping.fill(0..HUGE_PAGES, 1);
    migrate(&device, &mapping, 0..HUGE_PAGES, 1)?;
    migrate(&device, &mapping, HUGE_PAGES..ALL, 0)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_huge_write())?;
    let start = mapping.all().addr;
    let end = start + mapping.all().bytes();
    fs::write(SPLIT, format!("{},{start:#x},{end:#x}", process::id())).context(SPLIT)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    ensure_eq!(pagemap::huge_pages(mapping.all())?, 0);
    mapping.check(0..HUGE_PAGES, 1)?;
    mapping.check(HUGE_PAGES..ALL, 0)?;
    mapping.fill(0..ALL, 2);
    migrate_back(&device, mapping.pages(100..200), 100)?;
    ensure_device_reads(&device, &mapping, 0..ALL, 2)?;
    device.release()?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(0..ALL, 2)?;
    Ok(())
}

fn part_moved(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    let moved = mapping.mremap(100..200, 5)?;
    ensure_snapshot(&device, moved.all(), ctx.local_write())?;
    ensure_device_reads(&device, &moved, 0..50, 1)?;
    migrate_back(&device, moved.all(), 100)?;
    moved.check(0..100, 1)?;
    mapping.check(0..100, 1)?;
    mapping.check(200..ALL, 1)?;
    Ok(())
}

/// Moved as a whole, by a multiple of 2 MB, it stays huge.
fn moved(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    let moved = mapping.mremap(0..ALL, 0)?;
    ensure_snapshot(&device, moved.all(), ctx.local_huge_write())?;
    moved.check(HUGE_PAGES..ALL, 1)?;
    migrate_back(&device, moved.pages(0..HUGE_PAGES), ctx.counts_of_huge(1, HUGE_PAGES))?;
    moved.check(0..HUGE_PAGES, 1)?;
    Ok(())
}

fn freed_lazily(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    mapping.madvise(0..ALL, MmapAdvise::MADV_FREE)?;
    let migrated = device.migrate_to_dev(mapping.all())?;
    ensure_eq!(migrated.cpages, ALL as u64);
    ensure_snapshot(&device, mapping.all(), ctx.local_huge_write())?;
    if mapping.check(0..ALL, 1).is_err() {
        mapping.check(0..ALL, 0)?;
    }
    mapping.fill(0..ALL, 2);
    migrate(&device, &mapping, 0..ALL, 2)?;
    mapping.check(0..ALL, 2)?;
    Ok(())
}

/// Small pages instead of the first huge page.
fn fail_alloc_to_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    device.fail_next_allocation()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    ensure_snapshot(&device, mapping.pages(0..HUGE_PAGES), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(HUGE_PAGES..ALL), ctx.local_huge_write())?;
    let count = HUGE_PAGES as u64 + ctx.counts_of_huge(1, HUGE_PAGES);
    migrate_back(&device, mapping.all(), count)?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

/// The same where there is nothing, or the huge zero page.
fn fail_alloc_untouched(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    for touched in [false, true] {
        let mapping = Mapping::huge(ALL)?;
        if touched {
            mapping.touch(0..1);
        }
        device.fail_next_allocation()?;
        migrate(&device, &mapping, 0..ALL, 0)?;
        ensure_snapshot(&device, mapping.pages(0..HUGE_PAGES), ctx.local_write())?;
        ensure_snapshot(&device, mapping.pages(HUGE_PAGES..ALL), ctx.local_huge_write())?;
        mapping.fill(0..HUGE_PAGES, 1);
        mapping.check(0..HUGE_PAGES, 1)?;
        mapping.check(HUGE_PAGES..ALL, 0)?;
    }
    Ok(())
}

/// Shared memory stays, which is in the page cache, and is not split for small pages in vain.
fn fail_alloc_of_shared_memory(ctx: &mut Context) -> Result {
    let _settings = SharedHugePagesIfAdvised::new()?;
    let device = ctx.device(0)?;
    let mapping = Mapping::shared(HUGE_PAGES)?;
    mapping.madvise(0..HUGE_PAGES, MmapAdvise::MADV_HUGEPAGE)?;
    mapping.fill(0..HUGE_PAGES, 1);
    for fails in [false, true] {
        ensure_snapshot(&device, mapping.all(), prot::WRITE | prot::PMD)?;
        if fails {
            device.fail_next_allocation()?;
        }
        ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
        mapping.check(0..HUGE_PAGES, 1)?;
        // What the page cache has of it.
        mapping.madvise(0..HUGE_PAGES, MmapAdvise::MADV_DONTNEED)?;
        mapping.check(0..HUGE_PAGES, 1)?;
    }
    Ok(())
}

/// A huge page comes back as small ones.
fn fail_alloc_to_system(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    device.fail_next_allocation()?;
    let first = mapping.pages(0..HUGE_PAGES);
    migrate_back(&device, first, HUGE_PAGES as u64)?;
    ensure_snapshot(&device, first, prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(HUGE_PAGES..ALL), ctx.local_huge_write())?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

fn fail_alloc_in_fault(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    device.fail_next_allocation()?;
    mapping.check(3..4, 1)?;
    ensure_snapshot(&device, mapping.pages(HUGE_PAGES..ALL), ctx.local_huge_write())?;
    mapping.fill(0..HUGE_PAGES, 2);
    ensure!(pagemap::entries(mapping.pages(0..HUGE_PAGES))?.iter().all(|e| e.is_present()));
    mapping.check(0..HUGE_PAGES, 2)?;
    mapping.check(HUGE_PAGES..ALL, 1)?;
    Ok(())
}

fn released(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    for _ in 0..2 {
        migrate(&device, &mapping, 0..ALL, 1)?;
        device.release()?;
        let snapshot = device.snapshot(mapping.all())?;
        let is_system = |&byte: &u8| byte & !prot::PMD == prot::WRITE;
        ensure!(snapshot.iter().all(is_system), "all back");
        mapping.check(0..ALL, 1)?;
    }
    Ok(())
}

/// A huge page that parent and child share is migrated for both.
fn shared_by_fork(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    let (go, seen) = (Gate::new()?, Gate::new()?);
    let child = Child::fork(|| {
        go.pass()?;
        mapping.check(0..HUGE_PAGES, 1)?;
        seen.open()?;
        mapping.check(HUGE_PAGES..ALL, 1)?;
        mapping.fill(0..ALL, 2);
        mapping.check(0..ALL, 2)?;
        Ok(())
    })?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    let expected = ctx.local_huge_write() & !prot::WRITE | prot::READ;
    ensure_snapshot(&device, mapping.all(), expected)?;
    go.open()?;
    seen.pass()?;
    mapping.check(0..ALL, 1)?;
    child.join()?;
    mapping.check(0..ALL, 1)?;
    mapping.fill(0..ALL, 3);
    mapping.check(0..ALL, 3)?;
    Ok(())
}

/// A huge page that was on the device at the fork.
fn forked_on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    let child = Child::fork(|| {
        mapping.check(0..HUGE_PAGES, 1)?;
        mapping.fill(0..ALL, 2);
        mapping.check(0..ALL, 2)?;
        Ok(())
    })?;
    mapping.fill(0..100, 3);
    child.join()?;
    mapping.check(0..100, 3)?;
    mapping.check(100..ALL, 1)?;
    device.release()?;
    mapping.check(100..ALL, 1)?;
    Ok(())
}
