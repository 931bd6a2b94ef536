//! Zeros, sums of gradients that meet, and multiples. Operation: ops/elementwise.rs.

use super::{Float, isa, parallel};

/// y = 0.
pub fn clear<T: Float>(y: &mut [T]) {
    // Storing a number takes as long as a few operations; whole pieces are long enough for the library's fill.
    parallel::rows(y, 64, 4 * 64, |_, y| y.fill(T::ZERO));
}

/// y += x.
pub fn add<T: Float>(x: &[T], y: &mut [T]) {
    parallel::rows(y, 64, 64, |first, y| {
        isa::run(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(&x[first * 64..]) {
                    *y += x;
                }
            },
        );
    });
}

/// y *= factor.
pub fn scale<T: Float>(factor: T, y: &mut [T]) {
    parallel::rows(y, 64, 64, |_, y| {
        isa::run(
            #[inline(always)]
            || {
                for y in y.iter_mut() {
                    *y *= factor;
                }
            },
        );
    });
}
