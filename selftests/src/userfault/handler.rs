// SPDX-License-Identifier: GPL-2.0
//! A userfaultfd for any ranges, whose faults somebody else answers.

use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Read;
use std::os::fd::AsFd;

use super::{
    ADDRESS, FEATURE_MOVE, FEATURE_WP_UNPOPULATED, MESSAGE, MODE_MISSING, MODE_WP, Register, TYPE,
    UFFDIO_REGISTER, UserFaults,
};
use crate::failure::Result;
use crate::pages::{PAGE_SIZE, Pages};
use ioctl_sys::{ior, iorw};

/// Argument of `UFFDIO_UNREGISTER` and `UFFDIO_WAKE`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// Argument of `UFFDIO_ZEROPAGE`.
#[repr(C)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    zeroed: i64,
}

/// Argument of `UFFDIO_WRITEPROTECT`.
#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

const UFFDIO_UNREGISTER: u32 = ior!(TYPE, 0x01, size_of::<Range>());
const UFFDIO_WAKE: u32 = ior!(TYPE, 0x02, size_of::<Range>());
const UFFDIO_ZEROPAGE: u32 = iorw!(TYPE, 0x04, size_of::<ZeroPage>());
const UFFDIO_WRITEPROTECT: u32 = iorw!(TYPE, 0x06, size_of::<WriteProtect>());
const PROTECT: u64 = 1 << 0;
/// Where in a message the flags are, and the one for a page that is write-protected.
const FLAGS: usize = 8;
const IS_WP: u8 = 1 << 1;

impl Range {
    fn of(pages: Pages) -> Self {
        Self { start: pages.addr as u64, len: pages.bytes() as u64 }
    }
}

/// Ranges come and go; whoever faults in one waits for [`answer`](Self::answer).
#[derive(Debug)]
pub struct Handler(UserFaults);

impl Handler {
    /// One without ranges.
    pub fn new() -> Result<Self> {
        // Who waits may be killed, and then there is nothing to read.
        UserFaults::open(FEATURE_WP_UNPOPULATED | FEATURE_MOVE, libc::O_NONBLOCK).map(Self)
    }

    /// Adds a range, of whose pages faults wait that are missing, or write-protected, or both.
    pub fn register(&self, pages: Pages, missing: bool, wp: bool) -> Result<(), Errno> {
        let mode = if missing { MODE_MISSING } else { 0 } | if wp { MODE_WP } else { 0 };
        let (start, len) = (pages.addr as u64, pages.bytes() as u64);
        self.0.issue(UFFDIO_REGISTER, &mut Register { start, len, mode, ioctls: 0 })
    }

    /// Takes a range away.
    pub fn unregister(&self, pages: Pages) -> Result<(), Errno> {
        self.0.issue(UFFDIO_UNREGISTER, &mut Range::of(pages))
    }

    /// Protects pages from being written to, or undoes that.
    pub fn protect(&self, pages: Pages, on: bool) -> Result<(), Errno> {
        let Range { start, len } = Range::of(pages);
        let mode = if on { PROTECT } else { 0 };
        self.0.issue(UFFDIO_WRITEPROTECT, &mut WriteProtect { start, len, mode })
    }

    /// Moves pages.
    pub fn move_to(&self, dst: Pages, src: Pages) -> Result<(), Errno> {
        self.0.move_to(dst, src).map_err(|(_, errno)| errno)
    }

    /// Waits a while for a fault, and lets whoever waits go on: with what `contents` gives for
    /// the page, or zeroes if that is nothing.
    pub fn answer(&self, contents: impl FnOnce(usize) -> Option<Vec<u8>>) -> Result {
        const WHILE: Duration = Duration::from_millis(50);
        let mut fds = [PollFd::new(self.0.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(WHILE).expect("short");
        if poll(&mut fds, timeout).unwrap_or(0) == 0 {
            return Ok(());
        }
        let mut message = [0; MESSAGE];
        if (&self.0.0).read_exact(&mut message).is_err() {
            // The one who waited has gone.
            return Ok(());
        }
        let address = &message[ADDRESS..ADDRESS + size_of::<u64>()];
        let addr = u64::from_ne_bytes(address.try_into().expect("8 bytes")) as usize;
        let page = Pages { addr: addr & !(PAGE_SIZE - 1), count: 1 };
        let result = if message[FLAGS] & IS_WP != 0 {
            self.protect(page, false)
        } else if let Some(data) = contents(page.addr) {
            self.0.provide(page.addr, &data).map_err(|_| Errno::EIO)
        } else {
            let Range { start, len } = Range::of(page);
            self.0.issue(UFFDIO_ZEROPAGE, &mut ZeroPage { start, len, mode: 0, zeroed: 0 })
        };
        if result.is_err() {
            // It has changed meanwhile. Whoever waits may look again.
            self.0.issue(UFFDIO_WAKE, &mut Range::of(page))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use crate::pattern;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn answers_faults_of_both_kinds() {
        let mapping = Mapping::small(4).unwrap();
        // Not everybody may, nor does every kernel have it.
        let Ok(handler) = Handler::new() else { return };
        handler.register(mapping.all(), true, true).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let data = |addr| (addr == mapping.all().addr).then(|| pattern::pages(0, 1, 3));
                while !is_over.load(Ordering::Relaxed) {
                    handler.answer(data).unwrap();
                }
            });
            assert_eq!(mapping.check(0..1, 3), Ok(()));
            assert_eq!(mapping.check(1..2, 0), Ok(()));
            handler.protect(mapping.pages(0..2), true).unwrap();
            mapping.fill(0..2, 4);
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(mapping.check(0..2, 4), Ok(()));
        handler.unregister(mapping.all()).unwrap();
        assert_eq!(mapping.check(2..4, 0), Ok(()));
    }
}
