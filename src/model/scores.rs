//! Scoring positions: log-probabilities of given tokens from final hidden states, and their gradient.
//!
//! This is the one way a loss enters: cross-entropy and every policy loss are coefficients on
//! log-probabilities (and entropies), so the logits `[N, V]` need never exist.

use super::Model;
use super::parameters::Gradients;
use super::sequences::{Sequences, not_recording};
use crate::base::{Dtype, Error, Result};
use crate::device::{Arena, Device};
use crate::ops::scatter::Order;
use crate::ops::{Tensor, View, ViewMut, gather, log_probability};

/// Buffers for up to `capacity` scored positions.
#[derive(Debug)]
pub struct Scores {
    capacity: usize,
    count: usize,
    index: Tensor,
    targets: Tensor,
    hidden: Tensor,
    log_probability: Tensor,
    entropy: Tensor,
    saved: log_probability::Saved,
    coefficient: Tensor,
    hidden_gradient: Tensor,
    order: Order,
    inverse_temperature: f64,
}

impl Scores {
    /// Room for `capacity` positions of `model`, with what makes [`Scores::backward`] fast
    /// ([`log_probability::Saved::reserve_to_differentiate`]); a bf16 model was chosen for the memory that it takes, and has
    /// no such room.
    pub fn reserve(model: &Model, capacity: usize) -> Result<Scores> {
        match model.head().dtype() {
            Dtype::Bf16 => Scores::reserve_to_read(model, capacity),
            _ => Scores::reserve_with(model, capacity, log_probability::Saved::reserve_to_differentiate),
        }
    }

    /// The same for scores that are only read.
    pub fn reserve_to_read(model: &Model, capacity: usize) -> Result<Scores> {
        Scores::reserve_with(model, capacity, log_probability::Saved::reserve)
    }

    fn reserve_with(
        model: &Model,
        capacity: usize,
        saved: impl Fn(&Device, usize, [usize; 2], Dtype) -> Result<log_probability::Saved>,
    ) -> Result<Scores> {
        let (device, dtype, width) = (model.device(), model.dtype(), model.config().width);
        let head = [model.config().vocab, width];
        let _arena = Arena::Workspace.enter();
        let column = |dtype: Dtype| Tensor::zeros(device, [capacity, 1], dtype.accumulation());
        Ok(Scores {
            capacity,
            count: 0,
            index: column(Dtype::U32)?,
            targets: column(Dtype::U32)?,
            hidden: Tensor::zeros(device, [capacity, width], dtype)?,
            log_probability: column(dtype)?,
            entropy: column(dtype)?,
            saved: saved(device, capacity, head, dtype)?,
            coefficient: column(dtype)?,
            hidden_gradient: Tensor::zeros(device, [capacity, width], dtype)?,
            order: Order::reserve(device, capacity)?,
            inverse_temperature: 1.0,
        })
    }

    /// Scores `targets[i]` at position `positions[i]` of the tape under softmax(logits * `inverse_temperature`).
    ///
    /// # Errors
    /// More positions than reserved, or a target outside the vocabulary.
    pub fn forward(
        &mut self,
        model: &Model,
        sequences: &Sequences,
        positions: &[u32],
        targets: &[u32],
        inverse_temperature: f64,
    ) -> Result<()> {
        let count = positions.len();
        if count > self.capacity || targets.len() != count {
            return Err(Error::shape(
                "scored positions",
                format!("{count} positions, {} targets", targets.len()),
                format!("equal numbers, at most {}", self.capacity),
            ));
        }
        if let Some(target) = targets.iter().find(|&&target| target as usize >= model.config().vocab) {
            return Err(Error::input(
                "target token",
                format!("id {target}; the vocabulary has {}", model.config().vocab),
                "check that the tokenizer belongs to the model",
            ));
        }
        self.count = count;
        self.inverse_temperature = inverse_temperature;
        self.index.upload_at(0, positions)?;
        self.targets.upload_at(0, targets)?;
        gather::forward(
            sequences.tape.hidden.view(),
            self.index.rows(0..count)?,
            self.hidden.rows_mut(0..count)?,
        )?;
        let inputs = log_probability::Inputs {
            h: self.hidden.rows(0..count)?,
            w: model.head(),
            targets: self.targets.rows(0..count)?,
            inverse_temperature,
        };
        let out = log_probability::Outputs {
            log_probability: self.log_probability.rows_mut(0..count)?,
            entropy: Some(self.entropy.rows_mut(0..count)?),
        };
        log_probability::forward(&inputs, out, &mut self.saved, 0..count)
    }

    /// Where an operation writes the coefficients for [`Scores::backward_written`], `[count, 1]`, and the
    /// log-probabilities it reads.
    pub fn coefficients_mut(&mut self) -> Result<(View<'_>, ViewMut<'_>)> {
        let count = self.count;
        Ok((self.log_probability.rows(0..count)?, self.coefficient.rows_mut(0..count)?))
    }

    /// The log-probabilities (one download).
    pub fn log_probabilities(&self) -> Result<Vec<f64>> {
        self.log_probability.rows(0..self.count)?.numbers()
    }

    /// The entropies in nats (one download).
    pub fn entropies(&self) -> Result<Vec<f64>> {
        self.entropy.rows(0..self.count)?.numbers()
    }

    /// Adds the gradient of `sum_i coefficients[i] * log_probability[i]` to the head (if it is trained) and to the sequences'
    /// hidden states (one upload).
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
        let count = self.count;
        if coefficients.len() != count {
            return Err(Error::shape("coefficients", coefficients.len(), count));
        }
        match model.dtype() {
            Dtype::F64 => self.coefficient.upload_at(0, coefficients)?,
            _ => {
                let coefficients: Vec<f32> = coefficients.iter().map(|&c| c as f32).collect();
                self.coefficient.upload_at(0, &coefficients)?;
            }
        }
        self.backward_written(model, sequences, gradients)
    }

    /// The same with the coefficients that stand in [`Scores::coefficients_mut`].
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
        let upstream = log_probability::Upstream {
            d_log_probability: self.coefficient.rows(0..count)?,
            d_entropy: None,
        };
        let inputs = log_probability::Inputs {
            h: self.hidden.rows(0..count)?,
            w: model.head(),
            targets: self.targets.rows(0..count)?,
            inverse_temperature: self.inverse_temperature,
        };
        let dh = self.hidden_gradient.rows_mut(0..count)?;
        log_probability::backward(&upstream, &inputs, &mut self.saved, 0..count, dh, gradients.head())?;
        let Some(into) = &mut sequences.hidden_gradient else { return Err(not_recording()) };
        let (from, index) = (self.hidden_gradient.rows(0..count)?, self.index.rows(0..count)?);
        gather::backward(from, index, into.view_mut(), &mut self.order)
    }
}
