// SPDX-License-Identifier: GPL-2.0

//! How much is worked on at a time.

use core::ops::Range;
use kernel::{
    mm::PMD_PAGES,
    page::PAGE_SIZE, //
};

/// Pages that are worked on at a time.
pub(crate) const WINDOW_PAGES: usize = PMD_PAGES;

/// Returns the first part of a range of addresses, in bytes, that is within a window.
pub(crate) fn first_window(range: Range<usize>) -> Range<usize> {
    const SIZE: usize = WINDOW_PAGES * PAGE_SIZE;

    let rest = SIZE - range.start % SIZE;
    range.start..range.start + rest.min(range.end - range.start)
}

#[cfg(CONFIG_TEST_HMM_RS_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(test_hmm_rs_windows)]
mod tests {
    use super::*;

    const SIZE: usize = WINDOW_PAGES * PAGE_SIZE;

    #[test]
    fn windows_are_aligned() {
        // Up to the boundary first, then whole windows, then the rest.
        assert_eq!(first_window(PAGE_SIZE..3 * SIZE), PAGE_SIZE..SIZE);
        assert_eq!(first_window(SIZE..3 * SIZE), SIZE..2 * SIZE);
        assert_eq!(first_window(SIZE..SIZE + PAGE_SIZE), SIZE..SIZE + PAGE_SIZE);
    }

    #[test]
    fn windows_do_not_wrap() {
        let end = usize::MAX - PAGE_SIZE + 1;
        let start = end - PAGE_SIZE;
        assert_eq!(first_window(start..end), start..end);
    }
}
