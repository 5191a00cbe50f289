// SPDX-License-Identifier: GPL-2.0
//! Once a migration is done, it has its destinations.

use kernel::mm::folio::LockedFolio;
use kernel::mm::migrate::Collected;
use kernel::prelude::*;

pub fn migrate(mut pages: Collected<'_>, folio: LockedFolio) -> Result<usize> {
    pages.set_dst(0, folio)?;
    let migrated = pages.migrate();
    pages.set_dst(1, another()?)?; //~ E0382
    Ok(migrated.nr_migrated())
}

pub fn another() -> Result<LockedFolio> {
    Err(ENOMEM)
}
