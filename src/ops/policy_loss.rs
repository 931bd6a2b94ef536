//! Policy losses of the GRPO family over packed rows of sampled tokens. Kernels: cuda/policy_loss.cu.
//! CPU: cpu/policy_loss.rs. Parity: tests/parity/policy_loss.rs. Golden numbers: tests/learn/objective.rs.
//!
//! ```text
//! x   = ln pi - ln pi_old, or its mean over the row (GSPO);   rho = exp(clamp(x))
//! clipped (PPO, GRPO)  s = min(min(rho, delta) A, clip(rho, 1 - low, 1 + high) A);  A < 0: s = max(s, dual A)
//! weighted (CISPO)     s = stop_gradient(min(rho, high)) A ln pi
//! soft (SAPO)          s = (4/t) sigmoid(t (rho - 1)) A,  t by the sign of A
//! plain (LEPO latents) s = A ln pi;   rho counts as 1
//! D   = ln pi - ln pi_ref;   k1 = D;   k2 = D^2/2;   k3 = exp(-D) - 1 + D;   k3+ = k3 with the gradient of k2
//! term = -s + beta k;   loss = sum_n weight_n term_n;   coefficient_n = d loss / d ln pi_n
//! ```
//!
//! Sources: PPO (arXiv 1707.06347), dual clip (1912.09729), DeepSeekMath (2402.03300), GSPO (2507.18071), CISPO
//! (2506.13585), SAPO (2511.20347), k1-k3 (joschu.net/blog/kl-approx.html); TRL trainer/grpo_trainer.py; verl
//! trainer/ppo/core_algos.py. A bound stops the gradient. The gradient of a sequence's ratio flows to each of its
//! tokens, as in TRL. Where ln pi = ln pi_old, the ratio is exactly 1.
//! Backward needs nothing but the operands: there is no `Saved`, and either pass can be left out.

use super::launch::{ABSENT, arguments, kernels, size};
use super::{View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Argument, Device, Element, Grid, Kernel, Launcher};
pub use cpu::policy_loss::Estimator;

kernels!("policy_loss": FORWARD = "policy_loss_fwd_f32", BACKWARD = "policy_loss_bwd_f32");

/// Threads of a block; `__launch_bounds__` of the kernels.
const BLOCK: u32 = 128;

/// What a ratio compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ratio {
    /// One ratio a token.
    Token,
    /// One a row: exp of the mean of its log-ratios.
    Sequence,
}

/// What becomes of ratio and advantage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Surrogate {
    /// The clipped surrogate of PPO.
    Clipped {
        /// The ratio is clipped at `1 - low`; in [0, 1].
        low: f64,
        /// The ratio is clipped at `1 + high`; not negative.
        high: f64,
        /// Cap of the ratio where the clip does not act (TRL's two-sided clipping); above `1 + high`.
        delta: Option<f64>,
        /// For negative advantages the loss is at most `-dual A` (verl's `clip_ratio_c`, 3); above 1.
        dual: Option<f64>,
    },
    /// REINFORCE weighted by a bounded ratio without gradient (CISPO).
    Weighted {
        /// Largest weight; positive.
        high: f64,
    },
    /// A sigmoid instead of a clip (SAPO).
    Soft {
        /// Temperature for positive advantages; positive.
        positive: f64,
        /// Temperature for the others; positive.
        negative: f64,
    },
    /// REINFORCE without a ratio: the old log-probabilities are not read. `ln pi` may be any score, such as LEPO's
    /// soft cross-entropy (ops/soft_action.rs).
    Plain,
}

/// The penalty towards a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kl {
    /// Which estimate of the divergence.
    pub estimator: Estimator,
    /// Its coefficient; with 0 the divergence is only measured.
    pub beta: f64,
    /// Bound of |ln pi - ln pi_ref| (verl 20).
    pub clamp: Option<f64>,
    /// Bound of the estimate's size (verl 10).
    pub cap: Option<f64>,
}

/// A loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// What a ratio compares.
    pub ratio: Ratio,
    /// What becomes of ratio and advantage.
    pub surrogate: Surrogate,
    /// Bound of |log ratio| (verl 20).
    pub clamp: Option<f64>,
    /// The penalty towards a reference.
    pub kl: Option<Kl>,
}

/// Columns of the statistics. Flags are 0 or 1, so that their weighted sums are fractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// rho.
    Ratio = 0,
    /// A < 0 and rho below the clip: no gradient.
    ClippedLow = 1,
    /// A > 0 and rho above the clip (weighted: the weight is at its bound).
    ClippedHigh = 2,
    /// A < 0 and rho above delta or dual: no gradient (weighted: the weight is at its bound).
    Capped = 3,
    /// The estimate of the divergence; 0 without a reference.
    Kl = 4,
}

impl Statistic {
    /// Number of columns.
    pub const COUNT: usize = cpu::policy_loss::STATISTICS;
}

/// What is scored: `[tokens, 1]` each, one dtype (f32 or f64).
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// ln pi of the sampled tokens.
    pub log_probability: View<'a>,
    /// The same under the policy that sampled them.
    pub old: View<'a>,
    /// The same under the reference; given exactly where [`Hyper::kl`] is.
    pub reference: Option<View<'a>>,
    /// Advantages.
    pub advantage: View<'a>,
    /// First token of each row and, last, the number of tokens: ascending, U32 `[rows + 1, 1]`. Rows may be empty.
    pub starts: View<'a>,
}

/// Where [`forward`] writes.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// The loss of each token before weighting, `[tokens, 1]`.
    pub term: ViewMut<'a>,
    /// `[tokens, Statistic::COUNT]`.
    pub statistics: ViewMut<'a>,
}

/// Terms and statistics of every token.
///
/// # Errors
/// Shapes or dtypes that do not fit, rows that do not cover the tokens, a reference without penalty or the other
/// way round, or numbers of `hyper` outside their ranges.
pub fn forward(inputs: &Inputs, hyper: &Hyper, mut out: Outputs) -> Result<()> {
    let (tokens, dtype) = check(inputs, hyper)?;
    out.term.expect("policy_loss term", tokens, 1, dtype)?;
    out.statistics.expect("policy_loss statistics", tokens, Statistic::COUNT, dtype)?;
    match inputs.log_probability.device() {
        Device::Cpu(_) => float_dispatch!("policy_loss", dtype, T => {
            let (term, statistics) = (out.term.slice()?, out.statistics.slice()?);
            cpu::policy_loss::forward::<T>(operands(inputs)?, rule(hyper), term, statistics);
        }),
        Device::Gpu(gpu) => {
            launch(&**gpu, &FORWARD, inputs, hyper, [out.term.address()?, out.statistics.address()?])?;
        }
    }
    Ok(())
}

/// `coefficient[tokens, 1] = d(sum_n weight_n term_n) / d ln pi`, the penalty included: what
/// `log_probability::backward` takes. `weight[tokens, 1]` is how the terms are aggregated, or any gradient of them.
///
/// # Errors
/// Those of [`forward`].
pub fn backward(weight: View, inputs: &Inputs, hyper: &Hyper, mut coefficient: ViewMut) -> Result<()> {
    let (tokens, dtype) = check(inputs, hyper)?;
    weight.expect("policy_loss weight", tokens, 1, dtype)?;
    coefficient.expect("policy_loss coefficient", tokens, 1, dtype)?;
    match inputs.log_probability.device() {
        Device::Cpu(_) => float_dispatch!("policy_loss", dtype, T => {
            let (weight, coefficient) = (weight.slice()?, coefficient.slice()?);
            cpu::policy_loss::backward::<T>(weight, operands(inputs)?, rule(hyper), coefficient);
        }),
        Device::Gpu(gpu) => {
            launch(&**gpu, &BACKWARD, inputs, hyper, [weight.address()?, coefficient.address()?])?;
        }
    }
    Ok(())
}

impl Hyper {
    /// Fails where a number is outside its range.
    ///
    /// # Errors
    /// The first such number, by name.
    pub fn check(&self) -> Result<()> {
        let demand = |what: &str, found: f64, holds: bool, range: &str| {
            if holds && !found.is_nan() {
                return Ok(());
            }
            Err(Error::input(
                format!("policy loss {what}"),
                format!("found {found}, expected {range}"),
                "see the ranges in ops/policy_loss.rs",
            ))
        };
        let bound = |what: &str, found: Option<f64>| {
            found.map_or(Ok(()), |found| demand(what, found, found > 0.0, "a positive number"))
        };
        bound("clamp", self.clamp)?;
        match self.surrogate {
            Surrogate::Clipped { low, high, delta, dual } => {
                demand("clip low", low, (0.0..=1.0).contains(&low), "0 to 1")?;
                demand("clip high", high, high >= 0.0, "0 or more")?;
                if let Some(delta) = delta {
                    demand(
                        "delta",
                        delta,
                        delta > 1.0 + high,
                        &format!("more than 1 + high = {}", 1.0 + high),
                    )?;
                }
                if let Some(dual) = dual {
                    demand("dual clip", dual, dual > 1.0, "more than 1")?;
                }
            }
            Surrogate::Weighted { high } => demand("largest weight", high, high > 0.0, "a positive number")?,
            Surrogate::Soft { positive, negative } => {
                demand("temperature", positive, positive > 0.0, "a positive number")?;
                demand("temperature", negative, negative > 0.0, "a positive number")?;
            }
            Surrogate::Plain => {}
        }
        if let Some(kl) = self.kl {
            demand("beta", kl.beta, kl.beta >= 0.0 && kl.beta.is_finite(), "0 or more")?;
            bound("KL clamp", kl.clamp)?;
            bound("KL cap", kl.cap)?;
        }
        Ok(())
    }
}

/// Tokens and dtype of the work.
fn check(inputs: &Inputs, hyper: &Hyper) -> Result<(usize, Dtype)> {
    let log_probability = inputs.log_probability;
    let (tokens, dtype) = (log_probability.count(), log_probability.dtype());
    log_probability.expect("policy_loss log_probability", tokens, 1, dtype)?;
    inputs.old.expect("policy_loss old", tokens, 1, dtype)?;
    inputs.advantage.expect("policy_loss advantage", tokens, 1, dtype)?;
    match (inputs.reference, hyper.kl) {
        (Some(reference), Some(_)) => reference.expect("policy_loss reference", tokens, 1, dtype)?,
        (None, None) => {}
        (reference, _) => {
            let (found, missing) = match reference {
                Some(_) => (
                    "log-probabilities of a reference without a KL penalty",
                    "set one, with beta 0 to measure",
                ),
                None => (
                    "a KL penalty without log-probabilities of a reference",
                    "score the tokens under the reference",
                ),
            };
            return Err(Error::input("policy_loss reference", format!("found {found}"), missing));
        }
    }
    let ends = inputs.starts.count();
    inputs.starts.expect("policy_loss starts", ends.max(1), 1, Dtype::U32)?;
    if let Device::Cpu(_) = log_probability.device() {
        let starts = inputs.starts.slice::<u32>()?;
        let (first, last) = (starts[0] as usize, starts[ends - 1] as usize);
        if first != 0 || last != tokens {
            return Err(Error::shape(
                "policy_loss starts",
                format!("{first}..{last}"),
                format!("0..{tokens}"),
            ));
        }
        if let Some(row) = starts.windows(2).position(|pair| pair[0] > pair[1]) {
            return Err(Error::shape(
                "policy_loss starts",
                format!("row {row} from {} to {}", starts[row], starts[row + 1]),
                "ascending starts",
            ));
        }
    }
    hyper.check()?;
    Ok((tokens, dtype))
}

/// Runs a kernel with its last two arguments; a block has one row.
fn launch(
    gpu: &dyn Launcher,
    kernel: &'static Kernel,
    inputs: &Inputs,
    hyper: &Hyper,
    last: [Argument; 2],
) -> Result<()> {
    let (tokens, rows) = (inputs.log_probability.count(), inputs.starts.count() - 1);
    let dtype = inputs.log_probability.dtype();
    if dtype != Dtype::F32 {
        return Err(Error::dtype("policy_loss", dtype, "f32 on a GPU"));
    }
    if tokens == 0 || rows == 0 {
        return Ok(());
    }
    let mut list = arguments![
        inputs.log_probability.address()?,
        inputs.old.address()?,
        inputs.reference.map_or(Ok(ABSENT), |reference| reference.address())?,
        inputs.advantage.address()?,
        inputs.starts.address()?,
        size("policy_loss tokens", tokens)?,
    ]
    .to_vec();
    list.extend(rule_arguments(&rule::<f32>(hyper)));
    list.extend(last);
    gpu.launch(kernel, Grid::linear(size("policy_loss rows", rows)?, BLOCK), &list)
}

/// The loss as the kernels take it: the order and the numbers of `Rule`, `Kind` and `Estimator` in cuda/policy_loss.cu.
fn rule_arguments(rule: &cpu::policy_loss::Rule<f32>) -> [Argument; 11] {
    use cpu::policy_loss::Surrogate as Kind;
    let (kind, [first, second, third, fourth]) = match rule.surrogate {
        Kind::Clipped { lowest, highest, delta, dual } => (0_u32, [lowest, highest, delta, dual]),
        Kind::Weighted { highest } => (1, [highest, 0.0, 0.0, 0.0]),
        Kind::Soft { positive, negative } => (2, [positive, negative, 0.0, 0.0]),
        Kind::Plain => (3, [0.0; 4]),
    };
    let (estimator, beta, difference, cap) = match rule.penalty {
        None => (0_u32, 0.0, f32::INFINITY, f32::INFINITY),
        Some(penalty) => {
            let number = match penalty.estimator {
                Estimator::K1 => 1,
                Estimator::K2 => 2,
                Estimator::K3 => 3,
                Estimator::K3Plus => 4,
            };
            (number, penalty.beta, penalty.clamp, penalty.cap)
        }
    };
    let sequence = u32::from(rule.sequence);
    arguments![sequence, rule.clamp, kind, first, second, third, fourth, estimator, beta, difference, cap]
}

fn operands<'a, T: Element>(inputs: &Inputs<'a>) -> Result<cpu::policy_loss::Operands<'a, T>> {
    Ok(cpu::policy_loss::Operands {
        log_probability: inputs.log_probability.slice()?,
        old: inputs.old.slice()?,
        reference: inputs.reference.map(|reference| reference.slice()).transpose()?,
        advantage: inputs.advantage.slice()?,
        starts: inputs.starts.slice()?,
    })
}

/// The loss in the kernel's numbers.
fn rule<T: cpu::Float>(hyper: &Hyper) -> cpu::policy_loss::Rule<T> {
    use cpu::policy_loss as kernel;
    let limit = |value: Option<f64>| T::from_f64(value.unwrap_or(f64::INFINITY));
    kernel::Rule {
        sequence: hyper.ratio == Ratio::Sequence,
        clamp: limit(hyper.clamp),
        surrogate: match hyper.surrogate {
            Surrogate::Clipped { low, high, delta, dual } => kernel::Surrogate::Clipped {
                lowest: T::from_f64(1.0 - low),
                highest: T::from_f64(1.0 + high),
                delta: limit(delta),
                dual: limit(dual),
            },
            Surrogate::Weighted { high } => kernel::Surrogate::Weighted { highest: T::from_f64(high) },
            Surrogate::Soft { positive, negative } => {
                kernel::Surrogate::Soft { positive: T::from_f64(positive), negative: T::from_f64(negative) }
            }
            Surrogate::Plain => kernel::Surrogate::Plain,
        },
        penalty: hyper.kl.map(|kl| kernel::Penalty {
            estimator: kl.estimator,
            beta: T::from_f64(kl.beta),
            clamp: limit(kl.clamp),
            cap: limit(kl.cap),
        }),
    }
}
