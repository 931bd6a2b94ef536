//! The checker: an [`Observer`] that knows which bytes were written, who touched them, and what orders whom.
//!
//! ```text
//! order     clocks of a block's threads: barriers, *.sync, their masks
//! publish   order through memory: fence, atomic, look at its result
//! now       a thread at one moment, and what it can clash with
//! shared    shadow of a block's shared memory          global    shadow of device memory in one launch
//! written   which bytes of device memory were written  copies    cp.async under way
//! products  operands of wgmma, and proxy fences        report    faults in words
//! streams   order between operations of streams        runs      who touched which bytes last
//! block     one block's observer
//! ```
//!
//! It finds uninitialised reads of global and shared memory, races in both, reads and writes that meet a copy under
//! way or a product of a warpgroup, masks that do not name the lanes that come, barriers that some threads do not reach,
//! operations of different streams that no event orders, and leaks. Bounds, alignment and memory that was given back are
//! the machine's own checks, and deadlock is its scheduler's.
//!
//! It does not look at local memory (one thread's own), and not at registers.

mod block;
mod copies;
mod global;
mod now;
mod order;
mod products;
mod publish;
mod report;
mod runs;
mod shared;
mod streams;
#[cfg(test)]
mod tests;
mod written;

use super::access::{BlockObserver, LaunchInfo, LaunchObserver, MemoryEvent, Observer, Operation, Range};
use super::counters::Counters;
use super::fault::{Fault, Kind, Result};
use super::memory::describe;
use super::traffic::{Traffic, TrafficMeter};
use block::BlockCheck;
use global::GlobalShadow;
use publish::Board;
use report::Launched;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use streams::Streams;
use written::{Ledger, Written};

/// Looks at every access of a machine; see the module.
#[derive(Debug)]
pub struct Checker {
    ledger: Arc<Ledger>,
    streams: Arc<Streams>,
    checks: bool,
}

impl Default for Checker {
    fn default() -> Self {
        Checker::new()
    }
}

impl Checker {
    /// Checks everything and counts memory traffic.
    pub fn new() -> Checker {
        Checker { ledger: Arc::default(), streams: Arc::default(), checks: true }
    }

    /// Counts memory traffic and checks nothing.
    pub fn only_counters() -> Checker {
        Checker { checks: false, ..Checker::new() }
    }

    /// Faults of what is alive now and ought not to be, when everything was given back.
    pub fn leaks(&self) -> Vec<Fault> {
        let leak = |range: &Range| {
            Fault::new(
                Kind::Leak,
                format!("the {} was never given back", describe(range)),
                "free it, or drop the tensor that owns it, before the device is dropped",
            )
            .at_address(range.base)
        };
        self.ledger.alive().iter().map(leak).collect()
    }
}

impl Observer for Checker {
    fn operation(&self, operation: Option<Operation>) {
        if self.checks {
            self.streams.begin(operation);
        }
    }

    fn memory(&self, event: MemoryEvent) -> Result<()> {
        if self.checks {
            self.streams.memory(event)?;
        }
        match self.ledger.note(event) {
            Some(address) if self.checks => Err(Fault::new(
                Kind::Uninitialised,
                "the host reads device memory that nobody wrote",
                "write the memory first, or copy only what was written",
            )
            .at_address(address)),
            _ => Ok(()),
        }
    }

    fn launch(&self, info: &LaunchInfo<'_>) -> Option<Box<dyn LaunchObserver>> {
        let launched = Launched::new(info);
        let shadow = GlobalShadow::new(&launched.ranges, launched.blocks(), launched.threads());
        Some(Box::new(LaunchCheck(Arc::new(Launch {
            written: info.ranges.iter().map(|_| OnceLock::new()).collect(),
            ledger: self.ledger.clone(),
            shadow,
            board: Board::default(),
            shared_grain: AtomicU32::new(16),
            streams: self.checks.then(|| self.streams.clone()),
            checks: self.checks,
            meter: TrafficMeter::new(info.ranges),
            traffic: Mutex::default(),
            launched,
        }))))
    }
}

/// What the blocks of one launch share.
#[derive(Debug)]
struct Launch {
    launched: Launched,
    /// What is written of each range, looked up when the launch first touches it: most launches touch few of many.
    written: Box<[OnceLock<Arc<Written>>]>,
    ledger: Arc<Ledger>,
    shadow: GlobalShadow,
    board: Board,
    /// The narrowest cell of shared memory that a block needed so far; later blocks start with it.
    shared_grain: AtomicU32,
    /// Where order between streams is looked at.
    streams: Option<Arc<Streams>>,
    checks: bool,
    meter: TrafficMeter,
    traffic: Mutex<Traffic>,
}

impl Launch {
    /// What is written of a range.
    fn written(&self, range: usize) -> &Written {
        self.written[range].get_or_init(|| self.ledger.of(&self.launched.ranges[range]))
    }
}

struct LaunchCheck(Arc<Launch>);

impl LaunchObserver for LaunchCheck {
    fn block(&self, block: [u32; 3]) -> Box<dyn BlockObserver> {
        let grain = self.0.shared_grain.load(Relaxed);
        Box::new(BlockCheck::new(self.0.clone(), block, grain))
    }

    fn finish(self: Box<Self>, counters: &mut Counters) -> Result<()> {
        let mut traffic = self.0.traffic.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.0.meter.finish(&mut traffic);
        counters.traffic.add(&traffic);
        self.0.streams.as_ref().map_or(Ok(()), |streams| streams.launched(&self.0.meter))
    }
}
