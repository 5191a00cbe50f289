// SPDX-License-Identifier: GPL-2.0
//! Pages that were collected are migrated, or given back on purpose.

use kernel::mm::migrate::{Collected, MigrateBuffer};
use kernel::mm::pgmap::{PageMap, PageMapOps};
use kernel::prelude::*;

#[deny(unused_must_use)]
pub fn collect<T: PageMapOps>(map: &PageMap<T>, buffer: &mut MigrateBuffer) -> Result {
    Collected::from_device(map, 0..1, buffer)?; //~ unused_must_use
    Ok(())
}
