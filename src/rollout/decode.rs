//! The decode loop's device buffers: logits, sampled tokens and their log-probabilities.
//!
//! A step stays on the device: logits, sampling, the next segment's index; what moves on from step to step (counters of
//! noise, the place of the next log-probabilities) lies there too, so that a step can be captured. Only the sampled
//! tokens cross to the host, once a step; log-probabilities cross once at the end.

use super::masks::Rollout;
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};
use crate::device::{Arena, Identity};
use crate::model::{Model, Sampling, Sequences};
use crate::ops::append::{Append, Pair};
use crate::ops::sampler::{self, Law};
use crate::ops::{Tensor, View, ViewMut, gather, index};
use std::ops::Range;

/// Buffers for a number of rows and of tokens each.
#[derive(Debug)]
pub(super) struct Decoder {
    law: Law,
    seed: u64,
    hidden: Tensor,
    sources: Tensor,
    logits: Tensor,
    workspace: sampler::Workspace,
    tokens: Tensor,
    keys: Tensor,
    /// Index of the next answer token of each active row: the Philox step.
    steps: Tensor,
    /// Log-probabilities of the tokens just sampled.
    latest: Tensor,
    /// One entry a sampled token, in the order of sampling.
    log_probabilities: Tensor,
    /// How many of them there are, U32 `[1, 1]`.
    place: Tensor,
    append: Append,
    identity: Identity,
    /// The member of each sampled token.
    sampled: Vec<usize>,
}

impl Decoder {
    pub fn reserve(
        model: &Model,
        rows: usize,
        max_new_tokens: usize,
        law: Law,
        seed: u64,
    ) -> Result<Decoder> {
        law.validate()?;
        let (device, dtype) = (model.device(), model.dtype());
        let _arena = Arena::Workspace.enter();
        Ok(Decoder {
            law,
            seed,
            hidden: Tensor::zeros(device, [rows, model.config().width], dtype)?,
            sources: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            logits: Tensor::zeros(device, [rows, model.config().vocab], dtype.accumulation())?,
            workspace: sampler::Workspace::reserve(device, rows, model.config().vocab)?,
            tokens: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            keys: Tensor::zeros(device, [rows, 2], Dtype::U32)?,
            steps: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            latest: Tensor::zeros(device, [rows, 1], dtype.accumulation())?,
            log_probabilities: Tensor::zeros(device, [rows * max_new_tokens, 1], dtype.accumulation())?,
            place: Tensor::zeros(device, [1, 1], Dtype::U32)?,
            append: Append::reserve(device, 1)?,
            identity: Identity::fresh(),
            sampled: Vec::with_capacity(rows * max_new_tokens),
        })
    }

    /// Forgets what was sampled.
    pub fn restart(&mut self) -> Result<()> {
        self.sampled.clear();
        self.place.clear()
    }

    /// Sets the streams of the rows that go on from answer token `step` (two uploads).
    pub fn pack(&mut self, rollouts: impl ExactSizeIterator<Item = Rollout>, step: usize) -> Result<()> {
        let steps = vec![step as u32; rollouts.len()];
        let key = |r: Rollout| StreamKey::new(self.seed, r.update, r.prompt, r.rollout, Purpose::Token).0;
        let keys: Vec<u32> = rollouts.flat_map(key).collect();
        self.keys.upload_at(0, &keys)?;
        self.steps.upload_at(0, &steps)
    }

    /// Samples the first token of each of `active` from the latest hidden state of the row in `sources`.
    pub fn first(
        &mut self,
        model: &Model,
        sequences: &Sequences,
        active: &[usize],
        sources: &[u32],
    ) -> Result<Vec<u32>> {
        let count = sources.len();
        self.sources.upload_at(0, sources)?;
        gather::forward(
            sequences.latest_hidden(),
            self.sources.rows(0..count)?,
            self.hidden.rows_mut(0..count)?,
        )?;
        model.logits(self.hidden.rows(0..count)?, self.logits.rows_mut(0..count)?)?;
        self.draw(count)?;
        self.fetch(active.iter().copied())
    }

    /// Samples one token for each of `active` from the hidden states at `at`, which stand in the same order.
    pub fn next(
        &mut self,
        model: &Model,
        sequences: &Sequences,
        active: &[usize],
        at: Range<usize>,
    ) -> Result<Vec<u32>> {
        self.sample(model, sequences.hidden(at)?)?;
        self.fetch(active.iter().copied())
    }

    /// Draws from the first `count` logits, and moves the noise on by one step.
    fn draw(&mut self, count: usize) -> Result<()> {
        sampler::sample(
            self.logits.rows(0..count)?,
            &self.law,
            sampler::Noise { keys: self.keys.rows(0..count)?, steps: self.steps.rows(0..count)?, site: 0 },
            sampler::Sampled {
                tokens: self.tokens.rows_mut(0..count)?,
                log_probability: self.latest.rows_mut(0..count)?,
                support: None,
                workspace: &self.workspace,
            },
        )?;
        let mut pair = [Pair::new(&self.latest, &mut self.log_probabilities, 1)];
        self.append.run(&mut pair, count, self.place.view())?;
        index::advance(self.place.view_mut(), count as u32)?;
        index::repeat(&mut self.steps, 0..count, 0, 1)
    }

    /// Brings the tokens just sampled for `members` to the host: the step's one crossing.
    pub fn fetch(&mut self, members: impl ExactSizeIterator<Item = usize>) -> Result<Vec<u32>> {
        let count = members.len();
        let tokens = self.tokens.rows(0..count)?.fetch::<u32>()?;
        self.sampled.extend(members);
        let tokens = tokens.receive()?;
        sampler::expect_drawn(&tokens, self.logits.rows(0..count)?, &self.law)?;
        Ok(tokens)
    }

    /// The logits that the tokens just sampled were drawn from; `rows` count in the order of sampling.
    pub fn logits(&self, rows: Range<usize>) -> Result<View<'_>> {
        self.logits.rows(rows)
    }

    /// Each sampled token's member and log-probability, in the order of sampling (one download).
    pub fn log_probabilities(&self) -> Result<Vec<(usize, f64)>> {
        let values = self.log_probabilities.rows(0..self.sampled.len())?.numbers()?;
        Ok(self.sampled.iter().copied().zip(values).collect())
    }
}

impl Sampling for Decoder {
    fn key(&self) -> u64 {
        self.identity.number()
    }

    fn ids(&mut self, ids: ViewMut) -> Result<()> {
        index::set_ids(self.tokens.rows(0..ids.count())?, ids)
    }

    fn sample(&mut self, model: &Model, hidden: View) -> Result<()> {
        let count = hidden.count();
        model.logits(hidden, self.logits.rows_mut(0..count)?)?;
        self.draw(count)
    }
}
