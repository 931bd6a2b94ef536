//! Matrix products of a GPU, C = A B (+ bias) or C += A B: what linear maps and the output head launch. Kernels:
//! cuda/gemm.cuh through cuda/linear.cu, where the order of summation is stated: it depends on K alone.
//!
//! Where the device has the vendor's library and it was chosen (gradients by default), it multiplies instead
//! (product/library.rs), in an order of its own.
//!
//! Operands are addresses with strides, so that windows of weights and of workspaces need no copies. Callers have
//! checked shapes and dtypes; see [`super::linear`].

mod library;

use super::launch::{ABSENT, arguments, kernels, size};
use crate::base::{Dtype, Error, Result};
use crate::device::{Argument, Grid, Kernel, Launcher};

/// Which factors lie transposed in memory. C is `[m, n]`, row-major as everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Form {
    /// A is `[m, k]`, B is `[n, k]`.
    Nt,
    /// A is `[m, k]`, B is `[k, n]`.
    Nn,
    /// A is `[k, m]`, B is `[k, n]`.
    Tn,
}

/// What is multiplied and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Operands {
    /// A, B and C are f32; products keep f32's accuracy.
    F32,
    /// A is f32, B bf16 ([`Form::Tn`]: f32), and what is f32 is rounded to bf16 when it is read; C is f32.
    Rounded,
    /// A and B are bf16; C is bf16 or f32.
    Bf16,
}

/// A row-major matrix on the device: where it starts and how many elements lie between its rows.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Strided {
    pub address: Argument,
    pub stride: usize,
}

/// One product.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Product {
    pub form: Form,
    pub operands: Operands,
    pub a: Strided,
    pub b: Strided,
    pub c: Strided,
    /// f32, or bf16 beside bf16 operands.
    pub c_dtype: Dtype,
    /// m, n and k.
    pub sizes: [usize; 3],
    /// C += A B instead of C = A B.
    pub add: bool,
    /// f32 `[n]`, or [`ABSENT`].
    pub bias: Argument,
    /// Where gelu(C) goes as well, with C's stride and dtype; or [`ABSENT`].
    pub activated: Argument,
    /// A gradient: a library may compute it where one is installed.
    pub gradient: bool,
}

/// How a kernel cuts C into blocks. All have the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Tile {
    /// 128 x 128 outputs: reads each operand least often.
    Wide,
    /// 64 x 64: four times the blocks.
    Square,
    /// 16 x 32, with the chunks of k shared among four warps: few rows.
    Skinny,
}

impl Strided {
    /// The matrix that starts `elements` elements further on.
    pub fn offset(self, elements: usize, dtype: Dtype) -> Strided {
        let address = match self.address {
            Argument::Address(address) => Argument::Address(address + (elements * dtype.size()) as u64),
            other => other,
        };
        Strided { address, ..self }
    }
}

impl Tile {
    /// Rows and columns of C in a block.
    fn outputs(self) -> [usize; 2] {
        match self {
            Tile::Wide => [128, 128],
            Tile::Square => [64, 64],
            Tile::Skinny => [16, 32],
        }
    }

    /// Threads of a block; `__launch_bounds__` of the kernels.
    fn threads(self) -> u32 {
        match self {
            Tile::Wide => 256,
            Tile::Square | Tile::Skinny => 128,
        }
    }

    fn blocks(self, m: usize, n: usize) -> usize {
        let [rows, cols] = self.outputs();
        m.div_ceil(rows) * n.div_ceil(cols)
    }

    /// The largest tile that still makes about as many blocks as a GPU has multiprocessors; skinny where one or a
    /// few tiles of 16 rows hold all of them. [`Form::Tn`] has no skinny tile: its rows are a weight's.
    pub fn choose(form: Form, m: usize, n: usize) -> Tile {
        /// Multiprocessors of an A100 and an H100 are 108 and 132; a choice that is somewhat off costs little.
        const BLOCKS: usize = 96;
        let few = m <= 16 || (m <= 64 && Tile::Square.blocks(m, n) < BLOCKS / 2);
        if form != Form::Tn && few {
            Tile::Skinny
        } else if m <= 64 || n <= 64 || Tile::Wide.blocks(m, n) < BLOCKS {
            Tile::Square
        } else {
            Tile::Wide
        }
    }
}

/// `flags` of the kernels.
const ADD: u32 = 1;
const C_IS_BF16: u32 = 2;

impl Product {
    /// C = A B of f32 matrices, without bias: what callers change the fields of.
    pub fn new(form: Form, operands: Operands, [a, b, c]: [Strided; 3], sizes: [usize; 3]) -> Product {
        let c_dtype = Dtype::F32;
        let (bias, activated) = (ABSENT, ABSENT);
        Product { form, operands, a, b, c, c_dtype, sizes, add: false, bias, activated, gradient: false }
    }

    /// Runs it: by the library where that is to ([`Product::is_for_library`]) and C is all there is to write, else with
    /// the tile that suits its size.
    pub fn launch(&self, gpu: &dyn Launcher) -> Result<()> {
        if self.activated == ABSENT && self.is_for_library(gpu)? {
            return self.launch_by_library(gpu);
        }
        self.launch_with(gpu, Tile::choose(self.form, self.sizes[0], self.sizes[1]))
    }

    /// Runs it with a given tile.
    fn launch_with(&self, gpu: &dyn Launcher, tile: Tile) -> Result<()> {
        let [m, n, k] = self.sizes;
        if m == 0 || n == 0 || (k == 0 && self.add) {
            return Ok(());
        }
        let flags = if self.add { ADD } else { 0 }
            | match (self.c_dtype, self.operands) {
                (Dtype::F32, _) => 0,
                (Dtype::Bf16, Operands::Bf16) => C_IS_BF16,
                (other, _) => return Err(Error::dtype("product", other, "f32, or bf16 from bf16 operands")),
            };
        let grid = Grid::linear(size("blocks of a product", tile.blocks(m, n))?, tile.threads());
        let sized = |value| size("product", value);
        let arguments = arguments![
            self.a.address,
            sized(self.a.stride)?,
            self.b.address,
            sized(self.b.stride)?,
            sized(m)?,
            sized(n)?,
            sized(k)?,
            self.c.address,
            sized(self.c.stride)?,
            flags,
            self.bias,
            self.activated,
        ];
        gpu.launch(kernel(self.form, self.operands, tile)?, grid, &arguments)
    }
}

kernels!("linear":
    NT_F32_WIDE = "linear_nt_f32_wide",
    NT_F32_SQUARE = "linear_nt_f32_square",
    NT_F32_SKINNY = "linear_nt_f32_skinny",
    NN_F32_WIDE = "linear_nn_f32_wide",
    NN_F32_SQUARE = "linear_nn_f32_square",
    NN_F32_SKINNY = "linear_nn_f32_skinny",
    TN_F32_WIDE = "linear_tn_f32_wide",
    TN_F32_SQUARE = "linear_tn_f32_square",
    NT_ROUNDED_WIDE = "linear_nt_rounded_wide",
    NT_ROUNDED_SQUARE = "linear_nt_rounded_square",
    NT_ROUNDED_SKINNY = "linear_nt_rounded_skinny",
    NN_ROUNDED_WIDE = "linear_nn_rounded_wide",
    NN_ROUNDED_SQUARE = "linear_nn_rounded_square",
    NN_ROUNDED_SKINNY = "linear_nn_rounded_skinny",
    TN_ROUNDED_WIDE = "linear_tn_rounded_wide",
    TN_ROUNDED_SQUARE = "linear_tn_rounded_square",
    NT_BF16_WIDE = "linear_nt_bf16_wide",
    NT_BF16_SQUARE = "linear_nt_bf16_square",
    NT_BF16_SKINNY = "linear_nt_bf16_skinny",
    NN_BF16_WIDE = "linear_nn_bf16_wide",
    NN_BF16_SQUARE = "linear_nn_bf16_square",
    NN_BF16_SKINNY = "linear_nn_bf16_skinny",
    TN_BF16_WIDE = "linear_tn_bf16_wide",
    TN_BF16_SQUARE = "linear_tn_bf16_square",
);

fn kernel(form: Form, operands: Operands, tile: Tile) -> Result<&'static Kernel> {
    use {Form::*, Tile::*};
    // Wide, square and skinny, by form.
    let [nt, nn, tn]: [[&'static Kernel; 3]; 3] = match operands {
        Operands::F32 => [
            [&NT_F32_WIDE, &NT_F32_SQUARE, &NT_F32_SKINNY],
            [&NN_F32_WIDE, &NN_F32_SQUARE, &NN_F32_SKINNY],
            [&TN_F32_WIDE, &TN_F32_SQUARE, &TN_F32_SQUARE],
        ],
        Operands::Rounded => [
            [&NT_ROUNDED_WIDE, &NT_ROUNDED_SQUARE, &NT_ROUNDED_SKINNY],
            [&NN_ROUNDED_WIDE, &NN_ROUNDED_SQUARE, &NN_ROUNDED_SKINNY],
            [&TN_ROUNDED_WIDE, &TN_ROUNDED_SQUARE, &TN_ROUNDED_SQUARE],
        ],
        Operands::Bf16 => [
            [&NT_BF16_WIDE, &NT_BF16_SQUARE, &NT_BF16_SKINNY],
            [&NN_BF16_WIDE, &NN_BF16_SQUARE, &NN_BF16_SKINNY],
            [&TN_BF16_WIDE, &TN_BF16_SQUARE, &TN_BF16_SQUARE],
        ],
    };
    let of_form = match form {
        Nt => nt,
        Nn => nn,
        Tn => tn,
    };
    Ok(match tile {
        Wide => of_form[0],
        Square => of_form[1],
        Skinny => of_form[2],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::ops::Tensor;
    use half::bf16;

    /// Reproducible numbers without a pattern, f32 or rounded to bf16.
    fn numbers(device: &Device, count: usize, dtype: Dtype) -> Tensor {
        let value = |at: usize| ((at as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0;
        match dtype {
            Dtype::Bf16 => {
                let values: Vec<bf16> = (0..count).map(|at| bf16::from_f32(value(at))).collect();
                Tensor::from_host(device, [count], &values)
            }
            _ => Tensor::from_host(device, [count], &(0..count).map(value).collect::<Vec<f32>>()),
        }
        .unwrap()
    }

    /// Every tile, whatever form and operands: the same bits. Sizes end inside every tile and inside a chunk of k;
    /// strides of a multiple of 16 bytes and others take different ways to shared memory.
    #[test]
    fn tiles_have_the_same_bits() {
        let device = Device::open("sim").unwrap();
        let Device::Gpu(gpu) = &device else { panic!("the simulator is a GPU") };
        let sizes @ [m, n, k] = [83, 150, 296];
        for (form, operands, pad) in [Form::Nt, Form::Nn, Form::Tn].into_iter().flat_map(|form| {
            [Operands::F32, Operands::Rounded, Operands::Bf16]
                .into_iter()
                .flat_map(move |operands| [8, 3].map(|pad| (form, operands, pad)))
        }) {
            let round_up = |value: usize| value.next_multiple_of(8) + pad;
            let [a_shape, b_shape] = match form {
                Form::Nt => [(m, k), (n, k)],
                Form::Nn => [(m, k), (k, n)],
                Form::Tn => [(k, m), (k, n)],
            };
            let a_dtype = if operands == Operands::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
            let b_dtype = match operands {
                Operands::F32 => Dtype::F32,
                Operands::Rounded if form == Form::Tn => Dtype::F32,
                _ => Dtype::Bf16,
            };
            let (a_stride, b_stride) = (round_up(a_shape.1), round_up(b_shape.1));
            let a = numbers(&device, a_shape.0 * a_stride, a_dtype);
            let b = numbers(&device, b_shape.0 * b_stride, b_dtype);
            let run = |tile| {
                let c = numbers(&device, m * n, Dtype::F32);
                let strided = |t: &Tensor, stride| Strided { address: t.view().address().unwrap(), stride };
                let matrices = [strided(&a, a_stride), strided(&b, b_stride), strided(&c, n)];
                let product = Product { add: true, ..Product::new(form, operands, matrices, sizes) };
                product.launch_with(&**gpu, tile).unwrap();
                c.download::<f32>().unwrap()
            };
            let wide = run(Tile::Wide);
            assert_ne!(wide, numbers(&device, m * n, Dtype::F32).download::<f32>().unwrap());
            for tile in [Tile::Square, Tile::Skinny] {
                assert!(run(tile) == wide, "{form:?} {operands:?} stride + {pad}: {tile:?} has other bits");
            }
        }
    }

    #[test]
    fn tiles_suit_their_sizes() {
        for (form, m, n, tile) in [
            (Form::Nt, 1, 50257, Tile::Skinny),
            (Form::Nt, 64, 768, Tile::Skinny),
            (Form::Nt, 64, 50257, Tile::Square),
            (Form::Nn, 256, 768, Tile::Square),
            (Form::Nt, 4096, 768, Tile::Wide),
            (Form::Tn, 16, 50257, Tile::Square),
            (Form::Tn, 3072, 768, Tile::Wide),
        ] {
            assert_eq!(Tile::choose(form, m, n), tile, "{form:?} {m} x {n}");
        }
    }
}
