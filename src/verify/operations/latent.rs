//! Gradient checks of ops/latent.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::scatter::Order;
use crate::ops::{Tensor, latent, mask};
use crate::verify::gradient::{Case, Variable, normals};

/// Rows of fed-back states.
const STATES: usize = 4;

/// One latent; then latents between tokens, several of one state, masked and not.
pub fn cases() -> Vec<Case<'static>> {
    let mixed: &[i32] = &[-1, 5, -1, -1, -2, -1, -1, 0, -1];
    [(1, &[-1][..]), (33, mixed), (123, mixed)].into_iter().map(|(cols, ids)| case(cols, ids)).collect()
}

fn case(cols: usize, ids: &'static [i32]) -> Case<'static> {
    let (name, rows) = (format!("latent {}x{cols}", ids.len()), ids.len());
    let c = normals(&format!("{name} dy"), rows * cols);
    let weights = c.clone();
    Case {
        variables: vec![Variable {
            name: "hidden".into(),
            values: normals(&format!("{name} hidden"), STATES * cols),
        }],
        loss: Box::new(move |point| Ok(dot(&run(cols, ids, point, Dtype::F64, None)?[0], &weights))),
        gradient: Box::new(move |point, dtype| run(cols, ids, point, dtype, Some(&c))),
        name,
    }
}

/// The output, or with `dy` the gradient of the states.
fn run(
    cols: usize,
    ids: &[i32],
    point: &[Vec<f64>],
    dtype: Dtype,
    dy: Option<&[f64]>,
) -> Result<Vec<Vec<f64>>> {
    let (device, rows) = (Device::cpu(), ids.len());
    let id_tensor = Tensor::from_host(&device, [rows, 1], ids)?;
    // States 0, 2, 0, 2, ...: states 1 and 3 feed nobody.
    let from: Vec<u32> = (0..rows as u32).map(|n| 2 * (n % 2)).collect();
    let masks = super::masked_residual::masks(&device, cols, 1)?;
    let instance = super::masked_residual::instances(&device, rows)?;
    let at = masks.at(mask::SiteKind::Latent, 0, instance.view());
    let Some(dy) = dy else {
        let hidden = tensor(&device, [STATES, cols], &point[0], dtype)?;
        let from = Tensor::from_host(&device, [rows, 1], &from)?;
        let mut x = Tensor::zeros(&device, [rows, cols], dtype)?;
        latent::forward(hidden.view(), from.view(), id_tensor.view(), at, x.view_mut())?;
        return Ok(vec![values(x.view())?]);
    };
    let dx = tensor(&device, [rows, cols], dy, dtype)?;
    let source: Vec<i32> = from.iter().map(|&row| row as i32).collect();
    let source = Tensor::from_host(&device, [rows, 1], &source)?;
    let mut dhidden = Tensor::zeros(&device, [STATES, cols], dtype)?;
    latent::backward(
        dx.view(),
        id_tensor.view(),
        source.view(),
        at,
        dhidden.view_mut(),
        &mut Order::default(),
    )?;
    Ok(vec![values(dhidden.view())?])
}
