//! Terms of a policy loss and their derivatives by the log-probabilities. Operation: ops/policy_loss.rs, where the
//! formulas stand.
//!
//! Rows are packed: row r holds tokens `starts[r]..starts[r + 1]`. Tasks own whole rows, and sums over a row run
//! in the order of `sum_over`: a row's bits depend neither on the rows beside it nor on the threads.

use super::float::{sum_over, sum_slices};
use super::{Float, isa, parallel};

/// Numbers of one token in the statistics; their order is that of `ops::policy_loss::Statistic`.
pub const STATISTICS: usize = 5;

/// What is scored, one entry a token.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T> {
    /// ln pi.
    pub log_probability: &'a [T],
    /// ln pi of the policy that sampled.
    pub old: &'a [T],
    /// ln pi of the reference; needed exactly where the rule has a penalty.
    pub reference: Option<&'a [T]>,
    /// Advantages.
    pub advantage: &'a [T],
    /// First token of each row, and the end of the last.
    pub starts: &'a [u32],
}

/// The loss, in numbers; limits that are not used are infinite.
#[derive(Clone, Copy, Debug)]
pub struct Rule<T> {
    /// Whether a row has one ratio, exp(mean of its log-ratios), instead of one a token.
    pub sequence: bool,
    /// Bound of |log ratio|.
    pub clamp: T,
    /// What becomes of ratio and advantage.
    pub surrogate: Surrogate<T>,
    /// The penalty towards the reference.
    pub penalty: Option<Penalty<T>>,
}

/// What becomes of ratio and advantage.
#[derive(Clone, Copy, Debug)]
pub enum Surrogate<T> {
    /// min(min(rho, delta) A, clip(rho, lowest, highest) A), and for A < 0 at least `dual` A.
    Clipped {
        /// 1 - eps_low.
        lowest: T,
        /// 1 + eps_high.
        highest: T,
        /// Cap of the ratio outside the clip.
        delta: T,
        /// Cap of the ratio for negative advantages.
        dual: T,
    },
    /// stop_gradient(min(rho, highest)) A ln pi.
    Weighted {
        /// Largest weight.
        highest: T,
    },
    /// (4 / t) sigmoid(t (rho - 1)) A.
    Soft {
        /// t where A > 0.
        positive: T,
        /// t elsewhere.
        negative: T,
    },
    /// A ln pi.
    Plain,
}

impl<T> Surrogate<T> {
    /// Whether ln pi itself is differentiated, not the ratio.
    fn of_log_probability(&self) -> bool {
        matches!(self, Surrogate::Weighted { .. } | Surrogate::Plain)
    }
}

/// beta times an estimate of the divergence, with D = ln pi - ln pi_ref.
#[derive(Clone, Copy, Debug)]
pub struct Penalty<T> {
    /// Which estimate.
    pub estimator: Estimator,
    /// Its coefficient in the loss.
    pub beta: T,
    /// Bound of |D|.
    pub clamp: T,
    /// Bound of |estimate|.
    pub cap: T,
}

/// Estimates of a divergence from one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimator {
    /// D.
    K1,
    /// D^2 / 2.
    K2,
    /// exp(-D) - 1 + D.
    K3,
    /// The value of k3 with the gradient of k2.
    K3Plus,
}

/// What one token contributes.
#[derive(Clone, Copy)]
struct Token<T> {
    ratio: T,
    /// -surrogate + beta * divergence.
    term: T,
    /// d(-surrogate): by the log-ratio, or by ln pi itself where the ratio is only a weight.
    slope: T,
    /// d(beta * divergence) by ln pi.
    pull: T,
    low: bool,
    high: bool,
    capped: bool,
    divergence: T,
}

/// Outputs of whole rows, `cols` numbers a token.
struct Rows<'a, T> {
    starts: &'a [u32],
    out: &'a mut [T],
    cols: usize,
}

impl<T: Send> parallel::Cut for Rows<'_, T> {
    fn count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
    fn cut(self, at: usize) -> (Self, Self) {
        let tokens = (self.starts[at] - self.starts[0]) as usize;
        let (left, right) = self.out.split_at_mut(tokens * self.cols);
        let cols = self.cols;
        (
            Rows { starts: &self.starts[..=at], out: left, cols },
            Rows { starts: &self.starts[at..], out: right, cols },
        )
    }
}

/// `term[n]` and `statistics[n, STATISTICS]` of every token.
pub fn forward<T: Float>(operands: Operands<T>, rule: Rule<T>, term: &mut [T], statistics: &mut [T]) {
    let starts = operands.starts;
    let slices = (Rows { starts, out: term, cols: 1 }, Rows { starts, out: statistics, cols: STATISTICS });
    parallel::elements(slices, cost(starts), |_, (term, statistics)| {
        isa::run(
            #[inline(always)]
            || {
                let first = term.starts.first().map_or(0, |&start| start as usize);
                for pair in term.starts.windows(2) {
                    let row = Row::new(&operands, &rule, pair);
                    for n in 0..row.length {
                        let token = row.token(n);
                        let at = row.start - first + n;
                        term.out[at] = token.term;
                        statistics.out[at * STATISTICS..][..STATISTICS].copy_from_slice(&[
                            token.ratio,
                            flag(token.low),
                            flag(token.high),
                            flag(token.capped),
                            token.divergence,
                        ]);
                    }
                }
            },
        );
    });
}

/// `coefficient[n] = d(sum_m weight[m] term[m]) / d log_probability[n]`.
pub fn backward<T: Float>(weight: &[T], operands: Operands<T>, rule: Rule<T>, coefficient: &mut [T]) {
    let starts = operands.starts;
    // The ratio of a sequence is moved by all of its tokens; a weight is moved by none.
    let shared = rule.sequence && !rule.surrogate.of_log_probability();
    let slices = Rows { starts, out: coefficient, cols: 1 };
    parallel::elements(slices, cost(starts), |_, coefficient| {
        isa::run(
            #[inline(always)]
            || {
                let first = coefficient.starts.first().map_or(0, |&start| start as usize);
                for pair in coefficient.starts.windows(2) {
                    let row = Row::new(&operands, &rule, pair);
                    let weight = &weight[row.start..][..row.length];
                    let out = &mut coefficient.out[row.start - first..][..row.length];
                    if shared {
                        let total = sum_over(row.length, |n| weight[n] * row.token(n).slope);
                        let each = total / T::from_f64(row.length as f64);
                        for n in 0..row.length {
                            out[n] = weight[n].mul_add(row.token(n).pull, each);
                        }
                    } else {
                        for n in 0..row.length {
                            let token = row.token(n);
                            out[n] = weight[n] * (token.slope + token.pull);
                        }
                    }
                }
            },
        );
    });
}

/// Work of one row: an exponential or two a token.
fn cost(starts: &[u32]) -> usize {
    let tokens = starts.last().map_or(0, |&end| end as usize);
    64 * tokens / starts.len().max(1)
}

#[inline(always)]
fn flag<T: Float>(set: bool) -> T {
    if set { T::ONE } else { T::ZERO }
}

/// One row's operands.
struct Row<'a, T> {
    start: usize,
    length: usize,
    log_probability: &'a [T],
    old: &'a [T],
    reference: Option<&'a [T]>,
    advantage: &'a [T],
    rule: &'a Rule<T>,
    /// The row's mean log-ratio, where the rule asks for it.
    mean: T,
}

impl<'a, T: Float> Row<'a, T> {
    #[inline(always)]
    fn new(operands: &Operands<'a, T>, rule: &'a Rule<T>, pair: &[u32]) -> Row<'a, T> {
        let (start, end) = (pair[0] as usize, pair[1] as usize);
        let (log_probability, old) = (&operands.log_probability[start..end], &operands.old[start..end]);
        let mean = if rule.sequence {
            let total = sum_slices([log_probability, old], |[new, old]| new - old);
            total / T::from_f64((end - start) as f64)
        } else {
            T::ZERO
        };
        Row {
            start,
            length: end - start,
            log_probability,
            old,
            reference: operands.reference.map(|reference| &reference[start..end]),
            advantage: &operands.advantage[start..end],
            rule,
            mean,
        }
    }

    #[inline(always)]
    fn token(&self, n: usize) -> Token<T> {
        let (rule, log_probability) = (self.rule, self.log_probability[n]);
        let advantage = self.advantage[n];
        let free = if rule.sequence { self.mean } else { log_probability - self.old[n] };
        let log_ratio = clamp(free, rule.clamp);
        // A bound stops the gradient.
        let held = free.abs() > rule.clamp;
        let moves = flag::<T>(!held);
        let plain = matches!(rule.surrogate, Surrogate::Plain);
        let ratio = if plain { T::ONE } else { log_ratio.exp() };
        let (positive, negative) = (advantage > T::ZERO, advantage < T::ZERO);
        let (mut low, mut high, mut capped) = (false, false, false);
        let (gain, slope) = match rule.surrogate {
            Surrogate::Clipped { lowest, highest, delta, dual } => {
                low = negative && ratio < lowest;
                high = positive && ratio > highest;
                capped = negative && (ratio > delta || ratio > dual);
                let unclipped = smaller(ratio, delta) * advantage;
                let clipped = at_least(smaller(ratio, highest), lowest) * advantage;
                let mut gain = smaller(unclipped, clipped);
                if negative {
                    gain = at_least(gain, dual * advantage);
                }
                let slope = if low || high || capped { T::ZERO } else { ratio * advantage * moves };
                (gain, slope)
            }
            Surrogate::Weighted { highest } => {
                high = positive && ratio > highest;
                capped = negative && ratio > highest;
                let weighted = smaller(ratio, highest) * advantage;
                (weighted * log_probability, weighted)
            }
            Surrogate::Soft { positive: above, negative: below } => {
                let temperature = if positive { above } else { below };
                let four = T::from_f64(4.0);
                let gate = (temperature * (ratio - T::ONE)).sigmoid();
                let slope = four * gate * (T::ONE - gate) * ratio * advantage * moves;
                (four / temperature * gate * advantage, slope)
            }
            // What is no number reaches the coefficient too.
            Surrogate::Plain => (advantage * log_probability, T::ZERO.mul_add(log_probability, advantage)),
        };
        let mut token = Token {
            ratio,
            term: -gain,
            slope: -slope,
            pull: T::ZERO,
            low,
            high,
            capped,
            divergence: T::ZERO,
        };
        if let (Some(penalty), Some(reference)) = (rule.penalty, self.reference) {
            let (divergence, slope) = penalty.at(log_probability - reference[n]);
            token.divergence = divergence;
            token.pull = penalty.beta * slope;
            token.term = penalty.beta.mul_add(divergence, token.term);
        }
        token
    }
}

impl<T: Float> Penalty<T> {
    /// Value and derivative of the estimate at D.
    #[inline(always)]
    fn at(&self, difference: T) -> (T, T) {
        let d = clamp(difference, self.clamp);
        let (value, slope) = match self.estimator {
            Estimator::K1 => (d, T::ONE),
            Estimator::K2 => (T::from_f64(0.5) * d * d, d),
            // e^-D - 1 by itself: as a difference of numbers near 1 it has lost the digits that D leaves of k3.
            Estimator::K3 | Estimator::K3Plus => {
                let less = T::from_f64((-d).to_f64().exp_m1());
                (less + d, if self.estimator == Estimator::K3 { -less } else { d })
            }
        };
        let held = difference.abs() > self.clamp || value.abs() > self.cap;
        (clamp(value, self.cap), if held { T::ZERO } else { slope })
    }
}

/// The value inside -bound..=bound; NaN stays NaN.
#[inline(always)]
fn clamp<T: Float>(value: T, bound: T) -> T {
    at_least(smaller(value, bound), -bound)
}

/// The smaller; NaN in `a` stays.
#[inline(always)]
fn smaller<T: Float>(a: T, b: T) -> T {
    if a > b { b } else { a }
}

/// The larger; NaN in `a` stays.
#[inline(always)]
fn at_least<T: Float>(a: T, b: T) -> T {
    if a < b { b } else { a }
}
