// SPDX-License-Identifier: GPL-2.0
//! What a driver keeps for a folio is not to be used once the folio may be gone.

use kernel::mm::folio::OwnedFolio;
use kernel::mm::migrate::{Collected, MigrateBuffer};
use kernel::mm::pgmap::{PageMap, PageMapOps};
use kernel::prelude::*;
use kernel::sync::aref::ARef;

pub fn write<T>(map: &PageMap<T>, buffer: &mut MigrateBuffer, data: &[u8]) -> Result
where
    T: PageMapOps<FolioData = ARef<OwnedFolio>>,
{
    let pages = Collected::from_device(map, 0..1, buffer)?;
    let page = pages.source(0).page().and_then(|page| map.owner().device_page(page));
    let backing = page.and_then(|page| page.data()).ok_or(EINVAL)?;
    drop(pages.migrate()); //~ E0505
    backing.write(0, 0, data)
}
