//! Normal random numbers from Philox. Operation: ops/random.rs.

use super::{Float, isa, parallel};
use crate::base::rng::StreamKey;

/// Words of one row's key in [`add_normal`]: stream key (two words), step.
pub const KEY_WORDS: usize = 3;

/// Fills `out` with `deviation` times standard normals: entries 4b .. 4b+3 come from block b of `key` at site 0,
/// step 0, two pairs by Box and Muller (`sqrt(-2 ln u1)` times cosine and sine of `2 pi u2`, u = (word + 1/2) / 2^32).
pub fn normal<T: Float>(key: StreamKey, deviation: f64, out: &mut [T]) {
    parallel::rows(out, 4, 200, |first, out| {
        isa::run(
            #[inline(always)]
            || {
                for (block, four) in out.chunks_mut(4).enumerate() {
                    let normals = four_normals(key.block(0, 0, (first + block) as u32, 0));
                    for (out, normal) in four.iter_mut().zip(normals) {
                        *out = T::from_f64(deviation * normal);
                    }
                }
            },
        );
    });
}

/// Adds `deviation` times standard normals to each row of `x[N, cols]`: entry i of row n is normal i of the stream
/// `keys[n]` at site 0 and the row's step (`keys[N, 3]`: stream key, step).
pub fn add_normal<T: Float>(keys: &[u32], deviation: f64, cols: usize, x: &mut [T]) {
    parallel::rows(x, cols, 50 * cols, |first, x| {
        isa::run(
            #[inline(always)]
            || {
                let keys = keys[first * KEY_WORDS..].chunks_exact(KEY_WORDS);
                for (x, key) in x.chunks_exact_mut(cols).zip(keys) {
                    let (stream, step) = (StreamKey([key[0], key[1]]), key[2]);
                    for (block, four) in x.chunks_mut(4).enumerate() {
                        let normals = four_normals(stream.block(0, step, block as u32, 0));
                        for (x, normal) in four.iter_mut().zip(normals) {
                            *x += T::from_f64(deviation * normal);
                        }
                    }
                }
            },
        );
    });
}

/// Four standard normals from the words of one block.
#[inline(always)]
pub fn four_normals(words: [u32; 4]) -> [f64; 4] {
    let uniform = |i: usize| (f64::from(words[i]) + 0.5) / 4_294_967_296.0;
    let pair = |i: usize| {
        let radius = (-2.0 * uniform(i).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * uniform(i + 1)).sin_cos();
        [radius * cosine, radius * sine]
    };
    let ([a, b], [c, d]) = (pair(0), pair(2));
    [a, b, c, d]
}
