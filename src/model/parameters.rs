//! Gradients of what is trained: all parameters of a model, a flat list of tensors in the order of
//! [`super::families::parameters`]; or the tensors of its adapter, beside which the weights are frozen. What is frozen has
//! no gradient: no memory, and no work.

use crate::base::{Dtype, Result};
use crate::device::{Arena, Device};
use crate::ops::Tensor;

/// One gradient for each trained tensor, added to by every backward until [`Gradients::clear`].
#[derive(Debug)]
pub struct Gradients {
    tensors: Vec<Tensor>,
    /// Whether the tensors are those of an adapter.
    adapters: bool,
    /// Which of them belongs to the token embedding, and to the output head.
    table: Option<usize>,
    head: Option<usize>,
}

impl Gradients {
    /// Zeros shaped like `parameters`, in `dtype` (f32 for bf16 parameters: master precision).
    pub fn like(device: &Device, parameters: &[Tensor], dtype: Dtype) -> Result<Gradients> {
        let _arena = Arena::Gradients.enter();
        let tensors: Result<Vec<_>> =
            parameters.iter().map(|p| Tensor::zeros(device, p.shape(), dtype)).collect();
        Ok(Gradients { tensors: tensors?, adapters: false, table: None, head: None })
    }

    /// The same, where the tensors are those of an adapter.
    pub(super) fn of_adapters_alone(self) -> Gradients {
        Gradients { adapters: true, ..self }
    }

    /// The same, where these tensors belong to the token embedding and to the output head.
    pub(super) fn with_embeddings(self, table: Option<usize>, head: Option<usize>) -> Gradients {
        Gradients { table, head, ..self }
    }

    /// Sets all to zero.
    pub fn clear(&mut self) -> Result<()> {
        self.tensors.iter_mut().try_for_each(Tensor::clear)
    }

    /// The gradients, in the order of what is trained.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The gradient of one parameter of the model; none where it is frozen.
    pub(super) fn at(&mut self, parameter: usize) -> Option<&mut Tensor> {
        (!self.adapters).then(|| &mut self.tensors[parameter])
    }

    /// The gradients of two different parameters of the model; none where they are frozen.
    pub(super) fn pair(&mut self, a: usize, b: usize) -> Option<[&mut Tensor; 2]> {
        (!self.adapters).then(|| self.two(a, b))
    }

    /// The gradients of A and B of the adapter's pair at `at`.
    pub(super) fn of_adapter(&mut self, at: usize) -> [&mut Tensor; 2] {
        self.two(at, at + 1)
    }

    /// The gradients of the token embedding and of the position embedding.
    pub(super) fn embeddings(&mut self, positions: Option<usize>) -> [Option<&mut Tensor>; 2] {
        match (self.table, positions.filter(|_| !self.adapters)) {
            (Some(table), Some(positions)) => self.two(table, positions).map(Some),
            (table, None) => [table.map(|table| &mut self.tensors[table]), None],
            (None, Some(_)) => unreachable!("a trained position embedding stands beside a trained table"),
        }
    }

    /// The gradient of the output head.
    pub(super) fn head(&mut self) -> Option<&mut Tensor> {
        self.head.map(|head| &mut self.tensors[head])
    }

    fn two(&mut self, a: usize, b: usize) -> [&mut Tensor; 2] {
        match self.tensors.get_disjoint_mut([a, b]) {
            Ok(pair) => pair,
            Err(_) => unreachable!("two different tensors among those that are trained"),
        }
    }
}
