// SPDX-License-Identifier: GPL-2.0

//! Where pages are migrated to: memory of a device, or of the system.

use crate::{
    address_space::AddressSpace,
    device::Device,
    pool::{
        Chunk,
        Owner, //
    }, //
};
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
        migrate::Collected,
        pgmap::{
            MemoryType,
            PageMapOwner, //
        }, //
    },
    prelude::*,
    sync::Arc, //
};

/// Has pages, of the source at index `head`, migrated to the device: that at `index`, or, if
/// `order` is that of the source, all.
///
/// Returns whether there is memory for them.
pub(crate) fn set_dst_on_device(
    space: &AddressSpace,
    pages: &mut Collected<'_>,
    head: usize,
    index: usize,
    order: u32,
) -> Result<bool> {
    // The first of those to copy.
    let from = match pages.source(head).page() {
        Some(first) => {
            let page = first.index() + index - head;
            Some(first.folio().page(page).ok_or(EINVAL)?)
        }
        None => None,
    };
    let Ok(folio) = new_folio_on_device(space.device(), space.owner(), order, from) else {
        return Ok(false);
    };
    pages.set_dst(index, folio)?;
    Ok(true)
}

/// Allocates a folio of device memory and copies as many pages of a folio to it, the first of which
/// is `from`, or zeroes if that is `None`.
fn new_folio_on_device(
    device: &Device,
    owner: &Arc<Owner>,
    order: u32,
    from: Option<FolioPage<'_>>,
) -> Result<LockedFolio> {
    if device.memory().memory_type() != MemoryType::Private {
        let folio = device.alloc(order, owner, &mut None)?;
        return match from {
            Some(page) => folio.fill_from(page),
            None => folio.fill(|to| to.clear()),
        };
    }

    // Small pages will do where there is no large one.
    let flags = if order > 0 {
        GFP_HIGHUSER | __GFP_RETRY_MAYFAIL | __GFP_NOWARN
    } else {
        GFP_HIGHUSER
    };
    let backing = match from {
        Some(page) => OwnedFolio::copy_of(page, flags, order)?,
        None => OwnedFolio::zeroed(flags, order)?,
    };
    device
        .alloc(order, owner, &mut Some(backing))?
        .into_private()
}

/// Has all pages migrated to system memory. A failure that `owner` asks for is one to allocate it.
///
/// Returns whether there is memory for all of them.
pub(crate) fn set_dsts_in_system(
    pages: &mut Collected<'_>,
    memory: &PageMapOwner<Chunk>,
    owner: Option<&Owner>,
) -> Result<bool> {
    let mut allocated = true;
    let mut next = 0;
    while next < pages.len() {
        let index = next;
        next += 1;
        if pages.source(index).is_hole() {
            continue;
        }
        let Some(order) = pages.order(index) else {
            continue;
        };
        next = index + (1 << order);
        let fail = owner.is_some_and(Owner::take_fail_alloc);
        if !fail && set_dst_in_system(pages, memory, index, index, order)? {
            continue;
        }
        if order == 0 {
            allocated = false;
            continue;
        }
        // Small pages will do, if the first one is among them: core mm splits the folio.
        for page in index..next {
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
/// `order` is that of the source, all.
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
        GFP_HIGHUSER_MOVABLE | __GFP_RETRY_MAYFAIL | __GFP_NOWARN
    } else {
        GFP_HIGHUSER_MOVABLE
    };
    let Ok(folio) = pages.alloc_folio(index, order, flags) else {
        return Ok(false);
    };
    let source = pages.source(head);
    let first = source.page().ok_or(EINVAL)?;
    let from = match index - head {
        0 => first,
        rest => {
            let page = first.index() + rest;
            first.folio().page(page).ok_or(EINVAL)?
        }
    };
    let from = match Chunk::backing_of(memory, from) {
        Some((folio, at)) => folio.page(at).ok_or(EINVAL)?,
        None => from,
    };
    pages.set_dst(index, folio.fill_from(from)?)?;
    Ok(true)
}
