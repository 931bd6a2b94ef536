//! The backward walk (algorithms A.6): units of the tape in reverse; dK and dV gather in the cache's gradient,
//! and each latent hands its input's gradient to the position whose final hidden state it read.

use super::Model;
use super::block::{Masks, Positions};
use super::norm;
use super::parameters::Gradients;
use super::sequences::{Sequences, not_recording};
use super::soft::SoftGradient;
use super::tape::{Entry, Record};
use super::taps::Taps;
use crate::base::{Dtype, Result};
use crate::device::{Arena, Device};
use crate::ops::mask::{self, MaskSet, SiteKind};
use crate::ops::scatter::Order;
use crate::ops::{Tensor, embedding, latent};
use std::ops::Range;

/// Where gradients stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncation {
    /// No gradient through the recurrence: latent inputs are constants.
    pub detach_latent: bool,
    /// No gradient into keys and values of earlier units (prompt and latents seen from later positions).
    pub detach_kv: bool,
    /// Gradient through the last so many latents (or drawn mixtures) of each row only (`bptt_k`).
    pub latent_steps: Option<usize>,
    /// Which gradients flow into soft inputs. `detach_latent` holds for drawn mixtures too.
    pub soft: SoftGradient,
}

/// Buffers of the walk.
#[derive(Debug)]
pub(super) struct Workspace {
    /// Gradient of the residual stream, for the unit being walked.
    stream: Tensor,
    /// By position on the tape: which position's hidden state a latent read; -1 where no gradient flows.
    sources: Tensor,
    /// In which order gradients of inputs are added to the rows they came from.
    order: Order,
}

impl Workspace {
    pub fn reserve(device: &Device, positions: usize, width: usize, dtype: Dtype) -> Result<Workspace> {
        let _arena = Arena::Workspace.enter();
        Ok(Workspace {
            stream: Tensor::zeros(device, [positions, width], dtype)?,
            sources: Tensor::zeros(device, [positions, 1], Dtype::I32)?,
            order: Order::reserve(device, positions)?,
        })
    }
}

impl Model {
    /// Adds to `gradients` the gradient of a loss whose gradient by the final hidden states stands in
    /// [`Sequences::hidden_gradient_mut`]. `masks` is the set the segments ran under.
    ///
    /// # Errors
    /// The sequences were not recorded.
    pub fn backward(
        &self,
        sequences: &mut Sequences,
        masks: Option<&MaskSet>,
        truncation: Truncation,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.backward_tapped(sequences, masks, truncation, gradients, None)
    }

    /// [`Model::backward`] of a loss that also depends on states of the layers: their gradients stand in
    /// [`Taps::gradient_mut`].
    ///
    /// # Errors
    /// As [`Model::backward`].
    pub fn backward_tapped(
        &self,
        sequences: &mut Sequences,
        masks: Option<&MaskSet>,
        truncation: Truncation,
        gradients: &mut Gradients,
        mut taps: Option<&mut Taps>,
    ) -> Result<()> {
        let sources = latent_sources(sequences, truncation);
        let Some(work) = &mut sequences.backward else { return Err(not_recording()) };
        if sources.iter().any(|&source| source >= 0) {
            work.sources.upload_at(0, &sources)?;
        }
        for cache in &mut sequences.cache_gradient {
            cache.clear_slots(sequences.slots)?;
        }
        if let Some(taps) = taps.as_deref_mut() {
            taps.inject_final(sequences.hidden_gradient_mut()?)?;
        }
        let units = sequences.tape.units(truncation.soft);
        let constant = truncation.soft == SoftGradient::Nothing;
        if constant {
            mark_soft(sequences, |_| -1)?;
        }
        if masks.is_some() {
            for at in unmasked(&sequences.tape.entries, &units) {
                sequences.tape.index.instances.upload_at(at.start, &vec![-1_i32; at.len()])?;
            }
        }
        for unit in units.into_iter().rev() {
            let taps = taps.as_deref_mut();
            self.backward_unit(sequences, unit, masks, truncation, gradients, &sources, taps)?;
        }
        if constant {
            mark_soft(sequences, |n| -2 - n as i32)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_unit(
        &self,
        sequences: &mut Sequences,
        entries: Range<usize>,
        masks: Option<&MaskSet>,
        truncation: Truncation,
        gradients: &mut Gradients,
        sources: &[i32],
        mut taps: Option<&mut Taps>,
    ) -> Result<()> {
        let entries_of = &sequences.tape.entries[entries];
        // Only the first entry of a unit may hold latents.
        let is_latent = entries_of[0].latent && entries_of[0].soft.is_none();
        let latents = is_latent.then(|| entries_of[0].at.clone());
        let at = entries_of[0].at.start..entries_of[entries_of.len() - 1].at.end;
        let masks = masks.filter(|_| entries_of.iter().any(|entry| entry.masked));
        let soft = entries_of[0].soft.clone().filter(|_| truncation.soft != SoftGradient::Nothing);
        let first = entries_of[0].at.clone();
        let mut places =
            entries_of.iter().map(|entry| entry.gated.clone()).filter(|places| !places.is_empty());
        // Entries stand on the tape in the order of their places.
        let gated = places.next().map_or(0..0, |first| first.start..places.next_back().unwrap_or(first).end);
        let run = 0..at.len();

        let (Some(hidden_gradient), Some(back)) = (&sequences.hidden_gradient, &mut sequences.backward)
        else {
            return Err(not_recording());
        };
        let tape = &mut sequences.tape;
        norm::backward(
            &self.architecture.final_norm,
            &self.parameters,
            (
                hidden_gradient.rows(at.clone())?,
                tape.inputs[self.architecture.layers.len()].rows(at.clone())?,
            ),
            &tape.final_norm,
            at.clone(),
            back.stream.rows_mut(run.clone())?,
            gradients,
        )?;
        let tapped = taps.as_deref_mut().map(|taps| taps.enter(&at)).transpose()?.unwrap_or_default();
        for layer in (0..self.architecture.layers.len()).rev() {
            if sequences.tape.record == Record::LayerInputs {
                self.run_layer(sequences, layer, at.clone(), masks, true)?;
            }
            self.backward_layer(sequences, layer, at.clone(), masks, truncation, gradients)?;
            if let (Some(taps), Some(back)) = (taps.as_deref_mut(), &mut sequences.backward) {
                taps.inject(layer, tapped.clone(), back.stream.rows_mut(run.clone())?)?;
            }
        }

        let (Some(hidden_gradient), Some(back)) = (&mut sequences.hidden_gradient, &mut sequences.backward)
        else {
            return Err(not_recording());
        };
        let index = &sequences.tape.index;
        let site = |kind| -> Result<_> {
            Ok(match masks {
                None => None,
                Some(set) => set.at(kind, 0, index.instances.rows(at.clone())?),
            })
        };
        if let Some(mask) = site(SiteKind::Emb)? {
            mask::apply(back.stream.rows_mut(run.clone())?, mask)?;
        }
        let ids = index.ids.rows(at.clone())?;
        let inputs = embedding::Inputs {
            ids,
            positions: index.positions.rows(at.clone())?,
            soft: soft.as_ref().map(|at| sequences.soft.view(at)).transpose()?,
        };
        let stream = back.stream.rows(run.clone())?;
        if let (Some(room), false) = (&mut sequences.gated, gated.is_empty()) {
            room.backward(self, stream, at.start, gated, gradients)?;
        }
        let owed = &sources[first.clone()];
        let drawn = soft.as_ref().filter(|soft| soft.is_drawn() && owed.iter().any(|&source| source >= 0));
        let d_weights = drawn.map(|soft| sequences.draws.d_weights(soft)).transpose()?;
        let [dtable, dpositions] = gradients.embeddings(self.architecture.position_embedding)?;
        if dtable.is_some() || d_weights.is_some() {
            let order = &mut back.order;
            embedding::backward(stream, &inputs, self.table(), dtable, dpositions, d_weights, order)?;
        }
        if let Some(soft) = drawn {
            return self.backward_drawn(sequences, soft, owed, gradients);
        }
        let flows = sources[at.clone()].iter().any(|&source| source >= 0);
        if let (Some(room), Some(latents)) = (&mut sequences.projected, latents) {
            let run = 0..latents.len();
            let mask = match masks {
                None => None,
                Some(set) => set.at(SiteKind::Latent, 0, index.instances.rows(latents.clone())?),
            };
            let sources = if flows { Some(back.sources.rows(latents.clone())?) } else { None };
            let (ids, stream) = (index.ids.rows(latents.clone())?, back.stream.rows(run)?);
            let (into, order) = (hidden_gradient.view_mut(), &mut back.order);
            room.backward(self, stream, (ids, sources), mask, latents, into, order, gradients)?;
        } else if flows {
            let sources = back.sources.rows(at.clone())?;
            let (mask, into) = (site(SiteKind::Latent)?, hidden_gradient.view_mut());
            latent::backward(stream, ids, sources, mask, into, &mut back.order)?;
        }
        Ok(())
    }

    fn backward_layer(
        &self,
        sequences: &mut Sequences,
        layer: usize,
        at: Range<usize>,
        masks: Option<&MaskSet>,
        truncation: Truncation,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let block = self.block(layer, &sequences.cache_layout, sequences.rope.as_ref());
        let Some(back) = &mut sequences.backward else { return Err(not_recording()) };
        let parts = sequences.tape.layer(layer);
        let index = parts.index;
        let on = Positions {
            rows: index.rows.rows(at.clone())?,
            positions: index.positions.rows(at.clone())?,
            masks: match masks {
                None => None,
                Some(set) => Some(Masks { set, instances: index.instances.rows(at.clone())? }),
            },
        };
        block.backward(
            on,
            parts.input.rows(at.clone())?,
            &mut back.stream,
            (&sequences.cache[layer], &mut sequences.cache_gradient[layer]),
            (parts.kept, at),
            parts.work,
            gradients,
            truncation.detach_kv,
        )
    }
}

/// Runs of positions that ran without a mask in units where others had one. A unit is differentiated as a whole, so there
/// each position needs its instance; running an unmasked segment need not write it.
fn unmasked(entries: &[Entry], units: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for unit in units {
        let entries = &entries[unit.clone()];
        if !entries.iter().any(|entry| entry.masked) {
            continue;
        }
        for entry in entries.iter().filter(|entry| !entry.masked) {
            match runs.last_mut() {
                Some(run) if run.end == entry.at.start => run.end = entry.at.end,
                _ => runs.push(entry.at.clone()),
            }
        }
    }
    runs
}

/// For each position of the tape, the position whose hidden state it read and whose gradient it owes.
fn latent_sources(sequences: &Sequences, truncation: Truncation) -> Vec<i32> {
    let mut sources = vec![-1; sequences.tape.filled];
    if truncation.detach_latent {
        return sources;
    }
    for entry in &sequences.tape.entries {
        if entry.soft.is_some() && truncation.soft != SoftGradient::Pathwise {
            continue;
        }
        for feed in &entry.feeds {
            let from_the_end = sequences.rows[feed.row as usize].latents - feed.ordinal;
            if truncation.latent_steps.is_none_or(|kept| from_the_end <= kept) {
                sources[feed.at] = feed.source as i32;
            }
        }
    }
    sources
}

/// Writes `id(n)` where mixture n of each entry stands: -1 makes it a constant, -2 - n itself again.
fn mark_soft(sequences: &mut Sequences, id: impl Fn(usize) -> i32) -> Result<()> {
    let Sequences { tape, .. } = sequences;
    for soft in tape.entries.iter().filter_map(|entry| entry.soft.as_ref()) {
        let mut n = 0;
        for run in soft.positions() {
            let ids: Vec<i32> = (n..n + run.len()).map(&id).collect();
            tape.index.ids.upload_at(run.start, &ids)?;
            n += run.len();
        }
    }
    Ok(())
}
