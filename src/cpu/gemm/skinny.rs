//! Products of few rows (decode steps): B is read once, at the memory's speed, and is not packed.
//!
//! * Rows of B contiguous (`[in, out]` weights): a few rows of B at a time are streamed over a run of columns whose
//!   sums stay in L1.
//! * Columns of B contiguous (`[out, in]` weights): strips of B are transposed into a small panel in L1 or L2, at
//!   once multiplied, and forgotten.
//!
//! Either way an element's chain over k is that of the tile kernel.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::pack::{SLACK, Strip, pack};
use super::simd::{Body, Storage, Vector};
use super::tile::{Ends, Problem, tile_clipped};
use super::workspace::{for_each_task, share, with_scratch};
use crate::cpu::{Float, parallel};
use std::ops::Range;

/// Most rows that these kernels are faster for than packed ones.
pub(super) const ROWS: usize = 32;
/// Elements of a task's sums in L1 (16 KiB of f32).
const SUMS: usize = 4096;
/// Rows of B that are streamed together.
const STREAMS: usize = 4;
/// The same for a single row of A.
const STREAMS_ONE: usize = 8;
/// Longest run of k that is transposed at a time.
const CHUNK: usize = 256;

/// Computes the whole problem of at most [`ROWS`] rows; B has a unit stride in one direction.
///
/// # Safety
/// The problem's pointers are valid for its sizes, and the CPU has `V`'s instructions.
pub(super) unsafe fn run<V, A, B>(problem: &Problem<V::Element, B>, operand: Strip<A>)
where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
    B: Storage<V> + Storage<V::Block>,
{
    let by_columns = problem.b.lane_stride != 1;
    // Rows of A in groups: one group when streaming, two, four or six rows (the tile) when transposing,
    // padded with zeros.
    let groups = if by_columns { problem.rows.div_ceil(6) } else { 1 };
    let height = match problem.rows.div_ceil(groups) {
        rows @ (3 | 5) if by_columns => rows + 1,
        rows => rows,
    };
    let slot = problem.depth * height + SLACK;
    with_scratch(groups * slot, |a: &mut [V::Element]| {
        // SAFETY: slots are large enough for `height` lanes and all of k.
        unsafe {
            V::enter(PackRows::<V, A> { a: operand, height, depth: problem.depth, to: a.as_mut_ptr(), slot })
        };
        let a: &[V::Element] = a;
        let align = 4 * V::LANES;
        let units = problem.cols.div_ceil(align);
        let operations = problem.rows * problem.depth * problem.cols;
        let wanted = match parallel::task_count(units, operations / units) {
            1 => 1,
            _ => 4 * parallel::threads(),
        };
        let most = if by_columns { 64 } else { (SUMS / problem.rows / align).max(1) };
        let tasks = units.div_ceil(most).max(wanted.min(units));
        for_each_task(tasks, |task| {
            let which = share(units, tasks, task);
            let cols = which.start * align..(which.end * align).min(problem.cols);
            let elements = if by_columns { CHUNK * align + SLACK } else { problem.rows * cols.len() };
            with_scratch(elements, |scratch: &mut [V::Element]| {
                // SAFETY: tasks own disjoint columns of C.
                unsafe {
                    match (by_columns, height) {
                        (false, 1) => V::enter(Stream::<V, B, true> { problem, a, cols, sums: scratch }),
                        (false, _) => V::enter(Stream::<V, B, false> { problem, a, cols, sums: scratch }),
                        (true, 1) => V::enter(Transpose::<V, B, 1, 4> { problem, a, slot, cols, scratch }),
                        (true, 2) => V::enter(Transpose::<V, B, 2, 4> { problem, a, slot, cols, scratch }),
                        (true, 4) => V::enter(Transpose::<V, B, 4, 2> { problem, a, slot, cols, scratch }),
                        (true, _) => V::enter(Transpose::<V, B, 6, 2> { problem, a, slot, cols, scratch }),
                    }
                }
            });
        });
    });
}

/// Packs the rows of A, in groups of `height`.
struct PackRows<V: Vector, A> {
    a: Strip<A>,
    height: usize,
    depth: usize,
    to: *mut V::Element,
    slot: usize,
}

impl<V: Vector, A: Storage<V> + Storage<V::Block>> Body for PackRows<V, A> {
    #[inline(always)]
    unsafe fn run(self) {
        // SAFETY: the maker's slots are large enough for `height` lanes and all of k.
        unsafe { pack::<V, A>(self.a, self.height, self.depth, self.to, self.slot) }
    }
}

/// Columns of B are contiguous; `a` is in groups of `M` rows, `slot` apart.
struct Transpose<'a, V: Vector, B, const M: usize, const N: usize> {
    problem: &'a Problem<V::Element, B>,
    a: &'a [V::Element],
    slot: usize,
    cols: Range<usize>,
    scratch: &'a mut [V::Element],
}

impl<V, B, const M: usize, const N: usize> Body for Transpose<'_, V, B, M, N>
where
    V: Vector,
    B: Storage<V> + Storage<V::Block>,
{
    #[inline(always)]
    unsafe fn run(self) {
        let Transpose { problem, a, slot: a_slot, cols, scratch } = self;
        let width = N * V::LANES;
        let chunks = problem.depth.div_ceil(CHUNK);
        let mut col = cols.start;
        if M <= 2 {
            let lanes = 2 * V::Block::LANES;
            while col + lanes <= cols.end {
                // SAFETY: `lanes` columns from `col` on are inside B and C; `a` has all of k for `M` rows.
                unsafe { columns::<V::Block, B, M>(problem, a, col) };
                col += lanes;
            }
        }
        while col < cols.end {
            let lanes = width.min(cols.end - col);
            for chunk in 0..chunks {
                let k = share(problem.depth, chunks, chunk);
                let load = problem.add || chunk > 0;
                let last = chunk + 1 == chunks && !problem.bias.is_null();
                // SAFETY: columns and k are inside B, a chunk fits the scratch, tiles are clipped to C.
                unsafe {
                    let strip = Strip { lanes, ..problem.b.at(col, k.start) };
                    pack::<V, B>(strip, width, k.len(), scratch.as_mut_ptr(), scratch.len());
                    let bias = if last { problem.bias.add(col) } else { std::ptr::null() };
                    for group in 0..problem.rows.div_ceil(M) {
                        let row = group * M;
                        tile_clipped::<V, M, N>(
                            (M.min(problem.rows - row), lanes),
                            k.len(),
                            a.as_ptr().add(group * a_slot + k.start * M),
                            scratch.as_ptr(),
                            (problem.c.add(row * problem.c_stride + col), problem.c_stride),
                            Ends { load, bias },
                        );
                    }
                }
            }
            col += width;
        }
    }
}

/// Two blocks of columns by all `M` rows (one or two): squares of B are transposed in registers and used there.
#[inline(always)]
unsafe fn columns<V: Vector, B: Storage<V>, const M: usize>(
    problem: &Problem<V::Element, B>,
    a: &[V::Element],
    col: usize,
) {
    let step = V::LANES;
    // A line of B is used up before the next row's, as rows may share a cache set.
    let run = 2 * step;
    let stride = problem.b.lane_stride;
    let zero = V::Element::default();
    // SAFETY: by the caller's promise; `k + run <= depth` guards the blocks, and single terms are below `depth`.
    unsafe {
        let mut sums = [[V::splat(zero); 2]; M];
        if problem.add {
            for row in 0..M {
                for j in 0..2 {
                    sums[row][j] = V::load(problem.c.add(row * problem.c_stride + col + j * step));
                }
            }
        }
        let b = problem.b.at(col, 0).start;
        let whole = problem.depth - problem.depth % run;
        let mut k = 0;
        while k < whole {
            for j in 0..2 {
                for half in 0..2 {
                    let k = k + half * step;
                    let mut block = [V::splat(zero); 8];
                    for i in 0..step {
                        let from = b.add((j * step + i) * stride + k);
                        if half == 0 {
                            V::prefetch_far(from.wrapping_add(2 * step * stride));
                        }
                        block[i] = B::load(from);
                    }
                    V::transpose(&mut block);
                    for i in 0..step {
                        for row in 0..M {
                            let factor = V::splat(*a.as_ptr().add((k + i) * M + row));
                            sums[row][j] = factor.mul_add(block[i], sums[row][j]);
                        }
                    }
                }
            }
            k += run;
        }
        for row in 0..M {
            for j in 0..2 {
                let mut lanes = [zero; 8];
                sums[row][j].store(lanes.as_mut_ptr());
                for i in 0..step {
                    let lane = col + j * step + i;
                    let mut sum = lanes[i];
                    for k in whole..problem.depth {
                        let b = (*problem.b.at(lane, k).start).widen();
                        sum = (*a.as_ptr().add(k * M + row)).mul_add(b, sum);
                    }
                    if !problem.bias.is_null() {
                        sum += *problem.bias.add(lane);
                    }
                    *problem.c.add(row * problem.c_stride + lane) = sum;
                }
            }
        }
    }
}

/// Rows of B are contiguous; `a` is `[k][rows]`.
struct Stream<'a, V: Vector, B, const ONE: bool> {
    problem: &'a Problem<V::Element, B>,
    a: &'a [V::Element],
    cols: Range<usize>,
    sums: &'a mut [V::Element],
}

impl<V, B, const ONE: bool> Body for Stream<'_, V, B, ONE>
where
    V: Vector,
    B: Storage<V>,
{
    #[inline(always)]
    unsafe fn run(self) {
        let Stream { problem, a, cols, sums } = self;
        // SAFETY: passed on to the caller.
        unsafe {
            if ONE {
                stream_one::<V, B>(problem, a, cols, sums);
            } else {
                stream::<V, B>(problem, a, cols, sums);
            }
        }
    }
}

/// Several rows of A; `a` is `[k][rows]`.
#[inline(always)]
unsafe fn stream<V, B>(
    problem: &Problem<V::Element, B>,
    a: &[V::Element],
    cols: Range<usize>,
    sums: &mut [V::Element],
) where
    V: Vector,
    B: Storage<V>,
{
    let (rows, count) = (problem.rows, cols.len());
    // SAFETY: the columns are inside B and C and this task's own; rows k.. of B exist.
    unsafe {
        for row in 0..rows {
            begin(problem, row, cols.start, &mut sums[row * count..][..count]);
        }
        let mut k = 0;
        while k + STREAMS <= problem.depth {
            let b = problem.b.at(cols.start, k);
            update::<V, B, STREAMS>(rows, count, a.as_ptr().add(k * rows), b.start, b.k_stride, sums);
            k += STREAMS;
        }
        while k < problem.depth {
            let b = problem.b.at(cols.start, k);
            update::<V, B, 1>(rows, count, a.as_ptr().add(k * rows), b.start, b.k_stride, sums);
            k += 1;
        }
        for row in 0..rows {
            end(problem, row, cols.start, &sums[row * count..][..count]);
        }
    }
}

/// sums[row][c] continues its chain with `U` terms.
#[inline(always)]
unsafe fn update<V, B, const U: usize>(
    rows: usize,
    count: usize,
    a: *const V::Element,
    b: *const B,
    b_stride: usize,
    sums: &mut [V::Element],
) where
    V: Vector,
    B: Storage<V>,
{
    let sums = sums.as_mut_ptr();
    let ahead = U * b_stride;
    let mut col = 0;
    // SAFETY: `col + vectors <= count` guards every access to B's rows and to the sums.
    unsafe {
        while col + 2 * V::LANES <= count {
            let mut terms = [[V::splat(V::Element::default()); 2]; U];
            for u in 0..U {
                let from = b.add(u * b_stride + col);
                V::prefetch(from.wrapping_add(2 * ahead));
                terms[u] = [B::load(from), B::load(from.add(V::LANES))];
            }
            for row in 0..rows {
                let to = sums.add(row * count + col);
                let (mut first, mut second) = (V::load(to), V::load(to.add(V::LANES)));
                for u in 0..U {
                    let factor = V::splat(*a.add(u * rows + row));
                    first = factor.mul_add(terms[u][0], first);
                    second = factor.mul_add(terms[u][1], second);
                }
                first.store(to);
                second.store(to.add(V::LANES));
            }
            col += 2 * V::LANES;
        }
        while col < count {
            for row in 0..rows {
                let to = sums.add(row * count + col);
                let mut sum = *to;
                for u in 0..U {
                    sum = (*a.add(u * rows + row)).mul_add((*b.add(u * b_stride + col)).widen(), sum);
                }
                *to = sum;
            }
            col += 1;
        }
    }
}

/// One row of A.
#[inline(always)]
unsafe fn stream_one<V, B>(
    problem: &Problem<V::Element, B>,
    a: &[V::Element],
    cols: Range<usize>,
    sums: &mut [V::Element],
) where
    V: Vector,
    B: Storage<V>,
{
    // SAFETY: the columns are inside B and C and this task's own; rows k.. of B exist.
    unsafe {
        begin(problem, 0, cols.start, sums);
        let mut k = 0;
        while k + STREAMS_ONE <= problem.depth {
            let b = problem.b.at(cols.start, k);
            update_one::<V, B, STREAMS_ONE>(a.as_ptr().add(k), b.start, b.k_stride, sums);
            k += STREAMS_ONE;
        }
        while k < problem.depth {
            let b = problem.b.at(cols.start, k);
            update_one::<V, B, 1>(a.as_ptr().add(k), b.start, b.k_stride, sums);
            k += 1;
        }
        end(problem, 0, cols.start, sums);
    }
}

/// sums[c] continues its chain with `U` terms.
#[inline(always)]
unsafe fn update_one<V, B, const U: usize>(
    a: *const V::Element,
    b: *const B,
    b_stride: usize,
    sums: &mut [V::Element],
) where
    V: Vector,
    B: Storage<V>,
{
    let (count, sums) = (sums.len(), sums.as_mut_ptr());
    let ahead = U * b_stride;
    let mut col = 0;
    // SAFETY: `col + LANES <= count` guards every access to B's rows and to the sums.
    unsafe {
        let mut factors = [V::splat(V::Element::default()); U];
        for u in 0..U {
            factors[u] = V::splat(*a.add(u));
        }
        while col + V::LANES <= count {
            let mut sum = V::load(sums.add(col));
            for u in 0..U {
                let from = b.add(u * b_stride + col);
                V::prefetch(from.wrapping_add(ahead));
                sum = factors[u].mul_add(B::load(from), sum);
            }
            sum.store(sums.add(col));
            col += V::LANES;
        }
        while col < count {
            for u in 0..U {
                *sums.add(col) = (*a.add(u)).mul_add((*b.add(u * b_stride + col)).widen(), *sums.add(col));
            }
            col += 1;
        }
    }
}

/// Where the chains of one row start.
#[inline(always)]
unsafe fn begin<T: Float, B>(problem: &Problem<T, B>, row: usize, col: usize, sums: &mut [T]) {
    if problem.add {
        // SAFETY: the caller's columns are inside C.
        let c =
            unsafe { std::slice::from_raw_parts(problem.c.add(row * problem.c_stride + col), sums.len()) };
        sums.copy_from_slice(c);
    } else {
        sums.fill(T::ZERO);
    }
}

/// Adds the bias to finished chains and writes them.
#[inline(always)]
unsafe fn end<T: Float, B>(problem: &Problem<T, B>, row: usize, col: usize, sums: &[T]) {
    // SAFETY: the caller's columns are inside C and owned by its task; bias has one number a column.
    unsafe {
        let c = std::slice::from_raw_parts_mut(problem.c.add(row * problem.c_stride + col), sums.len());
        if problem.bias.is_null() {
            return c.copy_from_slice(sums);
        }
        let bias = std::slice::from_raw_parts(problem.bias.add(col), sums.len());
        for ((c, &sum), &bias) in c.iter_mut().zip(sums).zip(bias) {
            *c = sum + bias;
        }
    }
}
