//! Memory of the host in large pages.
//!
//! A processor finds a page's place in a table that covers a few megabytes of small pages; weights, tapes and caches are
//! larger, and products walk through them by columns. In large pages (2 MiB, asked for where the system leaves the
//! choice to programs) a training step or a rollout took up to a quarter less time. Arrays share chunks of large
//! pages, as most are smaller than one; very large ones have a chunk of their own, which is given back with them.
#![allow(unsafe_code)]

use memmap2::MmapMut;
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
/// Arrays begin at a multiple of this many bytes.
const LINE: usize = 64;

/// An array of zeros at first, in large pages, that begins at a cache line's beginning.
pub struct PageVec<T> {
    block: Option<Block>,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: bytemuck::Pod> PageVec<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no memory left, as a vector does.
    pub fn zeroed(len: usize) -> PageVec<T> {
        const { assert!(align_of::<T>() <= LINE) }
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize - 2 * LARGE);
        let Some(bytes) = bytes else { panic!("an array of {len} elements of {} bytes", size_of::<T>()) };
        let block = (bytes > 0).then(|| pool().take(bytes.next_multiple_of(LINE)));
        PageVec { block, len, elements: PhantomData }
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
        // which `zeroed`, the one maker of blocks, asked for; every bit pattern is a T there.
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
    /// From here on nothing was ever handed out: it is zero.
    fresh: usize,
}

struct Pool {
    chunks: Vec<Chunk>,
}

fn pool() -> MutexGuard<'static, Pool> {
    static POOL: Mutex<Pool> = Mutex::new(Pool { chunks: Vec::new() });
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn take(&mut self, bytes: usize) -> Block {
        if bytes < OWN
            && let Some(block) = self.chunks.iter_mut().find_map(|chunk| chunk.take(bytes))
        {
            return block;
        }
        let mut chunk = Chunk::new(if bytes < OWN { CHUNK } else { bytes });
        let block = chunk.take(bytes);
        self.chunks.push(chunk);
        match block {
            Some(block) => block,
            None => unreachable!("a new chunk has room for what it was made for"),
        }
    }

    fn give_back(&mut self, block: Block) {
        let address = block.start.as_ptr() as usize;
        let at = self.chunks.iter().position(|chunk| chunk.addresses().contains(&address));
        let Some(at) = at else { unreachable!("a block belongs to a chunk") };
        self.chunks[at].give_back(address, block.bytes);
        // One empty chunk is kept: arrays that come and go do not ask the system each time.
        let empty = |chunk: &Chunk| chunk.free == [chunk.usable.clone()];
        let others = self.chunks.iter().enumerate().filter(|(i, chunk)| *i != at && empty(chunk)).count();
        if empty(&self.chunks[at]) && (self.chunks[at].usable.len() != CHUNK || others > 0) {
            self.chunks.swap_remove(at);
        }
    }
}

impl Chunk {
    fn new(bytes: usize) -> Chunk {
        let pages = match MmapMut::map_anon(bytes + LARGE) {
            Ok(pages) => pages,
            Err(error) => panic!("no memory for {bytes} bytes more: {error}"),
        };
        #[cfg(target_os = "linux")]
        {
            // Where the system has no large pages, small ones do.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        let from = (pages.as_ptr() as usize).next_multiple_of(LARGE) - pages.as_ptr() as usize;
        let usable = from..from + bytes;
        Chunk { pages, free: vec![usable.clone()], fresh: usable.start, usable }
    }

    fn addresses(&self) -> Range<usize> {
        let start = self.pages.as_ptr() as usize;
        start + self.usable.start..start + self.usable.end
    }

    /// The first free run that is long enough.
    fn take(&mut self, bytes: usize) -> Option<Block> {
        let at = self.free.iter().position(|run| run.len() >= bytes)?;
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
        let at = self.free.partition_point(|run| run.start < start);
        self.free.insert(at, start..start + bytes);
        if at + 1 < self.free.len() && self.free[at].end == self.free[at + 1].start {
            self.free[at].end = self.free[at + 1].end;
            self.free.remove(at + 1);
        }
        if at > 0 && self.free[at - 1].end == self.free[at].start {
            self.free[at - 1].end = self.free[at].end;
            self.free.remove(at);
        }
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
            assert_eq!((array.len(), array.as_ptr() as usize % LINE), (len, if len == 0 { 4 } else { 0 }));
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
        let mut pool = Pool { chunks: Vec::new() };
        let blocks: Vec<Block> = [100 << 10, 7 << 20, 9 << 20, 3 << 20, 7 << 20].map(|b| pool.take(b)).into();
        assert_eq!(pool.chunks.len(), 3, "two that are shared and one of its own");
        for block in blocks {
            pool.give_back(block);
        }
        assert_eq!(pool.chunks.len(), 1);
        assert_eq!(pool.chunks[0].free, [pool.chunks[0].usable.clone()]);
        let block = pool.take(CHUNK / 4);
        assert_eq!(pool.chunks.len(), 1);
        pool.give_back(block);
    }
}
