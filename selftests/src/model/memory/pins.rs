// SPDX-License-Identifier: GPL-2.0
//! References that keep pages where they are.

use std::ops::Range;

use nix::errno::Errno;

use super::{Access, Content, Memory, Place, Reference, ZEROES};
use crate::uapi::MemoryType;

impl Memory {
    /// Pins pages for the long term, for writing.
    pub fn pin_longterm(&mut self, range: Range<usize>) -> Result<Vec<Reference>, Errno> {
        let mut folios = Vec::new();
        let mut result = Ok(());
        let mut last = range.start;
        for page in range.clone() {
            result = self.get_user_page(page, Access::Write);
            if result == Err(Errno::ENOMEM) && page > range.start {
                // What was pinned so far is a success, and the rest is tried again.
                result = self.get_user_page(page, Access::Write);
            }
            if result.is_err() {
                break;
            }
            last = page + 1;
        }
        for page in range.start..last {
            let folio = self.folio_of(page).expect("is writable");
            if self.memory_type == MemoryType::Coherent && self.on_device(page).is_some() {
                // It must not be pinned there for long.
                self.unmap_everywhere(folio);
                if !self.folios[folio].can_migrate() {
                    return Err(Errno::EBUSY);
                }
                self.folios[folio].place = Place::System;
            }
            folios.push(folio);
        }
        result?;
        for &folio in &folios {
            self.folios[folio].pinned += 1;
        }
        Ok(folios.into_iter().map(Reference::Folio).collect())
    }

    /// Undoes [`pin_longterm`](Self::pin_longterm).
    pub fn unpin_longterm(&mut self, references: &[Reference]) {
        for reference in references {
            if let &Reference::Folio(folio) = reference {
                self.folios[folio].pinned -= 1;
                self.put_if_unused(folio);
            }
        }
    }

    /// References pages that can be read, as vmsplice(2) does.
    pub fn reference(&mut self, range: Range<usize>) -> Vec<Reference> {
        range
            .map(|page| {
                self.cpu_access(page, Access::Read);
                match self.folio_of(page) {
                    None => Reference::Zero,
                    Some(folio) => {
                        self.folios[folio].referenced += 1;
                        Reference::Folio(folio)
                    }
                }
            })
            .collect()
    }

    /// Undoes [`reference`](Self::reference).
    pub fn put_references(&mut self, references: &[Reference]) {
        for reference in references {
            if let &Reference::Folio(folio) = reference {
                self.folios[folio].referenced -= 1;
                self.put_if_unused(folio);
            }
        }
    }

    /// What a referenced page contains.
    pub fn content_of(&self, reference: Reference) -> Content {
        match reference {
            Reference::Zero => ZEROES,
            Reference::Folio(folio) => self.folios[folio].content,
        }
    }
}
