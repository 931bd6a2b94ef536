//! Gradient checks of ops/smooth_l1.rs.

use super::{tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::{Tensor, smooth_l1};
use crate::verify::gradient::{Case, Variable, normals};

/// One element, one row, rows and columns that fill nothing; differences on both sides of beta.
pub fn cases() -> Vec<Case<'static>> {
    let shapes = [(1, 1, 1.0), (1, 33, 1.0), (5, 123, 0.5), (3, 256, 2.0)];
    shapes.into_iter().map(|(rows, cols, beta)| case(rows, cols, beta)).collect()
}

/// The loss is `SCALE` times the sum of all terms.
const SCALE: f64 = 0.75;

fn case(rows: usize, cols: usize, beta: f64) -> Case<'static> {
    let name = format!("smooth_l1 {rows}x{cols} beta {beta}");
    let target = normals(&format!("{name} target"), rows * cols);
    let (of_loss, of_gradient) = (target.clone(), target);
    let x = normals(&format!("{name} x"), rows * cols);
    Case {
        variables: vec![Variable { name: "x".into(), values: x }],
        loss: Box::new(move |point| {
            let device = Device::cpu();
            let (x, t) = operands(&device, [rows, cols], &point[0], &of_loss, Dtype::F64)?;
            let mut statistics = Tensor::zeros(&device, [rows, 3], Dtype::F64)?;
            smooth_l1::forward(x.view(), t.view(), beta, statistics.view_mut())?;
            Ok(SCALE * values(statistics.view())?.iter().step_by(3).sum::<f64>())
        }),
        gradient: Box::new(move |point, dtype| {
            let device = Device::cpu();
            let (x, t) = operands(&device, [rows, cols], &point[0], &of_gradient, dtype)?;
            let mut dx = Tensor::zeros(&device, [rows, cols], dtype)?;
            smooth_l1::backward(x.view(), t.view(), beta, SCALE, dx.view_mut())?;
            Ok(vec![values(dx.view())?])
        }),
        name,
    }
}

fn operands(
    device: &Device,
    shape: [usize; 2],
    x: &[f64],
    target: &[f64],
    dtype: Dtype,
) -> Result<(Tensor, Tensor)> {
    Ok((tensor(device, shape, x, dtype)?, tensor(device, shape, target, dtype)?))
}
