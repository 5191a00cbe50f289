// SPDX-License-Identifier: GPL-2.0
//! The kernel's settings in sysfs, changed for as long as a test needs it.

use std::fs;

use crate::failure::{Context, Result};
use crate::pages::PAGE_SIZE;

/// A file with another value until this is dropped.
#[derive(Debug)]
pub struct Setting {
    file: String,
    before: String,
}

impl Setting {
    /// Writes a value.
    pub fn new(file: &str, value: &str) -> Result<Self> {
        let setting = Self::keep(file.to_owned())?;
        fs::write(file, value).context(file)?;
        Ok(setting)
    }

    /// Leaves the value as it is; others may change it.
    pub fn keep(file: String) -> Result<Self> {
        let text = fs::read_to_string(&file).context(&file)?;
        Ok(Self { before: selected(&text).to_owned(), file })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(&self.file, &self.before).expect("as it was before");
    }
}

/// The value in the text of a file, which may show it in brackets among all there are.
fn selected(text: &str) -> &str {
    let bracketed = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    bracketed.map_or(text.trim(), |(value, _)| value)
}

const HUGE: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled";

/// Huge pages only where the process wants them, until this is dropped: `khugepaged` leaves the
/// other memory alone.
#[derive(Debug)]
pub struct HugePagesIfAdvised {
    _setting: Setting,
}

impl HugePagesIfAdvised {
    /// Changes the setting for all memory.
    pub fn new() -> Result<Self> {
        Ok(Self { _setting: Setting::new(HUGE, "madvise")? })
    }
}

/// Huge pages of shared memory, too, where the process wants them, until this is dropped.
#[derive(Debug)]
pub struct SharedHugePagesIfAdvised {
    _setting: Setting,
}

impl SharedHugePagesIfAdvised {
    /// Changes the setting for all shared memory.
    pub fn new() -> Result<Self> {
        const SHARED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
        Ok(Self { _setting: Setting::new(SHARED, "advise")? })
    }
}

/// No huge pages but large folios of one size, whatever the advice, until this is dropped.
#[derive(Debug)]
pub struct LargeFolios {
    _settings: [Setting; 2],
}

impl LargeFolios {
    /// Pages of a folio of 64 KB.
    pub const PAGES_OF_64_KB: usize = (64 << 10) / PAGE_SIZE;

    /// Changes the settings for all memory, to folios of so many pages.
    pub fn of_pages(pages: usize) -> Result<Self> {
        Self::with_huge_pages(pages, "never")
    }

    /// The same, but there are huge pages where the process wants them.
    pub fn unless_advised(pages: usize) -> Result<Self> {
        Self::with_huge_pages(pages, "madvise")
    }

    fn with_huge_pages(pages: usize, when: &str) -> Result<Self> {
        let kb = pages * PAGE_SIZE / 1024;
        let large = format!("/sys/kernel/mm/transparent_hugepage/hugepages-{kb}kB/enabled");
        Ok(Self { _settings: [Setting::new(HUGE, when)?, Setting::new(&large, "always")?] })
    }
}

/// KSM as fast as it gets, until this is dropped.
#[derive(Debug)]
pub struct FastKsm {
    _settings: [Setting; 3],
}

impl FastKsm {
    const FULL_SCANS: &'static str = "/sys/kernel/mm/ksm/full_scans";

    /// Starts it; what it merges is what `MADV_MERGEABLE` says.
    pub fn new() -> Result<Self> {
        const PAGES: &str = "/sys/kernel/mm/ksm/pages_to_scan";
        const SLEEP: &str = "/sys/kernel/mm/ksm/sleep_millisecs";
        const RUN: &str = "/sys/kernel/mm/ksm/run";
        Ok(Self {
            _settings: [
                Setting::new(SLEEP, "2")?,
                Setting::new(PAGES, "2000")?,
                Setting::new(RUN, "1")?,
            ],
        })
    }

    /// How often it has looked at all there is.
    pub fn full_scans(&self) -> Result<u64> {
        let text = fs::read_to_string(Self::FULL_SCANS).context(Self::FULL_SCANS)?;
        Ok(text.trim().parse()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_of_a_file() {
        assert_eq!(selected("100\n"), "100");
        assert_eq!(selected("always inherit [madvise] never\n"), "madvise");
        assert_eq!(selected("[always] never\n"), "always");
    }
}
