//! Order between streams: operations of different streams that touch the same bytes, one of them writing, must be ordered
//! by an event or by the host. The order that they happened to run in says nothing: a missing event is found under each.
//!
//! Every operation is told with its place ([`Stamp`]): of each stream, the newest operation that it comes behind. So of
//! what a stream did to a byte only its last write and its last read count: who comes behind these comes behind all before
//! them. Both are kept for every byte, as runs, until all that is still to run elsewhere comes behind them. Nothing is
//! forgotten sooner, and of kernels the bytes count that they did touch: no fault is missed among what ran, and none is
//! invented.
//!
//! A block's allocation and its release count as writes of all its bytes; the next allocation of the same block must come
//! behind what its release came behind. The host's deeds between operations are in order with whatever it asks for later.

use super::runs::{By, Runs};
use crate::sim::access::{Clock, Deed, MemoryEvent, Operation, Range, STREAMS, Stamp};
use crate::sim::fault::{Fault, Kind, Result};
use crate::sim::memory::describe;
use crate::sim::traffic::TrafficMeter;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What one stream did to an allocation.
#[derive(Debug, Default)]
struct Touched {
    /// The newest operation of the stream here.
    newest: u64,
    read: Runs,
    written: Runs,
}

#[derive(Debug)]
struct Allocation {
    range: Range,
    streams: [Touched; STREAMS],
}

/// A block that was released, until it is allocated again.
#[derive(Clone, Copy, Debug)]
struct Released {
    by: Operation,
    behind: Clock,
}

#[derive(Debug, Default)]
struct History {
    now: Option<Operation>,
    allocations: BTreeMap<u64, Allocation>,
    released: HashMap<u64, Released>,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Streams(Mutex<History>);

impl Streams {
    fn history(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What follows is this operation's, or the host's.
    pub fn begin(&self, operation: Option<Operation>) {
        self.history().now = operation;
    }

    /// Something happens to memory.
    ///
    /// # Errors
    /// An operation of another stream touched the same bytes, and nothing orders the two.
    pub fn memory(&self, event: MemoryEvent) -> Result<()> {
        let mut history = self.history();
        match event {
            MemoryEvent::Allocated(range) => history.allocated(range),
            MemoryEvent::Freed { base, bytes } => history.freed(base, bytes),
            MemoryEvent::Written { address, bytes } => history.touch(address, bytes, true),
            MemoryEvent::Read { address, bytes } => history.touch(address, bytes, false),
            MemoryEvent::Copied { from, to, bytes } => {
                history.touch(from, bytes, false)?;
                history.touch(to, bytes, true)
            }
        }
    }

    /// The current operation was a kernel that touched these bytes.
    ///
    /// # Errors
    /// As of [`Streams::memory`].
    pub fn launched(&self, meter: &TrafficMeter) -> Result<()> {
        let mut history = self.history();
        let Some(now) = history.now else { return Ok(()) };
        let mut outcome = Ok(());
        meter.each_range(|base, written, mut runs| {
            let allocation = history.allocations.get_mut(&base).filter(|_| outcome.is_ok());
            if let Some(allocation) = allocation {
                allocation.settle(&now.stamp);
                outcome = runs.try_for_each(|(from, to)| allocation.touch(now, from, to, written));
            }
        });
        outcome
    }
}

impl History {
    fn allocated(&mut self, range: Range) -> Result<()> {
        let mut allocation = Allocation { range, streams: Default::default() };
        let released = self.released.remove(&range.base);
        // A file's variables get their memory and their first values when it is loaded, which the host waits for.
        let Some(now) = self.now.filter(|_| !range.variable) else {
            self.allocations.insert(range.base, allocation);
            return Ok(());
        };
        let open = |of: &Released| (0..STREAMS).find(|&at| of.behind[at] > now.stamp.behind[at]);
        if let Some((released, stream)) = released.and_then(|released| Some((released, open(&released)?))) {
            return Err(Fault::new(
                Kind::StreamRace,
                format!(
                    "a block is allocated again on the {} stream, and nothing orders that behind operation {} of the {} \
                     stream, which used the block before ({} waited for it)",
                    name(now.stamp.stream),
                    released.behind[stream],
                    name(Some(stream)),
                    released.by.deed
                ),
                format!(
                    "let the {} stream wait for an event of the {} stream behind the block's last use",
                    name(now.stamp.stream),
                    name(Some(stream))
                ),
            )
            .at_address(range.base)
            .near(describe(&range)));
        }
        let outcome = allocation.touch(now, 0, range.bytes, true);
        self.allocations.insert(range.base, allocation);
        outcome
    }

    fn freed(&mut self, base: u64, bytes: u64) -> Result<()> {
        let Some(mut allocation) = self.allocations.remove(&base) else { return Ok(()) };
        let Some(now) = self.now else { return Ok(()) };
        allocation.touch(now, 0, bytes, true)?;
        // Memory ends as such when the first block is cut from it; nobody gave it back.
        if now.deed == Deed::Take {
            return Ok(());
        }
        let mut behind = now.stamp.behind;
        if let Some(stream) = now.stamp.stream {
            behind[stream] = now.stamp.number;
        }
        // What all that is to come is behind need not be asked about.
        if (0..STREAMS).any(|at| behind[at] > now.stamp.settled[at]) {
            self.released.insert(base, Released { by: now, behind });
        }
        Ok(())
    }

    fn touch(&mut self, address: u64, bytes: u64, written: bool) -> Result<()> {
        let Some(now) = self.now else { return Ok(()) };
        let found = self.allocations.range_mut(..=address).next_back().map(|(_, allocation)| allocation);
        let Some(allocation) = found.filter(|one| address - one.range.base < one.range.bytes) else {
            return Ok(());
        };
        if allocation.range.variable {
            return Ok(());
        }
        allocation.settle(&now.stamp);
        let from = address - allocation.range.base;
        allocation.touch(now, from, from + bytes, written)
    }
}

impl Allocation {
    /// Drops what all that is still to run elsewhere comes behind.
    fn settle(&mut self, stamp: &Stamp) {
        for (touched, settled) in self.streams.iter_mut().zip(stamp.settled) {
            if touched.newest > 0 && touched.newest <= settled {
                touched.read.clear();
                touched.written.clear();
                touched.newest = 0;
            }
        }
    }

    /// An operation touches bytes `from..to`.
    fn touch(&mut self, now: Operation, from: u64, to: u64, written: bool) -> Result<()> {
        for (stream, touched) in self.streams.iter().enumerate() {
            let behind = now.stamp.behind[stream];
            if now.stamp.stream == Some(stream) || touched.newest <= behind {
                continue;
            }
            let wrote = touched.written.later(from, to, behind).map(|found| (found, true));
            let found = wrote.or_else(|| {
                let read = if written { touched.read.later(from, to, behind) } else { None };
                read.map(|found| (found, false))
            });
            if let Some(((from, to, other), wrote)) = found {
                return Err(self.fault(now, written, stream, other, wrote, from..to));
            }
        }
        if let Some(stream) = now.stamp.stream {
            let touched = &mut self.streams[stream];
            touched.newest = now.stamp.number;
            let runs = if written { &mut touched.written } else { &mut touched.read };
            runs.put(from, to, By::from(now));
        }
        Ok(())
    }

    fn fault(
        &self,
        now: Operation,
        writes: bool,
        stream: usize,
        other: By,
        wrote: bool,
        bytes: std::ops::Range<u64>,
    ) -> Fault {
        let told = |deed: Deed, number, stream: Option<usize>| match stream {
            Some(_) => format!("{deed} (operation {number} of the {} stream)", name(stream)),
            None => deed.to_string(),
        };
        let verb = |writes| if writes { "writes" } else { "reads" };
        // Whichever ran first, the one that the host asked for first is named first.
        let mine = (told(now.deed, now.stamp.number, now.stamp.stream), writes, now.stamp.stream, now.deed);
        let theirs = (told(other.deed, other.number, Some(stream)), wrote, Some(stream), other.deed);
        let (first, second) = if now.stamp.asked < other.asked { (mine, theirs) } else { (theirs, mine) };
        let base = self.range.base;
        Fault::new(
            Kind::StreamRace,
            format!(
                "{} {} and {} {} bytes {} to {} of the {}, and no event orders the two",
                first.0,
                verb(first.1),
                second.0,
                verb(second.1),
                bytes.start,
                bytes.end - 1,
                describe(&self.range)
            ),
            format!(
                "record an event on the {} stream behind {}, and let the {} stream wait for it before {}",
                name(first.2),
                first.3,
                name(second.2),
                second.3
            ),
        )
        .at_address(base + bytes.start)
    }
}

/// A stream in words.
fn name(stream: Option<usize>) -> &'static str {
    match stream {
        Some(0) => "compute",
        Some(_) => "copy",
        // A release waits for points of both streams; the block's next owner is on this one.
        None => "compute",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(deed: Deed, stream: usize, number: u64, behind: Clock) -> Operation {
        let asked = 10 * number + stream as u64;
        Operation {
            deed,
            stamp: Stamp { stream: Some(stream), number, asked, behind, settled: [0; STREAMS] },
        }
    }

    fn device() -> Streams {
        let streams = Streams::default();
        streams.memory(MemoryEvent::Allocated(RANGE)).unwrap();
        streams
    }

    const RANGE: Range = Range { base: 0x1000, bytes: 256, variable: false };

    fn act(streams: &Streams, operation: Operation, event: MemoryEvent) -> Result<()> {
        streams.begin(Some(operation));
        let outcome = streams.memory(event);
        streams.begin(None);
        outcome
    }

    const WRITES: MemoryEvent = MemoryEvent::Written { address: 0x1000, bytes: 64 };

    fn reads(address: u64) -> MemoryEvent {
        MemoryEvent::Read { address, bytes: 8 }
    }

    fn writes(address: u64) -> MemoryEvent {
        MemoryEvent::Written { address, bytes: 8 }
    }

    #[test]
    fn bytes_that_two_streams_share_need_an_order_where_one_writes() {
        let found = |first, behind, second| {
            let streams = device();
            act(&streams, operation(Deed::Clear, 0, 1, [0, 0]), first).unwrap();
            act(&streams, operation(Deed::Download, 1, 1, behind), second)
        };
        for (first, second) in
            [(WRITES, reads(0x1038)), (WRITES, writes(0x1038)), (reads(0x1038), writes(0x1038))]
        {
            let fault = found(first, [0, 0], second).expect_err("nothing orders them");
            assert_eq!((fault.kind, fault.site.address), (Kind::StreamRace, Some(0x1038)));
            assert!(found(first, [1, 0], second).is_ok(), "an event");
        }
        assert!(found(WRITES, [0, 0], reads(0x1040)).is_ok(), "other bytes");
        assert!(found(reads(0x1000), [0, 0], reads(0x1000)).is_ok(), "nobody writes");
    }

    #[test]
    fn a_fault_says_who_where_and_what_to_do() {
        let streams = device();
        act(&streams, operation(Deed::Download, 1, 1, [0, 0]), reads(0x1038)).unwrap();
        let fault = act(&streams, operation(Deed::Kernel("axpy"), 0, 1, [0, 0]), WRITES).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "kernel `axpy` (operation 1 of the compute stream) writes and a download (operation 1 of the copy stream) reads \
             bytes 56 to 63 of the allocation of 256 bytes at 0x1000, and no event orders the two; address 0x1038\n       \
             record an event on the compute stream behind kernel `axpy`, and let the copy stream wait for it before a \
             download"
        );
    }

    /// Later deeds of a stream hide earlier ones of other bytes as little as reads hide writes.
    #[test]
    fn every_byte_remembers_its_last_read_and_its_last_write() {
        let found = |behind, second| {
            let streams = device();
            act(&streams, operation(Deed::Clear, 0, 1, [0, 0]), WRITES).unwrap();
            act(&streams, operation(Deed::Clear, 0, 2, [1, 0]), writes(0x1008)).unwrap();
            act(&streams, operation(Deed::Copy, 0, 3, [2, 0]), reads(0x1000)).unwrap();
            act(&streams, operation(Deed::Download, 1, 1, behind), second).is_err()
        };
        assert_eq!([0, 1].map(|seen| found([seen, 0], reads(0x1010))), [true, false]);
        assert_eq!([1, 2].map(|seen| found([seen, 0], reads(0x1008))), [true, false]);
        assert_eq!([0, 1].map(|seen| found([seen, 0], reads(0x1000))), [true, false]);
        assert_eq!([2, 3].map(|seen| found([seen, 0], writes(0x1000))), [true, false]);
    }

    #[test]
    fn what_is_settled_is_dropped_and_nothing_else() {
        let streams = device();
        act(&streams, operation(Deed::Clear, 0, 1, [0, 0]), WRITES).unwrap();
        let mut second = operation(Deed::Clear, 0, 2, [1, 0]);
        second.stamp.settled = [1, 0];
        act(&streams, second, writes(0x1080)).unwrap();
        let kept = |streams: &Streams| {
            let history = streams.history();
            let written = &history.allocations[&0x1000].streams[0].written;
            (written.later(0, 64, 0).is_some(), written.later(0x80, 0x88, 0).is_some())
        };
        assert_eq!(kept(&streams), (false, true));
        // It comes behind the first as whatever is settled, and not behind the second.
        assert!(act(&streams, operation(Deed::Download, 1, 1, [1, 0]), reads(0x1080)).is_err());
    }

    #[test]
    fn blocks_change_owners_in_order() {
        let take = |number, behind| (operation(Deed::Take, 0, number, behind), MemoryEvent::Allocated(RANGE));
        let freed = MemoryEvent::Freed { base: RANGE.base, bytes: RANGE.bytes };
        // The copy stream's use comes behind the allocation.
        for (behind, fine) in [([1, 0], true), ([0, 0], false)] {
            let streams = Streams::default();
            let (taken, event) = take(1, [0, 0]);
            act(&streams, taken, event).unwrap();
            let used = act(&streams, operation(Deed::Upload, 1, 1, behind), writes(0x1000));
            assert_eq!(used.is_ok(), fine);
        }
        // The release comes behind that use, and the next allocation behind both.
        for (released_behind, taken_behind, fine) in
            [([1, 1], [2, 1], [true, true]), ([1, 0], [2, 1], [false, true]), ([1, 1], [2, 0], [true, false])]
        {
            let streams = Streams::default();
            let (taken, event) = take(1, [0, 0]);
            act(&streams, taken, event).unwrap();
            act(&streams, operation(Deed::Upload, 1, 1, [1, 0]), writes(0x1000)).unwrap();
            let mut release = operation(Deed::GiveBack, 0, 2, released_behind);
            release.stamp.stream = None;
            assert_eq!(act(&streams, release, freed).is_ok(), fine[0]);
            if fine[0] {
                let (taken, event) = take(3, taken_behind);
                let again = act(&streams, taken, event);
                assert_eq!(again.is_ok(), fine[1], "{again:?}");
            }
        }
        // Whoever is there before the first block is cut from fresh memory is not behind the block's allocation either.
        for (behind, fine) in [([0, 1], true), ([0, 0], false)] {
            let streams = device();
            act(&streams, operation(Deed::Upload, 1, 1, [0, 0]), writes(0x1000)).unwrap();
            assert_eq!(act(&streams, operation(Deed::Take, 0, 1, behind), freed).is_ok(), fine);
        }
        // The host's own deeds need no order.
        let streams = device();
        act(&streams, operation(Deed::Clear, 0, 1, [0, 0]), WRITES).unwrap();
        streams.memory(freed).unwrap();
        streams.memory(MemoryEvent::Allocated(RANGE)).unwrap();
        act(&streams, operation(Deed::Upload, 1, 1, [0, 0]), WRITES).unwrap();
    }
}
