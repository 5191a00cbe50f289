// SPDX-License-Identifier: GPL-2.0

//! The memory of a process as a device sees it.

use crate::{
    device::Device,
    pool::Owner, //
};
use core::ops::Range;
use kernel::{
    mm::{
        hmm::Mirror,
        MmWithUser, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// A device that works on the addresses of a process: through a mirror, and with memory of the
/// device that was allocated for it.
#[pin_data]
pub(crate) struct AddressSpace {
    device: Arc<Device>,
    #[pin]
    mirror: Mirror,
    owner: Arc<Owner>,
}

impl AddressSpace {
    /// Creates what a device sees of a process.
    ///
    /// Returns [`ENOMEM`] or [`EINTR`]. The mmap lock must not be held.
    pub(crate) fn new(device: Arc<Device>, mm: &MmWithUser) -> impl PinInit<Self, Error> + '_ {
        try_pin_init!(Self {
            owner: Owner::new(device.pool())?,
            device,
            mirror <- Mirror::new(mm),
        })
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    pub(crate) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// Returns whether all pages of a range of addresses, in bytes, are mapped and on this device.
    pub(crate) fn is_on_device(&self, range: Range<usize>) -> bool {
        let nr_pages = range.len() / PAGE_SIZE;
        let guard = self.mirror.lock();
        let memory = self.device.memory();
        let on_device = guard
            .mapped(range)
            .take_while(|mapping| memory.device_page(mapping.page()).is_some());
        on_device.count() == nr_pages
    }
}
