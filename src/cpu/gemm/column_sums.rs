//! Sums over the rows of a matrix: the gradient of a bias.

use crate::cpu::{Float, isa, parallel};

/// `sums[c] += sum over rows of data[r, c]`, rows in order; `data` is row-major with `sums.len()` columns.
pub fn add_column_sums<T: Float>(data: &[T], sums: &mut [T]) {
    let cols = sums.len();
    if cols == 0 {
        return;
    }
    parallel::rows(sums, 1, data.len() / cols, |first, sums| {
        isa::run(
            #[inline(always)]
            || {
                for row in data.chunks_exact(cols) {
                    let row = &row[first..first + sums.len()];
                    for c in 0..sums.len() {
                        sums[c] += row[c];
                    }
                }
            },
        );
    });
}
