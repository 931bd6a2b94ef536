//! Gumbel-Softmax mixtures over the kept ids, and their gradient.

use super::{Law, Noise, Support, Workspace, check_rows, diagnose, explain, kernels, rows_on_cpu};
use crate::base::{Dtype, Error, Result};
use crate::cpu::{self, Float};
use crate::device::{Device, Element};
use crate::ops::{View, ViewMut, float_dispatch};
use std::ops::Range;

/// A law of mixtures: `y = softmax((logits / T + Gumbel noise) / tau)` over what the law keeps. The smaller tau, the
/// nearer y is to the one token that [`super::sample`] would draw with the same noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture<'a> {
    /// Temperature and filters; greedy has no mixtures. Without filters every id is kept.
    pub law: &'a Law,
    /// Temperature of the mixture, at least [`Law::LEAST_TEMPERATURE`].
    pub tau: f64,
}

impl Mixture<'_> {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the setting, its value and its range.
    pub fn validate(&self) -> Result<()> {
        self.law.validate()?;
        if *self.law == Law::Greedy {
            return Err(Error::input(
                "mixture law",
                "greedy has no noise, so nothing is mixed",
                "give a categorical law, e.g. temperature 1 and top_k 30",
            ));
        }
        if !(self.tau.is_finite() && self.tau >= Law::LEAST_TEMPERATURE) {
            return Err(Error::input(
                "mixture tau",
                format!("found {}, expected a number of at least 1e-6", self.tau),
                "0.1 to 1 is usual; small values come near a single token",
            ));
        }
        Ok(())
    }
}

/// Where [`mixture`] writes.
#[derive(Debug)]
pub struct Mixed<'a> {
    /// Which rows of which support receive the kept ids; unused places become id 0. Ids and weights are what
    /// [`crate::ops::embedding::Soft`] takes.
    pub support: &'a mut Support,
    /// Those rows.
    pub at: Range<usize>,
    /// Weights `[rows, capacity]` of the logits' dtype; they sum to 1 in a row, and are 0 in unused places.
    pub weights: ViewMut<'a>,
    /// Working memory for rows of these logits.
    pub workspace: &'a Workspace,
}

/// One mixture for each row of `logits[rows, vocabulary]` (f32 or f64).
///
/// # Errors
/// A law out of range; shapes or dtypes that do not fit. On the CPU also a row without a softmax, or one that keeps
/// more ids than the support has room for; a GPU gives such a row NaN weights and a count above the capacity.
pub fn mixture(logits: View, mixture: &Mixture, noise: Noise, mut out: Mixed) -> Result<()> {
    mixture.validate()?;
    let (rows, dtype) = (logits.count(), logits.dtype());
    let capacity = out.support.ids.shape().as_matrix().1;
    check_rows(logits, &noise)?;
    expect_support(out.support, &out.at, rows)?;
    out.weights.expect("mixture weights", rows, capacity, dtype)?;
    match logits.device() {
        Device::Cpu(_) => float_dispatch!("mixture logits", dtype, T => {
            let rows = rows_on_cpu::<T>(logits, mixture.law, &noise)?;
            let (mut ids, mut counts) =
                (out.support.ids.rows_mut(out.at.clone())?, out.support.counts.rows_mut(out.at)?);
            let mixtures = cpu::sampler::Mixtures {
                ids: ids.slice()?,
                counts: counts.slice()?,
                weights: out.weights.slice()?,
            };
            cpu::sampler::mix(&rows, T::from_f64(1.0 / mixture.tau), mixtures)
                .map_err(|fault| explain(fault, capacity))?;
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let places = kernels::Places {
                memory: out.workspace.address(rows, logits.cols())?,
                weights: Some((out.weights.address()?, 1.0 / mixture.tau)),
                ..kernels::Places::NONE
            };
            let places = places.with_support(out.support, &out.at)?;
            kernels::draw(&**gpu, logits, mixture.law, &noise, &places)?;
        }
    }
    Ok(())
}

/// Gradient of [`mixture`] by the logits `d_logits[rows, vocabulary]`, assigned; 0 at ids that are not kept. What is
/// kept counts as constant. `weights` are those of the forward call; `d_weights` of unused places is not read.
///
/// # Errors
/// Shapes or dtypes that do not fit; on the CPU a support that does not belong to the vocabulary (on a GPU its row
/// gets NaN).
pub fn mixture_backward(
    d_weights: View,
    weights: View,
    mixture: &Mixture,
    support: &Support,
    at: Range<usize>,
    mut d_logits: ViewMut,
) -> Result<()> {
    mixture.validate()?;
    let (rows, vocabulary, dtype) = (weights.count(), d_logits.cols(), weights.dtype());
    let capacity = support.ids.shape().as_matrix().1;
    expect_support(support, &at, rows)?;
    weights.expect("mixture weights", rows, capacity, dtype)?;
    d_weights.expect("mixture d_weights", rows, capacity, dtype)?;
    d_logits.expect("mixture d_logits", rows, vocabulary, dtype)?;
    let factor = mixture.law.inverse_temperature() / mixture.tau;
    match weights.device() {
        Device::Cpu(_) => float_dispatch!("mixture weights", dtype, T => {
            let mixed = mixed_on_cpu::<T>(weights, support, at)?;
            let (factor, d_weights) = (T::from_f64(factor), d_weights.slice()?);
            cpu::sampler::mix_backward(&mixed, d_weights, factor, vocabulary, d_logits.slice()?)
                .map_err(|fault| explain(fault, capacity))?;
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            if dtype != Dtype::F32 {
                return Err(Error::dtype("mixture weights", dtype, "f32 on a GPU"));
            }
            kernels::mixture_backward(&**gpu, d_weights, weights, factor as f32, support, &at, &d_logits)?;
        }
    }
    Ok(())
}

/// Fails where a row of a support that [`mixture`] filled from `logits` has no mixture (one download).
///
/// # Errors
/// Names the first such row and what is wrong with it.
pub fn expect_mixed(support: &Support, at: Range<usize>, logits: View, law: &Law) -> Result<()> {
    let capacity = support.ids.shape().as_matrix().1;
    let counts = support.counts.rows(at)?.download::<u32>()?;
    match counts.iter().position(|&count| count as usize > capacity) {
        Some(row) => Err(diagnose(row, logits, law)?),
        None => Ok(()),
    }
}

fn expect_support(support: &Support, at: &Range<usize>, rows: usize) -> Result<()> {
    support.counts.rows(at.clone())?.expect("mixture support", rows, 1, Dtype::U32)
}

fn mixed_on_cpu<'a, T: Float + Element>(
    weights: View<'a>,
    support: &'a Support,
    at: Range<usize>,
) -> Result<cpu::sampler::Mixed<'a, T>> {
    Ok(cpu::sampler::Mixed {
        ids: support.ids.rows(at.clone())?.slice()?,
        counts: support.counts.rows(at)?.slice()?,
        weights: weights.slice()?,
    })
}
