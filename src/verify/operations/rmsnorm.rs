//! Gradient checks of ops/rmsnorm.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::{Tensor, rmsnorm};
use crate::verify::gradient::{Case, Variable, normals};

// Large enough that one element has a gradient that f32 can see.
const EPS: f64 = 1e-2;

/// One element, one row, columns that fill no vector, and a real width.
pub fn cases() -> Vec<Case<'static>> {
    [(1, 1), (1, 33), (5, 123), (3, 256)].into_iter().map(|(rows, cols)| case(rows, cols)).collect()
}

fn case(rows: usize, cols: usize) -> Case<'static> {
    let name = format!("rmsnorm {rows}x{cols}");
    let c = normals(&format!("{name} dy"), rows * cols);
    let weights = c.clone();
    Case {
        variables: vec![
            Variable { name: "x".into(), values: normals(&format!("{name} x"), rows * cols) },
            Variable { name: "w".into(), values: normals(&format!("{name} w"), cols) },
        ],
        loss: Box::new(move |point| Ok(dot(&run(rows, cols, point, Dtype::F64, None)?[0], &weights))),
        gradient: Box::new(move |point, dtype| run(rows, cols, point, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dy` the gradients of x and w.
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
    let mut y = Tensor::zeros(&device, [rows, cols], dtype)?;
    let mut saved = rmsnorm::Saved::reserve(&device, rows, cols, dtype)?;
    rmsnorm::forward(x.view(), &w, EPS, y.view_mut(), &mut saved, 0..rows)?;
    let Some(dy) = dy else { return Ok(vec![values(y.view())?]) };
    let dy = tensor(&device, [rows, cols], dy, dtype)?;
    let (mut dx, mut dw) =
        (Tensor::zeros(&device, [rows, cols], dtype)?, Tensor::zeros(&device, [cols], dtype)?);
    rmsnorm::backward(dy.view(), x.view(), &w, &saved, 0..rows, dx.view_mut(), &mut dw)?;
    Ok(vec![values(dx.view())?, values(dw.view())?])
}
