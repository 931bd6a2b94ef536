//! Which operation touched which bytes last: runs of bytes of one allocation, each with one operation of one stream.

use crate::sim::access::{Deed, Operation};
use std::collections::BTreeMap;

/// Who touched a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By {
    pub deed: Deed,
    /// Its number in its stream.
    pub number: u64,
    /// Its number among all operations.
    pub asked: u64,
}

impl From<Operation> for By {
    fn from(of: Operation) -> By {
        By { deed: of.deed, number: of.stamp.number, asked: of.stamp.asked }
    }
}

/// Runs without overlap, ascending: offsets of the first byte and of the byte behind the last, and who touched them.
#[derive(Debug, Default)]
pub struct Runs(BTreeMap<u64, (u64, By)>);

impl Runs {
    /// Bytes `from..to` were touched by this operation, which comes behind all that are here.
    pub fn put(&mut self, mut from: u64, to: u64, by: By) {
        if let Some((&start, (end, old))) = self.0.range_mut(..from).next_back() {
            let (beyond, old) = (*end, *old);
            if old == by && beyond >= from {
                from = start;
            } else if beyond > from {
                *end = from;
                if beyond > to {
                    self.0.insert(to, (beyond, old));
                }
            }
        }
        while let Some((&start, &(end, old))) = self.0.range(from..to).next() {
            self.0.remove(&start);
            if end > to {
                self.0.insert(to, (end, old));
            }
        }
        self.0.insert(from, (to, by));
    }

    /// The first run of `from..to` that an operation later than number `behind` touched.
    pub fn later(&self, from: u64, to: u64, behind: u64) -> Option<(u64, u64, By)> {
        let before = self.0.range(..from).next_back();
        let found = before.into_iter().chain(self.0.range(from..to));
        found
            .map(|(&start, &(end, by))| (start.max(from), end.min(to), by))
            .find(|&(start, end, by)| start < end && by.number > behind)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    fn all(&self) -> Vec<(u64, u64, u64)> {
        self.0.iter().map(|(&start, &(end, by))| (start, end, by.number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(number: u64) -> By {
        By { deed: Deed::Clear, number, asked: number }
    }

    #[test]
    fn the_last_that_touched_a_byte_is_kept_for_every_byte() {
        // An array of bytes says who touched each last; cuts fall anywhere.
        let (mut runs, mut bytes, mut state) = (Runs::default(), [0u64; 64], 1u64);
        for number in 1..2000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (from, length) = (state >> 58, 1 + (state >> 40) % 17);
            let to = (from + length).min(64);
            // Several runs of one operation, as kernels have them.
            let number = number / 3 + 1;
            runs.put(from, to, by(number));
            bytes[from as usize..to as usize].fill(number);
            let found = runs.all();
            assert!(found.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{found:?}");
            let mut again = [0u64; 64];
            found.iter().for_each(|&(start, end, who)| again[start as usize..end as usize].fill(who));
            assert_eq!(again, bytes);
            let behind = number.saturating_sub(2);
            let expected = (8..40).find(|&at| bytes[at] > behind);
            let first = runs.later(8, 40, behind);
            assert_eq!(first.map(|(start, ..)| start as usize), expected, "{found:?}");
            if let Some((start, end, who)) = first {
                assert!(bytes[start as usize..end as usize].iter().all(|&number| number == who.number));
            }
        }
    }

    #[test]
    fn neighbours_of_one_operation_are_one_run() {
        let mut runs = Runs::default();
        (0..10).for_each(|at| runs.put(4 * at, 4 * at + 4, by(1)));
        assert_eq!(runs.all(), [(0, 40, 1)]);
        runs.put(8, 12, by(2));
        assert_eq!(runs.all(), [(0, 8, 1), (8, 12, 2), (12, 40, 1)]);
    }
}
