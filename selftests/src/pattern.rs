// SPDX-License-Identifier: GPL-2.0
//! Contents of a page that tell which page it is, and of which generation.
//!
//! A page is 512 words. Each says all of it: a mark, the generation, the page and
//! its own place in the page, so that wherever data turns up, it tells where it is
//! from. Generation 0 is a page never written: all zeroes.

use std::error::Error;
use std::fmt;

use crate::pages::PAGE_SIZE;

const WORD: usize = size_of::<u64>();
const WORDS: usize = PAGE_SIZE / WORD;

const MARK: u64 = 0xc5;
const MARK_SHIFT: u32 = 56;
const GENERATION_SHIFT: u32 = 32;
const PAGE_SHIFT: u32 = 9;

/// Highest generation there can be.
pub const MAX_GENERATION: u32 = (1 << (MARK_SHIFT - GENERATION_SHIFT)) - 1;
/// Highest number of a page there can be.
pub const MAX_PAGE: usize = (1 << (GENERATION_SHIFT - PAGE_SHIFT)) - 1;

/// Word `index` (of 512) of page `page` in `generation`.
pub fn word(page: usize, generation: u32, index: usize) -> u64 {
    assert!(page <= MAX_PAGE && generation <= MAX_GENERATION && index < WORDS);
    if generation == 0 {
        return 0;
    }
    (MARK << MARK_SHIFT)
        | (u64::from(generation) << GENERATION_SHIFT)
        | ((page as u64) << PAGE_SHIFT)
        | index as u64
}

/// What a word found somewhere is, in words.
pub fn describe(word: u64) -> String {
    if word == 0 {
        return "zero".into();
    }
    if word >> MARK_SHIFT != MARK {
        return "no pattern".into();
    }
    let generation = (word >> GENERATION_SHIFT) & u64::from(MAX_GENERATION);
    let page = (word >> PAGE_SHIFT) & MAX_PAGE as u64;
    let offset = (word as usize % WORDS) * WORD;
    format!("page {page}, generation {generation}, offset {offset:#x}")
}

/// Whether data of whole words can only be from pages of a generation, of whatever numbers, or
/// was never written. The first word is the first of a page.
pub fn is_from(data: &[u8], generation: u32) -> bool {
    const NUMBER: u64 = (MAX_PAGE as u64) << PAGE_SHIFT;
    data.chunks_exact(WORD).enumerate().all(|(i, bytes)| {
        let found = u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
        found == 0 || found & !NUMBER == word(0, generation, i % WORDS)
    })
}

/// Where contents are first not as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Number of the page, as in the pattern.
    pub page: usize,
    /// Offset of the word in the page, in bytes.
    pub offset: usize,
    /// Word expected.
    pub expected: u64,
    /// Word found.
    pub found: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "page {} offset {:#x}: found {:#018x} ({}), expected {:#018x} ({})",
            self.page,
            self.offset,
            self.found,
            describe(self.found),
            self.expected,
            describe(self.expected)
        )
    }
}

impl Error for Mismatch {}

/// Compares a word found at `index` of a page with the pattern.
pub fn check_word(page: usize, generation: u32, index: usize, found: u64) -> Result<(), Mismatch> {
    let expected = word(page, generation, index);
    if found == expected {
        return Ok(());
    }
    Err(Mismatch { page, offset: index * WORD, expected, found })
}

/// Fills whole pages; the first of them is number `first_page`.
pub fn fill(data: &mut [u8], first_page: usize, generation: u32) {
    assert_eq!(data.len() % PAGE_SIZE, 0, "whole pages");
    for (i, bytes) in data.chunks_exact_mut(WORD).enumerate() {
        let word = word(first_page + i / WORDS, generation, i % WORDS);
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
}

/// `count` pages of a pattern, the first of them number `first_page`.
pub fn pages(first_page: usize, count: usize, generation: u32) -> Vec<u8> {
    let mut data = vec![0; count * PAGE_SIZE];
    fill(&mut data, first_page, generation);
    data
}

/// Checks that whole pages are as [`fill`] leaves them.
pub fn check(data: &[u8], first_page: usize, generation: u32) -> Result<(), Mismatch> {
    assert_eq!(data.len() % PAGE_SIZE, 0, "whole pages");
    for (i, bytes) in data.chunks_exact(WORD).enumerate() {
        let found = u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
        check_word(first_page + i / WORDS, generation, i % WORDS, found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for page in [0, 1, 511, 512, MAX_PAGE] {
            for generation in [1, 2, MAX_GENERATION] {
                for index in 0..WORDS {
                    assert!(seen.insert(word(page, generation, index)));
                }
            }
        }
    }

    #[test]
    fn describes_what_it_made() {
        assert_eq!(describe(word(7, 3, 2)), "page 7, generation 3, offset 0x10");
        assert_eq!(
            describe(word(MAX_PAGE, MAX_GENERATION, 511)),
            format!("page {MAX_PAGE}, generation {MAX_GENERATION}, offset 0xff8")
        );
        assert_eq!(describe(word(7, 0, 2)), "zero");
        assert_eq!(describe(42), "no pattern");
    }

    #[test]
    fn checks_what_it_filled() {
        let data = pages(5, 3, 9);
        assert_eq!(check(&data, 5, 9), Ok(()));
        let wrong_generation = check(&data, 5, 8).unwrap_err();
        assert_eq!((wrong_generation.page, wrong_generation.offset), (5, 0));
        let wrong_page = check(&data, 6, 9).unwrap_err();
        assert_eq!(describe(wrong_page.found), "page 5, generation 9, offset 0x0");
    }

    #[test]
    fn finds_any_changed_byte() {
        for at in [0, PAGE_SIZE - 1, PAGE_SIZE, 2 * PAGE_SIZE - 1] {
            let mut data = pages(0, 2, 1);
            data[at] ^= 1;
            let mismatch = check(&data, 0, 1).unwrap_err();
            assert_eq!(mismatch.page * PAGE_SIZE + mismatch.offset, at / WORD * WORD);
        }
    }

    #[test]
    fn knows_where_data_is_from() {
        let mut data = pages(5, 2, 3);
        data[..8].fill(0);
        assert!(is_from(&data, 3));
        assert!(!is_from(&data, 4));
        assert!(!is_from(&data[8..], 3));
    }

    #[test]
    fn generation_zero_is_zero() {
        assert!(pages(3, 1, 0).iter().all(|&byte| byte == 0));
        assert_eq!(check(&[0; PAGE_SIZE], 3, 0), Ok(()));
        assert!(check(&[0; PAGE_SIZE], 3, 1).is_err());
    }
}
