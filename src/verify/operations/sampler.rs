//! Gradient checks of the mixtures of ops/sampler.rs. Its scores are checked in log_probability.rs.

use super::{dot, tensor, values};
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::Tensor;
use crate::ops::sampler::{Law, Mixed, Mixture, Noise, Support, Workspace, mixture, mixture_backward};
use crate::verify::gradient::{Case, Variable, normals};

/// One kept id; every id; what top-k, and what all filters keep, with places left over.
pub fn cases() -> Vec<Case<'static>> {
    let law = |temperature, top_k, top_p, min_p| Law::Categorical { temperature, top_k, top_p, min_p };
    [
        (1, 5, 1, law(1.0, Some(1), None, None), 0.5),
        (2, 7, 7, law(1.3, None, None, None), 1.0),
        (3, 61, 9, law(0.8, Some(9), None, None), 0.6),
        (5, 130, 12, law(1.0, Some(11), Some(0.93), Some(0.01)), 0.9),
    ]
    .into_iter()
    .map(|(rows, vocabulary, capacity, law, tau)| case([rows, vocabulary, capacity], law, tau))
    .collect()
}

fn case(shape: [usize; 3], law: Law, tau: f64) -> Case<'static> {
    let [rows, vocabulary, capacity] = shape;
    let name = format!("sampler mixture {rows}x{vocabulary} of at most {capacity}");
    let c = normals(&format!("{name} dy"), rows * capacity);
    let weights = c.clone();
    let run =
        move |point: &[Vec<f64>], dtype, dy: Option<&[f64]>| run(shape, &law, tau, &point[0], dtype, dy);
    Case {
        variables: vec![Variable {
            name: "logits".into(),
            values: normals(&format!("{name} logits"), rows * vocabulary),
        }],
        loss: Box::new(move |point| Ok(dot(&run(point, Dtype::F64, None)?, &weights))),
        gradient: Box::new(move |point, dtype| Ok(vec![run(point, dtype, Some(&c))?])),
        name,
    }
}

/// The weights, or with `dy` the gradient of the logits.
fn run(
    [rows, vocabulary, capacity]: [usize; 3],
    law: &Law,
    tau: f64,
    logits: &[f64],
    dtype: Dtype,
    dy: Option<&[f64]>,
) -> Result<Vec<f64>> {
    let device = Device::cpu();
    let keys: Vec<u32> =
        (0..rows as u32).flat_map(|r| StreamKey::new(7, 0, 0, r, Purpose::Gumbel).0).collect();
    let keys = Tensor::from_host(&device, [rows, 2], &keys)?;
    let steps = Tensor::zeros(&device, [rows, 1], Dtype::U32)?;
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: 0 };
    let logits = tensor(&device, [rows, vocabulary], logits, dtype)?;
    let mut support = Support::reserve(&device, rows, capacity)?;
    let mut weights = Tensor::zeros(&device, [rows, capacity], dtype)?;
    let out = Mixed {
        support: &mut support,
        at: 0..rows,
        weights: weights.view_mut(),
        workspace: &Workspace::default(),
    };
    let law = Mixture { law, tau };
    mixture(logits.view(), &law, noise, out)?;
    let Some(dy) = dy else { return values(weights.view()) };
    let dy = tensor(&device, [rows, capacity], dy, dtype)?;
    let mut d_logits = Tensor::zeros(&device, [rows, vocabulary], dtype)?;
    mixture_backward(dy.view(), weights.view(), &law, &support, 0..rows, d_logits.view_mut())?;
    values(d_logits.view())
}
