//! Small integer operations on the device, so that a decode step needs no upload. CPU: here, they are one line each.
//! Kernels: cuda/index.cu. Parity: tests/parity/index.rs.

use super::launch::{arguments, kernels, size};
use super::{Tensor, View, ViewMut};
use crate::base::{Dtype, Error, Result};
use crate::device::{Device, Element, Grid};
use std::ops::Range;

kernels!("index":
    ADVANCE = "index_advance",
    REPEAT = "index_repeat",
    FILL_32 = "index_fill_32",
    FILL_16 = "index_fill_16",
);

/// Threads of a block; `__launch_bounds__` of the kernels.
const BLOCK: u32 = 256;

/// `positions += by` in place; U32 `[N, 1]`.
///
/// # Errors
/// Another dtype.
pub fn advance(mut positions: ViewMut, by: u32) -> Result<()> {
    let (rows, cols) = (positions.count(), positions.cols());
    positions.expect("advance", rows, cols, Dtype::U32)?;
    match positions.device() {
        Device::Cpu(_) => positions.slice::<u32>()?.iter_mut().for_each(|p| *p = p.wrapping_add(by)),
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let count = size("advance", rows * cols)?;
            let grid = Grid::linear(count.div_ceil(BLOCK), BLOCK);
            gpu.launch(&ADVANCE, grid, &arguments![positions.address()?, count, by])?;
        }
    }
    Ok(())
}

/// Copies entries `from` of `tensor[n, 1]` (U32 or I32) to `to` and on, each plus `add`: the index of the next
/// decode step from that of the last. The ranges may be the same, but must not overlap otherwise.
///
/// # Errors
/// Another dtype, ranges outside the tensor, or ranges that overlap without being the same.
pub fn repeat(tensor: &mut Tensor, from: Range<usize>, to: usize, add: i32) -> Result<()> {
    let count = from.len();
    tensor.rows(from.clone())?;
    let (device, dtype, mut view) = (tensor.device().clone(), tensor.dtype(), tensor.view_mut());
    if to + count > view.count() || view.cols() != 1 {
        return Err(Error::shape(
            "repeat",
            format!("{to}..{}", to + count),
            format!("inside {} entries", view.count()),
        ));
    }
    if to != from.start && to < from.end && from.start < to + count {
        let found = format!("{from:?} to {to}..{}", to + count);
        return Err(Error::shape("repeat", found, "the same entries, or others"));
    }
    match (device, dtype) {
        (Device::Cpu(_), Dtype::U32) => {
            let entries = view.slice::<u32>()?;
            entries.copy_within(from, to);
            entries[to..to + count].iter_mut().for_each(|entry| *entry = entry.wrapping_add_signed(add));
        }
        (Device::Cpu(_), Dtype::I32) => {
            let entries = view.slice::<i32>()?;
            entries.copy_within(from, to);
            entries[to..to + count].iter_mut().for_each(|entry| *entry = entry.wrapping_add(add));
        }
        (Device::Gpu(_), Dtype::U32 | Dtype::I32) if count == 0 => {}
        (Device::Gpu(gpu), Dtype::U32 | Dtype::I32) => {
            let (source, target) =
                (view.reborrow().rows(from)?.address()?, view.reborrow().rows(to..to + count)?.address()?);
            let count = size("repeat", count)?;
            let grid = Grid::linear(count.div_ceil(BLOCK), BLOCK);
            gpu.launch(&REPEAT, grid, &arguments![source, target, count, add])?;
        }
        (_, other) => return Err(Error::dtype("repeat", other, "u32 or i32")),
    }
    Ok(())
}

/// `ids = tokens`: sampled tokens (U32 `[N, 1]`) become input ids (I32 `[N, 1]`).
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn set_ids(tokens: View, mut ids: ViewMut) -> Result<()> {
    let (rows, cols) = (tokens.count(), tokens.cols());
    tokens.expect("set_ids tokens", rows, cols, Dtype::U32)?;
    ids.expect("set_ids ids", rows, cols, Dtype::I32)?;
    match ids.device() {
        Device::Cpu(_) => {
            for (id, &token) in ids.slice::<i32>()?.iter_mut().zip(tokens.slice::<u32>()?) {
                // Token ids are below 2^31: a vocabulary has far fewer entries.
                *id = token as i32;
            }
        }
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            // The two have the same bits.
            let count = size("set_ids", rows * cols)?;
            let grid = Grid::linear(count.div_ceil(BLOCK), BLOCK);
            gpu.launch(&REPEAT, grid, &arguments![tokens.address()?, ids.address()?, count, 0_u32])?;
        }
    }
    Ok(())
}

/// Every element becomes `value`; its type must be the tensor's.
///
/// # Errors
/// A dtype that is not the value's.
pub fn fill<T: Element>(mut x: ViewMut, value: T) -> Result<()> {
    let (rows, cols) = (x.count(), x.cols());
    x.expect("fill", rows, cols, T::DTYPE)?;
    match x.device() {
        Device::Cpu(_) => x.slice::<T>()?.fill(value),
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let count = size("fill", rows * cols)?;
            let (kernel, bits) = match *bytemuck::bytes_of(&value) {
                [a, b, c, d] => (&FILL_32, u32::from_ne_bytes([a, b, c, d])),
                [a, b] => (&FILL_16, u32::from(u16::from_ne_bytes([a, b]))),
                _ => return Err(Error::dtype("fill", T::DTYPE, "elements of 2 or 4 bytes on a GPU")),
            };
            let grid = Grid::linear(count.div_ceil(BLOCK), BLOCK);
            gpu.launch(kernel, grid, &arguments![x.address()?, count, bits])?;
        }
    }
    Ok(())
}

/// Fails unless every signed index is in `least..bound`. Only for CPU arms: a GPU kernel guards its reads itself.
pub(in crate::ops) fn expect_indices(what: &str, indices: &[i32], least: i32, bound: usize) -> Result<()> {
    let inside = |&i: &i32| i >= least && (i < 0 || (i as usize) < bound);
    match indices.iter().position(|i| !inside(i)) {
        None => Ok(()),
        Some(at) => Err(outside(what, at, i64::from(indices[at]), i64::from(least), bound)),
    }
}

/// The same for unsigned indices in `0..bound`.
pub(in crate::ops) fn expect_rows(what: &str, indices: &[u32], bound: usize) -> Result<()> {
    match indices.iter().position(|&i| i as usize >= bound) {
        None => Ok(()),
        Some(at) => Err(outside(what, at, i64::from(indices[at]), 0, bound)),
    }
}

fn outside(what: &str, at: usize, found: i64, least: i64, bound: usize) -> Error {
    Error::shape(what, format!("index {found} at entry {at}"), format!("{least}..{bound}"))
}
