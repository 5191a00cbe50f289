// SPDX-License-Identifier: GPL-2.0
//! Memory that KSM merges. Merged pages stay in system memory, and what is on a device is
//! not merged: ksmd must not read what the CPU cannot address.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use super::support::{device_writes, ensure_device_reads, ensure_snapshot, migrate};
use super::{Context, Test};
use crate::failure::{Context as _, Failure, Result};
use crate::memory::Mapping;
use crate::settings::FastKsm;
use crate::uapi::prot;
use crate::{ensure_eq, ensure_errno, pagemap, test};

/// The group's tests.
pub const TESTS: &[Test] =
    &[test!(merged_before), test!(same_contents_on_device), test!(migrated_while_merged)];

const PAGES: usize = 64;
/// For ksmd to do something.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pages that KSM may merge with those of the same number.
fn mergeable() -> Result<Mapping> {
    let mapping = Mapping::small(PAGES)?;
    mapping.fill(0..PAGES, 1);
    mapping.madvise(0..PAGES, MmapAdvise::MADV_MERGEABLE)?;
    Ok(mapping)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result {
    let end = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > end {
            return Err(Failure::failed(format!("no end of waiting until {what}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn wait_until_merged(mapping: &Mapping) -> Result {
    wait_until("ksmd has merged all", || Ok(pagemap::merged_pages(mapping.all())? == PAGES))
}

/// One page is looked at twice before it is merged.
fn wait_for_scans(ksm: &FastKsm) -> Result {
    let start = ksm.full_scans()?;
    wait_until("ksmd has scanned three times", || Ok(ksm.full_scans()? >= start + 3))
}

/// Merged pages do not go to the device. ksmd finds more of the same afterwards, so it
/// compares with them.
fn merged_before(ctx: &mut Context) -> Result {
    let ksm = FastKsm::new()?;
    let device = ctx.device(0)?;
    let [one, other] = [mergeable()?, mergeable()?];
    wait_until_merged(&one)?;
    wait_until_merged(&other)?;
    ensure_errno!(device.migrate_to_dev(one.all()), Errno::ENOENT);
    ensure_snapshot(&device, one.all(), prot::READ)?;
    let more = mergeable()?;
    wait_for_scans(&ksm)?;
    for mapping in [&one, &other, &more] {
        ensure_device_reads(&device, mapping, 0..PAGES, 1)?;
        mapping.check(0..PAGES, 1)?;
    }

    // Whoever writes gets a page of its own.
    device_writes(&device, &one, 0..PAGES / 2, 2)?;
    more.fill(PAGES / 2..PAGES, 3);
    one.check(0..PAGES / 2, 2)?;
    one.check(PAGES / 2..PAGES, 1)?;
    more.check(0..PAGES / 2, 1)?;
    more.check(PAGES / 2..PAGES, 3)?;
    other.check(0..PAGES, 1)?;

    // So does who no longer wants it.
    for mapping in [&one, &other, &more] {
        mapping.madvise(0..PAGES, MmapAdvise::MADV_UNMERGEABLE)?;
        ensure_eq!(pagemap::merged_pages(mapping.all())?, 0);
    }
    migrate(&device, &other, 0..PAGES, 1)?;
    // Nobody has written to them yet.
    ensure_snapshot(&device, other.all(), ctx.local_read())?;
    other.check(0..PAGES, 1)?;
    Ok(())
}

/// Pages on the device are like others that KSM merges, and stay as they are.
fn same_contents_on_device(ctx: &mut Context) -> Result {
    let ksm = FastKsm::new()?;
    let device = ctx.device(0)?;
    let on_device = Mapping::small(PAGES)?;
    on_device.fill(0..PAGES, 1);
    migrate(&device, &on_device, 0..PAGES, 1)?;
    on_device.madvise(0..PAGES, MmapAdvise::MADV_MERGEABLE)?;
    let [one, other] = [mergeable()?, mergeable()?];
    wait_until_merged(&one)?;
    wait_for_scans(&ksm)?;
    ensure_snapshot(&device, on_device.all(), ctx.local_write())?;
    device_writes(&device, &on_device, 0..PAGES / 2, 2)?;
    other.fill(PAGES / 2..PAGES, 3);
    on_device.check(0..PAGES / 2, 2)?;
    on_device.check(PAGES / 2..PAGES, 1)?;
    one.check(0..PAGES, 1)?;
    other.check(PAGES / 2..PAGES, 3)?;
    Ok(())
}

/// Pages go to the device and back again and again, while KSM merges what it finds.
fn migrated_while_merged(ctx: &mut Context) -> Result {
    const DURATION: Duration = Duration::from_secs(4);
    let _ksm = FastKsm::new()?;
    let device = ctx.device(0)?;
    let [one, other] = [mergeable()?, mergeable()?];
    let end = Instant::now() + DURATION;
    while Instant::now() < end {
        let middle = ctx.rng.usize(1..PAGES);
        match device.migrate_to_dev(one.pages(0..middle)) {
            // What is merged, or in use by ksmd.
            Ok(_) | Err(Errno::ENOENT | Errno::EBUSY) => {}
            Err(errno) => Err(errno).context("to the device")?,
        }
        std::thread::sleep(Duration::from_millis(ctx.rng.u64(0..10)));
        // Its contents do not change, but that is not for KSM to know.
        one.fill(ctx.rng.usize(0..middle)..middle, 1);
        device.migrate_to_sys(one.all()).context("back")?;
        other.fill(middle..PAGES, 1);
        one.check(0..PAGES, 1)?;
        other.check(0..PAGES, 1)?;
    }
    Ok(())
}
