//! Dropout bitmaps: drawing them, and multiplying rows by them. Operation: ops/mask.rs.
//!
//! ```text
//! fill    bit i of site u of instance r = word i of Philox(stream_r, (u, step_r, i/4, attempt_r)) >= floor(p * 2^32)
//! apply   x[n,i] = bit ? x[n,i] * scale : 0        rows of instance -1 stay as they are
//! ```
//!
//! A set bit means kept. A dropped element becomes exactly 0 by selection, whatever it was: 0 * NaN would not.

use super::float::Float;
use super::{isa, parallel};
use crate::base::rng::StreamKey;

/// Numbers that describe one instance to [`fill`]: stream key (two words), step, attempt.
pub const KEY_WORDS: usize = 4;
/// Numbers that describe one site to [`fill`]: site number, width in elements, first word inside an instance.
pub const SITE_WORDS: usize = 3;

/// One site of a set of bitmaps, and which bitmap each row of an operand uses.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// All bitmaps, `stride` words each.
    pub bits: &'a [u32],
    /// Words of one instance.
    pub stride: usize,
    /// First word of the site inside an instance.
    pub offset: usize,
    /// Elements of the site.
    pub width: usize,
    /// What kept elements are multiplied by.
    pub scale: f64,
    /// Instance of each row; negative = not masked.
    pub instance: &'a [i32],
}

impl<'a> Mask<'a> {
    /// The bitmap of row `n`, or `None` where the row is not masked.
    #[inline(always)]
    pub fn row(&self, n: usize) -> Option<&'a [u32]> {
        let instance = usize::try_from(self.instance[n]).ok()?;
        let first = instance * self.stride + self.offset;
        Some(&self.bits[first..first + self.width.div_ceil(32)])
    }
}

/// Draws `bits[instances, stride]` from `keys[instances, 4]` for `sites[S, 3]`. An element is dropped when its
/// word is below `threshold`. Bits past a site's width are 0.
pub fn fill(keys: &[u32], sites: &[u32], threshold: u32, stride: usize, bits: &mut [u32]) {
    // Ten rounds of about ten operations a block, eight blocks a word.
    parallel::rows(bits, stride, 800 * stride, |first, bits| {
        isa::run(
            #[inline(always)]
            || {
                let keys = keys[first * KEY_WORDS..].chunks_exact(KEY_WORDS);
                for (bits, key) in bits.chunks_exact_mut(stride).zip(keys) {
                    let (stream, step, attempt) = (StreamKey([key[0], key[1]]), key[2], key[3]);
                    for site in sites.chunks_exact(SITE_WORDS) {
                        let (number, width, offset) = (site[0], site[1] as usize, site[2] as usize);
                        let bits = &mut bits[offset..offset + width.div_ceil(32)];
                        draw(stream, (number, step, attempt), threshold, bits);
                        if let (Some(last), used @ 1..) = (bits.last_mut(), width % 32) {
                            *last &= (1 << used) - 1;
                        }
                    }
                }
            },
        );
    });
}

/// Blocks drawn in one go; eight make a word.
const BATCH: usize = 64;

/// The words of a site. The length of `nibbles` is not known to the compiler, which makes it
/// run one block in each vector lane instead of unrolling them one by one.
#[inline(always)]
fn draw(stream: StreamKey, (site, step, attempt): (u32, u32, u32), threshold: u32, out: &mut [u32]) {
    let mut buffer = [0_u32; BATCH];
    for (chunk, out) in out.chunks_mut(BATCH / 8).enumerate() {
        let nibbles = &mut buffer[..8 * out.len()];
        let first = (BATCH * chunk) as u32;
        for (index, nibble) in nibbles.iter_mut().enumerate() {
            let block = stream.block(site, step, first + index as u32, attempt);
            *nibble = u32::from(block[0] >= threshold)
                | u32::from(block[1] >= threshold) << 1
                | u32::from(block[2] >= threshold) << 2
                | u32::from(block[3] >= threshold) << 3;
        }
        for (word, nibbles) in out.iter_mut().zip(nibbles.chunks_exact(8)) {
            *word = nibbles.iter().rev().fold(0, |word, nibble| word << 4 | nibble);
        }
    }
}

/// `to[i] = f(to[i], from[i], kept)` over one row, a word of bits at a time. The last chunk may be short: with a
/// length known only at run time the loop becomes vector shifts and selections.
#[inline(always)]
pub fn zip_row<T: Float>(words: &[u32], from: &[T], to: &mut [T], f: impl Fn(T, T, bool) -> T) {
    for ((to, from), word) in to.chunks_mut(32).zip(from.chunks(32)).zip(words) {
        for (i, (to, from)) in to.iter_mut().zip(from).enumerate() {
            *to = f(*to, *from, word >> (i as u32 & 31) & 1 != 0);
        }
    }
}

/// `to = m * from` over one row; without a bitmap a copy.
#[inline(always)]
pub fn assign_row<T: Float>(words: Option<&[u32]>, scale: T, from: &[T], to: &mut [T]) {
    match words {
        Some(words) => zip_row(words, from, to, |_, from, keep| if keep { from * scale } else { T::ZERO }),
        None => to.copy_from_slice(from),
    }
}

/// `to += m * from` over one row (one rounding an element); without a bitmap a plain addition.
#[inline(always)]
pub fn add_row<T: Float>(words: Option<&[u32]>, scale: T, from: &[T], to: &mut [T]) {
    match words {
        Some(words) => {
            zip_row(words, from, to, |to, from, keep| if keep { from.mul_add(scale, to) } else { to })
        }
        None => {
            for (to, from) in to.iter_mut().zip(from) {
                *to += *from;
            }
        }
    }
}

/// Multiplies the rows of `x[N, width]` in place.
pub fn apply<T: Float>(x: &mut [T], mask: Mask) {
    let scale = T::from_f64(mask.scale);
    parallel::rows(x, mask.width, 2 * mask.width, |first, x| {
        isa::run(
            #[inline(always)]
            || {
                for (n, x) in x.chunks_exact_mut(mask.width).enumerate() {
                    let Some(words) = mask.row(first + n) else { continue };
                    for (x, word) in x.chunks_mut(32).zip(words) {
                        for (i, x) in x.iter_mut().enumerate() {
                            let kept = *x * scale;
                            *x = if word >> (i as u32 & 31) & 1 != 0 { kept } else { T::ZERO };
                        }
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_is_its_own_draw() {
        let keys = [7, 8, 3, 1, 9, 10, 0, 2];
        let sites = [17, 37, 0, 4, 32, 2];
        let threshold = 1 << 30;
        let mut bits = [u32::MAX; 6];
        fill(&keys, &sites, threshold, 3, &mut bits);
        for instance in 0..2 {
            let key = &keys[4 * instance..];
            let stream = StreamKey([key[0], key[1]]);
            for site in sites.chunks_exact(3) {
                for i in 0..site[1].div_ceil(32) * 32 {
                    let found = bits[3 * instance + (site[2] + i / 32) as usize] >> (i % 32) & 1;
                    let kept = i < site[1] && stream.word(site[0], key[2], i, key[3]) >= threshold;
                    assert_eq!(found, u32::from(kept), "instance {instance} site {} element {i}", site[0]);
                }
            }
        }
    }
}
