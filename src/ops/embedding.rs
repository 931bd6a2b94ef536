//! Input embeddings of tokens, latents and soft mixtures. CPU: cpu/embedding.rs. Parity: tests/parity/embedding.rs.

use super::index::{expect_indices, expect_rows};
use super::{Tensor, View, ViewMut};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Device, Element};
use cpu::Float;
use half::bf16;

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
    /// `[S, k]`, of the activations' dtype: weights.
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
        soft.weights.expect("embedding soft weights", mixtures, kept, dtype)
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

/// Token rows: `x[n] = table[id]`. Soft rows: `x[n] = sum_j weight_j * table[id_j]`. Latent rows: `x[n]` stays as
/// it is (see [`super::latent::forward`]). Then, with a position table, `x[n] += position_table[position[n]]`.
///
/// `table[V, d]` and `position_table[P, d]` have the dtype of `x[N, d]`, or are bf16 under an f32 `x`.
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
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("embedding")),
    }
    Ok(())
}

/// Gradients of [`forward`]: adds to `dtable[V, d]` and `dposition[P, d]`, assigns `dweights[S, k]`, all in the
/// dtype of `dx[N, d]`. The gradient of a latent row is `dx` itself (see [`super::latent::backward`]).
///
/// # Errors
/// Shapes or dtypes that do not fit; an id or a position outside its table.
pub fn backward(
    dx: View,
    inputs: &Inputs,
    table: &Tensor,
    dtable: &mut Tensor,
    dposition: Option<&mut Tensor>,
    dweights: Option<ViewMut>,
) -> Result<()> {
    let (rows, cols, dtype) = (dx.count(), dx.cols(), dx.dtype());
    let vocabulary = expect_table("embedding table", table, cols)?;
    inputs.expect(rows, dtype)?;
    dtable.expect_shape("embedding dtable", [vocabulary, cols])?;
    dtable.expect_dtype("embedding dtable", dtype)?;
    match dx.device() {
        Device::Cpu(_) => table_dispatch!("embedding table", table.dtype(), dtype, W, T => {
            let dx = dx.slice::<T>()?;
            let soft = inputs.host::<T>(vocabulary)?;
            cpu::embedding::backward_table(dx, soft, cols, dtable.view_mut().slice()?);
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
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("embedding")),
    }
    Ok(())
}

/// The rows of a table of `cols` columns.
fn expect_table(what: &str, table: &Tensor, cols: usize) -> Result<usize> {
    let rows = table.shape().as_matrix().0;
    table.expect_shape(what, [rows, cols])?;
    Ok(rows)
}
