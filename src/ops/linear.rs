//! Linear maps, whole or a window of a fused weight. Kernels: cuda/linear.cu, launched by ops/product.rs. CPU:
//! cpu/gemm. Parity: tests/parity/linear.rs. Bench: benches/ops/gemm.rs.
//!
//! ```text
//! forward   y[n,o]  = sum_i x[n,i] w[o,i] + bias[o]          (w stored [out, in] or [in, out])
//! backward  dx[n,i] = sum_o dy[n,o] w[o,i]
//!           dw[o,i] (+)= sum_n dy[n,o] x[n,i]                dbias[o] += sum_n dy[n,o]
//! ```
//! Every sum has one order that its length alone decides: on a CPU one chain of fused multiply-adds in rising order
//! (cpu/gemm states the contract), on a GPU rising chunks of 128 terms (cuda/gemm.cuh). So a row's output depends on
//! that row alone, and a window of outputs has the bits of the whole, on each device.
//!
//! With a bf16 weight and f32 activations, the operands of all three products are bf16 numbers (activations and
//! their gradients are rounded to the nearest, ties to even, as they are read), and products accumulate in f32.
//! The same rule holds for every number of rows. The bias and its gradient stay f32.
//!
//! Gradients on a GPU are computed by the vendor's library where one is installed, forward products where it was chosen
//! ([`crate::device::Matmul`]); none of the above is promised of its bits.
//!
//! On a GPU activations may be bf16, beside bf16 weights: products accumulate in f32 and are rounded once, when they
//! are stored. There the output of forward, and dx, may be f32 instead: logits, or a gradient that is summed up.

use super::launch::{arguments, by_dtype, kernels, size};
use super::product::{Form, Operands, Product, Strided};
use super::{Tensor, View, ViewMut, float_dispatch, gelu};
use crate::base::{Dtype, Error, Result};
use crate::cpu::gemm::{self, Bf16Operand, Matrix, MatrixMut, Part, gemm, gemm_bf16, gemm_prepacked};
use crate::device::{Device, Element, Grid, Launcher};
use half::bf16;
use std::ops::Range;

mod each;

pub use crate::cpu::gemm::Accumulate;
pub use each::{Map, forward_each};

kernels!("bias": BACKWARD_BIAS_F32 = "bias_bwd_f32", BACKWARD_BIAS_BF16 = "bias_bwd_bf16");

/// Threads of a block of the bias kernels (`__launch_bounds__`), and the columns that it sums.
const BLOCK: u32 = 512;
const COLUMNS: usize = 16;

/// How a weight lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]`, as Hugging Face's `Linear` stores it.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D` stores it.
    InOut,
}

/// Which part of a weight a linear map uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// How the weight lies in memory.
    pub layout: Layout,
    /// Width of the input.
    pub inputs: usize,
    /// The window of the weight's outputs, e.g. q, k or v of GPT-2's fused `c_attn`.
    pub outputs: Range<usize>,
}

impl Projection {
    /// All outputs of a weight.
    pub fn whole(layout: Layout, inputs: usize, outputs: usize) -> Projection {
        Projection { layout, inputs, outputs: 0..outputs }
    }

    /// The weight's total number of outputs, if its shape and the window fit.
    fn total(&self, what: &str, w: &Tensor) -> Result<usize> {
        let shape = w.shape();
        let (total, inputs) = match (shape.dims(), self.layout) {
            (&[out, inputs], Layout::OutIn) | (&[inputs, out], Layout::InOut) => (out, inputs),
            _ => return Err(Error::shape(what, shape, "a matrix")),
        };
        if inputs != self.inputs {
            let expected = match self.layout {
                Layout::OutIn => format!("[out, {}]", self.inputs),
                Layout::InOut => format!("[{}, out]", self.inputs),
            };
            return Err(Error::shape(what, shape, expected));
        }
        if self.outputs.start > self.outputs.end || self.outputs.end > total {
            return Err(Error::shape(
                format!("{what} window"),
                format!("{:?}", self.outputs),
                format!("inside 0..{total} outputs of {shape}"),
            ));
        }
        Ok(total)
    }

    /// The two factors of the weight's gradient, and its window.
    fn weight_gradient<'a, 'b, T>(
        &self,
        dy: &'a [T],
        x: &'a [T],
        rows: usize,
        dw: &'b mut [T],
        total: usize,
    ) -> (Matrix<'a, T>, Matrix<'a, T>, MatrixMut<'b, T>) {
        let (inputs, outputs, start) = (self.inputs, self.outputs.len(), self.outputs.start);
        let (dy, x) = (Matrix::row_major(dy, rows, outputs), Matrix::row_major(x, rows, inputs));
        match self.layout {
            Layout::OutIn => {
                let window = MatrixMut::row_major(&mut dw[start * inputs..], outputs, inputs);
                (dy.transposed(), x, window)
            }
            Layout::InOut => {
                let start = start.min(dw.len());
                (x.transposed(), dy, MatrixMut::new(&mut dw[start..], (inputs, outputs), total))
            }
        }
    }

    /// The window of a weight on a GPU, as it lies in memory: `[out, in]` or `[in, out]`.
    fn window(&self, w: View, total: usize) -> Result<Strided> {
        let start = self.outputs.start;
        let (stride, first) = match self.layout {
            Layout::OutIn => (self.inputs, start * self.inputs),
            Layout::InOut => (total, start),
        };
        Ok(Strided { address: w.address()?, stride }.offset(first, w.dtype()))
    }

    /// A whole weight as `[in, out]`.
    fn whole_matrix<'a, T>(&self, w: &'a [T], total: usize) -> Matrix<'a, T> {
        match self.layout {
            Layout::OutIn => Matrix::row_major(w, total, self.inputs).transposed(),
            Layout::InOut => Matrix::row_major(w, self.inputs, total),
        }
    }

    /// The window of a weight as `[in, out]`.
    fn matrix<'a, T>(&self, w: &'a [T], total: usize) -> Matrix<'a, T> {
        self.whole_matrix(w, total).window_cols(self.outputs.clone())
    }
}

/// What [`backward`] computes: each gradient that is wanted.
#[derive(Debug, Default)]
pub struct Gradients<'a, 'b> {
    /// `dx[rows, in]`, assigned or added as said.
    pub dx: Option<(ViewMut<'a>, Accumulate)>,
    /// `dw`, the shape of the weight; assigned or added to in the projection's window, as said. f32 when the weight is
    /// bf16.
    pub dw: Option<(&'b mut Tensor, Accumulate)>,
    /// `dbias`, one number for each output of the whole weight; added to in the projection's window.
    pub dbias: Option<&'b mut Tensor>,
}

/// y = x w + bias: `x[rows, in]`, `y[rows, out]` where `out` is the window's width; `w` and `bias` are whole.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn forward(x: View, p: &Projection, w: &Tensor, bias: Option<&Tensor>, y: ViewMut) -> Result<()> {
    run(x, p, w, bias, (y, Accumulate::Assign), None)
}

/// y += x w; on a CPU each output continues its chain of sums from what stands there, on a GPU the sum is added to it.
///
/// # Errors
/// As [`forward`].
pub fn forward_add(x: View, p: &Projection, w: &Tensor, y: ViewMut) -> Result<()> {
    run(x, p, w, None, (y, Accumulate::Add), None)
}

/// u = x w + bias, which backward needs, and y = gelu(u): the bits of [`forward`] followed by [`gelu::forward`],
/// without reading u again on a GPU.
///
/// # Errors
/// As [`forward`]; `y` must be like `u`.
pub fn forward_gelu(
    x: View,
    p: &Projection,
    w: &Tensor,
    bias: Option<&Tensor>,
    u: ViewMut,
    y: ViewMut,
) -> Result<()> {
    y.expect("linear gelu", u.count(), u.cols(), u.dtype())?;
    run(x, p, w, bias, (u, Accumulate::Assign), Some(y))
}

fn run(
    x: View,
    p: &Projection,
    w: &Tensor,
    bias: Option<&Tensor>,
    (y, accumulate): (ViewMut, Accumulate),
    activated: Option<ViewMut>,
) -> Result<()> {
    let map = Map { projection: p, weight: w, bias, output: y };
    let fits = check(x, &map)?;
    run_checked(x, map, fits, accumulate, activated)
}

/// [`run`] of a map that [`check`] found to fit, with what it found.
fn run_checked(
    x: View,
    map: Map,
    (total, mixed): (usize, bool),
    accumulate: Accumulate,
    activated: Option<ViewMut>,
) -> Result<()> {
    let Map { projection: p, weight: w, bias, output: mut y } = map;
    let (rows, dtype) = (x.count(), x.dtype());
    x.device().traffic().multiply(1);
    match x.device() {
        Device::Cpu(_) if mixed => {
            let a = Matrix::row_major(x.slice()?, rows, p.inputs);
            let b = p.whole_matrix(w.view().slice::<bf16>()?, total);
            let bias = window::<f32>(bias, &p.outputs)?;
            let c = MatrixMut::row_major(y.slice()?, rows, p.outputs.len());
            let outputs = p.outputs.clone();
            match w.reading_order().lend(b, p, rows) {
                Some(copy) => gemm_prepacked(a, [Part { b: copy.matrix(), outputs, c, accumulate, bias }]),
                None => gemm_bf16(a, Bf16Operand::Stored(b.window_cols(outputs)), c, accumulate, bias),
            }
        }
        Device::Cpu(_) => float_dispatch!("linear", dtype, T => {
            let a = Matrix::<T>::row_major(x.slice()?, rows, p.inputs);
            let b = p.whole_matrix(w.view().slice()?, total);
            let bias = window(bias, &p.outputs)?;
            let c = MatrixMut::row_major(y.slice()?, rows, p.outputs.len());
            let outputs = p.outputs.clone();
            match w.reading_order().lend(b, p, rows) {
                Some(copy) => gemm_prepacked(a, [Part { b: copy.matrix(), outputs, c, accumulate, bias }]),
                None => gemm(a, b.window_cols(outputs), c, accumulate, bias),
            }
        }),
        Device::Gpu(gpu) => {
            let form = if p.layout == Layout::OutIn { Form::Nt } else { Form::Nn };
            let (x, w) = (rows_of(x)?, p.window(w.view(), total)?);
            let mut product = Product::new(
                form,
                operands(dtype, mixed),
                [x, w, rows_of(y.as_view())?],
                [rows, p.outputs.len(), p.inputs],
            );
            product.c_dtype = y.dtype();
            product.add = accumulate == Accumulate::Add;
            if let Some(bias) = bias {
                let bias = Strided { address: bias.view().address()?, stride: 1 };
                product.bias = bias.offset(p.outputs.start, Dtype::F32).address;
            }
            match &activated {
                Some(activated) if !product.is_for_library(&**gpu)? => {
                    product.activated = activated.address()?;
                    return product.launch(&**gpu);
                }
                _ => product.launch(&**gpu)?,
            }
        }
    }
    match activated {
        Some(activated) => gelu::forward(y.as_view(), activated),
        None => Ok(()),
    }
}

/// All outputs of the map's weight, and whether it is bf16 beside f32 activations, if everything fits.
fn check(x: View, map: &Map) -> Result<(usize, bool)> {
    let (p, dtype) = (map.projection, x.dtype());
    let total = p.total("linear weight", map.weight)?;
    let mixed = expect_weight(x.device(), dtype, map.weight)?;
    x.expect("linear input", x.count(), p.inputs, dtype)?;
    let y = &map.output;
    y.expect("linear output", x.count(), p.outputs.len(), result_dtype(dtype, y.dtype()))?;
    if let Some(bias) = map.bias {
        bias.expect_shape("linear bias", [total])?;
        bias.expect_dtype("linear bias", dtype.accumulation())?;
    }
    Ok((total, mixed))
}

/// Gradients of [`forward`]; `x`, `p` and `w` are those of the forward call, `dy[rows, out]`.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn backward(dy: View, x: View, p: &Projection, w: &Tensor, gradients: Gradients) -> Result<()> {
    let (rows, dtype) = (x.count(), x.dtype());
    let total = p.total("linear weight", w)?;
    let mixed = expect_weight(x.device(), dtype, w)?;
    x.expect("linear input", rows, p.inputs, dtype)?;
    dy.expect("linear dy", rows, p.outputs.len(), dtype)?;
    let Gradients { mut dx, dw, dbias } = gradients;
    if let Some((dx, _)) = &dx {
        dx.expect("linear dx", rows, p.inputs, result_dtype(dtype, dx.dtype()))?;
    }
    if let Some((dw, _)) = &dw {
        dw.expect_shape("linear dw", w.shape())?;
        dw.expect_dtype("linear dw", dtype.accumulation())?;
    }
    if let Some(dbias) = &dbias {
        dbias.expect_shape("linear dbias", [total])?;
        dbias.expect_dtype("linear dbias", dtype.accumulation())?;
    }
    x.device().traffic().multiply(usize::from(dx.is_some()) + usize::from(dw.is_some()));
    match x.device() {
        Device::Cpu(_) if mixed => {
            let (dy, x) = (dy.slice::<f32>()?, x.slice::<f32>()?);
            if let Some((dx, accumulate)) = &mut dx {
                let w = p.matrix(w.view().slice::<bf16>()?, total).transposed();
                let dy = Matrix::row_major(dy, rows, p.outputs.len());
                let dx = MatrixMut::row_major(dx.slice()?, rows, p.inputs);
                gemm_bf16(dy, Bf16Operand::Stored(w), dx, *accumulate, None);
            }
            if let Some((dw, accumulate)) = dw {
                let mut dw = dw.view_mut();
                let (a, b, dw) = p.weight_gradient(dy, x, rows, dw.slice()?, total);
                gemm_bf16(a, Bf16Operand::Rounded(b), dw, accumulate, None);
            }
            if let Some(dbias) = dbias {
                gemm::add_column_sums(dy, &mut dbias.view_mut().slice()?[p.outputs.clone()]);
            }
        }
        Device::Cpu(_) => float_dispatch!("linear", dtype, T => {
            let (dy, x) = (dy.slice::<T>()?, x.slice::<T>()?);
            if let Some((dx, accumulate)) = &mut dx {
                let w = p.matrix(w.view().slice()?, total).transposed();
                let dy = Matrix::row_major(dy, rows, p.outputs.len());
                gemm(dy, w, MatrixMut::row_major(dx.slice()?, rows, p.inputs), *accumulate, None);
            }
            if let Some((dw, accumulate)) = dw {
                let mut dw = dw.view_mut();
                let (a, b, dw) = p.weight_gradient(dy, x, rows, dw.slice()?, total);
                gemm(a, b, dw, accumulate, None);
            }
            if let Some(dbias) = dbias {
                gemm::add_column_sums(dy, &mut dbias.view_mut().slice()?[p.outputs.clone()]);
            }
        }),
        Device::Gpu(gpu) => {
            let (gpu, outputs, operands) = (&**gpu, p.outputs.len(), operands(dtype, mixed));
            if let Some((dx, accumulate)) = dx {
                let form = if p.layout == Layout::OutIn { Form::Nn } else { Form::Nt };
                let matrices = [rows_of(dy)?, p.window(w.view(), total)?, rows_of(dx.as_view())?];
                let mut product = Product::new(form, operands, matrices, [rows, p.inputs, outputs]);
                product.c_dtype = dx.dtype();
                product.add = accumulate == Accumulate::Add;
                product.gradient = true;
                product.launch(gpu)?;
            }
            if let Some((dw, accumulate)) = dw {
                let (dy, x, dw) = (rows_of(dy)?, rows_of(x)?, p.window(dw.view(), total)?);
                let (matrices, sizes) = match p.layout {
                    Layout::OutIn => ([dy, x, dw], [outputs, p.inputs, rows]),
                    Layout::InOut => ([x, dy, dw], [p.inputs, outputs, rows]),
                };
                let product = Product::new(Form::Tn, operands, matrices, sizes);
                let add = accumulate == Accumulate::Add;
                Product { add, gradient: true, ..product }.launch(gpu)?;
            }
            if let Some(dbias) = dbias {
                backward_bias(gpu, dy, p, dbias)?;
            }
        }
    }
    Ok(())
}

/// dbias += column sums of `dy`, on a GPU.
fn backward_bias(gpu: &dyn Launcher, dy: View, p: &Projection, dbias: &Tensor) -> Result<()> {
    let (rows, outputs) = (dy.count(), p.outputs.len());
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let kernel = by_dtype("linear dy", dy.dtype(), &BACKWARD_BIAS_F32, &BACKWARD_BIAS_BF16)?;
    let grid = Grid::linear(size("linear outputs", outputs.div_ceil(COLUMNS))?, BLOCK);
    let dbias = Strided { address: dbias.view().address()?, stride: 1 }.offset(p.outputs.start, Dtype::F32);
    let (rows, outputs) = (size("linear rows", rows)?, size("linear outputs", outputs)?);
    gpu.launch(kernel, grid, &arguments![dy.address()?, rows, outputs, dbias.address])
}

/// Whether the weight is bf16 beside f32 activations; fails unless it is that or of the activations' own type.
fn expect_weight(device: &Device, activations: Dtype, w: &Tensor) -> Result<bool> {
    match (device, activations, w.dtype()) {
        (_, Dtype::F32, Dtype::Bf16) => Ok(true),
        (_, Dtype::F32, Dtype::F32) => Ok(false),
        (Device::Cpu(_), Dtype::F64, Dtype::F64) | (Device::Gpu(_), Dtype::Bf16, Dtype::Bf16) => Ok(false),
        (_, Dtype::F32, found) => Err(Error::dtype("linear weight", found, "f32 or bf16")),
        (Device::Cpu(_), Dtype::F64, found) => Err(Error::dtype("linear weight", found, "f64")),
        (Device::Cpu(_), found, _) => Err(Error::dtype("linear input", found, "f32 or f64")),
        (Device::Gpu(_), Dtype::Bf16, found) => Err(Error::dtype("linear weight", found, "bf16")),
        (Device::Gpu(_), found, _) => Err(Error::dtype("linear input", found, "f32 or bf16 on a GPU")),
    }
}

/// What a product of such activations may be stored as: `found`, if that is the dtype they are summed in.
fn result_dtype(activations: Dtype, found: Dtype) -> Dtype {
    if found == activations.accumulation() { found } else { activations }
}

/// How a GPU multiplies such activations; [`expect_weight`] has admitted them and said whether the weight is `mixed`.
pub(in crate::ops) fn operands(activations: Dtype, mixed: bool) -> Operands {
    match (activations, mixed) {
        (Dtype::Bf16, _) => Operands::Bf16,
        (_, true) => Operands::Rounded,
        (_, false) => Operands::F32,
    }
}

/// Rows on a GPU.
pub(in crate::ops) fn rows_of(view: View) -> Result<Strided> {
    Ok(Strided { address: view.address()?, stride: view.cols() })
}

/// The window of a bias.
fn window<'a, T: Element>(bias: Option<&'a Tensor>, outputs: &Range<usize>) -> Result<Option<&'a [T]>> {
    bias.map(|bias| Ok(&bias.view().slice()?[outputs.clone()])).transpose()
}
