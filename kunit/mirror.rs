// SPDX-License-Identifier: GPL-2.0

//! The memory of a process as a device sees it: MMU interval notifiers and HMM.

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_mirror)]
mod tests {
    use crate::{
        device::{
            addresses,
            fill,
            filled_huge_page,
            for_each_type,
            is_huge_page,
            nr_changed,
            Device, //
        },
        raw::{
            self,
            HmmDmaMap,
            RawPage, //
        }, //
    };
    use core::ops::Range;
    use kernel::{
        bindings,
        dma::DmaAddress,
        kunit::{
            self,
            UserMemory, //
        },
        kunit_expect,
        kunit_expect_eq,
        mm::{
            hmm::{
                Access,
                FaultMode,
                HmmBuffer,
                Mirror, //
            },
            notifier::{
                IntervalNotifier,
                Invalidate,
                Invalidation, //
            },
            pgmap::MemoryType,
            PMD_PAGES, //
        },
        new_mutex,
        page::PAGE_SIZE,
        prelude::*, //
    };

    const NR_PAGES: usize = 4;

    fn user_memory() -> Result<UserMemory> {
        UserMemory::map(NR_PAGES * PAGE_SIZE)
    }

    fn mirror(memory: &UserMemory) -> Result<Pin<KBox<Mirror>>> {
        KBox::pin_init(Mirror::new(memory.mm()), GFP_KERNEL)
    }

    /// Returns user memory, filled with a seed of 1, that the device may write to. The first two
    /// pages are on the device, if the CPU can map its memory.
    fn faulted_for_write(device: &Device) -> Result<(UserMemory, Pin<KBox<Mirror>>)> {
        let memory = user_memory()?;
        let mirror = mirror(&memory)?;
        fill(&memory, 0..NR_PAGES, 1)?;
        if device.owner().memory_type() != MemoryType::Private {
            let nr_there = device.migrate_to_device(&memory, 0..2, false)?;
            kunit_expect_eq!(nr_there, 2);
        }
        let (access, mode) = (Access::Write, FaultMode::Locked);
        mirror.fault(memory.range(), access, mode, device.owner())?;
        Ok((memory, mirror))
    }

    /// Counts invalidations, and notes their addresses.
    #[derive(Default)]
    struct Count {
        nr: usize,
        last: Range<usize>,
    }

    impl Invalidate for Count {
        fn invalidate(&mut self, invalidation: &Invalidation<'_>) {
            self.nr += 1;
            self.last = invalidation.range();
        }
    }

    #[test]
    fn an_invalidation_ends_a_read_section() -> Result {
        let mut memory = user_memory()?;
        fill(&memory, 0..NR_PAGES, 1)?;
        let notifier = KBox::pin_init(
            IntervalNotifier::new(
                memory.mm(),
                addresses(&memory, 0..2),
                new_mutex!(Count::default()),
            ),
            GFP_KERNEL,
        )?;

        kunit_expect!(notifier.read_begin().lock().is_some());
        // Of pages beside those that the notifier is for.
        let section = notifier.read_begin();
        memory.unmap(2 * PAGE_SIZE..3 * PAGE_SIZE)?;
        kunit_expect!(section.lock().is_some());
        let nr = notifier.lock().nr;
        kunit_expect_eq!(nr, 0);

        let section = notifier.read_begin();
        memory.unmap(PAGE_SIZE..2 * PAGE_SIZE)?;
        kunit_expect!(section.lock().is_none());
        let nr = notifier.lock().nr;
        kunit_expect_eq!(nr, 1);
        let page = addresses(&memory, 1..2);
        let last = notifier.lock().last.clone();
        kunit_expect!(last.start <= page.start && page.end <= last.end);

        kunit_expect!(notifier.read_begin().lock().is_some());
        Ok(())
    }

    #[test]
    fn a_read_section_is_of_its_own_notifier() -> Result {
        let mut memory = user_memory()?;
        fill(&memory, 0..NR_PAGES, 1)?;
        let notifier = |pages| {
            let state = new_mutex!(Count::default());
            let range = addresses(&memory, pages);
            KBox::pin_init(IntervalNotifier::new(memory.mm(), range, state), GFP_KERNEL)
        };
        let (first, second) = (notifier(0..1)?, notifier(1..2)?);

        // Both sections are of the same time, so their sequence numbers may well be the same.
        let (section, other_section) = (first.read_begin(), second.read_begin());
        memory.unmap(PAGE_SIZE..2 * PAGE_SIZE)?;
        kunit_expect_eq!(section.lock().map(|state| state.nr), Some(0));
        kunit_expect!(other_section.lock().is_none());
        Ok(())
    }

    #[test]
    fn notifiers_are_for_whole_pages() -> Result {
        let memory = user_memory()?;
        let Range { start, end } = memory.range();
        let inverted = end..start;
        for range in [start..start, inverted, start + 1..end, start..end - 1] {
            let state = new_mutex!(Count::default());
            let notifier =
                KBox::pin_init(IntervalNotifier::new(memory.mm(), range, state), GFP_KERNEL);
            kunit_expect_eq!(notifier.err(), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn mirrors_refuse_ranges_that_are_empty_or_inverted() -> Result {
        let device = Device::new(MemoryType::Private)?;
        let memory = user_memory()?;
        let mirror = mirror(&memory)?;
        let Range { start, end } = memory.range();
        for range in [start..start, end..start] {
            let result = mirror.fault(
                range.clone(),
                Access::Read,
                FaultMode::Locked,
                device.owner(),
            );
            kunit_expect_eq!(result, Err(EINVAL));
            let result = mirror.snapshot(range, device.owner(), |_, _| {});
            kunit_expect_eq!(result, Err(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn a_device_reads_and_writes_what_the_cpu_does() -> Result {
        for_each_type(|memory_type, device| {
            let (memory, mirror) = faulted_for_write(&device)?;
            let range = memory.range();
            let mut byte = [0];
            for page in 0..NR_PAGES {
                {
                    let table = mirror.lock();
                    let mapping = table.get(range.start + page * PAGE_SIZE).ok_or(EFAULT)?;
                    mapping.page().read(PAGE_SIZE - 1, &mut byte)?;
                    mapping.write(PAGE_SIZE - 1, &[100])?;
                }
                kunit_expect_eq!(byte, [1 + page as u8], "of type {memory_type:?}");
            }
            memory.read(2 * PAGE_SIZE - 1, &mut byte)?;
            kunit_expect_eq!(byte, [100], "of type {memory_type:?}");
            Ok(())
        })
    }

    /// Also memory of a device, if the CPU maps it.
    #[test]
    fn a_device_does_dma_where_hmm_has_faulted() -> Result {
        let registration = raw::dma_device()?;
        let dev = registration.as_ref().as_ref();
        for_each_type(|memory_type, device| {
            let (memory, mirror) = faulted_for_write(&device)?;
            let range = memory.range();
            let mut map = match HmmDmaMap::new(dev, NR_PAGES) {
                Err(EOPNOTSUPP) => {
                    kunit::mark_skipped(c"memory has to be synchronized for the device");
                    return Ok(());
                }
                map => map?,
            };
            kunit_expect!(!map.unmap(0), "of type {memory_type:?}");
            let table = mirror.lock();
            for page in 0..NR_PAGES {
                let mapping = table.get(range.start + page * PAGE_SIZE).ok_or(EFAULT)?;
                map.set(page, mapping.page());
                let expected = (mapping.page().pfn() * PAGE_SIZE) as DmaAddress;
                for _ in 0..2 {
                    // SAFETY: The page stays as long as `table` is locked.
                    let address = unsafe { map.map(page)? };
                    kunit_expect_eq!(address, expected, "of type {memory_type:?}");
                }
                kunit_expect!(map.unmap(page), "of type {memory_type:?}");
                kunit_expect!(!map.unmap(page), "of type {memory_type:?}");
            }
            Ok(())
        })
    }

    #[test]
    fn a_mirror_forgets_what_is_unmapped_or_migrated() -> Result {
        for_each_type(|memory_type, device| {
            let mut memory = user_memory()?;
            let mirror = mirror(&memory)?;
            fill(&memory, 0..NR_PAGES, 1)?;
            let range = memory.range();
            mirror.fault(
                range.clone(),
                Access::Read,
                FaultMode::Locked,
                device.owner(),
            )?;
            let is_mapped =
                |page: usize| mirror.lock().get(range.start + page * PAGE_SIZE).is_some();
            kunit_expect!((0..NR_PAGES).all(is_mapped), "of type {memory_type:?}");

            device.migrate_to_device(&memory, 0..1, false)?;
            kunit_expect!(!is_mapped(0), "of type {memory_type:?}");
            kunit_expect!(is_mapped(1), "of type {memory_type:?}");
            memory.unmap(2 * PAGE_SIZE..3 * PAGE_SIZE)?;
            kunit_expect!(is_mapped(1), "of type {memory_type:?}");
            kunit_expect!(!is_mapped(2), "of type {memory_type:?}");
            kunit_expect!(is_mapped(3), "of type {memory_type:?}");
            let hole = addresses(&memory, 2..3);
            let result = mirror.fault(hole, Access::Read, FaultMode::Locked, device.owner());
            kunit_expect_eq!(result, Err(EFAULT), "of type {memory_type:?}");
            Ok(())
        })
    }

    /// It takes a fault to have it back.
    #[test]
    fn a_huge_page_of_another_device_is_no_error() -> Result {
        let device = Device::new(MemoryType::Private)?;
        let other = Device::new(MemoryType::Private)?;
        let Some(memory) = filled_huge_page(&device)? else {
            return Ok(());
        };
        let nr_there = device.migrate_to_device(&memory, 0..PMD_PAGES, true)?;
        kunit_expect_eq!(nr_there, PMD_PAGES);
        let is_huge = is_huge_page(&device, &memory)?;
        kunit_expect!(is_huge);

        mirror(&memory)?.snapshot(memory.range(), other.owner(), |_, pfn| {
            kunit_expect!(pfn.page().is_none() && !pfn.is_error());
        })?;
        Ok(())
    }

    #[test]
    fn a_snapshot_shows_device_memory_to_its_owner() -> Result {
        for_each_type(|memory_type, device| {
            let other = Device::new(memory_type)?;
            let memory = user_memory()?;
            let mirror = mirror(&memory)?;
            fill(&memory, 0..2, 1)?;
            device.migrate_to_device(&memory, 0..1, false)?;

            let mut found = [false; NR_PAGES];
            let mut present = [false; NR_PAGES];
            mirror.snapshot(memory.range(), device.owner(), |indices, pfn| {
                if let Some(page) = pfn.page() {
                    present[indices.clone()].fill(true);
                    found[indices].fill(device.owner().device_page(page).is_some());
                }
            })?;
            kunit_expect_eq!(
                present,
                [true, true, false, false],
                "of type {memory_type:?}"
            );
            kunit_expect_eq!(
                found,
                [true, false, false, false],
                "of type {memory_type:?}"
            );

            // The private memory of one device is nothing that another could use.
            let mut present = [false; NR_PAGES];
            mirror.snapshot(memory.range(), other.owner(), |indices, pfn| {
                kunit_expect!(!pfn.is_error(), "of type {memory_type:?}");
                present[indices].fill(pfn.page().is_some());
            })?;
            let is_shown = memory_type != MemoryType::Private;
            kunit_expect_eq!(
                present,
                [is_shown, true, false, false],
                "of type {memory_type:?}"
            );
            kunit_expect_eq!(device.nr_freed(), 0);
            Ok(())
        })
    }

    #[test]
    fn a_page_is_exclusive_until_the_cpu_touches_it() -> Result {
        let device = Device::new(MemoryType::Private)?;
        let memory = user_memory()?;
        let mirror = mirror(&memory)?;
        fill(&memory, 0..NR_PAGES, 1)?;
        mirror.make_exclusive(addresses(&memory, 0..2), device.owner())?;
        let is_exclusive = |page: usize| {
            mirror
                .lock()
                .any_exclusive(addresses(&memory, page..page + 1))
        };
        kunit_expect!(is_exclusive(0) && is_exclusive(1) && !is_exclusive(2));

        kunit_expect_eq!(nr_changed(&memory, 0..1, 1)?, 0);
        kunit_expect!(!is_exclusive(0));
        kunit_expect!(is_exclusive(1));
        Ok(())
    }

    #[test]
    fn only_exclusive_pages_can_be_updated() -> Result {
        let device = Device::new(MemoryType::Private)?;
        let memory = user_memory()?;
        let mirror = mirror(&memory)?;
        fill(&memory, 0..NR_PAGES, 1)?;
        let page = addresses(&memory, 0..1);
        let update = |offset: usize| {
            let table = mirror.lock();
            let mapping = table.get(page.start).ok_or(ENOENT)?;
            mapping.fetch_update(offset, |value| !value)
        };
        let last = PAGE_SIZE - size_of::<u64>();

        mirror.fault(
            page.clone(),
            Access::Write,
            FaultMode::Locked,
            device.owner(),
        )?;
        kunit_expect_eq!(update(0), Err(EPERM));
        mirror.make_exclusive(page.clone(), device.owner())?;
        kunit_expect_eq!(update(4), Err(EINVAL));
        kunit_expect_eq!(update(PAGE_SIZE), Err(EINVAL));
        kunit_expect_eq!(update(last), Ok(u64::from_ne_bytes([1; 8])));
        kunit_expect_eq!(update(last), Ok(!u64::from_ne_bytes([1; 8])));
        kunit_expect_eq!(update(0), Ok(u64::from_ne_bytes([1; 8])));

        let mut bytes = [0; 16];
        memory.read(0, &mut bytes)?;
        kunit_expect_eq!(
            bytes,
            [254, 254, 254, 254, 254, 254, 254, 254, 1, 1, 1, 1, 1, 1, 1, 1]
        );
        memory.read(last, &mut bytes[..8])?;
        kunit_expect_eq!(bytes[..8], [1; 8]);
        kunit_expect_eq!(update(0), Err(ENOENT));
        Ok(())
    }

    /// What a device knows of the pages that a notifier is for: their PFNs.
    struct Known {
        start: usize,
        pfns: [Option<usize>; 2],
    }

    impl Invalidate for Known {
        fn invalidate(&mut self, invalidation: &Invalidation<'_>) {
            for (index, pfn) in self.pfns.iter_mut().enumerate() {
                let addr = self.start + index * PAGE_SIZE;
                if invalidation.range().contains(&addr) {
                    *pfn = None;
                }
            }
        }
    }

    /// A notifier for the second and the third page.
    fn known(memory: &UserMemory) -> Result<Pin<KBox<IntervalNotifier<Known>>>> {
        let range = addresses(memory, 1..3);
        let state = new_mutex!(Known {
            start: range.start,
            pfns: [None; 2],
        });
        KBox::pin_init(IntervalNotifier::new(memory.mm(), range, state), GFP_KERNEL)
    }

    #[test]
    fn a_notifier_has_what_is_mapped_until_it_is_not() -> Result {
        for_each_type(|memory_type, device| {
            let mut memory = user_memory()?;
            fill(&memory, 0..2, 1)?;
            device.migrate_to_device(&memory, 1..2, false)?;
            let notifier = known(&memory)?;
            let mut buffer = HmmBuffer::new(2, GFP_KERNEL)?;
            let mut fault = |pages, access| {
                let range = addresses(&memory, pages);
                let start = range.start;
                notifier.fault(
                    range,
                    access,
                    FaultMode::Locked,
                    device.owner(),
                    &mut buffer,
                    |known, pfns| {
                        let first = (start - known.start) / PAGE_SIZE;
                        for (known, pfn) in known.pfns[first..].iter_mut().zip(pfns.iter()) {
                            *known = pfn.pfn();
                        }
                        pfns.len()
                    },
                )
            };
            let is_known = || notifier.lock().pfns.map(|pfn| pfn.is_some());

            kunit_expect_eq!(
                fault(1..3, Access::Present),
                Ok(2),
                "of type {memory_type:?}"
            );
            kunit_expect_eq!(is_known(), [true, false], "of type {memory_type:?}");
            kunit_expect_eq!(fault(2..3, Access::Write), Ok(1), "of type {memory_type:?}");
            kunit_expect_eq!(is_known(), [true, true], "of type {memory_type:?}");
            // Of pages that it is not for, even if some are, it would not be told.
            for pages in [0..1, 0..2, 2..4, 3..4, 0..4] {
                let result = fault(pages.clone(), Access::Present);
                kunit_expect_eq!(result, Err(EINVAL), "{pages:?}");
            }
            kunit_expect_eq!(is_known(), [true, true], "of type {memory_type:?}");

            memory.unmap(PAGE_SIZE..2 * PAGE_SIZE)?;
            kunit_expect_eq!(is_known(), [false, true], "of type {memory_type:?}");
            Ok(())
        })
    }

    /// Nobody knows when the device writes to a page that it has: what it has written must not get
    /// lost when memory is reclaimed.
    #[test]
    fn what_a_device_may_write_to_is_dirty() -> Result {
        const PG_DIRTY: bindings::pageflags = bindings::pageflags_PG_dirty;

        let device = Device::new(MemoryType::Private)?;
        let memory = user_memory()?;
        fill(&memory, 0..NR_PAGES, 1)?;
        let notifier = known(&memory)?;
        let mut buffer = HmmBuffer::new(1, GFP_KERNEL)?;
        let mut fault = |access| {
            let range = addresses(&memory, 1..2);
            let mode = FaultMode::Locked;
            notifier.fault(
                range,
                access,
                mode,
                device.owner(),
                &mut buffer,
                |_, pfns| {
                    let pfn = pfns.iter().next()?;
                    let page = RawPage::of_page(pfn.page()?);
                    Some((pfn.is_writable(), page.has_flag(PG_DIRTY)))
                },
            )
        };
        kunit_expect_eq!(fault(Access::Present), Ok(Some((false, false))));
        kunit_expect_eq!(fault(Access::Read), Ok(Some((false, false))));
        kunit_expect_eq!(fault(Access::Write), Ok(Some((true, true))));

        let addr = addresses(&memory, 2..3).start;
        let is_dirty = notifier.make_exclusive(addr, device.owner(), |_, page| {
            RawPage::of_page(page).has_flag(PG_DIRTY)
        });
        kunit_expect_eq!(is_dirty, Ok(true));
        Ok(())
    }

    #[test]
    fn what_a_process_has_mapped_needs_room() -> Result {
        let device = Device::new(MemoryType::Private)?;
        let memory = user_memory()?;
        let notifier = known(&memory)?;
        let mut buffer = HmmBuffer::new(1, GFP_KERNEL)?;
        kunit_expect_eq!(buffer.nr_pages(), 1);
        let result = notifier.fault(
            addresses(&memory, 1..3),
            Access::Present,
            FaultMode::Locked,
            device.owner(),
            &mut buffer,
            |_, _| (),
        );
        kunit_expect_eq!(result, Err(EINVAL));
        Ok(())
    }

    #[test]
    fn an_exclusive_page_of_a_notifier_is_invalidated_by_the_cpu() -> Result {
        let device = Device::new(MemoryType::Private)?;
        let memory = user_memory()?;
        fill(&memory, 0..NR_PAGES, 1)?;
        let notifier = known(&memory)?;
        let make_exclusive = |page: usize| {
            let addr = addresses(&memory, page..page + 1).start;
            notifier.make_exclusive(addr, device.owner(), |known, page| {
                known.pfns[(addr - known.start) / PAGE_SIZE] = Some(page.pfn());
            })
        };
        let is_known = || notifier.lock().pfns.map(|pfn| pfn.is_some());

        kunit_expect_eq!(make_exclusive(1), Ok(()));
        kunit_expect_eq!(make_exclusive(2), Ok(()));
        kunit_expect_eq!(is_known(), [true, true]);
        kunit_expect_eq!(make_exclusive(0), Err(EINVAL));
        kunit_expect_eq!(make_exclusive(3), Err(EINVAL));
        let unaligned = memory.range().start + PAGE_SIZE + 1;
        let result = notifier.make_exclusive(unaligned, device.owner(), |_, _| ());
        kunit_expect_eq!(result, Err(EINVAL));

        kunit_expect_eq!(nr_changed(&memory, 1..2, 1)?, 0);
        kunit_expect_eq!(is_known(), [false, true]);
        Ok(())
    }
}
