// SPDX-License-Identifier: GPL-2.0
//! What a mapping has in its pages, as the CPU sees it.

use std::ops::Range;

use super::Mapping;
use crate::pages::PAGE_SIZE;
use crate::pattern::{self, Mismatch};

const WORDS: usize = PAGE_SIZE / size_of::<u64>();

impl Mapping {
    fn word_at(&self, page: usize, index: usize) -> *mut u64 {
        assert!(index < WORDS);
        assert!(self.is_mapped(&(page..page + 1)), "page {page} is not mapped");
        let addr = self.addr + page * PAGE_SIZE + index * size_of::<u64>();
        std::ptr::with_exposed_provenance_mut(addr)
    }

    /// Reads word `index` (of 512) of a page.
    pub fn read(&self, page: usize, index: usize) -> u64 {
        // SAFETY: Aligned, in a piece of the address space that is ours, and without
        // any reference to it. Where the protection forbids it, the CPU faults.
        unsafe { self.word_at(page, index).read_volatile() }
    }

    /// Writes word `index` (of 512) of a page.
    pub fn write(&self, page: usize, index: usize, word: u64) {
        // SAFETY: As in `read`.
        unsafe { self.word_at(page, index).write_volatile(word) }
    }

    /// Copies pages out.
    pub fn contents(&self, range: Range<usize>) -> Vec<u8> {
        range
            .flat_map(|page| (0..WORDS).map(move |index| (page, index)))
            .flat_map(|(page, index)| self.read(page, index).to_ne_bytes())
            .collect()
    }

    /// Reads one word of each page, to fault it in.
    pub fn touch(&self, range: Range<usize>) {
        for page in range {
            self.read(page, 0);
        }
    }

    /// Writes the pattern of `generation`, see [`pattern`].
    pub fn fill(&self, range: Range<usize>, generation: u32) {
        for page in range {
            for index in 0..WORDS {
                let word = pattern::word(self.first_page + page, generation, index);
                self.write(page, index, word);
            }
        }
    }

    /// Checks that the CPU sees the pattern of `generation`; 0: all zeroes.
    pub fn check(&self, range: Range<usize>, generation: u32) -> Result<(), Mismatch> {
        for page in range {
            for index in 0..WORDS {
                let found = self.read(page, index);
                pattern::check_word(self.first_page + page, generation, index, found)?;
            }
        }
        Ok(())
    }
}
