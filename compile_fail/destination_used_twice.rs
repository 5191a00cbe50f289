// SPDX-License-Identifier: GPL-2.0
//! A folio is the destination of one page.

use kernel::mm::folio::LockedFolio;
use kernel::mm::migrate::Collected;
use kernel::prelude::*;

pub fn set(pages: &mut Collected<'_>, folio: LockedFolio) -> Result {
    pages.set_dst(0, folio)?;
    pages.set_dst(1, folio)?; //~ E0382
    Ok(())
}
