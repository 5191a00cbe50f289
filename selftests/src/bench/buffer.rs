// SPDX-License-Identifier: GPL-2.0
//! Memory whose pages are known to be of one size.

use super::smaps::{self, Mapped};
use crate::failure::Result;
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, Pages};
use crate::settings::LargeFolios;
use crate::{ensure, ensure_eq, pagemap};

/// By what memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// By PTEs, of 4 KB.
    Small,
    /// By PTEs, of folios of 64 KB.
    Large,
    /// By PMDs, of 2 MB.
    Huge,
}

impl PageSize {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Small, Self::Large, Self::Huge];

    /// Pages of 4 KB that one is as large as.
    pub fn pages(self) -> usize {
        match self {
            Self::Small => 1,
            Self::Large => LargeFolios::PAGES_OF_64_KB,
            Self::Huge => HUGE_PAGES,
        }
    }

    /// What memory of this size needs for as long as there is some.
    pub fn settings(self) -> Result<Option<LargeFolios>> {
        match self {
            Self::Large => LargeFolios::of_pages(self.pages()).map(Some),
            Self::Small | Self::Huge => Ok(None),
        }
    }
}

/// Anonymous memory, all of which was written to.
#[derive(Debug)]
pub struct Buffer {
    mapping: Mapping,
    page_size: PageSize,
}

impl Buffer {
    /// Maps memory and writes to it. The [settings](PageSize::settings) must be those of its size.
    pub fn new(page_size: PageSize, count: usize) -> Result<Self> {
        let mapping = match page_size {
            PageSize::Small => Mapping::small(count)?,
            PageSize::Large => Mapping::anonymous(count)?,
            PageSize::Huge => Mapping::huge(count)?,
        };
        Self::written(mapping, page_size)
    }

    /// Small pages, the first of them `skew` pages behind a multiple of 2 MB.
    pub fn skewed(count: usize, skew: usize) -> Result<Self> {
        Self::written(Mapping::small_skewed(count, skew)?, PageSize::Small)
    }

    fn written(mapping: Mapping, page_size: PageSize) -> Result<Self> {
        for page in 0..mapping.count() {
            mapping.write(page, 0, page as u64);
        }
        let buffer = Self { mapping, page_size };
        buffer.check()?;
        Ok(buffer)
    }

    /// Fails unless all pages are mapped and of their size.
    pub fn check(&self) -> Result {
        let resident = self.all().bytes();
        let huge = if self.page_size == PageSize::Huge { resident } else { 0 };
        ensure_eq!(smaps::mapped(self.all())?, Mapped { resident, huge });
        if self.page_size == PageSize::Large {
            let folio = self.page_size.pages();
            let expected = self.all().count / folio * (folio - 1);
            ensure_eq!(pagemap::tail_pages(self.all())?, expected, "pages of large folios");
        }
        Ok(())
    }

    /// All its pages.
    pub fn all(&self) -> Pages {
        self.mapping.all()
    }

    /// The CPU reads each page.
    pub fn touch(&self) {
        self.mapping.touch(0..self.mapping.count());
    }

    /// The CPU copies all pages of another buffer.
    pub fn copy_from(&self, other: &Self) {
        assert_eq!(self.all().count, other.all().count);
        let from: *const u8 = std::ptr::with_exposed_provenance(other.all().addr);
        let to = std::ptr::with_exposed_provenance_mut(self.all().addr);
        // SAFETY: Both buffers are mapped and of this size, and there are no references to them.
        unsafe { std::ptr::copy_nonoverlapping(from, to, self.all().bytes()) };
    }

    /// The first byte of the first page.
    pub fn first_byte(&self) -> u8 {
        self.mapping.read(0, 0).to_ne_bytes()[0]
    }

    /// Fails unless a snapshot that the device wrote here says the same of each page.
    pub fn check_snapshot(&self, pages: usize, expected: u8) -> Result {
        const BYTES: usize = size_of::<u64>();
        const WORDS: usize = crate::pages::PAGE_SIZE / BYTES;
        ensure!(pages % BYTES == 0);
        for word in 0..pages / BYTES {
            let found = self.mapping.read(word / WORDS, word % WORDS).to_ne_bytes();
            ensure_eq!(found, [expected; BYTES], "snapshot of page {} and following", word * BYTES);
        }
        Ok(())
    }
}
