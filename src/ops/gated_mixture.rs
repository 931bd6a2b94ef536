//! The gates between a token's embedding and a mixture's (HRPO). Kernels: cuda/gated_mixture.cu. CPU:
//! cpu/gated_mixture.rs, which states the formulas. Parity: tests/parity/gated_mixture.rs. Backward reads the operands
//! again, so that nothing else is saved.

use super::launch::{arguments, by_dtype, kernels, pieces, size};
use super::{Tensor, View, ViewMut, float_dispatch};
use crate::base::{Dtype, Result};
use crate::cpu;
use crate::device::{Device, Element, Grid};
use cpu::Float;

kernels!("gated_mixture":
    FORWARD_F32 = "gated_mixture_fwd_f32",
    FORWARD_BF16 = "gated_mixture_fwd_bf16",
    BACKWARD_F32 = "gated_mixture_bwd_f32",
    BACKWARD_BF16 = "gated_mixture_bwd_bf16",
    BACKWARD_LAMBDA = "gated_mixture_bwd_lambda",
);

/// Threads of a block that adds rows, and its columns; `__launch_bounds__` of that kernel.
const FOLD: u32 = 1024;
const FOLD_COLS: usize = 32;

/// The operands.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[N, d]`: embeddings of tokens.
    pub token: View<'a>,
    /// `[N, d]`: embeddings of mixtures. Constants.
    pub soft: View<'a>,
    /// `[N, d]`: pre-activations of the gate r, which says how fast the token's share decays.
    pub reset: View<'a>,
    /// `[N, d]`: pre-activations of the gate i on the mixture.
    pub input: View<'a>,
    /// `[d]` in the accumulation dtype: a^(1/r) = exp(-8 softplus(-lambda)).
    pub lambda: &'a Tensor,
}

/// Where [`backward`] writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[N, d]`, assigned: what does not flow through the gates' products.
    pub dtoken: ViewMut<'a>,
    /// `[N, d]`, assigned.
    pub dreset: ViewMut<'a>,
    /// `[N, d]`, assigned.
    pub dinput: ViewMut<'a>,
    /// `[N, d]` in the accumulation dtype: each row's part of `dlambda`; of no use afterwards.
    pub terms: ViewMut<'a>,
    /// `[d]` in the accumulation dtype, added to.
    pub dlambda: &'a mut Tensor,
}

impl<'a> Inputs<'a> {
    fn expect(&self, rows: usize, cols: usize, dtype: Dtype) -> Result<()> {
        self.token.expect("gated_mixture token", rows, cols, dtype)?;
        self.soft.expect("gated_mixture soft", rows, cols, dtype)?;
        self.reset.expect("gated_mixture reset", rows, cols, dtype)?;
        self.input.expect("gated_mixture input", rows, cols, dtype)?;
        self.lambda.expect_shape("gated_mixture lambda", [cols])?;
        self.lambda.expect_dtype("gated_mixture lambda", dtype.accumulation())
    }

    fn host<T: Float + Element>(&self) -> Result<cpu::gated_mixture::Operands<'a, T>> {
        Ok(cpu::gated_mixture::Operands {
            token: self.token.slice()?,
            soft: self.soft.slice()?,
            reset: self.reset.slice()?,
            input: self.input.slice()?,
            lambda: self.lambda.view().slice()?,
        })
    }
}

/// x = a e + sqrt(1 - a^2) (i h), element by element.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn forward(inputs: &Inputs, mut x: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    inputs.expect(rows, cols, dtype)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("gated_mixture", dtype, T => {
            cpu::gated_mixture::forward::<T>(inputs.host()?, x.slice()?);
        }),
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("gated_mixture", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let (grid, count) = pieces("gated_mixture elements", rows * cols, Dtype::F32)?;
            let (e, h) = (inputs.token.address()?, inputs.soft.address()?);
            let (p, q) = (inputs.reset.address()?, inputs.input.address()?);
            let (lambda, cols) = (inputs.lambda.view().address()?, size("columns", cols)?);
            gpu.launch(kernel, grid, &arguments![e, h, p, q, lambda, count, cols, x.address()?])?;
        }
    }
    Ok(())
}

/// Gradients of [`forward`]; `inputs` are those of the forward call. Mixtures are constants and have none.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn backward(dx: View, inputs: &Inputs, out: Gradients) -> Result<()> {
    let (rows, cols, dtype) = (dx.count(), dx.cols(), dx.dtype());
    inputs.expect(rows, cols, dtype)?;
    let Gradients { mut dtoken, mut dreset, mut dinput, mut terms, dlambda } = out;
    dtoken.expect("gated_mixture dtoken", rows, cols, dtype)?;
    dreset.expect("gated_mixture dreset", rows, cols, dtype)?;
    dinput.expect("gated_mixture dinput", rows, cols, dtype)?;
    terms.expect("gated_mixture terms", rows, cols, dtype.accumulation())?;
    dlambda.expect_shape("gated_mixture dlambda", [cols])?;
    dlambda.expect_dtype("gated_mixture dlambda", dtype.accumulation())?;
    match dx.device() {
        Device::Cpu(_) => float_dispatch!("gated_mixture", dtype, T => {
            let (dx, operands) = (dx.slice::<T>()?, inputs.host::<T>()?);
            let gates = (dreset.slice()?, dinput.slice()?);
            cpu::gated_mixture::backward(dx, operands, dtoken.slice()?, gates);
            cpu::gated_mixture::backward_lambda(dx, operands, terms.slice()?, dlambda.view_mut().slice()?);
        }),
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("gated_mixture", dtype, &BACKWARD_F32, &BACKWARD_BF16)?;
            let (grid, count) = pieces("gated_mixture elements", rows * cols, Dtype::F32)?;
            let (dx, e, h) = (dx.address()?, inputs.token.address()?, inputs.soft.address()?);
            let (p, q) = (inputs.reset.address()?, inputs.input.address()?);
            let (lambda, width) = (inputs.lambda.view().address()?, size("columns", cols)?);
            let (de, dp, dq) = (dtoken.address()?, dreset.address()?, dinput.address()?);
            let terms = terms.address()?;
            let list = arguments![dx, e, h, p, q, lambda, count, width, de, dp, dq, terms];
            gpu.launch(kernel, grid, &list)?;
            let grid = Grid::linear(size("columns", cols.div_ceil(FOLD_COLS))?, FOLD);
            let rows = size("gated_mixture rows", rows)?;
            gpu.launch(&BACKWARD_LAMBDA, grid, &arguments![terms, rows, width, dlambda.view().address()?])?;
        }
    }
    Ok(())
}
