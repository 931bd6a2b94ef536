//! Scores of sampled tokens on the support that was stored when they were drawn, and their gradient.

use super::{Law, Support, explain, kernels};
use crate::base::{Dtype, Result};
use crate::cpu;
use crate::device::Device;
use crate::ops::{View, ViewMut, float_dispatch};
use std::ops::Range;

/// Sampled tokens to score again.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// Logits under the parameters of now, `[rows, vocabulary]`.
    pub logits: View<'a>,
    /// The sampled tokens, u32 `[rows, 1]`.
    pub tokens: View<'a>,
    /// The law they were sampled under.
    pub law: &'a Law,
}

/// Log-probabilities of tokens on rows `at` of their stored support. With the logits and law that were sampled from
/// they have the bits that [`super::sample`] returned.
///
/// # Errors
/// Shapes or dtypes that do not fit. On the CPU also a token that its support does not hold, and logits without a
/// softmax; on a GPU such a row gets NaN.
pub fn score_on_support(
    scored: &Scored,
    support: &Support,
    at: Range<usize>,
    mut out: ViewMut,
) -> Result<()> {
    let dtype = check_scored(scored, support, &at)?;
    out.expect("sampler score output", scored.logits.count(), 1, dtype)?;
    match scored.logits.device() {
        Device::Cpu(_) => float_dispatch!("sampler logits", dtype, T => {
            let stored = stored::<T>(scored, support, at)?;
            cpu::sampler::score(&stored, out.slice()?).map_err(|fault| explain(fault, 0))?;
        }),
        Device::Gpu(_) if scored.logits.count() == 0 => {}
        Device::Gpu(gpu) => kernels::score(&**gpu, scored, support, &at, &out)?,
    }
    Ok(())
}

/// Gradient of [`score_on_support`] by the logits, assigned; 0 at ids that are not kept.
///
/// # Errors
/// As [`score_on_support`].
pub fn score_on_support_backward(
    d_log_probability: View,
    scored: &Scored,
    support: &Support,
    at: Range<usize>,
    mut d_logits: ViewMut,
) -> Result<()> {
    let dtype = check_scored(scored, support, &at)?;
    let (rows, vocabulary) = (scored.logits.count(), scored.logits.cols());
    d_log_probability.expect("sampler score d_log_probability", rows, 1, dtype)?;
    d_logits.expect("sampler score d_logits", rows, vocabulary, dtype)?;
    match scored.logits.device() {
        Device::Cpu(_) => float_dispatch!("sampler logits", dtype, T => {
            let stored = stored::<T>(scored, support, at)?;
            cpu::sampler::score_backward(&stored, d_log_probability.slice()?, d_logits.slice()?)
                .map_err(|fault| explain(fault, 0))?;
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            kernels::score_backward(&**gpu, d_log_probability, scored, support, &at, &d_logits)?;
        }
    }
    Ok(())
}

fn check_scored(scored: &Scored, support: &Support, at: &Range<usize>) -> Result<Dtype> {
    scored.law.validate()?;
    let rows = scored.logits.count();
    scored.tokens.expect("sampler tokens", rows, 1, Dtype::U32)?;
    support.counts.rows(at.clone())?.expect("sampler support", rows, 1, Dtype::U32)?;
    Ok(scored.logits.dtype())
}

fn stored<'a, T>(
    scored: &Scored<'a>,
    support: &'a Support,
    at: Range<usize>,
) -> Result<cpu::sampler::Stored<'a, T>>
where
    T: cpu::Float + crate::device::Element,
{
    Ok(cpu::sampler::Stored {
        logits: scored.logits.slice()?,
        vocabulary: scored.logits.cols(),
        tokens: scored.tokens.slice()?,
        ids: support.ids.rows(at.clone())?.slice()?,
        counts: support.counts.rows(at)?.slice()?,
        inverse_temperature: T::from_f64(scored.law.inverse_temperature()),
    })
}
