// SPDX-License-Identifier: GPL-2.0
//! That one page was filled says nothing of another.

use kernel::mm::folio::{FilledPage, LockedFolio, NewFolio};
use kernel::prelude::*;

pub fn fill(folio: NewFolio) -> Result<LockedFolio> {
    let mut first: Option<FilledPage<'_>> = None;
    folio.fill(|page| {
        if let Some(filled) = first.take() {
            return Ok(filled); //~ lifetime may not live long enough
        }
        page.clear()
    })
}
