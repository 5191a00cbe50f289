// SPDX-License-Identifier: GPL-2.0
//! Processes and open files that end with memory on the device.

use std::os::fd::{AsFd, AsRawFd};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::pause;

use super::support::{ensure_snapshot, migrate, migrate_back};
use super::{Context, Exception, Test};
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, Pages};
use crate::process::{Child, Gate};
use crate::uapi::{MemoryType, prot};
use crate::{ensure, ensure_eq, fail, pattern, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(killed),
    test!(killed_with_huge_pages),
    test!(killed_while_migrating),
    test!(exited_with_everything),
    test!(closed),
    test!(closed_by_last),
    test!(other_file_closed).except(&[Exception::unpatched(DEFECT_22)]),
    test!(opened_and_closed),
    test!(passed_to_parent),
    test!(all_memory_back).only(&[MemoryType::Coherent, MemoryType::Generic]).timeout(120),
];

/// Why a test is skipped with an unpatched `test_hmm`.
const DEFECT_22: &str = "defect 22 of test_hmm: closing any file evicts the pages of all";

const COUNT: usize = 40;

/// Forks a child that prepares something and then waits to be killed.
fn kill_after(prepare: impl FnOnce() -> Result) -> Result {
    let ready = Gate::new()?;
    let child = Child::fork(|| {
        prepare()?;
        ready.open()?;
        loop {
            pause();
        }
    })?;
    if let Err(failure) = ready.pass() {
        // It knows better.
        child.join()?;
        return Err(failure);
    }
    child.signal(Signal::SIGKILL)?;
    ensure_eq!(child.join_killed()?, Signal::SIGKILL);
    Ok(())
}

/// Checks that nothing is left on the devices, and that they work.
fn ensure_empty_and_usable(ctx: &Context) -> Result {
    for number in 0..2 {
        let device = ctx.device(number)?;
        // Fails if there are pages that cannot be evicted.
        device.release()?;
        let mapping = Mapping::small(COUNT)?;
        mapping.fill(0..COUNT, 9);
        migrate(&device, &mapping, 0..COUNT, 9)?;
        migrate_back(&device, mapping.all(), COUNT as u64)?;
        mapping.check(0..COUNT, 9)?;
    }
    Ok(())
}

fn killed(ctx: &mut Context) -> Result {
    for _ in 0..5 {
        kill_after(|| {
            for number in 0..2 {
                let device = ctx.device(number)?;
                let mapping = Mapping::small(COUNT)?;
                mapping.fill(0..COUNT / 2, 1);
                device.migrate_to_dev(mapping.all())?;
                device.exclusive(mapping.pages(0..4))?;
                // Neither is closed nor unmapped before the end.
                std::mem::forget((device, mapping));
            }
            Ok(())
        })?;
        ensure_empty_and_usable(ctx)?;
    }
    Ok(())
}

fn killed_with_huge_pages(ctx: &mut Context) -> Result {
    for _ in 0..3 {
        kill_after(|| {
            let device = ctx.device(0)?;
            let mapping = Mapping::huge(2 * HUGE_PAGES)?;
            mapping.fill(0..HUGE_PAGES, 1);
            device.migrate_to_dev(mapping.all())?;
            // One of them in parts, some of which are back.
            device.migrate_to_sys(mapping.pages(HUGE_PAGES + 5..HUGE_PAGES + 9))?;
            std::mem::forget((device, mapping));
            Ok(())
        })?;
        ensure_empty_and_usable(ctx)?;
    }
    Ok(())
}

/// Killed at any moment of migrations there and back.
fn killed_while_migrating(ctx: &mut Context) -> Result {
    for _ in 0..10 {
        let started = Gate::new()?;
        let child = Child::fork(|| {
            let device = ctx.device(0)?;
            let mapping = Mapping::huge(2 * HUGE_PAGES)?;
            mapping.fill(0..2 * HUGE_PAGES, 1);
            started.open()?;
            loop {
                device.migrate_to_dev(mapping.all())?;
                device.migrate_to_sys(mapping.all())?;
            }
        })?;
        started.pass()?;
        sleep(Duration::from_micros(ctx.rng.u64(0..50_000)));
        child.signal(Signal::SIGKILL)?;
        child.join_killed()?;
    }
    ensure_empty_and_usable(ctx)
}

/// Small and huge pages on both devices, mirrors of them, exclusive pages.
fn exited_with_everything(ctx: &mut Context) -> Result {
    let child = Child::fork(|| {
        let devices = [ctx.device(0)?, ctx.device(1)?];
        for device in &devices {
            let small = Mapping::small(COUNT)?;
            small.fill(0..COUNT, 1);
            migrate(device, &small, 0..COUNT, 1)?;
            let huge = Mapping::huge(HUGE_PAGES)?;
            huge.fill(0..HUGE_PAGES, 1);
            migrate(device, &huge, 0..HUGE_PAGES, 1)?;
            let system = Mapping::small(COUNT)?;
            system.fill(0..COUNT, 1);
            device.read(system.all())?;
            device.exclusive(system.pages(0..COUNT / 2))?;
            std::mem::forget((small, huge, system));
        }
        std::mem::forget(devices);
        Ok(())
    })?;
    child.join()?;
    ensure_empty_and_usable(ctx)
}

/// Closing the device brings memory back.
fn closed(ctx: &mut Context) -> Result {
    let small = Mapping::small(COUNT)?;
    small.fill(0..COUNT, 1);
    let huge = Mapping::huge(HUGE_PAGES)?;
    huge.fill(0..HUGE_PAGES, 2);
    let device = ctx.device(0)?;
    migrate(&device, &small, 0..COUNT, 1)?;
    migrate(&device, &huge, 0..HUGE_PAGES, 2)?;
    drop(device);

    let device = ctx.device(0)?;
    ensure_snapshot(&device, small.all(), prot::WRITE)?;
    let snapshot = device.snapshot(huge.all())?;
    ensure!(snapshot.iter().all(|byte| byte & !prot::PMD == prot::WRITE), "all back");
    small.check(0..COUNT, 1)?;
    huge.check(0..HUGE_PAGES, 2)?;
    Ok(())
}

/// As long as a child has the file open, too, it is not closed.
fn closed_by_last(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    let (closed, migrated) = (Gate::new()?, Gate::new()?);
    let child = Child::fork(|| {
        // What the child still shares with its parent would be migrated for both.
        mapping.fill(0..COUNT, 2);
        closed.pass()?;
        migrate(&device, &mapping, 0..COUNT, 1)?;
        ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
        migrated.open()
    })?;
    drop(device);
    mapping.fill(0..COUNT, 1);
    closed.open()?;
    migrated.pass()?;
    child.join()?;
    let device = ctx.device(0)?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// What one file has migrated stays when another is closed.
fn other_file_closed(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    migrate(&device, &mapping, 0..COUNT, 1)?;
    drop(ctx.device(0)?);
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    Child::fork(|| {
        let own_device = ctx.device(0)?;
        let own = Mapping::small(COUNT)?;
        migrate(&own_device, &own, 0..COUNT, 0)
    })?
    .join()?;
    // Read-only since the fork.
    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

fn opened_and_closed(ctx: &mut Context) -> Result {
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    for round in 0..100 {
        let device = ctx.device(round % 2)?;
        if round % 3 != 0 {
            migrate(&device, &mapping, 0..COUNT, 1)?;
        }
    }
    mapping.check(0..COUNT, 1)?;
    ensure_empty_and_usable(ctx)
}

/// The parent goes on with the child's memory by the child's file, and evicts it.
fn passed_to_parent(ctx: &mut Context) -> Result {
    let number = Mapping::shared(1)?;
    let (ready, done) = (Gate::new()?, Gate::new()?);
    let child = Child::fork(|| {
        let device = ctx.device(0)?;
        let mapping = Mapping::small(COUNT)?;
        mapping.fill(0..COUNT, 1);
        number.write(0, 0, device.as_fd().as_raw_fd() as u64);
        number.write(0, 1, mapping.all().addr as u64);
        ready.open()?;
        done.pass()?;
        ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
        mapping.check(0..COUNT, 1)?;
        Ok(())
    })?;
    ready.pass()?;
    let device = Device::from(child.take_fd(i32::try_from(number.read(0, 0))?)?);
    let pages = Pages { addr: number.read(0, 1) as usize, count: COUNT };
    let migrated = device.migrate_to_dev(pages).context("the child's memory")?;
    pattern::check(&migrated.data, 0, 1)?;
    done.open()?;
    child.join()?;
    drop(device);
    ensure_empty_and_usable(ctx)
}

/// A killed process leaves as much device memory as there was before.
fn all_memory_back(ctx: &mut Context) -> Result {
    let before = fill_device(&ctx.device(0)?)?;
    kill_after(|| {
        let device = ctx.device(0)?;
        ensure_eq!(fill_device(&device)?, before);
        std::mem::forget(device);
        Ok(())
    })?;
    let device = ctx.device(0)?;
    ensure_eq!(fill_device(&device)?, before);
    device.release()?;
    ensure_eq!(fill_device(&device)?, before);
    Ok(())
}

/// Has as much memory on the device as fits, for a moment. Returns the number of pages.
fn fill_device(device: &Device) -> Result<usize> {
    const STEP: usize = 16 * HUGE_PAGES;
    const STEPS: usize = 64;
    let mapping = Mapping::small(STEPS * STEP)?;
    for step in 0..STEPS {
        let pages = mapping.pages(step * STEP..(step + 1) * STEP);
        match device.migrate_to_dev(pages) {
            Ok(_) => continue,
            Err(Errno::ENOENT) => {}
            Err(errno) => Err(errno)?,
        }
        let is_there = |&&byte: &&u8| byte != prot::NONE;
        return Ok(step * STEP + device.snapshot(pages)?.iter().filter(is_there).count());
    }
    fail!("{} pages fit", mapping.count())
}
