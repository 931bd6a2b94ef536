//! Fused linear + log-softmax: log-probabilities of given tokens, entropies, cross-entropy.
//! Kernels: cuda/log_probability.cu, launched by log_probability/panels.rs. CPU: cpu/log_probability.rs. Parity: tests/parity/log_probability.rs. Bench: benches/ops/log_probability.rs.
//!
//! The logits of many rows are never held together: a CPU keeps some for backward ([`Saved`]), within a bound. Cross-entropy is a coefficient: the mean over n labelled rows
//! has `d_log_probability = -1/n`. A row's log-probability has the bits that the sampler reports for the same
//! logits (ops/sampler.rs), because both use the same row arithmetic, on each device its own.
//!
//! A target outside the vocabulary is an error on the CPU. A GPU would have to wait to see it: there the row's
//! log-probability is NaN.

mod panels;

use super::{Tensor, View, ViewMut};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::cpu::gemm::Accumulate;
use crate::device::Device;
use std::ops::Range;

/// Runs `$body` with `$t` the type of `h` and `$w` that of the head; [`check`] has admitted these pairs alone.
macro_rules! dispatch {
    ($inputs:expr, |$t:ident, $w:ident| $body:expr) => {
        match ($inputs.h.dtype(), $inputs.w.dtype()) {
            (Dtype::F64, _) => {
                type $t = f64;
                type $w = f64;
                $body
            }
            (_, Dtype::Bf16) => {
                type $t = f32;
                type $w = half::bf16;
                $body
            }
            _ => {
                type $t = f32;
                type $w = f32;
                $body
            }
        }
    };
}
/// What is scored.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Final hidden states `[rows, width]`, f32 or f64; on a GPU f32 or bf16.
    pub h: View<'a>,
    /// The output head `[vocabulary, width]` as Hugging Face stores it; the dtype of `h`, or bf16 with f32 `h`.
    pub w: &'a Tensor,
    /// Token scored in each row, u32 `[rows, 1]`.
    pub targets: View<'a>,
    /// 1 / T; the logits are multiplied by it. See [`super::sampler::Law::inverse_temperature`].
    pub inverse_temperature: f64,
}

/// Where [`forward`] writes. Like all numbers of this operation except `h` and its gradient: f32 beside bf16 `h`
/// ([`Dtype::accumulation`]).
#[derive(Debug)]
pub struct Outputs<'a> {
    /// ln p(target), `[rows, 1]`.
    pub log_probability: ViewMut<'a>,
    /// Entropy of each row's softmax in nats, `[rows, 1]`.
    pub entropy: Option<ViewMut<'a>>,
}

/// What flows back.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// Gradient of the log-probabilities, `[rows, 1]`.
    pub d_log_probability: View<'a>,
    /// Gradient of the entropies, `[rows, 1]`.
    pub d_entropy: Option<View<'a>>,
}

/// What the backward pass needs of the forward pass: each row's log-sum-exp (as maximum and remainder, which
/// loses less) and entropy; on a CPU some of the logits; and on a GPU the memory that both work in. Reserved once for a tape
/// of rows; only [`forward`] fills it.
#[derive(Debug)]
pub struct Saved {
    maximum: Tensor,
    log_sum: Tensor,
    entropy: Tensor,
    kept: Option<Kept>,
    workspace: Option<panels::Workspace>,
}

/// Logits that [`forward`] leaves for [`backward`], and of which of the rows.
#[derive(Debug)]
struct Kept {
    logits: Tensor,
    of: Range<usize>,
}

/// Most logits that are kept, as a part of the head's own elements, and what is no matter of concern beside any head. Logits
/// are one of the four products of the head with its gradients: a tenth of a training step of GPT-2.
const KEPT_PART: usize = 4;
const KEPT_LEAST: usize = 1 << 20;

impl Saved {
    /// Room for `rows` rows scored with a head `[vocabulary, width]`; `dtype` is that of `h`.
    pub fn reserve(device: &Device, rows: usize, head: [usize; 2], dtype: Dtype) -> Result<Saved> {
        let zeros = || Tensor::zeros(device, [rows, 1], dtype.accumulation());
        let workspace = match device {
            Device::Cpu(_) => None,
            Device::Gpu(_) => Some(panels::Workspace::reserve(device, rows, head, dtype)?),
        };
        Ok(Saved { maximum: zeros()?, log_sum: zeros()?, entropy: zeros()?, kept: None, workspace })
    }

    /// The same with room for logits on a CPU, so that [`backward`] need not make all of them again: at most a quarter of
    /// the head's elements or a million, whichever is more. The bits are the same.
    ///
    /// # Errors
    /// As [`Saved::reserve`].
    pub fn reserve_to_differentiate(
        device: &Device,
        rows: usize,
        head: [usize; 2],
        dtype: Dtype,
    ) -> Result<Saved> {
        let [vocabulary, width] = head;
        let elements = (vocabulary * width / KEPT_PART).max(KEPT_LEAST).min(rows * vocabulary);
        let kept = match device {
            Device::Cpu(_) => {
                let logits = Tensor::zeros(device, [1, elements], dtype.accumulation())?;
                Some(Kept { logits, of: 0..0 })
            }
            Device::Gpu(_) => None,
        };
        Ok(Saved { kept, ..Saved::reserve(device, rows, head, dtype)? })
    }
}

/// Log-probability of each row's target under softmax(h w^T / T), and its entropy.
///
/// `at` is where in `saved` these rows are kept; its length must be the number of rows.
///
/// # Errors
/// Shapes or dtypes that do not fit; a target outside the vocabulary; a temperature that is no positive number.
pub fn forward(inputs: &Inputs, mut out: Outputs, saved: &mut Saved, at: Range<usize>) -> Result<()> {
    let (rows, dtype) = check(inputs)?;
    let dtype = dtype.accumulation();
    out.log_probability.expect("log_probability output", rows, 1, dtype)?;
    if let Some(entropy) = &out.entropy {
        entropy.expect("log_probability entropy", rows, 1, dtype)?;
    }
    let mut maximum = saved.maximum.rows_mut(at.clone())?;
    maximum.expect("log_probability saved", rows, 1, dtype)?;
    let (mut log_sum, mut entropy) =
        (saved.log_sum.rows_mut(at.clone())?, saved.entropy.rows_mut(at.clone())?);
    let (workspace, kept) = (&mut saved.workspace, &mut saved.kept);
    match inputs.h.device() {
        Device::Cpu(_) => dispatch!(inputs, |T, W| {
            let operands = operands::<T, W>(inputs)?;
            let results = cpu::log_probability::Results {
                log_probability: out.log_probability.slice()?,
                maximum: maximum.slice()?,
                log_sum: log_sum.slice()?,
                entropy: entropy.slice()?,
            };
            let mut logits = kept.as_mut().map(|kept| {
                kept.of = at;
                kept.logits.view_mut()
            });
            let kept = match &mut logits {
                Some(logits) => cpu::log_probability::Kept { logits: logits.slice()? },
                None => cpu::log_probability::Kept::none(),
            };
            cpu::log_probability::forward::<T, W>(operands, results, kept);
            if let Some(out) = &mut out.entropy {
                out.slice::<T>()?.copy_from_slice(entropy.slice()?);
            }
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let Outputs { log_probability, entropy: entropy_out } = out;
            let results = panels::Results { log_probability, maximum, log_sum, entropy, entropy_out };
            expect_workspace(workspace)?.forward(&**gpu, inputs, results)?;
        }
    }
    Ok(())
}

/// Gradients of [`forward`]: assigns `dh[rows, width]`, of the dtype of `h`; assigns or adds to `dw[vocabulary, width]`, as
/// said, which a frozen head has not. `inputs` and `at` are those of the forward call.
///
/// # Errors
/// Shapes or dtypes that do not fit; a target outside the vocabulary.
pub fn backward(
    upstream: &Upstream,
    inputs: &Inputs,
    saved: &mut Saved,
    at: Range<usize>,
    mut dh: ViewMut,
    mut dw: Option<(&mut Tensor, Accumulate)>,
) -> Result<()> {
    let (rows, dtype) = check(inputs)?;
    if at.len() != rows {
        return Err(Error::shape("log_probability saved", format!("{at:?}"), format!("{rows} rows")));
    }
    dh.expect("log_probability dh", rows, inputs.h.cols(), dtype)?;
    let dtype = dtype.accumulation();
    upstream.d_log_probability.expect("log_probability d_log_probability", rows, 1, dtype)?;
    if let Some(d_entropy) = upstream.d_entropy {
        d_entropy.expect("log_probability d_entropy", rows, 1, dtype)?;
    }
    if let Some((dw, _)) = &dw {
        dw.expect_shape("log_probability dw", inputs.w.shape())?;
        dw.expect_dtype("log_probability dw", dtype)?;
    }
    let maximum = saved.maximum.rows(at.clone())?;
    maximum.expect("log_probability saved", rows, 1, dtype)?;
    let (log_sum, entropy) = (saved.log_sum.rows(at.clone())?, saved.entropy.rows(at.clone())?);
    let kept = saved.kept.as_mut().filter(|kept| kept.of == at);
    if let (0, Some((dw, Accumulate::Assign))) = (rows, &mut dw) {
        dw.clear()?;
    }
    match inputs.h.device() {
        Device::Cpu(_) => dispatch!(inputs, |T, W| {
            let upstream = cpu::log_probability::Upstream {
                d_log_probability: upstream.d_log_probability.slice::<T>()?,
                d_entropy: upstream.d_entropy.map(|d| d.slice()).transpose()?,
                maximum: maximum.slice()?,
                log_sum: log_sum.slice()?,
                entropy: entropy.slice()?,
            };
            let operands = operands::<T, W>(inputs)?;
            let mut dw = dw.as_mut().map(|(dw, accumulate)| (dw.view_mut(), *accumulate));
            let dw = match &mut dw {
                Some((dw, accumulate)) => Some((dw.slice()?, *accumulate)),
                None => None,
            };
            let mut logits = kept.map(|kept| kept.logits.view_mut());
            let kept = match &mut logits {
                Some(logits) => cpu::log_probability::Kept { logits: logits.slice()? },
                None => cpu::log_probability::Kept::none(),
            };
            cpu::log_probability::backward(operands, upstream, dh.slice()?, dw, kept);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let statistics = panels::Statistics { maximum, log_sum, entropy };
            let workspace = expect_workspace(&mut saved.workspace)?;
            workspace.backward(&**gpu, inputs, upstream, &statistics, dh, dw)?;
        }
    }
    Ok(())
}

fn expect_workspace(workspace: &mut Option<panels::Workspace>) -> Result<&mut panels::Workspace> {
    workspace.as_mut().ok_or_else(|| {
        Error::device(
            "the memory of log_probability lies on the host, its operands on a GPU",
            "reserve Saved on the device of the operands",
        )
    })
}

/// Rows of the work, and the dtype of `h`.
fn check(inputs: &Inputs) -> Result<(usize, Dtype)> {
    let (rows, width, dtype) = (inputs.h.count(), inputs.h.cols(), inputs.h.dtype());
    let expected = match inputs.h.device() {
        Device::Cpu(_) => ([Dtype::F32, Dtype::F64], "f32 or f64"),
        Device::Gpu(_) => ([Dtype::F32, Dtype::Bf16], "f32 or bf16 on a GPU"),
    };
    if !expected.0.contains(&dtype) {
        return Err(Error::dtype("log_probability h", dtype, expected.1));
    }
    let w = inputs.w;
    let (vocabulary, w_width) = w.shape().as_matrix();
    if w.shape().dims().len() != 2 || w_width != width || vocabulary == 0 || width == 0 {
        return Err(Error::shape(
            "log_probability w",
            w.shape(),
            format!("[vocabulary, {width}], neither 0"),
        ));
    }
    match (dtype, w.dtype()) {
        (Dtype::F32, Dtype::F32 | Dtype::Bf16) | (Dtype::F64, Dtype::F64) | (Dtype::Bf16, Dtype::Bf16) => {}
        (Dtype::F32, found) => return Err(Error::dtype("log_probability w", found, "f32 or bf16")),
        (_, found) => return Err(Error::dtype("log_probability w", found, dtype)),
    }
    inputs.targets.expect("log_probability targets", rows, 1, Dtype::U32)?;
    if !(inputs.inverse_temperature.is_finite() && inputs.inverse_temperature > 0.0) {
        return Err(Error::input(
            "log_probability inverse_temperature",
            format!("found {}, expected a positive number", inputs.inverse_temperature),
            "give 1 / temperature, and 1 for the plain softmax",
        ));
    }
    if let Device::Cpu(_) = inputs.h.device() {
        let targets = inputs.targets.slice::<u32>()?.iter();
        if let Some((row, &target)) = targets.enumerate().find(|&(_, &target)| target as usize >= vocabulary)
        {
            return Err(Error::input(
                "log_probability targets",
                format!("row {row} has token {target}, the vocabulary has {vocabulary}"),
                "leave unlabelled rows out instead of marking them",
            ));
        }
    }
    Ok((rows, dtype))
}

fn operands<'a, T, W>(inputs: &Inputs<'a>) -> Result<cpu::log_probability::Operands<'a, T, W>>
where
    T: cpu::Float + crate::device::Element,
    W: crate::device::Element,
{
    Ok(cpu::log_probability::Operands {
        h: inputs.h.slice()?,
        w: inputs.w.view().slice()?,
        width: inputs.h.cols(),
        targets: inputs.targets.slice()?,
        inverse_temperature: T::from_f64(inputs.inverse_temperature),
    })
}
