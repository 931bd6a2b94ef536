//! Layer norm over rows of `x[rows, cols]` (Ba, Kiros & Hinton 2016). Operation: ops/layernorm.rs.
//!
//! ```text
//! forward   mean[r] = mean_c x[r,c]      rstd[r] = 1 / sqrt(mean_c (x[r,c] - mean[r])^2 + eps)
//!           y[r,c]  = h[r,c] * w[c] + b[c]                 h[r,c] = (x[r,c] - mean[r]) * rstd[r]
//! backward  dx[r,c] = rstd * ((dy*w)[c] - mean_k (dy*w)[k] - h[c] * mean_k (dy*w*h)[k])
//!           dw[c]  += sum_r dy[r,c] * h[r,c]
//!           db[c]  += sum_r dy[r,c]
//! ```

use super::float::{Float, sum_slices};
use super::{isa, parallel};

/// y = layernorm(x); writes `statistics[rows, 2]`: mean and rstd.
pub fn forward<T: Float>(x: &[T], w: &[T], b: &[T], eps: f64, y: &mut [T], statistics: &mut [T]) {
    let cols = w.len();
    let eps = T::from_f64(eps);
    let count = T::from_f64(cols as f64);
    parallel::rows2((y, cols), (statistics, 2), 6 * cols, |first, y, statistics| {
        isa::run(
            #[inline(always)]
            || {
                let rows = y.chunks_exact_mut(cols).zip(x[first * cols..].chunks_exact(cols));
                for ((y, x), statistics) in rows.zip(statistics.chunks_exact_mut(2)) {
                    let mean = sum_slices([x], |[x]| x) / count;
                    let variance = sum_slices([x], |[x]| (x - mean) * (x - mean)) / count;
                    let rstd = T::ONE / (variance + eps).sqrt();
                    statistics.copy_from_slice(&[mean, rstd]);
                    for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                        *y = ((*x - mean) * rstd).mul_add(*w, *b);
                    }
                }
            },
        );
    });
}

/// Gradient of the input, assigned.
pub fn backward_dx<T: Float>(dy: &[T], x: &[T], w: &[T], statistics: &[T], dx: &mut [T]) {
    let cols = w.len();
    let count = T::from_f64(cols as f64);
    parallel::rows(dx, cols, 10 * cols, |first, dx| {
        isa::run(
            #[inline(always)]
            || {
                let rows = dx.chunks_exact_mut(cols).zip(dy[first * cols..].chunks_exact(cols));
                let saved = x[first * cols..].chunks_exact(cols).zip(statistics[2 * first..].chunks_exact(2));
                for ((dx, dy), (x, statistics)) in rows.zip(saved) {
                    let (mean, rstd) = (statistics[0], statistics[1]);
                    let level = sum_slices([dy, w], |[dy, w]| dy * w) / count;
                    let slope = sum_slices([dy, w, x], |[dy, w, x]| dy * w * ((x - mean) * rstd)) / count;
                    for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                        let h = (*x - mean) * rstd;
                        *dx = rstd * (*dy * *w - level - h * slope);
                    }
                }
            },
        );
    });
}

/// Gradients of gain and bias, added. Rows are added in order, so the split over columns changes no bit.
pub fn backward_parameters<T: Float>(dy: &[T], x: &[T], statistics: &[T], dw: &mut [T], db: &mut [T]) {
    let cols = dw.len();
    parallel::rows2((dw, 1), (db, 1), 2 * statistics.len(), |first, dw, db| {
        isa::run(
            #[inline(always)]
            || {
                let width = dw.len();
                let rows = dy.chunks_exact(cols).zip(x.chunks_exact(cols)).zip(statistics.chunks_exact(2));
                for ((dy, x), statistics) in rows {
                    let (dy, x) = (&dy[first..first + width], &x[first..first + width]);
                    let (mean, rstd) = (statistics[0], statistics[1]);
                    for (((dw, db), dy), x) in dw.iter_mut().zip(&mut *db).zip(dy).zip(x) {
                        *dw = dy.mul_add((*x - mean) * rstd, *dw);
                        *db += *dy;
                    }
                }
            },
        );
    });
}
