//! Rows picked by index. Operation: ops/gather.rs.
//!
//! ```text
//! forward   y[n] = x[index[n]]
//! backward  dx[index[n]] += dy[n]      n ascending
//! ```

use super::float::Float;
use super::{embedding, isa, parallel};

/// y = x[index] over rows of `cols`.
pub fn forward<T: Float>(x: &[T], index: &[u32], cols: usize, y: &mut [T]) {
    parallel::rows(y, cols, cols, |first, y| {
        isa::run(
            #[inline(always)]
            || {
                for (y, &index) in y.chunks_exact_mut(cols).zip(&index[first..]) {
                    let from = index as usize * cols;
                    y.copy_from_slice(&x[from..from + cols]);
                }
            },
        );
    });
}

/// Gradient of x, added in the order of the index: the same sum as that of a position table.
pub fn backward<T: Float>(dy: &[T], index: &[u32], cols: usize, dx: &mut [T]) {
    embedding::backward_positions(dy, index, cols, dx);
}
