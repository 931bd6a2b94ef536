//! Scoring soft steps: the "log-probability" of given actions under the logits of now (algorithms C.2, C.3), and its
//! gradient by those logits. Rows of logits run in chunks, so that `[N, V]` never exists.

use super::Model;
use super::logits::RoundedLogits;
use super::parameters::Gradients;
use super::sequences::{Sequences, not_recording};
use super::soft::{Action, SoftLaw};
use super::soft_density::{Chunk, Density, NoisyInput};
use super::soft_support::{Churn, Selection};
use super::soft_tape::packed;
use crate::base::{Dtype, Error, Result};
use crate::device::Arena;
use crate::ops::sampler::Support;
use crate::ops::scatter::Order;
use crate::ops::soft_action::{self, Score};
use crate::ops::{Tensor, View, ViewMut, gather};
use std::ops::Range;

/// Elements of the logits that exist at once.
const CHUNK_ELEMENTS: usize = 1 << 22;

/// What the score of a soft step is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SoftScore {
    /// That of its weights, or of what they were made from.
    Action(Score),
    /// The density of the noisy embedding that was read.
    Input(NoisyInput),
}

impl From<Score> for SoftScore {
    fn from(score: Score) -> SoftScore {
        SoftScore::Action(score)
    }
}

impl From<NoisyInput> for SoftScore {
    fn from(law: NoisyInput) -> SoftScore {
        SoftScore::Input(law)
    }
}

/// How scores are computed.
#[derive(Debug)]
enum Kind {
    Action(Score),
    Input(Box<Density>),
}

/// Buffers for up to `capacity` scored actions.
#[derive(Debug)]
pub struct SoftScores {
    capacity: usize,
    terms: usize,
    count: usize,
    /// Rows of a chunk.
    chunk: usize,
    kind: Kind,
    selection: Option<Selection>,
    inverse_temperature: f64,
    index: Tensor,
    hidden: Tensor,
    hidden_gradient: Tensor,
    support: Support,
    perturbed: Tensor,
    weights: Tensor,
    logits: Tensor,
    logits_gradient: Tensor,
    rounded: RoundedLogits,
    value: Tensor,
    coefficient: Tensor,
    order: Order,
}

impl SoftScores {
    /// Room for `capacity` actions of up to `terms` ids. `kind` says what a score is, and `inverse_temperature` under
    /// which softmax.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn reserve(
        model: &Model,
        capacity: usize,
        terms: usize,
        kind: impl Into<SoftScore>,
        inverse_temperature: f64,
    ) -> Result<SoftScores> {
        let (device, dtype, width) = (model.device(), model.dtype(), model.config().width);
        let vocabulary = model.config().vocab;
        let chunk = (CHUNK_ELEMENTS / vocabulary.max(1)).clamp(1, capacity.max(1));
        let _arena = Arena::Workspace.enter();
        let column = |dtype: Dtype| Tensor::zeros(device, [capacity, 1], dtype);
        let of_terms = || Tensor::zeros(device, [capacity, terms], dtype.accumulation());
        let of_logits = || Tensor::zeros(device, [chunk, vocabulary], dtype.accumulation());
        Ok(SoftScores {
            capacity,
            terms,
            count: 0,
            chunk,
            kind: match kind.into() {
                SoftScore::Action(score) => Kind::Action(score),
                SoftScore::Input(law) => Kind::Input(Box::new(Density::reserve(
                    model,
                    law,
                    inverse_temperature,
                    (capacity, chunk, terms),
                )?)),
            },
            selection: None,
            inverse_temperature,
            index: column(Dtype::U32)?,
            hidden: Tensor::zeros(device, [capacity, width], dtype)?,
            hidden_gradient: Tensor::zeros(device, [capacity, width], dtype)?,
            support: Support::reserve(device, capacity, terms)?,
            perturbed: of_terms()?,
            weights: of_terms()?,
            logits: of_logits()?,
            logits_gradient: of_logits()?,
            rounded: RoundedLogits::reserve(model, device, chunk)?,
            value: column(dtype.accumulation())?,
            coefficient: column(dtype.accumulation())?,
            order: Order::reserve(device, capacity)?,
        })
    }

    /// Room for [`SoftScores::forward_watching`] to select the ids that actions keep under `law`.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn watch_support(&mut self, model: &Model, law: &SoftLaw) -> Result<()> {
        self.selection = Some(Selection::reserve(model, law, self.chunk)?);
        Ok(())
    }

    /// Scores `actions[i]` by the logits that position `positions[i]` of the tape predicts.
    ///
    /// # Errors
    /// More actions than reserved, an empty action, or one with more ids than reserved.
    pub fn forward(
        &mut self,
        model: &Model,
        sequences: &Sequences,
        positions: &[u32],
        actions: &[&Action],
    ) -> Result<()> {
        self.score(model, sequences, (positions, actions), false).map(drop)
    }

    /// The same, and how the ids that the actions keep have changed since they were drawn (two downloads a chunk); nothing
    /// unless [`SoftScores::watch_support`] was called.
    ///
    /// # Errors
    /// As [`SoftScores::forward`].
    pub fn forward_watching(
        &mut self,
        model: &Model,
        sequences: &Sequences,
        positions: &[u32],
        actions: &[&Action],
    ) -> Result<Churn> {
        self.score(model, sequences, (positions, actions), true)
    }

    fn score(
        &mut self,
        model: &Model,
        sequences: &Sequences,
        (positions, actions): (&[u32], &[&Action]),
        watch: bool,
    ) -> Result<Churn> {
        let (count, terms) = (positions.len(), self.terms);
        if count > self.capacity || actions.len() != count {
            return Err(Error::shape(
                "scored actions",
                format!("{count} positions, {} actions", actions.len()),
                format!("equal numbers, at most {}", self.capacity),
            ));
        }
        let kept: Vec<Vec<u32>> = actions.iter().map(|action| action.ids.clone()).collect();
        let (ids, counts) = packed(&kept, count, terms)?;
        let padded = |of: fn(&Action) -> &[f64]| -> Vec<f64> {
            let mut values = vec![0.0; count * terms];
            for (action, values) in actions.iter().zip(values.chunks_exact_mut(terms.max(1))) {
                let given = of(action);
                values[..given.len()].copy_from_slice(given);
            }
            values
        };
        if let Some(action) = actions.iter().find(|action| {
            action.perturbed.len() != action.ids.len() || action.weights.len() != action.ids.len()
        }) {
            return Err(Error::shape(
                "an action",
                format!("{} values, {} weights", action.perturbed.len(), action.weights.len()),
                format!("{} of each, as it has ids", action.ids.len()),
            ));
        }
        self.count = count;
        self.index.upload_at(0, positions)?;
        self.support.upload(0..count, &ids, &counts)?;
        self.perturbed.upload_numbers(0, &padded(|action| &action.perturbed))?;
        self.weights.upload_numbers(0, &padded(|action| &action.weights))?;
        let index = self.index.rows(0..count)?;
        gather::forward(sequences.tape.hidden.view(), index, self.hidden.rows_mut(0..count)?)?;
        if let Kind::Input(density) = &mut self.kind {
            density.load(&actions.iter().map(|action| &action.input[..]).collect::<Vec<_>>())?;
        }
        let mut churn = Churn::default();
        let SoftScores { hidden, logits, support, perturbed, weights, value, kind, .. } = self;
        for at in chunks(count, self.chunk) {
            let rows = 0..at.len();
            model.logits(hidden.rows(at.clone())?, logits.rows_mut(rows.clone())?)?;
            let logits = logits.rows(rows)?;
            if let Some(selection) = self.selection.as_mut().filter(|_| watch) {
                churn.add(selection.churn(logits, &actions[at.clone()])?);
            }
            let score = value.rows_mut(at.clone())?;
            let chunk = Chunk { logits, support, at, weights, perturbed };
            match kind {
                Kind::Action(kind) => {
                    let scored = chunk.scored(self.inverse_temperature)?;
                    soft_action::score(&scored, kind, score)?;
                }
                Kind::Input(density) => {
                    density.score(model, chunk, score)?;
                }
            }
        }
        Ok(churn)
    }

    /// Where an operation writes the coefficients for [`SoftScores::backward_written`], `[count, 1]`, and the scores it
    /// reads.
    ///
    /// # Errors
    /// None that a forward pass would not have had.
    pub fn coefficients_mut(&mut self) -> Result<(View<'_>, ViewMut<'_>)> {
        let count = self.count;
        Ok((self.value.rows(0..count)?, self.coefficient.rows_mut(0..count)?))
    }

    /// The scores (one download).
    ///
    /// # Errors
    /// A device that failed.
    pub fn values(&self) -> Result<Vec<f64>> {
        self.value.rows(0..self.count)?.numbers()
    }

    /// Adds the gradient of `sum_i coefficients[i] * score[i]` to the head and to the sequences' hidden states (one
    /// upload).
    ///
    /// # Errors
    /// The sequences were not recorded, or the count differs from the forward pass.
    pub fn backward(
        &mut self,
        model: &Model,
        sequences: &mut Sequences,
        coefficients: &[f64],
        gradients: &mut Gradients,
    ) -> Result<()> {
        if coefficients.len() != self.count {
            return Err(Error::shape("coefficients", coefficients.len(), self.count));
        }
        self.coefficient.upload_numbers(0, coefficients)?;
        self.backward_written(model, sequences, gradients)
    }

    /// The same with the coefficients that stand in [`SoftScores::coefficients_mut`].
    ///
    /// # Errors
    /// The sequences were not recorded.
    pub fn backward_written(
        &mut self,
        model: &Model,
        sequences: &mut Sequences,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let count = self.count;
        let SoftScores { hidden, logits, logits_gradient, rounded, support, .. } = self;
        let (perturbed, weights, kind) = (&mut self.perturbed, &mut self.weights, &mut self.kind);
        for at in chunks(count, self.chunk) {
            let rows = 0..at.len();
            let hidden = hidden.rows(at.clone())?;
            model.logits(hidden, logits.rows_mut(rows.clone())?)?;
            let coefficient = self.coefficient.rows(at.clone())?;
            let d_logits = logits_gradient.rows_mut(rows.clone())?;
            let logits = logits.rows(rows.clone())?;
            let chunk = Chunk { logits, support, at: at.clone(), weights, perturbed };
            match kind {
                Kind::Action(kind) => {
                    let scored = chunk.scored(self.inverse_temperature)?;
                    soft_action::score_backward(coefficient, &scored, kind, d_logits)?;
                }
                Kind::Input(density) => {
                    density.backward(model, chunk, coefficient, d_logits, gradients)?;
                }
            }
            let d_hidden = self.hidden_gradient.rows_mut(at)?;
            model.backward_logits(logits_gradient.rows(rows)?, hidden, d_hidden, rounded, gradients)?;
        }
        let Some(into) = &mut sequences.hidden_gradient else { return Err(not_recording()) };
        let (from, index) = (self.hidden_gradient.rows(0..count)?, self.index.rows(0..count)?);
        gather::backward(from, index, into.view_mut(), &mut self.order)
    }
}

/// `0..count` in runs of at most `size`.
fn chunks(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(size.max(1)).map(move |first| first..(first + size).min(count))
}
