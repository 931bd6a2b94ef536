//! GELU in its tanh form. Kernels: cuda/gelu.cu. CPU: cpu/gelu.rs. Parity: tests/parity/gelu.rs.
//! Backward reads the input again, so that nothing else is saved.

use super::launch::{arguments, by_dtype, kernels, pieces};
use super::{View, ViewMut, float_dispatch};
use crate::base::Result;
use crate::cpu;
use crate::device::Device;

kernels!("gelu":
    FORWARD_F32 = "gelu_fwd_f32",
    FORWARD_BF16 = "gelu_fwd_bf16",
    BACKWARD_F32 = "gelu_bwd_f32",
    BACKWARD_BF16 = "gelu_bwd_bf16",
);

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
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("gelu", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let (grid, count) = pieces("gelu elements", rows * cols, dtype)?;
            gpu.launch(kernel, grid, &arguments![x.address()?, count, y.address()?])?;
        }
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
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("gelu", dtype, &BACKWARD_F32, &BACKWARD_BF16)?;
            let (grid, count) = pieces("gelu elements", rows * cols, dtype)?;
            gpu.launch(kernel, grid, &arguments![dy.address()?, x.address()?, count, dx.address()?])?;
        }
    }
    Ok(())
}
