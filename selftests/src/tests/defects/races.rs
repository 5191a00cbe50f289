// SPDX-License-Identifier: GPL-2.0
//! Two threads that get in each other's way. Whatever they do, memory keeps its
//! contents, and every operation ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use super::at_once;
use crate::failure::{Context as _, Failure, Result};
use crate::memory::{HUGE_PAGES, Mapping};
use crate::tests::Context;
use crate::{ensure, pattern};

/// How long to try.
const DURATION: Duration = Duration::from_secs(4);
/// About what it takes to migrate the pages of these tests.
const MAX_DELAY_MICROS: u64 = 5000;

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

fn random_delay(ctx: &mut Context) -> Duration {
    Duration::from_micros(ctx.rng.u64(0..MAX_DELAY_MICROS))
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
    let mut rng = ctx.rng.fork();
    race(
        || {
            tolerate(device.migrate_to_dev(mapping.all()), Errno::ENOENT)?;
            tolerate(device.migrate_to_sys(mapping.all()), Errno::ENOMEM)?;
            pattern::check(&device.read(mapping.all())?.data, 0, 1)?;
            Ok(())
        },
        || {
            thread::sleep(Duration::from_micros(rng.u64(0..MAX_DELAY_MICROS)));
            device.fail_next_allocation()?;
            Ok(())
        },
    )?;
    device.set_flags(0).or_else(|errno| match errno {
        // The driver in C refuses no flags at all, but forgets them with a migration.
        Errno::EINVAL => tolerate(device.migrate_to_dev(mapping.all()), Errno::ENOENT),
        errno => Err(errno.into()),
    })?;
    mapping.check(0..PAGES, 1)?;
    Ok(())
}

/// The CPU touches a huge page while the file that it was migrated by is closed. In C
/// the fault went on with what the file had freed.
pub fn d05_close_while_cpu_touches(ctx: &mut Context) -> Result {
    let end = Instant::now() + DURATION;
    let mut generation = 0;
    while Instant::now() < end {
        generation += 1;
        let mapping = Mapping::huge(HUGE_PAGES)?;
        mapping.fill(0..HUGE_PAGES, generation);
        let device = ctx.device(0)?;
        tolerate(device.migrate_to_dev(mapping.all()), Errno::ENOENT)?;
        let delay = random_delay(ctx);
        at_once(|| mapping.touch(0..HUGE_PAGES), delay, || drop(device));
        mapping.check(0..HUGE_PAGES, generation)?;
    }
    Ok(())
}

/// A file is closed while another one's RELEASE removes the memory. In C the former
/// went through a list that the latter freed.
pub fn d06_close_while_released(ctx: &mut Context) -> Result {
    const PAGES: usize = 16;
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
                tolerate(device.migrate_to_dev(mapping.all()), Errno::ENOENT)?;
                pattern::check(&device.read(mapping.all())?.data, 0, 1)?;
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
        let (taken, discarded) = at_once(take, random_delay(ctx), discard);
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
    const PAGES: usize = 256;
    let device = ctx.device(0)?;
    let mapping = Mapping::small(PAGES)?;
    let end = Instant::now() + DURATION;
    let mut generation = 0;
    while Instant::now() < end {
        // All pages are writable for the device before.
        generation += 2;
        device.migrate_to_sys(mapping.all())?;
        device.write(mapping.all(), &pattern::pages(0, PAGES, generation - 1))?;
        let data = pattern::pages(0, PAGES, generation);
        let (migrated, written) = at_once(
            || device.migrate_to_dev(mapping.all()),
            random_delay(ctx),
            || device.write(mapping.all(), &data),
        );
        tolerate(migrated, Errno::ENOENT)?;
        written?;
        pattern::check(&device.read(mapping.all())?.data, 0, generation)?;
        if generation % 16 == 0 {
            mapping.check(0..PAGES, generation)?;
        }
    }
    mapping.check(0..PAGES, generation)?;
    Ok(())
}
