// SPDX-License-Identifier: GPL-2.0

//! Migration to the device and back.

use crate::{
    address_space::AddressSpace,
    destinations::{
        set_dst_on_device,
        set_dsts_in_system, //
    },
    windows::{
        first_window,
        WINDOW_PAGES, //
    }, //
};
use core::ops::Range;
use kernel::{
    mm::{
        hmm::{
            Access,
            FaultMode, //
        },
        migrate::{
            Collected,
            MigrateBuffer,
            Select, //
        },
        pgmap::MemoryType,
        virt, //
    },
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// How often to try to migrate pages that are locked or referenced for a moment.
const TRIES: usize = 3;
const RETRY_INTERVAL: Delta = Delta::from_millis(1);

/// Migrates a range of addresses, in bytes, to the device.
///
/// Where that is not possible, memory stays where it is. Returns [`EINVAL`] if there is no memory
/// that could be migrated; [`ENOMEM`]; [`ESRCH`] if the process has exited; [`EINTR`] on a fatal
/// signal.
pub(crate) fn to_device(space: &AddressSpace, range: Range<usize>) -> Result {
    let mut buffer = MigrateBuffer::new(WINDOW_PAGES, GFP_KERNEL)?;
    for_each_window(space, range, |window| {
        for tries in 0..TRIES {
            if tries > 0 {
                fsleep(RETRY_INTERVAL);
            }
            // Memory must not be added with folios locked: that waits for who removes some, who
            // may wait for them.
            let has_room = space.device().reserve().is_ok();
            let allocated = to_device_once(space, window.clone(), &mut buffer)?;
            let memory = space.device().memory();
            match space
                .mirror()
                .fault(window.clone(), Access::Present, FaultMode::Locked, memory)
            {
                // What is not mapped in the end is missed by who reads it.
                Ok(()) | Err(EBUSY) => {}
                error => return error,
            }
            // Who gets no memory is not helped by another attempt.
            if !has_room || !allocated || space.is_on_device(window.clone()) {
                break;
            }
        }
        Ok(())
    })
}

/// Migrates a window once. Returns `false` if an allocation was made to fail.
fn to_device_once(
    space: &AddressSpace,
    window: Range<usize>,
    buffer: &mut MigrateBuffer,
) -> Result<bool> {
    let mm = space.mirror().mm().mmget_not_zero().ok_or(ESRCH)?;
    let mmap = mm.mmap_read_lock();
    let mut pages = Collected::from_range(&mmap, window, Select::system().any_order(), buffer)?;
    let mut allocated = true;

    for index in 0..pages.len() {
        let Some(order) = pages.order(index) else {
            continue;
        };
        let fail = space.owner().take_fail_alloc();
        if order > 0 {
            if !fail && set_dst_on_device(space, &mut pages, index, index, order)? {
                continue;
            }
        } else if fail {
            allocated = false;
            continue;
        }
        for page in index..index + (1 << order) {
            // Of a large folio, only a part without the first page cannot be migrated.
            if !set_dst_on_device(space, &mut pages, index, page, 0)? && page == index {
                break;
            }
        }
    }
    drop(pages.migrate());
    Ok(allocated)
}

/// Migrates a range of addresses, in bytes, to system memory.
///
/// Returns the number of pages that were migrated, or the errors of [`to_device`]. What was
/// migrated before stays so.
pub(crate) fn to_system(space: &AddressSpace, range: Range<usize>) -> Result<usize> {
    let mut buffer = MigrateBuffer::new(WINDOW_PAGES, GFP_KERNEL)?;
    let mut nr_migrated = 0;
    for_each_window(space, range, |window| {
        let mm = space.mirror().mm().mmget_not_zero().ok_or(ESRCH)?;
        let mmap = mm.mmap_read_lock();
        let memory = space.device().memory();
        let select = Select::device(memory).any_order();
        let mut pages = Collected::from_range(&mmap, window, select, &mut buffer)?;
        let allocated = set_dsts_in_system(&mut pages, memory, Some(space.owner()))?;
        // The CPU can use other memory where it is.
        if !allocated && memory.memory_type() == MemoryType::Private {
            return Err(ENOMEM);
        }
        nr_migrated += pages.migrate().nr_migrated();
        Ok(())
    })?;
    Ok(nr_migrated)
}

/// Calls `f` for each window of a range, as long as there is memory that could be migrated: a VMA
/// that the device may read.
fn for_each_window(
    space: &AddressSpace,
    range: Range<usize>,
    mut f: impl FnMut(Range<usize>) -> Result,
) -> Result {
    let mut addr = range.start;
    while addr < range.end {
        if kernel::current!().fatal_signal_pending() {
            return Err(EINTR);
        }
        let vma_end = {
            let mm = space.mirror().mm().mmget_not_zero().ok_or(ESRCH)?;
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
