//! The two norms behind one interface: RMS norm where there is a gain alone, layer norm where there is a bias.

use super::architecture::NormPlan;
use super::parameters::Gradients;
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::append::Pair;
use crate::ops::mask::MaskAt;
use crate::ops::{Tensor, View, ViewMut, layernorm, residual_norm, rmsnorm};
use std::ops::Range;

/// What the norm's backward needs, for a tape of rows.
#[derive(Debug)]
pub(super) enum Saved {
    Rms(rmsnorm::Saved),
    Layer(layernorm::Saved),
}

impl Saved {
    pub fn reserve(
        plan: &NormPlan,
        device: &Device,
        rows: usize,
        cols: usize,
        dtype: Dtype,
    ) -> Result<Saved> {
        Ok(match plan.bias {
            None => Saved::Rms(rmsnorm::Saved::reserve(device, rows, cols, dtype)?),
            Some(_) => Saved::Layer(layernorm::Saved::reserve(device, rows, cols, dtype)?),
        })
    }
}

impl Saved {
    /// What is kept of a step of rows, and where it goes in that of a tape; a position has `each` rows.
    pub fn append<'a>(&'a self, to: &'a mut Saved, each: usize) -> Option<Pair<'a>> {
        match (self, to) {
            (Saved::Rms(from), Saved::Rms(to)) => Some(from.append(to, each)),
            (Saved::Layer(from), Saved::Layer(to)) => Some(from.append(to, each)),
            _ => None,
        }
    }
}

/// y = norm(x); keeps what backward needs in `saved` at rows `at`.
pub(super) fn forward(
    plan: &NormPlan,
    parameters: &[Tensor],
    x: View,
    y: ViewMut,
    saved: &mut Saved,
    at: Range<usize>,
) -> Result<()> {
    let gain = &parameters[plan.gain];
    match (saved, plan.bias) {
        (Saved::Layer(saved), Some(bias)) => {
            layernorm::forward(x, (gain, &parameters[bias]), plan.eps, y, saved, at)
        }
        (Saved::Rms(saved), _) => rmsnorm::forward(x, gain, plan.eps, y, saved, at),
        (Saved::Layer(_), None) => unreachable!("Saved::reserve made a layer norm for a plan with a bias"),
    }
}

/// dx = gradient of the input (assigned); the gain's and bias's gradients are added where they are trained.
pub(super) fn backward(
    plan: &NormPlan,
    parameters: &[Tensor],
    (dy, x): (View, View),
    saved: &Saved,
    at: Range<usize>,
    dx: ViewMut,
    gradients: &mut Gradients,
) -> Result<()> {
    let gain = &parameters[plan.gain];
    match (saved, plan.bias) {
        (Saved::Layer(saved), Some(bias)) => {
            let both = gradients.pair(plan.gain, bias)?.map(|[dw, db]| layernorm::Gradients { dw, db });
            layernorm::backward(dy, x, gain, saved, at, dx, both)
        }
        (Saved::Rms(saved), _) => rmsnorm::backward(dy, x, gain, saved, at, dx, gradients.at(plan.gain)?),
        (Saved::Layer(_), None) => unreachable!("Saved::reserve made a layer norm for a plan with a bias"),
    }
}

/// sum = x + mask(branch), y = norm(sum), in one pass over memory; keeps what backward needs in `saved` at rows `at`.
pub(super) fn forward_of_sum(
    plan: &NormPlan,
    parameters: &[Tensor],
    (x, branch): (View, View),
    mask: Option<MaskAt>,
    (sum, y): (ViewMut, ViewMut),
    saved: &mut Saved,
    at: Range<usize>,
) -> Result<()> {
    let w = &parameters[plan.gain];
    let norm = match (saved, plan.bias) {
        (Saved::Layer(saved), Some(bias)) => residual_norm::Norm::Layer { w, b: &parameters[bias], saved },
        (Saved::Rms(saved), _) => residual_norm::Norm::Rms { w, saved },
        (Saved::Layer(_), None) => unreachable!("Saved::reserve made a layer norm for a plan with a bias"),
    };
    residual_norm::forward((x, branch), mask, norm, plan.eps, (sum, y), at)
}

/// Gradients of [`forward_of_sum`]: what comes through the norm joins `dstream`, the gradient of the sum; `dbranch` is
/// the branch's share of it.
pub(super) fn backward_of_sum(
    plan: &NormPlan,
    parameters: &[Tensor],
    (dy, sum): (View, View),
    mask: Option<MaskAt>,
    (saved, at): (&Saved, Range<usize>),
    (dstream, dbranch): (ViewMut, ViewMut),
    gradients: &mut Gradients,
) -> Result<()> {
    let w = &parameters[plan.gain];
    let norm = match (saved, plan.bias) {
        (Saved::Layer(saved), Some(bias)) => {
            let both = gradients.pair(plan.gain, bias)?;
            let gradients = both.map(|[dw, db]| layernorm::Gradients { dw, db });
            residual_norm::NormGradients::Layer { w, saved, gradients }
        }
        (Saved::Rms(saved), _) => {
            residual_norm::NormGradients::Rms { w, saved, dw: gradients.at(plan.gain)? }
        }
        (Saved::Layer(_), None) => unreachable!("Saved::reserve made a layer norm for a plan with a bias"),
    };
    residual_norm::backward((dy, sum), mask, norm, (dstream, dbranch), at)
}
