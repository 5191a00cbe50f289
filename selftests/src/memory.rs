// SPDX-License-Identifier: GPL-2.0
//! Mappings of the test's own address space.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::pages::{HUGE_PAGE_SIZE, HUGE_PAGES, PAGE_SIZE, Pages};

mod contents;
mod pieces;
mod system_calls;

/// Address of what is mapped apart.
const APART: usize = 1 << 44;

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
const PRIVATE: MapFlags = MapFlags::MAP_PRIVATE;

/// An owned mapping; pages are numbered from 0.
///
/// It starts at a multiple of 2 MB. Inaccessible guards before and after it keep
/// neighbours away: what a device does to one mapping cannot be due to another,
/// and no huge page crosses its ends.
///
/// No reference to its memory ever exists: all access is volatile and copies, for
/// devices and other processes change the memory, too.
#[derive(Debug)]
pub struct Mapping {
    addr: usize,
    count: usize,
    /// Pages not yet unmapped or moved away, in order.
    mapped: Vec<Range<usize>>,
    /// Everything reserved, guards included, in bytes.
    reserved: Range<usize>,
    /// What patterns call page 0: a mapping moved elsewhere keeps its numbers.
    first_page: usize,
}

impl Mapping {
    /// Private anonymous memory, readable and writable. Huge pages: as the system's
    /// default is.
    pub fn anonymous(count: usize) -> Result<Self, Errno> {
        Self::new(count, READ_WRITE, PRIVATE)
    }

    /// Private anonymous memory that never gets huge pages.
    pub fn small(count: usize) -> Result<Self, Errno> {
        Self::small_skewed(count, 0)
    }

    /// The same, `skew` pages behind a multiple of 2 MB.
    pub fn small_skewed(count: usize, skew: usize) -> Result<Self, Errno> {
        let mapping = Self::reserve(count, skew)?;
        mapping.map_over(&(0..count))?;
        mapping.madvise(0..count, MmapAdvise::MADV_NOHUGEPAGE)?;
        Ok(mapping)
    }

    /// Private anonymous memory that gets huge pages where it can.
    pub fn huge(count: usize) -> Result<Self, Errno> {
        let mapping = Self::anonymous(count)?;
        mapping.madvise(0..count, MmapAdvise::MADV_HUGEPAGE)?;
        Ok(mapping)
    }

    /// Shared anonymous memory.
    pub fn shared(count: usize) -> Result<Self, Errno> {
        Self::new(count, READ_WRITE, MapFlags::MAP_SHARED)
    }

    /// Private memory of hugetlbfs; `count` is a multiple of [`HUGE_PAGES`].
    /// `ENOMEM` if the system has not set aside enough of it.
    pub fn hugetlb(count: usize) -> Result<Self, Errno> {
        Self::new(count, READ_WRITE, PRIVATE | MapFlags::MAP_HUGETLB)
    }

    /// Anonymous memory with these protections and flags.
    pub fn new(count: usize, prot: ProtFlags, flags: MapFlags) -> Result<Self, Errno> {
        let mapping = Self::reserve(count, 0)?;
        let (addr, len) = mapping.place();
        // SAFETY: The range is this mapping's own reservation.
        unsafe { mmap_anonymous(Some(addr), len, prot, flags | MapFlags::MAP_FIXED)? };
        Ok(mapping)
    }

    /// The first `count` pages of a file or device, readable and writable.
    /// `flags` is `MAP_SHARED` or `MAP_PRIVATE`.
    pub fn file(file: impl AsFd, count: usize, flags: MapFlags) -> Result<Self, Errno> {
        Self::file_from(file, 0, count, flags)
    }

    /// The page frame of physical memory with this number, readable and writable, of an
    /// open `/dev/mem`. The mapping has no reference to it.
    pub fn frame(memory: impl AsFd, pfn: u64) -> Result<Self, Errno> {
        Self::file_from(memory, pfn, 1, MapFlags::MAP_SHARED)
    }

    fn file_from(
        file: impl AsFd,
        first_page: u64,
        count: usize,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let mapping = Self::reserve(count, 0)?;
        let (addr, len) = mapping.place();
        let offset = first_page * PAGE_SIZE as u64;
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: The range is this mapping's own reservation.
        unsafe { mmap(Some(addr), len, READ_WRITE, flags | MapFlags::MAP_FIXED, file, offset)? };
        Ok(mapping)
    }

    /// As [`anonymous`](Self::anonymous), but `skew` pages behind a multiple of 2 MB, and
    /// far below where the kernel places what the process maps next: not in its holes.
    /// There can be just one.
    pub fn apart(count: usize, skew: usize) -> Result<Self, Errno> {
        let mapping = Self::reserve_at(NonZeroUsize::new(APART), count, skew)?;
        mapping.map_over(&(0..count))?;
        Ok(mapping)
    }

    /// Reserves address space, `skew` pages behind a multiple of 2 MB.
    fn reserve(count: usize, skew: usize) -> Result<Self, Errno> {
        Self::reserve_at(None, count, skew)
    }

    fn reserve_at(start: Option<NonZeroUsize>, count: usize, skew: usize) -> Result<Self, Errno> {
        assert!(count > 0 && skew < HUGE_PAGES);
        let bytes = count * PAGE_SIZE;
        // One huge page in front, one behind, one for alignment, one for the skew.
        let len = bytes.next_multiple_of(HUGE_PAGE_SIZE) + 4 * HUGE_PAGE_SIZE;
        let len = NonZeroUsize::new(len).expect("not zero");
        let flags = PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
        let flags = if start.is_some() { flags } else { flags & !MapFlags::MAP_FIXED_NOREPLACE };
        // SAFETY: The kernel picks a free range, or refuses if the given one is not.
        let start = unsafe { mmap_anonymous(start, len, ProtFlags::PROT_NONE, flags)? };
        let start = start.addr().get();
        let addr = (start + HUGE_PAGE_SIZE).next_multiple_of(HUGE_PAGE_SIZE) + skew * PAGE_SIZE;
        Ok(Self {
            addr,
            count,
            mapped: std::iter::once(0..count).collect(),
            reserved: start..start + len.get(),
            first_page: 0,
        })
    }

    fn place(&self) -> (NonZeroUsize, NonZeroUsize) {
        let len = self.count * PAGE_SIZE;
        (
            NonZeroUsize::new(self.addr).expect("not at 0"),
            NonZeroUsize::new(len).expect("not empty"),
        )
    }

    /// Number of pages, unmapped ones included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The whole range.
    pub fn all(&self) -> Pages {
        Pages { addr: self.addr, count: self.count }
    }

    /// Part of the range.
    pub fn pages(&self, range: Range<usize>) -> Pages {
        self.all().part(range)
    }

    /// What patterns call page 0 of this mapping.
    pub fn first_page(&self) -> usize {
        self.first_page
    }

    fn is_mapped(&self, range: &Range<usize>) -> bool {
        self.mapped.iter().any(|piece| piece.start <= range.start && range.end <= piece.end)
    }

    fn pointer(&self, range: &Range<usize>) -> NonNull<std::ffi::c_void> {
        assert!(self.is_mapped(range) && !range.is_empty(), "{range:?} is not all mapped");
        let addr = self.addr + range.start * PAGE_SIZE;
        NonNull::new(std::ptr::with_exposed_provenance_mut(addr)).expect("not at 0")
    }

    fn map_over(&self, range: &Range<usize>) -> Result<(), Errno> {
        let addr = NonZeroUsize::new(self.addr + range.start * PAGE_SIZE).expect("not at 0");
        let len = NonZeroUsize::new(range.len() * PAGE_SIZE).expect("not empty");
        // SAFETY: The range is this mapping's own: no others are mapped in the holes of one
        // that is apart.
        unsafe { mmap_anonymous(Some(addr), len, READ_WRITE, PRIVATE | MapFlags::MAP_FIXED)? };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Only what is still ours: others may have been given the holes.
        let address = |page: usize| self.addr + page * PAGE_SIZE;
        let mut owned: Vec<_> =
            self.mapped.iter().map(|piece| address(piece.start)..address(piece.end)).collect();
        owned.push(self.reserved.start..self.addr);
        owned.push(address(self.count)..self.reserved.end);
        for range in owned {
            let addr = std::ptr::with_exposed_provenance_mut(range.start);
            let addr = NonNull::new(addr).expect("not at 0");
            // SAFETY: These are ours, and there are no references to them.
            unsafe { munmap(addr, range.len()).expect("munmap of our own memory") };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    #[test]
    fn mapped_again_and_moved_within() {
        let mut mapping = Mapping::apart(8, 5).unwrap();
        assert_eq!(mapping.all().addr % HUGE_PAGE_SIZE, 5 * PAGE_SIZE);
        mapping.fill(0..8, 1);
        mapping.munmap(2..6).unwrap();
        mapping.map_again(1..4).unwrap();
        mapping.check(1..4, 0).unwrap();
        mapping.move_within(6..8, 4).unwrap();
        assert_eq!(mapping.contents(4..6), pattern::pages(6, 2, 1));
        mapping.map_again(0..8).unwrap();
        mapping.check(0..8, 0).unwrap();
    }

    #[test]
    fn aligned_filled_checked() {
        let mapping = Mapping::small(5).unwrap();
        assert_eq!(mapping.all().addr % HUGE_PAGE_SIZE, 0);
        assert_eq!(mapping.check(0..5, 0), Ok(()));
        mapping.fill(1..4, 2);
        assert_eq!(mapping.check(1..4, 2), Ok(()));
        assert_eq!(mapping.check(4..5, 0), Ok(()));
        assert_eq!(mapping.contents(1..4), pattern::pages(1, 3, 2));
        mapping.write(2, 3, 1);
        let mismatch = mapping.check(1..4, 2).unwrap_err();
        assert_eq!((mismatch.page, mismatch.offset, mismatch.found), (2, 24, 1));
    }

    #[test]
    fn moved_pages_keep_their_pattern() {
        let mut mapping = Mapping::small(8).unwrap();
        mapping.fill(0..8, 1);
        let moved = mapping.mremap(2..5, 3).unwrap();
        assert_eq!(moved.all().addr % HUGE_PAGE_SIZE, 3 * PAGE_SIZE);
        assert_eq!(moved.check(0..3, 1), Ok(()));
        assert_eq!(moved.first_page(), 2);
        let left_empty = mapping.mremap_dontunmap(6..8, 0).unwrap();
        assert_eq!(left_empty.check(0..2, 1), Ok(()));
        assert_eq!(mapping.check(6..8, 0), Ok(()));
        assert_eq!(mapping.check(5..6, 1), Ok(()));
    }

    #[test]
    #[should_panic(expected = "page 1 is not mapped")]
    fn unmapped_pages_are_refused() {
        let mut mapping = Mapping::small(3).unwrap();
        mapping.munmap(1..2).unwrap();
        mapping.read(1, 0);
    }

    #[test]
    fn drop_leaves_what_others_mapped_into_the_hole() {
        let mut mapping = Mapping::small(3).unwrap();
        mapping.munmap(1..2).unwrap();
        let hole = NonZeroUsize::new(mapping.pages(1..2).addr).unwrap();
        let len = NonZeroUsize::new(PAGE_SIZE).unwrap();
        let flags = PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: The page was unmapped above; the kernel refuses if it is not free.
        let other = unsafe { mmap_anonymous(Some(hole), len, READ_WRITE, flags).unwrap() };
        drop(mapping);
        // SAFETY: Mapped above, and unmapped by nothing else.
        unsafe {
            other.cast::<u8>().write_volatile(1);
            munmap(other, PAGE_SIZE).unwrap();
        }
    }
}
