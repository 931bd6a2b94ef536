//! Taps on the residual stream: the hidden states of every layer at chosen positions, and gradients that enter there
//! (CODI's distillation).
//!
//! State l of L + 1 is the input of layer l; the last is the final hidden state after the final norm: transformers'
//! `hidden_states`.

use super::Model;
use super::sequences::{Sequences, not_recording};
use crate::base::{Dtype, Error, Result};
use crate::device::Arena;
use crate::ops::scatter::Order;
use crate::ops::{Tensor, View, ViewMut, gather};
use std::ops::Range;

/// States at up to `capacity` positions, and their gradients.
#[derive(Debug)]
pub struct Taps {
    capacity: usize,
    /// Of the latest [`Taps::read`], rising.
    positions: Vec<u32>,
    index: Tensor,
    states: Vec<Tensor>,
    gradients: Vec<Tensor>,
    order: Order,
}

impl Taps {
    /// Room for `capacity` positions of `model`; `differentiate` adds gradients.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn reserve(model: &Model, capacity: usize, differentiate: bool) -> Result<Taps> {
        let _arena = Arena::Workspace.enter();
        let device = model.device();
        let many = |count: usize| -> Result<Vec<Tensor>> {
            let one = |_| Tensor::zeros(device, [capacity, model.config().width], model.dtype());
            (0..count).map(one).collect()
        };
        let states = model.architecture.layers.len() + 1;
        Ok(Taps {
            capacity,
            positions: Vec::new(),
            index: Tensor::zeros(device, [capacity, 1], Dtype::U32)?,
            states: many(states)?,
            gradients: many(if differentiate { states } else { 0 })?,
            order: Order::reserve(device, capacity)?,
        })
    }

    /// Copies the states at `positions` of the tape, which must rise.
    ///
    /// # Errors
    /// More positions than reserved, positions that do not rise, or a tape that does not record.
    pub fn read(&mut self, sequences: &Sequences, positions: &[u32]) -> Result<()> {
        let tape = &sequences.tape;
        if tape.inputs.len() < self.states.len() {
            return Err(not_recording());
        }
        let rises = positions.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = positions.last().is_none_or(|&last| (last as usize) < tape.filled);
        if positions.len() > self.capacity || !rises || !inside {
            return Err(Error::shape(
                "tapped positions",
                format!("{positions:?}"),
                format!("at most {} rising positions below {}", self.capacity, tape.filled),
            ));
        }
        self.positions = positions.to_vec();
        self.index.upload_at(0, positions)?;
        let count = 0..positions.len();
        for (layer, states) in self.states.iter_mut().enumerate().rev() {
            // The last state is the normed one.
            let from = if layer + 1 == tape.inputs.len() { &tape.hidden } else { &tape.inputs[layer] };
            gather::forward(from.view(), self.index.rows(count.clone())?, states.rows_mut(count.clone())?)?;
        }
        Ok(())
    }

    /// Number of states at a position: layers + 1.
    pub fn depth(&self) -> usize {
        self.states.len()
    }

    /// Number of positions read.
    pub fn count(&self) -> usize {
        self.positions.len()
    }

    /// State `layer` of the positions read, `[count, width]`.
    ///
    /// # Errors
    /// None in practice.
    pub fn states(&self, layer: usize) -> Result<View<'_>> {
        self.states[layer].rows(0..self.count())
    }

    /// State `layer` and where its gradient is to be written, `[count, width]` both, before [`Model::backward_tapped`].
    ///
    /// # Errors
    /// Reserved without gradients.
    pub fn gradient_mut(&mut self, layer: usize) -> Result<(View<'_>, ViewMut<'_>)> {
        let count = 0..self.positions.len();
        let Some(gradient) = self.gradients.get_mut(layer) else {
            return Err(Error::input("taps", "reserved without gradients", "reserve them to differentiate"));
        };
        Ok((self.states[layer].rows(count.clone())?, gradient.rows_mut(count)?))
    }

    /// Adds the gradients of final hidden states to those of the tape.
    pub(super) fn inject_final(&mut self, into: ViewMut) -> Result<()> {
        let count = 0..self.positions.len();
        if count.is_empty() {
            return Ok(());
        }
        self.index.upload_at(0, &self.positions)?;
        let Some(last) = self.gradients.last() else { return Ok(()) };
        gather::backward(last.rows(count.clone())?, self.index.rows(count)?, into, &mut self.order)
    }

    /// The taps among positions `at`, whose places in the unit go to the device.
    pub(super) fn enter(&mut self, at: &Range<usize>) -> Result<Range<usize>> {
        let first = self.positions.partition_point(|&position| (position as usize) < at.start);
        let last = self.positions.partition_point(|&position| (position as usize) < at.end);
        if first < last {
            let local = self.positions[first..last].iter().map(|position| position - at.start as u32);
            self.index.upload_at(first, &local.collect::<Vec<u32>>())?;
        }
        Ok(first..last)
    }

    /// Adds the gradients of state `layer` of the taps that [`Taps::enter`] found to the unit's residual stream.
    pub(super) fn inject(&mut self, layer: usize, found: Range<usize>, stream: ViewMut) -> Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        let Some(gradient) = self.gradients.get(layer) else { return Ok(()) };
        gather::backward(gradient.rows(found.clone())?, self.index.rows(found)?, stream, &mut self.order)
    }
}
