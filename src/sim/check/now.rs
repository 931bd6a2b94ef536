//! A thread at one moment: what it does, what it knows, and what it can clash with.

use super::order::{Order, lanes_of};
use super::publish::{Deed, Mail};
use crate::sim::access::LANES;

/// What a thread does to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// A plain load.
    Read,
    /// A load that may meet atomics of others: `.relaxed`, `.acquire`, and `.volatile` in global memory.
    StrongRead,
    /// A plain store.
    Write,
    /// A store that may meet atomics of others.
    StrongWrite,
    /// An atomic.
    Atomic,
    /// A copy that writes when it is waited for.
    Copy,
}

impl Touch {
    /// Whether it looks at the bytes.
    pub fn reads(self) -> bool {
        matches!(self, Touch::Read | Touch::StrongRead | Touch::Atomic)
    }

    /// Whether it changes the bytes.
    pub fn writes(self) -> bool {
        !matches!(self, Touch::Read | Touch::StrongRead)
    }

    /// Whether it may meet others of its kind.
    pub fn is_strong(self) -> bool {
        matches!(self, Touch::StrongRead | Touch::StrongWrite | Touch::Atomic)
    }
}

/// What a thread clashes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clash {
    /// Nobody wrote the byte.
    Unwritten,
    /// A copy that `thread` issued at `line` is under way to it.
    Copying {
        /// The thread of the block.
        thread: usize,
        /// The PTX line.
        line: u32,
    },
    /// `thread` wrote it at `line`, and no `fence.proxy.async` of that thread lies between that and the product.
    Unfenced {
        /// The thread of the block.
        thread: usize,
        /// The PTX line of what it did.
        line: u32,
    },
    /// A product under way reads it.
    Multiplied,
    /// `thread` touched it at `line`, and `reader` (a lane) does not know.
    Race {
        /// The lane that does not know.
        reader: usize,
        /// The other thread of the block.
        thread: usize,
        /// The PTX line of what it did.
        line: u32,
        /// What it did, a verb.
        by: &'static str,
    },
}

/// A thread at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// The clocks of its block.
    pub order: &'a Order,
    /// What its block learned through memory.
    pub mail: &'a Mail,
    /// Linear index of the block.
    pub block: u32,
    /// Its warp.
    pub warp: usize,
    /// Its lane.
    pub lane: usize,
    /// The lanes that get what is read: itself, or all of the warp for `ldmatrix`.
    pub readers: u32,
    /// Its clock.
    pub clock: u32,
    /// The PTX line.
    pub line: u32,
}

impl Now<'_> {
    /// Index of the thread in its block.
    pub fn thread(&self) -> usize {
        self.warp * LANES + self.lane
    }

    /// Whether `lane` of this warp knows what `thread` of this block did at `clock`.
    #[inline]
    fn lane_knows(&self, lane: usize, thread: usize, clock: u32) -> bool {
        self.order.knows(self.warp, lane, thread / LANES, thread % LANES, clock)
            || (!self.mail.is_empty()
                && self.mail.knows(self.order, self.warp, lane, Deed { block: self.block, thread, clock }))
    }

    /// A lane that gets the bytes and does not know what `thread` of this block did at `clock`.
    #[inline]
    pub fn ignorant(&self, thread: usize, clock: u32) -> Option<usize> {
        if self.order.known_to_warp(self.warp, thread / LANES, clock) {
            return None;
        }
        lanes_of(self.readers).find(|&lane| !self.lane_knows(lane, thread, clock))
    }

    /// Of the lanes `lanes` of `warp`, who did something at `clock`: those whose deed this thread does not know.
    #[inline(always)]
    pub fn unknown_of(&self, warp: usize, lanes: u32, clock: u32) -> u32 {
        // What lies before a barrier of the block everyone knows; most do.
        if self.order.before_block_barrier(warp, clock) { 0 } else { self.unknown_since(warp, lanes, clock) }
    }

    /// The same for deeds since the last barrier of the block.
    fn unknown_since(&self, warp: usize, lanes: u32, clock: u32) -> u32 {
        let mut left = self.order.unknown(self.warp, self.lane, warp, lanes, clock);
        if left != 0 && !self.mail.is_empty() {
            for lane in lanes_of(left) {
                let deed = Deed { block: self.block, thread: warp * LANES + lane, clock };
                if self.mail.knows(self.order, self.warp, self.lane, deed) {
                    left &= !(1 << lane);
                }
            }
        }
        left
    }
}
