//! Generation: one rollout a prompt, without masks, each token handed out as it is sampled.

use super::group::{Drawing, Form, Gating, Limits, Member, Rollouts, SoftThoughts, Thoughts};
use super::masks::{Masking, Rollout};
use crate::base::Result;
use crate::model::{Model, Record};
use crate::ops::sampler::Law;
use std::ops::ControlFlow;

pub use super::group::Timing;

/// How to generate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Latent steps after each prompt: the final hidden state is fed back so many times (Coconut A.5).
    pub latents: usize,
    /// Latents are mixtures of token embeddings.
    pub soft: Option<SoftThoughts>,
    /// Tokens fed after the latents, e.g. an end-of-thought marker.
    pub after_latents: Vec<u32>,
    /// How tokens are chosen.
    pub law: Law,
    /// Most tokens to sample per prompt.
    pub max_new_tokens: usize,
    /// Tokens that end an answer; the stop token is part of the answer.
    pub stop: Vec<u32>,
    /// Seed of the sampling noise; row r uses the stream (0, r, 0, Token).
    pub seed: u64,
}

/// What came of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The tokens that stand for soft steps.
    pub proxies: Vec<u32>,
    /// The sampled tokens, the stop token included.
    pub ids: Vec<u32>,
    /// Log-probability of each token under the law it was sampled from (nats).
    pub log_probabilities: Vec<f64>,
    /// Whether a stop token ended it.
    pub stopped: bool,
}

/// Generates for all prompts together. `on_token(row, token)` sees each token as it is sampled and may stop all.
///
/// # Errors
/// An empty prompt, a prompt that with its answer exceeds the position table, an invalid law, non-finite logits.
pub fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &Options,
    on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<(Vec<Generated>, Timing)> {
    generate_gated(model, prompts, options, None, on_token)
}

/// The same where the first tokens are read with what they were sampled from, through the model's gates (HRPO).
///
/// # Errors
/// As [`generate`]; a model without gates.
pub fn generate_gated(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &Options,
    gate: Option<Gating>,
    on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<(Vec<Generated>, Timing)> {
    let members: Vec<Member> = (0..prompts.len())
        .map(|prompt| Member { prompt, coordinates: Rollout { prompt: prompt as u32, ..Rollout::default() } })
        .collect();
    let mut rollouts = reserve(model, prompts, options, gate)?;
    let trajectories = rollouts.sample(model, prompts, &members, on_token)?;
    let generated = trajectories
        .into_iter()
        .map(|t| Generated {
            proxies: t.actions.iter().map(|action| action.proxy).collect(),
            ids: t.tokens,
            log_probabilities: t.log_probabilities,
            stopped: t.stopped,
        })
        .collect();
    Ok((generated, rollouts.timing()))
}

/// Reserves what [`generate_gated`] takes, and gives it back.
///
/// # Errors
/// As [`generate_gated`], before anything is generated.
pub fn rehearse(model: &Model, prompts: &[Vec<u32>], options: &Options, gate: Option<Gating>) -> Result<()> {
    reserve(model, prompts, options, gate).map(drop)
}

fn reserve(model: &Model, prompts: &[Vec<u32>], options: &Options, gate: Option<Gating>) -> Result<Rollouts> {
    let form = Form {
        start: Vec::new(),
        latents: options.latents,
        end: options.after_latents.clone(),
        stop: options.stop.clone(),
        max_new_tokens: options.max_new_tokens,
    };
    let drawing = Drawing {
        gate,
        masking: Masking::NONE,
        latent_noise: 0.0,
        soft: options.soft,
        thoughts: Thoughts::Own,
        law: options.law,
        seed: options.seed,
        share: false,
    };
    let limits = Limits {
        prompts: prompts.len(),
        members: prompts.len(),
        prompt_tokens: prompts.iter().map(Vec::len).max().unwrap_or(0),
    };
    Rollouts::reserve(model, form, drawing, limits, Record::Nothing)
}
