//! Smooth L1 distance of rows, and the spread of its target. Kernels: cuda/smooth_l1.cu. CPU: cpu/smooth_l1.rs.
//! Parity: tests/parity/smooth_l1.rs.
//!
//! One number a row leaves the device, never the rows: what a loss divides by (the target's standard deviation over all
//! rows) follows from the rows' means and spreads. Backward reads the operands again, so that nothing else is saved.

use super::launch::{arguments, by_dtype, kernels, pieces, size};
use super::{View, ViewMut, float_dispatch};
use crate::base::{Error, Result};
use crate::cpu;
use crate::device::{Device, Grid};

kernels!("smooth_l1":
    FORWARD_F32 = "smooth_l1_fwd_f32",
    FORWARD_BF16 = "smooth_l1_fwd_bf16",
    BACKWARD_F32 = "smooth_l1_bwd_f32",
    BACKWARD_BF16 = "smooth_l1_bwd_bf16",
);

/// Threads of a block of the forward kernels, which has one row.
const BLOCK: u32 = 256;

/// Of each row of `x[N, d]` and `target[N, d]`, to `statistics[N, 3]` (accumulation dtype): the sum of smooth L1 terms of
/// their difference, the target's mean, and the sum of squares of the target's deviations from it.
///
/// # Errors
/// Shapes or dtypes that do not fit; a `beta` that is not above 0.
pub fn forward(x: View, target: View, beta: f64, mut statistics: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    check_beta(beta)?;
    target.expect("smooth_l1 target", rows, cols, dtype)?;
    statistics.expect("smooth_l1 statistics", rows, 3, dtype.accumulation())?;
    if cols == 0 {
        return Err(Error::shape("smooth_l1 columns", 0, "at least 1"));
    }
    match x.device() {
        Device::Cpu(_) => float_dispatch!("smooth_l1", dtype, T => {
            cpu::smooth_l1::forward::<T>(x.slice()?, target.slice()?, cols, beta, statistics.slice()?);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("smooth_l1", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let grid = Grid::linear(size("smooth_l1 rows", rows)?, BLOCK);
            let cols = size("smooth_l1 columns", cols)?;
            let (x, target, out) = (x.address()?, target.address()?, statistics.address()?);
            gpu.launch(kernel, grid, &arguments![x, target, cols, beta as f32, out])?;
        }
    }
    Ok(())
}

/// Gradient of `scale` times the sum of all terms by `x`, assigned to `dx[N, d]`; the target is a constant.
///
/// # Errors
/// As [`forward`].
pub fn backward(x: View, target: View, beta: f64, scale: f64, mut dx: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    check_beta(beta)?;
    target.expect("smooth_l1 target", rows, cols, dtype)?;
    dx.expect("smooth_l1 dx", rows, cols, dtype)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("smooth_l1", dtype, T => {
            cpu::smooth_l1::backward::<T>(x.slice()?, target.slice()?, beta, scale, dx.slice()?);
        }),
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("smooth_l1", dtype, &BACKWARD_F32, &BACKWARD_BF16)?;
            let (grid, count) = pieces("smooth_l1 elements", rows * cols, dtype)?;
            let (x, target, dx) = (x.address()?, target.address()?, dx.address()?);
            let inverse = (1.0 / beta) as f32;
            gpu.launch(kernel, grid, &arguments![x, target, count, inverse, scale as f32, dx])?;
        }
    }
    Ok(())
}

fn check_beta(beta: f64) -> Result<()> {
    match beta.is_finite() && beta > 0.0 {
        true => Ok(()),
        false => Err(Error::input("smooth_l1", format!("beta = {beta}"), "give a number above 0")),
    }
}
