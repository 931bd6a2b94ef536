//! Gradient checks of ops/layernorm.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::{Tensor, layernorm};
use crate::verify::gradient::{Case, Variable, normals};

// Large enough that rows of two elements have gradients that f32 can see.
const EPS: f64 = 1e-2;

/// Two columns (one has no gradient), one row, columns that fill no vector, and a real width.
pub fn cases() -> Vec<Case<'static>> {
    [(1, 2), (1, 33), (5, 123), (3, 256)].into_iter().map(|(rows, cols)| case(rows, cols)).collect()
}

fn case(rows: usize, cols: usize) -> Case<'static> {
    let name = format!("layernorm {rows}x{cols}");
    let c = normals(&format!("{name} dy"), rows * cols);
    let weights = c.clone();
    // A mean that is not zero, so that its part of the gradient counts.
    let x = normals(&format!("{name} x"), rows * cols).into_iter().map(|x| x + 0.5).collect();
    Case {
        variables: vec![
            Variable { name: "x".into(), values: x },
            Variable { name: "w".into(), values: normals(&format!("{name} w"), cols) },
            Variable { name: "b".into(), values: normals(&format!("{name} b"), cols) },
        ],
        loss: Box::new(move |point| Ok(dot(&run(rows, cols, point, Dtype::F64, None)?[0], &weights))),
        gradient: Box::new(move |point, dtype| run(rows, cols, point, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dy` the gradients of x, w and b.
fn run(
    rows: usize,
    cols: usize,
    point: &[Vec<f64>],
    dtype: Dtype,
    dy: Option<&[f64]>,
) -> Result<Vec<Vec<f64>>> {
    let device = Device::cpu();
    let x = tensor(&device, [rows, cols], &point[0], dtype)?;
    let w = tensor(&device, [cols], &point[1], dtype)?;
    let b = tensor(&device, [cols], &point[2], dtype)?;
    let mut y = Tensor::zeros(&device, [rows, cols], dtype)?;
    let mut saved = layernorm::Saved::reserve(&device, rows, cols, dtype)?;
    layernorm::forward(x.view(), (&w, &b), EPS, y.view_mut(), &mut saved, 0..rows)?;
    let Some(dy) = dy else { return Ok(vec![values(y.view())?]) };
    let dy = tensor(&device, [rows, cols], dy, dtype)?;
    let mut dx = Tensor::zeros(&device, [rows, cols], dtype)?;
    let (mut dw, mut db) = (Tensor::zeros(&device, [cols], dtype)?, Tensor::zeros(&device, [cols], dtype)?);
    let gradients = layernorm::Gradients { dw: &mut dw, db: &mut db };
    layernorm::backward(dy.view(), x.view(), &w, &saved, 0..rows, dx.view_mut(), gradients)?;
    Ok(vec![values(dx.view())?, values(dw.view())?, values(db.view())?])
}
