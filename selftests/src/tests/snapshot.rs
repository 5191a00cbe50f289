// SPDX-License-Identifier: GPL-2.0
//! What a device says of how the process has memory mapped.

use nix::sys::mman::{MapFlags, ProtFlags};

use super::support::{ensure_snapshot, ensure_snapshots, migrate, temporary_file};
use super::{Context, Test};
use crate::failure::Result;
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::uapi::{MemoryType, prot};
use crate::{ensure, ensure_eq, pagemap, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(every_kind_of_page),
    test!(huge_pages),
    test!(across_mappings),
    test!(faults_nothing_in),
];

/// A page of each kind, seen by both devices.
fn every_kind_of_page(ctx: &mut Context) -> Result {
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let mapping = Mapping::small(15)?;
    let mut expected = Vec::new();
    let mut expected_by_other = Vec::new();
    let mut both = |byte| {
        expected.push(byte);
        expected_by_other.push(byte);
    };
    // 0 untouched, 1 zero page, 2 zero page that may not be written, 3 written, 4 read-only.
    both(prot::NONE);
    mapping.touch(1..3);
    mapping.mprotect(2..3, ProtFlags::PROT_READ)?;
    both(prot::ZERO | prot::READ);
    both(prot::ZERO | prot::READ);
    mapping.fill(3..5, 1);
    mapping.mprotect(4..5, ProtFlags::PROT_READ)?;
    both(prot::WRITE);
    both(prot::READ);
    // 5 without access, 6 with, but nothing there, 7 a page of a file, 8 a copy of one.
    mapping.mprotect(5..6, ProtFlags::PROT_NONE)?;
    both(prot::ERROR);
    mapping.mprotect(6..7, ProtFlags::PROT_READ)?;
    both(prot::NONE);
    let file = temporary_file(1, 1)?;
    mapping.map_file(7..8, &file, MapFlags::MAP_PRIVATE)?;
    mapping.touch(7..8);
    both(prot::READ);
    mapping.map_file(8..9, &file, MapFlags::MAP_PRIVATE)?;
    mapping.fill(8..9, 2);
    both(prot::WRITE);
    // 9 and 10 on this device, 11 and 12 on the other, the second read-only.
    mapping.fill(9..14, 1);
    migrate(&device, &mapping, 9..11, 1)?;
    mapping.mprotect(10..11, ProtFlags::PROT_READ)?;
    migrate(&other, &mapping, 11..13, 1)?;
    mapping.mprotect(12..13, ProtFlags::PROT_READ)?;
    let (local, remote) = (
        [ctx.local_write(), ctx.local_read()],
        [ctx.memory_type.remote(prot::WRITE), ctx.memory_type.remote(prot::READ)],
    );
    expected.extend(local.iter().chain(&remote));
    expected_by_other.extend(remote.iter().chain(&local));
    // 13 exclusive, 14 a page of the driver's.
    device.exclusive(mapping.pages(13..14))?;
    mapping.map_file(14..15, &device, MapFlags::MAP_SHARED)?;
    for bytes in [&mut expected, &mut expected_by_other] {
        bytes.extend([prot::NONE, prot::WRITE]);
    }

    ensure_snapshots(&device, mapping.all(), &expected)?;
    ensure_snapshots(&other, mapping.all(), &expected_by_other)?;
    // Looking changes nothing.
    ensure_snapshots(&device, mapping.all(), &expected)?;
    device.check_exclusive(mapping.pages(0..13))?;
    ensure!(device.check_exclusive(mapping.pages(13..14)).is_err(), "still exclusive");
    Ok(())
}

fn huge_pages(ctx: &mut Context) -> Result {
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let mapping = Mapping::huge(4 * HUGE_PAGES)?;
    let huge = |i: usize| i * HUGE_PAGES..(i + 1) * HUGE_PAGES;
    // Written, the huge zero page, read-only, on this device.
    mapping.fill(huge(0), 1);
    mapping.touch(HUGE_PAGES..HUGE_PAGES + 1);
    mapping.fill(huge(2), 1);
    mapping.mprotect(huge(2), ProtFlags::PROT_READ)?;
    mapping.fill(huge(3), 1);
    ensure_eq!(pagemap::huge_pages(mapping.all())?, 4 * HUGE_PAGES);
    migrate(&device, &mapping, huge(3), 1)?;

    let on_other = match ctx.memory_type {
        MemoryType::Private => prot::NONE,
        cpu_accessible => cpu_accessible.remote(prot::WRITE) | prot::PMD,
    };
    for (device, fourth) in [(&device, ctx.local_huge_write()), (&other, on_other)] {
        ensure_snapshot(device, mapping.pages(huge(0)), prot::WRITE | prot::PMD)?;
        ensure_snapshot(device, mapping.pages(huge(1)), prot::READ | prot::PMD)?;
        ensure_snapshot(device, mapping.pages(huge(2)), prot::READ | prot::PMD)?;
        ensure_snapshot(device, mapping.pages(huge(3)), fourth)?;
        // From within a huge page.
        ensure_snapshot(device, mapping.pages(3..7), prot::WRITE | prot::PMD)?;
    }
    Ok(())
}

/// Holes are no error, and do not hide what is behind them.
fn across_mappings(ctx: &mut Context) -> Result {
    const COUNT: usize = 3 * HUGE_PAGES;
    let device = ctx.device(0)?;
    let mut mapping = Mapping::small(COUNT)?;
    let mut expected = vec![prot::NONE; COUNT];
    for page in (0..COUNT).step_by(7) {
        mapping.fill(page..page + 1, 1);
        expected[page] = prot::WRITE;
    }
    for hole in [0..1, 100..200, HUGE_PAGES..2 * HUGE_PAGES, COUNT - 1..COUNT] {
        mapping.munmap(hole.clone())?;
        expected[hole].fill(prot::ERROR);
    }
    ensure_snapshots(&device, mapping.all(), &expected)
}

fn faults_nothing_in(ctx: &mut Context) -> Result {
    const COUNT: usize = 40;
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    migrate(&device, &mapping, 0..COUNT / 2, 1)?;
    let untouched = Mapping::small(COUNT)?;
    let before = pagemap::entries(mapping.all())?;
    device.snapshot(mapping.all())?;
    device.snapshot(untouched.all())?;
    ensure!(pagemap::entries(mapping.all())? == before, "the page tables are as before");
    let entries = pagemap::entries(untouched.all())?;
    ensure!(entries.iter().all(|entry| !entry.is_present()), "nothing is there");
    Ok(())
}
