// SPDX-License-Identifier: GPL-2.0

//! Lists of the folios of a device.
//!
//! They cost no memory but that of the pages' states, so that a folio can be listed where nothing
//! can be allocated.

use core::num::NonZero;

/// Number of pages of the largest chunk: 256 MB with pages of 4 KB, and whole huge pages of any
/// size.
pub(crate) const MAX_CHUNK_PAGES: usize = 1 << 16;

/// The most chunks that a device can have.
pub(crate) const MAX_CHUNKS: usize = 64;

/// A page of a device: number of the chunk, and index within, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageIndex(NonZero<u32>);

impl PageIndex {
    pub(crate) fn new(chunk: usize, page: usize) -> Self {
        // Neither overflows nor is zero: there are no more than 64 chunks of 65536 pages.
        Self(NonZero::<u32>::MIN.saturating_add((chunk * MAX_CHUNK_PAGES + page) as u32))
    }

    pub(crate) fn chunk(self) -> usize {
        (self.0.get() as usize - 1) / MAX_CHUNK_PAGES
    }

    pub(crate) fn page(self) -> usize {
        (self.0.get() as usize - 1) % MAX_CHUNK_PAGES
    }
}

/// What is before and behind a folio in its list.
#[derive(Clone, Copy, Default)]
pub(crate) struct Links {
    next: Option<PageIndex>,
    prev: Option<PageIndex>,
}

impl Links {
    /// Returns the folio behind this one.
    pub(crate) fn next(&self) -> Option<PageIndex> {
        self.next
    }
}

/// Where the links of folios are.
pub(crate) trait Folios {
    /// Returns the links of a folio by the index of its first page, if there is such a page.
    fn links(&mut self, index: PageIndex) -> Option<&mut Links>;
}

/// A list of folios by the index of their first page. A folio is in one list at most.
#[derive(Clone, Copy, Default)]
pub(crate) struct List {
    first: Option<PageIndex>,
    last: Option<PageIndex>,
    len: usize,
}

impl List {
    /// Returns the first folio.
    pub(crate) fn first(&self) -> Option<PageIndex> {
        self.first
    }

    /// Returns the number of folios.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a folio at the end.
    pub(crate) fn push(&mut self, folios: &mut impl Folios, index: PageIndex) {
        if let Some(links) = folios.links(index) {
            links.prev = self.last;
            links.next = None;
        }
        match self.last.and_then(|last| folios.links(last)) {
            Some(last) => last.next = Some(index),
            None => self.first = Some(index),
        }
        self.last = Some(index);
        self.len += 1;
    }

    /// Moves all folios before `index`, which must be in this list, to the end.
    pub(crate) fn rotate_to(&mut self, folios: &mut impl Folios, index: PageIndex) {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return;
        };
        let Some(prev) = folios.links(index).and_then(|links| links.prev.take()) else {
            return;
        };
        if let Some(links) = folios.links(last) {
            links.next = Some(first);
        }
        if let Some(links) = folios.links(first) {
            links.prev = Some(last);
        }
        if let Some(links) = folios.links(prev) {
            links.next = None;
        }
        self.first = Some(index);
        self.last = Some(prev);
    }

    /// Removes a folio, which must be in this list.
    pub(crate) fn remove(&mut self, folios: &mut impl Folios, index: PageIndex) {
        let Some(links) = folios.links(index) else {
            return;
        };
        let Links { next, prev } = core::mem::take(links);
        match prev.and_then(|prev| folios.links(prev)) {
            Some(prev) => prev.next = next,
            None => self.first = next,
        }
        match next.and_then(|next| folios.links(next)) {
            Some(next) => next.prev = prev,
            None => self.last = prev,
        }
        self.len -= 1;
    }
}

#[cfg(CONFIG_TEST_HMM_RS_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(test_hmm_rs_folio_list)]
mod tests {
    use super::*;

    /// Of chunk 1.
    #[derive(Default)]
    struct Chunk([Links; 4]);

    impl Folios for Chunk {
        fn links(&mut self, index: PageIndex) -> Option<&mut Links> {
            assert_eq!(index.chunk(), 1);
            self.0.get_mut(index.page())
        }
    }

    fn folio(page: usize) -> PageIndex {
        PageIndex::new(1, page)
    }

    /// Whether a list has these pages, in both directions.
    fn has(list: &List, chunk: &mut Chunk, pages: &[usize]) -> bool {
        let mut next = list.first();
        let mut last = None;
        for &page in pages {
            if next != Some(folio(page)) || chunk.0[page].prev != last {
                return false;
            }
            last = next;
            next = chunk.0[page].next;
        }
        next.is_none() && list.last == last && list.len() == pages.len()
    }

    #[test]
    fn indices() {
        for (chunk, page) in [
            (0, 0),
            (0, 1),
            (1, 0),
            (MAX_CHUNKS - 1, MAX_CHUNK_PAGES - 1),
        ] {
            let index = PageIndex::new(chunk, page);
            assert_eq!((index.chunk(), index.page()), (chunk, page));
        }
        assert_ne!(PageIndex::new(0, MAX_CHUNK_PAGES - 1), PageIndex::new(1, 0));
    }

    #[test]
    fn folios_come_in_order() {
        let (mut list, mut chunk) = (List::default(), Chunk::default());
        assert!(has(&list, &mut chunk, &[]));
        for page in [2, 0, 3] {
            list.push(&mut chunk, folio(page));
        }
        assert!(has(&list, &mut chunk, &[2, 0, 3]));
    }

    #[test]
    fn folios_can_go_to_the_end() {
        let (mut list, mut chunk) = (List::default(), Chunk::default());
        for page in 0..4 {
            list.push(&mut chunk, folio(page));
        }
        list.rotate_to(&mut chunk, folio(0));
        assert!(has(&list, &mut chunk, &[0, 1, 2, 3]));
        list.rotate_to(&mut chunk, folio(1));
        assert!(has(&list, &mut chunk, &[1, 2, 3, 0]));
        list.rotate_to(&mut chunk, folio(0));
        assert!(has(&list, &mut chunk, &[0, 1, 2, 3]));
        assert_eq!(chunk.0[2].next(), Some(folio(3)));
        assert_eq!(chunk.0[3].next(), None);
    }

    #[test]
    fn any_folio_can_be_removed() {
        let (mut list, mut chunk) = (List::default(), Chunk::default());
        for page in 0..4 {
            list.push(&mut chunk, folio(page));
        }
        // From the middle, the beginning, the end, and the only one.
        list.remove(&mut chunk, folio(1));
        assert!(has(&list, &mut chunk, &[0, 2, 3]));
        list.remove(&mut chunk, folio(0));
        assert!(has(&list, &mut chunk, &[2, 3]));
        list.remove(&mut chunk, folio(3));
        assert!(has(&list, &mut chunk, &[2]));
        list.remove(&mut chunk, folio(2));
        assert!(has(&list, &mut chunk, &[]));
        list.push(&mut chunk, folio(1));
        assert!(has(&list, &mut chunk, &[1]));
    }
}
