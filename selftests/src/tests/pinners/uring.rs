// SPDX-License-Identifier: GPL-2.0
//! Buffers registered with `io_uring`, from and to which a disk transfers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::libc;

use super::on_device;
use super::registered::{self, Partner, Registrar, huge_on_device};
use crate::failure::{Context as _, Result, skip};
use crate::pages::Pages;
use crate::pattern;
use crate::tests::Context;
use crate::uring::{RegisteredBuffer, Ring};

const DISK: &str = "/dev/ram0";

impl Registrar for Ring {
    type Buffer<'a> = RegisteredBuffer<'a>;

    // A transfer that a worker has done has a reference on the buffer for longer than the program
    // waits, and a worker cleans up the rings of who was killed.
    const UNPINS_LATER: bool = true;

    fn new() -> Result<Self> {
        Ring::new()
    }

    fn register(&self, pages: Pages) -> Result<RegisteredBuffer<'_>, Errno> {
        Ring::register(self, pages)
    }
}

/// A disk that transfers from and to pages in memory directly, and the same as others see it.
struct Disk {
    direct: File,
    file: File,
}

impl Disk {
    fn open() -> Result<Self> {
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(DISK);
        match open(libc::O_DIRECT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                skip(format!("no {DISK}: CONFIG_BLK_DEV_RAM"))
            }
            direct => Ok(Self { direct: direct.context(DISK)?, file: open(0).context(DISK)? }),
        }
    }
}

impl Partner<RegisteredBuffer<'_>> for Disk {
    fn receive(&self, buffer: &RegisteredBuffer<'_>) -> Result<Vec<u8>> {
        buffer.write_to(&self.direct)?;
        let mut data = vec![0; buffer.pages().bytes()];
        self.file.read_exact_at(&mut data, 0)?;
        Ok(data)
    }

    fn send(&self, buffer: &RegisteredBuffer<'_>, generation: u32) -> Result {
        self.file.write_all_at(&pattern::pages(0, buffer.pages().count, generation), 0)?;
        buffer.read_from(&self.direct)
    }
}

/// Small pages.
pub fn uring(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    registered::transfers(ctx, &device, &on_device(&device)?, &Ring::new()?, &Disk::open()?)
}

/// What was huge pages before it was migrated.
pub fn uring_huge(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    registered::transfers(ctx, &device, &huge_on_device(&device)?, &Ring::new()?, &Disk::open()?)
}

/// When a process is killed, its pins end as well.
pub fn uring_killed(ctx: &mut Context) -> Result {
    registered::killed::<Ring>(ctx)
}

/// No more can be registered than the limit says, which is the user's.
pub fn uring_memlock(ctx: &mut Context) -> Result {
    registered::memlock::<Ring>(ctx)
}
