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

mod touched;

pub use touched::{Runs, TrafficMeter};

use super::access::{Action, LANES, Space, WarpAccess};
use super::reach::Shape;
use std::fmt;

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

#[cfg(test)]
mod tests;
