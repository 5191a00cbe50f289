// SPDX-License-Identifier: GPL-2.0

//! Migration of anonymous memory to and from device memory.

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_migration)]
mod tests {
    use crate::{
        device::{
            addresses,
            fill,
            filled_huge_page,
            for_each_type,
            huge_user_memory,
            nr_changed,
            Device, //
        },
        raw::{
            self,
            LongTermPin,
            RawPage, //
        },
    };
    use core::ops::Range;
    use kernel::{
        bindings::{
            self,
            pageflags_PG_mlocked as PG_MLOCKED, //
        },
        kunit::UserMemory,
        kunit_expect,
        kunit_expect_eq,
        mm::{
            folio::Folio,
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
        prelude::*,
        sync::aref::ARef,
        time::Delta, //
    };

    const NR_PAGES: usize = 4;

    fn user_memory() -> Result<UserMemory> {
        UserMemory::map(NR_PAGES * PAGE_SIZE)
    }

    /// Collects and lets go again. Returns the page frame numbers of what would have been migrated.
    fn collect(
        memory: &UserMemory,
        pages: Range<usize>,
        select: Select<'_>,
    ) -> Result<KVec<usize>> {
        let mut buffer = MigrateBuffer::new(pages.len(), GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        let pages = Collected::from_range(&mmap, addresses(memory, pages), select, &mut buffer)?;
        let mut pfns = KVec::with_capacity(pages.len(), GFP_KERNEL)?;
        for index in 0..pages.len() {
            if let Some(page) = pages.source(index).page() {
                pfns.push(page.pfn(), GFP_KERNEL)?;
            }
        }
        Ok(pfns)
    }

    /// Takes a reference on the folio of the first page.
    fn reference(memory: &UserMemory, select: Select<'_>) -> Result<ARef<Folio>> {
        reference_of(memory, 0..1, select)
    }

    /// Takes a reference on the folio of the first page of a range.
    fn reference_of(
        memory: &UserMemory,
        pages: Range<usize>,
        select: Select<'_>,
    ) -> Result<ARef<Folio>> {
        let mut buffer = MigrateBuffer::new(pages.len(), GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        let pages = Collected::from_range(&mmap, addresses(memory, pages), select, &mut buffer)?;
        let source = pages.source(0);
        Ok(source.page().ok_or(EINVAL)?.folio().into())
    }

    #[test]
    fn contents_move_there_and_back() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            let nr_there = device.migrate_to_device(&memory, 0..NR_PAGES, false)?;
            kunit_expect_eq!(nr_there, NR_PAGES, "of type {memory_type:?}");
            if memory_type != MemoryType::Private {
                // The CPU works with them where they are.
                kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
                fill(&memory, 0..NR_PAGES, 2)?;
                kunit_expect_eq!(device.nr_freed(), 0);
            }
            let seed = if memory_type == MemoryType::Private {
                1
            } else {
                2
            };
            let nr_back = device.migrate_to_system(&memory, 0..NR_PAGES)?;
            kunit_expect_eq!(nr_back, NR_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), NR_PAGES);
            kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, seed)?, 0);
            Ok(())
        })
    }

    #[test]
    fn memory_without_pages_gets_them_on_the_device() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            let nr_there = device.migrate_to_device(&memory, 0..NR_PAGES, false)?;
            kunit_expect_eq!(nr_there, NR_PAGES, "of type {memory_type:?}");
            let mut byte = [1];
            memory.read(2 * PAGE_SIZE, &mut byte)?;
            kunit_expect_eq!(byte, [0]);
            drop(memory);
            kunit_expect_eq!(device.nr_freed(), NR_PAGES);
            Ok(())
        })
    }

    #[test]
    fn private_memory_comes_back_when_it_is_touched() -> Result {
        let device = Device::new(MemoryType::Private)?;
        let memory = user_memory()?;
        fill(&memory, 0..NR_PAGES, 1)?;
        device.migrate_to_device(&memory, 0..NR_PAGES, false)?;
        kunit_expect_eq!(nr_changed(&memory, 1..2, 1)?, 0);
        kunit_expect_eq!(device.nr_freed(), 1);
        kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
        kunit_expect_eq!(device.nr_freed(), NR_PAGES);
        Ok(())
    }

    /// Contents that are lost are not taken for others, and the page is free.
    #[test]
    fn poisoned_pages_cannot_be_accessed() -> Result {
        for_each_type(|memory_type, device| {
            let mut memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            device.migrate_to_device(&memory, 0..NR_PAGES, false)?;
            let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
            let mut pages = Collected::from_device(device.map(), 0..NR_PAGES, &mut buffer)?;
            kunit_expect_eq!(pages.poison(1), Ok(()), "of type {memory_type:?}");
            kunit_expect_eq!(pages.poison(1), Err(EINVAL));
            kunit_expect_eq!(pages.poison(NR_PAGES), Err(EINVAL));
            // Nothing is lost if it is not migrated.
            drop(pages);
            kunit_expect_eq!(device.nr_freed(), 0);

            let mut pages = Collected::from_device(device.map(), 0..NR_PAGES, &mut buffer)?;
            pages.poison(1)?;
            let migrated = pages.migrate();
            kunit_expect_eq!(migrated.nr_migrated(), 0);
            kunit_expect!(!migrated.is_migrated(1));
            drop(migrated);
            kunit_expect_eq!(device.nr_freed(), 1, "of type {memory_type:?}");
            let page = PAGE_SIZE..2 * PAGE_SIZE;
            kunit_expect_eq!(memory.read(page.start, &mut [0]), Err(EFAULT));
            kunit_expect_eq!(memory.write(page.start, &[0]), Err(EFAULT));
            kunit_expect_eq!(nr_changed(&memory, 0..1, 1)?, 0);
            kunit_expect_eq!(nr_changed(&memory, 2..NR_PAGES, 1)?, 0);
            memory.unmap(page)
        })
    }

    #[test]
    fn all_of_a_huge_page_is_poisoned() -> Result {
        for_each_type(|memory_type, device| {
            let Some(memory) = filled_huge_page(&device)? else {
                return Ok(());
            };
            device.migrate_to_device(&memory, 0..PMD_PAGES, true)?;
            let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
            let mut pages = Collected::from_device(device.map(), 0..PMD_PAGES, &mut buffer)?;
            kunit_expect!(pages.source(0).is_compound());
            pages.poison(0)?;
            drop(pages.migrate());
            kunit_expect_eq!(device.nr_freed(), PMD_PAGES, "of type {memory_type:?}");
            for page in 0..PMD_PAGES {
                let result = memory.read(page * PAGE_SIZE, &mut [0]);
                kunit_expect_eq!(result, Err(EFAULT), "page {page} of type {memory_type:?}");
            }
            Ok(())
        })
    }

    /// That is for the device's memory only.
    #[test]
    fn system_memory_cannot_be_poisoned() -> Result {
        let memory = user_memory()?;
        fill(&memory, 0..NR_PAGES - 1, 1)?;
        {
            let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
            let mmap = memory.mm().mmap_read_lock();
            let range = addresses(&memory, 0..NR_PAGES);
            let mut pages = Collected::from_range(&mmap, range, Select::system(), &mut buffer)?;
            for index in 0..NR_PAGES {
                kunit_expect_eq!(pages.poison(index), Err(EINVAL), "page {index}");
            }
        }
        kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES - 1, 1)?, 0);
        Ok(())
    }

    #[test]
    fn only_what_is_selected_is_collected() -> Result {
        for_each_type(|memory_type, device| {
            let other = Device::new(memory_type)?;
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            // One page of each device, two of system memory.
            device.migrate_to_device(&memory, 0..1, false)?;
            other.migrate_to_device(&memory, 1..2, false)?;

            let all = 0..NR_PAGES;
            let of_system = collect(&memory, all.clone(), Select::system())?;
            let of_device = collect(&memory, all.clone(), Select::device(device.owner()))?;
            let of_other = collect(&memory, all, Select::device(other.owner()))?;
            kunit_expect_eq!(of_system.len(), 2, "with a device of type {memory_type:?}");
            kunit_expect_eq!(of_device.len(), 1, "with a device of type {memory_type:?}");
            kunit_expect_eq!(of_other.len(), 1, "with a device of type {memory_type:?}");
            kunit_expect!(of_device.first() != of_other.first());
            kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn another_reference_keeps_a_page_in_place() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            device.migrate_to_device(&memory, 0..NR_PAGES, false)?;

            let folio = reference(&memory, Select::device(device.owner()))?;
            let select = Select::device(device.owner());
            let pfns = collect(&memory, 0..NR_PAGES, select)?;
            kunit_expect_eq!(pfns.len(), NR_PAGES - 1, "of type {memory_type:?}");
            kunit_expect!(!pfns.contains(&folio.pfn()));
            let nr_back = device.migrate_to_system(&memory, 0..NR_PAGES)?;
            kunit_expect_eq!(nr_back, NR_PAGES - 1, "of type {memory_type:?}");

            drop(folio);
            let nr_back = device.migrate_to_system(&memory, 0..NR_PAGES)?;
            kunit_expect_eq!(nr_back, 1, "of type {memory_type:?}");
            kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn only_generic_memory_is_pinned_for_the_long_term() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            device.migrate_to_device(&memory, 0..NR_PAGES, false)?;

            let stays = memory_type == MemoryType::Generic;
            let pin = LongTermPin::new(&memory, 1)?;
            let is_device_memory = pin.page().folio().is_zone_device();
            kunit_expect_eq!(is_device_memory, stays, "of type {memory_type:?}");

            let nr_back = device.migrate_to_system(&memory, 0..NR_PAGES)?;
            kunit_expect_eq!(nr_back, NR_PAGES - 1, "of type {memory_type:?}");
            kunit_expect_eq!(device.evict(NR_PAGES)?, 0, "of type {memory_type:?}");
            drop(pin);
            let nr_back = device.evict(NR_PAGES)?;
            kunit_expect_eq!(nr_back, usize::from(stays), "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), NR_PAGES);
            kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn what_is_given_up_stays_where_it_was() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;

            // As soon as it is collected.
            let before = collect(&memory, 0..NR_PAGES, Select::system())?;
            kunit_expect_eq!(before.len(), NR_PAGES);
            // With folios for some of it.
            {
                let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
                let mmap = memory.mm().mmap_read_lock();
                let range = addresses(&memory, 0..NR_PAGES);
                let mut pages = Collected::from_range(&mmap, range, Select::system(), &mut buffer)?;
                for index in 0..2 {
                    let folio = device.copy_to_device(&pages, index, 0)?;
                    pages.set_dst(index, folio)?;
                }
            }
            kunit_expect_eq!(device.nr_freed(), 2, "of type {memory_type:?}");
            let after = collect(&memory, 0..NR_PAGES, Select::system())?;
            kunit_expect_eq!(after[..], before[..]);

            // Without folios for the others.
            {
                let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
                let mmap = memory.mm().mmap_read_lock();
                let range = addresses(&memory, 0..NR_PAGES);
                let mut pages = Collected::from_range(&mmap, range, Select::system(), &mut buffer)?;
                let folio = device.copy_to_device(&pages, 3, 0)?;
                pages.set_dst(3, folio)?;
                let migrated = pages.migrate();
                kunit_expect_eq!(migrated.nr_migrated(), 1, "of type {memory_type:?}");
                kunit_expect!(migrated.is_migrated(3));
            }
            let after = collect(&memory, 0..NR_PAGES, Select::system())?;
            kunit_expect_eq!(Some(&after[..]), before.get(..3));
            kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn ranges_that_are_empty_or_inverted_are_refused() -> Result {
        let memory = user_memory()?;
        fill(&memory, 0..NR_PAGES, 1)?;
        let Range { start, end } = memory.range();
        let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        // The last one is refused by the VMA as well, as it begins at its end.
        for range in [start..start, end - PAGE_SIZE..start, end..start] {
            let result = Collected::from_range(&mmap, range, Select::system(), &mut buffer);
            kunit_expect_eq!(result.err(), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn pages_are_evicted_from_whoever_has_them() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            let other_memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            fill(&other_memory, 0..NR_PAGES, 5)?;
            device.migrate_to_device(&memory, 0..NR_PAGES, false)?;
            device.migrate_to_device(&other_memory, 0..NR_PAGES, false)?;

            // More than is in use.
            let nr_evicted = device.evict(3 * NR_PAGES)?;
            kunit_expect_eq!(nr_evicted, 2 * NR_PAGES, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), 2 * NR_PAGES);
            kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
            kunit_expect_eq!(nr_changed(&other_memory, 0..NR_PAGES, 5)?, 0);
            Ok(())
        })
    }

    #[test]
    fn pages_that_are_free_or_locked_are_not_collected() -> Result {
        const VALID: usize = bindings::MIGRATE_PFN_VALID as usize;
        const MIGRATE: usize = bindings::MIGRATE_PFN_MIGRATE as usize;

        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            device.migrate_to_device(&memory, 0..1, false)?;
            let locked = device.map().init_folio(2, 0)?;
            let entries = raw::collect_and_finalize(device.map(), [0, 1, 2])?;
            let collected =
                device.map().start_pfn() << bindings::MIGRATE_PFN_SHIFT | VALID | MIGRATE;
            kunit_expect_eq!(entries, [collected, 0, 0], "of type {memory_type:?}");
            let entries = raw::collect_range_and_finalize(device.map(), 0)?;
            kunit_expect_eq!(entries, [collected, 0, 0], "of type {memory_type:?}");
            drop(locked);
            kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    fn what_a_free_page_was_part_of_hides_no_others() -> Result {
        let device = Device::new(MemoryType::Private)?;
        drop(device.map().init_folio(0, PMD_ORDER)?);
        let memory = user_memory()?;
        fill(&memory, 0..NR_PAGES, 1)?;
        device.skip(5);
        device.migrate_to_device(&memory, 0..NR_PAGES, false)?;

        let nr_evicted = device.evict(PMD_PAGES)?;
        kunit_expect_eq!(nr_evicted, NR_PAGES);
        kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
        Ok(())
    }

    #[test]
    fn inverted_ranges_are_refused() -> Result {
        let memory = user_memory()?;
        kunit_expect_eq!(raw::setup(&memory, 1, 2), Ok(()));
        kunit_expect_eq!(raw::setup(&memory, 2, 2), Err(EINVAL));
        kunit_expect_eq!(raw::setup(&memory, 2, 1), Err(EINVAL));
        Ok(())
    }

    #[test]
    fn huge_holes_are_collected_one_by_one() -> Result {
        const NR_PAGES: usize = 2 * PMD_PAGES;

        // Nothing is mapped nearby, so that one entry higher up in the page table is empty.
        let memory = UserMemory::map(NR_PAGES * PAGE_SIZE)?;
        let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        let range = addresses(&memory, 0..NR_PAGES);
        let select = Select::system().compound();
        let pages = Collected::from_range(&mmap, range, select, &mut buffer)?;
        for index in (0..NR_PAGES).step_by(PMD_PAGES) {
            kunit_expect!(pages.source(index).is_migrating(), "at {index}");
            kunit_expect!(pages.source(index).is_compound(), "at {index}");
            kunit_expect!(!pages.source(index + 1).is_migrating(), "after {index}");
        }
        Ok(())
    }

    #[test]
    fn a_huge_hole_can_be_filled_in_part() -> Result {
        for_each_type(|memory_type, device| {
            let memory = huge_user_memory()?;
            let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
            let nr_migrated = {
                let mmap = memory.mm().mmap_read_lock();
                let range = addresses(&memory, 0..PMD_PAGES);
                let select = Select::system().compound();
                let mut pages = Collected::from_range(&mmap, range, select, &mut buffer)?;
                kunit_expect!(pages.source(0).is_compound());
                for index in [0, 7] {
                    let folio = device.copy_to_device(&pages, index, 0)?;
                    pages.set_dst(index, folio)?;
                }
                let migrated = pages.migrate();
                migrated.nr_migrated()
            };
            kunit_expect_eq!(nr_migrated, 2, "of type {memory_type:?}");
            let select = Select::device(device.owner());
            kunit_expect_eq!(collect(&memory, 0..PMD_PAGES, select)?.len(), 2);
            Ok(())
        })
    }

    #[test]
    fn destinations_of_another_size_are_refused() -> Result {
        const SMALL: u32 = bindings::MIGRATE_PFN_VALID;
        const HUGE: u32 = SMALL | bindings::MIGRATE_PFN_COMPOUND;

        // The number of pages that are collected, the order of the destination, and what its entry
        // says.
        for (nr_pages, order, flags) in [
            (NR_PAGES, 2, HUGE),
            (NR_PAGES, 2, SMALL),
            (NR_PAGES, PMD_ORDER, HUGE),
            (NR_PAGES, PMD_ORDER, SMALL),
            (NR_PAGES, 0, HUGE),
            (PMD_PAGES, PMD_ORDER, SMALL),
            (PMD_PAGES, PMD_ORDER - 1, HUGE),
            (PMD_PAGES, PMD_ORDER - 1, SMALL),
            (PMD_PAGES, 0, HUGE),
        ] {
            for is_hole in [false, true] {
                for_each_type(|memory_type, device| {
                    let memory = match is_hole {
                        true => Some(huge_user_memory()?),
                        false => filled_huge_page(&device)?,
                    };
                    let Some(memory) = memory else {
                        return Ok(());
                    };
                    kunit_expect!(
                        is_refused(&device, memory, nr_pages, order, flags, is_hole)?,
                        "{nr_pages} pages to order {order}, flags {flags:#x}, hole: {is_hole}, \
                         of type {memory_type:?}"
                    );
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Migrates to a folio of some order and returns whether core mm refuses, without any other
    /// effect, whether the driver takes large folios of any order or not.
    fn is_refused(
        device: &Device,
        memory: UserMemory,
        nr_pages: usize,
        order: u32,
        flags: u32,
        is_hole: bool,
    ) -> Result<bool> {
        const SYSTEM: u32 = bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_SYSTEM;
        const COMPOUND: u32 = bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_COMPOUND;
        const ANY_ORDER: u32 = bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_ANY_ORDER;

        let select = || Select::system().compound();
        let before = collect(&memory, 0..nr_pages, select())?;

        let mut is_migrated = false;
        for (nr, any_order) in [(1, 0), (2, ANY_ORDER)] {
            let folio = raw::init_folio(device.map(), order)?;
            let select = SYSTEM | COMPOUND | any_order;
            is_migrated |= raw::migrate_first(&memory, nr_pages, select, folio, flags)?;
            kunit_expect_eq!(device.nr_freed(), nr << order);
        }
        device.skip(PMD_PAGES);

        // Nothing has changed, nor does anything stand against a migration.
        let after = collect(&memory, 0..nr_pages, select())?;
        kunit_expect_eq!(after[..], before[..]);
        let nr_there = device.migrate_to_device(&memory, 0..nr_pages, true)?;
        kunit_expect_eq!(nr_there, nr_pages);
        if !is_hole {
            kunit_expect_eq!(nr_changed(&memory, 0..nr_pages, 1)?, 0);
        }
        Ok(!is_migrated)
    }

    #[test]
    fn a_fault_waits_for_the_lock_of_a_huge_page() -> Result {
        let device = Device::new(MemoryType::Private)?;
        let Some(memory) = filled_huge_page(&device)? else {
            return Ok(());
        };
        device.migrate_to_device(&memory, 0..PMD_PAGES, true)?;
        let select = Select::device(device.owner()).compound();
        let folio = reference_of(&memory, 0..PMD_PAGES, select)?;
        raw::lock_for(folio, Delta::from_millis(500))?;

        let nr_faults_before = raw::nr_faults();
        kunit_expect_eq!(nr_changed(&memory, 0..1, 1)?, 0);
        // Not one by one for as long as it is locked. Some may fail until the reference is gone.
        let nr_faults = raw::nr_faults() - nr_faults_before;
        kunit_expect!(nr_faults < 1000, "{nr_faults} faults");
        Ok(())
    }

    #[test]
    fn device_memory_is_not_counted_as_locked() -> Result {
        for_each_type(|memory_type, device| {
            let memory = UserMemory::map_locked(NR_PAGES * PAGE_SIZE)?;
            fill(&memory, 0..NR_PAGES, 1)?;
            // A CPU's batch of pages to munlock has a reference on each of them. That of this CPU
            // is drained, so this can only fail when the thread has moved to another.
            let mut nr_there = 0;
            for _ in 0..100 {
                nr_there += device.migrate_to_device(&memory, 0..NR_PAGES, false)?;
                if nr_there == NR_PAGES {
                    break;
                }
            }
            kunit_expect_eq!(nr_there, NR_PAGES, "of type {memory_type:?}");
            let page = RawPage::of_device(device.map(), 0);
            kunit_expect_eq!(page.ref_count(), 1, "of type {memory_type:?}");
            kunit_expect!(!page.has_flag(PG_MLOCKED), "of type {memory_type:?}");

            let nr_back = device.migrate_to_system(&memory, 0..1)?;
            kunit_expect_eq!(nr_back, 1, "of type {memory_type:?}");
            let folio = reference(&memory, Select::system())?;
            kunit_expect!(RawPage::of(&folio).has_flag(PG_MLOCKED));

            // Nothing holds the pages any longer than they are mapped.
            drop(memory);
            kunit_expect_eq!(device.nr_freed(), NR_PAGES, "of type {memory_type:?}");
            Ok(())
        })
    }

    #[test]
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn memory_failure_of_a_page_in_use() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            device.migrate_to_device(&memory, 0..NR_PAGES, false)?;
            let folio = reference(&memory, Select::device(device.owner()))?;
            // Private memory is not the CPU's to find broken.
            let (result, contents) = match memory_type {
                MemoryType::Private => (Err(ENXIO), Ok(0)),
                _ => (Ok(()), Err(EFAULT)),
            };
            kunit_expect_eq!(
                raw::memory_failure(RawPage::of(&folio)),
                result,
                "of type {memory_type:?}"
            );
            drop(folio);
            kunit_expect_eq!(nr_changed(&memory, 0..1, 1), contents);
            kunit_expect_eq!(nr_changed(&memory, 1..NR_PAGES, 1), Ok(0));
            Ok(())
        })
    }

    #[test]
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn broken_memory_is_not_migrated_to() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
            let mmap = memory.mm().mmap_read_lock();
            let range = addresses(&memory, 0..NR_PAGES);
            let mut pages = Collected::from_range(&mmap, range, Select::system(), &mut buffer)?;
            for index in 0..NR_PAGES {
                let folio = device.copy_to_device(&pages, index, 0)?;
                if index == 1 {
                    raw::set_broken(&folio);
                }
                pages.set_dst(index, folio)?;
            }
            let nr_migrated = pages.migrate().nr_migrated();
            drop(mmap);
            kunit_expect_eq!(nr_migrated, NR_PAGES - 1, "of type {memory_type:?}");
            kunit_expect_eq!(device.nr_freed(), 1);
            kunit_expect_eq!(nr_changed(&memory, 0..NR_PAGES, 1)?, 0);
            Ok(())
        })
    }

    #[test]
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn broken_memory_is_not_migrated_from() -> Result {
        for_each_type(|memory_type, device| {
            let memory = user_memory()?;
            fill(&memory, 0..NR_PAGES, 1)?;
            device.migrate_to_device(&memory, 0..NR_PAGES, false)?;
            let mut buffer = MigrateBuffer::new(NR_PAGES, GFP_KERNEL)?;
            let mmap = memory.mm().mmap_read_lock();
            let range = addresses(&memory, 0..NR_PAGES);
            let select = Select::device(device.owner());
            let mut pages = Collected::from_range(&mmap, range, select, &mut buffer)?;
            let broken = pages.source(1).page().ok_or(EINVAL)?;
            raw::set_broken(broken.folio());
            device.map().data().set_dsts_in_system(&mut pages)?;
            let nr_migrated = pages.migrate().nr_migrated();
            kunit_expect_eq!(nr_migrated, NR_PAGES - 1, "of type {memory_type:?}");
            Ok(())
        })
    }
}
