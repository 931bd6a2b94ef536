//! The same numbers in another dtype. Kernels: cuda/cast.cu. CPU: cpu/cast.rs. Parity: tests/parity/cast.rs.
//!
//! A step between dtypes, not an operation of a model: it has no backward of its own.

use super::launch::{arguments, blocks, kernels, size};
use super::{View, ViewMut};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Argument, Device, Grid, Kernel, Launcher};

kernels!("cast": F32_BF16 = "cast_f32_bf16", BF16_F32 = "cast_bf16_f32");

/// Threads of a block; `__launch_bounds__` of the kernels. Each takes four numbers.
const BLOCK: u32 = 256;

/// y = x in the dtype of `y`: f32 to bf16 rounded to nearest, ties to even; bf16 to f32 exactly.
///
/// # Errors
/// Shapes that do not fit, another pair of dtypes.
pub fn cast(x: View, mut y: ViewMut) -> Result<()> {
    let (rows, cols, from, to) = (x.count(), x.cols(), x.dtype(), y.dtype());
    y.expect("cast output", rows, cols, to)?;
    let kernel = match (from, to) {
        (Dtype::F32, Dtype::Bf16) => &F32_BF16,
        (Dtype::Bf16, Dtype::F32) => &BF16_F32,
        _ => return Err(Error::dtype("cast", format!("{from} to {to}"), "f32 to bf16, or bf16 to f32")),
    };
    match x.device() {
        Device::Cpu(_) if to == Dtype::Bf16 => cpu::cast::to_bf16(x.slice()?, y.slice()?),
        Device::Cpu(_) => cpu::cast::to_f32(x.slice()?, y.slice()?),
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => launch(&**gpu, kernel, x.address()?, rows * cols, y.address()?)?,
    }
    Ok(())
}

/// Rounds `count` f32 numbers at `from` to bf16 at `to`, on a GPU.
pub(in crate::ops) fn round(gpu: &dyn Launcher, from: Argument, count: usize, to: Argument) -> Result<()> {
    launch(gpu, &F32_BF16, from, count, to)
}

fn launch(
    gpu: &dyn Launcher,
    kernel: &'static Kernel,
    from: Argument,
    count: usize,
    to: Argument,
) -> Result<()> {
    let grid = Grid::linear(blocks("elements to cast", count, 4 * BLOCK as usize)?, BLOCK);
    let count = size("elements to cast", count)?;
    gpu.launch(kernel, grid, &arguments![from, count, to])
}
