//! GELU in its tanh form. CPU: cpu/gelu.rs. Parity: tests/parity/gelu.rs.
//! Backward reads the input again, so that nothing else is saved.

use super::{View, ViewMut, float_dispatch};
use crate::base::Result;
use crate::cpu;
use crate::device::Device;

/// y = gelu(x), element by element; `x[N, w]`.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn forward(x: View, mut y: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    y.expect("gelu output", rows, cols, dtype)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("gelu", dtype, T => {
            cpu::gelu::forward::<T>(x.slice()?, y.slice()?);
        }),
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("gelu")),
    }
    Ok(())
}

/// dx = dy * gelu'(x), assigned; `x` is that of the forward call.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn backward(dy: View, x: View, mut dx: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    dy.expect("gelu dy", rows, cols, dtype)?;
    dx.expect("gelu dx", rows, cols, dtype)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("gelu", dtype, T => {
            cpu::gelu::backward::<T>(dy.slice()?, x.slice()?, dx.slice()?);
        }),
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("gelu")),
    }
    Ok(())
}
