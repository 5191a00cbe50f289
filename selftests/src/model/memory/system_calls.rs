// SPDX-License-Identifier: GPL-2.0
//! What the process asks of the kernel.

use std::ops::Range;

use super::{Access, Block, ChildPage, FolioId, Memory, Place, Protection, Pte, UNMAPPED};
use crate::uapi::MemoryType;

impl Memory {
    /// Maps fresh memory, readable and writable.
    pub fn map(&mut self, range: Range<usize>) {
        self.unmap(range.clone());
        for page in range.clone() {
            self.pages[page].protection = Some(Protection::Write);
            self.pages[page].offset = page;
        }
        self.pages[range.start].begins_vma = true;
        self.begin_vma_after(range);
    }

    fn begin_vma_after(&mut self, range: Range<usize>) {
        if let Some(next) = self.pages.get_mut(range.end) {
            next.begins_vma = next.protection.is_some();
        }
    }

    /// Unmaps, where something is mapped.
    pub fn unmap(&mut self, range: Range<usize>) {
        self.drop_contents(range.clone());
        for page in range.clone() {
            self.pages[page] = UNMAPPED;
        }
        self.begin_vma_after(range.clone());
        for part in self.by_block(range) {
            self.forget_empty_block(part.start);
        }
    }

    /// Unmaps the folios of a range.
    pub fn drop_contents(&mut self, range: Range<usize>) {
        self.invalidate(range.clone());
        for part in self.by_block(range) {
            let huge = self.is_mapped_huge(part.start);
            let whole = self.is_whole_block(&part);
            if huge && !whole {
                self.split(part.start);
            }
            for page in part.clone() {
                if let Some(folio) = self.folio_of(page) {
                    self.unmap_folio(folio);
                }
                self.pages[page].pte = Pte::Empty;
            }
            if huge && whole {
                self.set_block(part.start, Block::Hole);
            }
            self.forget_empty_block(part.start);
        }
    }

    /// Changes the protection of pages that are all mapped.
    pub fn protect(&mut self, range: Range<usize>, protection: Protection) {
        for part in self.by_block(range.clone()) {
            let changes = part.clone().any(|p| self.protection(p) != Some(protection));
            if changes && !self.is_whole_block(&part) {
                self.split(part.start);
            }
        }
        for page in range.clone() {
            if self.protection(page) == Some(protection) {
                continue;
            }
            self.invalidate_page(page);
            let on_private = self.is_private() && self.on_device(page).is_some();
            let page = &mut self.pages[page];
            page.protection = Some(protection);
            if let Pte::Mapped { writable, exclusive, .. } = &mut page.pte {
                *writable = protection == Protection::Write && *exclusive && !on_private;
            }
        }
        self.pages[range.start].begins_vma = true;
        self.begin_vma_after(range);
    }

    /// Moves pages that are all mapped to where there is no overlap.
    pub fn move_pages(&mut self, range: Range<usize>, to: usize) {
        let target = to..to + range.len();
        self.unmap(target.clone());
        self.invalidate(range.clone());
        for part in self.by_block(range.clone()) {
            let target = part.start + to - range.start..part.end + to - range.start;
            let whole = self.is_whole_block(&part) && self.is_whole_block(&target);
            let kind = self.block(part.start);
            if !whole {
                self.split(part.start);
            }
            for (from, to) in part.clone().zip(target.clone()) {
                self.pages[to] = std::mem::replace(&mut self.pages[from], UNMAPPED);
            }
            if whole {
                self.set_block(target.start, kind);
            } else {
                for part in self.by_block(target) {
                    let filled = self.pages[part.clone()].iter().any(|p| p.pte != Pte::Empty);
                    match self.block(part.start) {
                        _ if filled => self.set_block(part.start, Block::Table),
                        Block::Hole if kind != Block::Hole && self.shape.has_huge_pages => {
                            self.set_block(part.start, Block::Emptied);
                        }
                        _ => {}
                    }
                }
            }
            self.forget_empty_block(part.start);
        }
        self.pages[to].begins_vma = true;
        self.begin_vma_after(target);
        self.begin_vma_after(range);
    }

    /// `MADV_FREE` of pages, which are written right after.
    pub fn free_lazily(&mut self, range: Range<usize>) {
        self.invalidate(range.clone());
        for part in self.by_block(range) {
            for page in part.clone() {
                if !self.is_one_huge_page(&part) && self.on_device(page).is_none() {
                    self.split_huge_page(page);
                }
            }
            for page in part {
                if let Pte::Mapped { folio, .. } = self.pages[page].pte {
                    let folio = &mut self.folios[folio];
                    folio.is_lazy |= folio.place == Place::System;
                }
            }
        }
    }

    /// Whether reclaim may unmap a page that it looks at: one that was once freed lazily.
    /// As that was written since, it maps it again.
    pub fn may_unmap_in_reclaim(&self, page: usize) -> bool {
        self.folio_of(page).is_some_and(|folio| self.folios[folio].is_lazy)
    }

    /// Forks a child, which reads all it can, and then stays if `hold`.
    pub fn fork(&mut self, hold: bool) {
        self.invalidate(0..self.pages.len());
        let mut shared = Vec::new();
        for page in 0..self.pages.len() {
            if let Pte::DeviceExclusive { folio } = self.pages[page].pte {
                let writable = self.allows(page, Access::Write);
                self.pages[page].pte = Pte::Mapped { folio, writable, exclusive: true };
            }
            let is_readable = self.allows(page, Access::Read);
            if let Pte::Mapped { folio, writable, exclusive } = &mut self.pages[page].pte {
                // What is pinned is copied for the child at once.
                if *exclusive && self.folios[*folio].pinned > 0 {
                    continue;
                }
                (*writable, *exclusive) = (false, false);
                self.folios[*folio].mapped += 1;
                shared.push(ChildPage { folio: *folio, is_readable });
            }
        }
        if hold {
            self.child = Some(shared);
        } else {
            self.end_of_child(&shared);
        }
    }

    /// The held child reads all it can, writes, and exits.
    pub fn join(&mut self) {
        if let Some(shared) = self.child.take() {
            self.end_of_child(&shared);
        }
    }

    fn end_of_child(&mut self, shared: &[ChildPage]) {
        let mut page_of = vec![None; self.folios.len()];
        for page in 0..self.pages.len() {
            if let Some(folio) = self.folio_of(page) {
                page_of[folio] = Some(page);
            }
        }
        let touched = shared
            .iter()
            .filter(|page| page.is_readable && self.memory_type == MemoryType::Private);
        for id in touched.map(|page| page.folio).collect::<Vec<_>>() {
            while let Place::Device(device) = self.folios[id].place {
                match page_of[id] {
                    // Tries again after a failed allocation.
                    Some(page) => drop(self.fault_back(page)),
                    None if std::mem::take(&mut self.fails[device]) => {}
                    None => self.migrate_everywhere(id),
                }
            }
        }
        for child_page in shared {
            self.unmap_folio(child_page.folio);
        }
    }

    fn migrate_everywhere(&mut self, id: FolioId) {
        self.folios[id].place = Place::System;
        self.unmap_everywhere(id);
    }
}
