// SPDX-License-Identifier: GPL-2.0

//! Skeleton of a driver of an imaginary accelerator: its memory, to which that of processes is
//! migrated, and from which it comes back by faults, and when the device is unbound.

use core::ops::Range;
use kernel::{
    device::Core,
    devres::Devres,
    dma::{Device as _, DmaAddress, DmaMask},
    io::{poll::read_poll_timeout, Io},
    mm::{
        copy_engine::{CopyEngine, PageCopy, Place},
        device_memory::{DeviceMemory, Evict},
        migrate::{Collected, MigrateBuffer, Select},
        pgmap::{DeviceRegion, Fault, FaultError, MemoryType, PageMap, PageMapOps, PageMapOwner},
        MmWithUser,
    },
    new_mutex,
    page::PAGE_SIZE,
    pci,
    prelude::*,
    str::CString,
    sync::{Arc, Mutex},
    time::Delta,
};

/// Registers of the engine: where to copy from and to, and one that is 0 when it has done.
const FROM: usize = 0x0;
const TO: usize = 0x8;
const BUSY: usize = 0x10;
const SIZE: usize = 128 << 20;

/// The data of the device's memory: what copies it.
#[pin_data]
struct Memory {
    owner: Arc<PageMapOwner<Memory>>,
    bar: pci::DevresBar<0x18>,
    #[pin]
    engine: Mutex<()>,
}

// SAFETY: The memory is that of the device with the engine, which has done when `copy` returns, as
// it cannot hang. It has copied all then.
unsafe impl CopyEngine for Memory {
    fn copy(&self, copies: &[PageCopy]) -> Result {
        let address = |place| match place {
            Place::Device(index) => (1 << 63) + (index * PAGE_SIZE) as DmaAddress,
            Place::System(address) => address,
        };
        let _engine = self.engine.lock();
        for copy in copies {
            let bar = self.bar.try_access().ok_or(ENODEV)?;
            bar.write64(address(copy.from()), FROM);
            bar.write64(address(copy.to()), TO);
            drop(bar);
            let read = || Ok(self.bar.try_access().ok_or(ENODEV)?.read64(BUSY));
            read_poll_timeout(read, |busy| *busy == 0, Delta::ZERO, Delta::from_secs(1))?;
        }
        Ok(())
    }
}

impl Evict for Memory {
    fn copy_to_system(&self, pages: &mut Collected<'_>) -> Result {
        pages.copy_to_system(&self.owner).map(|_| ())
    }
}

#[vtable]
impl PageMapOps for Memory {
    fn folio_free(&self, _pages: Range<usize>) {}

    fn migrate_to_ram(&self, fault: &mut Fault<'_>) -> Result<(), FaultError> {
        let range = fault.mapped_range();
        let mut buffer = MigrateBuffer::new(range.len() / PAGE_SIZE, GFP_KERNEL)?;
        let select = Select::device(&self.owner);
        let mut pages = Collected::from_fault(fault, range, select, &mut buffer)?;
        self.copy_to_system(&mut pages)?;
        pages.migrate();
        Ok(())
    }
}

/// What an ioctl would call: migrates a range of addresses within a VMA to the device.
fn migrate_in(map: &PageMap<Memory>, mm: &MmWithUser, range: Range<usize>) -> Result<usize> {
    let mut buffer = MigrateBuffer::new(range.len() / PAGE_SIZE, GFP_KERNEL)?;
    let mmap = mm.mmap_read_lock();
    let mut pages = Collected::from_range(&mmap, range, Select::system(), &mut buffer)?;
    pages.copy_to_device(map, || {
        (0..map.nr_pages()).find_map(|index| Some((index, map.init_folio(index, 0).ok()?)))
    })?;
    let migrated = pages.migrate();
    Ok(migrated.nr_migrated())
}

struct Xpu {
    memory: Devres<DeviceMemory<Memory>>,
}

kernel::pci_device_table!(
    PCI_TABLE,
    <Xpu as pci::Driver>::IdInfo,
    [(pci::DeviceId::from_id(pci::Vendor::REDHAT, 0x4242), ())]
);

impl pci::Driver for Xpu {
    type IdInfo = ();
    type Data<'bound> = Self;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self, Error> + 'bound {
        pdev.enable_device_mem()?;
        pdev.set_master();
        // SAFETY: There is no DMA yet.
        unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>())? };
        let owner = PageMapOwner::new(MemoryType::Private)?;
        let region = DeviceRegion::request_free(SIZE as u64, CString::try_from(c"xpu")?)?;
        let owner_of_data = owner.clone();
        let memory = try_pin_init!(Memory {
            owner: owner_of_data,
            bar: pdev.iomap_region_sized::<0x18>(0, c"xpu")?.into_devres()?,
            engine <- new_mutex!(()),
        });
        Ok(Xpu {
            memory: DeviceMemory::new(pdev.as_ref(), owner, region, memory)?,
        })
    }
}

kernel::module_pci_driver! {
    type: Xpu,
    name: "xpu",
    authors: ["Nobody"],
    description: "Skeleton of a driver with device memory",
    license: "GPL",
}
