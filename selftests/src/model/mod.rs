// SPDX-License-Identifier: GPL-2.0
//! A model of what the drivers and the kernel do to a process's memory, to which random
//! operations are compared.
//!
//! It predicts the result of each operation, the contents of all pages, and the
//! snapshots of both devices. Where the kernel is free to decide, it follows each of the
//! possibilities, and goes on with the one that is seen: whether a table without entries
//! is freed, and whether looking for a page where it once was invalidates what a device
//! has mapped there now.

pub mod contents;
pub mod generator;
pub mod memory;
pub mod operation;
pub mod shrink;

use std::ops::Range;

use nix::errno::Errno;

use crate::failure::{Failure, Result};
use crate::pattern::MAX_GENERATION;
use memory::{Access, Choices, Content, Memory, Protection, Reference, Shape};
use operation::{Kind, Operation};

use crate::uapi::MemoryType;

/// An operation as it is done in a certain state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What it does.
    pub kind: Kind,
    /// Which device does it.
    pub device: usize,
    /// Pages it is about.
    pub range: Range<usize>,
    /// The first page where they are moved to.
    pub to: usize,
    /// What is written is of this generation.
    pub generation: u32,
    /// Pages that are read or written, maybe by a child or through a pin; after the end
    /// of a mapping these are their numbers no more.
    pub read: Vec<usize>,
    /// Pages that the CPU writes.
    pub written: Vec<usize>,
}

/// What a command counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Pages copied or migrated.
    pub cpages: u64,
    /// Device faults; `None`: unknown.
    pub faults: Option<u64>,
}

/// For what counts nothing.
pub const NOTHING: Counts = Counts { cpages: 0, faults: Some(0) };

/// What comes of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Counts or error.
    pub result: std::result::Result<Counts, Errno>,
    /// What is in each of the pages of [`Action::read`], if the action succeeds.
    pub contents: Vec<Content>,
}

/// The memory and devices that the model is compared with.
pub trait System {
    /// Does it; fails if there is anything else in the pages that it reads.
    fn perform(
        &mut self,
        action: &Action,
        contents: &[Content],
    ) -> Result<std::result::Result<Counts, Errno>>;

    /// What each device sees.
    fn snapshots(&mut self) -> Result<[Vec<u8>; 2]>;

    /// At which pages VMAs begin.
    fn vmas(&mut self) -> Result<Vec<usize>>;
}

/// What came of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was not possible in that state.
    LeftOut,
    /// It was done, with this result.
    Done(std::result::Result<(), Errno>),
}

/// State that a sequence of operations has led to.
#[derive(Clone, Debug)]
pub struct Model {
    memory: Memory,
    /// Pages that are pinned for the long term.
    pinned: Option<Vec<Reference>>,
    /// Pages in the pipe.
    piped: Option<Vec<Reference>>,
    generation: u32,
}

impl Model {
    /// Fresh memory.
    pub fn new(memory_type: MemoryType, shape: Shape) -> Self {
        Self { memory: Memory::new(memory_type, shape), pinned: None, piped: None, generation: 0 }
    }

    /// Does one operation in the model and in the system, and compares.
    pub fn step(&mut self, system: &mut impl System, operation: &Operation) -> Result<Step> {
        let Some(action) = self.plan(operation) else {
            return Ok(Step::LeftOut);
        };
        let mut worlds = self.worlds(&action);
        let (expected, model) = worlds.next().expect("there is one at least");
        let result = system.perform(&action, &expected.contents)?;
        let snapshots = system.snapshots()?;
        let seen = match model.mismatch(&expected, result, &snapshots) {
            None => model,
            Some(mismatch) => worlds
                .find(|(expected, model)| model.mismatch(expected, result, &snapshots).is_none())
                .map(|(_, model)| model)
                .ok_or(Failure::Failed(mismatch))?,
        };
        drop(worlds);
        *self = seen;
        if changes_vmas(action.kind) {
            self.memory.set_vmas(&system.vmas()?);
        }
        Ok(Step::Done(result.map(drop)))
    }

    /// What may come of an action, the most likely first.
    fn worlds(&self, action: &Action) -> impl Iterator<Item = (Outcome, Model)> {
        let mut next = Some(Vec::new());
        std::iter::from_fn(move || {
            let mut model = self.clone();
            model.memory.choices = Choices::new(next.take()?);
            let outcome = model.apply(action);
            let mut path = model.memory.choices.taken.clone();
            while path.last() == Some(&true) {
                path.pop();
            }
            if let Some(last) = path.last_mut() {
                *last = true;
                next = Some(path);
            }
            Some((outcome, model))
        })
    }

    fn mismatch(
        &self,
        expected: &Outcome,
        result: std::result::Result<Counts, Errno>,
        snapshots: &[Vec<u8>; 2],
    ) -> Option<String> {
        let same = match (expected.result, result) {
            (Ok(expected), Ok(found)) => {
                expected.cpages == found.cpages
                    && (expected.faults.is_none() || expected.faults == found.faults)
            }
            (expected, found) => expected == found,
        };
        let different = snapshots.iter().enumerate().filter_map(|(device, found)| {
            let expected = self.memory.snapshot(device);
            let differ = |&page: &usize| expected[page] != found[page];
            let page = (0..expected.len()).find(differ)?;
            let count = (0..expected.len()).filter(differ).count();
            Some(format!(
                "snapshot of page {page} by device {device} is {:#04x}, expected {:#04x}; \
                 {count} pages differ",
                found[page], expected[page],
            ))
        });
        let result =
            (!same).then(|| format!("result is {result:?}, expected {:?}", expected.result));
        result.into_iter().chain(different).reduce(|all, next| all + "; " + &next)
    }

    /// What an operation means in this state; `None`: nothing.
    fn plan(&mut self, operation: &Operation) -> Option<Action> {
        use Kind::*;
        let Operation { kind, device, ref range, to } = *operation;
        let count = self.memory.shape().pages;
        let range = range.start.min(count - 1)..range.end.min(count);
        let memory = &self.memory;
        let readable = |page: &usize| memory.allows(*page, Access::Read);
        let writable = |page: &usize| memory.allows(*page, Access::Write);
        let is_mapped = |page: &usize| memory.protection(*page).is_some();
        let has_huge_pages = memory.shape().has_huge_pages;
        let any_fails = (0..2).any(|device| memory.will_fail(device));

        let range = match kind {
            _ if !kind.is_modelled() => return None,
            _ if has_huge_pages && !kind.is_for_huge_pages() => return None,
            ForkAndHold if memory.has_child() => return None,
            Join if !memory.has_child() => return None,
            // The child has it open, too.
            Reopen if memory.has_child() => return None,
            PinLongterm if self.pinned.is_some() => return None,
            UnpinLongterm if self.pinned.is_none() => return None,
            PinPipe if self.piped.is_some() => return None,
            UnpinPipe if self.piped.is_none() => return None,
            // A part would be in the pipe.
            PinPipe if any_fails => return None,
            // How much is written before it fails depends on what is not modelled.
            DeviceWrite if has_huge_pages && any_fails => return None,
            // What fails must not be left without contents.
            FreeForDevice if any_fails => return None,
            DeviceWrite if has_huge_pages => run(range, writable)?,
            Free | FreeForDevice => run(range, writable)?,
            MapHole => run(range, |page| !is_mapped(page))?,
            PinPipe => run(range, readable)?,
            Unmap | ProtectNone | ProtectRead | ProtectWrite | DontNeed | PageOut => {
                run(range, is_mapped)?
            }
            Move => {
                let range = run(range, is_mapped)?;
                let to = to.min(count - range.len());
                if to < range.end && range.start < to + range.len() {
                    return None;
                }
                range
            }
            _ => range,
        };
        let to = to.min(count - range.len());
        let forks = match kind {
            Fork | ForkAndHold => true,
            PageOut => range.clone().any(|page| memory.may_unmap_in_reclaim(page)),
            _ => false,
        };
        let read: Vec<_> = match kind {
            CpuRead => range.clone().filter(readable).collect(),
            DeviceRead | DeviceReadUnlocked | ToDevice | Exclusive => range.clone().collect(),
            _ if forks => (0..count).filter(readable).collect(),
            _ => Vec::new(),
        };
        let written: Vec<_> = match kind {
            CpuWrite | Fork | ForkAndHold | Free => range.clone().filter(writable).collect(),
            _ => Vec::new(),
        };
        let nothing_left = match kind {
            CpuRead => read.is_empty(),
            CpuWrite => written.is_empty(),
            _ => false,
        };
        if nothing_left {
            return None;
        }
        self.generation = self.generation % MAX_GENERATION + 1;
        Some(Action { kind, device, range, to, generation: self.generation, read, written })
    }

    /// Does it in the model.
    fn apply(&mut self, action: &Action) -> Outcome {
        let mut contents: Vec<_> =
            action.read.iter().map(|&page| self.memory.content(page)).collect();
        match action.kind {
            Kind::UnpinLongterm => contents = self.contents_of(&self.pinned),
            Kind::UnpinPipe => contents = self.contents_of(&self.piped),
            _ => {}
        }
        Outcome { result: self.result(action), contents }
    }

    fn contents_of(&self, references: &Option<Vec<Reference>>) -> Vec<Content> {
        references.iter().flatten().map(|&reference| self.memory.content_of(reference)).collect()
    }

    fn result(&mut self, action: &Action) -> std::result::Result<Counts, Errno> {
        let Action { device, ref range, to, generation, .. } = *action;
        let range = range.clone();
        let memory = &mut self.memory;
        match action.kind {
            Kind::CpuRead => {
                action.read.iter().for_each(|&page| memory.cpu_access(page, Access::Read));
            }
            Kind::CpuWrite => self.cpu_write(action),
            Kind::DeviceRead | Kind::DeviceReadUnlocked => return self.device_read(device, range),
            Kind::DeviceWrite => return self.device_write(device, range, generation),
            Kind::ToDevice => return self.migrate_to_device(device, range),
            Kind::ToSystem => return self.migrate_to_system(device, range),
            Kind::Exclusive => {
                for page in range.clone() {
                    memory.make_exclusive(device, page)?;
                }
                // A fault on a later page may have revoked an earlier one.
                if !range.clone().all(|page| memory.has_mapped(device, page, Access::Read)) {
                    return Err(Errno::ENOENT);
                }
                return Ok(Counts { cpages: range.len() as u64, faults: Some(0) });
            }
            Kind::CheckExclusive => {
                if memory.any_exclusive(device, range) {
                    return Err(Errno::EPERM);
                }
            }
            Kind::Release => {
                if !memory.evict(device) {
                    return Err(Errno::EBUSY);
                }
            }
            Kind::Reopen => memory.reopen(device),
            Kind::FailAllocation => memory.fail_next(device),
            Kind::Fork => memory.fork(false),
            Kind::ForkAndHold => memory.fork(true),
            Kind::Join => memory.join(),
            Kind::Map | Kind::MapHole => memory.map(range),
            Kind::Unmap => memory.unmap(range),
            Kind::ProtectNone => memory.protect(range, Protection::None),
            Kind::ProtectRead => memory.protect(range, Protection::Read),
            Kind::ProtectWrite => memory.protect(range, Protection::Write),
            Kind::Move => memory.move_pages(range, to),
            Kind::DontNeed => memory.drop_contents(range),
            Kind::Free => {
                memory.free_lazily(range);
                self.cpu_write(action);
            }
            Kind::FreeForDevice => {
                memory.free_lazily(range.clone());
                return self.device_write(device, range, generation);
            }
            Kind::PageOut => {
                if !action.read.is_empty() {
                    memory.fork(false);
                }
            }
            Kind::PinLongterm => self.pinned = Some(memory.pin_longterm(range)?),
            Kind::UnpinLongterm => memory.unpin_longterm(&self.pinned.take().unwrap_or_default()),
            Kind::PinPipe => self.piped = Some(memory.reference(range)),
            Kind::UnpinPipe => memory.put_references(&self.piped.take().unwrap_or_default()),
            // Left out.
            Kind::CpuWriteSame
            | Kind::Merge
            | Kind::Unmerge
            | Kind::TakeWritten
            | Kind::MoveByUser
            | Kind::Collapse => {}
        }
        Ok(NOTHING)
    }

    fn cpu_write(&mut self, action: &Action) {
        for &page in &action.written {
            self.memory.cpu_write(page, Content { page, generation: action.generation });
        }
    }

    fn device_read(
        &mut self,
        device: usize,
        range: Range<usize>,
    ) -> std::result::Result<Counts, Errno> {
        let mut faults = 0;
        let mut rest = range.clone();
        loop {
            while !rest.is_empty() && self.memory.has_mapped(device, rest.start, Access::Read) {
                rest.start += 1;
            }
            if rest.is_empty() {
                return Ok(self.counts(range.len(), faults));
            }
            self.memory.device_fault(device, rest.clone(), Access::Read)?;
            faults += 1;
        }
    }

    fn device_write(
        &mut self,
        device: usize,
        range: Range<usize>,
        generation: u32,
    ) -> std::result::Result<Counts, Errno> {
        let mut faults = 0;
        let mut rest = range.clone();
        loop {
            while !rest.is_empty() && self.memory.has_mapped(device, rest.start, Access::Write) {
                let page = rest.start;
                self.memory.set_content(page, Content { page, generation });
                rest.start += 1;
            }
            if rest.is_empty() {
                return Ok(self.counts(range.len(), faults));
            }
            self.memory.device_fault(device, rest.clone(), Access::Write)?;
            faults += 1;
        }
    }

    fn counts(&self, pages: usize, faults: u64) -> Counts {
        let is_known = !self.memory.shape().has_huge_pages;
        Counts { cpages: pages as u64, faults: is_known.then_some(faults) }
    }

    fn migrate_to_device(
        &mut self,
        device: usize,
        range: Range<usize>,
    ) -> std::result::Result<Counts, Errno> {
        let (windows, is_all) = self.memory.windows(range.clone());
        let mut has_split = false;
        for window in windows {
            let is_first = window.start == range.start;
            has_split |= self.memory.migrate_to_device(device, window.clone()) && !is_first;
            self.memory.mirror_present(device, window);
        }
        if !is_all {
            return Err(Errno::EINVAL);
        }
        // The migration of one part may have invalidated what was mapped of another.
        let memory = &mut self.memory;
        let is_there =
            |page| memory.is_on(device, page) && memory.has_mapped(device, page, Access::Read);
        if !range.clone().all(is_there) || (has_split && memory.choices.choose()) {
            return Err(Errno::ENOENT);
        }
        Ok(Counts { cpages: range.len() as u64, faults: Some(0) })
    }

    fn migrate_to_system(
        &mut self,
        device: usize,
        range: Range<usize>,
    ) -> std::result::Result<Counts, Errno> {
        let (windows, is_all) = self.memory.windows(range);
        let mut migrated = 0;
        for window in windows {
            migrated += self.memory.migrate_to_system(device, window)?;
        }
        if !is_all {
            return Err(Errno::EINVAL);
        }
        Ok(Counts { cpages: migrated as u64, faults: Some(0) })
    }
}

/// Whether an action changes VMAs.
fn changes_vmas(kind: Kind) -> bool {
    use Kind::*;
    matches!(kind, Map | MapHole | Unmap | Move | ProtectNone | ProtectRead | ProtectWrite)
}

/// The first part of a range of which all pages are so.
fn run(range: Range<usize>, is_so: impl Fn(&usize) -> bool) -> Option<Range<usize>> {
    let start = range.clone().find(&is_so)?;
    let end = (start..range.end).find(|page| !is_so(page)).unwrap_or(range.end);
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::HUGE_PAGES;
    use crate::uapi::prot;
    use generator::Generator;
    use operation::Sequence;
    use shrink::shrink;

    const SMALL: Shape = Shape { pages: 32, skew: HUGE_PAGES - 16, has_huge_pages: false };
    const HUGE: Shape = Shape { pages: 2 * HUGE_PAGES, skew: 0, has_huge_pages: true };

    /// A system that does what the model says, except for what is wrong with it.
    struct Simulated {
        model: Model,
        /// Eviction by one device forgets what the other has written last.
        loses_data: bool,
        /// Takes the unlikely of two possibilities.
        is_unlikely: bool,
        written: Option<(usize, usize)>,
        lost: Option<usize>,
    }

    impl Simulated {
        fn new(model: &Model) -> Self {
            let model = model.clone();
            Self { model, loses_data: false, is_unlikely: false, written: None, lost: None }
        }
    }

    impl System for Simulated {
        fn perform(
            &mut self,
            action: &Action,
            contents: &[Content],
        ) -> Result<std::result::Result<Counts, Errno>> {
            let worlds: Vec<_> = self.model.worlds(action).collect();
            let world = if self.is_unlikely { worlds.last() } else { worlds.first() };
            let (outcome, model) = world.expect("there is one at least").clone();
            self.model = model;
            assert_eq!(outcome.contents, contents);
            match action.kind {
                Kind::DeviceWrite => self.written = Some((action.device, action.range.start)),
                Kind::Release if self.loses_data => {
                    self.lost = self
                        .written
                        .take_if(|(device, _)| *device != action.device)
                        .map(|(_, page)| page);
                }
                _ => {}
            }
            if self.lost.is_some_and(|page| action.read.contains(&page)) {
                return Err(Failure::Failed("lost data".into()));
            }
            let known = |counts: Counts| Counts { faults: counts.faults.or(Some(0)), ..counts };
            Ok(outcome.result.map(known))
        }

        fn snapshots(&mut self) -> Result<[Vec<u8>; 2]> {
            Ok([self.model.memory.snapshot(0), self.model.memory.snapshot(1)])
        }

        fn vmas(&mut self) -> Result<Vec<usize>> {
            let begins = |&page: &usize| {
                let before = page.checked_sub(1).and_then(|p| self.model.memory.protection(p));
                let protection = self.model.memory.protection(page);
                protection.is_some() && protection != before
            };
            let beginnings: Vec<_> = (0..self.model.memory.shape().pages).filter(begins).collect();
            self.model.memory.set_vmas(&beginnings);
            Ok(beginnings)
        }
    }

    fn run_all(memory_type: MemoryType, shape: Shape, text: &str) -> (Model, Vec<Step>) {
        let Sequence(operations) = text.parse().unwrap();
        let mut model = Model::new(memory_type, shape);
        let mut system = Simulated::new(&model);
        let steps = operations.iter().map(|o| model.step(&mut system, o).unwrap()).collect();
        (model, steps)
    }

    fn results(memory_type: MemoryType, text: &str) -> Vec<Step> {
        run_all(memory_type, SMALL, text).1
    }

    fn byte(memory_type: MemoryType, shape: Shape, text: &str, device: usize, page: usize) -> u8 {
        run_all(memory_type, shape, text).0.memory.snapshot(device)[page]
    }

    const OK: Step = Step::Done(Ok(()));

    fn error(errno: Errno) -> Step {
        Step::Done(Err(errno))
    }

    #[test]
    fn agrees_with_itself() {
        for &memory_type in MemoryType::ALL {
            for (shape, count) in [(SMALL, 3000), (HUGE, 300)] {
                for is_unlikely in [false, true] {
                    let mut model = Model::new(memory_type, shape);
                    let mut system = Simulated { is_unlikely, ..Simulated::new(&model) };
                    for operation in Generator::new(7, shape).take(count) {
                        model.step(&mut system, &operation).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_contents_are_found_and_the_sequence_made_short() {
        let fails = |operations: &[Operation]| {
            let mut model = Model::new(MemoryType::Generic, SMALL);
            let mut system = Simulated { loses_data: true, ..Simulated::new(&model) };
            operations.iter().any(|operation| model.step(&mut system, operation).is_err())
        };
        let operations: Vec<_> = Generator::new(1, SMALL).take(1000).collect();
        assert!(fails(&operations));
        let short = shrink(&operations, |operations| Some(fails(operations)));
        assert_eq!(short.len(), 3, "{}", Sequence(short));
        assert_eq!((short[0].kind, short[1].kind), (Kind::DeviceWrite, Kind::Release));
    }

    #[test]
    fn wrong_snapshots_and_results_are_found() {
        struct Wrong(Simulated, bool);
        impl System for Wrong {
            fn perform(
                &mut self,
                action: &Action,
                contents: &[Content],
            ) -> Result<std::result::Result<Counts, Errno>> {
                let result = self.0.perform(action, contents)?;
                if self.1 { Ok(result) } else { Ok(Err(Errno::ENOENT)) }
            }

            fn snapshots(&mut self) -> Result<[Vec<u8>; 2]> {
                let mut snapshots = self.0.snapshots()?;
                if self.1 {
                    snapshots[1][3] ^= 1;
                }
                Ok(snapshots)
            }

            fn vmas(&mut self) -> Result<Vec<usize>> {
                self.0.vmas()
            }
        }
        let operation = "to-device 0 0-4 0".parse().unwrap();
        for (wrong_snapshot, what) in [(true, "snapshot of page 3 by device 1"), (false, "ENOENT")]
        {
            let mut model = Model::new(MemoryType::Generic, SMALL);
            let mut system = Wrong(Simulated::new(&model), wrong_snapshot);
            let failure = model.step(&mut system, &operation).unwrap_err().to_string();
            assert!(failure.contains(what), "{failure}");
        }
    }

    #[test]
    fn copy_on_write_of_the_device() {
        let text = "to-device 0 0-4 0, fork-and-hold 0 0-1 0, device-write 0 0-2 0";
        for (memory_type, untouched) in [
            (MemoryType::Private, prot::DEV_PRIVATE_LOCAL | prot::READ),
            (MemoryType::Generic, prot::DEV_GENERIC_LOCAL | prot::READ),
        ] {
            assert_eq!(byte(memory_type, SMALL, text, 0, 3), untouched);
            // It got a copy in system memory.
            assert_eq!(byte(memory_type, SMALL, text, 0, 0), prot::WRITE);
        }
        // Without the child, generic memory is written in place.
        let text = "to-device 0 0-4 0, fork 0 0-1 0, device-write 0 0-2 0";
        assert_eq!(
            byte(MemoryType::Generic, SMALL, text, 0, 0),
            prot::DEV_GENERIC_LOCAL | prot::WRITE
        );
    }

    #[test]
    fn read_only_memory_on_the_device() {
        let text = "to-device 0 0-4 0, protect-read 0 0-4 0, device-write 0 0-4 0";
        assert_eq!(results(MemoryType::Private, text), [OK, OK, error(Errno::EPERM)]);
        assert_eq!(results(MemoryType::Coherent, text), [OK, OK, error(Errno::EPERM)]);
        // That is found before the hole behind it.
        let text = "to-device 0 0-4 0, protect-read 0 0-1 0, unmap 0 3-4 0, device-write 0 0-4 0";
        assert_eq!(results(MemoryType::Private, text)[3], error(Errno::EPERM));
    }

    #[test]
    fn pins_keep_generic_memory_in_place() {
        let text = "to-device 0 0-4 0, pin-longterm 0 0-4 0, to-system 0 0-4 0, release 0 0-1 0, \
                    unpin-longterm 0 0-1 0, release 0 0-1 0";
        let steps = results(MemoryType::Generic, text);
        assert_eq!(steps, [OK, OK, OK, error(Errno::EBUSY), OK, OK]);
        assert_eq!(results(MemoryType::Coherent, text), [OK; 6]);
    }

    #[test]
    fn failed_allocations() {
        let text =
            "to-device 0 0-4 0, fail-allocation 0 0-1 0, to-system 0 0-4 0, to-system 0 0-4 0";
        assert_eq!(results(MemoryType::Private, text), [OK, OK, error(Errno::ENOMEM), OK],);
        assert_eq!(results(MemoryType::Generic, text), [OK; 4]);
        let text = "fail-allocation 1 0-1 0, to-device 1 0-4 0, to-device 1 0-4 0";
        assert_eq!(results(MemoryType::Coherent, text), [OK, error(Errno::ENOENT), OK]);
    }

    #[test]
    fn holes() {
        let text = "unmap 0 2-4 0, to-device 0 0-6 0, device-read 0 0-6 0, map 0 2-4 0, \
                    to-device 0 0-6 0";
        let expected = [OK, error(Errno::EINVAL), error(Errno::EFAULT), OK, OK];
        assert_eq!(results(MemoryType::Generic, text), expected);
    }

    #[test]
    fn exclusive_access_is_revoked() {
        let text = "exclusive 0 0-4 0, check-exclusive 0 0-4 0, cpu-read 0 0-3 0, \
                    check-exclusive 0 0-3 0, check-exclusive 0 3-4 0, fork 0 0-1 0, \
                    check-exclusive 0 0-4 0";
        let exclusive = error(Errno::EPERM);
        let expected = [OK, exclusive, OK, OK, exclusive, OK, OK];
        assert_eq!(results(MemoryType::Private, text), expected);
    }

    #[test]
    fn huge_pages() {
        let private = MemoryType::Private;
        let huge = prot::DEV_PRIVATE_LOCAL | prot::WRITE | prot::PMD;
        let text = "to-device 0 0-512 0";
        assert_eq!(byte(private, HUGE, text, 0, 7), huge);
        assert_eq!(byte(private, HUGE, text, 1, 7), prot::NONE);
        let generic = prot::DEV_GENERIC_LOCAL | prot::WRITE | prot::PMD;
        assert_eq!(byte(MemoryType::Generic, HUGE, text, 0, 7), generic);
        // A part is unmapped.
        let text = "to-device 0 0-512 0, unmap 0 511-512 0";
        assert_eq!(byte(private, HUGE, text, 0, 7), huge & !prot::PMD);
        // The CPU gets all of it back, if it cannot use it where it is.
        let text = "to-device 0 0-512 0, cpu-read 0 3-4 0";
        assert_eq!(byte(private, HUGE, text, 0, 7), prot::WRITE | prot::PMD);
        assert_eq!(byte(MemoryType::Generic, HUGE, text, 0, 7), generic);
        // Nor is it split if it is mapped page by page, but all of it is.
        let text = "to-device 0 0-512 0, protect-read 0 3-4 0, protect-write 0 3-4 0, \
                    cpu-read 0 9-10 0";
        assert_eq!(byte(private, HUGE, text, 0, 7), prot::WRITE);
        // Nor is it kept for a last page.
        let text = "to-device 1 0-512 0, map 1 0-511 0, fork 1 0-1 0, cpu-write 1 511-512 0";
        assert_eq!(byte(MemoryType::Coherent, HUGE, text, 1, 511), prot::WRITE);
        // What has only zeroes does not outlive the huge page.
        let text = "cpu-write 0 0-2 0, to-device 0 0-1 0";
        assert_eq!(byte(private, HUGE, text, 0, 1), prot::WRITE);
        assert_eq!(byte(private, HUGE, text, 0, 2), prot::READ | prot::ZERO);
    }

    #[test]
    fn follows_what_the_kernel_decides() {
        // Whether a table without entries stays decides what a fault there makes.
        let text = "to-device 0 0-1 0, dont-need 0 0-512 0, cpu-write 0 3-4 0";
        let Sequence(operations) = text.parse().unwrap();
        for (is_unlikely, expected) in [(false, prot::WRITE | prot::PMD), (true, prot::NONE)] {
            let mut model = Model::new(MemoryType::Private, HUGE);
            let mut system = Simulated { is_unlikely, ..Simulated::new(&model) };
            for operation in &operations {
                model.step(&mut system, operation).unwrap();
            }
            assert_eq!(model.memory.snapshot(0)[9], expected);
        }
    }
}
