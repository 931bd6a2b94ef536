//! Layer norm. CPU: cpu/layernorm.rs. Parity: tests/parity/layernorm.rs.

use super::{Tensor, View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::Device;
use std::ops::Range;

/// What the backward pass needs of the forward pass: mean and rstd of each row. Reserved once for a tape of rows;
/// only [`forward`] fills it.
#[derive(Debug)]
pub struct Saved {
    statistics: Tensor,
}

impl Saved {
    /// Room for `rows` rows.
    pub fn reserve(device: &Device, rows: usize, dtype: Dtype) -> Result<Saved> {
        Ok(Saved { statistics: Tensor::zeros(device, [rows, 2], dtype)? })
    }
}

/// Gradients of gain and bias, `[cols]` each; [`backward`] adds to them.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of the gain.
    pub dw: &'a mut Tensor,
    /// Gradient of the bias.
    pub db: &'a mut Tensor,
}

/// y = (x - mean) * rstd * w + b over rows of `x[rows, cols]`, rstd = 1/sqrt(variance + eps); `w[cols]`, `b[cols]`.
///
/// `at` is where in `saved` these rows are kept; its length must be the number of rows.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn forward(
    x: View,
    (w, b): (&Tensor, &Tensor),
    eps: f64,
    mut y: ViewMut,
    saved: &mut Saved,
    at: Range<usize>,
) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    for (what, parameter) in [("layernorm weight", w), ("layernorm bias", b)] {
        parameter.expect_shape(what, [cols])?;
        parameter.expect_dtype(what, dtype)?;
    }
    y.expect("layernorm output", rows, cols, dtype)?;
    let mut statistics = saved.statistics.rows_mut(at)?;
    statistics.expect("layernorm saved", rows, 2, dtype)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("layernorm", dtype, T => {
            let (w, b) = (w.view().slice::<T>()?, b.view().slice::<T>()?);
            cpu::layernorm::forward(x.slice()?, w, b, eps, y.slice()?, statistics.slice()?);
        }),
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("layernorm")),
    }
    Ok(())
}

/// Gradients of [`forward`]: assigns `dx`, adds to `gradients`. `x` and `at` are those of the forward call.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn backward(
    dy: View,
    x: View,
    w: &Tensor,
    saved: &Saved,
    at: Range<usize>,
    mut dx: ViewMut,
    gradients: Gradients,
) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    if at.len() != rows {
        return Err(Error::shape("layernorm saved", format!("{at:?}"), format!("{rows} rows")));
    }
    let Gradients { dw, db } = gradients;
    dy.expect("layernorm dy", rows, cols, dtype)?;
    dx.expect("layernorm dx", rows, cols, dtype)?;
    w.expect_shape("layernorm weight", [cols])?;
    dw.expect_shape("layernorm dw", [cols])?;
    db.expect_shape("layernorm db", [cols])?;
    let statistics = saved.statistics.rows(at)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("layernorm", dtype, T => {
            let (dy, x, statistics) = (dy.slice::<T>()?, x.slice::<T>()?, statistics.slice::<T>()?);
            cpu::layernorm::backward_dx(dy, x, w.view().slice()?, statistics, dx.slice()?);
            let (mut dw, mut db) = (dw.view_mut(), db.view_mut());
            cpu::layernorm::backward_parameters(dy, x, statistics, dw.slice()?, db.slice()?);
        }),
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("layernorm")),
    }
    Ok(())
}
