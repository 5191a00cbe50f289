// SPDX-License-Identifier: GPL-2.0
//! Snapshots, the model's view of all of it.

use super::{Access, Memory, Pte};
use crate::uapi::prot;

impl Memory {
    /// Whether a page is on a device, and mapped.
    pub fn is_on(&self, device: usize, page: usize) -> bool {
        self.on_device(page).is_some_and(|(_, on)| on == device)
    }

    /// Bytes of a snapshot by a device.
    pub fn snapshot(&self, device: usize) -> Vec<u8> {
        (0..self.pages.len()).map(|page| self.snapshot_byte(device, page)).collect()
    }

    fn snapshot_byte(&self, device: usize, page: usize) -> u8 {
        if !self.allows(page, Access::Read) {
            return prot::ERROR;
        }
        let huge = if self.is_mapped_huge(page) { prot::PMD } else { 0 };
        match self.pages[page].pte {
            Pte::Empty | Pte::DeviceExclusive { .. } => prot::NONE,
            // The driver knows the small zero page only.
            Pte::Zero if huge != 0 => prot::READ | huge,
            Pte::Zero => prot::READ | prot::ZERO,
            Pte::Mapped { writable, .. } => {
                let permission = if writable { prot::WRITE } else { prot::READ };
                match self.on_device(page) {
                    None => permission | huge,
                    Some((_, on)) if on == device => self.memory_type.local() | permission | huge,
                    Some(_) if self.is_private() => prot::NONE,
                    Some(_) => self.memory_type.remote(permission) | huge,
                }
            }
        }
    }
}
