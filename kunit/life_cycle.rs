// SPDX-License-Identifier: GPL-2.0

//! The life of a page: free, handed out, and free again.

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_life_cycle)]
mod tests {
    use crate::raw::{
        RawPage,
        RawPageMap,
        Settings, //
    };
    use kernel::{
        bindings::{
            self,
            memory_type,
            memory_type_MEMORY_DEVICE_COHERENT as COHERENT,
            memory_type_MEMORY_DEVICE_FS_DAX as FS_DAX,
            memory_type_MEMORY_DEVICE_GENERIC as GENERIC,
            memory_type_MEMORY_DEVICE_PCI_P2PDMA as PCI_P2PDMA,
            memory_type_MEMORY_DEVICE_PRIVATE as PRIVATE,
            pageflags_PG_active as PG_ACTIVE,
            pageflags_PG_dirty as PG_DIRTY,
            pageflags_PG_head as PG_HEAD,
            pageflags_PG_locked as PG_LOCKED,
            pageflags_PG_reclaim as PG_RECLAIM,
            pageflags_PG_referenced as PG_REFERENCED,
            pageflags_PG_reserved as PG_RESERVED,
            pageflags_PG_workingset as PG_WORKINGSET, //
        },
        kunit_expect,
        kunit_expect_eq,
        prelude::*,
        sync::aref::ARef, //
    };

    /// A page that is free is its driver's alone.
    fn expect_free(page: RawPage<'_>) {
        kunit_expect_eq!(page.ref_count(), 0);
        kunit_expect_eq!(page.mapping(), 0);
        kunit_expect!(!page.has_flag(PG_LOCKED));
    }

    /// A page that is handed out is an ordinary one.
    fn expect_handed_out(page: RawPage<'_>) {
        kunit_expect_eq!(page.ref_count(), 1);
        kunit_expect_eq!(page.mapping(), 0);
        kunit_expect!(page.has_flag(PG_LOCKED));
    }

    /// A page is free, handed out, and free again, and the pagemap knows how many are in use.
    fn life_cycle(memory_type: memory_type) -> Result {
        let map = RawPageMap::new(Settings::managed(memory_type))?;
        let page = map.page(3);
        expect_free(page);
        kunit_expect_eq!(map.nr_references(), 0);

        for life in 1..=2 {
            let folio = map.init_folio(3);
            expect_handed_out(page);
            kunit_expect_eq!(map.nr_references(), 1);
            let other = map.init_folio(4);
            kunit_expect_eq!(map.nr_references(), 2);
            drop(other);
            kunit_expect_eq!(map.nr_references(), 1);
            kunit_expect_eq!(map.nr_freed(), 2 * life - 1);

            // Not by the first reference that is dropped, but by the last.
            let reference = ARef::from(&*folio);
            drop(folio);
            kunit_expect_eq!(page.ref_count(), 1);
            kunit_expect_eq!(map.nr_freed(), 2 * life - 1);
            map.set_anon_mapping(3);
            drop(reference);
            kunit_expect_eq!(map.nr_freed(), 2 * life);
            expect_free(page);
            kunit_expect_eq!(map.nr_references(), 0);
        }
        Ok(())
    }

    #[test]
    fn private() -> Result {
        life_cycle(PRIVATE)
    }

    #[test]
    fn coherent() -> Result {
        life_cycle(COHERENT)
    }

    #[test]
    fn managed_generic() -> Result {
        life_cycle(GENERIC)
    }

    /// VFIO goes by the reserved bit when it pins, and again when it unpins.
    #[test]
    fn reserved_bit_never_changes() -> Result {
        // What can be pinned for the long term does not have it.
        for (memory_type, reserved) in [(PRIVATE, true), (COHERENT, true), (GENERIC, false)] {
            let map = RawPageMap::new(Settings::managed(memory_type))?;
            let page = map.page(3);
            let expect = |when| {
                let found = page.has_flag(PG_RESERVED);
                kunit_expect_eq!(found, reserved, "{when}, type {memory_type}");
            };
            expect("before it is handed out");
            for _ in 0..2 {
                let folio = map.init_folio(3);
                expect("in use");
                drop(folio);
                expect("free again");
            }
        }
        Ok(())
    }

    #[test]
    fn unmanaged_generic_is_never_free() -> Result {
        let map = RawPageMap::new(Settings {
            ops: None,
            ..Settings::managed(GENERIC)
        })?;
        let page = map.page(3);
        let nr_pages = map.nr_pages();
        kunit_expect_eq!(page.ref_count(), 1);
        kunit_expect!(page.has_flag(PG_RESERVED));
        kunit_expect_eq!(map.nr_references(), nr_pages);

        map.put(3);
        kunit_expect_eq!(page.ref_count(), 1);
        kunit_expect!(page.has_flag(PG_RESERVED));
        kunit_expect_eq!(map.nr_references(), nr_pages);
        kunit_expect_eq!(map.nr_freed(), 0);
        Ok(())
    }

    /// A page is free, taken into use, and free again. The pagemap has a reference for each.
    fn uncounted_life_cycle(memory_type: memory_type) -> Result<usize> {
        let map = RawPageMap::new(Settings::managed(memory_type))?;
        let page = map.page(3);
        let nr_pages = map.nr_pages();
        for _ in 0..2 {
            kunit_expect_eq!(page.ref_count(), 0);
            kunit_expect_eq!(map.nr_references(), nr_pages);
            map.take(3);
            map.put(3);
        }
        kunit_expect_eq!(page.ref_count(), 0);
        kunit_expect_eq!(map.nr_references(), nr_pages);
        Ok(map.nr_freed())
    }

    #[test]
    fn fs_dax() -> Result {
        kunit_expect_eq!(uncounted_life_cycle(FS_DAX)?, 0);
        Ok(())
    }

    #[test]
    fn peer_to_peer() -> Result {
        kunit_expect_eq!(uncounted_life_cycle(PCI_P2PDMA)?, 2);
        Ok(())
    }

    #[test]
    fn flags_of_a_former_life_are_gone() -> Result {
        // Some of them, in the second page of a large folio, say what that is.
        const LEFT_OVER: [bindings::pageflags; 6] = [
            PG_ACTIVE,
            PG_DIRTY,
            PG_HEAD,
            PG_RECLAIM,
            PG_REFERENCED,
            PG_WORKINGSET,
        ];
        for memory_type in [PRIVATE, COHERENT, GENERIC] {
            let map = RawPageMap::new(Settings::managed(memory_type))?;
            let page = map.page(0);
            for flag in LEFT_OVER {
                map.set_flag(0, flag);
            }
            let folio = map.init_folio(0);
            for flag in LEFT_OVER {
                kunit_expect!(!page.has_flag(flag), "flag {flag} of type {memory_type}");
            }
            drop(folio);
        }
        Ok(())
    }

    #[test]
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn memory_failure_of_a_free_page() -> Result {
        use kernel::bindings::pageflags_PG_hwpoison as PG_HWPOISON;

        for memory_type in [COHERENT, GENERIC] {
            let map = RawPageMap::new(Settings::managed(memory_type))?;
            let page = map.page(0);
            kunit_expect_eq!(map.memory_failure(0), Ok(()));
            kunit_expect!(page.has_flag(PG_HWPOISON));
            kunit_expect!(!map.page(1).has_flag(PG_HWPOISON));
            kunit_expect_eq!(map.memory_failure(0), Err(EHWPOISON));

            // It is for the driver to keep the page, which stays broken.
            drop(map.init_folio(0));
            kunit_expect!(page.has_flag(PG_HWPOISON));
            kunit_expect_eq!(page.ref_count(), 0);
            map.clear_flag(0, PG_HWPOISON);
        }
        Ok(())
    }

    #[test]
    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn memory_failure_of_what_the_cpu_cannot_address() -> Result {
        use kernel::bindings::pageflags_PG_hwpoison as PG_HWPOISON;

        let map = RawPageMap::new(Settings::managed(PRIVATE))?;
        kunit_expect_eq!(map.memory_failure(0), Err(ENXIO));
        kunit_expect!(!map.page(0).has_flag(PG_HWPOISON));
        Ok(())
    }
}
