//! Packing for a matrix unit: bfloat16 numbers, rounded on the way where they are stored in f32, into the tiles that
//! `units` multiplies.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::pack::Strip;
use super::simd::{Body, Vector};
use super::units::{Bf16Bits, DEPTH, SIDE, TILE, Unit};
use std::marker::PhantomData;
use std::ops::Range;

/// Packs rows of A into tiles `[row tile][k tile][16][32]`; what is missing becomes zero, but for the missing rows of a
/// single tile: [`Unit::begin`] says that they are not read.
pub(super) struct PackRows<A, V> {
    pub operand: Strip<A>,
    pub tiles: Range<usize>,
    pub depth: usize,
    pub to: *mut u16,
    pub vector: PhantomData<V>,
}

impl<A: Bf16Bits, V: Vector<Element = f32>> Body for PackRows<A, V> {
    #[inline(always)]
    unsafe fn run(self) {
        let PackRows { operand, tiles, depth, mut to, .. } = self;
        let rows = operand.lanes.min(SIDE);
        for tile in tiles {
            for first in (0..depth).step_by(DEPTH) {
                let count = DEPTH.min(depth - first);
                let whole = count == DEPTH && (tile + 1) * SIDE <= operand.lanes;
                if whole && operand.lane_stride == 1 {
                    // SAFETY: the tile's 16 rows and 32 terms exist, as does its room.
                    unsafe {
                        let strip = operand.at(tile * SIDE, first);
                        let mut words = [[0_u32; SIDE]; SIDE];
                        for pair in 0..SIDE {
                            let low = strip.start.add(2 * pair * strip.k_stride);
                            words[pair] = pair_words(low, low.add(strip.k_stride));
                        }
                        transpose_words::<V::Block>(words.as_ptr().cast(), SIDE, to.cast());
                        to = to.add(TILE);
                    }
                    continue;
                }
                for row in 0..rows {
                    let lane = tile * SIDE + row;
                    // SAFETY: the row and its `count` terms exist; the tile has 32 numbers a row.
                    unsafe {
                        let present = if lane < operand.lanes { count } else { 0 };
                        let from =
                            operand.start.wrapping_add(lane * operand.lane_stride + first * operand.k_stride);
                        if operand.k_stride == 1 && present == DEPTH {
                            let from = from.cast::<[A; DEPTH]>().read_unaligned();
                            let mut bits = [0_u16; DEPTH];
                            for k in 0..DEPTH {
                                bits[k] = from[k].bits();
                            }
                            to.cast::<[u16; DEPTH]>().write_unaligned(bits);
                        } else if operand.k_stride == 1 {
                            for k in 0..present {
                                to.add(k).write(from.add(k).read().bits());
                            }
                        } else {
                            for k in 0..present {
                                to.add(k).write(from.add(k * operand.k_stride).read().bits());
                            }
                        }
                        for k in present..DEPTH {
                            to.add(k).write(0);
                        }
                        to = to.add(DEPTH);
                    }
                }
                to = to.wrapping_add((SIDE - rows) * DEPTH);
            }
        }
    }
}

/// Packs columns of B, `terms` deep, into strips of 32 columns, `slot` numbers apart. Where columns are neighbours, all
/// strips are packed side by side, so that memory is read in runs.
#[inline(always)]
pub(super) unsafe fn pack_strips<V: Vector<Element = f32>, U: Unit, B: Bf16Bits>(
    strip: Strip<B>,
    terms: usize,
    to: *mut u16,
    slot: usize,
) {
    let strips = strip.lanes.div_ceil(2 * SIDE);
    let whole = if B::STORED && strip.lane_stride == 1 && terms.is_multiple_of(DEPTH) {
        strip.lanes / (2 * SIDE)
    } else {
        0
    };
    // SAFETY: reads stay inside the strip, writes in the strips' places.
    unsafe {
        for pair in 0..if whole > 0 { terms / 2 } else { 0 } {
            let low = strip.start.add(2 * pair * strip.k_stride).cast::<u16>();
            let high = low.add(strip.k_stride);
            let to = to.add(pair / SIDE * 2 * TILE + pair % SIDE * 2 * SIDE);
            for i in 0..whole {
                U::interleave(low.add(i * 2 * SIDE), high.add(i * 2 * SIDE), to.add(i * slot));
            }
        }
        for i in whole..strips {
            let lanes = (2 * SIDE).min(strip.lanes - i * 2 * SIDE);
            let strip = Strip { lanes, ..strip.at(i * 2 * SIDE, 0) };
            pack_strip::<V, B>(strip, terms, to.add(i * slot));
        }
    }
}

/// Packs up to 32 columns of B, `terms` deep, into tiles `[k tile][2][16 pairs][16 columns][2]`; what is missing
/// becomes zero.
#[inline(always)]
unsafe fn pack_strip<V: Vector<Element = f32>, B: Bf16Bits>(strip: Strip<B>, terms: usize, to: *mut u16) {
    let words = B::STORED && strip.k_stride == 1 && strip.lane_stride.is_multiple_of(2);
    // SAFETY: reads stay inside the strip; tiles are written once each, up to `terms` rounded up.
    unsafe {
        for tile in 0..terms.div_ceil(DEPTH) {
            for half in 0..2 {
                let to = to.add((2 * tile + half) * TILE);
                let count = DEPTH.min(terms - tile * DEPTH);
                let lanes = strip.lanes.saturating_sub(half * SIDE).min(SIDE);
                if count < DEPTH || lanes < SIDE {
                    to.write_bytes(0, TILE);
                    if lanes == 0 {
                        continue;
                    }
                }
                let strip = Strip { lanes, ..strip.at(half * SIDE, tile * DEPTH) };
                if words && count == DEPTH && lanes == SIDE {
                    transpose_words::<V::Block>(strip.start.cast(), strip.lane_stride / 2, to.cast());
                } else if strip.lane_stride == 1 && count == DEPTH && lanes == SIDE {
                    for pair in 0..SIDE {
                        let low = strip.start.add(2 * pair * strip.k_stride);
                        let words = pair_words(low, low.add(strip.k_stride));
                        to.add(2 * pair * SIDE).cast::<[u32; SIDE]>().write_unaligned(words);
                    }
                } else {
                    for k in 0..count {
                        for lane in 0..lanes {
                            let value = strip.start.add(lane * strip.lane_stride + k * strip.k_stride).read();
                            to.add((k / 2 * SIDE + lane) * 2 + k % 2).write(value.bits());
                        }
                    }
                }
            }
        }
    }
}

/// Two rows of 16 neighbours as pairs: the first row's numbers in the low halves. Read whole, so that it becomes vector
/// code without a check for overlaps.
#[inline(always)]
unsafe fn pair_words<B: Bf16Bits>(low: *const B, high: *const B) -> [u32; SIDE] {
    // SAFETY: both rows have 16 numbers, by the caller's promise.
    let (low, high) =
        unsafe { (low.cast::<[B; SIDE]>().read_unaligned(), high.cast::<[B; SIDE]>().read_unaligned()) };
    let mut words = [0; SIDE];
    for lane in 0..SIDE {
        words[lane] = u32::from(low[lane].bits()) | u32::from(high[lane].bits()) << 16;
    }
    words
}

/// The transpose of 16 x 16 words; vectors of f32 only carry the bits.
#[inline(always)]
unsafe fn transpose_words<V: Vector<Element = f32>>(from: *const f32, stride: usize, to: *mut f32) {
    let step = V::LANES;
    // SAFETY: the caller's strip has 16 lanes of 16 words; the tile has 16 x 16.
    unsafe {
        let mut lane = 0;
        while lane < SIDE {
            let mut word = 0;
            while word < SIDE {
                let mut block = [V::splat(0.0); 8];
                for i in 0..step {
                    block[i] = V::load(from.wrapping_add((lane + i) * stride + word));
                }
                V::transpose(&mut block);
                for i in 0..step {
                    block[i].store(to.add((word + i) * SIDE + lane));
                }
                word += step;
            }
            lane += step;
        }
    }
}
