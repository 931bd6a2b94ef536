//! `cp.async`: bytes that are under way from device memory to shared memory.
//!
//! The source is read when the copy is issued. The destination changes only when a wait covers the copy's group, so
//! a read before that wait finds the old bytes, as it may on a device.

use super::access::LANES;

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
