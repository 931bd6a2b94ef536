//! Several linear maps of one input: queries, keys and values; the two halves of a gated MLP.

use super::{Projection, check, run_checked, window};
use crate::base::Result;
use crate::cpu::gemm::{Accumulate, Matrix, MatrixMut, Part, Prepacked, Stored, gemm_prepacked};
use crate::device::{Device, Element};
use crate::ops::reading_order::Lent;
use crate::ops::{Tensor, View, ViewMut, float_dispatch};
use half::bf16;

/// A linear map.
#[derive(Debug)]
pub struct Map<'a> {
    /// Which part of the weight.
    pub projection: &'a Projection,
    /// A whole weight.
    pub weight: &'a Tensor,
    /// One number for each output of the whole weight.
    pub bias: Option<&'a Tensor>,
    /// `y[rows, out]`.
    pub output: ViewMut<'a>,
}

/// Each map's y = x w + bias, with the bits of [`forward`](super::forward), once all were found to fit. On a CPU the
/// products of few rows are one section of tasks once the weights' copies for them exist.
///
/// # Errors
/// As [`forward`](super::forward).
pub fn forward_each<const N: usize>(x: View, mut maps: [Map; N]) -> Result<()> {
    let mut fits = [(0, false); N];
    for (map, fits) in maps.iter().zip(&mut fits) {
        *fits = check(x, map)?;
    }
    let mixed = fits.iter().all(|(_, mixed)| *mixed);
    let at_once = match x.device() {
        Device::Gpu(_) => false,
        Device::Cpu(_) if mixed => multiply_prepacked::<bf16, N>(x, &mut maps)?,
        Device::Cpu(_) => {
            float_dispatch!("linear", x.dtype(), T => multiply_prepacked::<T, N>(x, &mut maps))?
        }
    };
    if at_once {
        x.device().traffic().multiply(N);
        return Ok(());
    }
    maps.into_iter().zip(fits).try_for_each(|(map, fits)| run_checked(x, map, fits, Accumulate::Assign, None))
}

/// All products of weights stored in `B` in one section; false, and nothing done, where they cannot be.
fn multiply_prepacked<B, const N: usize>(x: View, maps: &mut [Map; N]) -> Result<bool>
where
    B: Element + Stored<Sum: Element>,
{
    let Some(copies) = copies::<B, N>(x, maps) else { return Ok(false) };
    let rows = x.count();
    let mut parts = Vec::with_capacity(N);
    for (map, copy) in maps.iter_mut().zip(&copies) {
        let outputs = map.projection.outputs.clone();
        let bias = window(map.bias, &outputs)?;
        let c = MatrixMut::row_major(map.output.slice()?, rows, outputs.len());
        parts.push(Part { b: copy.matrix(), outputs, c, accumulate: Accumulate::Assign, bias });
    }
    gemm_prepacked(Matrix::row_major(x.slice()?, rows, x.cols()), parts);
    Ok(true)
}

/// The copies of all weights, if all have one.
fn copies<B: Element + Stored, const N: usize>(x: View, maps: &[Map; N]) -> Option<[Lent<B>; N]> {
    let mut copies = Vec::with_capacity(N);
    for Map { projection, weight, .. } in maps {
        if weight.dtype() != B::DTYPE || !Prepacked::<B>::serves(x.count(), &projection.outputs) {
            return None;
        }
        copies.push(weight.reading_order().current(projection)?);
    }
    copies.try_into().ok()
}

#[cfg(test)]
mod tests;
