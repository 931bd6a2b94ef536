//! RMS norm. Kernels: cuda/rmsnorm.cu. CPU: cpu/rmsnorm.rs. Parity: tests/parity/rmsnorm.rs. Bench:
//! benches/ops/rmsnorm.rs.

use super::launch::{arguments, by_dtype, kernels, size};
use super::{Tensor, View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Device, Grid};
use std::ops::Range;

kernels!("rmsnorm": FORWARD_F32 = "rmsnorm_fwd_f32", FORWARD_BF16 = "rmsnorm_fwd_bf16");

/// Threads of a block; `__launch_bounds__` of the kernels.
const BLOCK: u32 = 256;

/// What the backward pass needs of the forward pass: `rstd[row]`. Reserved once for a tape of rows; only
/// [`forward`] fills it.
#[derive(Debug)]
pub struct Saved {
    rstd: Tensor,
}

impl Saved {
    /// Room for `rows` rows.
    pub fn reserve(device: &Device, rows: usize, dtype: Dtype) -> Result<Saved> {
        Ok(Saved { rstd: Tensor::zeros(device, [rows, 1], dtype.accumulation())? })
    }
}

/// y = x * rstd * w over rows of `x[rows, cols]`, rstd = 1/sqrt(mean(x^2) + eps); `w[cols]`.
///
/// `at` is where in `saved` these rows are kept; its length must be the number of rows.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn forward(
    x: View,
    w: &Tensor,
    eps: f64,
    mut y: ViewMut,
    saved: &mut Saved,
    at: Range<usize>,
) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    w.expect_shape("rmsnorm weight", [cols])?;
    w.expect_dtype("rmsnorm weight", dtype.accumulation())?;
    y.expect("rmsnorm output", rows, cols, dtype)?;
    let mut rstd = saved.rstd.rows_mut(at)?;
    rstd.expect("rmsnorm saved", rows, 1, dtype.accumulation())?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("rmsnorm", dtype, T => {
            cpu::rmsnorm::forward::<T>(x.slice()?, w.view().slice()?, eps, y.slice()?, rstd.slice()?);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("rmsnorm", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let grid = Grid::linear(size("rmsnorm rows", rows)?, BLOCK);
            let (x, w, y, rstd) = (x.address()?, w.view().address()?, y.address()?, rstd.address()?);
            gpu.launch(kernel, grid, &arguments![x, w, eps as f32, size("rmsnorm columns", cols)?, y, rstd])?;
        }
    }
    Ok(())
}

/// Gradients of [`forward`]: assigns `dx`, adds to `dw`. `x` and `at` are those of the forward call.
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
    dw: &mut Tensor,
) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    if at.len() != rows {
        return Err(Error::shape("rmsnorm saved", format!("{at:?}"), format!("{rows} rows")));
    }
    dy.expect("rmsnorm dy", rows, cols, dtype)?;
    dx.expect("rmsnorm dx", rows, cols, dtype)?;
    dw.expect_shape("rmsnorm dw", [cols])?;
    let rstd = saved.rstd.rows(at)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("rmsnorm", dtype, T => {
            let (dy, x, rstd) = (dy.slice::<T>()?, x.slice::<T>()?, rstd.slice::<T>()?);
            cpu::rmsnorm::backward_dx(dy, x, w.view().slice()?, rstd, dx.slice()?);
            cpu::rmsnorm::backward_dw(dy, x, rstd, dw.view_mut().slice()?);
        }),
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("rmsnorm")),
    }
    Ok(())
}
