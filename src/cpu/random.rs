//! Normal random numbers from Philox. Operation: ops/random.rs.

use super::{Float, isa, parallel};
use crate::base::rng::StreamKey;

/// Fills `out` with `deviation` times standard normals: entries 4b .. 4b+3 come from block b of `key` at site 0,
/// step 0, two pairs by Box and Muller (`sqrt(-2 ln u1)` times cosine and sine of `2 pi u2`, u = (word + 1/2) / 2^32).
pub fn normal<T: Float>(key: StreamKey, deviation: f64, out: &mut [T]) {
    parallel::rows(out, 4, 200, |first, out| {
        isa::run(
            #[inline(always)]
            || {
                for (block, four) in out.chunks_mut(4).enumerate() {
                    let words = key.block(0, 0, (first + block) as u32, 0);
                    let uniform = |i: usize| (f64::from(words[i]) + 0.5) / 4_294_967_296.0;
                    for (pair, two) in four.chunks_mut(2).enumerate() {
                        let radius = deviation * (-2.0 * uniform(2 * pair).ln()).sqrt();
                        let (sine, cosine) = (std::f64::consts::TAU * uniform(2 * pair + 1)).sin_cos();
                        two[0] = T::from_f64(radius * cosine);
                        if let Some(second) = two.get_mut(1) {
                            *second = T::from_f64(radius * sine);
                        }
                    }
                }
            },
        );
    });
}
