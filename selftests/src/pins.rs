// SPDX-License-Identifier: GPL-2.0
//! Pins: references to pages that keep them from being migrated.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use ioctl_sys::{io as io_request, iow};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::unistd::pipe;

use crate::failure::{Context, Result, skip};
use crate::pages::Pages;

const GUP_TEST: &str = "/sys/kernel/debug/gup_test";

/// Argument of `PIN_LONGTERM_TEST_START`.
#[repr(C)]
struct PinArgument {
    addr: u64,
    size: u64,
    flags: u32,
}

const GUP_TYPE: u8 = b'g';
const PIN_LONGTERM_TEST_START: u32 = iow!(GUP_TYPE, 7, size_of::<PinArgument>());
const PIN_LONGTERM_TEST_STOP: u32 = io_request!(GUP_TYPE, 8);
const PIN_LONGTERM_TEST_READ: u32 = iow!(GUP_TYPE, 9, size_of::<u64>());

/// The kernel's `gup_test`, through which pages are pinned.
#[derive(Debug)]
pub struct GupTest(File);

impl GupTest {
    /// Opens it; skips the test if the kernel has no `gup_test` or debugfs is not
    /// mounted. One holds the pins of at most one [`LongtermPin`].
    pub fn open() -> Result<Self> {
        match OpenOptions::new().read(true).write(true).open(GUP_TEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                skip(format!("no {GUP_TEST}: CONFIG_GUP_TEST, debugfs"))
            }
            result => result.context(GUP_TEST).map(Self),
        }
    }

    /// Pins for the long term, as RDMA does. `is_write`: for writing by the device.
    /// `is_fast`: by the path that takes no lock.
    pub fn pin(
        &self,
        pages: Pages,
        is_write: bool,
        is_fast: bool,
    ) -> Result<LongtermPin<'_>, Errno> {
        let flags = u32::from(is_write) | (u32::from(is_fast) << 1);
        let argument = PinArgument { addr: pages.addr as u64, size: pages.bytes() as u64, flags };
        self.issue(PIN_LONGTERM_TEST_START, std::ptr::from_ref(&argument).expose_provenance())?;
        Ok(LongtermPin { gup_test: self, pages })
    }

    fn issue(&self, request: u32, argument: usize) -> Result<(), Errno> {
        // SAFETY: `argument` points to what each request takes, see the callers.
        let ret = unsafe { ioctl_sys::ioctl(self.0.as_raw_fd(), request.into(), argument) };
        Errno::result(ret).map(drop)
    }
}

/// Pages pinned for the long term until it is dropped.
#[derive(Debug)]
pub struct LongtermPin<'a> {
    gup_test: &'a GupTest,
    pages: Pages,
}

impl LongtermPin<'_> {
    /// Contents of the pinned pages, which need not be mapped any more.
    pub fn contents(&self) -> Result<Vec<u8>, Errno> {
        let mut data = vec![0u8; self.pages.bytes()];
        let addr = data.as_mut_ptr().expose_provenance() as u64;
        let argument = std::ptr::from_ref(&addr).expose_provenance();
        self.gup_test.issue(PIN_LONGTERM_TEST_READ, argument)?;
        Ok(data)
    }
}

impl Drop for LongtermPin<'_> {
    fn drop(&mut self) {
        self.gup_test.issue(PIN_LONGTERM_TEST_STOP, 0).expect("unpinning cannot fail");
    }
}

/// Pages referenced by a pipe (vmsplice(2)) until it is dropped.
#[derive(Debug)]
pub struct PipePin {
    reader: File,
    _writer: OwnedFd,
    pages: Pages,
}

impl PipePin {
    /// Puts the pages into a pipe of their own.
    pub fn new(pages: Pages) -> Result<Self> {
        let (reader, writer) = pipe()?;
        let slots = i32::try_from(pages.bytes())?;
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(slots)).context("F_SETPIPE_SZ")?;
        let vector = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(pages.addr),
            iov_len: pages.bytes(),
        };
        // SAFETY: The kernel checks the range, and only references its pages.
        let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &vector, 1, 0) };
        let spliced = Errno::result(spliced).context("vmsplice")?;
        crate::ensure_eq!(spliced as usize, pages.bytes());
        Ok(Self { reader: reader.into(), _writer: writer, pages })
    }

    /// Contents of the pages; this gives them up.
    pub fn into_contents(mut self) -> io::Result<Vec<u8>> {
        let mut data = vec![0; self.pages.bytes()];
        self.reader.read_exact(&mut data)?;
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use crate::pages::PAGE_SIZE;
    use crate::pattern;

    #[test]
    fn a_pipe_keeps_the_pages() {
        let mapping = Mapping::small(20).unwrap();
        mapping.fill(0..20, 1);
        let pin = PipePin::new(mapping.all()).unwrap();
        drop(mapping);
        let data = pin.into_contents().unwrap();
        assert_eq!(data.len(), 20 * PAGE_SIZE);
        assert_eq!(pattern::check(&data, 0, 1), Ok(()));
    }
}
