//! Gradient checks of ops/gaussian_density.rs.

use super::{tensor, values};
use crate::base::Dtype;
use crate::device::Device;
use crate::ops::Tensor;
use crate::ops::gaussian_density::{self, Normal};
use crate::verify::gradient::{Case, Variable, normals};

/// One element, one row, rows and columns that fill nothing; sums and means.
pub fn cases() -> Vec<Case<'static>> {
    let shapes = [(1, 1, 1.0, false), (1, 33, 0.3, true), (5, 123, 2.0, false), (3, 256, 0.1, true)];
    shapes
        .into_iter()
        .map(|(rows, cols, deviation, mean)| case(rows, cols, Normal { deviation, mean }))
        .collect()
}

fn case(rows: usize, cols: usize, normal: Normal) -> Case<'static> {
    let name = format!("gaussian_density {rows}x{cols} {normal:?}");
    let of = |what: &str, count| normals(&format!("{name} {what}"), count);
    let (x, weights) = (of("x", rows * cols), of("weights", rows));
    let (x2, weights2) = (x.clone(), weights.clone());
    let means = Variable { name: "means".into(), values: of("means", rows * cols) };
    Case {
        variables: vec![means],
        loss: Box::new(move |point| {
            let device = Device::cpu();
            let operand = |values: &[f64]| tensor(&device, [rows, cols], values, Dtype::F64);
            let mut score = Tensor::zeros(&device, [rows, 1], Dtype::F64)?;
            gaussian_density::forward(
                operand(&x)?.view(),
                operand(&point[0])?.view(),
                &normal,
                score.view_mut(),
            )?;
            Ok(values(score.view())?.iter().zip(&weights).map(|(score, weight)| score * weight).sum())
        }),
        gradient: Box::new(move |point, dtype| {
            let device = Device::cpu();
            let (x, m) = (
                tensor(&device, [rows, cols], &x2, dtype)?,
                tensor(&device, [rows, cols], &point[0], dtype)?,
            );
            let d = tensor(&device, [rows, 1], &weights2, dtype.accumulation())?;
            let mut dm = Tensor::zeros(&device, [rows, cols], dtype)?;
            gaussian_density::backward(x.view(), m.view(), &normal, d.view(), dm.view_mut())?;
            Ok(vec![values(dm.view())?])
        }),
        name,
    }
}
