// SPDX-License-Identifier: GPL-2.0
//! Large folios that are no huge pages, most of them of 64 KB, which page tables map. They
//! are as large on the device.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};

use super::support::{device_writes, ensure_device_reads, ensure_snapshot, migrate, migrate_back};
use super::{Context, Test};
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::process::Child;
use crate::settings::{HugePagesIfAdvised, LargeFolios};
use crate::uapi::prot;
use crate::{ensure, ensure_eq, pagemap, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(there_and_back),
    test!(untouched),
    test!(part_migrated),
    test!(part_protected),
    test!(forked),
    test!(collapsed),
    test!(discarded_while_migrated),
    test!(small_part_discarded_while_migrated),
];

const FOLIO: usize = LargeFolios::PAGES_OF_64_KB;
const ALL: usize = 4 * FOLIO;

/// Folios of generation 1.
fn filled(_settings: &LargeFolios) -> Result<Mapping> {
    let mapping = Mapping::anonymous(ALL)?;
    mapping.fill(0..ALL, 1);
    ensure_folios(&mapping, 0..ALL, FOLIO)?;
    Ok(mapping)
}

/// Of each size from 16 KB to 1 MB, in both directions.
fn there_and_back(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    for folio in (2..HUGE_PAGES.ilog2()).map(|order| 1 << order) {
        let _settings = LargeFolios::of_pages(folio)?;
        let mapping = Mapping::anonymous(HUGE_PAGES)?;
        mapping.fill(0..HUGE_PAGES, 1);
        ensure_folios(&mapping, 0..HUGE_PAGES, folio)?;
        migrate(&device, &mapping, 0..HUGE_PAGES, 1)?;
        ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
        device_writes(&device, &mapping, 0..HUGE_PAGES, 2)?;
        migrate_back(&device, mapping.all(), HUGE_PAGES as u64)?;
        ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
        ensure_folios(&mapping, 0..HUGE_PAGES, folio)?;
        mapping.check(0..HUGE_PAGES, 2)?;
    }
    Ok(())
}

/// Where nothing is, the device gets what the CPU would.
fn untouched(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    for folio in (2..HUGE_PAGES.ilog2()).map(|order| 1 << order) {
        let _settings = LargeFolios::of_pages(folio)?;
        let mapping = Mapping::anonymous(HUGE_PAGES)?;
        // There is no room for the last folio.
        let (whole, there) = (0..HUGE_PAGES - folio, 0..HUGE_PAGES - 1);
        migrate(&device, &mapping, there.clone(), 0)?;
        ensure_snapshot(&device, mapping.pages(there.clone()), ctx.local_write())?;
        migrate_back(&device, mapping.all(), there.len() as u64)?;
        ensure_folios(&mapping, whole.clone(), folio)?;
        ensure_eq!(pagemap::tail_pages(mapping.pages(whole.end..there.end))?, 0);
        mapping.check(there, 0)?;
    }
    Ok(())
}

/// Whether all of these pages of system memory are in folios of that many pages.
fn ensure_folios(mapping: &Mapping, pages: Range<usize>, folio: usize) -> Result {
    let expected = pages.len() / folio * (folio - 1);
    ensure_eq!(pagemap::tail_pages(mapping.pages(pages))?, expected);
    Ok(())
}

/// The ends of the range are within folios.
fn part_migrated(ctx: &mut Context) -> Result {
    const PART: Range<usize> = 3..ALL - 5;
    let settings = LargeFolios::of_pages(FOLIO)?;
    let device = ctx.device(0)?;
    let mapping = filled(&settings)?;
    migrate(&device, &mapping, PART, 1)?;
    ensure_snapshot(&device, mapping.pages(0..PART.start), prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(PART), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(PART.end..ALL), prot::WRITE)?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

fn part_protected(ctx: &mut Context) -> Result {
    let settings = LargeFolios::of_pages(FOLIO)?;
    let device = ctx.device(0)?;
    let mapping = filled(&settings)?;
    mapping.mprotect(FOLIO / 2..FOLIO, ProtFlags::PROT_READ)?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    ensure_snapshot(&device, mapping.pages(0..FOLIO / 2), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(FOLIO / 2..FOLIO), ctx.local_read())?;
    ensure_snapshot(&device, mapping.pages(FOLIO..ALL), ctx.local_write())?;
    mapping.check(0..ALL, 1)?;
    Ok(())
}

/// A child has them mapped, too.
fn forked(ctx: &mut Context) -> Result {
    let settings = LargeFolios::of_pages(FOLIO)?;
    let device = ctx.device(0)?;
    let mapping = filled(&settings)?;
    let gate = crate::process::Gate::new()?;
    let child = Child::fork(|| {
        gate.pass()?;
        mapping.check(0..ALL, 1)?;
        mapping.fill(0..ALL, 2);
        mapping.check(0..ALL, 2)?;
        Ok(())
    })?;
    migrate(&device, &mapping, 0..ALL, 1)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    gate.open()?;
    child.join()?;
    mapping.check(0..ALL, 1)?;
    device_writes(&device, &mapping, 0..ALL, 3)?;
    mapping.check(0..ALL, 3)?;
    Ok(())
}

/// `MADV_COLLAPSE` makes no huge page of what is on the device, but may have private
/// memory come back first.
fn collapsed(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    // MADV_COLLAPSE needs no advice, khugepaged would do the same meanwhile.
    let _settings = HugePagesIfAdvised::new()?;
    let mapping = Mapping::anonymous(HUGE_PAGES)?;
    mapping.fill(0..HUGE_PAGES, 1);
    migrate(&device, &mapping, 100..200, 1)?;
    if mapping.collapse(0..HUGE_PAGES).is_ok() {
        ensure!(!ctx.memory_type.is_cpu_accessible(), "pages on the device were collapsed");
        ensure_snapshot(&device, mapping.all(), prot::WRITE | prot::PMD)?;
    } else {
        ensure_snapshot(&device, mapping.pages(0..100), prot::WRITE)?;
        ensure_snapshot(&device, mapping.pages(200..HUGE_PAGES), prot::WRITE)?;
        let found = device.snapshot(mapping.pages(100..200)).context("snapshot")?;
        let (stayed, back): (Vec<u8>, Vec<u8>) =
            found.into_iter().partition(|&found| found == ctx.local_write());
        // Page by page, private memory may have come back before that failed.
        ensure!(
            back.is_empty() || !ctx.memory_type.is_cpu_accessible(),
            "{} pages have left the device",
            back.len()
        );
        ensure!(back.iter().all(|&found| found == prot::WRITE), "back as {back:02x?}");
        migrate_back(&device, mapping.all(), stayed.len() as u64)?;
        mapping.collapse(0..HUGE_PAGES).context("all back")?;
    }
    ensure_eq!(pagemap::huge_pages(mapping.all())?, HUGE_PAGES);
    mapping.check(0..HUGE_PAGES, 1)?;
    migrate(&device, &mapping, 0..HUGE_PAGES, 1)?;
    mapping.check(0..HUGE_PAGES, 1)?;
    Ok(())
}

/// All that a page table maps is discarded, which frees the table, while the folios that
/// it maps are split to be migrated.
fn discarded_while_migrated(ctx: &mut Context) -> Result {
    discard_while_migrating(ctx, 0..HUGE_PAGES)
}

/// The table stays.
fn small_part_discarded_while_migrated(ctx: &mut Context) -> Result {
    discard_while_migrating(ctx, FOLIO / 2..HUGE_PAGES - 1)
}

fn discard_while_migrating(ctx: &mut Context, discarded: Range<usize>) -> Result {
    const DURATION: Duration = Duration::from_secs(8);
    let _settings = LargeFolios::of_pages(FOLIO)?;
    let device = ctx.device(0)?;
    let mapping = Mapping::anonymous(HUGE_PAGES)?;
    let mut rng = ctx.rng.fork();
    let is_over = AtomicBool::new(false);
    let end = Instant::now() + DURATION;
    let (migrated, zapped) = thread::scope(|scope| {
        let zap = scope.spawn(|| -> Result {
            while !is_over.load(Ordering::Relaxed) {
                mapping.madvise(discarded.clone(), MmapAdvise::MADV_DONTNEED)?;
                for _ in 0..rng.u32(0..20_000) {
                    std::hint::spin_loop();
                }
            }
            Ok(())
        });
        let migrate = || -> Result {
            while Instant::now() < end {
                // One word makes a folio.
                for page in (0..HUGE_PAGES).step_by(FOLIO) {
                    mapping.write(page, 0, 1);
                }
                match device.migrate_to_dev(mapping.all()) {
                    Ok(_) | Err(Errno::ENOENT | Errno::EBUSY) => {}
                    Err(errno) => Err(errno).context("to the device")?,
                }
            }
            Ok(())
        };
        let migrated = migrate();
        is_over.store(true, Ordering::Relaxed);
        (migrated, zap.join().expect("no panic"))
    });
    migrated?;
    zapped?;
    mapping.fill(0..HUGE_PAGES, 2);
    device.migrate_to_sys(mapping.all())?;
    ensure_device_reads(&device, &mapping, 0..HUGE_PAGES, 2)?;
    mapping.check(0..HUGE_PAGES, 2)?;
    Ok(())
}
