//! What an action's "log-probability" is, and its gradient.

use super::{
    bounds, check_logits, demand, expect_clamp, expect_inverse_temperature, expect_support, expect_tau,
};
use super::{kept_on_cpu, kernels};
use crate::base::{Dtype, Result};
use crate::cpu::{self, Float};
use crate::device::{Device, Element};
use crate::ops::sampler::{Support, explain};
use crate::ops::{View, ViewMut, float_dispatch};
use std::ops::Range;

/// What an action's "log-probability" is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// sum of y ln p, the surrogate that LEPO trains: no density, biased, of low variance.
    SoftCe {
        /// p over the whole vocabulary, as released; otherwise over the kept ids.
        full: bool,
    },
    /// ln of the exact density of y on its support (Maddison et al. 2017). With one kept id 0 and without gradient.
    Concrete {
        /// The tau that y was made with.
        tau: f64,
        /// Divided by the number of kept ids.
        mean: bool,
    },
    /// ln of the density of g given the support (SofT-GRPO's auxiliary variable). With one kept id 0 and without
    /// gradient.
    GumbelG {
        /// Only ids with a larger log-probability a under the parameters of now count (SofT-GRPO -3).
        floor: Option<f64>,
        /// Bounds of g - a; a bound stops the gradient (SofT-GRPO -1.5 and 3, those of sampling).
        clamp: Option<(f64, f64)>,
        /// Divided by how many ids count; without one that counts the score is 0.
        mean: bool,
    },
}

impl Score {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the setting, its value and its range.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Score::SoftCe { .. } => Ok(()),
            Score::Concrete { tau, .. } => expect_tau(tau),
            Score::GumbelG { floor, clamp, .. } => {
                expect_clamp(clamp)?;
                let floor = floor.unwrap_or(f64::NEG_INFINITY);
                let advice =
                    "it is a log-probability; SofT-GRPO uses -3, leave it out to count every kept id";
                demand("score floor", floor, floor < 0.0, "a number below 0", advice)
            }
        }
    }

    pub(super) fn on_cpu<T: Float>(&self) -> cpu::soft_action::Kind<T> {
        use cpu::soft_action::Kind;
        match *self {
            Score::SoftCe { full } => Kind::SoftCe { full },
            Score::Concrete { tau, mean } => Kind::Concrete { tau: T::from_f64(tau), mean },
            Score::GumbelG { floor, clamp, mean } => {
                let (low, high) = bounds(clamp);
                Kind::GumbelG {
                    floor: T::from_f64(floor.unwrap_or(f64::NEG_INFINITY)),
                    low: T::from_f64(low),
                    high: T::from_f64(high),
                    mean,
                }
            }
        }
    }
}

/// Stored actions to score under the parameters of now; k is the support's capacity.
#[derive(Clone, Debug)]
pub struct Scored<'a> {
    /// Logits under the parameters of now, `[rows, vocabulary]`, f32 or f64; f32 on a GPU.
    pub logits: View<'a>,
    /// 1 / T of the law that is scored; LEPO's cross-entropy uses 1.
    pub inverse_temperature: f64,
    /// The stored support.
    pub support: &'a Support,
    /// Its rows.
    pub at: Range<usize>,
    /// Stored g, `[rows, k]` of the logits' dtype.
    pub perturbed: View<'a>,
    /// Stored y, `[rows, k]` of the logits' dtype.
    pub weights: View<'a>,
}

/// The score of each action, `out[rows, 1]`. In f32 the density of many ids is a large number; what moves with the
/// parameters is summed before what does not, and equal logits give equal bits, so that a ratio starts at exactly 1.
///
/// # Errors
/// A number out of range; shapes or dtypes that do not fit. On the CPU also a row whose support is broken or whose
/// logits have no softmax; a GPU gives such a row NaN.
pub fn score(scored: &Scored, kind: &Score, mut out: ViewMut) -> Result<()> {
    let (rows, dtype) = check(scored, kind)?;
    out.expect("soft action score output", rows, 1, dtype)?;
    match scored.logits.device() {
        Device::Cpu(_) => float_dispatch!("soft action logits", dtype, T => {
            cpu::soft_action::score(&scored_on_cpu::<T>(scored)?, kind.on_cpu(), out.slice()?)
                .map_err(|fault| explain(fault, scored.support.capacity()))?;
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => kernels::score(&**gpu, scored, kind, &out)?,
    }
    Ok(())
}

/// Gradient of [`score`] by the logits `d_logits[rows, vocabulary]`, assigned; g, y and the counted ids are constants.
///
/// # Errors
/// As [`score`].
pub fn score_backward(d_score: View, scored: &Scored, kind: &Score, mut d_logits: ViewMut) -> Result<()> {
    let (rows, dtype) = check(scored, kind)?;
    d_score.expect("soft action d_score", rows, 1, dtype)?;
    d_logits.expect("soft action score d_logits", rows, scored.logits.cols(), dtype)?;
    match scored.logits.device() {
        Device::Cpu(_) => float_dispatch!("soft action logits", dtype, T => {
            let stored = scored_on_cpu::<T>(scored)?;
            cpu::soft_action::score_backward(&stored, kind.on_cpu(), d_score.slice()?, d_logits.slice()?)
                .map_err(|fault| explain(fault, scored.support.capacity()))?;
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => kernels::score_backward(&**gpu, d_score, scored, kind, &d_logits)?,
    }
    Ok(())
}

fn check(scored: &Scored, kind: &Score) -> Result<(usize, Dtype)> {
    kind.validate()?;
    expect_inverse_temperature(scored.inverse_temperature)?;
    let (rows, dtype) = check_logits(scored.logits)?;
    let capacity = expect_support(scored.support, &scored.at, rows)?;
    scored.perturbed.expect("soft action perturbed", rows, capacity, dtype)?;
    scored.weights.expect("soft action weights", rows, capacity, dtype)?;
    Ok((rows, dtype))
}

fn scored_on_cpu<'a, T: Float + Element>(scored: &Scored<'a>) -> Result<cpu::soft_action::Scored<'a, T>> {
    Ok(cpu::soft_action::Scored {
        kept: kept_on_cpu(scored.logits, scored.support, scored.at.clone(), scored.inverse_temperature)?,
        perturbed: scored.perturbed.slice()?,
        weights: scored.weights.slice()?,
    })
}
