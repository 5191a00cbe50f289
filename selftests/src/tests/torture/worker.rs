// SPDX-License-Identifier: GPL-2.0
//! A process whose threads do operations on the same memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::actor::{Actor, Scene};
use super::journal::Journal;
use crate::arena::Arena;
use crate::failure::{Failure, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::pattern;
use crate::process::Child;
use crate::tests::Context;
use crate::userfault::Handler;

/// Threads of a worker that do operations.
const THREADS: usize = 3;
/// Each has one for itself and one for its children.
pub const SLOTS: usize = 2 * THREADS;
/// Huge pages of memory, and a half, so that not all of it can be of huge pages.
const PAGES: usize = 3 * HUGE_PAGES + HUGE_PAGES / 2;

/// The process.
pub struct Worker {
    child: Child,
    /// When it ends by itself, if operations end.
    pub end: Instant,
}

impl Worker {
    /// Starts worker `number`, whose slots begin with `slot`.
    pub fn start(
        ctx: &Context,
        journal: &Journal,
        number: usize,
        slot: usize,
        seed: u64,
        life: Duration,
    ) -> Result<Self> {
        let end = Instant::now() + life;
        let child = Child::fork(|| {
            set_pdeathsig(Signal::SIGKILL)?;
            work(ctx, journal, number as u32 + 1, slot, seed, end)
        })?;
        Ok(Self { child, end })
    }

    /// Its process id.
    pub fn pid(&self) -> nix::unistd::Pid {
        self.child.pid()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.child.ends_within(Duration::ZERO)
    }

    /// Why it ended: well, or by a signal.
    pub fn join(self) -> Result<Option<Signal>> {
        self.child.join_or_killed()
    }

    /// Kills it, whatever its threads are at.
    pub fn kill(self) -> Result {
        self.child.kill()
    }
}

fn work(
    ctx: &Context,
    journal: &Journal,
    generation: u32,
    slot: usize,
    seed: u64,
    end: Instant,
) -> Result {
    let arena = Arena::new(PAGES);
    let read_write = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    arena.map(0..PAGES, read_write, MapFlags::MAP_PRIVATE)?;
    let source = Mapping::anonymous(PAGES)?;
    source.fill(0..PAGES, generation);
    let handler = Handler::new()?;
    let scene = Scene { ctx, arena: &arena, source: &source, handler: &handler, generation };
    let mut rng = fastrand::Rng::with_seed(seed);
    let seeds: Vec<_> = (0..THREADS).map(|_| rng.u64(..)).collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // It must not wait for memory that it is to provide.
        let answering = scope.spawn(|| answer(&scene, &is_over));
        let actors: Vec<_> = seeds
            .iter()
            .enumerate()
            .map(|(number, &seed)| {
                let (scene, slot) = (&scene, journal.slot(slot + 2 * number, seed));
                scope.spawn(move || Actor::new(scene, slot, seed, 0)?.act(end, usize::MAX))
            })
            .collect();
        let mut results: Vec<_> = actors.into_iter().map(|actor| actor.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        results.push(answering.join());
        let panicked = |_| Err(Failure::failed("a thread panicked"));
        results.into_iter().try_for_each(|result| result.unwrap_or_else(panicked))
    })
}

/// Answers page faults that wait for this process.
fn answer(scene: &Scene, is_over: &AtomicBool) -> Result {
    let mut even = false;
    while !is_over.load(Ordering::Relaxed) {
        even = !even;
        let first = scene.arena.all().addr;
        let contents = |addr| pattern::pages((addr - first) / PAGE_SIZE, 1, scene.generation);
        scene.handler.answer(|addr| even.then(|| contents(addr)))?;
    }
    Ok(())
}
