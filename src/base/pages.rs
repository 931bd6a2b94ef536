//! Memory of the host in large pages.
//!
//! A processor finds a page's place in a table that covers a few megabytes of small pages; weights, tapes and caches are
//! larger, and products walk through them by columns. In large pages (2 MiB, asked for where the system leaves the
//! choice to programs) a training step or a rollout took up to a quarter less time. Arrays share chunks of large
//! pages, as most are smaller than one; very large ones have a chunk of their own, which is given back with them.
#![allow(unsafe_code)]

use memmap2::MmapMut;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a large page.
const LARGE: usize = 2 << 20;
/// Bytes of a chunk that arrays share.
const CHUNK: usize = 16 << 20;
/// Bytes from which on an array has a chunk of its own.
const OWN: usize = 8 << 20;
/// Bytes of a cache line, at a multiple of which arrays begin: those of every x86-64 processor.
pub const CACHE_LINE: usize = 64;

/// An array of zeros at first, in large pages, that begins at a cache line's beginning.
pub struct PageVec<T> {
    block: Option<Block>,
    len: usize,
    elements: PhantomData<T>,
}

/// What the system did not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Bytes asked for.
    pub bytes: usize,
    /// The system's answer.
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the system gives no {} bytes more: {}", self.bytes, self.why)
    }
}

impl<T: bytemuck::Pod> PageVec<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no memory left, as a vector does: for scratch of kernels, which return nothing.
    pub fn zeroed(len: usize) -> PageVec<T> {
        match PageVec::try_zeroed(len) {
            Ok(array) => array,
            Err(refused) => panic!("{refused}"),
        }
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// When the system has no memory left.
    pub fn try_zeroed(len: usize) -> Result<PageVec<T>, Refused> {
        const { assert!(align_of::<T>() <= CACHE_LINE) }
        let bytes = len.saturating_mul(size_of::<T>());
        if bytes > isize::MAX as usize - 2 * LARGE {
            return Err(Refused { bytes, why: "no address space is that large".into() });
        }
        let block = match bytes {
            0 => None,
            _ => Some(pool().take(bytes.next_multiple_of(CACHE_LINE))?),
        };
        Ok(PageVec { block, len, elements: PhantomData })
    }
}

impl<T> Default for PageVec<T> {
    /// No elements.
    fn default() -> PageVec<T> {
        PageVec { block: None, len: 0, elements: PhantomData }
    }
}

impl<T> Deref for PageVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let Some(block) = &self.block else { return &[] };
        // SAFETY: the block is this array's alone, initialised, aligned to a line and large enough for `len` elements,
        // which `try_zeroed`, the one maker of blocks, asked for; every bit pattern is a T there.
        unsafe { std::slice::from_raw_parts(block.start.as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for PageVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let Some(block) = &self.block else { return &mut [] };
        // SAFETY: as for `deref`; the array is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(block.start.as_ptr().cast(), self.len) }
    }
}

impl<T> Drop for PageVec<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            pool().give_back(block);
        }
    }
}

impl<T> fmt::Debug for PageVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PageVec of {} elements", self.len)
    }
}

/// Bytes of a chunk that one array has.
struct Block {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block is owned memory that nothing else points to.
unsafe impl Send for Block {}
// SAFETY: as above; it is read through shared references only.
unsafe impl Sync for Block {}

/// A run of large pages.
struct Chunk {
    pages: MmapMut,
    /// The part that begins at a large page's beginning.
    usable: Range<usize>,
    /// What no array has, by rising offsets; neighbours are one.
    free: Vec<Range<usize>>,
    /// No free run is longer: a full chunk is passed over without a look at its runs.
    longest: usize,
    /// From here on nothing was ever handed out: it is zero.
    fresh: usize,
}

/// Chunks by their first usable address.
struct Pool {
    /// Those that arrays share.
    shared: BTreeMap<usize, Chunk>,
    /// Those that one large array has.
    own: BTreeMap<usize, Chunk>,
    /// A shared one that is empty. One is kept: arrays that come and go do not ask the system each time.
    idle: Option<usize>,
}

fn pool() -> MutexGuard<'static, Pool> {
    static POOL: Mutex<Pool> = Mutex::new(Pool::new());
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    const fn new() -> Pool {
        Pool { shared: BTreeMap::new(), own: BTreeMap::new(), idle: None }
    }

    fn take(&mut self, bytes: usize) -> Result<Block, Refused> {
        if bytes >= OWN {
            return Ok(Pool::begin(&mut self.own, bytes, bytes)?.1);
        }
        let found = self.shared.iter_mut().find_map(|(&address, chunk)| Some((address, chunk.take(bytes)?)));
        let (address, block) = match found {
            Some(found) => found,
            None => Pool::begin(&mut self.shared, CHUNK, bytes)?,
        };
        self.idle.take_if(|idle| *idle == address);
        Ok(block)
    }

    /// The first block of a new chunk of `size` bytes.
    fn begin(
        chunks: &mut BTreeMap<usize, Chunk>,
        size: usize,
        bytes: usize,
    ) -> Result<(usize, Block), Refused> {
        let mut chunk = Chunk::new(size)?;
        let address = chunk.address();
        let Some(block) = chunk.take(bytes) else {
            unreachable!("a new chunk has room for what it was made for")
        };
        chunks.insert(address, chunk);
        Ok((address, block))
    }

    fn give_back(&mut self, block: Block) {
        let start = block.start.as_ptr() as usize;
        // The chunk of its own begins where the block does.
        if block.bytes >= OWN {
            self.own.remove(&start);
            return;
        }
        let Some((&address, chunk)) = self.shared.range_mut(..=start).next_back() else {
            unreachable!("a block belongs to a chunk")
        };
        chunk.give_back(start, block.bytes);
        if chunk.is_empty() {
            match self.idle {
                None => self.idle = Some(address),
                Some(_) => drop(self.shared.remove(&address)),
            }
        }
    }
}

impl Chunk {
    fn new(bytes: usize) -> Result<Chunk, Refused> {
        let pages =
            MmapMut::map_anon(bytes + LARGE).map_err(|error| Refused { bytes, why: error.to_string() })?;
        #[cfg(target_os = "linux")]
        {
            // Where the system has no large pages, small ones do.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        let from = (pages.as_ptr() as usize).next_multiple_of(LARGE) - pages.as_ptr() as usize;
        let usable = from..from + bytes;
        Ok(Chunk { pages, free: vec![usable.clone()], longest: bytes, fresh: usable.start, usable })
    }

    /// Of the first usable byte.
    fn address(&self) -> usize {
        self.pages.as_ptr() as usize + self.usable.start
    }

    fn is_empty(&self) -> bool {
        self.free == [self.usable.clone()]
    }

    /// The first free run that is long enough.
    fn take(&mut self, bytes: usize) -> Option<Block> {
        if bytes > self.longest {
            return None;
        }
        let Some(at) = self.free.iter().position(|run| run.len() >= bytes) else {
            self.longest = self.free.iter().map(|run| run.len()).max().unwrap_or(0);
            return None;
        };
        let start = self.free[at].start;
        self.free[at].start += bytes;
        if self.free[at].is_empty() {
            self.free.remove(at);
        }
        let end = start + bytes;
        self.pages[start..self.fresh.clamp(start, end)].fill(0);
        self.fresh = self.fresh.max(end);
        let start = NonNull::from(&mut self.pages[start..end]).cast();
        Some(Block { start, bytes })
    }

    fn give_back(&mut self, address: usize, bytes: usize) {
        let start = address - self.pages.as_ptr() as usize;
        let mut at = self.free.partition_point(|run| run.start < start);
        self.free.insert(at, start..start + bytes);
        if at + 1 < self.free.len() && self.free[at].end == self.free[at + 1].start {
            self.free[at].end = self.free[at + 1].end;
            self.free.remove(at + 1);
        }
        if at > 0 && self.free[at - 1].end == self.free[at].start {
            self.free[at - 1].end = self.free[at].end;
            self.free.remove(at);
            at -= 1;
        }
        self.longest = self.longest.max(self.free[at].len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_zero_aligned_and_apart() {
        let mut kept: Vec<PageVec<u32>> = Vec::new();
        let mut state = 12345_usize;
        for round in 0..400 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let len = [0, 1, 17, 5000, 300_000, 2_500_000][(state >> 33) % 6] + (state >> 40) % 100;
            let mut array = PageVec::<u32>::zeroed(len);
            assert_eq!(
                (array.len(), array.as_ptr() as usize % CACHE_LINE),
                (len, if len == 0 { 4 } else { 0 })
            );
            assert!(array.iter().all(|&number| number == 0));
            array.fill(round);
            kept.push(array);
            if kept.len() > 9 {
                let gone = kept.swap_remove((state >> 50) % 10);
                assert!(gone.iter().all(|&number| number == gone[0]), "somebody wrote there");
            }
        }
    }

    #[test]
    fn memory_is_given_back() {
        let mut pool = Pool::new();
        let blocks: Vec<Block> =
            [100 << 10, 7 << 20, 9 << 20, 3 << 20, 7 << 20].map(|b| pool.take(b).unwrap()).into();
        assert_eq!((pool.shared.len(), pool.own.len(), pool.idle), (2, 1, None));
        for block in blocks {
            pool.give_back(block);
        }
        assert_eq!((pool.shared.len(), pool.own.len()), (1, 0));
        let (&address, chunk) = pool.shared.first_key_value().unwrap();
        assert!(chunk.is_empty() && pool.idle == Some(address));
        let block = pool.take(CHUNK / 4).unwrap();
        assert_eq!((pool.shared.len(), pool.idle), (1, None));
        pool.give_back(block);
        assert_eq!(pool.idle, Some(address));
        // As long as a shared chunk, but one array's.
        let block = pool.take(CHUNK).unwrap();
        assert_eq!((pool.shared.len(), pool.own.len()), (1, 1));
        pool.give_back(block);
        assert_eq!((pool.shared.len(), pool.own.len()), (1, 0));
    }

    #[test]
    fn room_that_came_back_is_found_again() {
        let mut pool = Pool::new();
        let mut blocks: Vec<Block> = (0..64).map(|_| pool.take(CHUNK / 16).unwrap()).collect();
        assert_eq!(pool.shared.len(), 4);
        // A hole in each chunk, too short for what comes next, and nothing is left of the chunk that has to be made.
        for at in [2, 19, 34, 50] {
            pool.give_back(blocks.remove(at));
        }
        blocks.extend([2, 7, 7].map(|sixteenths| pool.take(sixteenths * CHUNK / 16).unwrap()));
        assert_eq!(pool.shared.len(), 5);
        let first = blocks.remove(2);
        let start = first.start;
        pool.give_back(first);
        let pair = pool.take(CHUNK / 8).unwrap();
        assert!(pair.start < start, "the run that both neighbours left");
        assert_eq!(pool.shared.len(), 5);
        blocks.push(pair);
        for block in blocks {
            pool.give_back(block);
        }
        assert_eq!(pool.shared.len(), 1);
    }

    #[test]
    fn more_than_there_is_is_refused_with_its_size() {
        let refused = PageVec::<f64>::try_zeroed(1 << 57).unwrap_err();
        assert_eq!(refused.bytes, 1 << 60);
        assert!(refused.to_string().contains(&refused.bytes.to_string()), "{refused}");
        let refused = PageVec::<f64>::try_zeroed(usize::MAX).unwrap_err();
        assert_eq!((refused.bytes, refused.why.as_str()), (usize::MAX, "no address space is that large"));
    }
}
