// SPDX-License-Identifier: GPL-2.0
//! Several processes, threads and devices at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::support::DEFECT_5;
use super::{Context, Exception, Test};
use crate::device::{Device, Driver};
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::process::Child;
use crate::{pattern, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(forked_pages_of_two_processes).except(&[Exception::unpatched(DEFECT_5)]),
    test!(huge_forked_pages_of_two_processes).except(&[Exception::unpatched(DEFECT_5)]),
    test!(threads_against_each_other),
    test!(cpu_against_device),
    test!(own_memory_of_many_processes).except(&[Exception::unpatched(DEFECT_5)]),
];

/// How long each of them goes on.
const DURATION: Duration = Duration::from_secs(2);

/// Runs `step` until the time is over.
fn repeat(mut step: impl FnMut() -> Result) -> Result {
    let end = Instant::now() + DURATION;
    while Instant::now() < end {
        step()?;
    }
    Ok(())
}

/// What may come of migrating pages that others migrate or touch at the same time:
/// pages that are gone again, or an access that takes too long.
fn tolerate<T>(result: Result<T, Errno>) -> Result {
    match result {
        Ok(_) | Err(Errno::ENOENT | Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno)?,
    }
}

/// Migrates some pages there or back, at random.
fn migrate_any(device: &Device, mapping: &Mapping, rng: &mut fastrand::Rng) -> Result {
    let start = rng.usize(0..mapping.count());
    let end = rng.usize(start + 1..=mapping.count());
    let pages = mapping.pages(start..end);
    if rng.bool() {
        tolerate(device.migrate_to_dev(pages)).context("to the device")
    } else {
        tolerate(device.migrate_to_sys(pages)).context("to the system")
    }
}

fn forked_pages_of_two_processes(ctx: &mut Context) -> Result {
    forked_pages(ctx, &Mapping::small(64)?)
}

fn huge_forked_pages_of_two_processes(ctx: &mut Context) -> Result {
    forked_pages(ctx, &Mapping::huge(HUGE_PAGES)?)
}

/// Parent and child migrate the same pages, each to both devices. Some of the pages
/// each of them changes.
fn forked_pages(ctx: &mut Context, mapping: &Mapping) -> Result {
    // A fourth is written by each, half by none.
    let quarter = mapping.count() / 4;
    let (child_rng, parent_rng) = (ctx.rng.fork(), ctx.rng.fork());
    let ctx = &*ctx;
    let all = 0..mapping.count();
    mapping.fill(all, 1);
    let work = |own: std::ops::Range<usize>, generation: u32, mut rng: fastrand::Rng| -> Result {
        let devices = [ctx.device(0)?, ctx.device(1)?];
        let check = |written: u32| -> Result {
            for page in (0..mapping.count()).step_by(quarter / 4) {
                let generation = if own.contains(&page) { written } else { 1 };
                mapping.check(page..page + 1, generation)?;
            }
            Ok(())
        };
        let mut written = 1;
        repeat(|| {
            migrate_any(rng.choice(&devices).expect("two"), mapping, &mut rng)?;
            match rng.u32(0..8) {
                0 => {
                    written = generation + rng.u32(0..1000);
                    mapping.fill(own.clone(), written);
                }
                1 => check(written)?,
                _ => {}
            }
            Ok(())
        })?;
        for page in 0..mapping.count() {
            let generation = if own.contains(&page) { written } else { 1 };
            mapping.check(page..page + 1, generation)?;
        }
        Ok(())
    };
    let child = Child::fork(|| work(0..quarter, 10_000, child_rng))?;
    let result = work(quarter..2 * quarter, 20_000, parent_rng);
    child.join()?;
    result?;
    // The child's end has left the parent's memory as it is.
    mapping.check(2 * quarter..mapping.count(), 1)?;
    Ok(())
}

/// Two threads migrate the same pages to different devices, two others access them.
fn threads_against_each_other(ctx: &mut Context) -> Result {
    const COUNT: usize = 64;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    let devices = [ctx.device(0)?, ctx.device(1)?];
    let (mapping, reader) = (&mapping, &ctx.device(1)?);
    let mut rngs = [ctx.rng.fork(), ctx.rng.fork()];
    std::thread::scope(|scope| -> Result {
        let mut threads = Vec::new();
        for (device, rng) in devices.iter().zip(&mut rngs) {
            threads.push(scope.spawn(|| repeat(|| migrate_any(device, mapping, rng))));
        }
        threads.push(scope.spawn(|| repeat(|| Ok(mapping.check(0..COUNT, 1)?))));
        threads.push(scope.spawn(|| {
            repeat(|| match reader.read(mapping.all()) {
                Ok(read) => Ok(pattern::check(&read.data, 0, 1)?),
                // Somebody else was always faster.
                Err(Errno::EBUSY) => Ok(()),
                Err(errno) => Err(errno)?,
            })
        }));
        for thread in threads {
            thread.join().expect("no panic")?;
        }
        Ok(())
    })?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// One thread writes page after page while another migrates them: no write gets lost.
fn cpu_against_device(ctx: &mut Context) -> Result {
    const COUNT: usize = 32;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    let device = ctx.device(0)?;
    let is_over = AtomicBool::new(false);
    let mut rng = ctx.rng.fork();
    std::thread::scope(|scope| -> Result {
        let migrating = scope.spawn(|| -> Result {
            while !is_over.load(Ordering::Relaxed) {
                migrate_any(&device, &mapping, &mut rng)?;
            }
            Ok(())
        });
        let mut generation = 1;
        let written = repeat(|| {
            for page in 0..COUNT {
                mapping.check(page..page + 1, generation)?;
                mapping.fill(page..page + 1, generation + 1);
            }
            generation += 1;
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        migrating.join().expect("no panic")?;
        written?;
        mapping.check(0..COUNT, generation)?;
        Ok(())
    })
}

/// Processes of their own share the devices, but no memory.
fn own_memory_of_many_processes(ctx: &mut Context) -> Result {
    const PROCESSES: u32 = 4;
    const COUNT: usize = 2 * HUGE_PAGES;
    let mut children = Vec::new();
    for process in 1..=PROCESSES {
        let mut rng = ctx.rng.fork();
        children.push(Child::fork(|| {
            let mapping =
                if process % 2 == 0 { Mapping::huge(COUNT) } else { Mapping::small(COUNT) }?;
            mapping.fill(0..COUNT, process);
            repeat(|| {
                let device = ctx.device(rng.usize(0..2))?;
                migrate_any(&device, &mapping, &mut rng)?;
                let page = rng.usize(0..COUNT);
                mapping.check(page..page + 1, process)?;
                // With the driver in C this would be in the others' way.
                if ctx.driver == Driver::Rust && rng.u32(0..16) == 0 {
                    tolerate(device.release())?;
                }
                Ok(())
            })?;
            mapping.check(0..COUNT, process)?;
            Ok(())
        })?);
    }
    for child in children {
        child.join()?;
    }
    Ok(())
}
