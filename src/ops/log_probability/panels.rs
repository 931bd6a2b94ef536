//! The GPU's arm: logits in panels of some thousand ids, made by a matrix product and used up by the kernels of
//! cuda/log_probability.cu while they are in the L2 cache.
//!
//! Rows of a panel stand at multiples of 128 bytes, whatever the vocabulary: products copy them in pieces of 16 bytes.

use super::{Inputs, Upstream};
use crate::base::{Dtype, Result};
use crate::cpu::gemm::Accumulate;
use crate::device::{Device, Grid, Launcher};
use crate::ops::cast::cast;
use crate::ops::launch::{ABSENT, arguments, kernels, size};
use crate::ops::linear::{operands, rows_of};
use crate::ops::product::{Form, Operands, Product, Strided};
use crate::ops::{Tensor, View, ViewMut};
use std::ops::Range;

kernels!("log_probability":
    CHUNKS = "log_probability_fwd_chunks_f32",
    FINISH = "log_probability_fwd_finish_f32",
    LOGITS_F32 = "log_probability_bwd_logits_f32",
    LOGITS_BF16 = "log_probability_bwd_logits_bf16",
);

/// Threads of a block of the forward kernels; `__launch_bounds__`. Each warp takes a chunk, or a row.
const CHUNK_BLOCK: u32 = 128;
const WARPS: usize = CHUNK_BLOCK as usize / 32;
/// Threads of a block of the backward kernels; `__launch_bounds__`.
const BLOCK: u32 = 256;
/// Columns of a backward block.
const SPAN: usize = 4096;
/// Ids whose statistics are taken together (cuda/softmax.cuh), and numbers kept of them.
const CHUNK: usize = 1024;
const PART: usize = 3;
/// Chunks whose parts fill whole sectors of 32 bytes.
const SECTOR_PARTS: usize = 8;
/// Rows of panels begin at multiples of so many numbers: 128 bytes of bf16.
const ALIGNMENT: usize = 64;

/// Rows whose logits are held at once.
const ROWS: usize = 1024;
/// Ids whose logits are held at once in backward, whatever the number of rows: a row's gradient is a sum over panels,
/// whose bits must not depend on the batch. 1024 rows of them take 16 MB.
const PANEL: usize = 4 * CHUNK;
/// Least elements of the workspace: few rows go forward in wider panels.
const ROOM: usize = 1 << 20;

/// Memory that forward and backward work in; reserved once.
#[derive(Debug)]
pub(super) struct Workspace {
    rows: usize,
    head: [usize; 2],
    /// Logits, and for f32 their gradient.
    panel: Tensor,
    /// Gradient of bf16 logits.
    d_logits: Option<Tensor>,
    /// dh, summed over panels before it is rounded to bf16.
    d_states: Option<Tensor>,
    /// Maximum, sum and weighted sum of each chunk of each row.
    parts: Tensor,
    /// Scaled logit of each row's target.
    target_logit: Tensor,
}

/// Where forward writes; one number a row each.
pub(super) struct Results<'a> {
    pub log_probability: ViewMut<'a>,
    pub maximum: ViewMut<'a>,
    pub log_sum: ViewMut<'a>,
    pub entropy: ViewMut<'a>,
    pub entropy_out: Option<ViewMut<'a>>,
}

/// What forward left; one number a row each.
pub(super) struct Statistics<'a> {
    pub maximum: View<'a>,
    pub log_sum: View<'a>,
    pub entropy: View<'a>,
}

impl Workspace {
    /// For up to `rows` rows at once and a head `[vocabulary, width]`; `dtype` is that of `h`.
    pub fn reserve(
        device: &Device,
        rows: usize,
        [vocabulary, width]: [usize; 2],
        dtype: Dtype,
    ) -> Result<Workspace> {
        let rows = rows.clamp(1, ROWS);
        let panel = (rows * PANEL).max(ROOM).min(rows * stride(vocabulary));
        let backward = rows * PANEL.min(stride(vocabulary));
        let half = dtype == Dtype::Bf16;
        let zeros = |elements, dtype| Tensor::zeros(device, [1, elements], dtype);
        Ok(Workspace {
            rows,
            head: [vocabulary, width],
            panel: zeros(panel, Dtype::F32)?,
            d_logits: half.then(|| zeros(backward, Dtype::Bf16)).transpose()?,
            d_states: half.then(|| zeros(rows * width, Dtype::F32)).transpose()?,
            parts: zeros(rows * room_of_parts(vocabulary) * PART, Dtype::F32)?,
            target_logit: Tensor::zeros(device, [rows, 1], Dtype::F32)?,
        })
    }

    /// The vocabulary, if the head is the one that memory was reserved for.
    fn vocabulary(&self, inputs: &Inputs) -> Result<usize> {
        inputs.w.expect_shape("log_probability w", self.head).map(|()| self.head[0])
    }

    /// Logits of `rows` and of the ids `ids`, before the temperature: in rows that are [`stride`] numbers apart.
    fn logits(
        &self,
        gpu: &dyn Launcher,
        inputs: &Inputs,
        rows: &Range<usize>,
        ids: &Range<usize>,
    ) -> Result<()> {
        let (h, w) = (rows_of(inputs.h.rows(rows.clone())?)?, rows_of(inputs.w.rows(ids.clone())?)?);
        let panel = panel(&self.panel, rows.len(), ids.len())?;
        inputs.h.device().traffic().multiply(1);
        let sizes = [rows.len(), ids.len(), self.head[1]];
        Product::new(Form::Nt, operands_of(inputs), [h, w, panel], sizes).launch(gpu)
    }

    /// Log-probabilities, and what backward needs.
    pub fn forward(&mut self, gpu: &dyn Launcher, inputs: &Inputs, mut out: Results) -> Result<()> {
        let vocabulary = self.vocabulary(inputs)?;
        let chunks = size("log_probability chunks", vocabulary.div_ceil(CHUNK))?;
        let room = size("log_probability parts", room_of_parts(vocabulary))?;
        for rows in blocks(inputs.h.count(), self.rows) {
            let count = size("log_probability rows", rows.len())?;
            let targets = inputs.targets.rows(rows.clone())?.address()?;
            let parts = self.parts.view().address()?;
            let target_logit = self.target_logit.view().address()?;
            // The whole vocabulary, or whole chunks of it.
            let fitting = match self.panel.shape().elements() / rows.len() {
                room if room >= stride(vocabulary) => vocabulary,
                room => room / CHUNK * CHUNK,
            };
            for ids in blocks(vocabulary, fitting) {
                self.logits(gpu, inputs, &rows, &ids)?;
                let grid = grid(ids.len().div_ceil(WARPS * CHUNK), rows.len(), CHUNK_BLOCK)?;
                let arguments = arguments![
                    self.panel.view().address()?,
                    size("log_probability panel", ids.len())?,
                    size("log_probability panel", stride(ids.len()))?,
                    size("log_probability vocabulary", ids.start)?,
                    inputs.inverse_temperature as f32,
                    targets,
                    room,
                    parts,
                    target_logit,
                ];
                gpu.launch(&CHUNKS, grid, &arguments)?;
            }
            let entropy_out = match &mut out.entropy_out {
                Some(entropy) => entropy.reborrow().rows(rows.clone())?.address()?,
                None => ABSENT,
            };
            let arguments = arguments![
                parts,
                count,
                chunks,
                room,
                size("log_probability vocabulary", vocabulary)?,
                targets,
                target_logit,
                out.log_probability.reborrow().rows(rows.clone())?.address()?,
                out.maximum.reborrow().rows(rows.clone())?.address()?,
                out.log_sum.reborrow().rows(rows.clone())?.address()?,
                out.entropy.reborrow().rows(rows.clone())?.address()?,
                entropy_out,
            ];
            let grid = grid(rows.len().div_ceil(WARPS), 1, CHUNK_BLOCK)?;
            gpu.launch(&FINISH, grid, &arguments)?;
        }
        Ok(())
    }

    /// Gradients: assigns `dh`; `dw` as said, if it is wanted.
    pub fn backward(
        &mut self,
        gpu: &dyn Launcher,
        inputs: &Inputs,
        upstream: &Upstream,
        statistics: &Statistics,
        mut dh: ViewMut,
        dw: Option<(&mut Tensor, Accumulate)>,
    ) -> Result<()> {
        let vocabulary = self.vocabulary(inputs)?;
        for rows in blocks(inputs.h.count(), self.rows) {
            let column = |view: View| view.rows(rows.clone())?.address();
            for ids in blocks(vocabulary, PANEL.min(vocabulary)) {
                self.logits(gpu, inputs, &rows, &ids)?;
                let grid = grid(ids.len().div_ceil(SPAN), rows.len(), BLOCK)?;
                let arguments = arguments![
                    self.panel.view().address()?,
                    size("log_probability panel", ids.len())?,
                    size("log_probability panel", stride(ids.len()))?,
                    size("log_probability vocabulary", ids.start)?,
                    inputs.inverse_temperature as f32,
                    column(inputs.targets)?,
                    column(upstream.d_log_probability)?,
                    upstream.d_entropy.map_or(Ok(ABSENT), column)?,
                    column(statistics.maximum)?,
                    column(statistics.log_sum)?,
                    column(statistics.entropy)?,
                ];
                let d_logits = match &self.d_logits {
                    None => {
                        gpu.launch(&LOGITS_F32, grid, &arguments)?;
                        &self.panel
                    }
                    Some(d_logits) => {
                        let out = d_logits.view().address()?;
                        gpu.launch(&LOGITS_BF16, grid, &[&arguments[..], &[out]].concat())?;
                        d_logits
                    }
                };
                let dx = match &mut self.d_states {
                    None => dh.reborrow().rows(rows.clone())?,
                    Some(sum) => sum.matrix_mut(rows.len(), self.head[1])?,
                };
                let (dy, h) = (panel(d_logits, rows.len(), ids.len())?, inputs.h.rows(rows.clone())?);
                let product = |form, matrices, sizes, add| {
                    inputs.h.device().traffic().multiply(1);
                    let product = Product::new(form, operands_of(inputs), matrices, sizes);
                    Product { add, gradient: true, ..product }.launch(gpu)
                };
                let [width, count] = [self.head[1], ids.len()];
                let to_states = [dy, rows_of(inputs.w.rows(ids.clone())?)?, rows_of(dx.as_view())?];
                product(Form::Nn, to_states, [rows.len(), width, count], ids.start > 0)?;
                if let Some((dw, accumulate)) = &dw {
                    let add = *accumulate == Accumulate::Add || rows.start > 0;
                    let to_head = [dy, rows_of(h)?, rows_of(dw.rows(ids)?)?];
                    product(Form::Tn, to_head, [count, width, rows.len()], add)?;
                }
            }
            if let Some(sum) = &self.d_states {
                cast(sum.matrix(rows.len(), self.head[1])?, dh.reborrow().rows(rows)?)?;
            }
        }
        Ok(())
    }
}

/// How far apart the rows of a panel of `cols` columns begin.
fn stride(cols: usize) -> usize {
    cols.next_multiple_of(ALIGNMENT)
}

/// How many parts a row has room for.
fn room_of_parts(vocabulary: usize) -> usize {
    vocabulary.div_ceil(CHUNK).next_multiple_of(SECTOR_PARTS)
}

/// A workspace as a panel of `rows` rows with `cols` columns.
fn panel(workspace: &Tensor, rows: usize, cols: usize) -> Result<Strided> {
    rows_of(workspace.matrix(rows, stride(cols))?)
}

/// How the head's products multiply.
fn operands_of(inputs: &Inputs) -> Operands {
    operands(inputs.h.dtype(), inputs.h.dtype() != inputs.w.dtype())
}

/// Runs of `each` from 0 to `count`.
fn blocks(count: usize, each: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(each).map(move |first| first..count.min(first + each))
}

fn grid(x: usize, y: usize, threads: u32) -> Result<Grid> {
    let blocks = [size("log_probability grid", x)?, size("log_probability grid", y)?, 1];
    Ok(Grid { blocks, threads: [threads, 1, 1], shared_bytes: 0 })
}
