// SPDX-License-Identifier: GPL-2.0

//! Migration of what has to leave a device.

use crate::{
    destinations::set_dsts_in_system,
    device::Device,
    pool::{
        Chunk,
        Owner,
        Pool, //
    },
    windows::WINDOW_PAGES, //
};
use core::ops::Range;
use kernel::{
    mm::{
        migrate::{
            Collected,
            MigrateBuffer, //
        },
        pgmap::PageMap, //
    },
    prelude::*,
    sync::Arc,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// How often and at which interval, in milliseconds, to try to evict all pages. Some may be locked
/// or referenced for a moment only.
const EVICT_TRIES: usize = 10;
const EVICT_INTERVAL_MS: i64 = 20;

/// The longest interval at which to try, and to say so, when the module is unloaded.
const MAX_SHUT_DOWN_INTERVAL_SECS: i64 = 32;

/// Migrates pages of a device to system memory, wherever they are mapped.
///
/// Pages that are locked, referenced by somebody else, or for which there is no memory, stay.
struct Evictor {
    buffer: MigrateBuffer,
    /// Ranges of indices of pages in a chunk.
    pages: KVec<Range<usize>>,
}

impl Evictor {
    fn new() -> Result<Self> {
        Ok(Self {
            buffer: MigrateBuffer::new(WINDOW_PAGES, GFP_KERNEL)?,
            pages: KVec::with_capacity(WINDOW_PAGES, GFP_KERNEL)?,
        })
    }

    /// Evicts all pages of a pool. Returns [`EINTR`] on a fatal signal if `killable`.
    fn evict_all(&mut self, pool: &Pool, killable: bool) -> Result {
        let mut from = (0, 0);
        loop {
            if killable && kernel::current!().fatal_signal_pending() {
                return Err(EINTR);
            }
            self.pages.clear();
            let Some((map, next)) = pool.list_in_use(from, &mut self.pages) else {
                return Ok(());
            };
            self.evict(&map)?;
            from = next;
        }
    }

    /// Evicts the pages of an owner that does not allocate more of them.
    fn evict_owned(&mut self, pool: &Pool, owner: &Arc<Owner>) -> Result {
        let mut rest = pool.nr_folios(owner);
        while rest > 0 {
            self.pages.clear();
            let Some((map, nr_folios)) = pool.list_owned(owner, rest, &mut self.pages) else {
                return Ok(());
            };
            self.evict(&map)?;
            rest -= nr_folios;
        }
        Ok(())
    }

    fn evict(&mut self, map: &PageMap<Chunk>) -> Result {
        let indices = self.pages.iter().cloned().flatten();
        let mut pages = Collected::from_device(map, indices, &mut self.buffer)?;
        set_dsts_in_system(&mut pages, map.owner(), None)?;
        drop(pages.migrate());
        Ok(())
    }
}

/// Evicts the pages of an owner that does not allocate more of them.
///
/// Returns how many folios stay, for want of memory, or because somebody else has a reference on
/// them. They are the device's to evict later.
pub(crate) fn evict_owned(pool: &Pool, owner: &Arc<Owner>) -> usize {
    if pool.nr_folios(owner) == 0 {
        return 0;
    }
    let _ = Evictor::new().and_then(|mut evictor| {
        // The second time for what was locked or referenced for a moment.
        evictor.evict_owned(pool, owner)?;
        evictor.evict_owned(pool, owner)
    });
    pool.nr_folios(owner)
}

/// Evicts all pages of a device to system memory.
///
/// Returns [`EBUSY`] if some cannot be: somebody else has a reference on them, or there is no
/// memory for them; [`ENOMEM`]; [`EINTR`] on a fatal signal if `killable`.
fn evict(device: &Device, killable: bool) -> Result {
    let mut evictor = Evictor::new()?;
    for tries in 0..EVICT_TRIES {
        if tries > 0 {
            fsleep(Delta::from_millis(EVICT_INTERVAL_MS));
        }
        evictor.evict_all(device.pool(), killable)?;
        if device.pool().nr_in_use() == 0 {
            return Ok(());
        }
    }
    Err(EBUSY)
}

/// Evicts all pages of a device to system memory, and gives up memory that can be had again.
///
/// Returns the errors of [`evict`].
pub(crate) fn release(device: &Device) -> Result {
    let result = evict(device, true);
    if !device.device_type().is_spm() {
        device.remove_unused_chunks();
    }
    result
}

/// Evicts all pages of a device, and removes its memory. Waits for as long as that takes.
pub(crate) fn shut_down(device: &Device) {
    let mut interval = 1;
    while let Err(error) = evict(device, false) {
        pr_warn!(
            "{}: waiting for {} pages that cannot be evicted ({:?}), the first at PFN {:#x}\n",
            device.name(),
            device.pool().nr_in_use(),
            error,
            device.pool().first_in_use().unwrap_or(0),
        );
        fsleep(Delta::from_secs(interval));
        interval = (2 * interval).min(MAX_SHUT_DOWN_INTERVAL_SECS);
    }
    device.remove_unused_chunks();
}
