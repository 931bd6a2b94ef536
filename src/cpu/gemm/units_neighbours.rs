//! bfloat16 products of few rows on a matrix unit where the columns of B are neighbours in memory, as in a weight stored
//! `[in, out]`: 64 columns at a time are read down their terms, interleaved into pairs in L1, and multiplied at once.
#![allow(unsafe_code)]

use super::pack::Strip;
use super::simd::{Body, Vector};
use super::tile::Problem;
use super::units::{Bf16Bits, DEPTH, NEIGHBOURS, READING, ROOM, SIDE, TILE, Unit, add_bias, copy_window};
use super::units_pack::PackRows;
use super::workspace::{share, with_scratch};
use crate::cpu::parallel;
use std::marker::PhantomData;
use std::ops::Range;

/// Numbers set aside for a window of C that an edge cuts.
const ASIDE: usize = SIDE * NEIGHBOURS;

/// Few rows by a B whose columns are neighbours in memory.
///
/// # Safety
/// As [`super::units::run`]; B's lane stride is 1, k is cut by [`DEPTH`] without rest, and A has at most 16 rows.
pub(super) unsafe fn run<V, U, A, B>(problem: &Problem<f32, B>, operand: Strip<A>)
where
    V: Vector<Element = f32>,
    U: Unit,
    A: Bf16Bits,
    B: Bf16Bits,
{
    with_scratch(problem.depth / DEPTH * TILE, |packed: &mut [u16]| {
        // SAFETY: one row of tiles is packed, for which there is room.
        unsafe {
            let (depth, to) = (problem.depth, packed.as_mut_ptr());
            V::enter(PackRows { operand, tiles: 0..1, depth, to, vector: PhantomData::<V> });
        }
        let packed: &[u16] = packed;
        let runs = problem.cols.div_ceil(NEIGHBOURS);
        let tasks = parallel::task_count(runs, NEIGHBOURS * problem.depth * READING);
        parallel::for_each_task(tasks, |task| {
            let runs = share(runs, tasks, task);
            with_scratch(ROOM + 2 * ASIDE, |room: &mut [u16]| {
                // SAFETY: tasks own disjoint columns of C; A is packed.
                unsafe {
                    V::enter(Neighbours::<V, U, B> { problem, packed, runs, room, types: PhantomData })
                };
            });
        });
    });
}

/// Computes all rows of some runs of 64 columns.
struct Neighbours<'a, V, U, B> {
    problem: &'a Problem<f32, B>,
    packed: &'a [u16],
    runs: Range<usize>,
    room: &'a mut [u16],
    types: PhantomData<(V, U)>,
}

impl<V: Vector<Element = f32>, U: Unit, B: Bf16Bits> Body for Neighbours<'_, V, U, B> {
    #[inline(always)]
    unsafe fn run(self) {
        let Neighbours { problem, packed, runs, room, .. } = self;
        let (a, depth) = (packed.as_ptr(), problem.depth / DEPTH);
        // SAFETY: whole runs lie inside B and C. What is left of the columns is copied beside first, 64 wide, so that
        // nothing outside is read; the scratch has room for its sums, and for what is interleaved.
        unsafe {
            let aside = (room.as_mut_ptr().add(ROOM).cast::<f32>(), NEIGHBOURS);
            U::begin(problem.rows);
            for run in runs {
                let col = run * NEIGHBOURS;
                let width = NEIGHBOURS.min(problem.cols - col);
                let c = (problem.c.add(col), problem.c_stride);
                let b = (problem.b.at(col, 0).start.cast::<u16>(), problem.b.k_stride);
                if width == NEIGHBOURS {
                    U::multiply_neighbours(depth, a, b, c, problem.add, room.as_mut_ptr());
                } else {
                    if problem.add {
                        copy_window(c, aside, (problem.rows, width));
                    }
                    let mut edge = [0_u16; NEIGHBOURS * DEPTH];
                    for tile in 0..depth {
                        for k in 0..DEPTH {
                            let from = b.0.add((tile * DEPTH + k) * b.1);
                            let to = edge.as_mut_ptr().add(k * NEIGHBOURS);
                            std::ptr::copy_nonoverlapping(from, to, width);
                        }
                        let edge = (edge.as_ptr(), NEIGHBOURS);
                        let add = problem.add || tile > 0;
                        U::multiply_neighbours(1, a.add(tile * TILE), edge, aside, add, room.as_mut_ptr());
                    }
                    copy_window(aside, c, (problem.rows, width));
                }
                if !problem.bias.is_null() {
                    add_bias(problem.bias.add(col), c, (problem.rows, width));
                }
            }
            U::end();
        }
    }
}
