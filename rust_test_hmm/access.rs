// SPDX-License-Identifier: GPL-2.0

//! What a device does with the memory of a process.
//!
//! Data is copied between the pages and user space with the mirror locked, when none of them can be
//! invalidated, and without faults. Where it takes one, it goes through a buffer of a fixed size,
//! which is copied from and to user space without the lock.

use crate::{
    address_space::AddressSpace,
    memory_types::DeviceType,
    pool::Chunk,
    uapi::{
        prot,
        Cmd, //
    },
    windows::{
        first_window,
        WINDOW_PAGES, //
    }, //
};
use core::ops::Range;
use kernel::{
    mm::{
        folio::{
            FolioPage,
            OwnedFolio, //
        },
        hmm::{
            Access,
            FaultMode,
            HmmPfn,
            Mapping, //
        },
        pgmap::{
            MemoryType,
            PageMapOwner, //
        }, //
    },
    page::PAGE_SIZE,
    prelude::*,
    uaccess::UserSlice, //
};

/// Pages of the buffer between the process's pages and the caller's memory.
const BUFFER_PAGES: usize = 16;

/// The most to fault in before it is used, in bytes: in reclaim, pages may be gone again before
/// the last of many is there.
const MAX_FAULT: usize = 256 << 20;

/// The most to look through with the mirror locked, in bytes.
const MAX_LOCKED: usize = 1 << 30;

/// PUD entries map as many PMDs as those map pages.
const PUD_ORDER: u32 = 2 * kernel::mm::PMD_ORDER;

/// Whether pages that are not on the device count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDevice {
    Any,
    Required,
}

/// Memory between the process's pages and the caller's, allocated when it is needed first.
#[derive(Default)]
struct Buffer(Option<KVVec<u8>>);

impl Buffer {
    fn get(&mut self) -> Result<&mut [u8]> {
        if self.0.is_none() {
            self.0 = Some(KVVec::zeroed(BUFFER_PAGES * PAGE_SIZE, GFP_KERNEL)?);
        }
        self.0.as_deref_mut().ok_or(ENOMEM)
    }
}

/// What is behind pages of a device, looked up once for those of a folio.
///
/// To be used while the pages are mapped in a mirror that is locked, as they cannot be freed then.
struct FolioBacking<'a> {
    memory: &'a PageMapOwner<Chunk>,
    /// Page frame numbers of the folio.
    pfns: Range<usize>,
    /// What is behind the first of them.
    first: Option<(&'a OwnedFolio, usize)>,
}

impl<'a> FolioBacking<'a> {
    fn new(memory: &'a PageMapOwner<Chunk>) -> Self {
        Self {
            memory,
            pfns: 0..0,
            first: None,
        }
    }

    /// Returns the memory behind a page, and the index of the page there, if it is device-private
    /// memory of this device.
    fn find(&mut self, page: FolioPage<'a>) -> Option<(&'a OwnedFolio, usize)> {
        if self.memory.memory_type() != MemoryType::Private {
            return None;
        }
        let pfn = page.pfn();
        if !self.pfns.contains(&pfn) {
            let folio = page.folio();
            let start = folio.pfn();
            self.pfns = start..start + folio.nr_pages();
            self.first = folio
                .page(0)
                .and_then(|page| Chunk::backing_of(self.memory, page));
        }
        let (folio, first) = self.first?;
        Some((folio, first + pfn - self.pfns.start))
    }

    /// Returns the page behind a page, if it is device-private memory of this device.
    fn page(&mut self, page: FolioPage<'a>) -> Option<FolioPage<'a>> {
        let (folio, index) = self.find(page)?;
        folio.page(index)
    }
}

/// Returns the caller's memory for an address of a range.
fn user_ptr(cmd: &Cmd, range: &Range<usize>, addr: usize) -> Result<UserPtr> {
    let ptr = UserPtr::from_addr(usize::try_from(cmd.ptr)?);
    Ok(ptr.wrapping_byte_add(addr - range.start))
}

/// Reads memory, faulting in what is not there.
pub(crate) fn read(space: &AddressSpace, cmd: &mut Cmd, range: Range<usize>) -> Result {
    read_with(space, cmd, range, FaultMode::Locked)
}

/// Reads memory. Fault handlers may drop the mmap lock.
pub(crate) fn read_unlocked(space: &AddressSpace, cmd: &mut Cmd, range: Range<usize>) -> Result {
    read_with(space, cmd, range, FaultMode::Unlocked)
}

fn read_with(space: &AddressSpace, cmd: &mut Cmd, range: Range<usize>, mode: FaultMode) -> Result {
    read_pages(space, cmd, range, OnDevice::Any, |cmd, rest| {
        fault(space, rest, Access::Read, mode)?;
        cmd.faults += 1;
        Ok(())
    })
}

/// Maps the beginning of a range.
fn fault(space: &AddressSpace, range: Range<usize>, access: Access, mode: FaultMode) -> Result {
    let len = range.len().min(MAX_FAULT);
    let range = range.start..range.start + len;
    space
        .mirror()
        .fault(range, access, mode, space.device().memory())
}

/// Reads memory that is mapped already, as a check of what the device can access.
///
/// Returns [`ENOENT`] if a page is not.
pub(crate) fn read_back(
    space: &AddressSpace,
    cmd: &mut Cmd,
    range: Range<usize>,
    on_device: OnDevice,
) -> Result {
    read_pages(space, cmd, range, on_device, |_, _| Err(ENOENT))
}

/// Reads memory. Calls `missing` with the rest of the range where it is not mapped.
fn read_pages(
    space: &AddressSpace,
    cmd: &mut Cmd,
    range: Range<usize>,
    on_device: OnDevice,
    mut missing: impl FnMut(&mut Cmd, Range<usize>) -> Result,
) -> Result {
    let mut buffer = Buffer::default();
    let mut rest = range.clone();
    while !rest.is_empty() {
        let dst = user_ptr(cmd, &range, rest.start)?;
        let window = first_window(rest.clone());
        let mut next = dst;
        let mut len = copy_from_pages(space, window, on_device, |page| {
            page.read_to_user(0, next, PAGE_SIZE)?;
            next = next.wrapping_byte_add(PAGE_SIZE);
            Ok(())
        })?;
        if len == 0 {
            // The caller's memory may have to be faulted in.
            let buffer = buffer.get()?;
            let window = rest.start..rest.end.min(rest.start + buffer.len());
            let mut chunks = buffer.chunks_exact_mut(PAGE_SIZE);
            len = copy_from_pages(space, window, on_device, |page| {
                page.read(0, chunks.next().ok_or(EFAULT)?)
            })?;
            UserSlice::new(dst, len)
                .writer()
                .write_slice(&buffer[..len])?;
        }
        if len == 0 {
            missing(cmd, rest.clone())?;
        }
        cmd.cpages += (len / PAGE_SIZE) as u64;
        rest.start += len;
    }
    Ok(())
}

/// Copies from pages, as long as they are mapped, and until `copy` returns [`EFAULT`]. Returns the
/// number of bytes.
fn copy_from_pages(
    space: &AddressSpace,
    range: Range<usize>,
    on_device: OnDevice,
    mut copy: impl FnMut(FolioPage<'_>) -> Result,
) -> Result<usize> {
    let guard = space.mirror().lock();
    let memory = space.device().memory();
    let mut backing = FolioBacking::new(memory);
    let mut len = 0;
    for mapping in guard.mapped(range) {
        let page = mapping.page();
        let backing = backing.page(page);
        if on_device == OnDevice::Required
            && backing.is_none()
            && memory.device_page(page).is_none()
        {
            break;
        }
        match copy(backing.unwrap_or(page)) {
            Err(EFAULT) => break,
            result => result?,
        }
        len += PAGE_SIZE;
    }
    Ok(len)
}

/// Writes memory, faulting in what is not there or not writable.
pub(crate) fn write(space: &AddressSpace, cmd: &mut Cmd, range: Range<usize>) -> Result {
    let mut buffer = Buffer::default();
    let mut rest = range.clone();
    while !rest.is_empty() {
        let src = user_ptr(cmd, &range, rest.start)?;
        let window = first_window(rest.clone());
        fault_in(src, window.len())?;
        let mut len = write_from_user(space, window, src)?;
        if len == 0 {
            // The caller's memory may have been paged out again.
            let buffer = buffer.get()?;
            let data = &mut buffer[..rest.len().min(BUFFER_PAGES * PAGE_SIZE)];
            UserSlice::new(src, data.len()).reader().read_slice(data)?;
            len = write_from_buffer(space, rest.clone(), data)?;
        }
        if len == 0 {
            fault(space, rest.clone(), Access::Write, FaultMode::Locked)?;
            cmd.faults += 1;
        }
        cmd.cpages += (len / PAGE_SIZE) as u64;
        rest.start += len;
    }
    Ok(())
}

/// Faults in the caller's memory, so that nothing is written if not all of it can be read.
fn fault_in(src: UserPtr, len: usize) -> Result {
    let read = |offset| {
        let byte = UserSlice::new(src.wrapping_byte_add(offset), 1);
        byte.reader().read::<u8>()
    };
    for offset in (0..len).step_by(PAGE_SIZE) {
        read(offset)?;
    }
    read(len - 1)?;
    Ok(())
}

/// Copies from user memory to pages, as long as they are mapped writable, and that is there.
/// Returns the number of bytes.
fn write_from_user(space: &AddressSpace, range: Range<usize>, src: UserPtr) -> Result<usize> {
    let mut next = src;
    copy_to_pages(space, range, |mapping, behind| {
        match behind {
            Some((backing, index)) => {
                let result = backing.write_from_user(index, 0, next, PAGE_SIZE);
                mapping.mark_dirty()?;
                result?;
            }
            None => mapping.write_from_user(0, next, PAGE_SIZE)?,
        }
        next = next.wrapping_byte_add(PAGE_SIZE);
        Ok(())
    })
}

/// Copies from `data` to pages, as long as they are mapped writable. Returns the number of bytes.
fn write_from_buffer(space: &AddressSpace, range: Range<usize>, data: &[u8]) -> Result<usize> {
    let mut chunks = data.chunks_exact(PAGE_SIZE);
    copy_to_pages(space, range, |mapping, behind| {
        let data = chunks.next().ok_or(EFAULT)?;
        match behind {
            Some((backing, index)) => {
                backing.write(index, 0, data)?;
                mapping.mark_dirty()
            }
            None => mapping.write(0, data),
        }
    })
}

/// Copies to pages, as long as they are mapped writable, and until `copy` returns [`EFAULT`].
/// Returns the number of bytes.
fn copy_to_pages(
    space: &AddressSpace,
    range: Range<usize>,
    mut copy: impl FnMut(Mapping<'_>, Option<(&OwnedFolio, usize)>) -> Result,
) -> Result<usize> {
    let guard = space.mirror().lock();
    let mut backing = FolioBacking::new(space.device().memory());
    let mut len = 0;
    for mapping in guard.mapped(range) {
        if !mapping.is_writable() {
            break;
        }
        let page = mapping.page();
        match copy(mapping, backing.find(page)) {
            Err(EFAULT) => break,
            result => result?,
        }
        len += PAGE_SIZE;
    }
    Ok(len)
}

/// Takes pages for the device alone, and reads them.
///
/// Returns [`ENOENT`] if the CPU has taken one back meanwhile.
pub(crate) fn exclusive(space: &AddressSpace, cmd: &mut Cmd, range: Range<usize>) -> Result {
    let memory = space.device().memory();
    space.mirror().make_exclusive(range.clone(), memory)?;
    read_back(space, cmd, range, OnDevice::Any)
}

/// Returns [`EPERM`] if the device has a page for itself, or [`EINTR`] on a fatal signal.
pub(crate) fn check_exclusive(space: &AddressSpace, range: Range<usize>) -> Result {
    // Core mm has to wait for the lock to change anything, so it is not held all the time.
    let mut rest = range;
    while !kernel::current!().fatal_signal_pending() {
        let mut table = space.mirror().lock();
        let Some(start) = table.next_mapped(rest.clone()) else {
            return Ok(());
        };
        let end = start + (rest.end - start).min(MAX_LOCKED);
        if table.any_exclusive(start..end) {
            return Err(EPERM);
        }
        rest.start = end;
    }
    Err(EINTR)
}

/// Tells the caller what the process has mapped, a byte for each page.
pub(crate) fn snapshot(space: &AddressSpace, cmd: &mut Cmd, range: Range<usize>) -> Result {
    let nr_pages = range.len() / PAGE_SIZE;
    let ptr = UserPtr::from_addr(usize::try_from(cmd.ptr)?);
    let mut writer = UserSlice::new(ptr, nr_pages).writer();
    let mut prots = KVec::zeroed(WINDOW_PAGES, GFP_KERNEL)?;
    let mut rest = range;
    while !rest.is_empty() {
        let window = first_window(rest.clone());
        rest.start = window.end;
        let prots = &mut prots[..window.len() / PAGE_SIZE];
        // Of pages that are mapped, so that it stays as long as the mirror is locked.
        let mut chunk = 0..0;
        space
            .mirror()
            .snapshot(window, space.device().memory(), |indices, pfn| {
                let prot = prot(space, &mut chunk, pfn);
                match &mut prots[indices] {
                    [one] => *one = prot,
                    several => several.fill(prot),
                }
            })?;
        writer.write_slice(prots)?;
        cmd.cpages += prots.len() as u64;
    }
    Ok(())
}

/// Returns what a snapshot says of a page. `chunk` are the page frame numbers of the last chunk of
/// the device that a page was in.
fn prot(space: &AddressSpace, chunk: &mut Range<usize>, pfn: HmmPfn<'_>) -> u8 {
    if pfn.is_error() {
        return prot::ERROR;
    }
    let Some(number) = pfn.pfn() else {
        return prot::NONE;
    };
    let access = if pfn.is_writable() {
        prot::WRITE
    } else {
        prot::READ
    };
    let size = match pfn.map_order() {
        kernel::mm::PMD_ORDER => prot::PMD,
        PUD_ORDER => prot::PUD,
        _ => 0,
    };
    let place = if chunk.contains(&number) {
        space.device().device_type().prot(true)
    } else {
        pfn.page()
            .map_or(prot::NONE, |page| where_page_is(space, chunk, page))
    };
    place | access | size
}

fn where_page_is(space: &AddressSpace, chunk: &mut Range<usize>, page: FolioPage<'_>) -> u8 {
    if let Some(page) = space.device().memory().device_page(page) {
        let map = page.map();
        *chunk = map.start_pfn()..map.start_pfn() + map.nr_pages();
        return space.device().device_type().prot(true);
    }
    let folio = page.folio();
    if folio.is_device_private() {
        DeviceType::Private.prot(false)
    } else if folio.is_device_coherent() {
        DeviceType::Coherent.prot(false)
    } else if folio.is_device_generic() {
        DeviceType::Generic.prot(false)
    } else if page.is_zero_page() {
        prot::ZERO
    } else {
        prot::NONE
    }
}
