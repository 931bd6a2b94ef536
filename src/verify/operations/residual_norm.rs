//! Gradient checks of ops/residual_norm.rs: the loss reads both the sum and its norm.

use super::masked_residual::{instances, masks};
use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::mask::SiteKind;
use crate::ops::residual_norm::{Norm, NormGradients, backward, forward};
use crate::ops::{Tensor, layernorm, rmsnorm};
use crate::verify::gradient::{Case, Variable, normals};

// Large enough that rows of few elements have gradients that f32 can see.
const EPS: f64 = 1e-2;

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    /// Layer norm instead of RMS norm.
    layer: bool,
    masked: bool,
}

/// Both norms, with masks (the first row unmasked) and without.
pub fn cases() -> Vec<Case<'static>> {
    let mut cases = Vec::new();
    for layer in [false, true] {
        for (rows, cols, masked) in [(1, 2, true), (2, 33, true), (5, 123, true), (3, 64, false)] {
            cases.push(case(Shape { rows, cols, layer, masked }));
        }
    }
    cases
}

fn case(shape: Shape) -> Case<'static> {
    let Shape { rows, cols, layer, masked } = shape;
    let norm = if layer { "layernorm" } else { "rmsnorm" };
    let name = format!("residual_norm {norm} {rows}x{cols}{}", if masked { "" } else { " unmasked" });
    let random = |what: &str, count| normals(&format!("{name} {what}"), count);
    let c = [random("dy", rows * cols), random("dnormed", rows * cols)];
    let mut variables = vec![
        // A mean that is not zero, so that its part of the gradient counts.
        ("x", random("x", rows * cols).into_iter().map(|x| x + 0.5).collect()),
        ("branch", random("branch", rows * cols)),
        ("w", random("w", cols)),
    ];
    if layer {
        variables.push(("b", random("b", cols)));
    }
    let weights = c.clone();
    Case {
        variables: variables
            .into_iter()
            .map(|(name, values)| Variable { name: name.into(), values })
            .collect(),
        loss: Box::new(move |point| {
            let outputs = run(shape, point, Dtype::F64, None)?;
            Ok(dot(&outputs[0], &weights[0]) + dot(&outputs[1], &weights[1]))
        }),
        gradient: Box::new(move |point, dtype| run(shape, point, dtype, Some(&c))),
        name,
    }
}

/// The sum and its norm, or with `[dy, dnormed]` the gradients of the variables.
fn run(
    Shape { rows, cols, layer, masked }: Shape,
    point: &[Vec<f64>],
    dtype: Dtype,
    slopes: Option<&[Vec<f64>; 2]>,
) -> Result<Vec<Vec<f64>>> {
    let device = Device::cpu();
    let (masks, instance) = (masks(&device, cols, cols)?, instances(&device, rows)?);
    let mask = masks.at(SiteKind::AttnOut, 0, instance.view()).filter(|_| masked);
    let matrix = |values: &[f64]| tensor(&device, [rows, cols], values, dtype);
    let zeros = || Tensor::zeros(&device, [rows, cols], dtype);
    let (x, branch, mut y, mut normed) = (matrix(&point[0])?, matrix(&point[1])?, zeros()?, zeros()?);
    let w = tensor(&device, [cols], &point[2], dtype)?;
    let b = if layer { Some(tensor(&device, [cols], &point[3], dtype)?) } else { None };
    let mut rms = rmsnorm::Saved::reserve(&device, rows, cols, dtype)?;
    let mut kept = layernorm::Saved::reserve(&device, rows, cols, dtype)?;
    let norm = match &b {
        None => Norm::Rms { w: &w, saved: &mut rms },
        Some(b) => Norm::Layer { w: &w, b, saved: &mut kept },
    };
    let outputs = (y.view_mut(), normed.view_mut());
    forward((x.view(), branch.view()), mask, norm, EPS, outputs, 0..rows)?;
    let Some([dy, dnormed]) = slopes else { return Ok(vec![values(y.view())?, values(normed.view())?]) };

    let (mut dy, dnormed, mut dbranch) = (matrix(dy)?, matrix(dnormed)?, zeros()?);
    let (mut dw, mut db) = (Tensor::zeros(&device, [cols], dtype)?, Tensor::zeros(&device, [cols], dtype)?);
    let norm = match layer {
        false => NormGradients::Rms { w: &w, saved: &rms, dw: Some(&mut dw) },
        true => {
            let gradients = layernorm::Gradients { dw: &mut dw, db: &mut db };
            NormGradients::Layer { w: &w, saved: &kept, gradients: Some(gradients) }
        }
    };
    backward((dnormed.view(), y.view()), mask, norm, (dy.view_mut(), dbranch.view_mut()), 0..rows)?;
    let mut gradients = vec![values(dy.view())?, values(dbranch.view())?, values(dw.view())?];
    if layer {
        gradients.push(values(db.view())?);
    }
    Ok(gradients)
}
