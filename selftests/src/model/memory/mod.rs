// SPDX-License-Identifier: GPL-2.0
//! What the kernel and the driver do to the memory of one process, page by page.
//!
//! A range of pages of anonymous memory, cut into blocks: what one PMD maps. Without
//! huge pages, this knows all there is to know: what each entry of the page table is,
//! which folio it maps and with what permission, and what the devices have mapped. With
//! huge pages, what the devices have mapped is left out, for it depends on when core mm
//! splits which folio; so are pins and exclusive access, and children that stay.

mod faults;
mod folios;
mod migration;
mod mirror;
mod pins;
mod snapshot;
mod system_calls;

use crate::pages::HUGE_PAGES;
use crate::uapi::MemoryType;

/// What is in a page: the pattern of a page in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Number of the page for which it was written.
    pub page: usize,
    /// Generation; 0: zeroes.
    pub generation: u32,
}

const ZEROES: Content = Content { page: 0, generation: 0 };

/// What a process may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nothing.
    None,
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// What somebody wants to do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write.
    Write,
}

/// Where a folio is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    System,
    Device(usize),
}

/// Number of a folio. A huge page counts as 512 folios: nothing here can tell.
type FolioId = usize;

#[derive(Clone, Debug)]
struct Folio {
    place: Place,
    content: Content,
    /// Which of the files that a device was opened as it was allocated for, if it is
    /// there.
    file: u32,
    /// Offset in the object that it belongs to, for core mm to find who maps it.
    offset: usize,
    /// Entries of page tables that map it, those of a child included.
    mapped: usize,
    /// Pins, which keep it from being copied on write by others.
    pinned: usize,
    /// Plain references.
    referenced: usize,
    /// The huge page that it is a part of, not yet split.
    part: Option<Part>,
    /// After `MADV_FREE`, until reclaim has seen that it was written again.
    is_lazy: bool,
}

/// A part of a huge page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    /// Number of the huge page.
    huge_page: u64,
    /// Number of the page in there.
    index: usize,
}

impl Folio {
    fn huge_page(&self) -> Option<u64> {
        self.part.map(|part| part.huge_page)
    }

    fn can_migrate(&self) -> bool {
        self.pinned == 0 && self.referenced == 0
    }

    fn is_used_once(&self) -> bool {
        self.mapped == 1 && self.can_migrate()
    }

    fn is_unused(&self) -> bool {
        self.mapped + self.pinned + self.referenced == 0
    }
}

/// Entry of the process's page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pte {
    Empty,
    Zero,
    Mapped {
        folio: FolioId,
        writable: bool,
        /// Known to be this process's alone: no copy on write.
        exclusive: bool,
    },
    /// Given to a device exclusively.
    DeviceExclusive {
        folio: FolioId,
    },
}

#[derive(Clone, Copy, Debug)]
struct Page {
    /// None: not mapped by any VMA.
    protection: Option<Protection>,
    /// A VMA begins here.
    begins_vma: bool,
    /// Where core mm looks for folios with this offset, and maybe others'.
    offset: usize,
    pte: Pte,
}

const UNMAPPED: Page = Page { protection: None, begins_vma: false, offset: 0, pte: Pte::Empty };

/// What the PMD of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// Nothing.
    Hole,
    /// A table of small pages.
    Table,
    /// A table in which nothing is left, or nothing: the kernel may have freed it.
    Emptied,
    /// The huge zero page.
    HugeZero,
    /// A huge page.
    Huge,
}

/// What a device has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mirrored {
    Nothing,
    Read,
    Write,
    Exclusive,
}

/// Entry of a device's page table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    mirrored: Mirrored,
    /// It may have been invalidated: core mm has looked there for another page.
    is_uncertain: bool,
}

const INVALID: Entry = Entry { mirrored: Mirrored::Nothing, is_uncertain: false };

/// A page that a held child has mapped.
#[derive(Clone, Copy, Debug)]
struct ChildPage {
    folio: FolioId,
    is_readable: bool,
}

/// A reference on a page from elsewhere.
#[derive(Clone, Copy, Debug)]
pub enum Reference {
    /// The zero page.
    Zero,
    /// Any other.
    Folio(FolioId),
}

/// What this cannot know: a path through the decisions of the kernel.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// The decisions, in order.
    pub taken: Vec<bool>,
    next: usize,
}

impl Choices {
    /// Decisions to start with; those that follow are `false`.
    pub fn new(taken: Vec<bool>) -> Self {
        Self { taken, next: 0 }
    }

    /// The next decision.
    pub fn choose(&mut self) -> bool {
        if self.next == self.taken.len() {
            self.taken.push(false);
        }
        self.next += 1;
        self.taken[self.next - 1]
    }
}

/// Shape of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of pages.
    pub pages: usize,
    /// Number of the first page within its block.
    pub skew: usize,
    /// Whether it gets huge pages.
    pub has_huge_pages: bool,
}

/// State of the memory.
#[derive(Clone, Debug)]
pub struct Memory {
    memory_type: MemoryType,
    shape: Shape,
    pages: Vec<Page>,
    blocks: Vec<Block>,
    folios: Vec<Folio>,
    /// Folios that are no more, whose numbers can be taken again.
    unused: Vec<FolioId>,
    mirrors: [Vec<Entry>; 2],
    fails: [bool; 2],
    /// How often each device was opened.
    files: [u32; 2],
    /// Number of the latest huge page.
    huge_pages: u64,
    child: Option<Vec<ChildPage>>,
    /// Decisions of the kernel.
    pub choices: Choices,
}

impl Memory {
    /// All of it is mapped, readable and writable, and nothing is there.
    pub fn new(memory_type: MemoryType, shape: Shape) -> Self {
        let blocks = (shape.skew + shape.pages).div_ceil(HUGE_PAGES);
        let block = if shape.has_huge_pages { Block::Hole } else { Block::Table };
        let mut memory = Self {
            memory_type,
            shape,
            pages: vec![UNMAPPED; shape.pages],
            blocks: vec![block; blocks],
            folios: Vec::new(),
            unused: Vec::new(),
            mirrors: [vec![INVALID; shape.pages], vec![INVALID; shape.pages]],
            fails: [false; 2],
            files: [1; 2],
            huge_pages: 0,
            child: None,
            choices: Choices::default(),
        };
        memory.map(0..shape.pages);
        memory
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What the process may do with a page; `None`: it is not mapped.
    pub fn protection(&self, page: usize) -> Option<Protection> {
        self.pages[page].protection
    }

    /// Whether the process may access a page.
    pub fn allows(&self, page: usize, access: Access) -> bool {
        match access {
            Access::Read => !matches!(self.protection(page), None | Some(Protection::None)),
            Access::Write => self.protection(page) == Some(Protection::Write),
        }
    }

    /// What a page contains.
    pub fn content(&self, page: usize) -> Content {
        match self.pages[page].pte {
            Pte::Empty | Pte::Zero => ZEROES,
            Pte::Mapped { folio, .. } | Pte::DeviceExclusive { folio } => {
                self.folios[folio].content
            }
        }
    }

    /// Whether there is a held child.
    pub fn has_child(&self) -> bool {
        self.child.is_some()
    }

    /// Whether an allocation of a device shall fail.
    pub fn will_fail(&self, device: usize) -> bool {
        self.fails[device]
    }

    /// Has the next allocation of a device fail.
    pub fn fail_next(&mut self, device: usize) {
        self.fails[device] = true;
    }

    /// Tells where VMAs begin, which depends on how the kernel merges them.
    pub fn set_vmas(&mut self, beginnings: &[usize]) {
        for (number, page) in self.pages.iter_mut().enumerate() {
            page.begins_vma = beginnings.contains(&number);
        }
    }

    fn is_private(&self) -> bool {
        self.memory_type == MemoryType::Private
    }
}
