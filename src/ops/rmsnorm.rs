//! RMS norm. Kernels: cuda/rmsnorm.cu. CPU: cpu/rmsnorm.rs. Parity: tests/parity/rmsnorm.rs. Bench:
//! benches/ops/rmsnorm.rs.

use super::append::Pair;
use super::launch::{arguments, by_dtype, kernels, size};
use super::row_blocks::{RowBlocks, address_of, fold, reserve_partial};
use super::{Tensor, View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Argument, Device, Launcher};
use std::ops::Range;

kernels!("rmsnorm":
    FORWARD_F32 = "rmsnorm_fwd_f32",
    FORWARD_BF16 = "rmsnorm_fwd_bf16",
    BACKWARD_F32 = "rmsnorm_bwd_f32",
    BACKWARD_BF16 = "rmsnorm_bwd_bf16",
    BACKWARD_DW = "rmsnorm_bwd_dw",
);

/// What the backward pass needs of the forward pass: `rstd[row]`. Reserved once for a tape of rows; only
/// [`forward`] fills it.
#[derive(Debug)]
pub struct Saved {
    pub(super) rstd: Tensor,
    /// Where a GPU's blocks leave their part of the gain's gradient; nothing in it outlives a call.
    partial: Option<Tensor>,
}

impl Saved {
    /// Room for `rows` rows of `cols` elements.
    pub fn reserve(device: &Device, rows: usize, cols: usize, dtype: Dtype) -> Result<Saved> {
        let rstd = Tensor::zeros(device, [rows, 1], dtype.accumulation())?;
        Ok(Saved { rstd, partial: reserve_partial(device, rows, cols, 1)? })
    }

    /// What is kept of a step of rows, and where it goes in that of a tape; a position has `each` rows.
    pub fn append<'a>(&'a self, to: &'a mut Saved, each: usize) -> Pair<'a> {
        Pair::new(&self.rstd, &mut to.rstd, each)
    }

    /// Room for a GPU's partial sums, for a kernel of `parts` blocks over rows of `cols` elements.
    pub(super) fn partial(&self, parts: u32, cols: usize) -> Result<&Tensor> {
        match &self.partial {
            Some(partial) if partial.shape().elements() >= parts as usize * cols => Ok(partial),
            other => Err(Error::shape(
                "rmsnorm saved, partial sums",
                other.as_ref().map_or(0, |partial| partial.shape().elements()),
                format!("{parts} rows of {cols}, as Saved::reserve makes for rows of this width"),
            )),
        }
    }
}

/// Adds blocks' partial sums to the gain's gradient, if it is wanted.
pub(super) fn add_partial(
    gpu: &dyn Launcher,
    partial: &Tensor,
    parts: u32,
    dw: Option<&Tensor>,
) -> Result<()> {
    dw.map_or(Ok(()), |dw| fold(gpu, &BACKWARD_DW, partial, parts, &[dw]))
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
            let RowBlocks { grid, each } = RowBlocks::forward("rmsnorm rows", rows, cols)?;
            let (x, w, y, rstd) = (x.address()?, w.view().address()?, y.address()?, rstd.address()?);
            let (rows, cols) = (rows as u32, size("rmsnorm columns", cols)?);
            gpu.launch(kernel, grid, &arguments![x, w, eps as f32, rows, cols, each, y, rstd])?;
        }
    }
    Ok(())
}

/// Gradients of [`forward`]: assigns `dx`, adds to `dw`, which a frozen gain has not. `x` and `at` are those of the
/// forward call.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn backward<'a>(
    dy: View,
    x: View,
    w: &Tensor,
    saved: &Saved,
    at: Range<usize>,
    mut dx: ViewMut,
    dw: impl Into<Option<&'a mut Tensor>>,
) -> Result<()> {
    let dw: Option<&mut Tensor> = dw.into();
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    if at.len() != rows {
        return Err(Error::shape("rmsnorm saved", format!("{at:?}"), format!("{rows} rows")));
    }
    dy.expect("rmsnorm dy", rows, cols, dtype)?;
    dx.expect("rmsnorm dx", rows, cols, dtype)?;
    w.expect_shape("rmsnorm weight", [cols])?;
    w.expect_dtype("rmsnorm weight", dtype.accumulation())?;
    if let Some(dw) = &dw {
        dw.expect_shape("rmsnorm dw", [cols])?;
        dw.expect_dtype("rmsnorm dw", dtype.accumulation())?;
    }
    let rstd = saved.rstd.rows(at)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("rmsnorm", dtype, T => {
            let (dy, x, rstd) = (dy.slice::<T>()?, x.slice::<T>()?, rstd.slice::<T>()?);
            cpu::rmsnorm::backward_dx(dy, x, w.view().slice()?, rstd, dx.slice()?);
            if let Some(dw) = dw {
                cpu::rmsnorm::backward_dw(dy, x, rstd, dw.view_mut().slice()?);
            }
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("rmsnorm", dtype, &BACKWARD_F32, &BACKWARD_BF16)?;
            let RowBlocks { grid, each } = RowBlocks::backward("rmsnorm rows", rows, cols)?;
            let partial = saved.partial(grid.blocks[0], cols)?;
            let sums: Argument = partial.view().address()?;
            let (dy, x, w, rstd) = (dy.address()?, x.address()?, w.view().address()?, rstd.address()?);
            let (dx, total) = (dx.address()?, address_of(dw.as_deref())?);
            let (rows, cols) = (rows as u32, size("rmsnorm columns", cols)?);
            gpu.launch(kernel, grid, &arguments![dy, x, w, rstd, rows, cols, each, dx, sums, total])?;
            add_partial(&**gpu, partial, grid.blocks[0], dw.as_deref())?;
        }
    }
    Ok(())
}
