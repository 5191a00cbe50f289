// SPDX-License-Identifier: GPL-2.0
//! What each thread does, and did, in memory that outlives all of them.

use std::ops::Range;

use crate::failure::Result;
use crate::memory::Mapping;

// Words of a slot.
const PID: usize = 0;
const SEED: usize = 1;
const STEP: usize = 2;
/// The number of the operation, from 1; 0 when it is over.
const DOING: usize = 3;
const START: usize = 4;
const END: usize = 5;
/// In the first slot, for all.
const POISONED: usize = 6;
const COUNTERS: usize = 16;

/// How many pages may be poisoned in all.
const MOST_POISONED: u64 = 8;

/// A page of it for each thread; what it counts is for people, and need not be exact.
#[derive(Debug)]
pub struct Journal {
    slots: Mapping,
    /// Of the operations.
    names: Vec<&'static str>,
}

impl Journal {
    /// An empty one, for operations of these names.
    pub fn new(slots: usize, names: Vec<&'static str>) -> Result<Self> {
        Ok(Self { slots: Mapping::shared(slots)?, names })
    }

    /// The slot of a thread, which does what this seed makes it do.
    pub fn slot(&self, number: usize, seed: u64) -> Slot<'_> {
        let slot = Slot { journal: self, number };
        slot.set(PID, u64::from(std::process::id()));
        slot.set(SEED, seed);
        slot.set(STEP, 0);
        slot.set(DOING, 0);
        slot
    }

    /// The process of a slot; 0 if there was none.
    pub fn pid(&self, number: usize) -> u64 {
        self.slots.read(number, PID)
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots.count()
    }

    /// Whether one more page may be poisoned, which then counts.
    pub fn may_poison(&self) -> bool {
        let poisoned = self.poisoned();
        self.slots.write(0, POISONED, poisoned + 1);
        poisoned < MOST_POISONED
    }

    /// About how many pages were poisoned, or tried to.
    pub fn poisoned(&self) -> u64 {
        self.slots.read(0, POISONED).min(MOST_POISONED)
    }

    /// How often each operation was done, and how often that succeeded.
    pub fn totals(&self) -> Vec<(&'static str, u64, u64)> {
        let sum = |word| (0..self.slots.count()).map(|slot| self.slots.read(slot, word)).sum();
        let total = |(number, &name)| (name, sum(attempts(number)), sum(attempts(number) + 1));
        self.names.iter().enumerate().map(total).collect()
    }

    /// A line for each thread that has begun an operation and not ended it.
    pub fn unfinished(&self) -> Vec<String> {
        let of_slot = |slot: usize| {
            let word = |word| self.slots.read(slot, word);
            let name = self.names.get((word(DOING) as usize).checked_sub(1)?)?;
            let (start, end) = (word(START), word(END));
            let (pid, seed, step) = (word(PID), word(SEED), word(STEP));
            Some(format!(
                "slot {slot}, process {pid}, seed {seed}, step {step}: {name} {start}-{end}"
            ))
        };
        (0..self.slots.count()).filter_map(of_slot).collect()
    }
}

fn attempts(operation: usize) -> usize {
    COUNTERS + 2 * operation
}

/// Where a thread says what it does.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    journal: &'a Journal,
    number: usize,
}

impl<'a> Slot<'a> {
    fn get(&self, word: usize) -> u64 {
        self.journal.slots.read(self.number, word)
    }

    fn set(&self, word: usize, value: u64) {
        self.journal.slots.write(self.number, word, value);
    }

    fn add(&self, word: usize) {
        self.set(word, self.get(word) + 1);
    }

    /// The slot of all children of this one's thread, or of the one that it is a child of.
    pub fn of_child(&self, seed: u64, depth: u32) -> Self {
        let number = if depth == 1 { self.number + 1 } else { self.number };
        self.journal.slot(number, seed)
    }

    /// The journal that it is in.
    pub fn journal(&self) -> &'a Journal {
        self.journal
    }

    /// An operation begins.
    pub fn begin(&self, operation: usize) {
        self.range(&(0..0));
        self.add(STEP);
        self.set(DOING, operation as u64 + 1);
        self.add(attempts(operation));
    }

    /// The pages that it is about.
    pub fn range(&self, range: &Range<usize>) {
        self.set(START, range.start as u64);
        self.set(END, range.end as u64);
    }

    /// It is over.
    pub fn end(&self, operation: usize, has_succeeded: bool) {
        self.set(DOING, 0);
        if has_succeeded {
            self.add(attempts(operation) + 1);
        }
    }

    /// What is being done, to be told with a failure.
    pub fn describe(&self) -> String {
        let (seed, step) = (self.get(SEED), self.get(STEP));
        format!(
            "slot {}, seed {seed}, step {step}, pages {}-{}",
            self.number,
            self.get(START),
            self.get(END)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_is_being_done() {
        let journal = Journal::new(3, vec!["read", "write"]).unwrap();
        let slot = journal.slot(1, 7);
        slot.begin(1);
        slot.end(1, true);
        slot.begin(1);
        slot.end(1, false);
        assert!(journal.unfinished().is_empty());
        let slot = slot.of_child(8, 1);
        slot.begin(0);
        slot.range(&(3..5));
        let pid = std::process::id();
        let expected = format!("slot 2, process {pid}, seed 8, step 1: read 3-5");
        assert_eq!(journal.unfinished(), [expected]);
        assert_eq!(journal.totals(), [("read", 1, 0), ("write", 2, 1)]);
    }
}
