// SPDX-License-Identifier: GPL-2.0

//! Which pagemaps there can be, and what their pages are taken for.

#[cfg(CONFIG_ZONE_DEVICE_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(zone_device_pagemaps)]
mod tests {
    use crate::raw::{
        RawPageMap,
        Settings,
        WITHOUT_FOLIO_FREE,
        WITHOUT_MIGRATE_TO_RAM, //
    };
    use kernel::{
        bindings::{
            memory_type,
            memory_type_MEMORY_DEVICE_COHERENT as COHERENT,
            memory_type_MEMORY_DEVICE_FS_DAX as FS_DAX,
            memory_type_MEMORY_DEVICE_GENERIC as GENERIC,
            memory_type_MEMORY_DEVICE_PRIVATE as PRIVATE, //
        },
        kunit,
        kunit_expect,
        kunit_expect_eq,
        mm::folio::OwnedFolio,
        prelude::*, //
    };

    /// The kernel must refuse it, and say why.
    fn expect_rejected(what: &str, settings: Settings) -> Result {
        let (result, nr_warnings) = kunit::suppress_warnings(|| RawPageMap::new(settings).err())?;
        kunit_expect_eq!(result, Some(EINVAL), "for a pagemap {what}");
        kunit_expect_eq!(nr_warnings, 1, "for a pagemap {what}");
        Ok(())
    }

    #[test]
    fn managed_generic_needs_an_owner() -> Result {
        expect_rejected(
            "with folio_free, without owner",
            Settings {
                has_owner: false,
                ..Settings::managed(GENERIC)
            },
        )
    }

    #[test]
    fn managed_memory_needs_a_struct_page_for_each_page() -> Result {
        for memory_type in [COHERENT, GENERIC] {
            expect_rejected(
                "with folio_free and vmemmap_shift",
                Settings {
                    vmemmap_shift: 9,
                    ..Settings::managed(memory_type)
                },
            )?;
        }
        Ok(())
    }

    #[test]
    fn coherent_needs_operations_and_an_owner() -> Result {
        let settings = Settings::managed(COHERENT);
        expect_rejected(
            "without ops",
            Settings {
                ops: None,
                ..settings
            },
        )?;
        expect_rejected(
            "without folio_free",
            Settings {
                ops: Some(&WITHOUT_FOLIO_FREE),
                ..settings
            },
        )?;
        expect_rejected(
            "without owner",
            Settings {
                has_owner: false,
                ..settings
            },
        )
    }

    #[test]
    fn private_needs_operations_and_an_owner() -> Result {
        let settings = Settings::managed(PRIVATE);
        expect_rejected(
            "without ops",
            Settings {
                ops: None,
                ..settings
            },
        )?;
        expect_rejected(
            "without folio_free",
            Settings {
                ops: Some(&WITHOUT_FOLIO_FREE),
                ..settings
            },
        )?;
        expect_rejected(
            "without migrate_to_ram",
            Settings {
                ops: Some(&WITHOUT_MIGRATE_TO_RAM),
                ..settings
            },
        )?;
        expect_rejected(
            "without owner",
            Settings {
                has_owner: false,
                ..settings
            },
        )
    }

    #[test]
    #[cfg(CONFIG_DMA_API_DEBUG)]
    fn memory_of_the_cpu_can_be_mapped_for_dma() -> Result {
        use crate::raw;

        let device = raw::dma_device()?;
        let dev = device.as_ref().as_ref();
        for memory_type in [COHERENT, GENERIC, FS_DAX] {
            let map = RawPageMap::new(Settings::managed(memory_type))?;
            let (result, nr_warnings) =
                kunit::suppress_warnings(|| raw::map_for_dma(dev, map.page(0)))?;
            kunit_expect_eq!(result, Ok(()), "for type {memory_type}");
            kunit_expect_eq!(nr_warnings, 0, "for type {memory_type}");
        }
        Ok(())
    }

    /// Whether the first page is taken for private, coherent, and managed generic memory.
    fn predicates(map: &RawPageMap) -> [bool; 3] {
        let page = map.page(0);
        kunit_expect!(page.is_zone_device());
        [
            page.is_device_private(),
            page.is_device_coherent(),
            page.is_device_generic(),
        ]
    }

    fn expect_predicates(memory_type: memory_type, expected: [bool; 3]) -> Result {
        let map = RawPageMap::new(Settings::managed(memory_type))?;
        kunit_expect_eq!(predicates(&map), expected, "when it is free");
        let folio = map.init_folio(0);
        kunit_expect_eq!(predicates(&map), expected, "when it is in use");
        drop(folio);
        Ok(())
    }

    #[test]
    fn each_type_is_known_from_the_others() -> Result {
        expect_predicates(PRIVATE, [true, false, false])?;
        expect_predicates(COHERENT, [false, true, false])?;
        expect_predicates(GENERIC, [false, false, true])
    }

    #[test]
    fn generic_without_folio_free_is_not_managed() -> Result {
        for settings in [
            Settings {
                ops: None,
                ..Settings::managed(GENERIC)
            },
            Settings {
                ops: Some(&WITHOUT_FOLIO_FREE),
                ..Settings::managed(GENERIC)
            },
        ] {
            let map = RawPageMap::new(settings)?;
            kunit_expect_eq!(predicates(&map), [false; 3]);
        }
        Ok(())
    }

    #[test]
    fn managed_is_decided_anew_for_each_mapping() -> Result {
        let unmanaged = Settings {
            ops: None,
            has_owner: false,
            ..Settings::managed(GENERIC)
        };
        let map = RawPageMap::new(Settings::managed(GENERIC))?.remap(unmanaged)?;
        kunit_expect_eq!(predicates(&map), [false; 3]);
        kunit_expect_eq!(map.page(0).ref_count(), 1);

        let map = map.remap(Settings::managed(GENERIC))?;
        kunit_expect_eq!(predicates(&map), [false, false, true]);
        kunit_expect_eq!(map.page(0).ref_count(), 0);
        Ok(())
    }

    #[test]
    fn system_memory_is_no_device_memory() -> Result {
        let folio = OwnedFolio::zeroed(GFP_KERNEL, 0)?;
        kunit_expect!(!folio.is_zone_device());
        kunit_expect!(!folio.is_device_private());
        kunit_expect!(!folio.is_device_coherent());
        kunit_expect!(!folio.is_device_generic());
        Ok(())
    }
}
