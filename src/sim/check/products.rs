//! Products of warpgroups (`wgmma`): what makes writes to shared memory visible to them, and what they read until
//! somebody waits for them.
//!
//! A product reads shared memory by another way than a thread does, the asynchronous proxy. It sees what a thread
//! wrote, or what its `cp.async` brought, once that thread has executed `fence.proxy.async` and the product's threads
//! know of the fence as they know of any deed: through a barrier. A product's reads happen at any time until the wait
//! that covers its group, so they count as done by that wait.

use super::block::BlockCheck;
use super::now::{Now, Touch};
use super::report::Actor;
use crate::sim::access::{LANES, Place};
use crate::sim::fault::Result;

/// A `fence.proxy.async`: it covers what `lanes` did at `clock` and before.
#[derive(Clone, Copy, Debug)]
struct Fence {
    lanes: u32,
    clock: u32,
}

/// What a product under way reads.
#[derive(Clone, Debug)]
struct Read {
    line: u32,
    group: u32,
    chunks: Box<[u32]>,
}

/// The products of one warp.
#[derive(Clone, Debug, Default)]
struct Warp {
    fences: Vec<Fence>,
    reads: Vec<Read>,
    closed: u32,
}

/// The products of one block.
#[derive(Debug)]
pub struct Products {
    warps: Vec<Warp>,
}

impl Products {
    /// No products of `warps` warps.
    pub fn new(warps: usize) -> Products {
        Products { warps: vec![Warp::default(); warps] }
    }

    /// Lanes execute a fence; `clock` is that of the moment.
    pub fn fence(&mut self, warp: usize, lanes: u32, clock: u32) {
        self.warps[warp].fences.push(Fence { lanes, clock });
    }

    /// Whether all lanes that read know of a fence after what `thread` did at `clock`.
    pub fn sees(&self, now: &Now<'_>, thread: usize, clock: u32) -> bool {
        let fences = &self.warps[thread / LANES].fences;
        let after = fences.partition_point(|fence| fence.clock < clock);
        let covers = |fence: &&Fence| fence.lanes >> (thread % LANES) & 1 != 0;
        fences[after..].iter().find(covers).is_some_and(|fence| now.ignorant(thread, fence.clock).is_none())
    }

    /// A product begins to read 16 bytes at each of these offsets.
    pub fn issue(&mut self, warp: usize, line: u32, chunks: &[u32]) {
        let group = self.warps[warp].closed;
        self.warps[warp].reads.push(Read { line, group, chunks: chunks.into() });
    }

    /// A warp closes its group.
    pub fn commit(&mut self, warp: usize) {
        self.warps[warp].closed += 1;
    }

    /// A warp waits until at most `pending` of its closed groups are under way; what was read is handed to `done`, with the
    /// product's line.
    pub fn wait(&mut self, warp: usize, pending: u32, mut done: impl FnMut(u32, u32)) {
        let Warp { reads, closed, .. } = &mut self.warps[warp];
        reads.retain(|read| {
            let under_way = read.group.saturating_add(pending) >= *closed;
            if !under_way {
                read.chunks.iter().for_each(|&chunk| done(chunk, read.line));
            }
            under_way
        });
    }

    /// A product under way that reads any of these bytes: a thread of it and its line.
    pub fn reader_of(&self, offset: u64, bytes: u32) -> Option<(usize, u32)> {
        let (start, end) = (offset, offset + u64::from(bytes));
        let meets = |&chunk: &u32| u64::from(chunk) < end && start < u64::from(chunk) + 16;
        self.warps.iter().enumerate().find_map(|(warp, of_warp)| {
            let read = of_warp.reads.iter().find(|read| read.chunks.iter().any(meets))?;
            Some((warp * LANES, read.line))
        })
    }
}

impl BlockCheck {
    /// Lanes execute `fence.proxy.async`.
    pub(super) fn publish_to_products(&mut self, active: u32, at: Place) {
        self.mail.settle();
        let warp = at.warp as usize;
        self.products.fence(warp, active, self.order.access(warp));
        // What follows carries another clock, which this fence does not cover.
        self.order.advance(warp);
    }

    /// A product of a warp sets out to read 16 bytes at each of these offsets.
    pub(super) fn begin_product(&mut self, chunks: &[u32], at: Place) -> Result<()> {
        self.mail.settle();
        let warp = at.warp as usize;
        let clock = self.order.access(warp);
        let BlockCheck { launch, order, mail, shared, products, .. } = self;
        let now = Now { order, mail, block: self.index, warp, lane: 0, readers: !0, clock, line: at.line };
        for &chunk in chunks {
            if let Err((offset, clash)) = shared.lend(&now, products, chunk) {
                let who = Actor { block: self.block, warp, lane: 0, line: at.line };
                return Err(launch.launched.shared(who, Touch::Read, 16, offset, clash));
            }
        }
        products.issue(warp, at.line, chunks);
        Ok(())
    }

    /// A warp waits for all but its newest `pending` groups of products.
    pub(super) fn end_products(&mut self, pending: u32, at: Place) {
        self.mail.settle();
        let warp = at.warp as usize;
        // What was read until now was read at this moment: a synchronisation before it does not cover it.
        self.order.advance(warp);
        let clock = self.order.access(warp);
        let BlockCheck { order, mail, shared, products, .. } = self;
        let now = Now { order, mail, block: self.index, warp, lane: 0, readers: !0, clock, line: at.line };
        products.wait(warp, pending, |chunk, line| shared.give_back(&Now { line, ..now }, chunk));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_end_in_order_and_only_when_they_were_closed() {
        let mut products = Products::new(2);
        for stage in 0..3 {
            products.issue(1, 7 + stage, &[16 * stage, 1024 + 16 * stage]);
            if stage < 2 {
                products.commit(1);
            }
        }
        assert_eq!(products.reader_of(1024 + 15, 1), Some((32, 7)));
        let mut done = Vec::new();
        products.wait(1, 1, |chunk, line| done.push((chunk, line)));
        assert_eq!(done, [(0, 7), (1024, 7)], "the older of two groups");
        products.wait(1, 0, |chunk, line| done.push((chunk, line)));
        assert_eq!(done[2..], [(16, 8), (1040, 8)]);
        assert_eq!(products.reader_of(0, 32), None);
        assert_eq!(products.reader_of(30, 4), Some((32, 9)), "never closed");
        products.wait(0, 0, |_, _| panic!("another warp's"));
    }
}
