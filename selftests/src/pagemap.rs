// SPDX-License-Identifier: GPL-2.0
//! What the kernel tells of this process's page tables, to check a test's
//! preconditions without the driver's help.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use ioctl_sys::iorw;
use nix::errno::Errno;

use crate::pages::{PAGE_SIZE, Pages};

const PAGEMAP: &str = "/proc/self/pagemap";
const KPAGEFLAGS: &str = "/proc/kpageflags";
const ENTRY: usize = size_of::<u64>();
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;
const EXCLUSIVE: u64 = 1 << 56;
const PFN: u64 = (1 << 55) - 1;
const FLAG_COMPOUND_TAIL: u64 = 1 << 16;
const FLAG_KSM: u64 = 1 << 21;

/// One page's entry in `/proc/self/pagemap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// A page is mapped for the CPU; not so on a device with private memory.
    pub fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// There is a swap entry, which one on a device with private memory is, too.
    pub fn is_swapped(self) -> bool {
        self.0 & SWAPPED != 0
    }

    /// The page belongs to a file or to shared memory.
    pub fn is_file_or_shared(self) -> bool {
        self.0 & FILE_OR_SHARED != 0
    }

    /// Page frame number of a page that is present; root only.
    pub fn pfn(self) -> u64 {
        self.0 & PFN
    }

    /// Nobody else maps the page.
    pub fn is_exclusive(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }
}

/// The entry of each page.
pub fn entries(pages: Pages) -> io::Result<Vec<Entry>> {
    let mut bytes = vec![0; pages.count * ENTRY];
    let offset = (pages.addr / PAGE_SIZE * ENTRY) as u64;
    File::open(PAGEMAP)?.read_exact_at(&mut bytes, offset)?;
    let entries = bytes.chunks_exact(ENTRY);
    Ok(entries.map(|b| Entry(u64::from_ne_bytes(b.try_into().expect("8 bytes")))).collect())
}

/// How many of the pages are mapped and have a flag of `/proc/kpageflags`; root only.
fn count_flagged(pages: Pages, flag: u64) -> io::Result<usize> {
    let file = File::open(KPAGEFLAGS)?;
    let mut count = 0;
    for entry in entries(pages)?.into_iter().filter(|entry| entry.is_present()) {
        let mut bytes = [0; ENTRY];
        file.read_exact_at(&mut bytes, entry.pfn() * ENTRY as u64)?;
        count += usize::from(u64::from_ne_bytes(bytes) & flag != 0);
    }
    Ok(count)
}

/// How many of the pages KSM has merged; root only.
pub fn merged_pages(pages: Pages) -> io::Result<usize> {
    count_flagged(pages, FLAG_KSM)
}

/// How many of the pages are in a large folio, and not the first there; root only.
pub fn tail_pages(pages: Pages) -> io::Result<usize> {
    count_flagged(pages, FLAG_COMPOUND_TAIL)
}

/// Numbers of the pages at which a VMA begins, counted from the first of `pages`.
pub fn beginnings_of_vmas(pages: Pages) -> io::Result<Vec<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let first_addresses = maps.lines().filter_map(|line| line.split_once('-'));
    let addrs = first_addresses.filter_map(|(start, _)| usize::from_str_radix(start, 16).ok());
    let within = addrs.filter(|addr| (pages.addr..pages.addr + pages.bytes()).contains(addr));
    Ok(within.map(|addr| (addr - pages.addr) / PAGE_SIZE).collect())
}

/// A range that the kernel's `PAGEMAP_SCAN` found.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Argument of `PAGEMAP_SCAN`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: u32 = iorw!(b'f', 16, size_of::<ScanArgument>());
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_HUGE: u64 = 1 << 6;
/// Protects what it finds from being written to, so that it is not found again.
const WP_MATCHING: u64 = 1 << 0;
/// Fails if that would have somebody wait.
const CHECK_WPASYNC: u64 = 1 << 1;

/// Ranges of pages of a category, numbered from the first of `pages`.
fn scan(pages: Pages, category: u64, flags: u64) -> io::Result<Vec<Range<usize>>> {
    let file = File::open(PAGEMAP)?;
    // Regions cannot be more than pages.
    let mut regions = vec![Region::default(); pages.count];
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        flags,
        start: pages.addr as u64,
        end: (pages.addr + pages.bytes()) as u64,
        vec: regions.as_mut_ptr().expose_provenance() as u64,
        vec_len: regions.len() as u64,
        category_mask: category,
        return_mask: category,
        ..ScanArgument::default()
    };
    // SAFETY: The argument and the vector it names live past the call, with the sizes
    // it says.
    let found = unsafe {
        ioctl_sys::ioctl(file.as_raw_fd(), PAGEMAP_SCAN.into(), std::ptr::from_mut(&mut argument))
    };
    let found = usize::try_from(Errno::result(found)?).expect("not negative");
    let number = |addr: u64| (addr as usize - pages.addr) / PAGE_SIZE;
    Ok(regions[..found].iter().map(|region| number(region.start)..number(region.end)).collect())
}

/// How many of the pages a PMD maps, or a huge swap entry.
pub fn huge_pages(pages: Pages) -> io::Result<usize> {
    Ok(scan(pages, PAGE_IS_HUGE, 0)?.into_iter().map(|range| range.len()).sum())
}

/// Which of the pages, numbered from 0, were written to since this was last asked; in a
/// range that [`tracking`](crate::userfault::UserFaults::tracking) is for.
pub fn take_written(pages: Pages) -> io::Result<Vec<usize>> {
    let written = scan(pages, PAGE_IS_WRITTEN, WP_MATCHING | CHECK_WPASYNC)?;
    Ok(written.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use nix::sys::mman::ProtFlags;

    #[test]
    fn vmas_begin_where_the_protection_changes() {
        let mapping = Mapping::small(8).unwrap();
        mapping.mprotect(2..5, ProtFlags::PROT_READ).unwrap();
        assert_eq!(beginnings_of_vmas(mapping.all()).unwrap(), [0, 2, 5]);
    }

    #[test]
    fn small_pages() {
        let mapping = Mapping::small(4).unwrap();
        mapping.fill(1..3, 1);
        let entries = entries(mapping.all()).unwrap();
        let present: Vec<_> = entries.iter().map(|e| e.is_present()).collect();
        assert_eq!(present, [false, true, true, false]);
        assert!(!entries[1].is_swapped() && !entries[1].is_file_or_shared());
        assert!(entries[1].is_exclusive());
    }
}
