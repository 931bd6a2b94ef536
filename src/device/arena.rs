//! What device memory is for. Every block of the pool is booked under one arena, so that a plan of memory and what was
//! really held can be compared line by line, and a full device can say what fills it.

use std::cell::Cell;

/// What a block of memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arena {
    /// Everything that names no other arena.
    Other,
    /// Parameters of a model.
    Weights,
    /// Gradients of parameters.
    Gradients,
    /// Moments and master weights of the optimiser.
    Optimiser,
    /// Activations that the backward pass reads again.
    Tape,
    /// Keys and values of sequences, and their gradients.
    KvCache,
    /// Dropout bitmaps and the keys of random streams.
    Masks,
    /// Scratch memory of operations.
    Workspace,
}

thread_local! {
    /// The arena that this thread's allocations are booked under.
    static CURRENT: Cell<Arena> = const { Cell::new(Arena::Other) };
}

impl Arena {
    /// All arenas, in the order of reports.
    pub const ALL: [Arena; 8] = [
        Arena::Weights,
        Arena::Gradients,
        Arena::Optimiser,
        Arena::Tape,
        Arena::KvCache,
        Arena::Masks,
        Arena::Workspace,
        Arena::Other,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Arena::Other => "other",
            Arena::Weights => "weights",
            Arena::Gradients => "gradients",
            Arena::Optimiser => "optimiser",
            Arena::Tape => "tape",
            Arena::KvCache => "KV cache",
            Arena::Masks => "masks",
            Arena::Workspace => "workspace",
        }
    }

    /// Books what this thread allocates under this arena until the scope is dropped; scopes nest.
    ///
    /// A thread, not an argument: a tape, for one, is reserved by a dozen operations' `Saved`, none of which
    /// should have to know what it is for.
    #[must_use = "the arena counts until this is dropped"]
    pub fn enter(self) -> ArenaScope {
        ArenaScope { before: CURRENT.replace(self), thread_bound: std::marker::PhantomData }
    }

    /// Its place in [`Arena::ALL`].
    fn place(self) -> usize {
        match self {
            Arena::Weights => 0,
            Arena::Gradients => 1,
            Arena::Optimiser => 2,
            Arena::Tape => 3,
            Arena::KvCache => 4,
            Arena::Masks => 5,
            Arena::Workspace => 6,
            Arena::Other => 7,
        }
    }

    /// The arena that this thread allocates in now.
    pub(super) fn current() -> Arena {
        CURRENT.get()
    }
}

/// See [`Arena::enter`].
#[derive(Debug)]
pub struct ArenaScope {
    before: Arena,
    /// A scope belongs to its thread.
    thread_bound: std::marker::PhantomData<*const ()>,
}

impl Drop for ArenaScope {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// What one arena holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaCount {
    /// Which.
    pub arena: Arena,
    /// Bytes asked for and not given back, as asked (without rounding).
    pub held: usize,
    /// Most bytes held at once.
    pub high_water: usize,
    /// Blocks not given back.
    pub blocks: usize,
}

/// What each arena held at the moment when most was held in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPeak {
    by_arena: [usize; Arena::ALL.len()],
}

impl MemoryPeak {
    /// Bytes of one arena.
    pub fn of(&self, arena: Arena) -> usize {
        self.by_arena[arena.place()]
    }

    /// Bytes of all.
    pub fn total(&self) -> usize {
        self.by_arena.iter().sum()
    }
}

/// The accounts of a device's memory, by arena.
#[derive(Debug)]
pub(super) struct Books {
    counts: [ArenaCount; Arena::ALL.len()],
    held: usize,
    peak: MemoryPeak,
}

impl Default for Books {
    fn default() -> Books {
        let counts = Arena::ALL.map(|arena| ArenaCount { arena, held: 0, high_water: 0, blocks: 0 });
        Books { counts, held: 0, peak: MemoryPeak::default() }
    }
}

impl Books {
    /// A block was taken.
    pub fn take(&mut self, arena: Arena, bytes: usize) {
        let count = &mut self.counts[arena.place()];
        count.held += bytes;
        count.blocks += 1;
        count.high_water = count.high_water.max(count.held);
        self.held += bytes;
        if self.held > self.peak.total() {
            self.peak = MemoryPeak { by_arena: self.counts.map(|count| count.held) };
        }
    }

    /// A block was given back.
    pub fn give_back(&mut self, arena: Arena, bytes: usize) {
        let count = &mut self.counts[arena.place()];
        count.held -= bytes;
        count.blocks -= 1;
        self.held -= bytes;
    }

    /// What each arena holds, in the order of [`Arena::ALL`].
    pub fn counts(&self) -> &[ArenaCount] {
        &self.counts
    }

    /// The most so far.
    pub fn peak(&self) -> MemoryPeak {
        self.peak
    }
}

/// A block of memory that is held. What is still held when a device is closed was leaked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it is booked under.
    pub arena: Arena,
    /// Its first byte.
    pub address: u64,
    /// Bytes asked for.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_nest_and_end() {
        assert_eq!(Arena::current(), Arena::Other);
        {
            let _tape = Arena::Tape.enter();
            {
                let _masks = Arena::Masks.enter();
                assert_eq!(Arena::current(), Arena::Masks);
            }
            assert_eq!(Arena::current(), Arena::Tape);
            std::thread::spawn(|| assert_eq!(Arena::current(), Arena::Other)).join().unwrap();
        }
        assert_eq!(Arena::current(), Arena::Other);
    }

    #[test]
    fn every_arena_is_listed_once_and_in_its_place() {
        for (place, arena) in Arena::ALL.into_iter().enumerate() {
            assert_eq!(arena.place(), place, "{arena:?}");
        }
    }

    #[test]
    fn a_peak_is_one_moment_not_the_sum_of_high_waters() {
        let mut books = Books::default();
        books.take(Arena::Weights, 100);
        books.take(Arena::Tape, 50);
        books.give_back(Arena::Weights, 100);
        books.take(Arena::KvCache, 90);
        let peak = books.peak();
        assert_eq!((peak.of(Arena::Weights), peak.of(Arena::Tape), peak.of(Arena::KvCache)), (100, 50, 0));
        assert_eq!((peak.total(), books.held), (150, 140));
        books.take(Arena::KvCache, 11);
        let peak = books.peak();
        assert_eq!((peak.of(Arena::Weights), peak.of(Arena::KvCache), peak.total()), (0, 101, 151));
    }
}
