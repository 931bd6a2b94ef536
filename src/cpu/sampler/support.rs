//! Scores of tokens on the support that was stored when they were sampled, and their gradient.

use super::{Fault, Problem, check, running_of_kept};
use crate::cpu::float::Float;
use crate::cpu::log_probability::{Running, log_probability};
use crate::cpu::{isa, parallel};
use std::sync::Mutex;

/// Rows to score on the support that was stored when they were sampled.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a, T> {
    /// `[rows, vocabulary]`.
    pub logits: &'a [T],
    /// Ids of a row.
    pub vocabulary: usize,
    /// Scored ids.
    pub tokens: &'a [u32],
    /// Kept ids `[rows, capacity]`, ascending.
    pub ids: &'a [u32],
    /// Number of kept ids of each row, 0 for the whole vocabulary.
    pub counts: &'a [u32],
    /// 1 / T.
    pub inverse_temperature: T,
}

impl<'a, T: Float> Stored<'a, T> {
    /// The row's logits and kept ids; no ids stand for the whole vocabulary.
    #[inline(always)]
    fn row(&self, row: usize) -> Result<(&'a [T], &'a [u32]), Problem> {
        let capacity = self.ids.len() / self.counts.len();
        let ids = &self.ids[row * capacity..(row + 1) * capacity];
        let ids = ids.get(..self.counts[row] as usize).ok_or(Problem::Broken)?;
        if ids.iter().any(|&id| id as usize >= self.vocabulary) {
            return Err(Problem::Broken);
        }
        let token = self.tokens[row];
        let kept = if ids.is_empty() {
            (token as usize) < self.vocabulary
        } else {
            ids.binary_search(&token).is_ok()
        };
        if !kept {
            return Err(Problem::NotKept { token });
        }
        Ok((&self.logits[row * self.vocabulary..(row + 1) * self.vocabulary], ids))
    }

    /// Statistics of the row's kept logits.
    #[inline(always)]
    fn running(&self, logits: &[T], ids: &[u32]) -> Result<Running<T>, Problem> {
        let running = if ids.is_empty() {
            Running::of::<false>(logits, self.inverse_temperature)
        } else {
            running_of_kept(logits, self.inverse_temperature, ids)
        };
        check(logits, self.inverse_temperature, &running).map(|()| running)
    }
}

/// Log-probabilities with the bits of [`super::sample`].
pub fn score<T: Float>(stored: &Stored<T>, out: &mut [T]) -> Result<(), Fault> {
    let faults = Faults::default();
    parallel::rows(out, 1, 4 * stored.vocabulary, |first, out| {
        for (row, out) in (first..).zip(out) {
            match isa::run_kernel(ScoreRow { stored, row }) {
                Ok(score) => *out = score,
                Err(problem) => faults.note(Fault { row, problem }),
            }
        }
    });
    faults.first()
}

struct ScoreRow<'a, 'b, T> {
    stored: &'a Stored<'b, T>,
    row: usize,
}

impl<T: Float> isa::Kernel for ScoreRow<'_, '_, T> {
    type Output = Result<T, Problem>;
    #[inline(always)]
    fn run(self) -> Self::Output {
        let (logits, ids) = self.stored.row(self.row)?;
        let running = self.stored.running(logits, ids)?;
        let scaled = logits[self.stored.tokens[self.row] as usize] * self.stored.inverse_temperature;
        Ok(log_probability(scaled, running.maximum, running.log_sum()))
    }
}

/// Gradient of the logits of [`score`], assigned: (1[v = token] - p[v]) / T on the support, 0 elsewhere.
pub fn score_backward<T: Float>(stored: &Stored<T>, dy: &[T], d_logits: &mut [T]) -> Result<(), Fault> {
    let faults = Faults::default();
    parallel::rows(d_logits, stored.vocabulary, 8 * stored.vocabulary, |first, d_logits| {
        for (row, d_logits) in (first..).zip(d_logits.chunks_exact_mut(stored.vocabulary)) {
            if let Err(problem) = isa::run_kernel(DifferentiateRow { stored, row, dy: dy[row], d_logits }) {
                faults.note(Fault { row, problem });
            }
        }
    });
    faults.first()
}

struct DifferentiateRow<'a, 'b, T> {
    stored: &'a Stored<'b, T>,
    row: usize,
    dy: T,
    d_logits: &'a mut [T],
}

impl<T: Float> isa::Kernel for DifferentiateRow<'_, '_, T> {
    type Output = Result<(), Problem>;
    #[inline(always)]
    fn run(self) -> Self::Output {
        let DifferentiateRow { stored, row, dy, d_logits } = self;
        let (logits, ids) = stored.row(row)?;
        let running = stored.running(logits, ids)?;
        let (scale, maximum, log_sum) = (stored.inverse_temperature, running.maximum, running.log_sum());
        let factor = -(scale * dy);
        if ids.is_empty() {
            for (d, &logit) in d_logits.iter_mut().zip(logits) {
                *d = log_probability(logit * scale, maximum, log_sum).exp() * factor;
            }
        } else {
            d_logits.fill(T::ZERO);
            for &id in ids {
                let scaled = logits[id as usize] * scale;
                d_logits[id as usize] = log_probability(scaled, maximum, log_sum).exp() * factor;
            }
        }
        d_logits[stored.tokens[row] as usize] += scale * dy;
        Ok(())
    }
}

/// Problems met by parallel tasks; the lowest row's is told.
#[derive(Default)]
pub(in crate::cpu) struct Faults(Mutex<Option<Fault>>);

impl Faults {
    #[cold]
    pub(in crate::cpu) fn note(&self, fault: Fault) {
        let mut first = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if first.is_none_or(|first| fault.row < first.row) {
            *first = Some(fault);
        }
    }

    pub(in crate::cpu) fn first(self) -> Result<(), Fault> {
        self.0.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).map_or(Ok(()), Err)
    }
}
