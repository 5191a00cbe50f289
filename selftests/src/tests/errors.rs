// SPDX-License-Identifier: GPL-2.0
//! Bad input: the error, and that nothing has changed.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags};

use super::support::{ensure_snapshot, ensure_snapshots, migrate, migrate_back};
use super::{Context, Test};
use crate::device::{Device, Driver};
use crate::failure::{Context as _, Result};
use crate::hugetlb::MoreHugetlbPages;
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE, Pages};
use crate::process::{Child, Gate};
use crate::uapi::{self, Cmd, prot};
use crate::{ensure_eq, ensure_errno, pattern, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(bad_range),
    test!(range_overflow),
    test!(bad_data_pointer),
    test!(data_pointer_to_too_little),
    test!(bad_argument),
    test!(read_only_argument),
    test!(unknown_request),
    test!(unknown_flags),
    test!(no_flags),
    test!(bad_memory),
    test!(opener_exited),
];

const COUNT: usize = 8;
/// So many pages are on the device, the first ones.
const ON_DEVICE: usize = 4;

/// An address that user space never has.
const KERNEL_ADDRESS: usize = 0xffff_8000_0000_0000;

/// Requests with a range of pages.
const WITH_RANGE: [(&str, u32); 9] = [
    ("READ", uapi::READ),
    ("WRITE", uapi::WRITE),
    ("MIGRATE_TO_DEV", uapi::MIGRATE_TO_DEV),
    ("MIGRATE_TO_SYS", uapi::MIGRATE_TO_SYS),
    ("SNAPSHOT", uapi::SNAPSHOT),
    ("EXCLUSIVE", uapi::EXCLUSIVE),
    ("CHECK_EXCLUSIVE", uapi::CHECK_EXCLUSIVE),
    ("RELEASE", uapi::RELEASE),
    ("READ_UNLOCKED", uapi::READ_UNLOCKED),
];

/// Those of them that copy data to the caller.
const COPYING: [(&str, u32); 5] = [
    ("READ", uapi::READ),
    ("MIGRATE_TO_DEV", uapi::MIGRATE_TO_DEV),
    ("SNAPSHOT", uapi::SNAPSHOT),
    ("EXCLUSIVE", uapi::EXCLUSIVE),
    ("READ_UNLOCKED", uapi::READ_UNLOCKED),
];

/// What must not change: pages in system memory and on the device, and a buffer.
struct Scene {
    device: Device,
    mapping: Mapping,
    buffer: Mapping,
    snapshot: Vec<u8>,
}

impl Scene {
    /// Pages of generation 1; a buffer of generation 2, as large.
    fn new(ctx: &Context) -> Result<Self> {
        let device = ctx.device(0)?;
        let mapping = Mapping::small(COUNT)?;
        mapping.fill(0..COUNT, 1);
        let buffer = Mapping::small(COUNT)?;
        buffer.fill(0..COUNT, 2);
        migrate(&device, &mapping, 0..ON_DEVICE, 1)?;
        let snapshot = device.snapshot(mapping.all())?;
        Ok(Self { device, mapping, buffer, snapshot })
    }

    /// A command that would be fine.
    fn cmd(&self) -> Cmd {
        Cmd {
            addr: self.mapping.all().addr as u64,
            ptr: self.buffer.all().addr as u64,
            npages: COUNT as u64,
            cpages: 77,
            faults: 99,
        }
    }

    /// The command fails, and not even its counts are written.
    fn refuses(&self, request: u32, cmd: Cmd, errno: Errno) -> Result {
        let mut after = cmd;
        ensure_errno!(self.device.raw(request, &mut after), errno);
        ensure_eq!(after, cmd);
        Ok(())
    }

    /// Checks that nothing has changed.
    fn unchanged(self) -> Result {
        ensure_snapshots(&self.device, self.mapping.all(), &self.snapshot)?;
        self.device.check_exclusive(self.mapping.all())?;
        self.same_data()
    }

    /// Checks that no data has changed, wherever it is.
    fn same_data(self) -> Result {
        self.mapping.check(0..COUNT, 1)?;
        self.buffer.check(0..COUNT, 2)?;
        Ok(())
    }
}

fn bad_range(ctx: &mut Context) -> Result {
    let scene = Scene::new(ctx)?;
    let good = scene.cmd();
    let last_page = (PAGE_SIZE as u64).wrapping_neg();
    for (name, request) in WITH_RANGE {
        for cmd in [
            Cmd { addr: good.addr + 1, ..good },
            Cmd { addr: good.addr + 8, ..good },
            Cmd { addr: good.addr + PAGE_SIZE as u64 - 1, ..good },
            Cmd { npages: 0, ..good },
            Cmd { addr: 0, npages: 0, ..good },
            // To the end of the address space or beyond.
            Cmd { addr: last_page, npages: 1, ..good },
            Cmd { addr: last_page, npages: 2, ..good },
            Cmd { npages: (1 << 52) - 1, ..good },
        ] {
            scene.refuses(request, cmd, Errno::EINVAL).context(format!("{name} {cmd:x?}"))?;
        }
    }
    scene.unchanged()
}

/// The number of bytes does not fit into 64 bits.
fn range_overflow(ctx: &mut Context) -> Result {
    let scene = Scene::new(ctx)?;
    for (name, request) in WITH_RANGE {
        for npages in [1 << 52, (1 << 52) + 1, (1 << 63) + 1, u64::MAX] {
            let cmd = Cmd { npages, ..scene.cmd() };
            scene.refuses(request, cmd, Errno::EINVAL).context(format!("{name} {npages:#x}"))?;
        }
    }
    scene.unchanged()
}

/// What the command did before the data could not be copied stays done.
fn bad_data_pointer(ctx: &mut Context) -> Result {
    for (name, request) in COPYING.into_iter().chain([("WRITE", uapi::WRITE)]) {
        let mut scene = Scene::new(ctx)?;
        let unmapped = Mapping::small(COUNT)?.all().addr;
        let mut pointers = vec![0, 0x10, unmapped, KERNEL_ADDRESS, usize::MAX - 7];
        if request != uapi::WRITE {
            scene.buffer.mprotect(0..COUNT, ProtFlags::PROT_READ)?;
            pointers.push(scene.buffer.all().addr);
        }
        for ptr in pointers {
            let cmd = Cmd { ptr: ptr as u64, ..scene.cmd() };
            scene.refuses(request, cmd, Errno::EFAULT).context(format!("{name} {ptr:#x}"))?;
        }
        match request {
            uapi::MIGRATE_TO_DEV => {
                ensure_snapshot(&scene.device, scene.mapping.all(), ctx.local_write())?;
                scene.same_data()
            }
            uapi::EXCLUSIVE => {
                ensure_snapshot(&scene.device, scene.mapping.all(), prot::NONE)?;
                scene.same_data()
            }
            uapi::WRITE => {
                // It has not come to writing, so pages need not be writable.
                scene.snapshot = scene.device.snapshot(scene.mapping.all())?;
                scene.unchanged()
            }
            _ => scene.unchanged(),
        }
        .context(name)?;
    }
    Ok(())
}

/// There is room for the beginning of the data only, or only that to read.
fn data_pointer_to_too_little(ctx: &mut Context) -> Result {
    for (name, request) in COPYING.into_iter().chain([("WRITE", uapi::WRITE)]) {
        let mut scene = Scene::new(ctx)?;
        scene.buffer.munmap(COUNT - 1..COUNT)?;
        let end = scene.buffer.all().part(COUNT - 1..COUNT).addr;
        let unit = if request == uapi::SNAPSHOT { 1 } else { PAGE_SIZE };
        for missing in [1, COUNT * unit - 1] {
            let ptr = end - (COUNT * unit - missing);
            let cmd = Cmd { ptr: ptr as u64, ..scene.cmd() };
            scene.refuses(request, cmd, Errno::EFAULT).context(format!("{name} -{missing}"))?;
        }
        scene.mapping.check(0..COUNT, 1).context(name)?;
    }
    Ok(())
}

fn bad_argument(ctx: &mut Context) -> Result {
    let scene = Scene::new(ctx)?;
    let mut hole = Mapping::small(2)?;
    hole.munmap(1..2)?;
    let hole = hole.all().part(1..2).addr;
    let requests = WITH_RANGE
        .into_iter()
        .chain([("FLAGS", uapi::FLAGS), ("GET_MEM_DEV_TYPE", uapi::GET_MEM_DEV_TYPE)]);
    for (name, request) in requests {
        // The last one is mapped in part.
        for argument in [0, 8, hole, KERNEL_ADDRESS, usize::MAX - 7, hole - 2] {
            ensure_errno!(scene.device.raw_argument(request, argument), Errno::EFAULT);
        }
        ensure_snapshots(&scene.device, scene.mapping.all(), &scene.snapshot).context(name)?;
    }
    scene.unchanged()
}

/// The counts cannot be told, but it is done.
fn read_only_argument(ctx: &mut Context) -> Result {
    let scene = Scene::new(ctx)?;
    let argument = Mapping::small(1)?;
    let issue = |request: u32| -> Result {
        let cmd = scene.cmd();
        argument.mprotect(0..1, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let words = [cmd.addr, cmd.ptr, cmd.npages, cmd.cpages, cmd.faults];
        for (index, word) in words.into_iter().enumerate() {
            argument.write(0, index, word);
        }
        argument.mprotect(0..1, ProtFlags::PROT_READ)?;
        ensure_errno!(scene.device.raw_argument(request, argument.all().addr), Errno::EFAULT);
        ensure_eq!((argument.read(0, 3), argument.read(0, 4)), (cmd.cpages, cmd.faults));
        Ok(())
    };
    issue(uapi::MIGRATE_TO_DEV)?;
    pattern::check(&scene.buffer.contents(0..COUNT), 0, 1)?;
    ensure_snapshot(&scene.device, scene.mapping.all(), ctx.local_write())?;
    scene.buffer.fill(0..COUNT, 3);
    issue(uapi::WRITE)?;
    issue(uapi::MIGRATE_TO_SYS)?;
    ensure_snapshot(&scene.device, scene.mapping.all(), prot::WRITE)?;
    scene.mapping.check(0..COUNT, 3)?;
    ensure_errno!(
        scene.device.raw_argument(uapi::GET_MEM_DEV_TYPE, argument.all().addr),
        if ctx.driver == Driver::UnpatchedC { Errno::EINVAL } else { Errno::EFAULT }
    );
    Ok(())
}

/// Unknown numbers, and known ones with another size, direction or type.
fn unknown_request(ctx: &mut Context) -> Result {
    const SIZE: u32 = 1 << 16;
    const TYPE: u32 = 1 << 8;
    const READABLE: u32 = 1 << 31;
    let errno = match ctx.driver {
        Driver::Rust => Errno::ENOTTY,
        Driver::C | Driver::UnpatchedC => Errno::EINVAL,
    };
    let scene = Scene::new(ctx)?;
    let mut requests = vec![
        uapi::READ_UNLOCKED + 1,
        uapi::READ_UNLOCKED + 2,
        uapi::READ + 0xff,
        uapi::GET_MEM_DEV_TYPE + 1,
        uapi::GET_MEM_DEV_TYPE - 1,
    ];
    for (_, request) in WITH_RANGE {
        requests.extend([
            request + 8 * SIZE,
            request - 8 * SIZE,
            request + TYPE,
            request & !READABLE,
        ]);
    }
    for request in requests {
        scene.refuses(request, scene.cmd(), errno).context(format!("{request:#x}"))?;
    }
    scene.unchanged()
}

/// Flags with an unknown one are not set at all.
fn unknown_flags(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    for unknown in (1..u64::BITS).map(|bit| 1 << bit) {
        for known in [0, uapi::FLAG_FAIL_ALLOC] {
            ensure_errno!(device.set_flags(unknown | known), Errno::EINVAL);
        }
    }
    migrate(&device, &mapping, 0..COUNT, 1)?;
    // Nor are those reset that were set.
    device.fail_next_allocation()?;
    ensure_errno!(device.set_flags(2), Errno::EINVAL);
    let more = Mapping::small(1)?;
    ensure_errno!(device.migrate_to_dev(more.all()), Errno::ENOENT);
    Ok(())
}

fn no_flags(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    device.fail_next_allocation()?;
    device.set_flags(0)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    migrate_back(&device, mapping.all(), COUNT as u64)
}

/// Errors of the commands on some memory; `None`: it is fine.
struct Errors {
    read: Option<Errno>,
    migrate: Errno,
    exclusive: Errno,
    snapshot: u8,
}

/// Memory that there is no access to, or that is not the device's to have.
fn bad_memory(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let no_access = Errors {
        read: Some(Errno::EFAULT),
        migrate: Errno::EINVAL,
        exclusive: Errno::EFAULT,
        snapshot: prot::ERROR,
    };
    let mut unmapped = Mapping::small(2)?;
    unmapped.munmap(0..2)?;
    let none = Mapping::small(2)?;
    none.fill(0..2, 1);
    none.mprotect(0..2, ProtFlags::PROT_NONE)?;
    let at = |addr: usize| Pages { addr, count: 2 };
    for pages in [unmapped.all(), none.all(), at(0), at(KERNEL_ADDRESS)] {
        no_access.ensure(&device, pages).context(format!("{pages:x?}"))?;
    }
    none.mprotect(0..2, ProtFlags::PROT_READ)?;
    none.check(0..2, 1)?;

    let not_anonymous = |snapshot| Errors {
        read: None,
        migrate: Errno::EINVAL,
        exclusive: Errno::EOPNOTSUPP,
        snapshot,
    };
    let node = Mapping::file(&device, 2, MapFlags::MAP_SHARED)?;
    not_anonymous(prot::WRITE).ensure(&device, node.all()).context("mapped node")?;
    let _pool = MoreHugetlbPages::add(1)?;
    let hugetlb = Mapping::hugetlb(HUGE_PAGES)?;
    hugetlb.fill(0..2, 0);
    let snapshot = prot::WRITE | prot::PMD;
    not_anonymous(snapshot).ensure(&device, hugetlb.pages(0..2)).context("hugetlb")
}

impl Errors {
    fn ensure(&self, device: &Device, pages: Pages) -> Result {
        let data = pattern::pages(0, pages.count, 1);
        let results = [
            ("read", device.read(pages).map(drop)),
            ("read unlocked", device.read_unlocked(pages).map(drop)),
            ("write", device.write(pages, &data).map(drop)),
        ];
        for (name, result) in results {
            ensure_eq!(result.err(), self.read, "{name}");
        }
        ensure_errno!(device.migrate_to_dev(pages), self.migrate);
        ensure_errno!(device.migrate_to_sys(pages), self.migrate);
        ensure_errno!(device.exclusive(pages), self.exclusive);
        device.check_exclusive(pages)?;
        ensure_snapshot(device, pages, self.snapshot)
    }
}

/// The process whose memory a device works on is gone, the open file is not.
fn opener_exited(ctx: &mut Context) -> Result {
    let mapping = Mapping::small(COUNT)?;
    mapping.fill(0..COUNT, 1);
    let (opened, taken) = (Gate::new()?, Gate::new()?);
    let shared = Mapping::shared(1)?;
    let opener = Child::fork(|| {
        let device = ctx.device(0)?;
        migrate(&device, &mapping, 0..COUNT, 1)?;
        device.exclusive(mapping.pages(COUNT - 1..COUNT))?;
        shared.write(0, 0, device.as_fd().as_raw_fd() as u64);
        opened.open()?;
        taken.pass()
    })?;
    opened.pass()?;
    let device = Device::from(opener.take_fd(i32::try_from(shared.read(0, 0))?)?);
    ensure_eq!(device.read(mapping.all())?.cpages, COUNT as u64);
    taken.open()?;
    opener.join()?;

    let pages = mapping.all();
    ensure_errno!(device.read(pages), Errno::EFAULT);
    ensure_errno!(device.read_unlocked(pages), Errno::EFAULT);
    ensure_errno!(device.write(pages, &pattern::pages(0, COUNT, 2)), Errno::EFAULT);
    ensure_errno!(device.migrate_to_dev(pages), Errno::EINVAL);
    ensure_errno!(device.migrate_to_sys(pages), Errno::EINVAL);
    ensure_errno!(device.snapshot(pages), Errno::EINVAL);
    ensure_errno!(device.exclusive(pages), Errno::EINVAL);
    device.check_exclusive(pages)?;
    device.release()?;
    device.fail_next_allocation()?;
    if ctx.driver != Driver::UnpatchedC {
        ensure_eq!(device.mem_dev_type()?, ctx.memory_type as u32);
    }
    drop(device);
    mapping.check(0..COUNT, 1)?;
    Ok(())
}
