//! The checker of one block: hears of its accesses and its synchronisation in the order in which its warps run.

use super::Launch;
use super::copies::Copies;
use super::global::Part;
use super::now::{Clash, Now, Touch};
use super::order::{Arrived, Order, lanes_of};
use super::products::Products;
use super::publish::{Board, Mail};
use super::report::{Actor, lanes_in_words, verb};
use super::shared::SharedShadow;
use crate::sim::access::{
    self, Action, BarrierArrival, BlockObserver, LANES, Place, Scope, Space, SyncKind, WarpAccess, WarpSync,
};
use crate::sim::fault::{Fault, Kind, Result};
use crate::sim::traffic::Traffic;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

/// Who has arrived at a barrier that is not complete.
#[derive(Debug, Default)]
struct Waiting {
    /// Threads that the first to arrive said take part.
    count: u32,
    first: Option<Actor>,
    /// They wait for all threads of the block.
    for_all: bool,
    arrived: Vec<Arrived>,
    passed: Vec<usize>,
}

/// The checker of one block.
#[derive(Debug)]
pub struct BlockCheck {
    pub(super) launch: Arc<Launch>,
    pub(super) block: [u32; 3],
    pub(super) index: u32,
    pub(super) order: Order,
    pub(super) mail: Mail,
    /// What was published in shared memory.
    board: Board,
    pub(super) shared: SharedShadow,
    copies: Copies,
    pub(super) products: Products,
    barriers: HashMap<u32, Waiting>,
    /// A thread that has exited, if any has.
    gone: Option<Actor>,
    traffic: Traffic,
}

impl BlockCheck {
    pub(super) fn new(launch: Arc<Launch>, block: [u32; 3], grain: u32) -> BlockCheck {
        let threads = launch.launched.threads() as usize;
        let warps = threads.div_ceil(LANES);
        let index = launch.launched.block_index(block) as u32;
        let bytes = if launch.checks { launch.launched.shared_bytes } else { 0 };
        BlockCheck {
            block,
            index,
            order: Order::new(threads),
            mail: Mail::new(index),
            board: Board::default(),
            shared: SharedShadow::new(bytes, warps, grain),
            copies: Copies::new(warps),
            products: Products::new(warps),
            barriers: HashMap::new(),
            gone: None,
            traffic: Traffic::default(),
            launch,
        }
    }

    fn actor(&self, at: Place, lane: usize) -> Actor {
        Actor { block: self.block, warp: at.warp as usize, lane, line: at.line }
    }

    fn now<'a>(&'a self, at: Place, clock: u32) -> Now<'a> {
        Now {
            order: &self.order,
            mail: &self.mail,
            block: self.index,
            warp: at.warp as usize,
            lane: 0,
            readers: 0,
            clock,
            line: at.line,
        }
    }

    /// A release before an atomic or a store, the look at its value after an atomic or a load.
    fn announce(&mut self, access: &WarpAccess<'_>, touch: Touch, clock: u32) {
        let warp = access.at.warp as usize;
        let releases = match access.order {
            access::Order::Release(scope) | access::Order::AcquireRelease(scope) => Some(scope),
            _ => None,
        };
        if let Some(scope) = releases {
            lanes_of(access.active).for_each(|lane| self.mail.fence(&mut self.order, warp, lane, scope));
        }
        let board = match access.space {
            Space::Global => &self.launch.board,
            Space::Shared => &self.board,
        };
        for lane in lanes_of(access.active) {
            let address = access.addresses[lane];
            if touch.writes() {
                self.mail.publish(&self.order, board, warp, lane, address);
            }
            if touch.reads() {
                self.mail.expect(board, warp, lane, clock, address);
            }
        }
    }

    fn touch_shared(&mut self, access: &WarpAccess<'_>, touch: Touch, clock: u32) -> Result<()> {
        let BlockCheck { launch, order, mail, shared, .. } = self;
        let whole = access.action == Action::MatrixRead;
        let warp = access.at.warp as usize;
        let mut now =
            Now { order, mail, block: self.index, warp, lane: 0, readers: 0, clock, line: access.at.line };
        let mut left = access.active;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let together = if touch == Touch::Read { alike(access, left) } else { 1 << lane };
            left &= !together;
            (now.lane, now.readers) = (lane, if whole { !0 } else { together });
            if let Err((offset, clash)) = shared.touch(&now, touch, access.addresses[lane], access.bytes) {
                let who = Actor { block: self.block, warp, lane, line: access.at.line };
                let fault = launch.launched.shared(who, touch, access.bytes, offset, clash);
                return Err(match self.products.reader_of(offset, 1) {
                    Some((thread, line)) if clash == Clash::Multiplied => launch
                        .launched
                        .with_party(fault, launch.launched.party(who, thread, line, "multiplies")),
                    _ => fault,
                });
            }
        }
        Ok(())
    }

    fn touch_global(&mut self, access: &WarpAccess<'_>, touch: Touch, clock: u32) -> Result<()> {
        let launch = &self.launch;
        let ranges = &launch.launched.ranges;
        let part = |lane: usize| {
            let address = access.addresses[lane];
            let inside = |r: usize| ranges.get(r).is_some_and(|r| address.wrapping_sub(r.base) < r.bytes);
            let range = if inside(access.range) {
                access.range
            } else {
                ranges.partition_point(|r| r.base <= address).checked_sub(1)?
            };
            let bytes = access.read_bytes.map_or(access.bytes, |bytes| bytes[lane]);
            inside(range).then_some(Part { lane, range, address, bytes })
        };
        for part in lanes_of(access.active).filter_map(part) {
            let written = launch.written(part.range);
            let offset = part.address - ranges[part.range].base;
            if touch.reads()
                && !written.is_whole()
                && let Some(hole) = written.first_unwritten(offset, part.bytes.into())
            {
                return Err(launch.launched.global(
                    Kind::Uninitialised,
                    self.actor(access.at, part.lane),
                    part.range,
                    ranges[part.range].base + hole,
                    format!(
                        "{} {} bytes of device memory of which nobody wrote all",
                        verb(touch),
                        part.bytes
                    ),
                    "write the memory first (the host's upload or fill, or an earlier kernel)",
                ));
            }
            if touch.writes() {
                written.write(offset, part.bytes.into());
                if !self.copies.is_empty()
                    && let Some((thread, line)) = self.copies.reader_of(part.address, part.bytes)
                {
                    let who = self.actor(access.at, part.lane);
                    let fault = launch.launched.global(
                        Kind::CopyDisturbed,
                        who,
                        part.range,
                        part.address,
                        format!("{} {} bytes that a cp.async under way reads", verb(touch), part.bytes),
                        "wait for the copy before its source changes",
                    );
                    let other = launch.launched.party(who, thread, line, "copies from");
                    return Err(launch.launched.with_party(fault, other));
                }
            }
        }
        let now = self.now(access.at, clock);
        let parts = lanes_of(access.active).filter_map(part).filter(|part| part.bytes > 0);
        launch.shadow.touch(&now, touch, parts).map_err(|clash| {
            let who = self.actor(access.at, clash.lane);
            let range = ranges.partition_point(|r| r.base <= clash.address).saturating_sub(1);
            let same = clash.block == self.index;
            let (problem, advice) = if same {
                ("a thread of its block", "put __syncthreads() or __syncwarp() between them")
            } else {
                (
                    "a thread of another block",
                    "blocks of one launch have no order: give each its own output, use atomics, or write, \
                     __threadfence(), and announce it by an atomic that the reader looks at",
                )
            };
            let problem = format!(
                "{} {} bytes without an order to {problem} that touches them too",
                verb(touch),
                access.bytes
            );
            let fault = launch.launched.global(Kind::GlobalRace, who, range, clash.address, problem, advice);
            let mut other = launch.launched.party(who, clash.thread, clash.line, clash.by);
            other.block = launch.launched.block_at(clash.block.into());
            launch.launched.with_party(fault, other)
        })
    }

    /// The fault of a barrier of all threads, at which `who` waits for one that has left.
    fn abandoned(&self, who: Actor, gone: Actor) -> Fault {
        let problem = "a barrier of all threads of the block, of which some have exited".to_string();
        let advice = "let every thread of the block reach the barrier: no early return";
        let fault = self.launch.launched.fault(Kind::Barrier, who, problem, advice);
        let thread = gone.warp * LANES + gone.lane;
        let other = self.launch.launched.party(gone, thread, gone.line, "exited without");
        self.launch.launched.with_party(fault, other)
    }

    fn warp_fault(&self, kind: Kind, at: Place, lanes: u32, problem: String, advice: &str) -> Fault {
        let lane = (lanes.trailing_zeros() as usize).min(LANES - 1);
        self.launch.launched.fault(kind, self.actor(at, lane), problem, advice)
    }
}

/// The first of the lanes `left` with those right behind it that load the same bytes: they are readers of the same
/// moment, for which one look stands.
#[inline(always)]
fn alike(access: &WarpAccess<'_>, left: u32) -> u32 {
    let first = left.trailing_zeros() as usize;
    let address = access.addresses[first];
    let other = (first + 1..LANES).find(|&lane| left >> lane & 1 == 0 || access.addresses[lane] != address);
    let below = other.map_or(!0, |other| (1 << other) - 1);
    left & below
}

/// How an access counts in races.
fn touch_of(access: &WarpAccess<'_>) -> Touch {
    // A volatile access of shared memory is a plain one: warps that exchange through it without a synchronisation
    // are what the checker looks for.
    let strong = match access.order {
        access::Order::Weak => false,
        access::Order::Volatile => access.space == Space::Global,
        _ => true,
    };
    match access.action {
        Action::Read | Action::MatrixRead | Action::CopyRead if strong => Touch::StrongRead,
        Action::Read | Action::MatrixRead | Action::CopyRead => Touch::Read,
        Action::Write if strong => Touch::StrongWrite,
        Action::Write => Touch::Write,
        Action::Atomic => Touch::Atomic,
        Action::CopyWrite => Touch::Copy,
    }
}

impl BlockObserver for BlockCheck {
    fn access(&mut self, access: &WarpAccess<'_>) -> Result<()> {
        self.traffic.count(access);
        self.launch.meter.touch(access);
        if !self.launch.checks {
            return Ok(());
        }
        self.mail.settle();
        let warp = access.at.warp as usize;
        let touch = touch_of(access);
        let clock = self.order.access(warp);
        if touch.is_strong() {
            self.announce(access, touch, clock);
        }
        match access.space {
            Space::Shared => self.touch_shared(access, touch, clock)?,
            Space::Global => self.touch_global(access, touch, clock)?,
        }
        match access.action {
            Action::CopyRead | Action::CopyWrite => {
                let bytes = access.read_bytes.copied().unwrap_or([access.bytes; LANES]);
                let source = access.action == Action::CopyRead;
                self.copies.issue(warp, source, access.at.line, access.active, access.addresses, bytes);
            }
            _ => {}
        }
        Ok(())
    }

    fn warp_sync(&mut self, sync: &WarpSync) -> Result<()> {
        if !self.launch.checks {
            return Ok(());
        }
        self.mail.settle();
        if sync.mask != sync.active {
            let gone = sync.mask & !sync.live;
            let elsewhere = sync.mask & sync.live & !sync.active;
            let unnamed = sync.active & !sync.mask;
            let problem = if gone != 0 {
                format!("the mask {:#010x} names {}, which exited", sync.mask, lanes_in_words(gone))
            } else if elsewhere != 0 {
                format!(
                    "the mask {:#010x} names {}, which is elsewhere",
                    sync.mask,
                    lanes_in_words(elsewhere)
                )
            } else {
                format!(
                    "the mask {:#010x} does not name {}, which executes it",
                    sync.mask,
                    lanes_in_words(unnamed)
                )
            };
            let problem = format!("{problem}; {} come together", lanes_in_words(sync.active));
            let advice = "let the mask name exactly the lanes that reach the instruction together, and let all \
                          lanes reach it where the mask is full";
            let who = if gone | elsewhere == 0 { unnamed } else { sync.active };
            return Err(self.warp_fault(Kind::SyncMask, sync.at, who, problem, advice));
        }
        if sync.kind != SyncKind::Matrix {
            self.order.sync_warp(sync.at.warp as usize, sync.mask);
        }
        Ok(())
    }

    fn barrier_arrival(&mut self, arrival: &BarrierArrival) -> Result<()> {
        if !self.launch.checks {
            return Ok(());
        }
        self.mail.settle();
        let (at, warp) = (arrival.at, arrival.at.warp as usize);
        let threads = self.launch.launched.threads();
        let gone = arrival.started & !arrival.live;
        let advice =
            "let every thread of the block reach the barrier: no early return and no branch around it";
        if gone != 0 {
            let problem = format!("a barrier in a warp of which {} exited before", lanes_in_words(gone));
            return Err(self.warp_fault(Kind::Barrier, at, arrival.active, problem, advice));
        }
        if arrival.aligned && arrival.active != arrival.live {
            let problem = format!(
                "a barrier that {} of the warp reach and {} do not",
                lanes_in_words(arrival.active),
                lanes_in_words(arrival.live & !arrival.active)
            );
            return Err(self.warp_fault(Kind::Barrier, at, arrival.active, problem, advice));
        }
        let full = threads.next_multiple_of(LANES as u32);
        let count = arrival.count.unwrap_or(full);
        if count == 0 || !count.is_multiple_of(LANES as u32) || count > full {
            let problem = format!("a barrier of {count} threads in a block of {threads}");
            let advice = "give a multiple of 32 that is no larger than the block";
            return Err(self.warp_fault(Kind::Barrier, at, arrival.active, problem, advice));
        }
        let who = self.actor(at, arrival.active.trailing_zeros() as usize);
        if let (None, Some(gone)) = (arrival.count, self.gone) {
            return Err(self.abandoned(who, gone));
        }
        let waiting = self.barriers.entry(arrival.id).or_default();
        match waiting.first {
            None => {
                (waiting.first, waiting.count) = (Some(who), count);
                waiting.for_all = arrival.count.is_none();
            }
            Some(first) if waiting.count != count => {
                let problem = format!(
                    "barrier {} for {count} threads, at which others wait for {}",
                    arrival.id, waiting.count
                );
                let advice = "let all who meet at a barrier give the same number of threads";
                let other =
                    self.launch.launched.party(first, first.warp * LANES + first.lane, first.line, "awaits");
                let fault = self.launch.launched.fault(Kind::Barrier, who, problem, advice);
                return Err(self.launch.launched.with_party(fault, other));
            }
            Some(_) => {}
        }
        if arrival.arrive_only {
            waiting.arrived.push(self.order.arrive(warp));
            waiting.passed.push(warp);
        }
        Ok(())
    }

    fn barrier_complete(&mut self, id: u32, threads: &[u32]) -> Result<()> {
        if !self.launch.checks {
            return Ok(());
        }
        self.mail.settle();
        let waiting = self.barriers.remove(&id).unwrap_or_default();
        let came = |warp: &usize| threads[*warp] != 0 && !waiting.passed.contains(warp);
        let met: Vec<usize> = (0..threads.len()).filter(came).collect();
        self.order.sync_warps(&met, &waiting.arrived);
        if met.len() == self.order.warps() {
            self.shared.block_barrier();
        }
        Ok(())
    }

    fn copy_commit(&mut self, active: u32, at: Place) -> Result<()> {
        self.copies.commit(at.warp as usize, active);
        Ok(())
    }

    fn copy_wait(&mut self, active: u32, pending: Option<u32>, at: Place) -> Result<()> {
        if !self.launch.checks {
            return Ok(());
        }
        self.mail.settle();
        let warp = at.warp as usize;
        // What arrives now is a write of this moment: a synchronisation before it does not cover it.
        self.order.advance(warp);
        let clock = self.order.access(warp);
        let BlockCheck { order, mail, shared, copies, .. } = self;
        let mut now = Now { order, mail, block: self.index, warp, lane: 0, readers: 0, clock, line: at.line };
        copies.wait(warp, active, pending, |copy| {
            for lane in lanes_of(copy.lanes) {
                now.lane = lane;
                shared.arrive(&now, copy.addresses[lane], copy.bytes[lane]);
            }
        });
        Ok(())
    }

    fn fence(&mut self, active: u32, scope: Scope, at: Place) -> Result<()> {
        if self.launch.checks {
            self.mail.settle();
            let warp = at.warp as usize;
            lanes_of(active).for_each(|lane| self.mail.fence(&mut self.order, warp, lane, scope));
            self.order.advance(warp);
        }
        Ok(())
    }

    fn proxy_fence(&mut self, active: u32, at: Place) -> Result<()> {
        if self.launch.checks {
            self.publish_to_products(active, at);
        }
        Ok(())
    }

    fn product_read(&mut self, chunks: &[u32], at: Place) -> Result<()> {
        if self.launch.checks { self.begin_product(chunks, at) } else { Ok(()) }
    }

    fn product_commit(&mut self, at: Place) -> Result<()> {
        self.products.commit(at.warp as usize);
        Ok(())
    }

    fn product_wait(&mut self, pending: u32, at: Place) -> Result<()> {
        if self.launch.checks {
            self.end_products(pending, at);
        }
        Ok(())
    }

    fn exit(&mut self, active: u32, at: Place) -> Result<()> {
        let who = self.actor(at, (active.trailing_zeros() as usize).min(LANES - 1));
        let abandoned =
            self.barriers.values().filter(|waiting| waiting.for_all).find_map(|waiting| waiting.first);
        match abandoned {
            Some(waits) if self.launch.checks => Err(self.abandoned(waits, who)),
            _ => {
                self.gone = self.gone.or(Some(who));
                Ok(())
            }
        }
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.launch.shared_grain.fetch_min(self.shared.grain(), Relaxed);
        self.launch.traffic.lock().unwrap_or_else(PoisonError::into_inner).add(&self.traffic);
        Ok(())
    }
}
