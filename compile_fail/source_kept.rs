// SPDX-License-Identifier: GPL-2.0
//! The page that was migrated is not ours any more.

use kernel::mm::migrate::Collected;
use kernel::prelude::*;

pub fn read(pages: Collected<'_>, data: &mut [u8]) -> Result {
    let page = pages.source(0).page().ok_or(EFAULT)?;
    drop(pages.migrate()); //~ E0505
    page.read(0, data)
}
