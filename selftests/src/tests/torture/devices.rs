// SPDX-License-Identifier: GPL-2.0
//! What devices do: every command, with ranges and buffers good and bad.

use nix::errno::Errno;

use super::actor::{Actor, Attempt, Operation};
use crate::arena::CpuAccess;
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::pages::{PAGE_SIZE, Pages};
use crate::uapi::{self, Cmd};
use crate::{ensure, pattern};

pub const OPERATIONS: &[Operation] = &[
    Operation { name: "device-read", weight: 8, perform: |actor| copy_out(actor, uapi::READ) },
    Operation {
        name: "device-read-unlocked",
        weight: 4,
        perform: |actor| copy_out(actor, uapi::READ_UNLOCKED),
    },
    Operation { name: "device-write", weight: 8, perform: write },
    Operation {
        name: "device-migrate",
        weight: 16,
        perform: |actor| copy_out(actor, uapi::MIGRATE_TO_DEV),
    },
    Operation {
        name: "device-migrate-back",
        weight: 8,
        perform: |actor| plain(actor, uapi::MIGRATE_TO_SYS),
    },
    Operation { name: "device-snapshot", weight: 4, perform: snapshot },
    Operation {
        name: "device-exclusive",
        weight: 4,
        perform: |actor| copy_out(actor, uapi::EXCLUSIVE),
    },
    Operation {
        name: "device-check-exclusive",
        weight: 2,
        perform: |actor| plain(actor, uapi::CHECK_EXCLUSIVE),
    },
    Operation { name: "device-release", weight: 1, perform: |actor| plain(actor, uapi::RELEASE) },
    Operation { name: "device-reopen", weight: 1, perform: reopen },
    Operation { name: "device-fail-allocation", weight: 1, perform: fail_allocation },
    Operation { name: "device-nonsense", weight: 1, perform: nonsense },
];

/// An address that user space never has.
const KERNEL_ADDRESS: u64 = 0xffff_8000_0000_0000;

/// What the drivers may answer, see their documentation.
const ERRORS: &[Errno] = &[
    Errno::EINVAL,
    Errno::EFAULT,
    Errno::ENOMEM,
    Errno::EBUSY,
    Errno::ENOENT,
    Errno::EPERM,
    Errno::EINTR,
    Errno::ENOTTY,
    Errno::EOPNOTSUPP,
];

/// Issues a command, whose range may become a bad one.
fn issue(actor: &mut Actor, request: u32, pages: Pages, ptr: u64) -> Result<Attempt> {
    let mut cmd =
        Cmd { addr: pages.addr as u64, ptr, npages: pages.count as u64, ..Cmd::default() };
    if actor.one_in(32) {
        match actor.rng.u32(0..6) {
            0 => cmd.addr += actor.rng.u64(1..PAGE_SIZE as u64),
            1 => cmd.npages = 0,
            2 => cmd.npages = actor.rng.u64(..),
            3 => cmd.npages = u64::MAX / PAGE_SIZE as u64,
            4 => cmd.addr = KERNEL_ADDRESS,
            _ => cmd.addr = actor.rng.u64(..) & !(PAGE_SIZE as u64 - 1),
        }
        // What is written there must not be this program's own.
        if request == uapi::WRITE {
            cmd.addr |= 1 << 63;
        }
    }
    let number = actor.rng.usize(0..actor.devices.len());
    let attempt = actor.devices[number].raw(request, &mut cmd);
    if let Err(errno) = attempt {
        ensure!(ERRORS.contains(&errno), "{errno}");
    }
    Ok(attempt)
}

/// Where data goes: mostly to the buffer, or to pages of the arena, or where there is nothing.
fn destination(actor: &mut Actor, count: usize) -> u64 {
    match actor.rng.u32(0..32) {
        0 => KERNEL_ADDRESS,
        1 => 0,
        2..6 => {
            let place = actor.place_for(count);
            actor.scene.arena.pages(place..place + count).addr as u64
        }
        _ => actor.buffer.all().addr as u64,
    }
}

/// A command that copies data out, which must be the process's own.
fn copy_out(actor: &mut Actor, request: u32) -> Result<Attempt> {
    let range = actor.range();
    let ptr = destination(actor, range.len());
    let attempt = issue(actor, request, actor.scene.arena.pages(range.clone()), ptr)?;
    if attempt.is_ok() && ptr == actor.buffer.all().addr as u64 {
        let data = actor.buffer.contents(0..range.len().min(CpuAccess::PAGES));
        ensure!(pattern::is_from(&data, actor.scene.generation), "the device reads other data");
    }
    Ok(attempt)
}

fn write(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let ptr = match actor.rng.u32(0..8) {
        0 => destination(actor, range.len()),
        _ => actor.scene.source.pages(range.clone()).addr as u64,
    };
    issue(actor, uapi::WRITE, actor.scene.arena.pages(range), ptr)
}

fn plain(actor: &mut Actor, request: u32) -> Result<Attempt> {
    let range = actor.range();
    issue(actor, request, actor.scene.arena.pages(range), 0)
}

/// A byte a page, which goes where no other data is.
fn snapshot(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let count = actor.buffer.count();
    let ptr = actor.buffer.pages(count - 1..count).addr as u64;
    issue(actor, uapi::SNAPSHOT, actor.scene.arena.pages(range), ptr)
}

/// Closes a device, which evicts what it has, and opens it again.
fn reopen(actor: &mut Actor) -> Result<Attempt> {
    let number = actor.rng.usize(0..actor.devices.len());
    let node = &actor.scene.ctx.all_nodes[number];
    // Another open device does not do for the one that is closed.
    drop(std::mem::replace(&mut actor.devices[number], Device::open("/dev/null".as_ref())?));
    actor.devices[number] = Device::open(node).context(node.display())?;
    Ok(Ok(()))
}

fn fail_allocation(actor: &mut Actor) -> Result<Attempt> {
    let number = actor.rng.usize(0..actor.devices.len());
    Ok(actor.devices[number].fail_next_allocation())
}

/// Commands that there are not, and arguments that are not there.
fn nonsense(actor: &mut Actor) -> Result<Attempt> {
    let number = actor.rng.usize(0..actor.devices.len());
    let requests = [uapi::READ, uapi::RELEASE, uapi::FLAGS, uapi::GET_MEM_DEV_TYPE];
    let request = if actor.rng.bool() { actor.pick(&requests) } else { actor.rng.u32(..) };
    let argument = actor.pick(&[0, 1, KERNEL_ADDRESS as usize]);
    Ok(actor.devices[number].raw_argument(request, argument))
}
