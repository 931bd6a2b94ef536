//! Which addresses of the device are alive, and what they hold.
//!
//! Addresses grow and are never used twice for different allocations, with a gap of at least [`GAP`] bytes between
//! them, so an access past an end or after a free meets nothing. A pool above may carve pieces out of one allocation:
//! then only the pieces are alive, and what lies between them is out of bounds.

use super::access::Range;
use super::fault::{Fault, Kind, Result};
use super::region::Region;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes between two allocations.
pub(super) const GAP: u64 = 1 << 20;
/// Address of the first allocation.
pub(super) const FIRST: u64 = 0x7f00_0000_0000;
/// Every address is a multiple of this.
const ALIGNMENT: u64 = 256;
/// How many dead ranges are remembered to name them.
const REMEMBERED: usize = 4096;

/// A live range with the bytes behind it.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub range: Range,
    pub region: Arc<Region>,
}

impl Live {
    /// Whether `bytes` bytes at `address` lie within.
    #[inline(always)]
    pub fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.range.base
            && bytes <= self.range.bytes
            && address - self.range.base <= self.range.bytes - bytes
    }
}

/// All live ranges, ascending.
pub(super) type Snapshot = Arc<[Live]>;

/// The memory of a machine.
#[derive(Debug)]
pub(super) struct Memory {
    capacity: u64,
    used: u64,
    next: u64,
    regions: BTreeMap<u64, Arc<Region>>,
    live: BTreeMap<u64, Live>,
    dead: std::collections::VecDeque<Range>,
    snapshot: Option<Snapshot>,
}

impl Memory {
    pub fn new(capacity: u64) -> Memory {
        Memory {
            capacity,
            used: 0,
            next: FIRST,
            regions: BTreeMap::new(),
            live: BTreeMap::new(),
            dead: Default::default(),
            snapshot: None,
        }
    }

    /// Bytes allocated now, pieces not counted twice.
    pub fn used(&self) -> u64 {
        self.used
    }

    pub fn allocate(&mut self, bytes: u64, variable: bool) -> Result<Range> {
        if bytes == 0 {
            return Err(Fault::new(Kind::Memory, "an allocation of 0 bytes", "allocate at least one byte"));
        }
        let left = self.capacity - self.used;
        if bytes > left {
            return Err(Fault::new(
                Kind::Memory,
                format!(
                    "out of memory: {bytes} bytes asked for, {left} of the simulated device's {} bytes are free",
                    self.capacity
                ),
                "free memory, make the work smaller, or give the simulated device more memory",
            ));
        }
        let base = self.next;
        self.next = (base + bytes + GAP).next_multiple_of(ALIGNMENT);
        let Some(region) = Region::new(base, bytes).map(Arc::new) else {
            return Err(Fault::new(
                Kind::Memory,
                format!("the host has no room for an allocation of {bytes} bytes"),
                "free memory, or make the work smaller",
            ));
        };
        self.used += bytes;
        let range = Range { base, bytes, variable };
        self.regions.insert(base, region.clone());
        self.live.insert(base, Live { range, region });
        self.snapshot = None;
        Ok(range)
    }

    /// Ends an allocation with all its pieces; returns the ranges that died.
    pub fn free(&mut self, base: u64) -> Result<Vec<Range>> {
        let Some(region) = self.regions.remove(&base) else {
            return Err(self.not_alive(base, "freed", "an allocation"));
        };
        self.used -= region.bytes;
        let pieces: Vec<u64> = self.live.range(base..base + region.bytes).map(|(&base, _)| base).collect();
        Ok(pieces.into_iter().filter_map(|piece| self.kill(piece)).collect())
    }

    /// Makes a piece of an allocation alive by itself; returns the allocation's own range if it ends by that.
    pub fn carve(&mut self, address: u64, bytes: u64) -> Result<(Option<Range>, Range)> {
        let region = self.regions.range(..=address).next_back().map(|(_, region)| region.clone());
        let Some(region) =
            region.filter(|r| bytes > 0 && (address - r.base).saturating_add(bytes) <= r.bytes)
        else {
            return Err(Fault::new(
                Kind::Memory,
                format!("a piece of {bytes} bytes at {address:#x} lies in no allocation"),
                "carve pieces of at least one byte out of one allocation",
            ));
        };
        let mut ended = None;
        if let Some(whole) = self.live.get(&region.base)
            && whole.range.bytes == region.bytes
        {
            // It is not remembered as dead: what no piece covers lies outside, it was not freed.
            ended = self.live.remove(&region.base).map(|live| live.range);
        }
        let before = self.live.range(..address + bytes).next_back().map(|(_, live)| live.range);
        if let Some(other) = before.filter(|r| r.base + r.bytes > address) {
            return Err(Fault::new(
                Kind::Memory,
                format!("a piece of {bytes} bytes at {address:#x} overlaps {}", describe(&other)),
                "release the other piece first",
            ));
        }
        let range = Range { base: address, bytes, variable: false };
        self.live.insert(address, Live { range, region });
        self.snapshot = None;
        Ok((ended, range))
    }

    /// Ends a piece.
    pub fn release(&mut self, address: u64) -> Result<Range> {
        match self.kill(address) {
            Some(range) => Ok(range),
            None => Err(self.not_alive(address, "released", "a piece")),
        }
    }

    fn kill(&mut self, base: u64) -> Option<Range> {
        let live = self.live.remove(&base)?;
        self.snapshot = None;
        self.dead.push_back(live.range);
        if self.dead.len() > REMEMBERED {
            self.dead.pop_front();
        }
        Some(live.range)
    }

    fn not_alive(&self, address: u64, verb: &str, what: &str) -> Fault {
        let before = self.dead.iter().rev().find(|range| range.base == address);
        let reason = if before.is_some() { ": it was before" } else { "" };
        Fault::new(
            Kind::Memory,
            format!("{what} at {address:#x} cannot be {verb}{reason}"),
            "give back each address once, exactly as it was handed out",
        )
    }

    /// The live range that holds `bytes` bytes at `address`.
    pub fn find(&self, address: u64, bytes: u64) -> Result<&Live> {
        let candidate = self.live.range(..=address).next_back().map(|(_, live)| live);
        match candidate.filter(|live| live.holds(address, bytes)) {
            Some(live) => Ok(live),
            None => Err(self.missing(address, bytes)),
        }
    }

    /// The fault of an access that meets no live range.
    pub fn missing(&self, address: u64, bytes: u64) -> Fault {
        let below = self.live.range(..=address).next_back().map(|(_, live)| live.range);
        let above = self.live.range(address..).next().map(|(_, live)| live.range);
        let dead = self.dead.iter().rev().find(|r| address >= r.base && address < r.base + r.bytes).copied();
        if below.is_none_or(|r| address >= r.base + r.bytes)
            && let Some(dead) = dead
        {
            return Fault::new(
                Kind::UseAfterFree,
                format!("{bytes} bytes of memory that was given back"),
                "keep the allocation alive until the last kernel that uses it has run",
            )
            .at_address(address)
            .near(format!("in the dead {}", describe(&dead)));
        }
        out_of_bounds(address, bytes, below, above)
    }

    /// All live ranges.
    pub fn snapshot(&mut self) -> Snapshot {
        let live = &self.live;
        self.snapshot.get_or_insert_with(|| live.values().cloned().collect()).clone()
    }
}

/// The fault of an access outside the live ranges around it.
fn out_of_bounds(address: u64, bytes: u64, below: Option<Range>, above: Option<Range>) -> Fault {
    let past = below.map(|r| (address.saturating_add(bytes).saturating_sub(r.base + r.bytes), r));
    let ahead = above.map(|r| (r.base - address, r));
    let nearest = match (past, ahead) {
        (Some((past, r)), ahead) if ahead.is_none_or(|(gap, _)| past <= gap) => {
            format!("its last byte is {past} bytes past the end of the {}", describe(&r))
        }
        (_, Some((gap, r))) => format!("{gap} bytes before the {}", describe(&r)),
        _ => "nothing is allocated".to_string(),
    };
    Fault::new(
        Kind::OutOfBounds,
        format!("{bytes} bytes outside every live allocation"),
        "check the index against the sizes the kernel was given",
    )
    .at_address(address)
    .near(nearest)
}

/// A range in words.
pub(super) fn describe(range: &Range) -> String {
    let what = if range.variable { "variable" } else { "allocation" };
    format!("{what} of {} bytes at {:#x}", range.bytes, range.base)
}
