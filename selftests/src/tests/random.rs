// SPDX-License-Identifier: GPL-2.0
//! Random sequences of operations, compared with a [model](crate::model).

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};

use super::support::DEFECT_5;
use super::{Context, Exception, Test};
use crate::device::Device;
use crate::failure::{Context as _, Failure, Result};
use crate::memory::Mapping;
use crate::model::generator::Generator;
use crate::model::memory::{Content, Shape};
use crate::model::operation::{Kind, Operation, Sequence};
use crate::model::shrink::shrink;
use crate::model::{Action, Counts, Model, NOTHING, Step, System};
use crate::pages::{HUGE_PAGES, PAGE_SIZE, Pages};
use crate::pattern::{self, Mismatch};
use crate::pins::{GupTest, LongtermPin, PipePin};
use crate::process::{Child, stay_on_one_cpu};
use crate::{pagemap, test};

mod contents;

/// Name of the group.
pub const GROUP: &str = "random";

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(small_pages).timeout(120).except(&[Exception::c(OTHER_WINDOWS)]),
    test!(huge_pages).timeout(120).except(&[Exception::c(OTHER_WINDOWS)]),
    test!(contents_under_fire).timeout(240).except(&[Exception::unpatched(DEFECT_5)]),
];

/// Why the tests are skipped with `test_hmm`: how much a failed write has written differs.
const OTHER_WINDOWS: &str = "test_hmm faults memory in by windows that the model does not know";

/// Operations of a test if the command line says nothing else.
const OPERATIONS: usize = 2000;

/// What the tests do.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RandomOptions {
    /// Operations in each test of the group `random`; its time limits grow with them
    /// [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub operations: Option<u32>,

    /// Instead of random operations, these: what a failed test of the group prints
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "operations")]
    pub replay: Option<Sequence>,
}

impl RandomOptions {
    /// How much longer than usual the tests may take.
    pub fn timeout_factor(&self) -> f64 {
        f64::max(1.0, self.count() as f64 / OPERATIONS as f64)
    }

    /// The same as arguments of the command line.
    pub fn arguments(&self) -> Vec<String> {
        let argument = |name: &str, value: String| [name.to_owned(), value];
        let operations = self.operations.map(|n| argument("--operations", n.to_string()));
        let replay = self.replay.as_ref().map(|s| argument("--replay", s.to_string()));
        operations.into_iter().chain(replay).flatten().collect()
    }

    fn count(&self) -> usize {
        self.operations.map_or(OPERATIONS, |n| n as usize)
    }
}

/// Some pages on either side of where the table of another PMD begins.
const SMALL: Shape = Shape { pages: 32, skew: HUGE_PAGES - 16, has_huge_pages: false };
const HUGE: Shape = Shape { pages: 2 * HUGE_PAGES, skew: 0, has_huge_pages: true };

/// Operations in a row, in a process of their own.
const EPISODE: usize = 250;
/// For one operation: a debug kernel on a busy machine needs some seconds for the longest ones.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// For making a failing sequence short.
const SHRINK_LIMIT: Duration = Duration::from_secs(20);

/// More pages than this are checked by some words of each only.
const CHECKED_IN_FULL: usize = 32;
const WORDS: usize = PAGE_SIZE / size_of::<u64>();
const SPARSE: usize = 61;

fn small_pages(ctx: &mut Context) -> Result {
    run(ctx, SMALL)
}

fn huge_pages(ctx: &mut Context) -> Result {
    run(ctx, HUGE)
}

/// What both drivers do to all that memory can be: merged by KSM, tracked and moved by
/// userfaultfd, of folios of any size, and discarded by another thread.
fn contents_under_fire(ctx: &mut Context) -> Result {
    let _settings = contents::Settings::new()?;
    let plan =
        Plan { shape: contents::SHAPE, generator: Generator::for_contents, run: contents::run };
    run_all(ctx, plan)
}

/// Random operations of a kind.
#[derive(Clone, Copy)]
struct Plan {
    shape: Shape,
    generator: fn(u64, Shape) -> Generator,
    /// Does operations, in a process of their own.
    run: fn(&Context, Shape, &[Operation], &Coverage) -> Result,
}

fn run(ctx: &mut Context, shape: Shape) -> Result {
    // Skips the test here if there is none.
    drop(GupTest::open()?);
    run_all(ctx, Plan { shape, generator: Generator::new, run: run_modelled })
}

fn run_all(ctx: &mut Context, plan: Plan) -> Result {
    let coverage = Coverage::new()?;
    if let Some(Sequence(operations)) = &ctx.random.replay {
        return episode(ctx, plan, operations, &coverage);
    }
    let mut left = ctx.random.count();
    let start = Instant::now();
    while left > 0 {
        let count = left.min(EPISODE);
        let generator = (plan.generator)(ctx.rng.u64(..), plan.shape);
        let operations: Vec<_> = generator.take(count).collect();
        if let Err(failure) = episode(ctx, plan, &operations, &coverage) {
            return Err(shortened(ctx, plan, operations, failure)?);
        }
        left -= count;
    }
    println!("{:.0?}", start.elapsed());
    coverage.print();
    Ok(())
}

/// Runs operations on fresh memory in a process of their own.
fn episode(ctx: &Context, plan: Plan, operations: &[Operation], coverage: &Coverage) -> Result {
    coverage.set_step(0);
    let child = Child::fork(|| (plan.run)(ctx, plan.shape, operations, coverage))?;
    let mut before = None;
    while !child.ends_within(STEP_LIMIT) {
        let step = coverage.step();
        if before == Some(step) {
            // Now, as it may not even be possible to kill it.
            println!("hangs in the last operation of: {}", Sequence(operations[..=step].to_vec()));
            break;
        }
        before = Some(step);
    }
    child.join()
}

/// Compares a process with the model.
fn run_modelled(
    ctx: &Context,
    shape: Shape,
    operations: &[Operation],
    coverage: &Coverage,
) -> Result {
    stay_on_one_cpu()?;
    let mut process = Process::new(ctx, shape, coverage)?;
    let mut model = Model::new(ctx.memory_type, shape);
    for (number, operation) in operations.iter().enumerate() {
        coverage.set_step(number);
        let step = model
            .step(&mut process, operation)
            .context(format!("operation {number}, {operation}"))?;
        coverage.count(operation.kind, step);
    }
    Ok(())
}

/// The failure with a short sequence that leads to one.
fn shortened(
    ctx: &Context,
    plan: Plan,
    mut operations: Vec<Operation>,
    failure: Failure,
) -> Result<Failure> {
    let Failure::Failed(mut message) = failure else {
        return Ok(failure);
    };
    if kernel_has_oopsed()? {
        message += "\nnot run again, as the kernel has oopsed";
        end_of_message(&mut message, &operations);
        return Ok(Failure::Failed(message));
    }
    let coverage = Coverage::new()?;
    let end = Instant::now() + SHRINK_LIMIT;
    // Without what came after it, which is known if it is no crash.
    if episode(ctx, plan, &operations, &coverage).is_err() {
        operations.truncate(coverage.step() + 1);
    } else {
        message += "\nnot reproduced when run again";
        end_of_message(&mut message, &operations);
        return Ok(Failure::Failed(message));
    }
    let short = shrink(&operations, |operations| {
        (Instant::now() < end).then(|| match episode(ctx, plan, operations, &coverage) {
            Err(failure) => {
                message = failure.to_string();
                true
            }
            Ok(()) => false,
        })
    });
    end_of_message(&mut message, &short);
    Ok(Failure::Failed(message))
}

fn kernel_has_oopsed() -> Result<bool> {
    const TAINT_DIE: u64 = 1 << 7;
    const TAINTED: &str = "/proc/sys/kernel/tainted";
    let tainted: u64 = std::fs::read_to_string(TAINTED).context(TAINTED)?.trim().parse()?;
    Ok(tainted & TAINT_DIE != 0)
}

fn end_of_message(message: &mut String, operations: &[Operation]) {
    *message += &format!("\nwith --replay \"{}\"", Sequence(operations.to_vec()));
}

/// The process that the model is compared with.
struct Process<'a> {
    ctx: &'a Context,
    coverage: &'a Coverage,
    gup_test: &'static GupTest,
    mapping: Mapping,
    shape: Shape,
    devices: [Device; 2],
    child: Option<(Child, crate::process::Gate)>,
    pinned: Option<LongtermPin<'static>>,
    piped: Option<PipePin>,
}

impl<'a> Process<'a> {
    fn new(ctx: &'a Context, shape: Shape, coverage: &'a Coverage) -> Result<Self> {
        let process = Self {
            ctx,
            coverage,
            // The process ends by exiting.
            gup_test: Box::leak(Box::new(GupTest::open()?)),
            mapping: Mapping::apart(shape.pages, shape.skew)?,
            shape,
            devices: [ctx.device(0)?, ctx.device(1)?],
            child: None,
            pinned: None,
            piped: None,
        };
        process.prepare(0..shape.pages)?;
        Ok(process)
    }

    /// Prepares what was just mapped.
    fn prepare(&self, range: Range<usize>) -> Result {
        if self.shape.has_huge_pages {
            self.mapping.madvise(range, MmapAdvise::MADV_HUGEPAGE)?;
            return Ok(());
        }
        self.mapping.madvise(range.clone(), MmapAdvise::MADV_NOHUGEPAGE)?;
        // Fork looks only at VMAs that had a page once.
        self.mapping.write(range.start, 0, 1);
        self.mapping.madvise(range, MmapAdvise::MADV_DONTNEED)?;
        Ok(())
    }

    fn pages(&self, range: &Range<usize>) -> Pages {
        self.mapping.pages(range.clone())
    }

    fn cpu_write(&self, pages: &[usize], generation: u32) {
        for &page in pages {
            self.mapping.fill(page..page + 1, generation);
        }
    }

    fn fork(&mut self, action: &Action, contents: &[Content], hold: bool) -> Result {
        let gate = crate::process::Gate::new()?;
        let child = Child::fork(|| {
            gate.pass()?;
            check(&action.read, contents, |page, index| self.mapping.read(page, index))?;
            self.cpu_write(&action.written, action.generation);
            for &page in &action.written {
                self.mapping.check(page..page + 1, action.generation)?;
            }
            Ok(())
        })?;
        if hold {
            self.child = Some((child, gate));
            return Ok(());
        }
        gate.open()?;
        child.join()
    }

    fn madvise(&self, range: Range<usize>, advice: MmapAdvise) -> Result {
        self.mapping.madvise(range, advice).context(format!("{advice:?}"))
    }

    fn protect(&self, range: Range<usize>, protection: ProtFlags) -> Result {
        self.mapping.mprotect(range, protection).context("mprotect")
    }

    fn device_write(&self, action: &Action) -> std::result::Result<Counts, Errno> {
        let Action { ref range, generation, .. } = *action;
        let data = pattern::pages(range.start, range.len(), generation);
        self.devices[action.device].write(self.pages(range), &data).map(counts)
    }
}

fn counts(counts: crate::device::Counts) -> Counts {
    Counts { cpages: counts.cpages, faults: Some(counts.faults) }
}

/// Checks what is in pages.
fn check(
    pages: &[usize],
    contents: &[Content],
    word: impl Fn(usize, usize) -> u64,
) -> std::result::Result<(), Mismatch> {
    let step = if contents.len() > CHECKED_IN_FULL { SPARSE } else { 1 };
    for (&page, content) in pages.iter().zip(contents) {
        for index in (0..WORDS).step_by(step).chain([WORDS - 1]) {
            let found = word(page, index);
            pattern::check_word(content.page, content.generation, index, found)?;
        }
    }
    Ok(())
}

/// Checks a copy of pages.
fn check_data(data: &[u8], contents: &[Content]) -> Result {
    crate::ensure_eq!(data.len(), contents.len() * PAGE_SIZE);
    let numbers: Vec<_> = (0..contents.len()).collect();
    check(&numbers, contents, |page, index| {
        let at = page * PAGE_SIZE + index * size_of::<u64>();
        u64::from_ne_bytes(data[at..at + size_of::<u64>()].try_into().expect("8 bytes"))
    })?;
    Ok(())
}

impl System for Process<'_> {
    fn perform(
        &mut self,
        action: &Action,
        contents: &[Content],
    ) -> Result<std::result::Result<Counts, Errno>> {
        let range = action.range.clone();
        let pages = self.pages(&range);
        let device = &self.devices[action.device];
        match action.kind {
            Kind::CpuRead => {
                check(&action.read, contents, |page, index| self.mapping.read(page, index))?;
            }
            Kind::CpuWrite => self.cpu_write(&action.written, action.generation),
            Kind::DeviceRead | Kind::DeviceReadUnlocked | Kind::ToDevice | Kind::Exclusive => {
                let result = match action.kind {
                    Kind::DeviceRead => device.read(pages),
                    Kind::DeviceReadUnlocked => device.read_unlocked(pages),
                    Kind::ToDevice => device.migrate_to_dev(pages),
                    _ => device.exclusive(pages),
                };
                return match result {
                    Ok(data) => {
                        check_data(&data.data, contents)?;
                        Ok(Ok(Counts { cpages: data.cpages, faults: Some(data.faults) }))
                    }
                    Err(errno) => Ok(Err(errno)),
                };
            }
            Kind::DeviceWrite => return Ok(self.device_write(action)),
            Kind::ToSystem => return Ok(device.migrate_to_sys(pages).map(counts)),
            Kind::CheckExclusive => return Ok(device.check_exclusive(pages).map(|()| NOTHING)),
            Kind::Release => return Ok(device.release().map(|()| NOTHING)),
            Kind::Reopen => {
                // Another open device does not do for the one that is closed.
                let closed = Device::open("/dev/null".as_ref())?;
                drop(std::mem::replace(&mut self.devices[action.device], closed));
                self.devices[action.device] = self.ctx.device(action.device)?;
            }
            Kind::FailAllocation => device.fail_next_allocation()?,
            Kind::Fork => self.fork(action, contents, false)?,
            Kind::ForkAndHold => self.fork(action, contents, true)?,
            Kind::Join => {
                if let Some((child, gate)) = self.child.take() {
                    gate.open()?;
                    child.join()?;
                }
            }
            Kind::Map | Kind::MapHole => {
                self.mapping.map_again(range.clone())?;
                self.prepare(range)?;
            }
            Kind::Unmap => self.mapping.munmap(range).context("munmap")?,
            Kind::ProtectNone => self.protect(range, ProtFlags::PROT_NONE)?,
            Kind::ProtectRead => self.protect(range, ProtFlags::PROT_READ)?,
            Kind::ProtectWrite => {
                self.protect(range, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
            }
            Kind::Move => self.mapping.move_within(range, action.to).context("mremap")?,
            Kind::DontNeed => self.madvise(range, MmapAdvise::MADV_DONTNEED)?,
            Kind::Free => {
                self.madvise(range, MmapAdvise::MADV_FREE)?;
                self.cpu_write(&action.written, action.generation);
            }
            Kind::FreeForDevice => {
                self.madvise(range, MmapAdvise::MADV_FREE)?;
                return Ok(self.device_write(action));
            }
            Kind::PageOut => {
                self.madvise(range, MmapAdvise::MADV_PAGEOUT)?;
                if !action.read.is_empty() {
                    self.fork(action, contents, false)?;
                }
            }
            Kind::PinLongterm => match self.gup_test.pin(pages, true, action.to % 2 == 0) {
                Ok(pin) => self.pinned = Some(pin),
                Err(errno) => return Ok(Err(errno)),
            },
            Kind::UnpinLongterm => {
                if let Some(pin) = self.pinned.take() {
                    check_data(&pin.contents()?, contents)?;
                }
            }
            Kind::PinPipe => self.piped = Some(PipePin::new(pages)?),
            Kind::UnpinPipe => {
                if let Some(pin) = self.piped.take() {
                    check_data(&pin.into_contents()?, contents)?;
                }
            }
            kind => unreachable!("{kind:?} is not modelled"),
        }
        Ok(Ok(NOTHING))
    }

    fn snapshots(&mut self) -> Result<[Vec<u8>; 2]> {
        let snapshot = |device: &Device| device.snapshot(self.mapping.all()).context("snapshot");
        let snapshots = [snapshot(&self.devices[0])?, snapshot(&self.devices[1])?];
        self.coverage.count_bytes(&snapshots[0]);
        Ok(snapshots)
    }

    fn vmas(&mut self) -> Result<Vec<usize>> {
        Ok(pagemap::beginnings_of_vmas(self.mapping.all())?)
    }
}

/// Counts outcomes across processes.
struct Coverage(Mapping);

impl Coverage {
    /// The first page has the number of the operation that runs, the second counts the
    /// operations that left bytes of a snapshot, the others count outcomes of a kind.
    const STEP: usize = 0;
    const BYTES: usize = 1;
    const KINDS: usize = 2;
    /// Word of what was left out; errors are words of their own, and 0 is success.
    const LEFT_OUT: usize = WORDS - 1;

    fn new() -> Result<Self> {
        Ok(Self(Mapping::shared(Self::KINDS + Kind::value_variants().len())?))
    }

    fn set_step(&self, number: usize) {
        self.0.write(Self::STEP, 0, number as u64);
    }

    fn step(&self) -> usize {
        self.0.read(Self::STEP, 0) as usize
    }

    fn add(&self, page: usize, word: usize) {
        self.0.write(page, word, self.0.read(page, word) + 1);
    }

    fn count(&self, kind: Kind, step: Step) {
        let word = match step {
            Step::LeftOut => Self::LEFT_OUT,
            Step::Done(Ok(())) => 0,
            Step::Done(Err(errno)) => errno as usize,
        };
        self.add(Self::KINDS + kind as usize, word);
    }

    fn count_bytes(&self, snapshot: &[u8]) {
        for byte in snapshot.iter().copied().collect::<BTreeSet<_>>() {
            self.add(Self::BYTES, byte.into());
        }
    }

    fn counts(&self, page: usize, name: impl Fn(usize) -> String) -> String {
        let words = (0..WORDS).map(|word| (word, self.0.read(page, word)));
        let counts = words.filter(|(_, count)| *count > 0);
        counts.map(|(word, count)| format!("{count} {}", name(word))).collect::<Vec<_>>().join(", ")
    }

    /// A line for each kind, and one of what devices saw after how many operations.
    fn print(&self) {
        let outcome = |word| match word {
            0 => "ok".into(),
            Self::LEFT_OUT => "left out".into(),
            errno => format!("{:?}", Errno::from_raw(errno as i32)),
        };
        for &kind in Kind::value_variants() {
            let counts = self.counts(Self::KINDS + kind as usize, outcome);
            if !counts.is_empty() {
                println!("{}: {counts}", kind.name());
            }
        }
        println!("snapshots: {}", self.counts(Self::BYTES, |byte| format!("{byte:#04x}")));
    }
}
