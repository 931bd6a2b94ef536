//! The global L2 norm of gradients and the scale that clips it, both left on the device.
//! Kernels: cuda/gradient_norm.cu. CPU: cpu/gradient_norm.rs. Parity: tests/parity/gradient_norm.rs.

use super::launch::{arguments, kernels, size};
use super::tensor_list::TensorList;
use super::{Tensor, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::cpu::gradient_norm::CHUNK;
use crate::device::{Argument, Device, Grid};

kernels!("gradient_norm": SUMS = "gradient_norm_sums", FINISH = "gradient_norm_finish");

/// Threads of a block; `__launch_bounds__` of the kernels.
const SUMS_BLOCK: u32 = 256;
const FINISH_BLOCK: u32 = 1024;

/// Room for the partial sums, and the results of the newest [`forward`].
#[derive(Debug)]
pub struct GradientNorm {
    /// F64 `[chunks, 1]`.
    sums: Tensor,
    norm: Tensor,
    scale: Tensor,
    /// Where the gradients are, on a GPU.
    list: Option<TensorList>,
}

impl GradientNorm {
    /// Room for gradients of `elements` each (in the order of the calls), all of `dtype` (f32 or f64).
    pub fn reserve(device: &Device, elements: &[usize], dtype: Dtype) -> Result<GradientNorm> {
        let chunks = elements.iter().map(|count| count.div_ceil(CHUNK)).sum::<usize>();
        Ok(GradientNorm {
            sums: Tensor::zeros(device, [chunks, 1], Dtype::F64)?,
            norm: Tensor::zeros(device, [1], dtype)?,
            scale: Tensor::zeros(device, [1], dtype)?,
            list: match device {
                Device::Cpu(_) => None,
                Device::Gpu(_) => Some(TensorList::reserve(device, elements, 1)?),
            },
        })
    }

    /// `[1]`: the norm of the newest call; infinite or NaN when a gradient is, or when a square overflows.
    pub fn norm(&self) -> &Tensor {
        &self.norm
    }

    /// `[1]`: what gradients are to be multiplied by, `min(1, max_norm / (norm + 1e-6))`; NaN for a NaN norm.
    pub fn scale(&self) -> &Tensor {
        &self.scale
    }
}

/// The norm of all `gradients` together, and the scale that clips it to `max_norm` (`f64::INFINITY` = no clipping,
/// the scale is 1). Sums run in the order of the list.
///
/// # Errors
/// Dtypes or numbers of elements other than reserved; `max_norm` not above 0.
pub fn forward(gradients: &[&Tensor], max_norm: f64, state: &mut GradientNorm) -> Result<()> {
    let dtype = state.norm.dtype();
    let chunks: usize = gradients.iter().map(|g| g.shape().elements().div_ceil(CHUNK)).sum();
    state.sums.expect_shape("gradient_norm sums", [chunks, 1])?;
    for gradient in gradients {
        gradient.expect_dtype("gradient_norm gradient", dtype)?;
    }
    if max_norm.is_nan() || max_norm <= 0.0 {
        let advice = "use a positive number, or infinity for no clipping";
        return Err(Error::input("max_norm", format!("found {max_norm}"), advice));
    }
    match &state.norm.device().clone() {
        Device::Cpu(_) => float_dispatch!("gradient_norm", dtype, T => {
            let mut sums = state.sums.view_mut();
            let sums = sums.slice::<f64>()?;
            let mut first = 0;
            for gradient in gradients {
                let count = gradient.shape().elements().div_ceil(CHUNK);
                cpu::gradient_norm::chunk_sums::<T>(gradient.view().slice()?, &mut sums[first..first + count]);
                first += count;
            }
            let (norm, scale) = cpu::gradient_norm::finish(sums, max_norm);
            state.norm.view_mut().slice::<T>()?[0] = <T as cpu::Float>::from_f64(norm);
            state.scale.view_mut().slice::<T>()?[0] = <T as cpu::Float>::from_f64(scale);
        }),
        Device::Gpu(gpu) => {
            if dtype != Dtype::F32 {
                return Err(Error::dtype("gradient_norm", dtype, "f32 on a GPU"));
            }
            let sums = state.sums.view().address()?;
            let list = state
                .list
                .as_mut()
                .filter(|list| list.is_for(gradients.iter().map(|gradient| gradient.shape().elements())));
            let Some(list) = list else {
                return Err(Error::shape("gradient_norm gradients", "other sizes", "those reserved"));
            };
            let addresses = gradients.iter().map(|g| g.view().address()).collect::<Result<Vec<_>>>()?;
            let [table, tensor_of_chunk] = list.arguments(addresses.into_iter())?;
            if list.chunks() > 0 {
                let grid = Grid::linear(list.chunks(), SUMS_BLOCK);
                gpu.launch(&SUMS, grid, &arguments![table, tensor_of_chunk, sums])?;
            }
            let (chunks, bound) = (size("chunks", chunks)?, Argument::U64(max_norm.to_bits()));
            let results = [state.norm.view_mut().address()?, state.scale.view_mut().address()?];
            let list = arguments![sums, chunks, bound, results[0], results[1]];
            gpu.launch(&FINISH, Grid::linear(1, FINISH_BLOCK), &list)?;
        }
    }
    Ok(())
}
