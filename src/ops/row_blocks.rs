//! How kernels that own whole rows cut them into blocks (cuda/rows.cuh): norms, masks, the residual norm.
//!
//! What a block does to a row depends on the row's width and dtype alone. How many rows a block takes decides how often
//! the gain is read, how full the device is, and, of gradients of parameters, the order of the sum: so it is a function
//! of the number of rows and of the width, never of the device.

use super::Tensor;
use super::launch::{ABSENT, arguments, size};
use crate::base::{Dtype, Result};
use crate::device::{Argument, Device, Grid, Kernel, Launcher};

/// Widest row that a warp owns; wider ones belong to a block.
const NARROW: usize = 1024;
/// Threads of a forward block; `__launch_bounds__` of the kernels.
const FORWARD: u32 = 512;
/// Threads of a backward block, the same.
const BACKWARD: u32 = 256;
/// Threads of a block that adds partial sums, the same.
const FOLD: u32 = 1024;
/// Columns of such a block.
const FOLD_COLS: usize = 32;
/// Rows of a block where there are many: a gain, read once a block, is then a thirty-second of what is moved.
const ROWS: usize = 32;
/// Most blocks of a backward kernel: about as many as a large GPU runs at once, so that partial sums stay few.
const PARTS: usize = 128;

/// The grid of a kernel that owns rows, and how many rows each block takes.
pub(super) struct RowBlocks {
    /// The launch.
    pub grid: Grid,
    /// Rows of a block.
    pub each: u32,
}

impl RowBlocks {
    fn new(what: &str, rows: usize, each: usize, threads: u32) -> Result<RowBlocks> {
        size(what, rows)?;
        Ok(RowBlocks { grid: Grid::linear(rows.div_ceil(each) as u32, threads), each: each as u32 })
    }

    /// Norms forward: at most 32 rows a block. Narrow rows take a warp each; wide rows spread over the device.
    pub fn forward(what: &str, rows: usize, cols: usize) -> Result<RowBlocks> {
        let each = match cols <= NARROW {
            true => FORWARD as usize / 32,
            false => rows.div_ceil(PARTS).clamp(1, ROWS),
        };
        RowBlocks::new(what, rows, each, FORWARD)
    }

    /// Norms backward: at most 128 blocks, so that their partial sums are few. A narrow row takes a warp of eight.
    pub fn backward(what: &str, rows: usize, cols: usize) -> Result<RowBlocks> {
        let each = match cols <= NARROW {
            true => rows.div_ceil(PARTS).next_multiple_of(8).max(ROWS),
            false => rows.div_ceil(PARTS),
        };
        RowBlocks::new(what, rows, each.max(1), BACKWARD)
    }

    /// Masks: eight warps take two narrow rows each, which often share a bitmap, or one where rows are few.
    pub fn masked(what: &str, rows: usize, cols: usize) -> Result<RowBlocks> {
        let each = match cols <= NARROW {
            true if rows >= 1024 => 16,
            true => 8,
            false => rows.div_ceil(1024).clamp(1, 32),
        };
        RowBlocks::new(what, rows, each, BACKWARD)
    }
}

/// Room for the blocks' partial sums of the gradients of `vectors` parameters; on the CPU there are none.
pub(super) fn reserve_partial(
    device: &Device,
    rows: usize,
    cols: usize,
    vectors: usize,
) -> Result<Option<Tensor>> {
    match device {
        Device::Cpu(_) => Ok(None),
        Device::Gpu(_) => {
            let each = if cols <= NARROW { ROWS } else { 1 };
            let parts = rows.div_ceil(each).clamp(1, PARTS);
            Ok(Some(Tensor::zeros(device, [parts, vectors * cols], Dtype::F32)?))
        }
    }
}

/// Adds `parts` rows of partial sums to a gradient of `cols` columns in all: one gradient, or two side by side.
/// A single part was added by the block that made it.
pub(super) fn fold(
    gpu: &dyn Launcher,
    kernel: &'static Kernel,
    partial: &Tensor,
    parts: u32,
    gradients: &[&Tensor],
) -> Result<()> {
    if parts == 1 {
        return Ok(());
    }
    let total: usize = gradients.iter().map(|gradient| gradient.shape().elements()).sum();
    let grid = Grid::linear(size("columns", total.div_ceil(FOLD_COLS))?, FOLD);
    let cols = size("columns", total / gradients.len())?;
    let partial = partial.view().address()?;
    match gradients {
        [dw] => gpu.launch(kernel, grid, &arguments![partial, parts, cols, dw.view().address()?]),
        [dw, db] => {
            let (dw, db) = (dw.view().address()?, db.view().address()?);
            gpu.launch(kernel, grid, &arguments![partial, parts, cols, dw, db])
        }
        _ => unreachable!("norms have one or two parameters"),
    }
}

/// Where a kernel finds the gradient of a parameter; nowhere when it is frozen.
pub(super) fn address_of(gradient: Option<&Tensor>) -> Result<Argument> {
    gradient.map_or(Ok(ABSENT), |gradient| gradient.view().address())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks never exceed what was reserved for any smaller number of rows, and no row is left out.
    #[test]
    fn partial_sums_fit_their_room() {
        for cols in [8, 1024, 1032] {
            let each = if cols <= NARROW { ROWS } else { 1 };
            for rows in (1..9000).chain([65_536, 1_000_003]) {
                let blocks = RowBlocks::backward("rows", rows, cols).unwrap();
                let (parts, taken) = (blocks.grid.blocks[0] as usize, blocks.each as usize);
                assert!(parts <= rows.div_ceil(each).min(PARTS), "{rows} x {cols}: {parts} parts");
                assert!((parts - 1) * taken < rows && rows <= parts * taken);
                let forward = RowBlocks::forward("rows", rows, cols).unwrap();
                assert!(forward.each <= 32 && forward.grid.blocks[0] * forward.each >= rows as u32);
            }
        }
    }
}
