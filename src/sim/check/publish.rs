//! Order that passes through memory: what one thread did, fenced and announced by an atomic, is known to who sees
//! the announcement.
//!
//! ```text
//! publish   a thread's fence (or one that a barrier orders before it), then an atomic or strong store at L
//! learn     a later atomic or strong load at L
//! ```
//!
//! This is how the last block of a grid may read what the others wrote: write, `__threadfence`, atomic ticket, read.
//! An atomic without a fence before it publishes nothing; that is the fault the checker reports.
//!
//! Approximations, all on the side of silence. A place keeps everything that was ever published at it, though a plain
//! store would end what went before. The reader needs no fence after its atomic. A barrier may stand between the
//! fence and the atomic. Blocks run on several host threads: a thread publishes before its atomic reaches memory and
//! learns after, so that it never learns less than the atomic's value tells, and sometimes more.
//!
//! A fence at block scope publishes within the block only.

use super::order::{Knowledge, Order};
use crate::sim::access::{LANES, Scope};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A fence of one thread, and what it covers.
#[derive(Debug)]
struct Fence {
    block: u32,
    thread: usize,
    /// Clock of the fence within its block.
    clock: u32,
    scope: Scope,
    knowledge: Knowledge,
    learned: Vec<Learned>,
}

/// Everything published at one place, in order, each fence once.
#[derive(Debug, Default)]
struct Announced {
    fences: Vec<Arc<Fence>>,
    seen: HashSet<usize>,
}

type Place = Arc<RwLock<Announced>>;

/// That a thread saw the first `count` announcements of a place.
#[derive(Clone, Debug)]
struct Learned {
    thread: usize,
    clock: u32,
    place: Place,
    count: usize,
}

/// The places of one memory at which something was published.
#[derive(Debug, Default)]
pub struct Board {
    places: Mutex<HashMap<u64, Place>>,
}

impl Board {
    fn place(&self, address: u64) -> Place {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).entry(address).or_default().clone()
    }

    fn known(&self, address: u64) -> Option<Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }
}

/// An access: who in which block, and when.
#[derive(Clone, Copy, Debug)]
pub struct Deed {
    /// Linear index of the block.
    pub block: u32,
    /// The thread within it.
    pub thread: usize,
    /// Its clock.
    pub clock: u32,
}

/// What the threads of one block have fenced and learned.
#[derive(Debug)]
pub struct Mail {
    block: u32,
    /// The last fence of each thread that executed one, by thread and whether it reaches beyond the block.
    fences: HashMap<(usize, bool), Arc<Fence>>,
    learned: Vec<Learned>,
    /// Places whose value a thread is about to see.
    expected: Vec<(usize, u32, Place)>,
    /// Fences that a place's first announcements lead to, directly or through others; by place and count.
    reach: Mutex<HashMap<(usize, usize), Arc<Reach>>>,
}

/// Fences by block.
type Reach = HashMap<u32, Vec<Arc<Fence>>>;

impl Mail {
    /// A block that has fenced and learned nothing.
    pub fn new(block: u32) -> Mail {
        Mail {
            block,
            fences: HashMap::new(),
            learned: Vec::new(),
            expected: Vec::new(),
            reach: Mutex::default(),
        }
    }

    /// Whether nothing was learned, so that nothing can be ordered by it.
    pub fn is_empty(&self) -> bool {
        self.learned.is_empty()
    }

    /// A lane executes a fence. What the warp does next needs a new clock ([`Order::advance`]), which the caller
    /// gives it once all lanes have fenced.
    pub fn fence(&mut self, order: &mut Order, warp: usize, lane: usize, scope: Scope) {
        let thread = warp * LANES + lane;
        let clock = order.access(warp);
        let learned = self.learned_by(order, warp, lane);
        let knowledge = order.knowledge(warp, lane);
        let fence = Fence { block: self.block, thread, clock, scope, knowledge, learned };
        self.fences.insert((thread, scope >= Scope::Device), Arc::new(fence));
    }

    /// What a thread has learned, itself or through barriers.
    fn learned_by(&self, order: &Order, warp: usize, lane: usize) -> Vec<Learned> {
        let thread = warp * LANES + lane;
        let known = |l: &&Learned| {
            l.thread == thread || order.knows(warp, lane, l.thread / LANES, l.thread % LANES, l.clock)
        };
        self.learned.iter().filter(known).cloned().collect()
    }

    /// A lane is about to write `address` by an atomic or a strong store: announces what was fenced before.
    pub fn publish(&mut self, order: &Order, board: &Board, warp: usize, lane: usize, address: u64) {
        if self.fences.is_empty() {
            return;
        }
        let thread = warp * LANES + lane;
        let known = |f: &&Arc<Fence>| {
            f.thread == thread || order.knows(warp, lane, f.thread / LANES, f.thread % LANES, f.clock)
        };
        let fences: Vec<Arc<Fence>> = self.fences.values().filter(known).cloned().collect();
        if !fences.is_empty() {
            let place = board.place(address);
            let mut place = place.write().unwrap_or_else(PoisonError::into_inner);
            for fence in fences {
                if place.seen.insert(Arc::as_ptr(&fence) as usize) {
                    place.fences.push(fence);
                }
            }
        }
    }

    /// A lane is about to see the value at `address` by an atomic or a strong load at `clock`.
    pub fn expect(&mut self, board: &Board, warp: usize, lane: usize, clock: u32, address: u64) {
        if let Some(place) = board.known(address) {
            self.expected.push((warp * LANES + lane, clock, place));
        }
    }

    /// The atomics and loads that [`Mail::expect`] announced have happened.
    pub fn settle(&mut self) {
        for (thread, clock, place) in self.expected.drain(..) {
            let count = place.read().unwrap_or_else(PoisonError::into_inner).fences.len();
            let same = |l: &&Learned| l.thread == thread && Arc::ptr_eq(&l.place, &place);
            if self.learned.iter().rev().find(same).is_none_or(|l| l.count < count) {
                self.learned.push(Learned { thread, clock, place, count });
            }
        }
    }

    /// Whether `lane` of `warp` has learned of `deed` by now.
    pub fn knows(&self, order: &Order, warp: usize, lane: usize, deed: Deed) -> bool {
        self.learned.iter().any(|learned| {
            let (other, at) = (learned.thread / LANES, learned.thread % LANES);
            (learned.thread == warp * LANES + lane || order.knows(warp, lane, other, at, learned.clock))
                && self.reach(learned).get(&deed.block).is_some_and(|fences| {
                    fences.iter().any(|fence| {
                        (fence.scope >= Scope::Device || deed.block == self.block)
                            && fence.knowledge.covers(deed.thread / LANES, deed.thread % LANES, deed.clock)
                    })
                })
        })
    }

    /// All fences behind what was learned.
    fn reach(&self, learned: &Learned) -> Arc<Reach> {
        let key = (Arc::as_ptr(&learned.place) as *const () as usize, learned.count);
        if let Some(reach) = self.reach.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return reach.clone();
        }
        let (mut seen, mut reach) = (HashSet::new(), Reach::new());
        let mut open = vec![learned.clone()];
        while let Some(next) = open.pop() {
            let place = next.place.read().unwrap_or_else(PoisonError::into_inner);
            for fence in &place.fences[..next.count] {
                if seen.insert(Arc::as_ptr(fence)) {
                    reach.entry(fence.block).or_default().push(fence.clone());
                    open.extend(fence.learned.iter().cloned());
                }
            }
        }
        let reach = Arc::new(reach);
        self.reach.lock().unwrap_or_else(PoisonError::into_inner).insert(key, reach.clone());
        reach
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: u64 = 0x100;

    /// A block of two warps, with what it needs to publish.
    fn block(index: u32) -> (Order, Mail) {
        (Order::new(64), Mail::new(index))
    }

    fn fence(order: &mut Order, mail: &mut Mail, warp: usize, lane: usize, scope: Scope) {
        mail.fence(order, warp, lane, scope);
        order.advance(warp);
    }

    fn take_ticket(order: &mut Order, mail: &mut Mail, board: &Board, warp: usize, lane: usize) {
        mail.settle();
        let clock = order.access(warp);
        mail.publish(order, board, warp, lane, TICKET);
        mail.expect(board, warp, lane, clock, TICKET);
        mail.settle();
    }

    #[test]
    fn the_last_block_knows_what_the_first_fenced() {
        let board = Board::default();
        let (mut order, mut mail) = block(0);
        let written = Deed { block: 0, thread: 5, clock: order.access(0) };
        fence(&mut order, &mut mail, 0, 5, Scope::Device);
        let late = Deed { block: 0, thread: 5, clock: order.access(0) };
        take_ticket(&mut order, &mut mail, &board, 0, 5);

        let (mut order, mut mail) = block(1);
        take_ticket(&mut order, &mut mail, &board, 1, 0);
        assert!(mail.knows(&order, 1, 0, written));
        assert!(!mail.knows(&order, 1, 0, late), "written after the fence");
        assert!(!mail.knows(&order, 1, 0, Deed { thread: 6, ..written }), "another thread's");
        assert!(!mail.knows(&order, 0, 0, written), "warp 0 has not met the thread that holds the ticket");
        order.access(1);
        order.sync_warps(&[0, 1], &[]);
        assert!(mail.knows(&order, 0, 0, written), "a barrier passes it on");
    }

    #[test]
    fn nothing_is_published_without_a_fence_or_by_one_of_the_block() {
        for scope in [None, Some(Scope::Block)] {
            let board = Board::default();
            let (mut order, mut mail) = block(0);
            let written = Deed { block: 0, thread: 0, clock: order.access(0) };
            if let Some(scope) = scope {
                fence(&mut order, &mut mail, 0, 0, scope);
            }
            take_ticket(&mut order, &mut mail, &board, 0, 0);
            let (mut order, mut mail) = block(1);
            take_ticket(&mut order, &mut mail, &board, 0, 0);
            assert!(!mail.knows(&order, 0, 0, written), "{scope:?}");
        }
    }

    #[test]
    fn one_threads_fence_covers_the_block_after_a_barrier() {
        let board = Board::default();
        let (mut order, mut mail) = block(0);
        let written = Deed { block: 0, thread: 40, clock: order.access(1) };
        order.sync_warps(&[0, 1], &[]);
        fence(&mut order, &mut mail, 0, 0, Scope::Device);
        take_ticket(&mut order, &mut mail, &board, 0, 0);
        let (mut order, mut mail) = block(1);
        take_ticket(&mut order, &mut mail, &board, 0, 0);
        assert!(mail.knows(&order, 0, 0, written));
    }

    #[test]
    fn every_threads_fence_counts_when_a_barrier_stands_before_the_ticket() {
        let board = Board::default();
        let (mut order, mut mail) = block(0);
        let written = Deed { block: 0, thread: 40, clock: order.access(1) };
        fence(&mut order, &mut mail, 1, 8, Scope::Device);
        order.sync_warps(&[0, 1], &[]);
        take_ticket(&mut order, &mut mail, &board, 0, 0);
        let (mut order, mut mail) = block(1);
        take_ticket(&mut order, &mut mail, &board, 0, 0);
        assert!(mail.knows(&order, 0, 0, written));
    }

    #[test]
    fn knowledge_travels_along_a_chain_of_blocks() {
        let board = Board::default();
        let (mut order, mut mail) = block(0);
        let written = Deed { block: 0, thread: 0, clock: order.access(0) };
        fence(&mut order, &mut mail, 0, 0, Scope::Device);
        mail.publish(&order, &board, 0, 0, 0x10);
        let (mut order, mut mail) = block(1);
        let clock = order.access(0);
        mail.expect(&board, 0, 0, clock, 0x10);
        mail.settle();
        fence(&mut order, &mut mail, 0, 0, Scope::Device);
        mail.publish(&order, &board, 0, 0, 0x20);
        let (mut order, mut mail) = block(2);
        let clock = order.access(0);
        mail.expect(&board, 0, 0, clock, 0x20);
        mail.settle();
        assert!(mail.knows(&order, 0, 0, written));
    }
}
