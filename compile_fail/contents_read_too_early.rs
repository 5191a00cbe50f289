// SPDX-License-Identifier: GPL-2.0
//! What a folio has before it is filled is nobody's to read.

use kernel::mm::folio::NewFolio;
use kernel::prelude::*;

pub fn read(folio: NewFolio, data: &mut [u8]) -> Result {
    folio.page(0).ok_or(EINVAL)?.read(0, data)?; //~ E0599
    let folio = folio.fill(|page| page.clear())?;
    folio.page(0).ok_or(EINVAL)?.read(0, data)
}
