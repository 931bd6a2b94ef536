//! f32 factors of [`Operands::Rounded`], rounded to bf16 in memory of the pool, which is given back at once: the pool keeps
//! it for the next product.
//!
//! A kernel that rounds as it reads rounds a number once for every tile that needs it, and moves twice the bytes. The
//! product of rounded factors has its bits.

use super::tiles::Tile;
use super::{Form, Operands, Product, Strided};
use crate::base::{Dtype, Error, Result};
use crate::device::{Argument, Launcher};
use crate::ops::cast;

/// Memory of the pool for the time of a call.
struct Lent<'a> {
    gpu: &'a dyn Launcher,
    address: u64,
    bytes: usize,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.gpu.free(self.address, self.bytes);
    }
}

/// One factor of a product: where it lies, or a rounded copy with the same stride.
struct Factor<'a> {
    matrix: Strided,
    _copy: Option<Lent<'a>>,
}

/// Both factors, in one dtype.
pub(super) struct Factors<'a>([Factor<'a>; 2]);

impl Factors<'_> {
    pub fn a(&self) -> Strided {
        self.0[0].matrix
    }

    pub fn b(&self) -> Strided {
        self.0[1].matrix
    }
}

impl Product {
    /// The factors in one dtype: rounded where they are to be.
    pub(super) fn factors<'a>(&self, gpu: &'a dyn Launcher) -> Result<Factors<'a>> {
        let [m, n, k] = self.sizes;
        let a_lies = if self.form == Form::Tn { [k, m] } else { [m, k] };
        let b_lies = if self.form == Form::Nt { [n, k] } else { [k, n] };
        // Beside f32 gradients of outputs, B is the f32 input; beside activations, a bf16 weight.
        let rounds = self.operands == Operands::Rounded;
        Ok(Factors([
            factor(gpu, self.a, a_lies, rounds)?,
            factor(gpu, self.b, b_lies, rounds && self.form == Form::Tn)?,
        ]))
    }

    /// Runs a product of [`Operands::Rounded`] as one of rounded factors. It allocates: not for captured steps.
    pub(super) fn launch_rounded(&self, gpu: &dyn Launcher) -> Result<()> {
        let factors = self.factors(gpu)?;
        Product { operands: Operands::Bf16, a: factors.a(), b: factors.b(), ..*self }
            .launch_own(gpu, Tile::Wide)
    }
}

fn factor<'a>(
    gpu: &'a dyn Launcher,
    matrix: Strided,
    [rows, cols]: [usize; 2],
    round: bool,
) -> Result<Factor<'a>> {
    if !round {
        return Ok(Factor { matrix, _copy: None });
    }
    let count = (rows - 1) * matrix.stride + cols;
    let bytes = count * Dtype::Bf16.size();
    let copy = Lent { gpu, address: gpu.allocate(bytes)?, bytes };
    let address = Argument::Address(copy.address);
    cast::round(gpu, matrix.address, count, address)?;
    Ok(Factor { matrix: Strided { address, ..matrix }, _copy: Some(copy) })
}

/// Where an operand lies.
pub(super) fn address(argument: Argument) -> Result<u64> {
    match argument {
        Argument::Address(address) => Ok(address),
        other => Err(Error::device(
            format!("an operand of a product is {other:?}, not an address"),
            "this is a fault of src/ops: operands of products are addresses",
        )),
    }
}
