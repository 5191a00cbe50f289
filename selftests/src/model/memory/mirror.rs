// SPDX-License-Identifier: GPL-2.0
//! What the devices have mapped.

use std::ops::Range;

use super::{Access, FolioId, INVALID, Memory, Mirrored};

impl Memory {
    pub(super) fn invalidate(&mut self, range: Range<usize>) {
        for mirror in &mut self.mirrors {
            mirror[range.clone()].fill(INVALID);
        }
    }

    pub(super) fn invalidate_page(&mut self, page: usize) {
        self.invalidate(page..page + 1);
    }

    /// Core mm unmaps a folio wherever it is mapped. It may look where it once was, too.
    pub(super) fn unmap_everywhere(&mut self, id: FolioId) {
        let offset = self.folios[id].offset;
        for page in 0..self.pages.len() {
            if self.folio_of(page) == Some(id) {
                self.invalidate_page(page);
            } else if self.pages[page].protection.is_some() && self.pages[page].offset == offset {
                for mirror in &mut self.mirrors {
                    mirror[page].is_uncertain = mirror[page].mirrored != Mirrored::Nothing;
                }
            }
        }
    }

    /// Whether an entry that may have been invalidated is still there.
    fn is_still_there(&mut self, device: usize, page: usize) -> bool {
        let gone = self.mirrors[device][page].is_uncertain && self.choices.choose();
        if gone {
            self.mirrors[device][page] = INVALID;
        }
        !gone
    }

    /// Whether a device can read, or write, a page without a fault.
    pub fn has_mapped(&mut self, device: usize, page: usize, access: Access) -> bool {
        let is_mapped = match (access, self.mirrors[device][page].mirrored) {
            (_, Mirrored::Nothing) => false,
            (Access::Read, _) => true,
            (Access::Write, mirrored) => mirrored == Mirrored::Write,
        };
        is_mapped && self.is_still_there(device, page)
    }

    /// Whether a device has any page of a range exclusively.
    pub fn any_exclusive(&mut self, device: usize, range: Range<usize>) -> bool {
        range.into_iter().any(|page| {
            self.mirrors[device][page].mirrored == Mirrored::Exclusive
                && self.is_still_there(device, page)
        })
    }
}
