//! Generation: prompt, latent steps, then sampled tokens until a stop token or the limit.
//!
//! A decode step stays on the device: logits, sampling, the next segment's index. Only the sampled tokens cross
//! to the host, once a step; log-probabilities cross once at the end. When rows stop, the survivors are packed
//! into a new segment, which costs one upload of their index.

use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Error, Result};
use crate::model::{Model, Record, RowPlan, Segment, Sequences, SequencesPlan};
use crate::ops::sampler::{self, Law};
use crate::ops::{Tensor, index};
use std::ops::{ControlFlow, Range};

/// How to generate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Latent steps after each prompt: the final hidden state is fed back so many times (Coconut A.5).
    pub latents: usize,
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
    /// The sampled tokens, the stop token included.
    pub ids: Vec<u32>,
    /// Log-probability of each token under the law it was sampled from (nats).
    pub log_probabilities: Vec<f64>,
    /// Whether a stop token ended it.
    pub stopped: bool,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Prompt and latents.
    pub prefill: std::time::Duration,
    /// Sampling.
    pub decode: std::time::Duration,
    /// Tokens sampled by all rows.
    pub tokens: usize,
}

/// Generates for all prompts together. `on_token(row, token)` sees each token as it is sampled and may stop all.
///
/// # Errors
/// An empty prompt, a prompt that with its answer exceeds the position table, an invalid law, non-finite logits.
pub fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &Options,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<(Vec<Generated>, Timing)> {
    if let Some(row) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::input(
            "prompt",
            format!("prompt {row} has no tokens"),
            "give at least one token (for example the beginning-of-text token)",
        ));
    }
    let mut generated =
        vec![Generated { ids: vec![], log_probabilities: vec![], stopped: false }; prompts.len()];
    let mut timing = Timing::default();
    if prompts.is_empty() {
        return Ok((generated, timing));
    }
    let started = std::time::Instant::now();
    let extra = options.latents + options.after_latents.len() + options.max_new_tokens.saturating_sub(1);
    let mut sequences = Sequences::new(
        model,
        &SequencesPlan {
            rows: prompts.iter().map(|prompt| RowPlan::own(prompt.len() + extra)).collect(),
            record: Record::Nothing,
            tape_positions: prompts
                .iter()
                .map(Vec::len)
                .sum::<usize>()
                .max(prompts.len() * options.after_latents.len()),
        },
    )?;
    prefill(model, &mut sequences, prompts, options)?;
    timing.prefill = started.elapsed();
    if options.max_new_tokens == 0 {
        return Ok((generated, timing));
    }

    let decoding = std::time::Instant::now();
    let mut decoder = Decoder::new(model, prompts.len(), options)?;
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    let mut at: Option<Range<usize>> = None;
    for step in 0..options.max_new_tokens {
        let tokens = decoder.sample(model, &sequences, &active, at.clone())?;
        timing.tokens += tokens.len();
        let mut halted = false;
        for (&row, &token) in active.iter().zip(&tokens) {
            generated[row].ids.push(token);
            generated[row].stopped = options.stop.contains(&token);
            halted |= on_token(row, token).is_break();
        }
        let survivors: Vec<usize> = active.iter().copied().filter(|&row| !generated[row].stopped).collect();
        if survivors.is_empty() || halted || step + 1 == options.max_new_tokens {
            break;
        }
        let rows: Vec<u32> = survivors.iter().map(|&row| row as u32).collect();
        at = Some(match at {
            Some(previous) if survivors.len() == active.len() => {
                model.forward_sampled(&mut sequences, previous, &rows, decoder.tokens(rows.len())?, None)?
            }
            _ => {
                let mut segment = Segment::new();
                for &row in &survivors {
                    segment.extend_tokens(row as u32, &generated[row].ids[generated[row].ids.len() - 1..]);
                }
                decoder.repack(&survivors, step + 1)?;
                model.forward(&mut sequences, &segment, None)?
            }
        });
        active = survivors;
    }
    decoder.log_probabilities(&mut generated)?;
    timing.decode = decoding.elapsed();
    Ok((generated, timing))
}

/// Runs the prompts, the latent steps and the tokens after them.
fn prefill(model: &Model, sequences: &mut Sequences, prompts: &[Vec<u32>], options: &Options) -> Result<()> {
    let mut segment = Segment::new();
    for (row, prompt) in prompts.iter().enumerate() {
        segment.extend_tokens(row as u32, prompt);
    }
    model.forward(sequences, &segment, None)?;
    for _ in 0..options.latents {
        model.forward(sequences, &Segment::latent_step(0..prompts.len() as u32), None)?;
    }
    let mut segment = Segment::new();
    for row in 0..prompts.len() {
        segment.extend_tokens(row as u32, &options.after_latents);
    }
    model.forward(sequences, &segment, None)?;
    Ok(())
}

/// Device buffers of the decode loop.
struct Decoder<'a> {
    law: &'a Law,
    seed: u64,
    logits: Tensor,
    tokens: Tensor,
    keys: Tensor,
    /// Index of the next answer token of each active row: the Philox step.
    steps: Tensor,
    /// One entry a sampled token, in the order of sampling.
    log_probabilities: Tensor,
    /// The row of each sampled token.
    sampled_rows: Vec<usize>,
}

impl<'a> Decoder<'a> {
    fn new(model: &Model, rows: usize, options: &'a Options) -> Result<Decoder<'a>> {
        let (device, dtype) = (model.device(), model.dtype());
        let mut decoder = Decoder {
            law: &options.law,
            seed: options.seed,
            logits: Tensor::zeros(device, [rows, model.config().vocab], dtype)?,
            tokens: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            keys: Tensor::zeros(device, [rows, 2], Dtype::U32)?,
            steps: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            log_probabilities: Tensor::zeros(device, [rows * options.max_new_tokens, 1], dtype)?,
            sampled_rows: Vec::with_capacity(rows * options.max_new_tokens),
        };
        decoder.repack(&(0..rows).collect::<Vec<_>>(), 0)?;
        Ok(decoder)
    }

    /// Sets keys and steps for the rows that go on (two uploads).
    fn repack(&mut self, rows: &[usize], step: usize) -> Result<()> {
        let key = |&row: &usize| StreamKey::new(self.seed, 0, row as u32, 0, Purpose::Token).0;
        let keys: Vec<u32> = rows.iter().flat_map(key).collect();
        self.keys.upload_at(0, &keys)?;
        self.steps.upload_at(0, &vec![step as u32; rows.len()])
    }

    /// Samples one token for each active row from the hidden states at `at` (the rows' latest when absent) and
    /// brings the tokens to the host: the step's one crossing.
    fn sample(
        &mut self,
        model: &Model,
        sequences: &Sequences,
        active: &[usize],
        at: Option<Range<usize>>,
    ) -> Result<Vec<u32>> {
        let count = active.len();
        let hidden = match at {
            Some(at) => sequences.hidden(at)?,
            None => sequences.latest_hidden(),
        };
        model.logits(hidden, self.logits.rows_mut(0..count)?)?;
        let first = self.sampled_rows.len();
        sampler::sample(
            self.logits.rows(0..count)?,
            self.law,
            sampler::Noise { keys: self.keys.rows(0..count)?, steps: self.steps.rows(0..count)?, site: 0 },
            sampler::Sampled {
                tokens: self.tokens.rows_mut(0..count)?,
                log_probability: self.log_probabilities.rows_mut(first..first + count)?,
                support: None,
            },
        )?;
        index::repeat(&mut self.steps, 0..count, 0, 1)?;
        self.sampled_rows.extend(active);
        self.tokens.rows(0..count)?.download::<u32>()
    }

    /// The tokens just sampled, on the device.
    fn tokens(&self, count: usize) -> Result<crate::ops::View<'_>> {
        self.tokens.rows(0..count)
    }

    /// Hands the log-probabilities out to their rows (one download).
    fn log_probabilities(&self, generated: &mut [Generated]) -> Result<()> {
        let view = self.log_probabilities.rows(0..self.sampled_rows.len())?;
        let values: Vec<f64> = match view.dtype() {
            Dtype::F64 => view.download::<f64>()?,
            _ => view.download::<f32>()?.into_iter().map(f64::from).collect(),
        };
        for (&row, value) in self.sampled_rows.iter().zip(values) {
            generated[row].log_probabilities.push(value);
        }
        Ok(())
    }
}
