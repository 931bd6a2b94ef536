//! Products of few rows (decode steps): B is read once, at the memory's speed.
//!
//! * Rows of B contiguous (`[in, out]` weights): `stream`.
//! * Columns of B contiguous (`[out, in]` weights): `spread`, whose lanes are rows of A; or, for one or two rows and
//!   for B in bfloat16, strips of B are transposed, at once multiplied, and forgotten.
//!
//! Either way an element's chain over k is that of the tile kernel.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::ahead::{Ahead, Lines};
use super::pack::{SLACK, Strip, pack, pack_panel};
use super::simd::{Body, Storage, Vector};
use super::tile::{Ends, Problem, Rows, tile_clipped};
use super::workspace::{share, with_scratch};
use super::{spread, stream};
use crate::cpu::{Float, parallel};
use std::ops::Range;

/// Most rows that these kernels are faster for than packed ones.
pub(super) const ROWS: usize = 32;
/// Longest run of k that is transposed at a time.
const CHUNK: usize = 256;
/// Fewest bytes of B that are worth a task.
const TASK_BYTES: usize = 32 << 10;

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
    // SAFETY: passed on to the caller.
    unsafe {
        if problem.b.lane_stride == 1 {
            stream::run::<V, A, B>(problem, operand);
        } else if <B as Storage<V>>::PLAIN && problem.rows > 2 {
            spread::run::<V, A, B>(problem, operand);
        } else {
            transpose::<V, A, B>(problem, operand);
        }
    }
}

/// Cuts the columns into runs of whole `units` of columns, and calls `work` for each, possibly in parallel; a run is
/// at most `most` columns long.
pub(super) fn for_each_run<T, B>(
    problem: &Problem<T, B>,
    unit: usize,
    most: usize,
    work: impl Fn(Range<usize>) + Sync,
) where
    T: Sync,
    B: Sync,
{
    let units = problem.cols.div_ceil(unit);
    // Reading a number of B from a cache that cores share takes as long as 8 operations, and beside it go 8 rows.
    let operations = (problem.rows / 8 + 2 * size_of::<B>()) * problem.depth * problem.cols;
    let wanted = match parallel::task_count(units, operations / units) {
        1 => 1,
        _ => 4 * parallel::threads(),
    };
    let bytes = problem.depth * problem.cols * size_of::<B>();
    let wanted = wanted.min(bytes / TASK_BYTES).min(units).max(1);
    let tasks = units.div_ceil((most / unit).max(1)).max(wanted);
    parallel::for_each_task(tasks, |task| {
        let which = share(units, tasks, task);
        work(which.start * unit..(which.end * unit).min(problem.cols));
    });
}

unsafe fn transpose<V, A, B>(problem: &Problem<V::Element, B>, operand: Strip<A>)
where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
    B: Storage<V> + Storage<V::Block>,
{
    // Rows of A in groups of one, two, four or six rows (the tile), padded with zeros.
    let groups = problem.rows.div_ceil(6);
    let height = match problem.rows.div_ceil(groups) {
        rows @ (3 | 5) => rows + 1,
        rows => rows,
    };
    let slot = problem.depth * height + SLACK;
    with_scratch(groups * slot, |a: &mut [V::Element]| {
        // SAFETY: slots are large enough for `height` lanes and all of k.
        unsafe { pack_rows::<V, A>(operand, height, problem.depth, a, slot) };
        let a: &[V::Element] = a;
        for_each_run(problem, 4 * V::LANES, 256 * V::LANES, |cols| {
            with_scratch(CHUNK * 4 * V::LANES + SLACK, |scratch: &mut [V::Element]| {
                // SAFETY: tasks own disjoint columns of C.
                unsafe {
                    match height {
                        1 => V::enter(Transpose::<V, B, 1, 4> { problem, a, slot, cols, scratch }),
                        2 => V::enter(Transpose::<V, B, 2, 4> { problem, a, slot, cols, scratch }),
                        4 => V::enter(Transpose::<V, B, 4, 2> { problem, a, slot, cols, scratch }),
                        _ => V::enter(Transpose::<V, B, 6, 2> { problem, a, slot, cols, scratch }),
                    }
                }
            });
        });
    });
}

/// Packs the rows of A, in groups of `height`, `slot` elements apart.
///
/// # Safety
/// `to` has a slot for each group, of `height * depth + SLACK` elements at least; the CPU has `V`'s instructions.
pub(super) unsafe fn pack_rows<V, A>(
    a: Strip<A>,
    height: usize,
    depth: usize,
    to: &mut [V::Element],
    slot: usize,
) where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
{
    // SAFETY: passed on to the caller.
    unsafe { V::enter(PackRows::<V, A> { a, height, depth, to: to.as_mut_ptr(), slot }) }
}

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
                    pack_panel::<V, B, N>(strip, k.len(), scratch.as_mut_ptr(), scratch.len());
                    let bias = if last { problem.bias.add(col) } else { std::ptr::null() };
                    for group in 0..problem.rows.div_ceil(M) {
                        let row = group * M;
                        tile_clipped::<V, M, N>(
                            (M.min(problem.rows - row), lanes),
                            k.len(),
                            Rows::Packed(a.as_ptr().add(group * a_slot + k.start * M)),
                            scratch.as_ptr(),
                            (problem.c.add(row * problem.c_stride + col), problem.c_stride),
                            Ends { load, bias },
                            Ahead::nothing(&mut Lines::NONE.clone()),
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
                    let from = b.add(j * step * stride + k);
                    if half == 0 {
                        for i in 0..step {
                            V::prefetch_far(from.wrapping_add((2 * step + i) * stride));
                        }
                    }
                    let block = B::load_columns(from, stride);
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
