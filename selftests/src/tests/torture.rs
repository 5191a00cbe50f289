// SPDX-License-Identifier: GPL-2.0
//! Everything at once, at random and for as long as one likes: what no other test thinks of.
//! Only if the group is named.
//!
//! What a thread does is decided by its seed, when it does it is not: a failure may take some
//! attempts to come again. The report says who was at what.

use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::{Context, Test};
use crate::failure::{Context as _, Failure, Result};
use crate::process::PATIENCE;
use crate::{ensure, fail, test};

mod actor;
mod books;
mod children;
mod devices;
mod failures;
mod journal;
mod memory;
mod pins;
mod reclaim;
mod reload;
mod system;
mod worker;

use actor::{Choice, Operation};
use books::Books;
use failures::failures;
use journal::Journal;
use reclaim::reclaim_exclusive;
use reload::{failed_loads, reload};
use system::{EVENTS, System};
use worker::{SLOTS, Worker};

/// Name of the group.
pub const GROUP: &str = "torture";

/// The group's tests.
pub const TESTS: &[Test] = &[
    test!(reclaim_exclusive),
    test!(processes).timeout(300),
    test!(failures).timeout(900),
    test!(reload).timeout(300),
    test!(failed_loads).timeout(300),
];

/// How they are done.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TortureOptions {
    /// How long each test of the group `torture` goes on that could go on for ever [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub minutes: Option<u32>,

    /// In the test `torture.processes`, only operations whose names begin so
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
}

impl TortureOptions {
    /// How long a test goes on.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(60) * self.minutes.unwrap_or(1)
    }

    /// The same as arguments of the command line.
    pub fn arguments(&self) -> Vec<String> {
        let argument = |name: &str, value: String| [name.to_owned(), value];
        let minutes = self.minutes.map(|n| argument("--minutes", n.to_string()));
        let only = (!self.only.is_empty()).then(|| argument("--only", self.only.join(",")));
        minutes.into_iter().chain(only).flatten().collect()
    }
}

/// All that a thread can do.
static OPERATIONS: LazyLock<Vec<&Operation>> = LazyLock::new(|| {
    let all = [devices::OPERATIONS, memory::OPERATIONS, pins::OPERATIONS, children::OPERATIONS];
    all.into_iter().flatten().collect()
});

/// Processes at a time.
const WORKERS: usize = 4;
/// How long each lives, at most.
const LONGEST_LIFE: Duration = Duration::from_secs(15);
/// The first slot of the journal is for what happens to the system.
const FIRST_SLOT: usize = 1;

/// Processes come and go, and are killed, that do all that can be done with memory and devices.
fn processes(ctx: &mut Context) -> Result {
    // Children of those that are killed are ours.
    set_child_subreaper(true)?;
    let books = Books::open(ctx)?;
    let names = OPERATIONS.iter().map(|o| o.name).chain(EVENTS.iter().map(|e| e.name));
    let journal = Journal::new(FIRST_SLOT + WORKERS * SLOTS, names.collect())?;
    let result = torture(ctx, &journal);
    for (name, attempts, successes) in journal.totals() {
        println!("{name}: {successes} of {attempts}");
    }
    if result.is_err() {
        journal.unfinished().iter().for_each(|line| println!("{line}"));
    }
    result?;
    books.balance(ctx, journal.poisoned())
}

fn torture(ctx: &mut Context, journal: &Journal) -> Result {
    let end = Instant::now() + ctx.torture.duration();
    let mut system = System::new(ctx.rng.fork())?;
    let mut rng = ctx.rng.fork();
    let slot = journal.slot(0, ctx.seed);
    let events = Choice::new(EVENTS.iter().map(|e| (e.name, e.weight)), &ctx.torture.only);
    let mut chance = ctx.rng.fork();
    let ctx = &*ctx;
    let mut start = |number: usize| {
        let life = Duration::from_millis(rng.u64(0..LONGEST_LIFE.as_millis() as u64));
        let life = life.min(end.saturating_duration_since(Instant::now()));
        let slot = FIRST_SLOT + number * SLOTS;
        Worker::start(ctx, journal, number, slot, rng.u64(..), life)
    };
    let mut workers = (0..WORKERS).map(&mut start).collect::<Result<Vec<_>>>()?;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(chance.u64(0..200)));
        let number = chance.usize(0..WORKERS);
        if let Some(event) = events.choose(&mut chance) {
            slot.begin(OPERATIONS.len() + event);
            let happened = (EVENTS[event].happen)(&mut system, workers[number].pid());
            slot.end(OPERATIONS.len() + event, happened.is_ok());
        }
        for (number, worker) in workers.iter_mut().enumerate() {
            let is_killed = chance.u32(0..100) == 0;
            ensure!(Instant::now() < worker.end + 2 * PATIENCE, "worker {number} does not end");
            if !is_killed && !worker.has_ended() {
                continue;
            }
            let old = std::mem::replace(worker, start(number)?);
            finish(old, is_killed).context(format!("worker {number}"))?;
        }
    }
    for worker in workers {
        finish(worker, chance.bool())?;
    }
    nobody_is_left()
}

/// Ends a worker, or waits for it to end.
fn finish(worker: Worker, is_killed: bool) -> Result {
    if is_killed {
        return worker.kill();
    }
    match worker.join()? {
        // By a memory cgroup.
        None | Some(Signal::SIGKILL) => Ok(()),
        Some(signal) => Err(Failure::failed(format!("killed by {signal}"))),
    }
}

/// Waits for the children of killed processes, which are killed as well.
fn nobody_is_left() -> Result {
    let end = Instant::now() + PATIENCE;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(_) => return Ok(()),
            Ok(WaitStatus::StillAlive) if Instant::now() > end => fail!("a child does not end"),
            Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_millis(20)),
            Ok(_) => {}
        }
    }
}
