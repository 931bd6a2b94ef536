//! RMS norm over rows of `x[rows, cols]` (Zhang & Sennrich 2019). Operation: ops/rmsnorm.rs.
//!
//! ```text
//! forward   rstd[r] = 1 / sqrt(mean_c x[r,c]^2 + eps)      y[r,c] = x[r,c] * rstd[r] * w[c]
//! backward  dx[r,c] = rstd * (dy*w)[c] - x[r,c] * rstd^3 / C * sum_k (dy*w*x)[k]
//!           dw[c]  += sum_r dy[r,c] * x[r,c] * rstd[r]
//! ```

use super::float::{Float, sum_slices};
use super::{isa, parallel};

/// y = x * rstd * w; writes `rstd`, one number a row.
pub fn forward<T: Float>(x: &[T], w: &[T], eps: f64, y: &mut [T], rstd: &mut [T]) {
    let cols = w.len();
    let eps = T::from_f64(eps);
    let count = T::from_f64(cols as f64);
    parallel::rows2((y, cols), (rstd, 1), 4 * cols, |first, y, rstd| {
        isa::run(
            #[inline(always)]
            || {
                let rows = y.chunks_exact_mut(cols).zip(x[first * cols..].chunks_exact(cols));
                for ((y, x), rstd) in rows.zip(rstd) {
                    let mean_square = sum_slices([x], |[x]| x * x) / count;
                    *rstd = T::ONE / (mean_square + eps).sqrt();
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        *y = *x * *rstd * *w;
                    }
                }
            },
        );
    });
}

/// Gradient of the input, assigned.
pub fn backward_dx<T: Float>(dy: &[T], x: &[T], w: &[T], rstd: &[T], dx: &mut [T]) {
    let cols = w.len();
    let count = T::from_f64(cols as f64);
    parallel::rows(dx, cols, 6 * cols, |first, dx| {
        isa::run(
            #[inline(always)]
            || {
                let rows = dx.chunks_exact_mut(cols).zip(dy[first * cols..].chunks_exact(cols));
                for (((dx, dy), x), &rstd) in
                    rows.zip(x[first * cols..].chunks_exact(cols)).zip(&rstd[first..])
                {
                    let dot = sum_slices([dy, w, x], |[dy, w, x]| dy * w * x);
                    let scale = rstd * rstd * rstd * dot / count;
                    for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                        *dx = rstd * *dy * *w - *x * scale;
                    }
                }
            },
        );
    });
}

/// Gradient of the gain, added to `dw`. Rows are added in order, so the split over columns changes no bit.
pub fn backward_dw<T: Float>(dy: &[T], x: &[T], rstd: &[T], dw: &mut [T]) {
    let cols = dw.len();
    parallel::rows(dw, 1, 2 * rstd.len(), |first, dw| {
        isa::run(
            #[inline(always)]
            || {
                for ((dy, x), &rstd) in dy.chunks_exact(cols).zip(x.chunks_exact(cols)).zip(rstd) {
                    let (dy, x) = (&dy[first..first + dw.len()], &x[first..first + dw.len()]);
                    for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                        *dw += *dy * *x * rstd;
                    }
                }
            },
        );
    });
}
