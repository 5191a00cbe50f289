// SPDX-License-Identifier: GPL-2.0

//! What a driver keeps for each folio of its memory.

use core::ops::Range;
use kernel::{
    mm::pgmap::{
        Fault,
        FaultError,
        PageMapOps, //
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

/// The data of a folio. Counts how many of them are gone.
struct Tag {
    number: usize,
    nr_dropped: Arc<Atomic<usize>>,
}

impl Drop for Tag {
    fn drop(&mut self) {
        self.nr_dropped.fetch_add(1, Relaxed);
    }
}

/// The driver's data of the memory.
struct Memory {
    nr_split_off: Arc<Atomic<usize>>,
}

#[vtable]
impl PageMapOps for Memory {
    type FolioData = Arc<Tag>;

    fn folio_free(&self, _pages: Range<usize>) {}

    /// No test has the CPU touch private memory there.
    fn migrate_to_ram(&self, _fault: &mut Fault<'_>) -> Result<(), FaultError> {
        Err(FaultError::SigBus)
    }

    fn folio_split(&self, _head: usize, pages: Range<usize>) {
        self.nr_split_off.fetch_add(pages.len(), Relaxed);
    }
}

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_folio_data)]
mod tests {
    use super::*;
    use crate::device::{
        addresses,
        for_each_type_there_is,
        huge_user_memory,
        region, //
    };
    use kernel::{
        kunit_expect,
        kunit_expect_eq,
        mm::{
            folio::{
                FolioPage,
                LockedFolio, //
            },
            migrate::{
                Collected,
                MigrateBuffer,
                Select, //
            },
            pgmap::{
                MemoryType,
                PageMap,
                PageMapOwner, //
            },
            PMD_ORDER,
            PMD_PAGES, //
        },
        page::PAGE_SIZE, //
    };

    const HALF: usize = PMD_PAGES / 2;

    /// Memory, and what is counted of it.
    struct Device {
        map: Pin<KBox<PageMap<Memory>>>,
        nr_split_off: Arc<Atomic<usize>>,
        nr_dropped: Arc<Atomic<usize>>,
    }

    impl Device {
        fn new(memory_type: MemoryType) -> Result<Self> {
            let region = region(memory_type)?;
            let owner = PageMapOwner::new(memory_type)?;
            let nr_split_off = counter()?;
            let memory = Memory {
                nr_split_off: nr_split_off.clone(),
            };
            Ok(Self {
                map: KBox::pin_init(PageMap::new(owner, region, memory), GFP_KERNEL)?,
                nr_split_off,
                nr_dropped: counter()?,
            })
        }

        fn tag(&self, number: usize) -> Result<Arc<Tag>> {
            let tag = Tag {
                number,
                nr_dropped: self.nr_dropped.clone(),
            };
            Ok(Arc::new(tag, GFP_KERNEL)?)
        }

        fn nr_dropped(&self) -> usize {
            self.nr_dropped.load(Relaxed)
        }

        /// Hands out a folio of zeroes.
        fn folio(
            &self,
            index: usize,
            order: u32,
            data: &mut Option<Arc<Tag>>,
        ) -> Result<LockedFolio> {
            let folio = self.map.init_folio_with(index, order, data)?;
            match self.map.owner().memory_type() {
                MemoryType::Private => folio.into_private(),
                MemoryType::Coherent | MemoryType::Generic => folio.fill(|page| page.clear()),
            }
        }

        /// Returns the number that the data of a page's folio has.
        fn number(&self, page: Option<FolioPage<'_>>) -> Option<usize> {
            let data = self.map.owner().device_page(page?)?.data()?;
            Some(data.number)
        }
    }

    fn counter() -> Result<Arc<Atomic<usize>>> {
        Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
    }

    #[test]
    fn a_folio_has_the_data_that_it_was_given() -> Result {
        for_each_type_there_is(|memory_type| {
            let device = Device::new(memory_type)?;
            let first = device.folio(0, 0, &mut Some(device.tag(1)?))?;
            let second = device.folio(1, 0, &mut Some(device.tag(2)?))?;
            let third = device.folio(2, 0, &mut None)?;
            kunit_expect_eq!(device.number(first.page(0)), Some(1));
            kunit_expect_eq!(device.number(second.page(0)), Some(2));
            kunit_expect_eq!(device.number(third.page(0)), None);

            // It stays with the caller if there is no folio for it.
            let mut data = Some(device.tag(3)?);
            kunit_expect_eq!(device.folio(1, 0, &mut data).err(), Some(EBUSY));
            kunit_expect_eq!(data.as_ref().map(|tag| tag.number), Some(3));
            kunit_expect_eq!(device.nr_dropped(), 0, "of type {memory_type:?}");

            drop(first);
            kunit_expect_eq!(device.nr_dropped(), 1, "of type {memory_type:?}");
            kunit_expect_eq!(device.number(second.page(0)), Some(2));
            // Nothing is left of it for who has the page next.
            let first = device.folio(0, 0, &mut None)?;
            kunit_expect_eq!(device.number(first.page(0)), None);
            drop((first, second, third, data));
            kunit_expect_eq!(device.nr_dropped(), 3, "of type {memory_type:?}");
            Ok(())
        })
    }

    #[test]
    fn each_part_of_a_folio_has_its_data() -> Result {
        for_each_type_there_is(|memory_type| {
            let device = Device::new(memory_type)?;
            split_and_unmap(&device, Some(device.tag(1)?))?;
            kunit_expect_eq!(device.nr_dropped(), 1, "of type {memory_type:?}");
            split_and_unmap(&device, None)?;
            kunit_expect_eq!(device.nr_dropped(), 1, "of type {memory_type:?}");
            let nr_split_off = device.nr_split_off.load(Relaxed);
            kunit_expect_eq!(nr_split_off, 2 * (PMD_PAGES - 1), "of type {memory_type:?}");
            Ok(())
        })
    }

    /// Has a huge page of the device split, and its pages freed.
    fn split_and_unmap(device: &Device, mut data: Option<Arc<Tag>>) -> Result {
        let expected = data.as_ref().map(|tag| tag.number);
        let mut memory = huge_user_memory()?;
        let all = addresses(&memory, 0..PMD_PAGES);
        let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
        {
            let mmap = memory.mm().mmap_read_lock();
            let select = Select::system().compound();
            let mut pages = Collected::from_range(&mmap, all.clone(), select, &mut buffer)?;
            pages.set_dst(0, device.folio(0, PMD_ORDER, &mut data)?)?;
            kunit_expect_eq!(pages.migrate().nr_migrated(), PMD_PAGES);
        }
        {
            // Whoever asks for small pages has it split.
            let mmap = memory.mm().mmap_read_lock();
            let select = Select::device(device.map.owner());
            let pages = Collected::from_range(&mmap, all, select, &mut buffer)?;
            let nr_small = (0..pages.len())
                .filter_map(|index| pages.source(index).page())
                .filter(|page| page.folio().order() == 0)
                .filter(|page| device.number(Some(*page)) == expected)
                .count();
            kunit_expect_eq!(nr_small, PMD_PAGES);
        }

        // The data is there until the last of them is gone.
        let nr_dropped = device.nr_dropped();
        memory.unmap(0..HALF * PAGE_SIZE)?;
        kunit_expect_eq!(device.map.pages_in_use().count(), HALF);
        kunit_expect_eq!(device.nr_dropped(), nr_dropped);
        memory.unmap(HALF * PAGE_SIZE..PMD_PAGES * PAGE_SIZE)?;
        kunit_expect!(device.map.pages_in_use().next().is_none());
        Ok(())
    }
}
