// SPDX-License-Identifier: GPL-2.0
//! `io_uring`: buffers that are registered with it are pinned for the long term, and then
//! read and written without asking for their pages again.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;

use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use nix::errno::Errno;
use nix::libc;

use crate::failure::{Context, Result, skip};
use crate::pages::Pages;
use crate::{ensure, ensure_eq};

/// A ring, which has at most one [`RegisteredBuffer`].
pub struct Ring(RefCell<IoUring>);

impl Ring {
    /// Makes one; skips the test if the kernel has none to give.
    pub fn new() -> Result<Self> {
        match IoUring::new(1) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                skip("no io_uring: CONFIG_IO_URING")
            }
            ring => Ok(Self(RefCell::new(ring.context("io_uring_setup")?))),
        }
    }

    /// Registers pages as the ring's buffer.
    pub fn register(&self, pages: Pages) -> Result<RegisteredBuffer<'_>, Errno> {
        let buffer = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(pages.addr),
            iov_len: pages.bytes(),
        };
        // SAFETY: The kernel has references to the pages, whatever becomes of the addresses. It
        // accesses them in `transfer` only, and no reference to such memory ever exists.
        let registered = unsafe { self.0.borrow().submitter().register_buffers(&[buffer]) };
        match registered {
            Ok(()) => Ok(RegisteredBuffer { ring: self, pages }),
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        }
    }
}

/// Pages that are pinned until it is dropped.
pub struct RegisteredBuffer<'a> {
    ring: &'a Ring,
    pages: Pages,
}

impl RegisteredBuffer<'_> {
    /// What was registered.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Writes all of the buffer to the beginning of a file.
    pub fn write_to(&self, file: &File) -> Result {
        let (file, addr, len) = self.arguments(file);
        self.transfer(&opcode::WriteFixed::new(file, addr.cast_const(), len, 0).build())
            .context("IORING_OP_WRITE_FIXED")
    }

    /// Fills all of the buffer from the beginning of a file.
    pub fn read_from(&self, file: &File) -> Result {
        let (file, addr, len) = self.arguments(file);
        self.transfer(&opcode::ReadFixed::new(file, addr, len, 0).build())
            .context("IORING_OP_READ_FIXED")
    }

    fn arguments(&self, file: &File) -> (Fd, *mut u8, u32) {
        let addr = std::ptr::with_exposed_provenance_mut(self.pages.addr);
        let len = u32::try_from(self.pages.bytes()).expect("a few huge pages at most");
        (Fd(file.as_raw_fd()), addr, len)
    }

    fn transfer(&self, entry: &Entry) -> Result {
        let mut ring = self.ring.0.borrow_mut();
        // SAFETY: The buffer stays registered until the transfer is over, which is waited for.
        unsafe { ring.submission().push(entry)? };
        ring.submit_and_wait(1)?;
        let completion = ring.completion().next();
        let Some(completion) = completion else { crate::fail!("it does not complete") };
        ensure!(completion.result() >= 0, "{}", Errno::from_raw(-completion.result()));
        ensure_eq!(completion.result() as usize, self.pages.bytes());
        Ok(())
    }
}

impl Drop for RegisteredBuffer<'_> {
    fn drop(&mut self) {
        let ring = self.ring.0.borrow();
        ring.submitter().unregister_buffers().expect("registered before");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::failure::Failure;
    use crate::memory::Mapping;
    use crate::pattern;

    #[test]
    fn what_is_written_is_read() {
        let ring = match Ring::new() {
            Ok(ring) => ring,
            // A container may forbid it.
            Err(Failure::Skipped(_)) => return,
            Err(Failure::Failed(text))
                if text.contains("EPERM") || text.contains("os error 1)") =>
            {
                return;
            }
            Err(failure) => panic!("{failure}"),
        };
        let mapping = Mapping::small(4).unwrap();
        mapping.fill(0..4, 1);
        let path = std::env::temp_dir().join(format!("hmm-selftests-uring-{}", std::process::id()));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let buffer = ring.register(mapping.all()).unwrap();
        buffer.write_to(&file).unwrap();
        mapping.fill(0..4, 2);
        buffer.read_from(&file).unwrap();
        mapping.check(0..4, 1).unwrap();
        file.rewind().unwrap();
        file.write_all(&pattern::pages(0, 4, 3)).unwrap();
        buffer.read_from(&file).unwrap();
        drop(buffer);
        mapping.check(0..4, 3).unwrap();
        assert!(ring.register(mapping.all()).is_ok());
    }
}
