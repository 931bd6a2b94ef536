//! Gradient checks of ops/gelu.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::{Tensor, gelu};
use crate::verify::gradient::{Case, Variable, normals};

/// One element, one row, rows and columns that fill nothing.
pub fn cases() -> Vec<Case<'static>> {
    [(1, 1), (1, 33), (5, 123), (3, 256)].into_iter().map(|(rows, cols)| case(rows, cols)).collect()
}

fn case(rows: usize, cols: usize) -> Case<'static> {
    let name = format!("gelu {rows}x{cols}");
    let c = normals(&format!("{name} dy"), rows * cols);
    let weights = c.clone();
    // Twice the normal width reaches the flat ends.
    let x = normals(&format!("{name} x"), rows * cols).into_iter().map(|x| 2.0 * x).collect();
    Case {
        variables: vec![Variable { name: "x".into(), values: x }],
        loss: Box::new(move |point| Ok(dot(&run(rows, cols, point, Dtype::F64, None)?[0], &weights))),
        gradient: Box::new(move |point, dtype| run(rows, cols, point, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dy` the gradient of x.
fn run(
    rows: usize,
    cols: usize,
    point: &[Vec<f64>],
    dtype: Dtype,
    dy: Option<&[f64]>,
) -> Result<Vec<Vec<f64>>> {
    let device = Device::cpu();
    let x = tensor(&device, [rows, cols], &point[0], dtype)?;
    let mut out = Tensor::zeros(&device, [rows, cols], dtype)?;
    match dy {
        None => gelu::forward(x.view(), out.view_mut())?,
        Some(dy) => {
            let dy = tensor(&device, [rows, cols], dy, dtype)?;
            gelu::backward(dy.view(), x.view(), out.view_mut())?;
        }
    }
    Ok(vec![values(out.view())?])
}
