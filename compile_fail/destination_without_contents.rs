// SPDX-License-Identifier: GPL-2.0
//! What is migrated to has contents.

use kernel::mm::folio::NewFolio;
use kernel::mm::migrate::Collected;
use kernel::prelude::*;

pub fn set(pages: &mut Collected<'_>, folio: NewFolio, other: NewFolio) -> Result {
    pages.set_dst(0, folio.fill(|page| page.clear())?)?;
    pages.set_dst(1, other)?; //~ E0308
    Ok(())
}
