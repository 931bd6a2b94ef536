//! Gradient checks of ops/log_probability.rs and of the sampler's score on a stored support.

use super::{dot, tensor, values};
use crate::base::Dtype;
use crate::base::Result;
use crate::base::rng::{Purpose, StreamKey};
use crate::device::Device;
use crate::ops::linear::Accumulate;
use crate::ops::log_probability::{Inputs, Outputs, Saved, Upstream, backward, forward};
use crate::ops::{Tensor, sampler};
use crate::verify::gradient::{Case, Variable, normals};

/// One token, one row, a vocabulary of several chunks and panels; with and without entropy and temperature.
pub fn cases() -> Vec<Case<'static>> {
    let mut cases: Vec<_> =
        [(1, 1, 1, 1.0, false), (3, 5, 7, 1.0, false), (2, 33, 130, 0.7, true), (5, 3, 2100, 1.3, true)]
            .into_iter()
            .map(|(rows, width, vocabulary, temperature, entropy)| {
                fused(rows, width, vocabulary, temperature, entropy)
            })
            .collect();
    cases.push(on_support());
    cases
}

fn fused(rows: usize, width: usize, vocabulary: usize, temperature: f64, entropy: bool) -> Case<'static> {
    let name = format!("log_probability {rows}x{width}x{vocabulary} at T={temperature}");
    let coefficients = normals(&format!("{name} dy"), 2 * rows);
    let targets: Vec<u32> = (0..rows).map(|r| ((r * 977 + 3) % vocabulary) as u32).collect();
    // Logits of a few nats: a wider spread would leave most gradients below what f32 sees.
    let h =
        normals(&format!("{name} h"), rows * width).into_iter().map(|v| v / (width as f64).sqrt()).collect();
    let run = move |point: &[Vec<f64>], dtype, upstream: Option<&[f64]>| {
        run_fused([rows, width, vocabulary], temperature, &targets, point, dtype, upstream, entropy)
    };
    let (loss, weights) = (run.clone(), coefficients.clone());
    Case {
        variables: vec![
            Variable { name: "h".into(), values: h },
            Variable { name: "w".into(), values: normals(&format!("{name} w"), vocabulary * width) },
        ],
        loss: Box::new(move |point| {
            let out = loss(point, Dtype::F64, None)?;
            let entropies = if entropy { dot(&out[1], &weights[rows..]) } else { 0.0 };
            Ok(dot(&out[0], &weights[..rows]) + entropies)
        }),
        gradient: Box::new(move |point, dtype| run(point, dtype, Some(&coefficients))),
        name,
    }
}

/// Log-probabilities and entropies, or with `upstream` (both gradients, one after the other) those of h and w.
fn run_fused(
    [rows, width, vocabulary]: [usize; 3],
    temperature: f64,
    targets: &[u32],
    point: &[Vec<f64>],
    dtype: Dtype,
    upstream: Option<&[f64]>,
    with_entropy: bool,
) -> Result<Vec<Vec<f64>>> {
    let device = Device::cpu();
    let h = tensor(&device, [rows, width], &point[0], dtype)?;
    let w = tensor(&device, [vocabulary, width], &point[1], dtype)?;
    let targets = Tensor::from_host(&device, [rows, 1], targets)?;
    let zeros = |rows, cols| Tensor::zeros(&device, [rows, cols], dtype);
    let (mut log_probability, mut entropy) = (zeros(rows, 1)?, zeros(rows, 1)?);
    let mut saved = Saved::reserve(&device, rows, [vocabulary, width], dtype)?;
    let inputs =
        Inputs { h: h.view(), w: &w, targets: targets.view(), inverse_temperature: 1.0 / temperature };
    let out = Outputs {
        log_probability: log_probability.view_mut(),
        entropy: with_entropy.then(|| entropy.view_mut()),
    };
    forward(&inputs, out, &mut saved, 0..rows)?;
    let Some(upstream) = upstream else {
        return Ok(vec![values(log_probability.view())?, values(entropy.view())?]);
    };
    let d_log_probability = tensor(&device, [rows, 1], &upstream[..rows], dtype)?;
    let d_entropy = tensor(&device, [rows, 1], &upstream[rows..], dtype)?;
    let upstream = Upstream {
        d_log_probability: d_log_probability.view(),
        d_entropy: with_entropy.then(|| d_entropy.view()),
    };
    let (mut dh, mut dw) = (zeros(rows, width)?, zeros(vocabulary, width)?);
    backward(&upstream, &inputs, &mut saved, 0..rows, dh.view_mut(), Some((&mut dw, Accumulate::Add)))?;
    Ok(vec![values(dh.view())?, values(dw.view())?])
}

/// Tokens are sampled once, from the f64 logits of the case; their score is then differentiated.
fn on_support() -> Case<'static> {
    let (rows, vocabulary) = (4, 61);
    let name = "log_probability on a stored support".to_string();
    let c = normals(&format!("{name} dy"), rows);
    let logits = normals(&format!("{name} logits"), rows * vocabulary);
    let (point, weights) = (logits.clone(), c.clone());
    Case {
        variables: vec![Variable { name: "logits".into(), values: logits }],
        loss: Box::new({
            let point = point.clone();
            move |moved| {
                Ok(dot(&run_support(rows, vocabulary, &point, &moved[0], Dtype::F64, None)?, &weights))
            }
        }),
        gradient: Box::new(move |moved, dtype| {
            Ok(vec![run_support(rows, vocabulary, &point, &moved[0], dtype, Some(&c))?])
        }),
        name,
    }
}

/// Log-probabilities on the support stored for `sampled_from`, or with `dy` the gradient of the logits.
fn run_support(
    rows: usize,
    vocabulary: usize,
    sampled_from: &[f64],
    logits: &[f64],
    dtype: Dtype,
    dy: Option<&[f64]>,
) -> Result<Vec<f64>> {
    let device = Device::cpu();
    let law = sampler::Law::Categorical { temperature: 0.8, top_k: Some(9), top_p: Some(0.9), min_p: None };
    let keys: Vec<u32> =
        (0..rows as u32).flat_map(|r| StreamKey::new(5, 0, 0, r, Purpose::Token).0).collect();
    let keys = Tensor::from_host(&device, [rows, 2], &keys)?;
    let steps = Tensor::zeros(&device, [rows, 1], Dtype::U32)?;
    let mut tokens = Tensor::zeros(&device, [rows, 1], Dtype::U32)?;
    let mut score = Tensor::zeros(&device, [rows, 1], Dtype::F64)?;
    let mut support = sampler::Support::reserve(&device, rows, 9)?;
    let first = tensor(&device, [rows, vocabulary], sampled_from, Dtype::F64)?;
    let out = sampler::Sampled {
        tokens: tokens.view_mut(),
        log_probability: score.view_mut(),
        support: Some((&mut support, 0..rows)),
        workspace: &sampler::Workspace::default(),
    };
    let noise = sampler::Noise { keys: keys.view(), steps: steps.view(), site: 0 };
    sampler::sample(first.view(), &law, noise, out)?;

    let logits = tensor(&device, [rows, vocabulary], logits, dtype)?;
    let scored = sampler::Scored { logits: logits.view(), tokens: tokens.view(), law: &law };
    if let Some(dy) = dy {
        let dy = tensor(&device, [rows, 1], dy, dtype)?;
        let mut d_logits = Tensor::zeros(&device, [rows, vocabulary], dtype)?;
        sampler::score_on_support_backward(dy.view(), &scored, &support, 0..rows, d_logits.view_mut())?;
        return values(d_logits.view());
    }
    let mut score = Tensor::zeros(&device, [rows, 1], dtype)?;
    sampler::score_on_support(&scored, &support, 0..rows, score.view_mut())?;
    values(score.view())
}
