// SPDX-License-Identifier: GPL-2.0
//! What tests of several groups do and check.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::Context;
use crate::device::{Counts, Device, Driver};
use crate::failure::{Context as _, Failure, Result};
use crate::memory::Mapping;
use crate::pages::Pages;
use crate::pattern;
use crate::uapi::prot;

/// Why a test is skipped with an unpatched `test_hmm`.
pub const DEFECT_5: &str = "defect 5 of test_hmm: it frees closed files that are still in use";

impl Context {
    /// Snapshot byte of a small page on the device asked, writable there.
    pub fn local_write(&self) -> u8 {
        self.memory_type.local() | prot::WRITE
    }

    /// Snapshot byte of a small page on the device asked, read-only there.
    pub fn local_read(&self) -> u8 {
        self.memory_type.local() | prot::READ
    }

    /// Snapshot byte of a page in a writable huge page that was migrated to the device
    /// asked: private memory stays huge.
    pub fn local_huge_write(&self) -> u8 {
        self.local_write() | if self.memory_type.is_cpu_accessible() { 0 } else { prot::PMD }
    }

    /// What migrating `huge_pages` whole huge pages of this device's memory back counts,
    /// `small_pages` each.
    pub fn counts_of_huge(&self, huge_pages: usize, small_pages: usize) -> u64 {
        let one_each = self.driver == Driver::UnpatchedC && !self.memory_type.is_cpu_accessible();
        (huge_pages * if one_each { 1 } else { small_pages }) as u64
    }
}

/// Checks the snapshot of some pages, which is the same for all.
#[track_caller]
pub fn ensure_snapshot(device: &Device, pages: Pages, expected: u8) -> Result {
    ensure_snapshots(device, pages, &vec![expected; pages.count])
}

/// Checks the snapshot of some pages.
#[track_caller]
pub fn ensure_snapshots(device: &Device, pages: Pages, expected: &[u8]) -> Result {
    let found = device.snapshot(pages).context("snapshot")?;
    let different = found.iter().zip(expected).filter(|(f, e)| f != e).count();
    match found.iter().zip(expected).enumerate().find(|(_, (f, e))| f != e) {
        None => Ok(()),
        Some((page, (found, expected))) => Err(Failure::failed(format!(
            "snapshot of page {page} is {found:#04x}, expected {expected:#04x}; \
             {different} of {} pages differ",
            pages.count
        ))),
    }
}

/// Migrates pages of one generation to a device, and checks that all are there.
#[track_caller]
pub fn migrate(device: &Device, mapping: &Mapping, range: Range<usize>, generation: u32) -> Result {
    let pages = mapping.pages(range.clone());
    let migrated = device.migrate_to_dev(pages).context("migrating to the device")?;
    pattern::check(&migrated.data, mapping.first_page() + range.start, generation)
        .context("migrating to the device")?;
    expect_counts(migrated.cpages, migrated.faults, range.len() as u64)
}

/// Migrates pages back, and checks the number of those that were on the device.
#[track_caller]
pub fn migrate_back(device: &Device, pages: Pages, count: u64) -> Result {
    let Counts { cpages, faults } = device.migrate_to_sys(pages).context("migrating back")?;
    expect_counts(cpages, faults, count)
}

#[track_caller]
fn expect_counts(cpages: u64, faults: u64, expected: u64) -> Result {
    if (cpages, faults) == (expected, 0) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{cpages} pages migrated with {faults} faults, expected {expected} with 0"
    )))
}

/// What all the pages of a mapping are for the device to read, one generation.
#[track_caller]
pub fn ensure_device_reads(
    device: &Device,
    mapping: &Mapping,
    range: Range<usize>,
    generation: u32,
) -> Result {
    let read = device.read(mapping.pages(range.clone())).context("the device reads")?;
    pattern::check(&read.data, mapping.first_page() + range.start, generation)
        .context("the device reads")
}

/// Has the device write one generation.
#[track_caller]
pub fn device_writes(
    device: &Device,
    mapping: &Mapping,
    range: Range<usize>,
    generation: u32,
) -> Result {
    let data = pattern::pages(mapping.first_page() + range.start, range.len(), generation);
    let written = device.write(mapping.pages(range.clone()), &data).context("the device writes")?;
    crate::ensure_eq!(written.cpages, range.len() as u64);
    Ok(())
}

/// A file of some pages without a name, with the pattern of a generation in it.
pub fn temporary_file(pages: usize, generation: u32) -> Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = open(Path::new("/tmp"), flags, Mode::S_IRUSR | Mode::S_IWUSR);
    let mut file = File::from(file.context("O_TMPFILE in /tmp")?);
    std::io::Write::write_all(&mut file, &pattern::pages(0, pages, generation))?;
    Ok(file)
}
