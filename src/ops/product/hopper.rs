//! Products of bf16 matrices on compute capability 9.0: kernels of cuda/linear_sm90a.cu, whose bits are linear.cu's.

use super::tiles::Tile;
use super::{Form, Operands, Product, Strided};
use crate::base::Result;
use crate::device::{Argument, Grid, Kernel, Properties};
use crate::ops::launch::{kernels, size};

kernels!("linear_sm90a":
    NT_WIDE = "linear_nt_bf16_wide_sm90a",
    NT_SQUARE = "linear_nt_bf16_square_sm90a",
    NN_WIDE = "linear_nn_bf16_wide_sm90a",
    NN_SQUARE = "linear_nn_bf16_square_sm90a",
);

/// A kernel of products by warpgroups.
#[derive(Debug)]
pub(super) struct Warpgroups {
    pub kernel: &'static Kernel,
    /// Rows and columns of C in a block.
    outputs: [usize; 2],
    /// Stages of 64 k that are in flight.
    stages: usize,
}

impl Warpgroups {
    fn blocks(&self, product: &Product) -> usize {
        product.sizes[0].div_ceil(self.outputs[0]) * product.sizes[1].div_ceil(self.outputs[1])
    }

    /// Two threads a row of the tile: a warpgroup of 128 for 64 rows.
    pub fn grid(&self, product: &Product) -> Result<Grid> {
        let [rows, cols] = self.outputs;
        /// Bytes of 64 k in bf16.
        const LINE: usize = 128;
        let shared_bytes = size("shared memory of a product", self.stages * (rows + cols) * LINE)?;
        let blocks = size("blocks of a product", self.blocks(product))?;
        Ok(Grid { shared_bytes, ..Grid::linear(blocks, 2 * rows as u32) })
    }
}

/// Whether every line of a factor starts at a multiple of 16 bytes, which copies to shared memory need.
fn is_aligned(factor: Strided) -> bool {
    matches!(factor.address, Argument::Address(address) if address.is_multiple_of(16))
        && factor.stride.is_multiple_of(8)
}

/// Wide and square kernels of a form, where there are some.
pub(super) fn kernels_of(form: Form) -> Option<[Warpgroups; 2]> {
    let [wide, square]: [&'static Kernel; 2] = match form {
        Form::Nt => [&NT_WIDE, &NT_SQUARE],
        Form::Nn => [&NN_WIDE, &NN_SQUARE],
        Form::Tn => return None,
    };
    Some([
        Warpgroups { kernel: wide, outputs: [128, 128], stages: 5 },
        Warpgroups { kernel: square, outputs: [64, 64], stages: 4 },
    ])
}

/// The kernel for `product` in the place of linear.cu's `tile`, where there is one for this device.
pub(super) fn choose(product: &Product, tile: Tile, properties: &Properties) -> Option<Warpgroups> {
    if properties.compute_capability != (9, 0)
        || product.operands != Operands::Bf16
        || !matches!(tile, Tile::Wide | Tile::Square)
        || ![product.a, product.b].into_iter().all(is_aligned)
    {
        return None;
    }
    let [wide, square] = kernels_of(product.form)?;
    // A block fills a multiprocessor: too few of them, or a second round of a few, cost more than smaller tiles do.
    match 4 * wide.blocks(product) >= 5 * properties.multiprocessors as usize {
        true => Some(wide),
        false => Some(square),
    }
}
