//! Gumbel-Softmax mixtures over the kept ids (Jang et al. 2017, Maddison et al. 2017), and their gradient.
//!
//! ```text
//! y[v]        = softmax over kept of ((s[v] + eps[v]) / tau)          s, eps and what is kept: cpu/sampler.rs
//! dlogit[v]   = (1 / T) (1 / tau) y[v] (dy[v] - sum over kept of y dy)          0 where not kept
//! ```
//!
//! The set of kept ids counts as constant: where a logit's change moves an id in or out there is no derivative.

use super::filter::Kept;
use super::{Fault, FirstFault, Law, Problem, Rows, Stream, check};
use crate::cpu::float::{Float, sum_over, sum_slices};
use crate::cpu::gumbel::BLOCKS;
use crate::cpu::log_probability::Running;
use crate::cpu::{isa, parallel};

/// Where [`mix`] writes, one row of each a mixture. Places beyond a row's count become id 0 with weight 0.
#[derive(Debug)]
pub struct Mixtures<'a, T> {
    /// Kept ids `[rows, capacity]`, ascending.
    pub ids: &'a mut [u32],
    /// Their number in each row.
    pub counts: &'a mut [u32],
    /// Their weights `[rows, capacity]`, which sum to 1 in each row.
    pub weights: &'a mut [T],
}

parallel::cut_by_rows!(Mixtures by counts: ids, counts, weights);

/// The mixtures of the rows under their law, at the temperature tau. A law without filters keeps every id.
pub fn mix<T: Float>(rows: &Rows<T>, inverse_tau: T, out: Mixtures<T>) -> Result<(), Fault> {
    let fault = FirstFault::default();
    let capacity = out.ids.len() / out.counts.len().max(1);
    parallel::elements(out, 8 * rows.vocabulary, |first, out| {
        for (i, kept) in out.counts.iter_mut().enumerate() {
            let at = i * capacity..(i + 1) * capacity;
            let (ids, weights) = (&mut out.ids[at.clone()], &mut out.weights[at]);
            let row = first + i;
            match isa::run_kernel(MixRow { rows, row, inverse_tau, ids, weights }) {
                Ok(count) => *kept = count,
                Err(problem) => return fault.report(Fault { row, problem }),
            }
        }
    });
    fault.result()
}

struct MixRow<'a, 'b, T> {
    rows: &'a Rows<'b, T>,
    row: usize,
    inverse_tau: T,
    ids: &'a mut [u32],
    weights: &'a mut [T],
}

impl<T: Float> isa::Kernel for MixRow<'_, '_, T> {
    type Output = Result<u32, Problem>;
    #[inline(always)]
    fn run(self) -> Self::Output {
        let MixRow { rows, row, inverse_tau, ids, weights } = self;
        let logits = &rows.logits[row * rows.vocabulary..(row + 1) * rows.vocabulary];
        let scale = rows.law.inverse_temperature();
        let running = Running::of::<false>(logits, scale);
        check(logits, scale, &running)?;
        let filters = match rows.law {
            Law::Greedy => Default::default(),
            Law::Categorical { filters, .. } => filters.effective(rows.vocabulary),
        };
        let mut kept = Kept::take();
        kept.select(logits, scale, running.maximum, filters);
        let count = kept.ids.len();
        let fits = count <= ids.len();
        if fits {
            ids[..count].copy_from_slice(&kept.ids);
        }
        kept.give_back();
        if !fits {
            return Err(Problem::Full { kept: count });
        }
        ids[count..].fill(0);
        weights[count..].fill(T::ZERO);
        let stream = Stream::of(rows, row);
        let weights = &mut weights[..count];
        for (ids, weights) in ids[..count].chunks(BLOCKS).zip(weights.chunks_mut(BLOCKS)) {
            for ((&id, weight), noise) in ids.iter().zip(weights).zip(stream.noise_of::<T>(ids)) {
                *weight = logits[id as usize] * scale + noise;
            }
        }
        let maximum = weights.iter().fold(T::NEG_INFINITY, |maximum, &value| maximum.larger(value));
        for weight in weights.iter_mut() {
            // The difference first: what it rounds is smaller.
            *weight = ((*weight - maximum) * inverse_tau).exp();
        }
        let sum = sum_over(count, |i| weights[i]);
        for weight in weights.iter_mut() {
            *weight = *weight / sum;
        }
        Ok(count as u32)
    }
}

/// Mixtures that [`mix`] made.
#[derive(Clone, Copy, Debug)]
pub struct Mixed<'a, T> {
    /// Kept ids `[rows, capacity]`.
    pub ids: &'a [u32],
    /// Their number in each row.
    pub counts: &'a [u32],
    /// Their weights `[rows, capacity]`.
    pub weights: &'a [T],
}

/// Gradient of the logits `[rows, vocabulary]`, assigned; `factor` is 1 / (T tau).
pub fn mix_backward<T: Float>(
    mixed: &Mixed<T>,
    dy: &[T],
    factor: T,
    vocabulary: usize,
    d_logits: &mut [T],
) -> Result<(), Fault> {
    let capacity = mixed.ids.len() / mixed.counts.len().max(1);
    let broken = |row: usize| {
        let count = mixed.counts[row] as usize;
        let ids = &mixed.ids[row * capacity..(row + 1) * capacity];
        ids.get(..count).is_none_or(|ids| ids.iter().any(|&id| id as usize >= vocabulary))
    };
    if let Some(row) = (0..mixed.counts.len()).find(|&row| broken(row)) {
        return Err(Fault { row, problem: Problem::Broken });
    }
    parallel::rows(d_logits, vocabulary, vocabulary, |first, d_logits| {
        for (row, d_logits) in (first..).zip(d_logits.chunks_exact_mut(vocabulary)) {
            let at = row * capacity..row * capacity + mixed.counts[row] as usize;
            let (ids, y, dy) = (&mixed.ids[at.clone()], &mixed.weights[at.clone()], &dy[at]);
            let inner = sum_slices([y, dy], |[y, dy]| y * dy);
            d_logits.fill(T::ZERO);
            for ((&id, &y), &dy) in ids.iter().zip(y).zip(dy) {
                d_logits[id as usize] = factor * (y * (dy - inner));
            }
        }
    });
    Ok(())
}
