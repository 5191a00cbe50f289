// SPDX-License-Identifier: GPL-2.0

//! Migration to the device and back.

use crate::{
    device::Device,
    file::{
        first_window,
        File,
        WINDOW_PAGES, //
    },
    pool::{
        Chunk,
        Owner,
        Pool, //
    }, //
};
use core::ops::Range;
use kernel::{
    alloc::flags::{
        GFP_HIGHUSER,
        GFP_HIGHUSER_MOVABLE, //
    },
    mm::{
        folio::{
            FolioPage,
            LockedFolio,
            OwnedFolio, //
        },
        hmm::{
            Access,
            FaultMode, //
        },
        migrate::{
            Collected,
            MigrateBuffer,
            Select, //
        },
        pgmap::{
            Fault,
            FaultError,
            MemoryType,
            PageMap,
            PageMapOwner, //
        },
        virt,
        PMD_ORDER, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::Arc,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// How often to try to migrate pages that are locked or referenced for a moment.
const TRIES: usize = 3;
const RETRY_INTERVAL: Delta = Delta::from_millis(1);

/// Migrates a range of addresses, in bytes, to the file's device.
///
/// Where that is not possible, memory stays where it is. Returns [`EINVAL`] if there is no memory
/// that could be migrated; [`ENOMEM`]; [`ESRCH`] if the process has exited; [`EINTR`] on a fatal
/// signal.
pub(crate) fn to_device(file: &File, range: Range<usize>) -> Result {
    let mut buffer = MigrateBuffer::new(WINDOW_PAGES, GFP_KERNEL)?;
    for_each_window(file, range, |window| {
        for tries in 0..TRIES {
            if tries > 0 {
                fsleep(RETRY_INTERVAL);
            }
            // Memory must not be added with folios locked: that waits for who removes some, who
            // may wait for them.
            let has_room = file.device().reserve().is_ok();
            let allocated = to_device_once(file, window.clone(), &mut buffer)?;
            let memory = file.device().memory();
            match file
                .mirror()
                .fault(window.clone(), Access::Present, FaultMode::Locked, memory)
            {
                // What is not mapped in the end is missed by who reads it.
                Ok(()) | Err(EBUSY) => {}
                error => return error,
            }
            // Who gets no memory is not helped by another attempt.
            if !has_room || !allocated || file.is_on_device(window.clone()) {
                break;
            }
        }
        Ok(())
    })
}

/// Migrates a window once. Returns `false` if an allocation was made to fail.
fn to_device_once(file: &File, window: Range<usize>, buffer: &mut MigrateBuffer) -> Result<bool> {
    let mm = file.mirror().mm().mmget_not_zero().ok_or(ESRCH)?;
    let mmap = mm.mmap_read_lock();
    let mut pages = Collected::from_range(&mmap, window, Select::system().compound(), buffer)?;
    let mut allocated = true;

    for index in 0..pages.len() {
        let source = pages.source(index);
        if !source.is_migrating() {
            continue;
        }
        let nr_pages = if source.is_compound() {
            WINDOW_PAGES
        } else {
            1
        };
        let fail = file.owner().take_fail_alloc();
        if source.is_compound() {
            if !fail && set_dst_on_device(file, &mut pages, index, index, PMD_ORDER)? {
                continue;
            }
        } else if fail {
            allocated = false;
            continue;
        }
        for page in index..index + nr_pages {
            // Of a huge page, only a part without the first page cannot be migrated.
            if !set_dst_on_device(file, &mut pages, index, page, 0)? && page == index {
                break;
            }
        }
    }
    drop(pages.migrate());
    Ok(allocated)
}

/// Has pages, of the source at index `head`, migrated to the device: that at `index`, or, if
/// `order` is [`PMD_ORDER`], all.
///
/// Returns whether there is memory for them.
fn set_dst_on_device(
    file: &File,
    pages: &mut Collected<'_>,
    head: usize,
    index: usize,
    order: u32,
) -> Result<bool> {
    let device = file.device();
    if order > device.memory().memory_type().max_order() {
        return Ok(false);
    }
    let source = pages.source(head);
    let from = |page: usize| {
        source
            .page()
            .and_then(|first| first.folio().page(first.index() + index - head + page))
    };
    let Ok(folio) = new_folio_on_device(device, file.owner(), order, from) else {
        return Ok(false);
    };
    pages.set_dst(index, folio)?;
    Ok(true)
}

/// Allocates a folio of device memory and copies what `from` returns for each of its pages to it,
/// or zeroes if it returns `None`.
fn new_folio_on_device<'a>(
    device: &Device,
    owner: &Arc<Owner>,
    order: u32,
    from: impl Fn(usize) -> Option<FolioPage<'a>>,
) -> Result<LockedFolio> {
    if device.memory().memory_type() != MemoryType::Private {
        let folio = device.alloc(order, owner, &mut KVec::new())?;
        return folio.fill(|to| match from(to.index()) {
            Some(page) => to.copy_from(page),
            None => to.clear(),
        });
    }

    let mut backing = KVec::with_capacity(1 << order, GFP_KERNEL)?;
    // The pool takes them from the end.
    for index in (0..1 << order).rev() {
        let memory = match from(index) {
            Some(page) => OwnedFolio::copy_of(page, GFP_HIGHUSER)?,
            None => OwnedFolio::zeroed(GFP_HIGHUSER, 0)?,
        };
        backing.push(memory, GFP_KERNEL)?;
    }
    device.alloc(order, owner, &mut backing)?.into_private()
}

/// Migrates a range of addresses, in bytes, to system memory.
///
/// Returns the number of pages that were migrated, or the errors of [`to_device`]. What was
/// migrated before stays so.
pub(crate) fn to_system(file: &File, range: Range<usize>) -> Result<usize> {
    let mut buffer = MigrateBuffer::new(WINDOW_PAGES, GFP_KERNEL)?;
    let mut nr_migrated = 0;
    for_each_window(file, range, |window| {
        let mm = file.mirror().mm().mmget_not_zero().ok_or(ESRCH)?;
        let mmap = mm.mmap_read_lock();
        let memory = file.device().memory();
        let select = Select::device(memory).compound();
        let mut pages = Collected::from_range(&mmap, window, select, &mut buffer)?;
        let allocated = set_dsts_in_system(&mut pages, memory, Some(file.owner()))?;
        // The CPU can use other memory where it is.
        if !allocated && memory.memory_type() == MemoryType::Private {
            return Err(ENOMEM);
        }
        nr_migrated += pages.migrate().nr_migrated();
        Ok(())
    })?;
    Ok(nr_migrated)
}

/// Migrates what the CPU has touched to system memory.
pub(crate) fn fault(chunk: &Chunk, fault: &mut Fault<'_>) -> Result<(), FaultError> {
    let memory = chunk.memory();
    let range = fault.mapped_range();
    // The owner is known by the first page of the folio.
    let owner = fault
        .page()
        .folio()
        .page(0)
        .and_then(|first| memory.device_page(first))
        .and_then(|first| first.map().data().owner(first.index()))
        .ok_or(FaultError::SigBus)?;
    let mut buffer =
        MigrateBuffer::new(range.len() >> PAGE_SHIFT, GFP_KERNEL).map_err(|_| FaultError::Oom)?;
    let select = Select::device(memory).compound();

    let mut pages =
        Collected::from_fault(fault, range, select, &mut buffer).map_err(|_| FaultError::SigBus)?;
    if !set_dsts_in_system(&mut pages, memory, Some(&owner)).map_err(|_| FaultError::SigBus)? {
        return Err(FaultError::Oom);
    }
    drop(pages.migrate());
    Ok(())
}

/// Has all pages migrated to system memory. A failure that `owner` asks for is one to allocate it.
///
/// Returns whether there is memory for all of them.
fn set_dsts_in_system(
    pages: &mut Collected<'_>,
    memory: &PageMapOwner<Chunk>,
    owner: Option<&Owner>,
) -> Result<bool> {
    let mut allocated = true;
    for index in 0..pages.len() {
        let source = pages.source(index);
        if source.page().is_none() {
            continue;
        }
        let is_compound = source.is_compound();
        let fail = owner.is_some_and(Owner::take_fail_alloc);
        if !fail {
            let order = if is_compound { PMD_ORDER } else { 0 };
            if set_dst_in_system(pages, memory, index, index, order)? {
                continue;
            }
        }
        if !is_compound {
            allocated = false;
            continue;
        }
        // Small pages will do, if the first one is among them: core mm splits the folio.
        for page in index..index + WINDOW_PAGES {
            if !set_dst_in_system(pages, memory, index, page, 0)? {
                allocated = false;
                if page == index {
                    break;
                }
            }
        }
    }
    Ok(allocated)
}

/// Has pages, of the source at index `head`, migrated to system memory: that at `index`, or, if
/// `order` is [`PMD_ORDER`], all.
///
/// Returns whether there is memory for them.
fn set_dst_in_system(
    pages: &mut Collected<'_>,
    memory: &PageMapOwner<Chunk>,
    head: usize,
    index: usize,
    order: u32,
) -> Result<bool> {
    let flags = if order > 0 {
        GFP_HIGHUSER_MOVABLE | __GFP_NOWARN
    } else {
        GFP_HIGHUSER_MOVABLE
    };
    let Ok(folio) = pages.alloc_folio(index, order, flags) else {
        return Ok(false);
    };
    let source = pages.source(head);
    let first = source.page().ok_or(EINVAL)?;
    let folio = folio.fill(|to| {
        let from = first
            .folio()
            .page(first.index() + index - head + to.index())
            .ok_or(EINVAL)?;
        match backing(memory, from) {
            Some(backing) => to.copy_from(backing.page(0).ok_or(EINVAL)?),
            None => to.copy_from(from),
        }
    })?;
    pages.set_dst(index, folio)?;
    Ok(true)
}

/// Returns the memory of a page if it is device-private memory of the given owner.
pub(crate) fn backing(memory: &PageMapOwner<Chunk>, page: FolioPage<'_>) -> Option<OwnedFolio> {
    let page = memory.device_page(page)?;
    page.map().data().backing(page.index())
}

/// Migrates pages of a device to system memory, wherever they are mapped.
///
/// Pages that are locked, referenced by somebody else, or for which there is no memory, stay.
pub(crate) struct Evictor {
    buffer: MigrateBuffer,
    /// Indices of pages in a chunk.
    pages: KVec<usize>,
}

impl Evictor {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            buffer: MigrateBuffer::new(WINDOW_PAGES, GFP_KERNEL)?,
            pages: KVec::with_capacity(WINDOW_PAGES, GFP_KERNEL)?,
        })
    }

    /// Evicts all pages of a pool. Returns [`EINTR`] on a fatal signal if `killable`.
    pub(crate) fn evict_all(&mut self, pool: &Pool, killable: bool) -> Result {
        let mut from = (0, 0);
        loop {
            if killable && kernel::current!().fatal_signal_pending() {
                return Err(EINTR);
            }
            self.pages.clear();
            let Some((map, next)) = pool.list_in_use(from, &mut self.pages) else {
                return Ok(());
            };
            self.evict(&map)?;
            from = next;
        }
    }

    /// Evicts the pages of an owner that does not allocate more of them.
    pub(crate) fn evict_owned(&mut self, pool: &Pool, owner: &Arc<Owner>) -> Result {
        let mut rest = pool.nr_folios(owner);
        while rest > 0 {
            self.pages.clear();
            let Some((map, nr_folios)) = pool.list_owned(owner, rest, &mut self.pages) else {
                return Ok(());
            };
            self.evict(&map)?;
            rest -= nr_folios;
        }
        Ok(())
    }

    fn evict(&mut self, map: &PageMap<Chunk>) -> Result {
        let indices = self.pages.iter().copied();
        let mut pages = Collected::from_device(map, indices, &mut self.buffer)?;
        set_dsts_in_system(&mut pages, map.owner(), None)?;
        drop(pages.migrate());
        Ok(())
    }
}

/// Calls `f` for each window of a range, as long as there is memory that could be migrated: a VMA
/// that the device may read.
fn for_each_window(
    file: &File,
    range: Range<usize>,
    mut f: impl FnMut(Range<usize>) -> Result,
) -> Result {
    let mut addr = range.start;
    while addr < range.end {
        if kernel::current!().fatal_signal_pending() {
            return Err(EINTR);
        }
        let vma_end = {
            let mm = file.mirror().mm().mmget_not_zero().ok_or(ESRCH)?;
            let mmap = mm.mmap_read_lock();
            let vma = mmap.vma_lookup(addr).ok_or(EINVAL)?;
            if vma.flags() & virt::flags::READ == 0 {
                return Err(EINVAL);
            }
            vma.end()
        };
        let window = first_window(addr..range.end.min(vma_end));
        addr = window.end;
        f(window)?;
    }
    Ok(())
}
