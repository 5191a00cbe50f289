// SPDX-License-Identifier: GPL-2.0
//! Migration of small pages to a device and back.

use std::fs;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};
use nix::sys::signal::Signal;

use super::support::{
    device_writes, ensure_device_reads, ensure_snapshot, ensure_snapshots, migrate, migrate_back,
    temporary_file,
};
use super::{Context, Exception, Test};
use crate::failure::{Context as _, Result, skip};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::process::{Child, cpus, stay_on};
use crate::uapi::{MemoryType, prot};
use crate::{ensure, ensure_eq, ensure_errno, fail, pagemap, pattern, test};

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(there_and_back),
    test!(many_windows),
    test!(few_interrupts).except(&[Exception::unpatched("it flushes the TLB page by page")]),
    test!(untouched),
    test!(untouched_then_written),
    test!(zero_page),
    test!(read_only),
    test!(read_only_stays),
    test!(again),
    test!(other_device),
    test!(mixed_range),
    test!(partial_ranges),
    test!(hole),
    test!(no_access),
    test!(many_mappings),
    test!(shared_anonymous),
    test!(shared_file),
    test!(private_file),
    test!(cpu_read),
    test!(cpu_write),
    test!(protected_on_device),
    test!(protected_then_read_by_device),
    test!(moved_on_device),
    test!(moved_there_and_back),
    test!(left_behind),
    test!(unmapped_on_device),
    test!(discarded_on_device),
    test!(freed_lazily),
    test!(locked),
    test!(poisoned),
    test!(fail_alloc_to_device),
    test!(fail_alloc_to_system),
    test!(fail_alloc_in_fault).only(&[MemoryType::Private]),
    test!(released),
    test!(exhausted).only(CPU_ACCESSIBLE),
];

const CPU_ACCESSIBLE: &[MemoryType] = &[MemoryType::Coherent, MemoryType::Generic];
const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
/// More than the drivers fault in at a time.
const COUNT: usize = 40;

fn filled(count: usize, generation: u32) -> Result<Mapping> {
    let mapping = Mapping::small(count)?;
    mapping.fill(0..count, generation);
    Ok(mapping)
}

/// Both the device and, in the end, the CPU write to the pages.
fn there_and_back(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;
    device_writes(&device, &mapping, 0..COUNT, 2)?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 2)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;

    migrate_back(&device, mapping.all(), COUNT as u64)?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(0..COUNT, 2)?;
    migrate_back(&device, mapping.all(), 0)?;
    mapping.fill(0..COUNT, 3);
    ensure_device_reads(&device, &mapping, 0..COUNT, 3)
}

/// A range that is no multiple of 2 MB, does not start at one, and has several in it.
fn many_windows(ctx: &mut Context) -> Result {
    const FIRST: usize = HUGE_PAGES - 3;
    const END: usize = 2 * HUGE_PAGES + 5;
    let device = ctx.device(0)?;
    let mapping = filled(END + 2, 1)?;
    migrate(&device, &mapping, FIRST..END, 1)?;
    ensure_snapshot(&device, mapping.pages(0..FIRST), prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(FIRST..END), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(END..END + 2), prot::WRITE)?;
    migrate_back(&device, mapping.all(), (END - FIRST) as u64)?;
    mapping.check(0..END + 2, 1)?;
    Ok(())
}

/// How often a CPU has interrupted others to flush their TLB.
fn shootdowns() -> Result<u64> {
    let interrupts = fs::read_to_string("/proc/interrupts")?;
    let Some(line) = interrupts.lines().find(|line| line.trim_start().starts_with("TLB:")) else {
        return skip("the kernel does not count what flushes the TLB");
    };
    Ok(line.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum())
}

/// While another CPU runs the process, too, it is not interrupted for each page.
fn few_interrupts(ctx: &mut Context) -> Result {
    const COUNT: usize = HUGE_PAGES;
    let &[here, there, ..] = cpus()?.as_slice() else {
        return skip("there is one CPU only");
    };
    let device = &ctx.device(0)?;
    let mapping = &filled(COUNT, 1)?;
    let to_device = || migrate(device, mapping, 0..COUNT, 1);
    let back = || migrate_back(device, mapping.all(), COUNT as u64);
    let release = || device.release().context("RELEASE");
    let few = |act: &dyn Fn() -> Result, what: &str| {
        let before = shootdowns()?;
        act()?;
        let count = shootdowns()? - before;
        ensure!(count <= COUNT as u64 / 4, "{what}: {count} interrupts for {COUNT} pages");
        Ok(())
    };

    stay_on(here)?;
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| -> Result {
            stay_on(there)?;
            while !done.load(Ordering::Relaxed) {
                spin_loop();
            }
            Ok(())
        });
        let result = few(&to_device, "to the device")
            .and_then(|()| few(&back, "back"))
            .and_then(|()| to_device())
            .and_then(|()| few(&release, "evicted"));
        done.store(true, Ordering::Relaxed);
        other.join().expect("it does not panic")?;
        result
    })?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Pages that the process never touched become pages of the device, all zeroes.
fn untouched(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    migrate(&device, &mapping, 0..COUNT, 0)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    mapping.check(0..COUNT, 0)?;
    mapping.fill(0..COUNT, 1);
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

fn untouched_then_written(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    migrate(&device, &mapping, 0..COUNT, 0)?;
    device_writes(&device, &mapping, 0..COUNT, 1)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

fn zero_page(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = Mapping::small(COUNT)?;
    mapping.touch(0..COUNT);
    ensure_snapshot(&device, mapping.all(), prot::ZERO | prot::READ)?;
    migrate(&device, &mapping, 0..COUNT, 0)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    migrate_back(&device, mapping.all(), COUNT as u64)?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;
    mapping.check(0..COUNT, 0)?;
    Ok(())
}

fn read_only(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    // Filled, zero pages, untouched.
    let mapping = Mapping::small(3 * COUNT)?;
    mapping.fill(0..COUNT, 1);
    mapping.touch(COUNT..2 * COUNT);
    mapping.mprotect(0..3 * COUNT, ProtFlags::PROT_READ)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    migrate(&device, &mapping, COUNT..3 * COUNT, 0)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    migrate_back(&device, mapping.all(), 3 * COUNT as u64)?;
    ensure_snapshot(&device, mapping.all(), prot::READ)?;
    mapping.check(0..COUNT, 1)?;
    mapping.check(COUNT..3 * COUNT, 0)?;
    Ok(())
}

/// The device must not write to its own memory what the process may not.
fn read_only_stays(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    mapping.mprotect(0..COUNT, ProtFlags::PROT_READ)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    ensure_errno!(device.write(mapping.all(), &pattern::pages(0, COUNT, 2)), Errno::EPERM);
    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// What is on the device already counts.
fn again(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT / 2, 1)?;
    for _ in 0..3 {
        migrate(&device, &mapping, 0..COUNT, 1)?;
        ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    }
    migrate_back(&device, mapping.pages(0..COUNT / 2), COUNT as u64 / 2)?;
    migrate_back(&device, mapping.all(), COUNT as u64 / 2)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// A device leaves the memory of another alone.
fn other_device(ctx: &mut Context) -> Result {
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    ensure_errno!(other.migrate_to_dev(mapping.all()), Errno::ENOENT);
    migrate_back(&other, mapping.all(), 0)?;
    other.release()?;
    ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    ensure_snapshot(&other, mapping.all(), ctx.memory_type.remote(prot::WRITE))?;

    // By way of system memory it gets there.
    migrate_back(&device, mapping.all(), COUNT as u64)?;
    migrate(&other, &mapping, 0..COUNT, 1)?;
    ensure_snapshot(&other, mapping.all(), ctx.local_write())?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// What can be migrated is, the rest stays as it was.
fn mixed_range(ctx: &mut Context) -> Result {
    const FILE: usize = 4;
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let file = temporary_file(1, 1)?;
    // 0 system memory, 1 on this device, 2 untouched, 3 on the other device, 4 a page
    // of a file, 5 zero page, 6 system memory.
    let mapping = Mapping::small(7)?;
    for page in [0, 1, 3, 6] {
        mapping.fill(page..page + 1, 1);
    }
    mapping.map_file(FILE..FILE + 1, &file, MapFlags::MAP_PRIVATE)?;
    let file_data = pattern::pages(0, 1, 1);
    mapping.touch(FILE..FILE + 2);
    migrate(&device, &mapping, 1..2, 1)?;
    migrate(&other, &mapping, 3..4, 1)?;
    let remote = ctx.memory_type.remote(prot::WRITE);

    ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
    let local = ctx.local_write();
    let expected = [local, local, local, remote, prot::READ, local, local];
    ensure_snapshots(&device, mapping.all(), &expected)?;

    migrate_back(&device, mapping.all(), 5)?;
    let system = prot::WRITE;
    let expected = [system, system, system, remote, prot::READ, system, system];
    ensure_snapshots(&device, mapping.all(), &expected)?;
    ensure!(mapping.contents(FILE..FILE + 1) == file_data, "the page of the file");
    for (page, generation) in [(0, 1), (1, 1), (2, 0), (3, 1), (5, 0), (6, 1)] {
        mapping.check(page..page + 1, generation)?;
    }
    Ok(())
}

fn partial_ranges(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(6, 1)?;
    let (local, system) = (ctx.local_write(), prot::WRITE);
    migrate(&device, &mapping, 1..5, 1)?;
    ensure_snapshots(&device, mapping.all(), &[system, local, local, local, local, system])?;
    migrate_back(&device, mapping.pages(2..4), 2)?;
    ensure_snapshots(&device, mapping.all(), &[system, local, system, system, local, system])?;
    migrate(&device, &mapping, 2..3, 1)?;
    ensure_snapshots(&device, mapping.all(), &[system, local, local, system, local, system])?;
    migrate_back(&device, mapping.all(), 3)?;
    ensure_snapshot(&device, mapping.all(), system)?;
    mapping.check(0..6, 1)?;
    Ok(())
}

/// Up to the hole it is as without it.
fn hole(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled(5, 1)?;
    mapping.munmap(2..3)?;
    ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::EINVAL);
    let (local, system) = (ctx.local_write(), prot::WRITE);
    ensure_snapshots(&device, mapping.all(), &[local, local, prot::ERROR, system, system])?;

    migrate(&device, &mapping, 3..5, 1)?;
    ensure_errno!(device.migrate_to_sys(mapping.all()), Errno::EINVAL);
    ensure_snapshots(&device, mapping.all(), &[system, system, prot::ERROR, local, local])?;
    mapping.check(0..2, 1)?;
    mapping.check(3..5, 1)?;
    Ok(())
}

fn no_access(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    mapping.mprotect(0..COUNT, ProtFlags::PROT_NONE)?;
    ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::EINVAL);
    mapping.mprotect(0..COUNT, READ_WRITE)?;
    ensure_snapshot(&device, mapping.all(), prot::WRITE)?;

    // Nor back.
    migrate(&device, &mapping, 0..COUNT, 1)?;
    mapping.mprotect(0..COUNT, ProtFlags::PROT_NONE)?;
    ensure_errno!(device.migrate_to_sys(mapping.all()), Errno::EINVAL);
    ensure_snapshot(&device, mapping.all(), prot::ERROR)?;
    mapping.mprotect(0..COUNT, READ_WRITE)?;
    migrate_back(&device, mapping.all(), COUNT as u64)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

fn many_mappings(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    let mut expected = vec![ctx.local_write(); COUNT];
    for page in (0..COUNT).step_by(3) {
        mapping.mprotect(page..page + 1, ProtFlags::PROT_READ)?;
        expected[page] = ctx.local_read();
    }
    migrate(&device, &mapping, 0..COUNT, 1)?;
    ensure_snapshots(&device, mapping.all(), &expected)?;
    migrate_back(&device, mapping.all(), COUNT as u64)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Only anonymous memory can be migrated.
fn shared_anonymous(ctx: &mut Context) -> Result {
    let mapping = Mapping::shared(COUNT)?;
    // Not there, there but not mapped.
    ensure_stays(ctx, &mapping, 0, prot::NONE)?;
    mapping.fill(0..COUNT, 1);
    ensure_stays(ctx, &mapping, 1, prot::WRITE)
}

fn shared_file(ctx: &mut Context) -> Result {
    let file = temporary_file(COUNT, 1)?;
    let mapping = Mapping::file(&file, COUNT, MapFlags::MAP_SHARED)?;
    mapping.fill(0..COUNT, 2);
    ensure_stays(ctx, &mapping, 2, prot::WRITE)
}

fn ensure_stays(ctx: &Context, mapping: &Mapping, generation: u32, snapshot: u8) -> Result {
    let device = ctx.device(0)?;
    ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
    ensure_snapshot(&device, mapping.all(), snapshot)?;
    migrate_back(&device, mapping.all(), 0)?;
    mapping.check(0..mapping.count(), generation)?;
    Ok(())
}

/// The process's own copies of a file's pages are migrated, the file's pages not.
fn private_file(ctx: &mut Context) -> Result {
    const COPIES: usize = COUNT / 2;
    let device = ctx.device(0)?;
    let file = temporary_file(COUNT, 1)?;
    let mapping = Mapping::file(&file, COUNT, MapFlags::MAP_PRIVATE)?;
    mapping.touch(0..COUNT);
    mapping.fill(0..COPIES, 2);
    migrate(&device, &mapping, 0..COPIES, 2)?;
    ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
    ensure_snapshot(&device, mapping.pages(0..COPIES), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(COPIES..COUNT), prot::READ)?;
    mapping.check(COPIES..COUNT, 1)?;
    migrate_back(&device, mapping.all(), COPIES as u64)?;
    mapping.check(0..COPIES, 2)?;
    Ok(())
}

/// What the CPU touches comes back if it cannot be accessed on the device, and only that.
fn cpu_read(ctx: &mut Context) -> Result {
    cpu_access(ctx, |mapping, page| mapping.check(page..page + 1, 1).map_err(Into::into), 1)
}

fn cpu_write(ctx: &mut Context) -> Result {
    cpu_access(
        ctx,
        |mapping, page| {
            mapping.fill(page..page + 1, 2);
            Ok(())
        },
        2,
    )
}

fn cpu_access(
    ctx: &Context,
    access: fn(&Mapping, usize) -> Result,
    generation_after: u32,
) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let touched: Vec<usize> = (0..COUNT).step_by(3).collect();
    for &page in &touched {
        access(&mapping, page)?;
    }
    let mut expected = vec![ctx.local_write(); COUNT];
    for &page in &touched {
        if ctx.memory_type == MemoryType::Private {
            expected[page] = prot::WRITE;
        }
    }
    ensure_snapshots(&device, mapping.all(), &expected)?;

    // All of it on the device again, counting what never left.
    let migrated = device.migrate_to_dev(mapping.all())?;
    ensure_eq!(migrated.cpages, COUNT as u64);
    for (page, data) in migrated.data.chunks_exact(PAGE_SIZE).enumerate() {
        let generation = if touched.contains(&page) { generation_after } else { 1 };
        pattern::check(data, page, generation)?;
    }
    ensure_snapshot(&device, mapping.all(), ctx.local_write())
}

fn protected_on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    mapping.mprotect(0..COUNT, ProtFlags::PROT_READ)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    mapping.mprotect(0..COUNT, READ_WRITE)?;
    mapping.fill(0..COUNT / 2, 2);
    migrate_back(&device, mapping.pages(COUNT / 2..COUNT), COUNT as u64 / 2)?;
    mapping.check(0..COUNT / 2, 2)?;
    mapping.check(COUNT / 2..COUNT, 1)?;
    Ok(())
}

fn protected_then_read_by_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    mapping.mprotect(0..COUNT, ProtFlags::PROT_READ)?;
    ensure_device_reads(&device, &mapping, 0..COUNT, 1)?;
    ensure_snapshot(&device, mapping.all(), ctx.local_read())?;
    ensure_errno!(device.write(mapping.all(), &pattern::pages(0, COUNT, 2)), Errno::EPERM);
    mapping.mprotect(0..COUNT, READ_WRITE)?;
    device_writes(&device, &mapping, 0..COUNT, 2)?;
    mapping.check(0..COUNT, 2)?;
    Ok(())
}

/// Pages moved to other addresses are on the device there.
fn moved_on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let moved = mapping.mremap(8..24, 3)?;
    let gone = mapping.all().part(8..24);
    ensure_snapshot(&device, gone, prot::ERROR)?;
    ensure_snapshot(&device, moved.all(), ctx.local_write())?;
    ensure_snapshot(&device, mapping.pages(0..8), ctx.local_write())?;
    ensure_errno!(device.read(gone), Errno::EFAULT);
    moved.check(0..16, 1)?;
    mapping.check(0..8, 1)?;
    mapping.check(24..COUNT, 1)?;
    Ok(())
}

fn moved_there_and_back(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let moved = mapping.mremap(0..COUNT, 1)?;
    migrate_back(&device, moved.all(), COUNT as u64)?;
    ensure_snapshot(&device, moved.all(), prot::WRITE)?;
    moved.check(0..COUNT, 1)?;
    migrate(&device, &moved, 0..COUNT, 1)?;
    moved.check(0..COUNT, 1)?;
    Ok(())
}

/// `MREMAP_DONTUNMAP` leaves an empty mapping, which can be migrated as any.
fn left_behind(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let moved = mapping.mremap_dontunmap(0..COUNT, 0)?;
    ensure_snapshot(&device, mapping.all(), prot::NONE)?;
    ensure_snapshot(&device, moved.all(), ctx.local_write())?;
    migrate(&device, &mapping, 0..COUNT, 0)?;
    mapping.check(0..COUNT, 0)?;
    moved.check(0..COUNT, 1)?;
    Ok(())
}

fn unmapped_on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mut mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    mapping.munmap(5..9)?;
    ensure_snapshot(&device, mapping.all().part(5..9), prot::ERROR)?;
    migrate_back(&device, mapping.pages(0..5), 5)?;
    migrate_back(&device, mapping.pages(9..COUNT), COUNT as u64 - 9)?;
    mapping.check(0..5, 1)?;
    mapping.check(9..COUNT, 1)?;
    Ok(())
}

fn discarded_on_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    mapping.madvise(5..9, MmapAdvise::MADV_DONTNEED)?;
    ensure_snapshot(&device, mapping.pages(5..9), prot::NONE)?;
    ensure_device_reads(&device, &mapping, 5..9, 0)?;
    mapping.check(5..9, 0)?;
    mapping.check(0..5, 1)?;
    mapping.check(9..COUNT, 1)?;
    Ok(())
}

/// Pages that the kernel may drop are either old or empty, and stay when written again.
fn freed_lazily(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    // The first half is freed in system memory, the second on the device.
    let mapping = filled(COUNT, 1)?;
    mapping.madvise(0..COUNT / 2, MmapAdvise::MADV_FREE)?;
    let migrated = device.migrate_to_dev(mapping.all())?;
    ensure_eq!(migrated.cpages, COUNT as u64);
    mapping.madvise(COUNT / 2..COUNT, MmapAdvise::MADV_FREE)?;
    for page in 0..COUNT {
        if mapping.check(page..page + 1, 1).is_err() {
            mapping.check(page..page + 1, 0)?;
        }
    }
    mapping.fill(0..COUNT, 2);
    device.release()?;
    mapping.madvise(0..COUNT, MmapAdvise::MADV_PAGEOUT)?;
    mapping.check(0..COUNT, 2)?;
    Ok(())
}

/// Pages locked in memory may be migrated, and are not counted for ever.
fn locked(ctx: &mut Context) -> Result {
    const MANY: usize = 512;
    let device = ctx.device(0)?;
    let before = mlocked_pages()?;
    let mapping = filled(MANY, 1)?;
    mapping.mlock(0..MANY)?;
    migrate(&device, &mapping, 0..MANY, 1)?;
    mapping.check(0..8, 1)?;
    mapping.munlock(0..MANY)?;
    drop(mapping);
    // Others may lock and unlock memory, but not that much.
    let more = mlocked_pages()?.saturating_sub(before);
    ensure!(more < MANY / 2, "{more} pages more are locked");
    Ok(())
}

/// The whole system's number of locked pages.
fn mlocked_pages() -> Result<usize> {
    // The CPUs' counters are added up only now and then.
    std::fs::write("/proc/sys/vm/stat_refresh", "1")?;
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Mlocked:"));
    let kb = line.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    Ok(kb.parse::<usize>()? * 1024 / PAGE_SIZE)
}

/// A memory error hits who uses the page, and nothing else: other pages stay on the
/// device, and the broken one is not used again. A private page comes back first.
fn poisoned(ctx: &mut Context) -> Result {
    const BROKEN: usize = 3;
    // The page is lost for good, and `exhausted` wants all those of the first device.
    let device = ctx.device(1)?;
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    let broken = mapping.pages(BROKEN..BROKEN + 1);
    let entry = pagemap::entries(broken)?[0];

    // Who meets the error gets a signal, which the handler of Rust's runtime lets pass once.
    let finder = Child::fork(|| {
        mapping.madvise(BROKEN..BROKEN + 1, MmapAdvise::MADV_HWPOISON)?;
        Ok(mapping.check(BROKEN..BROKEN + 1, 1)?)
    })?;
    ensure_eq!(finder.join_killed()?, Signal::SIGBUS);
    ensure_errno!(device.read(broken), Errno::EFAULT);
    ensure_errno!(device.write(broken, &pattern::pages(0, 1, 2)), Errno::EFAULT);
    ensure_snapshot(&device, mapping.pages(0..BROKEN), ctx.local_read())?;
    ensure_snapshot(&device, mapping.pages(BROKEN + 1..COUNT), ctx.local_read())?;
    migrate_back(&device, mapping.all(), COUNT as u64 - 1)?;
    let child = Child::fork(|| mapping.check(BROKEN..BROKEN + 1, 1).map_err(Into::into))?;
    ensure_eq!(child.join_killed()?, Signal::SIGBUS);
    mapping.check(0..BROKEN, 1)?;
    mapping.check(BROKEN + 1..COUNT, 1)?;

    for generation in 1..=2 {
        let other = filled(HUGE_PAGES, generation)?;
        migrate(&device, &other, 0..HUGE_PAGES, generation)?;
        let used = pagemap::entries(other.all())?;
        let again = used.iter().any(|used| used.is_present() && used.pfn() == entry.pfn());
        ensure!(!(entry.is_present() && again), "page frame {:#x} is used again", entry.pfn());
        device.release()?;
    }
    Ok(())
}

/// One page is not migrated, the first.
fn fail_alloc_to_device(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    device.fail_next_allocation()?;
    ensure_errno!(device.migrate_to_dev(mapping.all()), Errno::ENOENT);
    ensure_snapshot(&device, mapping.pages(0..1), prot::WRITE)?;
    ensure_snapshot(&device, mapping.pages(1..COUNT), ctx.local_write())?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Private memory does not come back at all; other pages do, but for the first.
fn fail_alloc_to_system(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    migrate(&device, &mapping, 0..COUNT, 1)?;
    device.fail_next_allocation()?;
    let mut rest = COUNT as u64;
    if ctx.memory_type == MemoryType::Private {
        ensure_errno!(device.migrate_to_sys(mapping.all()), Errno::ENOMEM);
        ensure_snapshot(&device, mapping.all(), ctx.local_write())?;
    } else {
        migrate_back(&device, mapping.all(), COUNT as u64 - 1)?;
        ensure_snapshot(&device, mapping.pages(0..1), ctx.local_write())?;
        ensure_snapshot(&device, mapping.pages(1..COUNT), prot::WRITE)?;
        rest = 1;
    }
    migrate_back(&device, mapping.all(), rest)?;
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// The CPU's access is tried again, and then goes well.
fn fail_alloc_in_fault(ctx: &mut Context) -> Result {
    let device = ctx.device(0)?;
    let mapping = filled(COUNT, 1)?;
    for page in 0..4 {
        migrate(&device, &mapping, 0..COUNT, 1)?;
        device.fail_next_allocation()?;
        mapping.check(page..page + 1, 1)?;
        ensure_snapshot(&device, mapping.pages(page..page + 1), prot::WRITE)?;
    }
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// Everything of a device's can be had back at once, by whichever file.
fn released(ctx: &mut Context) -> Result {
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let (one, two) = (filled(COUNT, 1)?, filled(COUNT, 2)?);
    let on_other = filled(COUNT, 3)?;
    let same = ctx.device(0)?;
    for round in 0..3 {
        migrate(&device, &one, 0..COUNT, 1)?;
        migrate(&same, &two, 0..COUNT, 2)?;
        migrate(&other, &on_other, 0..COUNT, 3)?;
        if round == 1 { &same } else { &device }.release()?;
        ensure_snapshot(&device, one.all(), prot::WRITE)?;
        ensure_snapshot(&device, two.all(), prot::WRITE)?;
        ensure_snapshot(&other, on_other.all(), ctx.local_write())?;
        one.check(0..COUNT, 1)?;
        two.check(0..COUNT, 2)?;
        // Nothing is there to release.
        device.release()?;
    }
    on_other.check(0..COUNT, 3)?;
    Ok(())
}

/// The device has no more memory: what fits is migrated, the rest stays empty, and the
/// other device has not been touched.
fn exhausted(ctx: &mut Context) -> Result {
    const STEP: usize = 16 * HUGE_PAGES;
    let (device, other) = (ctx.device(0)?, ctx.device(1)?);
    let one = filled(1, 1)?;
    migrate(&device, &one, 0..1, 1)?;
    // More than any device has.
    let mapping = Mapping::small(64 * STEP)?;
    let steps = (0..64).map(|i| i * STEP..(i + 1) * STEP);
    let mut full = None;
    for range in steps {
        match device.migrate_to_dev(mapping.pages(range.clone())) {
            Ok(migrated) => ensure_eq!(migrated.cpages, STEP as u64),
            Err(Errno::ENOENT) => {
                full = Some(range);
                break;
            }
            Err(errno) => Err(errno)?,
        }
    }
    let Some(full) = full else { fail!("{} pages fit", mapping.count()) };
    let snapshot = device.snapshot(mapping.pages(full.clone()))?;
    let fits = snapshot.iter().take_while(|&&byte| byte == ctx.local_write()).count();
    ensure!(fits < STEP, "all are on the device");
    ensure!(snapshot[fits..].iter().all(|&byte| byte == prot::NONE), "the rest is empty");
    ensure!(full.start + fits >= 256 * 256 - 1, "just {} pages fit", full.start + fits);

    // What does not fit is not lost, and another device has room.
    let rest = filled(COUNT, 2)?;
    ensure_errno!(device.migrate_to_dev(rest.all()), Errno::ENOENT);
    rest.check(0..COUNT, 2)?;
    migrate(&other, &rest, 0..COUNT, 2)?;

    // The first and the last that fit are of use, and make room for others.
    migrate_back(&other, rest.all(), COUNT as u64)?;
    mapping.check(full.start..full.start + fits.min(8), 0)?;
    migrate_back(&device, mapping.pages(0..COUNT), COUNT as u64)?;
    migrate(&device, &rest, 0..COUNT, 2)?;
    mapping.check(0..COUNT, 0)?;
    rest.check(0..COUNT, 2)?;
    one.check(0..1, 1)?;
    Ok(())
}
