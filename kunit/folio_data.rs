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

/// The driver's data of private memory.
struct Memory;

#[vtable]
impl PageMapOps for Memory {
    type FolioData = Arc<Tag>;

    fn folio_free(&self, _pages: Range<usize>) {}

    /// No test has the CPU touch them there.
    fn migrate_to_ram(&self, _fault: &mut Fault<'_>) -> Result<(), FaultError> {
        Err(FaultError::SigBus)
    }
}

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_folio_data)]
mod tests {
    use super::*;
    use crate::device::{
        addresses,
        huge_user_memory, //
    };
    use kernel::{
        kunit_expect,
        kunit_expect_eq,
        mm::{
            folio::FolioPage,
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
        str::CString, //
    };

    const HALF: usize = PMD_PAGES / 2;

    /// Creates memory for two huge pages.
    fn memory() -> Result<Pin<KBox<PageMap<Memory>>>> {
        let region = DeviceRegion::request_free(
            (2 * PMD_PAGES * PAGE_SIZE) as u64,
            CString::try_from(c"zone_device_kunit")?,
        )?;
        let owner = PageMapOwner::new(MemoryType::Private)?;
        KBox::pin_init(PageMap::new(owner, region, Memory), GFP_KERNEL)
    }

    fn counter() -> Result<Arc<Atomic<usize>>> {
        Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
    }

    fn tag(number: usize, nr_dropped: &Arc<Atomic<usize>>) -> Result<Arc<Tag>> {
        let tag = Tag {
            number,
            nr_dropped: nr_dropped.clone(),
        };
        Ok(Arc::new(tag, GFP_KERNEL)?)
    }

    fn number(map: &PageMap<Memory>, page: FolioPage<'_>) -> Option<usize> {
        let data = map.owner().device_page(page)?.data()?;
        Some(data.number)
    }

    #[test]
    fn a_folio_has_the_data_that_it_was_given() -> Result {
        let nr_dropped = counter()?;
        let map = memory()?;
        let first = map.init_folio_with(0, 0, &mut Some(tag(1, &nr_dropped)?))?;
        let second = map.init_folio_with(1, 0, &mut Some(tag(2, &nr_dropped)?))?;
        let third = map.init_folio(2, 0)?;
        let [first, second, third] = [
            first.into_private()?,
            second.into_private()?,
            third.into_private()?,
        ];
        kunit_expect_eq!(first.page(0).and_then(|page| number(&map, page)), Some(1));
        kunit_expect_eq!(second.page(0).and_then(|page| number(&map, page)), Some(2));
        kunit_expect_eq!(third.page(0).and_then(|page| number(&map, page)), None);

        // It stays with the caller if there is no folio for it.
        let mut data = Some(tag(3, &nr_dropped)?);
        kunit_expect_eq!(map.init_folio_with(1, 0, &mut data).err(), Some(EBUSY));
        kunit_expect_eq!(data.as_ref().map(|tag| tag.number), Some(3));
        kunit_expect_eq!(nr_dropped.load(Relaxed), 0);

        drop(first);
        kunit_expect_eq!(nr_dropped.load(Relaxed), 1);
        kunit_expect_eq!(second.page(0).and_then(|page| number(&map, page)), Some(2));
        // Nothing is left of it for who has the page next.
        let first = map.init_folio(0, 0)?.into_private()?;
        kunit_expect_eq!(first.page(0).and_then(|page| number(&map, page)), None);
        drop((first, second, third, data));
        kunit_expect_eq!(nr_dropped.load(Relaxed), 3);
        Ok(())
    }

    #[test]
    fn each_part_of_a_folio_has_its_data() -> Result {
        let nr_dropped = counter()?;
        let map = memory()?;
        let mut memory = huge_user_memory()?;
        let all = addresses(&memory, 0..PMD_PAGES);
        let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
        {
            let mmap = memory.mm().mmap_read_lock();
            let select = Select::system().compound();
            let mut pages = Collected::from_range(&mmap, all.clone(), select, &mut buffer)?;
            let mut data = Some(tag(1, &nr_dropped)?);
            let folio = map.init_folio_with(0, PMD_ORDER, &mut data)?;
            pages.set_dst(0, folio.into_private()?)?;
            kunit_expect_eq!(pages.migrate().nr_migrated(), PMD_PAGES);
        }
        {
            // Whoever asks for small pages has it split.
            let mmap = memory.mm().mmap_read_lock();
            let select = Select::device(map.owner());
            let pages = Collected::from_range(&mmap, all, select, &mut buffer)?;
            let nr_with_data = (0..pages.len())
                .filter_map(|index| pages.source(index).page())
                .filter(|page| page.folio().order() == 0 && number(&map, *page) == Some(1))
                .count();
            kunit_expect_eq!(nr_with_data, PMD_PAGES);
        }

        // It is there until the last of them is gone.
        memory.unmap(0..HALF * PAGE_SIZE)?;
        kunit_expect_eq!(map.pages_in_use().count(), HALF);
        kunit_expect_eq!(nr_dropped.load(Relaxed), 0);
        memory.unmap(HALF * PAGE_SIZE..PMD_PAGES * PAGE_SIZE)?;
        kunit_expect!(map.pages_in_use().next().is_none());
        kunit_expect_eq!(nr_dropped.load(Relaxed), 1);
        Ok(())
    }
}
