// SPDX-License-Identifier: GPL-2.0
//! Pages: how large they are, and ranges of them.

use std::ops::Range;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
/// Pages of a huge page, which a PMD maps.
pub const HUGE_PAGES: usize = 512;
/// Bytes of a huge page.
pub const HUGE_PAGE_SIZE: usize = HUGE_PAGES * PAGE_SIZE;

/// A range of the address space; nothing needs to be mapped there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Address of the first page.
    pub addr: usize,
    /// Number of pages.
    pub count: usize,
}

impl Pages {
    /// Size in bytes.
    pub fn bytes(self) -> usize {
        self.count * PAGE_SIZE
    }

    /// Some pages of these, numbered from 0.
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.count, "{range:?} of {self:?}");
        Self { addr: self.addr + range.start * PAGE_SIZE, count: range.len() }
    }
}
