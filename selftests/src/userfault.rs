// SPDX-License-Identifier: GPL-2.0
//! What userfaultfd(2) gives: memory whose faults the test handles itself, whose pages
//! can be moved, or that `PAGEMAP_SCAN` can tell the written pages of.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};

use ioctl_sys::iorw;
use nix::errno::Errno;
use nix::libc;

use crate::ensure_eq;
use crate::failure::{Context, Result};
use crate::pages::{PAGE_SIZE, Pages};
use crate::process::wait_readable;

mod handler;

pub use handler::Handler;

/// Argument of `UFFDIO_API`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// Argument of `UFFDIO_REGISTER`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// Argument of `UFFDIO_COPY`.
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// Argument of `UFFDIO_MOVE`.
#[repr(C)]
struct Move {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    moved: i64,
}

const TYPE: u8 = 0xaa;
const UFFDIO_API: u32 = iorw!(TYPE, 0x3f, size_of::<Api>());
const UFFDIO_REGISTER: u32 = iorw!(TYPE, 0x00, size_of::<Register>());
const UFFDIO_COPY: u32 = iorw!(TYPE, 0x03, size_of::<Copy>());
const UFFDIO_MOVE: u32 = iorw!(TYPE, 0x05, size_of::<Move>());

const VERSION: u64 = 0xaa;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const FEATURE_MOVE: u64 = 1 << 16;
const MODE_MISSING: u64 = 1 << 0;
const MODE_WP: u64 = 1 << 1;
const MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;

/// How often a move is tried when the kernel asks to try again.
const MOVE_ATTEMPTS: usize = 100;

/// Size of `struct uffd_msg`, and where in it is what, in bytes.
const MESSAGE: usize = 32;
const EVENT: usize = 0;
const ADDRESS: usize = 16;
const EVENT_PAGEFAULT: u8 = 0x12;

/// A range that the process has a say in.
#[derive(Debug)]
pub struct UserFaults(File);

impl UserFaults {
    /// From now on, who accesses a missing page of these waits until it is there.
    pub fn on_missing(pages: Pages) -> Result<Self> {
        Self::new(pages, 0, MODE_MISSING)
    }

    /// From now on, `PAGEMAP_SCAN` can protect these from being written to, see
    /// [`take_written`](crate::pagemap::take_written), and the first to write to a page
    /// undoes that without being noticed. Pages can be moved here as well.
    pub fn tracking(pages: Pages) -> Result<Self> {
        Self::new(pages, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_MOVE, MODE_WP)
    }

    fn new(pages: Pages, features: u64, mode: u64) -> Result<Self> {
        let this = Self::open(features, 0)?;
        let mut register =
            Register { start: pages.addr as u64, len: pages.bytes() as u64, mode, ioctls: 0 };
        this.issue(UFFDIO_REGISTER, &mut register).context("UFFDIO_REGISTER")?;
        Ok(this)
    }

    /// One without ranges; `flags` for its descriptor.
    fn open(features: u64, flags: i32) -> Result<Self> {
        // SAFETY: This creates a file descriptor, and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) };
        let fd = i32::try_from(Errno::result(fd).context("userfaultfd")?)?;
        // SAFETY: The descriptor is new, so nobody else closes it.
        let this = Self(unsafe { File::from_raw_fd(fd) });
        let mut api = Api { api: VERSION, features, ioctls: 0 };
        this.issue(UFFDIO_API, &mut api).context("UFFDIO_API")?;
        Ok(this)
    }

    /// Waits for the next fault, and returns the address of its page.
    pub fn next(&self) -> Result<usize> {
        wait_readable(&self.0).context("waiting for a fault")?;
        let mut message = [0; MESSAGE];
        (&self.0).read_exact(&mut message)?;
        ensure_eq!(message[EVENT], EVENT_PAGEFAULT);
        let address = &message[ADDRESS..ADDRESS + size_of::<u64>()];
        let address = u64::from_ne_bytes(address.try_into().expect("8 bytes"));
        Ok(address as usize & !(PAGE_SIZE - 1))
    }

    /// Provides pages, and wakes up who waits for them.
    pub fn provide(&self, addr: usize, data: &[u8]) -> Result {
        let mut copy = Copy {
            dst: addr as u64,
            src: data.as_ptr().expose_provenance() as u64,
            len: data.len() as u64,
            mode: 0,
            copied: 0,
        };
        self.issue(UFFDIO_COPY, &mut copy).context("UFFDIO_COPY")?;
        ensure_eq!(copy.copied as usize, data.len());
        Ok(())
    }

    /// Moves pages to `dst`, where there must be none, and which is of the range. What is
    /// no page there is none here. On error, some may have been moved; how many, too.
    pub fn move_to(&self, dst: Pages, src: Pages) -> Result<(), (usize, Errno)> {
        assert_eq!(dst.count, src.count);
        let mut done = 0;
        for attempt in 1.. {
            let mut argument = Move {
                dst: dst.part(done..dst.count).addr as u64,
                src: src.part(done..src.count).addr as u64,
                len: src.part(done..src.count).bytes() as u64,
                mode: MODE_ALLOW_SRC_HOLES,
                moved: 0,
            };
            let result = self.issue(UFFDIO_MOVE, &mut argument);
            done += usize::try_from(argument.moved).unwrap_or(0) / PAGE_SIZE;
            match result {
                Ok(()) => break,
                Err(Errno::EAGAIN) if attempt < MOVE_ATTEMPTS => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                Err(errno) => return Err((done, errno)),
            }
        }
        Ok(())
    }

    fn issue<T>(&self, request: u32, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: Each request gets its own argument, see above, which outlives the call.
        // The pages that the kernel fills or moves are those of a `Mapping`, to which no
        // references exist.
        let ret = unsafe {
            ioctl_sys::ioctl(self.0.as_raw_fd(), request.into(), std::ptr::from_mut(argument))
        };
        Errno::result(ret).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use crate::{pagemap, pattern};

    #[test]
    fn provides_a_page() {
        let mapping = Mapping::small(2).unwrap();
        // Not everybody may.
        let Ok(faults) = UserFaults::on_missing(mapping.all()) else { return };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let addr = faults.next().unwrap();
                assert_eq!(addr, mapping.pages(1..2).addr);
                faults.provide(addr, &pattern::pages(1, 1, 3)).unwrap();
            });
            assert_eq!(mapping.check(1..2, 3), Ok(()));
        });
    }

    #[test]
    fn moves_pages() {
        let (from, to) = (Mapping::small(4).unwrap(), Mapping::small(4).unwrap());
        from.fill(0..2, 3);
        from.fill(3..4, 3);
        // Kernels before 6.8 have none of it.
        let Ok(tracking) = UserFaults::tracking(to.all()) else { return };
        tracking.move_to(to.all(), from.all()).unwrap();
        to.check(0..2, 3).unwrap();
        to.check(2..3, 0).unwrap();
        to.check(3..4, 3).unwrap();
        from.check(0..4, 0).unwrap();
        from.fill(0..4, 4);
        assert_eq!(tracking.move_to(to.all(), from.all()), Err((0, Errno::EEXIST)));
    }

    #[test]
    fn knows_what_was_written() {
        let mapping = Mapping::small(8).unwrap();
        mapping.fill(0..8, 1);
        let Ok(_tracking) = UserFaults::tracking(mapping.all()) else { return };
        assert_eq!(pagemap::take_written(mapping.all()).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        mapping.fill(2..3, 2);
        mapping.fill(5..7, 2);
        assert_eq!(pagemap::take_written(mapping.pages(1..8)).unwrap(), [1, 4, 5]);
        assert_eq!(pagemap::take_written(mapping.all()).unwrap(), []);
    }
}
