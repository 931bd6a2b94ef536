//! Steps: one position for each of some rows, the latent steps and decode steps of a rollout. On a GPU a step that comes
//! again is one launch of a captured graph ([`Steps`]).
//!
//! A graph's addresses are fixed. So a step runs in a *window*: a tape of one step, whose index the host writes, or the
//! step itself moves on by one position. Where the tape does not record, it is the window. Where it records, what the
//! window kept is appended to it, layer by layer, at a place that lies in device memory (ops/append).
//!
//! Captured are steps of tokens and latents, under masks and noise, in shared rows or rows of their own. Not captured,
//! and counted as eager: drawn, given, kept and gated mixtures, and latents through a projector where the tape records.

use super::Model;
use super::architecture::Architecture;
use super::segment::{Input, Segment};
use super::sequences::Sequences;
use super::tape::{Entry, Index, Record, Tape};
use crate::base::{Dtype, Result};
use crate::device::{Arena, Device, StepRun};
use crate::ops::append::Append;
use crate::ops::attention::Geometry;
use crate::ops::mask::MaskSet;
use crate::ops::{Tensor, View, ViewMut, index};
use std::ops::Range;

/// More tensors than a layer keeps, or stand behind the last one.
const TENSORS: usize = 24;

/// What samples the tokens of decode steps. Both calls are part of a captured step: what they launch depends on
/// [`Sampling::key`] and the number of rows alone.
pub trait Sampling {
    /// Tells this sampler, and its law, from all others.
    fn key(&self) -> u64;
    /// Writes the tokens sampled last, one a row, as input ids (I32 `[n, 1]`).
    ///
    /// # Errors
    /// Another number of rows.
    fn ids(&mut self, ids: ViewMut) -> Result<()>;
    /// Samples the next token of each row from its final hidden state `[n, width]`.
    ///
    /// # Errors
    /// Those of the sampler.
    fn sample(&mut self, model: &Model, hidden: View) -> Result<()>;
}

/// A decode step's sampler, and the number that mask instances grow by from the step before, where there are masks.
pub(super) struct Decode<'a> {
    pub sampling: &'a mut dyn Sampling,
    pub stride: Option<i32>,
}

impl Decode<'_> {
    /// The index `to` of the step behind that at `from`.
    pub fn advance(&mut self, index: &mut Index, from: Range<usize>, to: Range<usize>) -> Result<()> {
        if from != to {
            for tensor in [&mut index.rows, &mut index.feedback_rows, &mut index.last] {
                index::repeat(tensor, from.clone(), to.start, 0)?;
            }
        }
        index::repeat(&mut index.positions, from.clone(), to.start, 1)?;
        if let Some(stride) = self.stride {
            index::repeat(&mut index.instances, from, to.start, stride)?;
        }
        self.sampling.ids(index.ids.rows_mut(to)?)
    }
}

/// What a run of the layers needs beside its entry.
#[derive(Clone, Copy)]
pub(super) struct Under<'a> {
    pub masks: Option<&'a MaskSet>,
    /// Deviation of the noise on latents.
    pub noise: Option<f64>,
}

/// Where the steps of a recording tape run.
#[derive(Debug)]
pub(super) struct Window {
    /// The window itself; while a step runs, the tape that records.
    tape: Tape,
    /// Where on the tape the next step goes, U32 `[1, 1]`.
    place: Tensor,
    /// What `place` holds.
    placed: usize,
    /// Where the step stands on the tape whose index the window holds.
    pub at: Option<Range<usize>>,
    layers: Vec<Append>,
    end: Append,
}

impl Window {
    /// A window of `rows` rows beside a tape that records on a GPU that captures; none elsewhere.
    pub fn reserve(
        device: &Device,
        (architecture, geometry): (&Architecture, &Geometry),
        width: usize,
        rows: usize,
        dtype: Dtype,
        record: Record,
    ) -> Result<Option<Box<Window>>> {
        let captures = matches!(device, Device::Gpu(gpu) if gpu.uses_graphs());
        if !captures || record == Record::Nothing || rows == 0 {
            return Ok(None);
        }
        let tape = Tape::reserve(device, architecture, geometry, width, rows, dtype, Record::Nothing)?;
        let _arena = Arena::Workspace.enter();
        let append = || Append::reserve(device, TENSORS);
        Ok(Some(Box::new(Window {
            tape,
            place: Tensor::zeros(device, [1, 1], Dtype::U32)?,
            placed: 0,
            at: None,
            layers: architecture.layers.iter().map(|_| append()).collect::<Result<_>>()?,
            end: append()?,
        })))
    }

    /// The index of the step at hand.
    pub fn index(&mut self) -> &mut Index {
        &mut self.tape.index
    }

    /// Appends what layer `layer` kept of `count` rows in `window` to the tape.
    fn append_layer(&mut self, layer: usize, window: &Tape, count: usize, geometry: &Geometry) -> Result<()> {
        let mut pairs = window.append_layer(layer, &mut self.tape, geometry);
        self.layers[layer].run(&mut pairs, count, self.place.view())
    }

    /// Appends the rest, and moves the place on.
    fn append_end(&mut self, window: &Tape, count: usize) -> Result<()> {
        self.end.run(&mut window.append_end(&mut self.tape), count, self.place.view())?;
        index::advance(self.place.view_mut(), count as u32)
    }
}

impl Model {
    /// Whether a segment, of which `last` marks each row's last position, is a step that can be captured. One that is a
    /// step and cannot is counted.
    pub(super) fn is_step(&self, sequences: &Sequences, segment: &Segment, last: &[u32]) -> bool {
        if !last.iter().all(|&last| last == 1) {
            return false;
        }
        let records = sequences.tape.record != Record::Nothing;
        // Without a window a recording tape has no fixed place for a step.
        let fixed = !records || sequences.window.is_some();
        let captured = fixed
            && segment.inputs.iter().all(|input| match input {
                Input::Token(_) => true,
                Input::Latent | Input::LatentOf(_) => !records || sequences.projected.is_none(),
                Input::Soft(_) | Input::Drawn | Input::Embedded(_) | Input::Kept(_) | Input::Gated(_) => {
                    false
                }
            });
        if let (false, Device::Gpu(gpu)) = (captured, self.device()) {
            gpu.traffic().step(StepRun::Eager);
        }
        captured
    }

    /// Runs a step in the window, or on a tape that does not record, and appends `entry` to the tape. The window's index
    /// is that of the step, or with `decode` that of the step before.
    pub(super) fn run_step(
        &self,
        sequences: &mut Sequences,
        entry: Entry,
        under: Under,
        mut decode: Option<Decode>,
    ) -> Result<()> {
        let (count, at) = (entry.at.len(), entry.at.clone());
        let masked = under.masks.filter(|_| entry.masked).map_or(0, |set| set.identity().number());
        let key = [
            self.identity.number(),
            count as u64,
            u64::from(entry.latent),
            masked,
            u64::from(under.noise.is_some()),
            under.noise.unwrap_or(0.0).to_bits(),
            decode.as_ref().map_or(0, |decode| decode.sampling.key()),
            decode
                .as_ref()
                .and_then(|decode| decode.stride)
                .map_or(u64::MAX, |stride| u64::from(stride as u32)),
        ];
        let mut steps = std::mem::take(&mut sequences.steps);
        let mut window = sequences.window.take();
        let mut outcome = Ok(());
        if let Some(window) = &mut window {
            if window.placed != at.start {
                outcome = window.place.upload_at(0, &[at.start as u32]);
                window.placed = at.start;
            }
            std::mem::swap(&mut window.tape, &mut sequences.tape);
        }
        let here = 0..count;
        let mut body = || {
            if let Some(decode) = &mut decode {
                decode.advance(&mut sequences.tape.index, here.clone(), here.clone())?;
            }
            self.embed(sequences, &entry, here.clone(), under)?;
            for layer in 0..self.architecture.layers.len() {
                let masks = under.masks.filter(|_| entry.masked);
                self.run_layer(sequences, layer, here.clone(), masks, false)?;
                if let Some(window) = &mut window {
                    window.append_layer(layer, &sequences.tape, count, &self.geometry)?;
                }
            }
            self.finish(sequences, here.clone())?;
            if let Some(window) = &mut window {
                window.append_end(&sequences.tape, count)?;
            }
            match &mut decode {
                Some(decode) => decode.sampling.sample(self, sequences.tape.hidden.rows(here.clone())?),
                None => Ok(()),
            }
        };
        outcome = outcome.and_then(|()| steps.run(self.device(), &key, &mut body));
        if let Some(window) = &mut window {
            std::mem::swap(&mut window.tape, &mut sequences.tape);
            // A step that failed halfway may have moved the place or not.
            window.placed = if outcome.is_ok() { at.end } else { usize::MAX };
            window.at = Some(at);
        }
        (sequences.steps, sequences.window) = (steps, window);
        outcome.map(|()| self.note(sequences, entry))
    }
}
