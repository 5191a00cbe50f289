// SPDX-License-Identifier: GPL-2.0
//! Operations of a random test, and how they are written.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use clap::ValueEnum;

/// What an [`Operation`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// The CPU reads what it may read of the range.
    CpuRead,
    /// The CPU writes what it may write of the range.
    CpuWrite,
    /// The device reads.
    DeviceRead,
    /// The device reads by the unlocked page table walk.
    DeviceReadUnlocked,
    /// The device writes.
    DeviceWrite,
    /// Migrates to the device.
    ToDevice,
    /// Migrates back from the device.
    ToSystem,
    /// Gives the device exclusive access.
    Exclusive,
    /// Asks whether any page is exclusive to the device.
    CheckExclusive,
    /// Evicts everything on the device.
    Release,
    /// Closes the device, which evicts what it has, and opens it again.
    Reopen,
    /// Has the next allocation of a migration by the device fail.
    FailAllocation,
    /// Forks a child that checks all it can read, writes the range, and exits.
    Fork,
    /// Forks a child that does so later.
    ForkAndHold,
    /// Lets the held child go on, and waits for its end.
    Join,
    /// Maps fresh memory, readable and writable, in place of what is there.
    Map,
    /// Maps fresh memory in the first hole of the range.
    MapHole,
    /// Unmaps.
    Unmap,
    /// Forbids all access.
    ProtectNone,
    /// Makes read-only.
    ProtectRead,
    /// Makes readable and writable.
    ProtectWrite,
    /// Moves to page `to` and the following.
    Move,
    /// Drops the contents.
    DontNeed,
    /// Allows the kernel to drop the contents; then the CPU writes.
    Free,
    /// As `Free`; then the device writes.
    FreeForDevice,
    /// Asks the kernel to swap out, to where there is no swap.
    PageOut,
    /// Pins for the long term, for writing.
    PinLongterm,
    /// Undoes `PinLongterm`.
    UnpinLongterm,
    /// Puts the pages into a pipe.
    PinPipe,
    /// Empties the pipe.
    UnpinPipe,
    /// Writes the same to all pages of the range, for KSM.
    CpuWriteSame,
    /// Lets KSM merge pages of the block that the range begins in.
    Merge,
    /// Has the kernel undo that.
    Unmerge,
    /// Asks `PAGEMAP_SCAN` which pages were written, and protects them.
    TakeWritten,
    /// Moves pages by `UFFDIO_MOVE` to page `to` and the following.
    MoveByUser,
    /// Makes a huge page of the block that the range begins in.
    Collapse,
}

impl Kind {
    /// Whether [`Model`](super::Model) knows what it does.
    pub fn is_modelled(self) -> bool {
        use Kind::*;
        !matches!(self, CpuWriteSame | Merge | Unmerge | TakeWritten | MoveByUser | Collapse)
    }

    /// Whether [`Contents`](super::contents::Contents) knows what it does to the contents of
    /// memory.
    pub fn is_for_contents(self) -> bool {
        use Kind::*;
        !self.is_modelled()
            || matches!(
                self,
                CpuRead
                    | CpuWrite
                    | DeviceRead
                    | DeviceReadUnlocked
                    | DeviceWrite
                    | ToDevice
                    | ToSystem
                    | Exclusive
                    | Release
                    | Reopen
                    | Fork
                    | DontNeed
            )
    }

    /// Whether the model knows what it does to huge pages.
    pub fn is_for_huge_pages(self) -> bool {
        use Kind::*;
        !matches!(
            self,
            Exclusive
                | CheckExclusive
                | ForkAndHold
                | Join
                | PageOut
                | PinLongterm
                | UnpinLongterm
                | PinPipe
                | UnpinPipe
        )
    }

    /// Name as in the text of an operation.
    pub fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_owned()
    }
}

/// One step of a random test. It makes sense in any state: what is not possible
/// there, such as a CPU's write to read-only pages, is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub kind: Kind,
    /// Which device does it, 0 or 1.
    pub device: usize,
    /// Pages it is about.
    pub range: Range<usize>,
    /// The first of the pages where `Move` moves to.
    pub to: usize,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.range;
        write!(f, "{} {} {start}-{end} {}", self.kind.name(), self.device, self.to)
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("not an operation: {text:?}");
        let mut words = text.split_whitespace();
        let mut word = || words.next().ok_or_else(bad);
        let number = |word: &str| word.parse::<usize>().map_err(|_| bad());
        let kind = Kind::from_str(word()?, false).map_err(|_| bad())?;
        let device = number(word()?)?;
        let (start, end) = word()?.split_once('-').ok_or_else(bad)?;
        let range = number(start)?..number(end)?;
        let to = number(word()?)?;
        if device > 1 || range.is_empty() || words.next().is_some() {
            return Err(bad());
        }
        Ok(Self { kind, device, range, to })
    }
}

/// A sequence of operations, written one after the other with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence(pub Vec<Operation>);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, operation) in self.0.iter().enumerate() {
            let separator = if index > 0 { ", " } else { "" };
            write!(f, "{separator}{operation}")?;
        }
        Ok(())
    }
}

impl FromStr for Sequence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_again() {
        for &kind in Kind::value_variants() {
            let operation = Operation { kind, device: 1, range: 3..9, to: 12 };
            assert_eq!(operation.to_string().parse(), Ok(operation));
        }
        let text = "to-device 0 3-9 0, move 1 3-4 7";
        let sequence: Sequence = text.parse().unwrap();
        assert_eq!(sequence.0[1].kind, Kind::Move);
        assert_eq!(sequence.to_string(), text);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "to-device", "to-device 2 0-1 0", "to-device 0 1-1 0", "fly 0 0-1 0"] {
            assert!(bad.parse::<Sequence>().is_err(), "{bad:?}");
        }
        assert!("to-device 0 0-1 0 7".parse::<Operation>().is_err());
    }
}
