//! Matrix products of a GPU, C = A B (+ bias) or C += A B: what linear maps and the output head launch. Kernels:
//! cuda/gemm.cuh through cuda/linear.cu, where the order of summation is stated: it depends on K alone.
//!
//! ```text
//! product/tiles     how C is cut into blocks, and the kernel of each form, dtype and tile
//! product/hopper    the kernels of compute capability 9.0: the same bits, faster
//! product/rounding  f32 factors rounded to bf16 in memory: the same bits, faster where products are large
//! product/library   the vendor's library, where it is installed and was chosen (gradients by default): other bits
//! ```
//!
//! Operands are addresses with strides, so that windows of weights and of workspaces need no copies. Callers have
//! checked shapes and dtypes; see [`super::linear`].

mod hopper;
mod library;
mod rounding;
mod tiles;

use super::launch::{ABSENT, arguments, size};
use crate::base::{Dtype, Error, Result};
use crate::device::{Argument, Grid, Kernel, Launcher};
use tiles::Tile;

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

    /// Runs it: by the library where that is to ([`Product::is_for_library`]) and C is all there is to write, else by the
    /// kernel that suits its size and the device.
    pub fn launch(&self, gpu: &dyn Launcher) -> Result<()> {
        if self.activated == ABSENT && self.is_for_library(gpu)? {
            return self.launch_by_library(gpu);
        }
        if self.is_empty() {
            return Ok(());
        }
        let tile = Tile::choose(self, gpu.properties().multiprocessors);
        // A step that is captured may take no memory.
        match (self.operands == Operands::Rounded && tile == Tile::Wide, gpu.captures()) {
            (true, false) => self.launch_rounded(gpu),
            (true, true) => self.launch_own(gpu, Tile::Square),
            (false, _) => self.launch_own(gpu, tile),
        }
    }

    /// Runs it by the device's kernel for `tile`.
    fn launch_own(&self, gpu: &dyn Launcher, tile: Tile) -> Result<()> {
        match hopper::choose(self, tile, gpu.properties()) {
            Some(warpgroups) => self.launch_as(gpu, warpgroups.kernel, warpgroups.grid(self)?),
            None => self.launch_with(gpu, tile),
        }
    }

    /// Whether there is nothing to write.
    fn is_empty(&self) -> bool {
        let [m, n, k] = self.sizes;
        m == 0 || n == 0 || (k == 0 && self.add)
    }

    /// Runs it with a given tile of cuda/linear.cu.
    ///
    /// # Errors
    /// A tile that this form and these operands have no kernel of.
    fn launch_with(&self, gpu: &dyn Launcher, tile: Tile) -> Result<()> {
        let Some(kernel) = tiles::kernel(self.form, self.operands, tile) else {
            return Err(Error::device(
                format!("a product {:?} of {:?} has no kernel of tile {tile:?}", self.form, self.operands),
                "this is a fault of src/ops/product: it asks for a tile that tiles::kernel does not have",
            ));
        };
        let blocks = tile.blocks(self.sizes[0], self.sizes[1]);
        let shared_bytes = tile.shared_bytes(self.form, self.operands);
        let grid = Grid {
            shared_bytes: size("shared memory of a product", shared_bytes)?,
            ..Grid::linear(size("blocks of a product", blocks)?, tile.threads())
        };
        self.launch_as(gpu, kernel, grid)
    }

    /// Runs it as `kernel`, all of which take the same arguments.
    fn launch_as(&self, gpu: &dyn Launcher, kernel: &'static Kernel, grid: Grid) -> Result<()> {
        let [m, n, k] = self.sizes;
        let flags = if self.add { ADD } else { 0 }
            | match (self.c_dtype, self.operands) {
                (Dtype::F32, _) => 0,
                (Dtype::Bf16, Operands::Bf16) => C_IS_BF16,
                (other, _) => return Err(Error::dtype("product", other, "f32, or bf16 from bf16 operands")),
            };
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
        gpu.launch(kernel, grid, &arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, SimulatorOptions};
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
        let hopper = SimulatorOptions { compute_capability: (9, 0), ..Default::default() };
        let device = Device::simulated_with(hopper);
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
            let run = |way: &dyn Fn(&Product)| {
                let c = numbers(&device, m * n, Dtype::F32);
                let strided = |t: &Tensor, stride| Strided { address: t.view().address().unwrap(), stride };
                let matrices = [strided(&a, a_stride), strided(&b, b_stride), strided(&c, n)];
                let product = Product { add: true, ..Product::new(form, operands, matrices, sizes) };
                way(&product);
                c.download::<f32>().unwrap()
            };
            let tiled = |tile| run(&|product: &Product| product.launch_with(&**gpu, tile).unwrap());
            let square = tiled(Tile::Square);
            assert_ne!(square, numbers(&device, m * n, Dtype::F32).download::<f32>().unwrap());
            for tile in [Tile::Wide, Tile::Skinny, Tile::Narrow] {
                if tiles::kernel(form, operands, tile).is_some() {
                    assert!(
                        tiled(tile) == square,
                        "{form:?} {operands:?} stride + {pad}: {tile:?} has other bits"
                    );
                }
            }
            let kernels = hopper::kernels_of(form).filter(|_| operands == Operands::Bf16 && pad == 8);
            for warpgroups in kernels.into_iter().flatten() {
                let found = run(&|product: &Product| {
                    let grid = warpgroups.grid(product).unwrap();
                    product.launch_as(&**gpu, warpgroups.kernel, grid).unwrap();
                });
                assert!(found == square, "{form:?}: {warpgroups:?} has other bits");
            }
            if operands == Operands::Rounded {
                let rounded = run(&|product: &Product| product.launch_rounded(&**gpu).unwrap());
                assert!(rounded == square, "{form:?} stride + {pad}: rounded in memory");
            }
        }
    }
}
