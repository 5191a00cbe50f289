// SPDX-License-Identifier: GPL-2.0

//! Which pages of a chunk of device memory are free.

use core::ops::Range;
use kernel::{
    mm::{
        PMD_ORDER,
        PMD_PAGES, //
    },
    prelude::*, //
};

/// Pages in a block, the largest unit in which folios are handed out.
pub(crate) const BLOCK_PAGES: usize = PMD_PAGES;

/// Calls `f` with each word that has bits of a range of pages, and the mask of these.
fn for_each_word(pages: Range<usize>, mut f: impl FnMut(usize, u64)) {
    let mut next = pages.start;
    while next < pages.end {
        let (word, bit) = (next / 64, next % 64);
        let bits = (64 - bit).min(pages.end - next);
        f(word, (u64::MAX >> (64 - bits)) << bit);
        next += bits;
    }
}

/// A bit for each page.
struct Bits(KVec<u64>);

impl Bits {
    /// Creates bits for so many pages, all of them zero.
    fn new(nr_pages: usize) -> Result<Self> {
        Ok(Self(KVec::zeroed(nr_pages.div_ceil(64), GFP_KERNEL)?))
    }

    /// Returns the first page from `start` on whose bit is set.
    fn next(&self, start: usize) -> Option<usize> {
        let mut word = start / 64;
        let mut bits = self.0.get(word)? & (u64::MAX << (start % 64));
        while bits == 0 {
            word += 1;
            bits = *self.0.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// Returns the first of `1 << order` pages whose bits are all set, within a range of pages.
    ///
    /// Its ends, and the first page, are multiples of that size.
    fn next_run(&self, pages: Range<usize>, order: u32) -> Option<usize> {
        let nr_pages = 1 << order;
        if nr_pages >= 64 {
            return pages.step_by(nr_pages).find(|&page| {
                let words = &self.0[page / 64..(page + nr_pages) / 64];
                words.iter().all(|&word| word == u64::MAX)
            });
        }

        let mask = u64::MAX >> (64 - nr_pages);
        (pages.start / 64..pages.end.div_ceil(64))
            .flat_map(|word| (0..64).step_by(nr_pages).map(move |bit| (word, bit)))
            .find(|&(word, bit)| self.0[word] >> bit & mask == mask)
            .map(|(word, bit)| word * 64 + bit)
    }
}

/// Free pages, from which folios of up to a whole block can be taken.
///
/// Parts of a block are taken from those that are in use already where possible, so that whole ones
/// stay free. What is put back makes a block whole again by itself.
pub(crate) struct FreePages {
    free: Bits,
    /// Pages that were taken and may be put back.
    in_use: Bits,
    /// Number of free pages by block.
    free_in_block: KVec<usize>,
    /// The block of which the last part was taken.
    current: usize,
    nr_free: usize,
    nr_in_use: usize,
}

impl FreePages {
    /// Creates a set of `nr_pages` free pages, a multiple of [`BLOCK_PAGES`].
    pub(crate) fn new(nr_pages: usize) -> Result<Self> {
        if nr_pages == 0 || nr_pages % BLOCK_PAGES != 0 {
            return Err(EINVAL);
        }
        let mut free = Bits::new(nr_pages)?;
        free.0.fill(u64::MAX);
        Ok(Self {
            free,
            in_use: Bits::new(nr_pages)?,
            free_in_block: KVec::from_elem(BLOCK_PAGES, nr_pages / BLOCK_PAGES, GFP_KERNEL)?,
            current: 0,
            nr_free: nr_pages,
            nr_in_use: 0,
        })
    }

    /// Returns whether there is a whole block.
    pub(crate) fn has_whole_block(&self) -> bool {
        self.whole_block().is_some()
    }

    /// Returns the number of pages that can be taken.
    pub(crate) fn nr_free(&self) -> usize {
        self.nr_free
    }

    /// Returns the number of pages that were taken and may be put back.
    pub(crate) fn nr_in_use(&self) -> usize {
        self.nr_in_use
    }

    /// Takes `1 << order` pages, no more than a block, and returns the index of the first one, a
    /// multiple of their number.
    pub(crate) fn take(&mut self, order: u32) -> Option<usize> {
        if order > PMD_ORDER || self.nr_free < 1 << order {
            return None;
        }
        let page = match self.part_of_block(order) {
            Some(page) => page,
            None => self.whole_block()? * BLOCK_PAGES,
        };
        if order < PMD_ORDER {
            self.current = page / BLOCK_PAGES;
        }
        let pages = page..page + (1 << order);
        for_each_word(pages.clone(), |word, mask| {
            self.free.0[word] &= !mask;
            self.in_use.0[word] |= mask;
        });
        self.free_in_block[page / BLOCK_PAGES] -= pages.len();
        self.nr_free -= pages.len();
        self.nr_in_use += pages.len();
        Some(page)
    }

    /// Puts pages back, all of one block.
    #[inline]
    pub(crate) fn put(&mut self, pages: Range<usize>) {
        self.free_in_block[pages.start / BLOCK_PAGES] += pages.len();
        self.nr_free += pages.len();
        self.nr_in_use -= pages.len();
        for_each_word(pages, |word, mask| {
            self.in_use.0[word] &= !mask;
            self.free.0[word] |= mask;
        });
    }

    /// Does without a page that was taken.
    pub(crate) fn discard(&mut self, page: usize) {
        self.nr_in_use -= 1;
        for_each_word(page..page + 1, |word, mask| self.in_use.0[word] &= !mask);
    }

    /// Returns the first page from `start` on that is in use.
    pub(crate) fn next_in_use(&self, start: usize) -> Option<usize> {
        self.in_use.next(start)
    }

    /// Returns the first of `1 << order` free pages of a block that is in use.
    fn part_of_block(&self, order: u32) -> Option<usize> {
        let find_in = |block| {
            let pages = block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES;
            match self.free_in_block[block] {
                nr_free if nr_free < 1 << order || nr_free == BLOCK_PAGES => None,
                _ if order == 0 => self.free.next(pages.start),
                _ => self.free.next_run(pages, order),
            }
        };

        find_in(self.current).or_else(|| (0..self.free_in_block.len()).find_map(find_in))
    }

    fn whole_block(&self) -> Option<usize> {
        self.free_in_block
            .iter()
            .position(|&nr_free| nr_free == BLOCK_PAGES)
    }
}

#[cfg(CONFIG_TEST_HMM_RS_KUNIT_TEST)]
#[kunit_tests(test_hmm_rs_free_pages)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert!(FreePages::new(0).is_err());
        assert!(FreePages::new(BLOCK_PAGES + 1).is_err());
        assert!(FreePages::new(BLOCK_PAGES).is_ok());
    }

    #[test]
    fn bits_of_ranges() -> Result {
        let mut bits = Bits::new(192)?;
        assert_eq!(bits.next(0), None);
        for pages in [3..4, 60..70, 64..128, 0..192] {
            for_each_word(pages.clone(), |word, mask| bits.0[word] |= mask);
            assert_eq!(bits.next(0), Some(pages.start));
            assert_eq!(bits.next(pages.end - 1), Some(pages.end - 1));
            assert_eq!(bits.next(pages.end), None);
            for_each_word(pages.start + 1..pages.end, |word, mask| {
                bits.0[word] &= !mask
            });
            assert_eq!(bits.next(pages.start + 1), None);
            for_each_word(pages, |word, mask| bits.0[word] &= !mask);
        }
        Ok(())
    }

    #[test]
    fn all_pages_can_be_taken() -> Result {
        let mut pages = FreePages::new(2 * BLOCK_PAGES)?;
        for page in 0..2 * BLOCK_PAGES {
            assert_eq!(pages.take(0), Some(page));
        }
        assert_eq!(pages.take(0), None);
        assert_eq!(pages.take(PMD_ORDER), None);
        assert_eq!(pages.nr_in_use(), 2 * BLOCK_PAGES);
        Ok(())
    }

    #[test]
    fn single_pages_leave_whole_blocks() -> Result {
        let mut pages = FreePages::new(3 * BLOCK_PAGES)?;
        let single = pages.take(0).ok_or(ENOMEM)?;
        let block = pages.take(PMD_ORDER).ok_or(ENOMEM)?;
        assert_ne!(single / BLOCK_PAGES, block / BLOCK_PAGES);
        assert_eq!(block % BLOCK_PAGES, 0);
        for _ in 1..BLOCK_PAGES {
            assert_eq!(pages.take(0).map(|page| page / BLOCK_PAGES), Some(0));
        }
        assert!(pages.take(PMD_ORDER).is_some());
        assert_eq!(pages.take(0), None);
        Ok(())
    }

    #[test]
    fn pages_become_a_block_again() -> Result {
        let mut pages = FreePages::new(BLOCK_PAGES)?;
        assert_eq!(pages.take(PMD_ORDER), Some(0));
        // A large folio that was split comes back in pieces, in any order.
        pages.put(0..1);
        assert_eq!(pages.take(PMD_ORDER), None);
        assert_eq!(pages.take(0), Some(0));
        pages.put(0..1);
        for page in (1..BLOCK_PAGES).rev() {
            pages.put(page..page + 1);
        }
        assert_eq!(pages.nr_in_use(), 0);
        assert_eq!(pages.take(PMD_ORDER), Some(0));
        Ok(())
    }

    #[test]
    fn pages_in_use() -> Result {
        let mut pages = FreePages::new(BLOCK_PAGES)?;
        assert_eq!(pages.next_in_use(0), None);
        let first = pages.take(0).ok_or(ENOMEM)?;
        let second = pages.take(0).ok_or(ENOMEM)?;
        pages.put(first..first + 1);
        assert_eq!(pages.next_in_use(0), Some(second));
        assert_eq!(pages.next_in_use(second), Some(second));
        assert_eq!(pages.next_in_use(second + 1), None);
        assert_eq!(pages.next_in_use(BLOCK_PAGES), None);
        Ok(())
    }

    #[test]
    fn discarded_pages_do_not_come_back() -> Result {
        let mut pages = FreePages::new(BLOCK_PAGES)?;
        let first = pages.take(0).ok_or(ENOMEM)?;
        let second = pages.take(0).ok_or(ENOMEM)?;
        pages.discard(first);
        assert_eq!(pages.nr_in_use(), 1);
        assert_eq!(pages.next_in_use(0), Some(second));
        pages.put(second..second + 1);
        assert_eq!(pages.nr_in_use(), 0);
        assert_eq!(pages.next_in_use(0), None);
        assert_eq!(pages.nr_free(), BLOCK_PAGES - 1);
        assert_eq!(pages.take(PMD_ORDER), None);
        assert_eq!(pages.take(0), Some(second));
        Ok(())
    }

    #[test]
    fn parts_of_a_block_are_aligned() -> Result {
        for order in 1..PMD_ORDER {
            let nr_pages = 1 << order;
            let mut pages = FreePages::new(2 * BLOCK_PAGES)?;
            assert_eq!(pages.take(0), Some(0));
            for page in (nr_pages..BLOCK_PAGES).step_by(nr_pages) {
                assert_eq!(pages.take(order), Some(page));
            }
            // The next block, as no such part of this one is free.
            assert_eq!(pages.take(order), Some(BLOCK_PAGES));
            assert_eq!(pages.take(PMD_ORDER), None);

            pages.put(0..1);
            pages.put(BLOCK_PAGES - nr_pages..BLOCK_PAGES);
            assert_eq!(pages.take(order), Some(BLOCK_PAGES + nr_pages));
            assert_eq!(pages.nr_in_use(), BLOCK_PAGES);
        }
        Ok(())
    }

    #[test]
    fn larger_orders_are_refused() -> Result {
        let mut pages = FreePages::new(4 * BLOCK_PAGES)?;
        assert_eq!(pages.take(PMD_ORDER + 1), None);
        Ok(())
    }
}
