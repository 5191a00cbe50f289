// SPDX-License-Identifier: GPL-2.0
//! What the process does with its memory.

use std::fs;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::signal::Signal;

use super::actor::{Actor, Attempt, Operation};
use super::children;
use crate::failure::Result;
use crate::pages::PAGE_SIZE;
use crate::{ensure, pattern};

pub const OPERATIONS: &[Operation] = &[
    Operation { name: "cpu-load", weight: 16, perform: load },
    Operation { name: "cpu-store", weight: 16, perform: store },
    Operation { name: "map", weight: 8, perform: map },
    Operation { name: "unmap", weight: 2, perform: unmap },
    Operation { name: "protect", weight: 4, perform: protect },
    Operation { name: "move", weight: 4, perform: move_pages },
    Operation { name: "advise", weight: 24, perform: advise },
    Operation { name: "poison", weight: 1, perform: poison },
    Operation { name: "lock", weight: 2, perform: lock },
    Operation { name: "move-to-node", weight: 2, perform: move_to_node },
    Operation { name: "userfault-register", weight: 4, perform: register },
    Operation { name: "userfault-unregister", weight: 3, perform: unregister },
    Operation { name: "userfault-protect", weight: 2, perform: write_protect },
    Operation { name: "userfault-move", weight: 3, perform: move_by_user },
    Operation { name: "look", weight: 1, perform: look },
];

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

// What the libc crate does not have.
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// All advice that leaves pages of the system as they are.
const ADVICE: &[i32] = &[
    libc::MADV_COLLAPSE,
    libc::MADV_COLLAPSE,
    libc::MADV_PAGEOUT,
    libc::MADV_PAGEOUT,
    libc::MADV_COLD,
    libc::MADV_FREE,
    libc::MADV_DONTNEED,
    libc::MADV_DONTNEED_LOCKED,
    libc::MADV_REMOVE,
    libc::MADV_HUGEPAGE,
    libc::MADV_HUGEPAGE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_MERGEABLE,
    libc::MADV_UNMERGEABLE,
    libc::MADV_POPULATE_READ,
    libc::MADV_POPULATE_WRITE,
    libc::MADV_WILLNEED,
    libc::MADV_DONTFORK,
    libc::MADV_DOFORK,
    libc::MADV_WIPEONFORK,
    libc::MADV_KEEPONFORK,
    libc::MADV_SEQUENTIAL,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_GUARD_REMOVE,
];

/// What the CPU finds must be the process's own.
fn load(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.small_range();
    match actor.cpu.load(actor.scene.arena.pages(range)) {
        Ok(data) => {
            let whole = data.len() / size_of::<u64>() * size_of::<u64>();
            let is_own = pattern::is_from(&data[..whole], actor.scene.generation);
            ensure!(is_own, "the CPU reads other data");
            Ok(Ok(()))
        }
        Err(errno) => Ok(Err(errno)),
    }
}

fn store(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.small_range();
    let data = pattern::pages(range.start, range.len(), actor.scene.generation);
    Ok(actor.cpu.store(actor.scene.arena.pages(range), &data))
}

fn map(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let arena = actor.scene.arena;
    let (private, shared) = (MapFlags::MAP_PRIVATE, MapFlags::MAP_SHARED);
    Ok(match actor.rng.u32(0..16) {
        0 => arena.map(range, READ_WRITE, shared),
        1 => arena.map_file(range, READ_WRITE, shared, actor.file.as_fd()),
        2 => arena.map_file(range, READ_WRITE, private, actor.file.as_fd()),
        3 => arena.map(range, ProtFlags::PROT_READ, private),
        4 => arena.map(range, READ_WRITE, private | MapFlags::MAP_LOCKED),
        5 => arena.map(range, READ_WRITE, private | MapFlags::MAP_NORESERVE),
        _ => arena.map(range, READ_WRITE, private),
    })
}

fn unmap(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    Ok(actor.scene.arena.unmap(range))
}

fn protect(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let all = [ProtFlags::PROT_NONE, ProtFlags::PROT_READ, READ_WRITE, READ_WRITE];
    let prot = actor.pick(&all);
    Ok(actor.scene.arena.protect(range, prot))
}

fn move_pages(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let to = actor.place_for(range.len());
    let flags = actor.pick(&[0, 0, libc::MREMAP_DONTUNMAP]);
    Ok(actor.scene.arena.move_to(range, to, flags))
}

fn advise(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let advice = actor.pick(ADVICE);
    Ok(actor.scene.arena.advise(range, advice))
}

/// Has a page taken for broken, or about to break. Few times: the system loses it. By a child, as
/// who asks for it is killed if the page was written to, or is one of a device.
fn poison(actor: &mut Actor) -> Result<Attempt> {
    let advice = actor.pick(&[libc::MADV_HWPOISON, libc::MADV_SOFT_OFFLINE]);
    let page = actor.range().start;
    if !actor.slot.journal().may_poison() {
        return Ok(Err(Errno::EAGAIN));
    }
    children::start(actor, &[Signal::SIGBUS], |actor| {
        // It may fail.
        let _ = actor.scene.arena.advise(page..page + 1, advice);
        Ok(())
    })
}

fn lock(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.small_range();
    let flags = actor.pick(&[None, None, Some(0), Some(libc::MLOCK_ONFAULT)]);
    Ok(actor.scene.arena.lock(range, flags))
}

/// There may be one node only, where pages are then already.
fn move_to_node(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.small_range();
    let node = actor.pick(&[0, 1]);
    Ok(actor.scene.arena.move_to_node(range, node))
}

fn register(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let (missing, wp) = actor.pick(&[(true, false), (false, true), (true, true)]);
    Ok(actor.scene.handler.register(actor.scene.arena.pages(range), missing, wp))
}

fn unregister(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    Ok(actor.scene.handler.unregister(actor.scene.arena.pages(range)))
}

fn write_protect(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let is_on = !actor.one_in(3);
    Ok(actor.scene.handler.protect(actor.scene.arena.pages(range), is_on))
}

fn move_by_user(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let to = actor.place_for(range.len());
    let arena = actor.scene.arena;
    let (src, dst) = (arena.pages(range.clone()), arena.pages(to..to + range.len()));
    Ok(actor.scene.handler.move_to(dst, src))
}

/// Has the kernel tell of all memory, of this process or another; or read that one's, which it
/// may, as `ptrace` may.
fn look(actor: &mut Actor) -> Result<Attempt> {
    let journal = actor.slot.journal();
    let pid = journal.pid(actor.rng.usize(0..journal.slots()));
    let name = actor.pick(&["smaps", "numa_maps", "clear_refs", "mem"]);
    let path = format!("/proc/{pid}/{name}");
    let done = match name {
        "clear_refs" => fs::write(path, actor.pick(&["1", "4"])),
        "mem" => {
            let addr = actor.scene.arena.pages(actor.small_range()).addr as u64;
            let mut page = [0; PAGE_SIZE];
            let file = fs::File::open(path);
            file.and_then(|file| std::os::unix::fs::FileExt::read_at(&file, &mut page, addr))
                .map(drop)
        }
        _ => fs::read(path).map(drop),
    };
    Ok(done.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))))
}
