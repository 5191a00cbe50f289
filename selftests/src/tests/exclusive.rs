// SPDX-License-Identifier: GPL-2.0
//! Pages that the device has for itself, until somebody else wants them.

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};

use super::support::{ensure_snapshot, ensure_snapshots, temporary_file};
use super::{Context, Test};
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::hugetlb::MoreHugetlbPages;
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::process::Child;
use crate::uapi::prot;
use crate::{ensure_eq, ensure_errno, pattern, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(revoked_by_read),
    test!(revoked_by_write),
    test!(revoked_by_mprotect),
    test!(revoked_by_munmap),
    test!(revoked_by_fork),
    test!(revoked_by_device),
    test!(taken_by_other_device),
    test!(taken_again),
    test!(untouched),
    test!(huge),
    test!(on_device),
    test!(read_only),
    test!(not_anonymous),
    test!(hole),
];

const COUNT: usize = 40;

fn take(device: &Device, mapping: &Mapping, generation: u32) -> Result {
    let taken = device.exclusive(mapping.all()).context("taking pages")?;
    ensure_eq!((taken.cpages, taken.faults), (mapping.count() as u64, 0));
    pattern::check(&taken.data, mapping.first_page(), generation)?;
    ensure_errno!(device.check_exclusive(mapping.all()), Errno::EPERM);
    // The process has none of them mapped.
    ensure_snapshot(device, mapping.all(), prot::NONE)
}

fn taken(device: &Device) -> Result<Mapping> {
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    take(device, &mapping, 1)?;
    Ok(mapping)
}

fn revoked_by_read(ctx: &mut Context) -> Result {
    revoked_by(ctx, |mapping| Ok(mapping.check(0..1, 1)?), 1)
}

fn revoked_by_write(ctx: &mut Context) -> Result {
    revoked_by(
        ctx,
        |mapping| {
            mapping.fill(0..1, 2);
            Ok(())
        },
        2,
    )
}

/// One page is revoked by a CPU access to it, the others stay until they are touched.
fn revoked_by(ctx: &Context, access: fn(&Mapping) -> Result, generation_after: u32) -> Result {
    let device = ctx.device(0)?;
    let mapping = taken(&device)?;
    access(&mapping)?;
    device.check_exclusive(mapping.pages(0..1))?;
    // Not the next: the driver in C gives up that one, too.
    ensure_errno!(device.check_exclusive(mapping.pages(2..COUNT)), Errno::EPERM);
    let mut expected = vec![prot::NONE; COUNT];
    expected[0] = prot::WRITE;
    ensure_snapshots(&device, mapping.all(), &expected)?;

    mapping.check(0..1, generation_after)?;
    mapping.check(1..COUNT, 1)?;
    device.check_exclusive(mapping.all())?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)
}

fn revoked_by_mprotect(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = taken(&device)?;
    mapping.mprotect(0..COUNT, ProtFlags::PROT_READ)?;
    device.check_exclusive(mapping.all())?;
    mapping.check(0..COUNT, 1)?;
    ensure_errno!(device.exclusive(mapping.all()), Errno::EFAULT);
    Ok(())
}

fn revoked_by_munmap(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = taken(&device)?;
    mapping.munmap(0..COUNT / 2)?;
    device.check_exclusive(mapping.all().part(0..COUNT / 2))?;
    ensure_errno!(device.check_exclusive(mapping.all()), Errno::EPERM);
    mapping.madvise(COUNT / 2..COUNT, MmapAdvise::MADV_DONTNEED)?;
    device.check_exclusive(mapping.all())?;
    mapping.check(COUNT / 2..COUNT, 0)?;
    Ok(())
}

fn revoked_by_fork(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = taken(&device)?;
    let child = Child::fork(|| {
        device.check_exclusive(mapping.all())?;
        mapping.check(0..COUNT, 1)?;
        mapping.fill(0..COUNT, 2);
        mapping.check(0..COUNT, 2)?;
        Ok(())
    })?;
    child.join()?;
    device.check_exclusive(mapping.all())?;
    mapping.check(0..COUNT, 1)?;
    // The child's end lets it have them again.
    take(&device, &mapping, 1)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Another device's access is like one of the CPU; the device's own read is not.
fn revoked_by_device(ctx: &mut Context) -> Result {
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let mapping = taken(&device)?;
    let read = device.read(mapping.all())?;
    ensure_eq!(read.faults, 0);
    pattern::check(&read.data, 0, 1)?;
    ensure_errno!(device.check_exclusive(mapping.all()), Errno::EPERM);

    pattern::check(&other.read(mapping.all())?.data, 0, 1)?;
    device.check_exclusive(mapping.all())?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

fn taken_by_other_device(ctx: &mut Context) -> Result {
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let mapping = taken(&device)?;
    take(&other, &mapping, 1)?;
    device.check_exclusive(mapping.all())?;
    ensure_errno!(other.check_exclusive(mapping.all()), Errno::EPERM);
    mapping.fill(0..COUNT, 2);
    other.check_exclusive(mapping.all())?;
    take(&device, &mapping, 2)?;
    mapping.check(0..COUNT, 2)?;
    Ok(())
}

fn taken_again(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = taken(&device)?;
    take(&device, &mapping, 1)?;
    mapping.fill(0..COUNT / 2, 2);
    let again = device.exclusive(mapping.all())?;
    pattern::check(&again.data[..COUNT / 2 * PAGE_SIZE], 0, 2)?;
    pattern::check(&again.data[COUNT / 2 * PAGE_SIZE..], COUNT / 2, 1)?;
    mapping.check(0..COUNT / 2, 2)?;
    mapping.check(COUNT / 2..COUNT, 1)?;
    Ok(())
}

fn untouched(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    take(&device, &mapping, 0)?;
    mapping.check(0..COUNT, 0)?;
    device.check_exclusive(mapping.all()).context("after CPU reads")
}

/// Huge pages are split.
fn huge(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(HUGE_PAGES)?;
    mapping.fill(0..HUGE_PAGES, 1);
    take(&device, &mapping, 1)?;
    mapping.fill(100..200, 2);
    ensure_errno!(device.check_exclusive(mapping.pages(0..99)), Errno::EPERM);
    device.check_exclusive(mapping.pages(100..200))?;
    mapping.check(0..100, 1)?;
    mapping.check(100..200, 2)?;
    mapping.check(200..HUGE_PAGES, 1)?;
    Ok(())
}

/// Private memory is brought back to be taken, other memory is taken on the device.
fn on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    device.migrate_to_dev(mapping.all())?;
    take(&device, &mapping, 1)?;
    mapping.check(0..COUNT, 1)?;
    let expected =
        if ctx.memory_type.is_cpu_accessible() { ctx.local_write() } else { prot::WRITE };
    ensure_snapshot(&device, mapping.all(), expected)?;
    device.check_exclusive(mapping.all())?;
    Ok(())
}

fn read_only(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    mapping.mprotect(COUNT / 2..COUNT, ProtFlags::PROT_READ)?;
    ensure_errno!(device.exclusive(mapping.all()), Errno::EFAULT);
    ensure_snapshot(&device, mapping.pages(COUNT / 2..COUNT), prot::READ)?;
    device.check_exclusive(mapping.pages(COUNT / 2..COUNT))?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Only anonymous memory can be exclusive.
fn not_anonymous(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let file = temporary_file(COUNT, 1)?;
    let _pool = MoreHugetlbPages::add(1)?;
    let mappings = [
        Mapping::shared(COUNT)?,
        Mapping::file(&file, COUNT, MapFlags::MAP_SHARED)?,
        Mapping::hugetlb(HUGE_PAGES)?,
    ];
    for mapping in &mappings {
        let range = 0..COUNT;
        mapping.fill(range.clone(), 1);
        let pages = mapping.pages(range.clone());
        ensure_errno!(device.exclusive(pages), Errno::EOPNOTSUPP);
        device.check_exclusive(pages)?;
        mapping.check(range, 1)?;
    }

    // A private copy of a file's page is.
    let copies = Mapping::file(&file, COUNT, MapFlags::MAP_PRIVATE)?;
    take(&device, &copies, 1)?;
    copies.check(0..COUNT, 1)?;
    Ok(())
}

/// Pages in front of a hole are taken all the same.
fn hole(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    mapping.munmap(COUNT / 2..COUNT)?;
    ensure_errno!(device.exclusive(mapping.all()), Errno::EFAULT);
    ensure_errno!(device.check_exclusive(mapping.pages(0..COUNT / 2)), Errno::EPERM);
    mapping.check(0..COUNT / 2, 1)?;
    device.check_exclusive(mapping.all())?;
    Ok(())
}
