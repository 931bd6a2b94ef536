//! The gated unit of Llama's and Qwen's MLP (Shazeer 2020, "GLU variants"). Operation: ops/swiglu.rs.
//!
//! ```text
//! forward   y = g * s * up                     g = gate, s = sigmoid(g)
//! backward  dup   = dy * g * s
//!           dgate = dy * up * s * (1 + g * (1 - s))
//! ```

use super::float::{Float, LANES};
use super::{isa, parallel};

#[inline(always)]
fn value<T: Float>(gate: T, up: T) -> T {
    gate * gate.sigmoid() * up
}

/// Gradients of gate and up.
#[inline(always)]
fn gradient<T: Float>(dy: T, gate: T, up: T) -> (T, T) {
    let s = gate.sigmoid();
    (dy * up * s * gate.mul_add(T::ONE - s, T::ONE), dy * (gate * s))
}

/// y = silu(gate) * up.
pub fn forward<T: Float>(gate: &[T], up: &[T], y: &mut [T]) {
    parallel::rows(y, 1, 30, |first, y| {
        isa::run(
            #[inline(always)]
            || {
                let (gate, gate_tail) = gate[first..first + y.len()].as_chunks::<LANES>();
                let (up, up_tail) = up[first..first + y.len()].as_chunks::<LANES>();
                let (y, y_tail) = y.as_chunks_mut::<LANES>();
                for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                    for lane in 0..LANES {
                        y[lane] = value(gate[lane], up[lane]);
                    }
                }
                for ((y, gate), up) in y_tail.iter_mut().zip(gate_tail).zip(up_tail) {
                    *y = value(*gate, *up);
                }
            },
        );
    });
}

/// Gradients of the gate and of the other factor, assigned.
pub fn backward<T: Float>(dy: &[T], gate: &[T], up: &[T], dgate: &mut [T], dup: &mut [T]) {
    parallel::rows2((dgate, 1), (dup, 1), 40, |first, dgate, dup| {
        isa::run(
            #[inline(always)]
            || {
                let end = first + dgate.len();
                let (dy, dy_tail) = dy[first..end].as_chunks::<LANES>();
                let (gate, gate_tail) = gate[first..end].as_chunks::<LANES>();
                let (up, up_tail) = up[first..end].as_chunks::<LANES>();
                let (dgate, dgate_tail) = dgate.as_chunks_mut::<LANES>();
                let (dup, dup_tail) = dup.as_chunks_mut::<LANES>();
                for ((((dgate, dup), dy), gate), up) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
                    for lane in 0..LANES {
                        (dgate[lane], dup[lane]) = gradient(dy[lane], gate[lane], up[lane]);
                    }
                }
                let tails = dgate_tail.iter_mut().zip(dup_tail).zip(dy_tail).zip(gate_tail).zip(up_tail);
                for ((((dgate, dup), dy), gate), up) in tails {
                    (*dgate, *dup) = gradient(*dy, *gate, *up);
                }
            },
        );
    });
}
