// SPDX-License-Identifier: GPL-2.0
//! A thread that does operations at random.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::OPERATIONS;
use super::children::Started;
use super::journal::Slot;
use super::pins::Pins;
use crate::arena::{Arena, CpuAccess};
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::tests::Context;
use crate::userfault::Handler;

/// What an operation came to. Most may fail, as others are at work on the same pages.
pub type Attempt = std::result::Result<(), Errno>;

/// Something that can be done at any time.
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    /// How often it is chosen, compared with others.
    pub weight: u32,
    /// Does it. Fails the test if something is found that must not be.
    pub perform: fn(&mut Actor) -> Result<Attempt>,
}

/// What all threads of a process share.
pub struct Scene<'a> {
    pub ctx: &'a Context,
    pub arena: &'a Arena,
    /// Pages of contents that may be written to the arena.
    pub source: &'a Mapping,
    pub handler: &'a Handler,
    /// Generation of all that the process, and its children, write.
    pub generation: u32,
}

/// The thread, with what it uses alone.
pub struct Actor<'a> {
    pub scene: &'a Scene<'a>,
    pub slot: Slot<'a>,
    pub rng: fastrand::Rng,
    pub devices: Vec<Device>,
    pub cpu: CpuAccess,
    /// For what devices copy out; one page more than the arena has.
    pub buffer: Mapping,
    /// As large as the arena.
    pub file: File,
    pub pins: Pins,
    pub children: Vec<Started>,
    /// How many ancestors it has that are such actors.
    pub depth: u32,
}

impl<'a> Actor<'a> {
    /// Opens all devices and more.
    pub fn new(scene: &'a Scene<'a>, slot: Slot<'a>, seed: u64, depth: u32) -> Result<Self> {
        let count = scene.arena.all().count;
        let file: OwnedFd = memfd_create("torture", MFdFlags::MFD_CLOEXEC).context("memfd")?;
        ftruncate(&file, (count * PAGE_SIZE) as i64)?;
        let open = |node: &std::path::PathBuf| Device::open(node).context(node.display());
        Ok(Self {
            scene,
            slot,
            rng: fastrand::Rng::with_seed(seed),
            devices: scene.ctx.all_nodes.iter().map(open).collect::<Result<_>>()?,
            cpu: CpuAccess::new()?,
            buffer: Mapping::anonymous(count + 1)?,
            file: file.into(),
            pins: Pins::new()?,
            children: Vec::new(),
            depth,
        })
    }

    /// Does operations until the time is over, or so many.
    pub fn act(&mut self, end: Instant, count: usize) -> Result {
        let only = &self.scene.ctx.torture.only;
        let choice = Choice::new(OPERATIONS.iter().map(|o| (o.name, o.weight)), only);
        for _ in 0..count {
            if Instant::now() >= end {
                break;
            }
            let Some(number) = choice.choose(&mut self.rng) else { break };
            self.slot.begin(number);
            let operation = &OPERATIONS[number];
            let attempt = (operation.perform)(self).context(format!(
                "{}: {}",
                operation.name,
                self.slot.describe()
            ))?;
            self.slot.end(number, attempt.is_ok());
        }
        Ok(())
    }

    /// Whether something with a chance of one in `n` happens.
    pub fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    /// One of some.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.rng.usize(0..all.len())]
    }

    /// Pages of the arena: few or many, where others are or alone, with huge pages or in part.
    pub fn range(&mut self) -> Range<usize> {
        const BUSY: usize = 8;
        let count = self.scene.arena.all().count;
        let blocks = count / HUGE_PAGES;
        let block = self.rng.usize(0..blocks);
        let (start, len) = match self.rng.u32(0..10) {
            0..3 => (self.rng.usize(0..count), self.rng.usize(1..=16)),
            3..5 => (self.rng.usize(0..BUSY), self.rng.usize(1..=BUSY)),
            5..7 => (block * HUGE_PAGES, self.rng.usize(1..=2) * HUGE_PAGES),
            7 => (block * HUGE_PAGES + HUGE_PAGES - self.rng.usize(1..8), self.rng.usize(1..16)),
            8 => (self.rng.usize(0..count), self.rng.usize(1..=HUGE_PAGES)),
            _ => (block * HUGE_PAGES + self.rng.usize(0..BUSY), 1),
        };
        let range = start..(start + len).min(count);
        self.slot.range(&range);
        range
    }

    /// As many as can be accessed by the CPU at once, or fewer.
    pub fn small_range(&mut self) -> Range<usize> {
        let range = self.range();
        let range = range.start..range.end.min(range.start + CpuAccess::PAGES);
        self.slot.range(&range);
        range
    }

    /// The first of so many pages.
    pub fn place_for(&mut self, len: usize) -> usize {
        let last = self.scene.arena.all().count - len;
        // Where huge pages can move as a whole, or not.
        if self.rng.bool() { self.rng.usize(0..=last) } else { last / HUGE_PAGES * HUGE_PAGES }
    }
}

/// Operations, or other things, by weight.
pub struct Choice {
    /// The number of each as often as it has weight.
    numbers: Vec<usize>,
}

impl Choice {
    /// Of all, or of those whose names begin so.
    pub fn new(all: impl Iterator<Item = (&'static str, u32)>, only: &[String]) -> Self {
        let is_asked = |name: &str| only.is_empty() || only.iter().any(|o| name.starts_with(o));
        let numbers = all.enumerate().filter(|(_, (name, _))| is_asked(name));
        let numbers = numbers.flat_map(|(n, (_, w))| std::iter::repeat_n(n, w as usize));
        Self { numbers: numbers.collect() }
    }

    /// One of them, if there is any.
    pub fn choose(&self, rng: &mut fastrand::Rng) -> Option<usize> {
        rng.choice(&self.numbers).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_weight_and_name() {
        let mut rng = fastrand::Rng::with_seed(1);
        let all = || [("map", 1), ("move", 2), ("never", 0)].into_iter();
        let mut counts = [0; 3];
        let any = Choice::new(all(), &[]);
        (0..300).for_each(|_| counts[any.choose(&mut rng).unwrap()] += 1);
        assert!(counts[0] > 50 && counts[1] > counts[0] && counts[2] == 0, "{counts:?}");
        let only = Choice::new(all(), &["mo".into()]);
        assert!((0..9).all(|_| only.choose(&mut rng) == Some(1)));
        assert_eq!(Choice::new(all(), &["x".into()]).choose(&mut rng), None);
    }
}
