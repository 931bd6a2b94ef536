//! Gumbel noise from Philox words, the same bits on every device. Users: cpu/sampler.rs, cpu/latent.rs.
//!
//! ```text
//! u(w)   = min((f32(w) + 0.5) * 2^-32, 1 - 2^-24)      f32(w) rounds to nearest even, and so does the sum
//! eps(w) = -ln(-ln(u))                                  between -3.131 and 16.636
//!
//! ln(x)  for a positive normal x, every step rounded once to f32, fma = one rounding:
//!   i = bits(x) - 0x3F3504F3 (sqrt 1/2)     n = i >> 23 (arithmetic)     m = float(bits(x) - (n << 23))
//!   f = m - 1                               f in [sqrt 1/2 - 1, sqrt 2 - 1], exact
//!   q = c7;  q = fma(q, f, c6);  ...;  q = fma(q, f, c0)
//!   z = f * f
//!   y = (f * z) * q
//!   y = fma(n, LOW, y);   y = fma(z, -0.5, y);   y = f + y;   ln = fma(n, HIGH, y)
//! ```
//!
//! `q` is the minimax polynomial of degree 7 of `(ln(1+f) - f + f^2/2) / f^3`, weighted by the relative error of
//! the logarithm (Lawson's algorithm at 40 digits, coefficients rounded to f32): 7.8e-9 relative. With f32
//! rounding the logarithm is within 1.5e-7 relative of the exact one, also near 1, where `f` carries it. Hence
//! eps is within 3e-7 + 1.5e-7 |eps| of the exact function of the f32 `u`. Both bounds are tested below.
//! No library function is called, so a GPU that follows these lines gives the same bits.

use crate::base::rng::StreamKey;

/// Blocks of Philox drawn side by side.
pub const BLOCKS: usize = 8;
/// Words, and so noise values, of [`BLOCKS`] blocks.
pub const WORDS: usize = 4 * BLOCKS;
/// No noise is above this; the largest is 16.636 (word 2^32 - 1).
pub const LARGEST: f32 = 17.0;
/// No noise is below this; the smallest is -3.1301 (word 0).
pub const SMALLEST: f32 = -3.25;

/// Coefficients c0..c7 of `q`, lowest first.
const COEFFICIENTS: [u32; 8] = [
    0x3EAA_AAAA, // 0.33333331
    0xBE80_0114, // -0.25000823
    0x3E4C_D004, // 0.20001227
    0xBE2A_3921, // -0.16623355
    0x3E11_6D15, // 0.14201768
    0xBE06_C2B4, // -0.1316021
    0x3E02_AD8C, // 0.12761515
    0xBD9C_59F3, // -0.07634344
];
/// ln 2 in two parts; the first has eight trailing zeros, so that `n * HIGH` is exact.
const LN2_HIGH: f32 = 0.693_359_375;
const LN2_LOW: f32 = -2.121_944_4e-4;
const SQRT_HALF: u32 = 0x3F35_04F3;
const BELOW_ONE: f32 = 1.0 - 1.0 / 16_777_216.0;

/// Natural logarithm of a positive normal number by the steps above.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let n = (bits.wrapping_sub(SQRT_HALF) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((n as u32) << 23)) - 1.0;
    let n = n as f32;
    let mut q = f32::from_bits(COEFFICIENTS[7]);
    for i in (0..7).rev() {
        q = q.mul_add(f, f32::from_bits(COEFFICIENTS[i]));
    }
    let z = f * f;
    let y = (f * z) * q;
    let y = n.mul_add(LN2_LOW, y);
    let y = z.mul_add(-0.5, y);
    n.mul_add(LN2_HIGH, f + y)
}

/// The uniform number in (0, 1) of a word.
#[inline(always)]
pub fn uniform(word: u32) -> f32 {
    let u = (word as f32 + 0.5) * (1.0 / 4_294_967_296.0);
    if u > BELOW_ONE { BELOW_ONE } else { u }
}

/// Standard Gumbel noise of a word: -ln(-ln(u)).
#[inline(always)]
pub fn noise(word: u32) -> f32 {
    -ln(-ln(uniform(word)))
}

/// Noise of the draws of eight blocks of `key` at `(site, step)`, attempt 0: entry `4 i + j` is draw `j` of block
/// `blocks[i]`.
#[inline(always)]
pub fn noise_of_blocks(key: StreamKey, site: u32, step: u32, blocks: [u32; BLOCKS]) -> [f32; WORDS] {
    let words = philox(key.0, site, step, blocks);
    let mut noises = [[0.0_f32; BLOCKS]; 4];
    for (noises, words) in noises.iter_mut().zip(&words) {
        for i in 0..BLOCKS {
            noises[i] = noise(words[i]);
        }
    }
    let mut out = [0.0; WORDS];
    for i in 0..BLOCKS {
        for j in 0..4 {
            out[4 * i + j] = noises[j][i];
        }
    }
    out
}

/// Philox4x32-10 of eight counters `(site, step, block, 0)`: word `j` of block `i` is `[j][i]`. The same
/// function as [`crate::base::rng::philox4x32`], laid out for vectors of 64-bit products.
#[inline(always)]
fn philox(key: [u32; 2], site: u32, step: u32, blocks: [u32; BLOCKS]) -> [[u32; BLOCKS]; 4] {
    const LOW: u64 = 0xFFFF_FFFF;
    let (mut k0, mut k1) = (key[0], key[1]);
    let mut c0 = [u64::from(site); BLOCKS];
    let mut c1 = [u64::from(step); BLOCKS];
    let mut c2 = blocks.map(u64::from);
    let mut c3 = [0_u64; BLOCKS];
    for _ in 0..10 {
        for i in 0..BLOCKS {
            let p0 = 0xD251_1F53 * (c0[i] & LOW);
            let p1 = 0xCD9E_8D57 * (c2[i] & LOW);
            c0[i] = (p1 >> 32) ^ c1[i] ^ u64::from(k0);
            c2[i] = (p0 >> 32) ^ c3[i] ^ u64::from(k1);
            // Only the low halves are read as counters; the high halves are masked away when they are.
            c1[i] = p1 & LOW;
            c3[i] = p0 & LOW;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3].map(|words| words.map(|word| word as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Purpose;

    #[test]
    fn logarithm_is_within_its_bound_on_a_dense_sweep() {
        // Every 97th float from 2^-40 to 2^6, then every float in a neighbourhood of 1.
        let sweep = ((127 - 40) << 23..(127 + 6) << 23).step_by(97);
        let one = 1.0_f32.to_bits();
        let mut worst = 0.0_f64;
        for bits in sweep.chain(one - 200_000..one + 200_000) {
            let x = f32::from_bits(bits);
            let exact = f64::from(x).ln();
            if exact == 0.0 {
                assert_eq!(ln(x), 0.0);
            } else {
                worst = worst.max(((f64::from(ln(x)) - exact) / exact).abs());
            }
        }
        assert!(worst < 1.5e-7, "worst relative error {worst:e}");
        assert!(worst > 3e-8, "the sweep measured nothing");
    }

    #[test]
    fn noise_is_within_its_bound_and_its_limits() {
        let ends = (0..5000).chain(u32::MAX - 5000..=u32::MAX);
        let near_zero = 1_580_030_168 - 5000..1_580_030_168 + 5000; // eps = 0 at u = 1/e
        for word in (0..u32::MAX).step_by(1021).chain(ends).chain(near_zero) {
            let found = noise(word);
            let exact = -(-f64::from(uniform(word)).ln()).ln();
            let error = (f64::from(found) - exact).abs();
            assert!(error <= 3e-7 + 1.5e-7 * exact.abs(), "word {word}: {found} {exact}");
            assert!(found > SMALLEST && found < LARGEST, "word {word}: {found}");
        }
    }

    /// Frozen: another device must reproduce these bits.
    #[test]
    fn frozen_vectors() {
        // Computed apart from this code, with exact rational arithmetic rounded to f32 after each step.
        let vectors: [(u32, u32, u32); 8] = [
            (0x0000_0000, 0x2F00_0000, 0xC048_51D5), // -3.12999463
            (0x0000_0001, 0x2FC0_0000, 0xC045_2B66), // -3.08077383
            (0x0000_FFFF, 0x377F_FF80, 0xC019_FD28), // -2.40607643
            (0x3333_3333, 0x3E4C_CCCD, 0xBEF3_A734), // -0.475885034
            (0x5E2D_58D8, 0x3EBC_5AB2, 0x8000_0000), // -0, the negative of ln(1)
            (0x8000_0000, 0x3F00_0000, 0x3EBB_A795), // 0.366512924
            (0xFFFF_0000, 0x3F7F_FF00, 0x4131_7210), // 11.0903473
            (0xFFFF_FFFF, 0x3F7F_FFFF, 0x4185_1592), // 16.6355324
        ];
        for (word, u, eps) in vectors {
            let found = (uniform(word).to_bits(), noise(word).to_bits());
            assert_eq!(found, (u, eps), "word {word:#x}: {:#x} {:#x}", found.0, found.1);
        }
    }

    #[test]
    fn eight_blocks_are_the_stream() {
        let key = StreamKey::new(0x1234_5678_9ABC_DEF0, 3, 1, 4, Purpose::Token);
        let blocks = [0, 1, 2, 3, 1000, 37_999, 0xFFFF_FFFE, u32::MAX];
        let noises = noise_of_blocks(key, 15, 9, blocks);
        for (i, &block) in blocks.iter().enumerate() {
            for (j, &word) in key.block(15, 9, block, 0).iter().enumerate() {
                assert_eq!(noises[4 * i + j].to_bits(), noise(word).to_bits());
            }
        }
    }
}
