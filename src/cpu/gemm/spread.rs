//! Few rows times a B whose columns are contiguous, without a transpose: lanes are rows of A, and every number of B
//! is spread over a vector of them.
//!
//! ```text
//! for pairs of vectors of rows
//!   for chunks of k
//!     for strips of columns: sums[column][lane] in registers while k runs
//!   transpose the sums into C
//! ```
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::pack::{SLACK, Strip};
use super::simd::{Body, Storage, Vector};
use super::skinny::{for_each_run, pack_rows};
use super::tile::Problem;
use super::workspace::with_scratch;
use std::marker::PhantomData;
use std::ops::Range;

/// Most columns of a task: their sums stay in L1.
const COLUMNS: usize = 192;
/// Longest run of k between two visits of a sum: packed A then stays in L2.
const CHUNK: usize = 2048;
/// Terms between two requests for lines of the next strip.
const STEP: usize = 16;

/// Computes the whole problem.
///
/// # Safety
/// The problem's pointers are valid for its sizes, B's k stride is 1, and the CPU has `V`'s instructions.
pub(super) unsafe fn run<V, A, B>(problem: &Problem<V::Element, B>, operand: Strip<A>)
where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
    B: Storage<V> + Storage<V::Block>,
{
    let lanes = V::Block::LANES;
    let height = if problem.rows <= lanes { lanes } else { 2 * lanes };
    let slot = problem.depth * height + SLACK;
    with_scratch(problem.rows.div_ceil(height) * slot, |a: &mut [V::Element]| {
        // SAFETY: slots are large enough for `height` lanes and all of k.
        unsafe { pack_rows::<V, A>(operand, height, problem.depth, a, slot) };
        let a: &[V::Element] = a;
        for_each_run(problem, 24, COLUMNS, |cols| {
            with_scratch(cols.len() * height, |sums: &mut [V::Element]| {
                let vector = PhantomData::<V::Block>;
                // SAFETY: tasks own disjoint columns of C; A is packed.
                unsafe { V::enter(Spread { problem, a, slot, height, cols, sums, vector }) }
            });
        });
    });
}

/// All rows by some columns.
struct Spread<'a, V: Vector, B> {
    problem: &'a Problem<V::Element, B>,
    a: &'a [V::Element],
    slot: usize,
    height: usize,
    cols: Range<usize>,
    /// `[columns][height]`.
    sums: &'a mut [V::Element],
    vector: PhantomData<V>,
}

impl<V, B> Body for Spread<'_, V, B>
where
    V: Vector,
    B: Storage<V>,
{
    #[inline(always)]
    unsafe fn run(self) {
        let Spread { problem, a, slot, height, cols, sums, .. } = self;
        for group in 0..problem.rows.div_ceil(height) {
            let rows = group * height..((group + 1) * height).min(problem.rows);
            // SAFETY: rows and columns are inside the operands, and `sums` holds `height` lanes a column.
            unsafe {
                begin::<V, B>(problem, rows.clone(), cols.clone(), height, sums);
                let mut k = 0;
                while k < problem.depth {
                    let count = CHUNK.min(problem.depth - k);
                    let a = a.as_ptr().add(group * slot + k * height);
                    let sums = sums.as_mut_ptr();
                    if height == V::LANES {
                        let next =
                            strips::<V, B, 1, 12>(problem, a, cols.start, (cols.clone(), k, count), sums);
                        let next = strips::<V, B, 1, 4>(problem, a, next, (cols.clone(), k, count), sums);
                        strips::<V, B, 1, 1>(problem, a, next, (cols.clone(), k, count), sums);
                    } else {
                        let next =
                            strips::<V, B, 2, 6>(problem, a, cols.start, (cols.clone(), k, count), sums);
                        strips::<V, B, 2, 1>(problem, a, next, (cols.clone(), k, count), sums);
                    }
                    k += count;
                }
                end::<V, B>(problem, rows, cols.clone(), height, sums);
            }
        }
    }
}

/// Where the chains start: from C, or from 0.
#[inline(always)]
unsafe fn begin<V: Vector, B>(
    problem: &Problem<V::Element, B>,
    rows: Range<usize>,
    cols: Range<usize>,
    height: usize,
    sums: &mut [V::Element],
) {
    sums.fill(V::Element::default());
    if problem.add {
        for (lane, row) in rows.enumerate() {
            for (i, col) in cols.clone().enumerate() {
                // SAFETY: the row and the column are inside C.
                sums[i * height + lane] = unsafe { *problem.c.add(row * problem.c_stride + col) };
            }
        }
    }
}

/// Continues the chains of whole strips of `C` columns by `G` vectors of rows; returns the first column left over.
#[inline(always)]
unsafe fn strips<V, B, const G: usize, const C: usize>(
    problem: &Problem<V::Element, B>,
    a: *const V::Element,
    mut col: usize,
    (cols, k, count): (Range<usize>, usize, usize),
    sums: *mut V::Element,
) -> usize
where
    V: Vector,
    B: Storage<V>,
{
    // SAFETY: `col + C <= cols.end` guards B and the sums; `a` holds `G` vectors for each of `count` terms.
    unsafe {
        while col + C <= cols.end {
            let to = sums.add((col - cols.start) * G * V::LANES);
            let mut chains = [[V::splat(V::Element::default()); G]; C];
            for c in 0..C {
                for g in 0..G {
                    chains[c][g] = V::load(to.add((c * G + g) * V::LANES));
                }
            }
            let (mut a, mut b) = (a, problem.b.at(col, k).start);
            let stride = problem.b.lane_stride;
            let mut left = count;
            while left >= STEP {
                for c in 0..C {
                    V::prefetch(b.wrapping_add((C + c) * stride));
                }
                for _ in 0..STEP {
                    (a, b) = term::<V, B, G, C>(a, b, stride, &mut chains);
                }
                left -= STEP;
            }
            while left > 0 {
                (a, b) = term::<V, B, G, C>(a, b, stride, &mut chains);
                left -= 1;
            }
            for c in 0..C {
                for g in 0..G {
                    chains[c][g].store(to.add((c * G + g) * V::LANES));
                }
            }
            col += C;
        }
    }
    col
}

/// One term of every chain; returns where the next one's numbers are.
#[inline(always)]
unsafe fn term<V, B, const G: usize, const C: usize>(
    a: *const V::Element,
    b: *const B,
    stride: usize,
    chains: &mut [[V; G]; C],
) -> (*const V::Element, *const B)
where
    V: Vector,
    B: Storage<V>,
{
    // SAFETY: by the caller's promise both operands have this term.
    unsafe {
        let mut rows = [V::splat(V::Element::default()); G];
        for g in 0..G {
            rows[g] = V::load(a.add(g * V::LANES));
        }
        for c in 0..C {
            let factor = V::splat((*b.add(c * stride)).widen());
            for g in 0..G {
                chains[c][g] = rows[g].mul_add(factor, chains[c][g]);
            }
        }
        (a.add(G * V::LANES), b.add(1))
    }
}

/// Adds the bias to finished chains and writes them as rows.
#[inline(always)]
unsafe fn end<V: Vector, B>(
    problem: &Problem<V::Element, B>,
    rows: Range<usize>,
    cols: Range<usize>,
    height: usize,
    sums: &[V::Element],
) {
    let step = V::LANES;
    let whole = cols.len() - cols.len() % step;
    // SAFETY: rows and columns are inside C (and bias); `sums` holds `height` lanes a column.
    unsafe {
        for first in rows.clone().step_by(step) {
            let present = step.min(rows.end - first);
            let sums = sums.as_ptr().add(first - rows.start);
            for i in (0..whole).step_by(step) {
                let mut block = [V::splat(V::Element::default()); 8];
                for j in 0..step {
                    block[j] = V::load(sums.add((i + j) * height));
                }
                V::transpose(&mut block);
                for j in 0..present {
                    let mut value = block[j];
                    if !problem.bias.is_null() {
                        value = value.add(V::load(problem.bias.add(cols.start + i)));
                    }
                    value.store(problem.c.add((first + j) * problem.c_stride + cols.start + i));
                }
            }
            for i in whole..cols.len() {
                for j in 0..present {
                    let mut value = *sums.add(i * height + j);
                    if !problem.bias.is_null() {
                        value += *problem.bias.add(cols.start + i);
                    }
                    *problem.c.add((first + j) * problem.c_stride + cols.start + i) = value;
                }
            }
        }
    }
}
