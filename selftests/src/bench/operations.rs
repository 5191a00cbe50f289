// SPDX-License-Identifier: GPL-2.0
//! The operations that are measured.

use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use nix::errno::Errno;

use super::buffer::{Buffer, PageSize};
use super::meter::{Meter, Setup};
use crate::device::Device;
use crate::failure::{Context, Failure, Result};
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::process::Child;
use crate::uapi::{self, Cmd, MemoryType, prot};
use crate::uring::Ring;
use crate::{ensure, ensure_eq, iomem};

/// Pages that each of several files has on the device.
const PAGES_OF_FILE: usize = HUGE_PAGES;
/// What both drivers add to a device when it has no memory left, if the CPU cannot use that.
const PAGES_OF_CHUNK: usize = (256 << 20) / PAGE_SIZE;
/// Takes so little that one of it cannot be measured.
const OPENINGS: usize = 64;
/// Where the data that a thread reads back begins, in pages behind a multiple of 2 MB, which is
/// where that on the device does. An emulated TLB, which has one place for each address modulo its
/// size, would lose the one for the other at each step of a copy.
const SKEW_OF_DATA: usize = 37;

/// Pages that each of several threads migrates, so often there and back.
const PAGES_OF_THREAD: usize = 2 * HUGE_PAGES;
const MIGRATIONS: usize = 16;

/// What a snapshot says of the size of pages.
fn size_bits(page_size: PageSize) -> u8 {
    match page_size {
        PageSize::Small | PageSize::Large => 0,
        PageSize::Huge => prot::PMD,
    }
}

/// Has a device do what is measured.
#[derive(Debug)]
pub struct Bench<'a> {
    /// Of the device.
    pub memory_type: MemoryType,
    /// The device's.
    pub node: &'a Path,
    /// What was measured so far.
    pub meter: Meter,
}

/// A device that moves and accesses all pages of a buffer.
struct User<'a> {
    device: &'a Device,
    memory: &'a Buffer,
    /// What the device reads, and is given to write. As large as the memory.
    data: &'a Buffer,
}

impl User<'_> {
    /// Issues a command, and returns how many pages it did something with.
    fn issue(&self, request: u32) -> Result<u64, Errno> {
        let pages = self.memory.all();
        let mut cmd = Cmd {
            addr: pages.addr as u64,
            ptr: self.data.all().addr as u64,
            npages: pages.count as u64,
            ..Cmd::default()
        };
        self.device.raw(request, &mut cmd)?;
        Ok(cmd.cpages)
    }

    /// Issues a command, which must do something with each page if it counts them.
    fn command(&self, request: u32) -> Result {
        let pages = self.memory.all();
        let cpages = self.issue(request)?;
        let expected = if request == uapi::RELEASE { 0 } else { pages.count as u64 };
        // That of v7.3, which does not know its type, counts a huge page as one.
        let is_huge = |cpages| cpages * HUGE_PAGES as u64 == expected;
        if request == uapi::MIGRATE_TO_SYS && is_huge(cpages) {
            ensure!(self.device.mem_dev_type().is_err(), "each huge page counts as one");
            return Ok(());
        }
        ensure_eq!(cpages, expected);
        Ok(())
    }

    fn to_device(&self) -> Result {
        self.memory.check()?;
        self.command(uapi::MIGRATE_TO_DEV).context("to the device")
    }

    /// There and back, so that the device has memory.
    fn prepare(&self) -> Result {
        self.to_device()?;
        self.command(uapi::MIGRATE_TO_SYS).context("to system memory")
    }

    /// There and back several times, as soon as the others are ready, too. Returns when.
    fn migrate_after(&self, barrier: &Barrier) -> Result<(Instant, Instant)> {
        barrier.wait();
        let begin = Instant::now();
        for _ in 0..MIGRATIONS {
            // Each file observes all of the address space, where other threads migrate, too: the
            // driver in C gives up reading the pages back after a second of that.
            match self.issue(uapi::MIGRATE_TO_DEV) {
                Ok(_) | Err(Errno::EBUSY) => {}
                Err(error) => return Err(error).context("to the device"),
            }
            self.command(uapi::MIGRATE_TO_SYS).context("to system memory")?;
        }
        Ok((begin, Instant::now()))
    }
}

impl Bench<'_> {
    fn open(&self) -> Result<Device> {
        Device::open(self.node).context("opening a file")
    }

    /// Snapshot byte of a page on the device.
    fn on_device(&self, page_size: PageSize) -> u8 {
        self.memory_type.local() | prot::WRITE | size_bits(page_size)
    }

    /// Sizes of the pages that the device can have.
    pub fn page_sizes(&self) -> Result<Vec<PageSize>> {
        let mut sizes = Vec::new();
        for size in PageSize::ALL {
            let _settings = size.settings()?;
            let memory = &Buffer::new(size, HUGE_PAGES)?;
            let data = &Buffer::new(PageSize::Small, HUGE_PAGES)?;
            let user = User { device: &self.open()?, memory, data };
            user.to_device()?;
            user.command(uapi::SNAPSHOT)?;
            // Larger pages are split where the device has none.
            let is_whole = data.first_byte() == self.on_device(size);
            user.command(uapi::MIGRATE_TO_SYS)?;
            if is_whole && memory.check().is_ok() {
                sizes.push(size);
            }
        }
        Ok(sizes)
    }

    /// Everything that can be done with so many pages.
    pub fn one_file(&mut self, page_size: PageSize, pages: usize) -> Result {
        let _settings = page_size.settings()?;
        let setup = Setup::new(page_size, pages);
        let data = &Buffer::new(page_size, pages)?;
        self.migrations_and_accesses(setup, data)?;
        self.ends(setup, data)?;
        self.release_and_exclusive(setup, data)?;
        self.register(setup, data)
    }

    fn migrations_and_accesses(&mut self, setup: Setup, data: &Buffer) -> Result {
        let memory = &Buffer::new(setup.page_size, setup.pages)?;
        self.meter.measure("memcpy", setup, || {
            data.copy_from(memory);
            Ok(())
        })?;

        let device = &self.open()?;
        let user = User { device, memory, data };
        user.prepare()?;
        for (operation, request) in [
            ("to_device", uapi::MIGRATE_TO_DEV),
            ("snapshot", uapi::SNAPSHOT),
            ("device_read", uapi::READ),
            ("device_write", uapi::WRITE),
            ("to_system", uapi::MIGRATE_TO_SYS),
        ] {
            self.meter.measure(operation, setup, || user.command(request))?;
            if request == uapi::SNAPSHOT {
                data.check_snapshot(setup.pages, self.on_device(setup.page_size))?;
            }
        }
        if !self.memory_type.is_cpu_accessible() {
            user.to_device()?;
            self.meter.measure("cpu_fault", setup, || {
                memory.touch();
                Ok(())
            })?;
        }
        memory.check()
    }

    /// What becomes of pages on the device without its being asked.
    fn ends(&mut self, setup: Setup, data: &Buffer) -> Result {
        let memory = Buffer::new(setup.page_size, setup.pages)?;
        let device = self.open()?;
        User { device: &device, memory: &memory, data }.to_device()?;
        self.close(setup, device)?;

        let device = self.open()?;
        User { device: &device, memory: &memory, data }.to_device()?;
        self.meter.measure("unmap", setup, || {
            drop(memory);
            Ok(())
        })?;

        let memory = Buffer::new(setup.page_size, setup.pages)?;
        User { device: &device, memory: &memory, data }.to_device()?;
        self.meter.measure("fork", setup, || Child::fork(|| Ok(()))?.join())
    }

    fn close(&mut self, setup: Setup, device: Device) -> Result {
        self.meter.measure("close", setup, || {
            drop(device);
            Ok(())
        })
    }

    fn release_and_exclusive(&mut self, setup: Setup, data: &Buffer) -> Result {
        let memory = &Buffer::new(setup.page_size, setup.pages)?;
        let device = &self.open()?;
        let user = User { device, memory, data };
        user.to_device()?;
        self.meter.measure("release", setup, || user.command(uapi::RELEASE))?;
        memory.check()?;
        self.meter.measure("exclusive", setup, || user.command(uapi::EXCLUSIVE))
    }

    /// Has `io_uring` pin what is on the device. Generic memory stays there.
    fn register(&mut self, setup: Setup, data: &Buffer) -> Result {
        let ring = match Ring::new() {
            // The kernel has none.
            Err(Failure::Skipped(_)) => return Ok(()),
            ring => ring?,
        };
        let memory = &Buffer::new(setup.page_size, setup.pages)?;
        let device = &self.open()?;
        let user = User { device, memory, data };
        user.to_device()?;
        let registered = self
            .meter
            .measure("register", setup, || ring.register(memory.all()).context("io_uring"))?;
        user.command(uapi::SNAPSHOT)?;
        let stays = self.memory_type == MemoryType::Generic;
        let place = if stays { self.memory_type.local() } else { 0 };
        data.check_snapshot(setup.pages, place | prot::WRITE | size_bits(setup.page_size))?;
        drop(registered);
        if stays {
            user.command(uapi::MIGRATE_TO_SYS)?;
        }
        memory.check()
    }

    /// What one of several files costs that all have pages on the device.
    pub fn several_files(&mut self, page_size: PageSize, files: usize) -> Result {
        let _settings = page_size.settings()?;
        let data = &Buffer::new(page_size, PAGES_OF_FILE)?;
        let mut others = Vec::new();
        for _ in 1..files {
            let (device, memory) = (self.open()?, Buffer::new(page_size, PAGES_OF_FILE)?);
            User { device: &device, memory: &memory, data }.to_device()?;
            others.push((device, memory));
        }
        self.beside_others(Setup { files, ..Setup::new(page_size, PAGES_OF_FILE) }, data)
    }

    /// What a file with few pages costs where another one has many.
    pub fn several_chunks(&mut self, sizes: &[PageSize], chunks: usize) -> Result {
        let other = &self.open()?;
        other.release().context("no chunk is left")?;
        let before = iomem::device_regions()?.len();
        let mut memory_of_other = Vec::new();
        let data = Buffer::new(PageSize::Huge, PAGES_OF_CHUNK)?;
        for _ in 1..chunks {
            let memory = Buffer::new(PageSize::Huge, PAGES_OF_CHUNK)?;
            User { device: other, memory: &memory, data: &data }.to_device()?;
            memory_of_other.push(memory);
        }
        drop(data);
        for &page_size in sizes {
            let _settings = page_size.settings()?;
            let data = &Buffer::new(page_size, PAGES_OF_FILE)?;
            self.beside_others(Setup { chunks, ..Setup::new(page_size, PAGES_OF_FILE) }, data)?;
            ensure_eq!(iomem::device_regions()?.len() - before, chunks, "chunks of the device");
        }
        Ok(())
    }

    /// What opening a file costs, and one with [`PAGES_OF_FILE`].
    fn beside_others(&mut self, setup: Setup, data: &Buffer) -> Result {
        let none = Setup { pages: 0, ..setup };
        self.meter.measure("open_close", none, || {
            (1..=OPENINGS).try_for_each(|_| Device::open(self.node).map(drop))?;
            Ok(())
        })?;

        let memory = &Buffer::new(setup.page_size, setup.pages)?;
        let device = self.open()?;
        let user = User { device: &device, memory, data };
        user.prepare()?;
        for (operation, request) in [
            ("to_device", uapi::MIGRATE_TO_DEV),
            ("device_read", uapi::READ),
            ("to_system", uapi::MIGRATE_TO_SYS),
        ] {
            self.meter.measure(operation, setup, || user.command(request))?;
        }
        user.to_device()?;
        self.close(setup, device)?;
        memory.check()
    }

    /// How long threads take that begin together, and each migrate small pages of their own there
    /// and back, by turns with one of the files.
    pub fn several_threads(&mut self, threads: usize, files: usize) -> Result {
        let page_size = PageSize::Small;
        let setup = Setup { files, threads, ..Setup::new(page_size, PAGES_OF_THREAD) };
        let devices = (0..files).map(|_| self.open()).collect::<Result<Vec<_>>>()?;
        let buffers = (0..2 * threads)
            .map(|index| Buffer::skewed(PAGES_OF_THREAD, index % 2 * SKEW_OF_DATA))
            .collect::<Result<Vec<_>>>()?;
        let users: Vec<_> = buffers
            .chunks(2)
            .zip(devices.iter().cycle())
            .map(|(each, device)| User { device, memory: &each[0], data: &each[1] })
            .collect();
        // All of them before the first one comes back, so that the device has memory for all.
        users.iter().try_for_each(User::to_device)?;
        users.iter().try_for_each(|user| user.command(uapi::MIGRATE_TO_SYS))?;

        let barrier = &Barrier::new(threads);
        let times: Vec<_> = thread::scope(|scope| {
            let started: Vec<_> =
                users.iter().map(|user| scope.spawn(|| user.migrate_after(barrier))).collect();
            let joined = started.into_iter().map(|each| each.join().expect("it does not panic"));
            joined.collect::<Result<_>>()
        })?;
        let begin = times.iter().map(|(begin, _)| *begin).min().expect("there are threads");
        let end = times.iter().map(|(_, end)| *end).max().expect("there are threads");
        self.meter.note("migrate", setup, end - begin);
        buffers.iter().try_for_each(Buffer::check)
    }
}
