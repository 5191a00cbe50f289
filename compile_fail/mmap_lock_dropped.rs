// SPDX-License-Identifier: GPL-2.0
//! The mmap lock is held until the migration has ended.

use core::ops::Range;
use kernel::mm::migrate::{Collected, MigrateBuffer, Select};
use kernel::mm::MmWithUser;
use kernel::prelude::*;

pub fn migrate(mm: &MmWithUser, range: Range<usize>, buffer: &mut MigrateBuffer) -> Result<usize> {
    let mmap = mm.mmap_read_lock();
    let migrated = Collected::from_range(&mmap, range, Select::system(), buffer)?.migrate();
    drop(mmap); //~ E0505
    Ok(migrated.nr_migrated())
}
