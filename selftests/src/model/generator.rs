// SPDX-License-Identifier: GPL-2.0
//! Random sequences of operations. They depend on nothing but the seed.

use std::ops::Range;

use crate::model::memory::Shape;
use crate::model::operation::{Kind, Operation};
use crate::pages::HUGE_PAGES;

/// How often each kind is picked, relative to the others.
const WEIGHTS: &[(Kind, u32)] = &[
    (Kind::CpuRead, 6),
    (Kind::CpuWrite, 8),
    (Kind::DeviceRead, 6),
    (Kind::DeviceReadUnlocked, 2),
    (Kind::DeviceWrite, 8),
    (Kind::ToDevice, 16),
    (Kind::ToSystem, 6),
    (Kind::Exclusive, 4),
    (Kind::CheckExclusive, 3),
    (Kind::Release, 1),
    (Kind::Reopen, 1),
    (Kind::FailAllocation, 2),
    (Kind::Fork, 3),
    (Kind::ForkAndHold, 2),
    (Kind::Join, 2),
    (Kind::Map, 2),
    (Kind::MapHole, 7),
    (Kind::Unmap, 2),
    (Kind::ProtectNone, 1),
    (Kind::ProtectRead, 3),
    (Kind::ProtectWrite, 8),
    (Kind::Move, 3),
    (Kind::DontNeed, 2),
    (Kind::Free, 1),
    (Kind::FreeForDevice, 1),
    (Kind::PageOut, 2),
    (Kind::PinLongterm, 2),
    (Kind::UnpinLongterm, 3),
    (Kind::PinPipe, 2),
    (Kind::UnpinPipe, 3),
    (Kind::CpuWriteSame, 8),
    (Kind::Merge, 2),
    (Kind::Unmerge, 2),
    (Kind::TakeWritten, 8),
    (Kind::MoveByUser, 6),
    (Kind::Collapse, 4),
];

/// What is worth to happen to the same pages in a row.
const COMBINATIONS: &[&[Kind]] = &[
    &[Kind::ToDevice, Kind::Fork, Kind::DeviceWrite],
    &[Kind::ToDevice, Kind::ProtectRead, Kind::DeviceWrite, Kind::ProtectWrite, Kind::DeviceWrite],
    &[Kind::ToDevice, Kind::Unmap, Kind::CpuRead, Kind::Map],
    &[Kind::ToDevice, Kind::Move, Kind::DeviceRead, Kind::ToSystem],
    &[Kind::ToDevice, Kind::FailAllocation, Kind::CpuWrite],
    &[Kind::ToDevice, Kind::FailAllocation, Kind::ToSystem],
    &[Kind::ToDevice, Kind::DontNeed, Kind::DeviceRead],
    &[Kind::ToDevice, Kind::PinLongterm, Kind::ToSystem, Kind::Release, Kind::UnpinLongterm],
    &[Kind::PinPipe, Kind::ToDevice, Kind::CpuWrite, Kind::UnpinPipe, Kind::ToDevice],
    &[Kind::ToDevice, Kind::ForkAndHold, Kind::CpuWrite, Kind::ToDevice, Kind::Join],
    &[Kind::ForkAndHold, Kind::ToDevice, Kind::DeviceWrite, Kind::Join, Kind::DeviceWrite],
    &[Kind::ToDevice, Kind::Exclusive, Kind::Release, Kind::CheckExclusive],
    &[Kind::Exclusive, Kind::Move, Kind::CheckExclusive],
    &[Kind::Exclusive, Kind::CpuRead, Kind::CheckExclusive],
    &[Kind::FreeForDevice, Kind::PageOut, Kind::CpuRead],
    &[Kind::Free, Kind::ToDevice, Kind::ToSystem, Kind::PageOut, Kind::CpuRead],
    &[Kind::CpuWriteSame, Kind::Merge, Kind::ToDevice, Kind::DeviceWrite, Kind::CpuRead],
    &[Kind::ToDevice, Kind::TakeWritten, Kind::DeviceWrite, Kind::ToSystem, Kind::TakeWritten],
    &[Kind::TakeWritten, Kind::ToDevice, Kind::DeviceWrite, Kind::TakeWritten],
    &[Kind::ToDevice, Kind::MoveByUser, Kind::ToDevice, Kind::CpuRead],
    &[Kind::ToDevice, Kind::Collapse, Kind::DeviceRead, Kind::ToSystem, Kind::Collapse],
];

/// An endless sequence of operations.
#[derive(Debug)]
pub struct Generator {
    rng: fastrand::Rng,
    shape: Shape,
    /// What is left out.
    is_wanted: fn(Kind, Shape) -> bool,
    /// Pages that most operations are about for a while.
    focus: Range<usize>,
    focused: usize,
    /// What comes next, the last first.
    planned: Vec<(Kind, Range<usize>)>,
}

impl Generator {
    /// The sequence of a seed, of what [`Model`](super::Model) knows.
    pub fn new(seed: u64, shape: Shape) -> Self {
        Self::with_kinds(seed, shape, |kind, shape| {
            kind.is_modelled() && (!shape.has_huge_pages || kind.is_for_huge_pages())
        })
    }

    /// The same for [`Contents`](super::contents::Contents).
    pub fn for_contents(seed: u64, shape: Shape) -> Self {
        Self::with_kinds(seed, shape, |kind, _| kind.is_for_contents())
    }

    fn with_kinds(seed: u64, shape: Shape, is_wanted: fn(Kind, Shape) -> bool) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { rng, shape, is_wanted, focus: 0..1, focused: 0, planned: Vec::new() }
    }

    fn everything(&self) -> Range<usize> {
        0..self.shape.pages
    }

    /// What to do next, and to which pages.
    fn pick(&mut self) -> (Kind, Range<usize>) {
        if let Some(planned) = self.planned.pop() {
            return planned;
        }
        // Huge pages do not come back by themselves.
        let rarely = if self.shape.has_huge_pages { 20 } else { 60 };
        if self.rng.u32(0..rarely) == 0 {
            return (Kind::Map, self.everything());
        }
        match self.rng.u32(0..10) {
            0 => {
                let range = self.focused_range();
                let combination = COMBINATIONS[self.rng.usize(0..COMBINATIONS.len())];
                self.planned.extend(combination.iter().rev().map(|&kind| (kind, range.clone())));
                self.planned.pop().expect("none is empty")
            }
            _ => match self.kind() {
                // Often all is made accessible again.
                kind @ (Kind::MapHole | Kind::ProtectWrite) if self.rng.bool() => {
                    (kind, self.everything())
                }
                kind => (kind, self.focused_range()),
            },
        }
    }

    fn kind(&mut self) -> Kind {
        let mut left = self.rng.u32(0..WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for &(kind, weight) in WEIGHTS {
            if left < weight {
                return kind;
            }
            left -= weight;
        }
        unreachable!("less than the sum of all")
    }

    fn range(&mut self) -> Range<usize> {
        let pages = self.shape.pages;
        if self.shape.has_huge_pages && self.rng.u32(0..5) < 3 {
            // Some huge pages, a little less than these, or half of one.
            let blocks = pages / HUGE_PAGES;
            let first = self.rng.usize(0..blocks);
            let last = self.rng.usize(first..blocks);
            let (start, end) = (first * HUGE_PAGES, (last + 1) * HUGE_PAGES);
            return match self.rng.u32(0..8) {
                0 => start + 1..end,
                1 => start..end - 1,
                2 => start..start + HUGE_PAGES / 2,
                _ => start..start + HUGE_PAGES,
            };
        }
        let len = match self.rng.u32(0..4) {
            0 => 1,
            1 => self.rng.usize(2..=4),
            2 => self.rng.usize(4..=12),
            _ => self.rng.usize(1..=pages.min(32)),
        };
        let start = self.rng.usize(0..=pages - len);
        start..start + len
    }

    fn focused_range(&mut self) -> Range<usize> {
        if self.focused == 0 {
            self.focus = self.range();
            self.focused = self.rng.usize(4..16);
        }
        self.focused -= 1;
        match self.rng.u32(0..8) {
            0..5 => self.focus.clone(),
            // A part of it.
            5 | 6 => {
                let start = self.rng.usize(self.focus.clone());
                start..self.rng.usize(start..self.focus.end) + 1
            }
            _ => self.range(),
        }
    }

    fn target(&mut self, range: &Range<usize>) -> usize {
        let pages = self.shape.pages;
        if self.shape.has_huge_pages && self.rng.bool() {
            // The same place in any huge page.
            return self.rng.usize(0..pages / HUGE_PAGES) * HUGE_PAGES + range.start % HUGE_PAGES;
        }
        self.rng.usize(0..pages)
    }
}

impl Iterator for Generator {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        let (kind, range) = loop {
            let (kind, range) = self.pick();
            if (self.is_wanted)(kind, self.shape) {
                break (kind, range);
            }
        };
        let to = self.target(&range);
        Some(Operation { kind, device: self.rng.usize(0..2), range, to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    const SMALL: Shape = Shape { pages: 32, skew: 496, has_huge_pages: false };
    const HUGE: Shape = Shape { pages: 3 * HUGE_PAGES, skew: 0, has_huge_pages: true };

    #[test]
    fn the_same_for_the_same_seed() {
        let sequence = |seed| Generator::new(seed, SMALL).take(50).collect::<Vec<_>>();
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
    }

    #[test]
    fn ranges_are_within_the_memory() {
        for shape in [SMALL, HUGE] {
            for operation in Generator::new(3, shape).take(5000) {
                assert!(!operation.range.is_empty(), "{operation}");
                assert!(operation.range.end <= shape.pages, "{operation}");
                assert!(operation.to < shape.pages, "{operation}");
            }
        }
    }

    #[test]
    fn every_kind_comes() {
        let operations: Vec<_> = Generator::new(4, SMALL).take(5000).collect();
        for kind in Kind::value_variants() {
            let comes = operations.iter().any(|o| o.kind == *kind);
            assert_eq!(comes, kind.is_modelled(), "{kind:?}");
        }
        let operations: Vec<_> = Generator::for_contents(4, HUGE).take(5000).collect();
        for kind in Kind::value_variants() {
            let comes = operations.iter().any(|o| o.kind == *kind);
            assert_eq!(comes, kind.is_for_contents(), "{kind:?}");
        }
        assert!(Generator::new(4, HUGE).take(5000).all(|o| o.kind.is_for_huge_pages()));
        assert_eq!(WEIGHTS.len(), Kind::value_variants().len());
    }

    #[test]
    fn whole_huge_pages_are_frequent() {
        let whole = |o: &Operation| o.range.start % HUGE_PAGES == 0 && o.range.len() == HUGE_PAGES;
        assert!(Generator::new(5, HUGE).take(1000).filter(whole).count() > 100);
    }
}
