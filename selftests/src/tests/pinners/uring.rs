// SPDX-License-Identifier: GPL-2.0
//! Buffers registered with `io_uring`, from and to which a disk transfers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Uid, setuid};

use super::{COUNT, ensure_usable, on_device, pfns};
use crate::device::Device;
use crate::failure::{Context as _, Result, skip};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE, Pages};
use crate::pattern;
use crate::process::{Child, Gate, PATIENCE};
use crate::tests::Context;
use crate::tests::support::{ensure_device_reads, migrate, migrate_back};
use crate::uapi::{MemoryType, prot};
use crate::uring::Ring;
use crate::{ensure_eq, ensure_errno, fail};

const DISK: &str = "/dev/ram0";
/// Somebody who may not lock more memory than the limit says.
const NOBODY: Uid = Uid::from_raw(65534);

/// A disk that transfers from and to pages in memory directly, and the same as others see it.
fn disk() -> Result<(File, File)> {
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(DISK);
    match open(libc::O_DIRECT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skip(format!("no {DISK}: CONFIG_BLK_DEV_RAM"))
        }
        direct => Ok((direct.context(DISK)?, open(0).context(DISK)?)),
    }
}

/// Checks where pages are, by bits of the snapshot, in whatever sizes.
#[track_caller]
fn ensure_place(device: &Device, pages: Pages, place: u8) -> Result {
    let mut found = device.snapshot(pages).context("snapshot")?;
    for byte in &mut found {
        *byte &= !(prot::PMD | prot::PUD);
    }
    ensure_eq!(found, vec![place; pages.count]);
    Ok(())
}

/// Small pages.
pub fn uring(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    transfers(ctx, &device, &on_device(&device)?)
}

/// What was huge pages before it was migrated.
pub fn uring_huge(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(2 * HUGE_PAGES)?;
    mapping.fill(0..mapping.count(), 1);
    migrate(&device, &mapping, 0..mapping.count(), 1)?;
    transfers(ctx, &device, &mapping)
}

/// What is registered can be transferred, and stays in its place until it is not any more.
fn transfers(ctx: &Context, device: &Device, mapping: &Mapping) -> Result {
    let (direct, file) = disk()?;
    let ring = Ring::new()?;
    let count = mapping.count();
    let on_disk = || {
        let mut data = vec![0; count * PAGE_SIZE];
        file.read_exact_at(&mut data, 0).map(|()| data)
    };
    let place = match ctx.memory_type {
        MemoryType::Generic => ctx.local_write(),
        MemoryType::Private | MemoryType::Coherent => prot::WRITE,
    };
    for generation in [1, 4] {
        ensure_place(device, mapping.all(), ctx.local_write())?;
        let before = pfns(mapping.all())?;
        let buffer = ring.register(mapping.all()).context("registering the buffer")?;
        ensure_place(device, mapping.all(), place)?;
        let pinned = pfns(mapping.all())?;
        if ctx.memory_type == MemoryType::Generic {
            ensure_eq!(pinned, before);
        }

        // From the pages to the disk, with what was in them, and with what the CPU writes.
        buffer.write_to(&direct)?;
        pattern::check(&on_disk()?, 0, generation)?;
        mapping.fill(0..count, generation + 1);
        buffer.write_to(&direct)?;
        pattern::check(&on_disk()?, 0, generation + 1)?;
        // From the disk to the pages, where CPU and device find it.
        file.write_all_at(&pattern::pages(0, count, generation + 2), 0)?;
        buffer.read_from(&direct)?;
        mapping.check(0..count, generation + 2)?;
        ensure_device_reads(device, mapping, 0..count, generation + 2)?;

        if ctx.memory_type == MemoryType::Generic {
            migrate_back(device, mapping.all(), 0)?;
            ensure_errno!(device.release(), Errno::EBUSY);
        } else {
            ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
            device.release()?;
        }
        ensure_place(device, mapping.all(), place)?;
        ensure_eq!(pfns(mapping.all())?, pinned);
        mapping.fill(0..count, generation + 3);
        buffer.write_to(&direct)?;
        pattern::check(&on_disk()?, 0, generation + 3)?;
        drop(buffer);

        release_soon(device)?;
        ensure_place(device, mapping.all(), prot::WRITE)?;
        mapping.check(0..count, generation + 3)?;
        migrate(device, mapping, 0..count, generation + 3)?;
    }
    device.release()?;
    Ok(())
}

/// Evicts all pages. They are unpinned some time after the buffer's end: a transfer that a worker
/// has done has a reference on the buffer for longer than the program waits.
fn release_soon(device: &Device) -> Result {
    let end = Instant::now() + PATIENCE;
    while let Err(errno) = device.release() {
        ensure_eq!(errno, Errno::EBUSY);
        if Instant::now() > end {
            fail!("pages are still pinned");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// When a process is killed, its pins end as well.
pub fn uring_killed(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let frame = Mapping::shared(1)?;
    let registered = Gate::new()?;
    let child = Child::fork(|| {
        let device = ctx.device(0)?;
        let mapping = on_device(&device)?;
        frame.write(0, 0, pfns(mapping.all())?[COUNT / 2]);
        let ring = Ring::new()?;
        let _buffer = ring.register(mapping.all()).context("registering the buffer")?;
        registered.open()?;
        loop {
            nix::unistd::pause();
        }
    })?;
    registered.pass()?;
    if ctx.memory_type == MemoryType::Generic {
        ensure_errno!(device.release(), Errno::EBUSY);
    }
    child.kill()?;
    // Rings are cleaned up by a worker.
    release_soon(&device)?;
    if ctx.memory_type == MemoryType::Private {
        return Ok(());
    }
    ensure_usable(&device, frame.read(0, 0), |_| Ok(()))
}

/// Without the right to lock memory, no more can be registered than the limit says. What is
/// refused is not pinned.
pub fn uring_memlock(ctx: &mut Context) -> Result {
    const LIMIT: usize = COUNT / 2;

    let ctx = &*ctx;
    // What a process has become nobody, it cannot undo.
    Child::fork(|| {
        let device = ctx.device(0)?;
        let mapping = on_device(&device)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, bytes(LIMIT), bytes(LIMIT))?;
        setuid(NOBODY)?;
        let ring = Ring::new()?;
        ensure_errno!(ring.register(mapping.all()).map(drop), Errno::ENOMEM);
        device.release()?;
        ensure_place(&device, mapping.all(), prot::WRITE)?;
        mapping.check(0..COUNT, 1)?;

        migrate(&device, &mapping, 0..COUNT, 1)?;
        let buffer = ring.register(mapping.pages(0..LIMIT)).context("as much as the limit")?;
        let other_ring = Ring::new()?;
        let one_more = mapping.pages(LIMIT..LIMIT + 1);
        ensure_errno!(other_ring.register(one_more).map(drop), Errno::ENOMEM);
        drop(buffer);
        other_ring.register(one_more).context("when there is room again")?;
        release_soon(&device)?;
        mapping.check(0..COUNT, 1)?;
        Ok(())
    })?
    .join()
}

fn bytes(pages: usize) -> u64 {
    (pages * PAGE_SIZE) as u64
}
