// SPDX-License-Identifier: GPL-2.0

//! What the abstractions do not let a driver do or see: pagemaps of any kind, the state of pages.

use crate::module_parameters;
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Range,
    pin::Pin,
    ptr, //
};
use kernel::{
    bindings,
    device::Device,
    dma::DmaAddress,
    error::{
        from_err_ptr,
        to_result, //
    },
    faux,
    io::PhysAddr,
    kunit::UserMemory,
    kunit_expect_eq,
    mm::{
        folio::{
            Folio,
            FolioPage,
            LockedFolio, //
        },
        pgmap::{
            DeviceRegion,
            PageMap,
            PageMapOps, //
        }, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        }, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque,
    workqueue, //
};

/// The least size of a [`RawPageMap`], in bytes, which becomes that of a memory section.
const SIZE: u64 = 128 << 20;

/// What a pagemap is made with.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) memory_type: bindings::memory_type,
    pub(crate) ops: Option<&'static bindings::dev_pagemap_ops>,
    pub(crate) has_owner: bool,
    pub(crate) vmemmap_shift: usize,
}

impl Settings {
    /// What drivers give that hand out the pages, or are told when they are free.
    pub(crate) fn managed(memory_type: bindings::memory_type) -> Self {
        Self {
            memory_type,
            ops: Some(&ALL_OPS),
            has_owner: true,
            vmemmap_shift: 0,
        }
    }
}

/// A pagemap as memremap_pages() takes it, at addresses that nothing is behind.
///
/// # Invariants
///
/// `memremap_pages` was successful with the pagemap, and `memunmap_pages` was not called.
pub(crate) struct RawPageMap {
    // Not dropped if there are references left.
    state: ManuallyDrop<Pin<KBox<State>>>,
    region: ManuallyDrop<DeviceRegion>,
    settings: Settings,
}

#[pin_data]
struct State {
    #[pin]
    pgmap: Opaque<bindings::dev_pagemap>,
    nr_freed: Atomic<usize>,
}

/// Operations of all types.
static ALL_OPS: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
    folio_free: Some(folio_free),
    migrate_to_ram: Some(migrate_to_ram),
    ..pin_init::zeroed()
};

/// Without what any type needs but for the fault handler.
pub(crate) static WITHOUT_FOLIO_FREE: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
    migrate_to_ram: Some(migrate_to_ram),
    ..pin_init::zeroed()
};

/// Without what private memory needs.
pub(crate) static WITHOUT_MIGRATE_TO_RAM: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
    folio_free: Some(folio_free),
    ..pin_init::zeroed()
};

/// # Safety
///
/// To be called only by core mm, for a folio of a [`RawPageMap`].
unsafe extern "C" fn folio_free(folio: *mut bindings::folio) {
    // SAFETY: Core mm passes a folio of a pagemap that is a field of a `State`, which is there
    // until `memunmap_pages` returns.
    let state: &State = unsafe {
        let pgmap = Opaque::cast_from(bindings::page_pgmap(folio.cast()));
        &*kernel::container_of!(pgmap, State, pgmap)
    };
    state.nr_freed.fetch_add(1, Relaxed);
}

/// # Safety
///
/// To be called only by core mm.
unsafe extern "C" fn migrate_to_ram(_vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    bindings::vm_fault_reason_VM_FAULT_SIGBUS
}

impl RawPageMap {
    /// Calls `memremap_pages`, and returns its errors.
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        let state = KBox::pin_init(
            pin_init!(State {
                pgmap <- Opaque::zeroed(),
                nr_freed: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;
        let region = DeviceRegion::request_free(SIZE, CString::try_from(c"zone_device_kunit")?)?;
        Self::memremap(state, region, settings)
    }

    /// Removes the pages, and makes new ones with the same `struct dev_pagemap`.
    pub(crate) fn remap(self, settings: Settings) -> Result<Self> {
        let mut this = ManuallyDrop::new(self);
        this.expect_no_users();
        // SAFETY: `this` is not dropped, so that the fields are moved out of it just once.
        let (state, region) = unsafe {
            (
                ManuallyDrop::take(&mut this.state),
                ManuallyDrop::take(&mut this.region), //
            )
        };
        // SAFETY: By the type invariants this is next.
        unsafe { bindings::memunmap_pages(state.pgmap.get()) };
        Self::memremap(state, region, settings)
    }

    fn memremap(state: Pin<KBox<State>>, region: DeviceRegion, settings: Settings) -> Result<Self> {
        let pgmap = state.pgmap.get();
        // SAFETY: The pagemap is not in use, so nobody else accesses it. It stays in its place
        // until `memunmap_pages` is called, and so do the operations.
        from_err_ptr(unsafe {
            (*pgmap).type_ = settings.memory_type;
            (*pgmap).ops = settings.ops.map_or(core::ptr::null(), |ops| ops);
            (*pgmap).owner = match settings.has_owner {
                true => pgmap.cast(),
                false => core::ptr::null_mut(),
            };
            (*pgmap).vmemmap_shift = settings.vmemmap_shift;
            (*pgmap).nr_range = 1;
            *(*pgmap).__bindgen_anon_1.range.as_mut() = bindings::range {
                start: region.start(),
                end: region.start() + region.size() - 1,
            };
            bindings::memremap_pages(pgmap, bindings::NUMA_NO_NODE)
        })?;
        // INVARIANT: Just called.
        Ok(Self {
            state: ManuallyDrop::new(state),
            region: ManuallyDrop::new(region),
            settings,
        })
    }

    /// Whether pages are handed out by `zone_device_folio_init`, which counts those in use.
    fn is_managed(&self) -> bool {
        match self.settings.memory_type {
            bindings::memory_type_MEMORY_DEVICE_PRIVATE
            | bindings::memory_type_MEMORY_DEVICE_COHERENT => true,
            bindings::memory_type_MEMORY_DEVICE_GENERIC => self
                .settings
                .ops
                .is_some_and(|ops| ops.folio_free.is_some()),
            _ => false,
        }
    }

    /// Returns whether the pagemap can be removed: that would wait for ever otherwise.
    fn expect_no_users(&self) -> bool {
        let expected = match self.is_managed() {
            true => 0,
            false => self.nr_pages(),
        };
        kunit_expect_eq!(self.nr_references(), expected, "at the end");
        self.nr_references() == expected
    }

    pub(crate) fn nr_pages(&self) -> usize {
        self.region.size() as usize / PAGE_SIZE
    }

    /// Returns how often `folio_free` was called.
    pub(crate) fn nr_freed(&self) -> usize {
        self.state.nr_freed.load(Relaxed)
    }

    /// Returns the number of references on the pagemap, besides that of its mapping.
    pub(crate) fn nr_references(&self) -> usize {
        let pgmap = self.state.pgmap.get();
        // SAFETY: By the type invariants the reference counter is initialised. In atomic mode its
        // value is in `count`, with one for the mapping. Counters that are not to be initialised
        // again cannot be switched without being killed.
        let count = unsafe {
            (*(*pgmap).ref_.data).set_allow_reinit(true);
            bindings::percpu_ref_switch_to_atomic_sync(&raw mut (*pgmap).ref_);
            (*(*pgmap).ref_.data).count.counter
        };
        count as usize - 1
    }

    /// Hands out a page, which must be free.
    pub(crate) fn init_folio(&self, index: usize) -> LockedFolio {
        self.init_large_folio(index, 0)
    }

    /// Hands out pages, all of which must be free, as one folio.
    pub(crate) fn init_large_folio(&self, index: usize, order: u32) -> LockedFolio {
        assert!(self.is_managed() && index.is_multiple_of(1 << order));
        assert!((index..index + (1 << order)).all(|index| self.page(index).ref_count() == 0));
        let folio = self.page(index).folio();
        // SAFETY: The pages are free, and the pagemap is alive. The folio has got a reference and
        // is locked. Nothing is done with its contents.
        unsafe {
            bindings::zone_device_folio_init(folio, self.state.pgmap.get(), order);
            LockedFolio::from_raw(core::ptr::NonNull::new_unchecked(folio))
        }
    }

    /// Takes a free page into use, as file systems and peer-to-peer memory do.
    pub(crate) fn take(&self, index: usize) {
        assert!(!self.is_managed() && self.page(index).ref_count() == 0);
        // SAFETY: The page is free, so nobody else has to do with it.
        unsafe { (*self.page(index).0)._refcount.counter = 1 };
    }

    /// Drops the last reference on a page that `zone_device_folio_init` has not handed out.
    pub(crate) fn put(&self, index: usize) {
        assert!(!self.is_managed() && self.page(index).ref_count() == 1);
        // SAFETY: The page has a reference, which is the test's.
        unsafe { bindings::folio_put(self.page(index).folio()) };
    }

    /// Tells core mm that a page is broken, as machine check handlers do.
    #[cfg(CONFIG_MEMORY_FAILURE)]
    pub(crate) fn memory_failure(&self, index: usize) -> Result {
        let flags = bindings::mf_flags_MF_SW_SIMULATED;
        // SAFETY: Any page frame number will do. This thread may sleep.
        to_result(unsafe { bindings::memory_failure(self.page(index).pfn(), flags as i32) })
    }

    /// Sets a flag of a page, as its users do.
    pub(crate) fn set_flag(&self, index: usize, flag: bindings::pageflags) {
        // SAFETY: This is a page of the test's own.
        unsafe { (*self.page(index).0).flags.f |= 1 << flag };
    }

    /// Clears a flag of a page.
    pub(crate) fn clear_flag(&self, index: usize, flag: bindings::pageflags) {
        // SAFETY: This is a page of the test's own.
        unsafe { (*self.page(index).0).flags.f &= !(1 << flag) };
    }

    /// Has a page look like anonymous memory.
    pub(crate) fn set_anon_mapping(&self, index: usize) {
        const FOLIO_MAPPING_ANON: usize = 1;
        let folio = self.page(index).folio();
        // SAFETY: This is a page of the test's own.
        unsafe {
            (*folio).__bindgen_anon_1.__bindgen_anon_1.mapping =
                core::ptr::without_provenance_mut(FOLIO_MAPPING_ANON)
        };
    }

    /// Returns a page, in use or not.
    pub(crate) fn page(&self, index: usize) -> RawPage<'_> {
        assert!(index < self.nr_pages());
        let pfn = self.region.start() as usize / PAGE_SIZE + index;
        // SAFETY: By the type invariants there is such a page.
        unsafe { RawPage::from_pfn(pfn) }
    }
}

impl Drop for RawPageMap {
    fn drop(&mut self) {
        if !self.expect_no_users() {
            return;
        }
        // SAFETY: By the type invariants this is next. The fields are not used again.
        unsafe {
            bindings::memunmap_pages(self.state.pgmap.get());
            ManuallyDrop::drop(&mut self.state);
            ManuallyDrop::drop(&mut self.region);
        }
    }
}

/// A page, in use or not, to look into.
///
/// # Invariants
///
/// There is such a struct page for the duration of `'a`. It is a folio of its own, or free, or
/// part of a large folio; only what the last is asked for by [`RawPage::folio`] is garbage.
#[derive(Clone, Copy)]
pub(crate) struct RawPage<'a>(*mut bindings::page, PhantomData<&'a ()>);

impl<'a> RawPage<'a> {
    /// # Safety
    ///
    /// See the type invariants.
    unsafe fn from_pfn(pfn: usize) -> Self {
        // INVARIANT: By the safety requirements.
        // SAFETY: This computes an address.
        Self(unsafe { bindings::pfn_to_page(pfn) }, PhantomData)
    }

    /// Returns the page of a folio that has just one.
    pub(crate) fn of(folio: &'a Folio) -> Self {
        assert!(folio.order() == 0);
        // INVARIANT: The page is in use as long as the folio.
        Self(folio.as_ptr().cast(), PhantomData)
    }

    /// Returns a page of any folio.
    pub(crate) fn of_page(page: FolioPage<'a>) -> Self {
        // INVARIANT: The page is in use as long as its folio.
        Self(page.as_ptr(), PhantomData)
    }

    /// Returns a page of a device.
    pub(crate) fn of_device<T: PageMapOps>(map: &'a PageMap<T>, index: usize) -> Self {
        assert!(index < map.nr_pages());
        // SAFETY: The pages of a `PageMap` are there as long as that.
        unsafe { Self::from_pfn(map.start_pfn() + index) }
    }

    fn folio(self) -> *mut bindings::folio {
        self.0.cast()
    }

    #[cfg(CONFIG_MEMORY_FAILURE)]
    fn pfn(self) -> usize {
        // SAFETY: By the type invariants there is such a page.
        unsafe { bindings::page_to_pfn(self.0) }
    }

    pub(crate) fn is_zone_device(self) -> bool {
        // SAFETY: By the type invariants there is such a page.
        unsafe { bindings::folio_is_zone_device(self.folio()) }
    }

    pub(crate) fn is_device_private(self) -> bool {
        // SAFETY: By the type invariants there is such a page.
        unsafe { bindings::folio_is_device_private(self.folio()) }
    }

    pub(crate) fn is_device_coherent(self) -> bool {
        // SAFETY: By the type invariants there is such a page.
        unsafe { bindings::folio_is_device_coherent(self.folio()) }
    }

    pub(crate) fn is_device_generic(self) -> bool {
        // SAFETY: By the type invariants there is such a page.
        let is_managed = unsafe { bindings::folio_is_device_managed(self.folio()) };
        is_managed && !self.is_device_coherent()
    }

    pub(crate) fn ref_count(self) -> i32 {
        // SAFETY: By the type invariants there is such a page.
        unsafe { (*self.0)._refcount.counter }
    }

    /// Whether a flag is set, one of `pageflags_PG_*`.
    pub(crate) fn has_flag(self, flag: bindings::pageflags) -> bool {
        // SAFETY: By the type invariants there is such a page.
        unsafe { (*self.0).flags.f & (1 << flag) != 0 }
    }

    /// Whether it is part of a large folio, and not the first page of that.
    pub(crate) fn is_tail(self) -> bool {
        // SAFETY: By the type invariants there is such a page.
        unsafe { (*self.0).__bindgen_anon_1.__bindgen_anon_3.compound_info & 1 != 0 }
    }

    /// Returns the address of the pagemap of a page that is not a tail.
    pub(crate) fn pgmap(self) -> *const bindings::dev_pagemap {
        assert!(!self.is_tail());
        // SAFETY: By the type invariants there is such a page.
        unsafe { bindings::page_pgmap(self.0) }
    }

    /// Returns what the driver has put into a page that is not a tail.
    pub(crate) fn zone_device_data(self) -> usize {
        assert!(!self.is_tail());
        // SAFETY: By the type invariants there is such a page.
        unsafe { (*self.0).__bindgen_anon_1.__bindgen_anon_4.zone_device_data as usize }
    }

    /// Puts something into a page that is not a tail, as drivers do.
    pub(crate) fn set_zone_device_data(self, data: usize) {
        assert!(!self.is_tail());
        // SAFETY: By the type invariants there is such a page, of a device of the test's own.
        unsafe {
            (*self.0).__bindgen_anon_1.__bindgen_anon_4.zone_device_data =
                core::ptr::without_provenance_mut(data)
        };
    }

    /// Returns the `mapping` field of the folio.
    pub(crate) fn mapping(self) -> usize {
        // SAFETY: By the type invariants there is such a page.
        unsafe { (*self.folio()).__bindgen_anon_1.__bindgen_anon_1.mapping as usize }
    }
}

/// Long-term pins, as RDMA takes them, of pages of user memory.
///
/// # Invariants
///
/// Owns a pin of each of `pages`.
pub(crate) struct LongTermPin {
    pages: KVec<*mut bindings::page>,
}

impl LongTermPin {
    /// Pins the first pages, to write to them.
    pub(crate) fn new(memory: &UserMemory, nr_pages: usize) -> Result<Self> {
        assert!(nr_pages > 0);
        let mut pages = KVec::from_elem(core::ptr::null_mut(), nr_pages, GFP_KERNEL)?;
        // SAFETY: There is room for the pages, and this is memory of the current thread.
        let result = unsafe {
            bindings::pin_user_pages_fast(
                memory.range().start,
                nr_pages as c_int,
                bindings::FOLL_WRITE | bindings::FOLL_LONGTERM,
                pages.as_mut_ptr(),
            )
        };
        to_result(result)?;
        pages.truncate(result as usize);
        // INVARIANT: Just pinned.
        let this = Self { pages };
        match this.pages.len() == nr_pages {
            true => Ok(this),
            false => Err(EFAULT),
        }
    }

    /// Returns the first page.
    pub(crate) fn page(&self) -> FolioPage<'_> {
        // SAFETY: By the type invariants the page stays, and a folio that is pinned is not split.
        unsafe { FolioPage::from_pfn(bindings::page_to_pfn(self.pages[0])) }
    }
}

impl Drop for LongTermPin {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the pins are ours.
        unsafe { bindings::unpin_user_pages(self.pages.as_mut_ptr(), self.pages.len()) };
    }
}

/// Returns a device that does DMA, to all of memory, and coherently: it is the CPU that does it.
pub(crate) fn dma_device() -> Result<faux::Registration> {
    const DMA_COHERENT: bindings::struct_device_flags =
        bindings::struct_device_flags_DEV_FLAG_DMA_COHERENT;

    let registration = faux::Registration::new(c"zone_device_kunit", None)?;
    let dev = raw_device(registration.as_ref().as_ref());
    // SAFETY: The device is there, and nobody uses it for DMA yet.
    unsafe { (*dev).dma_mask = &raw mut (*dev).coherent_dma_mask };
    // SAFETY: As above. Flags are changed atomically, and this is one of them.
    unsafe { bindings::set_bit(DMA_COHERENT as usize, (&raw mut (*dev).flags).cast()) };
    // SAFETY: As above.
    to_result(unsafe { bindings::dma_set_mask_and_coherent(dev, u64::MAX) })?;
    Ok(registration)
}

fn raw_device(dev: &Device) -> *mut bindings::device {
    // It is a `struct device`, and nothing else.
    ptr::from_ref(dev).cast::<bindings::device>().cast_mut()
}

/// Maps a page for a device, and unmaps it again.
#[cfg(CONFIG_DMA_API_DEBUG)]
pub(crate) fn map_for_dma(dev: &Device, page: RawPage<'_>) -> Result {
    const DIRECTION: bindings::dma_data_direction = bindings::dma_data_direction::DMA_BIDIRECTIONAL;

    let dev = raw_device(dev);
    // SAFETY: The device is there, and by the type invariants there is such a page. This refuses
    // private pages, by CONFIG_DMA_API_DEBUG, and all others are in the direct map.
    let address = unsafe { bindings::dma_map_page_attrs(dev, page.0, 0, PAGE_SIZE, DIRECTION, 0) };
    // SAFETY: The device is there.
    to_result(unsafe { bindings::dma_mapping_error(dev, address) })?;
    // SAFETY: Just mapped.
    unsafe { bindings::dma_unmap_page_attrs(dev, address, PAGE_SIZE, DIRECTION, 0) };
    Ok(())
}

/// Returns the page that a device has at an address, in bytes, where those are physical ones:
/// without an IOMMU, and without memory encryption.
///
/// # Safety
///
/// It must be mapped for the device for the duration of `'a`.
unsafe fn dma_page<'a>(address: DmaAddress) -> FolioPage<'a> {
    // SAFETY: It is of system memory, which is there and in the direct map.
    unsafe { FolioPage::from_pfn(address as usize >> PAGE_SHIFT) }
}

/// Reads the first byte of a page, as such a device does.
///
/// # Safety
///
/// It must be mapped for the device.
pub(crate) unsafe fn read_dma(address: DmaAddress) -> Result<u8> {
    let mut byte = [0];
    // SAFETY: By the safety requirements.
    unsafe { dma_page(address) }.read(0, &mut byte)?;
    Ok(byte[0])
}

/// Fills a page, as such a device does.
///
/// # Safety
///
/// It must be mapped for the device, which writes to it.
pub(crate) unsafe fn fill_dma(address: DmaAddress, byte: u8) -> Result {
    // SAFETY: By the safety requirements.
    let page = unsafe { dma_page(address) };
    let contents = KVec::from_elem(byte, PAGE_SIZE, GFP_KERNEL)?;
    // SAFETY: As above.
    unsafe { page.write(0, &contents) }
}

/// Addresses by which a device without an IOMMU finds pages of a process, as a driver has them that
/// takes page faults of its device.
///
/// # Invariants
///
/// `map` is of `dev`, and has an entry of its list for each page.
pub(crate) struct HmmDmaMap<'a> {
    dev: *mut bindings::device,
    map: bindings::hmm_dma_map,
    nr_pages: usize,
    _dev: PhantomData<&'a Device>,
}

impl<'a> HmmDmaMap<'a> {
    /// Returns [`EOPNOTSUPP`] if memory has to be synchronized for the device.
    pub(crate) fn new(dev: &'a Device, nr_pages: usize) -> Result<Self> {
        let dev = raw_device(dev);
        let mut map = pin_init::zeroed();
        // SAFETY: The device is there, and does DMA.
        to_result(unsafe { bindings::hmm_dma_map_alloc(dev, &mut map, nr_pages, PAGE_SIZE) })?;
        // INVARIANT: Just allocated.
        Ok(Self {
            dev,
            map,
            nr_pages,
            _dev: PhantomData,
        })
    }

    /// Notes what hmm_range_fault() has found.
    pub(crate) fn set(&mut self, index: usize, page: FolioPage<'_>) {
        assert!(index < self.nr_pages);
        let entry = page.pfn() | bindings::hmm_pfn_flags_HMM_PFN_VALID;
        // SAFETY: By the type invariants there is such an entry.
        unsafe { *self.map.pfn_list.add(index) = entry };
    }

    /// Returns the address of a page that is noted, in bytes.
    ///
    /// # Safety
    ///
    /// The page must stay until it is unmapped.
    pub(crate) unsafe fn map(&mut self, index: usize) -> Result<DmaAddress> {
        assert!(index < self.nr_pages);
        // SAFETY: By the type invariants there is such an entry, and by the safety requirements its
        // page. It is no memory of another device, which the state would be for.
        let address =
            unsafe { bindings::hmm_dma_map_pfn(self.dev, &mut self.map, index, ptr::null_mut()) };
        // SAFETY: The device is there.
        to_result(unsafe { bindings::dma_mapping_error(self.dev, address) })?;
        Ok(address)
    }

    /// Returns whether the page was mapped.
    pub(crate) fn unmap(&mut self, index: usize) -> bool {
        assert!(index < self.nr_pages);
        // SAFETY: By the type invariants there is such an entry.
        unsafe { bindings::hmm_dma_unmap_pfn(self.dev, &mut self.map, index) }
    }
}

impl Drop for HmmDmaMap<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is of this device.
        unsafe { bindings::hmm_dma_map_free(self.dev, &mut self.map) };
    }
}

/// Collects pages of a device, as a driver that evicts them does, and leaves them where they are.
///
/// Returns the entries that `migrate_device_pfns` makes.
pub(crate) fn collect_and_finalize<T: PageMapOps, const N: usize>(
    map: &PageMap<T>,
    indices: [usize; N],
) -> Result<[usize; N]> {
    assert!(indices.iter().all(|&index| index < map.nr_pages()));
    let mut src = indices.map(|index| map.start_pfn() + index);
    // SAFETY: These are page frame numbers of device memory that stays.
    to_result(unsafe { bindings::migrate_device_pfns(src.as_mut_ptr(), N) })?;
    // SAFETY: Just collected.
    unsafe { finalize(src) };
    Ok(src)
}

/// The same for pages that follow one another, by `migrate_device_range`.
pub(crate) fn collect_range_and_finalize<T: PageMapOps, const N: usize>(
    map: &PageMap<T>,
    start: usize,
) -> Result<[usize; N]> {
    assert!(start + N <= map.nr_pages());
    let mut src = [0; N];
    // SAFETY: These are pages of a device that stays, and there is an entry for each of them.
    let result =
        unsafe { bindings::migrate_device_range(src.as_mut_ptr(), map.start_pfn() + start, N) };
    to_result(result)?;
    // SAFETY: Just collected.
    unsafe { finalize(src) };
    Ok(src)
}

/// Leaves pages of devices where they are.
///
/// # Safety
///
/// The entries must be what was collected, and not be finalized again.
unsafe fn finalize<const N: usize>(mut src: [usize; N]) {
    let mut dst = [0; N];
    // SAFETY: By the safety requirements. Nothing is to be migrated.
    unsafe { bindings::migrate_device_finalize(src.as_mut_ptr(), dst.as_mut_ptr(), N) };
}

/// Has migrate_vma_setup() collect pages of user memory from one page up to another, which need not
/// be after it, but must not be more than one after it.
pub(crate) fn setup(memory: &UserMemory, start: usize, end: usize) -> Result {
    assert!(end <= start + 1);
    let mmap = memory.mm().mmap_read_lock();
    let address = memory.range().start;
    let vma = mmap.vma_lookup(address).ok_or(EINVAL)?;
    let (mut src, mut dst) = ([0], [0]);
    let mut args = bindings::migrate_vma {
        vma: vma.as_ptr(),
        src: src.as_mut_ptr(),
        dst: dst.as_mut_ptr(),
        start: address + start * PAGE_SIZE,
        end: address + end * PAGE_SIZE,
        ..pin_init::zeroed()
    };
    // SAFETY: The mmap lock protects the VMA. No range has more pages than there are entries.
    to_result(unsafe { bindings::migrate_vma_setup(&mut args) })?;
    // SAFETY: This was just set up, and nothing is to be migrated.
    unsafe { bindings::migrate_vma_finalize(&mut args) };
    Ok(())
}

/// Hands out the first pages of a device as a folio, with what the memory has had before.
pub(crate) fn init_folio<T: PageMapOps>(map: &PageMap<T>, order: u32) -> Result<LockedFolio> {
    let folio = map.init_folio(0, order)?;
    // SAFETY: It is no secret.
    Ok(unsafe { folio.assume_init() })
}

/// Migrates the first pages of user memory as a driver does that makes no distinction of size: an
/// entry that says `flags` gets a folio of any order.
///
/// Returns whether the page, or the hole, at the beginning was migrated.
pub(crate) fn migrate_first(
    memory: &UserMemory,
    nr_pages: usize,
    select: u32,
    folio: LockedFolio,
    flags: u32,
) -> Result<bool> {
    let start = memory.range().start;
    let end = start + nr_pages * PAGE_SIZE;
    assert!(end <= memory.range().end);
    let mut src = KVec::from_elem(0, nr_pages, GFP_KERNEL)?;
    let mut dst = KVec::from_elem(0, nr_pages, GFP_KERNEL)?;
    let mmap = memory.mm().mmap_read_lock();
    let mut args = bindings::migrate_vma {
        vma: mmap.vma_lookup(start).ok_or(EINVAL)?.as_ptr(),
        src: src.as_mut_ptr(),
        dst: dst.as_mut_ptr(),
        start,
        end,
        flags: select as usize,
        ..pin_init::zeroed()
    };
    // SAFETY: The arrays have an entry for each page, and the mmap lock is held.
    to_result(unsafe { bindings::migrate_vma_setup(&mut args) })?;
    dst[0] = folio.pfn() << bindings::MIGRATE_PFN_SHIFT | flags as usize;
    // It is finalizing that drops it.
    let _ = folio.into_raw();
    // SAFETY: These are the next steps, with a destination that is locked and has a reference.
    // That it may have another size is what the test is about.
    unsafe {
        bindings::migrate_vma_pages(&mut args);
        let is_migrated = src[0] & bindings::MIGRATE_PFN_MIGRATE as usize != 0;
        bindings::migrate_vma_finalize(&mut args);
        Ok(is_migrated)
    }
}

/// The lock of a folio.
///
/// # Invariants
///
/// Owns the lock.
struct FolioLock(ARef<Folio>);

impl Drop for FolioLock {
    fn drop(&mut self) {
        // SAFETY: By the type invariants we own the lock.
        unsafe { bindings::folio_unlock(self.0.as_ptr()) };
    }
}

/// Locks a folio, and has another thread unlock it after some time.
pub(crate) fn lock_for(folio: ARef<Folio>, time: Delta) -> Result {
    // SAFETY: There is a reference on the folio.
    unsafe { bindings::folio_lock(folio.as_ptr()) };
    // INVARIANT: Just locked.
    let lock = FolioLock(folio);
    workqueue::system().try_spawn(GFP_KERNEL, move || {
        fsleep(time);
        drop(lock);
    })?;
    Ok(())
}

/// Returns the number of page faults of this thread.
pub(crate) fn nr_faults() -> usize {
    let task = kernel::current!().as_ptr();
    // SAFETY: These are counters of the current thread, which nobody else changes.
    unsafe { (*task).min_flt + (*task).maj_flt }
}

/// Marks the page of a folio as broken, as memory_failure() does before it needs the folio lock.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn set_broken(folio: &Folio) {
    let page = RawPage::of(folio).0;
    // SAFETY: There is a reference on the folio, so the page exists. The caller has it locked, and
    // no test has anybody else change the flags of such a page.
    unsafe { (*page).flags.f |= 1 << bindings::pageflags_PG_hwpoison };
}

/// Says that the memory of a page of a device is broken, as a test of user space does.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn memory_failure(page: RawPage<'_>) -> Result {
    // SAFETY: This function can be called with any page frame number.
    to_result(unsafe {
        bindings::memory_failure(page.pfn(), bindings::mf_flags_MF_SW_SIMULATED as i32)
    })
}

/// Returns the addresses, in bytes, of the memory that the module parameters say there is.
pub(crate) fn given_memory() -> Range<PhysAddr> {
    let start = module_parameters::spm_start.value();
    start..start.saturating_add(module_parameters::spm_size.value())
}

/// Claims a part of [`given_memory`].
pub(crate) fn claim_given_memory(range: Range<PhysAddr>, name: CString) -> Result<DeviceRegion> {
    let given = given_memory();
    assert!(given.start <= range.start && range.end <= given.end);
    // SAFETY: Who gave the memory has said that there is some, and that nobody else uses it.
    unsafe { DeviceRegion::claim(range, name) }
}
