//! The gated unit silu(gate) * up. CPU: cpu/swiglu.rs. Parity: tests/parity/swiglu.rs.
//! Backward reads the inputs again, so that nothing else is saved.

use super::{View, ViewMut, float_dispatch};
use crate::base::Result;
use crate::cpu;
use crate::device::Device;

/// y = silu(gate) * up, element by element; both `[N, w]`.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn forward(gate: View, up: View, mut y: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (gate.count(), gate.cols(), gate.dtype());
    up.expect("swiglu up", rows, cols, dtype)?;
    y.expect("swiglu output", rows, cols, dtype)?;
    match gate.device() {
        Device::Cpu(_) => float_dispatch!("swiglu", dtype, T => {
            cpu::swiglu::forward::<T>(gate.slice()?, up.slice()?, y.slice()?);
        }),
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("swiglu")),
    }
    Ok(())
}

/// Gradients of [`forward`], assigned; `gate` and `up` are those of the forward call.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn backward(dy: View, gate: View, up: View, mut dgate: ViewMut, mut dup: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (gate.count(), gate.cols(), gate.dtype());
    dy.expect("swiglu dy", rows, cols, dtype)?;
    up.expect("swiglu up", rows, cols, dtype)?;
    dgate.expect("swiglu dgate", rows, cols, dtype)?;
    dup.expect("swiglu dup", rows, cols, dtype)?;
    match gate.device() {
        Device::Cpu(_) => float_dispatch!("swiglu", dtype, T => {
            let (dgate, dup) = (dgate.slice()?, dup.slice()?);
            cpu::swiglu::backward::<T>(dy.slice()?, gate.slice()?, up.slice()?, dgate, dup);
        }),
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("swiglu")),
    }
    Ok(())
}
