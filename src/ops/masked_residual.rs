//! The residual sum with a masked branch. CPU: cpu/masked_residual.rs. Parity: tests/parity/masked_residual.rs.

use super::mask::MaskAt;
use super::{View, ViewMut, float_dispatch};
use crate::base::Result;
use crate::cpu;
use crate::device::Device;

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
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("masked_residual")),
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
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("masked_residual")),
    }
    Ok(())
}
