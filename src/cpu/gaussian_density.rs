//! Log-density of rows under normals of one deviation, up to what is constant. Operation: ops/gaussian_density.rs.
//!
//! ```text
//! forward   score[r] = -scale * sum_c (x[r,c] - m[r,c])^2                  scale = 1 / (2 sigma^2)
//! backward  dm[r,c]  = 2 scale * d[r] * (x[r,c] - m[r,c])
//! ```

use super::float::{Float, sum_slices};
use super::{isa, parallel};

/// Writes the score of each row to `score[rows]`.
pub fn forward<T: Float>(x: &[T], m: &[T], cols: usize, scale: f64, score: &mut [T]) {
    let scale = T::from_f64(scale);
    parallel::rows(score, 1, 3 * cols, |first, score| {
        isa::run(
            #[inline(always)]
            || {
                let rows = x[first * cols..].chunks_exact(cols).zip(m[first * cols..].chunks_exact(cols));
                for (score, (x, m)) in score.iter_mut().zip(rows) {
                    *score = -(scale * sum_slices([x, m], |[x, m]| (x - m) * (x - m)));
                }
            },
        );
    });
}

/// Gradient of the scores by `m`, each weighted by `d[rows]`, assigned.
pub fn backward<T: Float>(x: &[T], m: &[T], d: &[T], cols: usize, scale: f64, dm: &mut [T]) {
    let twice = T::from_f64(2.0 * scale);
    parallel::rows(dm, cols, 3 * cols, |first, dm| {
        isa::run(
            #[inline(always)]
            || {
                let rows = x[first * cols..].chunks_exact(cols).zip(m[first * cols..].chunks_exact(cols));
                for ((dm, (x, m)), d) in dm.chunks_exact_mut(cols).zip(rows).zip(&d[first..]) {
                    let factor = twice * *d;
                    for ((dm, x), m) in dm.iter_mut().zip(x).zip(m) {
                        *dm = factor * (*x - *m);
                    }
                }
            },
        );
    });
}
