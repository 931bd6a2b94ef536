//! Whole models in a lower precision against the same models in f64 on the CPU: logits, log-probabilities, and the
//! gradient of every parameter through latents, masks and a soft position. The weights are those of the lower precision,
//! to the bit.
//!
//! A result of a whole model is no sum of so many terms, so entries have no bound of their own (tolerance.rs); tensors
//! have one in norm. Each operation rounds what it stores once: to 2^-24 where activations are f32, to 2^-9 where they are
//! bf16. How far such roundings carry depends on the model and the point alone, and the same code in f32 on the same
//! device tells it:
//!
//! ```text
//! distance  |found - exact| / |exact|, over all entries of one tensor
//! spread    distance of f32 activations over f32 matrices, in units of 2^-24: of logits and log-probabilities their own,
//!           of gradients the root mean square over all tensors; at most 32 (7 to 20 for the models here)
//! bound     3 * 2^-9 * spread
//! ```
//!
//! Roundings of either sign add up as a random walk does in both precisions. f32 rounds more often (inside an operation),
//! so the factor would be below 1 if all tensors were alike; single tensors were seen at up to 2.2 (bf16 activations) and
//! 0.9 (f32 activations beside bf16 matrices, whose operands are rounded as products read them). One wrong bit
//! of one mask on the residual stream or a latent is 2 to 10 bounds away, a recurrence or a cache that is forgotten 12 to 34
//! (tests/bf16_models.rs); a bit over a hidden unit of an MLP may hide where that unit is small.

use super::models::{Runner, in_precision, rounded, small_config, small_model};
use super::script::Group;
use crate::base::{Error, Result};
use crate::device::Device;
use crate::model::{Model, Precision, Truncation};
use crate::ops::mask::MaskSet;

/// Tokens of the small models.
const VOCABULARY: usize = 29;
/// Layers of the small models.
const LAYERS: usize = 2;
/// Rounding to f32, and to bf16.
const F32: f64 = 1.0 / (1 << 24) as f64;
const BF16: f64 = 1.0 / 512.0;
/// What single tensors may be off by beyond the spread.
const MARGIN: f64 = 3.0;
/// More roundings than this make no bound wider: then something is wrong in f32 already.
const LARGEST_SPREAD: f64 = 32.0;

/// How far one result is from its reference.
#[derive(Clone, Debug)]
pub struct Distance {
    /// `logits`, `log-probabilities`, or the parameter whose gradient it is.
    pub name: String,
    /// In the precision under test, relative to the norm of the reference.
    pub found: f64,
    /// In f32 on the same device.
    pub single: f64,
    /// What `found` may be.
    pub bound: f64,
}

impl Distance {
    /// Whether it is within its bound.
    pub fn passed(&self) -> bool {
        self.found <= self.bound
    }
}

/// A change of the masks.
pub type Change<'f> = &'f dyn Fn(&mut MaskSet) -> Result<()>;

/// What is wrong with the model under test: nothing, unless a test plants something.
#[derive(Clone, Copy, Default)]
pub struct Planted<'f> {
    /// Where its gradients stop.
    pub truncation: Truncation,
    /// What becomes of its masks.
    pub masks: Option<Change<'f>>,
}

/// Distances of a small model of a family that runs `group` on `device` in `precision`.
///
/// # Errors
/// f64, which is the reference; a device that does not compute in this precision.
pub fn distances(
    family: &str,
    group: &Group,
    device: &Device,
    precision: Precision,
    planted: Planted,
) -> Result<Vec<Distance>> {
    if precision == Precision::F64 {
        return Err(Error::input(
            "precision under test",
            "f64, which the others are compared with",
            "choose f32, bf16 or bf16-activations",
        ));
    }
    let config = small_config(family, LAYERS, VOCABULARY, group.length(), false)?;
    let mut exact = small_model(config, group.seed)?;
    let low = rounded(&mut exact, device, precision)?;
    let single = in_precision(&exact, device, Precision::F32)?;
    let script = group.script(VOCABULARY);
    let names: Vec<String> = exact.trained_names().into_iter().map(String::from).collect();
    let run = |model: Model, planted: Planted| -> Result<[Vec<Vec<f64>>; 2]> {
        let mut runner = Runner::new(model, &script, Some(group))?;
        if let (Some(change), Some(masks)) = (planted.masks, &mut runner.masks) {
            change(masks)?;
        }
        let gradient = runner.gradient(&script, planted.truncation)?;
        Ok([vec![runner.logits(&script)?, runner.log_probabilities()?], gradient])
    };
    let [forward, gradient] = run(exact, Planted::default())?;
    let [single_forward, single_gradient] = run(single, Planted::default())?;
    let [low_forward, low_gradient] = run(low, planted)?;
    let mut list = Vec::with_capacity(2 + names.len());
    for (n, name) in ["logits", "log-probabilities"].into_iter().enumerate() {
        let of = |found: &[Vec<f64>]| relative(&found[n], &forward[n]);
        let (found, single) = (of(&low_forward), of(&single_forward));
        list.push(Distance { name: name.into(), found, single, bound: bound(single) });
    }
    let of = |found: &[Vec<f64>]| -> Vec<f64> {
        found.iter().zip(&gradient).map(|(found, exact)| relative(found, exact)).collect()
    };
    let (found, single) = (of(&low_gradient), of(&single_gradient));
    let spread = (single.iter().map(|d| d * d).sum::<f64>() / single.len() as f64).sqrt();
    let of_gradients = names.into_iter().zip(found).zip(single);
    list.extend(of_gradients.map(|((name, found), single)| Distance {
        name,
        found,
        single,
        bound: bound(spread),
    }));
    Ok(list)
}

/// How far a result may be in a precision that rounds to bf16, where f32 is `single` off (both relative, in norm).
pub fn bound(single: f64) -> f64 {
    MARGIN * BF16 * (single / F32).min(LARGEST_SPREAD)
}

/// Distance in norm over the norm of `expected`; not a number where one of `found` is none.
fn relative(found: &[f64], expected: &[f64]) -> f64 {
    let apart: f64 = found.iter().zip(expected).map(|(f, e)| (f - e) * (f - e)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    if apart == 0.0 { 0.0 } else { (apart / norm).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_outside_every_bound() {
        let distance = |found: f64| Distance { name: String::new(), found, single: 1e-7, bound: bound(1e-7) };
        assert!(distance(relative(&[1.0, 2.0], &[1.0, 2.001])).passed());
        assert!(!distance(relative(&[1.0, f64::NAN], &[1.0, 2.0])).passed());
        assert!(!distance(relative(&[1.0, 2.0], &[0.0, 0.0])).passed());
        assert!(!distance(relative(&[1.0, 2.2], &[1.0, 2.0])).passed());
        assert_eq!(bound(1.0), bound(32.0 * F32), "a wrong f32 does not excuse anything");
    }
}
