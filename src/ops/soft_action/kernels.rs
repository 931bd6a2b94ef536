//! Launches of cuda/soft_action.cu.

use super::{Outputs, Perturbation, Proxy, Score, Scored, Settings, bounds};
use crate::base::Result;
use crate::device::{Argument, Grid, Launcher};
use crate::ops::launch::{ABSENT, arguments, kernels, size};
use crate::ops::sampler::{Noise, Support, support_at};
use crate::ops::{View, ViewMut};
use std::ops::Range;

kernels!("soft_action":
    FORWARD = "soft_action_fwd_f32",
    SCORE = "soft_action_fwd_score_f32",
    SCORE_BACKWARD = "soft_action_bwd_score_f32",
);

/// Threads of a block; `__launch_bounds__`.
const BLOCK: u32 = 512;
/// Ids whose statistics are taken together (cuda/softmax.cuh), and bytes kept of them.
const CHUNK: usize = 1024;
const PART_BYTES: usize = 12;

/// A block a row.
fn grid(rows: usize, shared_bytes: usize) -> Result<Grid> {
    let shared_bytes = size("soft action shared memory", shared_bytes)?;
    Ok(Grid { shared_bytes, ..Grid::linear(size("soft action rows", rows)?, BLOCK) })
}

/// The actions of rows.
pub(super) fn forward(
    gpu: &dyn Launcher,
    logits: View,
    support: &Support,
    at: &Range<usize>,
    settings: &Settings,
    noise: &Noise,
    out: &Outputs,
) -> Result<()> {
    let [ids, counts, capacity] = support_at(support, at)?;
    // The numbers of `Kind` in cuda/soft_action.cu.
    let (kind, first, second) = match settings.perturbation {
        Perturbation::None => (0_u32, 0.0, 0.0),
        Perturbation::Gumbel { clamp } => {
            let (low, high) = bounds(clamp);
            (1, low, high)
        }
        Perturbation::Gaussian { strength } => (2, strength, 0.0),
        Perturbation::Dirichlet { concentration } => (3, concentration, 0.0),
    };
    let arguments = arguments![
        logits.address()?,
        size("soft action vocabulary", logits.cols())?,
        settings.inverse_temperature as f32,
        noise.keys.address()?,
        noise.steps.address()?,
        noise.site,
        ids,
        counts,
        capacity,
        kind,
        first as f32,
        second as f32,
        settings.inverse_tau() as f32,
        u32::from(settings.proxy == Proxy::Draw),
        u32::from(settings.hard),
        out.perturbed.address()?,
        out.weights.address()?,
        out.soft.as_ref().map_or(Ok(ABSENT), |soft| soft.address())?,
        out.proxies.address()?,
        out.entropies.as_ref().map_or(Ok(ABSENT), |entropies| entropies.address())?,
    ];
    gpu.launch(&FORWARD, grid(logits.count(), 0)?, &arguments)
}

/// What both kernels of scores take first, and the shared memory they need.
fn score_arguments(scored: &Scored, kind: &Score) -> Result<(Vec<Argument>, usize)> {
    let vocabulary = scored.logits.cols();
    let [ids, counts, capacity] = support_at(scored.support, &scored.at)?;
    // The numbers of `Which` in cuda/soft_action.cu.
    let (which, first, low, high, mean) = match *kind {
        Score::SoftCe { full } => (u32::from(full), 0.0, 0.0, 0.0, false),
        Score::Concrete { tau, mean } => (2, tau, 0.0, 0.0, mean),
        Score::GumbelG { floor, clamp, mean } => {
            let (low, high) = bounds(clamp);
            (3, floor.unwrap_or(f64::NEG_INFINITY), low, high, mean)
        }
    };
    let list = arguments![
        scored.logits.address()?,
        size("soft action vocabulary", vocabulary)?,
        scored.inverse_temperature as f32,
        ids,
        counts,
        capacity,
        scored.perturbed.address()?,
        scored.weights.address()?,
        which,
        first as f32,
        low as f32,
        high as f32,
        u32::from(mean),
    ];
    let full = matches!(kind, Score::SoftCe { full: true });
    Ok((list.to_vec(), if full { vocabulary.div_ceil(CHUNK) * PART_BYTES } else { 0 }))
}

/// Scores of actions.
pub(super) fn score(gpu: &dyn Launcher, scored: &Scored, kind: &Score, out: &ViewMut) -> Result<()> {
    let (mut list, shared) = score_arguments(scored, kind)?;
    list.push(out.address()?);
    gpu.launch(&SCORE, grid(scored.logits.count(), shared)?, &list)
}

/// Their gradient.
pub(super) fn score_backward(
    gpu: &dyn Launcher,
    d_score: View,
    scored: &Scored,
    kind: &Score,
    d_logits: &ViewMut,
) -> Result<()> {
    let (mut list, shared) = score_arguments(scored, kind)?;
    list.push(d_score.address()?);
    list.push(d_logits.address()?);
    gpu.launch(&SCORE_BACKWARD, grid(scored.logits.count(), shared)?, &list)
}
