//! Actions of soft latents: from the clean logits of a row's kept ids to a mixture of tokens, and the scores that
//! policy gradients of them use. Kernels: cuda/soft_action.cu. CPU: cpu/soft_action.rs. Parity:
//! tests/parity/soft_action.rs. Golden numbers: tests/learn/lepo.rs. Bias and variance: tests/theory/soft_latents.rs.
//!
//! ```text
//! a = log-softmax of the kept logits / T      g = a + noise      y = softmax(g / tau)      input = y^T E (ops/embedding.rs)
//! ```
//!
//! Sources: Jang et al. 2017, Maddison et al. 2017 (Gumbel-Softmax, "Concrete"); LEPO
//! (github.com/YuyanZhou/lepo: kinds of noise, soft cross-entropy); SofT-GRPO (the density of g); Soft Thinking (no noise, Dirichlet).
//!
//! [`super::sampler::mixture`] chooses the kept ids of a law and fills a [`Support`]. Noise is a pure function of the
//! row's stream and the vocabulary id, so a stored support replays the same noise. A row's bits depend on that row
//! alone. The CPU names the first faulty row; on a GPU the numbers of such a row become NaN and its proxy
//! [`super::sampler::FAULTY`], as for the sampler.

mod kernels;
mod score;

pub use score::{Score, Scored, score, score_backward};

use super::sampler::{Law, Noise, Support, explain};
use super::{View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu::{self, Float};
use crate::device::{Device, Element};
use std::ops::Range;

/// How the clean logits of the kept ids become an action.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Perturbation {
    /// g = a: deterministic mixtures (Soft Thinking).
    None,
    /// g = a + standard Gumbel noise.
    Gumbel {
        /// Bounds of the noise (SofT-GRPO -1.5 and 3).
        clamp: Option<(f64, f64)>,
    },
    /// g = a + normal noise of deviation `strength` times the root mean square of the kept logits / T.
    Gaussian {
        /// Not negative.
        strength: f64,
    },
    /// g = ln y with y from a Dirichlet distribution of parameters `concentration * exp(a)`; tau counts as 1.
    Dirichlet {
        /// Positive.
        concentration: f64,
    },
}

/// Which token stands for a soft step in text, stopping and reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// The largest clean logit among the kept, the lower id of equals.
    Argmax,
    /// A draw from y, by a word of its own in the row's stream.
    Draw,
}

/// How actions are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// 1 / T; the logits are multiplied by it.
    pub inverse_temperature: f64,
    /// Temperature of the mixture, at least [`Law::LEAST_TEMPERATURE`].
    pub tau: f64,
    /// The noise.
    pub perturbation: Perturbation,
    /// The token that stands for the step.
    pub proxy: Proxy,
    /// Weights are 1 at the largest of y and 0 elsewhere; backward passes through y (straight-through).
    pub hard: bool,
}

impl Settings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the setting, its value and its range.
    pub fn validate(&self) -> Result<()> {
        expect_inverse_temperature(self.inverse_temperature)?;
        expect_tau(self.tau)?;
        match self.perturbation {
            Perturbation::None => Ok(()),
            Perturbation::Gumbel { clamp } => expect_clamp(clamp),
            Perturbation::Gaussian { strength } => demand(
                "strength",
                strength,
                strength.is_finite() && strength >= 0.0,
                "a number of at least 0",
                "it is the noise's deviation over the root mean square of the kept logits; 0.1 to 1 is usual",
            ),
            Perturbation::Dirichlet { concentration } => demand(
                "concentration",
                concentration,
                concentration.is_finite() && concentration > 0.0,
                "a positive number",
                "it is the sum of the distribution's parameters; small values come near a single token",
            ),
        }
    }

    /// Temperature of the softmax of g: 1 where y is drawn directly.
    fn inverse_tau(&self) -> f64 {
        match self.perturbation {
            Perturbation::Dirichlet { .. } => 1.0,
            _ => 1.0 / self.tau,
        }
    }

    fn on_cpu<T: Float>(&self) -> cpu::soft_action::Rule<T> {
        use cpu::soft_action as kernel;
        let (low, high) = bounds(match self.perturbation {
            Perturbation::Gumbel { clamp } => clamp,
            _ => None,
        });
        kernel::Rule {
            inverse_tau: T::from_f64(self.inverse_tau()),
            perturbation: match self.perturbation {
                Perturbation::None => kernel::Perturbation::None,
                Perturbation::Gumbel { .. } => {
                    kernel::Perturbation::Gumbel { low: T::from_f64(low), high: T::from_f64(high) }
                }
                Perturbation::Gaussian { strength } => {
                    kernel::Perturbation::Gaussian { strength: T::from_f64(strength) }
                }
                Perturbation::Dirichlet { concentration } => {
                    kernel::Perturbation::Dirichlet { concentration: T::from_f64(concentration) }
                }
            },
            draw: self.proxy == Proxy::Draw,
            hard: self.hard,
        }
    }
}

/// Where [`forward`] writes, of the logits' dtype unless said; k is the support's capacity.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// g, `[rows, k]`; unused places 0.
    pub perturbed: ViewMut<'a>,
    /// What the input embedding mixes, `[rows, k]`: y, or one token where [`Settings::hard`]; unused places 0.
    pub weights: ViewMut<'a>,
    /// y, `[rows, k]`; wanted where the weights are one token.
    pub soft: Option<ViewMut<'a>>,
    /// The tokens that stand for the steps, u32 `[rows, 1]`.
    pub proxies: ViewMut<'a>,
    /// Entropy of y in nats, `[rows, 1]`.
    pub entropies: Option<ViewMut<'a>>,
}

/// Makes the action of each row of `logits[rows, vocabulary]` (f32 or f64; f32 on a GPU) on rows `at` of `support`.
///
/// # Errors
/// A setting out of range; shapes or dtypes that do not fit. On the CPU also a row whose support is broken or whose
/// kept logits are not finite; a GPU gives such a row NaN.
pub fn forward(
    logits: View,
    support: &Support,
    at: Range<usize>,
    settings: &Settings,
    noise: Noise,
    mut out: Outputs,
) -> Result<()> {
    settings.validate()?;
    let (rows, dtype) = check_logits(logits)?;
    let capacity = expect_support(support, &at, rows)?;
    noise.keys.expect("soft action keys", rows, 2, Dtype::U32)?;
    noise.steps.expect("soft action steps", rows, 1, Dtype::U32)?;
    out.perturbed.expect("soft action perturbed", rows, capacity, dtype)?;
    out.weights.expect("soft action weights", rows, capacity, dtype)?;
    out.proxies.expect("soft action proxies", rows, 1, Dtype::U32)?;
    if let Some(soft) = &out.soft {
        soft.expect("soft action soft", rows, capacity, dtype)?;
    }
    if let Some(entropies) = &out.entropies {
        entropies.expect("soft action entropies", rows, 1, dtype)?;
    }
    match logits.device() {
        Device::Cpu(_) => float_dispatch!("soft action logits", dtype, T => {
            let kept = kept_on_cpu::<T>(logits, support, at, settings.inverse_temperature)?;
            let noise = cpu::soft_action::Noise {
                keys: noise.keys.slice()?,
                steps: noise.steps.slice()?,
                site: noise.site,
            };
            let actions = cpu::soft_action::Actions {
                perturbed: out.perturbed.slice()?,
                weights: out.weights.slice()?,
                soft: out.soft.as_mut().map_or(Ok(&mut [][..]), |soft| soft.slice())?,
                proxies: out.proxies.slice()?,
                entropies: out.entropies.as_mut().map_or(Ok(&mut [][..]), |entropies| entropies.slice())?,
            };
            cpu::soft_action::forward(&kept, &settings.on_cpu(), &noise, actions)
                .map_err(|fault| explain(fault, capacity))?;
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => kernels::forward(&**gpu, logits, support, &at, settings, &noise, &out)?,
    }
    Ok(())
}

/// Gradient of [`forward`] by the logits `d_logits[rows, vocabulary]`, assigned; 0 at ids that are not kept:
/// `y (dy - <y, dy>) / (T tau)`. The kept set and a normal noise's deviation count as constants. `soft` is y, also
/// where the weights are one token; `d_weights` of unused places is not read.
///
/// # Errors
/// Shapes or dtypes that do not fit; Dirichlet actions, which have no pathwise derivative; on the CPU a support that
/// does not belong to the vocabulary (on a GPU its row gets NaN).
pub fn backward(
    d_weights: View,
    soft: View,
    settings: &Settings,
    support: &Support,
    at: Range<usize>,
    mut d_logits: ViewMut,
) -> Result<()> {
    settings.validate()?;
    if let Perturbation::Dirichlet { .. } = settings.perturbation {
        return Err(Error::input(
            "soft action gradient",
            "a draw of a Dirichlet distribution has no pathwise derivative",
            "use gumbel or gaussian noise, or an estimator without a backward pass through the actions (soft_ce, none)",
        ));
    }
    let (rows, vocabulary, dtype) = (soft.count(), d_logits.cols(), soft.dtype());
    let capacity = expect_support(support, &at, rows)?;
    soft.expect("soft action soft", rows, capacity, dtype)?;
    d_weights.expect("soft action d_weights", rows, capacity, dtype)?;
    d_logits.expect("soft action d_logits", rows, vocabulary, dtype)?;
    let factor = settings.inverse_temperature / settings.tau;
    match soft.device() {
        Device::Cpu(_) => float_dispatch!("soft action soft", dtype, T => {
            let mixed = cpu::sampler::Mixed::<T> {
                ids: support.ids().rows(at.clone())?.slice()?,
                counts: support.counts().rows(at)?.slice()?,
                weights: soft.slice()?,
            };
            let (factor, d_weights) = (T::from_f64(factor), d_weights.slice()?);
            cpu::sampler::mix_backward(&mixed, d_weights, factor, vocabulary, d_logits.slice()?)
                .map_err(|fault| explain(fault, capacity))?;
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            if dtype != Dtype::F32 {
                return Err(Error::dtype("soft action soft", dtype, "f32 on a GPU"));
            }
            super::sampler::launch_mixture_backward(
                &**gpu,
                d_weights,
                soft,
                factor as f32,
                support,
                &at,
                &d_logits,
            )?;
        }
    }
    Ok(())
}

/// Rows and dtype of logits that a device can take.
fn check_logits(logits: View) -> Result<(usize, Dtype)> {
    let (rows, vocabulary, dtype) = (logits.count(), logits.cols(), logits.dtype());
    if vocabulary == 0 || vocabulary >= i32::MAX as usize {
        return Err(Error::shape(
            "soft action logits",
            format!("{vocabulary} columns"),
            "a vocabulary of 1 to 2^31 - 2",
        ));
    }
    if let (Device::Gpu(_), true) = (logits.device(), dtype != Dtype::F32) {
        return Err(Error::dtype("soft action logits", dtype, "f32 on a GPU, whatever the activations are"));
    }
    Ok((rows, dtype))
}

/// The support's capacity, when `at` has `rows` of its rows.
fn expect_support(support: &Support, at: &Range<usize>, rows: usize) -> Result<usize> {
    support.counts().rows(at.clone())?.expect("soft action support", rows, 1, Dtype::U32)?;
    match support.capacity() {
        0 => Err(Error::shape("soft action support", "room for no ids", "a capacity of at least 1")),
        capacity => Ok(capacity),
    }
}

fn kept_on_cpu<'a, T: Float + Element>(
    logits: View<'a>,
    support: &'a Support,
    at: Range<usize>,
    inverse_temperature: f64,
) -> Result<cpu::soft_action::Kept<'a, T>> {
    Ok(cpu::soft_action::Kept {
        logits: logits.slice()?,
        vocabulary: logits.cols(),
        ids: support.ids().rows(at.clone())?.slice()?,
        counts: support.counts().rows(at)?.slice()?,
        inverse_temperature: T::from_f64(inverse_temperature),
    })
}

/// Fails with the setting's name unless `holds`.
fn demand(what: &str, found: f64, holds: bool, range: &str, advice: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::input(format!("soft action {what}"), format!("found {found}, expected {range}"), advice))
}

fn expect_inverse_temperature(found: f64) -> Result<()> {
    let holds = found.is_finite() && found > 0.0 && found <= 1.0 / Law::LEAST_TEMPERATURE;
    let advice = "give 1 / temperature with a temperature of at least 1e-6, and 1 for the plain softmax";
    demand("inverse_temperature", found, holds, "above 0 and at most 1e6", advice)
}

fn expect_tau(tau: f64) -> Result<()> {
    let holds = tau.is_finite() && tau >= Law::LEAST_TEMPERATURE;
    demand(
        "tau",
        tau,
        holds,
        "a number of at least 1e-6",
        "0.1 to 1 is usual; small values come near a single token",
    )
}

fn expect_clamp(clamp: Option<(f64, f64)>) -> Result<()> {
    match clamp {
        Some((low, high)) if low.is_nan() || high.is_nan() || low >= high => Err(Error::input(
            "soft action clamp",
            format!("found {low} to {high}, expected a lower bound below the upper"),
            "SofT-GRPO uses -1.5 and 3; leave the clamp out for plain Gumbel noise",
        )),
        _ => Ok(()),
    }
}

/// Bounds in numbers; infinite where there are none.
fn bounds(clamp: Option<(f64, f64)>) -> (f64, f64) {
    clamp.unwrap_or((f64::NEG_INFINITY, f64::INFINITY))
}
