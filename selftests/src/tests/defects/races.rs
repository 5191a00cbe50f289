// SPDX-License-Identifier: GPL-2.0
//! Two threads that get in each other's way. Whatever they do, memory keeps its
//! contents, and every operation ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use super::scarcity::OnlySmallPages;
use super::{at_once, local_pages};
use crate::failure::{Context as _, Failure, Result};
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::pins::PipePin;
use crate::tests::Context;
use crate::{ensure, ensure_eq, pattern};

/// How long to try.
const DURATION: Duration = Duration::from_secs(4);

/// Repeats both, each in its own thread, until the time is over or one of them fails.
fn race(first: impl FnMut() -> Result, second: impl FnMut() -> Result + Send) -> Result {
    let end = Instant::now() + DURATION;
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let second = scope.spawn(|| repeat(second, end, &failed));
        let first = repeat(first, end, &failed);
        first.and(second.join().expect("no panic"))
    })
}

fn repeat(mut work: impl FnMut() -> Result, end: Instant, failed: &AtomicBool) -> Result {
    while Instant::now() < end && !failed.load(Ordering::Relaxed) {
        work().inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
    }
    Ok(())
}

/// Delays that end, by chance, somewhere in the middle of an operation.
struct Aim {
    rng: fastrand::Rng,
    /// What the operation took the last time.
    duration: Duration,
}

impl Aim {
    fn new(ctx: &mut Context) -> Self {
        Self { rng: ctx.rng.fork(), duration: Duration::from_millis(1) }
    }

    /// Runs `operation` and, after a delay, `other`, and returns what both do.
    fn at_once<A, B: Send>(
        &mut self,
        operation: impl FnOnce() -> A,
        other: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        let delay = self.duration.mul_f64(self.rng.f64());
        let timed = || {
            let start = Instant::now();
            (operation(), start.elapsed())
        };
        let ((result, duration), other) = at_once(timed, delay, other);
        self.duration = duration;
        (result, other)
    }
}

/// Passes over an error that the other thread may be the reason of.
#[track_caller]
fn tolerate<T>(result: Result<T, Errno>, expected: Errno) -> Result {
    match result {
        Err(errno) if errno != expected => Err(Failure::failed(errno)),
        _ => Ok(()),
    }
}

/// An allocation fails in the middle of a migration to system memory, after others
/// that did not: those are undone. In C they were finished without their pages.
pub fn d04_allocation_fails_midway(ctx: &mut Context) -> Result {
    const PAGES: usize = 512;
    let device = ctx.device(0)?;
    let mapping = Mapping::small(PAGES)?;
    mapping.fill(0..PAGES, 1);
    let mut aim = Aim::new(ctx);
    let end = Instant::now() + DURATION;
    while Instant::now() < end {
        // It may be this allocation that fails, if none was left for the last failure.
        tolerate(device.migrate_to_dev(mapping.all()), Errno::ENOENT)?;
        let (migrated, flagged) =
            aim.at_once(|| device.migrate_to_sys(mapping.all()), || device.fail_next_allocation());
        tolerate(migrated, Errno::ENOMEM)?;
        flagged?;
    }
    mapping.check(0..PAGES, 1)?;
    Ok(())
}

/// A file is closed whose pages are, or become, in use. In C a fault went on with what
/// had been freed.
pub fn d05_closed_file_used(ctx: &mut Context) -> Result {
    pages_left_behind(ctx).context("pages left behind")?;
    close_while_cpu_touches(ctx).context("during a fault")
}

/// Pages that cannot be evicted when the file is closed work without it.
fn pages_left_behind(ctx: &mut Context) -> Result {
    // More than compaction in the background makes room for.
    const PAGES: usize = 8 * HUGE_PAGES;
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(PAGES)?;
    mapping.fill(0..PAGES, 1);
    device.migrate_to_dev(mapping.all())?;
    if ctx.memory_type.is_cpu_accessible() {
        let in_pipe = PipePin::new(mapping.pages(0..1))?;
        drop(device);
        drop(in_pipe);
    } else {
        // There is no page to evict a huge one to, but small ones, which v7.3 does not try.
        let only_small = OnlySmallPages::new()?;
        drop(device);
        drop(only_small);
    }
    // What the closed file has freed is used by these.
    let others: Vec<_> = (0..64).map(|_| ctx.device(1)).collect::<Result<_>>()?;
    let device = ctx.device(0)?;
    if ctx.memory_type.is_cpu_accessible() {
        ensure!(local_pages(ctx, &device, mapping.all())? > 0, "all pages were evicted");
    }
    mapping.check(0..PAGES, 1)?;
    device.migrate_to_sys(mapping.all())?;
    ensure_eq!(local_pages(ctx, &device, mapping.all())?, 0);
    mapping.check(0..PAGES, 1)?;
    drop(others);
    Ok(())
}

fn close_while_cpu_touches(ctx: &mut Context) -> Result {
    let mut aim = Aim::new(ctx);
    let end = Instant::now() + DURATION;
    let mut generation = 0;
    while Instant::now() < end {
        generation += 1;
        let mapping = Mapping::huge(HUGE_PAGES)?;
        mapping.fill(0..HUGE_PAGES, generation);
        let device = ctx.device(0)?;
        tolerate(device.migrate_to_dev(mapping.all()), Errno::ENOENT)?;
        aim.at_once(|| drop(device), || mapping.touch(0..HUGE_PAGES));
        mapping.check(0..HUGE_PAGES, generation)?;
    }
    Ok(())
}

/// A file is closed while another one's RELEASE removes the memory. In C the former
/// went through a list that the latter freed.
pub fn d06_close_while_released(ctx: &mut Context) -> Result {
    const PAGES: usize = 256;
    let mapping = Mapping::small(PAGES)?;
    mapping.fill(0..PAGES, 1);
    let other = ctx.device(0)?;
    race(
        || {
            let device = ctx.device(0)?;
            tolerate(device.migrate_to_dev(mapping.all()), Errno::ENOENT)
        },
        || tolerate(other.release(), Errno::EBUSY),
    )?;
    mapping.check(0..PAGES, 1)?;
    Ok(())
}

/// RELEASE while pages come to the device. In C each waited for the other, or the
/// migration went on with memory that had been removed.
pub fn d07_release_while_migrating(ctx: &mut Context) -> Result {
    let (device, other) = (ctx.device(0)?, ctx.device(0)?);
    let mappings = [Mapping::small(HUGE_PAGES)?, Mapping::huge(HUGE_PAGES)?];
    for mapping in &mappings {
        mapping.fill(0..HUGE_PAGES, 1);
    }
    race(
        || {
            for mapping in &mappings {
                match device.migrate_to_dev(mapping.all()) {
                    // The device gives up after a second of RELEASE invalidating what it
                    // would map.
                    Err(Errno::EBUSY) => {}
                    result => tolerate(result, Errno::ENOENT)?,
                }
            }
            Ok(())
        },
        || tolerate(other.release(), Errno::EBUSY),
    )?;
    for mapping in &mappings {
        mapping.check(0..HUGE_PAGES, 1)?;
    }
    Ok(())
}

/// Memory is discarded while it is migrated, or taken for the device alone: the device
/// must not keep it mapped. It and the CPU see the same in the end.
pub fn d12_discard_while_migrating(ctx: &mut Context) -> Result {
    const PAGES: usize = 256;
    let device = ctx.device(0)?;
    let mapping = Mapping::small(PAGES)?;
    let mut aim = Aim::new(ctx);
    let end = Instant::now() + 2 * DURATION;
    let mut generation = 0;
    while Instant::now() < end {
        generation += 1;
        mapping.fill(0..PAGES, generation);
        let take = || {
            if generation % 4 == 0 {
                // What was discarded is taken as zeroes, or away again.
                tolerate(device.exclusive(mapping.all()), Errno::ENOENT)
            } else {
                tolerate(device.migrate_to_dev(mapping.all()), Errno::ENOENT)
            }
        };
        let discard = || mapping.madvise(0..PAGES, MmapAdvise::MADV_DONTNEED);
        let (taken, discarded) = aim.at_once(take, discard);
        taken.context("taking")?;
        discarded?;

        let read = device.read(mapping.all())?.data;
        for page in 0..PAGES {
            let as_cpu = mapping.contents(page..page + 1);
            let as_device = &read[page * as_cpu.len()..][..as_cpu.len()];
            ensure!(
                as_cpu == as_device,
                "generation {generation}: the device has {:?} where the CPU has {:?}",
                pattern::check(as_device, page, generation),
                pattern::check(&as_cpu, page, generation)
            );
        }
    }
    Ok(())
}

/// The device writes to memory that comes and goes meanwhile: all of it arrives. In C,
/// what was written after the page had been copied was lost.
pub fn d13_write_while_migrating(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    // The page that is written to is the first to be copied, long before the last.
    let mapping = Mapping::small(HUGE_PAGES)?;
    let written_to = mapping.pages(0..1);
    let end = Instant::now() + DURATION;
    let mut generation = 0;
    while Instant::now() < end {
        // All pages are writable for the device before.
        generation += 1;
        device.migrate_to_sys(mapping.all())?;
        device.write(mapping.all(), &pattern::pages(0, HUGE_PAGES, generation))?;

        let is_migrating = AtomicBool::new(true);
        let migrate = || {
            let migrated = device.migrate_to_dev(mapping.all());
            is_migrating.store(false, Ordering::Relaxed);
            tolerate(migrated, Errno::ENOENT)
        };
        let rest = generation;
        let write = || {
            while is_migrating.load(Ordering::Relaxed) {
                generation += 1;
                device.write(written_to, &pattern::pages(0, 1, generation))?;
                pattern::check(&device.read(written_to)?.data, 0, generation)?;
            }
            Ok(())
        };
        let (migrated, written): (Result, Result) = at_once(migrate, Duration::ZERO, write);
        migrated?;
        written?;
        mapping.check(0..1, generation)?;
        mapping.check(1..HUGE_PAGES, rest)?;
    }
    Ok(())
}
