//! Gradient checks of ops/policy_loss.rs.
//!
//! Two losses hold a factor fixed that depends on the log-probability: the weight of CISPO, and k3+ whose gradient
//! is that of k2. Their value is therefore measured by a function with the same gradient: the old log-probabilities
//! move along with the new, and k2 stands for k3+.
//! Distances to the old policy and to the reference are multiples of 0.1, and no bound is near one: a difference
//! quotient is wrong where a kink lies inside its step, and the derivative on each side is what is checked.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::Tensor;
use crate::ops::policy_loss::{
    Estimator, Hyper, Inputs, Kl, Outputs, Ratio, Statistic, Surrogate, backward, forward,
};
use crate::verify::gradient::{Case, Variable, normals};

/// Every surrogate and estimator, ratios on both sides of every bound, rows of ragged lengths, one empty.
pub fn cases() -> Vec<Case<'static>> {
    let clipped = |delta, dual| Surrogate::Clipped { low: 0.2, high: 0.28, delta, dual };
    let kl = |estimator| Some(Kl { estimator, beta: 0.3, clamp: Some(0.85), cap: Some(0.55) });
    let token = |surrogate, kl| Hyper { ratio: Ratio::Token, surrogate, clamp: Some(0.95), kl };
    let sequence = |surrogate, kl| Hyper { ratio: Ratio::Sequence, clamp: Some(20.0), surrogate, kl };
    let narrow = Surrogate::Clipped { low: 0.07, high: 0.07, delta: None, dual: None };
    let soft = Surrogate::Soft { positive: 1.0, negative: 1.05 };
    [
        ("clipped", &[1][..], token(clipped(None, None), None)),
        ("clipped, dual, k1", &[33, 0, 40], token(clipped(None, Some(1.42)), kl(Estimator::K1))),
        ("clipped, delta, k2", &[64, 7], token(clipped(Some(1.6), None), kl(Estimator::K2))),
        ("sequence, k3", &[1, 17, 0, 3, 40, 5, 2, 9], sequence(narrow, kl(Estimator::K3))),
        ("weighted, k3", &[50, 13], token(Surrogate::Weighted { high: 1.25 }, kl(Estimator::K3))),
        ("weighted sequence", &[5, 30], sequence(Surrogate::Weighted { high: 1.01 }, None)),
        ("soft, k3+", &[21, 21], token(soft, kl(Estimator::K3Plus))),
        ("soft sequence", &[3, 16, 4], sequence(soft, None)),
        ("plain", &[40, 2], token(Surrogate::Plain, None)),
        ("plain sequence, k3", &[7, 12], sequence(Surrogate::Plain, kl(Estimator::K3))),
    ]
    .into_iter()
    .map(|(name, lengths, hyper)| case(name, lengths, hyper))
    .collect()
}

/// A problem without its log-probabilities.
struct Fixed {
    /// ln pi at the point of the check.
    base: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    advantage: Vec<f64>,
    weight: Vec<f64>,
    starts: Vec<u32>,
}

fn case(name: &str, lengths: &[usize], hyper: Hyper) -> Case<'static> {
    let name = format!("policy_loss {name}");
    let tokens = lengths.iter().sum::<usize>();
    let draw = |what: &str, scale: f64, from: &[f64]| -> Vec<f64> {
        let noise = normals(&format!("{name} {what}"), tokens);
        from.iter().zip(noise).map(|(from, noise)| f64::from((from + scale * noise) as f32)).collect()
    };
    let base = draw("log-probability", 0.5, &vec![-2.0; tokens]);
    let apart = |what: &str, tenths: f64| -> Vec<f64> {
        let noise = normals(&format!("{name} {what}"), tokens);
        base.iter().zip(noise).map(|(base, noise)| base - 0.1 * (tenths * noise).round()).collect()
    };
    let fixed = || Fixed {
        old: apart("old", 4.0),
        reference: apart("reference", 5.0),
        advantage: draw("advantage", 1.0, &vec![0.0; tokens]),
        weight: draw("weight", 0.3, &vec![1.0; tokens]),
        starts: starts(lengths),
        base: base.clone(),
    };
    let (of_loss, of_gradient) = (fixed(), fixed());
    let measured = match hyper.kl {
        Some(Kl { estimator: Estimator::K3Plus, beta, clamp, cap }) => {
            Hyper { kl: Some(Kl { estimator: Estimator::K2, beta, clamp, cap }), ..hyper }
        }
        _ => hyper,
    };
    Case {
        variables: vec![Variable { name: "log_probability".into(), values: base.clone() }],
        loss: Box::new(move |point| {
            Ok(dot(&run(&of_loss, &point[0], &measured, Dtype::F64, false)?, &of_loss.weight))
        }),
        gradient: Box::new(move |point, dtype| Ok(vec![run(&of_gradient, &point[0], &hyper, dtype, true)?])),
        name,
    }
}

/// First token of each row, and the end of the last.
pub fn starts(lengths: &[usize]) -> Vec<u32> {
    let ends = lengths.iter().scan(0, |end, length| {
        *end += *length as u32;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// The terms, or the coefficients.
fn run(fixed: &Fixed, point: &[f64], hyper: &Hyper, dtype: Dtype, coefficients: bool) -> Result<Vec<f64>> {
    let device = Device::cpu();
    let tokens = point.len();
    let column = |values: &[f64]| tensor(&device, [tokens, 1], values, dtype);
    let old: Vec<f64> = match hyper.surrogate {
        Surrogate::Weighted { .. } => {
            (0..tokens).map(|n| fixed.old[n] + (point[n] - fixed.base[n])).collect()
        }
        _ => fixed.old.clone(),
    };
    let (log_probability, old) = (column(point)?, column(&old)?);
    let (reference, advantage, weight) =
        (column(&fixed.reference)?, column(&fixed.advantage)?, column(&fixed.weight)?);
    let starts = Tensor::from_host(&device, [fixed.starts.len(), 1], &fixed.starts)?;
    let inputs = Inputs {
        log_probability: log_probability.view(),
        old: old.view(),
        reference: hyper.kl.map(|_| reference.view()),
        advantage: advantage.view(),
        starts: starts.view(),
    };
    let mut out = Tensor::zeros(&device, [tokens, 1], dtype)?;
    if coefficients {
        backward(weight.view(), &inputs, hyper, out.view_mut())?;
    } else {
        let mut statistics = Tensor::zeros(&device, [tokens, Statistic::COUNT], dtype)?;
        let out = Outputs { term: out.view_mut(), statistics: statistics.view_mut() };
        forward(&inputs, hyper, out)?;
    }
    values(out.view())
}
