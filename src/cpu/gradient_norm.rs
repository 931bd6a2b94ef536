//! The L2 norm over all gradients, in one fixed order. Operation: ops/gradient_norm.rs.
//!
//! ```text
//! sum[k] = sum of x[i]^2 over chunk k of 4096 elements     sixteen lanes in T, then one f64 number a chunk
//! norm   = sqrt(sum of sum[k], k ascending, in f64)
//! scale  = min(1, max_norm / (norm + 1e-6))
//! ```

use super::float::{Float, LANES, sum_lanes};
use super::{isa, parallel};

/// Elements of one chunk; a tensor starts a chunk of its own.
pub const CHUNK: usize = 4096;

/// The chunk sums of one tensor's squares; `sums` has one number for each started chunk.
pub fn chunk_sums<T: Float>(x: &[T], sums: &mut [f64]) {
    parallel::rows(sums, 1, CHUNK, |first, sums| {
        isa::run(
            #[inline(always)]
            || {
                for (sum, x) in sums.iter_mut().zip(x[first * CHUNK..].chunks(CHUNK)) {
                    let mut lanes = [T::ZERO; LANES];
                    let (x, tail) = x.as_chunks::<LANES>();
                    for x in x {
                        for lane in 0..LANES {
                            lanes[lane] = x[lane].mul_add(x[lane], lanes[lane]);
                        }
                    }
                    for (lane, x) in lanes.iter_mut().zip(tail) {
                        *lane = x.mul_add(*x, *lane);
                    }
                    *sum = sum_lanes(lanes).to_f64();
                }
            },
        );
    });
}

/// Norm, and the scale that clips it to `max_norm` (infinite = 1). A norm that is not a number gives such a scale.
pub fn finish(sums: &[f64], max_norm: f64) -> (f64, f64) {
    let norm = sums.iter().sum::<f64>().sqrt();
    let ratio = max_norm / (norm + 1e-6);
    let scale = if ratio > 1.0 || max_norm == f64::INFINITY { 1.0 } else { ratio };
    (norm, scale)
}
