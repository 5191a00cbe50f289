// SPDX-License-Identifier: GPL-2.0
//! What holds for pages that are registered with whomever, so that others transfer from and to
//! them.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Uid, setuid};

use super::{COUNT, ensure_usable, on_device, pfns};
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE, Pages};
use crate::pattern;
use crate::process::{Child, Gate, PATIENCE};
use crate::tests::Context;
use crate::tests::support::{ensure_device_reads, migrate, migrate_back};
use crate::uapi::{MemoryType, prot};
use crate::{ensure_eq, ensure_errno, fail};

/// Somebody who may not lock more memory than the limit says.
const NOBODY: Uid = Uid::from_raw(65534);

/// With whom pages are registered.
pub trait Registrar: Sized {
    /// Pages that are registered until it is dropped.
    type Buffer<'a>
    where
        Self: 'a;

    /// Whether pages may stay pinned for a while after the buffer's end.
    const UNPINS_LATER: bool;

    /// Skips the test if there is none.
    fn new() -> Result<Self>;

    /// Registers pages, the only ones at this time.
    fn register(&self, pages: Pages) -> Result<Self::Buffer<'_>, Errno>;
}

/// The other end of transfers.
pub trait Partner<Buffer> {
    /// What arrives there when all of the buffer is transferred.
    fn receive(&self, buffer: &Buffer) -> Result<Vec<u8>>;

    /// Fills all of the buffer with pages of this generation.
    fn send(&self, buffer: &Buffer, generation: u32) -> Result;
}

/// What was huge pages before it was migrated, of generation 1 on the device.
pub fn huge_on_device(device: &Device) -> Result<Mapping> {
    let mapping = Mapping::huge(2 * HUGE_PAGES)?;
    mapping.fill(0..mapping.count(), 1);
    migrate(device, &mapping, 0..mapping.count(), 1)?;
    Ok(mapping)
}

/// What is registered can be transferred, and stays in its place until it is not any more.
pub fn transfers<'a, R: Registrar>(
    ctx: &Context,
    device: &Device,
    mapping: &Mapping,
    registrar: &'a R,
    partner: &impl Partner<R::Buffer<'a>>,
) -> Result {
    let count = mapping.count();
    let place = match ctx.memory_type {
        MemoryType::Generic => ctx.local_write(),
        MemoryType::Private | MemoryType::Coherent => prot::WRITE,
    };
    let ensure_received = |buffer: &R::Buffer<'a>, generation| -> Result {
        let data = partner.receive(buffer)?;
        ensure_eq!(data.len(), mapping.all().bytes());
        Ok(pattern::check(&data, 0, generation)?)
    };
    for generation in [1, 5] {
        ensure_place(device, mapping.all(), ctx.local_write())?;
        let before = pfns(mapping.all())?;
        let buffer = registrar.register(mapping.all()).context("registering the buffer")?;
        ensure_place(device, mapping.all(), place)?;
        let pinned = pfns(mapping.all())?;
        if ctx.memory_type == MemoryType::Generic {
            ensure_eq!(pinned, before);
        }

        // From the pages, with what was in them, and with what the CPU writes.
        ensure_received(&buffer, generation)?;
        mapping.fill(0..count, generation + 1);
        ensure_received(&buffer, generation + 1)?;
        // To the pages, where CPU and device find it.
        partner.send(&buffer, generation + 2)?;
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
        ensure_received(&buffer, generation + 3)?;
        drop(buffer);

        release::<R>(device)?;
        ensure_place(device, mapping.all(), prot::WRITE)?;
        mapping.check(0..count, generation + 3)?;
        // What nobody has received yet.
        mapping.fill(0..count, generation + 4);
        migrate_unregistered::<R>(device, mapping, generation + 4)?;
    }
    device.release()?;
    Ok(())
}

/// When a process is killed, its pins end as well.
pub fn killed<R: Registrar>(ctx: &Context) -> Result {
    // A child cannot skip the test.
    drop(R::new()?);
    let device = ctx.device(0)?;
    let frame = Mapping::shared(1)?;
    let registered = Gate::new()?;
    let child = Child::fork(|| {
        let device = ctx.device(0)?;
        let mapping = on_device(&device)?;
        frame.write(0, 0, pfns(mapping.all())?[COUNT / 2]);
        let registrar = R::new()?;
        let _buffer = registrar.register(mapping.all()).context("registering the buffer")?;
        registered.open()?;
        loop {
            nix::unistd::pause();
        }
    })?;
    if let Err(failure) = registered.pass() {
        // As the child did, if that is why.
        return if child.ends_within(Duration::ZERO) { child.join() } else { Err(failure) };
    }
    if ctx.memory_type == MemoryType::Generic {
        ensure_errno!(device.release(), Errno::EBUSY);
    }
    child.kill()?;
    release::<R>(&device)?;
    if ctx.memory_type == MemoryType::Private {
        return Ok(());
    }
    ensure_usable(&device, frame.read(0, 0), |_| Ok(()))
}

/// Without the right to lock memory, no more can be registered than the limit says. What is
/// refused is not pinned.
pub fn memlock<R: Registrar>(ctx: &Context) -> Result {
    const LIMIT: usize = COUNT / 2;

    drop(R::new()?);
    // What a process has become nobody, it cannot undo.
    Child::fork(|| {
        let device = ctx.device(0)?;
        let mapping = on_device(&device)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, bytes(LIMIT), bytes(LIMIT))?;
        setuid(NOBODY)?;
        let registrar = R::new()?;
        ensure_errno!(registrar.register(mapping.all()).map(drop), Errno::ENOMEM);
        device.release()?;
        ensure_place(&device, mapping.all(), prot::WRITE)?;
        mapping.check(0..COUNT, 1)?;

        migrate(&device, &mapping, 0..COUNT, 1)?;
        let buffer = registrar.register(mapping.pages(0..LIMIT)).context("as much as the limit")?;
        let other = R::new()?;
        let one_more = mapping.pages(LIMIT..LIMIT + 1);
        ensure_errno!(other.register(one_more).map(drop), Errno::ENOMEM);
        drop(buffer);
        drop(other.register(one_more).context("when there is room again")?);
        release::<R>(&device)?;
        mapping.check(0..COUNT, 1)?;
        Ok(())
    })?
    .join()
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

/// Until when pages may stay pinned that are not registered any more.
fn end_of_patience<R: Registrar>() -> Instant {
    Instant::now() + if R::UNPINS_LATER { PATIENCE } else { Duration::ZERO }
}

/// Migrates all pages to the device, which are not registered any more.
fn migrate_unregistered<R: Registrar>(
    device: &Device,
    mapping: &Mapping,
    generation: u32,
) -> Result {
    let end = end_of_patience::<R>();
    loop {
        let result = migrate(device, mapping, 0..mapping.count(), generation);
        if result.is_ok() || Instant::now() > end {
            return result;
        }
        // What is still pinned in system memory stays there, and others may not.
        device.release()?;
        thread::sleep(Duration::from_millis(10));
    }
}

/// Evicts all pages, which are not registered any more.
fn release<R: Registrar>(device: &Device) -> Result {
    let end = end_of_patience::<R>();
    while let Err(errno) = device.release() {
        ensure_eq!(errno, Errno::EBUSY);
        if Instant::now() > end {
            fail!("pages are still pinned");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn bytes(pages: usize) -> u64 {
    (pages * PAGE_SIZE) as u64
}
