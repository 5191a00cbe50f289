// SPDX-License-Identifier: GPL-2.0
//! What memory contains, whatever the kernel and the drivers make of it: less than
//! [`Model`](super::Model) knows, but true for both drivers, of folios of any size, and
//! while other threads and ksmd are at work.

use std::ops::Range;

use super::memory::Content;
use crate::pattern::{self, Mismatch};

const ZEROES: Content = Content { page: 0, generation: 0 };

/// What is in each page, and which were written.
#[derive(Clone, Debug)]
pub struct Contents {
    pages: Vec<Content>,
    /// Written since the kernel was asked which were.
    written: Vec<bool>,
    /// From here on, another thread discards pages at any time.
    unsafe_from: usize,
}

impl Contents {
    /// Fresh memory.
    pub fn new(pages: usize, unsafe_from: usize) -> Self {
        Self { pages: vec![ZEROES; pages], written: vec![false; pages], unsafe_from }
    }

    /// Checks one word of a page.
    pub fn check(&self, page: usize, index: usize, found: u64) -> Result<(), Mismatch> {
        if page >= self.unsafe_from && found == 0 {
            return Ok(());
        }
        let content = self.pages[page];
        pattern::check_word(content.page, content.generation, index, found)
    }

    /// A page was written.
    pub fn write(&mut self, page: usize, content: Content) {
        self.pages[page] = content;
        self.written[page] = true;
    }

    /// Pages were discarded.
    pub fn discard(&mut self, range: Range<usize>) {
        for page in range {
            self.pages[page] = ZEROES;
            self.written[page] = false;
        }
    }

    /// Pages were moved to where there were none.
    pub fn move_pages(&mut self, range: Range<usize>, to: usize) {
        for (from, to) in range.clone().zip(to..) {
            self.pages[to] = self.pages[from];
            self.written[to] = false;
        }
        self.discard(range);
    }

    /// The kernel says which pages of a range were written; returns one that it lacks.
    /// Others may be among them: of fresh memory, and of what was moved or merged.
    pub fn take_written(&mut self, range: Range<usize>, found: &[usize]) -> Option<usize> {
        let lacks =
            |page: &usize| *page < self.unsafe_from && self.written[*page] && !found.contains(page);
        let lacking = range.clone().find(lacks);
        self.written[range].fill(false);
        lacking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: Content = Content { page: 3, generation: 7 };

    #[test]
    fn contents_of_pages() {
        let mut contents = Contents::new(8, 4);
        for page in [1, 5] {
            contents.write(page, CONTENT);
            assert!(contents.check(page, 9, pattern::word(3, 7, 9)).is_ok());
            assert!(contents.check(page, 9, pattern::word(3, 6, 9)).is_err());
        }
        // Only what another thread discards may be gone.
        assert!(contents.check(1, 9, 0).is_err());
        assert!(contents.check(5, 9, 0).is_ok());
        contents.move_pages(0..2, 2);
        assert!(contents.check(3, 0, pattern::word(3, 7, 0)).is_ok());
        assert!(contents.check(1, 0, 0).is_ok());
        contents.discard(3..4);
        assert!(contents.check(3, 0, 0).is_ok());
    }

    #[test]
    fn written_pages() {
        let mut contents = Contents::new(8, 4);
        for page in [1, 2, 5] {
            contents.write(page, CONTENT);
        }
        assert_eq!(contents.clone().take_written(0..8, &[0, 1, 2]), None);
        assert_eq!(contents.take_written(0..2, &[]), Some(1));
        assert_eq!(contents.take_written(0..8, &[2]), None);
        assert_eq!(contents.take_written(0..8, &[]), None);
    }
}
