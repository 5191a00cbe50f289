// SPDX-License-Identifier: GPL-2.0
//! What is right: every step of a migration, a mirror, and a read section.

use core::ops::Range;
use kernel::alloc::flags::GFP_HIGHUSER_MOVABLE;
use kernel::mm::hmm::{Access, FaultMode, Mirror};
use kernel::mm::migrate::{Collected, MigrateBuffer, Select};
use kernel::mm::notifier::{IntervalNotifier, Invalidate};
use kernel::mm::pgmap::{PageMap, PageMapOps, PageMapOwner};
use kernel::mm::MmWithUser;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// Migrates pages of a device to system memory.
pub fn evict<T: PageMapOps>(map: &PageMap<T>, buffer: &mut MigrateBuffer) -> Result<usize> {
    let mut pages = Collected::from_device(map, 0..buffer.nr_pages(), buffer)?;
    for index in 0..pages.len() {
        let Some(page) = pages.source(index).page() else {
            continue;
        };
        let folio = pages.alloc_folio(index, 0, GFP_HIGHUSER_MOVABLE)?;
        let folio = folio.fill(|new_page| new_page.copy_from(page))?;
        pages.set_dst(index, folio)?;
    }
    Ok(pages.migrate().nr_migrated())
}

/// Migrates a page to a device, and then does so again with the same buffer.
pub fn to_device<T: PageMapOps>(mm: &MmWithUser, map: &PageMap<T>, range: Range<usize>) -> Result {
    let mut buffer = MigrateBuffer::new(1, GFP_KERNEL)?;
    for index in 0..2 {
        let mmap = mm.mmap_read_lock();
        let select = Select::system();
        let mut pages = Collected::from_range(&mmap, range.clone(), select, &mut buffer)?;
        let folio = map.init_folio(index, 0)?.fill(|page| page.clear())?;
        pages.set_dst(0, folio)?;
        drop(pages.migrate());
        drop(mmap);
    }
    Ok(())
}

/// Reads a page through a mirror.
pub fn read<T: PageMapOps>(
    mirror: &Mirror,
    owner: &PageMapOwner<T>,
    addr: usize,
    data: &mut [u8],
) -> Result {
    mirror.fault(addr..addr + PAGE_SIZE, Access::Read, FaultMode::Locked, owner)?;
    let guard = mirror.lock();
    let page = guard.get(addr).ok_or(EFAULT)?.page();
    page.read(0, data)?;
    drop(guard);
    Ok(())
}

/// Learns something about a process.
pub fn learn<T: Invalidate>(notifier: &IntervalNotifier<T>, f: impl Fn(&mut T)) {
    loop {
        let section = notifier.read_begin();
        if let Some(mut state) = section.lock() {
            return f(&mut state);
        }
    }
}
