// SPDX-License-Identifier: GPL-2.0

//! The memory of a device: which of it is in use, and by which file.
//!
//! A device has chunks of memory, each of them a [`PageMap`]. A page that was handed out is known
//! by its [`PageIndex`]. Pages are listed by the file that they were allocated for, so that
//! closing it costs no more than it has pages. A page that cannot be evicted then stays behind: it
//! keeps its [`Owner`], but not the file.
//!
//! What a [`Chunk`] does when core mm calls for it takes migration, and is not here.

use crate::{
    folio_list::{
        Folios,
        Links,
        List,
        PageIndex,
        MAX_CHUNKS,
        MAX_CHUNK_PAGES, //
    },
    free_pages::{
        FreePages,
        BLOCK_PAGES, //
    },
    uapi, //
};
use core::ops::Range;
use kernel::{
    mm::{
        folio::{
            FolioPage,
            OwnedFolio, //
        },
        pgmap::{
            MemoryType,
            PageMap,
            PageMapOwner, //
        }, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        new_spinlock_irq,
        Arc,
        LockedBy,
        SpinLockIrq, //
    }, //
};

/// Number of a chunk, and index of a page within.
type Position = (usize, usize);

/// Whom pages were allocated for: an open file.
///
/// Pages have a reference on it, so it exists longer than the file if some cannot be evicted.
pub(crate) struct Owner {
    /// `HMM_DMIRROR_FLAG_*`
    flags: Atomic<u64>,
    folios: LockedBy<List, State>,
}

impl Owner {
    pub(crate) fn new(pool: &Pool) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                flags: Atomic::new(0),
                folios: LockedBy::new(&pool.state, List::default()),
            },
            GFP_KERNEL,
        )?)
    }

    /// Sets the flags. Returns [`EINVAL`] if there are unknown ones.
    pub(crate) fn set_flags(&self, flags: u64) -> Result {
        if flags & !uapi::FLAG_FAIL_ALLOC != 0 {
            return Err(EINVAL);
        }
        self.flags.store(flags, Relaxed);
        Ok(())
    }

    /// Returns whether an allocation shall fail, which is so just once.
    pub(crate) fn take_fail_alloc(&self) -> bool {
        // It hardly ever shall, and only who changes it needs to be the one.
        self.flags.load(Relaxed) == uapi::FLAG_FAIL_ALLOC
            && self.flags.cmpxchg(uapi::FLAG_FAIL_ALLOC, 0, Full).is_ok()
    }
}

/// What is behind the pages of a device-private folio: memory of the same size, or, if the folio
/// was split off another one, of that size.
pub(crate) type Backing = ARef<OwnedFolio>;

/// What the pool knows of a folio, by its first page.
#[derive(Default)]
struct PageState {
    owner: Option<Arc<Owner>>,
    order: u32,
    links: Links,
}

struct ChunkState {
    map: Arc<PageMap<Chunk>>,
    free: FreePages,
    pages: VVec<PageState>,
}

/// Appends pages to ranges, for which there must be room: to the last one where they follow that.
fn append(ranges: &mut KVec<Range<usize>>, pages: Range<usize>) -> Option<()> {
    match ranges.last_mut() {
        Some(last) if last.end == pages.start => last.end = pages.end,
        _ => ranges.push_within_capacity(pages).ok()?,
    }
    Some(())
}

/// State of a [`Pool`].
pub(crate) struct State {
    chunks: KVec<Option<ChunkState>>,
}

impl State {
    /// Returns the state of a page that is in use, whose chunk therefore exists.
    fn page(&mut self, index: PageIndex) -> Option<&mut PageState> {
        self.chunks[index.chunk()]
            .as_mut()
            .map(|chunk| &mut chunk.pages[index.page()])
    }

    /// Adds a folio at the end of its owner's list.
    fn link(&mut self, owner: &Arc<Owner>, index: PageIndex, order: u32) {
        if let Some(page) = self.page(index) {
            page.owner = Some(owner.clone());
            page.order = order;
        }
        let mut list = *owner.folios.access_mut(self);
        list.push(self, index);
        *owner.folios.access_mut(self) = list;
    }

    /// Removes a folio from its owner's list, and returns the owner.
    #[inline]
    fn unlink(&mut self, index: PageIndex) -> Option<Arc<Owner>> {
        let owner = self.page(index)?.owner.take()?;
        let mut list = *owner.folios.access_mut(self);
        list.remove(self, index);
        *owner.folios.access_mut(self) = list;
        Some(owner)
    }
}

impl Folios for State {
    fn links(&mut self, index: PageIndex) -> Option<&mut Links> {
        self.page(index).map(|page| &mut page.links)
    }
}

/// The memory of a device.
///
/// The lock is taken by whoever drops the last reference on a page, maybe in an interrupt. Nothing
/// is allocated with it held, and no other lock of this driver taken.
#[pin_data]
pub(crate) struct Pool {
    #[pin]
    state: SpinLockIrq<State>,
}

impl Pool {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            state <- new_spinlock_irq!(State {
                chunks: {
                    let mut chunks = KVec::with_capacity(MAX_CHUNKS, GFP_KERNEL)?;
                    for _ in 0..MAX_CHUNKS {
                        chunks.push(None, GFP_KERNEL)?;
                    }
                    chunks
                },
            }),
        })
    }

    /// Returns a number that no chunk has.
    pub(crate) fn unused_chunk(&self) -> Option<usize> {
        self.state.lock().chunks.iter().position(Option::is_none)
    }

    /// Adds a chunk, whose number no other has.
    ///
    /// Returns [`EINVAL`] if the number of pages is not one of blocks, or too large; [`ENOMEM`].
    pub(crate) fn add(&self, map: Arc<PageMap<Chunk>>) -> Result {
        let nr_pages = map.nr_pages();
        if nr_pages > MAX_CHUNK_PAGES {
            return Err(EINVAL);
        }
        let number = map.data().number();
        let mut pages = VVec::with_capacity(nr_pages, GFP_KERNEL)?;
        for _ in 0..nr_pages {
            pages.push(PageState::default(), GFP_KERNEL)?;
        }
        let chunk = ChunkState {
            map,
            free: FreePages::new(nr_pages)?,
            pages,
        };

        self.state.lock().chunks[number] = Some(chunk);
        Ok(())
    }

    /// Takes a chunk of which no page is in use out of the pool. It is up to the caller to drop
    /// it.
    pub(crate) fn remove_unused(&self) -> Option<impl Sized> {
        let mut state = self.state.lock();
        state
            .chunks
            .iter_mut()
            .find_map(|slot| slot.take_if(|chunk| chunk.free.nr_in_use() == 0))
    }

    /// Returns the number of pages that are in use.
    pub(crate) fn nr_in_use(&self) -> usize {
        let state = self.state.lock();
        let chunks = state.chunks.iter().flatten();
        chunks.map(|chunk| chunk.free.nr_in_use()).sum()
    }

    /// Returns the number of pages that are free.
    pub(crate) fn nr_free(&self) -> usize {
        let state = self.state.lock();
        let chunks = state.chunks.iter().flatten();
        chunks.map(|chunk| chunk.free.nr_free()).sum()
    }

    /// Returns whether there are `nr_pages` free pages, and a whole block.
    pub(crate) fn has_room(&self, nr_pages: usize) -> bool {
        let state = self.state.lock();
        let chunks = || state.chunks.iter().flatten();
        chunks().map(|chunk| chunk.free.nr_free()).sum::<usize>() >= nr_pages
            && chunks().any(|chunk| chunk.free.has_whole_block())
    }

    /// Returns the page frame number of a page that is in use, if there is one.
    pub(crate) fn first_in_use(&self) -> Option<usize> {
        let state = self.state.lock();
        state
            .chunks
            .iter()
            .flatten()
            .find_map(|chunk| Some(chunk.map.start_pfn() + chunk.free.next_in_use(0)?))
    }

    /// Takes pages for a folio of up to the order of a huge page, and returns where they are.
    pub(crate) fn take(
        &self,
        order: u32,
        owner: &Arc<Owner>,
    ) -> Option<(Arc<PageMap<Chunk>>, usize)> {
        let mut state = self.state.lock();
        let (number, page) = state
            .chunks
            .iter_mut()
            .enumerate()
            .find_map(|(number, chunk)| Some((number, chunk.as_mut()?.free.take(order)?)))?;
        state.link(owner, PageIndex::new(number, page), order);

        let chunk = state.chunks[number].as_ref()?;
        Some((chunk.map.clone(), page))
    }

    /// Puts the pages of a folio back.
    pub(crate) fn put(&self, number: usize, pages: Range<usize>) {
        let mut state = self.state.lock();
        let owner = state.unlink(PageIndex::new(number, pages.start));
        if let Some(chunk) = state.chunks[number].as_mut() {
            chunk.free.put(pages);
        }
        // It may be freed, for which no other CPU should wait.
        drop(state);
        drop(owner);
    }

    /// Puts the pages of a folio that could not be initialised back, but for those that are broken,
    /// which are left out from now on.
    pub(crate) fn discard(
        &self,
        number: usize,
        pages: Range<usize>,
        is_broken: impl Fn(usize) -> bool,
    ) {
        let mut state = self.state.lock();

        let owner = state.unlink(PageIndex::new(number, pages.start));
        if let Some(chunk) = state.chunks[number].as_mut() {
            for page in pages {
                match is_broken(page) {
                    true => chunk.free.discard(page),
                    false => chunk.free.put(page..page + 1),
                }
            }
        }
        drop(state);
        drop(owner);
    }

    /// Returns the number of folios of an owner.
    pub(crate) fn nr_folios(&self, owner: &Owner) -> usize {
        owner.folios.access_mut(&mut self.state.lock()).len()
    }

    /// Lists pages of up to `max` folios of an owner, no more than a block, all of one chunk.
    ///
    /// Appends ranges of their indices in the chunk to `pages`, which is empty and has the capacity
    /// of a block. The folios go to the end of the owner's list. Returns the chunk and the number
    /// of folios, if there are any.
    pub(crate) fn list_owned(
        &self,
        owner: &Arc<Owner>,
        max: usize,
        pages: &mut KVec<Range<usize>>,
    ) -> Option<(Arc<PageMap<Chunk>>, usize)> {
        let mut state = self.state.lock();
        let mut list = *owner.folios.access_mut(&mut state);
        let first = list.first()?;
        let map = state.chunks[first.chunk()].as_ref()?.map.clone();
        let (mut nr_folios, mut nr_pages) = (0, 0);
        let mut next = Some(first);
        while let Some(index) = next.filter(|_| nr_folios < max) {
            let page = state.page(index)?;
            let (order, behind) = (page.order, page.links.next());
            nr_pages += 1 << order;
            if index.chunk() != first.chunk() || nr_pages > BLOCK_PAGES {
                break;
            }
            append(pages, index.page()..index.page() + (1 << order))?;
            next = behind;
            nr_folios += 1;
        }
        if let Some(next) = next {
            list.rotate_to(&mut *state, next);
            *owner.folios.access_mut(&mut state) = list;
        }
        Some((map, nr_folios))
    }

    /// Lists pages that are in use, no more than a block, all of one chunk, from chunk and page
    /// `from` on.
    ///
    /// Appends ranges of their indices in the chunk to `pages`, which is empty and has the capacity
    /// of a block. Returns the chunk, and where to go on, if there are any.
    pub(crate) fn list_in_use(
        &self,
        from: Position,
        pages: &mut KVec<Range<usize>>,
    ) -> Option<(Arc<PageMap<Chunk>>, Position)> {
        let state = self.state.lock();
        let (mut number, mut page) = from;
        while number < MAX_CHUNKS {
            if let Some(chunk) = &state.chunks[number] {
                // A large folio is within a block.
                let mut block = None;
                while let Some(in_use) = chunk.free.next_in_use(page) {
                    if *block.get_or_insert(in_use / BLOCK_PAGES) != in_use / BLOCK_PAGES {
                        break;
                    }
                    append(pages, in_use..in_use + 1)?;
                    page = in_use + 1;
                }
                if block.is_some() {
                    return Some((chunk.map.clone(), (number, page)));
                }
            }
            (number, page) = (number + 1, 0);
        }
        None
    }
}

/// The driver's data of a [`PageMap`].
pub(crate) struct Chunk {
    memory: Arc<PageMapOwner<Chunk>>,
    pool: Arc<Pool>,
    number: usize,
}

impl Chunk {
    /// Creates the data of chunk `number` of a pool.
    pub(crate) fn new(memory: Arc<PageMapOwner<Chunk>>, pool: Arc<Pool>, number: usize) -> Self {
        Self {
            memory,
            pool,
            number,
        }
    }

    /// Returns the owner of the memory, as core mm knows it.
    pub(crate) fn memory(&self) -> &PageMapOwner<Chunk> {
        &self.memory
    }

    /// Returns the number of the chunk.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Puts the pages of a folio that is free back into the pool.
    pub(crate) fn put(&self, pages: Range<usize>) {
        self.pool.put(self.number, pages);
    }

    /// Lists what was split off a folio, of which `head` is the first page, for the owner of the
    /// rest.
    pub(crate) fn split(&self, head: usize, pages: Range<usize>) {
        let mut state = self.pool.state.lock();
        let Some(page) = state.page(PageIndex::new(self.number, head)) else {
            return;
        };
        // The first call says how much is left of the folio.
        page.order = page.order.min((pages.start - head).trailing_zeros());
        if let Some(owner) = page.owner.clone() {
            let index = PageIndex::new(self.number, pages.start);
            state.link(&owner, index, pages.len().trailing_zeros());
        }
    }

    /// Returns the memory behind a page, and the index of the page there, if it is device-private
    /// memory of the given owner.
    pub(crate) fn backing_of<'a>(
        memory: &PageMapOwner<Self>,
        page: FolioPage<'a>,
    ) -> Option<(&'a OwnedFolio, usize)> {
        if memory.memory_type() != MemoryType::Private {
            return None;
        }
        let page = memory.device_page(page)?;
        let folio = page.data()?;
        // Both are aligned to the size that the memory was allocated with.
        Some((folio, page.index() & (folio.nr_pages() - 1)))
    }

    /// Returns whom the folio of which `page` is the first was allocated for.
    pub(crate) fn owner(&self, page: usize) -> Option<Arc<Owner>> {
        let mut state = self.pool.state.lock();
        state.page(PageIndex::new(self.number, page))?.owner.clone()
    }
}
