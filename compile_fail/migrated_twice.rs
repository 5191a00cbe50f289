// SPDX-License-Identifier: GPL-2.0
//! A migration is done once.

use kernel::mm::migrate::{Collected, MigrateBuffer};
use kernel::mm::pgmap::{PageMap, PageMapOps};
use kernel::prelude::*;

pub fn evict<T: PageMapOps>(map: &PageMap<T>, buffer: &mut MigrateBuffer) -> Result {
    let pages = Collected::from_device(map, 0..1, buffer)?;
    drop(pages.migrate());
    drop(pages.migrate()); //~ E0382
    Ok(())
}
