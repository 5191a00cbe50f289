// SPDX-License-Identifier: GPL-2.0
//! What a snapshot has found is valid only with the lock of the mirror held.

use core::ops::Range;
use kernel::mm::hmm::{HmmPfn, Mirror};
use kernel::mm::pgmap::{PageMapOps, PageMapOwner};
use kernel::prelude::*;

pub fn read<T: PageMapOps>(
    mirror: &Mirror,
    owner: &PageMapOwner<T>,
    range: Range<usize>,
    data: &mut [u8],
) -> Result {
    let mut kept: Option<HmmPfn<'_>> = None;
    mirror.snapshot(range, owner, |_, pfn| {
        let _ = pfn;
        kept = Some(pfn); //~ E0521
    })?;
    kept.take().and_then(|pfn| pfn.page()).ok_or(EFAULT)?.read(0, data)
}
