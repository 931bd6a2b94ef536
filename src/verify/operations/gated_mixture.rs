//! Gradient checks of ops/gated_mixture.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::gated_mixture::{self, Gradients, Inputs};
use crate::ops::{Tensor, View};
use crate::verify::gradient::{Case, Variable, normals};

/// One element, one row, rows and columns that fill nothing, and rates from slow (where training begins) to fast.
pub fn cases() -> Vec<Case<'static>> {
    [(1, 1), (1, 33), (5, 123), (3, 256)].into_iter().map(|(rows, cols)| case(rows, cols)).collect()
}

fn case(rows: usize, cols: usize) -> Case<'static> {
    let name = format!("gated_mixture {rows}x{cols}");
    let variable = |what: &str, count: usize, scale: f64, shift: f64| Variable {
        name: what.into(),
        values: normals(&format!("{name} {what}"), count).into_iter().map(|x| scale * x + shift).collect(),
    };
    let (soft, c) =
        (normals(&format!("{name} soft"), rows * cols), normals(&format!("{name} dx"), rows * cols));
    let (weights, constant) = (c.clone(), soft.clone());
    Case {
        variables: vec![
            variable("token", rows * cols, 1.0, 0.0),
            variable("reset", rows * cols, 1.5, 0.0),
            variable("input", rows * cols, 1.5, 0.0),
            variable("lambda", cols, 2.0, 3.0),
        ],
        loss: Box::new(move |point| {
            Ok(dot(&run((rows, cols), point, &constant, Dtype::F64, None)?[0], &weights))
        }),
        gradient: Box::new(move |point, dtype| run((rows, cols), point, &soft, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dx` the gradients in the order of the variables.
fn run(
    (rows, cols): (usize, usize),
    point: &[Vec<f64>],
    soft: &[f64],
    dtype: Dtype,
    dx: Option<&[f64]>,
) -> Result<Vec<Vec<f64>>> {
    let device = Device::cpu();
    let upload = |values: &[f64]| tensor(&device, [rows, cols], values, dtype);
    let (token, soft) = (upload(&point[0])?, upload(soft)?);
    let (reset, input) = (upload(&point[1])?, upload(&point[2])?);
    let lambda = tensor(&device, [cols], &point[3], dtype)?;
    let inputs = Inputs {
        token: token.view(),
        soft: soft.view(),
        reset: reset.view(),
        input: input.view(),
        lambda: &lambda,
    };
    let zeros = || Tensor::zeros(&device, [rows, cols], dtype);
    let [mut first, mut second, mut third, mut terms] = [zeros()?, zeros()?, zeros()?, zeros()?];
    let Some(dx) = dx else {
        gated_mixture::forward(&inputs, first.view_mut())?;
        return Ok(vec![values(first.view())?]);
    };
    let dx = upload(dx)?;
    let mut dlambda = Tensor::zeros(&device, [cols], dtype)?;
    let out = Gradients {
        dtoken: first.view_mut(),
        dreset: second.view_mut(),
        dinput: third.view_mut(),
        terms: terms.view_mut(),
        dlambda: &mut dlambda,
    };
    gated_mixture::backward(dx.view(), &inputs, out)?;
    let list: [View; 4] = [first.view(), second.view(), third.view(), dlambda.view()];
    list.into_iter().map(values).collect()
}
