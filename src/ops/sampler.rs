//! Sampling of tokens from rows of logits, scoring on the stored support, and Gumbel-Softmax mixtures.
//! Kernels: cuda/sampler.cu. CPU: cpu/sampler.rs. Parity: tests/parity/sampler.rs.
//!
//! A draw is the argmax of `logit / T + Gumbel noise` over the kept ids; its noise is a pure function of the row's
//! stream key, its step and the site, so a row gives the same token alone and in any batch. The log-probability is
//! that of the law sampled from: renormalised over the kept ids. Without filters it has the bits that
//! [`super::log_probability::forward`] gives for the same row and token. A GPU draws the CPU's tokens from the same
//! bits of logits; its log-probabilities differ in rounding.
//!
//! A row may have no draw: its logits hold NaN or plus infinity, nothing above minus infinity, or more ids are kept
//! than there is room for. The CPU returns an error that names the row. A GPU would have to wait to do so, and a decode
//! step waits but once, when its tokens cross to the host. So there the row's token is [`FAULTY`], its log-probability
//! and its mixture's weights are NaN, and its count is above the support's capacity. Whoever downloads tokens asks
//! [`expect_drawn`], which is silent on good tokens and gives the CPU's error otherwise. NaN weights reach every later
//! logit of the row, so a mixture's fault shows at the next token at the latest; [`expect_mixed`] asks at once.

mod kernels;
mod mixture;
mod score;
mod support;
mod workspace;

pub(in crate::ops) use kernels::{mixture_backward as launch_mixture_backward, support_at};
pub use mixture::{Mixed, Mixture, expect_mixed, mixture, mixture_backward};
pub use score::{Scored, score_on_support, score_on_support_backward};
pub use support::Support;
pub use workspace::Workspace;

use super::{View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::cpu::sampler::{Fault, Filters, Problem};
use crate::device::Device;
use std::ops::Range;

/// The token of a row without a draw; see [`expect_drawn`].
pub const FAULTY: u32 = u32::MAX;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Law {
    /// The most probable id (the lower of equals). Its log-probability is that of the plain softmax, T = 1.
    Greedy,
    /// A draw from the softmax at a temperature, over what the filters keep. Filters act in the order of
    /// Hugging Face: top-k, top-p on what is left (renormalised), min-p. Each keeps at least one id; equals are
    /// kept from the lower id on, so that top-k keeps exactly k. Ids of probability 0 are never kept.
    Categorical {
        /// Divides the logits; at least [`Law::LEAST_TEMPERATURE`].
        temperature: f64,
        /// Keep the k most probable ids.
        top_k: Option<usize>,
        /// Keep the fewest most probable ids whose mass reaches p.
        top_p: Option<f64>,
        /// Keep ids at least this fraction as probable as the most probable one.
        min_p: Option<f64>,
    },
}

impl Law {
    /// Smallest temperature: below it logits of ordinary size would overflow f32.
    pub const LEAST_TEMPERATURE: f64 = 1e-6;

    /// The plain softmax: temperature 1, no filter.
    pub const PLAIN: Law = Law::Categorical { temperature: 1.0, top_k: None, top_p: None, min_p: None };

    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the setting, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let Law::Categorical { temperature, top_k, top_p, min_p } = *self else { return Ok(()) };
        let refuse = |what: &str, found: String, expected: &str, advice: &str| {
            Err(Error::input(what, format!("found {found}, expected {expected}"), advice))
        };
        if !(temperature.is_finite() && temperature >= Self::LEAST_TEMPERATURE) {
            let advice = "for the most probable token choose greedy; 1 is the model's own law";
            return refuse("temperature", temperature.to_string(), "a number of at least 1e-6", advice);
        }
        if top_k == Some(0) {
            return refuse("top_k", "0".into(), "at least 1", "leave top_k out to keep all tokens");
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return refuse(
                "top_p",
                p.to_string(),
                "above 0 and at most 1",
                "leave top_p out to keep all tokens",
            );
        }
        if let Some(p) = min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return refuse("min_p", p.to_string(), "between 0 and 1", "leave min_p out to keep all tokens");
        }
        Ok(())
    }

    /// What logits are multiplied by before the softmax that scores are taken under.
    pub fn inverse_temperature(&self) -> f64 {
        match self {
            Law::Greedy => 1.0,
            Law::Categorical { temperature, .. } => 1.0 / temperature,
        }
    }

    fn on_cpu<T: cpu::Float>(&self) -> cpu::sampler::Law<T> {
        match *self {
            Law::Greedy => cpu::sampler::Law::Greedy,
            Law::Categorical { top_k, top_p, min_p, .. } => cpu::sampler::Law::Categorical {
                inverse_temperature: T::from_f64(self.inverse_temperature()),
                filters: Filters { top_k, top_p, min_p },
            },
        }
    }
}

/// The coordinates of each row's noise: word `v` of Philox(key, (site, step, v / 4, attempt 0)) is that of id `v`.
#[derive(Clone, Copy, Debug)]
pub struct Noise<'a> {
    /// Stream keys, u32 `[rows, 2]` ([`crate::base::rng::StreamKey`], purpose token).
    pub keys: View<'a>,
    /// Position or index of the drawn token, u32 `[rows, 1]`.
    pub steps: View<'a>,
    /// Philox site.
    pub site: u32,
}

/// Where [`sample`] writes.
#[derive(Debug)]
pub struct Sampled<'a> {
    /// Drawn ids, u32 `[rows, 1]`.
    pub tokens: ViewMut<'a>,
    /// Their log-probabilities under the law, `[rows, 1]` of the logits' dtype.
    pub log_probability: ViewMut<'a>,
    /// Which rows of which support receive the kept ids.
    pub support: Option<(&'a mut Support, Range<usize>)>,
    /// Working memory for rows of these logits.
    pub workspace: &'a Workspace,
}

/// Draws one token for each row of `logits[rows, vocabulary]` (f32 or f64).
///
/// # Errors
/// A law out of range; shapes or dtypes that do not fit. On the CPU also a row without a draw, whose place a GPU marks
/// instead (see [`expect_drawn`]); rows before the faulty one may have been written.
pub fn sample(logits: View, law: &Law, noise: Noise, mut out: Sampled) -> Result<()> {
    law.validate()?;
    let (rows, dtype) = (logits.count(), logits.dtype());
    check_rows(logits, &noise)?;
    out.tokens.expect("sampler tokens", rows, 1, Dtype::U32)?;
    out.log_probability.expect("sampler log_probability", rows, 1, dtype)?;
    if let Some((_, at)) = &out.support
        && at.len() != rows
    {
        return Err(Error::shape("sampler support", format!("{at:?}"), format!("{rows} rows")));
    }
    match logits.device() {
        Device::Cpu(_) => float_dispatch!("sampler logits", dtype, T => {
            let rows = rows_on_cpu::<T>(logits, law, &noise)?;
            let (mut support, mut capacity) = (None, 0);
            if let Some((kept, at)) = out.support {
                capacity = kept.ids.shape().as_matrix().1;
                support = Some((kept.ids.rows_mut(at.clone())?, kept.counts.rows_mut(at)?));
            }
            let (ids, counts) = match &mut support {
                Some((ids, counts)) => (ids.slice()?, counts.slice()?),
                None => (&mut [][..], &mut [][..]),
            };
            let draws = cpu::sampler::Draws {
                tokens: out.tokens.slice()?,
                log_probability: out.log_probability.slice()?,
                ids,
                counts,
                capacity,
            };
            cpu::sampler::sample(&rows, draws).map_err(|fault| explain(fault, capacity))?;
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let mut places = kernels::Places {
                memory: out.workspace.address(rows, logits.cols())?,
                tokens: out.tokens.address()?,
                log_probability: out.log_probability.address()?,
                ..kernels::Places::NONE
            };
            if let Some((kept, at)) = &out.support {
                places = places.with_support(kept, at)?;
            }
            kernels::draw(&**gpu, logits, law, &noise, &places)?;
        }
    }
    Ok(())
}

/// What all draws ask of logits and noise.
fn check_rows(logits: View, noise: &Noise) -> Result<()> {
    let (rows, vocabulary) = (logits.count(), logits.cols());
    if vocabulary == 0 || vocabulary >= i32::MAX as usize {
        return Err(Error::shape(
            "sampler logits",
            format!("{vocabulary} columns"),
            "a vocabulary of 1 to 2^31 - 2",
        ));
    }
    if let (Device::Gpu(_), dtype) = (logits.device(), logits.dtype())
        && dtype != Dtype::F32
    {
        return Err(Error::dtype("sampler logits", dtype, "f32 on a GPU, whatever the activations are"));
    }
    noise.keys.expect("sampler keys", rows, 2, Dtype::U32)?;
    noise.steps.expect("sampler steps", rows, 1, Dtype::U32)
}

/// The form of the CPU kernels.
fn rows_on_cpu<'a, T>(logits: View<'a>, law: &Law, noise: &Noise<'a>) -> Result<cpu::sampler::Rows<'a, T>>
where
    T: cpu::Float + crate::device::Element,
{
    Ok(cpu::sampler::Rows {
        logits: logits.slice()?,
        vocabulary: logits.cols(),
        keys: noise.keys.slice()?,
        steps: noise.steps.slice()?,
        site: noise.site,
        law: law.on_cpu(),
    })
}

/// Fails where one of the tokens that [`sample`] drew from `logits` is [`FAULTY`]; the tokens have been downloaded.
/// Costs nothing else while all are good.
///
/// # Errors
/// Names the first such row and what is wrong with it.
pub fn expect_drawn(tokens: &[u32], logits: View, law: &Law) -> Result<()> {
    match tokens.iter().position(|&token| token == FAULTY) {
        Some(row) => Err(diagnose(row, logits, law)?),
        None => Ok(()),
    }
}

/// Why a GPU drew nothing from a row (one download).
fn diagnose(row: usize, logits: View, law: &Law) -> Result<Error> {
    let logits = logits.rows(row..row + 1)?.download::<f32>()?;
    let scale = law.inverse_temperature() as f32;
    let broken = logits.iter().position(|&l| !(l * scale).is_finite() && l * scale != f32::NEG_INFINITY);
    let problem = match broken {
        Some(id) => Problem::NotFinite { id, value: f64::from(logits[id]) },
        None if logits.iter().all(|&l| l * scale == f32::NEG_INFINITY) => Problem::NoMass,
        None => {
            return Ok(Error::input(
                "sampler support",
                format!("row {row} keeps more tokens than the support has room for"),
                "reserve more, or set top_k to the support's capacity",
            ));
        }
    };
    Ok(explain(Fault { row, problem }, 0))
}

/// A fault in words.
pub(in crate::ops) fn explain(Fault { row, problem }: Fault, capacity: usize) -> Error {
    match problem {
        Problem::NotFinite { id, value } => Error::NotFinite {
            what: "sampler logits".into(),
            found: format!("row {row}, token {id} has {value}"),
            advice: "the weights or the hidden states are broken; check them, and the learning rate, before sampling".into(),
        },
        Problem::NoMass => Error::input(
            "sampler logits",
            format!("row {row} is minus infinity everywhere, so no token has a probability"),
            "leave at least one token unmasked",
        ),
        Problem::Full { kept } => Error::input(
            "sampler support",
            format!("row {row} keeps {kept} tokens, the support has room for {capacity}"),
            format!("reserve more, or set top_k to at most {capacity}"),
        ),
        Problem::NotKept { token } => Error::input(
            "sampler support",
            format!("row {row} does not keep the scored token {token}"),
            "score the tokens that were sampled with this support, row by row",
        ),
        Problem::Broken => Error::input(
            "sampler support",
            format!("row {row} holds ids outside the logits' vocabulary"),
            "score with the model family that sampled",
        ),
        Problem::Unordered => Error::input(
            "sampler support",
            format!("the ids of row {row} do not ascend"),
            "store the ids of a row in ascending order, each once, with their numbers beside them",
        ),
        Problem::Empty => Error::input(
            "sampler support",
            format!("row {row} keeps no ids, and an action needs at least one"),
            "fill the support by sampler::mixture, or upload the stored one",
        ),
    }
}
