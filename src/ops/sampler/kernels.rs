//! Launches of cuda/sampler.cu: which kernel serves which law, and its arguments.

use super::{Law, Noise, Scored, Support};
use crate::base::Result;
use crate::cpu::sampler::Filters;
use crate::device::{Argument, Grid, Launcher};
use crate::ops::launch::{ABSENT, arguments, kernels, size};
use crate::ops::{View, ViewMut};
use std::ops::Range;

kernels!("sampler":
    WHOLE = "sampler_fwd_f32",
    EXTENTS = "sampler_fwd_extents_f32",
    TOP_K = "sampler_fwd_topk_f32",
    MASSES = "sampler_fwd_masses_f32",
    CERTAIN = "sampler_fwd_certain_f32",
    WIDE = "sampler_fwd_wide_f32",
    SCORE = "sampler_fwd_score_f32",
    SCORE_BACKWARD = "sampler_bwd_score_f32",
    MIXTURE_BACKWARD = "sampler_bwd_mixture_f32",
);

/// Threads of a block that ends a row or has a piece of it, and of one that has chunks; `__launch_bounds__`.
const BLOCK: u32 = 512;
const CHUNK_BLOCK: u32 = 128;
/// The largest k that is kept in one pass.
const TOP_K_MOST: usize = 128;
/// Ids whose statistics are taken together (cuda/softmax.cuh), and bytes kept of them.
const CHUNK: usize = 1024;
const PART_BYTES: usize = 12;
/// Ids of a block that has chunks, and of one that has a piece.
const CHUNKS: usize = 4 * CHUNK;
const PIECE: usize = 4096;

/// Where a draw writes.
pub(super) struct Places {
    /// The workspace.
    pub memory: Argument,
    pub tokens: Argument,
    pub log_probability: Argument,
    pub ids: Argument,
    pub counts: Argument,
    pub capacity: usize,
    /// Weights of a mixture instead of a token, and 1 / tau.
    pub weights: Option<(Argument, f64)>,
}

impl Places {
    /// Nothing is wanted.
    pub const NONE: Places = Places {
        memory: ABSENT,
        tokens: ABSENT,
        log_probability: ABSENT,
        ids: ABSENT,
        counts: ABSENT,
        capacity: 0,
        weights: None,
    };

    /// The same with rows of a support.
    pub fn with_support(self, support: &Support, at: &Range<usize>) -> Result<Places> {
        Ok(Places {
            ids: support.ids.rows(at.clone())?.address()?,
            counts: support.counts.rows(at.clone())?.address()?,
            capacity: support.ids.shape().as_matrix().1,
            ..self
        })
    }
}

/// A block a row.
fn grid(rows: usize, shared_bytes: usize) -> Result<Grid> {
    let shared_bytes = size("sampler shared memory", shared_bytes)?;
    Ok(Grid { shared_bytes, ..Grid::linear(size("sampler rows", rows)?, BLOCK) })
}

/// A block for each piece of each row.
fn pieces(rows: usize, vocabulary: usize, shared_bytes: usize) -> Result<Grid> {
    grid(rows * vocabulary.div_ceil(PIECE), shared_bytes)
}

/// Shared memory for the statistics of a vocabulary's chunks.
fn parts(vocabulary: usize) -> usize {
    vocabulary.div_ceil(CHUNK) * PART_BYTES
}

/// Draws a token, or makes a mixture, of each row.
pub(super) fn draw(
    gpu: &dyn Launcher,
    logits: View,
    law: &Law,
    noise: &Noise,
    places: &Places,
) -> Result<()> {
    let (rows, vocabulary) = (logits.count(), logits.cols());
    let filters = match *law {
        Law::Greedy => Filters::default(),
        Law::Categorical { top_k, top_p, min_p, .. } => Filters { top_k, top_p, min_p }.effective(vocabulary),
    };
    let (logits, keys, steps) = (logits.address()?, noise.keys.address()?, noise.steps.address()?);
    let width = size("sampler vocabulary", vocabulary)?;
    let scale = law.inverse_temperature() as f32;
    let chunks = Grid::linear(size("sampler rows", rows * vocabulary.div_ceil(CHUNKS))?, CHUNK_BLOCK);
    if filters == Filters::default() && places.weights.is_none() {
        let arguments = arguments![
            logits,
            width,
            scale,
            u32::from(*law == Law::Greedy),
            keys,
            steps,
            noise.site,
            places.memory,
            places.tokens,
            places.log_probability,
            places.counts,
        ];
        return gpu.launch(&WHOLE, chunks, &arguments);
    }
    let top_k = filters.top_k.unwrap_or(0);
    let (few, k) = ((1..=TOP_K_MOST).contains(&top_k), size("sampler top_k", top_k)?);
    gpu.launch(&EXTENTS, chunks, &arguments![logits, width, scale, u32::from(!few), places.memory])?;
    let top_p = Argument::U64(filters.top_p.map_or(0, f64::to_bits));
    let min_p = filters.min_p.map_or(0.0, |p| p as f32);
    let (weights, inverse_tau) = places.weights.unwrap_or((ABSENT, 1.0));
    let draw = arguments![logits, width, scale, k, top_p, min_p, keys, steps, noise.site, places.memory];
    let out = arguments![
        places.tokens,
        places.log_probability,
        places.ids,
        places.counts,
        size("sampler support", places.capacity)?,
        weights,
        inverse_tau as f32,
    ];
    if few {
        return gpu.launch(&TOP_K, grid(rows, 0)?, &[&draw[..], &out].concat());
    }
    // Two cuts in one row are left to the block that ends it.
    let split = top_k == 0 || filters.top_p.is_none();
    if split {
        if top_k > 0 || filters.top_p.is_some() {
            let by_mass = u32::from(filters.top_p.is_some());
            gpu.launch(
                &MASSES,
                pieces(rows, vocabulary, 0)?,
                &arguments![logits, width, scale, by_mass, places.memory],
            )?;
        }
        let wanted = [places.weights.is_none(), places.ids != ABSENT].map(|wanted| u32::from(wanted).into());
        gpu.launch(&CERTAIN, pieces(rows, vocabulary, 0)?, &[&draw[..], &wanted].concat())?;
    }
    gpu.launch(&WIDE, grid(rows, 0)?, &[&draw[..], &arguments![u32::from(split)], &out].concat())
}

/// Addresses of rows of a support.
pub(in crate::ops) fn support_at(support: &Support, at: &Range<usize>) -> Result<[Argument; 3]> {
    Ok([
        support.ids.rows(at.clone())?.address()?,
        support.counts.rows(at.clone())?.address()?,
        size("sampler support", support.ids.shape().as_matrix().1)?.into(),
    ])
}

/// Log-probabilities on a support.
pub(super) fn score(
    gpu: &dyn Launcher,
    scored: &Scored,
    support: &Support,
    at: &Range<usize>,
    out: &ViewMut,
) -> Result<()> {
    let (rows, vocabulary) = (scored.logits.count(), scored.logits.cols());
    let [ids, counts, capacity] = support_at(support, at)?;
    let arguments = arguments![
        scored.logits.address()?,
        size("sampler vocabulary", vocabulary)?,
        scored.law.inverse_temperature() as f32,
        scored.tokens.address()?,
        ids,
        counts,
        capacity,
        out.address()?,
    ];
    gpu.launch(&SCORE, grid(rows, parts(vocabulary))?, &arguments)
}

/// Their gradient.
pub(super) fn score_backward(
    gpu: &dyn Launcher,
    dy: View,
    scored: &Scored,
    support: &Support,
    at: &Range<usize>,
    d_logits: &ViewMut,
) -> Result<()> {
    let (rows, vocabulary) = (scored.logits.count(), scored.logits.cols());
    let [ids, counts, capacity] = support_at(support, at)?;
    let arguments = arguments![
        dy.address()?,
        scored.logits.address()?,
        size("sampler vocabulary", vocabulary)?,
        scored.law.inverse_temperature() as f32,
        scored.tokens.address()?,
        ids,
        counts,
        capacity,
        d_logits.address()?,
    ];
    gpu.launch(&SCORE_BACKWARD, pieces(rows, vocabulary, parts(vocabulary))?, &arguments)
}

/// Gradient of mixtures.
pub(in crate::ops) fn mixture_backward(
    gpu: &dyn Launcher,
    dy: View,
    weights: View,
    factor: f32,
    support: &Support,
    at: &Range<usize>,
    d_logits: &ViewMut,
) -> Result<()> {
    let [ids, counts, capacity] = support_at(support, at)?;
    let arguments = arguments![
        dy.address()?,
        weights.address()?,
        ids,
        counts,
        capacity,
        factor,
        size("sampler vocabulary", d_logits.cols())?,
        d_logits.address()?,
    ];
    gpu.launch(&MIXTURE_BACKWARD, pieces(weights.count(), d_logits.cols(), 0)?, &arguments)
}
