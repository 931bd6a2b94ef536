//! The density of noisy embeddings under the model of now (Soft Tokens, arXiv 2509.19170; algorithms C.4).
//!
//! ```text
//! p = softmax(log-softmax of the kept logits / T / tau)      m = p^T E      score = -|x - m|^2 / (2 sigma^2)
//! d score / d m = (x - m) / sigma^2
//! ```
//!
//! x is what the rollout was fed and a constant. Gradients flow through m: to the logits through p, and to the embedding
//! table, which is as much a part of the mean as p is; without that part the score of a model whose table is trained would
//! not have the mean zero. A step that kept one id has a density too: only the table moves its mean.

use super::Model;
use super::parameters::Gradients;
use super::soft_inputs::mixture_ids;
use crate::base::{Dtype, Error, Result};
use crate::ops::gaussian_density::{self, Normal};
use crate::ops::sampler::{Noise, Support};
use crate::ops::scatter::Order;
use crate::ops::soft_action::{self, Perturbation, Proxy, Scored, Settings};
use crate::ops::{Tensor, View, ViewMut, embedding};
use std::ops::Range;

/// The law of a noisy embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoisyInput {
    /// Temperature of the mixture that is its mean.
    pub tau: f64,
    /// The noise around it.
    pub normal: Normal,
}

/// Buffers for scores of noisy embeddings.
#[derive(Debug)]
pub(super) struct Density {
    law: NoisyInput,
    settings: Settings,
    /// `[capacity, width]`: what was read, and the means of now.
    inputs: Tensor,
    means: Tensor,
    d_means: Tensor,
    d_weights: Tensor,
    /// Of a chunk: ids by which positions read the mixtures; positions, keys, steps and proxies that nothing reads.
    ids: Tensor,
    positions: Tensor,
    keys: Tensor,
    proxies: Tensor,
    order: Order,
}

/// Stored actions of a chunk, and what is computed of them.
pub(super) struct Chunk<'a> {
    /// Logits of now.
    pub logits: View<'a>,
    /// The kept ids.
    pub support: &'a Support,
    /// Rows of the support.
    pub at: Range<usize>,
    /// p, by row of the support.
    pub weights: &'a mut Tensor,
    /// ln p / tau before it is normalised; nothing reads it.
    pub perturbed: &'a mut Tensor,
}

impl Chunk<'_> {
    /// As the scores of actions take it.
    pub fn scored(&self, inverse_temperature: f64) -> Result<Scored<'_>> {
        Ok(Scored {
            logits: self.logits,
            inverse_temperature,
            support: self.support,
            at: self.at.clone(),
            perturbed: self.perturbed.rows(self.at.clone())?,
            weights: self.weights.rows(self.at.clone())?,
        })
    }
}

impl Density {
    /// Room for `capacity` scores, `chunk` at once.
    pub fn reserve(
        model: &Model,
        law: NoisyInput,
        inverse_temperature: f64,
        (capacity, chunk, terms): (usize, usize, usize),
    ) -> Result<Density> {
        law.normal.validate()?;
        let (device, dtype, width) = (model.device(), model.dtype(), model.config().width);
        let of_width = |rows| Tensor::zeros(device, [rows, width], dtype);
        let column = |columns| Tensor::zeros(device, [chunk, columns], Dtype::U32);
        Ok(Density {
            law,
            settings: Settings {
                inverse_temperature,
                tau: law.tau,
                perturbation: Perturbation::None,
                proxy: Proxy::Argmax,
                hard: false,
            },
            inputs: of_width(capacity)?,
            means: of_width(capacity)?,
            d_means: of_width(chunk)?,
            d_weights: Tensor::zeros(device, [chunk, terms], dtype.accumulation())?,
            ids: mixture_ids(device, chunk)?,
            positions: column(1)?,
            keys: column(2)?,
            proxies: column(1)?,
            order: Order::reserve(device, chunk * terms)?,
        })
    }

    /// Brings up what was read.
    pub fn load(&mut self, inputs: &[&[f64]]) -> Result<()> {
        let width = self.inputs.view().cols();
        if let Some(input) = inputs.iter().find(|input| input.len() != width) {
            return Err(Error::shape(
                "an action",
                format!("an input of {} numbers", input.len()),
                format!("{width}: what the step read, kept when it was drawn (SoftReplay::Inputs)"),
            ));
        }
        self.inputs.upload_numbers(0, &inputs.concat())
    }

    /// The scores of a chunk.
    pub fn score(&mut self, model: &Model, chunk: Chunk, score: ViewMut) -> Result<()> {
        let Chunk { logits, support, at, weights, perturbed } = chunk;
        let rows = 0..at.len();
        let noise =
            Noise { keys: self.keys.rows(rows.clone())?, steps: self.positions.rows(rows.clone())?, site: 0 };
        let out = soft_action::Outputs {
            perturbed: perturbed.rows_mut(at.clone())?,
            weights: weights.rows_mut(at.clone())?,
            soft: None,
            proxies: self.proxies.rows_mut(rows.clone())?,
            entropies: None,
        };
        soft_action::forward(logits, support, at.clone(), &self.settings, noise, out)?;
        let inputs = embedding::Inputs {
            ids: self.ids.rows(rows.clone())?,
            positions: self.positions.rows(rows)?,
            soft: Some(embedding::Soft {
                ids: support.ids().rows(at.clone())?,
                weights: weights.rows(at.clone())?,
            }),
        };
        embedding::forward(&inputs, model.table(), None, self.means.rows_mut(at.clone())?)?;
        let (x, m) = (self.inputs.rows(at.clone())?, self.means.rows(at)?);
        gaussian_density::forward(x, m, &self.law.normal, score)
    }

    /// Gradient of the scores of a chunk, each times its coefficient, after [`Density::score`]: adds to the embedding
    /// table, assigns `d_logits`.
    pub fn backward(
        &mut self,
        model: &Model,
        chunk: Chunk,
        coefficient: View,
        d_logits: ViewMut,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Chunk { support, at, weights, .. } = chunk;
        let rows = 0..at.len();
        let (x, m) = (self.inputs.rows(at.clone())?, self.means.rows(at.clone())?);
        let d_means = self.d_means.rows_mut(rows.clone())?;
        gaussian_density::backward(x, m, &self.law.normal, coefficient, d_means)?;
        let inputs = embedding::Inputs {
            ids: self.ids.rows(rows.clone())?,
            positions: self.positions.rows(rows.clone())?,
            soft: Some(embedding::Soft {
                ids: support.ids().rows(at.clone())?,
                weights: weights.rows(at.clone())?,
            }),
        };
        // The position's embedding is no part of x.
        let [table, _] = gradients.embeddings(model.architecture.position_embedding)?;
        let (d_means, d_weights) = (self.d_means.rows(rows.clone())?, self.d_weights.rows_mut(rows.clone())?);
        embedding::backward(d_means, &inputs, model.table(), table, None, Some(d_weights), &mut self.order)?;
        let (d_weights, p) = (self.d_weights.rows(rows)?, weights.rows(at.clone())?);
        soft_action::backward(d_weights, p, &self.settings, support, at, d_logits)
    }
}
