//! What memory instructions cost a GPU: sectors of device memory, bank conflicts of shared memory, bytes touched.
//!
//! * **Sectors.** Device memory moves in sectors of 32 bytes. One instruction of one warp is a request; it asks for
//!   every sector that any of its lanes touches. Its ideal is the bytes it needs, each counted once, over 32, rounded
//!   up. Sectors over ideal is 1 for lanes side by side on an aligned row.
//! * **Banks.** Shared memory has 32 banks of 4 bytes. A phase serves at most 128 bytes: all lanes at 4 bytes each,
//!   half of them at 8, a quarter at 16; an `ldmatrix` has a phase for every 8 rows. A phase takes as many accesses as
//!   the largest number of different words in one bank; lanes that want the same word share it. Accesses over phases
//!   is 1 without conflicts.
//! * **Bytes touched.** Each byte counts once however often the launch reads it, and once if it writes it: what an
//!   ideal kernel would move.
//!
//! The file is long because its own tests, with a known answer for each rule, stand at its end.

use super::access::{Action, LANES, Range, Space, WarpAccess};
use super::reach::Shape;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of a sector.
pub const SECTOR: u64 = 32;
/// Banks of shared memory, of 4 bytes each.
pub const BANKS: usize = 32;

/// Requests to device memory of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Instructions of warps.
    pub requests: u64,
    /// Sectors they asked for.
    pub sectors: u64,
    /// Sectors that the bytes they need fill.
    pub ideal: u64,
}

/// Requests to shared memory of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Instructions of warps.
    pub requests: u64,
    /// Phases they split into.
    pub phases: u64,
    /// Accesses that the phases took: as many as phases where no bank conflicts.
    pub accesses: u64,
}

/// Memory traffic of a launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Loads of device memory, the sources of `cp.async` included.
    pub loads: Requests,
    /// Stores to device memory.
    pub stores: Requests,
    /// Atomics on device memory.
    pub atomics: Requests,
    /// Loads of shared memory, `ldmatrix` included.
    pub shared_loads: Phases,
    /// Stores to shared memory, the targets of `cp.async` included.
    pub shared_stores: Phases,
    /// Atomics on shared memory.
    pub shared_atomics: Phases,
    /// Bytes of device memory that were read, each once.
    pub unique_read_bytes: u64,
    /// Bytes of device memory that were written, each once.
    pub unique_written_bytes: u64,
    /// Sectors that hold a byte that was read: what leaves memory where a cache keeps them for the rest of the launch.
    pub unique_read_sectors: u64,
    /// Sectors that hold a byte that was written.
    pub unique_written_sectors: u64,
}

impl Requests {
    /// Sectors over ideal; 1 for no request.
    pub fn ratio(&self) -> f64 {
        ratio(self.sectors, self.ideal)
    }

    /// Bytes of the sectors.
    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR
    }

    fn add(&mut self, other: &Requests) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.ideal += other.ideal;
    }
}

impl Phases {
    /// Accesses over phases; 1 for no request.
    pub fn ratio(&self) -> f64 {
        ratio(self.accesses, self.phases)
    }

    fn add(&mut self, other: &Phases) {
        self.requests += other.requests;
        self.phases += other.phases;
        self.accesses += other.accesses;
    }
}

fn ratio(found: u64, best: u64) -> f64 {
    if best == 0 { 1.0 } else { found as f64 / best as f64 }
}

impl Traffic {
    /// Loads, stores and atomics of device memory together.
    pub fn global(&self) -> Requests {
        let mut all = self.loads;
        all.add(&self.stores);
        all.add(&self.atomics);
        all
    }

    /// Loads, stores and atomics of shared memory together.
    pub fn shared(&self) -> Phases {
        let mut all = self.shared_loads;
        all.add(&self.shared_stores);
        all.add(&self.shared_atomics);
        all
    }

    /// Adds the traffic of another part of the same launch, or of another launch.
    pub fn add(&mut self, other: &Traffic) {
        self.loads.add(&other.loads);
        self.stores.add(&other.stores);
        self.atomics.add(&other.atomics);
        self.shared_loads.add(&other.shared_loads);
        self.shared_stores.add(&other.shared_stores);
        self.shared_atomics.add(&other.shared_atomics);
        self.unique_read_bytes += other.unique_read_bytes;
        self.unique_written_bytes += other.unique_written_bytes;
        self.unique_read_sectors += other.unique_read_sectors;
        self.unique_written_sectors += other.unique_written_sectors;
    }

    /// Bytes that memory moves where a cache holds what a launch has touched until the launch ends: each sector that was
    /// read once, and each that was written once.
    pub fn moved_once(&self) -> u64 {
        (self.unique_read_sectors + self.unique_written_sectors) * SECTOR
    }

    /// Takes away what an earlier reading held.
    pub fn subtract(&mut self, earlier: &Traffic) {
        let mut before = Vec::new();
        earlier.clone().each(|count| before.push(*count));
        let mut before = before.into_iter();
        self.each(|count| *count -= before.next().unwrap_or(0));
    }

    /// Lends every count, in one order.
    pub(super) fn each(&mut self, mut lend: impl FnMut(&mut u64)) {
        for requests in [&mut self.loads, &mut self.stores, &mut self.atomics] {
            for count in [&mut requests.requests, &mut requests.sectors, &mut requests.ideal] {
                lend(count);
            }
        }
        for phases in [&mut self.shared_loads, &mut self.shared_stores, &mut self.shared_atomics] {
            for count in [&mut phases.requests, &mut phases.phases, &mut phases.accesses] {
                lend(count);
            }
        }
        lend(&mut self.unique_read_bytes);
        lend(&mut self.unique_written_bytes);
        lend(&mut self.unique_read_sectors);
        lend(&mut self.unique_written_sectors);
    }

    /// Counts one instruction.
    pub fn count(&mut self, access: &WarpAccess<'_>) {
        match access.space {
            Space::Global => {
                let (sectors, ideal) = sectors(access);
                let requests = match access.action {
                    Action::Read | Action::MatrixRead | Action::CopyRead => &mut self.loads,
                    Action::Write | Action::CopyWrite => &mut self.stores,
                    Action::Atomic => &mut self.atomics,
                };
                requests.add(&Requests { requests: 1, sectors, ideal });
            }
            Space::Shared => {
                let (phases, accesses) = banks(access);
                let requests = match access.action {
                    Action::Read | Action::MatrixRead | Action::CopyRead => &mut self.shared_loads,
                    Action::Write | Action::CopyWrite => &mut self.shared_stores,
                    Action::Atomic => &mut self.shared_atomics,
                };
                requests.add(&Phases { requests: 1, phases, accesses });
            }
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device memory    requests     sectors       ideal   ratio")?;
        for (name, of) in [("loads", &self.loads), ("stores", &self.stores), ("atomics", &self.atomics)] {
            if of.requests > 0 {
                let Requests { requests, sectors, ideal } = of;
                writeln!(f, "  {name:<12} {requests:>10} {sectors:>11} {ideal:>11} {:>7.3}", of.ratio())?;
            }
        }
        writeln!(f, "shared memory    requests      phases    accesses   ratio")?;
        for (name, of) in [
            ("loads", &self.shared_loads),
            ("stores", &self.shared_stores),
            ("atomics", &self.shared_atomics),
        ] {
            if of.requests > 0 {
                let Phases { requests, phases, accesses } = of;
                writeln!(f, "  {name:<12} {requests:>10} {phases:>11} {accesses:>11} {:>7.3}", of.ratio())?;
            }
        }
        let (read, written) = (self.unique_read_bytes, self.unique_written_bytes);
        write!(f, "bytes touched once: {read} read, {written} written")
    }
}

/// The active lanes' addresses in lane order, in the front of the array.
fn active(access: &WarpAccess<'_>) -> ([u64; LANES], usize) {
    if access.active == !0 {
        return (*access.addresses, LANES);
    }
    let (mut found, mut count) = ([0; LANES], 0);
    for lane in 0..LANES {
        if access.active >> lane & 1 != 0 {
            found[count] = access.addresses[lane];
            count += 1;
        }
    }
    (found, count)
}

/// How many different values there are.
fn distinct(values: &mut [u64]) -> u64 {
    if !values.is_sorted() {
        values.sort_unstable();
    }
    values.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64 + u64::from(!values.is_empty())
}

/// Sectors that an access asks for, and its ideal.
fn sectors(access: &WarpAccess<'_>) -> (u64, u64) {
    if access.read_bytes.is_none() {
        let (first, bytes) = (access.addresses[0], u64::from(access.bytes));
        match Shape::of(access.addresses, access.active, access.bytes) {
            Shape::Neighbours => {
                let last = first + LANES as u64 * bytes - 1;
                return (last / SECTOR - first / SECTOR + 1, (LANES as u64 * bytes).div_ceil(SECTOR));
            }
            Shape::Same => return (1, bytes.div_ceil(SECTOR)),
            Shape::Scattered => {}
        }
    }
    let (mut addresses, count) = active(access);
    let needed = match access.read_bytes {
        Some(read) => {
            // Sources of copies: those that read nothing ask for nothing.
            let mut kept = 0;
            let mut bytes = 0;
            for lane in (0..LANES).filter(|lane| access.active >> lane & 1 != 0) {
                if read[lane] > 0 {
                    addresses[kept] = access.addresses[lane];
                    bytes = bytes.max(read[lane]);
                    kept += 1;
                }
            }
            return count_sectors(&mut addresses[..kept], bytes.into());
        }
        None => u64::from(access.bytes),
    };
    count_sectors(&mut addresses[..count], needed)
}

fn count_sectors(addresses: &mut [u64], bytes: u64) -> (u64, u64) {
    let ideal = (distinct(addresses) * bytes).div_ceil(SECTOR);
    // An access of at most 32 bytes at a multiple of its size lies within one sector.
    addresses.iter_mut().for_each(|address| *address /= SECTOR);
    (distinct(addresses), ideal)
}

/// Phases that an access splits into, and the accesses that they take.
fn banks(access: &WarpAccess<'_>) -> (u64, u64) {
    let lanes_of_phase = match access.bytes {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    // 32 neighbours fill the banks of each phase once, and lanes that want one place share it.
    if Shape::of(access.addresses, access.active, access.bytes) != Shape::Scattered {
        let phases = (LANES / lanes_of_phase) as u64;
        return (phases, phases);
    }
    // An access at a multiple of its size fills a group of neighbouring banks, or lies within one.
    let unit = u64::from(access.bytes.max(4));
    let groups = 4 * BANKS as u64 / unit;
    let (mut phases, mut accesses) = (0, 0);
    for first in (0..LANES).step_by(lanes_of_phase) {
        let (mut units, mut count) = ([0u64; LANES], 0);
        for lane in first..first + lanes_of_phase {
            if access.active >> lane & 1 != 0 {
                units[count] = access.addresses[lane] / unit;
                count += 1;
            }
        }
        if count > 0 {
            phases += 1;
            accesses += worst_bank(&mut units[..count], groups);
        }
    }
    (phases, accesses)
}

/// The largest number of different units in one of the `groups` groups of banks, a power of two of them.
fn worst_bank(units: &mut [u64], groups: u64) -> u64 {
    let group_of = |unit: u64| (unit & (groups - 1)) as usize % BANKS;
    let (mut first, mut seen) = ([0u64; BANKS], 0u32);
    let clean = units.iter().all(|&unit| {
        let group = group_of(unit);
        let fresh = seen >> group & 1 == 0;
        if fresh {
            seen |= 1 << group;
            first[group] = unit;
        }
        fresh || first[group] == unit
    });
    if clean {
        return 1;
    }
    units.sort_unstable();
    let mut counts = [0u64; BANKS];
    for (i, &unit) in units.iter().enumerate() {
        if i == 0 || units[i - 1] != unit {
            counts[group_of(unit)] += 1;
        }
    }
    counts.into_iter().max().unwrap_or(0)
}

/// Which bytes of device memory a launch touched.
#[derive(Debug)]
pub struct TrafficMeter {
    ranges: Vec<Touched>,
}

#[derive(Debug)]
struct Touched {
    base: u64,
    bytes: u64,
    read: OnceLock<Box<[AtomicU64]>>,
    written: OnceLock<Box<[AtomicU64]>>,
}

impl TrafficMeter {
    /// A launch over these live ranges that has touched nothing.
    pub fn new(ranges: &[Range]) -> TrafficMeter {
        let touched = |range: &Range| Touched {
            base: range.base,
            bytes: range.bytes,
            read: OnceLock::new(),
            written: OnceLock::new(),
        };
        TrafficMeter { ranges: ranges.iter().map(touched).collect() }
    }

    fn find(&self, hint: usize, address: u64) -> Option<&Touched> {
        let inside = |range: &&Touched| address.wrapping_sub(range.base) < range.bytes;
        self.ranges.get(hint).filter(inside).or_else(|| {
            let at = self.ranges.partition_point(|range| range.base <= address).checked_sub(1)?;
            self.ranges.get(at).filter(inside)
        })
    }

    /// Notes the bytes of one instruction.
    pub fn touch(&self, access: &WarpAccess<'_>) {
        if access.space != Space::Global {
            return;
        }
        let (reads, writes) = match access.action {
            Action::Read | Action::MatrixRead | Action::CopyRead => (true, false),
            Action::Write | Action::CopyWrite => (false, true),
            Action::Atomic => (true, true),
        };
        let shape = match access.read_bytes {
            None => Shape::of(access.addresses, access.active, access.bytes),
            Some(_) => Shape::Scattered,
        };
        if shape != Shape::Scattered
            && let Some(range) = self.find(access.range, access.addresses[0])
        {
            let (offset, bytes) = (access.addresses[0] - range.base, shape.span(access.bytes));
            if bytes <= range.bytes - offset {
                return range.mark_run(offset, bytes, reads, writes);
            }
        }
        // Neighbouring lanes mostly share a word of 64 bits: it is stored once.
        let mut open: Option<(&Touched, u64, u64)> = None;
        for lane in (0..LANES).filter(|lane| access.active >> lane & 1 != 0) {
            let address = access.addresses[lane];
            let bytes = access.read_bytes.map_or(access.bytes, |bytes| bytes[lane]);
            let range = match open {
                Some((range, ..)) if address.wrapping_sub(range.base) < range.bytes => Some(range),
                _ => self.find(access.range, address),
            };
            let Some(range) = range.filter(|_| bytes > 0) else { continue };
            let offset = address - range.base;
            // At most 32 bytes at a multiple of their number, or the start of such: within one word, unless a carved
            // range begins at an odd place.
            for (at, count) in split(offset, bytes.into()) {
                let (word, mask) = (at / 64, (((1u128 << count) - 1) as u64) << (at % 64));
                open = match open {
                    Some((same, at, bits)) if std::ptr::eq(same, range) && at == word => {
                        Some((same, at, bits | mask))
                    }
                    other => {
                        other
                            .into_iter()
                            .for_each(|(range, word, bits)| range.mark(word, bits, reads, writes));
                        Some((range, word, mask))
                    }
                };
            }
        }
        open.into_iter().for_each(|(range, word, bits)| range.mark(word, bits, reads, writes));
    }

    /// Lends the runs of bytes that were read, and those that were written (`true`), range by range: offsets of their first
    /// byte and of the byte behind their last, ascending.
    pub fn each_range(&self, mut lend: impl FnMut(u64, bool, Runs<'_>)) {
        for range in &self.ranges {
            for (written, map) in [(false, &range.read), (true, &range.written)] {
                if let Some(words) = map.get() {
                    lend(range.base, written, Runs { words, at: 0 });
                }
            }
        }
    }

    /// Adds the bytes touched.
    pub fn finish(&self, traffic: &mut Traffic) {
        // A word of the maps is 64 bytes: two sectors, as ranges begin at multiples of 256.
        let sectors = |word: u64| u64::from(word as u32 != 0) + u64::from(word >> 32 != 0);
        let count = |bits: &OnceLock<Box<[AtomicU64]>>| -> (u64, u64) {
            let words = bits.get().into_iter().flatten().map(|word| word.load(Relaxed));
            words.fold((0, 0), |(bytes, all), word| {
                (bytes + u64::from(word.count_ones()), all + sectors(word))
            })
        };
        for range in &self.ranges {
            let ((read, read_sectors), (written, written_sectors)) =
                (count(&range.read), count(&range.written));
            traffic.unique_read_bytes += read;
            traffic.unique_read_sectors += read_sectors;
            traffic.unique_written_bytes += written;
            traffic.unique_written_sectors += written_sectors;
        }
    }
}

/// Runs of bits that are set.
#[derive(Debug)]
pub struct Runs<'m> {
    words: &'m [AtomicU64],
    at: u64,
}

impl Runs<'_> {
    /// The first bit from `from` on that is `set`; the end where there is none.
    fn first(&self, from: u64, set: bool) -> u64 {
        let mut mask = !0 << (from % 64);
        for (index, word) in self.words.iter().enumerate().skip((from / 64) as usize) {
            let word = word.load(Relaxed);
            let bits = if set { word } else { !word } & mask;
            if bits != 0 {
                return 64 * index as u64 + u64::from(bits.trailing_zeros());
            }
            mask = !0;
        }
        64 * self.words.len() as u64
    }
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let first = self.first(self.at, true);
        self.at = self.first(first, false);
        (first < self.at).then_some((first, self.at))
    }
}

/// A run of bytes, cut at multiples of 64.
fn split(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let head = bytes.min(64 - offset % 64);
    [(offset, head), (offset + head, bytes - head)].into_iter().filter(|&(_, count)| count > 0)
}

impl Touched {
    /// Notes a run of bytes within the range.
    fn mark_run(&self, offset: u64, bytes: u64, reads: bool, writes: bool) {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            self.mark(at / 64, (((1u128 << count) - 1) as u64) << (at % 64), reads, writes);
            at += count;
        }
    }

    fn mark(&self, word: u64, bits: u64, reads: bool, writes: bool) {
        for (wanted, map) in [(reads, &self.read), (writes, &self.written)] {
            if wanted {
                let map =
                    map.get_or_init(|| (0..self.bytes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
                let word = &map[word as usize];
                if word.load(Relaxed) & bits != bits {
                    word.fetch_or(bits, Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::{Order, Place};
    use super::*;

    #[test]
    fn runs_are_lent_as_they_were_touched() {
        let ranges = [0x1000, 0x2000].map(|base| Range { base, bytes: 200, variable: false });
        let meter = TrafficMeter::new(&ranges);
        let touch = |action, active, at: fn(u64) -> u64| {
            let addresses = std::array::from_fn(|lane| at(lane as u64));
            meter.touch(&warp_access(Space::Global, action, 4, active, &addresses));
        };
        touch(Action::Read, !0, |lane| 0x1000 + 4 * lane);
        touch(Action::Read, 0xff, |lane| 0x1000 + 128 + 4 * lane);
        touch(Action::Write, 0b1111, |lane| 0x2000 + 60 + 8 * lane);
        touch(Action::Atomic, 1, |_| 0x2000 + 196);
        let mut found = Vec::new();
        meter.each_range(|base, written, runs| found.push((base, written, runs.collect::<Vec<_>>())));
        assert_eq!(
            found,
            [
                (0x1000, false, vec![(0, 160)]),
                (0x2000, false, vec![(196, 200)]),
                (0x2000, true, vec![(60, 64), (68, 72), (76, 80), (84, 88), (196, 200)]),
            ]
        );
    }

    fn access(space: Space, bytes: u32, active: u32, at: impl Fn(u64) -> u64) -> Traffic {
        let addresses = std::array::from_fn(|lane| at(lane as u64));
        let mut traffic = Traffic::default();
        traffic.count(&warp_access(space, Action::Read, bytes, active, &addresses));
        traffic
    }

    fn warp_access(
        space: Space,
        action: Action,
        bytes: u32,
        active: u32,
        addresses: &[u64; LANES],
    ) -> WarpAccess<'_> {
        let at = Place { line: 1, block: [0; 3], warp: 0 };
        WarpAccess {
            space,
            action,
            order: Order::Weak,
            active,
            addresses,
            bytes,
            read_bytes: None,
            range: 0,
            at,
        }
    }

    fn sectors_of(bytes: u32, active: u32, at: impl Fn(u64) -> u64) -> (u64, u64) {
        let loads = access(Space::Global, bytes, active, at).loads;
        assert_eq!(loads.requests, 1);
        (loads.sectors, loads.ideal)
    }

    #[test]
    fn sectors_of_known_patterns() {
        assert_eq!(sectors_of(4, !0, |l| 4 * l), (4, 4), "side by side");
        assert_eq!(sectors_of(16, !0, |l| 16 * l), (16, 16), "side by side, 128 bits");
        assert_eq!(sectors_of(2, !0, |l| 2 * l), (2, 2), "side by side, bf16");
        assert_eq!(sectors_of(4, !0, |l| 8 * l), (8, 4), "every second");
        assert_eq!(sectors_of(4, !0, |l| 128 * l), (32, 4), "a column");
        assert_eq!(sectors_of(4, !0, |_| 64), (1, 1), "all the same");
        assert_eq!(sectors_of(4, !0, |l| 4 + 4 * l), (5, 4), "off by one element");
        assert_eq!(sectors_of(4, !0, |l| 4 * (31 - l)), (4, 4), "backwards");
        assert_eq!(sectors_of(4, 1, |_| 0), (1, 1), "one lane");
        assert_eq!(sectors_of(4, 0xffff, |l| 4 * l), (2, 2), "half a warp");
        assert_eq!(sectors_of(4, !0, |l| 4 * (l % 4)), (1, 1), "four values");
    }

    #[test]
    fn copies_that_fill_with_zeros_ask_for_what_they_read() {
        let addresses = std::array::from_fn(|lane| 16 * lane as u64);
        let read = std::array::from_fn(|lane| if lane < 4 { 16 } else { 0 });
        let mut traffic = Traffic::default();
        let access = warp_access(Space::Global, Action::CopyRead, 16, !0, &addresses);
        traffic.count(&WarpAccess { read_bytes: Some(&read), ..access });
        assert_eq!((traffic.loads.sectors, traffic.loads.ideal), (2, 2));
    }

    fn banks_of(bytes: u32, active: u32, at: impl Fn(u64) -> u64) -> (u64, u64) {
        let loads = access(Space::Shared, bytes, active, at).shared_loads;
        (loads.phases, loads.accesses)
    }

    #[test]
    fn banks_of_known_patterns() {
        assert_eq!(banks_of(4, !0, |l| 4 * l), (1, 1), "a row");
        assert_eq!(banks_of(4, !0, |_| 40), (1, 1), "a broadcast");
        assert_eq!(banks_of(4, !0, |l| 8 * l), (1, 2), "every second word");
        assert_eq!(banks_of(4, !0, |l| 128 * l), (1, 32), "a column of 32 words");
        assert_eq!(banks_of(4, !0, |l| 132 * l), (1, 1), "a column of a padded tile");
        assert_eq!(banks_of(2, !0, |l| 2 * l), (1, 1), "halves of words");
        assert_eq!(banks_of(2, !0, |l| 64 * l), (1, 16), "a column of bf16, 32 wide");
        assert_eq!(banks_of(8, !0, |l| 8 * l), (2, 2), "64 bits");
        assert_eq!(banks_of(16, !0, |l| 16 * l), (4, 4), "128 bits");
        assert_eq!(banks_of(16, 0xff, |l| 16 * l), (1, 1), "a quarter of the warp");
        assert_eq!(banks_of(16, !0, |l| 128 * l), (4, 32), "rows of 64 bf16 without a swizzle");
        assert_eq!(banks_of(16, !0, |l| 128 * l + 16 * (l % 8)), (4, 4), "the same, swizzled");
        assert_eq!(banks_of(16, !0, |l| 144 * l), (4, 4), "the same, padded by 16 bytes");
    }

    #[test]
    fn bytes_count_once() {
        let range = Range { base: 0x1000, bytes: 1000, variable: false };
        let meter = TrafficMeter::new(&[range]);
        let addresses = std::array::from_fn(|lane| 0x1000 + 4 * lane as u64);
        for _ in 0..3 {
            meter.touch(&warp_access(Space::Global, Action::Read, 4, !0, &addresses));
        }
        meter.touch(&warp_access(Space::Global, Action::Write, 4, 0xff, &addresses));
        let overlapping = std::array::from_fn(|lane| 0x1040 + 16 * lane as u64);
        meter.touch(&warp_access(Space::Global, Action::Read, 16, 0xff, &overlapping));
        let mut traffic = Traffic::default();
        meter.finish(&mut traffic);
        assert_eq!((traffic.unique_read_bytes, traffic.unique_written_bytes), (64 + 128, 32));
        assert_eq!((traffic.unique_read_sectors, traffic.unique_written_sectors), (6, 1));
        let mut rest = traffic.clone();
        rest.subtract(&traffic);
        assert_eq!((rest, traffic.moved_once()), (Traffic::default(), 7 * 32));
    }

    #[test]
    fn the_table_leaves_out_what_did_not_happen() {
        let text = access(Space::Global, 4, !0, |l| 8 * l).to_string();
        assert!(text.contains("loads") && text.contains("2.000") && !text.contains("stores"), "{text}");
    }
}
