// SPDX-License-Identifier: GPL-2.0

//! Large folios: what is migrated, split, evicted, pinned and freed as a whole, and what is not.

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_large_folios)]
mod tests {
    use crate::{
        device::{
            addresses,
            fill,
            filled_huge_page,
            for_each_type,
            huge_user_memory,
            is_huge_page,
            nr_changed,
            Device, //
        },
        raw::{
            LongTermPin,
            RawPage,
            RawPageMap,
            Settings, //
        },
    };
    use kernel::{
        bindings::{
            memory_type_MEMORY_DEVICE_COHERENT as COHERENT,
            memory_type_MEMORY_DEVICE_GENERIC as GENERIC,
            pageflags_PG_reclaim as PG_PARTIALLY_MAPPED,
            pageflags_PG_reserved as PG_RESERVED, //
        },
        kunit::UserMemory,
        kunit_expect,
        kunit_expect_eq,
        mm::{
            migrate::{
                Collected,
                MigrateBuffer,
                Select, //
            },
            pgmap::MemoryType,
            PMD_ORDER,
            PMD_PAGES, //
        },
        page::PAGE_SIZE,
        prelude::*, //
    };

    const HALF: usize = PMD_PAGES / 2;

    /// Runs a test for each memory type, with a huge page of user memory that is on the device, and
    /// filled by [`fill`] with a seed of 1.
    fn for_each_huge_page(
        mut f: impl FnMut(MemoryType, &Device, &mut UserMemory) -> Result,
    ) -> Result {
        for_each_type(|memory_type, device| {
            let Some(mut memory) = filled_huge_page(&device)? else {
                return Ok(());
            };
            let nr_there = device.migrate_to_device(&memory, 0..PMD_PAGES, true)?;
            kunit_expect_eq!(nr_there, PMD_PAGES, "of type {memory_type:?}");
            f(memory_type, &device, &mut memory)
        })
    }

    /// Has the huge page split, as whoever asks for a small part of it.
    fn split(device: &Device, memory: &UserMemory) -> Result {
        let mut buffer = MigrateBuffer::new(1, GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        let select = Select::device(device.owner());
        let pages = Collected::from_range(&mmap, addresses(memory, 0..1), select, &mut buffer)?;
        kunit_expect!(pages.source(0).is_migrating() && !pages.source(0).is_compound());
        Ok(())
    }

    /// Returns the number of pages of the device that are in use, each by itself.
    fn nr_small(device: &Device) -> usize {
        (0..PMD_PAGES)
            .map(|index| RawPage::of_device(device.map(), index))
            .filter(|page| page.ref_count() == 1 && !page.is_tail())
            .count()
    }

    #[test]
    fn huge_pages_move_as_a_whole() -> Result {
        for_each_huge_page(|memory_type, device, memory| {
            kunit_expect!(is_huge_page(device, memory)?, "of type {memory_type:?}");
            let mut seed = 1;
            if memory_type != MemoryType::Private {
                // The CPU works with it where it is.
                kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, seed)?, 0);
                seed = 2;
                fill(memory, 0..PMD_PAGES, seed)?;
            }
            let nr_back = device.migrate_to_system(memory, 0..PMD_PAGES)?;
            kunit_expect_eq!(nr_back, PMD_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_split_off(), 0, "of type {memory_type:?}");
            kunit_expect!(is_huge_page(device, memory)?, "of type {memory_type:?}");
            kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, seed)?, 0);
            Ok(())
        })
    }

    #[test]
    fn huge_holes_get_huge_pages() -> Result {
        for_each_type(|memory_type, device| {
            let memory = huge_user_memory()?;
            let nr_there = device.migrate_to_device(&memory, 0..PMD_PAGES, true)?;
            kunit_expect_eq!(nr_there, PMD_PAGES, "of type {memory_type:?}");
            kunit_expect!(is_huge_page(&device, &memory)?, "of type {memory_type:?}");
            let mut byte = [1];
            memory.read(7 * PAGE_SIZE, &mut byte)?;
            kunit_expect_eq!(byte, [0]);
            drop(memory);
            // Of private memory, by the fault.
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES, "of type {memory_type:?}");
            Ok(())
        })
    }

    #[test]
    fn a_split_keeps_pages_on_the_device() -> Result {
        const DATA: usize = 0x1230;

        for_each_huge_page(|memory_type, device, memory| {
            let head = RawPage::of_device(device.map(), 0);
            let pgmap = head.pgmap();
            let is_reserved = head.has_flag(PG_RESERVED);
            head.set_zone_device_data(DATA);
            split(device, memory)?;

            // Each of them, in order.
            let expected = PMD_PAGES - 1;
            kunit_expect_eq!(device.nr_split_off(), expected, "of type {memory_type:?}");
            kunit_expect_eq!(nr_small(device), PMD_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), 0, "of type {memory_type:?}");
            let nr_others = (0..PMD_PAGES)
                .map(|index| RawPage::of_device(device.map(), index))
                .filter(|page| {
                    page.is_tail()
                        || page.pgmap() != pgmap
                        || page.zone_device_data() != DATA
                        || page.has_flag(PG_RESERVED) != is_reserved
                })
                .count();
            kunit_expect_eq!(nr_others, 0, "of type {memory_type:?}");

            if memory_type != MemoryType::Private {
                kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, 1)?, 0);
                kunit_expect_eq!(device.nr_freed(), 0, "of type {memory_type:?}");
            }
            let nr_back = device.migrate_to_system(memory, 0..PMD_PAGES)?;
            kunit_expect_eq!(nr_back, PMD_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn a_split_does_not_replace_pages_of_zeroes() -> Result {
        for_each_type(|memory_type, device| {
            let memory = huge_user_memory()?;
            device.migrate_to_device(&memory, 0..PMD_PAGES, true)?;
            split(&device, &memory)?;
            kunit_expect_eq!(nr_small(&device), PMD_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), 0, "of type {memory_type:?}");
            Ok(())
        })
    }

    #[test]
    fn pages_that_are_unmapped_are_not_queued() -> Result {
        for_each_huge_page(|memory_type, device, memory| {
            memory.unmap(HALF * PAGE_SIZE..PMD_PAGES * PAGE_SIZE)?;
            let second = RawPage::of_device(device.map(), 1);
            kunit_expect!(second.is_tail(), "of type {memory_type:?}");
            kunit_expect!(
                !second.has_flag(PG_PARTIALLY_MAPPED),
                "of type {memory_type:?}"
            );
            kunit_expect_eq!(device.nr_freed(), 0, "of type {memory_type:?}");

            memory.unmap(0..HALF * PAGE_SIZE)?;
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES, "of type {memory_type:?}");
            Ok(())
        })
    }

    #[test]
    fn pages_that_are_unmapped_come_back_with_a_migration() -> Result {
        for_each_huge_page(|memory_type, device, memory| {
            memory.unmap(0..HALF * PAGE_SIZE)?;
            let nr_back = device.migrate_to_system(memory, HALF..PMD_PAGES)?;
            kunit_expect_eq!(nr_back, PMD_PAGES - HALF, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(nr_changed(memory, HALF..PMD_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn only_pages_that_are_mapped_are_evicted() -> Result {
        // The first and the last page, as what is left of the folio begins at one of them.
        for left in [0, PMD_PAGES - 1] {
            for_each_huge_page(|memory_type, device, memory| {
                if left > 0 {
                    memory.unmap(0..left * PAGE_SIZE)?;
                } else {
                    memory.unmap(PAGE_SIZE..PMD_PAGES * PAGE_SIZE)?;
                }
                let nr_evicted = device.evict(PMD_PAGES)?;
                kunit_expect_eq!(nr_evicted, 1, "of type {memory_type:?}, left {left}");
                kunit_expect_eq!(device.nr_freed(), PMD_PAGES, "of type {memory_type:?}");
                kunit_expect_eq!(nr_changed(memory, left..left + 1, 1)?, 0);
                Ok(())
            })?;
        }
        Ok(())
    }

    #[test]
    fn huge_pages_are_evicted_as_a_whole() -> Result {
        for_each_huge_page(|memory_type, device, memory| {
            let nr_evicted = device.evict(PMD_PAGES)?;
            kunit_expect_eq!(nr_evicted, PMD_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_split_off(), 0, "of type {memory_type:?}");
            kunit_expect!(is_huge_page(device, memory)?, "of type {memory_type:?}");
            kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn huge_pages_are_evicted_to_small_ones() -> Result {
        const LEFT_OUT: usize = 7;

        for_each_huge_page(|memory_type, device, memory| {
            let nr_evicted = device.evict_huge_page_but_for(LEFT_OUT)?;
            kunit_expect_eq!(nr_evicted, PMD_PAGES - 1, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES - 1);
            kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, 1)?, 0);
            // The one left out comes back when it is touched, if the CPU cannot use it.
            let nr_left = usize::from(memory_type != MemoryType::Private);
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES - nr_left);
            kunit_expect_eq!(device.evict(PMD_PAGES)?, nr_left);
            kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn a_huge_page_can_be_unmapped_while_it_is_evicted() -> Result {
        for_each_huge_page(|memory_type, device, memory| {
            let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
            let pages = Collected::from_device(device.map(), 0..PMD_PAGES, &mut buffer)?;
            kunit_expect!(pages.source(0).is_migrating(), "of type {memory_type:?}");
            memory.unmap(0..PMD_PAGES * PAGE_SIZE)?;
            // Whoever evicts it still has a reference.
            let page = RawPage::of_device(device.map(), 0);
            kunit_expect_eq!(page.ref_count(), 1, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), 0, "of type {memory_type:?}");
            drop(pages);
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES, "of type {memory_type:?}");
            Ok(())
        })
    }

    #[test]
    fn reclaim_knows_what_was_unmapped_while_it_was_evicted() -> Result {
        for_each_huge_page(|memory_type, device, memory| {
            let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
            let mut pages = Collected::from_device(device.map(), 0..PMD_PAGES, &mut buffer)?;
            kunit_expect!(pages.source(0).is_migrating(), "of type {memory_type:?}");
            memory.unmap(HALF * PAGE_SIZE..PMD_PAGES * PAGE_SIZE)?;
            device.map().data().set_dsts_in_system(&mut pages)?;
            kunit_expect_eq!(pages.migrate().nr_migrated(), PMD_PAGES);

            let pin = LongTermPin::new(memory, 1)?;
            let second = pin.page().folio().page(1).ok_or(EINVAL)?;
            kunit_expect!(
                RawPage::of_page(second).has_flag(PG_PARTIALLY_MAPPED),
                "of type {memory_type:?}"
            );
            kunit_expect_eq!(nr_changed(memory, 0..HALF, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn large_folios_are_freed_as_single_pages() -> Result {
        for memory_type in [COHERENT, GENERIC] {
            for order in [2, PMD_ORDER] {
                are_freed_as_single_pages(memory_type, order)?;
            }
        }
        Ok(())
    }

    fn are_freed_as_single_pages(memory_type: u32, order: u32) -> Result {
        let nr_pages = 1 << order;
        let map = RawPageMap::new(Settings::managed(memory_type))?;
        let pgmap = map.page(0).pgmap();
        for life in 1..=2 {
            let folio = map.init_large_folio(0, order);
            kunit_expect_eq!(map.nr_references(), nr_pages);
            kunit_expect!(map.page(1).is_tail());
            drop(folio);
            kunit_expect_eq!(map.nr_freed(), 3 * life - 2);
            kunit_expect_eq!(map.nr_references(), 0);
            let nr_wrong = (1..nr_pages)
                .map(|index| map.page(index))
                .filter(|page| {
                    page.is_tail()
                        || page.pgmap() != pgmap
                        || page.mapping() != 0
                        || page.ref_count() != 0
                })
                .count();
            kunit_expect_eq!(nr_wrong, 0, "of type {memory_type}, order {order}");

            // One from the middle, and the first one.
            for index in [nr_pages / 2 + 1, 0] {
                let folio = map.init_folio(index);
                kunit_expect_eq!(folio.order(), 0);
                kunit_expect_eq!(map.nr_references(), 1);
            }
        }
        Ok(())
    }

    #[test]
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn memory_failure_of_what_was_part_of_a_huge_page() -> Result {
        use kernel::bindings::pageflags_PG_hwpoison as PG_HWPOISON;

        for memory_type in [COHERENT, GENERIC] {
            let map = RawPageMap::new(Settings::managed(memory_type))?;
            drop(map.init_large_folio(0, PMD_ORDER));
            // It would wait for the lock of the folio that was handed out, if it took the page for
            // one of that.
            let folio = map.init_folio(0);
            kunit_expect!(!map.page(5).is_tail());
            if !map.page(5).is_tail() {
                kunit_expect_eq!(map.memory_failure(5), Ok(()));
                kunit_expect!(map.page(5).has_flag(PG_HWPOISON));
                kunit_expect!(!map.page(0).has_flag(PG_HWPOISON));
            }
            drop(folio);
        }
        Ok(())
    }

    #[test]
    fn huge_pages_move_before_they_are_pinned() -> Result {
        for nr_pages in [1, 4, PMD_PAGES] {
            for_each_huge_page(|memory_type, device, memory| {
                if memory_type == MemoryType::Private {
                    return Ok(());
                }
                let stays = memory_type == MemoryType::Generic;
                let pin = LongTermPin::new(memory, nr_pages)?;
                let is_device_memory = pin.page().folio().is_zone_device();
                kunit_expect_eq!(
                    is_device_memory,
                    stays,
                    "{nr_pages} of type {memory_type:?}"
                );
                kunit_expect_eq!(
                    device.nr_split_off(),
                    0,
                    "{nr_pages} of type {memory_type:?}"
                );
                kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, 1)?, 0);

                // What is pinned stays, all of it.
                let nr_back = device.migrate_to_system(memory, 0..PMD_PAGES)?;
                kunit_expect_eq!(nr_back, 0, "{nr_pages} of type {memory_type:?}");
                kunit_expect_eq!(device.evict(PMD_PAGES)?, 0, "{nr_pages} of {memory_type:?}");
                drop(pin);
                let expected = if stays { PMD_PAGES } else { 0 };
                let nr_evicted = device.evict(PMD_PAGES)?;
                kunit_expect_eq!(nr_evicted, expected, "{nr_pages} of type {memory_type:?}");
                kunit_expect_eq!(device.nr_freed(), PMD_PAGES);
                kunit_expect_eq!(nr_changed(memory, 0..PMD_PAGES, 1)?, 0);
                Ok(())
            })?;
        }
        Ok(())
    }

    #[test]
    fn partly_mapped_huge_pages_move_page_by_page_before_they_are_pinned() -> Result {
        const NR_PINNED: usize = 4;

        for_each_huge_page(|memory_type, device, memory| {
            if memory_type != MemoryType::Coherent {
                return Ok(());
            }
            memory.unmap(HALF * PAGE_SIZE..PMD_PAGES * PAGE_SIZE)?;
            let pin = LongTermPin::new(memory, NR_PINNED)?;
            kunit_expect!(!pin.page().folio().is_zone_device());
            // The others stay, but for what was not mapped.
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES - HALF + NR_PINNED);
            drop(pin);
            kunit_expect_eq!(device.evict(PMD_PAGES)?, HALF - NR_PINNED);
            kunit_expect_eq!(nr_changed(memory, 0..HALF, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn memory_failure_of_one_page_of_a_huge_one() -> Result {
        const BROKEN: usize = 7;

        for_each_huge_page(|memory_type, device, memory| {
            let page = RawPage::of_device(device.map(), BROKEN);
            if memory_type == MemoryType::Private {
                return Ok(());
            }
            let result = crate::raw::memory_failure(page);
            kunit_expect_eq!(result, Ok(()), "of type {memory_type:?}");
            let nr_split_off = device.nr_split_off();
            kunit_expect_eq!(nr_split_off, PMD_PAGES - 1, "of type {memory_type:?}");
            let contents = nr_changed(memory, BROKEN..BROKEN + 1, 1);
            kunit_expect_eq!(contents, Err(EFAULT), "of type {memory_type:?}");

            // All others are as they were, and where they were.
            kunit_expect_eq!(nr_changed(memory, 0..BROKEN, 1), Ok(0));
            kunit_expect_eq!(nr_changed(memory, BROKEN + 1..PMD_PAGES, 1), Ok(0));
            kunit_expect_eq!(device.nr_freed(), 1, "of type {memory_type:?}");
            kunit_expect_eq!(device.evict(PMD_PAGES)?, PMD_PAGES - 1);
            Ok(())
        })
    }

    #[test]
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn a_huge_page_that_was_pinned_when_it_broke_is_evicted_but_for_what_is_broken() -> Result {
        const BROKEN: usize = 7;

        for_each_huge_page(|memory_type, device, memory| {
            if memory_type != MemoryType::Generic {
                return Ok(());
            }
            let pin = LongTermPin::new(memory, 1)?;
            let page = RawPage::of_device(device.map(), BROKEN);
            // It stays mapped, with the others, as whoever has pinned it may be using it.
            kunit_expect_eq!(crate::raw::memory_failure(page), Err(EBUSY));
            kunit_expect_eq!(device.nr_split_off(), 0);
            kunit_expect_eq!(nr_changed(memory, 0..BROKEN, 1), Ok(0));
            kunit_expect_eq!(device.evict(PMD_PAGES)?, 0);
            drop(pin);

            // The split takes it away from the process, which it is of no use for.
            kunit_expect_eq!(device.evict(PMD_PAGES)?, PMD_PAGES - 1);
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES);
            kunit_expect_eq!(nr_changed(memory, BROKEN..BROKEN + 1, 1), Err(EFAULT));
            kunit_expect_eq!(nr_changed(memory, 0..BROKEN, 1), Ok(0));
            kunit_expect_eq!(nr_changed(memory, BROKEN + 1..PMD_PAGES, 1), Ok(0));
            Ok(())
        })
    }
}
