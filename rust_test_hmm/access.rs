// SPDX-License-Identifier: GPL-2.0

//! What a device does with the memory of a process.
//!
//! Data goes through a buffer of a fixed size. It is copied from and to the pages with the mirror
//! locked, when none of them can be invalidated, and from and to user space without the lock, as
//! that may fault.

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
        folio::FolioPage,
        hmm::{
            Access,
            FaultMode,
            HmmPfn,
            Mapping, //
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

fn buffer() -> Result<KVVec<u8>> {
    Ok(KVVec::from_elem(0, BUFFER_PAGES * PAGE_SIZE, GFP_KERNEL)?)
}

/// Returns the caller's memory.
fn user_slice(cmd: &Cmd, range: &Range<usize>) -> Result<UserSlice> {
    let ptr = UserPtr::from_addr(usize::try_from(cmd.ptr)?);
    Ok(UserSlice::new(ptr, range.len()))
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
    let mut writer = user_slice(cmd, &range)?.writer();
    let mut buffer = buffer()?;
    let mut rest = range;
    while !rest.is_empty() {
        let len = copy_from_pages(space, rest.clone(), &mut buffer, OnDevice::Any)?;
        if len == 0 {
            fault(space, rest.clone(), Access::Read, mode)?;
            cmd.faults += 1;
            continue;
        }
        writer.write_slice(&buffer[..len])?;
        cmd.cpages += (len / PAGE_SIZE) as u64;
        rest.start += len;
    }
    Ok(())
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
    let mut writer = user_slice(cmd, &range)?.writer();
    let mut buffer = buffer()?;
    let mut rest = range;
    while !rest.is_empty() {
        let len = copy_from_pages(space, rest.clone(), &mut buffer, on_device)?;
        if len == 0 {
            return Err(ENOENT);
        }
        writer.write_slice(&buffer[..len])?;
        cmd.cpages += (len / PAGE_SIZE) as u64;
        rest.start += len;
    }
    Ok(())
}

/// Copies from pages to `buffer`, as long as it has room and they are mapped. Returns the number
/// of bytes.
fn copy_from_pages(
    space: &AddressSpace,
    range: Range<usize>,
    buffer: &mut [u8],
    on_device: OnDevice,
) -> Result<usize> {
    let guard = space.mirror().lock();
    let memory = space.device().memory();
    let mut len = 0;
    for (addr, data) in range
        .step_by(PAGE_SIZE)
        .zip(buffer.chunks_exact_mut(PAGE_SIZE))
    {
        let Some(mapping) = guard.get(addr) else {
            break;
        };
        let page = mapping.page();
        if on_device == OnDevice::Required && memory.device_page(page).is_none() {
            break;
        }
        match Chunk::backing_of(memory, page) {
            Some(backing) => backing
                .folio
                .page(backing.first + page.index())
                .ok_or(EFAULT)?
                .read(0, data)?,
            None => page.read(0, data)?,
        }
        len += PAGE_SIZE;
    }
    Ok(len)
}

/// Writes memory, faulting in what is not there or not writable.
pub(crate) fn write(space: &AddressSpace, cmd: &mut Cmd, range: Range<usize>) -> Result {
    let mut reader = user_slice(cmd, &range)?.reader();
    let mut buffer = buffer()?;
    let mut rest = range;
    while !rest.is_empty() {
        let len = rest.len().min(buffer.len());
        reader.read_slice(&mut buffer[..len])?;
        let mut done = 0;
        while done < len {
            let copied = copy_to_pages(space, rest.clone(), &buffer[done..len])?;
            if copied == 0 {
                fault(space, rest.clone(), Access::Write, FaultMode::Locked)?;
                cmd.faults += 1;
            }
            cmd.cpages += (copied / PAGE_SIZE) as u64;
            done += copied;
            rest.start += copied;
        }
    }
    Ok(())
}

/// Copies from `buffer` to pages, as long as they are mapped writable. Returns the number of
/// bytes.
fn copy_to_pages(space: &AddressSpace, range: Range<usize>, buffer: &[u8]) -> Result<usize> {
    let guard = space.mirror().lock();
    let memory = space.device().memory();
    let mut len = 0;
    for (addr, data) in range.step_by(PAGE_SIZE).zip(buffer.chunks_exact(PAGE_SIZE)) {
        let Some(mapping) = guard.get(addr).filter(Mapping::is_writable) else {
            break;
        };
        let page = mapping.page();
        match Chunk::backing_of(memory, page) {
            Some(backing) => {
                let at = backing.first + page.index();
                backing.folio.write(at, 0, data)?;
                mapping.mark_dirty()?;
            }
            None => mapping.write(0, data)?,
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
    let mut prots = KVec::from_elem(prot::NONE, WINDOW_PAGES, GFP_KERNEL)?;
    let mut rest = range;
    while !rest.is_empty() {
        let window = first_window(rest.clone());
        rest.start = window.end;
        let prots = &mut prots[..window.len() / PAGE_SIZE];
        space
            .mirror()
            .snapshot(window, space.device().memory(), |indices, pfn| {
                prots[indices].fill(prot(space, pfn));
            })?;
        writer.write_slice(prots)?;
        cmd.cpages += prots.len() as u64;
    }
    Ok(())
}

fn prot(space: &AddressSpace, pfn: HmmPfn<'_>) -> u8 {
    if pfn.is_error() {
        return prot::ERROR;
    }
    let Some(page) = pfn.page() else {
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
    where_page_is(space, page) | access | size
}

fn where_page_is(space: &AddressSpace, page: FolioPage<'_>) -> u8 {
    let local = space.device().memory().device_page(page).is_some();
    let folio = page.folio();
    if folio.is_device_private() {
        DeviceType::Private.prot(local)
    } else if folio.is_device_coherent() {
        DeviceType::Coherent.prot(local)
    } else if folio.is_device_generic() {
        DeviceType::Generic.prot(local)
    } else if page.is_zero_page() {
        prot::ZERO
    } else {
        prot::NONE
    }
}
