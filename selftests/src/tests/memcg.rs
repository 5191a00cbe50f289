// SPDX-License-Identifier: GPL-2.0
//! Memory cgroups: pages are charged to them on the device as in system memory.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::support::{ensure_device_reads, ensure_snapshot, migrate};
use super::{Context, Test};
use crate::cgroup::Cgroup;
use crate::device::Device;
use crate::failure::{Context as _, Failure, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGE_SIZE, HUGE_PAGES, PAGE_SIZE, Pages};
use crate::process::Child;
use crate::uapi::{self, Cmd, MemoryType, prot};
use crate::{ensure, ensure_eq, ensure_errno, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(charge_follows),
    test!(charge_follows_huge),
    test!(untouched_is_charged),
    test!(unmapped_is_uncharged),
    test!(stays_with_first_owner),
    test!(at_limit),
    test!(over_limit),
    test!(huge_over_limit).only(&[MemoryType::Private]),
];

const COUNT: usize = 8 * HUGE_PAGES;
const SIZE: usize = COUNT * PAGE_SIZE;
/// Page tables, the program's own data, and what each CPU has in reserve, in bytes.
const SLACK: usize = 4 << 20;

/// Fails unless about so many bytes are charged, on top of those at first.
#[track_caller]
fn ensure_charged(cgroup: &Cgroup, base: usize, expected: usize, when: &str) -> Result {
    let charged = cgroup.charged()?.saturating_sub(base);
    if charged.abs_diff(expected) <= SLACK {
        return Ok(());
    }
    Err(Failure::failed(format!("{when}: {charged} bytes are charged, expected {expected}")))
}

/// The same once pages that were freed are no longer charged.
#[track_caller]
fn ensure_soon_charged(cgroup: &Cgroup, expected: usize, when: &str) -> Result {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let result = ensure_charged(cgroup, 0, expected, when);
        if result.is_ok() || Instant::now() > end {
            return result;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn charge_follows(ctx: &mut Context) -> Result {
    there_and_back(ctx, Mapping::small)
}

fn charge_follows_huge(ctx: &mut Context) -> Result {
    there_and_back(ctx, Mapping::huge)
}

fn there_and_back(ctx: &Context, map: fn(usize) -> Result<Mapping, Errno>) -> Result {
    let cgroup = Cgroup::new("charge")?;
    let child = Child::fork(|| {
        cgroup.enter()?;
        let device = ctx.device(0)?;
        let mapping = map(COUNT)?;
        let base = cgroup.charged()?;
        mapping.fill(0..COUNT, 1);
        ensure_charged(&cgroup, base, SIZE, "in system memory")?;
        for _ in 0..2 {
            migrate_all(&device, &mapping, 1)?;
            ensure_charged(&cgroup, base, SIZE, "on the device")?;
            device.migrate_to_sys(mapping.all())?;
            ensure_charged(&cgroup, base, SIZE, "back in system memory")?;
        }
        migrate_all(&device, &mapping, 1)?;
        mapping.check(0..COUNT, 1)?;
        ensure_charged(&cgroup, base, SIZE, "after CPU accesses")?;
        migrate_all(&device, &mapping, 1)?;
        std::mem::forget((device, mapping));
        Ok(())
    })?;
    child.join()?;
    ensure_soon_charged(&cgroup, 0, "after the end")?;
    ensure_eq!(cgroup.events("oom")?, 0);
    Ok(())
}

/// Pages that are made on the device are charged, too.
fn untouched_is_charged(ctx: &mut Context) -> Result {
    let cgroup = Cgroup::new("untouched")?;
    let child = Child::fork(|| {
        cgroup.enter()?;
        let device = ctx.device(0)?;
        let (small, huge) = (Mapping::small(COUNT)?, Mapping::huge(COUNT)?);
        let base = cgroup.charged()?;
        migrate_all(&device, &small, 0)?;
        ensure_charged(&cgroup, base, SIZE, "small pages on the device")?;
        migrate_all(&device, &huge, 0)?;
        ensure_charged(&cgroup, base, 2 * SIZE, "huge pages on the device")?;
        device.release()?;
        ensure_charged(&cgroup, base, 2 * SIZE, "evicted")
    })?;
    child.join()?;
    ensure_soon_charged(&cgroup, 0, "after the end")
}

fn unmapped_is_uncharged(ctx: &mut Context) -> Result {
    let cgroup = Cgroup::new("unmapped")?;
    let child = Child::fork(|| {
        cgroup.enter()?;
        let device = ctx.device(0)?;
        let mut mapping = Mapping::small(COUNT)?;
        let base = cgroup.charged()?;
        mapping.fill(0..COUNT, 1);
        migrate_all(&device, &mapping, 1)?;
        mapping.munmap(0..COUNT / 2)?;
        ensure_charged(&cgroup, base, SIZE / 2, "half unmapped")?;
        drop(mapping);
        ensure_charged(&cgroup, base, 0, "all unmapped")
    })?;
    child.join()
}

/// Who migrates another cgroup's pages does not pay for them.
fn stays_with_first_owner(ctx: &mut Context) -> Result {
    let (first, second) = (Cgroup::new("first")?, Cgroup::new("second")?);
    let parent = Child::fork(|| {
        first.enter()?;
        let mapping = Mapping::small(COUNT)?;
        let base = first.charged()?;
        mapping.fill(0..COUNT, 1);
        let child = Child::fork(|| {
            second.enter()?;
            let device = ctx.device(0)?;
            let own_base = second.charged()?;
            migrate_all(&device, &mapping, 1)?;
            ensure_charged(&second, own_base, 0, "on the device, of the one who migrates")?;
            ensure_charged(&first, base, SIZE, "on the device")?;
            // And back.
            drop(device);
            ensure_charged(&second, own_base, 0, "back, of the one who migrates")?;
            ensure_charged(&first, base, SIZE, "back")
        })?;
        child.join()?;
        mapping.check(0..COUNT, 1)?;
        Ok(())
    })?;
    parent.join()
}

/// Migration needs no more than what is charged already.
fn at_limit(ctx: &mut Context) -> Result {
    let cgroup = Cgroup::new("limit")?;
    let child = Child::fork(|| {
        cgroup.enter()?;
        let device = ctx.device(0)?;
        let (small, huge) = (Mapping::small(COUNT)?, Mapping::huge(COUNT)?);
        small.fill(0..COUNT, 1);
        huge.fill(0..COUNT, 2);
        // Page tables, where huge pages become small, and data of the process itself.
        cgroup.set_limit(cgroup.charged()? + SIZE)?;
        for _ in 0..2 {
            for (mapping, generation) in [(&small, 1), (&huge, 2)] {
                migrate_all(&device, mapping, generation)?;
            }
            device.release()?;
        }
        small.check(0..COUNT, 1)?;
        huge.check(0..COUNT, 2)?;
        Ok(())
    })?;
    child.join()?;
    ensure_eq!(cgroup.events("oom_kill")?, 0);
    Ok(())
}

/// Who asks for more new pages than allowed is killed as for any other memory, and
/// leaves nothing behind.
fn over_limit(ctx: &mut Context) -> Result {
    // Fewer at a time than a huge page would have.
    const PART: usize = 64;
    let cgroup = Cgroup::new("over-limit")?;
    let child = Child::fork(|| {
        cgroup.enter()?;
        let device = ctx.device(0)?;
        let mapping = Mapping::small(COUNT)?;
        cgroup.set_limit(cgroup.charged()? + SIZE / 2)?;
        for start in (0..COUNT).step_by(PART) {
            device.migrate_to_dev(mapping.pages(start..start + PART))?;
        }
        Ok(())
    })?;
    ensure_eq!(child.join_killed().context("over the limit")?, Signal::SIGKILL);
    ensure!(cgroup.events("oom_kill")? > 0, "killed for lack of memory");
    ensure_soon_charged(&cgroup, 0, "after the end")?;

    let device = ctx.device(0)?;
    device.release()?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    migrate_all(&device, &mapping, 1)?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)
}

/// Nobody is killed for a huge page, which is just not made.
fn huge_over_limit(ctx: &mut Context) -> Result {
    let cgroup = Cgroup::new("huge-over-limit")?;
    let child = Child::fork(|| {
        cgroup.enter()?;
        let device = ctx.device(0)?;
        let mapping = Mapping::huge(COUNT)?;
        mapping.fill(0..HUGE_PAGES, 1);
        // The data that the device returns is charged, too: it has its place already.
        let buffer = Mapping::small(HUGE_PAGES)?;
        buffer.fill(0..HUGE_PAGES, 2);
        let migrate_huge = |pages: Pages| {
            let mut cmd = Cmd {
                addr: pages.addr as u64,
                ptr: buffer.all().addr as u64,
                npages: pages.count as u64,
                ..Cmd::default()
            };
            device.raw(uapi::MIGRATE_TO_DEV, &mut cmd)
        };
        // One more does not fit, nor is there anything to reclaim.
        let unlimited = cgroup.charged()?;
        cgroup.set_limit(unlimited + HUGE_PAGE_SIZE / 2)?;
        migrate_huge(mapping.pages(0..HUGE_PAGES))?;
        buffer.check(0..HUGE_PAGES, 1)?;
        let untouched = mapping.pages(2 * HUGE_PAGES..3 * HUGE_PAGES);
        ensure_errno!(migrate_huge(untouched), Errno::ENOENT);
        ensure_snapshot(&device, untouched, prot::NONE)?;
        ensure_snapshot(&device, mapping.pages(0..HUGE_PAGES), ctx.local_huge_write())?;

        cgroup.set_limit(unlimited + SIZE)?;
        migrate_huge(untouched)?;
        mapping.check(0..HUGE_PAGES, 1)?;
        mapping.check(2 * HUGE_PAGES..3 * HUGE_PAGES, 0)?;
        Ok(())
    })?;
    child.join()?;
    ensure_eq!(cgroup.events("oom_kill")?, 0);
    Ok(())
}

/// Migrates all, and checks what is there. Little by little, for the data that the device
/// returns is charged, too.
#[track_caller]
fn migrate_all(device: &Device, mapping: &Mapping, generation: u32) -> Result {
    let mut starts = (0..COUNT).step_by(HUGE_PAGES);
    starts.try_for_each(|start| migrate(device, mapping, start..start + HUGE_PAGES, generation))
}
