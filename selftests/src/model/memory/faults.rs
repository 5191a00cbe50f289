// SPDX-License-Identifier: GPL-2.0
//! Faults of the CPU and of the devices.

use std::ops::Range;

use nix::errno::Errno;

use super::{Access, Block, Content, Entry, FolioId, Memory, Mirrored, Place, Pte, ZEROES};

impl Memory {
    /// Whether a page is mapped for the CPU to access it so.
    fn is_accessible(&self, page: usize, access: Access) -> bool {
        match self.pages[page].pte {
            Pte::Empty | Pte::DeviceExclusive { .. } => false,
            Pte::Zero => access == Access::Read,
            Pte::Mapped { writable, .. } => {
                let on_private = self.is_private() && self.on_device(page).is_some();
                !on_private && (access == Access::Read || writable)
            }
        }
    }

    /// One page fault in a VMA that allows the access. `ENOMEM`: an allocation failed,
    /// as asked for; it works when tried again.
    fn fault(&mut self, page: usize, access: Access) -> Result<(), Errno> {
        if self.is_accessible(page, access) {
            return Ok(());
        }
        let writable = self.allows(page, Access::Write);
        let content = self.content(page);
        match self.pages[page].pte {
            Pte::Empty => {
                let huge = self.takes_huge(page);
                self.fill_hole(page, huge, access);
            }
            Pte::Zero => {
                let huge = self.block(page) == Block::HugeZero;
                self.fill_hole(page, huge, access);
            }
            Pte::DeviceExclusive { folio } => {
                self.pages[page].pte = Pte::Mapped { folio, writable, exclusive: true };
                self.invalidate_page(page);
            }
            Pte::Mapped { .. } if self.is_private() && self.on_device(page).is_some() => {
                return self.fault_back(page);
            }
            // A huge page is always used once: its children do not stay.
            Pte::Mapped { folio, exclusive, .. } => {
                if exclusive || self.can_reuse(folio) {
                    let reused = if self.block(page) == Block::Huge {
                        self.pages_of(self.block_of(page))
                    } else {
                        page..page + 1
                    };
                    for page in reused {
                        self.reuse(page);
                    }
                } else {
                    self.unmap_folio(folio);
                    self.map_new(page, Place::System, content, true);
                    self.invalidate_page(page);
                }
            }
        }
        Ok(())
    }

    /// Whether a folio that may be shared is not copied on write, after all. Of a large one,
    /// core mm copies the last page that is mapped, to get rid of the rest.
    fn can_reuse(&self, folio: FolioId) -> bool {
        let folio = &self.folios[folio];
        let is_last = folio.huge_page().is_some_and(|huge_page| {
            let parts = self.folios.iter().filter(|part| part.huge_page() == Some(huge_page));
            parts.map(|part| part.mapped).sum::<usize>() <= 1
        });
        folio.is_used_once() && !is_last
    }

    fn reuse(&mut self, page: usize) {
        if let Pte::Mapped { writable, exclusive, .. } = &mut self.pages[page].pte {
            (*writable, *exclusive) = (true, true);
        }
    }

    /// Fills what is empty or the zero page.
    fn fill_hole(&mut self, page: usize, huge: bool, access: Access) {
        let range = if huge { self.pages_of(self.block_of(page)) } else { page..page + 1 };
        for page in range.clone() {
            if self.pages[page].pte == Pte::Zero {
                self.invalidate_page(page);
            }
            match access {
                Access::Read => self.pages[page].pte = Pte::Zero,
                Access::Write => self.map_new(page, Place::System, ZEROES, true),
            }
        }
        match (huge, access) {
            (false, _) => self.set_block(page, Block::Table),
            (true, Access::Read) => self.set_block(page, Block::HugeZero),
            (true, Access::Write) => self.make_huge_page(range),
        }
    }

    /// A CPU fault on private memory of a device, which brings back what is there of where
    /// the whole folio would be.
    pub(super) fn fault_back(&mut self, page: usize) -> Result<(), Errno> {
        let (_, device) = self.on_device(page).expect("is on a device");
        let range = self.folio_range(page);
        let is_there = |page: &usize| self.is_on(device, *page);
        let pages: Vec<_> = range.clone().filter(is_there).collect();
        let is_whole = self.is_one_huge_page(&range);
        if !is_whole {
            for &page in &pages {
                self.split_huge_page(page);
            }
        }
        let fails = std::mem::take(&mut self.fails[device]);
        if fails && is_whole {
            // All of it comes back, by small pages.
            self.split(page);
            self.make_small_pages(range.clone());
        }
        // In any case it was unmapped for a while.
        self.invalidate(range);
        if fails && !is_whole {
            return Err(Errno::ENOMEM);
        }
        for page in pages {
            let (folio, _) = self.on_device(page).expect("is on a device");
            self.migrate(folio, Place::System);
        }
        Ok(())
    }

    /// The CPU accesses a page that the process may access so.
    pub fn cpu_access(&mut self, page: usize, access: Access) {
        while !self.is_accessible(page, access) {
            // After a failed allocation it tries again.
            let _ = self.fault(page, access);
        }
    }

    /// The CPU writes a page that it may write.
    pub fn cpu_write(&mut self, page: usize, content: Content) {
        self.cpu_access(page, Access::Write);
        self.set_content(page, content);
    }

    /// Changes what a page that is there contains.
    pub fn set_content(&mut self, page: usize, content: Content) {
        let folio = self.folio_of(page).expect("there is a folio");
        self.folios[folio].content = content;
    }

    /// `get_user_pages`: makes a page accessible, if the process may access it so.
    pub(super) fn get_user_page(&mut self, page: usize, access: Access) -> Result<(), Errno> {
        if !self.allows(page, access) {
            return Err(Errno::EFAULT);
        }
        while !self.is_accessible(page, access) {
            self.fault(page, access)?;
        }
        Ok(())
    }

    /// What `hmm_range_fault` for a device sees of a page: whether it is valid, and writable.
    fn hmm_view(&self, device: usize, page: usize) -> (bool, bool) {
        match self.pages[page].pte {
            Pte::Empty | Pte::DeviceExclusive { .. } => (false, false),
            Pte::Zero => (true, false),
            Pte::Mapped { writable, .. } => match self.on_device(page) {
                Some((_, on)) if self.is_private() && device != on => (false, false),
                _ => (true, writable),
            },
        }
    }

    /// The end of the VMA part and block that a page is in, within a range.
    pub(super) fn end_of_vma(&self, page: usize, end: usize) -> usize {
        let next = (page + 1..end)
            .find(|&p| self.pages[p].begins_vma || self.pages[p].protection.is_none());
        next.unwrap_or(end)
    }

    /// The first pages of a range within a block that need a fault.
    fn first_fault(
        &self,
        device: usize,
        range: Range<usize>,
        access: Access,
    ) -> Result<Option<Range<usize>>, Errno> {
        for page in range.clone() {
            if !self.allows(page, Access::Read) {
                return Err(Errno::EFAULT);
            }
            let (valid, writable) = self.hmm_view(device, page);
            if !valid || (access == Access::Write && !writable) {
                return Ok(Some(page..self.end_of_vma(page, range.end)));
            }
        }
        Ok(None)
    }

    fn hmm_fault(&mut self, range: Range<usize>, access: Access) -> Result<(), Errno> {
        for page in range {
            if !self.allows(page, access) {
                return Err(Errno::EPERM);
            }
            self.fault(page, access)?;
        }
        Ok(())
    }

    /// `hmm_range_fault` within a block until nothing is missing.
    fn fault_block(
        &mut self,
        device: usize,
        range: Range<usize>,
        access: Access,
    ) -> Result<(), Errno> {
        while let Some(pages) = self.first_fault(device, range.clone(), access)? {
            self.hmm_fault(pages, access)?;
        }
        Ok(())
    }

    /// The device takes over what is mapped in a range within a block.
    pub fn mirror_present(&mut self, device: usize, range: Range<usize>) {
        for page in range {
            let (valid, writable) = self.hmm_view(device, page);
            if valid {
                let mirrored = if writable { Mirrored::Write } else { Mirrored::Read };
                self.mirrors[device][page] = Entry { mirrored, is_uncertain: false };
            }
        }
    }

    /// A fault of a device that maps a range for it.
    pub fn device_fault(
        &mut self,
        device: usize,
        range: Range<usize>,
        access: Access,
    ) -> Result<(), Errno> {
        for part in self.by_block(range) {
            self.fault_block(device, part.clone(), access)?;
            self.mirror_present(device, part);
        }
        Ok(())
    }

    /// Gives a page to a device exclusively.
    pub fn make_exclusive(&mut self, device: usize, page: usize) -> Result<(), Errno> {
        self.get_user_page(page, Access::Write)?;
        let folio = self.folio_of(page).expect("is writable");
        self.pages[page].pte = Pte::DeviceExclusive { folio };
        self.invalidate_page(page);
        self.mirrors[device][page].mirrored = Mirrored::Exclusive;
        Ok(())
    }
}
