// SPDX-License-Identifier: GPL-2.0

//! The types of device memory, and what depends on them.

use crate::uapi::prot;
use kernel::{
    mm::pgmap::MemoryType,
    prelude::*, //
};

/// A type of device memory. There are two devices of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DeviceType {
    /// Simulated by system memory that the CPU has no access to at the device's addresses.
    Private,
    /// Special-purpose memory.
    Coherent,
    /// Special-purpose memory, which can be pinned for the long term.
    Generic,
}

impl DeviceType {
    /// In the order of the minors.
    pub(crate) const ALL: [Self; 3] = [Self::Private, Self::Coherent, Self::Generic];

    /// Returns the name as in the module parameter `device_type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Coherent => "coherent",
            Self::Generic => "generic",
        }
    }

    /// Returns the names of the device nodes.
    pub(crate) fn nodes(self) -> [&'static CStr; 2] {
        match self {
            Self::Private => [c"hmm_dmirror0", c"hmm_dmirror1"],
            Self::Coherent => [c"hmm_dmirror2", c"hmm_dmirror3"],
            Self::Generic => [c"hmm_dmirror4", c"hmm_dmirror5"],
        }
    }

    /// Whether the devices need special-purpose memory.
    pub(crate) fn is_spm(self) -> bool {
        self != Self::Private
    }

    /// Returns the type as core mm knows it.
    pub(crate) fn memory_type(self) -> MemoryType {
        match self {
            Self::Private => MemoryType::Private,
            Self::Coherent => MemoryType::Coherent,
            Self::Generic => MemoryType::Generic,
        }
    }

    /// Returns `HMM_DMIRROR_MEMORY_DEVICE_*`.
    pub(crate) fn uapi(self) -> u32 {
        match self {
            Self::Private => 1,
            Self::Coherent => 2,
            Self::Generic => 3,
        }
    }

    /// Returns what a snapshot says of a page on the device that it is made with, or on another.
    pub(crate) fn prot(self, local: bool) -> u8 {
        match (self, local) {
            (Self::Private, true) => prot::DEV_PRIVATE_LOCAL,
            (Self::Private, false) => prot::DEV_PRIVATE_REMOTE,
            (Self::Coherent, true) => prot::DEV_COHERENT_LOCAL,
            (Self::Coherent, false) => prot::DEV_COHERENT_REMOTE,
            (Self::Generic, true) => prot::DEV_GENERIC_LOCAL,
            (Self::Generic, false) => prot::DEV_GENERIC_REMOTE,
        }
    }
}
