//! Drawing tokens from rows of logits. Operation: ops/sampler.rs.
//!
//! ```text
//! s[v] = logit[v] / T
//! kept = ids after top-k, then top-p, then min-p (the order of Hugging Face); everything where none is asked for
//! draw   argmax over kept of s[v] + eps[v], eps[v] from word v of the row's stream (cpu/gumbel.rs)
//! score  (s[token] - M) - ln sum over kept of exp(s - M)
//! mix    weights of all kept ids instead of one id (sampler/mixture.rs)
//! ```
//!
//! That the argmax follows softmax(s) is the Gumbel-max trick (Gumbel 1954; Maddison, Tarlow & Minka 2014). All ties
//! go to the lower id. Minus infinity is probability 0 and is never kept.
//!
//! A row's draw depends on its logits, key and step alone.

mod filter;
mod mixture;
mod support;

pub use filter::Filters;
pub(in crate::cpu) use filter::fraction_bits;
pub use mixture::{Mixed, Mixtures, mix, mix_backward};
pub(in crate::cpu) use support::Faults;
pub use support::{Stored, score, score_backward};

use super::float::{Float, LANES};
use super::gumbel::{self, BLOCKS, WORDS};
use super::log_probability::{CHUNK, Running, log_probability};
use super::{isa, parallel};
use crate::base::rng::StreamKey;
use filter::Kept;
use std::sync::{Mutex, PoisonError};

/// The law of a draw.
#[derive(Clone, Copy, Debug)]
pub enum Law<T> {
    /// The most probable id, scored under the plain softmax.
    Greedy,
    /// A draw from the filtered, tempered softmax.
    Categorical {
        /// 1 / T.
        inverse_temperature: T,
        /// What is kept.
        filters: Filters,
    },
}

impl<T: Float> Law<T> {
    fn inverse_temperature(self) -> T {
        match self {
            Law::Greedy => T::ONE,
            Law::Categorical { inverse_temperature, .. } => inverse_temperature,
        }
    }
}

/// What rows are drawn from.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// `[rows, vocabulary]`.
    pub logits: &'a [T],
    /// Ids of a row.
    pub vocabulary: usize,
    /// Stream keys `[rows, 2]`.
    pub keys: &'a [u32],
    /// Philox step of each row.
    pub steps: &'a [u32],
    /// Philox site of all rows.
    pub site: u32,
    /// The law of all rows.
    pub law: Law<T>,
}

/// What is drawn.
#[derive(Debug)]
pub struct Draws<'a, T> {
    /// One id a row.
    pub tokens: &'a mut [u32],
    /// Its log-probability under the law.
    pub log_probability: &'a mut [T],
    /// Kept ids `[rows, capacity]`, ascending; empty when not wanted.
    pub ids: &'a mut [u32],
    /// Number of kept ids of each row, 0 for the whole vocabulary; empty when not wanted.
    pub counts: &'a mut [u32],
    /// Room for kept ids in a row; 0 when not wanted.
    pub capacity: usize,
}

parallel::cut_by_rows!(Draws by tokens: tokens, log_probability, ids, counts; capacity);

/// Why a row could not be drawn or scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Problem {
    /// The scaled logit of `id` is NaN or plus infinity.
    NotFinite {
        /// Where.
        id: usize,
        /// The logit.
        value: f64,
    },
    /// All logits are minus infinity.
    NoMass,
    /// More ids are kept than the support has room for.
    Full {
        /// How many.
        kept: usize,
    },
    /// The scored token is not in the support.
    NotKept {
        /// The token.
        token: u32,
    },
    /// A stored id is outside the vocabulary, or a count above the capacity.
    Broken,
    /// Stored ids do not ascend.
    Unordered,
    /// No ids are stored where at least one is needed.
    Empty,
}

/// The first row with a problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// Which row.
    pub row: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// The fault of the lowest row that has one: it does not depend on threads.
#[derive(Debug, Default)]
struct FirstFault(Mutex<Option<Fault>>);

impl FirstFault {
    fn report(&self, fault: Fault) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none_or(|first| fault.row < first.row) {
            *first = Some(fault);
        }
    }
    fn result(self) -> Result<(), Fault> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Draws one id for each row.
pub fn sample<T: Float>(rows: &Rows<T>, draws: Draws<T>) -> Result<(), Fault> {
    let fault = FirstFault::default();
    parallel::elements(draws, 100 * rows.vocabulary, |first, draws| {
        let Draws { tokens, log_probability, ids, counts, capacity } = draws;
        let mut supports = ids.chunks_exact_mut(capacity.max(1)).zip(counts);
        for (row, (token, score)) in (first..).zip(tokens.iter_mut().zip(log_probability)) {
            let support = supports.next();
            match isa::run_kernel(SampleRow { rows, row, support }) {
                Ok(drawn) => (*token, *score) = drawn,
                Err(problem) => return fault.report(Fault { row, problem }),
            }
        }
    });
    fault.result()
}

struct SampleRow<'a, 'b, T> {
    rows: &'a Rows<'b, T>,
    row: usize,
    support: Option<(&'a mut [u32], &'a mut u32)>,
}

impl<T: Float> isa::Kernel for SampleRow<'_, '_, T> {
    type Output = Result<(u32, T), Problem>;
    #[inline(always)]
    fn run(self) -> Self::Output {
        sample_row(self.rows, self.row, self.support)
    }
}

#[inline(always)]
fn sample_row<T: Float>(
    rows: &Rows<T>,
    row: usize,
    support: Option<(&mut [u32], &mut u32)>,
) -> Result<(u32, T), Problem> {
    let logits = &rows.logits[row * rows.vocabulary..(row + 1) * rows.vocabulary];
    let stream = Stream::of(rows, row);
    let scale = rows.law.inverse_temperature();
    let running = Running::of::<false>(logits, scale);
    check(logits, scale, &running)?;
    let filters = match rows.law {
        Law::Greedy => Filters::default(),
        Law::Categorical { filters, .. } => filters.effective(rows.vocabulary),
    };
    if filters != Filters::default() {
        let mut kept = Kept::take();
        kept.select(logits, scale, running.maximum, filters);
        let drawn = draw_kept(logits, scale, &kept.ids, stream, support);
        kept.give_back();
        return drawn;
    }
    if let Some((_, count)) = support {
        *count = 0;
    }
    let token = match rows.law {
        Law::Greedy => first_of(logits, running.maximum),
        Law::Categorical { .. } => stream.draw(logits, scale, running.maximum),
    };
    Ok((token as u32, log_probability(logits[token] * scale, running.maximum, running.log_sum())))
}

/// Stores the kept ids and draws one of them.
#[inline(always)]
fn draw_kept<T: Float>(
    logits: &[T],
    scale: T,
    kept: &[u32],
    stream: Stream,
    support: Option<(&mut [u32], &mut u32)>,
) -> Result<(u32, T), Problem> {
    if let Some((ids, count)) = support {
        ids.get_mut(..kept.len()).ok_or(Problem::Full { kept: kept.len() })?.copy_from_slice(kept);
        *count = kept.len() as u32;
    }
    let running = running_of_kept(logits, scale, kept);
    let token = stream.draw_among(logits, kept, scale);
    let score = log_probability(logits[token as usize] * scale, running.maximum, running.log_sum());
    Ok((token, score))
}

/// Statistics of the kept logits, in ascending order of ids, as if they were a whole row.
#[inline(always)]
pub(in crate::cpu) fn running_of_kept<T: Float>(logits: &[T], scale: T, kept: &[u32]) -> Running<T> {
    let mut running = Running::EMPTY;
    for ids in kept.chunks(CHUNK) {
        let mut values = [T::ZERO; CHUNK];
        for (value, &id) in values.iter_mut().zip(ids) {
            *value = logits[id as usize];
        }
        running.absorb::<false>(&values[..ids.len()], scale);
    }
    running
}

/// A row that has a softmax: no NaN, no plus infinity, something above minus infinity.
#[inline(always)]
pub(in crate::cpu) fn check<T: Float>(logits: &[T], scale: T, running: &Running<T>) -> Result<(), Problem> {
    // NaN and infinity - infinity both reach the sum.
    if !running.sum.is_finite() {
        let bad = |&(_, &l): &(usize, &T)| {
            let s = l * scale;
            !s.is_finite() && s != T::NEG_INFINITY
        };
        let (id, value) = logits.iter().enumerate().find(bad).map_or((0, f64::NAN), |(i, l)| (i, l.to_f64()));
        return Err(Problem::NotFinite { id, value });
    }
    if running.maximum == T::NEG_INFINITY {
        return Err(Problem::NoMass);
    }
    Ok(())
}

/// The first position of `value`, which is present.
#[inline(always)]
fn first_of<T: Float>(values: &[T], value: T) -> usize {
    let (blocks, tail) = values.as_chunks::<LANES>();
    for (i, block) in blocks.iter().enumerate() {
        if block.iter().fold(false, |found, &v| found | (v == value)) {
            return i * LANES + block.iter().position(|&v| v == value).unwrap_or(0);
        }
    }
    blocks.len() * LANES + tail.iter().position(|&v| v == value).unwrap_or(0)
}

#[inline(always)]
fn largest_of<T: Float>(values: &[T; WORDS]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    for half in values.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            lanes[i] = lanes[i].larger(half[i]);
        }
    }
    lanes.into_iter().fold(T::NEG_INFINITY, T::larger)
}

/// Noise of one row.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Stream {
    key: StreamKey,
    site: u32,
    step: u32,
}

impl Stream {
    #[inline(always)]
    fn of<T>(rows: &Rows<T>, row: usize) -> Stream {
        Stream::new(rows.keys, rows.steps, rows.site, row)
    }

    /// The stream of `row` by keys `[rows, 2]` and steps `[rows]`.
    #[inline(always)]
    pub(in crate::cpu) fn new(keys: &[u32], steps: &[u32], site: u32, row: usize) -> Stream {
        Stream { key: StreamKey([keys[2 * row], keys[2 * row + 1]]), site, step: steps[row] }
    }

    /// The four words of a block.
    #[inline(always)]
    pub(in crate::cpu) fn block(self, block: u32, attempt: u32) -> [u32; 4] {
        self.key.block(self.site, self.step, block, attempt)
    }

    /// argmax of s + eps over the whole vocabulary.
    #[inline(always)]
    fn draw<T: Float>(self, logits: &[T], scale: T, maximum: T) -> usize {
        let (mut best, mut winner) = (T::NEG_INFINITY, 0);
        // Whoever wins is not below this; ids that cannot reach it need no noise, which spares most of a row.
        let mut floor = maximum + T::from_f64(f64::from(gumbel::SMALLEST));
        let reach = T::from_f64(f64::from(gumbel::LARGEST));
        for (i, block) in logits.chunks(WORDS).enumerate() {
            let mut values = [T::NEG_INFINITY; WORDS];
            for (value, &logit) in values.iter_mut().zip(block) {
                *value = logit * scale;
            }
            if largest_of(&values) + reach < floor {
                continue;
            }
            let mut blocks = [(i * BLOCKS) as u32; BLOCKS];
            for (b, block) in blocks.iter_mut().enumerate() {
                *block += b as u32;
            }
            let noise = gumbel::noise_of_blocks(self.key, self.site, self.step, blocks);
            for (value, noise) in values.iter_mut().zip(noise) {
                *value += T::from_f64(f64::from(noise));
            }
            let largest = largest_of(&values);
            if largest > best {
                (best, winner) = (largest, i * WORDS + first_of(&values, largest));
                floor = floor.larger(best);
            }
        }
        winner
    }

    /// argmax of s + eps over some ids, which ascend.
    #[inline(always)]
    fn draw_among<T: Float>(self, logits: &[T], kept: &[u32], scale: T) -> u32 {
        let (mut best, mut winner) = (T::NEG_INFINITY, kept.first().copied().unwrap_or(0));
        for ids in kept.chunks(BLOCKS) {
            for (&id, noise) in ids.iter().zip(self.noise_of::<T>(ids)) {
                let value = logits[id as usize] * scale + noise;
                if value > best {
                    (best, winner) = (value, id);
                }
            }
        }
        winner
    }

    /// Noise of up to [`BLOCKS`] ids.
    #[inline(always)]
    pub(in crate::cpu) fn noise_of<T: Float>(self, ids: &[u32]) -> [T; BLOCKS] {
        let mut blocks = [0; BLOCKS];
        for (block, id) in blocks.iter_mut().zip(ids) {
            *block = id / 4;
        }
        let noise = gumbel::noise_of_blocks(self.key, self.site, self.step, blocks);
        let mut out = [T::ZERO; BLOCKS];
        for (b, (out, id)) in out.iter_mut().zip(ids).enumerate() {
            *out = T::from_f64(f64::from(noise[4 * b + (id % 4) as usize]));
        }
        out
    }
}
