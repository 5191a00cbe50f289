// SPDX-License-Identifier: GPL-2.0

//! The ioctl interface, the same as that of `test_hmm`.
//!
//! C header: [`lib/test_hmm_uapi.h`](srctree/lib/test_hmm_uapi.h)

use core::ops::Range;
use kernel::{
    ioctl::{
        _IOR,
        _IOWR, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

/// `struct hmm_dmirror_cmd`
#[repr(C)]
#[derive(Clone, Copy, Default, FromBytes, IntoBytes)]
pub(crate) struct Cmd {
    /// In: address that the device works on, in bytes.
    pub(crate) addr: u64,
    /// In: address of the caller's buffer, in bytes.
    pub(crate) ptr: u64,
    /// In: number of pages, or flags for [`FLAGS`].
    pub(crate) npages: u64,
    /// Out: number of pages that were copied, or migrated by [`MIGRATE_TO_SYS`].
    pub(crate) cpages: u64,
    /// Out: how often something had to be faulted in.
    pub(crate) faults: u64,
}

const TYPE: u32 = b'H' as u32;

pub(crate) const READ: u32 = _IOWR::<Cmd>(TYPE, 0x00);
pub(crate) const WRITE: u32 = _IOWR::<Cmd>(TYPE, 0x01);
pub(crate) const MIGRATE_TO_DEV: u32 = _IOWR::<Cmd>(TYPE, 0x02);
pub(crate) const MIGRATE_TO_SYS: u32 = _IOWR::<Cmd>(TYPE, 0x03);
pub(crate) const SNAPSHOT: u32 = _IOWR::<Cmd>(TYPE, 0x04);
pub(crate) const EXCLUSIVE: u32 = _IOWR::<Cmd>(TYPE, 0x05);
pub(crate) const CHECK_EXCLUSIVE: u32 = _IOWR::<Cmd>(TYPE, 0x06);
pub(crate) const RELEASE: u32 = _IOWR::<Cmd>(TYPE, 0x07);
pub(crate) const FLAGS: u32 = _IOWR::<Cmd>(TYPE, 0x08);
pub(crate) const READ_UNLOCKED: u32 = _IOWR::<Cmd>(TYPE, 0x09);
pub(crate) const GET_MEM_DEV_TYPE: u32 = _IOR::<u32>(TYPE, 0x0a);

/// Whether this is a request with a [`Cmd`].
pub(crate) fn is_known(request: u32) -> bool {
    (READ..=READ_UNLOCKED).contains(&request)
}

/// The next allocation of a page for a migration fails.
pub(crate) const FLAG_FAIL_ALLOC: u64 = 1 << 0;

/// What [`SNAPSHOT`] says of a page, `HMM_DMIRROR_PROT_*`.
pub(crate) mod prot {
    pub(crate) const ERROR: u8 = 0xff;
    pub(crate) const NONE: u8 = 0x00;
    pub(crate) const READ: u8 = 0x01;
    pub(crate) const WRITE: u8 = 0x02;
    pub(crate) const PMD: u8 = 0x04;
    pub(crate) const PUD: u8 = 0x08;
    pub(crate) const ZERO: u8 = 0x10;
    pub(crate) const DEV_PRIVATE_LOCAL: u8 = 0x20;
    pub(crate) const DEV_PRIVATE_REMOTE: u8 = 0x30;
    pub(crate) const DEV_COHERENT_LOCAL: u8 = 0x40;
    pub(crate) const DEV_COHERENT_REMOTE: u8 = 0x50;
    pub(crate) const DEV_GENERIC_LOCAL: u8 = 0x60;
    pub(crate) const DEV_GENERIC_REMOTE: u8 = 0x70;
}

impl Cmd {
    /// Returns the range of addresses that the device works on, in bytes.
    ///
    /// [`EINVAL`] if it is empty, not page-aligned, or goes beyond the end of the address space.
    pub(crate) fn range(&self) -> Result<Range<usize>> {
        let start = usize::try_from(self.addr)?;
        let end = usize::try_from(self.npages)?
            .checked_mul(PAGE_SIZE)
            .and_then(|size| start.checked_add(size))
            .ok_or(EINVAL)?;
        if start % PAGE_SIZE != 0 || start >= end {
            return Err(EINVAL);
        }
        Ok(start..end)
    }
}

#[cfg(CONFIG_TEST_HMM_RS_KUNIT_TEST)]
#[kunit_tests(test_hmm_rs_uapi)]
mod tests {
    use super::*;
    use core::mem::{
        offset_of,
        size_of, //
    };

    #[test]
    fn requests() {
        // As the C compiler sees them.
        assert_eq!(READ, 0xc028_4800);
        assert_eq!(MIGRATE_TO_DEV, 0xc028_4802);
        assert_eq!(SNAPSHOT, 0xc028_4804);
        assert_eq!(READ_UNLOCKED, 0xc028_4809);
        assert_eq!(GET_MEM_DEV_TYPE, 0x8004_480a);
    }

    #[test]
    fn known_requests() {
        assert!(is_known(READ));
        assert!(is_known(MIGRATE_TO_SYS));
        assert!(is_known(READ_UNLOCKED));
        assert!(!is_known(READ - 1));
        assert!(!is_known(READ_UNLOCKED + 1));
        // The same number with another size.
        assert!(!is_known(_IOR::<u32>(TYPE, 0x00)));
        assert!(!is_known(GET_MEM_DEV_TYPE));
    }

    #[test]
    fn layout() {
        assert_eq!(size_of::<Cmd>(), 40);
        assert_eq!(offset_of!(Cmd, addr), 0);
        assert_eq!(offset_of!(Cmd, ptr), 8);
        assert_eq!(offset_of!(Cmd, npages), 16);
        assert_eq!(offset_of!(Cmd, cpages), 24);
        assert_eq!(offset_of!(Cmd, faults), 32);
    }

    fn range(addr: u64, npages: u64) -> Result<Range<usize>> {
        let cmd = Cmd {
            addr,
            npages,
            ..Cmd::default()
        };
        cmd.range()
    }

    #[test]
    fn ranges() {
        const SIZE: u64 = PAGE_SIZE as u64;
        const LAST_PAGE: u64 = u64::MAX - (SIZE - 1);

        assert_eq!(range(SIZE, 2), Ok(PAGE_SIZE..3 * PAGE_SIZE));
        assert_eq!(range(0, 1), Ok(0..PAGE_SIZE));
        // Empty, not aligned.
        assert!(range(SIZE, 0).is_err());
        assert!(range(SIZE + 1, 1).is_err());
        // The size wraps, to one page; the end wraps.
        assert!(range(SIZE, u64::MAX / SIZE + 2).is_err());
        assert!(range(LAST_PAGE, 1).is_err());
        assert!(range(LAST_PAGE - SIZE, 2).is_err());
        assert!(range(LAST_PAGE - SIZE, 1).is_ok());
    }
}
