// SPDX-License-Identifier: GPL-2.0

//! Device memory of which the device copies the contents.

use crate::raw;
use core::ops::Range;
use kernel::{
    mm::{
        copy_engine::{
            CopyEngine,
            PageCopy,
            Place, //
        },
        device_memory::Evict,
        migrate::Collected,
        pgmap::{
            Fault,
            FaultError,
            PageMapOps,
            PageMapOwner, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// The driver's data of private memory, of whose pages the engine copies the first byte.
struct Memory {
    owner: Arc<PageMapOwner<Memory>>,
    bytes: KVec<Atomic<usize>>,
    nr_freed: Arc<Atomic<usize>>,
}

#[vtable]
impl PageMapOps for Memory {
    type FolioData = ();

    fn folio_free(&self, pages: Range<usize>) {
        self.nr_freed.fetch_add(pages.len(), Relaxed);
    }

    /// No test has the CPU touch them there.
    fn migrate_to_ram(&self, _fault: &mut Fault<'_>) -> Result<(), FaultError> {
        Err(FaultError::SigBus)
    }
}

// SAFETY: The engine is the CPU, which has done when it returns, and has written to all of a page.
unsafe impl CopyEngine for Memory {
    fn copy(&self, copies: &[PageCopy]) -> Result {
        for copy in copies {
            match (copy.from(), copy.to()) {
                (Place::System(from), Place::Device(to)) => {
                    // SAFETY: The page is mapped for this.
                    let byte = unsafe { raw::read_dma(from)? };
                    self.bytes[to].store(byte.into(), Relaxed);
                }
                // SAFETY: The page is mapped for this.
                (Place::Device(from), Place::System(to)) => unsafe {
                    raw::fill_dma(to, self.bytes[from].load(Relaxed) as u8)?
                },
                _ => return Err(EINVAL),
            }
        }
        Ok(())
    }
}

impl Evict for Memory {
    fn copy_to_system(&self, pages: &mut Collected<'_>) -> Result {
        pages.copy_to_system(&self.owner).map(|_| ())
    }
}

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_copy_engine)]
mod tests {
    use super::Memory;
    use crate::{
        device::{
            addresses,
            fill,
            huge_user_memory,
            nr_changed, //
        },
        raw, //
    };
    use kernel::{
        device::{
            Bound,
            Device, //
        },
        devres::Devres,
        kunit::UserMemory,
        kunit_expect,
        kunit_expect_eq,
        mm::{
            device_memory::DeviceMemory,
            folio::NewFolio,
            migrate::{
                Collected,
                MigrateBuffer,
                Select, //
            },
            pgmap::{
                DeviceRegion,
                MemoryType,
                PageMap,
                PageMapOwner, //
            },
            PMD_ORDER,
            PMD_PAGES, //
        },
        page::PAGE_SIZE,
        prelude::*,
        str::CString,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        }, //
    };

    const NR_PAGES: usize = 4;

    type Owner = Arc<PageMapOwner<Memory>>;

    fn counter() -> Result<Arc<Atomic<usize>>> {
        Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
    }

    /// Gives a device memory, as much as a huge page, which counts pages that are freed.
    fn bind(
        dev: &Device<Bound>,
        owner: &Owner,
        nr_freed: &Arc<Atomic<usize>>,
    ) -> Result<Devres<DeviceMemory<Memory>>> {
        let region = DeviceRegion::request_free(
            (PMD_PAGES * PAGE_SIZE) as u64,
            CString::try_from(c"zone_device_kunit")?,
        )?;
        let mut bytes = KVec::with_capacity(PMD_PAGES, GFP_KERNEL)?;
        for _ in 0..PMD_PAGES {
            bytes.push(Atomic::new(0), GFP_KERNEL)?;
        }
        let data = Memory {
            owner: owner.clone(),
            bytes,
            nr_freed: nr_freed.clone(),
        };
        DeviceMemory::new(dev, owner.clone(), region, data)
    }

    /// Has all pages of user memory that `select` does migrated to a device, to what `alloc` hands
    /// out. Returns how many are.
    fn migrate(
        memory: &UserMemory,
        select: Select<'_>,
        map: &PageMap<Memory>,
        alloc: impl FnMut() -> Option<NewFolio>,
    ) -> Result<usize> {
        let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        let range = addresses(memory, 0..NR_PAGES);
        let mut pages = Collected::from_range(&mmap, range, select, &mut buffer)?;
        let nr_pages = pages.copy_to_device(map, alloc)?;
        kunit_expect_eq!(pages.migrate().nr_migrated(), nr_pages);
        Ok(nr_pages)
    }

    /// Hands out the free pages of a map, of an order.
    fn free_pages(map: &PageMap<Memory>, order: u32) -> impl FnMut() -> Option<NewFolio> + '_ {
        move || (0..map.nr_pages()).find_map(|index| map.init_folio(index, order).ok())
    }

    fn user_memory() -> Result<UserMemory> {
        let memory = UserMemory::map(NR_PAGES * PAGE_SIZE)?;
        fill(&memory, 0..NR_PAGES, 1)?;
        Ok(memory)
    }

    #[test]
    fn contents_go_there_and_back() -> Result {
        let owner = PageMapOwner::new(MemoryType::Private)?;
        let device = raw::dma_device()?;
        let dev = device.as_ref().as_ref();
        let nr_freed = counter()?;
        let map = bind(dev, &owner, &nr_freed)?;
        let map = map.access(dev)?;
        let memory = user_memory()?;

        let nr_pages = migrate(&memory, Select::system(), map, free_pages(map, 0))?;
        kunit_expect_eq!(nr_pages, NR_PAGES);
        kunit_expect!(map.pages_in_use().eq(0..NR_PAGES));
        let bytes = &map.data().bytes;
        kunit_expect!((0..NR_PAGES).all(|page| bytes[page].load(Relaxed) == 1 + page));

        drop(device);
        kunit_expect_eq!(nr_freed.load(Relaxed), NR_PAGES);
        kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
        Ok(())
    }

    /// What the engine is told must be true, whatever the driver hands out.
    #[test]
    fn only_small_folios_of_the_memory_are_copied_to() -> Result {
        let owner = PageMapOwner::new(MemoryType::Private)?;
        let device = raw::dma_device()?;
        let dev = device.as_ref().as_ref();
        let nr_freed = counter()?;
        let map = bind(dev, &owner, &counter()?)?;
        let other = bind(dev, &owner, &nr_freed)?;
        let (map, other) = (map.access(dev)?, other.access(dev)?);
        let memory = user_memory()?;

        let result = migrate(&memory, Select::system(), map, free_pages(other, 0));
        kunit_expect_eq!(result, Err(EINVAL));
        kunit_expect_eq!(nr_freed.load(Relaxed), 1);
        let result = migrate(&memory, Select::system(), map, free_pages(map, PMD_ORDER));
        kunit_expect_eq!(result, Err(EINVAL));
        let result = migrate(&memory, Select::system(), map, || {
            NewFolio::alloc(GFP_KERNEL, 0).ok()
        });
        kunit_expect_eq!(result, Err(EINVAL));
        kunit_expect_eq!(map.pages_in_use().count(), 0);
        kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
        Ok(())
    }

    /// Nobody but its device can copy what is in private memory.
    #[test]
    fn pages_of_a_device_are_not_copied_to_another() -> Result {
        let owner = PageMapOwner::new(MemoryType::Private)?;
        let device = raw::dma_device()?;
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &owner, &counter()?)?;
        let other = bind(dev, &owner, &counter()?)?;
        let (map, other) = (map.access(dev)?, other.access(dev)?);
        let memory = user_memory()?;

        let nr_pages = migrate(&memory, Select::system(), map, free_pages(map, 0))?;
        kunit_expect_eq!(nr_pages, NR_PAGES);
        let result = migrate(&memory, Select::device(&owner), other, free_pages(other, 0));
        kunit_expect_eq!(result, Err(EINVAL));
        kunit_expect!(map.pages_in_use().eq(0..NR_PAGES));
        kunit_expect_eq!(other.pages_in_use().count(), 0);

        drop(device);
        kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
        Ok(())
    }

    #[test]
    fn a_large_folio_is_copied_page_by_page() -> Result {
        let owner = PageMapOwner::new(MemoryType::Private)?;
        let device = raw::dma_device()?;
        let dev = device.as_ref().as_ref();
        let nr_freed = counter()?;
        let map = bind(dev, &owner, &nr_freed)?;
        let memory = huge_user_memory()?;
        {
            let map = map.access(dev)?;
            let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
            let mmap = memory.mm().mmap_read_lock();
            let range = addresses(&memory, 0..PMD_PAGES);
            let select = Select::system().compound();
            let mut pages = Collected::from_range(&mmap, range, select, &mut buffer)?;
            for (page, byte) in map.data().bytes.iter().enumerate() {
                byte.store(1 + page, Relaxed);
            }
            let folio = map.init_folio(0, PMD_ORDER)?.into_private()?;
            pages.set_dst(0, folio)?;
            kunit_expect_eq!(pages.migrate().nr_migrated(), PMD_PAGES);
        }

        drop(device);
        kunit_expect_eq!(nr_freed.load(Relaxed), PMD_PAGES);
        kunit_expect_eq!(nr_changed(&memory, 0..PMD_PAGES, 1)?, 0);
        Ok(())
    }
}
