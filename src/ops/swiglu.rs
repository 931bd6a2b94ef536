//! The gated unit silu(gate) * up. Kernels: cuda/swiglu.cu. CPU: cpu/swiglu.rs. Parity: tests/parity/swiglu.rs.
//! Backward reads the inputs again, so that nothing else is saved.

use super::launch::{arguments, by_dtype, kernels, pieces};
use super::{View, ViewMut, float_dispatch};
use crate::base::Result;
use crate::cpu;
use crate::device::Device;

kernels!("swiglu":
    FORWARD_F32 = "swiglu_fwd_f32",
    FORWARD_BF16 = "swiglu_fwd_bf16",
    BACKWARD_F32 = "swiglu_bwd_f32",
    BACKWARD_BF16 = "swiglu_bwd_bf16",
);

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
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("swiglu", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let (grid, count) = pieces("swiglu elements", rows * cols, dtype)?;
            gpu.launch(kernel, grid, &arguments![gate.address()?, up.address()?, count, y.address()?])?;
        }
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
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("swiglu", dtype, &BACKWARD_F32, &BACKWARD_BF16)?;
            let (grid, count) = pieces("swiglu elements", rows * cols, dtype)?;
            let (dy, gate, up) = (dy.address()?, gate.address()?, up.address()?);
            let (dgate, dup) = (dgate.address()?, dup.address()?);
            gpu.launch(kernel, grid, &arguments![dy, gate, up, count, dgate, dup])?;
        }
    }
    Ok(())
}
