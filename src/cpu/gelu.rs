//! GELU in its tanh form (Hendrycks & Gimpel 2016; GPT-2's). Operation: ops/gelu.rs.
//!
//! ```text
//! u = sqrt(2/pi) * (x + 0.044715 x^3)      s = sigmoid(2u) = (1 + tanh u) / 2
//! forward   y  = x * s
//! backward  dx = dy * (s + x * s * (1 - s) * 2u')      u' = sqrt(2/pi) * (1 + 3 * 0.044715 x^2)
//! ```

use super::float::{Float, LANES};
use super::{isa, parallel};

/// 2 sqrt(2/pi).
const TWICE_ROOT: f64 = 1.595_769_121_605_730_7;
const CUBIC: f64 = 0.044_715;

/// s(x) = sigmoid(2u).
#[inline(always)]
fn gate<T: Float>(x: T) -> T {
    (T::from_f64(TWICE_ROOT) * x * (T::from_f64(CUBIC) * x).mul_add(x, T::ONE)).sigmoid()
}

#[inline(always)]
fn value<T: Float>(x: T) -> T {
    x * gate(x)
}

#[inline(always)]
fn gradient<T: Float>(dy: T, x: T) -> T {
    let s = gate(x);
    let slope = T::from_f64(TWICE_ROOT) * (T::from_f64(3.0 * CUBIC) * x).mul_add(x, T::ONE);
    dy * (x * s * (T::ONE - s)).mul_add(slope, s)
}

/// y = gelu(x).
pub fn forward<T: Float>(x: &[T], y: &mut [T]) {
    parallel::rows(y, 1, 30, |first, y| {
        isa::run_widest(
            #[inline(always)]
            || {
                let (x, x_tail) = x[first..first + y.len()].as_chunks::<LANES>();
                let (y, y_tail) = y.as_chunks_mut::<LANES>();
                for (y, x) in y.iter_mut().zip(x) {
                    for lane in 0..LANES {
                        y[lane] = value(x[lane]);
                    }
                }
                for (y, x) in y_tail.iter_mut().zip(x_tail) {
                    *y = value(*x);
                }
            },
        );
    });
}

/// dx = dy * gelu'(x).
pub fn backward<T: Float>(dy: &[T], x: &[T], dx: &mut [T]) {
    parallel::rows(dx, 1, 40, |first, dx| {
        isa::run_widest(
            #[inline(always)]
            || {
                let (x, x_tail) = x[first..first + dx.len()].as_chunks::<LANES>();
                let (dy, dy_tail) = dy[first..first + dx.len()].as_chunks::<LANES>();
                let (dx, dx_tail) = dx.as_chunks_mut::<LANES>();
                for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                    for lane in 0..LANES {
                        dx[lane] = gradient(dy[lane], x[lane]);
                    }
                }
                for ((dx, dy), x) in dx_tail.iter_mut().zip(dy_tail).zip(x_tail) {
                    *dx = gradient(*dy, *x);
                }
            },
        );
    });
}
