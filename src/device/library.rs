//! Matrix products by the vendor's library, where one is installed. Our own kernels need none; the library is a choice
//! for gradients, whose bits nothing is compared with, and the rival of our kernels in benches.

use crate::base::{Dtype, Error, Result};

/// Who multiplies matrices on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Matmul {
    /// The library where one is installed, and starts, for gradients of linear maps, whose bits nothing is compared with;
    /// our kernels for everything else.
    #[default]
    Auto,
    /// Our kernels alone.
    Own,
    /// The library for forward products too. Its sums may depend on the number of rows: a rollout and its replay then
    /// differ, and the replay gap says by how much.
    Library,
}

impl std::str::FromStr for Matmul {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Matmul::Auto),
            "latch" => Ok(Matmul::Own),
            "cublaslt" => Ok(Matmul::Library),
            other => Err(format!("unknown multiplier `{other}`; known: auto, latch, cublaslt")),
        }
    }
}

/// A row-major matrix on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryMatrix {
    /// Its first element.
    pub address: u64,
    /// f32 or bf16.
    pub dtype: Dtype,
    /// Elements from one row to the next.
    pub stride: usize,
    /// The matrix that takes part is the transpose of the one that lies there.
    pub transposed: bool,
}

/// C = A B, or C += A B, with sums in f32, those of parts of k included; row-major, in an order of summation that the
/// library chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryProduct {
    /// m, n and k: C is `[m, n]`, A `[m, k]`, B `[k, n]`, after their transpositions.
    pub sizes: [usize; 3],
    /// The left factor.
    pub a: LibraryMatrix,
    /// The right factor, of A's dtype.
    pub b: LibraryMatrix,
    /// The result: f32, or bf16 beside bf16 factors; not transposed.
    pub c: LibraryMatrix,
    /// Adds to C.
    pub add: bool,
    /// Address of f32 `[n]` that is added to each row; beside an f32 result.
    pub bias: Option<u64>,
}

impl LibraryProduct {
    /// Checks what the library would only answer with a number.
    ///
    /// # Errors
    /// Dtypes that do not go together, a bias beside a bf16 result, a result that is transposed, rows that overlap, an empty product.
    pub(super) fn check(&self) -> Result<()> {
        let [m, n, k] = self.sizes;
        if m == 0 || n == 0 || k == 0 {
            return Err(Error::shape("product of the library", format!("{m} x {n} x {k}"), "no size of 0"));
        }
        let (a, b, c) = (self.a.dtype, self.b.dtype, self.c.dtype);
        if a != b || !matches!((a, c), (Dtype::F32, Dtype::F32) | (Dtype::Bf16, Dtype::Bf16 | Dtype::F32)) {
            return Err(Error::dtype(
                "product of the library",
                format!("{a} x {b} -> {c}"),
                "f32 x f32 -> f32, bf16 x bf16 -> bf16 or f32",
            ));
        }
        if self.bias.is_some() && c != Dtype::F32 {
            return Err(Error::dtype("bias of the library's product", c, "an f32 result"));
        }
        let columns = |matrix: &LibraryMatrix, rows, cols| if matrix.transposed { rows } else { cols };
        for (name, matrix, cols) in [
            ("A", &self.a, columns(&self.a, m, k)),
            ("B", &self.b, columns(&self.b, k, n)),
            ("C", &self.c, n),
        ] {
            if matrix.stride < cols || (name == "C" && matrix.transposed) {
                return Err(Error::shape(
                    format!("product of the library, {name}"),
                    format!("stride {}, transposed: {}", matrix.stride, matrix.transposed),
                    format!("at least {cols} elements between rows, and C as it lies"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_do_not_fit_are_refused() {
        let matrix = |dtype, stride| LibraryMatrix { address: 256, dtype, stride, transposed: false };
        let good = LibraryProduct {
            sizes: [2, 3, 4],
            a: matrix(Dtype::Bf16, 4),
            b: matrix(Dtype::Bf16, 3),
            c: matrix(Dtype::F32, 3),
            add: true,
            bias: Some(256),
        };
        good.check().unwrap();
        // Transposed, A lies as [4, 2].
        let turned = LibraryMatrix { stride: 2, transposed: true, ..good.a };
        LibraryProduct { a: turned, ..good }.check().unwrap();
        for (wrong, says) in [
            (LibraryProduct { sizes: [2, 0, 4], ..good }, "no size of 0"),
            (LibraryProduct { a: matrix(Dtype::F32, 4), ..good }, "f32 x bf16 -> f32"),
            (LibraryProduct { a: matrix(Dtype::Bf16, 3), ..good }, "at least 4 elements between rows"),
            (LibraryProduct { c: LibraryMatrix { transposed: true, ..good.c }, ..good }, "C as it lies"),
            (LibraryProduct { c: matrix(Dtype::Bf16, 3), ..good }, "an f32 result"),
        ] {
            let message = wrong.check().unwrap_err().to_string();
            assert!(message.contains(says), "{says}: {message}");
        }
    }
}
