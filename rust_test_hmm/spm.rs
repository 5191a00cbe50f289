// SPDX-License-Identifier: GPL-2.0

//! Special-purpose memory: finding it, and sharing it out.

use core::ops::Range;
use kernel::{
    io::{
        resource::soft_reserved,
        PhysAddr, //
    },
    mm::{
        pgmap::{
            self,
            DeviceRegion, //
        },
        PMD_PAGES, //
    },
    page::PAGE_SIZE,
    prelude::*,
    str::CString, //
};

/// The most that a device gets, in bytes, unless a huge page is larger.
const MAX_SIZE: u64 = 256 << 20;

/// The least that a device can do with, in bytes, unless a huge page is larger.
const MIN_SIZE: u64 = 16 << 20;

/// Returns what start and size of a region are a multiple of, in bytes: whole huge pages.
fn alignment() -> u64 {
    pgmap::alignment().max(PMD_PAGES * PAGE_SIZE) as u64
}

/// Returns regions at the given addresses, in bytes.
///
/// Returns [`EINVAL`] if one is not aligned, or not within memory that firmware has listed.
pub(crate) fn at(addrs: [u64; 2]) -> Result<KVec<Range<PhysAddr>>> {
    let align = alignment();
    let size = MAX_SIZE.max(align);
    let listed = listed()?;
    let mut regions = KVec::with_capacity(addrs.len(), GFP_KERNEL)?;
    for addr in addrs {
        if addr & (align - 1) != 0 {
            pr_err!("spm_addr_dev0 and spm_addr_dev1 must be multiples of {align:#x}\n");
            return Err(EINVAL);
        }
        let end = addr.saturating_add(size);
        if !listed
            .iter()
            .any(|range| range.start <= addr && end <= range.end)
        {
            pr_err!(
                "there are no {} MB of special-purpose memory at {addr:#x}\n",
                size >> 20
            );
            return Err(EINVAL);
        }
        regions.push(addr..end, GFP_KERNEL)?;
    }
    Ok(regions)
}

/// Shares the special-purpose memory that firmware has listed out: `count` regions of the same
/// size, in bytes.
///
/// Returns [`ENODEV`] if there is not enough that nobody else has claimed.
pub(crate) fn find(count: usize) -> Result<KVec<Range<PhysAddr>>> {
    share_out(&listed()?, count, alignment(), is_unclaimed)
}

/// Returns the special-purpose memory that firmware has listed.
fn listed() -> Result<KVec<Range<PhysAddr>>> {
    let mut ranges = KVec::new();
    soft_reserved::for_each(|range| Ok(ranges.push(range, GFP_KERNEL)?))?;
    Ok(ranges)
}

/// Whether all of a region could be claimed just now.
fn is_unclaimed(region: &Range<PhysAddr>) -> bool {
    CString::try_from(c"test_hmm_rs")
        .is_ok_and(|name| DeviceRegion::claim_soft_reserved(region.clone(), name).is_ok())
}

/// Returns `count` regions of the same size, as large as possible, within `ranges`, that are
/// usable. `align` is a power of two.
fn share_out(
    ranges: &[Range<PhysAddr>],
    count: usize,
    align: u64,
    is_usable: impl Fn(&Range<PhysAddr>) -> bool,
) -> Result<KVec<Range<PhysAddr>>> {
    let aligned = |range: &Range<PhysAddr>| {
        let start = range.start.checked_add(align - 1)? & !(align - 1);
        let end = range.end & !(align - 1);
        (start < end).then_some(start..end)
    };
    let pieces = |size: u64| {
        ranges.iter().filter_map(aligned).flat_map(move |range| {
            (0..(range.end - range.start).checked_div(size).unwrap_or(0))
                .map(move |i| range.start + i * size..range.start + (i + 1) * size)
        })
    };
    let mut size = MAX_SIZE.max(align);
    while size >= MIN_SIZE.max(align) {
        let mut regions = KVec::with_capacity(count, GFP_KERNEL)?;
        for region in pieces(size).filter(&is_usable).take(count) {
            regions.push(region, GFP_KERNEL)?;
        }
        if regions.len() == count {
            return Ok(regions);
        }
        size -= align;
    }
    Err(ENODEV)
}

#[cfg(CONFIG_TEST_HMM_RS_KUNIT_TEST)]
#[kunit_tests(test_hmm_rs_spm)]
mod tests {
    use super::*;
    use core::slice::from_ref;

    const MB: u64 = 1 << 20;
    const ALIGN: u64 = 2 * MB;

    fn share_out(ranges: &[Range<PhysAddr>], count: usize) -> Result<KVec<Range<PhysAddr>>> {
        super::share_out(ranges, count, ALIGN, |_| true)
    }

    #[test]
    fn one_range_is_split() -> Result {
        let regions = share_out(from_ref(&(0..512 * MB)), 4)?;
        assert_eq!(regions.len(), 4);
        assert_eq!(regions[0], 0..128 * MB);
        assert_eq!(regions[3], 384 * MB..512 * MB);
        Ok(())
    }

    #[test]
    fn no_device_gets_too_much() -> Result {
        let regions = share_out(from_ref(&(0..4096 * MB)), 2)?;
        assert_eq!(regions[1], MAX_SIZE..2 * MAX_SIZE);
        Ok(())
    }

    #[test]
    fn several_ranges() -> Result {
        // Two of 100 MB fit into the second, but none into the first.
        let regions = share_out(&[0..40 * MB, 1000 * MB..1200 * MB], 2)?;
        assert_eq!(regions[0], 1000 * MB..1100 * MB);
        assert_eq!(regions[1], 1100 * MB..1200 * MB);
        Ok(())
    }

    #[test]
    fn regions_are_aligned() -> Result {
        let regions = share_out(from_ref(&(MB..200 * MB + 4096)), 1)?;
        assert_eq!(regions[0], 2 * MB..200 * MB);
        Ok(())
    }

    #[test]
    fn huge_pages_may_be_larger_than_all_else() -> Result {
        const ALIGN: u64 = 2 * MAX_SIZE;

        let regions = super::share_out(from_ref(&(MB..4 * ALIGN)), 2, ALIGN, |_| true)?;
        assert_eq!(regions[0], ALIGN..2 * ALIGN);
        assert_eq!(regions[1], 2 * ALIGN..3 * ALIGN);
        let too_little = super::share_out(from_ref(&(MB..ALIGN)), 1, ALIGN, |_| true);
        assert!(matches!(too_little, Err(ENODEV)));
        Ok(())
    }

    #[test]
    fn what_is_taken_is_left_out() -> Result {
        let taken = 100 * MB..120 * MB;
        let is_usable =
            |region: &Range<PhysAddr>| region.end <= taken.start || taken.end <= region.start;
        let regions = super::share_out(from_ref(&(0..512 * MB)), 2, ALIGN, is_usable)?;
        assert!(regions.iter().all(is_usable));
        assert_eq!(regions[1].end - regions[1].start, 170 * MB);
        Ok(())
    }

    #[test]
    fn too_little() {
        assert!(matches!(share_out(&[], 2), Err(ENODEV)));
        assert!(matches!(
            share_out(from_ref(&(0..MIN_SIZE)), 2),
            Err(ENODEV)
        ));
        assert!(matches!(
            share_out(from_ref(&(MB..MB + 4096)), 1),
            Err(ENODEV)
        ));
        let top = u64::MAX - 4095..u64::MAX;
        assert!(matches!(share_out(from_ref(&top), 1), Err(ENODEV)));
    }
}
