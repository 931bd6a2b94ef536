//! Copies, multiples, and sums of gradients that meet in the residual stream. Kernels: cuda/elementwise.cu (a copy is the
//! device's own). CPU: cpu/elementwise.rs. Parity: tests/parity/elementwise.rs.
//!
//! These are steps of a backward walk, not operations of a model: they have no backward of their own.

use super::launch::{arguments, by_dtype, kernels, pieces};
use super::{View, ViewMut, float_dispatch};
use crate::base::{Dtype, Result};
use crate::cpu;
use crate::device::{Argument, Device};

kernels!("elementwise":
    ADD_F32 = "elementwise_add_f32",
    ADD_BF16 = "elementwise_add_bf16",
    SCALE_F32 = "elementwise_scale_f32",
    SCALE_BF16 = "elementwise_scale_bf16",
);

/// y += x, both `[rows, cols]`.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn add(x: View, mut y: ViewMut) -> Result<()> {
    let count = x.count() * x.cols();
    y.expect("add", x.count(), x.cols(), x.dtype())?;
    match x.device() {
        Device::Cpu(_) => {
            float_dispatch!("add", x.dtype(), T => cpu::elementwise::add::<T>(x.slice()?, y.slice()?))
        }
        Device::Gpu(_) if count == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("add", x.dtype(), &ADD_F32, &ADD_BF16)?;
            let (grid, count) = pieces("elements to add", count, x.dtype())?;
            gpu.launch(kernel, grid, &arguments![x.address()?, count, y.address()?])?;
        }
    }
    Ok(())
}

/// y *= factor.
///
/// # Errors
/// A dtype that is no float.
pub fn scale(mut y: ViewMut, factor: f64) -> Result<()> {
    let count = y.count() * y.cols();
    match &y.device().clone() {
        Device::Cpu(_) => float_dispatch!("scale", y.dtype(), T => {
            cpu::elementwise::scale::<T>(<T as cpu::Float>::from_f64(factor), y.slice()?);
        }),
        Device::Gpu(_) if count == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("scale", y.dtype(), &SCALE_F32, &SCALE_BF16)?;
            let (grid, count) = pieces("elements to scale", count, y.dtype())?;
            gpu.launch(kernel, grid, &arguments![factor as f32, count, y.address()?])?;
        }
    }
    Ok(())
}

/// y = x, both `[rows, cols]`.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn copy(x: View, mut y: ViewMut) -> Result<()> {
    let bytes = x.count() * x.cols() * x.dtype().size();
    y.expect("copy", x.count(), x.cols(), x.dtype())?;
    match x.device() {
        Device::Cpu(_) => {
            if x.dtype() == Dtype::Bf16 {
                y.slice::<half::bf16>()?.copy_from_slice(x.slice()?);
                return Ok(());
            }
            float_dispatch!("copy", x.dtype(), T => y.slice::<T>()?.copy_from_slice(x.slice()?))
        }
        Device::Gpu(_) if bytes == 0 => {}
        Device::Gpu(gpu) => {
            let (Argument::Address(from), Argument::Address(to)) = (x.address()?, y.address()?) else {
                unreachable!("a view's address is an address")
            };
            gpu.copy(from, to, bytes)?;
        }
    }
    Ok(())
}
