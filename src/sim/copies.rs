//! `cp.async`: bytes that are under way from device memory to shared memory.
//!
//! The source is read when the copy is issued. The destination changes only when a wait covers the copy's group, so
//! a read before that wait finds the old bytes, as it may on a device.

use super::access::{Action, LANES, Order, Place, Space};
use super::block::Shared;
use super::fault::Result;
use super::instruction::Copy;
use super::launch::Grid;
use super::transfer::{Touch, lanes};
use super::warp::Warp;

/// A copy of some lanes.
#[derive(Clone, Debug)]
struct Pending {
    lanes: u32,
    bytes: u32,
    /// Group of each lane that the copy belongs to.
    groups: [u32; LANES],
    to: [u32; LANES],
    data: [[u32; 4]; LANES],
}

/// The copies of a warp.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    pending: Vec<Pending>,
    /// Groups that each lane has closed.
    closed: [u32; LANES],
}

impl Copies {
    /// Forgets everything; a new block begins.
    pub fn clear(&mut self) {
        self.pending.clear();
        self.closed = [0; LANES];
    }

    /// Forgets copies of lanes that exit: nobody can wait for them any more.
    pub fn forget(&mut self, lanes: u32) {
        for copy in &mut self.pending {
            copy.lanes &= !lanes;
        }
        self.pending.retain(|copy| copy.lanes != 0);
    }

    /// A copy sets out.
    pub fn issue(&mut self, lanes: u32, bytes: u32, to: [u32; LANES], data: [[u32; 4]; LANES]) {
        self.pending.push(Pending { lanes, bytes, groups: self.closed, to, data });
    }

    /// Lanes close their group.
    pub fn commit(&mut self, lanes: u32) {
        for lane in 0..LANES {
            self.closed[lane] += lanes >> lane & 1;
        }
    }

    /// Delivers the copies of `lanes` in all but the newest `allowed` groups; `None` delivers every copy.
    pub fn wait(&mut self, lanes: u32, allowed: Option<u32>, words: &mut [u32]) {
        for copy in &mut self.pending {
            let mut covered = 0;
            for lane in 0..LANES {
                let done = match allowed {
                    None => true,
                    // Group g of n closed ones is among the newest `allowed` if g + allowed >= n.
                    Some(allowed) => copy.groups[lane].saturating_add(allowed) < self.closed[lane],
                };
                covered |= u32::from(done) << lane;
            }
            covered &= copy.lanes & lanes;
            copy.lanes &= !covered;
            for lane in (0..LANES).filter(|lane| covered & 1 << lane != 0) {
                let at = copy.to[lane] as usize / 4;
                let count = copy.bytes as usize / 4;
                words[at..at + count].copy_from_slice(&copy.data[lane][..count]);
            }
        }
        self.pending.retain(|copy| copy.lanes != 0);
    }
}

impl Warp {
    /// Issues a `cp.async`.
    pub(super) fn copy(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        pc: u32,
        copy: &Copy,
        active: u32,
        place: Place,
    ) -> Result<()> {
        let (to, from) = (self.addresses(&copy.to), self.addresses(&copy.from));
        let mut read = [copy.bytes; LANES];
        if let Some(register) = copy.source_bytes {
            let row = &self.registers.words[register as usize];
            read = std::array::from_fn(|lane| row[lane].min(copy.bytes));
        }
        if let Some((predicate, negated)) = copy.ignore {
            let row = self.registers.predicates[predicate as usize];
            let row = if negated { !row } else { row };
            lanes(row).for_each(|lane| read[lane] = 0);
        }
        let whole = Touch { pc, action: Action::CopyRead, order: Order::Weak, bytes: copy.bytes, place };
        self.aligned(grid, &whole, &to, active)?;
        self.aligned(grid, &whole, &from, active)?;
        self.within_shared(grid, shared, &whole, &to, active)?;
        let mut data = [[0; 4]; LANES];
        let mut left = lanes(active).fold(0, |mask, lane| mask | u32::from(read[lane] > 0) << lane);
        while left != 0 {
            // Lanes that read less than the whole are looked up by what they read.
            let first = left.trailing_zeros() as usize;
            let alike = lanes(left).fold(0, |mask, lane| mask | u32::from(read[lane] == read[first]) << lane);
            let touch = Touch { bytes: read[first], ..whole };
            let (live, range, mask) = self.range(grid, shared, &touch, &from, alike)?;
            let touch = Touch { bytes: copy.bytes, ..whole };
            self.observe(grid, shared, &touch, (Space::Global, range), &from, (mask, Some(&read)))?;
            for lane in lanes(mask) {
                let mut bytes = [0; 16];
                live.region.read(from[lane] - live.region.base, &mut bytes[..read[lane] as usize]);
                for (i, word) in bytes.chunks_exact(4).enumerate() {
                    data[lane][i] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                }
            }
            left &= !mask;
        }
        let touch = Touch { action: Action::CopyWrite, ..whole };
        self.observe(grid, shared, &touch, (Space::Shared, 0), &to, (active, None))?;
        self.copies.issue(active, copy.bytes, std::array::from_fn(|lane| to[lane] as u32), data);
        Ok(())
    }
}
