// SPDX-License-Identifier: GPL-2.0
//! Pins of all kinds, held while other things happen.

use nix::errno::Errno;

use super::actor::{Actor, Attempt, Operation};
use crate::failure::{Failure, Result};
use crate::pins::{GupTest, LongtermPin, PipePin};
use crate::uring::{RegisteredBuffer, Ring};

pub const OPERATIONS: &[Operation] = &[
    Operation { name: "pin-longterm", weight: 2, perform: pin_longterm },
    Operation { name: "pin-register", weight: 2, perform: register },
    Operation { name: "pin-pipe", weight: 2, perform: pin_pipe },
    Operation { name: "pin-transfer", weight: 2, perform: transfer },
    Operation { name: "unpin", weight: 4, perform: unpin },
];

/// At most one pin of each kind.
#[derive(Default)]
pub struct Pins {
    gup_test: Option<&'static GupTest>,
    ring: Option<&'static Ring>,
    longterm: Option<LongtermPin<'static>>,
    registered: Option<RegisteredBuffer<'static>>,
    piped: Option<PipePin>,
}

impl Pins {
    /// None; what the kernel does not have for it is left out.
    pub fn new() -> Result<Self> {
        // The process ends by exiting.
        Ok(Self {
            gup_test: if_there(GupTest::open())?.map(|it| &*Box::leak(Box::new(it))),
            ring: if_there(Ring::new())?.map(|it| &*Box::leak(Box::new(it))),
            longterm: None,
            registered: None,
            piped: None,
        })
    }
}

fn if_there<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(it) => Ok(Some(it)),
        Err(Failure::Skipped(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn pin_longterm(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.small_range();
    let (write, fast) = (actor.rng.bool(), actor.rng.bool());
    let (Some(gup_test), None) = (actor.pins.gup_test, &actor.pins.longterm) else {
        return Ok(Err(Errno::EALREADY));
    };
    Ok(gup_test.pin(actor.scene.arena.pages(range), write, fast).map(|pin| {
        actor.pins.longterm = Some(pin);
    }))
}

fn register(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.range();
    let (Some(ring), None) = (actor.pins.ring, &actor.pins.registered) else {
        return Ok(Err(Errno::EALREADY));
    };
    Ok(ring.register(actor.scene.arena.pages(range)).map(|buffer| {
        actor.pins.registered = Some(buffer);
    }))
}

fn pin_pipe(actor: &mut Actor) -> Result<Attempt> {
    let range = actor.small_range();
    if actor.pins.piped.is_some() {
        return Ok(Err(Errno::EALREADY));
    }
    // It counts as a failure when others unmap the pages meanwhile.
    let pin = PipePin::new(actor.scene.arena.pages(range)).map_err(|_| Errno::EFAULT);
    Ok(pin.map(|pin| actor.pins.piped = Some(pin)))
}

/// From the registered buffer to a file, or back.
fn transfer(actor: &mut Actor) -> Result<Attempt> {
    let Some(buffer) = &actor.pins.registered else {
        return Ok(Err(Errno::ENOENT));
    };
    let is_write = actor.rng.bool();
    let done = if is_write { buffer.write_to(&actor.file) } else { buffer.read_from(&actor.file) };
    // A memory cgroup may be at its limit.
    Ok(done.map_err(|_| Errno::EIO))
}

fn unpin(actor: &mut Actor) -> Result<Attempt> {
    match actor.rng.u32(0..3) {
        0 => actor.pins.longterm = None,
        1 => actor.pins.registered = None,
        _ => actor.pins.piped = None,
    }
    Ok(Ok(()))
}
