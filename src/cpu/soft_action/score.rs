//! "Log-probabilities" of soft actions on their stored support, and their gradients.
//!
//! ```text
//! a[v] = log-softmax of s over the n kept ids     ln y = log-softmax of g / tau     q = log-softmax of a - g
//! soft_ce    sum over kept of y[v] ln p[v]        p: softmax of s over the vocabulary, or over the kept ids
//! concrete   ln (n-1)! + (n-1) ln tau + sum over kept of (q[v] - ln y[v])
//! gumbel_g   sum over counted of (-e - exp(-e)),  e = min(max(g[v] - a[v], low), high); counted: a[v] > floor
//!
//! dlogit     soft_ce   dy / T (y[v] - (sum y) p[v])
//!            concrete  dy / T (1 - n exp(q[v]))
//!            gumbel_g  dy / T (c[v] - exp(a[v]) sum c),  c = 1 - exp(-e) where counted and inside the bounds, else 0
//! ```
//!
//! The density is that of Maddison, Mnih & Teh 2017 (eq. 10) with a - tau ln y written as a - g: their softmax is the
//! same, and g has the digits that y loses where it underflows. With one kept id concrete and gumbel_g are 0, and
//! so is their gradient: y does not depend on the logits. A mean divides concrete by n, gumbel_g by how many are counted.

use super::Kept;
use crate::cpu::float::{Float, sum_over};
use crate::cpu::log_probability::{Running, log_probability};
use crate::cpu::sampler::{Fault, Faults, Problem, check, running_of_kept};
use crate::cpu::{isa, parallel};

/// What is scored.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a, T> {
    /// Logits, stored support and temperature.
    pub kept: Kept<'a, T>,
    /// Stored g `[rows, capacity]`.
    pub perturbed: &'a [T],
    /// Stored y `[rows, capacity]`.
    pub weights: &'a [T],
}

/// Which score.
#[derive(Clone, Copy, Debug)]
pub enum Kind<T> {
    /// Cross-entropy with a soft label.
    SoftCe {
        /// Whether p is over the whole vocabulary.
        full: bool,
    },
    /// The density of y.
    Concrete {
        /// tau.
        tau: T,
        /// Whether it is divided by n.
        mean: bool,
    },
    /// The density of g.
    GumbelG {
        /// Only ids of a larger a count.
        floor: T,
        /// Noise below it counts as it.
        low: T,
        /// Noise above it counts as it.
        high: T,
        /// Whether it is divided by how many count.
        mean: bool,
    },
}

/// The scores of the rows.
pub fn score<T: Float>(scored: &Scored<T>, kind: Kind<T>, out: &mut [T]) -> Result<(), Fault> {
    let (capacity, faults) = (scored.capacity(), Faults::default());
    parallel::rows(out, 1, scored.cost(kind), |first, out| {
        let mut room = vec![T::ZERO; 2 * capacity];
        for (row, out) in (first..).zip(out) {
            match isa::run_kernel(ScoreRow { scored, kind, row, room: &mut room }) {
                Ok(score) => *out = score,
                Err(problem) => faults.note(Fault { row, problem }),
            }
        }
    });
    faults.first()
}

/// Gradient of the logits of [`score`], assigned; 0 where not kept, except under the full vocabulary's softmax.
pub fn score_backward<T: Float>(
    scored: &Scored<T>,
    kind: Kind<T>,
    dy: &[T],
    d_logits: &mut [T],
) -> Result<(), Fault> {
    let (capacity, faults) = (scored.capacity(), Faults::default());
    let vocabulary = scored.kept.vocabulary;
    parallel::rows(d_logits, vocabulary, vocabulary + scored.cost(kind), |first, d_logits| {
        let mut room = vec![T::ZERO; 2 * capacity];
        for (row, d_logits) in (first..).zip(d_logits.chunks_exact_mut(vocabulary)) {
            let room = &mut room;
            let row_of = DifferentiateRow { scored, kind, row, dy: dy[row], room, d_logits };
            if let Err(problem) = isa::run_kernel(row_of) {
                faults.note(Fault { row, problem });
            }
        }
    });
    faults.first()
}

impl<'a, T: Float> Scored<'a, T> {
    fn capacity(&self) -> usize {
        self.kept.ids.len() / self.kept.counts.len().max(1)
    }

    fn cost(&self, kind: Kind<T>) -> usize {
        let full = matches!(kind, Kind::SoftCe { full: true });
        20 * self.capacity() + if full { 8 * self.kept.vocabulary } else { 0 }
    }

    /// The first `count` of the row's g and y.
    #[inline(always)]
    fn stored(&self, row: usize, count: usize) -> (&'a [T], &'a [T]) {
        let at = row * self.capacity()..row * self.capacity() + count;
        (&self.perturbed[at.clone()], &self.weights[at])
    }

    /// Statistics of the law that a soft label is scored under.
    #[inline(always)]
    fn law(&self, logits: &[T], ids: &[u32], full: bool) -> Result<Running<T>, Problem> {
        let scale = self.kept.inverse_temperature;
        if !full {
            return Ok(running_of_kept(logits, scale, ids));
        }
        let running = Running::of::<false>(logits, scale);
        check(logits, scale, &running).map(|()| running)
    }
}

/// Log-softmax in place of `values * scale`.
#[inline(always)]
fn log_softmax<T: Float>(values: &mut [T], scale: T) {
    let running = Running::of::<false>(values, scale);
    let log_sum = running.log_sum();
    for value in values {
        *value = log_probability(*value * scale, running.maximum, log_sum);
    }
}

/// One kept id's part of gumbel_g: its value and its slope by a.
#[inline(always)]
fn gumbel_part<T: Float>(g: T, a: T, low: T, high: T) -> (T, T) {
    let noise = g - a;
    let held = super::inside(noise, low, high);
    let weight = (-held).exp();
    (-held - weight, if noise < low || noise > high { T::ZERO } else { T::ONE - weight })
}

struct ScoreRow<'a, 'b, T> {
    scored: &'a Scored<'b, T>,
    kind: Kind<T>,
    row: usize,
    room: &'a mut [T],
}

impl<T: Float> isa::Kernel for ScoreRow<'_, '_, T> {
    type Output = Result<T, Problem>;
    #[inline(always)]
    fn run(self) -> Self::Output {
        let ScoreRow { scored, kind, row, room } = self;
        let kept = &scored.kept;
        let (logits, ids) = kept.row(row)?;
        let count = ids.len();
        let (g, y) = scored.stored(row, count);
        if let Kind::SoftCe { full } = kind {
            let running = scored.law(logits, ids, full)?;
            let log_sum = running.log_sum();
            return Ok(sum_over(count, |i| {
                let scaled = logits[ids[i] as usize] * kept.inverse_temperature;
                y[i] * log_probability(scaled, running.maximum, log_sum)
            }));
        }
        if count == 1 {
            return Ok(T::ZERO);
        }
        let (a, log_y) = room.split_at_mut(room.len() / 2);
        let (a, log_y) = (&mut a[..count], &mut log_y[..count]);
        kept.clean(logits, ids, a);
        match kind {
            Kind::SoftCe { .. } => Ok(T::ZERO),
            Kind::Concrete { tau, mean } => {
                log_y.copy_from_slice(g);
                log_softmax(log_y, T::ONE / tau);
                for (a, &g) in a.iter_mut().zip(g) {
                    *a -= g;
                }
                log_softmax(a, T::ONE);
                let sum = sum_over(count, |i| a[i] - log_y[i]);
                let free = (count - 1) as f64;
                let constant = log_factorial(count - 1) + free * tau.to_f64().ln();
                let total = sum + T::from_f64(constant);
                Ok(if mean { total / T::from_f64(count as f64) } else { total })
            }
            Kind::GumbelG { floor, low, high, mean } => {
                let counted = a.iter().filter(|&&a| a > floor).count();
                let part =
                    |i: usize| if a[i] > floor { gumbel_part(g[i], a[i], low, high).0 } else { T::ZERO };
                let sum = sum_over(count, part);
                Ok(if mean && counted > 0 { sum / T::from_f64(counted as f64) } else { sum })
            }
        }
    }
}

struct DifferentiateRow<'a, 'b, T> {
    scored: &'a Scored<'b, T>,
    kind: Kind<T>,
    row: usize,
    dy: T,
    room: &'a mut [T],
    d_logits: &'a mut [T],
}

impl<T: Float> isa::Kernel for DifferentiateRow<'_, '_, T> {
    type Output = Result<(), Problem>;
    #[inline(always)]
    fn run(self) -> Self::Output {
        let DifferentiateRow { scored, kind, row, dy, room, d_logits } = self;
        let kept = &scored.kept;
        let (logits, ids) = kept.row(row)?;
        let count = ids.len();
        let (g, y) = scored.stored(row, count);
        let (scale, slope) = (kept.inverse_temperature, kept.inverse_temperature * dy);
        if let Kind::SoftCe { full } = kind {
            let running = scored.law(logits, ids, full)?;
            let log_sum = running.log_sum();
            let factor = -(slope * sum_over(count, |i| y[i]));
            let pull = |logit: T| log_probability(logit * scale, running.maximum, log_sum).exp() * factor;
            if full {
                for (d, &logit) in d_logits.iter_mut().zip(logits) {
                    *d = pull(logit);
                }
            } else {
                d_logits.fill(T::ZERO);
                for &id in ids {
                    d_logits[id as usize] = pull(logits[id as usize]);
                }
            }
            for (&id, &y) in ids.iter().zip(y) {
                d_logits[id as usize] = slope.mul_add(y, d_logits[id as usize]);
            }
            return Ok(());
        }
        d_logits.fill(T::ZERO);
        if count == 1 {
            return Ok(());
        }
        let (a, c) = room.split_at_mut(room.len() / 2);
        let (a, c) = (&mut a[..count], &mut c[..count]);
        kept.clean(logits, ids, a);
        match kind {
            Kind::SoftCe { .. } => {}
            Kind::Concrete { mean, .. } => {
                for (a, &g) in a.iter_mut().zip(g) {
                    *a -= g;
                }
                log_softmax(a, T::ONE);
                let n = T::from_f64(count as f64);
                let slope = if mean { slope / n } else { slope };
                for (&id, &q) in ids.iter().zip(a.iter()) {
                    d_logits[id as usize] = slope * (T::ONE - n * q.exp());
                }
            }
            Kind::GumbelG { floor, low, high, mean } => {
                let mut counted = 0;
                for ((c, &a), &g) in c.iter_mut().zip(a.iter()).zip(g) {
                    let counts = a > floor;
                    counted += usize::from(counts);
                    *c = if counts { gumbel_part(g, a, low, high).1 } else { T::ZERO };
                }
                let total = sum_over(count, |i| c[i]);
                let slope = if mean && counted > 0 { slope / T::from_f64(counted as f64) } else { slope };
                for ((&id, &a), &c) in ids.iter().zip(a.iter()).zip(c.iter()) {
                    d_logits[id as usize] = slope * (c - a.exp() * total);
                }
            }
        }
        Ok(())
    }
}

/// ln n!, within 1e-15 relative: a product up to 20!, which f64 holds, then Stirling's series.
fn log_factorial(n: usize) -> f64 {
    if n <= 20 {
        return (2..=n).map(|i| i as f64).product::<f64>().ln();
    }
    let x = n as f64 + 1.0;
    let inverse = 1.0 / x;
    let square = inverse * inverse;
    let tail = inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)));
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + tail
}

#[cfg(test)]
mod tests {
    use super::log_factorial;

    #[test]
    fn logarithms_of_factorials_are_sums_of_logarithms() {
        let mut sum = 0.0;
        for n in 1..3000 {
            sum += f64::from(n).ln();
            let found = log_factorial(n as usize);
            assert!((found - sum).abs() <= 1e-12 * sum.max(1.0), "{n}: {found} {sum}");
        }
        assert_eq!((log_factorial(0), log_factorial(1)), (0.0, 0.0));
    }
}
