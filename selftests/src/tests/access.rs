// SPDX-License-Identifier: GPL-2.0
//! Devices that read and write memory where it is.

use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};

use super::support::{device_writes, ensure_device_reads, ensure_snapshot, temporary_file};
use super::{Context, Test};
use crate::device::{Device, Driver};
use crate::failure::Result;
use crate::hugetlb::MoreHugetlbPages;
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::pins::{GupTest, PipePin};
use crate::process::Child;
use crate::uapi::prot;
use crate::userfault::UserFaults;
use crate::{ensure_eq, ensure_errno, pagemap, pattern, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(open_close),
    test!(mem_dev_type),
    test!(anon_read),
    test!(anon_read_prot_none),
    test!(anon_write),
    test!(read_unlocked),
    test!(huge_snapshot),
    test!(write_to_pinned),
    test!(write_read_only),
    test!(write_partly_read_only),
    test!(written_by_child),
    test!(shared_written_by_child),
    test!(inherited_device),
    test!(two_opens),
    test!(two_devices),
    test!(shared_file),
    test!(private_file),
    test!(write_huge),
    test!(write_hugetlb),
    test!(many_mappings),
    test!(user_faults),
    test!(mapped_node),
];

const PAGES: usize = 1024;
/// Enough pages where their number does not matter, more than the drivers do at a time.
const COUNT: usize = 40;

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

fn open_close(ctx: &mut Context) -> Result {
    let both = (ctx.device(0)?, ctx.device(1)?);
    // Each open is a mirror of its own.
    let again = (ctx.device(0)?, ctx.device(1)?);
    drop(both);
    drop(again);
    Ok(())
}

fn mem_dev_type(ctx: &mut Context) -> Result {
    for number in 0..2 {
        let found = ctx.device(number)?.mem_dev_type();
        match ctx.driver {
            Driver::UnpatchedC => ensure_errno!(found, Errno::EINVAL),
            Driver::Rust | Driver::C => ensure_eq!(found, Ok(ctx.memory_type as u32)),
        }
    }
    Ok(())
}

/// Untouched pages, the zero page and data, all of it read-only.
fn anon_read(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::anonymous(PAGES)?;
    mapping.fill(2..PAGES, 1);
    mapping.mprotect(0..PAGES, ProtFlags::PROT_READ)?;
    mapping.touch(1..2);

    let read = device.read(mapping.all())?;
    ensure_eq!(read.cpages, PAGES as u64);
    ensure_eq!(read.faults, 1);
    pattern::check(&read.data[..2 * PAGE_SIZE], 0, 0)?;
    pattern::check(&read.data[2 * PAGE_SIZE..], 2, 1)?;

    // The device has it all mapped now.
    let again = device.read(mapping.all())?;
    ensure_eq!(again.faults, 0);
    ensure_eq!(again.data == read.data, true);
    Ok(())
}

fn anon_read_prot_none(ctx: &mut Context) -> Result {
    const UNTOUCHED: u32 = 7;
    let device = ctx.device(0)?;
    let mapping = Mapping::anonymous(PAGES)?;
    mapping.fill(0..PAGES, 1);
    mapping.mprotect(0..PAGES, ProtFlags::PROT_NONE)?;

    let mut data = pattern::pages(0, PAGES, UNTOUCHED);
    ensure_errno!(device.read_into(mapping.all(), &mut data), Errno::EFAULT);
    pattern::check(&data, 0, UNTOUCHED)?;

    mapping.mprotect(0..PAGES, ProtFlags::PROT_READ)?;
    mapping.check(0..PAGES, 1)?;
    Ok(())
}

fn anon_write(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::anonymous(PAGES)?;
    // The first half is there, the second is not.
    mapping.fill(0..PAGES / 2, 1);

    let written = device.write(mapping.all(), &pattern::pages(0, PAGES, 2))?;
    ensure_eq!(written.cpages, PAGES as u64);
    ensure_eq!(written.faults, 1);
    mapping.check(0..PAGES, 2)?;

    // The device sees what the CPU writes to what the device has mapped.
    mapping.fill(0..PAGES, 3);
    pattern::check(&device.read(mapping.all())?.data, 0, 3)?;
    Ok(())
}

fn read_unlocked(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::anonymous(PAGES)?;
    mapping.fill(0..PAGES - 1, 1);

    let read = device.read_unlocked(mapping.all())?;
    ensure_eq!(read.cpages, PAGES as u64);
    ensure_eq!(read.faults, 1);
    let (filled, untouched) = read.data.split_at((PAGES - 1) * PAGE_SIZE);
    pattern::check(filled, 0, 1)?;
    pattern::check(untouched, PAGES - 1, 0)?;
    Ok(())
}

/// The device is told that a PMD maps a huge page, and where small pages follow.
fn huge_snapshot(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(HUGE_PAGES + 2)?;
    mapping.fill(0..HUGE_PAGES + 1, 1);
    ensure_eq!(pagemap::huge_pages(mapping.all())?, HUGE_PAGES);

    let bytes = device.snapshot(mapping.all())?;
    let mut expected = vec![prot::WRITE | prot::PMD; HUGE_PAGES];
    expected.extend([prot::WRITE, prot::NONE]);
    ensure_eq!(bytes, expected);
    pattern::check(&device.read(mapping.pages(0..HUGE_PAGES + 1))?.data, 0, 1)?;
    Ok(())
}

/// The device writes to the very pages that others hold.
fn write_to_pinned(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    let in_pipe = PipePin::new(mapping.all())?;
    let gup_test = GupTest::open()?;
    let pinned = gup_test.pin(mapping.all(), true, false)?;

    device.write(mapping.all(), &pattern::pages(0, COUNT, 2))?;
    mapping.check(0..COUNT, 2)?;
    pattern::check(&pinned.contents()?, 0, 2)?;
    pattern::check(&in_pipe.into_contents()?, 0, 2)?;
    Ok(())
}

fn write_read_only(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT - 1, 1);
    mapping.mprotect(0..COUNT, ProtFlags::PROT_READ)?;

    let data = pattern::pages(0, COUNT, 2);
    ensure_errno!(device.write(mapping.all(), &data), Errno::EPERM);
    mapping.check(0..COUNT - 1, 1)?;
    mapping.check(COUNT - 1..COUNT, 0)?;
    // Nor where the device may read.
    ensure_device_reads(&device, &mapping, 0..COUNT - 1, 1)?;
    ensure_errno!(device.write(mapping.all(), &data), Errno::EPERM);
    mapping.check(0..COUNT - 1, 1)?;

    mapping.mprotect(0..COUNT, READ_WRITE)?;
    device_writes(&device, &mapping, 0..COUNT, 2)?;
    mapping.check(0..COUNT, 2)?;
    Ok(())
}

/// What the device may write it does, up to the first page that it may not.
fn write_partly_read_only(ctx: &mut Context) -> Result {
    const FIRST_READ_ONLY: usize = COUNT / 2;
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    mapping.mprotect(FIRST_READ_ONLY..COUNT, ProtFlags::PROT_READ)?;
    // What it has mapped writable already.
    device_writes(&device, &mapping, 0..FIRST_READ_ONLY, 2)?;

    let data = pattern::pages(0, COUNT, 3);
    ensure_errno!(device.write(mapping.all(), &data), Errno::EPERM);
    mapping.check(0..FIRST_READ_ONLY, 3)?;
    mapping.check(FIRST_READ_ONLY..COUNT, 1)?;
    Ok(())
}

/// A child opens the device for itself, which then works on the child's memory only.
fn written_by_child(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;

    let child = Child::fork(|| {
        let own_device = ctx.device(0)?;
        ensure_device_reads(&own_device, &mapping, 0..COUNT, 1)?;
        device_writes(&own_device, &mapping, 0..COUNT, 2)?;
        mapping.check(0..COUNT, 2)?;
        Ok(())
    })?;
    child.join()?;
    mapping.check(0..COUNT, 1)?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)
}

fn shared_written_by_child(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::shared(COUNT)?;
    mapping.fill(0..COUNT, 1);
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;

    let child = Child::fork(|| {
        let own_device = ctx.device(0)?;
        device_writes(&own_device, &mapping, 0..COUNT, 2)
    })?;
    child.join()?;
    mapping.check(0..COUNT, 2)?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 2)
}

/// A device works on the memory of who opened it, whoever asks; data goes to who asks.
fn inherited_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);

    let child = Child::fork(|| {
        mapping.fill(0..COUNT, 2);
        ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;
        device_writes(&device, &mapping, 0..COUNT, 3)?;
        mapping.check(0..COUNT, 2)?;
        Ok(())
    })?;
    child.join()?;
    mapping.check(0..COUNT, 3)?;
    Ok(())
}

fn two_opens(ctx: &mut Context) -> Result {
    see_each_other(&ctx.device(0)?, &ctx.device(0)?)
}

fn two_devices(ctx: &mut Context) -> Result {
    see_each_other(&ctx.device(0)?, &ctx.device(1)?)
}

/// What one writes the other reads, even if both have mapped it before.
fn see_each_other(one: &Device, other: &Device) -> Result {
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    ensure_device_reads(one, &mapping, 0..COUNT, 1)?;
    ensure_device_reads(other, &mapping, 0..COUNT, 1)?;
    device_writes(one, &mapping, 0..COUNT, 2)?;
    ensure_device_reads(other, &mapping, 0..COUNT, 2)?;
    device_writes(other, &mapping, 0..COUNT, 3)?;
    ensure_device_reads(one, &mapping, 0..COUNT, 3)?;
    mapping.check(0..COUNT, 3)?;
    Ok(())
}

fn shared_file(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let file = temporary_file(COUNT, 1)?;
    let mapping = Mapping::file(&file, COUNT, MapFlags::MAP_SHARED)?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;
    device_writes(&device, &mapping, 0..COUNT, 2)?;
    mapping.check(0..COUNT, 2)?;

    let mut contents = vec![0; COUNT * PAGE_SIZE];
    file.read_exact_at(&mut contents, 0)?;
    pattern::check(&contents, 0, 2)?;
    file.write_all_at(&pattern::pages(0, COUNT, 3), 0)?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 3)
}

/// The device writes to copies of a file's pages.
fn private_file(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let file = temporary_file(COUNT, 1)?;
    let mapping = Mapping::file(&file, COUNT, MapFlags::MAP_PRIVATE)?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;
    device_writes(&device, &mapping, 0..COUNT, 2)?;
    mapping.check(0..COUNT, 2)?;

    let mut contents = vec![0; COUNT * PAGE_SIZE];
    file.read_exact_at(&mut contents, 0)?;
    pattern::check(&contents, 0, 1)?;
    Ok(())
}

/// Device writes fault in huge pages as the CPU's do.
fn write_huge(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(HUGE_PAGES)?;
    device_writes(&device, &mapping, 0..HUGE_PAGES, 1)?;
    ensure_eq!(pagemap::huge_pages(mapping.all())?, HUGE_PAGES);
    mapping.check(0..HUGE_PAGES, 1)?;
    Ok(())
}

fn write_hugetlb(ctx: &mut Context) -> Result {
    let _pool = MoreHugetlbPages::add(1)?;
    let device = ctx.device(0)?;
    let mapping = Mapping::hugetlb(HUGE_PAGES)?;
    device_writes(&device, &mapping, 0..HUGE_PAGES, 1)?;
    mapping.check(0..HUGE_PAGES, 1)?;
    mapping.fill(0..HUGE_PAGES, 2);
    ensure_device_reads(&device, &mapping, 0..HUGE_PAGES, 2)?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE | prot::PMD)
}

/// One range of many mappings, private and shared, read-only and not.
fn many_mappings(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    for page in (0..COUNT).step_by(2) {
        mapping.mprotect(page..page + 1, ProtFlags::PROT_READ)?;
    }
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;

    mapping.munmap(COUNT / 2..COUNT / 2 + 1)?;
    ensure_errno!(device.read(mapping.all()), Errno::EFAULT);
    ensure_device_reads(&device, &mapping, 0..COUNT / 2, 1)?;
    ensure_device_reads(&device, &mapping, COUNT / 2 + 1..COUNT, 1)
}

/// Only the unlocked page table walk can wait for a handler in user space.
fn user_faults(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    let faults = UserFaults::on_missing(mapping.all())?;
    ensure_errno!(device.read(mapping.all()), Errno::EFAULT);

    let read = std::thread::scope(|scope| -> Result<_> {
        let handler = scope.spawn(|| -> Result {
            for page in 0..COUNT {
                ensure_eq!(faults.next()?, mapping.pages(page..page + 1).addr);
                let addr = mapping.pages(page..page + 1).addr;
                faults.provide(addr, &pattern::pages(page, 1, 1))?;
            }
            Ok(())
        });
        let read = device.read_unlocked(mapping.all());
        handler.join().expect("no panic")?;
        Ok(read?)
    })?;
    ensure_eq!((read.cpages, read.faults), (COUNT as u64, 1));
    pattern::check(&read.data, 0, 1)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Pages of the driver's own, mapped from the device node.
fn mapped_node(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    for (flags, snapshot) in
        [(MapFlags::MAP_PRIVATE, prot::READ), (MapFlags::MAP_SHARED, prot::WRITE)]
    {
        let mapping = Mapping::file(&device, COUNT, flags)?;
        ensure_snapshot(&device, mapping.all(), snapshot)?;
        ensure_device_reads(&device, &mapping, 0..COUNT, 0)?;
        device_writes(&device, &mapping, 0..COUNT, 1)?;
        mapping.check(0..COUNT, 1)?;
        ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::EINVAL);
        mapping.check(0..COUNT, 1)?;

        // Nothing brings them back.
        mapping.madvise(0..COUNT, MmapAdvise::MADV_DONTNEED)?;
        ensure_errno!(device.read(mapping.pages(0..1)), Errno::EFAULT);
    }
    Ok(())
}
