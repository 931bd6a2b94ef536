//! How C is cut into blocks: cuda/linear.cu's tiles, and the kernel of each form, dtype and tile. All have the same bits.

use super::{Form, Operands, Product};
use crate::device::Kernel;
use crate::ops::launch::kernels;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    /// 64 x 128 outputs: reads each operand least often.
    Wide,
    /// 64 x 64: twice the blocks.
    Square,
    /// 16 x 32, with the chunks of k shared among four warps: few rows.
    Skinny,
    /// 16 x 16, with the chunks of k shared among eight warps: few rows, and few columns.
    Narrow,
}

impl Tile {
    /// Rows and columns of C in a block.
    fn outputs(self) -> [usize; 2] {
        match self {
            Tile::Wide => [64, 128],
            Tile::Square => [64, 64],
            Tile::Skinny => [16, 32],
            Tile::Narrow => [16, 16],
        }
    }

    /// Warps that share the chunks of k; 1 where warps share the outputs.
    fn groups(self) -> usize {
        match self {
            Tile::Wide | Tile::Square => 1,
            Tile::Skinny => 4,
            Tile::Narrow => 8,
        }
    }

    /// Threads of a block; `__launch_bounds__` of the kernels.
    pub fn threads(self) -> u32 {
        match self {
            Tile::Wide | Tile::Square | Tile::Skinny => 128,
            Tile::Narrow => 256,
        }
    }

    /// Bytes of the dynamic shared memory of a block: each group's stages, then the parts that groups exchange.
    pub fn shared_bytes(self, form: Form, operands: Operands) -> usize {
        let (line, stages) = match self {
            Tile::Wide | Tile::Square => (128, 3),
            Tile::Skinny => (64, 3),
            Tile::Narrow => (128, 2),
        };
        let [a, b] = match operands {
            Operands::F32 => [4, 4],
            Operands::Rounded => [4, if form == Form::Tn { 4 } else { 2 }],
            Operands::Bf16 => [2, 2],
        };
        let depth = line / a.max(b);
        let [rows, cols] = self.outputs();
        let stage = depth * (rows * a + cols * b);
        self.groups() * stages * stage + (self.groups() - 1) * rows * cols * 4
    }

    /// Blocks that cover C of `m` rows and `n` columns.
    pub fn blocks(self, m: usize, n: usize) -> usize {
        let [rows, cols] = self.outputs();
        m.div_ceil(rows) * n.div_ceil(cols)
    }

    /// The largest tile that still makes about as many blocks as the GPU has multiprocessors; one of 16 rows where one or
    /// a few of those hold all of them.
    pub fn choose(product: &Product, multiprocessors: u32) -> Tile {
        let ([m, n, _], many) = (product.sizes, multiprocessors as usize);
        let few = m <= 16 || (m <= 64 && Tile::Square.blocks(m, n) < many / 2);
        if few && product.form != Form::Tn {
            let tiles = match Tile::Skinny.blocks(m, n) < 4 * many {
                true => [Tile::Narrow, Tile::Skinny],
                false => [Tile::Skinny, Tile::Narrow],
            };
            let [first, second] = tiles;
            return if kernel(product.form, product.operands, first).is_some() { first } else { second };
        }
        match m <= 64 || n <= 64 || Tile::Wide.blocks(m, n) < many {
            true => Tile::Square,
            false => Tile::Wide,
        }
    }
}

kernels!("linear":
    NT_F32_WIDE = "linear_nt_f32_wide",
    NT_F32_SQUARE = "linear_nt_f32_square",
    NT_F32_SKINNY = "linear_nt_f32_skinny",
    NT_F32_NARROW = "linear_nt_f32_narrow",
    NN_F32_WIDE = "linear_nn_f32_wide",
    NN_F32_SQUARE = "linear_nn_f32_square",
    NN_F32_SKINNY = "linear_nn_f32_skinny",
    TN_F32_WIDE = "linear_tn_f32_wide",
    TN_F32_SQUARE = "linear_tn_f32_square",
    NT_ROUNDED_SQUARE = "linear_nt_rounded_square",
    NT_ROUNDED_SKINNY = "linear_nt_rounded_skinny",
    NT_ROUNDED_NARROW = "linear_nt_rounded_narrow",
    NN_ROUNDED_SQUARE = "linear_nn_rounded_square",
    NN_ROUNDED_NARROW = "linear_nn_rounded_narrow",
    TN_ROUNDED_SQUARE = "linear_tn_rounded_square",
    NT_BF16_WIDE = "linear_nt_bf16_wide",
    NT_BF16_SQUARE = "linear_nt_bf16_square",
    NT_BF16_SKINNY = "linear_nt_bf16_skinny",
    NT_BF16_NARROW = "linear_nt_bf16_narrow",
    NN_BF16_WIDE = "linear_nn_bf16_wide",
    NN_BF16_SQUARE = "linear_nn_bf16_square",
    NN_BF16_NARROW = "linear_nn_bf16_narrow",
    TN_BF16_WIDE = "linear_tn_bf16_wide",
    TN_BF16_SQUARE = "linear_tn_bf16_square",
);

/// The kernel of a tile, where there is one: large products of [`Operands::Rounded`] are those of rounded factors; the rows
/// of [`Form::Tn`] are a weight's, never few; and of [`Form::Nn`] few rows have one kernel, narrow but for f32, of which 16
/// columns are too short a line of shared memory.
pub(super) fn kernel(form: Form, operands: Operands, tile: Tile) -> Option<&'static Kernel> {
    use {Form::*, Operands::*, Tile::*};
    Some(match (form, operands, tile) {
        (Nt, F32, Wide) => &NT_F32_WIDE,
        (Nt, F32, Square) => &NT_F32_SQUARE,
        (Nt, F32, Skinny) => &NT_F32_SKINNY,
        (Nt, F32, Narrow) => &NT_F32_NARROW,
        (Nn, F32, Wide) => &NN_F32_WIDE,
        (Nn, F32, Square) => &NN_F32_SQUARE,
        (Nn, F32, Skinny) => &NN_F32_SKINNY,
        (Tn, F32, Wide) => &TN_F32_WIDE,
        (Tn, F32, Square) => &TN_F32_SQUARE,
        (Nt, Rounded, Square) => &NT_ROUNDED_SQUARE,
        (Nt, Rounded, Skinny) => &NT_ROUNDED_SKINNY,
        (Nt, Rounded, Narrow) => &NT_ROUNDED_NARROW,
        (Nn, Rounded, Square) => &NN_ROUNDED_SQUARE,
        (Nn, Rounded, Narrow) => &NN_ROUNDED_NARROW,
        (Tn, Rounded, Square) => &TN_ROUNDED_SQUARE,
        (Nt, Bf16, Wide) => &NT_BF16_WIDE,
        (Nt, Bf16, Square) => &NT_BF16_SQUARE,
        (Nt, Bf16, Skinny) => &NT_BF16_SKINNY,
        (Nt, Bf16, Narrow) => &NT_BF16_NARROW,
        (Nn, Bf16, Wide) => &NN_BF16_WIDE,
        (Nn, Bf16, Square) => &NN_BF16_SQUARE,
        (Nn, Bf16, Narrow) => &NN_BF16_NARROW,
        (Tn, Bf16, Wide) => &TN_BF16_WIDE,
        (Tn, Bf16, Square) => &TN_BF16_SQUARE,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Strided;
    use super::*;
    use crate::ops::launch::ABSENT;

    #[test]
    fn tiles_suit_their_sizes() {
        let nothing = Strided { address: ABSENT, stride: 0 };
        for (form, operands, m, n, tile) in [
            (Form::Nt, Operands::Bf16, 1, 50257, Tile::Skinny),
            (Form::Nt, Operands::Bf16, 8, 4864, Tile::Narrow),
            (Form::Nn, Operands::F32, 8, 4864, Tile::Skinny),
            (Form::Nt, Operands::F32, 64, 768, Tile::Narrow),
            (Form::Nt, Operands::F32, 64, 50257, Tile::Square),
            (Form::Nn, Operands::F32, 256, 768, Tile::Square),
            (Form::Nt, Operands::Bf16, 4096, 768, Tile::Wide),
            (Form::Tn, Operands::F32, 16, 50257, Tile::Square),
            (Form::Tn, Operands::Bf16, 3072, 768, Tile::Wide),
        ] {
            let product = Product::new(form, operands, [nothing; 3], [m, n, 256]);
            let chosen = Tile::choose(&product, 108);
            assert_eq!(chosen, tile, "{form:?} {operands:?} {m} x {n}");
            assert!(kernel(form, operands, chosen).is_some());
        }
    }

    /// What a GPU of compute capability 8.6 or 8.9 gives a block.
    #[test]
    fn every_tile_fits_into_99_kib() {
        for form in [Form::Nt, Form::Nn, Form::Tn] {
            for operands in [Operands::F32, Operands::Rounded, Operands::Bf16] {
                for tile in [Tile::Wide, Tile::Square, Tile::Skinny, Tile::Narrow] {
                    assert!(tile.shared_bytes(form, operands) <= 99 << 10, "{form:?} {operands:?} {tile:?}");
                }
            }
        }
    }
}
