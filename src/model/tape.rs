//! The tape: activations by position in contiguous buffers.
//!
//! A recording tape appends; a tape that does not record is scratch for one segment at a time. Consecutive
//! segments without a recurrence between them are differentiated as one packed range, because their rows
//! already stand side by side: the number of matrix products of a backward pass does not depend on how many
//! tokens were sampled one by one.

use super::architecture::Architecture;
use super::block::{Activations, Workspace};
use super::norm;
use super::soft::SoftGradient;
use super::soft_tape::SoftAt;
use crate::base::{Dtype, Error, Result};
use crate::device::{Arena, Device};
use crate::ops::Tensor;
use crate::ops::append::Pair;
use crate::ops::attention::Geometry;
use std::ops::Range;

/// How much the tape keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Nothing: inference.
    Nothing,
    /// Everything backward needs.
    Everything,
    /// Each layer's input; the rest is computed again in backward, one layer at a time.
    LayerInputs,
}

/// One pushed segment, as backward needs it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub at: Range<usize>,
    pub latent: bool,
    pub masked: bool,
    /// Its mixtures; none where their noisy embeddings are constants.
    pub soft: Option<SoftAt>,
    /// Whether positions without a token read embeddings that are constants (soft_inputs.rs).
    pub embedded: bool,
    /// The latent inputs, or the positions that drawn mixtures were predicted from.
    pub feeds: Vec<Feed>,
    /// Places of its gated positions.
    pub gated: Range<usize>,
}

/// One latent input, or drawn mixture: position `at` of the tape read the final hidden state of position `source`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feed {
    pub at: usize,
    pub source: usize,
    /// Which latent of its row this is, from 0.
    pub ordinal: usize,
    pub row: u32,
}

/// Device-side description of each position.
#[derive(Debug)]
pub(super) struct Index {
    pub rows: Tensor,
    pub positions: Tensor,
    pub ids: Tensor,
    /// Row whose feedback state a latent reads: its own, or its prefix's for the first position after it.
    pub feedback_rows: Tensor,
    /// 1 at the last position of each row in its segment.
    pub last: Tensor,
    pub instances: Tensor,
}

/// One layer's share of the tape.
pub(super) struct LayerParts<'a> {
    pub input: &'a Tensor,
    pub output: &'a mut Tensor,
    pub kept: &'a mut Activations,
    pub work: &'a mut Workspace,
    pub index: &'a Index,
}

/// Activations of up to `capacity` positions.
#[derive(Debug)]
pub(super) struct Tape {
    pub record: Record,
    pub capacity: usize,
    layers: usize,
    pub filled: usize,
    pub entries: Vec<Entry>,
    pub index: Index,
    /// `[layers + 1]` residual streams; two in turn when nothing is recorded.
    pub inputs: Vec<Tensor>,
    /// `[layers]`, or one shared by all layers.
    kept: Vec<Activations>,
    pub final_norm: norm::Saved,
    /// Final hidden states after the final norm: what the output head and the latent feedback read.
    pub hidden: Tensor,
    pub work: Workspace,
}

impl Tape {
    pub fn reserve(
        device: &Device,
        architecture: &Architecture,
        geometry: &Geometry,
        width: usize,
        capacity: usize,
        dtype: Dtype,
        record: Record,
    ) -> Result<Tape> {
        let layers = &architecture.layers;
        let Some(first) = layers.first() else {
            return Err(Error::input("model", "it has no layers", "check num_hidden_layers in config.json"));
        };
        let _arena = Arena::Tape.enter();
        let streams = if record == Record::Nothing { 2 } else { layers.len() + 1 };
        let kept = if record == Record::Everything { layers.len() } else { 1 };
        let column = |dtype| Tensor::zeros(device, [capacity, 1], dtype);
        Ok(Tape {
            record,
            capacity,
            layers: layers.len(),
            filled: 0,
            entries: Vec::new(),
            index: Index {
                rows: column(Dtype::U32)?,
                positions: column(Dtype::U32)?,
                ids: column(Dtype::I32)?,
                feedback_rows: column(Dtype::U32)?,
                last: column(Dtype::U32)?,
                instances: column(Dtype::I32)?,
            },
            inputs: (0..streams)
                .map(|_| Tensor::zeros(device, [capacity, width], dtype))
                .collect::<Result<_>>()?,
            kept: (0..kept)
                .map(|_| Activations::reserve(device, first, geometry, capacity, dtype))
                .collect::<Result<_>>()?,
            final_norm: norm::Saved::reserve(&architecture.final_norm, device, capacity, width, dtype)?,
            hidden: Tensor::zeros(device, [capacity, width], dtype)?,
            work: Workspace::reserve(device, first, geometry, capacity, dtype, record != Record::Nothing)?,
        })
    }

    /// Where the next `count` positions go.
    pub fn next(&self, count: usize) -> Result<Range<usize>> {
        let first = if self.record == Record::Nothing { 0 } else { self.filled };
        if first + count > self.capacity {
            return Err(Error::input(
                "tape",
                format!("{count} more positions after {first} do not fit its {}", self.capacity),
                "reserve a longer tape (SequencesPlan::tape_positions)",
            ));
        }
        Ok(first..first + count)
    }

    /// What running layer `layer` reads and writes.
    pub fn layer(&mut self, layer: usize) -> LayerParts<'_> {
        let kept = layer % self.kept.len();
        let streams = self.inputs.len();
        match self.inputs.get_disjoint_mut([layer % streams, (layer + 1) % streams]) {
            Ok([input, output]) => LayerParts {
                input,
                output,
                kept: &mut self.kept[kept],
                work: &mut self.work,
                index: &self.index,
            },
            Err(_) => unreachable!("there are at least two residual streams"),
        }
    }

    /// The final norm's operands: the last residual stream, its output, and what its backward needs.
    pub fn finish(&mut self) -> (&Tensor, &mut Tensor, &mut norm::Saved) {
        let last = (self.layers) % self.inputs.len();
        (&self.inputs[last], &mut self.hidden, &mut self.final_norm)
    }

    /// What running layer `layer` kept of a step, and where it goes on `to`, which records.
    pub fn append_layer<'a>(&'a self, layer: usize, to: &'a mut Tape, geometry: &Geometry) -> Vec<Pair<'a>> {
        let from = &self.inputs[layer % self.inputs.len()];
        let mut pairs = vec![Pair::new(from, &mut to.inputs[layer], 1)];
        if to.record == Record::Everything {
            pairs.extend(self.kept[layer % self.kept.len()].append(&mut to.kept[layer], geometry));
        }
        pairs
    }

    /// The same of what stands behind the last layer, and of the index.
    pub fn append_end<'a>(&'a self, to: &'a mut Tape) -> Vec<Pair<'a>> {
        let last = &self.inputs[self.layers % self.inputs.len()];
        let mut pairs: Vec<Pair> = self.final_norm.append(&mut to.final_norm, 1).into_iter().collect();
        pairs.push(Pair::new(last, &mut to.inputs[self.layers], 1));
        pairs.push(Pair::new(&self.hidden, &mut to.hidden, 1));
        let (from, to) = (&self.index, &mut to.index);
        let index = [
            (&from.rows, &mut to.rows),
            (&from.positions, &mut to.positions),
            (&from.ids, &mut to.ids),
            (&from.feedback_rows, &mut to.feedback_rows),
            (&from.last, &mut to.last),
            (&from.instances, &mut to.instances),
        ];
        pairs.extend(index.into_iter().map(|(from, to)| Pair::new(from, to, 1)));
        pairs
    }

    /// Runs of entries that backward walks as one: a new run begins where an input was fed back, or is a soft mixture,
    /// whose tensors belong to one segment, unless mixtures are constants.
    pub fn units(&self, soft: SoftGradient) -> Vec<Range<usize>> {
        let mut units: Vec<Range<usize>> = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let apart = entry.latent || (entry.soft.is_some() && soft != SoftGradient::Nothing);
            match units.last_mut() {
                Some(unit) if !apart => unit.end = index + 1,
                _ => units.push(index..index + 1),
            }
        }
        units
    }
}
