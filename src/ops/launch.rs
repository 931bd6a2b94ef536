//! What the GPU arms of operations share: how they name their kernels, lay out grids and pack arguments.

use crate::base::{Error, Result};
use crate::device::{Argument, Grid, Kernel};

/// The kernels of one operation's PTX file: `kernels!("rmsnorm": FORWARD_F32 = "rmsnorm_fwd_f32", ...)`.
macro_rules! kernels {
    ($stem:literal: $($name:ident = $entry:literal),+ $(,)?) => {
        $(static $name: $crate::device::Kernel = $crate::device::Kernel::new(
            $stem,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/ptx/", $stem, ".ptx")),
            $entry,
        );)+
    };
}
pub(in crate::ops) use kernels;

/// Packs arguments in the order of the kernel's parameters; each is an [`Argument`], a `u32`, an `i32` or an `f32`.
macro_rules! arguments {
    ($($value:expr),+ $(,)?) => {
        [$($crate::device::Argument::from($value)),+]
    };
}
pub(in crate::ops) use arguments;

/// The address of an operand that is absent.
pub(in crate::ops) const ABSENT: Argument = Argument::Address(0);

/// A size as a kernel's 32-bit number.
///
/// # Errors
/// A size beyond 2^31 - 1, which kernels do not index.
pub(in crate::ops) fn size(what: &str, value: usize) -> Result<u32> {
    match i32::try_from(value) {
        Ok(value) => Ok(value as u32),
        Err(_) => Err(Error::shape(what, value, "at most 2^31 - 1, what a kernel can index")),
    }
}

/// Blocks of an element-by-element kernel whose blocks take `each` of `count` elements.
///
/// # Errors
/// As [`size`].
pub(in crate::ops) fn blocks(what: &str, count: usize, each: usize) -> Result<u32> {
    Ok(size(what, count)?.div_ceil(each as u32))
}

/// The grid of a kernel whose threads take 128 bits of each operand of `count` elements of `dtype` (256 threads a
/// block: cuda/vector.cuh), and the count as its argument.
///
/// # Errors
/// As [`size`].
pub(in crate::ops) fn pieces(what: &str, count: usize, dtype: crate::base::Dtype) -> Result<(Grid, u32)> {
    const BLOCK: u32 = 256;
    Ok((Grid::linear(blocks(what, count, BLOCK as usize * 16 / dtype.size())?, BLOCK), size(what, count)?))
}

/// The kernel for the dtype of the activations: `f32` or `bf16`.
pub(in crate::ops) fn by_dtype(
    what: &str,
    dtype: crate::base::Dtype,
    f32: &'static Kernel,
    bf16: &'static Kernel,
) -> Result<&'static Kernel> {
    match dtype {
        crate::base::Dtype::F32 => Ok(f32),
        crate::base::Dtype::Bf16 => Ok(bf16),
        other => Err(Error::dtype(what, other, "f32 or bf16 on a GPU")),
    }
}

/// Grid and threads of kernels in which a warp has one row, or 1024 columns of it (cuda/indexed_rows.cuh).
pub(in crate::ops) fn row_grid(what: &str, rows: usize, cols: usize) -> Result<Grid> {
    let blocks = [size(what, rows)?.div_ceil(4), size(what, cols)?.div_ceil(1024), 1];
    Ok(Grid { blocks, threads: [128, 1, 1], shared_bytes: 0 })
}
