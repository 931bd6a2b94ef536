//! Filling tensors on their device: constants and normal random numbers. Kernels: cuda/random.cu. CPU: cpu/random.rs.
//! Parity: tests/parity/random.rs.

use super::launch::{arguments, blocks, by_dtype, kernels, pieces, size};
use super::{Tensor, View, ViewMut};
use crate::base::rng::StreamKey;
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Device, Grid};

kernels!("random":
    FILL_F32 = "random_fill_f32",
    FILL_BF16 = "random_fill_bf16",
    NORMAL_F32 = "random_normal_f32",
    NORMAL_BF16 = "random_normal_bf16",
    ADD_NORMAL_F32 = "random_add_normal_f32",
    ADD_NORMAL_BF16 = "random_add_normal_bf16",
);

/// Threads of a block; `__launch_bounds__` of the kernels. Each makes four normals.
const BLOCK: u32 = 256;

/// Sets every element of `tensor` to `value` (float dtypes).
pub fn fill(tensor: &mut Tensor, value: f64) -> Result<()> {
    let (device, dtype, count) = (tensor.device().clone(), tensor.dtype(), tensor.shape().elements());
    match device {
        Device::Cpu(_) => match dtype {
            Dtype::F32 => tensor.view_mut().slice::<f32>()?.fill(value as f32),
            Dtype::F64 => tensor.view_mut().slice::<f64>()?.fill(value),
            Dtype::Bf16 => tensor.view_mut().slice::<half::bf16>()?.fill(half::bf16::from_f32(value as f32)),
            other => return Err(Error::dtype("fill", other, "a float dtype")),
        },
        Device::Gpu(_) if count == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("fill", dtype, &FILL_F32, &FILL_BF16)?;
            let (grid, count) = pieces("elements to fill", count, dtype)?;
            gpu.launch(kernel, grid, &arguments![value as f32, count, tensor.view_mut().address()?])?;
        }
    }
    Ok(())
}

/// Fills `tensor` with `deviation` times standard normals of the stream `key` (layout: cpu/random.rs). Every
/// dtype gets the same numbers, rounded.
pub fn normal(tensor: &mut Tensor, key: StreamKey, deviation: f64) -> Result<()> {
    let (device, dtype, count) = (tensor.device().clone(), tensor.dtype(), tensor.shape().elements());
    match device {
        Device::Cpu(_) => match dtype {
            Dtype::F32 => cpu::random::normal::<f32>(key, deviation, tensor.view_mut().slice()?),
            Dtype::F64 => cpu::random::normal::<f64>(key, deviation, tensor.view_mut().slice()?),
            Dtype::Bf16 => {
                let mut numbers = vec![0.0_f32; count];
                cpu::random::normal::<f32>(key, deviation, &mut numbers);
                let mut view = tensor.view_mut();
                for (out, number) in view.slice::<half::bf16>()?.iter_mut().zip(numbers) {
                    *out = half::bf16::from_f32(number);
                }
            }
            other => return Err(Error::dtype("normal", other, "a float dtype")),
        },
        Device::Gpu(_) if count == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("normal", dtype, &NORMAL_F32, &NORMAL_BF16)?;
            let grid = Grid::linear(blocks("normal numbers", count, 4 * BLOCK as usize)?, BLOCK);
            let ([key0, key1], x) = (key.0, tensor.view_mut().address()?);
            gpu.launch(kernel, grid, &arguments![key0, key1, deviation as f32, count as u32, x])?;
        }
    }
    Ok(())
}

/// Adds `deviation` times standard normals to each row of `x[N, d]`, entry i of row n from the stream in `keys[n]`
/// (U32 `[N, 3]`: stream key, step), which has purpose `LatentNoise`. Noise is a constant: its backward is the
/// identity.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn add_normal(mut x: ViewMut, keys: View, deviation: f64) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    keys.expect("noise keys", rows, cpu::random::KEY_WORDS, Dtype::U32)?;
    match x.device() {
        Device::Cpu(_) => super::float_dispatch!("noise", dtype, T => {
            cpu::random::add_normal::<T>(keys.slice()?, deviation, cols, x.slice()?);
        }),
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("noise", dtype, &ADD_NORMAL_F32, &ADD_NORMAL_BF16)?;
            let threads = rows * cols.div_ceil(4);
            let grid = Grid::linear(blocks("noise threads", threads, BLOCK as usize)?, BLOCK);
            let (keys, x) = (keys.address()?, x.address()?);
            let (rows, cols) = (rows as u32, size("noise columns", cols)?);
            gpu.launch(kernel, grid, &arguments![keys, deviation as f32, rows, cols, x])?;
        }
    }
    Ok(())
}
