//! Gradient checks of ops/embedding.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::embedding::{self, Inputs, Soft};
use crate::ops::scatter::Order;
use crate::ops::{Tensor, mask};
use crate::verify::gradient::{Case, Variable, normals};

/// Tokens of the tables in the checks.
const VOCABULARY: usize = 11;
/// Rows of the position tables.
const LENGTH: usize = 9;
/// Tokens of a mixture.
const KEPT: usize = 3;

/// One position of one element; then tokens, latents and mixtures together, with repeats of each, under masks.
pub fn cases() -> Vec<Case<'static>> {
    let mixed: &[i32] = &[3, -1, 7, -2, 3, -4, -1, 0, 10, 3, -3];
    [(1, &[4][..]), (33, mixed), (64, &[-2, -1][..])].into_iter().map(|(cols, ids)| case(cols, ids)).collect()
}

fn case(cols: usize, ids: &'static [i32]) -> Case<'static> {
    let (name, rows) = (format!("embedding {}x{cols}", ids.len()), ids.len());
    let c = normals(&format!("{name} dy"), rows * cols);
    let weights = c.clone();
    let variable = |variable: &str, count: usize| Variable {
        name: variable.into(),
        values: normals(&format!("{name} {variable}"), count),
    };
    Case {
        variables: vec![
            variable("latents", rows * cols),
            variable("positions", LENGTH * cols),
            variable("weights", 3 * KEPT),
            variable("table", VOCABULARY * cols),
        ],
        loss: Box::new(move |point| Ok(dot(&run(cols, ids, point, Dtype::F64, None)?[0], &weights))),
        gradient: Box::new(move |point, dtype| run(cols, ids, point, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dy` the gradients of latents, positions, weights and table.
fn run(
    cols: usize,
    ids: &[i32],
    point: &[Vec<f64>],
    dtype: Dtype,
    dy: Option<&[f64]>,
) -> Result<Vec<Vec<f64>>> {
    let (device, rows) = (Device::cpu(), ids.len());
    let id_tensor = Tensor::from_host(&device, [rows, 1], ids)?;
    let position: Vec<u32> = (0..rows as u32).map(|n| (2 * n) % LENGTH as u32).collect();
    let position = Tensor::from_host(&device, [rows, 1], &position)?;
    let soft_ids: [u32; 3 * KEPT] = [0, 3, 5, 3, 10, 1, 7, 7, 2];
    let soft_ids = Tensor::from_host(&device, [3, KEPT], &soft_ids)?;
    let soft_weights = tensor(&device, [3, KEPT], &point[2], dtype)?;
    let soft = Soft { ids: soft_ids.view(), weights: soft_weights.view() };
    let inputs = Inputs { ids: id_tensor.view(), positions: position.view(), soft: Some(soft) };
    let table = tensor(&device, [VOCABULARY, cols], &point[3], dtype)?;
    let masks = super::masked_residual::masks(&device, cols, 1)?;
    let instance = super::masked_residual::instances(&device, rows)?;
    let at = masks.at(mask::SiteKind::Emb, 0, instance.view());
    let Some(dy) = dy else {
        let mut x = tensor(&device, [rows, cols], &point[0], dtype)?;
        let positions = tensor(&device, [LENGTH, cols], &point[1], dtype)?;
        embedding::forward(&inputs, &table, Some(&positions), x.view_mut())?;
        at.map_or(Ok(()), |at| mask::apply(x.view_mut(), at))?;
        return Ok(vec![values(x.view())?]);
    };
    let mut dx = tensor(&device, [rows, cols], dy, dtype)?;
    at.map_or(Ok(()), |at| mask::apply(dx.view_mut(), at))?;
    let mut dtable = Tensor::zeros(&device, [VOCABULARY, cols], dtype)?;
    let mut dposition = Tensor::zeros(&device, [LENGTH, cols], dtype)?;
    let mut dweights = Tensor::zeros(&device, [3, KEPT], dtype)?;
    let (positions, weights) = (Some(&mut dposition), Some(dweights.view_mut()));
    embedding::backward(dx.view(), &inputs, &table, &mut dtable, positions, weights, &mut Order::default())?;
    // The state of a latent row was there before; other rows were overwritten.
    let mut dlatents = values(dx.view())?;
    for (n, dlatent) in dlatents.chunks_exact_mut(cols).enumerate() {
        if ids[n] != -1 {
            dlatent.fill(0.0);
        }
    }
    Ok(vec![dlatents, values(dposition.view())?, values(dweights.view())?, values(dtable.view())?])
}
