//! The residual sum with a masked branch. Kernels: cuda/masked_residual.cu. CPU: cpu/masked_residual.rs. Parity:
//! tests/parity/masked_residual.rs.

use super::launch::{arguments, by_dtype, kernels, size};
use super::mask::{MaskAt, mask_arguments};
use super::row_blocks::RowBlocks;
use super::{View, ViewMut, float_dispatch};
use crate::base::Result;
use crate::cpu;
use crate::device::Device;

kernels!("masked_residual":
    FORWARD_F32 = "masked_residual_fwd_f32",
    FORWARD_BF16 = "masked_residual_fwd_bf16",
    BACKWARD_F32 = "masked_residual_bwd_f32",
    BACKWARD_BF16 = "masked_residual_bwd_bf16",
);

/// y = x + m * branch over rows of `x[N, d]`; rows of instance -1 and calls without a mask add the branch as it is.
///
/// # Errors
/// Shapes or dtypes that do not fit; an instance that does not exist.
pub fn forward(x: View, branch: View, mask: Option<MaskAt>, mut y: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    branch.expect("masked_residual branch", rows, cols, dtype)?;
    y.expect("masked_residual output", rows, cols, dtype)?;
    if let Some(mask) = &mask {
        mask.expect("masked_residual", rows, cols)?;
    }
    match x.device() {
        Device::Cpu(_) => float_dispatch!("masked_residual", dtype, T => {
            let mask = mask.map(|mask| mask.host()).transpose()?;
            cpu::masked_residual::forward::<T>(x.slice()?, branch.slice()?, mask, cols, y.slice()?);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("masked_residual", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let RowBlocks { grid, each } = RowBlocks::masked("masked_residual rows", rows, cols)?;
            let [bits, instance, instances, stride, offset, scale] = mask_arguments(&mask)?;
            let (x, branch, y) = (x.address()?, branch.address()?, y.address()?);
            let (rows, cols) = (rows as u32, size("masked_residual columns", cols)?);
            let arguments =
                arguments![x, branch, bits, instance, instances, stride, offset, scale, rows, cols, each, y];
            gpu.launch(kernel, grid, &arguments)?;
        }
    }
    Ok(())
}

/// Gradient of the branch, assigned: dbranch = m * dy. The gradient of `x` is `dy` itself, which the caller keeps.
///
/// # Errors
/// Shapes or dtypes that do not fit; an instance that does not exist.
pub fn backward(dy: View, mask: Option<MaskAt>, mut dbranch: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (dy.count(), dy.cols(), dy.dtype());
    dbranch.expect("masked_residual dbranch", rows, cols, dtype)?;
    if let Some(mask) = &mask {
        mask.expect("masked_residual", rows, cols)?;
    }
    match dy.device() {
        Device::Cpu(_) => float_dispatch!("masked_residual", dtype, T => {
            let mask = mask.map(|mask| mask.host()).transpose()?;
            cpu::masked_residual::backward::<T>(dy.slice()?, mask, cols, dbranch.slice()?);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("masked_residual", dtype, &BACKWARD_F32, &BACKWARD_BF16)?;
            let RowBlocks { grid, each } = RowBlocks::masked("masked_residual rows", rows, cols)?;
            let [bits, instance, instances, stride, offset, scale] = mask_arguments(&mask)?;
            let (dy, dbranch) = (dy.address()?, dbranch.address()?);
            let (rows, cols) = (rows as u32, size("masked_residual columns", cols)?);
            let arguments =
                arguments![dy, bits, instance, instances, stride, offset, scale, rows, cols, each, dbranch];
            gpu.launch(kernel, grid, &arguments)?;
        }
    }
    Ok(())
}
