//! Gradient checks of ops/soft_action.rs: of the weights by the clean logits, and of every score.
//!
//! A normal noise's deviation depends on the logits and counts as constant. Its value is therefore measured by a
//! function with the same gradient: the same noise, added to the logits of an action without noise.

use super::{dot, tensor, values};
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::Tensor;
use crate::ops::sampler::{Noise, Support};
use crate::ops::soft_action::{
    Outputs, Perturbation, Proxy, Score, Scored, Settings, backward, forward, score, score_backward,
};
use crate::verify::gradient::{Case, Variable, normals};

/// Rows, vocabulary, capacity, and the number of kept ids of row r: `counts[r % counts.len()]`.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    vocabulary: usize,
    capacity: usize,
    counts: &'static [usize],
}

const SHAPES: [Shape; 3] = [
    Shape { rows: 1, vocabulary: 5, capacity: 5, counts: &[5] },
    Shape { rows: 4, vocabulary: 37, capacity: 9, counts: &[9, 1, 4] },
    Shape { rows: 2, vocabulary: 131, capacity: 40, counts: &[33, 40] },
];

/// Mixtures of every noise, and every score: the whole vocabulary kept, ragged supports, rows that keep one id.
pub fn cases() -> Vec<Case<'static>> {
    let gumbel = Perturbation::Gumbel { clamp: None };
    let settings = |inverse_temperature, tau, perturbation, hard| Settings {
        inverse_temperature,
        tau,
        perturbation,
        proxy: Proxy::Argmax,
        hard,
    };
    let mut all: Vec<Case> = [
        ("gumbel", SHAPES[0], settings(1.0, 1.0, gumbel, false)),
        ("gumbel", SHAPES[1], settings(1.3, 0.6, gumbel, false)),
        ("no noise", SHAPES[2], settings(1.0, 1.0, Perturbation::None, false)),
        ("clamped", SHAPES[2], settings(0.8, 0.9, Perturbation::Gumbel { clamp: Some((-0.5, 1.0)) }, false)),
        ("gaussian", SHAPES[1], settings(0.9, 0.7, Perturbation::Gaussian { strength: 0.5 }, false)),
        ("one token", SHAPES[1], settings(1.0, 0.8, gumbel, true)),
    ]
    .map(|(name, shape, settings)| mixture_case(name, shape, settings))
    .into();
    let scores = [
        ("soft_ce", Score::SoftCe { full: true }),
        ("soft_ce kept", Score::SoftCe { full: false }),
        ("concrete", Score::Concrete { tau: 0.6, mean: false }),
        ("concrete mean", Score::Concrete { tau: 1.0, mean: true }),
        ("gumbel_g", Score::GumbelG { floor: None, clamp: None, mean: false }),
        ("gumbel_g mean", Score::GumbelG { floor: Some(-3.0), clamp: Some((-1.5, 3.0)), mean: true }),
    ];
    for shape in SHAPES {
        for (name, kind) in scores {
            for inverse_temperature in [1.0, 0.7] {
                all.push(score_case(name, kind, inverse_temperature, shape));
            }
        }
    }
    all
}

impl Shape {
    fn name(&self) -> String {
        format!("{}x{} of at most {}", self.rows, self.vocabulary, self.capacity)
    }

    /// A support whose ids are spread over the vocabulary, each row's differently.
    fn support(&self) -> Result<Support> {
        let mut support = Support::reserve(&Device::cpu(), self.rows, self.capacity)?;
        let (mut ids, mut counts) = (Vec::new(), Vec::new());
        for row in 0..self.rows {
            let count = self.counts[row % self.counts.len()];
            let free = self.vocabulary - count;
            // Ids ascend by 1 and a share of what is left over.
            let id = |i: usize| (i + (free * (i + row)).div_euclid(count + row)) as u32;
            ids.extend((0..self.capacity).map(|i| if i < count { id(i) } else { 0 }));
            counts.push(count as u32);
        }
        support.upload(0..self.rows, &ids, &counts)?;
        Ok(support)
    }
}

/// What [`forward`] gives.
struct Action {
    perturbed: Vec<f64>,
    soft: Vec<f64>,
}

fn act(shape: Shape, settings: &Settings, logits: &[f64], dtype: Dtype) -> Result<Action> {
    let (device, rows) = (Device::cpu(), shape.rows);
    let keys: Vec<u32> =
        (0..rows as u32).flat_map(|r| StreamKey::new(11, 0, 0, r, Purpose::Gumbel).0).collect();
    let keys = Tensor::from_host(&device, [rows, 2], &keys)?;
    let steps = Tensor::zeros(&device, [rows, 1], Dtype::U32)?;
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: 3 };
    let logits = tensor(&device, [rows, shape.vocabulary], logits, dtype)?;
    let wide = || Tensor::zeros(&device, [rows, shape.capacity], dtype);
    let (mut perturbed, mut weights, mut soft) = (wide()?, wide()?, wide()?);
    let mut proxies = Tensor::zeros(&device, [rows, 1], Dtype::U32)?;
    let out = Outputs {
        perturbed: perturbed.view_mut(),
        weights: weights.view_mut(),
        soft: Some(soft.view_mut()),
        proxies: proxies.view_mut(),
        entropies: None,
    };
    forward(logits.view(), &shape.support()?, 0..rows, settings, noise, out)?;
    Ok(Action { perturbed: values(perturbed.view())?, soft: values(soft.view())? })
}

/// Where noise that counts as constant is added to the logits instead.
fn measured(shape: Shape, settings: Settings, base: &[f64]) -> Result<(Settings, Vec<f64>)> {
    let Perturbation::Gaussian { .. } = settings.perturbation else {
        return Ok((settings, vec![0.0; base.len()]));
    };
    let still = Settings { perturbation: Perturbation::None, ..settings };
    let noisy = act(shape, &settings, base, Dtype::F64)?.perturbed;
    let clean = act(shape, &still, base, Dtype::F64)?.perturbed;
    let (ids, counts) = shape.support()?.download(0..shape.rows)?;
    let mut shift = vec![0.0; base.len()];
    for row in 0..shape.rows {
        for place in row * shape.capacity..row * shape.capacity + counts[row] as usize {
            let noise = noisy[place] - clean[place];
            shift[row * shape.vocabulary + ids[place] as usize] = noise / settings.inverse_temperature;
        }
    }
    Ok((still, shift))
}

fn mixture_case(name: &str, shape: Shape, settings: Settings) -> Case<'static> {
    let name = format!("soft_action {name} {}", shape.name());
    let base = normals(&format!("{name} logits"), shape.rows * shape.vocabulary);
    let c = normals(&format!("{name} dy"), shape.rows * shape.capacity);
    let (weights, start) = (c.clone(), base.clone());
    Case {
        variables: vec![Variable { name: "logits".into(), values: base }],
        loss: Box::new(move |point| {
            let (settings, shift) = measured(shape, settings, &start)?;
            let logits: Vec<f64> = point[0].iter().zip(&shift).map(|(logit, shift)| logit + shift).collect();
            Ok(dot(&act(shape, &settings, &logits, Dtype::F64)?.soft, &weights))
        }),
        gradient: Box::new(move |point, dtype| {
            let (device, rows) = (Device::cpu(), shape.rows);
            let soft = act(shape, &settings, &point[0], dtype)?.soft;
            let soft = tensor(&device, [rows, shape.capacity], &soft, dtype)?;
            let dy = tensor(&device, [rows, shape.capacity], &c, dtype)?;
            let mut d_logits = Tensor::zeros(&device, [rows, shape.vocabulary], dtype)?;
            let support = shape.support()?;
            backward(dy.view(), soft.view(), &settings, &support, 0..rows, d_logits.view_mut())?;
            Ok(vec![values(d_logits.view())?])
        }),
        name,
    }
}

fn score_case(kind_name: &str, kind: Score, inverse_temperature: f64, shape: Shape) -> Case<'static> {
    let name = format!("soft_action {kind_name} at 1/T {inverse_temperature} {}", shape.name());
    let draw = |what: &str, count| normals(&format!("{name} {what}"), count);
    let of_run = Stored {
        shape,
        kind,
        inverse_temperature,
        action: Settings {
            inverse_temperature,
            tau: 0.6,
            perturbation: Perturbation::Gumbel { clamp: None },
            proxy: Proxy::Argmax,
            hard: false,
        },
        // The policy that acted: not the one that is scored.
        old: draw("old logits", shape.rows * shape.vocabulary),
    };
    let c = draw("dy", shape.rows);
    let (weights, of_gradient) = (c.clone(), of_run.clone());
    let variable = format!("logits of {}", kind_name.split(' ').next().unwrap_or_default());
    Case {
        variables: vec![Variable { name: variable, values: draw("logits", shape.rows * shape.vocabulary) }],
        loss: Box::new(move |point| Ok(dot(&of_run.run(&point[0], Dtype::F64, None)?, &weights))),
        gradient: Box::new(move |point, dtype| Ok(vec![of_gradient.run(&point[0], dtype, Some(&c))?])),
        name,
    }
}

/// Actions of another policy, and how they are scored.
#[derive(Clone)]
struct Stored {
    shape: Shape,
    kind: Score,
    inverse_temperature: f64,
    action: Settings,
    old: Vec<f64>,
}

impl Stored {
    /// The scores, or with `dy` the gradient of the logits.
    fn run(&self, logits: &[f64], dtype: Dtype, dy: Option<&[f64]>) -> Result<Vec<f64>> {
        let (device, shape) = (Device::cpu(), self.shape);
        let action = act(shape, &self.action, &self.old, Dtype::F64)?;
        let wide = |values: &[f64]| tensor(&device, [shape.rows, shape.capacity], values, dtype);
        let (perturbed, weights) = (wide(&action.perturbed)?, wide(&action.soft)?);
        let logits = tensor(&device, [shape.rows, shape.vocabulary], logits, dtype)?;
        let support = shape.support()?;
        let scored = Scored {
            logits: logits.view(),
            inverse_temperature: self.inverse_temperature,
            support: &support,
            at: 0..shape.rows,
            perturbed: perturbed.view(),
            weights: weights.view(),
        };
        let Some(dy) = dy else {
            let mut out = Tensor::zeros(&device, [shape.rows, 1], dtype)?;
            score(&scored, &self.kind, out.view_mut())?;
            return values(out.view());
        };
        let dy = tensor(&device, [shape.rows, 1], dy, dtype)?;
        let mut d_logits = Tensor::zeros(&device, [shape.rows, shape.vocabulary], dtype)?;
        score_backward(dy.view(), &scored, &self.kind, d_logits.view_mut())?;
        values(d_logits.view())
    }
}
