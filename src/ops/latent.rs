//! The feedback of final hidden states as inputs. Kernels: cuda/latent.cu, backward cuda/scatter.cu.
//! CPU: cpu/latent.rs. Parity: tests/parity/latent.rs.
//!
//! A rollout row's feedback state is the final hidden state (after the final norm) of its newest position.
//! [`store`] keeps it after a segment, [`forward`] puts it where the next segment has a latent, and [`backward`]
//! carries the latent's gradient back to the position that produced the state.

use super::index::{expect_indices, expect_rows};
use super::launch::{arguments, by_dtype, kernels, row_grid, size};
use super::mask::{MaskAt, mask_arguments};
use super::scatter::{self, Contributions, Order};
use super::{View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Device, Grid};
use std::ops::Range;

kernels!("latent":
    FORWARD_F32 = "latent_fwd_f32",
    FORWARD_BF16 = "latent_fwd_bf16",
    STORE_F32 = "latent_store_f32",
    STORE_BF16 = "latent_store_bf16",
    FORK_F32 = "latent_fork_f32",
    FORK_BF16 = "latent_fork_bf16",
);

/// Threads of a block of the fork kernels.
const FORK_BLOCK: u32 = 128;

/// `x[n] = m[n] * hidden[rows[n]]` where `ids[n]` is -1; other rows of `x[N, d]` stay as they are.
///
/// `hidden[R, d]`: the feedback state of each rollout row. `rows` U32 `[N, 1]`, `ids` I32 `[N, 1]`.
/// `mask`: site `Latent`, one instance for each of the N rows.
///
/// # Errors
/// Shapes or dtypes that do not fit; a row or an instance that does not exist.
pub fn forward(hidden: View, rows: View, ids: View, mask: Option<MaskAt>, mut x: ViewMut) -> Result<()> {
    let (count, cols, dtype) = (x.count(), x.cols(), x.dtype());
    hidden.expect("latent hidden", hidden.count(), cols, dtype)?;
    rows.expect("latent rows", count, 1, Dtype::U32)?;
    ids.expect("latent ids", count, 1, Dtype::I32)?;
    if let Some(mask) = &mask {
        mask.expect("latent", count, cols)?;
    }
    match hidden.device() {
        Device::Cpu(_) => float_dispatch!("latent", dtype, T => {
            let (rows, ids) = (rows.slice()?, ids.slice()?);
            expect_rows("latent rows", rows, hidden.count())?;
            let mask = mask.map(|mask| mask.host()).transpose()?;
            cpu::latent::forward::<T>(hidden.slice()?, rows, ids, mask, cols, x.slice()?);
        }),
        Device::Gpu(_) if count * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("latent", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let mut list = arguments![
                hidden.address()?,
                size("latent states", hidden.count())?,
                rows.address()?,
                ids.address()?,
                size("latent rows", count)?,
                size("columns", cols)?,
            ]
            .to_vec();
            list.extend(mask_arguments(&mask)?);
            list.push(x.address()?);
            gpu.launch(kernel, row_grid("latent rows", count, cols)?, &list)?;
        }
    }
    Ok(())
}

/// Gradient of [`forward`], added: `dhidden[source[n]] += m[n] * dx[n]` where `ids[n]` is -1, n ascending.
///
/// `source` I32 `[N, 1]`: the row of `dhidden[M, d]` whose state was fed back; -1 = detached. Several positions
/// may share a source: the rollouts of one prompt.
///
/// # Errors
/// Shapes or dtypes that do not fit; a source or an instance that does not exist.
pub fn backward(
    dx: View,
    ids: View,
    source: View,
    mask: Option<MaskAt>,
    mut dhidden: ViewMut,
    order: &mut Order,
) -> Result<()> {
    let (count, cols, dtype) = (dx.count(), dx.cols(), dx.dtype());
    dhidden.expect("latent dhidden", dhidden.count(), cols, dtype)?;
    ids.expect("latent ids", count, 1, Dtype::I32)?;
    source.expect("latent source", count, 1, Dtype::I32)?;
    if let Some(mask) = &mask {
        mask.expect("latent", count, cols)?;
    }
    match dx.device() {
        Device::Cpu(_) => float_dispatch!("latent", dtype, T => {
            let (ids, source) = (ids.slice()?, source.slice()?);
            expect_indices("latent source", source, -1, dhidden.count())?;
            let mask = mask.map(|mask| mask.host()).transpose()?;
            cpu::latent::backward::<T>(dx.slice()?, ids, source, mask, cols, dhidden.slice()?);
        }),
        Device::Gpu(gpu) => {
            scatter::add(&**gpu, Contributions::Latents(ids, source, mask), dx, dhidden, order)?;
        }
    }
    Ok(())
}

/// `feedback[rows[n]] = hidden[n]` where `last[n]` is not 0: keeps the state of each row's newest position.
///
/// `hidden[N, d]`, `rows` and `last` U32 `[N, 1]`, `feedback[R, d]`. At most one position of a row is its last: the CPU
/// would keep the later of two, a GPU either.
///
/// # Errors
/// Shapes or dtypes that do not fit; a row that does not exist.
pub fn store(hidden: View, rows: View, last: View, mut feedback: ViewMut) -> Result<()> {
    let (count, cols, dtype) = (hidden.count(), hidden.cols(), hidden.dtype());
    rows.expect("latent rows", count, 1, Dtype::U32)?;
    last.expect("latent last", count, 1, Dtype::U32)?;
    feedback.expect("latent feedback", feedback.count(), cols, dtype)?;
    match hidden.device() {
        Device::Cpu(_) => float_dispatch!("latent", dtype, T => {
            let rows = rows.slice()?;
            expect_rows("latent rows", rows, feedback.count())?;
            cpu::latent::store::<T>(hidden.slice()?, rows, last.slice()?, cols, feedback.slice()?);
        }),
        Device::Gpu(_) if count * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("latent", dtype, &STORE_F32, &STORE_BF16)?;
            let list = arguments![
                hidden.address()?,
                rows.address()?,
                last.address()?,
                size("latent rows", count)?,
                size("columns", cols)?,
                feedback.address()?,
                size("latent feedback", feedback.count())?,
            ];
            gpu.launch(kernel, row_grid("latent rows", count, cols)?, &list)?;
        }
    }
    Ok(())
}

/// Copies row `from` of `feedback[R, d]` to the rows `to`: a prompt's state becomes that of each of its rollouts.
///
/// # Errors
/// Rows outside `feedback`.
pub fn fork(mut feedback: ViewMut, from: usize, to: Range<usize>) -> Result<()> {
    let (count, cols, dtype) = (feedback.count(), feedback.cols(), feedback.dtype());
    if from >= count || to.start > to.end || to.end > count {
        return Err(Error::shape("latent fork", format!("{from} to {to:?}"), format!("rows in 0..{count}")));
    }
    match feedback.device() {
        Device::Cpu(_) => float_dispatch!("latent", dtype, T => {
            let feedback = feedback.slice::<T>()?;
            for row in to {
                feedback.copy_within(from * cols..(from + 1) * cols, row * cols);
            }
        }),
        Device::Gpu(_) if to.is_empty() || cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("latent", dtype, &FORK_F32, &FORK_BF16)?;
            // Numbers of a thread: 16 bytes where rows are aligned for them.
            let whole = 16 / dtype.size();
            let each = if cols.is_multiple_of(whole) { whole } else { 1 };
            let threads = size("columns", cols / each)?;
            let [from, first, end] = [from, to.start, to.end].map(|row| size("latent fork", row));
            let list = arguments![feedback.address()?, size("columns", cols)?, from?, first?, end?];
            gpu.launch(kernel, Grid::linear(threads.div_ceil(FORK_BLOCK), FORK_BLOCK), &list)?;
        }
    }
    Ok(())
}
