// SPDX-License-Identifier: GPL-2.0

//! A device: a type of memory, and as much of it as there is.

use crate::{
    folio_list::MAX_CHUNK_PAGES,
    memory_types::DeviceType,
    pool::{
        Backing,
        Chunk,
        Owner,
        Pool, //
    },
    windows::WINDOW_PAGES, //
};
use core::ops::Range;
use kernel::{
    io::PhysAddr,
    mm::{
        folio::NewFolio,
        pgmap::{
            DeviceRegion,
            PageMap,
            PageMapOwner, //
        }, //
    },
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// A test device.
#[pin_data]
pub(crate) struct Device {
    name: &'static CStr,
    device_type: DeviceType,
    /// As core mm knows the device's memory.
    memory: Arc<PageMapOwner<Chunk>>,
    pool: Arc<Pool>,
    /// Held by who adds or removes chunks.
    #[pin]
    resize: Mutex<()>,
}

impl Device {
    /// Creates a device without memory.
    pub(crate) fn new(name: &'static CStr, device_type: DeviceType) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                name,
                device_type,
                memory: PageMapOwner::new(device_type.memory_type())?,
                pool: Arc::pin_init(Pool::new(), GFP_KERNEL)?,
                resize <- new_mutex!((), "test_hmm_rs::Device::resize"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn name(&self) -> &'static CStr {
        self.name
    }

    pub(crate) fn device_type(&self) -> DeviceType {
        self.device_type
    }

    pub(crate) fn memory(&self) -> &PageMapOwner<Chunk> {
        &self.memory
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Claims special-purpose memory for the device.
    ///
    /// Returns [`EBUSY`] if it is somebody else's; [`ENXIO`] if it is not such memory; [`EINVAL`]
    /// if the start, in bytes, is not aligned.
    pub(crate) fn add_spm(&self, range: Range<PhysAddr>) -> Result {
        let size = range.end - range.start;
        let (name, start, mb) = (self.name, range.start, size >> 20);
        let claim_and_add = || {
            let region = DeviceRegion::claim_soft_reserved(range, self.region_name()?)?;
            let _resize = self.resize.lock();
            self.add_chunk(region)
        };
        claim_and_add()
            .inspect(|()| {
                let device_type = self.device_type.name();
                pr_info!(
                    "{name}: {mb} MB of special-purpose memory at {start:#x}, {device_type}\n"
                );
            })
            .inspect_err(|error| {
                pr_err!("{name}: cannot take {mb} MB of memory at {start:#x}: {error:?}\n");
            })
    }

    fn region_name(&self) -> Result<CString> {
        CString::try_from(self.name).map_err(Into::into)
    }

    /// Adds a chunk of memory. The caller holds `resize`.
    fn add_chunk(&self, region: DeviceRegion) -> Result {
        let number = self.pool.unused_chunk().ok_or(ENOMEM)?;
        let chunk = Chunk::new(self.memory.clone(), self.pool.clone(), number);
        let map = Arc::pin_init(PageMap::new(self.memory.clone(), region, chunk), GFP_KERNEL)?;
        self.pool.add(map)
    }

    /// Adds memory, if possible and necessary, for all pages of a window, huge or not.
    ///
    /// Returns [`ENOMEM`] if there is none. Somebody else may be faster to take it.
    pub(crate) fn reserve(&self) -> Result {
        // There is only so much special-purpose memory. Small pages will do if no block is whole.
        if self.device_type.is_spm() {
            return match self.pool.nr_free() >= WINDOW_PAGES {
                true => Ok(()),
                false => Err(ENOMEM),
            };
        }
        if self.pool.has_room(WINDOW_PAGES) {
            return Ok(());
        }
        let _resize = self.resize.lock();
        // Another thread may have been first to add a chunk.
        if self.pool.has_room(WINDOW_PAGES) {
            return Ok(());
        }
        let size = (MAX_CHUNK_PAGES * PAGE_SIZE) as u64;
        self.add_chunk(DeviceRegion::request_free(size, self.region_name()?)?)
    }

    /// Allocates a folio of device memory, without contents.
    pub(crate) fn alloc(
        &self,
        order: u32,
        owner: &Arc<Owner>,
        backing: &mut Option<Backing>,
    ) -> Result<NewFolio> {
        loop {
            let (map, page) = self.pool.take(order, owner).ok_or(ENOMEM)?;
            let number = map.data().number();
            let pages = page..page + (1 << order);
            match map.init_folio_with(page, order, backing) {
                // There may have been no error yet when it was put into the pool.
                Err(EHWPOISON) => self.pool.discard(number, pages, |page| map.is_broken(page)),
                result => return result.inspect_err(|_| self.pool.put(number, pages)),
            }
        }
    }

    /// Removes the chunks of which no page is in use.
    pub(crate) fn remove_unused_chunks(&self) {
        let _resize = self.resize.lock();
        while let Some(chunk) = self.pool.remove_unused() {
            drop(chunk);
        }
    }
}
