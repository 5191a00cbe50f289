// SPDX-License-Identifier: GPL-2.0

//! A device with memory, and what a driver does with it.

use crate::raw::{
    self,
    RawPage, //
};
use core::{
    mem::ManuallyDrop,
    ops::Range,
    pin::Pin, //
};
use kernel::{
    alloc::flags::GFP_HIGHUSER_MOVABLE,
    io::{
        resource::soft_reserved,
        PhysAddr, //
    },
    kunit::{
        self,
        UserMemory, //
    },
    kunit_expect_eq,
    mm::{
        folio::{
            FilledPage,
            FolioPage,
            LockedFolio,
            NewFolio,
            NewPage,
            OwnedFolio, //
        },
        hmm::Mirror,
        migrate::{
            Collected,
            MigrateBuffer,
            Select, //
        },
        pgmap::{
            DeviceRegion,
            Fault,
            FaultError,
            MemoryType,
            PageMap,
            PageMapOps,
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
        Arc,
        SetOnce, //
    }, //
};

/// The number of pages of a device that the tests use.
pub(crate) const NR_PAGES: usize = 2 * PMD_PAGES;

/// The driver's data.
pub(crate) struct Memory {
    owner: Arc<PageMapOwner<Memory>>,
    /// What private memory stands for, page by page: that of pages which were handed out.
    backing: KVVec<SetOnce<ARef<OwnedFolio>>>,
    next: Atomic<usize>,
    nr_freed: Atomic<usize>,
    nr_split_off: Atomic<usize>,
}

#[vtable]
impl PageMapOps for Memory {
    type FolioData = ();

    fn folio_free(&self, pages: Range<usize>) {
        self.nr_freed.fetch_add(pages.len(), Relaxed);
    }

    fn migrate_to_ram(&self, fault: &mut Fault<'_>) -> Result<(), FaultError> {
        let range = fault.folio_range();
        let mut buffer =
            MigrateBuffer::new(range.len() / PAGE_SIZE, GFP_KERNEL).map_err(|_| FaultError::Oom)?;
        let select = Select::device(&self.owner).compound();
        let mut pages = Collected::from_fault(fault, range, select, &mut buffer)
            .map_err(|_| FaultError::SigBus)?;
        self.set_dsts_in_system(&mut pages)
            .map_err(|_| FaultError::Oom)?;
        drop(pages.migrate());
        Ok(())
    }

    fn folio_split(&self, head: usize, pages: Range<usize>) {
        // Each page of one folio, in order.
        let nr_split_off = self.nr_split_off.load(Relaxed) + 1;
        if pages == (head + nr_split_off..head + nr_split_off + 1) {
            self.nr_split_off.store(nr_split_off, Relaxed);
        }
    }
}

impl Memory {
    /// Has all that was collected migrated to system memory.
    pub(crate) fn set_dsts_in_system(&self, pages: &mut Collected<'_>) -> Result {
        for index in 0..pages.len() {
            let source = pages.source(index);
            let Some(page) = source.page() else {
                continue;
            };
            let order = page.folio().order();
            let folio = pages
                .alloc_folio(index, order, GFP_HIGHUSER_MOVABLE)?
                .fill(|to| {
                    let from = page.folio().page(to.index()).ok_or(EINVAL)?;
                    self.copy(to, from)
                })?;
            pages.set_dst(index, folio)?;
        }
        Ok(())
    }

    fn copy<'a>(&self, to: NewPage<'a>, from: FolioPage<'_>) -> Result<FilledPage<'a>> {
        match self.backing_of(from) {
            Some(backing) => to.copy_from(backing.page(0).ok_or(EINVAL)?),
            None => to.copy_from(from),
        }
    }

    fn backing_of(&self, page: FolioPage<'_>) -> Option<&OwnedFolio> {
        let index = self.owner.device_page(page)?.index();
        self.backing.get(index)?.as_ref().map(|folio| &**folio)
    }
}

/// A device with memory of some type, all of it free.
pub(crate) struct Device {
    // Not dropped if there are pages in use.
    map: ManuallyDrop<Pin<KBox<PageMap<Memory>>>>,
}

impl Drop for Device {
    fn drop(&mut self) {
        let in_use = (0..NR_PAGES)
            .filter(|&index| RawPage::of_device(&self.map, index).ref_count() != 0)
            .count();
        kunit_expect_eq!(in_use, 0, "at the end");
        // Dropping it would wait for them, for ever.
        if in_use == 0 {
            // SAFETY: This is not used again.
            unsafe { ManuallyDrop::drop(&mut self.map) };
        }
    }
}

impl Device {
    /// Returns [`ENODEV`] if there is no memory of that type.
    pub(crate) fn new(memory_type: MemoryType) -> Result<Self> {
        let owner = PageMapOwner::new(memory_type)?;
        let region = region(memory_type)?;
        let mut backing = KVVec::new();
        if memory_type == MemoryType::Private {
            for _ in 0..NR_PAGES {
                backing.push(SetOnce::new(), GFP_KERNEL)?;
            }
        }
        let memory = Memory {
            owner: owner.clone(),
            backing,
            next: Atomic::new(0),
            nr_freed: Atomic::new(0),
            nr_split_off: Atomic::new(0),
        };
        Ok(Self {
            map: ManuallyDrop::new(KBox::pin_init(
                PageMap::new(owner, region, memory),
                GFP_KERNEL,
            )?),
        })
    }

    pub(crate) fn map(&self) -> &PageMap<Memory> {
        &self.map
    }

    pub(crate) fn owner(&self) -> &PageMapOwner<Memory> {
        self.map.owner()
    }

    /// Returns the number of pages that were in use, and are free again.
    pub(crate) fn nr_freed(&self) -> usize {
        self.map.data().nr_freed.load(Relaxed)
    }

    /// Returns the number of pages that were split off a folio, one by one, if it was just one.
    pub(crate) fn nr_split_off(&self) -> usize {
        self.map.data().nr_split_off.load(Relaxed)
    }

    /// Leaves pages out that would be handed out next.
    pub(crate) fn skip(&self, nr_pages: usize) {
        self.map.data().next.fetch_add(nr_pages, Relaxed);
    }

    /// Hands out pages that were not in use before.
    fn take(&self, order: u32) -> Result<NewFolio> {
        let nr_pages = 1 << order;
        let memory = self.map.data();
        let index = memory.next.fetch_add(nr_pages, Relaxed);
        for backing in memory.backing.iter().skip(index).take(nr_pages) {
            backing.populate(OwnedFolio::zeroed(GFP_KERNEL, 0)?);
        }
        self.map.init_folio(index, order)
    }

    /// Takes a folio, and copies what was collected at an index to it.
    pub(crate) fn copy_to_device(
        &self,
        pages: &Collected<'_>,
        index: usize,
        order: u32,
    ) -> Result<LockedFolio> {
        let folio = self.take(order)?;
        let from = |nr| {
            pages
                .source(index)
                .page()
                .and_then(|page| page.folio().page(page.index() + nr))
        };
        if self.owner().memory_type() != MemoryType::Private {
            return folio.fill(|to| match from(to.index()) {
                Some(from) => to.copy_from(from),
                None => to.clear(),
            });
        }

        let folio = folio.into_private()?;
        for nr in 0..folio.nr_pages() {
            let page = folio.page(nr).ok_or(EINVAL)?;
            let backing = self.map.data().backing_of(page).ok_or(EINVAL)?;
            match from(nr) {
                Some(from) => backing.copy_from(0, from)?,
                None => backing.write(0, 0, &[0; PAGE_SIZE])?,
            }
        }
        Ok(folio)
    }

    /// Migrates what it can of a range of pages of user memory to the device, by small pages, or
    /// huge ones if `compound`.
    ///
    /// Returns the number of pages that were migrated.
    pub(crate) fn migrate_to_device(
        &self,
        memory: &UserMemory,
        pages: Range<usize>,
        compound: bool,
    ) -> Result<usize> {
        let mut select = Select::system();
        if compound {
            select = select.compound();
        }
        let mut buffer = MigrateBuffer::new(pages.len(), GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        let mut pages =
            Collected::from_range(&mmap, addresses(memory, pages), select, &mut buffer)?;
        for index in 0..pages.len() {
            let source = pages.source(index);
            if !source.is_migrating() {
                continue;
            }
            let order = match source.is_compound() {
                true => PMD_ORDER,
                false => 0,
            };
            let folio = self.copy_to_device(&pages, index, order)?;
            pages.set_dst(index, folio)?;
        }
        let migrated = pages.migrate();
        Ok(migrated.nr_migrated())
    }

    /// Migrates what it can of the device's memory in a range of pages of user memory back.
    ///
    /// Returns the number of pages that were migrated.
    pub(crate) fn migrate_to_system(
        &self,
        memory: &UserMemory,
        pages: Range<usize>,
    ) -> Result<usize> {
        let select = Select::device(self.owner()).compound();
        let mut buffer = MigrateBuffer::new(pages.len(), GFP_KERNEL)?;
        let mmap = memory.mm().mmap_read_lock();
        let mut pages =
            Collected::from_range(&mmap, addresses(memory, pages), select, &mut buffer)?;
        self.map.data().set_dsts_in_system(&mut pages)?;
        let migrated = pages.migrate();
        Ok(migrated.nr_migrated())
    }

    /// Migrates what it can of the first pages of the device to system memory.
    ///
    /// Returns the number of pages that were migrated.
    pub(crate) fn evict(&self, nr_pages: usize) -> Result<usize> {
        let mut buffer = MigrateBuffer::new(nr_pages, GFP_KERNEL)?;
        let mut pages = Collected::from_device(&self.map, 0..nr_pages, &mut buffer)?;
        self.map.data().set_dsts_in_system(&mut pages)?;
        let migrated = pages.migrate();
        Ok(migrated.nr_migrated())
    }

    /// Migrates the huge page at the start of the device to small pages of system memory, but for
    /// one of them.
    ///
    /// Returns the number of pages that were migrated.
    pub(crate) fn evict_huge_page_but_for(&self, left_out: usize) -> Result<usize> {
        let mut buffer = MigrateBuffer::new(PMD_PAGES, GFP_KERNEL)?;
        let mut pages = Collected::from_device(&self.map, 0..PMD_PAGES, &mut buffer)?;
        for index in (0..PMD_PAGES).filter(|&index| index != left_out) {
            let head = pages.source(0).page().ok_or(EINVAL)?;
            let from = head.folio().page(index).ok_or(EINVAL)?;
            let folio = pages
                .alloc_folio(index, 0, GFP_HIGHUSER_MOVABLE)?
                .fill(|to| self.map.data().copy(to, from))?;
            pages.set_dst(index, folio)?;
        }
        let migrated = pages.migrate();
        Ok(migrated.nr_migrated())
    }
}

/// Runs a test for each memory type, or, without special-purpose memory, for those for which there
/// is memory.
pub(crate) fn for_each_type(mut f: impl FnMut(MemoryType, Device) -> Result) -> Result {
    for_each_type_there_is(|memory_type| {
        Device::new(memory_type).and_then(|device| f(memory_type, device))
    })
}

/// Runs a test for each memory type, which returns [`ENODEV`] if there is no memory of that type.
pub(crate) fn for_each_type_there_is(mut f: impl FnMut(MemoryType) -> Result) -> Result {
    for memory_type in [
        MemoryType::Private,
        MemoryType::Coherent,
        MemoryType::Generic,
    ] {
        match f(memory_type) {
            Err(ENODEV) => {
                kunit::mark_skipped(c"no special-purpose memory, so for private memory only");
                return Ok(());
            }
            result => result?,
        }
    }
    Ok(())
}

/// Returns the addresses of pages of user memory, in bytes.
pub(crate) fn addresses(memory: &UserMemory, pages: Range<usize>) -> Range<usize> {
    let start = memory.range().start;
    start + pages.start * PAGE_SIZE..start + pages.end * PAGE_SIZE
}

/// Fills pages of user memory, each with a number of its own.
pub(crate) fn fill(memory: &UserMemory, pages: Range<usize>, seed: u8) -> Result {
    let mut contents = KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL)?;
    for page in pages {
        contents.fill(seed.wrapping_add(page as u8));
        memory.write(page * PAGE_SIZE, &contents)?;
    }
    Ok(())
}

/// Returns the number of pages of a range that have not what [`fill`] has put there.
pub(crate) fn nr_changed(memory: &UserMemory, pages: Range<usize>, seed: u8) -> Result<usize> {
    let mut contents = KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL)?;
    let mut nr_changed = 0;
    for page in pages {
        memory.read(page * PAGE_SIZE, &mut contents)?;
        let expected = seed.wrapping_add(page as u8);
        nr_changed += usize::from(contents.iter().any(|&byte| byte != expected));
    }
    Ok(nr_changed)
}

/// Returns user memory where there could be a huge page.
pub(crate) fn huge_user_memory() -> Result<UserMemory> {
    UserMemory::map(PMD_PAGES * PAGE_SIZE)
}

/// Whether user memory is mapped as one huge page, and where, as far as the device may know.
pub(crate) fn is_huge_page(device: &Device, memory: &UserMemory) -> Result<bool> {
    let mirror = KBox::pin_init(Mirror::new(memory.mm()), GFP_KERNEL)?;
    let mut is_huge = true;
    mirror.snapshot(memory.range(), device.owner(), |_, pfn| {
        is_huge &= pfn.map_order() == PMD_ORDER;
    })?;
    Ok(is_huge)
}

/// How often a huge page is asked for. When compaction has found none, it is not even tried the
/// next times, up to `1 << COMPACT_MAX_DEFER_SHIFT`.
const HUGE_PAGE_TRIES: usize = 65;

/// Returns user memory that is one huge page, filled by [`fill`] with a seed of 1, or marks the
/// test as skipped.
pub(crate) fn filled_huge_page(device: &Device) -> Result<Option<UserMemory>> {
    for _ in 0..HUGE_PAGE_TRIES {
        let memory = huge_user_memory()?;
        fill(&memory, 0..1, 1)?;
        if is_huge_page(device, &memory)? {
            fill(&memory, 1..PMD_PAGES, 1)?;
            return Ok(Some(memory));
        }
    }
    kunit::mark_skipped(c"no huge page to be had");
    Ok(None)
}

/// Returns memory of a type for [`NR_PAGES`] pages, or [`ENODEV`] if there is none.
pub(crate) fn region(memory_type: MemoryType) -> Result<DeviceRegion> {
    match memory_type {
        MemoryType::Private => DeviceRegion::request_free((NR_PAGES * PAGE_SIZE) as u64, name()?),
        MemoryType::Coherent | MemoryType::Generic => claim_special_purpose_memory(),
    }
}

fn name() -> Result<CString> {
    Ok(CString::try_from(c"zone_device_kunit")?)
}

/// Claims the first special-purpose memory that nobody else has.
fn claim_special_purpose_memory() -> Result<DeviceRegion> {
    let mut ranges = KVec::new();
    soft_reserved::for_each(|range| Ok(ranges.push(range, GFP_KERNEL)?))?;
    for range in ranges {
        match claim_part(range, DeviceRegion::claim_soft_reserved) {
            Err(ENODEV) => {}
            result => return result,
        }
    }
    claim_part(raw::given_memory(), raw::claim_given_memory)
}

/// Claims as much of a range as the tests use, where nobody else has claimed it.
fn claim_part(
    range: Range<PhysAddr>,
    claim: impl Fn(Range<PhysAddr>, CString) -> Result<DeviceRegion>,
) -> Result<DeviceRegion> {
    const SIZE: PhysAddr = (NR_PAGES * PAGE_SIZE) as PhysAddr;

    let mut start = range.start.next_multiple_of(SIZE);
    while start + SIZE <= range.end {
        match claim(start..start + SIZE, name()?) {
            Err(EBUSY) => start += SIZE,
            result => return result,
        }
    }
    Err(ENODEV)
}
