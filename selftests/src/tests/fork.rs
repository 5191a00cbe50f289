// SPDX-License-Identifier: GPL-2.0
//! Processes that share device memory since a fork.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::mman::MmapAdvise;
use nix::sys::signal::Signal;

use super::support::{
    device_writes, ensure_device_reads, ensure_snapshot, ensure_snapshots, migrate, migrate_back,
};
use super::{Context, Test};
use crate::device::Device;
use crate::failure::Result;
use crate::memory::Mapping;
use crate::process::{Child, Gate};
use crate::uapi::prot;
use crate::{ensure, fail, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(child_writes),
    test!(parent_writes),
    test!(read_by_device),
    test!(written_by_device),
    test!(written_by_childs_device),
    test!(migrated_by_child),
    test!(migrated_by_child_with_inherited_device),
    test!(migrated_back_while_shared),
    test!(released_while_shared),
    test!(children_end),
    test!(descendants),
    test!(wiped_on_fork),
    test!(exec),
];

const COUNT: usize = 40;

/// Pages of generation 1.
fn filled() -> Result<Mapping> {
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    Ok(mapping)
}

/// Snapshot byte of a read-only page that was on the device until the CPU read it.
fn after_cpu_read(ctx: &Context) -> u8 {
    if ctx.memory_type.is_cpu_accessible() { ctx.local_read() } else { prot::READ }
}

fn child_writes(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let child = Child::fork(|| {
        mapping.check(0..COUNT / 2, 1)?;
        mapping.fill(0..COUNT, 2);
        mapping.check(0..COUNT, 2)?;
        Ok(())
    })?;
    child.join()?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// The parent's copies are in system memory, and writable.
fn parent_writes(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let written = Gate::new()?;
    let child = Child::fork(|| {
        written.pass()?;
        mapping.check(0..COUNT, 1)?;
        Ok(())
    })?;
    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    mapping.fill(0..COUNT, 2);
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    written.open()?;
    child.join()?;
    mapping.check(0..COUNT, 2)?;
    migrate(&device, &mapping, 0..COUNT, 2)
}

fn read_by_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let child = Child::fork(|| {
        let own_device = ctx.device(0)?;
        ensure_device_reads(&own_device, &mapping, 0..COUNT, 1)?;
        ensure_snapshot(&own_device, mapping.all(), ctx.local_read())
    })?;
    child.join()?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// The device does not write to what a child shares.
fn written_by_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let written = Gate::new()?;
    let child = Child::fork(|| {
        written.pass()?;
        mapping.check(0..COUNT, 1)?;
        Ok(())
    })?;
    device_writes(&device, &mapping, 0..COUNT / 2, 2)?;
    ensure_snapshot(&device, mapping.pages(0..COUNT / 2), prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(COUNT / 2..COUNT), ctx.local_read())?;
    written.open()?;
    child.join()?;
    mapping.check(0..COUNT / 2, 2)?;
    mapping.check(COUNT / 2..COUNT, 1)?;
    Ok(())
}

/// Nor does a child's device to what the child has of its parent.
fn written_by_childs_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let child = Child::fork(|| {
        // Another device than that on which the pages are.
        let own_device = ctx.device(1)?;
        device_writes(&own_device, &mapping, 0..COUNT, 2)?;
        mapping.check(0..COUNT, 2)?;
        migrate(&own_device, &mapping, 0..COUNT, 2)
    })?;
    child.join()?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Who migrates shared pages does so for all.
fn migrated_by_child(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    let (migrated, seen) = (Gate::new()?, Gate::new()?);
    let child = Child::fork(|| {
        let own_device = ctx.device(0)?;
        migrate(&own_device, &mapping, 0..COUNT, 1)?;
        migrated.open()?;
        seen.pass()?;
        // The parent has read the first half, which is back for the child, too.
        let mut expected = vec![ctx.local_read(); COUNT];
        expected[..COUNT / 2].fill(after_cpu_read(ctx));
        ensure_snapshots(&own_device, mapping.all(), &expected)
    })?;
    migrated.pass()?;
    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    mapping.check(0..COUNT / 2, 1)?;
    seen.open()?;
    child.join()?;
    // The child's end evicts what it has migrated.
    ensure_snapshot(&device, mapping.all(), prot::READ)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// The child asks, but it is the parent's memory.
fn migrated_by_child_with_inherited_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    let child = Child::fork(|| {
        // No longer shared with the parent.
        mapping.fill(0..COUNT, 2);
        migrate(&device, &mapping, 0..COUNT, 1)?;
        let own_device = ctx.device(1)?;
        ensure_snapshot(&own_device, mapping.all(), prot::WRITE)
    })?;
    child.join()?;
    let snapshot = device.snapshot(mapping.all())?;
    ensure!(snapshot.iter().all(|byte| byte & ctx.memory_type.local() != 0), "on the device");
    migrate_back(&device, mapping.all(), COUNT as u64)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

fn migrated_back_while_shared(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    back_while_shared(ctx, &device, |mapping| migrate_back(&device, mapping.all(), COUNT as u64))
}

fn released_while_shared(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    back_while_shared(ctx, &device, |_| Ok(device.release()?))
}

/// Has pages migrated before a fork, and back again after it.
fn back_while_shared(ctx: &Context, device: &Device, back: impl Fn(&Mapping) -> Result) -> Result {
    let mapping = filled()?;
    migrate(device, &mapping, 0..COUNT, 1)?;
    let moved = Gate::new()?;
    let child = Child::fork(|| {
        moved.pass()?;
        let own_device = ctx.device(0)?;
        ensure_snapshot(&own_device, mapping.all(), prot::READ)?;
        mapping.check(0..COUNT, 1)?;
        mapping.fill(0..COUNT, 2);
        Ok(())
    })?;
    back(&mapping)?;
    ensure_snapshot(device, mapping.all(), prot::READ)?;
    moved.open()?;
    child.join()?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Children end in whatever way, and leave the parent's pages on the device.
fn children_end(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    Child::fork(|| Ok(()))?.join()?;
    let killed = Child::fork(|| Ok(nix::sys::signal::raise(Signal::SIGKILL)?))?;
    killed.join_killed()?;
    let unmaps = Child::fork(|| {
        mapping.munmap(0..COUNT)?;
        Ok(())
    })?;
    unmaps.join()?;

    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    mapping.check(0..COUNT / 4, 1)?;
    mapping.fill(COUNT / 4..COUNT / 2, 2);
    device.migrate_to_sys(mapping.all())?;
    mapping.check(0..COUNT / 4, 1)?;
    mapping.check(COUNT / 4..COUNT / 2, 2)?;
    mapping.check(COUNT / 2..COUNT, 1)?;
    Ok(())
}

/// Each of several generations of processes changes some of the pages.
fn descendants(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    descend(ctx, &mapping, 2)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// In a child: what was written before it is there, and `generation` is written from
/// page `generation` on.
fn descend(ctx: &Context, mapping: &Mapping, generation: u32) -> Result {
    const LAST: u32 = 5;
    let child = Child::fork(|| {
        let check = |up_to: u32| -> Result {
            for older in 1..up_to {
                let page = older as usize;
                mapping.check(page..page + 1, older)?;
            }
            mapping.check(up_to as usize..COUNT, up_to)?;
            Ok(())
        };
        check(generation - 1)?;
        mapping.fill(generation as usize..COUNT, generation);
        let own_device = ctx.device(generation as usize % 2)?;
        own_device.migrate_to_dev(mapping.pages(generation as usize..COUNT))?;
        if generation < LAST {
            descend(ctx, mapping, generation + 1)?;
        }
        check(generation)
    })?;
    child.join()
}

fn wiped_on_fork(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    mapping.madvise(0..COUNT / 2, MmapAdvise::MADV_WIPEONFORK)?;
    let child = Child::fork(|| {
        let own_device = ctx.device(0)?;
        ensure_snapshot(&own_device, mapping.pages(0..COUNT / 2), prot::NONE)?;
        migrate(&own_device, &mapping, 0..COUNT / 2, 0)?;
        mapping.check(0..COUNT / 2, 0)?;
        mapping.check(COUNT / 2..COUNT, 1)?;
        Ok(())
    })?;
    child.join()?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// A child that has another program run drops its share of the pages.
fn exec(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled()?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    // Without a copy of the address space.
    ensure!(Command::new("/bin/true").status()?.success());
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    // With one.
    Child::fork(|| {
        mapping.check(0..COUNT / 2, 1)?;
        fail!("exec: {}", Command::new("/bin/true").exec())
    })?
    .join()?;
    mapping.fill(0..COUNT / 2, 2);
    mapping.check(COUNT / 2..COUNT, 1)?;
    mapping.check(0..COUNT / 2, 2)?;
    Ok(())
}
