// SPDX-License-Identifier: GPL-2.0
//! What a migration does to the page of a fault, nobody looks at.

use kernel::mm::migrate::{Collected, MigrateBuffer, Select};
use kernel::mm::pgmap::Fault;
use kernel::prelude::*;

pub fn read(
    fault: &mut Fault<'_>,
    select: Select<'_>,
    buffer: &mut MigrateBuffer,
    data: &mut [u8],
) -> Result {
    let (page, range) = (fault.page(), fault.folio_range());
    drop(Collected::from_fault(fault, range.clone(), select, buffer)?.migrate()); //~ E0502
    page.read(range.len(), data)
}
