// SPDX-License-Identifier: GPL-2.0
//! Children, which have the memory of their parent, and do as it does.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::execv;

use super::actor::{Actor, Attempt, Operation};
use crate::arena::CpuAccess;
use crate::ensure;
use crate::failure::Result;
use crate::process::Child;

pub const OPERATIONS: &[Operation] = &[
    Operation { name: "child-fork", weight: 2, perform: fork },
    Operation { name: "child-touch", weight: 1, perform: touch },
    Operation { name: "child-exec", weight: 1, perform: exec },
    Operation { name: "child-join", weight: 2, perform: join },
    Operation { name: "child-kill", weight: 1, perform: kill },
];

/// Of one actor.
const MOST_CHILDREN: usize = 2;
const MOST_GENERATIONS: u32 = 2;
/// Operations of a child.
const LIFE: usize = 60;
const LONGEST_LIFE: Duration = Duration::from_secs(5);

/// Forks a child that goes on as its parent does, by itself or with what that has opened.
fn fork(actor: &mut Actor) -> Result<Attempt> {
    let seed = actor.rng.u64(..);
    let (scene, depth, slot) = (actor.scene, actor.depth + 1, actor.slot);
    let has_own_files = actor.rng.bool();
    let count = actor.rng.usize(1..LIFE);
    start(actor, &[], |actor| {
        let end = Instant::now() + LONGEST_LIFE;
        if has_own_files {
            return Actor::new(scene, slot.of_child(seed, depth), seed, depth)?.act(end, count);
        }
        // What is pinned, and who are its children, is for the parent to end. Its devices are of
        // the parent's memory.
        std::mem::forget(std::mem::take(&mut actor.pins));
        std::mem::forget(std::mem::take(&mut actor.children));
        actor.cpu = CpuAccess::new()?;
        actor.slot = slot.of_child(seed, depth);
        actor.rng = fastrand::Rng::with_seed(seed);
        actor.depth = depth;
        actor.act(end, count)
    })
}

/// Forks a child that accesses memory by itself, and may be killed for it.
fn touch(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    start(actor, &[Signal::SIGSEGV, Signal::SIGBUS], |actor| {
        actor.scene.arena.touch(range);
        Ok(())
    })
}

/// Forks a child that becomes another program.
fn exec(actor: &mut Actor) -> Result<Attempt> {
    start(actor, &[], |_| Ok(execv(c"/bin/true", &[c"true"]).map(drop)?))
}

/// A child, and what may end it other than `SIGKILL`.
pub struct Started {
    child: Child,
    signals: &'static [Signal],
}

/// Forks a child that does something, and may be killed by these signals for it.
pub fn start<'a>(
    actor: &mut Actor<'a>,
    signals: &'static [Signal],
    body: impl FnOnce(&mut Actor<'a>) -> Result,
) -> Result<Attempt> {
    if actor.children.len() >= MOST_CHILDREN || actor.depth >= MOST_GENERATIONS {
        return Ok(Err(Errno::EALREADY));
    }
    let child = Child::fork(|| {
        set_pdeathsig(Signal::SIGKILL)?;
        body(actor)
    });
    // Memory may be short.
    let child = child.map(|child| actor.children.push(Started { child, signals }));
    Ok(child.map_err(|_| Errno::EAGAIN))
}

fn join(actor: &mut Actor) -> Result<Attempt> {
    let Some(Started { child, signals }) = actor.children.pop() else {
        return Ok(Err(Errno::ECHILD));
    };
    if let Some(signal) = child.join_or_killed()? {
        ensure!(signal == Signal::SIGKILL || signals.contains(&signal), "killed by {signal}");
    }
    Ok(Ok(()))
}

fn kill(actor: &mut Actor) -> Result<Attempt> {
    let Some(child) = actor.children.pop() else {
        return Ok(Err(Errno::ECHILD));
    };
    child.child.kill()?;
    Ok(Ok(()))
}
