//! The output head where logits exist: sampling, and losses that are made of logits. (Log-probabilities of given tokens
//! never have all of them at once: scores.rs.)

use super::Model;
use super::parameters::Gradients;
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::cast::cast;
use crate::ops::linear::{self, Accumulate, Layout, Projection};
use crate::ops::{Tensor, View, ViewMut};

/// Room for the gradient of logits as products read it: beside bf16 activations it is rounded to bf16, as every other
/// operand. Elsewhere products read it where it stands.
#[derive(Debug)]
pub(super) struct RoundedLogits(Option<Tensor>);

impl RoundedLogits {
    /// Room for `rows` rows of a model's logits.
    pub fn reserve(model: &Model, device: &Device, rows: usize) -> Result<RoundedLogits> {
        let rounds = model.dtype() == Dtype::Bf16;
        let room = || Tensor::zeros(device, [rows, model.config.vocab], Dtype::Bf16);
        Ok(RoundedLogits(rounds.then(room).transpose()?))
    }

    fn round<'a>(&'a mut self, d_logits: View<'a>) -> Result<View<'a>> {
        let Some(rounded) = &mut self.0 else { return Ok(d_logits) };
        let rows = 0..d_logits.count();
        cast(d_logits, rounded.rows_mut(rows.clone())?)?;
        rounded.rows(rows)
    }
}

impl Model {
    /// Logits `[n, vocab]` of final hidden states `[n, width]`: f32 beside bf16 activations.
    pub fn logits(&self, hidden: View, out: ViewMut) -> Result<()> {
        linear::forward(hidden, &self.head_projection(), self.head(), None, out)
    }

    /// Gradient of [`Model::logits`]: assigns `d_hidden`, adds to the head's.
    pub(super) fn backward_logits(
        &self,
        d_logits: View,
        hidden: View,
        d_hidden: ViewMut,
        rounded: &mut RoundedLogits,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let d_logits = rounded.round(d_logits)?;
        let dw = gradients.head();
        let gradients = linear::Gradients { dx: Some((d_hidden, Accumulate::Assign)), dw, dbias: None };
        linear::backward(d_logits, hidden, &self.head_projection(), self.head(), gradients)
    }

    fn head_projection(&self) -> Projection {
        Projection::whole(Layout::OutIn, self.config.width, self.config.vocab)
    }
}
