// SPDX-License-Identifier: GPL-2.0
//! A buffer has the state of a migration until that has ended.

use kernel::mm::migrate::{Collected, MigrateBuffer};
use kernel::mm::pgmap::{PageMap, PageMapOps};
use kernel::prelude::*;

pub fn evict<T: PageMapOps>(map: &PageMap<T>, buffer: &mut MigrateBuffer) -> Result<usize> {
    let migrated = Collected::from_device(map, 0..1, buffer)?.migrate();
    drop(Collected::from_device(map, 1..2, buffer)?); //~ E0499
    Ok(migrated.nr_migrated())
}
