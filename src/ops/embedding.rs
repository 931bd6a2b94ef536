//! Input embeddings of tokens, latents and soft mixtures. Kernels: cuda/embedding.cu, sums over rows cuda/scatter.cu.
//! CPU: cpu/embedding.rs. Parity: tests/parity/embedding.rs.

use super::index::{expect_indices, expect_rows};
use super::launch::{ABSENT, arguments, kernels, row_grid, size};
use super::scatter::{self, Contributions, Order};
use super::{Tensor, View, ViewMut};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Argument, Device, Element, Grid, Kernel};
use cpu::Float;
use half::bf16;

kernels!("embedding":
    FORWARD_F32 = "embedding_fwd_f32",
    FORWARD_BF16 = "embedding_fwd_bf16",
    FORWARD_MIXED = "embedding_fwd_mixed",
    WEIGHTS_F32 = "embedding_bwd_weights_f32",
    WEIGHTS_BF16 = "embedding_bwd_weights_bf16",
    WEIGHTS_MIXED = "embedding_bwd_weights_mixed",
);

/// Threads of a block of the kernels for the weights' gradient; `__launch_bounds__`.
const WEIGHTS_BLOCK: u32 = 256;

/// What stands at each of N packed positions.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// I32 `[N, 1]`: a token (>= 0), a latent (-1), or row s of `soft` (-2-s).
    pub ids: View<'a>,
    /// U32 `[N, 1]`: rows of the position table.
    pub positions: View<'a>,
    /// The mixtures that soft positions name.
    pub soft: Option<Soft<'a>>,
}

/// Mixtures of k tokens.
#[derive(Clone, Copy, Debug)]
pub struct Soft<'a> {
    /// U32 `[S, k]`: token ids.
    pub ids: View<'a>,
    /// `[S, k]`: weights, in the accumulation dtype of the activations' (f32 beside bf16).
    pub weights: View<'a>,
}

/// Runs `$body` with `$table` and `$type` set to the table's and the activations' element types.
macro_rules! table_dispatch {
    ($what:expr, $found:expr, $x:expr, $table:ident, $type:ident => $body:expr) => {
        match ($found, $x) {
            (Dtype::F32, Dtype::F32) => {
                type $table = f32;
                type $type = f32;
                $body
            }
            (Dtype::F64, Dtype::F64) => {
                type $table = f64;
                type $type = f64;
                $body
            }
            (Dtype::Bf16, Dtype::F32) => {
                type $table = bf16;
                type $type = f32;
                $body
            }
            (found, x) => return Err(Error::dtype(format!("{} with {x} activations", $what), found, $x)),
        }
    };
}

impl<'a> Inputs<'a> {
    fn expect(&self, rows: usize, dtype: Dtype) -> Result<()> {
        self.ids.expect("embedding ids", rows, 1, Dtype::I32)?;
        self.positions.expect("embedding positions", rows, 1, Dtype::U32)?;
        let Some(soft) = &self.soft else { return Ok(()) };
        let (mixtures, kept) = (soft.ids.count(), soft.ids.cols());
        soft.ids.expect("embedding soft ids", mixtures, kept, Dtype::U32)?;
        soft.weights.expect("embedding soft weights", mixtures, kept, dtype.accumulation())
    }

    /// Ids, weights, mixtures and terms of a mixture, as kernels take them.
    fn soft_arguments(&self) -> Result<[Argument; 4]> {
        match self.soft {
            Some(soft) => Ok([
                soft.ids.address()?,
                soft.weights.address()?,
                size("mixtures", soft.ids.count())?.into(),
                size("terms", soft.ids.cols())?.into(),
            ]),
            None => Ok([ABSENT, ABSENT, Argument::U32(0), Argument::U32(0)]),
        }
    }

    /// The form of the CPU kernels; fails where an index would leave a table of `vocabulary` rows.
    fn host<T: Float + Element>(&self, vocabulary: usize) -> Result<cpu::embedding::Inputs<'a, T>> {
        let ids = self.ids.slice::<i32>()?;
        let mixtures = self.soft.map_or(0, |soft| soft.ids.count());
        expect_indices("embedding ids", ids, -1 - mixtures as i32, vocabulary)?;
        let (soft_ids, soft_weights, kept): (&[u32], &[T], usize) = match &self.soft {
            Some(soft) => (soft.ids.slice()?, soft.weights.slice()?, soft.ids.cols()),
            None => (&[], &[], 0),
        };
        expect_rows("embedding soft ids", soft_ids, vocabulary)?;
        Ok(cpu::embedding::Inputs { ids, soft_ids, soft_weights, kept })
    }
}

/// The kernel for a table under activations.
fn kernel(table: Dtype, x: Dtype, [f32, bf16, mixed]: [&'static Kernel; 3]) -> Result<&'static Kernel> {
    match (table, x) {
        (Dtype::F32, Dtype::F32) => Ok(f32),
        (Dtype::Bf16, Dtype::Bf16) => Ok(bf16),
        (Dtype::Bf16, Dtype::F32) => Ok(mixed),
        (found, x) => Err(Error::dtype(
            "embedding table",
            format!("{found} with {x} activations"),
            "f32 or bf16 on a GPU",
        )),
    }
}

/// Token rows: `x[n] = table[id]`. Soft rows: `x[n] = sum_j weight_j * table[id_j]`. Latent rows: `x[n]` stays as
/// it is (see [`super::latent::forward`]). Then, with a position table, `x[n] += position_table[position[n]]`.
///
/// `table[V, d]` and `position_table[P, d]` have the dtype of `x[N, d]`, or are bf16 under an f32 `x` (on a GPU both).
///
/// # Errors
/// Shapes or dtypes that do not fit; an id or a position outside its table.
pub fn forward(
    inputs: &Inputs,
    table: &Tensor,
    position_table: Option<&Tensor>,
    mut x: ViewMut,
) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    let vocabulary = expect_table("embedding table", table, cols)?;
    inputs.expect(rows, dtype)?;
    match table.device() {
        Device::Cpu(_) => {
            table_dispatch!("embedding table", table.dtype(), dtype, W, T => {
                let inputs = inputs.host::<T>(vocabulary)?;
                cpu::embedding::forward::<W, T>(inputs, table.view().slice()?, cols, x.slice()?);
            });
            if let Some(table) = position_table {
                let length = expect_table("embedding position table", table, cols)?;
                let positions = inputs.positions.slice()?;
                expect_rows("embedding positions", positions, length)?;
                table_dispatch!("embedding position table", table.dtype(), dtype, W, T => {
                    let table = table.view().slice::<W>()?;
                    cpu::embedding::add_positions::<W, T>(positions, table, cols, x.slice()?);
                });
            }
        }
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = kernel(table.dtype(), dtype, [&FORWARD_F32, &FORWARD_BF16, &FORWARD_MIXED])?;
            let (positions, length) = match position_table {
                Some(positions) => {
                    positions.expect_dtype("embedding position table", table.dtype())?;
                    let length = expect_table("embedding position table", positions, cols)?;
                    (positions.view().address()?, length)
                }
                None => (ABSENT, 0),
            };
            let mut list = vec![inputs.ids.address()?, inputs.positions.address()?];
            list.extend(inputs.soft_arguments()?);
            list.extend(arguments![
                table.view().address()?,
                size("vocabulary", vocabulary)?,
                positions,
                size("positions", length)?,
                size("embedding rows", rows)?,
                size("columns", cols)?,
                x.address()?,
            ]);
            gpu.launch(kernel, row_grid("embedding rows", rows, cols)?, &list)?;
        }
    }
    Ok(())
}

/// Gradients of [`forward`]: adds to `dtable[V, d]` (none = a frozen table) and `dposition[P, d]`, assigns `dweights[S, k]`, all in the
/// accumulation dtype of `dx[N, d]`. The gradient of a latent row is `dx` itself (see [`super::latent::backward`]).
///
/// # Errors
/// Shapes or dtypes that do not fit; an id or a position outside its table.
pub fn backward<'a>(
    dx: View,
    inputs: &Inputs,
    table: &Tensor,
    dtable: impl Into<Option<&'a mut Tensor>>,
    dposition: Option<&mut Tensor>,
    dweights: Option<ViewMut>,
    order: &mut Order,
) -> Result<()> {
    let (rows, cols, dtype) = (dx.count(), dx.cols(), dx.dtype());
    let vocabulary = expect_table("embedding table", table, cols)?;
    inputs.expect(rows, dtype)?;
    let dtable: Option<&mut Tensor> = dtable.into();
    if let Some(dtable) = &dtable {
        dtable.expect_shape("embedding dtable", [vocabulary, cols])?;
        dtable.expect_dtype("embedding dtable", dtype.accumulation())?;
    }
    match dx.device() {
        Device::Cpu(_) => table_dispatch!("embedding table", table.dtype(), dtype, W, T => {
            let dx = dx.slice::<T>()?;
            let soft = inputs.host::<T>(vocabulary)?;
            if let Some(dtable) = dtable {
                cpu::embedding::backward_table(dx, soft, cols, dtable.view_mut().slice()?);
            }
            if let Some(dposition) = dposition {
                let length = expect_table("embedding dposition", dposition, cols)?;
                let positions = inputs.positions.slice()?;
                expect_rows("embedding positions", positions, length)?;
                cpu::embedding::backward_positions(dx, positions, cols, dposition.view_mut().slice()?);
            }
            if let Some(mut dweights) = dweights {
                let mixtures = inputs.soft.map_or(0, |soft| soft.ids.count());
                dweights.expect("embedding dweights", mixtures, soft.kept, dtype)?;
                let table = table.view().slice::<W>()?;
                cpu::embedding::backward_weights::<W, T>(dx, soft, table, cols, dweights.slice()?);
            }
        }),
        Device::Gpu(gpu) => {
            if let Some(dtable) = dtable {
                let tokens = Contributions::Tokens(inputs.ids, inputs.soft);
                scatter::add(&**gpu, tokens, dx, dtable.view_mut(), order)?;
            }
            if let Some(dposition) = dposition {
                expect_table("embedding dposition", dposition, cols)?;
                dposition.expect_dtype("embedding dposition", dtype.accumulation())?;
                let rows = Contributions::Rows(inputs.positions);
                scatter::add(&**gpu, rows, dx, dposition.view_mut(), order)?;
            }
            if let Some(dweights) = dweights {
                let [soft_ids, _, _, terms] = inputs.soft_arguments()?;
                let (count, kept) = inputs.soft.map_or((0, 0), |soft| (soft.ids.count(), soft.ids.cols()));
                dweights.expect("embedding dweights", count, kept, dtype.accumulation())?;
                let kernel = kernel(table.dtype(), dtype, [&WEIGHTS_F32, &WEIGHTS_BF16, &WEIGHTS_MIXED])?;
                if count * kept > 0 {
                    let list = arguments![
                        inputs.ids.address()?,
                        size("embedding rows", rows)?,
                        soft_ids,
                        terms,
                        table.view().address()?,
                        size("vocabulary", vocabulary)?,
                        dx.address()?,
                        size("columns", cols)?,
                        dweights.address()?,
                    ];
                    gpu.launch(kernel, Grid::linear(size("mixtures", count)?, WEIGHTS_BLOCK), &list)?;
                }
            }
        }
    }
    Ok(())
}

/// The rows of a table of `cols` columns.
fn expect_table(what: &str, table: &Tensor, cols: usize) -> Result<usize> {
    let rows = table.shape().as_matrix().0;
    table.expect_shape(what, [rows, cols])?;
    Ok(rows)
}
