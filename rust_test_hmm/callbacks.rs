// SPDX-License-Identifier: GPL-2.0

//! What core mm calls the driver for: folios that are free, and CPU faults.

use crate::{
    destinations::set_dsts_in_system,
    pool::{
        Backing,
        Chunk, //
    }, //
};
use core::ops::Range;
use kernel::{
    mm::{
        migrate::{
            Collected,
            MigrateBuffer,
            Select, //
        },
        pgmap::{
            Fault,
            FaultError,
            PageMapOps, //
        }, //
    },
    page::PAGE_SHIFT,
    prelude::*, //
};

#[vtable]
impl PageMapOps for Chunk {
    type FolioData = Backing;

    fn folio_free(&self, pages: Range<usize>) {
        self.put(pages);
    }

    fn migrate_to_ram(&self, fault: &mut Fault<'_>) -> Result<(), FaultError> {
        migrate_to_system(self, fault)
    }

    fn folio_split(&self, head: usize, pages: Range<usize>) {
        self.split(head, pages);
    }
}

/// Migrates what the CPU has touched to system memory.
fn migrate_to_system(chunk: &Chunk, fault: &mut Fault<'_>) -> Result<(), FaultError> {
    let memory = chunk.memory();
    let range = fault.folio_range();
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
    let select = Select::device(memory).any_order();

    let mut pages =
        Collected::from_fault(fault, range, select, &mut buffer).map_err(|_| FaultError::SigBus)?;
    if !set_dsts_in_system(&mut pages, memory, Some(&owner)).map_err(|_| FaultError::SigBus)? {
        return Err(FaultError::Oom);
    }
    drop(pages.migrate());
    Ok(())
}
