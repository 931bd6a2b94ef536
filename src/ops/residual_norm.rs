//! The masked residual sum and the norm of its result in one pass over memory. Kernels: cuda/residual_norm.cu. CPU: the
//! kernels of cpu/masked_residual.rs and of the norm, one after the other. Parity: tests/parity/residual_norm.rs.
//!
//! ```text
//! forward   y = x + m * branch        normed = norm(y)
//! backward  dy += norm'(y) dnormed    dbranch = m * dy      the gradients of gain and bias are added
//! ```
//!
//! Forward has the bits of [`super::masked_residual`] followed by [`super::rmsnorm`] or [`super::layernorm`]; it keeps
//! in their `Saved` what they keep, so a tape may mix both ways.

use super::launch::{arguments, by_dtype, kernels, size};
use super::mask::{MaskAt, mask_arguments};
use super::row_blocks::{RowBlocks, address_of};
use super::{Tensor, View, ViewMut, float_dispatch, layernorm, rmsnorm};
use crate::base::{Dtype, Result};
use crate::cpu;
use crate::device::{Device, Launcher};
use std::ops::Range;

kernels!("residual_norm":
    FORWARD_RMS_F32 = "residual_norm_fwd_rms_f32",
    FORWARD_RMS_BF16 = "residual_norm_fwd_rms_bf16",
    FORWARD_LAYER_F32 = "residual_norm_fwd_layer_f32",
    FORWARD_LAYER_BF16 = "residual_norm_fwd_layer_bf16",
    BACKWARD_RMS_F32 = "residual_norm_bwd_rms_f32",
    BACKWARD_RMS_BF16 = "residual_norm_bwd_rms_bf16",
    BACKWARD_LAYER_F32 = "residual_norm_bwd_layer_f32",
    BACKWARD_LAYER_BF16 = "residual_norm_bwd_layer_bf16",
);

/// The norm that follows the sum, and where it keeps what its backward needs.
#[derive(Debug)]
pub enum Norm<'a> {
    /// RMS norm.
    Rms {
        /// Gain `[cols]`.
        w: &'a Tensor,
        /// Filled at the rows of the call.
        saved: &'a mut rmsnorm::Saved,
    },
    /// Layer norm.
    Layer {
        /// Gain `[cols]`.
        w: &'a Tensor,
        /// Bias `[cols]`.
        b: &'a Tensor,
        /// Filled at the rows of the call.
        saved: &'a mut layernorm::Saved,
    },
}

/// The norm of a forward call, and the gradients that its backward adds to.
#[derive(Debug)]
pub enum NormGradients<'a> {
    /// RMS norm.
    Rms {
        /// Gain `[cols]`.
        w: &'a Tensor,
        /// What forward kept.
        saved: &'a rmsnorm::Saved,
        /// Gradient of the gain; added to. None where it is frozen.
        dw: Option<&'a mut Tensor>,
    },
    /// Layer norm.
    Layer {
        /// Gain `[cols]`.
        w: &'a Tensor,
        /// What forward kept.
        saved: &'a layernorm::Saved,
        /// Gradients of gain and bias; added to. None where they are frozen.
        gradients: Option<layernorm::Gradients<'a>>,
    },
}

/// y = x + m * branch, normed = norm(y), over rows of `x[N, d]`; rows of instance -1 and calls without a mask add the
/// branch as it is. `at` is where in `saved` these rows are kept; its length must be the number of rows.
///
/// # Errors
/// Shapes or dtypes that do not fit; on the CPU an instance that does not exist.
pub fn forward(
    (x, branch): (View, View),
    mask: Option<MaskAt>,
    norm: Norm,
    eps: f64,
    (mut y, mut normed): (ViewMut, ViewMut),
    at: Range<usize>,
) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    let accumulation = dtype.accumulation();
    branch.expect("residual_norm branch", rows, cols, dtype)?;
    y.expect("residual_norm sum", rows, cols, dtype)?;
    normed.expect("residual_norm output", rows, cols, dtype)?;
    if let Some(mask) = &mask {
        mask.expect("residual_norm", rows, cols)?;
    }
    let (w, b, mut kept) = match norm {
        Norm::Rms { w, saved } => (w, None, saved.rstd.rows_mut(at)?),
        Norm::Layer { w, b, saved } => (w, Some(b), saved.statistics.rows_mut(at)?),
    };
    for (what, vector) in [("residual_norm weight", Some(w)), ("residual_norm bias", b)] {
        if let Some(vector) = vector {
            vector.expect_shape(what, [cols])?;
            vector.expect_dtype(what, accumulation)?;
        }
    }
    kept.expect("residual_norm saved", rows, if b.is_some() { 2 } else { 1 }, accumulation)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("residual_norm", dtype, T => {
            let mask = mask.map(|mask| mask.host()).transpose()?;
            cpu::masked_residual::forward::<T>(x.slice()?, branch.slice()?, mask, cols, y.slice()?);
            let (y, normed, kept) = (y.slice::<T>()?, normed.slice::<T>()?, kept.slice::<T>()?);
            match b {
                None => cpu::rmsnorm::forward(y, w.view().slice()?, eps, normed, kept),
                Some(b) => {
                    cpu::layernorm::forward(y, w.view().slice()?, b.view().slice()?, eps, normed, kept)
                }
            }
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let RowBlocks { grid, each } = RowBlocks::forward("residual_norm rows", rows, cols)?;
            let [bits, instance, instances, stride, offset, scale] = mask_arguments(&mask)?;
            let (x, branch, w, kept) =
                (x.address()?, branch.address()?, w.view().address()?, kept.address()?);
            let (y, normed, eps) = (y.address()?, normed.address()?, eps as f32);
            let (rows, cols) = (rows as u32, size("residual_norm columns", cols)?);
            match b {
                None => {
                    let kernel = by_dtype("residual_norm", dtype, &FORWARD_RMS_F32, &FORWARD_RMS_BF16)?;
                    let arguments = arguments![
                        x, branch, bits, instance, instances, stride, offset, scale, w, eps, rows, cols,
                        each, y, normed, kept
                    ];
                    gpu.launch(kernel, grid, &arguments)?;
                }
                Some(b) => {
                    let kernel = by_dtype("residual_norm", dtype, &FORWARD_LAYER_F32, &FORWARD_LAYER_BF16)?;
                    let b = b.view().address()?;
                    let arguments = arguments![
                        x, branch, bits, instance, instances, stride, offset, scale, w, b, eps, rows, cols,
                        each, y, normed, kept
                    ];
                    gpu.launch(kernel, grid, &arguments)?;
                }
            }
        }
    }
    Ok(())
}

/// Gradients of [`forward`]. `dy` holds the gradient that reaches `y` along the residual stream and becomes the whole
/// gradient of `y`, which is also that of `x`; `dbranch` is assigned; the norm's gradients are added to. `y`, the mask
/// and `at` are those of the forward call.
///
/// # Errors
/// Shapes or dtypes that do not fit; on the CPU an instance that does not exist.
pub fn backward(
    (dnormed, y): (View, View),
    mask: Option<MaskAt>,
    norm: NormGradients,
    (mut dy, mut dbranch): (ViewMut, ViewMut),
    at: Range<usize>,
) -> Result<()> {
    let (rows, cols, dtype) = (y.count(), y.cols(), y.dtype());
    let accumulation = dtype.accumulation();
    dnormed.expect("residual_norm dnormed", rows, cols, dtype)?;
    dy.expect("residual_norm dy", rows, cols, dtype)?;
    dbranch.expect("residual_norm dbranch", rows, cols, dtype)?;
    if let Some(mask) = &mask {
        mask.expect("residual_norm", rows, cols)?;
    }
    let (w, kept, dw, db) = match &norm {
        NormGradients::Rms { w, saved, dw } => (*w, saved.rstd.rows(at)?, dw.as_deref(), None),
        NormGradients::Layer { w, saved, gradients } => {
            let [dw, db] = gradients.as_ref().map_or([None; 2], |gradients| gradients.both().map(Some));
            (*w, saved.statistics.rows(at)?, dw, db)
        }
    };
    let statistics = if matches!(norm, NormGradients::Layer { .. }) { 2 } else { 1 };
    let vectors = [("residual_norm weight", Some(w)), ("residual_norm dw", dw), ("residual_norm db", db)];
    for (what, vector) in vectors {
        if let Some(vector) = vector {
            vector.expect_shape(what, [cols])?;
            vector.expect_dtype(what, accumulation)?;
        }
    }
    kept.expect("residual_norm saved", rows, statistics, accumulation)?;
    match y.device() {
        Device::Cpu(_) => float_dispatch!("residual_norm", dtype, T => {
            let (dnormed, y, kept) = (dnormed.slice::<T>()?, y.slice::<T>()?, kept.slice::<T>()?);
            // The norm's gradient waits in dbranch until it has joined the stream.
            let (stream, scratch) = (dy.slice::<T>()?, dbranch.slice::<T>()?);
            match norm {
                NormGradients::Rms { w, dw, .. } => {
                    cpu::rmsnorm::backward_dx(dnormed, y, w.view().slice()?, kept, scratch);
                    if let Some(dw) = dw {
                        cpu::rmsnorm::backward_dw(dnormed, y, kept, dw.view_mut().slice()?);
                    }
                }
                NormGradients::Layer { w, gradients, .. } => {
                    cpu::layernorm::backward_dx(dnormed, y, w.view().slice()?, kept, scratch);
                    if let Some(layernorm::Gradients { dw, db }) = gradients {
                        let (mut dw, mut db) = (dw.view_mut(), db.view_mut());
                        cpu::layernorm::backward_parameters(dnormed, y, kept, dw.slice()?, db.slice()?);
                    }
                }
            }
            cpu::elementwise::add(scratch, stream);
            let mask = mask.map(|mask| mask.host()).transpose()?;
            cpu::masked_residual::backward(stream, mask, cols, scratch);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let streams = [dnormed.address()?, y.address()?, dy.address()?, dbranch.address()?];
            let sizes = (rows, cols, dtype);
            launch_backward(&**gpu, streams, mask_arguments(&mask)?, norm, kept, sizes)?;
        }
    }
    Ok(())
}

fn launch_backward(
    gpu: &dyn Launcher,
    [dnormed, y, dy, dbranch]: [crate::device::Argument; 4],
    [bits, instance, instances, stride, offset, scale]: [crate::device::Argument; 6],
    norm: NormGradients,
    kept: View,
    (rows, cols, dtype): (usize, usize, Dtype),
) -> Result<()> {
    let RowBlocks { grid, each } = RowBlocks::backward("residual_norm rows", rows, cols)?;
    let (parts, rows32, cols32) = (grid.blocks[0], rows as u32, size("residual_norm columns", cols)?);
    let kept = kept.address()?;
    match norm {
        NormGradients::Rms { w, saved, dw } => {
            let kernel = by_dtype("residual_norm", dtype, &BACKWARD_RMS_F32, &BACKWARD_RMS_BF16)?;
            let partial = saved.partial(parts, cols)?;
            let (w, sums, total) =
                (w.view().address()?, partial.view().address()?, address_of(dw.as_deref())?);
            let arguments = arguments![
                dnormed, y, bits, instance, instances, stride, offset, scale, w, kept, rows32, cols32, each,
                dy, dbranch, sums, total
            ];
            gpu.launch(kernel, grid, &arguments)?;
            rmsnorm::add_partial(gpu, partial, parts, dw.as_deref())
        }
        NormGradients::Layer { w, saved, gradients } => {
            let kernel = by_dtype("residual_norm", dtype, &BACKWARD_LAYER_F32, &BACKWARD_LAYER_BF16)?;
            let partial = saved.partial(parts, cols)?;
            let (w, sums) = (w.view().address()?, partial.view().address()?);
            let both = gradients.as_ref().map(layernorm::Gradients::both);
            let [dw_at, db_at] = layernorm::addresses_of(both)?;
            let arguments = arguments![
                dnormed, y, bits, instance, instances, stride, offset, scale, w, kept, rows32, cols32, each,
                dy, dbranch, sums, dw_at, db_at
            ];
            gpu.launch(kernel, grid, &arguments)?;
            layernorm::add_partial(gpu, partial, parts, both)
        }
    }
}
