//! Filling tensors on their device: constants and normal random numbers. CPU: cpu/random.rs.

use super::Tensor;
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
