//! Which ids a draw may choose: top-k, then top-p, then min-p.
//!
//! Nothing here sorts the vocabulary. Ids fall into buckets of 1/64 nat below the maximum; the bucket in which the
//! k-th id, or the mass p, lies bounds what has to be ordered.
//!
//! Masses are whole numbers, so that no order of summation can change what is kept, on any device:
//!
//! ```text
//! mass[v] = floor(exp(s[v] - M) * 2^F)     F = 44 for a vocabulary up to 2^18 ([`fraction_bits`])
//! top-p keeps the fewest ids in order of rank whose masses add up to min(ceil(p * f64(total)), total)
//! ```

use crate::cpu::float::{Float, LANES};
use std::cell::Cell;
use std::cmp::Ordering;

/// What is kept before drawing; each filter is off when absent.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Filters {
    /// Keep the k most probable ids.
    pub top_k: Option<usize>,
    /// Keep the fewest most probable ids whose mass reaches p.
    pub top_p: Option<f64>,
    /// Keep ids at least this fraction as probable as the most probable.
    pub min_p: Option<f64>,
}

impl Filters {
    /// The same, without those that keep all of a vocabulary.
    pub fn effective(self, vocabulary: usize) -> Filters {
        Filters {
            top_k: self.top_k.filter(|&k| k < vocabulary),
            top_p: self.top_p.filter(|&p| p < 1.0),
            min_p: self.min_p.filter(|&p| p > 0.0),
        }
    }
}

/// Bits of a mass below the weight 1: as many as leave room for the sum over a vocabulary in 63 bits, at most 44.
pub fn fraction_bits(vocabulary: usize) -> u32 {
    44.min(62 - vocabulary.max(1).ilog2())
}

/// Buckets per nat below the maximum.
const FINENESS: f64 = 64.0;
/// The last bucket takes everything 16 nats and more below the maximum.
const BUCKETS: usize = 1024;

/// Scratch memory of the filters.
#[derive(Default)]
pub(super) struct Kept {
    /// Kept ids.
    pub ids: Vec<u32>,
    counts: Vec<u32>,
    masses: Vec<u64>,
    /// 2^F.
    unit: f64,
}

thread_local! {
    static KEPT: Cell<Kept> =
        const { Cell::new(Kept { ids: Vec::new(), counts: Vec::new(), masses: Vec::new(), unit: 0.0 }) };
}

/// exp(s - maximum): 1 for the most probable.
#[inline(always)]
fn weight<T: Float>(logit: T, scale: T, maximum: T) -> T {
    (logit * scale - maximum).exp()
}

/// The least mass that p of `total` is.
#[inline(always)]
fn share(p: f64, total: u64) -> u64 {
    ((p * total as f64).ceil() as u64).min(total)
}

/// More probable first; the lower id among equals.
#[inline(always)]
fn rank<T: Float>(logits: &[T]) -> impl Fn(&u32, &u32) -> Ordering {
    |&a, &b| {
        let (x, y) = (logits[a as usize], logits[b as usize]);
        y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(&b))
    }
}

impl Kept {
    /// This thread's memory, which it keeps between calls.
    pub fn take() -> Kept {
        KEPT.take()
    }

    /// For the next call.
    pub fn give_back(self) {
        KEPT.set(self);
    }

    /// Fills `ids` with what the filters keep, ascending; without a filter that is every id above probability 0.
    /// `maximum` is finite.
    #[inline(always)]
    pub fn select<T: Float>(&mut self, logits: &[T], scale: T, maximum: T, filters: Filters) {
        self.unit = (1_u64 << fraction_bits(logits.len())) as f64;
        self.ids.clear();
        // All that any row may need, so that later rows never allocate.
        self.ids.reserve(logits.len());
        if let Some(k) = filters.top_k {
            self.fill_buckets::<T, false>(logits, scale, maximum);
            let (mut cut, mut seen) = (0, self.counts[0] as usize);
            while seen < k && cut + 1 < BUCKETS {
                cut += 1;
                seen += self.counts[cut] as usize;
            }
            self.collect(logits, scale, maximum, 0, cut);
            if self.ids.len() > k {
                self.ids.select_nth_unstable_by(k - 1, rank(logits));
                self.ids.truncate(k);
            }
            if let Some(p) = filters.top_p {
                self.ids.sort_unstable_by(rank(logits));
                let total =
                    self.ids.iter().map(|&id| self.mass(weight(logits[id as usize], scale, maximum))).sum();
                self.keep_mass(logits, scale, maximum, 0, share(p, total));
            }
        } else if let Some(p) = filters.top_p {
            self.fill_buckets::<T, true>(logits, scale, maximum);
            let target = share(p, self.masses.iter().sum());
            let (mut cut, mut before) = (0, 0);
            while cut + 1 < BUCKETS && before + self.masses[cut] < target {
                before += self.masses[cut];
                cut += 1;
            }
            // Only the bucket in which the mass is reached is ordered; the last id kept of it bounds all others.
            self.collect(logits, scale, maximum, cut, cut);
            self.ids.sort_unstable_by(rank(logits));
            self.keep_mass(logits, scale, maximum, before, target);
            if let Some(&last) = self.ids.last() {
                self.ids.clear();
                self.collect(logits, scale, maximum, 0, cut);
                let order = rank(logits);
                self.ids.retain(|id| order(id, &last) != Ordering::Greater);
            }
        } else {
            // min-p alone: nothing farther below the maximum than ln p can be kept. One bucket of margin.
            let depth = filters.min_p.map_or(BUCKETS as f64, |p| -p.ln());
            self.collect(logits, scale, maximum, 0, (depth * FINENESS) as usize + 1);
        }
        if let Some(p) = filters.min_p {
            let least = T::from_f64(p);
            let mut kept = 0;
            for i in 0..self.ids.len() {
                let id = self.ids[i];
                if weight(logits[id as usize], scale, maximum) >= least {
                    self.ids[kept] = id;
                    kept += 1;
                }
            }
            self.ids.truncate(kept);
        }
        self.ids.sort_unstable();
    }

    /// The whole number that stands for a weight from 0 to 1; exact before it is cut off.
    #[inline(always)]
    fn mass<T: Float>(&self, weight: T) -> u64 {
        (weight.to_f64() * self.unit) as i64 as u64
    }

    /// Keeps ids, which are in order of rank, until the mass `before` them and theirs reaches `target`; at least one.
    #[inline(always)]
    fn keep_mass<T: Float>(&mut self, logits: &[T], scale: T, maximum: T, before: u64, target: u64) {
        let (mut end, mut mass) = (0, before);
        while end < self.ids.len() && (mass < target || end == 0) {
            mass += self.mass(weight(logits[self.ids[end] as usize], scale, maximum));
            end += 1;
        }
        self.ids.truncate(end);
    }

    /// Counts the ids in each bucket and, where wanted, sums their weights.
    #[inline(always)]
    fn fill_buckets<T: Float, const MASS: bool>(&mut self, logits: &[T], scale: T, maximum: T) {
        self.counts.clear();
        self.counts.resize(BUCKETS, 0);
        self.masses.clear();
        self.masses.resize(BUCKETS, 0);
        let unit = self.unit;
        for block in logits.chunks(LANES) {
            let mut values = [T::NEG_INFINITY; LANES];
            values[..block.len()].copy_from_slice(block);
            let (mut buckets, mut weights) = ([0_i32; LANES], [T::ZERO; LANES]);
            for i in 0..LANES {
                buckets[i] = place(values[i] * scale, maximum).to_f64() as i32;
                if MASS {
                    weights[i] = weight(values[i], scale, maximum);
                }
            }
            for i in 0..block.len() {
                self.counts[buckets[i] as usize] += 1;
                if MASS {
                    self.masses[buckets[i] as usize] += (weights[i].to_f64() * unit) as i64 as u64;
                }
            }
        }
    }

    /// Appends the ids of buckets `from ..= to`, ascending, without those of probability 0. The last bucket counts as
    /// inside when `to` is beyond it.
    #[inline(always)]
    fn collect<T: Float>(&mut self, logits: &[T], scale: T, maximum: T, from: usize, to: usize) {
        let (from, beyond) = (T::from_f64(from as f64), T::from_f64((to + 1) as f64));
        let inside = |logit: T| {
            let place = place(logit * scale, maximum);
            (from <= place) & (place < beyond) & (logit > T::NEG_INFINITY)
        };
        for (i, block) in logits.chunks(LANES).enumerate() {
            if block.iter().fold(false, |any, &logit| any | inside(logit)) {
                let first = (i * LANES) as u32;
                self.ids.extend((first..).zip(block).filter(|&(_, &logit)| inside(logit)).map(|(id, _)| id));
            }
        }
    }
}

/// How far a scaled logit is below the maximum, in buckets; the whole part is its bucket. Never smaller than the
/// place of a larger logit.
#[inline(always)]
fn place<T: Float>(scaled: T, maximum: T) -> T {
    let place = (maximum - scaled) * T::from_f64(FINENESS);
    let last = T::from_f64((BUCKETS - 1) as f64);
    if place > last { last } else { place }
}
