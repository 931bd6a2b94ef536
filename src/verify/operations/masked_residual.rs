//! Gradient checks of ops/masked_residual.rs and of mask::apply.

use super::{dot, tensor, values};
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::mask::{self, MaskKey, MaskSet, SiteKind, Sites};
use crate::ops::{Tensor, masked_residual};
use crate::verify::gradient::{Case, Variable, normals};

/// One instance each for three rollouts, every site of a model of one layer, p = 0.25.
pub(super) fn masks(device: &Device, d_model: usize, mlp_hidden: usize) -> Result<MaskSet> {
    let keys: Vec<MaskKey> = (0..3)
        .map(|rollout| MaskKey {
            stream: StreamKey::new(11, 5, 2, rollout, Purpose::Mask),
            step: 0,
            attempt: 0,
        })
        .collect();
    MaskSet::fill(device, Sites::new(d_model, mlp_hidden, 1, &SiteKind::ALL), 0.25, &keys)
}

/// Instances of `rows` rows: -1, 0, 1, 2, -1, 0, ...
pub(super) fn instances(device: &Device, rows: usize) -> Result<Tensor> {
    let instance: Vec<i32> = (0..rows).map(|row| (row % 4) as i32 - 1).collect();
    Tensor::from_host(device, [rows, 1], &instance)
}

/// With masks (the first row unmasked) and without; the branch is masked as hidden units are before it is added.
pub fn cases() -> Vec<Case<'static>> {
    [(1, 1, true), (2, 33, true), (5, 123, true), (3, 64, false)]
        .into_iter()
        .map(|(rows, cols, masked)| case(rows, cols, masked))
        .collect()
}

fn case(rows: usize, cols: usize, masked: bool) -> Case<'static> {
    let name = format!("masked_residual {rows}x{cols}{}", if masked { "" } else { " unmasked" });
    let c = normals(&format!("{name} dy"), rows * cols);
    let weights = c.clone();
    let shape = (rows, cols, masked);
    Case {
        variables: vec![
            Variable { name: "x".into(), values: normals(&format!("{name} x"), rows * cols) },
            Variable { name: "branch".into(), values: normals(&format!("{name} branch"), rows * cols) },
        ],
        loss: Box::new(move |point| Ok(dot(&run(shape, point, Dtype::F64, None)?[0], &weights))),
        gradient: Box::new(move |point, dtype| run(shape, point, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dy` the gradients of x and the branch.
fn run(
    (rows, cols, masked): (usize, usize, bool),
    point: &[Vec<f64>],
    dtype: Dtype,
    dy: Option<&[f64]>,
) -> Result<Vec<Vec<f64>>> {
    let device = Device::cpu();
    let (masks, instance) = (masks(&device, cols, cols)?, instances(&device, rows)?);
    let at = |kind| masks.at(kind, 0, instance.view()).filter(|_| masked);
    let (hidden, output) = (at(SiteKind::MlpHid), at(SiteKind::MlpOut));
    let Some(dy) = dy else {
        let x = tensor(&device, [rows, cols], &point[0], dtype)?;
        let mut branch = tensor(&device, [rows, cols], &point[1], dtype)?;
        let mut y = Tensor::zeros(&device, [rows, cols], dtype)?;
        if let Some(hidden) = hidden {
            mask::apply(branch.view_mut(), hidden)?;
        }
        masked_residual::forward(x.view(), branch.view(), output, y.view_mut())?;
        return Ok(vec![values(y.view())?]);
    };
    let dy = tensor(&device, [rows, cols], dy, dtype)?;
    let mut dbranch = Tensor::zeros(&device, [rows, cols], dtype)?;
    masked_residual::backward(dy.view(), output, dbranch.view_mut())?;
    if let Some(hidden) = hidden {
        mask::apply(dbranch.view_mut(), hidden)?;
    }
    Ok(vec![values(dy.view())?, values(dbranch.view())?])
}
