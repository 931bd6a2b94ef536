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
use super::tile::{Problem, Product};
use super::units_pack::{PackRows, pack_strips};
use super::workspace::{share, with_scratch};
use super::{units_neighbours, units_rows};
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
/// Numbers of a packed strip of B, for each tile along k.
pub(super) const STRIP: usize = 2 * TILE;
/// Strips packed side by side where columns are neighbours in memory: rows are then read in runs of 512 bytes.
const GROUP: usize = 8;
/// Columns that [`Unit::multiply_neighbours`] multiplies at once: two lines of memory a term.
pub(super) const NEIGHBOURS: usize = 64;
/// Numbers that [`Unit::multiply_neighbours`] needs room for: two tiles of k, as one is filled while the other is used.
pub(super) const ROOM: usize = 2 * NEIGHBOURS * DEPTH;

/// A stored number takes about as long to read from a cache that cores share as this many operations take.
pub(super) const READING: usize = 4;

/// What multiplies tiles.
pub(super) trait Unit {
    /// Readies this thread for tiles of A and C of `rows` rows (at most [`SIDE`]; other tiles are whole).
    ///
    /// # Safety
    /// The CPU has the unit, and the system lets this process use it.
    unsafe fn begin(rows: usize);
    /// Undoes [`Unit::begin`].
    ///
    /// # Safety
    /// After `begin` on this thread.
    unsafe fn end();
    /// `c[i][j] (+)=` the product of tile row i of A (`tile_rows`, 1 or 2) and tile column j of B (2) over `depth`
    /// tiles: a window of `tile_rows` times the rows of [`Unit::begin`] x 32 of a matrix, assigned unless `add`. A is `[depth][16][32]` at `a` and,
    /// for the second row, `a_step` further; B is `[depth][2][16 pairs][16 columns][2]`.
    ///
    /// # Safety
    /// The pointers are valid for these sizes, and `begin` was called on this thread.
    unsafe fn multiply(
        tile_rows: usize,
        depth: usize,
        a: (*const u16, usize),
        b: *const u16,
        c: (*mut f32, usize),
        add: bool,
    );
    /// [`Unit::multiply`] with one tile row of A and a B that comes from memory: what follows it there is asked for.
    ///
    /// # Safety
    /// As [`Unit::multiply`].
    #[inline(always)]
    unsafe fn multiply_far(depth: usize, a: *const u16, b: *const u16, c: (*mut f32, usize), add: bool) {
        // SAFETY: passed on to the caller.
        unsafe { Self::multiply(1, depth, (a, 0), b, c, add) }
    }
    /// `to[16 rows][16 columns] (+)=` rows of W by packed columns, over `depth` tiles: W's row i starts at
    /// `w + i * w_stride`, the columns are `[depth][16 pairs][16 columns][2]`. The chains are those of
    /// [`Unit::multiply`] with A and B changed over, which changes no product.
    ///
    /// # Safety
    /// As [`Unit::multiply`].
    unsafe fn multiply_rows(
        depth: usize,
        w: (*const u16, usize),
        columns: *const u16,
        to: *mut f32,
        add: bool,
    );
    /// `c[rows of begin][64 columns] (+)=` one tile row of A (as for [`Unit::multiply`]) by 64 columns of B that are
    /// neighbours in memory, over `depth` tiles: term k of the columns starts at `b + k * b_stride`. The chains are those
    /// of [`Unit::multiply`]. `room` holds [`ROOM`] numbers for what is interleaved.
    ///
    /// # Safety
    /// As [`Unit::multiply`].
    unsafe fn multiply_neighbours(
        depth: usize,
        a: *const u16,
        b: (*const u16, usize),
        c: (*mut f32, usize),
        add: bool,
        room: *mut u16,
    );
    /// Packs two rows of 32 neighbouring numbers into one pair row of each of two tiles, [`TILE`] apart.
    ///
    /// # Safety
    /// The rows have 32 numbers each, and the tiles a pair row at `to` and `to + TILE`.
    #[inline(always)]
    unsafe fn interleave(low: *const u16, high: *const u16, to: *mut u16) {
        // SAFETY: passed on to the caller.
        unsafe {
            for half in 0..2 {
                for lane in 0..SIDE {
                    let to = to.add(half * TILE + 2 * lane);
                    to.write(low.add(half * SIDE + lane).read());
                    to.add(1).write(high.add(half * SIDE + lane).read());
                }
            }
        }
    }
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
    if B::STORED && problem.rows <= SIDE && problem.b.k_stride == 1 {
        // SAFETY: passed on to the caller.
        return unsafe { units_rows::run::<V, U, A, B>(problem, operand) };
    }
    if B::STORED && problem.rows <= SIDE && problem.b.lane_stride == 1 && problem.depth.is_multiple_of(DEPTH)
    {
        // SAFETY: passed on to the caller.
        return unsafe { units_neighbours::run::<V, U, A, B>(problem, operand) };
    }
    let row_tiles = problem.rows.div_ceil(SIDE);
    let depth_tiles = problem.depth.div_ceil(DEPTH);
    with_scratch(row_tiles * depth_tiles * TILE, |a: &mut [u16]| {
        let packed = Shared(a.as_mut_ptr());
        let packers = parallel::task_count(row_tiles, SIDE * problem.depth);
        parallel::for_each_task(packers, |task| {
            let tiles = share(row_tiles, packers, task);
            // SAFETY: tasks pack disjoint rows of tiles.
            unsafe {
                let to = packed.get().add(tiles.start * depth_tiles * TILE);
                V::enter(PackRows { operand, tiles, depth: problem.depth, to, vector: PhantomData::<V> });
            }
        });

        let neighbours = B::STORED && problem.b.lane_stride == 1;
        let group = if neighbours { GROUP } else { 1 };
        let chunk = CHUNK;
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
        parallel::for_each_task(across * down, |task| {
            let cols = share(col_pairs, across, task / down);
            let pairs = share(row_pairs, down, task % down);
            // Strips of B and the sums of four tiles.
            with_scratch(group * chunk * STRIP + 8 * SIDE * SIDE, |scratch: &mut [u16]| {
                // SAFETY: tasks own disjoint tiles of C; A is packed.
                unsafe {
                    let a = packed.get().cast_const();
                    V::enter(Tiles::<V, U, B> {
                        rows: RowPairs { problem, a, pairs },
                        cols,
                        group,
                        chunk,
                        scratch,
                        types: PhantomData,
                    });
                }
            });
        });
    });
}

/// Computes some pairs of tile rows by some pairs of tile columns.
struct Tiles<'a, V, U, B> {
    rows: RowPairs<'a, Strip<B>>,
    cols: Range<usize>,
    /// Strips packed at a time.
    group: usize,
    /// Tiles along k between two visits of C.
    chunk: usize,
    scratch: &'a mut [u16],
    types: PhantomData<(V, U)>,
}

impl<V: Vector<Element = f32>, U: Unit, B: Bf16Bits> Body for Tiles<'_, V, U, B> {
    #[inline(always)]
    unsafe fn run(self) {
        let Tiles { rows, cols, group, chunk, .. } = self;
        let problem = rows.problem;
        let depth_tiles = problem.depth.div_ceil(DEPTH);
        let b = self.scratch.as_mut_ptr();
        // SAFETY: the scratch has room for both (its maker's sum); ranges are inside the problem; sums are clipped.
        unsafe {
            let sums = b.add(group * chunk * STRIP).cast::<f32>();
            U::begin(problem.rows.min(SIDE));
            let mut next = cols.start;
            while next < cols.end {
                let strips = next..(next + group).min(cols.end);
                let mut first = 0;
                while first < depth_tiles {
                    let count = chunk.min(depth_tiles - first);
                    let terms = (count * DEPTH).min(problem.depth - first * DEPTH);
                    let col = strips.start * 2 * SIDE;
                    let lanes = (strips.len() * 2 * SIDE).min(problem.cols - col);
                    let strip = Strip { lanes, ..problem.b.at(col, first * DEPTH) };
                    pack_strips::<V, U, B>(strip, terms, b, chunk * STRIP);
                    for (i, strip) in strips.clone().enumerate() {
                        let place = (strip * 2 * SIDE, first, count);
                        rows.multiply::<U, false>(place, b.add(i * chunk * STRIP), sums);
                    }
                    first += count;
                }
                next = strips.end;
            }
            U::end();
        }
    }
}

/// Pairs of rows of packed tiles of A.
pub(super) struct RowPairs<'a, O> {
    pub problem: &'a Product<f32, O>,
    /// All of A.
    pub a: *const u16,
    pub pairs: Range<usize>,
}

impl<O> RowPairs<'_, O> {
    /// These rows by one packed strip of columns from `col` on, `count` tiles deep from tile `first` on; with `FAR` the
    /// strip comes from memory.
    ///
    /// # Safety
    /// The strip is packed at `b`, `sums` holds 32 x 32, and [`Unit::begin`] was called.
    #[inline(always)]
    pub unsafe fn multiply<U: Unit, const FAR: bool>(
        &self,
        (col, first, count): (usize, usize, usize),
        b: *const u16,
        sums: *mut f32,
    ) {
        let problem = self.problem;
        let depth_tiles = problem.depth.div_ceil(DEPTH);
        let row_tiles = problem.rows.div_ceil(SIDE);
        let a_step = depth_tiles * TILE;
        let width = (2 * SIDE).min(problem.cols - col);
        let add = problem.add || first > 0;
        let last = first + count == depth_tiles && !problem.bias.is_null();
        // SAFETY: ranges are inside the problem; a window that is cut by an edge is computed aside.
        unsafe {
            for pair in self.pairs.clone() {
                let tile = 2 * pair;
                let height = (2 * SIDE).min(problem.rows - tile * SIDE);
                let tile_rows = (row_tiles - tile).min(2);
                let c = (problem.c.add(tile * SIDE * problem.c_stride + col), problem.c_stride);
                let a = (self.a.add(tile * a_step + first * TILE), a_step);
                let whole = height == tile_rows * SIDE.min(problem.rows) && width == 2 * SIDE;
                let target = if whole { c } else { (sums, 2 * SIDE) };
                if !whole && add {
                    copy_window(c, target, (height, width));
                }
                if FAR && tile_rows == 1 {
                    U::multiply_far(count, a.0, b, target, add);
                } else {
                    U::multiply(tile_rows, count, a, b, target, add);
                }
                if !whole {
                    copy_window(target, c, (height, width));
                }
                if last {
                    add_bias(problem.bias.add(col), c, (height, width));
                }
            }
        }
    }
}

/// Copies a window of a matrix to another's; each is a start and a stride.
#[inline(always)]
pub(super) unsafe fn copy_window(
    from: (*mut f32, usize),
    to: (*mut f32, usize),
    (rows, cols): (usize, usize),
) {
    for row in 0..rows {
        // SAFETY: both have `rows x cols` here, by the caller's promise, and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.0.add(row * from.1), to.0.add(row * to.1), cols) };
    }
}

/// Adds the bias to finished chains.
#[inline(always)]
pub(super) unsafe fn add_bias(
    bias: *const f32,
    (c, stride): (*mut f32, usize),
    (rows, cols): (usize, usize),
) {
    // SAFETY: C has `rows x cols` here and the bias `cols`, by the caller's promise.
    unsafe {
        for row in 0..rows {
            let c = c.add(row * stride);
            for col in 0..cols {
                c.add(col).write(c.add(col).read() + bias.add(col).read());
            }
        }
    }
}

#[cfg(test)]
#[path = "units_tests.rs"]
mod tests;
