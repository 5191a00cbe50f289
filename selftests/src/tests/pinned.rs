// SPDX-License-Identifier: GPL-2.0
//! Pages that others hold. They stay where they are; for the long term, they are first
//! moved out of memory that is not for that. Generic memory is.

use std::ops::Range;

use nix::errno::Errno;

use super::support::{
    device_writes, ensure_device_reads, ensure_snapshot, ensure_snapshots, migrate, migrate_back,
};
use super::{Context, Exception, Test};
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::pins::{GupTest, PipePin};
use crate::process::{Child, Gate};
use crate::uapi::{MemoryType, prot};
use crate::{ensure, ensure_eq, ensure_errno, pagemap, pattern, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(in_system),
    test!(in_pipe_in_system),
    test!(on_device),
    test!(in_pipe_on_device),
    test!(written_by_device),
    test!(released).except(NO_EBUSY),
    test!(in_pipe_released).except(NO_EBUSY),
    test!(huge_in_system),
    test!(huge_on_device).except(NO_EBUSY),
    test!(file_closed).except(NO_EBUSY),
    test!(unmapped).except(NO_EBUSY),
    test!(forked),
];

/// Where pages that stay pinned cannot be tested.
pub const NO_EBUSY: &[Exception] =
    &[Exception::unpatched("defect 8 of test_hmm: RELEASE waits for pinned pages for ever")];

const COUNT: usize = 8;
/// The page that is pinned.
const PINNED: usize = 3;
/// Whether to pin for writing, and by the path without locks.
const MODES: [(bool, bool); 4] = [(true, false), (true, true), (false, false), (false, true)];

/// Pages of generation 1.
fn filled() -> Result<Mapping> {
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    Ok(mapping)
}

/// Checks that pages are `others`, except for the pinned one.
#[track_caller]
fn ensure_pinned(device: &Device, mapping: &Mapping, pinned: u8, others: u8) -> Result {
    let mut expected = vec![others; COUNT];
    expected[PINNED] = pinned;
    ensure_snapshots(device, mapping.all(), &expected)
}

/// Whether a pin leaves pages on the device.
fn stays(ctx: &Context, long_term: bool) -> bool {
    match ctx.memory_type {
        MemoryType::Private => false,
        MemoryType::Coherent => !long_term,
        MemoryType::Generic => true,
    }
}

/// Snapshot byte of a page that was pinned on the device.
fn in_place(ctx: &Context, long_term: bool) -> u8 {
    if stays(ctx, long_term) { ctx.local_write() } else { prot::WRITE }
}

fn in_system(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let gup_test = GupTest::open()?;
    for (is_write, is_fast) in MODES {
        let mapping = filled()?;
        let pin = gup_test.pin(mapping.pages(PINNED..PINNED + 1), is_write, is_fast)?;
        ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
        ensure_pinned(&device, &mapping, prot::WRITE, ctx.local_write())?;
        mapping.fill(PINNED..PINNED + 1, 2);
        pattern::check(&pin.contents()?, PINNED, 2)?;
        drop(pin);

        migrate(&device, &mapping, PINNED..PINNED + 1, 2)?;
        ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
        mapping.check(0..PINNED, 1)?;
        mapping.check(PINNED + 1..COUNT, 1)?;
    }
    Ok(())
}

fn in_pipe_in_system(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    let pin = PipePin::new(mapping.pages(PINNED..PINNED + 1))?;
    ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
    ensure_pinned(&device, &mapping, prot::WRITE, ctx.local_write())?;
    pattern::check(&pin.into_contents()?, PINNED, 1)?;
    migrate(&device, &mapping, PINNED..PINNED + 1, 1)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

fn on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let gup_test = GupTest::open()?;
    for (is_write, is_fast) in MODES {
        let mapping = filled()?;
        migrate(&device, &mapping, 0..COUNT, 1)?;
        let pin = gup_test.pin(mapping.pages(PINNED..PINNED + 1), is_write, is_fast)?;
        ensure_pinned(&device, &mapping, in_place(ctx, true), ctx.local_write())?;
        pattern::check(&pin.contents()?, PINNED, 1)?;
        // The others can go.
        migrate_back(&device, mapping.all(), COUNT as u64 - 1)?;
        ensure_pinned(&device, &mapping, in_place(ctx, true), prot::WRITE)?;
        // It is still the same page.
        mapping.fill(PINNED..PINNED + 1, 2);
        pattern::check(&pin.contents()?, PINNED, 2)?;
        migrate_back(&device, mapping.all(), 0)?;
        drop(pin);

        migrate_back(&device, mapping.all(), u64::from(stays(ctx, true)))?;
        ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
        mapping.check(0..PINNED, 1)?;
        mapping.check(PINNED..PINNED + 1, 2)?;
        mapping.check(PINNED + 1..COUNT, 1)?;
    }
    Ok(())
}

/// What is held for a moment only may be on any device that the CPU can access.
fn in_pipe_on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let pin = PipePin::new(mapping.pages(PINNED..PINNED + 1))?;
    ensure_pinned(&device, &mapping, in_place(ctx, false), ctx.local_write())?;
    migrate_back(&device, mapping.all(), COUNT as u64 - 1)?;
    ensure_pinned(&device, &mapping, in_place(ctx, false), prot::WRITE)?;
    mapping.fill(PINNED..PINNED + 1, 2);
    pattern::check(&pin.into_contents()?, PINNED, 2)?;
    migrate_back(&device, mapping.all(), u64::from(stays(ctx, false)))?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(PINNED..PINNED + 1, 2)?;
    mapping.check(0..PINNED, 1)?;
    Ok(())
}

/// The device writes to the page that is pinned, wherever that is.
fn written_by_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let gup_test = GupTest::open()?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let pin = gup_test.pin(mapping.pages(PINNED..PINNED + 1), true, false)?;
    device_writes(&device, &mapping, PINNED..PINNED + 1, 2)?;
    pattern::check(&pin.contents()?, PINNED, 2)?;
    mapping.fill(PINNED..PINNED + 1, 3);
    ensure_device_reads(&device, &mapping, PINNED..PINNED + 1, 3)?;
    pattern::check(&pin.contents()?, PINNED, 3)?;
    Ok(())
}

fn released(ctx: &mut Context) -> Result {
    let gup_test = GupTest::open()?;
    while_held(ctx, true, |mapping| {
        Ok(gup_test.pin(mapping.pages(PINNED..PINNED + 1), true, false)?)
    })
}

fn in_pipe_released(ctx: &mut Context) -> Result {
    while_held(ctx, false, |mapping| PipePin::new(mapping.pages(PINNED..PINNED + 1)))
}

/// A device with a page that is held cannot be emptied, but for that page it is.
fn while_held<T>(
    ctx: &Context,
    long_term: bool,
    hold: impl FnOnce(&Mapping) -> Result<T>,
) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let held = hold(&mapping)?;
    if stays(ctx, long_term) {
        ensure_errno!(device.release(), Errno::EBUSY);
    } else {
        device.release()?;
    }
    ensure_pinned(&device, &mapping, in_place(ctx, long_term), prot::WRITE)?;
    mapping.check(0..COUNT, 1)?;
    // It can still be used.
    migrate(&device, &mapping, 0..PINNED, 1)?;
    drop(held);

    device.release()?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(0..COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)
}

/// A huge page is held as a whole by a pin of part of it.
fn huge_in_system(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let gup_test = GupTest::open()?;
    let mapping = Mapping::huge(HUGE_PAGES)?;
    mapping.fill(0..HUGE_PAGES, 1);
    let pin = gup_test.pin(mapping.pages(PINNED..PINNED + 1), true, false)?;
    ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
    ensure_errno!(device.migrate_to_dev(mapping.pages(100..200)), Errno::ENOENT);
    let snapshot = device.snapshot(mapping.all())?;
    ensure!(snapshot.iter().all(|byte| byte & !prot::PMD == prot::WRITE), "nothing has moved");
    mapping.fill(0..HUGE_PAGES, 2);
    pattern::check(&pin.contents()?, PINNED, 2)?;
    drop(pin);
    migrate(&device, &mapping, 0..HUGE_PAGES, 2)?;
    mapping.check(0..HUGE_PAGES, 2)?;
    Ok(())
}

/// A pin of one page holds all of a huge page, on the device or, where it must not stay there,
/// in system memory, to which it moves as a whole.
fn huge_on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let gup_test = GupTest::open()?;
    for pinned in [PINNED..PINNED + 1, PINNED..PINNED + 4, 0..HUGE_PAGES] {
        for (is_write, is_fast) in MODES {
            let what = format!("{} pages pinned, {is_write} {is_fast}", pinned.len());
            let pinned = pinned.clone();
            pin_huge(ctx, &device, &gup_test, pinned, is_write, is_fast).context(&what)?;
        }
    }
    Ok(())
}

fn pin_huge(
    ctx: &Context,
    device: &Device,
    gup_test: &GupTest,
    pinned: Range<usize>,
    is_write: bool,
    is_fast: bool,
) -> Result {
    let mapping = Mapping::huge(HUGE_PAGES)?;
    mapping.fill(0..HUGE_PAGES, 1);
    ensure_eq!(pagemap::huge_pages(mapping.all())?, HUGE_PAGES);
    migrate(device, &mapping, 0..HUGE_PAGES, 1)?;
    let pin = gup_test.pin(mapping.pages(pinned.clone()), is_write, is_fast)?;
    check_pages(&pin.contents()?, pinned.start, 1)?;
    let stays = stays(ctx, true);
    let expected = if stays { ctx.local_huge_write() } else { prot::WRITE | prot::PMD };
    ensure_snapshot(device, mapping.all(), expected)?;
    migrate_back(device, mapping.all(), 0)?;
    if stays {
        ensure_errno!(device.release(), Errno::EBUSY);
        ensure_snapshot(device, mapping.all(), expected)?;
    }
    mapping.fill(0..HUGE_PAGES, 2);
    check_pages(&pin.contents()?, pinned.start, 2)?;
    drop(pin);
    migrate_back(device, mapping.all(), if stays { HUGE_PAGES as u64 } else { 0 })?;
    mapping.check(0..HUGE_PAGES, 2)?;
    device.release()?;
    Ok(())
}

/// Checks pages, the first of which is `first`.
fn check_pages(data: &[u8], first: usize, generation: u32) -> Result {
    for (page, data) in (first..).zip(data.chunks_exact(PAGE_SIZE)) {
        pattern::check(data, page, generation)?;
    }
    Ok(())
}

/// A page that stays behind when the file is closed is there for who opens the device
/// again.
fn file_closed(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let gup_test = GupTest::open()?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let pin = gup_test.pin(mapping.pages(PINNED..PINNED + 1), true, false)?;
    drop(device);
    let device = ctx.device(0)?;
    ensure_pinned(&device, &mapping, in_place(ctx, true), prot::WRITE)?;
    mapping.check(0..COUNT, 1)?;
    mapping.fill(PINNED..PINNED + 1, 2);
    pattern::check(&pin.contents()?, PINNED, 2)?;
    drop(pin);

    device.release()?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(PINNED..PINNED + 1, 2)?;
    Ok(())
}

/// A page lives as long as its pin.
fn unmapped(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let gup_test = GupTest::open()?;
    let mut mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let pin = gup_test.pin(mapping.pages(PINNED..PINNED + 1), true, false)?;
    mapping.munmap(0..COUNT)?;
    pattern::check(&pin.contents()?, PINNED, 1)?;
    // Its memory is nobody else's meanwhile.
    let another = filled()?;
    migrate(&device, &another, 0..COUNT, 1)?;
    another.fill(0..COUNT, 2);
    pattern::check(&pin.contents()?, PINNED, 1)?;
    if stays(ctx, true) {
        ensure_errno!(device.release(), Errno::EBUSY);
    } else {
        device.release()?;
    }
    pattern::check(&pin.contents()?, PINNED, 1)?;
    drop(pin);
    device.release()?;
    another.check(0..COUNT, 2)?;
    Ok(())
}

/// The parent keeps a pinned page, the child gets a copy.
fn forked(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let gup_test = GupTest::open()?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let pin = gup_test.pin(mapping.pages(PINNED..PINNED + 1), true, false)?;
    let seen = Gate::new()?;
    let child = Child::fork(|| {
        seen.pass()?;
        ensure_snapshot(&ctx.device(0)?, mapping.pages(PINNED..PINNED + 1), prot::WRITE)?;
        mapping.check(0..COUNT, 1)?;
        mapping.fill(0..COUNT, 2);
        Ok(())
    })?;
    ensure_pinned(&device, &mapping, in_place(ctx, true), ctx.local_read())?;
    mapping.fill(PINNED..PINNED + 1, 3);
    seen.open()?;
    pattern::check(&pin.contents()?, PINNED, 3)?;
    child.join()?;
    mapping.check(PINNED..PINNED + 1, 3)?;
    pattern::check(&pin.contents()?, PINNED, 3)?;
    mapping.check(0..PINNED, 1)?;
    mapping.check(PINNED + 1..COUNT, 1)?;
    Ok(())
}
