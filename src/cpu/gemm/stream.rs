//! Few rows times a B whose rows are contiguous, unpacked: a few rows of B at a time are streamed over a run of
//! columns, whose sums stay in L1.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::pack::Strip;
use super::simd::{Body, Storage, Vector};
use super::skinny::for_each_run;
use super::tile::Problem;
use super::workspace::with_scratch;
use crate::cpu::Float;
use std::ops::Range;

/// Elements of a task's sums in L1 (16 KiB of f32).
const SUMS: usize = 4096;
/// Rows of B that are streamed together.
const STREAMS: usize = 4;
/// Rows of B between their use and the request for their lines.
const AHEAD: usize = 8;
/// The same for a single row of A.
const STREAMS_ONE: usize = 8;

/// Computes the whole problem.
///
/// # Safety
/// The problem's pointers are valid for its sizes, the lane stride of B is 1, and the CPU has `V`'s instructions.
pub(super) unsafe fn run<V, A, B>(problem: &Problem<V::Element, B>, operand: Strip<A>)
where
    V: Vector,
    A: Storage<V>,
    B: Storage<V>,
{
    let unit = 4 * V::LANES;
    let most = (SUMS / problem.rows / unit).max(1) * unit;
    with_rows::<V, A>(operand, problem.rows, problem.depth, |a| {
        for_each_run(problem, unit, most, |cols| {
            // An odd number of lines: rows of sums at a power of two would share their cache sets with B's.
            let stride = cols.len().next_multiple_of(32) + 16;
            with_scratch(problem.rows * stride, |sums: &mut [V::Element]| {
                // SAFETY: tasks own disjoint columns of C; A is valid for all rows and k.
                unsafe { V::enter(Stream::<V, B> { problem, a, cols, sums, stride }) }
            });
        });
    });
}

/// Rows of A, whose terms are neighbours.
#[derive(Clone, Copy)]
pub(super) struct Rows<T> {
    pub start: *const T,
    pub stride: usize,
}

// SAFETY: tasks only read through it, and the borrow of its maker outlives them.
unsafe impl<T: Sync> Sync for Rows<T> {}

/// Calls `body` with the rows of A as they lie, or with a copy where they are stored otherwise.
pub(super) fn with_rows<V: Vector, A: Storage<V>>(
    operand: Strip<A>,
    rows: usize,
    depth: usize,
    body: impl FnOnce(Rows<V::Element>),
) {
    if A::PLAIN && operand.k_stride == 1 {
        return body(Rows { start: operand.start.cast(), stride: operand.lane_stride });
    }
    with_scratch(rows * depth, |a: &mut [V::Element]| {
        for (row, a) in a.chunks_exact_mut(depth).enumerate() {
            for (k, a) in a.iter_mut().enumerate() {
                // SAFETY: row and k are inside A.
                *a = unsafe { operand.at(row, k).start.read() }.widen();
            }
        }
        body(Rows { start: a.as_ptr(), stride: depth });
    });
}

/// All rows by some columns.
struct Stream<'a, V: Vector, B> {
    problem: &'a Problem<V::Element, B>,
    a: Rows<V::Element>,
    cols: Range<usize>,
    /// Rows of sums, `stride` apart.
    sums: &'a mut [V::Element],
    stride: usize,
}

impl<V, B> Body for Stream<'_, V, B>
where
    V: Vector,
    B: Storage<V>,
{
    #[inline(always)]
    unsafe fn run(self) {
        let Stream { problem, a, cols, sums, stride } = self;
        let (rows, depth, count) = (problem.rows, problem.depth, cols.len());
        // SAFETY: the columns are inside B and C and this task's own; terms k.. of A and B exist.
        unsafe {
            for row in 0..rows {
                begin(problem, row, cols.start, &mut sums[row * stride..][..count]);
            }
            let at = |k: usize| (a.start.add(k), problem.b.at(cols.start, k).start);
            let mut k = 0;
            if rows == 1 {
                while k + STREAMS_ONE <= depth {
                    update_one::<V, B, STREAMS_ONE>(at(k), problem.b.k_stride, &mut sums[..count]);
                    k += STREAMS_ONE;
                }
                while k < depth {
                    update_one::<V, B, 1>(at(k), problem.b.k_stride, &mut sums[..count]);
                    k += 1;
                }
            } else {
                while k + STREAMS <= depth {
                    update::<V, B, STREAMS>(
                        (rows, a.stride),
                        at(k),
                        problem.b.k_stride,
                        (sums, count, stride),
                    );
                    k += STREAMS;
                }
                while k + 2 <= depth {
                    update::<V, B, 2>((rows, a.stride), at(k), problem.b.k_stride, (sums, count, stride));
                    k += 2;
                }
                if k < depth {
                    update::<V, B, 1>((rows, a.stride), at(k), problem.b.k_stride, (sums, count, stride));
                }
            }
            for row in 0..rows {
                end(problem, row, cols.start, &sums[row * stride..][..count]);
            }
        }
    }
}

/// sums[row][c] continues its chain with `U` terms.
#[inline(always)]
unsafe fn update<V, B, const U: usize>(
    (rows, a_stride): (usize, usize),
    (a, b): (*const V::Element, *const B),
    b_stride: usize,
    (sums, count, stride): (&mut [V::Element], usize, usize),
) where
    V: Vector,
    B: Storage<V>,
{
    let sums = sums.as_mut_ptr();
    let mut col = 0;
    // SAFETY: `col + vectors <= count` guards every access to B's rows and to the sums.
    unsafe {
        while col + 2 * V::LANES <= count {
            let mut terms = [[V::splat(V::Element::default()); 2]; U];
            for u in 0..U {
                let from = b.add(u * b_stride + col);
                V::prefetch(from.wrapping_add(AHEAD * b_stride));
                terms[u] = [B::load(from), B::load(from.add(V::LANES))];
            }
            let (mut a, mut to) = (a, sums.add(col));
            for _ in 0..rows {
                let (mut first, mut second) = (V::load(to), V::load(to.add(V::LANES)));
                for u in 0..U {
                    let factor = V::splat(*a.add(u));
                    first = factor.mul_add(terms[u][0], first);
                    second = factor.mul_add(terms[u][1], second);
                }
                first.store(to);
                second.store(to.add(V::LANES));
                a = a.wrapping_add(a_stride);
                to = to.wrapping_add(stride);
            }
            col += 2 * V::LANES;
        }
        while col < count {
            for row in 0..rows {
                let to = sums.add(row * stride + col);
                let mut sum = *to;
                for u in 0..U {
                    let factor = *a.add(row * a_stride + u);
                    sum = factor.mul_add((*b.add(u * b_stride + col)).widen(), sum);
                }
                *to = sum;
            }
            col += 1;
        }
    }
}

/// sums[c] of a single row continues its chain with `U` terms.
#[inline(always)]
unsafe fn update_one<V, B, const U: usize>(
    (a, b): (*const V::Element, *const B),
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
                V::prefetch_far(from.wrapping_add(ahead));
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
