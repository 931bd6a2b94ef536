//! Gradient checks of ops/linear.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::linear::{self, Accumulate, Gradients, Layout, Projection};
use crate::ops::{Tensor, View};
use crate::verify::gradient::{Case, Variable, normals};
use std::ops::Range;

/// Rows, inputs, outputs of the weight, the window that is used, layout.
type Form = (usize, usize, usize, Range<usize>, Layout);

/// One element, one row, ragged shapes of both layouts, windows of a fused weight, and a real width.
pub fn cases() -> Vec<Case<'static>> {
    let forms: [Form; 7] = [
        (1, 1, 1, 0..1, Layout::OutIn),
        (1, 33, 18, 0..18, Layout::OutIn),
        (5, 19, 7, 0..7, Layout::InOut),
        (3, 10, 33, 11..22, Layout::InOut),
        (14, 9, 40, 17..40, Layout::OutIn),
        (17, 35, 21, 0..21, Layout::OutIn),
        (15, 256, 24, 8..16, Layout::InOut),
    ];
    forms.into_iter().map(case).collect()
}

fn case(form: Form) -> Case<'static> {
    let (rows, inputs, total, window, layout) = form.clone();
    let name = format!("linear {rows}x{inputs}x{total} {layout:?} {window:?}");
    let c = normals(&format!("{name} dy"), rows * window.len());
    let weights = c.clone();
    let same = form.clone();
    Case {
        variables: vec![
            Variable { name: "x".into(), values: normals(&format!("{name} x"), rows * inputs) },
            Variable { name: "w".into(), values: normals(&format!("{name} w"), inputs * total) },
            Variable { name: "bias".into(), values: normals(&format!("{name} bias"), total) },
        ],
        loss: Box::new(move |point| Ok(dot(&run(&form, point, Dtype::F64, None)?[0], &weights))),
        gradient: Box::new(move |point, dtype| run(&same, point, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dy` the gradients of x, w and the bias.
fn run(form: &Form, point: &[Vec<f64>], dtype: Dtype, dy: Option<&[f64]>) -> Result<Vec<Vec<f64>>> {
    let (rows, inputs, total, window, layout) = form.clone();
    let device = Device::cpu();
    let p = Projection { layout, inputs, outputs: window.clone() };
    let shape = match layout {
        Layout::OutIn => [total, inputs],
        Layout::InOut => [inputs, total],
    };
    let x = tensor(&device, [rows, inputs], &point[0], dtype)?;
    let w = tensor(&device, shape, &point[1], dtype)?;
    let bias = tensor(&device, [total], &point[2], dtype)?;
    let Some(dy) = dy else {
        let mut y = Tensor::zeros(&device, [rows, window.len()], dtype)?;
        linear::forward(x.view(), &p, &w, Some(&bias), y.view_mut())?;
        return Ok(vec![values(y.view())?]);
    };
    let dy = tensor(&device, [rows, window.len()], dy, dtype)?;
    let mut dx = Tensor::zeros(&device, [rows, inputs], dtype)?;
    let mut dw = Tensor::zeros(&device, shape, dtype)?;
    let mut dbias = Tensor::zeros(&device, [total], dtype)?;
    let gradients = Gradients {
        dx: Some((dx.view_mut(), Accumulate::Assign)),
        dw: Some((&mut dw, Accumulate::Add)),
        dbias: Some(&mut dbias),
    };
    linear::backward(dy.view(), x.view(), &p, &w, gradients)?;
    [&dx, &dw, &dbias].map(Tensor::view).into_iter().map(|view: View| values(view)).collect()
}
