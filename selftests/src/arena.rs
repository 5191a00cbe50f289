// SPDX-License-Identifier: GPL-2.0
//! A piece of the address space in which anything may happen at any time.

use std::io::Read;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use nix::unistd::{pipe2, write};

use crate::failure::{Context, Result};
use crate::pages::{PAGE_SIZE, Pages};

/// Where it is, a multiple of 2 MB: far from where the kernel places what the process maps
/// otherwise.
const PLACE: usize = 1 << 45;

/// Pages, numbered from 0, that threads map, unmap and access as they like.
///
/// Only the kernel accesses them, on behalf of system calls, so that an access which the
/// memory does not allow is an error and no signal. There is one in a process; children that
/// are forked have it, too.
#[derive(Debug)]
pub struct Arena {
    count: usize,
}

impl Arena {
    /// Address space of this many pages, with nothing mapped.
    pub fn new(count: usize) -> Self {
        Self { count }
    }

    /// All of it.
    pub fn all(&self) -> Pages {
        Pages { addr: PLACE, count: self.count }
    }

    /// Part of it.
    pub fn pages(&self, range: Range<usize>) -> Pages {
        self.all().part(range)
    }

    fn address(&self, range: &Range<usize>) -> *mut libc::c_void {
        std::ptr::with_exposed_provenance_mut(self.pages(range.clone()).addr)
    }

    fn place(&self, range: &Range<usize>) -> (Option<NonZeroUsize>, NonZeroUsize) {
        let pages = self.pages(range.clone());
        (NonZeroUsize::new(pages.addr), NonZeroUsize::new(pages.bytes()).expect("not empty"))
    }

    /// Maps anonymous memory. `flags`: private or shared, and more.
    pub fn map(&self, range: Range<usize>, prot: ProtFlags, flags: MapFlags) -> Result<(), Errno> {
        let (addr, len) = self.place(&range);
        // SAFETY: The range is the arena's, to which no references exist.
        unsafe { mmap_anonymous(addr, len, prot, flags | MapFlags::MAP_FIXED) }.map(drop)
    }

    /// Maps a file from its beginning.
    pub fn map_file(
        &self,
        range: Range<usize>,
        prot: ProtFlags,
        flags: MapFlags,
        file: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let (addr, len) = self.place(&range);
        // SAFETY: The range is the arena's, to which no references exist.
        unsafe { mmap(addr, len, prot, flags | MapFlags::MAP_FIXED, file, 0) }.map(drop)
    }

    /// munmap(2)
    pub fn unmap(&self, range: Range<usize>) -> Result<(), Errno> {
        // SAFETY: The range is the arena's, to which no references exist.
        let ret = unsafe { libc::munmap(self.address(&range), range.len() * PAGE_SIZE) };
        Errno::result(ret).map(drop)
    }

    /// mprotect(2)
    pub fn protect(&self, range: Range<usize>, prot: ProtFlags) -> Result<(), Errno> {
        let len = range.len() * PAGE_SIZE;
        // SAFETY: The range is the arena's, to which no references exist.
        let ret = unsafe { libc::mprotect(self.address(&range), len, prot.bits()) };
        Errno::result(ret).map(drop)
    }

    /// madvise(2), by the number of the advice.
    pub fn advise(&self, range: Range<usize>, advice: i32) -> Result<(), Errno> {
        let len = range.len() * PAGE_SIZE;
        // SAFETY: The range is the arena's, to which no references exist.
        let ret = unsafe { libc::madvise(self.address(&range), len, advice) };
        Errno::result(ret).map(drop)
    }

    /// mremap(2) to page `to` and the following; what is there is unmapped.
    pub fn move_to(&self, range: Range<usize>, to: usize, flags: i32) -> Result<(), Errno> {
        let len = range.len() * PAGE_SIZE;
        let target = self.address(&(to..to + range.len()));
        let flags = flags | libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: Both ranges are the arena's, to which no references exist.
        let ret = unsafe { libc::mremap(self.address(&range), len, len, flags, target) };
        if ret == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
    }

    /// mlock2(2), or munlock(2) without flags.
    pub fn lock(&self, range: Range<usize>, flags: Option<u32>) -> Result<(), Errno> {
        let (addr, len) = (self.address(&range), range.len() * PAGE_SIZE);
        let ret = match flags {
            // SAFETY: This changes no contents of memory.
            Some(flags) => unsafe { libc::syscall(libc::SYS_mlock2, addr, len, flags) },
            // SAFETY: As above.
            None => unsafe { libc::syscall(libc::SYS_munlock, addr, len) },
        };
        Errno::result(ret).map(drop)
    }

    /// move_pages(2) of the calling process to a node.
    pub fn move_to_node(&self, range: Range<usize>, node: i32) -> Result<(), Errno> {
        const MPOL_MF_MOVE: i32 = 1 << 1;
        let pages: Vec<_> = range.map(|page| self.address(&(page..page + 1))).collect();
        let nodes = vec![node; pages.len()];
        let mut status = vec![0i32; pages.len()];
        // SAFETY: The three arrays have the number of elements that is given.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                pages.len(),
                pages.as_ptr(),
                nodes.as_ptr(),
                status.as_mut_ptr(),
                MPOL_MF_MOVE,
            )
        };
        Errno::result(ret).map(drop)
    }

    /// The CPU reads and writes each page by itself. What memory does not allow kills the
    /// process.
    pub fn touch(&self, range: Range<usize>) {
        for page in range {
            let word = self.address(&(page..page + 1)).cast::<u64>();
            // SAFETY: Aligned, and in the arena, to which no references exist. Where nothing is
            // mapped, the CPU faults, and the kernel ends the process.
            unsafe { word.write_volatile(word.read_volatile()) };
        }
    }
}

/// How the CPU accesses an arena: the kernel copies between it and this pipe.
#[derive(Debug)]
pub struct CpuAccess {
    reader: std::fs::File,
    writer: OwnedFd,
}

impl CpuAccess {
    /// Pages that can be accessed at once.
    pub const PAGES: usize = 16;

    /// Makes a pipe, which forked children must not use at the same time.
    pub fn new() -> Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).context("pipe")?;
        Ok(Self { reader: reader.into(), writer })
    }

    /// What the CPU finds in the pages, up to the first that it may not read.
    pub fn load(&mut self, pages: Pages) -> Result<Vec<u8>, Errno> {
        self.drain();
        let addr = std::ptr::with_exposed_provenance::<libc::c_void>(pages.addr);
        // SAFETY: The kernel checks the addresses, and only reads there.
        let count = unsafe { libc::write(self.writer.as_raw_fd(), addr, pages.bytes()) };
        Errno::result(count)?;
        Ok(self.drain())
    }

    /// The CPU writes to the pages, as far as it may.
    pub fn store(&mut self, pages: Pages, data: &[u8]) -> Result<(), Errno> {
        self.drain();
        write(&self.writer, data)?;
        let addr = std::ptr::with_exposed_provenance_mut::<libc::c_void>(pages.addr);
        // SAFETY: The kernel checks the addresses, which are of an arena, to which no references
        // exist.
        let count = unsafe { libc::read(self.reader.as_raw_fd(), addr, pages.bytes()) };
        Errno::result(count).map(drop)
    }

    /// All that is in the pipe.
    fn drain(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        // It ends with EAGAIN: the pipe has a writer.
        let _ = self.reader.read_to_end(&mut data);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    #[test]
    fn what_memory_does_not_allow_is_an_error() {
        let arena = Arena::new(4);
        let mut cpu = CpuAccess::new().unwrap();
        let read_write = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        arena.map(0..4, read_write, MapFlags::MAP_PRIVATE).unwrap();
        cpu.store(arena.pages(1..3), &pattern::pages(1, 2, 5)).unwrap();
        arena.protect(2..3, ProtFlags::PROT_NONE).unwrap();
        assert_eq!(cpu.load(arena.pages(1..3)).unwrap(), pattern::pages(1, 1, 5));
        assert_eq!(cpu.store(arena.pages(2..3), &[1]), Err(Errno::EFAULT));
        arena.move_to(1..2, 3, 0).unwrap();
        assert_eq!(cpu.load(arena.pages(1..2)), Err(Errno::EFAULT));
        assert_eq!(cpu.load(arena.pages(3..4)).unwrap(), pattern::pages(1, 1, 5));
        arena.unmap(0..4).unwrap();
        assert_eq!(cpu.load(arena.pages(3..4)), Err(Errno::EFAULT));
    }
}
