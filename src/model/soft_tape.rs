//! The mixtures of soft steps: their memory, the draw on the device, and its backward pass.
//!
//! The kept ids, g and y stay on the device; one number a row, the proxy id, is read to see whether the row ends.
//! Backward runs the arrows of soft.rs in reverse where gradients flow through the mixtures
//! ([`super::SoftGradient::Pathwise`]).

use super::Model;
use super::logits::RoundedLogits;
use super::parameters::Gradients;
use super::sequences::{Sequences, not_recording};
use super::soft::{Action, Draw, SoftLaw, SoftRoom};
use crate::base::{Dtype, Error, Result};
use crate::device::{Arena, Device};
use crate::ops::sampler::{self, Noise, Support};
use crate::ops::scatter::Order;
use crate::ops::soft_action;
use crate::ops::{Tensor, View, ViewMut, embedding, gather, index};
use std::ops::Range;

/// Where an entry's mixtures stand.
#[derive(Clone, Debug)]
pub(super) struct SoftAt {
    chunk: usize,
    rows: Range<usize>,
    /// Where they stand on the tape, in runs.
    positions: Vec<Range<usize>>,
    /// The law, where they were drawn on the device.
    drawn: Option<SoftLaw>,
}

impl SoftAt {
    /// Whether the device drew them.
    pub fn is_drawn(&self) -> bool {
        self.drawn.is_some()
    }

    /// Where they stand among the mixtures of their chunk.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The positions of the tape whose inputs they are, in order.
    pub fn positions(&self) -> impl Iterator<Item = Range<usize>> {
        self.positions.iter().cloned()
    }
}

/// Mixtures reserved together.
#[derive(Debug)]
struct Chunk {
    support: Support,
    /// What the input mixes.
    fed: Tensor,
    /// y, where it is not what the input mixes.
    soft: Option<Tensor>,
    perturbed: Tensor,
    proxies: Tensor,
    entropies: Tensor,
}

impl Chunk {
    fn reserve(device: &Device, positions: usize, terms: usize, dtype: Dtype, hard: bool) -> Result<Chunk> {
        let of_terms = || Tensor::zeros(device, [positions, terms], dtype);
        Ok(Chunk {
            support: Support::reserve(device, positions, terms)?,
            fed: of_terms()?,
            soft: hard.then(of_terms).transpose()?,
            perturbed: of_terms()?,
            proxies: Tensor::zeros(device, [positions, 1], Dtype::U32)?,
            entropies: Tensor::zeros(device, [positions, 1], dtype)?,
        })
    }
}

/// Buffers of one draw, used again in backward.
#[derive(Debug)]
pub(super) struct Draws {
    hidden: Tensor,
    logits: Tensor,
    workspace: sampler::Workspace,
    keys: Tensor,
    steps: Tensor,
    /// Which row of the feedback states, or position of the tape, each draw reads.
    sources: Tensor,
    d_weights: Tensor,
    d_hidden: Tensor,
    rounded: RoundedLogits,
    order: Order,
}

impl Draws {
    /// Buffers for the rows of `room` that draw at once.
    pub fn reserve(model: &Model, device: &Device, room: SoftRoom) -> Result<Draws> {
        let (rows, width, dtype) = (room.rows, model.config().width, model.dtype().accumulation());
        let _arena = Arena::Workspace.enter();
        Ok(Draws {
            hidden: Tensor::zeros(device, [rows, width], model.dtype())?,
            logits: Tensor::zeros(device, [rows, model.config().vocab], dtype)?,
            workspace: sampler::Workspace::reserve(device, rows, model.config().vocab)?,
            keys: Tensor::zeros(device, [rows, 2], Dtype::U32)?,
            steps: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            sources: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            d_weights: Tensor::zeros(device, [rows, room.terms], dtype)?,
            d_hidden: Tensor::zeros(device, [rows, width], model.dtype())?,
            rounded: RoundedLogits::reserve(model, device, rows)?,
            order: Order::reserve(device, rows)?,
        })
    }

    /// Where the gradient of the weights of a segment's mixtures goes.
    pub fn d_weights(&mut self, at: &SoftAt) -> Result<ViewMut<'_>> {
        self.d_weights.rows_mut(0..at.rows.len())
    }
}

/// The mixtures of some sequences.
#[derive(Debug)]
pub(super) struct SoftTape {
    room: SoftRoom,
    dtype: Dtype,
    /// The first is the reserved one; others hold mixtures that the host gave beyond the room.
    chunks: Vec<Chunk>,
    filled: usize,
}

impl SoftTape {
    pub fn reserve(model: &Model, device: &Device, room: SoftRoom) -> Result<SoftTape> {
        let dtype = model.dtype().accumulation();
        Ok(SoftTape {
            chunks: vec![Chunk::reserve(device, room.positions, room.terms, dtype, room.hard)?],
            filled: 0,
            room,
            dtype,
        })
    }

    /// Forgets all mixtures.
    pub fn clear(&mut self) {
        self.filled = 0;
        self.chunks.truncate(1);
    }

    /// Forgets the mixtures that the host gave beyond the room.
    pub fn drop_guests(&mut self) {
        self.chunks.truncate(1);
    }

    /// The mixtures of an entry, as the embedding takes them.
    pub fn view(&self, at: &SoftAt) -> Result<embedding::Soft<'_>> {
        let chunk = &self.chunks[at.chunk];
        let rows = at.rows.clone();
        Ok(embedding::Soft { ids: chunk.support.ids().rows(rows.clone())?, weights: chunk.fed.rows(rows)? })
    }

    /// Room for `count` mixtures of the host: reserved, or made now.
    fn place(&mut self, device: &Device, count: usize, terms: usize) -> Result<(usize, Range<usize>)> {
        if terms == self.room.terms && self.filled + count <= self.room.positions {
            self.filled += count;
            return Ok((0, self.filled - count..self.filled));
        }
        self.chunks.push(Chunk::reserve(device, count, terms, self.dtype, false)?);
        Ok((self.chunks.len() - 1, 0..count))
    }

    /// Places for `count` embeddings that are given instead of mixtures.
    ///
    /// # Errors
    /// More than were reserved.
    pub fn pass(&mut self, count: usize) -> Result<Range<usize>> {
        let first = self.filled;
        if first + count > self.room.positions {
            return Err(Error::shape(
                "embedded inputs",
                format!("{count} after {first}"),
                format!("{} positions as reserved", self.room.positions),
            ));
        }
        self.filled += count;
        Ok(first..self.filled)
    }

    /// Brings up mixtures `[count, terms]` that stand at `positions` of the tape.
    pub fn upload(
        &mut self,
        device: &Device,
        (ids, weights, terms): (&[u32], &[f64], usize),
        positions: Vec<Range<usize>>,
    ) -> Result<SoftAt> {
        let count = ids.len() / terms.max(1);
        let (chunk, rows) = self.place(device, count, terms)?;
        let into = &mut self.chunks[chunk];
        into.support.upload(rows.clone(), ids, &vec![terms as u32; count])?;
        into.fed.upload_numbers(rows.start * terms, weights)?;
        Ok(SoftAt { chunk, rows, positions, drawn: None })
    }

    /// The first `count` mixtures, as the embedding takes them.
    pub fn first(&self, count: usize) -> Result<embedding::Soft<'_>> {
        let chunk = &self.chunks[0];
        Ok(embedding::Soft { ids: chunk.support.ids().rows(0..count)?, weights: chunk.fed.rows(0..count)? })
    }

    /// Makes the mixtures of each row of `logits` anew, without noise, in the place of all that were drawn; returns their
    /// entropies (one download). The keys that stand in `draws` decide nothing.
    pub fn mix(&mut self, logits: View, law: &SoftLaw, draws: &Draws) -> Result<Vec<f64>> {
        law.validate()?;
        let (count, terms) = (logits.count(), law.terms(logits.cols()));
        if count > self.room.rows.min(self.room.positions) || terms > self.room.terms {
            let found = format!("{count} rows of {terms} terms");
            return Err(Error::shape("mixtures", found, format!("as reserved: {:?}", self.room)));
        }
        let at = 0..count;
        let (keys, steps) = (draws.keys.rows(at.clone())?, draws.steps.rows(at.clone())?);
        let chunk = &mut self.chunks[0];
        let weights = chunk.fed.rows_mut(at.clone())?;
        let out = sampler::Mixed {
            support: &mut chunk.support,
            at: at.clone(),
            weights,
            workspace: &draws.workspace,
        };
        let mixture = sampler::Mixture { law: &law.law, tau: law.tau };
        sampler::mixture(logits, &mixture, Noise { keys, steps, site: 0 }, out)?;
        let out = soft_action::Outputs {
            perturbed: chunk.perturbed.rows_mut(at.clone())?,
            weights: chunk.fed.rows_mut(at.clone())?,
            soft: None,
            proxies: chunk.proxies.rows_mut(at.clone())?,
            entropies: Some(chunk.entropies.rows_mut(at.clone())?),
        };
        let noise = Noise { keys, steps, site: 0 };
        soft_action::forward(logits, &chunk.support, at.clone(), &law.settings(), noise, out)?;
        self.filled = count;
        chunk.entropies.rows(at)?.numbers()
    }

    fn latest(&self, count: usize) -> Result<Range<usize>> {
        match self.filled.checked_sub(count) {
            Some(first) => Ok(first..self.filled),
            None => Err(Error::shape("mixtures", count, format!("at most {} drawn so far", self.filled))),
        }
    }

    /// The proxy ids of the latest `count` mixtures (one download).
    pub fn proxies(&self, count: usize) -> Result<Vec<u32>> {
        self.chunks[0].proxies.rows(self.latest(count)?)?.download()
    }

    /// Entropies of the latest `count` mixtures in nats (one download).
    pub fn entropies(&self, count: usize) -> Result<Vec<f64>> {
        self.chunks[0].entropies.rows(self.latest(count)?)?.numbers()
    }

    /// How many mixtures stand here.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// The latest `count` actions, in the order of drawing (a few downloads).
    pub fn actions(&self, count: usize) -> Result<Vec<Action>> {
        let (chunk, terms) = (&self.chunks[0], self.room.terms);
        let rows = self.latest(count)?;
        let (ids, counts) = chunk.support.download(rows.clone())?;
        let weights = chunk.soft.as_ref().unwrap_or(&chunk.fed).rows(rows.clone())?.numbers()?;
        let perturbed = chunk.perturbed.rows(rows.clone())?.numbers()?;
        let proxies = chunk.proxies.rows(rows)?.download::<u32>()?;
        let action = |n: usize| {
            let of = n * terms..n * terms + counts[n] as usize;
            Action {
                ids: ids[of.clone()].to_vec(),
                perturbed: perturbed[of.clone()].to_vec(),
                weights: weights[of].to_vec(),
                proxy: proxies[n],
                input: Vec::new(),
            }
        };
        Ok((0..count).map(action).collect())
    }
}

impl Model {
    /// Draws the mixtures of a segment of [`super::Input::Drawn`] that stands at `position` of the tape: its nth
    /// position reads the feedback state of row `feedback_rows[n]`.
    pub(super) fn draw(
        &self,
        sequences: &mut Sequences,
        feedback_rows: &[u32],
        draw: &Draw,
        position: usize,
    ) -> Result<SoftAt> {
        let Sequences { soft, draws, feedback, .. } = sequences;
        let (count, law, room, first) = (feedback_rows.len(), &draw.law, soft.room, soft.filled);
        law.validate()?;
        let terms = law.terms(self.config().vocab);
        let fits = count <= room.rows && terms <= room.terms && first + count <= room.positions;
        if !fits || (law.hard && !room.hard) {
            return Err(Error::shape(
                "drawn mixtures",
                format!("{count} rows of {terms} terms after {first} positions, hard: {}", law.hard),
                format!("as reserved: {room:?}"),
            ));
        }
        if draw.keys.len() != count {
            return Err(Error::shape("keys of drawn mixtures", draw.keys.len(), count));
        }
        let (at, here) = (first..first + count, 0..count);
        let keys: Vec<u32> = draw.keys.iter().flat_map(|(key, _)| key.0).collect();
        let steps: Vec<u32> = draw.keys.iter().map(|(_, step)| *step).collect();
        draws.keys.upload_at(0, &keys)?;
        draws.steps.upload_at(0, &steps)?;
        draws.sources.upload_at(0, feedback_rows)?;
        let (index, hidden) = (draws.sources.rows(here.clone())?, draws.hidden.rows_mut(here.clone())?);
        gather::forward(feedback.view(), index, hidden)?;
        self.logits(draws.hidden.rows(here.clone())?, draws.logits.rows_mut(here.clone())?)?;
        let logits = draws.logits.rows(here.clone())?;
        let noise = Noise { keys: draws.keys.rows(here.clone())?, steps: draws.steps.rows(here)?, site: 0 };
        let chunk = &mut soft.chunks[0];
        match &draw.stored {
            None => {
                let mixture = sampler::Mixture { law: &law.law, tau: law.tau };
                let weights = chunk.fed.rows_mut(at.clone())?;
                let out = sampler::Mixed {
                    support: &mut chunk.support,
                    at: at.clone(),
                    weights,
                    workspace: &draws.workspace,
                };
                sampler::mixture(logits, &mixture, noise, out)?;
            }
            Some(stored) => {
                let (ids, counts) = packed(stored, count, room.terms)?;
                chunk.support.upload(at.clone(), &ids, &counts)?;
            }
        }
        let out = soft_action::Outputs {
            perturbed: chunk.perturbed.rows_mut(at.clone())?,
            weights: chunk.fed.rows_mut(at.clone())?,
            soft: match &mut chunk.soft {
                Some(soft) if law.hard => Some(soft.rows_mut(at.clone())?),
                _ => None,
            },
            proxies: chunk.proxies.rows_mut(at.clone())?,
            entropies: Some(chunk.entropies.rows_mut(at.clone())?),
        };
        soft_action::forward(logits, &chunk.support, at.clone(), &law.settings(), noise, out)?;
        soft.filled = at.end;
        let positions = std::iter::once(position..position + count).collect();
        Ok(SoftAt { chunk: 0, rows: at, positions, drawn: Some(*law) })
    }

    /// Walks back from the gradient that stands in [`Draws::d_weights`] to the hidden states at `sources` of the tape
    /// and to the head. A source of -1 is owed nothing.
    pub(super) fn backward_drawn(
        &self,
        sequences: &mut Sequences,
        at: &SoftAt,
        sources: &[i32],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Sequences { soft, draws, tape, hidden_gradient, .. } = sequences;
        let (Some(law), Some(into)) = (at.drawn, hidden_gradient) else { return Err(not_recording()) };
        let here = 0..at.rows.len();
        for (n, _) in sources.iter().enumerate().filter(|(_, source)| **source < 0) {
            zero(draws.d_weights.rows_mut(n..n + 1)?)?;
        }
        let chunk = &soft.chunks[at.chunk];
        let y = if law.hard { chunk.soft.as_ref().unwrap_or(&chunk.fed) } else { &chunk.fed };
        let (d_weights, y) = (draws.d_weights.rows(here.clone())?, y.rows(at.rows.clone())?);
        let d_logits = draws.logits.rows_mut(here.clone())?;
        soft_action::backward(d_weights, y, &law.settings(), &chunk.support, at.rows.clone(), d_logits)?;
        let from: Vec<u32> = sources.iter().map(|&source| source.max(0) as u32).collect();
        draws.sources.upload_at(0, &from)?;
        let index = draws.sources.rows(here.clone())?;
        gather::forward(tape.hidden.view(), index, draws.hidden.rows_mut(here.clone())?)?;
        let (d_logits, hidden) = (draws.logits.rows(here.clone())?, draws.hidden.rows(here.clone())?);
        let d_hidden = draws.d_hidden.rows_mut(here.clone())?;
        self.backward_logits(d_logits, hidden, d_hidden, &mut draws.rounded, gradients)?;
        gather::backward(draws.d_hidden.rows(here)?, index, into.view_mut(), &mut draws.order)
    }
}

/// Kept ids as `[count, terms]` with their counts; unused places hold id 0.
pub(super) fn packed(stored: &[Vec<u32>], count: usize, terms: usize) -> Result<(Vec<u32>, Vec<u32>)> {
    if stored.len() != count || stored.iter().any(|ids| ids.is_empty() || ids.len() > terms) {
        let longest = stored.iter().map(Vec::len).max().unwrap_or(0);
        return Err(Error::shape(
            "stored supports",
            format!("{} supports of up to {longest} ids", stored.len()),
            format!("{count} supports of 1 to {terms} ids"),
        ));
    }
    let mut ids = vec![0; count * terms];
    for (kept, ids) in stored.iter().zip(ids.chunks_exact_mut(terms.max(1))) {
        ids[..kept.len()].copy_from_slice(kept);
    }
    Ok((ids, stored.iter().map(|kept| kept.len() as u32).collect()))
}

fn zero(view: ViewMut) -> Result<()> {
    match view.dtype() {
        Dtype::F64 => index::fill(view, 0.0_f64),
        _ => index::fill(view, 0.0_f32),
    }
}
