// SPDX-License-Identifier: GPL-2.0
//! What the kernel and the driver do to the memory of one process, page by page.
//!
//! A range of pages of anonymous memory, cut into blocks: what one PMD maps. Without
//! huge pages, this knows all there is to know: what each entry of the page table is,
//! which folio it maps and with what permission, and what the devices have mapped. With
//! huge pages, what the devices have mapped is left out, for it depends on when core mm
//! splits which folio; so are pins and exclusive access, and children that stay.

use std::ops::Range;

use nix::errno::Errno;

use crate::memory::HUGE_PAGES;
use crate::uapi::{MemoryType, prot};

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
    /// Number of the huge page that it is a part of, not yet split.
    huge_page: Option<u64>,
    /// After `MADV_FREE`, until reclaim has seen that it was written again.
    is_lazy: bool,
}

impl Folio {
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

    fn choose(&mut self) -> bool {
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

    // Folios.

    fn new_folio(&mut self, place: Place, content: Content, offset: usize) -> FolioId {
        let folio = Folio {
            place,
            content,
            file: self.file_of(place),
            offset,
            mapped: 1,
            pinned: 0,
            referenced: 0,
            huge_page: None,
            is_lazy: false,
        };
        match self.unused.pop() {
            Some(id) => {
                self.folios[id] = folio;
                id
            }
            None => {
                self.folios.push(folio);
                self.folios.len() - 1
            }
        }
    }

    fn map_new(&mut self, page: usize, place: Place, content: Content, writable: bool) {
        let folio = self.new_folio(place, content, self.pages[page].offset);
        self.pages[page].pte = Pte::Mapped { folio, writable, exclusive: true };
    }

    fn put_if_unused(&mut self, id: FolioId) {
        if self.folios[id].is_unused() {
            self.unused.push(id);
        }
    }

    fn unmap_folio(&mut self, id: FolioId) {
        self.folios[id].mapped -= 1;
        self.put_if_unused(id);
    }

    /// The folio that a page has, if it is not the zero page.
    fn folio_of(&self, page: usize) -> Option<FolioId> {
        match self.pages[page].pte {
            Pte::Empty | Pte::Zero => None,
            Pte::Mapped { folio, .. } | Pte::DeviceExclusive { folio } => Some(folio),
        }
    }

    /// Where a page is on a device and mapped, its folio.
    fn on_device(&self, page: usize) -> Option<(FolioId, usize)> {
        match self.pages[page].pte {
            Pte::Mapped { folio, .. } => match self.folios[folio].place {
                Place::Device(device) => Some((folio, device)),
                Place::System => None,
            },
            _ => None,
        }
    }

    // Blocks.

    fn block_of(&self, page: usize) -> usize {
        (self.shape.skew + page) / HUGE_PAGES
    }

    /// The pages of a block that exist.
    fn pages_of(&self, block: usize) -> Range<usize> {
        let start = block * HUGE_PAGES;
        let end = start + HUGE_PAGES;
        start.saturating_sub(self.shape.skew)..(end - self.shape.skew).min(self.pages.len())
    }

    /// Cuts a range into what is within one block each.
    fn by_block(&self, range: Range<usize>) -> Vec<Range<usize>> {
        (self.block_of(range.start)..=self.block_of(range.end - 1))
            .map(|block| self.pages_of(block))
            .map(|pages| pages.start.max(range.start)..pages.end.min(range.end))
            .collect()
    }

    fn is_whole_block(&self, range: &Range<usize>) -> bool {
        range.len() == HUGE_PAGES && self.pages_of(self.block_of(range.start)) == *range
    }

    fn block(&self, page: usize) -> Block {
        self.blocks[self.block_of(page)]
    }

    fn set_block(&mut self, page: usize, kind: Block) {
        let block = self.block_of(page);
        self.blocks[block] = kind;
    }

    fn is_mapped_huge(&self, page: usize) -> bool {
        matches!(self.block(page), Block::Huge | Block::HugeZero)
    }

    /// Has small entries map what a huge one does.
    fn split(&mut self, page: usize) {
        if self.is_mapped_huge(page) {
            self.set_block(page, Block::Table);
        }
    }

    /// The pages of a block are one huge page from now on.
    fn make_huge_page(&mut self, block: Range<usize>) {
        self.huge_pages += 1;
        for page in block.clone() {
            let folio = self.folio_of(page).expect("is there");
            self.folios[folio].huge_page = Some(self.huge_pages);
        }
        self.set_block(block.start, Block::Huge);
    }

    /// The pages of a huge page were migrated one by one.
    fn make_small_pages(&mut self, block: Range<usize>) {
        for folio in block.filter_map(|page| self.folio_of(page)).collect::<Vec<_>>() {
            self.folios[folio].huge_page = None;
        }
    }

    /// Splits the huge page that a page is a part of, not only how it is mapped. Core mm
    /// has the zero page take the place of what has only zeroes.
    fn split_huge_page(&mut self, page: usize) {
        let huge_page_of = |memory: &Self, page: usize| {
            memory.folio_of(page).and_then(|folio| memory.folios[folio].huge_page)
        };
        let Some(huge_page) = huge_page_of(self, page) else {
            return;
        };
        for page in 0..self.pages.len() {
            if huge_page_of(self, page) != Some(huge_page) {
                continue;
            }
            self.split(page);
            let id = self.folio_of(page).expect("is there");
            let folio = &mut self.folios[id];
            folio.huge_page = None;
            if folio.place == Place::System && folio.content.generation == 0 {
                self.unmap_folio(id);
                self.pages[page].pte = Pte::Zero;
                self.invalidate_page(page);
            }
        }
    }

    /// After something was removed from a block.
    fn forget_empty_block(&mut self, page: usize) {
        if !self.shape.has_huge_pages {
            return;
        }
        let pages = &self.pages[self.pages_of(self.block_of(page))];
        if pages.iter().all(|p| p.protection.is_none()) {
            self.set_block(page, Block::Hole);
        } else if self.block(page) == Block::Table && pages.iter().all(|p| p.pte == Pte::Empty) {
            self.set_block(page, Block::Emptied);
        }
    }

    /// Whether there is nothing in the block of a page, not even a table.
    fn is_hole(&mut self, page: usize) -> bool {
        if self.block(page) == Block::Emptied {
            let kind = if self.choices.choose() { Block::Table } else { Block::Hole };
            self.set_block(page, kind);
        }
        self.block(page) == Block::Hole
    }

    /// Whether a fault where nothing is makes a huge page.
    fn takes_huge(&mut self, page: usize) -> bool {
        let block = self.pages_of(self.block_of(page));
        let pages = &self.pages[block];
        let one_vma = pages.iter().all(|p| p.protection.is_some())
            && pages[1..].iter().all(|p| !p.begins_vma);
        self.shape.has_huge_pages && one_vma && self.is_hole(page)
    }

    // What devices have mapped.

    fn invalidate(&mut self, range: Range<usize>) {
        for mirror in &mut self.mirrors {
            mirror[range.clone()].fill(INVALID);
        }
    }

    fn invalidate_page(&mut self, page: usize) {
        self.invalidate(page..page + 1);
    }

    /// Core mm unmaps a folio wherever it is mapped. It may look where it once was, too.
    fn unmap_everywhere(&mut self, id: FolioId) {
        let offset = self.folios[id].offset;
        for page in 0..self.pages.len() {
            if self.folio_of(page) == Some(id) {
                self.invalidate_page(page);
            } else if self.pages[page].protection.is_some() && self.pages[page].offset == offset {
                for mirror in &mut self.mirrors {
                    mirror[page].is_uncertain = mirror[page].mirrored != Mirrored::Nothing;
                }
            }
        }
    }

    /// Whether an entry that may have been invalidated is still there.
    fn is_still_there(&mut self, device: usize, page: usize) -> bool {
        let gone = self.mirrors[device][page].is_uncertain && self.choices.choose();
        if gone {
            self.mirrors[device][page] = INVALID;
        }
        !gone
    }

    /// Whether a device can read, or write, a page without a fault.
    pub fn has_mapped(&mut self, device: usize, page: usize, access: Access) -> bool {
        let is_mapped = match (access, self.mirrors[device][page].mirrored) {
            (_, Mirrored::Nothing) => false,
            (Access::Read, _) => true,
            (Access::Write, mirrored) => mirrored == Mirrored::Write,
        };
        is_mapped && self.is_still_there(device, page)
    }

    /// Whether a device has any page of a range exclusively.
    pub fn any_exclusive(&mut self, device: usize, range: Range<usize>) -> bool {
        range.into_iter().any(|page| {
            self.mirrors[device][page].mirrored == Mirrored::Exclusive
                && self.is_still_there(device, page)
        })
    }

    // Faults.

    /// Whether a page is mapped for the CPU to access it so.
    fn is_accessible(&self, page: usize, access: Access) -> bool {
        match self.pages[page].pte {
            Pte::Empty | Pte::DeviceExclusive { .. } => false,
            Pte::Zero => access == Access::Read,
            Pte::Mapped { writable, .. } => {
                let on_private = self.is_private() && self.on_device(page).is_some();
                !on_private && (access == Access::Read || writable)
            }
        }
    }

    /// One page fault in a VMA that allows the access. `ENOMEM`: an allocation failed,
    /// as asked for; it works when tried again.
    fn fault(&mut self, page: usize, access: Access) -> Result<(), Errno> {
        if self.is_accessible(page, access) {
            return Ok(());
        }
        let writable = self.allows(page, Access::Write);
        let content = self.content(page);
        match self.pages[page].pte {
            Pte::Empty => {
                let huge = self.takes_huge(page);
                self.fill_hole(page, huge, access);
            }
            Pte::Zero => {
                let huge = self.block(page) == Block::HugeZero;
                self.fill_hole(page, huge, access);
            }
            Pte::DeviceExclusive { folio } => {
                self.pages[page].pte = Pte::Mapped { folio, writable, exclusive: true };
                self.invalidate_page(page);
            }
            Pte::Mapped { .. } if self.is_private() && self.on_device(page).is_some() => {
                return self.fault_back(page);
            }
            // A huge page is always used once: its children do not stay.
            Pte::Mapped { folio, exclusive, .. } => {
                if exclusive || self.folios[folio].is_used_once() {
                    let reused = if self.block(page) == Block::Huge {
                        self.pages_of(self.block_of(page))
                    } else {
                        page..page + 1
                    };
                    for page in reused {
                        self.reuse(page);
                    }
                } else {
                    self.unmap_folio(folio);
                    self.map_new(page, Place::System, content, true);
                    self.invalidate_page(page);
                }
            }
        }
        Ok(())
    }

    fn reuse(&mut self, page: usize) {
        if let Pte::Mapped { writable, exclusive, .. } = &mut self.pages[page].pte {
            (*writable, *exclusive) = (true, true);
        }
    }

    /// Fills what is empty or the zero page.
    fn fill_hole(&mut self, page: usize, huge: bool, access: Access) {
        let range = if huge { self.pages_of(self.block_of(page)) } else { page..page + 1 };
        for page in range.clone() {
            if self.pages[page].pte == Pte::Zero {
                self.invalidate_page(page);
            }
            match access {
                Access::Read => self.pages[page].pte = Pte::Zero,
                Access::Write => self.map_new(page, Place::System, ZEROES, true),
            }
        }
        match (huge, access) {
            (false, _) => self.set_block(page, Block::Table),
            (true, Access::Read) => self.set_block(page, Block::HugeZero),
            (true, Access::Write) => self.make_huge_page(range),
        }
    }

    /// A CPU fault on private memory of a device.
    fn fault_back(&mut self, page: usize) -> Result<(), Errno> {
        let (_, device) = self.on_device(page).expect("is on a device");
        let huge = self.block(page) == Block::Huge;
        if std::mem::take(&mut self.fails[device]) {
            if huge {
                // The mapping is split, and its pages follow by faults of their own.
                self.invalidate(self.pages_of(self.block_of(page)));
                self.split(page);
                return Ok(());
            }
            // It was unmapped for a while.
            self.invalidate_page(page);
            return Err(Errno::ENOMEM);
        }
        if !huge {
            self.split_huge_page(page);
        }
        let range = if huge { self.pages_of(self.block_of(page)) } else { page..page + 1 };
        for page in range.clone() {
            let (folio, _) = self.on_device(page).expect("is on a device");
            self.migrate(folio, Place::System);
        }
        self.invalidate(range);
        Ok(())
    }

    /// The CPU accesses a page that the process may access so.
    pub fn cpu_access(&mut self, page: usize, access: Access) {
        while !self.is_accessible(page, access) {
            // After a failed allocation it tries again.
            let _ = self.fault(page, access);
        }
    }

    /// The CPU writes a page that it may write.
    pub fn cpu_write(&mut self, page: usize, content: Content) {
        self.cpu_access(page, Access::Write);
        self.set_content(page, content);
    }

    /// Changes what a page that is there contains.
    pub fn set_content(&mut self, page: usize, content: Content) {
        let folio = self.folio_of(page).expect("there is a folio");
        self.folios[folio].content = content;
    }

    /// `get_user_pages`: makes a page accessible, if the process may access it so.
    fn get_user_page(&mut self, page: usize, access: Access) -> Result<(), Errno> {
        if !self.allows(page, access) {
            return Err(Errno::EFAULT);
        }
        while !self.is_accessible(page, access) {
            self.fault(page, access)?;
        }
        Ok(())
    }

    // Device faults.

    /// What `hmm_range_fault` for a device, or for none, sees of a page: whether it is
    /// valid, and writable.
    fn hmm_view(&self, device: Option<usize>, page: usize) -> (bool, bool) {
        match self.pages[page].pte {
            Pte::Empty | Pte::DeviceExclusive { .. } => (false, false),
            Pte::Zero => (true, false),
            Pte::Mapped { writable, .. } => match self.on_device(page) {
                Some((_, on)) if self.is_private() && device != Some(on) => (false, false),
                _ => (true, writable),
            },
        }
    }

    /// The end of the VMA part and block that a page is in, within a range.
    fn end_of_vma(&self, page: usize, end: usize) -> usize {
        let next = (page + 1..end)
            .find(|&p| self.pages[p].begins_vma || self.pages[p].protection.is_none());
        next.unwrap_or(end)
    }

    /// The first pages of a range within a block that need a fault.
    fn first_fault(
        &self,
        device: Option<usize>,
        range: Range<usize>,
        access: Access,
    ) -> Result<Option<Range<usize>>, Errno> {
        for page in range.clone() {
            if !self.allows(page, Access::Read) {
                return Err(Errno::EFAULT);
            }
            let (valid, writable) = self.hmm_view(device, page);
            // What is on the device itself is taken as it is.
            let is_own = self.is_private() && valid && self.on_device(page).is_some();
            if !valid || (access == Access::Write && !writable && !is_own) {
                return Ok(Some(page..self.end_of_vma(page, range.end)));
            }
        }
        Ok(None)
    }

    fn hmm_fault(&mut self, range: Range<usize>, access: Access) -> Result<(), Errno> {
        for page in range {
            if !self.allows(page, access) {
                return Err(Errno::EPERM);
            }
            self.fault(page, access)?;
        }
        Ok(())
    }

    /// `hmm_range_fault` within a block until nothing is missing.
    fn fault_block(
        &mut self,
        device: usize,
        range: Range<usize>,
        access: Access,
    ) -> Result<(), Errno> {
        loop {
            if let Some(pages) = self.first_fault(Some(device), range.clone(), access)? {
                self.hmm_fault(pages, access)?;
                continue;
            }
            if access == Access::Read {
                return Ok(());
            }
            // Own memory that is read-only is as it is for hmm_range_fault().
            let read_only: Vec<_> =
                range.clone().filter(|&p| !self.hmm_view(Some(device), p).1).collect();
            if read_only.is_empty() {
                return Ok(());
            }
            for page in read_only {
                if let Some(pages) = self.first_fault(None, page..page + 1, access)? {
                    self.hmm_fault(pages, access)?;
                }
            }
        }
    }

    /// The device takes over what is mapped in a range within a block.
    pub fn mirror_present(&mut self, device: usize, range: Range<usize>) {
        for page in range {
            let (valid, writable) = self.hmm_view(Some(device), page);
            if valid {
                let mirrored = if writable { Mirrored::Write } else { Mirrored::Read };
                self.mirrors[device][page] = Entry { mirrored, is_uncertain: false };
            }
        }
    }

    /// A fault of a device that maps a range for it.
    pub fn device_fault(
        &mut self,
        device: usize,
        range: Range<usize>,
        access: Access,
    ) -> Result<(), Errno> {
        for part in self.by_block(range) {
            self.fault_block(device, part.clone(), access)?;
            self.mirror_present(device, part);
        }
        Ok(())
    }

    // Migration.

    /// The parts of a range that are migrated at a time, as far as there is memory that
    /// can be, and whether that is all.
    pub fn windows(&self, range: Range<usize>) -> (Vec<Range<usize>>, bool) {
        let mut windows = Vec::new();
        for block in self.by_block(range) {
            let mut start = block.start;
            while start < block.end {
                if !self.allows(start, Access::Read) {
                    return (windows, false);
                }
                let end = self.end_of_vma(start, block.end);
                windows.push(start..end);
                start = end;
            }
        }
        (windows, true)
    }

    /// Migrates what it can of a window to a device.
    pub fn migrate_to_device(&mut self, device: usize, window: Range<usize>) {
        self.invalidate(window.clone());
        let first = window.start;
        let whole = self.shape.has_huge_pages && self.is_whole_block(&window);
        match self.block(first) {
            Block::Huge if self.is_private() && self.on_device(first).is_some() => return,
            Block::Huge | Block::HugeZero if whole => {
                self.migrate_huge_to_device(device, window);
                return;
            }
            Block::Hole | Block::Emptied if whole && self.is_hole(first) => {
                self.migrate_huge_to_device(device, window);
                return;
            }
            _ => {}
        }
        for page in window.clone() {
            if self.is_source(page) {
                self.split_huge_page(page);
            }
        }
        for page in window {
            if self.is_source(page) && !std::mem::take(&mut self.fails[device]) {
                self.move_to_device(device, page);
            }
        }
    }

    /// Whether a page can be migrated from system memory.
    fn is_source(&self, page: usize) -> bool {
        match self.pages[page].pte {
            Pte::Empty | Pte::Zero => true,
            Pte::Mapped { folio, .. } => {
                let folio = &self.folios[folio];
                folio.place == Place::System && folio.can_migrate()
            }
            Pte::DeviceExclusive { .. } => false,
        }
    }

    fn move_to_device(&mut self, device: usize, page: usize) {
        self.set_block(page, Block::Table);
        self.put_on_device(device, page);
    }

    fn put_on_device(&mut self, device: usize, page: usize) {
        match self.pages[page].pte {
            Pte::Mapped { folio, .. } => self.migrate(folio, Place::Device(device)),
            _ => {
                let writable = self.allows(page, Access::Write);
                self.map_new(page, Place::Device(device), ZEROES, writable);
            }
        }
    }

    fn file_of(&self, place: Place) -> u32 {
        match place {
            Place::System => 0,
            Place::Device(device) => self.files[device],
        }
    }

    /// Migrates a folio that was collected where this process maps it.
    fn migrate(&mut self, folio: FolioId, place: Place) {
        self.folios[folio].place = place;
        self.folios[folio].file = self.file_of(place);
        if self.folios[folio].mapped > 1 {
            self.unmap_everywhere(folio);
        }
    }

    /// Migrates a block that is one source: a huge page, the huge zero page or a hole.
    fn migrate_huge_to_device(&mut self, device: usize, block: Range<usize>) {
        let failed = std::mem::take(&mut self.fails[device]);
        let huge = self.is_private() && !failed;
        for page in block.clone() {
            self.put_on_device(device, page);
        }
        if huge {
            self.make_huge_page(block);
        } else {
            self.set_block(block.start, Block::Table);
            self.make_small_pages(block);
        }
    }

    /// Migrates a window back. Returns the number of pages.
    pub fn migrate_to_system(
        &mut self,
        device: usize,
        window: Range<usize>,
    ) -> Result<usize, Errno> {
        self.invalidate(window.clone());
        let migrating = |memory: &Self, page: &usize| {
            memory
                .on_device(*page)
                .is_some_and(|(id, on)| on == device && memory.folios[id].can_migrate())
        };
        let mut pages: Vec<_> = window.clone().filter(|page| migrating(self, page)).collect();
        if pages.is_empty() {
            return Ok(0);
        }
        let huge = self.block(window.start) == Block::Huge && self.is_whole_block(&window);
        if !huge {
            for &page in &pages {
                self.split_huge_page(page);
            }
        }
        if std::mem::take(&mut self.fails[device]) {
            if huge {
                self.split(window.start);
                self.make_small_pages(window);
            } else if self.is_private() {
                return Err(Errno::ENOMEM);
            } else {
                // The CPU can use it where it is.
                pages.remove(0);
            }
        }
        for &page in &pages {
            let (folio, _) = self.on_device(page).expect("is on the device");
            self.migrate(folio, Place::System);
        }
        Ok(pages.len())
    }

    /// Migrates everything on a device back. Returns whether that is all.
    pub fn evict(&mut self, device: usize) -> bool {
        self.evict_where(|folio| folio.place == Place::Device(device))
    }

    fn evict_where(&mut self, is_to_go: impl Fn(&Folio) -> bool) -> bool {
        // What is unmapped for it, even in vain, comes back as a read-only page, if it was
        // exclusive to a device. What is pinned is not unmapped.
        for page in &mut self.pages {
            if let Pte::DeviceExclusive { folio: id } = page.pte {
                if is_to_go(&self.folios[id]) && self.folios[id].pinned == 0 {
                    page.pte = Pte::Mapped { folio: id, writable: false, exclusive: true };
                }
            }
        }
        let mut is_all = true;
        for id in 0..self.folios.len() {
            if is_to_go(&self.folios[id]) && !self.folios[id].is_unused() {
                if self.folios[id].mapped > 0 {
                    self.unmap_everywhere(id);
                }
                if self.folios[id].can_migrate() {
                    self.folios[id].place = Place::System;
                } else {
                    is_all = false;
                }
            }
        }
        is_all
    }

    // Exclusive access.

    /// Gives a page to a device exclusively.
    pub fn make_exclusive(&mut self, device: usize, page: usize) -> Result<(), Errno> {
        self.get_user_page(page, Access::Write)?;
        let folio = self.folio_of(page).expect("is writable");
        self.pages[page].pte = Pte::DeviceExclusive { folio };
        self.invalidate_page(page);
        self.mirrors[device][page].mirrored = Mirrored::Exclusive;
        Ok(())
    }

    // System calls.

    /// Maps fresh memory, readable and writable.
    pub fn map(&mut self, range: Range<usize>) {
        self.unmap(range.clone());
        for page in range.clone() {
            self.pages[page].protection = Some(Protection::Write);
            self.pages[page].offset = page;
        }
        self.pages[range.start].begins_vma = true;
        self.begin_vma_after(range);
    }

    fn begin_vma_after(&mut self, range: Range<usize>) {
        if let Some(next) = self.pages.get_mut(range.end) {
            next.begins_vma = next.protection.is_some();
        }
    }

    /// Unmaps, where something is mapped.
    pub fn unmap(&mut self, range: Range<usize>) {
        self.drop_contents(range.clone());
        for page in range.clone() {
            self.pages[page] = UNMAPPED;
        }
        self.begin_vma_after(range.clone());
        for part in self.by_block(range) {
            self.forget_empty_block(part.start);
        }
    }

    /// Unmaps the folios of a range.
    pub fn drop_contents(&mut self, range: Range<usize>) {
        self.invalidate(range.clone());
        for part in self.by_block(range) {
            let huge = self.is_mapped_huge(part.start);
            let whole = self.is_whole_block(&part);
            if huge && !whole {
                self.split(part.start);
            }
            for page in part.clone() {
                if let Some(folio) = self.folio_of(page) {
                    self.unmap_folio(folio);
                }
                self.pages[page].pte = Pte::Empty;
            }
            if huge && whole {
                self.set_block(part.start, Block::Hole);
            }
            self.forget_empty_block(part.start);
        }
    }

    /// Changes the protection of pages that are all mapped.
    pub fn protect(&mut self, range: Range<usize>, protection: Protection) {
        for part in self.by_block(range.clone()) {
            let changes = part.clone().any(|p| self.protection(p) != Some(protection));
            if changes && !self.is_whole_block(&part) {
                self.split(part.start);
            }
        }
        for page in range.clone() {
            if self.protection(page) == Some(protection) {
                continue;
            }
            self.invalidate_page(page);
            let on_private = self.is_private() && self.on_device(page).is_some();
            let page = &mut self.pages[page];
            page.protection = Some(protection);
            if let Pte::Mapped { writable, exclusive, .. } = &mut page.pte {
                *writable = protection == Protection::Write && *exclusive && !on_private;
            }
        }
        self.pages[range.start].begins_vma = true;
        self.begin_vma_after(range);
    }

    /// Moves pages that are all mapped to where there is no overlap.
    pub fn move_pages(&mut self, range: Range<usize>, to: usize) {
        let target = to..to + range.len();
        self.unmap(target.clone());
        self.invalidate(range.clone());
        for part in self.by_block(range.clone()) {
            let target = part.start + to - range.start..part.end + to - range.start;
            let whole = self.is_whole_block(&part) && self.is_whole_block(&target);
            let kind = self.block(part.start);
            if !whole {
                self.split(part.start);
            }
            for (from, to) in part.clone().zip(target.clone()) {
                self.pages[to] = std::mem::replace(&mut self.pages[from], UNMAPPED);
            }
            if whole {
                self.set_block(target.start, kind);
            } else {
                for part in self.by_block(target) {
                    let filled = self.pages[part.clone()].iter().any(|p| p.pte != Pte::Empty);
                    match self.block(part.start) {
                        _ if filled => self.set_block(part.start, Block::Table),
                        Block::Hole if kind != Block::Hole && self.shape.has_huge_pages => {
                            self.set_block(part.start, Block::Emptied);
                        }
                        _ => {}
                    }
                }
            }
            self.forget_empty_block(part.start);
        }
        self.pages[to].begins_vma = true;
        self.begin_vma_after(target);
        self.begin_vma_after(range);
    }

    /// `MADV_FREE` of pages, which are written right after.
    pub fn free_lazily(&mut self, range: Range<usize>) {
        self.invalidate(range.clone());
        for part in self.by_block(range) {
            for page in part.clone() {
                if !self.is_one_huge_page(&part) && self.on_device(page).is_none() {
                    self.split_huge_page(page);
                }
            }
            for page in part {
                if let Pte::Mapped { folio, .. } = self.pages[page].pte {
                    let folio = &mut self.folios[folio];
                    folio.is_lazy |= folio.place == Place::System;
                }
            }
        }
    }

    /// Whether a range is a huge page, whole and in order.
    fn is_one_huge_page(&self, range: &Range<usize>) -> bool {
        let huge_page = |page| self.folio_of(page).and_then(|folio| self.folios[folio].huge_page);
        let first = huge_page(range.start);
        self.is_whole_block(range) && range.clone().all(|page| huge_page(page) == first)
    }

    /// Whether reclaim looks at any page of a range that was once freed lazily: then it
    /// may unmap it, and map it again as it was written since.
    pub fn may_unmap_in_reclaim(&self, page: usize) -> bool {
        self.folio_of(page).is_some_and(|folio| self.folios[folio].is_lazy)
    }

    /// Forks a child, which reads all it can, and then stays if `hold`.
    pub fn fork(&mut self, hold: bool) {
        self.invalidate(0..self.pages.len());
        let mut shared = Vec::new();
        for page in 0..self.pages.len() {
            if let Pte::DeviceExclusive { folio } = self.pages[page].pte {
                let writable = self.allows(page, Access::Write);
                self.pages[page].pte = Pte::Mapped { folio, writable, exclusive: true };
            }
            let is_readable = self.allows(page, Access::Read);
            if let Pte::Mapped { folio, writable, exclusive } = &mut self.pages[page].pte {
                // What is pinned is copied for the child at once.
                if *exclusive && self.folios[*folio].pinned > 0 {
                    continue;
                }
                (*writable, *exclusive) = (false, false);
                self.folios[*folio].mapped += 1;
                shared.push(ChildPage { folio: *folio, is_readable });
            }
        }
        if hold {
            self.child = Some(shared);
        } else {
            self.end_of_child(&shared);
        }
    }

    /// The held child reads all it can, writes, and exits.
    pub fn join(&mut self) {
        if let Some(shared) = self.child.take() {
            self.end_of_child(&shared);
        }
    }

    fn end_of_child(&mut self, shared: &[ChildPage]) {
        let mut page_of = vec![None; self.folios.len()];
        for page in 0..self.pages.len() {
            if let Some(folio) = self.folio_of(page) {
                page_of[folio] = Some(page);
            }
        }
        let touched = shared
            .iter()
            .filter(|page| page.is_readable && self.memory_type == MemoryType::Private);
        for id in touched.map(|page| page.folio).collect::<Vec<_>>() {
            while let Place::Device(device) = self.folios[id].place {
                match page_of[id] {
                    // Tries again after a failed allocation.
                    Some(page) => drop(self.fault_back(page)),
                    None if std::mem::take(&mut self.fails[device]) => {}
                    None => self.migrate_everywhere(id),
                }
            }
        }
        for child_page in shared {
            self.unmap_folio(child_page.folio);
        }
    }

    fn migrate_everywhere(&mut self, id: FolioId) {
        self.folios[id].place = Place::System;
        self.unmap_everywhere(id);
    }

    // Pins.

    /// Pins pages for the long term, for writing.
    pub fn pin_longterm(&mut self, range: Range<usize>) -> Result<Vec<Reference>, Errno> {
        let mut folios = Vec::new();
        let mut result = Ok(());
        let mut last = range.start;
        for page in range.clone() {
            result = self.get_user_page(page, Access::Write);
            if result == Err(Errno::ENOMEM) && page > range.start {
                // What was pinned so far is a success, and the rest is tried again.
                result = self.get_user_page(page, Access::Write);
            }
            if result.is_err() {
                break;
            }
            last = page + 1;
        }
        for page in range.start..last {
            let folio = self.folio_of(page).expect("is writable");
            if self.memory_type == MemoryType::Coherent && self.on_device(page).is_some() {
                // It must not be pinned there for long.
                self.unmap_everywhere(folio);
                if !self.folios[folio].can_migrate() {
                    return Err(Errno::EBUSY);
                }
                self.folios[folio].place = Place::System;
            }
            folios.push(folio);
        }
        result?;
        for &folio in &folios {
            self.folios[folio].pinned += 1;
        }
        Ok(folios.into_iter().map(Reference::Folio).collect())
    }

    /// Undoes [`pin_longterm`](Self::pin_longterm).
    pub fn unpin_longterm(&mut self, references: &[Reference]) {
        for reference in references {
            if let &Reference::Folio(folio) = reference {
                self.folios[folio].pinned -= 1;
                self.put_if_unused(folio);
            }
        }
    }

    /// References pages that can be read, as vmsplice(2) does.
    pub fn reference(&mut self, range: Range<usize>) -> Vec<Reference> {
        range
            .map(|page| {
                self.cpu_access(page, Access::Read);
                match self.folio_of(page) {
                    None => Reference::Zero,
                    Some(folio) => {
                        self.folios[folio].referenced += 1;
                        Reference::Folio(folio)
                    }
                }
            })
            .collect()
    }

    /// Undoes [`reference`](Self::reference).
    pub fn put_references(&mut self, references: &[Reference]) {
        for reference in references {
            if let &Reference::Folio(folio) = reference {
                self.folios[folio].referenced -= 1;
                self.put_if_unused(folio);
            }
        }
    }

    /// What a referenced page contains.
    pub fn content_of(&self, reference: Reference) -> Content {
        match reference {
            Reference::Zero => ZEROES,
            Reference::Folio(folio) => self.folios[folio].content,
        }
    }

    /// The device is closed, which evicts what it has allocated since it was opened, and
    /// opened again.
    pub fn reopen(&mut self, device: usize) {
        let file = self.files[device];
        self.evict_where(|folio| folio.place == Place::Device(device) && folio.file == file);
        self.files[device] += 1;
        self.fails[device] = false;
        self.mirrors[device].fill(INVALID);
    }

    // Views.

    /// Whether a page is on a device, and mapped.
    pub fn is_on(&self, device: usize, page: usize) -> bool {
        self.on_device(page).is_some_and(|(_, on)| on == device)
    }

    /// Bytes of a snapshot by a device.
    pub fn snapshot(&self, device: usize) -> Vec<u8> {
        (0..self.pages.len()).map(|page| self.snapshot_byte(device, page)).collect()
    }

    fn snapshot_byte(&self, device: usize, page: usize) -> u8 {
        if !self.allows(page, Access::Read) {
            return prot::ERROR;
        }
        let huge = if self.is_mapped_huge(page) { prot::PMD } else { 0 };
        match self.pages[page].pte {
            Pte::Empty | Pte::DeviceExclusive { .. } => prot::NONE,
            // The driver knows the small zero page only.
            Pte::Zero if huge != 0 => prot::READ | huge,
            Pte::Zero => prot::READ | prot::ZERO,
            Pte::Mapped { writable, .. } => {
                let permission = if writable { prot::WRITE } else { prot::READ };
                match self.on_device(page) {
                    None => permission | huge,
                    Some((_, on)) if on == device => self.memory_type.local() | permission | huge,
                    Some(_) if self.is_private() && huge != 0 => prot::ERROR,
                    Some(_) => self.memory_type.remote(permission),
                }
            }
        }
    }
}
