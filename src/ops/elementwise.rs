//! Copies, and sums of gradients that meet in the residual stream. CPU: cpu/elementwise.rs.
//!
//! These are steps of a backward walk, not operations of a model: they have no backward of their own.

use super::{View, ViewMut, float_dispatch};
use crate::base::Result;
use crate::cpu;
use crate::device::Device;

/// y += x, both `[rows, cols]`.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn add(x: View, mut y: ViewMut) -> Result<()> {
    y.expect("add", x.count(), x.cols(), x.dtype())?;
    match x.device() {
        Device::Cpu(_) => {
            float_dispatch!("add", x.dtype(), T => cpu::elementwise::add::<T>(x.slice()?, y.slice()?))
        }
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("add")),
    }
    Ok(())
}

/// y = x, both `[rows, cols]`.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn copy(x: View, mut y: ViewMut) -> Result<()> {
    y.expect("copy", x.count(), x.cols(), x.dtype())?;
    match x.device() {
        Device::Cpu(_) => {
            float_dispatch!("copy", x.dtype(), T => y.slice::<T>()?.copy_from_slice(x.slice()?))
        }
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("copy")),
    }
    Ok(())
}
