//! Filling tensors on their device: constants and normal random numbers. CPU: cpu/random.rs.

use super::{Tensor, View, ViewMut};
use crate::base::rng::StreamKey;
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::Device;

/// Sets every element of `tensor` to `value` (float dtypes).
pub fn fill(tensor: &mut Tensor, value: f64) -> Result<()> {
    let (device, dtype) = (tensor.device().clone(), tensor.dtype());
    match device {
        Device::Cpu(_) => match dtype {
            Dtype::F32 => tensor.view_mut().slice::<f32>()?.fill(value as f32),
            Dtype::F64 => tensor.view_mut().slice::<f64>()?.fill(value),
            Dtype::Bf16 => tensor.view_mut().slice::<half::bf16>()?.fill(half::bf16::from_f64(value)),
            other => return Err(Error::dtype("fill", other, "a float dtype")),
        },
        Device::Gpu(_) => return Err(device.no_kernel("fill")),
    }
    Ok(())
}

/// Fills `tensor` with `deviation` times standard normals of the stream `key` (layout: cpu/random.rs). Every
/// dtype gets the same numbers, rounded.
pub fn normal(tensor: &mut Tensor, key: StreamKey, deviation: f64) -> Result<()> {
    let (device, dtype) = (tensor.device().clone(), tensor.dtype());
    match device {
        Device::Cpu(_) => match dtype {
            Dtype::F32 => cpu::random::normal::<f32>(key, deviation, tensor.view_mut().slice()?),
            Dtype::F64 => cpu::random::normal::<f64>(key, deviation, tensor.view_mut().slice()?),
            Dtype::Bf16 => {
                let elements = tensor.shape().elements();
                let mut numbers = vec![0.0_f32; elements];
                cpu::random::normal::<f32>(key, deviation, &mut numbers);
                let mut view = tensor.view_mut();
                for (out, number) in view.slice::<half::bf16>()?.iter_mut().zip(numbers) {
                    *out = half::bf16::from_f32(number);
                }
            }
            other => return Err(Error::dtype("normal", other, "a float dtype")),
        },
        Device::Gpu(_) => return Err(device.no_kernel("normal")),
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
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("noise")),
    }
    Ok(())
}
