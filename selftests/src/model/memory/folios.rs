// SPDX-License-Identifier: GPL-2.0
//! Folios, and the blocks of pages that are mapped together.

use std::ops::Range;

use super::{Block, Content, Folio, FolioId, Memory, Part, Place, Pte};
use crate::pages::HUGE_PAGES;

impl Memory {
    fn new_folio(&mut self, place: Place, content: Content, offset: usize) -> FolioId {
        let folio = Folio {
            place,
            content,
            file: self.file_of(place),
            offset,
            mapped: 1,
            pinned: 0,
            referenced: 0,
            part: None,
            is_lazy: false,
        };
        match self.unused.pop() {
            Some(id) => {
                self.folios[id] = folio;
                id
            }
            None => {
                self.folios.push(folio);
                self.folios.len() - 1
            }
        }
    }

    pub(super) fn map_new(&mut self, page: usize, place: Place, content: Content, writable: bool) {
        let folio = self.new_folio(place, content, self.pages[page].offset);
        self.pages[page].pte = Pte::Mapped { folio, writable, exclusive: true };
    }

    pub(super) fn put_if_unused(&mut self, id: FolioId) {
        if self.folios[id].is_unused() {
            self.unused.push(id);
        }
    }

    pub(super) fn unmap_folio(&mut self, id: FolioId) {
        self.folios[id].mapped -= 1;
        self.put_if_unused(id);
    }

    /// The folio that a page has, if it is not the zero page.
    pub(super) fn folio_of(&self, page: usize) -> Option<FolioId> {
        match self.pages[page].pte {
            Pte::Empty | Pte::Zero => None,
            Pte::Mapped { folio, .. } | Pte::DeviceExclusive { folio } => Some(folio),
        }
    }

    /// Where a page is on a device and mapped, its folio.
    pub(super) fn on_device(&self, page: usize) -> Option<(FolioId, usize)> {
        match self.pages[page].pte {
            Pte::Mapped { folio, .. } => match self.folios[folio].place {
                Place::Device(device) => Some((folio, device)),
                Place::System => None,
            },
            _ => None,
        }
    }

    pub(super) fn block_of(&self, page: usize) -> usize {
        (self.shape.skew + page) / HUGE_PAGES
    }

    /// The pages of a block that exist.
    pub(super) fn pages_of(&self, block: usize) -> Range<usize> {
        let start = block * HUGE_PAGES;
        let end = start + HUGE_PAGES;
        start.saturating_sub(self.shape.skew)..(end - self.shape.skew).min(self.pages.len())
    }

    /// Cuts a range into what is within one block each.
    pub(super) fn by_block(&self, range: Range<usize>) -> Vec<Range<usize>> {
        (self.block_of(range.start)..=self.block_of(range.end - 1))
            .map(|block| self.pages_of(block))
            .map(|pages| pages.start.max(range.start)..pages.end.min(range.end))
            .collect()
    }

    pub(super) fn is_whole_block(&self, range: &Range<usize>) -> bool {
        range.len() == HUGE_PAGES && self.pages_of(self.block_of(range.start)) == *range
    }

    pub(super) fn block(&self, page: usize) -> Block {
        self.blocks[self.block_of(page)]
    }

    pub(super) fn set_block(&mut self, page: usize, kind: Block) {
        let block = self.block_of(page);
        self.blocks[block] = kind;
    }

    pub(super) fn is_mapped_huge(&self, page: usize) -> bool {
        matches!(self.block(page), Block::Huge | Block::HugeZero)
    }

    /// Has small entries map what a huge one does.
    pub(super) fn split(&mut self, page: usize) {
        if self.is_mapped_huge(page) {
            self.set_block(page, Block::Table);
        }
    }

    /// The pages of a block are one huge page from now on.
    pub(super) fn make_huge_page(&mut self, block: Range<usize>) {
        self.huge_pages += 1;
        for (index, page) in block.clone().enumerate() {
            let folio = self.folio_of(page).expect("is there");
            self.folios[folio].part = Some(Part { huge_page: self.huge_pages, index });
        }
        self.set_block(block.start, Block::Huge);
    }

    /// The pages of a huge page were migrated one by one.
    pub(super) fn make_small_pages(&mut self, block: Range<usize>) {
        for folio in block.filter_map(|page| self.folio_of(page)).collect::<Vec<_>>() {
            self.folios[folio].part = None;
        }
    }

    /// The part of a huge page that a page has.
    fn part_of(&self, page: usize) -> Option<Part> {
        self.folio_of(page).and_then(|folio| self.folios[folio].part)
    }

    /// Whether a range is a huge page, whole and in order, however it is mapped.
    pub(super) fn is_one_huge_page(&self, range: &Range<usize>) -> bool {
        let huge_page = |page| self.part_of(page).map(|part| part.huge_page);
        let first = huge_page(range.start);
        let is_in_place = |page| huge_page(page) == first && self.is_in_place(page);
        self.is_whole_block(range) && range.clone().all(is_in_place)
    }

    /// Whether a page of a huge page is where it would be if all of that was in its block.
    fn is_in_place(&self, page: usize) -> bool {
        let block = self.pages_of(self.block_of(page));
        self.part_of(page).is_some_and(|part| block.start + part.index == page)
    }

    /// Where all of the huge page that a page is a part of would be, if there is room for it
    /// in the VMA, or else the page.
    pub(super) fn folio_range(&self, page: usize) -> Range<usize> {
        let block = self.pages_of(self.block_of(page));
        if self.is_in_place(page) && self.is_one_vma(&block) { block } else { page..page + 1 }
    }

    /// Splits the huge page that a page is a part of, not only how it is mapped. Core mm
    /// has the zero page take the place of what has only zeroes. Returns whether there was
    /// a huge page.
    pub(super) fn split_huge_page(&mut self, page: usize) -> bool {
        let huge_page_of =
            |memory: &Self, page: usize| memory.part_of(page).map(|part| part.huge_page);
        let Some(huge_page) = huge_page_of(self, page) else {
            return false;
        };
        for page in 0..self.pages.len() {
            if huge_page_of(self, page) != Some(huge_page) {
                continue;
            }
            self.split(page);
            let id = self.folio_of(page).expect("is there");
            let folio = &mut self.folios[id];
            folio.part = None;
            if folio.place == Place::System && folio.content.generation == 0 {
                self.unmap_folio(id);
                self.pages[page].pte = Pte::Zero;
                self.invalidate_page(page);
            }
        }
        true
    }

    /// After something was removed from a block.
    pub(super) fn forget_empty_block(&mut self, page: usize) {
        if !self.shape.has_huge_pages {
            return;
        }
        let pages = &self.pages[self.pages_of(self.block_of(page))];
        if pages.iter().all(|p| p.protection.is_none()) {
            self.set_block(page, Block::Hole);
        } else if self.block(page) == Block::Table && pages.iter().all(|p| p.pte == Pte::Empty) {
            self.set_block(page, Block::Emptied);
        }
    }

    /// Whether there is nothing in the block of a page, not even a table.
    pub(super) fn is_hole(&mut self, page: usize) -> bool {
        if self.block(page) == Block::Emptied {
            let kind = if self.choices.choose() { Block::Table } else { Block::Hole };
            self.set_block(page, kind);
        }
        self.block(page) == Block::Hole
    }

    /// Whether a fault where nothing is makes a huge page.
    pub(super) fn takes_huge(&mut self, page: usize) -> bool {
        let block = self.pages_of(self.block_of(page));
        self.shape.has_huge_pages && self.is_one_vma(&block) && self.is_hole(page)
    }

    fn is_one_vma(&self, range: &Range<usize>) -> bool {
        let pages = &self.pages[range.clone()];
        pages.iter().all(|p| p.protection.is_some()) && pages[1..].iter().all(|p| !p.begins_vma)
    }
}
