//! Asynchronous copies (`cp.async`) of a block that are under way: what each lane reads and writes, and in which of
//! its groups.

use super::order::lanes_of;
use crate::sim::access::LANES;

/// One `cp.async` of some lanes of a warp whose groups have the same number.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Line of the instruction.
    pub line: u32,
    /// The lanes whose copies are under way.
    pub lanes: u32,
    /// Where the lanes read (global) or write (shared).
    pub addresses: [u64; LANES],
    /// How many bytes.
    pub bytes: [u32; LANES],
    group: u32,
}

/// The copies of one warp.
#[derive(Clone, Debug, Default)]
struct Warp {
    sources: Vec<Copy>,
    targets: Vec<Copy>,
    /// Groups that each lane has closed.
    closed: [u32; LANES],
}

/// The copies of one block.
#[derive(Debug)]
pub struct Copies {
    warps: Vec<Warp>,
    under_way: usize,
}

impl Copies {
    /// No copies of `warps` warps.
    pub fn new(warps: usize) -> Copies {
        Copies { warps: vec![Warp::default(); warps], under_way: 0 }
    }

    /// A copy begins to read (`source`) or will write.
    pub fn issue(
        &mut self,
        warp: usize,
        source: bool,
        line: u32,
        lanes: u32,
        addresses: &[u64; LANES],
        bytes: [u32; LANES],
    ) {
        let warp = &mut self.warps[warp];
        let mut left = lanes;
        while left != 0 {
            let group = warp.closed[left.trailing_zeros() as usize];
            let same = lanes_of(left).filter(|&l| warp.closed[l] == group).fold(0, |mask, l| mask | 1 << l);
            let copy = Copy { line, lanes: same, addresses: *addresses, bytes, group };
            if source {
                warp.sources.push(copy)
            } else {
                warp.targets.push(copy)
            }
            self.under_way += 1;
            left &= !same;
        }
    }

    /// Lanes close their group.
    pub fn commit(&mut self, warp: usize, lanes: u32) {
        for lane in lanes_of(lanes) {
            self.warps[warp].closed[lane] += 1;
        }
    }

    /// Lanes wait until at most `pending` of their closed groups are under way, or for all copies. What has arrived
    /// is handed to `arrived`.
    pub fn wait(&mut self, warp: usize, lanes: u32, pending: Option<u32>, mut arrived: impl FnMut(&Copy)) {
        let Warp { sources, targets, closed } = &mut self.warps[warp];
        let mut gone = 0;
        for (list, is_target) in [(sources, false), (targets, true)] {
            list.retain_mut(|copy| {
                let ends = |&lane: &usize| match pending {
                    None => true,
                    Some(pending) => copy.group + pending < closed[lane],
                };
                let done = lanes_of(copy.lanes & lanes).filter(ends).fold(0, |mask, l| mask | 1 << l);
                if done != 0 && is_target {
                    arrived(&Copy { lanes: done, ..*copy });
                }
                copy.lanes &= !done;
                gone += usize::from(copy.lanes == 0);
                copy.lanes != 0
            });
        }
        self.under_way -= gone;
    }

    /// Whether no copy is under way.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.under_way == 0
    }

    /// A copy under way that reads any of these bytes of device memory: its thread and its line.
    pub fn reader_of(&self, address: u64, bytes: u32) -> Option<(usize, u32)> {
        for (index, warp) in self.warps.iter().enumerate() {
            for copy in &warp.sources {
                let meets = |&lane: &usize| {
                    let (start, count) = (copy.addresses[lane], copy.bytes[lane]);
                    start < address + u64::from(bytes) && address < start + u64::from(count)
                };
                if let Some(lane) = lanes_of(copy.lanes).find(meets) {
                    return Some((index * LANES + lane, copy.line));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(base: u64) -> [u64; LANES] {
        std::array::from_fn(|lane| base + 16 * lane as u64)
    }

    #[test]
    fn groups_arrive_in_order() {
        let mut copies = Copies::new(1);
        for stage in 0..3u64 {
            copies.issue(0, true, 1, !0, &addresses(0x1000 * (stage + 1)), [16; LANES]);
            copies.issue(0, false, 1, !0, &addresses(0x100 * stage), [16; LANES]);
            copies.commit(0, !0);
        }
        let mut seen = Vec::new();
        copies.wait(0, !0, Some(1), |copy| seen.push((copy.addresses[0], copy.lanes)));
        assert_eq!(seen, [(0, !0), (0x100, !0)]);
        assert_eq!(copies.reader_of(0x1000, 4), None, "arrived");
        assert_eq!(copies.reader_of(0x3010, 4), Some((1, 1)), "under way");
        seen.clear();
        copies.wait(0, !0, Some(0), |copy| seen.push((copy.addresses[0], copy.lanes)));
        assert_eq!(seen, [(0x200, !0)]);
        assert!(copies.is_empty());
    }

    #[test]
    fn a_copy_without_a_group_waits_for_wait_all() {
        let mut copies = Copies::new(2);
        copies.issue(1, false, 7, 0xf, &addresses(0), [4; LANES]);
        copies.wait(1, !0, Some(0), |_| panic!("its group is open"));
        let mut seen = 0;
        copies.wait(1, 0x3, None, |copy| seen |= copy.lanes);
        assert_eq!((seen, copies.is_empty()), (0x3, false));
    }

    #[test]
    fn lanes_count_their_own_groups() {
        let mut copies = Copies::new(1);
        copies.commit(0, 0xff);
        copies.issue(0, false, 7, 0xffff, &addresses(0), [16; LANES]);
        copies.commit(0, 0xffff);
        copies.commit(0, 0xff00);
        let mut seen = 0;
        copies.wait(0, 0xffff, Some(1), |copy| seen |= copy.lanes);
        assert_eq!(seen, 0xff00, "the upper lanes have closed one more group since");
    }
}
