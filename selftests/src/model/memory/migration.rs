// SPDX-License-Identifier: GPL-2.0
//! Migration to the devices and back.

use std::collections::HashMap;
use std::ops::Range;

use nix::errno::Errno;

use super::{Access, Block, Folio, FolioId, INVALID, Memory, Part, Place, Pte, ZEROES};
use crate::pages::HUGE_PAGES;

impl Memory {
    /// The parts of a range that are migrated at a time, as far as there is memory that
    /// can be, and whether that is all.
    pub fn windows(&self, range: Range<usize>) -> (Vec<Range<usize>>, bool) {
        let mut windows = Vec::new();
        for block in self.by_block(range) {
            let mut start = block.start;
            while start < block.end {
                if !self.allows(start, Access::Read) {
                    return (windows, false);
                }
                let end = self.end_of_vma(start, block.end);
                windows.push(start..end);
                start = end;
            }
        }
        (windows, true)
    }

    /// Migrates what it can of a window to a device. Returns whether it split a huge page,
    /// which may have invalidated what is mapped where that once was.
    pub fn migrate_to_device(&mut self, device: usize, window: Range<usize>) -> bool {
        self.invalidate(window.clone());
        let first = window.start;
        let whole = self.shape.has_huge_pages && self.is_whole_block(&window);
        match self.block(first) {
            Block::Huge if self.on_device(first).is_some() => return false,
            Block::Huge | Block::HugeZero if whole => {
                self.migrate_huge_to_device(device, window);
                return false;
            }
            Block::Hole | Block::Emptied if whole && self.is_hole(first) => {
                self.migrate_huge_to_device(device, window);
                return false;
            }
            Block::Table if self.is_one_huge_page(&window) && self.is_source(first) => {
                self.migrate_whole_to_device(device, window);
                return false;
            }
            _ => {}
        }
        let mut has_split = false;
        for page in window.clone() {
            if self.is_source(page) {
                has_split |= self.split_huge_page(page);
            }
        }
        for page in window {
            if self.is_source(page) && !std::mem::take(&mut self.fails[device]) {
                self.move_to_device(device, page);
            }
        }
        has_split
    }

    /// Whether a page can be migrated from system memory.
    fn is_source(&self, page: usize) -> bool {
        match self.pages[page].pte {
            Pte::Empty | Pte::Zero => true,
            Pte::Mapped { folio, .. } => {
                let folio = &self.folios[folio];
                folio.place == Place::System && folio.can_migrate()
            }
            Pte::DeviceExclusive { .. } => false,
        }
    }

    fn move_to_device(&mut self, device: usize, page: usize) {
        self.set_block(page, Block::Table);
        self.put_on_device(device, page);
    }

    fn put_on_device(&mut self, device: usize, page: usize) {
        match self.pages[page].pte {
            Pte::Mapped { folio, .. } => self.migrate(folio, Place::Device(device)),
            _ => {
                let writable = self.allows(page, Access::Write);
                self.map_new(page, Place::Device(device), ZEROES, writable);
            }
        }
    }

    pub(super) fn file_of(&self, place: Place) -> u32 {
        match place {
            Place::System => 0,
            Place::Device(device) => self.files[device],
        }
    }

    /// Migrates a folio that was collected where this process maps it.
    pub(super) fn migrate(&mut self, folio: FolioId, place: Place) {
        self.folios[folio].place = place;
        self.folios[folio].file = self.file_of(place);
        if self.folios[folio].mapped > 1 {
            self.unmap_everywhere(folio);
        }
    }

    /// Migrates a block that is one source: a huge page, the huge zero page or a hole.
    fn migrate_huge_to_device(&mut self, device: usize, block: Range<usize>) {
        if self.migrate_whole_to_device(device, block.clone()) {
            self.make_huge_page(block);
        } else {
            self.set_block(block.start, Block::Table);
        }
    }

    /// Migrates a block that is one source. Returns whether it is one folio then.
    fn migrate_whole_to_device(&mut self, device: usize, block: Range<usize>) -> bool {
        let failed = std::mem::take(&mut self.fails[device]);
        for page in block.clone() {
            self.put_on_device(device, page);
        }
        if failed {
            self.make_small_pages(block);
        }
        !failed
    }

    /// Migrates a window back. Returns the number of pages.
    pub fn migrate_to_system(
        &mut self,
        device: usize,
        window: Range<usize>,
    ) -> Result<usize, Errno> {
        self.invalidate(window.clone());
        let migrating = |memory: &Self, page: &usize| {
            memory
                .on_device(*page)
                .is_some_and(|(id, on)| on == device && memory.folios[id].can_migrate())
        };
        let mut pages: Vec<_> = window.clone().filter(|page| migrating(self, page)).collect();
        if pages.is_empty() {
            return Ok(0);
        }
        let is_whole = self.is_one_huge_page(&window);
        if !is_whole {
            for &page in &pages {
                self.split_huge_page(page);
            }
        }
        if std::mem::take(&mut self.fails[device]) {
            if is_whole {
                self.split(window.start);
                self.make_small_pages(window);
            } else if self.is_private() {
                return Err(Errno::ENOMEM);
            } else {
                // The CPU can use it where it is.
                pages.remove(0);
            }
        }
        for &page in &pages {
            let (folio, _) = self.on_device(page).expect("is on the device");
            self.migrate(folio, Place::System);
        }
        Ok(pages.len())
    }

    /// Migrates everything on a device back. Returns whether that is all.
    pub fn evict(&mut self, device: usize) -> bool {
        self.evict_where(|folio| folio.place == Place::Device(device))
    }

    fn evict_where(&mut self, is_to_go: impl Fn(&Folio) -> bool) -> bool {
        // What is unmapped for it, even in vain, comes back as a read-only page, if it was
        // exclusive to a device. What is pinned is not unmapped.
        for page in &mut self.pages {
            if let Pte::DeviceExclusive { folio: id } = page.pte {
                if is_to_go(&self.folios[id]) && self.folios[id].pinned == 0 {
                    page.pte = Pte::Mapped { folio: id, writable: false, exclusive: true };
                }
            }
        }
        self.split_partly_mapped(&is_to_go);
        let mut is_all = true;
        for id in 0..self.folios.len() {
            if is_to_go(&self.folios[id]) && !self.folios[id].is_unused() {
                if self.folios[id].mapped > 0 {
                    self.unmap_everywhere(id);
                }
                if self.folios[id].can_migrate() {
                    self.folios[id].place = Place::System;
                } else {
                    is_all = false;
                }
            }
        }
        is_all
    }

    /// Splits the huge pages of which a part is not mapped any more.
    fn split_partly_mapped(&mut self, is_to_go: &impl Fn(&Folio) -> bool) {
        let mut mapped = HashMap::new();
        for folio in self.folios.iter().filter(|folio| is_to_go(folio) && folio.mapped > 0) {
            if let Some(huge_page) = folio.huge_page() {
                *mapped.entry(huge_page).or_insert(0) += 1;
            }
        }
        for folio in &mut self.folios {
            let is_split =
                |part: Part| mapped.get(&part.huge_page).is_some_and(|&n| n < HUGE_PAGES);
            folio.part = folio.part.filter(|&part| !is_split(part));
        }
    }

    /// The device is closed, which evicts what it has allocated since it was opened, and
    /// opened again.
    pub fn reopen(&mut self, device: usize) {
        let file = self.files[device];
        self.evict_where(|folio| folio.place == Place::Device(device) && folio.file == file);
        self.files[device] += 1;
        self.fails[device] = false;
        self.mirrors[device].fill(INVALID);
    }
}
