// SPDX-License-Identifier: GPL-2.0
//! Each allocation, and each access to the caller's memory, fails once in whatever one can do
//! with devices and their memory.

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MmapAdvise, ProtFlags};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::books::Books;
use crate::arena::CpuAccess;
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::fault_injection::FaultInjection;
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, Pages};
use crate::pins::GupTest;
use crate::tests::Context;
use crate::uapi::{self, Cmd};
use crate::uring::Ring;
use crate::{ensure, fail, pattern};

type Attempt = std::result::Result<(), Errno>;

/// Something that can fail.
struct Case {
    name: &'static str,
    /// What comes before, to pages in system memory.
    prepare: fn(&Stage) -> Attempt,
    /// What is tried. Success is one as well: there may be another way.
    act: fn(&mut Stage) -> Attempt,
    /// Whether it has to succeed when nothing fails any more.
    again: bool,
}

impl Case {
    const fn new(
        name: &'static str,
        prepare: fn(&Stage) -> Attempt,
        act: fn(&mut Stage) -> Attempt,
    ) -> Self {
        Self { name, prepare, act, again: true }
    }

    /// Another attempt comes to something else, or it is not possible at all.
    const fn once(
        name: &'static str,
        prepare: fn(&Stage) -> Attempt,
        act: fn(&mut Stage) -> Attempt,
    ) -> Self {
        Self { name, prepare, act, again: false }
    }

    fn allows(&self, errno: Errno) -> bool {
        ERRORS.contains(&errno) || (!self.again && errno == Errno::EINVAL)
    }
}

const CASES: &[Case] = &[
    Case::new("open", nothing, |stage| stage.open(0)),
    Case::new("close", to_device, |stage| stage.open(0)),
    Case::new("read", nothing, |stage| stage.command(0, uapi::READ)),
    Case::new("read from device", to_device, |stage| stage.command(0, uapi::READ)),
    Case::new("read from other device", to_device, |stage| stage.command(1, uapi::READ)),
    Case::new("read what is not there", discard, |stage| stage.command(0, uapi::READ)),
    Case::new("read unlocked", to_device, |stage| stage.command(1, uapi::READ_UNLOCKED)),
    Case::new("write", nothing, |stage| stage.command(0, uapi::WRITE)),
    Case::new("write to device", to_device, |stage| stage.command(0, uapi::WRITE)),
    Case::new("write to other device", to_device, |stage| stage.command(1, uapi::WRITE)),
    Case::new("write what is not there", discard, |stage| stage.command(0, uapi::WRITE)),
    Case::new("migrate", nothing, |stage| stage.command(0, uapi::MIGRATE_TO_DEV)),
    Case::new("migrate what is not there", discard, |stage| stage.command(0, uapi::MIGRATE_TO_DEV)),
    Case::new("migrate back", to_device, |stage| stage.command(0, uapi::MIGRATE_TO_SYS)),
    Case::new("snapshot", to_device, |stage| stage.command(1, uapi::SNAPSHOT)),
    Case::new("exclusive", nothing, |stage| stage.command(0, uapi::EXCLUSIVE)),
    Case::new("check exclusive", nothing, |stage| stage.command(0, uapi::CHECK_EXCLUSIVE)),
    Case::new("release", to_device, |stage| stage.command(0, uapi::RELEASE)),
    Case::new("type", nothing, |stage| stage.devices[0].mem_dev_type().map(drop)),
    Case::new("load", to_device, |stage| stage.cpu.load(stage.part()).map(drop)),
    Case::new("store", to_device, |stage| {
        let (part, data) = (stage.part(), pattern::pages(stage.middle(), CpuAccess::PAGES, 1));
        stage.cpu.store(part, &data)
    }),
    Case::new("fork", to_device, |_| forked()),
    Case::new("protect", to_device, |stage| {
        stage.mapping.mprotect(stage.middle()..stage.middle() + 1, ProtFlags::PROT_READ)
    }),
    Case::new("discard", to_device, |stage| {
        stage.mapping.madvise(stage.last(), MmapAdvise::MADV_DONTNEED)
    }),
    Case::new("page out", to_device, |stage| {
        stage.mapping.madvise(stage.last(), MmapAdvise::MADV_PAGEOUT)
    }),
    Case::once("collapse", to_device, |stage| stage.mapping.collapse(0..stage.mapping.count())),
    Case::once("unmap", to_device, |stage| stage.mapping.munmap(stage.last())),
    Case::new("lock", to_device, |stage| stage.mapping.mlock(0..stage.mapping.count())),
    Case::once("pin", to_device, |stage| match &stage.gup_test {
        Some(gup_test) => gup_test.pin(stage.part(), true, false).map(drop),
        None => Ok(()),
    }),
    Case::once("register", to_device, |stage| stage.ring.register(stage.part()).map(drop)),
];

/// What may be answered when something fails.
const ERRORS: &[Errno] =
    &[Errno::ENOMEM, Errno::EFAULT, Errno::EBUSY, Errno::ENOENT, Errno::EAGAIN];
/// More than can fail in anything here.
const MOST: u32 = 20_000;

fn nothing(_: &Stage) -> Attempt {
    Ok(())
}

fn to_device(stage: &Stage) -> Attempt {
    stage.command(0, uapi::MIGRATE_TO_DEV)
}

fn discard(stage: &Stage) -> Attempt {
    stage.mapping.madvise(stage.last(), MmapAdvise::MADV_DONTNEED)
}

/// Pages of generation 1, where what is written has it, too; the last one may lose its contents.
struct Stage<'a> {
    ctx: &'a Context,
    devices: [Device; 2],
    mapping: Mapping,
    /// What devices copy from and to.
    buffer: Mapping,
    cpu: CpuAccess,
    gup_test: Option<GupTest>,
    ring: Ring,
}

impl<'a> Stage<'a> {
    fn new(ctx: &'a Context, is_huge: bool) -> Result<Self> {
        let mapping = if is_huge {
            Mapping::huge(HUGE_PAGES)?
        } else {
            Mapping::small(2 * CpuAccess::PAGES)?
        };
        let buffer = Mapping::small(mapping.count())?;
        mapping.fill(0..mapping.count(), 1);
        buffer.fill(0..mapping.count(), 1);
        let devices = [ctx.device(0)?, ctx.device(1)?];
        let gup_test = GupTest::open().ok();
        Ok(Self {
            ctx,
            devices,
            mapping,
            buffer,
            cpu: CpuAccess::new()?,
            gup_test,
            ring: Ring::new()?,
        })
    }

    fn middle(&self) -> usize {
        self.mapping.count() / 2
    }

    fn last(&self) -> std::ops::Range<usize> {
        self.mapping.count() - 1..self.mapping.count()
    }

    /// As much as the CPU can access at once.
    fn part(&self) -> Pages {
        self.mapping.pages(self.middle()..self.middle() + CpuAccess::PAGES)
    }

    fn command(&self, device: usize, request: u32) -> Attempt {
        let pages = self.mapping.all();
        // A snapshot's bytes go where no pattern is looked for.
        let ptr = self.buffer.all().addr as u64;
        let mut cmd =
            Cmd { addr: pages.addr as u64, ptr, npages: pages.count as u64, ..Cmd::default() };
        self.devices[device].raw(request, &mut cmd)
    }

    /// Opens a device in place of another, which is closed.
    fn open(&mut self, number: usize) -> Attempt {
        let error = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        self.devices[number] = Device::open(&self.ctx.nodes[number]).map_err(error)?;
        Ok(())
    }

    /// Checks that no contents were lost.
    fn check(&self) -> Result {
        let last = self.mapping.count() - 1;
        self.mapping.check(0..1, 1)?;
        for page in 0..last {
            let found = self.mapping.read(page, page % 512);
            pattern::check_word(page, 1, page % 512, found)?;
        }
        Ok(())
    }
}

/// Forks a child that just exits.
fn forked() -> Attempt {
    // SAFETY: The child does nothing but exit.
    match unsafe { fork()? } {
        // SAFETY: It ends the child at once, which is meant.
        ForkResult::Child => unsafe { libc::_exit(0) },
        ForkResult::Parent { child } => waitpid(child, None).map(drop),
    }
}

/// Small pages and huge ones.
pub fn failures(ctx: &mut Context) -> Result {
    let injection = FaultInjection::new()?;
    let books = Books::open(ctx)?;
    for is_huge in [false, true] {
        for case in CASES {
            let size = if is_huge { "huge" } else { "small" };
            let name = format!("{}, {size} pages", case.name);
            let count = sweep(ctx, &injection, case, is_huge).context(&name)?;
            println!("{name}: {count} failures");
        }
    }
    books.balance(ctx, 0)
}

/// Has one thing after the other fail, until there are no more. Returns how many there were.
fn sweep(ctx: &Context, injection: &FaultInjection, case: &Case, is_huge: bool) -> Result<u32> {
    for n in 1..MOST {
        let mut stage = Stage::new(ctx, is_huge)?;
        (case.prepare)(&stage).context("preparing")?;
        let (attempt, has_failed) = injection.nth(n, || (case.act)(&mut stage))?;
        if !has_failed {
            // Some of it is not possible with all memory.
            ensure!(attempt.is_ok() || !case.again, "{attempt:?}, and nothing had failed");
            return Ok(n - 1);
        }
        if let Err(errno) = attempt {
            ensure!(case.allows(errno), "failure {n}: {errno}");
        }
        stage.check().context(format!("failure {n}"))?;
        if case.again {
            (case.act)(&mut stage).context(format!("again after failure {n}"))?;
            stage.check().context(format!("again after failure {n}"))?;
        }
    }
    fail!("no end of failures")
}
