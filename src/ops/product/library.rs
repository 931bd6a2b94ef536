//! Products by the vendor's library: the operands as it wants them.
//!
//! The library takes factors of one dtype: f32 numbers that are to be rounded are rounded in memory first.

use super::rounding::address;
use super::{Form, Operands, Product};
use crate::base::{Dtype, Result};
use crate::device::{Launcher, LibraryMatrix, LibraryProduct};
use crate::ops::launch::ABSENT;

impl Product {
    /// Whether the device has a library that is to compute this product. It adds no f32 bias to a bf16 result.
    pub fn is_for_library(&self, gpu: &dyn Launcher) -> Result<bool> {
        let known = self.bias == ABSENT || self.c_dtype == Dtype::F32;
        Ok(known && !self.sizes.contains(&0) && gpu.library_multiplies(self.gradient)?)
    }

    /// Runs it by the library; what else is to be done with C is not.
    pub fn launch_by_library(&self, gpu: &dyn Launcher) -> Result<()> {
        let (a_turned, b_turned) = match self.form {
            Form::Nt => (false, true),
            Form::Nn => (false, false),
            Form::Tn => (true, false),
        };
        let factors = self.factors(gpu)?;
        let [a, b] = [factors.a(), factors.b()];
        let dtype = if self.operands == Operands::F32 { Dtype::F32 } else { Dtype::Bf16 };
        let matrix = |address, stride, transposed| LibraryMatrix { address, dtype, stride, transposed };
        gpu.multiply(&LibraryProduct {
            sizes: self.sizes,
            a: matrix(address(a.address)?, a.stride, a_turned),
            b: matrix(address(b.address)?, b.stride, b_turned),
            c: LibraryMatrix {
                dtype: self.c_dtype,
                ..matrix(address(self.c.address)?, self.c.stride, false)
            },
            add: self.add,
            bias: if self.bias == ABSENT { None } else { Some(address(self.bias)?) },
        })
    }
}
