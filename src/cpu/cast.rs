//! The same numbers in another dtype. Operation: ops/cast.rs.

use super::{isa, parallel};
use half::bf16;

/// Rounds to nearest, ties to even; a NaN stays one.
pub fn to_bf16(x: &[f32], y: &mut [bf16]) {
    parallel::elements(y, 2, |first, y| {
        isa::run(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(&x[first..]) {
                    *y = bf16::from_f32(x);
                }
            },
        );
    });
}

/// Widens, exactly.
pub fn to_f32(x: &[bf16], y: &mut [f32]) {
    parallel::elements(y, 2, |first, y| {
        isa::run(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(&x[first..]) {
                    *y = x.to_f32();
                }
            },
        );
    });
}
