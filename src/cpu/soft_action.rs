//! Soft actions: how the clean logits of the kept ids become a mixture of tokens. Operation: ops/soft_action.rs.
//!
//! ```text
//! s[v] = logit[v] / T          a[v] = (s[v] - M) - ln sum over kept of exp(s - M)
//! none        g = a
//! gumbel      g = a + min(max(eps, low), high)                 eps[v]: word v of the row's stream (cpu/gumbel.rs)
//! gaussian    g = a + strength rms(s) n                        n[v]: normal v of the row's stream (cpu/random.rs)
//! dirichlet   g = ln y, y ~ Dirichlet(concentration exp(a))    (soft_action/dirichlet.rs)
//! y = softmax(g / tau)         dirichlet: tau counts as 1
//! proxy       argmax of s, the lower id of equals; or a draw: the first kept id whose masses up to and including its
//!             own exceed floor(word / 2^32 * total), mass = floor(y 2^F), word 0 of block 2^32 - 1
//! dlogit[v] = (1 / T) (1 / tau) y[v] (dy[v] - sum over kept of y dy)         0 where not kept (sampler/mixture.rs)
//! ```
//!
//! Gumbel noise has the bits that [`super::sampler::mix`] adds for the same key, step and site. Noise belongs to
//! vocabulary ids: what else is kept does not change it. Masses are whole numbers, as those of the sampler's filters,
//! so that no order of summation can change the drawn id.

mod dirichlet;
mod score;

pub use score::{Kind, Scored, score, score_backward};

use super::float::{Float, sum_over};
use super::gumbel::BLOCKS;
use super::log_probability::log_probability;
use super::random::four_normals;
use super::sampler::{Fault, Faults, Problem, Stream, fraction_bits, running_of_kept};
use super::{isa, parallel};

/// The block of a stream whose first word draws the proxy; ids have smaller ones.
pub const PROXY_BLOCK: u32 = u32::MAX;

/// Rows of logits and the ids that are kept of each.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a, T> {
    /// `[rows, vocabulary]`.
    pub logits: &'a [T],
    /// Ids of a row.
    pub vocabulary: usize,
    /// Kept ids `[rows, capacity]`, ascending.
    pub ids: &'a [u32],
    /// Their number in each row, at least 1.
    pub counts: &'a [u32],
    /// 1 / T.
    pub inverse_temperature: T,
}

/// What becomes of a row's clean log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Perturbation<T> {
    /// Nothing.
    None,
    /// Standard Gumbel noise inside two bounds.
    Gumbel {
        /// Noise below it becomes it.
        low: T,
        /// Noise above it becomes it.
        high: T,
    },
    /// Normal noise.
    Gaussian {
        /// Its deviation over the root mean square of the kept scaled logits.
        strength: T,
    },
    /// They are replaced by the logarithm of a draw of a Dirichlet distribution.
    Dirichlet {
        /// Sum of its parameters.
        concentration: T,
    },
}

/// How actions are made.
#[derive(Clone, Copy, Debug)]
pub struct Rule<T> {
    /// 1 / tau.
    pub inverse_tau: T,
    /// The noise.
    pub perturbation: Perturbation<T>,
    /// Whether the proxy is drawn from y.
    pub draw: bool,
    /// Whether the weights are the one token that is largest in y.
    pub hard: bool,
}

/// The coordinates of the rows' noise.
#[derive(Clone, Copy, Debug)]
pub struct Noise<'a> {
    /// Stream keys `[rows, 2]`.
    pub keys: &'a [u32],
    /// Philox step of each row.
    pub steps: &'a [u32],
    /// Philox site of all rows.
    pub site: u32,
}

/// Where [`forward`] writes; `[rows, capacity]` unless said. Places beyond a row's count become 0.
#[derive(Debug)]
pub struct Actions<'a, T> {
    /// g.
    pub perturbed: &'a mut [T],
    /// y, or one token.
    pub weights: &'a mut [T],
    /// y; empty when not wanted.
    pub soft: &'a mut [T],
    /// One id a row.
    pub proxies: &'a mut [u32],
    /// Entropy of y in nats, one a row; empty when not wanted.
    pub entropies: &'a mut [T],
}

parallel::cut_by_rows!(Actions by proxies: perturbed, weights, soft, proxies, entropies);

impl<'a, T: Float> Kept<'a, T> {
    /// The row's logits and kept ids, which have been checked: ascending, inside the vocabulary, of finite logits.
    #[inline(always)]
    fn row(&self, row: usize) -> Result<(&'a [T], &'a [u32]), Problem> {
        let capacity = self.ids.len() / self.counts.len();
        let ids = &self.ids[row * capacity..(row + 1) * capacity];
        let ids = ids.get(..self.counts[row] as usize).ok_or(Problem::Broken)?;
        let Some(&last) = ids.last() else { return Err(Problem::Empty) };
        if ids.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Problem::Unordered);
        }
        if last as usize >= self.vocabulary {
            return Err(Problem::Broken);
        }
        let logits = &self.logits[row * self.vocabulary..(row + 1) * self.vocabulary];
        let broken = ids.iter().find(|&&id| !(logits[id as usize] * self.inverse_temperature).is_finite());
        match broken.map(|&id| id as usize) {
            Some(id) => Err(Problem::NotFinite { id, value: logits[id].to_f64() }),
            None => Ok((logits, ids)),
        }
    }

    /// Fills `clean` with the log-probabilities of the kept ids among themselves.
    #[inline(always)]
    fn clean(&self, logits: &[T], ids: &[u32], clean: &mut [T]) {
        let running = running_of_kept(logits, self.inverse_temperature, ids);
        let log_sum = running.log_sum();
        for (clean, &id) in clean.iter_mut().zip(ids) {
            let scaled = logits[id as usize] * self.inverse_temperature;
            *clean = log_probability(scaled, running.maximum, log_sum);
        }
    }
}

/// The action of each row.
pub fn forward<T: Float>(
    kept: &Kept<T>,
    rule: &Rule<T>,
    noise: &Noise,
    actions: Actions<T>,
) -> Result<(), Fault> {
    let capacity = kept.ids.len() / kept.counts.len().max(1);
    let faults = Faults::default();
    parallel::elements(actions, 60 * capacity, |first, actions| {
        let Actions { perturbed, weights, soft, proxies, entropies } = actions;
        let mut soft = soft.chunks_exact_mut(capacity);
        let mut entropies = entropies.iter_mut();
        let rows = perturbed.chunks_exact_mut(capacity).zip(weights.chunks_exact_mut(capacity)).zip(proxies);
        for (row, ((perturbed, weights), proxy)) in (first..).zip(rows) {
            let stream = Stream::new(noise.keys, noise.steps, noise.site, row);
            let (soft, entropy) = (soft.next(), entropies.next());
            let action = ActRow { kept, rule, row, stream, perturbed, weights, soft, proxy, entropy };
            if let Err(problem) = isa::run_kernel(action) {
                faults.note(Fault { row, problem });
            }
        }
    });
    faults.first()
}

struct ActRow<'a, 'b, T> {
    kept: &'a Kept<'b, T>,
    rule: &'a Rule<T>,
    row: usize,
    stream: Stream,
    perturbed: &'a mut [T],
    weights: &'a mut [T],
    soft: Option<&'a mut [T]>,
    proxy: &'a mut u32,
    entropy: Option<&'a mut T>,
}

impl<T: Float> isa::Kernel for ActRow<'_, '_, T> {
    type Output = Result<(), Problem>;
    #[inline(always)]
    fn run(self) -> Self::Output {
        let ActRow { kept, rule, row, stream, perturbed, weights, soft, proxy, entropy } = self;
        let (logits, ids) = kept.row(row)?;
        let count = ids.len();
        perturbed[count..].fill(T::ZERO);
        weights[count..].fill(T::ZERO);
        let (g, y) = (&mut perturbed[..count], &mut weights[..count]);
        kept.clean(logits, ids, g);
        match rule.perturbation {
            Perturbation::None => {}
            Perturbation::Gumbel { low, high } => {
                for (ids, g) in ids.chunks(BLOCKS).zip(g.chunks_mut(BLOCKS)) {
                    for (g, noise) in g.iter_mut().zip(stream.noise_of::<T>(ids)) {
                        *g += inside(noise, low, high);
                    }
                }
            }
            Perturbation::Gaussian { strength } => {
                let scaled = |i: usize| logits[ids[i] as usize] * kept.inverse_temperature;
                let square = sum_over(count, |i| scaled(i) * scaled(i));
                let deviation = strength * (square / T::from_f64(count as f64)).sqrt();
                for (g, &id) in g.iter_mut().zip(ids) {
                    let normal = four_normals(stream.block(id / 4, 0))[(id % 4) as usize];
                    *g = deviation.mul_add(T::from_f64(normal), *g);
                }
            }
            Perturbation::Dirichlet { concentration } => dirichlet::draw(stream, concentration, ids, g),
        }
        let inverse_tau = match rule.perturbation {
            Perturbation::Dirichlet { .. } => T::ONE,
            _ => rule.inverse_tau,
        };
        let maximum = g.iter().fold(T::NEG_INFINITY, |maximum, &value| maximum.larger(value));
        for (y, &g) in y.iter_mut().zip(g.iter()) {
            // The difference first: what it rounds is smaller.
            *y = ((g - maximum) * inverse_tau).exp();
        }
        let sum = sum_over(count, |i| y[i]);
        if let Some(entropy) = entropy {
            // -sum y ln y with ln y = (g - max) / tau - ln sum.
            let weighted = sum_over(count, |i| {
                if y[i] == T::ZERO { T::ZERO } else { y[i] * ((g[i] - maximum) * inverse_tau) }
            });
            *entropy = sum.ln() - weighted / sum;
        }
        for y in y.iter_mut() {
            *y = *y / sum;
        }
        let place = match rule.draw {
            true => drawn(y, stream.block(PROXY_BLOCK, 0)[0], kept.vocabulary),
            false => first_largest(ids.iter().map(|&id| logits[id as usize] * kept.inverse_temperature)),
        };
        *proxy = ids[place];
        if let Some(soft) = soft {
            soft.copy_from_slice(weights);
        }
        if rule.hard {
            let place = first_largest(perturbed[..count].iter().copied());
            weights[..count].fill(T::ZERO);
            weights[place] = T::ONE;
        }
        Ok(())
    }
}

/// The value between two bounds.
#[inline(always)]
fn inside<T: Float>(value: T, low: T, high: T) -> T {
    let value = if value < low { low } else { value };
    if value > high { high } else { value }
}

/// Place of the largest value, the first of equals.
#[inline(always)]
fn first_largest<T: Float>(values: impl Iterator<Item = T>) -> usize {
    let (mut place, mut largest) = (0, T::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > largest {
            (place, largest) = (i, value);
        }
    }
    place
}

/// The place that a word draws from weights which sum to 1.
#[inline(always)]
fn drawn<T: Float>(weights: &[T], word: u32, vocabulary: usize) -> usize {
    let unit = (1_u64 << fraction_bits(vocabulary)) as f64;
    let mass = |weight: &T| (weight.to_f64() * unit) as i64 as u64;
    let total: u64 = weights.iter().map(mass).sum();
    let target = ((u128::from(total) * u128::from(word)) >> 32) as u64;
    let mut before = 0;
    for (place, weight) in weights.iter().enumerate() {
        before += mass(weight);
        if before > target {
            return place;
        }
    }
    weights.len() - 1
}
