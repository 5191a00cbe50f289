// SPDX-License-Identifier: GPL-2.0
//! Random operations of which only the contents of memory are compared, and which pages
//! count as written. Another thread discards memory meanwhile, and ksmd merges.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use super::{CHECKED_IN_FULL, Coverage, SPARSE, WORDS};
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::model::Step;
use crate::model::contents::Contents;
use crate::model::memory::{Content, Shape};
use crate::model::operation::{Kind, Operation};
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::pattern::{self, MAX_GENERATION};
use crate::process::Child;
use crate::settings::{FastKsm, LargeFolios};
use crate::tests::Context;
use crate::userfault::UserFaults;
use crate::{fail, pagemap};

/// Four blocks: huge pages and folios of 64 KB, in turns.
pub const SHAPE: Shape = Shape { pages: 4 * HUGE_PAGES, skew: 0, has_huge_pages: true };
/// The other thread discards from here on.
const UNSAFE_FROM: usize = 2 * HUGE_PAGES;

/// What the kernel is told for all of the test.
pub struct Settings {
    _ksm: FastKsm,
    _folios: LargeFolios,
}

impl Settings {
    pub fn new() -> Result<Self> {
        Ok(Self {
            _ksm: FastKsm::new()?,
            _folios: LargeFolios::unless_advised(LargeFolios::PAGES_OF_64_KB)?,
        })
    }
}

/// Does operations while another thread discards memory.
pub fn run(ctx: &Context, shape: Shape, operations: &[Operation], coverage: &Coverage) -> Result {
    let mapping = Mapping::anonymous(shape.pages)?;
    for block in (0..shape.pages).step_by(2 * HUGE_PAGES) {
        mapping.madvise(block..block + HUGE_PAGES, MmapAdvise::MADV_HUGEPAGE)?;
    }
    let mut process = Process {
        ctx,
        tracking: UserFaults::tracking(mapping.all())?,
        mapping: &mapping,
        devices: [ctx.device(0)?, ctx.device(1)?],
        contents: Contents::new(shape.pages, UNSAFE_FROM),
        generation: 0,
    };
    let is_over = AtomicBool::new(false);
    let rng = fastrand::Rng::with_seed(ctx.seed);
    thread::scope(|scope| {
        let discarding = scope.spawn(|| discard(&mapping, rng, &is_over));
        let result = operations.iter().enumerate().try_for_each(|(number, operation)| {
            coverage.set_step(number);
            let step =
                process.step(operation).context(format!("operation {number}, {operation}"))?;
            coverage.count(operation.kind, step);
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        result.and(discarding.join().expect("no panic"))
    })
}

/// Discards what may be, again and again: all that a page table maps, or less.
fn discard(mapping: &Mapping, mut rng: fastrand::Rng, is_over: &AtomicBool) -> Result {
    while !is_over.load(Ordering::Relaxed) {
        let start =
            UNSAFE_FROM + rng.usize(0..(SHAPE.pages - UNSAFE_FROM) / HUGE_PAGES) * HUGE_PAGES;
        let range = match rng.u8(0..4) {
            0 => {
                let first = start + rng.usize(0..HUGE_PAGES);
                first..rng.usize(first..start + HUGE_PAGES) + 1
            }
            _ => start..start + HUGE_PAGES,
        };
        mapping.madvise(range, MmapAdvise::MADV_DONTNEED)?;
        match rng.u8(0..8) {
            // Long enough for something to be there.
            0 => thread::sleep(Duration::from_millis(rng.u64(0..5))),
            _ => (0..rng.u32(0..20_000)).for_each(|_| std::hint::spin_loop()),
        }
    }
    Ok(())
}

struct Process<'a> {
    ctx: &'a Context,
    tracking: UserFaults,
    mapping: &'a Mapping,
    devices: [Device; 2],
    contents: Contents,
    generation: u32,
}

impl Process<'_> {
    fn step(&mut self, operation: &Operation) -> Result<Step> {
        let Operation { kind, device, ref range, to } = *operation;
        let range = range.clone();
        let pages = self.mapping.pages(range.clone());
        self.generation = self.generation % MAX_GENERATION + 1;
        let block = range.start - range.start % HUGE_PAGES;
        let block = block..block + HUGE_PAGES;
        let result = match kind {
            Kind::CpuRead => {
                self.check_mapping(range)?;
                Ok(())
            }
            Kind::CpuWrite | Kind::CpuWriteSame => {
                let same = kind == Kind::CpuWriteSame;
                for page in range {
                    self.cpu_write(page, if same { 0 } else { page });
                }
                Ok(())
            }
            Kind::DeviceRead => self.read(self.devices[device].read(pages), range)?,
            Kind::DeviceReadUnlocked => {
                self.read(self.devices[device].read_unlocked(pages), range)?
            }
            Kind::ToDevice => self.read(self.devices[device].migrate_to_dev(pages), range)?,
            Kind::Exclusive => self.read(self.devices[device].exclusive(pages), range)?,
            Kind::DeviceWrite => self.device_write(device, range),
            Kind::ToSystem => self.devices[device].migrate_to_sys(pages).map(drop),
            Kind::Release => self.devices[device].release(),
            Kind::Reopen => {
                // Another open device does not do for the one that is closed.
                let closed = Device::open("/dev/null".as_ref())?;
                drop(std::mem::replace(&mut self.devices[device], closed));
                self.devices[device] = self.ctx.device(device)?;
                Ok(())
            }
            Kind::Fork => {
                self.fork(range)?;
                Ok(())
            }
            Kind::DontNeed => {
                self.mapping.madvise(range.clone(), MmapAdvise::MADV_DONTNEED)?;
                self.contents.discard(range);
                Ok(())
            }
            Kind::Merge => self.mapping.madvise(block, MmapAdvise::MADV_MERGEABLE),
            Kind::Unmerge => self.mapping.madvise(block, MmapAdvise::MADV_UNMERGEABLE),
            Kind::TakeWritten => {
                let found = pagemap::take_written(pages).context("PAGEMAP_SCAN")?;
                let found: Vec<_> = found.into_iter().map(|page| range.start + page).collect();
                if let Some(page) = self.contents.take_written(range, &found) {
                    fail!("page {page} was written, and does not count as such");
                }
                Ok(())
            }
            Kind::MoveByUser => return self.move_by_user(range, to),
            Kind::Collapse => self.mapping.collapse(block),
            _ => unreachable!("{kind:?} is not generated"),
        };
        match result {
            Err(errno) if !self.may_fail(kind, errno) => Err(errno)?,
            result => Ok(Step::Done(result)),
        }
    }

    /// Whether an operation may fail so, with others at work on the same pages.
    fn may_fail(&self, kind: Kind, errno: Errno) -> bool {
        match kind {
            Kind::ToDevice | Kind::Exclusive => matches!(errno, Errno::ENOENT | Errno::EBUSY),
            Kind::DeviceRead | Kind::DeviceReadUnlocked | Kind::DeviceWrite | Kind::Release => {
                errno == Errno::EBUSY
            }
            // It does not take what is on a device, shared, or held by somebody.
            Kind::Collapse => {
                matches!(errno, Errno::EINVAL | Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM)
            }
            // Shared, held, or entries of the page table that are no pages: device-private
            // memory, and protected holes.
            Kind::MoveByUser => matches!(errno, Errno::EBUSY | Errno::EAGAIN | Errno::EFAULT),
            _ => false,
        }
    }

    fn check(&self, range: Range<usize>, word: impl Fn(usize, usize) -> u64) -> Result {
        let step = if range.len() > CHECKED_IN_FULL { SPARSE } else { 1 };
        for page in range {
            for index in (0..WORDS).step_by(step).chain([WORDS - 1]) {
                self.contents
                    .check(page, index, word(page, index))
                    .context(format!("page {page}"))?;
            }
        }
        Ok(())
    }

    fn check_mapping(&self, range: Range<usize>) -> Result {
        self.check(range, |page, index| self.mapping.read(page, index))
    }

    /// Checks what a device has read.
    fn read(
        &self,
        result: std::result::Result<crate::device::Data, Errno>,
        range: Range<usize>,
    ) -> Result<std::result::Result<(), Errno>> {
        let data = match result {
            Ok(data) => data.data,
            Err(errno) => return Ok(Err(errno)),
        };
        self.check(range.clone(), |page, index| {
            let at = (page - range.start) * PAGE_SIZE + index * size_of::<u64>();
            u64::from_ne_bytes(data[at..at + size_of::<u64>()].try_into().expect("8 bytes"))
        })?;
        Ok(Ok(()))
    }

    fn cpu_write(&mut self, page: usize, as_page: usize) {
        let content = Content { page: as_page, generation: self.generation };
        for index in 0..WORDS {
            self.mapping.write(page, index, pattern::word(as_page, self.generation, index));
        }
        self.contents.write(page, content);
    }

    fn device_write(
        &mut self,
        device: usize,
        range: Range<usize>,
    ) -> std::result::Result<(), Errno> {
        let data = pattern::pages(range.start, range.len(), self.generation);
        let result = self.devices[device].write(self.mapping.pages(range.clone()), &data);
        for page in range {
            if result.is_err() {
                // It may have written some of it.
                self.cpu_write(page, page);
            }
            self.contents.write(page, Content { page, generation: self.generation });
        }
        result.map(drop)
    }

    fn fork(&self, written: Range<usize>) -> Result {
        Child::fork(|| {
            self.check_mapping(0..SHAPE.pages)?;
            self.mapping.fill(written.clone(), self.generation);
            self.mapping.check(written, self.generation)?;
            Ok(())
        })?
        .join()
    }

    /// Within what no other thread discards, and what is not huge only because it is large.
    fn move_by_user(&mut self, range: Range<usize>, to: usize) -> Result<Step> {
        let target = to..to + range.len();
        let is_apart = target.end <= range.start || range.end <= target.start;
        // Blocks are VMAs of their own.
        let is_in_block =
            |pages: &Range<usize>| pages.start / HUGE_PAGES == (pages.end - 1) / HUGE_PAGES;
        if !is_apart
            || target.end.max(range.end) > UNSAFE_FROM
            || !is_in_block(&target)
            || !is_in_block(&range)
        {
            return Ok(Step::LeftOut);
        }
        self.mapping.madvise(target.clone(), MmapAdvise::MADV_DONTNEED)?;
        self.contents.discard(target.clone());
        let (dst, src) = (self.mapping.pages(target), self.mapping.pages(range.clone()));
        let result = self.tracking.move_to(dst, src);
        let moved = result.map_or_else(|(moved, _)| moved, |()| range.len());
        self.contents.move_pages(range.start..range.start + moved, to);
        match result {
            Err((_, errno)) if !self.may_fail(Kind::MoveByUser, errno) => Err(errno)?,
            result => Ok(Step::Done(result.map_err(|(_, errno)| errno))),
        }
    }
}
