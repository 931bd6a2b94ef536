//! Products by the vendor's library: the operands as it wants them.
//!
//! The library takes factors of one dtype. Where f32 numbers are to be rounded to bf16 as they are read
//! ([`Operands::Rounded`]), they are rounded into memory of the pool first, which is given back at once: the pool keeps
//! it for the next product.

use super::{Form, Operands, Product, Strided};
use crate::base::{Dtype, Error, Result};
use crate::device::{Argument, Launcher, LibraryMatrix, LibraryProduct};
use crate::ops::cast;
use crate::ops::launch::ABSENT;

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

impl Product {
    /// Whether the device has a library that is to compute this product. It adds no f32 bias to a bf16 result.
    pub fn is_for_library(&self, gpu: &dyn Launcher) -> Result<bool> {
        let known = self.bias == ABSENT || self.c_dtype == Dtype::F32;
        Ok(known && !self.sizes.contains(&0) && gpu.library_multiplies(self.gradient)?)
    }

    /// Runs it by the library; what else is to be done with C is not.
    pub fn launch_by_library(&self, gpu: &dyn Launcher) -> Result<()> {
        let [m, n, k] = self.sizes;
        let (a_turned, b_turned) = match self.form {
            Form::Nt => (false, true),
            Form::Nn => (false, false),
            Form::Tn => (true, false),
        };
        let a_lies = if a_turned { [k, m] } else { [m, k] };
        let b_lies = if b_turned { [n, k] } else { [k, n] };
        // Beside f32 gradients of outputs, B is the f32 input; beside activations, a bf16 weight.
        let b_is_f32 = self.form == Form::Tn;
        let (a, _a_memory) = self.factor(gpu, self.a, a_lies, true)?;
        let (b, _b_memory) = self.factor(gpu, self.b, b_lies, b_is_f32)?;
        let dtype = if self.operands == Operands::F32 { Dtype::F32 } else { Dtype::Bf16 };
        let matrix = |address, stride, transposed| LibraryMatrix { address, dtype, stride, transposed };
        gpu.multiply(&LibraryProduct {
            sizes: self.sizes,
            a: matrix(a, self.a.stride, a_turned),
            b: matrix(b, self.b.stride, b_turned),
            c: LibraryMatrix {
                dtype: self.c_dtype,
                ..matrix(address(self.c.address)?, self.c.stride, false)
            },
            add: self.add,
            bias: if self.bias == ABSENT { None } else { Some(address(self.bias)?) },
        })
    }

    /// A factor as the library reads it: where it lies, or rounded to bf16 with the same stride.
    fn factor<'a>(
        &self,
        gpu: &'a dyn Launcher,
        matrix: Strided,
        [rows, cols]: [usize; 2],
        is_f32: bool,
    ) -> Result<(u64, Option<Lent<'a>>)> {
        let from = address(matrix.address)?;
        if self.operands != Operands::Rounded || !is_f32 {
            return Ok((from, None));
        }
        let count = (rows - 1) * matrix.stride + cols;
        let bytes = count * Dtype::Bf16.size();
        let memory = Lent { gpu, address: gpu.allocate(bytes)?, bytes };
        cast::round(gpu, matrix.address, count, Argument::Address(memory.address))?;
        Ok((memory.address, Some(memory)))
    }
}

fn address(argument: Argument) -> Result<u64> {
    match argument {
        Argument::Address(address) => Ok(address),
        other => Err(Error::device(
            format!("an operand of a product is {other:?}, not an address"),
            "this is a fault of src/ops: operands of products are addresses",
        )),
    }
}
