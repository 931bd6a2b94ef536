//! Gradient checks of ops/swiglu.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::{Tensor, swiglu};
use crate::verify::gradient::{Case, Variable, normals};

/// One element, one row, rows and columns that fill nothing.
pub fn cases() -> Vec<Case<'static>> {
    [(1, 1), (1, 33), (5, 123), (3, 256)].into_iter().map(|(rows, cols)| case(rows, cols)).collect()
}

fn case(rows: usize, cols: usize) -> Case<'static> {
    let name = format!("swiglu {rows}x{cols}");
    let c = normals(&format!("{name} dy"), rows * cols);
    let weights = c.clone();
    let gate = normals(&format!("{name} gate"), rows * cols).into_iter().map(|x| 2.0 * x).collect();
    Case {
        variables: vec![
            Variable { name: "gate".into(), values: gate },
            Variable { name: "up".into(), values: normals(&format!("{name} up"), rows * cols) },
        ],
        loss: Box::new(move |point| Ok(dot(&run(rows, cols, point, Dtype::F64, None)?[0], &weights))),
        gradient: Box::new(move |point, dtype| run(rows, cols, point, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dy` the gradients of gate and up.
fn run(
    rows: usize,
    cols: usize,
    point: &[Vec<f64>],
    dtype: Dtype,
    dy: Option<&[f64]>,
) -> Result<Vec<Vec<f64>>> {
    let device = Device::cpu();
    let gate = tensor(&device, [rows, cols], &point[0], dtype)?;
    let up = tensor(&device, [rows, cols], &point[1], dtype)?;
    let mut out = Tensor::zeros(&device, [rows, cols], dtype)?;
    let Some(dy) = dy else {
        swiglu::forward(gate.view(), up.view(), out.view_mut())?;
        return Ok(vec![values(out.view())?]);
    };
    let dy = tensor(&device, [rows, cols], dy, dtype)?;
    let mut dup = Tensor::zeros(&device, [rows, cols], dtype)?;
    swiglu::backward(dy.view(), gate.view(), up.view(), out.view_mut(), dup.view_mut())?;
    Ok(vec![values(out.view())?, values(dup.view())?])
}
