// SPDX-License-Identifier: GPL-2.0
//! The driver is unloaded and loaded again, while processes still have memory that was its
//! devices', and with things that fail.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use super::books::Books;
use crate::failure::{Context as _, Result};
use crate::fault_injection::FaultInjection;
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::process::{Child, Gate};
use crate::tests::Context;
use crate::uring::Ring;
use crate::{ensure, ensure_eq};

/// What remains in memory of the device when the last file is closed, if it can be pinned.
const PINNED: usize = 16;
/// How long a process goes on after that, in milliseconds.
const LONGEST_LIFE: u64 = 100;

/// Processes have closed the devices, with memory that was there and some that is still, when
/// the driver is unloaded. It waits for them, and can be loaded again.
pub fn reload(ctx: &mut Context) -> Result {
    let module = ctx.module()?;
    let books = Books::open(ctx)?;
    let end = Instant::now() + ctx.torture.duration();
    let mut count = 0;
    while Instant::now() < end {
        let child = leave_behind(ctx)?;
        module.unload_when_unused()?;
        ensure!(!module.is_loaded());
        child.join()?;
        module.load()?;
        count += 1;
    }
    println!("{count} times");
    books.balance(ctx, 0)
}

/// A process with memory on the devices, which it has closed.
fn leave_behind(ctx: &mut Context) -> Result<Child> {
    let life = Duration::from_millis(ctx.rng.u64(0..LONGEST_LIFE));
    let is_huge = ctx.rng.bool();
    let ctx = &*ctx;
    let closed = Gate::new()?;
    let child = Child::fork(|| {
        let devices = [ctx.device(0)?, ctx.device(1)?];
        let mapping = Mapping::anonymous(2 * HUGE_PAGES)?;
        let advice = if is_huge { MmapAdvise::MADV_HUGEPAGE } else { MmapAdvise::MADV_NOHUGEPAGE };
        mapping.madvise(0..mapping.count(), advice)?;
        mapping.fill(0..mapping.count(), 1);
        for (number, device) in devices.iter().enumerate() {
            let half = mapping.pages(number * HUGE_PAGES..(number + 1) * HUGE_PAGES);
            device.migrate_to_dev(half).context("migrating")?;
        }
        let ring = Ring::new()?;
        let _buffer = ring.register(mapping.pages(0..PINNED)).context("registering")?;
        let child = Child::fork(|| {
            mapping.check(0..mapping.count(), 1)?;
            Ok(())
        })?;
        drop(devices);
        child.join()?;
        closed.open()?;
        thread::sleep(life);
        mapping.check(0..mapping.count(), 1)?;
        Ok(())
    })?;
    closed.pass()?;
    Ok(child)
}

/// Each thing that can fail when the driver is loaded does so, in random order, as long as there
/// is time.
pub fn failed_loads(ctx: &mut Context) -> Result {
    let injection = FaultInjection::new()?;
    let module = ctx.module()?;
    let books = Books::open(ctx)?;
    module.unload_when_unused()?;
    let file = module.file()?;
    let (result, count) = injection.count(|| file.load())?;
    result.context("nothing fails")?;
    module.unload_when_unused()?;

    let mut numbers: Vec<_> = (1..=count).collect();
    ctx.rng.shuffle(&mut numbers);
    let end = Instant::now() + ctx.torture.duration();
    let (mut tried, mut refused) = (0, 0);
    for n in numbers {
        if Instant::now() > end {
            break;
        }
        let (result, _) = injection.nth(n, || file.load())?;
        match result {
            Ok(()) => {
                module.unload_when_unused().context(format!("loaded in spite of failure {n}"))?
            }
            Err(errno) => {
                ensure!([Errno::ENOMEM, Errno::EFAULT].contains(&errno), "failure {n}: {errno}");
                refused += 1;
            }
        }
        ensure_eq!(module.is_loaded(), false, "failure {n}");
        tried += 1;
    }
    println!("{tried} of {count} failures, {refused} times not loaded");
    module.load()?;
    books.balance(ctx, 0)
}
