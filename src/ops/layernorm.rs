//! Layer norm. Kernels: cuda/layernorm.cu. CPU: cpu/layernorm.rs. Parity: tests/parity/layernorm.rs.

use super::append::Pair;
use super::launch::{arguments, by_dtype, kernels, size};
use super::row_blocks::{RowBlocks, address_of, fold, reserve_partial};
use super::{Tensor, View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Argument, Device, Launcher};
use std::ops::Range;

kernels!("layernorm":
    FORWARD_F32 = "layernorm_fwd_f32",
    FORWARD_BF16 = "layernorm_fwd_bf16",
    BACKWARD_F32 = "layernorm_bwd_f32",
    BACKWARD_BF16 = "layernorm_bwd_bf16",
    BACKWARD_DW = "layernorm_bwd_dw",
);

/// What the backward pass needs of the forward pass: mean and rstd of each row. Reserved once for a tape of rows;
/// only [`forward`] fills it.
#[derive(Debug)]
pub struct Saved {
    pub(super) statistics: Tensor,
    /// Where a GPU's blocks leave their part of the gradients of gain and bias; nothing in it outlives a call.
    partial: Option<Tensor>,
}

impl Saved {
    /// Room for `rows` rows of `cols` elements.
    pub fn reserve(device: &Device, rows: usize, cols: usize, dtype: Dtype) -> Result<Saved> {
        let statistics = Tensor::zeros(device, [rows, 2], dtype.accumulation())?;
        Ok(Saved { statistics, partial: reserve_partial(device, rows, cols, 2)? })
    }

    /// What is kept of a step of rows, and where it goes in that of a tape; a position has `each` rows.
    pub fn append<'a>(&'a self, to: &'a mut Saved, each: usize) -> Pair<'a> {
        Pair::new(&self.statistics, &mut to.statistics, each)
    }

    /// Room for a GPU's partial sums, for a kernel of `parts` blocks over rows of `cols` elements.
    pub(super) fn partial(&self, parts: u32, cols: usize) -> Result<&Tensor> {
        match &self.partial {
            Some(partial) if partial.shape().elements() >= 2 * parts as usize * cols => Ok(partial),
            other => Err(Error::shape(
                "layernorm saved, partial sums",
                other.as_ref().map_or(0, |partial| partial.shape().elements()),
                format!("{parts} rows of 2 x {cols}, as Saved::reserve makes for rows of this width"),
            )),
        }
    }
}

/// Adds blocks' partial sums to the gradients of gain and bias, if they are wanted.
pub(super) fn add_partial(
    gpu: &dyn Launcher,
    partial: &Tensor,
    parts: u32,
    gradients: Option<[&Tensor; 2]>,
) -> Result<()> {
    gradients.map_or(Ok(()), |gradients| fold(gpu, &BACKWARD_DW, partial, parts, &gradients))
}

/// Gradients of gain and bias, `[cols]` each; [`backward`] adds to them.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of the gain.
    pub dw: &'a mut Tensor,
    /// Gradient of the bias.
    pub db: &'a mut Tensor,
}

impl Gradients<'_> {
    /// Both, to read where they are.
    pub(super) fn both(&self) -> [&Tensor; 2] {
        [self.dw, self.db]
    }
}

/// Where kernels find the gradients; nowhere when they are not wanted.
pub(super) fn addresses_of(both: Option<[&Tensor; 2]>) -> Result<[Argument; 2]> {
    Ok([address_of(both.map(|[dw, _]| dw))?, address_of(both.map(|[_, db]| db))?])
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
        parameter.expect_dtype(what, dtype.accumulation())?;
    }
    y.expect("layernorm output", rows, cols, dtype)?;
    let mut statistics = saved.statistics.rows_mut(at)?;
    statistics.expect("layernorm saved", rows, 2, dtype.accumulation())?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("layernorm", dtype, T => {
            let (w, b) = (w.view().slice::<T>()?, b.view().slice::<T>()?);
            cpu::layernorm::forward(x.slice()?, w, b, eps, y.slice()?, statistics.slice()?);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("layernorm", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let RowBlocks { grid, each } = RowBlocks::forward("layernorm rows", rows, cols)?;
            let (x, w, b) = (x.address()?, w.view().address()?, b.view().address()?);
            let (y, statistics) = (y.address()?, statistics.address()?);
            let (rows, cols) = (rows as u32, size("layernorm columns", cols)?);
            gpu.launch(kernel, grid, &arguments![x, w, b, eps as f32, rows, cols, each, y, statistics])?;
        }
    }
    Ok(())
}

/// Gradients of [`forward`]: assigns `dx`, adds to `gradients`, which a frozen norm has not. `x` and `at` are those of
/// the forward call.
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
    gradients: impl Into<Option<Gradients<'a>>>,
) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    if at.len() != rows {
        return Err(Error::shape("layernorm saved", format!("{at:?}"), format!("{rows} rows")));
    }
    let gradients: Option<Gradients> = gradients.into();
    dy.expect("layernorm dy", rows, cols, dtype)?;
    dx.expect("layernorm dx", rows, cols, dtype)?;
    w.expect_shape("layernorm weight", [cols])?;
    w.expect_dtype("layernorm weight", dtype.accumulation())?;
    if let Some(Gradients { dw, db }) = &gradients {
        for (what, vector) in [("layernorm dw", dw), ("layernorm db", db)] {
            vector.expect_shape(what, [cols])?;
            vector.expect_dtype(what, dtype.accumulation())?;
        }
    }
    let statistics = saved.statistics.rows(at)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("layernorm", dtype, T => {
            let (dy, x, statistics) = (dy.slice::<T>()?, x.slice::<T>()?, statistics.slice::<T>()?);
            cpu::layernorm::backward_dx(dy, x, w.view().slice()?, statistics, dx.slice()?);
            if let Some(Gradients { dw, db }) = gradients {
                let (mut dw, mut db) = (dw.view_mut(), db.view_mut());
                cpu::layernorm::backward_parameters(dy, x, statistics, dw.slice()?, db.slice()?);
            }
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("layernorm", dtype, &BACKWARD_F32, &BACKWARD_BF16)?;
            let RowBlocks { grid, each } = RowBlocks::backward("layernorm rows", rows, cols)?;
            let partial = saved.partial(grid.blocks[0], cols)?;
            let (dy, x, w) = (dy.address()?, x.address()?, w.view().address()?);
            let (kept, dx, sums) = (statistics.address()?, dx.address()?, partial.view().address()?);
            let both = gradients.as_ref().map(Gradients::both);
            let [dw_at, db_at] = addresses_of(both)?;
            let (rows, cols) = (rows as u32, size("layernorm columns", cols)?);
            let arguments = arguments![dy, x, w, kept, rows, cols, each, dx, sums, dw_at, db_at];
            gpu.launch(kernel, grid, &arguments)?;
            add_partial(&**gpu, partial, grid.blocks[0], both)?;
        }
    }
    Ok(())
}
