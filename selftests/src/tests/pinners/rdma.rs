// SPDX-License-Identifier: GPL-2.0
//! Memory registered with RDMA, which another process reads and writes.

use std::time::Duration;

use nix::errno::Errno;

use super::registered::{self, Partner, Registrar, huge_on_device};
use super::{COUNT, on_device};
use crate::device::Device;
use crate::failure::Result;
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, Pages};
use crate::process::{Child, Gate};
use crate::rdma::{Adapter, QueuePair, Region, Remote};
use crate::tests::Context;
use crate::{ensure_eq, fail};

impl Registrar for Adapter {
    type Buffer<'a> = Region<'a>;

    const UNPINS_LATER: bool = false;

    fn new() -> Result<Self> {
        Adapter::open()
    }

    fn register(&self, pages: Pages) -> Result<Region<'_>, Errno> {
        Adapter::register(self, pages)
    }
}

// Words of the page that both processes have: their queue pairs, what is asked for, and whether
// that was done.
const OWNER: usize = 0;
const PEER: usize = 1;
const OPERATION: usize = 2;
const ADDRESS: usize = 3;
const KEY: usize = 4;
const DONE: usize = 5;

const READ: u64 = 1;
const WRITE: u64 = 2;

/// How long a process may take to end after it has failed.
const END: Duration = Duration::from_secs(1);

/// Another process, with an adapter and a queue pair of its own, and memory that it reads to and
/// writes from, which the test sees.
struct Peer {
    words: Mapping,
    memory: Mapping,
    asked: Gate,
    answered: Gate,
}

impl Peer {
    fn new(count: usize) -> Result<Self> {
        let (words, memory) = (Mapping::shared(1)?, Mapping::shared(count)?);
        Ok(Self { words, memory, asked: Gate::new()?, answered: Gate::new()? })
    }

    /// What the process does, until it is killed or fails.
    fn run(&self) -> Result {
        let result = self.serve();
        self.answered.open()?;
        result
    }

    fn serve(&self) -> Result {
        let adapter = Adapter::open()?;
        let region = adapter.register(self.memory.all())?;
        let pair = adapter.queue_pair()?;
        self.words.write(0, PEER, pair.number().into());
        self.answer()?;
        pair.connect(self.word(OWNER)?)?;
        loop {
            self.answer()?;
            let remote = Remote { addr: self.words.read(0, ADDRESS), key: self.word(KEY)? };
            match self.words.read(0, OPERATION) {
                READ => pair.read(&region, remote)?,
                WRITE => pair.write(&region, remote)?,
                operation => fail!("no operation {operation}"),
            }
        }
    }

    fn word(&self, index: usize) -> Result<u32> {
        Ok(u32::try_from(self.words.read(0, index))?)
    }

    /// In the process: lets the test go on, until it asks for more.
    fn answer(&self) -> Result {
        self.words.write(0, DONE, 1);
        self.answered.open()?;
        self.asked.pass()
    }

    /// In the test: waits until the process has done what it was asked for.
    fn wait(&self) -> Result {
        self.answered.pass()?;
        ensure_eq!(self.words.read(0, DONE), 1, "the other process has failed");
        Ok(())
    }

    fn ask(&self) -> Result {
        self.words.write(0, DONE, 0);
        self.asked.open()?;
        self.wait()
    }

    /// Connects a queue pair of the test's.
    fn connect(&self, pair: &QueuePair) -> Result {
        self.wait()?;
        self.words.write(0, OWNER, pair.number().into());
        pair.connect(self.word(PEER)?)?;
        self.ask()
    }

    /// Has it read all of a region, or write it.
    fn transfer(&self, operation: u64, region: &Region) -> Result {
        let remote = region.remote();
        self.words.write(0, OPERATION, operation);
        self.words.write(0, ADDRESS, remote.addr);
        self.words.write(0, KEY, remote.key.into());
        self.ask()
    }
}

impl Partner<Region<'_>> for Peer {
    fn receive(&self, region: &Region<'_>) -> Result<Vec<u8>> {
        self.transfer(READ, region)?;
        Ok(self.memory.contents(0..self.memory.count()))
    }

    fn send(&self, region: &Region<'_>, generation: u32) -> Result {
        self.memory.fill(0..self.memory.count(), generation);
        self.transfer(WRITE, region)
    }
}

/// Small pages.
pub fn rdma(ctx: &mut Context) -> Result {
    transfers(ctx, COUNT, on_device)
}

/// What was huge pages before it was migrated.
pub fn rdma_huge(ctx: &mut Context) -> Result {
    transfers(ctx, 2 * HUGE_PAGES, huge_on_device)
}

fn transfers(ctx: &Context, count: usize, on_device: fn(&Device) -> Result<Mapping>) -> Result {
    // Opened here first: a child cannot skip the test.
    let adapter = Adapter::open()?;
    let pair = adapter.queue_pair()?;
    let peer = Peer::new(count)?;
    // Before there are pages that it would share.
    let child = Child::fork(|| peer.run())?;
    let result = peer.connect(&pair).and_then(|()| {
        let device = ctx.device(0)?;
        registered::transfers(ctx, &device, &on_device(&device)?, &adapter, &peer)
    });
    if result.is_err() && child.ends_within(END) {
        child.join()?;
    }
    result
}

/// When a process is killed, its pins end as well.
pub fn rdma_killed(ctx: &mut Context) -> Result {
    registered::killed::<Adapter>(ctx)
}

/// No more can be registered than the limit says, which is the address space's.
pub fn rdma_memlock(ctx: &mut Context) -> Result {
    registered::memlock::<Adapter>(ctx)
}
