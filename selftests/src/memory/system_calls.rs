// SPDX-License-Identifier: GPL-2.0
//! System calls on parts of a mapping.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{
    MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, mprotect, mremap, munlock,
    munmap,
};

use super::pieces::{with, without};
use super::{APART, Mapping, READ_WRITE};
use crate::pages::PAGE_SIZE;

impl Mapping {
    /// mprotect(2) of some pages.
    pub fn mprotect(&self, range: Range<usize>, prot: ProtFlags) -> Result<(), Errno> {
        // SAFETY: The range is ours, and there are no references to it.
        unsafe { mprotect(self.pointer(&range), range.len() * PAGE_SIZE, prot) }
    }

    /// madvise(2) of some pages.
    pub fn madvise(&self, range: Range<usize>, advice: MmapAdvise) -> Result<(), Errno> {
        // SAFETY: The range is ours, and there are no references to it.
        unsafe { madvise(self.pointer(&range), range.len() * PAGE_SIZE, advice) }
    }

    /// `MADV_COLLAPSE` of some pages: makes huge ones of them.
    pub fn collapse(&self, range: Range<usize>) -> Result<(), Errno> {
        let (addr, len) = (self.pointer(&range), range.len() * PAGE_SIZE);
        // SAFETY: The range is ours, and its contents stay.
        Errno::result(unsafe { libc::madvise(addr.as_ptr(), len, libc::MADV_COLLAPSE) }).map(drop)
    }

    /// mlock(2) of some pages.
    pub fn mlock(&self, range: Range<usize>) -> Result<(), Errno> {
        // SAFETY: The range is ours; locking changes nothing of its contents.
        unsafe { mlock(self.pointer(&range), range.len() * PAGE_SIZE) }
    }

    /// munlock(2) of some pages.
    pub fn munlock(&self, range: Range<usize>) -> Result<(), Errno> {
        // SAFETY: The range is ours; unlocking changes nothing of its contents.
        unsafe { munlock(self.pointer(&range), range.len() * PAGE_SIZE) }
    }

    /// Replaces some pages by the first ones of a file. `flags`: see [`Mapping::file`].
    pub fn map_file(
        &self,
        range: Range<usize>,
        file: impl AsFd,
        flags: MapFlags,
    ) -> Result<(), Errno> {
        let addr = self.pointer(&range).addr();
        let len = NonZeroUsize::new(range.len() * PAGE_SIZE).expect("not empty");
        // SAFETY: The range is ours, and there are no references to it.
        unsafe { mmap(Some(addr), len, READ_WRITE, flags | MapFlags::MAP_FIXED, file, 0)? };
        Ok(())
    }

    /// Maps fresh anonymous memory, also where some was unmapped. Only for mappings that
    /// are [`apart`](Self::apart).
    pub fn map_again(&mut self, range: Range<usize>) -> Result<(), Errno> {
        assert!(self.reserved.start == APART && range.end <= self.count);
        self.map_over(&range)?;
        self.mapped = with(&self.mapped, &range);
        Ok(())
    }

    /// mremap(2) to page `to` and the following, of a mapping that is
    /// [`apart`](Self::apart). What is there is unmapped.
    pub fn move_within(&mut self, range: Range<usize>, to: usize) -> Result<(), Errno> {
        let target = to..to + range.len();
        assert!(self.reserved.start == APART && target.end <= self.count);
        let new = std::ptr::with_exposed_provenance_mut(self.addr + to * PAGE_SIZE);
        let new = NonNull::new(new).expect("not at 0");
        let len = range.len() * PAGE_SIZE;
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        // SAFETY: As in `map_over`, for both ranges.
        unsafe { mremap(self.pointer(&range), len, len, flags, Some(new))? };
        self.forget(&range);
        self.mapped = with(&self.mapped, &target);
        Ok(())
    }

    /// munmap(2) of some pages. Whatever the process maps next may be placed there.
    pub fn munmap(&mut self, range: Range<usize>) -> Result<(), Errno> {
        // SAFETY: The range is ours, and there are no references to it.
        unsafe { munmap(self.pointer(&range), range.len() * PAGE_SIZE)? };
        self.forget(&range);
        Ok(())
    }

    /// mremap(2) of some pages to another place, `skew` pages behind a multiple of
    /// 2 MB. Their patterns keep the numbers of their pages.
    pub fn mremap(&mut self, range: Range<usize>, skew: usize) -> Result<Self, Errno> {
        let moved = self.move_to(range.clone(), skew, MRemapFlags::empty())?;
        self.forget(&range);
        Ok(moved)
    }

    /// As [`mremap`](Self::mremap), but leaves an empty mapping behind
    /// (`MREMAP_DONTUNMAP`).
    pub fn mremap_dontunmap(&mut self, range: Range<usize>, skew: usize) -> Result<Self, Errno> {
        const DONTUNMAP: MRemapFlags = MRemapFlags::from_bits_retain(libc::MREMAP_DONTUNMAP);
        self.move_to(range, skew, DONTUNMAP)
    }

    fn move_to(&self, range: Range<usize>, skew: usize, flags: MRemapFlags) -> Result<Self, Errno> {
        let old = self.pointer(&range);
        let mut moved = Self::reserve(range.len(), skew)?;
        moved.first_page = self.first_page + range.start;
        let new = moved.pointer(&(0..range.len()));
        let len = range.len() * PAGE_SIZE;
        let flags = flags | MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        // SAFETY: Both ranges are ours, and there are no references to them.
        unsafe { mremap(old, len, len, flags, Some(new))? };
        Ok(moved)
    }

    fn forget(&mut self, range: &Range<usize>) {
        self.mapped = without(&self.mapped, range);
    }
}
