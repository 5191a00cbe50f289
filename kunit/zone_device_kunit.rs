// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of ZONE_DEVICE memory.
//!
//! A failed assertion ends a test without running destructors, which would leave pagemaps, mappings
//! and notifiers behind. So the tests here have expectations only: they always run to their end.

use kernel::prelude::*;

mod copy_engine;
mod device;
mod device_memory;
mod folio_data;
mod large;
mod life_cycle;
mod migration;
mod mirror;
mod pagemaps;
mod raw;

module! {
    type: ZoneDeviceKunit,
    name: "zone_device_kunit",
    authors: ["Seed 97b3116c maintainers"],
    description: "KUnit tests of ZONE_DEVICE memory",
    license: "GPL",
    params: {
        spm_start: u64 {
            default: 0,
            description: "Start of memory that there is, and that neither the kernel nor anybody \
                else uses, such as what mem= leaves out: for tests of coherent and generic \
                memory where firmware lists no special-purpose memory.",
        },
        spm_size: u64 {
            default: 0,
            description: "Its size, in bytes.",
        },
    },
}

/// The tests are all there is to the module.
struct ZoneDeviceKunit;

impl kernel::Module for ZoneDeviceKunit {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
