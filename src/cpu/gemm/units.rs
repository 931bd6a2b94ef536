//! bfloat16 products on a matrix unit: packing, tiling and edges, shared by the hardware (`amx`) and the model of its
//! instruction that the tests run.
//!
//! A unit multiplies tiles: 16 rows of A, 32 deep, by 32 rows of B, 16 wide. Its arithmetic (Intel SDM, TDPBF16PS) is,
//! for every element and every 32 terms,
//! ```text
//! even, odd = 0, 0
//! for i in 0..16   even = fma(a[2i], b[2i], even);  odd = fma(a[2i+1], b[2i+1], odd)
//! c = c + (even + odd)
//! ```
//! rounding to nearest even, with subnormal inputs and results taken as zero. k is cut at multiples of 32 from the
//! product's first k, and padded by zeros; that depends on neither M nor N nor the threads, and every product takes
//! this way, one row or thousands. So the order contract holds with this chain of blocks in place of the chain of
//! terms; accumulating over pieces of k keeps the bits where pieces are multiples of 32.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::pack::Strip;
use super::simd::{Body, Rounded, Vector, round_bf16};
use super::tile::Problem;
use super::workspace::{for_each_task, share, with_scratch};
use crate::cpu::parallel;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// Rows or columns of a tile.
pub(super) const SIDE: usize = 16;
/// Terms of a tile.
pub(super) const DEPTH: usize = 32;
/// Numbers in a tile of A or B.
pub(super) const TILE: usize = SIDE * DEPTH;
/// Tiles along k between two visits of C: B's strip then takes 32 KiB.
const CHUNK: usize = 16;

/// What multiplies tiles.
pub(super) trait Unit {
    /// Readies this thread.
    ///
    /// # Safety
    /// The CPU has the unit, and the system lets this process use it.
    unsafe fn begin();
    /// Undoes [`Unit::begin`].
    ///
    /// # Safety
    /// After `begin` on this thread.
    unsafe fn end();
    /// `sums[i][j] +=` the product of tile row i of A (`tile_rows`, 1 or 2) and tile column j of B (2) over `depth`
    /// tiles. Sums are tiles `[2][2][16][16]`; A is `[depth][16][32]` at `a` and, for the second row, `a_step` further;
    /// B is `[depth][2][16 pairs][16 columns][2]`.
    ///
    /// # Safety
    /// The pointers are valid for these sizes, and `begin` was called on this thread.
    unsafe fn multiply(
        tile_rows: usize,
        depth: usize,
        a: *const u16,
        a_step: usize,
        b: *const u16,
        sums: *mut f32,
    );
}

/// What can be read as the bits of a bfloat16.
pub(super) trait Bf16Bits: Copy + Send + Sync + 'static {
    /// Two neighbours in memory are the low and the high half of a 32-bit word.
    const STORED: bool;
    fn bits(self) -> u16;
}

impl Bf16Bits for bf16 {
    const STORED: bool = true;
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl Bf16Bits for Rounded {
    const STORED: bool = false;
    #[inline(always)]
    fn bits(self) -> u16 {
        (round_bf16(self.0).to_bits() >> 16) as u16
    }
}

#[derive(Clone, Copy)]
struct Shared(*mut u16);
// SAFETY: tasks write disjoint tiles while packing and only read afterwards.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> *mut u16 {
        self.0
    }
}

/// Computes the whole problem; V's instructions pack.
///
/// # Safety
/// The problem's pointers are valid for its sizes; the CPU has V's instructions and the unit.
pub(super) unsafe fn run<V, U, A, B>(problem: &Problem<f32, B>, operand: Strip<A>)
where
    V: Vector<Element = f32>,
    U: Unit,
    A: Bf16Bits,
    B: Bf16Bits,
{
    let row_tiles = problem.rows.div_ceil(SIDE);
    let depth_tiles = problem.depth.div_ceil(DEPTH);
    with_scratch(row_tiles * depth_tiles * TILE, |a: &mut [u16]| {
        let packed = Shared(a.as_mut_ptr());
        let packers = parallel::task_count(row_tiles, SIDE * problem.depth);
        for_each_task(packers, |task| {
            let tiles = share(row_tiles, packers, task);
            // SAFETY: tasks pack disjoint rows of tiles.
            unsafe {
                let to = packed.get().add(tiles.start * depth_tiles * TILE);
                V::enter(PackRows { operand, tiles, depth: problem.depth, to, vector: PhantomData::<V> });
            }
        });

        let row_pairs = row_tiles.div_ceil(2);
        let col_pairs = problem.cols.div_ceil(2 * SIDE);
        let operations = problem.rows * problem.depth * problem.cols / 8;
        let wanted = match parallel::task_count(row_pairs * col_pairs, operations / (row_pairs * col_pairs)) {
            1 => 1,
            _ => 8 * parallel::threads(),
        };
        // Strips of B are packed once for every run of rows, so columns are cut first.
        let across = wanted.min(col_pairs);
        let down = wanted.div_ceil(across).min(row_pairs.div_ceil(4));
        for_each_task(across * down, |task| {
            let cols = share(col_pairs, across, task / down);
            let rows = share(row_pairs, down, task % down);
            // One strip of B and the sums of four tiles.
            with_scratch(2 * CHUNK * TILE + 8 * SIDE * SIDE, |scratch: &mut [u16]| {
                // SAFETY: tasks own disjoint tiles of C; A is packed.
                unsafe {
                    let a = packed.get().cast_const();
                    V::enter(Tiles::<V, U, B> { problem, a, rows, cols, scratch, types: PhantomData });
                }
            });
        });
    });
}

/// Packs rows of A into tiles `[row tile][k tile][16][32]`; what is missing becomes zero.
struct PackRows<A, V> {
    operand: Strip<A>,
    tiles: Range<usize>,
    depth: usize,
    to: *mut u16,
    vector: PhantomData<V>,
}

impl<A: Bf16Bits, V> Body for PackRows<A, V> {
    #[inline(always)]
    unsafe fn run(self) {
        let PackRows { operand, tiles, depth, mut to, .. } = self;
        for tile in tiles {
            for first in (0..depth).step_by(DEPTH) {
                let count = DEPTH.min(depth - first);
                for row in 0..SIDE {
                    let lane = tile * SIDE + row;
                    // SAFETY: the row and its `count` terms exist; the tile has 32 numbers a row.
                    unsafe {
                        let present = if lane < operand.lanes { count } else { 0 };
                        let from =
                            operand.start.wrapping_add(lane * operand.lane_stride + first * operand.k_stride);
                        if operand.k_stride == 1 {
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
            }
        }
    }
}

/// Computes some pairs of tile rows by some pairs of tile columns.
struct Tiles<'a, V, U, B> {
    problem: &'a Problem<f32, B>,
    a: *const u16,
    rows: Range<usize>,
    cols: Range<usize>,
    scratch: &'a mut [u16],
    types: PhantomData<(V, U)>,
}

impl<V: Vector<Element = f32>, U: Unit, B: Bf16Bits> Body for Tiles<'_, V, U, B> {
    #[inline(always)]
    unsafe fn run(self) {
        let Tiles { problem, a, rows, cols, scratch, .. } = self;
        let depth_tiles = problem.depth.div_ceil(DEPTH);
        let row_tiles = problem.rows.div_ceil(SIDE);
        let a_step = depth_tiles * TILE;
        let b = scratch.as_mut_ptr();
        // SAFETY: the scratch has room for both (its maker's sum); ranges are inside the problem; sums are clipped.
        unsafe {
            let sums = b.add(2 * CHUNK * TILE).cast::<f32>();
            U::begin();
            for pair in cols {
                let col = pair * 2 * SIDE;
                let width = (2 * SIDE).min(problem.cols - col);
                let mut first = 0;
                while first < depth_tiles {
                    let count = CHUNK.min(depth_tiles - first);
                    let terms = (count * DEPTH).min(problem.depth - first * DEPTH);
                    let strip = Strip { lanes: width, ..problem.b.at(col, first * DEPTH) };
                    pack_strip::<V, B>(strip, terms, b);
                    let load = problem.add || first > 0;
                    let last = first + count == depth_tiles && !problem.bias.is_null();
                    for pair in rows.clone() {
                        let tile = 2 * pair;
                        let height = (2 * SIDE).min(problem.rows - tile * SIDE);
                        let c = problem.c.add(tile * SIDE * problem.c_stride + col);
                        load_sums(load, c, problem.c_stride, (height, width), sums);
                        let a = a.add(tile * a_step + first * TILE);
                        U::multiply((row_tiles - tile).min(2), count, a, a_step, b, sums);
                        let bias = if last { problem.bias.add(col) } else { std::ptr::null() };
                        store_sums(sums, bias, c, problem.c_stride, (height, width));
                    }
                    first += count;
                }
            }
            U::end();
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
                        let high = low.add(strip.k_stride);
                        let to = to.add(2 * pair * SIDE).cast::<u32>();
                        for lane in 0..SIDE {
                            let word = u32::from(low.add(lane).read().bits())
                                | u32::from(high.add(lane).read().bits()) << 16;
                            to.add(lane).write(word);
                        }
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

/// Fills the sums `[2][2][16][16]` from C, or with zeros.
#[inline(always)]
unsafe fn load_sums(load: bool, c: *const f32, stride: usize, (rows, cols): (usize, usize), sums: *mut f32) {
    // SAFETY: C has `rows x cols` here, the sums 32 x 32.
    unsafe {
        if !load || rows < 2 * SIDE || cols < 2 * SIDE {
            sums.write_bytes(0, 4 * SIDE * SIDE);
        }
        if load {
            for row in 0..rows {
                for half in 0..cols.div_ceil(SIDE) {
                    let to = sums.add(((row / SIDE * 2 + half) * SIDE + row % SIDE) * SIDE);
                    let count = SIDE.min(cols - half * SIDE);
                    std::ptr::copy_nonoverlapping(c.add(row * stride + half * SIDE), to, count);
                }
            }
        }
    }
}

/// Writes the sums that exist to C, with the bias if there is one.
#[inline(always)]
unsafe fn store_sums(
    sums: *const f32,
    bias: *const f32,
    c: *mut f32,
    stride: usize,
    (rows, cols): (usize, usize),
) {
    // SAFETY: C has `rows x cols` here, the sums 32 x 32, the bias `cols`.
    unsafe {
        for row in 0..rows {
            for half in 0..cols.div_ceil(SIDE) {
                let from = sums.add(((row / SIDE * 2 + half) * SIDE + row % SIDE) * SIDE);
                let to = c.add(row * stride + half * SIDE);
                let count = SIDE.min(cols - half * SIDE);
                if bias.is_null() {
                    std::ptr::copy_nonoverlapping(from, to, count);
                } else {
                    for col in 0..count {
                        to.add(col).write(from.add(col).read() + bias.add(half * SIDE + col).read());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "units_tests.rs"]
mod tests;
