//! The memory pool of a GPU: blocks of size classes, cut from memory that is taken from the driver once.
//!
//! ```text
//! class   = bytes rounded up to an eighth of the power of two below them (at most 12.5% more), at least 256
//! small   = classes up to a sixteenth of a slab: cut from slabs, one after another
//! large   = the rest: memory of their own
//! ```
//!
//! A block given back waits in its class for the next that asks for this class, so a loop that repeats its sizes takes
//! nothing from the driver after its first turn. Blocks are neither split nor joined: what a class needs is known
//! after one turn. When the driver has no memory left, a larger free block is handed out (up to twice the size), then
//! everything that is wholly free goes back to the driver, and only then the device is full.
//!
//! Order. A block given back may still be in use by operations that were given to a stream before. The next owner's
//! operations on the compute stream stand behind those of the compute stream anyhow; for those of the copy stream the
//! block keeps a mark, and the compute stream waits for it before the next owner. The other way round, the copy stream
//! waits for the compute stream before it first touches a block that was handed out after it last waited.

use super::arena::Books;
use super::driver::{Driver, Failure, Mark, Outcome, Sizes};
use super::{Arena, Held, Stream};
use std::collections::BTreeMap;

/// Addresses of blocks are multiples of this.
const ALIGNMENT: usize = 256;

/// A block in use.
#[derive(Debug)]
struct Block {
    class: usize,
    bytes: usize,
    arena: Arena,
    home: usize,
    /// The copy stream was given work on it.
    copied: bool,
    /// Which allocation of this pool it was.
    born: u64,
}

/// A block that waits for its next owner.
#[derive(Debug)]
struct Free {
    address: u64,
    home: usize,
    /// Where the copy stream must have got before the next owner.
    until: Option<Mark>,
}

/// Memory taken from the driver.
#[derive(Debug)]
struct Home {
    address: u64,
    bytes: usize,
    /// Bytes cut so far; what lies behind has never been a block.
    cut: usize,
    /// Blocks in use.
    live: usize,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Pool {
    sizes: Sizes,
    homes: BTreeMap<usize, Home>,
    next_home: usize,
    free: BTreeMap<usize, Vec<Free>>,
    live: BTreeMap<u64, Block>,
    books: Books,
    driver_allocations: usize,
    allocations: u64,
    /// The newest allocation that the copy stream has waited for.
    copy_has_seen: u64,
}

impl Pool {
    pub(super) fn new(sizes: Sizes) -> Pool {
        Pool {
            sizes,
            homes: BTreeMap::new(),
            next_home: 0,
            free: BTreeMap::new(),
            live: BTreeMap::new(),
            books: Books::default(),
            driver_allocations: 0,
            allocations: 0,
            copy_has_seen: 0,
        }
    }

    /// A block of at least `bytes` bytes, ready for the compute stream. What it holds is what was there before.
    pub(super) fn allocate(&mut self, driver: &mut dyn Driver, bytes: usize, arena: Arena) -> Outcome<u64> {
        let class = class(bytes.checked_add(self.sizes.gap).ok_or(Failure::OutOfMemory)?)
            .ok_or(Failure::OutOfMemory)?;
        let (class, free) = match self.take(class, class) {
            Some(found) => found,
            None => match self.cut(driver, class) {
                Err(Failure::OutOfMemory) => self.scrape(driver, class)?,
                other => (class, other?),
            },
        };
        let made_ready = free.until.map_or(Ok(()), |mark| {
            let waited = driver.wait(Stream::Compute, mark);
            driver.forget(mark);
            waited
        });
        let mut carved = || if bytes > 0 { driver.carve(free.address, bytes) } else { Ok(()) };
        if let Err(failure) = made_ready.and_then(|()| carved()) {
            self.free.entry(class).or_default().push(Free { until: None, ..free });
            return Err(failure);
        }
        self.allocations += 1;
        if let Some(home) = self.homes.get_mut(&free.home) {
            home.live += 1;
        }
        let block = Block { class, bytes, arena, home: free.home, copied: false, born: self.allocations };
        self.live.insert(free.address, block);
        self.books.take(arena, bytes);
        Ok(free.address)
    }

    /// Takes a block back. `false` when there is none at `address`.
    pub(super) fn free(&mut self, driver: &mut dyn Driver, address: u64) -> Outcome<bool> {
        let Some(block) = self.live.remove(&address) else { return Ok(false) };
        self.books.give_back(block.arena, block.bytes);
        if let Some(home) = self.homes.get_mut(&block.home) {
            home.live -= 1;
        }
        let until = if block.copied { Some(driver.record(Stream::Copy)?) } else { None };
        if block.bytes > 0 {
            driver.release(address, until)?;
        }
        self.free.entry(block.class).or_default().push(Free { address, home: block.home, until });
        Ok(true)
    }

    /// Says that the copy stream is about to be given work on the memory at `address`.
    pub(super) fn copy_stream_uses(&mut self, driver: &mut dyn Driver, address: u64) -> Outcome<()> {
        let allocations = self.allocations;
        let Some((_, block)) = self.live.range_mut(..=address).next_back() else { return Ok(()) };
        block.copied = true;
        if block.born > self.copy_has_seen {
            let mark = driver.record(Stream::Compute)?;
            let waited = driver.wait(Stream::Copy, mark);
            driver.forget(mark);
            waited?;
            self.copy_has_seen = allocations;
        }
        Ok(())
    }

    /// Allocations so far.
    pub(super) fn allocations(&self) -> u64 {
        self.allocations
    }

    /// The copy stream waits for a point of the compute stream at which `allocations` had been made.
    pub(super) fn copy_stream_has_seen(&mut self, allocations: u64) {
        self.copy_has_seen = self.copy_has_seen.max(allocations);
    }

    /// Everything has run: no block waits for the copy stream any more.
    pub(super) fn settled(&mut self, driver: &mut dyn Driver) {
        self.copy_has_seen = self.allocations;
        for free in self.free.values_mut().flatten() {
            if let Some(mark) = free.until.take() {
                driver.forget(mark);
            }
        }
    }

    /// Times the driver was asked for memory, and bytes now taken from it.
    pub(super) fn taken(&self) -> (usize, usize) {
        (self.driver_allocations, self.homes.values().map(|home| home.bytes).sum())
    }

    /// What each arena holds and held.
    pub(super) fn books(&self) -> &Books {
        &self.books
    }

    /// The blocks in use.
    pub(super) fn held(&self) -> Vec<Held> {
        let held =
            |(&address, block): (&u64, &Block)| Held { arena: block.arena, address, bytes: block.bytes };
        self.live.iter().map(held).collect()
    }

    /// Bytes of free blocks.
    pub(super) fn idle_bytes(&self) -> usize {
        self.free.iter().map(|(class, blocks)| class * blocks.len()).sum()
    }

    /// The free block of the smallest class in `from..=to`; the one given back last, which caches may still hold.
    fn take(&mut self, from: usize, to: usize) -> Option<(usize, Free)> {
        let (&class, blocks) = self.free.range_mut(from..=to).find(|(_, blocks)| !blocks.is_empty())?;
        blocks.pop().map(|free| (class, free))
    }

    /// A block that was none before.
    fn cut(&mut self, driver: &mut dyn Driver, class: usize) -> Outcome<Free> {
        let small = class <= self.sizes.slab / 16;
        let roomy = self.homes.iter_mut().find(|(_, home)| small && home.bytes - home.cut >= class);
        let (&index, home) = match roomy {
            Some(found) => found,
            None => {
                let (bytes, address) = match driver.allocate(if small { self.sizes.slab } else { class }) {
                    // Where no slab fits any more, one block may.
                    Err(Failure::OutOfMemory) if small => (class, driver.allocate(class)?),
                    taken => (if small { self.sizes.slab } else { class }, taken?),
                };
                self.driver_allocations += 1;
                self.next_home += 1;
                self.homes.insert(self.next_home, Home { address, bytes, cut: 0, live: 0 });
                match self.homes.iter_mut().next_back() {
                    Some(found) => found,
                    None => return Err(Failure::OutOfMemory),
                }
            }
        };
        let address = home.address + home.cut as u64;
        home.cut += class;
        Ok(Free { address, home: index, until: None })
    }

    /// A block on a full device: a larger one, or what the driver has after all free memory went back to it.
    fn scrape(&mut self, driver: &mut dyn Driver, class: usize) -> Outcome<(usize, Free)> {
        if let Some(found) = self.take(class, class * 2) {
            return Ok(found);
        }
        driver.synchronise()?;
        self.settled(driver);
        let idle: Vec<usize> =
            self.homes.iter().filter(|(_, home)| home.live == 0).map(|(&index, _)| index).collect();
        for index in idle {
            for blocks in self.free.values_mut() {
                blocks.retain(|free| free.home != index);
            }
            if let Some(home) = self.homes.remove(&index) {
                driver.free(home.address)?;
            }
        }
        self.cut(driver, class).map(|free| (class, free))
    }
}

/// The class of a block of `bytes` bytes.
fn class(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(1);
    let step = (1usize << bytes.ilog2()) / 8;
    bytes.checked_next_multiple_of(step.max(ALIGNMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_at_most_an_eighth() {
        assert_eq!(class(0), Some(256));
        assert_eq!(class(1), Some(256));
        assert_eq!(class(256), Some(256));
        assert_eq!(class(257), Some(512));
        assert_eq!(class(4097), Some(4608));
        for bytes in (2048..100_000).step_by(37) {
            let class = class(bytes).unwrap();
            assert!(class >= bytes && class - bytes <= bytes / 8, "{bytes} in {class}");
            assert_eq!(class % ALIGNMENT, 0);
            assert_eq!(super::class(class), Some(class), "a class is its own class");
        }
        assert_eq!(class(usize::MAX), None);
    }
}
