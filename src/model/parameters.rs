//! Gradients of what is trained: all parameters of a model, a flat list of tensors in the order of
//! [`super::families::parameters`]; or the tensors of its adapter, beside which the weights are frozen. What is frozen has
//! no gradient: no memory, and no work.
//!
//! [`Gradients::clear`] writes nothing. The first product that comes to a weight's gradient after it replaces what stands
//! there, and only what no product replaces is set to zero: a step of GPT-2's 124M parameters writes and reads half a
//! gigabyte less. The bits are those of adding to zeros.

use crate::base::{Dtype, Error, Result};
use crate::device::{Arena, Device};
use crate::ops::Tensor;
use crate::ops::linear::{Accumulate, Projection};
use std::ops::Range;

/// One gradient for each trained tensor, added to by every backward until [`Gradients::clear`].
#[derive(Debug)]
pub struct Gradients {
    tensors: Vec<Tensor>,
    /// Of each tensor, what counts as zero and was not written since it does, in elements, output by output. Windows of a
    /// weight are differentiated in rising order, so this is one run that ends with the tensor.
    stale: Vec<Range<usize>>,
    /// Whether the tensors are those of an adapter.
    adapters: bool,
    /// Which of them belongs to the token embedding, and to the output head.
    table: Option<usize>,
    head: Option<usize>,
}

/// The gradient of a weight, and how a product comes to it.
pub(super) type OfWeight<'a> = (&'a mut Tensor, Accumulate);

impl Gradients {
    /// Zeros shaped like `parameters`, in `dtype` (f32 for bf16 parameters: master precision).
    pub fn like(device: &Device, parameters: &[Tensor], dtype: Dtype) -> Result<Gradients> {
        let _arena = Arena::Gradients.enter();
        let tensors: Result<Vec<_>> =
            parameters.iter().map(|p| Tensor::zeros(device, p.shape(), dtype)).collect();
        let stale = vec![0..0; parameters.len()];
        Ok(Gradients { tensors: tensors?, stale, adapters: false, table: None, head: None })
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
    pub fn clear(&mut self) {
        for (stale, tensor) in self.stale.iter_mut().zip(&self.tensors) {
            *stale = 0..tensor.shape().elements();
        }
    }

    /// The gradients, in the order of what is trained.
    ///
    /// # Errors
    /// A backward pass that failed between two windows of a weight.
    pub fn tensors(&mut self) -> Result<&[Tensor]> {
        (0..self.tensors.len()).try_for_each(|at| self.settle(at))?;
        Ok(&self.tensors)
    }

    /// The gradient of one parameter of the model, to be added to; none where it is frozen.
    pub(super) fn at(&mut self, parameter: usize) -> Result<Option<&mut Tensor>> {
        if self.adapters {
            return Ok(None);
        }
        self.settle(parameter)?;
        Ok(Some(&mut self.tensors[parameter]))
    }

    /// The gradients of two different parameters of the model, to be added to; none where they are frozen.
    pub(super) fn pair(&mut self, a: usize, b: usize) -> Result<Option<[&mut Tensor; 2]>> {
        if self.adapters {
            return Ok(None);
        }
        self.settle(a)?;
        self.settle(b)?;
        Ok(Some(self.two(a, b)))
    }

    /// The gradients of a linear map's weight and bias; none where they are frozen. The product is made as it says.
    pub(super) fn of_linear(
        &mut self,
        weight: usize,
        bias: Option<usize>,
        projection: &Projection,
    ) -> Result<(Option<OfWeight<'_>>, Option<&mut Tensor>)> {
        if self.adapters {
            return Ok((None, None));
        }
        let accumulate = self.visit(weight, projection);
        let Some(bias) = bias else { return Ok((Some((&mut self.tensors[weight], accumulate)), None)) };
        self.settle(bias)?;
        let [dw, dbias] = self.two(weight, bias);
        Ok((Some((dw, accumulate)), Some(dbias)))
    }

    /// The gradients of A and B of the adapter's pair at `at`, whose projections these are.
    pub(super) fn of_adapter(&mut self, at: usize, [down, up]: [&Projection; 2]) -> [OfWeight<'_>; 2] {
        let accumulate = [self.visit(at, down), self.visit(at + 1, up)];
        let [a, b] = self.two(at, at + 1);
        [(a, accumulate[0]), (b, accumulate[1])]
    }

    /// The gradients of the token embedding and of the position embedding, to be added to.
    pub(super) fn embeddings(&mut self, positions: Option<usize>) -> Result<[Option<&mut Tensor>; 2]> {
        let positions = positions.filter(|_| !self.adapters);
        for at in self.table.into_iter().chain(positions) {
            self.settle(at)?;
        }
        Ok(match (self.table, positions) {
            (Some(table), Some(positions)) => self.two(table, positions).map(Some),
            (table, None) => [table.map(|table| &mut self.tensors[table]), None],
            (None, Some(_)) => unreachable!("a trained position embedding stands beside a trained table"),
        })
    }

    /// The gradient of the output head; the product is made as it says.
    pub(super) fn head(&mut self) -> Option<OfWeight<'_>> {
        let head = self.head?;
        let all = self.tensors[head].shape().elements();
        let accumulate = self.replace(head, 0..all);
        Some((&mut self.tensors[head], accumulate))
    }

    /// How a product comes to the window of a weight's gradient.
    fn visit(&mut self, weight: usize, projection: &Projection) -> Accumulate {
        let Range { start, end } = projection.outputs;
        self.replace(weight, start * projection.inputs..end * projection.inputs)
    }

    /// Assign if these elements were not written since they count as zero: they are written now.
    fn replace(&mut self, at: usize, elements: Range<usize>) -> Accumulate {
        let stale = &mut self.stale[at];
        if elements.end <= stale.start || Range::is_empty(stale) {
            return Accumulate::Add;
        }
        assert!(elements.start == stale.start, "windows of a weight are differentiated in rising order");
        stale.start = elements.end;
        Accumulate::Assign
    }

    /// Writes the zeros that a tensor counts as.
    fn settle(&mut self, at: usize) -> Result<()> {
        let (stale, tensor) = (&mut self.stale[at], &mut self.tensors[at]);
        if Range::is_empty(stale) {
            return Ok(());
        }
        if stale.start > 0 {
            return Err(Error::input(
                "gradients",
                format!("tensor {at} of {} was written up to element {} only", tensor.shape(), stale.start),
                "the backward pass before this failed: clear the gradients and run it again",
            ));
        }
        tensor.clear()?;
        *stale = 0..0;
        Ok(())
    }

    fn two(&mut self, a: usize, b: usize) -> [&mut Tensor; 2] {
        match self.tensors.get_disjoint_mut([a, b]) {
            Ok(pair) => pair,
            Err(_) => unreachable!("two different tensors among those that are trained"),
        }
    }
}
