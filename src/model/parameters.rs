//! Gradients and the counts of a model's parameters. Parameters are a flat list of tensors in the order of
//! [`super::families::parameters`]; gradients are a list of the same shapes.

use crate::base::{Dtype, Result};
use crate::device::{Arena, Device};
use crate::ops::Tensor;

/// One gradient a parameter, added to by every backward until [`Gradients::clear`].
#[derive(Debug)]
pub struct Gradients {
    tensors: Vec<Tensor>,
}

impl Gradients {
    /// Zeros shaped like `parameters`, in `dtype` (f32 for bf16 parameters: master precision).
    pub fn like(device: &Device, parameters: &[Tensor], dtype: Dtype) -> Result<Gradients> {
        let _arena = Arena::Gradients.enter();
        let tensors: Result<Vec<_>> =
            parameters.iter().map(|p| Tensor::zeros(device, p.shape(), dtype)).collect();
        Ok(Gradients { tensors: tensors? })
    }

    /// Sets all to zero.
    pub fn clear(&mut self) -> Result<()> {
        self.tensors.iter_mut().try_for_each(Tensor::clear)
    }

    /// The gradients, in the order of the parameters.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The gradient of one parameter.
    pub(super) fn at(&mut self, parameter: usize) -> &mut Tensor {
        &mut self.tensors[parameter]
    }

    /// The gradients of two different parameters.
    pub(super) fn pair(&mut self, a: usize, b: usize) -> [&mut Tensor; 2] {
        match self.tensors.get_disjoint_mut([a, b]) {
            Ok(pair) => pair,
            Err(_) => unreachable!("a weight and its bias are different parameters of the model"),
        }
    }
}
