// SPDX-License-Identifier: GPL-2.0

//! Device memory in use whose device is unbound.

use core::ops::Range;
use kernel::{
    alloc::flags::GFP_HIGHUSER_MOVABLE,
    mm::{
        device_memory::Evict,
        folio::OwnedFolio,
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
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

const NR_PAGES: usize = 4;

/// What a test knows of the memory, also after it is gone.
struct Counters {
    /// How many pages have been given a destination in system memory.
    evicted: Atomic<usize>,
    freed: Atomic<usize>,
    /// How often eviction is still to fail, with what, and after how many pages.
    failures: Atomic<usize>,
    error: Error,
    nr_before_failure: usize,
    /// Whether the driver's data was dropped.
    dropped: Atomic<bool>,
}

/// The driver's data of private memory.
struct Memory {
    owner: Arc<PageMapOwner<Memory>>,
    /// What the first pages stand for. All others are zeroes, like the first ones then.
    backing: KVec<ARef<OwnedFolio>>,
    counters: Arc<Counters>,
}

#[vtable]
impl PageMapOps for Memory {
    type FolioData = ();

    fn folio_free(&self, pages: Range<usize>) {
        self.counters.freed.fetch_add(pages.len(), Relaxed);
    }

    /// No test has the CPU touch them there.
    fn migrate_to_ram(&self, _fault: &mut Fault<'_>) -> Result<(), FaultError> {
        Err(FaultError::SigBus)
    }
}

impl Evict for Memory {
    fn copy_to_system(&self, pages: &mut Collected<'_>) -> Result {
        let is_failing = self.counters.failures.load(Relaxed) > 0;
        if is_failing {
            self.counters.failures.fetch_sub(1, Relaxed);
        }
        for index in 0..pages.len() {
            if is_failing && index == self.counters.nr_before_failure {
                return Err(self.counters.error);
            }
            let Some(page) = pages.source(index).page() else {
                continue;
            };
            let device_page = self.owner.device_page(page).ok_or(EINVAL)?;
            let backing = &self.backing[device_page.index() % NR_PAGES];
            let folio = pages
                .alloc_folio(index, 0, GFP_HIGHUSER_MOVABLE)?
                .fill(|to| to.copy_from(backing.page(0).ok_or(EINVAL)?))?;
            pages.set_dst(index, folio)?;
            self.counters.evicted.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.counters.dropped.store(true, Relaxed);
    }
}

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_unbind)]
mod tests {
    use super::{
        Counters,
        Memory,
        NR_PAGES, //
    };
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
        faux,
        kunit::UserMemory,
        kunit_expect,
        kunit_expect_eq,
        mm::{
            device_memory::DeviceMemory,
            folio::{
                Folio,
                OwnedFolio, //
            },
            migrate::{
                Collected,
                MigrateBuffer,
                Select, //
            },
            pgmap::{
                DeviceRegion,
                MemoryType,
                PageMapOwner, //
            },
            PMD_ORDER,
            PMD_PAGES, //
        },
        page::PAGE_SIZE,
        prelude::*,
        str::CString,
        sync::{
            aref::ARef,
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        },
        time::Delta, //
    };

    fn counters(failures: usize) -> Result<Arc<Counters>> {
        failing(failures, ENOMEM, 0)
    }

    fn failing(failures: usize, error: Error, nr_before_failure: usize) -> Result<Arc<Counters>> {
        let counters = Counters {
            evicted: Atomic::new(0),
            freed: Atomic::new(0),
            failures: Atomic::new(failures),
            error,
            nr_before_failure,
            dropped: Atomic::new(false),
        };
        Ok(Arc::new(counters, GFP_KERNEL)?)
    }

    fn device() -> Result<faux::Registration> {
        faux::Registration::new(c"zone_device_kunit", None)
    }

    /// Gives a device memory, as much as a huge page.
    fn bind(dev: &Device<Bound>, counters: &Arc<Counters>) -> Result<Devres<DeviceMemory<Memory>>> {
        let owner = PageMapOwner::new(MemoryType::Private)?;
        let region = DeviceRegion::request_free(
            (PMD_PAGES * PAGE_SIZE) as u64,
            CString::try_from(c"zone_device_kunit")?,
        )?;
        let mut backing = KVec::new();
        for _ in 0..NR_PAGES {
            backing.push(OwnedFolio::zeroed(GFP_KERNEL, 0)?, GFP_KERNEL)?;
        }
        let data = Memory {
            owner: owner.clone(),
            backing,
            counters: counters.clone(),
        };
        DeviceMemory::new(dev, owner, region, data)
    }

    /// Fills user memory, and migrates it to the device.
    ///
    /// Returns it, and a reference on its last page there.
    fn migrate_to_device(map: &DeviceMemory<Memory>) -> Result<(UserMemory, ARef<Folio>)> {
        let memory = UserMemory::map(NR_PAGES * PAGE_SIZE)?;
        fill(&memory, 0..NR_PAGES, 1)?;
        let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        let range = addresses(&memory, 0..NR_PAGES);
        let mut pages = Collected::from_range(&mmap, range, Select::system(), &mut buffer)?;
        let mut last = None;
        for (index, backing) in map.data().backing.iter().enumerate() {
            let page = pages.source(index).page().ok_or(EAGAIN)?;
            backing.copy_from(0, page)?;
            let folio = map.init_folio(index, 0)?.into_private()?;
            last = Some(ARef::from(&*folio));
            pages.set_dst(index, folio)?;
        }
        kunit_expect_eq!(pages.migrate().nr_migrated(), NR_PAGES);
        drop(mmap);
        Ok((memory, last.ok_or(EINVAL)?))
    }

    /// Has all been evicted once, with its contents?
    fn expect_evicted(memory: &UserMemory, counters: &Counters) -> Result {
        kunit_expect_eq!(counters.freed.load(Relaxed), NR_PAGES);
        kunit_expect!(counters.dropped.load(Relaxed));
        // A page that is touched on the device would be lost.
        kunit_expect_eq!(nr_changed(memory, 0..NR_PAGES, 1)?, 0);
        Ok(())
    }

    #[test]
    fn pages_in_use_are_evicted() -> Result {
        let (counters, device) = (counters(0)?, device()?);
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &counters)?;
        let (memory, _) = migrate_to_device(map.access(dev)?)?;
        kunit_expect!(map.access(dev)?.pages_in_use().eq(0..NR_PAGES));

        drop(device);
        kunit_expect!(map.try_access().is_none());
        kunit_expect_eq!(counters.evicted.load(Relaxed), NR_PAGES);
        expect_evicted(&memory, &counters)
    }

    /// Who drops the memory before the device is unbound gets the same.
    #[test]
    fn dropped_before_unbinding() -> Result {
        let (counters, device) = (counters(0)?, device()?);
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &counters)?;
        let (memory, _) = migrate_to_device(map.access(dev)?)?;
        drop(map);
        expect_evicted(&memory, &counters)
    }

    /// Who forgets it cannot keep it.
    #[test]
    fn forgotten() -> Result {
        let (counters, device) = (counters(0)?, device()?);
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &counters)?;
        let (memory, _) = migrate_to_device(map.access(dev)?)?;
        core::mem::forget(map);
        drop(device);
        expect_evicted(&memory, &counters)
    }

    #[test]
    fn failures_are_tried_again() -> Result {
        let (counters, device) = (counters(3)?, device()?);
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &counters)?;
        let (memory, _) = migrate_to_device(map.access(dev)?)?;
        drop(device);
        kunit_expect_eq!(counters.failures.load(Relaxed), 0);
        expect_evicted(&memory, &counters)
    }

    /// What the process has unmapped of a huge page is not evicted, and all the rest is.
    #[test]
    fn half_of_a_huge_page() -> Result {
        const HALF: usize = PMD_PAGES / 2;

        let (counters, device) = (counters(0)?, device()?);
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &counters)?;
        let mut memory = huge_user_memory()?;
        {
            let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
            let mmap = memory.mm().mmap_read_lock();
            let range = addresses(&memory, 0..PMD_PAGES);
            let select = Select::system().compound();
            let mut pages = Collected::from_range(&mmap, range, select, &mut buffer)?;
            let folio = map.access(dev)?.init_folio(0, PMD_ORDER)?.into_private()?;
            pages.set_dst(0, folio)?;
            kunit_expect_eq!(pages.migrate().nr_migrated(), PMD_PAGES);
        }
        memory.unmap(0..HALF * PAGE_SIZE)?;
        kunit_expect_eq!(counters.freed.load(Relaxed), 0);

        drop(device);
        kunit_expect_eq!(counters.evicted.load(Relaxed), PMD_PAGES - HALF);
        kunit_expect_eq!(counters.freed.load(Relaxed), PMD_PAGES);
        kunit_expect!(counters.dropped.load(Relaxed));
        let mut byte = [1];
        memory.read((PMD_PAGES - 1) * PAGE_SIZE, &mut byte)?;
        kunit_expect_eq!(byte, [0]);
        Ok(())
    }

    /// An error may pass.
    #[test]
    fn errors_are_tried_again() -> Result {
        let (counters, device) = (failing(3, EIO, 0)?, device()?);
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &counters)?;
        let (memory, _) = migrate_to_device(map.access(dev)?)?;
        drop(device);
        kunit_expect_eq!(counters.failures.load(Relaxed), 0);
        expect_evicted(&memory, &counters)
    }

    /// Unbinding does not wait for a device that is dead. What it has copied before is not lost.
    #[test]
    fn what_cannot_be_copied_is_given_up() -> Result {
        const NR_COPIED: usize = NR_PAGES / 2;

        let (counters, device) = (failing(usize::MAX, ENODEV, NR_COPIED)?, device()?);
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &counters)?;
        let (memory, _) = migrate_to_device(map.access(dev)?)?;
        drop(device);
        kunit_expect_eq!(counters.evicted.load(Relaxed), NR_COPIED);
        kunit_expect_eq!(counters.freed.load(Relaxed), NR_PAGES);
        kunit_expect!(counters.dropped.load(Relaxed));
        kunit_expect_eq!(nr_changed(&memory, 0..NR_COPIED, 1)?, 0);
        for page in NR_COPIED..NR_PAGES {
            let result = memory.read(page * PAGE_SIZE, &mut [0]);
            kunit_expect_eq!(result, Err(EFAULT), "page {page}");
        }
        Ok(())
    }

    /// A page that somebody has locked, and has a reference on, is waited for.
    #[test]
    fn locked_pages_are_waited_for() -> Result {
        let (counters, device) = (counters(0)?, device()?);
        let dev = device.as_ref().as_ref();
        let map = bind(dev, &counters)?;
        let (memory, last) = migrate_to_device(map.access(dev)?)?;
        raw::lock_for(last, Delta::from_millis(100))?;
        drop(device);
        expect_evicted(&memory, &counters)
    }
}
