//! The residual sum with a masked branch. Operation: ops/masked_residual.rs.
//!
//! ```text
//! forward   y[n,c] = x[n,c] + m[n,c] * branch[n,c]      m = 0 or 1/(1-p); 1 in rows without a mask
//! backward  dbranch[n,c] = m[n,c] * dy[n,c]             dx = dy is the residual stream itself
//! ```

use super::float::Float;
use super::mask::{Mask, add_row, assign_row};
use super::{isa, parallel};

/// y = x + m * branch over rows of `cols`.
pub fn forward<T: Float>(x: &[T], branch: &[T], mask: Option<Mask>, cols: usize, y: &mut [T]) {
    let scale = T::from_f64(mask.map_or(1.0, |mask| mask.scale));
    parallel::rows(y, cols, 2 * cols, |first, y| {
        isa::run(
            #[inline(always)]
            || {
                let rows =
                    x[first * cols..].chunks_exact(cols).zip(branch[first * cols..].chunks_exact(cols));
                for (n, (y, (x, branch))) in y.chunks_exact_mut(cols).zip(rows).enumerate() {
                    y.copy_from_slice(x);
                    add_row(mask.and_then(|mask| mask.row(first + n)), scale, branch, y);
                }
            },
        );
    });
}

/// dbranch = m * dy.
pub fn backward<T: Float>(dy: &[T], mask: Option<Mask>, cols: usize, dbranch: &mut [T]) {
    let scale = T::from_f64(mask.map_or(1.0, |mask| mask.scale));
    parallel::rows(dbranch, cols, 2 * cols, |first, dbranch| {
        isa::run(
            #[inline(always)]
            || {
                let rows = dbranch.chunks_exact_mut(cols).zip(dy[first * cols..].chunks_exact(cols));
                for (n, (dbranch, dy)) in rows.enumerate() {
                    assign_row(mask.and_then(|mask| mask.row(first + n)), scale, dy, dbranch);
                }
            },
        );
    });
}
