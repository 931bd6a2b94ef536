//! Smooth L1 distance of rows (Girshick 2015; torch.nn.SmoothL1Loss). Operation: ops/smooth_l1.rs.
//!
//! ```text
//! l(e) = e^2 / (2 beta) where |e| < beta, else |e| - beta / 2              e = x - t
//! forward   loss[r] = sum_c l(x[r,c] - t[r,c])     mean[r] = sum_c t[r,c] / C     spread[r] = sum_c (t[r,c] - mean[r])^2
//! backward  dx[r,c] = scale * clamp(e / beta, -1, 1)
//! ```

use super::float::{Float, sum_slices};
use super::{isa, parallel};

/// The term of one difference.
#[inline(always)]
fn term<T: Float>(difference: T, beta: T) -> T {
    let half = T::from_f64(0.5);
    let size = difference.abs();
    if size < beta { half * difference * difference / beta } else { size - half * beta }
}

/// Writes loss, mean and spread of each row to `statistics[rows, 3]`.
pub fn forward<T: Float>(x: &[T], t: &[T], cols: usize, beta: f64, statistics: &mut [T]) {
    let (beta, count) = (T::from_f64(beta), T::from_f64(cols as f64));
    parallel::rows(statistics, 3, 8 * cols, |first, statistics| {
        isa::run(
            #[inline(always)]
            || {
                let rows = x[first * cols..].chunks_exact(cols).zip(t[first * cols..].chunks_exact(cols));
                for (out, (x, t)) in statistics.chunks_exact_mut(3).zip(rows) {
                    let mean = sum_slices([t], |[t]| t) / count;
                    out[0] = sum_slices([x, t], |[x, t]| term(x - t, beta));
                    out[1] = mean;
                    out[2] = sum_slices([t], |[t]| (t - mean) * (t - mean));
                }
            },
        );
    });
}

/// Gradient of `scale` times the sum of all losses, assigned.
pub fn backward<T: Float>(x: &[T], t: &[T], beta: f64, scale: f64, dx: &mut [T]) {
    let (inverse, scale) = (T::from_f64(1.0 / beta), T::from_f64(scale));
    parallel::rows(dx, 1, 6, |first, dx| {
        isa::run(
            #[inline(always)]
            || {
                for ((dx, x), t) in dx.iter_mut().zip(&x[first..]).zip(&t[first..]) {
                    let slope = (*x - *t) * inverse;
                    let low = if slope < -T::ONE { -T::ONE } else { slope };
                    *dx = scale * if low > T::ONE { T::ONE } else { low };
                }
            },
        );
    });
}
