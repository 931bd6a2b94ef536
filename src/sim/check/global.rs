//! The shadow of device memory during one launch: who wrote each cell last and who read it.
//!
//! Blocks run on several host threads, so a cell is two atomic words, the last write and a reader. Each side records
//! itself first and looks at the other's word after; of two that meet at the same moment at least one sees the other.
//!
//! A word packs block, thread, clock, line and flags; how many bits each gets depends on the launch. A clock too
//! large for its bits counts as known to everyone. Cells are as wide as the narrowest access to their page of 4 KiB.
//!
//! Of the readers one is kept, and flags say whether there are others in its warp, in its block, in other blocks. A
//! write must come after all of them; where only the flag is known, it is enough that the write comes after the
//! reader that is kept (for other warps of the block: after a barrier of the block). This can miss a race, and can
//! not invent one. Strong reads are not kept: they race with plain writes only when they come after.

use super::now::{Now, Touch};
use super::publish::Deed;
use super::shared::grain_of;
use crate::sim::access::{LANES, Range};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{OnceLock, PoisonError, RwLock};

/// Bytes of a page.
const PAGE: u64 = 4096;
const LINE_BITS: u32 = 17;
/// In a write: an atomic or a strong store. In a read: other lanes of the warp read too.
const FLAG_LANES: u64 = 1;
const FLAG_STRONG: u64 = 1;
/// In a read: other warps of the block read too.
const FLAG_WARPS: u64 = 2;
/// In a read: other blocks read too.
const FLAG_BLOCKS: u64 = 4;
const FLAG_BITS: u32 = 3;

/// Where the fields of a word stand.
#[derive(Clone, Copy, Debug)]
struct Layout {
    thread_bits: u32,
    clock_bits: u32,
}

/// A word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    block: u32,
    thread: usize,
    clock: u32,
    line: u32,
    flags: u64,
}

impl Layout {
    fn new(blocks: u64, threads: u32) -> Layout {
        let block_bits = u64::BITS - blocks.leading_zeros();
        let thread_bits = u32::BITS - (threads - 1).leading_zeros();
        let clock_bits = 64u32.saturating_sub(block_bits + thread_bits + LINE_BITS + FLAG_BITS).min(31);
        Layout { thread_bits, clock_bits }
    }

    /// The largest clock, which stands for itself and all larger ones.
    fn last_clock(self) -> u32 {
        (1 << self.clock_bits) - 1
    }

    /// Never 0: blocks count from 1.
    fn pack(self, entry: Entry) -> u64 {
        let mut word = u64::from(entry.block) + 1;
        word = word << self.clock_bits | u64::from(entry.clock.min(self.last_clock()));
        word = word << self.thread_bits | entry.thread as u64;
        word = word << LINE_BITS | u64::from(entry.line.min((1 << LINE_BITS) - 1));
        word << FLAG_BITS | entry.flags
    }

    fn unpack(self, word: u64) -> Option<Entry> {
        let mut rest = word;
        let mut take = |bits: u32| {
            let field = rest & ((1 << bits) - 1);
            rest >>= bits;
            field
        };
        let flags = take(FLAG_BITS);
        let line = take(LINE_BITS) as u32;
        let thread = take(self.thread_bits) as usize;
        let clock = take(self.clock_bits) as u32;
        (word != 0).then(|| Entry { block: rest as u32 - 1, thread, clock, line, flags })
    }
}

#[derive(Debug)]
struct Cell {
    write: AtomicU64,
    read: AtomicU64,
}

#[derive(Debug)]
struct Cells {
    grain: u32,
    cells: Box<[Cell]>,
}

type Page = RwLock<Cells>;

#[derive(Debug)]
struct Shadow {
    base: u64,
    pages: OnceLock<Box<[OnceLock<Box<Page>>]>>,
    count: usize,
}

/// The shadow of one launch.
#[derive(Debug)]
pub struct GlobalShadow {
    layout: Layout,
    ranges: Vec<Shadow>,
}

/// What a thread clashes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalClash {
    /// Address of the cell.
    pub address: u64,
    /// Linear index of the other thread's block.
    pub block: u32,
    /// The other thread, or nothing where only its block is known.
    pub thread: usize,
    /// The PTX line of what it did.
    pub line: u32,
    /// What it did, a verb.
    pub by: &'static str,
    /// The lane of the clashing thread.
    pub lane: usize,
}

/// One thread's part of an access.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The lane.
    pub lane: usize,
    /// Index of the range that holds the bytes.
    pub range: usize,
    /// Address of the first byte.
    pub address: u64,
    /// Number of bytes.
    pub bytes: u32,
}

impl GlobalShadow {
    /// The shadow of a launch of `blocks` blocks of `threads` threads that has touched nothing.
    pub fn new(ranges: &[Range], blocks: u64, threads: u32) -> GlobalShadow {
        let shadow = |range: &Range| Shadow {
            base: range.base / PAGE,
            pages: OnceLock::new(),
            count: ((range.base + range.bytes).div_ceil(PAGE) - range.base / PAGE) as usize,
        };
        GlobalShadow { layout: Layout::new(blocks, threads), ranges: ranges.iter().map(shadow).collect() }
    }

    /// The lanes of one instruction touch bytes of live ranges, in order.
    pub fn touch(
        &self,
        now: &Now<'_>,
        touch: Touch,
        parts: impl Iterator<Item = Part>,
    ) -> Result<(), GlobalClash> {
        let mut held = None;
        for part in parts {
            let now = Now { lane: part.lane, readers: 1 << part.lane, ..*now };
            let (mut at, end) = (part.address, part.address + u64::from(part.bytes));
            while at < end {
                let stop = end.min((at / PAGE + 1) * PAGE);
                let key = (part.range, at / PAGE);
                let grain = grain_of(at, (stop - at) as u32);
                let fits = |held: &(_, std::sync::RwLockReadGuard<'_, Cells>)| {
                    held.0 == key && held.1.grain <= grain
                };
                if !held.as_ref().is_some_and(fits) {
                    drop(held.take());
                    held = Some((key, self.page(part.range, at / PAGE, grain)));
                }
                if let Some((_, cells)) = &held {
                    // A power of two.
                    let shift = cells.grain.trailing_zeros();
                    let first = (at % PAGE) as usize >> shift;
                    let count = (stop - at) as usize >> shift;
                    for (i, cell) in cells.cells[first..first + count].iter().enumerate() {
                        let address = at + i as u64 * u64::from(cells.grain);
                        self.touch_cell(&now, touch, cell).map_err(|(other, by)| GlobalClash {
                            address,
                            block: other.block,
                            thread: other.thread,
                            line: other.line,
                            by,
                            lane: part.lane,
                        })?;
                    }
                }
                at = stop;
            }
        }
        Ok(())
    }

    /// A page with cells of at most `grain` bytes.
    fn page(&self, range: usize, page: u64, grain: u32) -> std::sync::RwLockReadGuard<'_, Cells> {
        let shadow = &self.ranges[range];
        let pages = shadow.pages.get_or_init(|| (0..shadow.count).map(|_| OnceLock::new()).collect());
        let page = pages[(page - shadow.base) as usize].get_or_init(|| {
            let cells = (0..PAGE / u64::from(grain))
                .map(|_| Cell { write: AtomicU64::new(0), read: AtomicU64::new(0) })
                .collect();
            Box::new(RwLock::new(Cells { grain, cells }))
        });
        loop {
            let cells = page.read().unwrap_or_else(PoisonError::into_inner);
            if cells.grain <= grain {
                return cells;
            }
            drop(cells);
            page.write().unwrap_or_else(PoisonError::into_inner).split(grain);
        }
    }

    #[inline]
    fn touch_cell(&self, now: &Now<'_>, touch: Touch, cell: &Cell) -> Result<(), (Entry, &'static str)> {
        let me = Entry {
            block: now.block,
            thread: now.thread(),
            clock: now.clock,
            line: now.line,
            flags: if touch.is_strong() { FLAG_STRONG } else { 0 },
        };
        if touch.writes() {
            let old = cell.write.swap(self.layout.pack(me), SeqCst);
            self.after_write(now, touch, old)?;
            match self.layout.unpack(cell.read.load(SeqCst)) {
                Some(reader) if !self.after_readers(now, reader) => Err((reader, "read")),
                _ => Ok(()),
            }
        } else {
            if touch == Touch::Read {
                self.add_reader(now, &cell.read, Entry { flags: 0, ..me });
            }
            self.after_write(now, touch, cell.write.load(SeqCst))
        }
    }

    /// Whether this thread knows the last write.
    #[inline]
    fn after_write(&self, now: &Now<'_>, touch: Touch, word: u64) -> Result<(), (Entry, &'static str)> {
        let Some(old) = self.layout.unpack(word) else { return Ok(()) };
        let strong = old.flags & FLAG_STRONG != 0;
        if (strong && touch.is_strong()) || self.knows(now, &old) {
            return Ok(());
        }
        Err((old, if strong { "changed atomically" } else { "wrote" }))
    }

    #[inline]
    fn knows(&self, now: &Now<'_>, old: &Entry) -> bool {
        if old.clock == self.layout.last_clock() {
            return true;
        }
        let (warp, lane) = (old.thread / LANES, old.thread % LANES);
        (old.block == now.block && now.order.knows(now.warp, now.lane, warp, lane, old.clock))
            || (!now.mail.is_empty() && {
                let deed = Deed { block: old.block, thread: old.thread, clock: old.clock };
                now.mail.knows(now.order, now.warp, now.lane, deed)
            })
    }

    /// Whether this thread knows the reads.
    fn after_readers(&self, now: &Now<'_>, reader: Entry) -> bool {
        if !self.knows(now, &reader) {
            return false;
        }
        // Others that only flags speak of.
        if reader.block != now.block || !now.mail.is_empty() {
            return true;
        }
        let warp = reader.thread / LANES;
        let lanes = reader.flags & FLAG_LANES != 0
            && warp == now.warp
            && !now.order.is_split(warp)
            && !now.order.known_to_warp(warp, warp, reader.clock);
        let warps = reader.flags & FLAG_WARPS != 0
            && !now.order.has_partial_barriers()
            && !now.order.before_block_barrier(warp, reader.clock);
        reader.flags & FLAG_BLOCKS == 0 && !lanes && !warps
    }

    #[inline]
    fn add_reader(&self, now: &Now<'_>, word: &AtomicU64, me: Entry) {
        let mut found = word.load(SeqCst);
        loop {
            let new = match self.layout.unpack(found) {
                None => me,
                Some(old) => match self.with_reader(now, old, me) {
                    Some(new) => new,
                    None => return,
                },
            };
            match word.compare_exchange(found, self.layout.pack(new), SeqCst, SeqCst) {
                Ok(_) => return,
                Err(other) => found = other,
            }
        }
    }

    /// The reader to keep, or nothing where the old one says it all.
    #[inline]
    fn with_reader(&self, now: &Now<'_>, old: Entry, me: Entry) -> Option<Entry> {
        if old.block != me.block {
            return (old.flags & FLAG_BLOCKS == 0).then_some(Entry { flags: old.flags | FLAG_BLOCKS, ..old });
        }
        if old.thread == me.thread && old.clock == me.clock {
            return None;
        }
        let (old_warp, warp) = (old.thread / LANES, me.thread / LANES);
        if now.order.before_block_barrier(old_warp, old.clock) {
            return Some(Entry { flags: old.flags & FLAG_BLOCKS, ..me });
        }
        if old_warp == warp && old.clock == me.clock {
            // Lanes of a warp read the same bytes: the first stays.
            return (old.flags & FLAG_LANES == 0).then_some(Entry { flags: old.flags | FLAG_LANES, ..old });
        }
        let mut flags = old.flags;
        if now.order.known_to_warp(warp, old_warp, old.clock) {
            flags &= !FLAG_LANES;
        } else if old.thread != me.thread {
            flags |= if old_warp == warp { FLAG_LANES } else { FLAG_WARPS };
        }
        Some(Entry { flags, ..me })
    }
}

impl Cells {
    #[cold]
    fn split(&mut self, grain: u32) {
        let parts = (self.grain / grain) as usize;
        if parts <= 1 {
            return;
        }
        let copy = |cell: &Cell| Cell {
            write: AtomicU64::new(cell.write.load(SeqCst)),
            read: AtomicU64::new(cell.read.load(SeqCst)),
        };
        let cells = self.cells.iter().flat_map(|cell| (0..parts).map(move |_| copy(cell)));
        self.cells = cells.collect();
        self.grain = grain;
    }
}
