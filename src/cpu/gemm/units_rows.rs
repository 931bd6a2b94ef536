//! bfloat16 products of few rows on a matrix unit where the columns of B are runs of memory, as in a weight stored
//! `[out, in]`: tiles are loaded from where the weights lie, nothing of B is packed.
#![allow(unsafe_code)]

use super::pack::Strip;
use super::simd::{Body, Vector};
use super::tile::Problem;
use super::units::{Bf16Bits, DEPTH, READING, SIDE, TILE, Unit};
use super::workspace::{share, with_scratch};
use crate::cpu::parallel;
use std::marker::PhantomData;
use std::ops::Range;

/// Few rows by a B whose columns are runs of memory: tiles are read where the weights lie, and A is packed as the
/// right factor instead.
///
/// # Safety
/// As [`super::units::run`]; B's k stride is 1, and A has at most 16 rows.
pub(super) unsafe fn run<V, U, A, B>(problem: &Problem<f32, B>, operand: Strip<A>)
where
    V: Vector<Element = f32>,
    U: Unit,
    A: Bf16Bits,
    B: Bf16Bits,
{
    let depth_tiles = problem.depth.div_ceil(DEPTH);
    with_scratch(depth_tiles * TILE, |packed: &mut [u16]| {
        packed.fill(0);
        for row in 0..problem.rows {
            for k in 0..problem.depth {
                // SAFETY: the row and k are inside A.
                let bits = unsafe { operand.at(row, k).start.read() }.bits();
                packed[(k / 2 * SIDE + row) * 2 + k % 2] = bits;
            }
        }
        let packed: &[u16] = packed;
        let col_tiles = problem.cols.div_ceil(SIDE);
        let tasks = parallel::task_count(col_tiles, SIDE * problem.depth * READING);
        parallel::for_each_task(tasks, |task| {
            let tiles = share(col_tiles, tasks, task);
            // SAFETY: tasks own disjoint columns of C; A is packed.
            unsafe { V::enter(WeightRows::<V, U, B> { problem, packed, tiles, types: PhantomData }) };
        });
    });
}

/// Computes all rows of some runs of 16 columns.
struct WeightRows<'a, V, U, B> {
    problem: &'a Problem<f32, B>,
    packed: &'a [u16],
    tiles: Range<usize>,
    types: PhantomData<(V, U)>,
}

impl<V: Vector<Element = f32>, U: Unit, B: Bf16Bits> Body for WeightRows<'_, V, U, B> {
    #[inline(always)]
    unsafe fn run(self) {
        let WeightRows { problem, packed, tiles, .. } = self;
        let (whole, rest) = (problem.depth / DEPTH, problem.depth % DEPTH);
        let mut sums = [0.0_f32; SIDE * SIDE];
        let mut edge = [0_u16; TILE];
        // SAFETY: whole tiles lie inside B; what is cut by an edge is copied beside first; C's window exists.
        unsafe {
            U::begin(SIDE);
            for tile in tiles {
                let col = tile * SIDE;
                let width = SIDE.min(problem.cols - col);
                if problem.add {
                    for row in 0..problem.rows {
                        for i in 0..width {
                            sums[i * SIDE + row] = problem.c.add(row * problem.c_stride + col + i).read();
                        }
                    }
                }
                let mut add = problem.add;
                let mut next = 0;
                if width == SIDE && whole > 0 {
                    let w = (problem.b.at(col, 0).start.cast::<u16>(), problem.b.lane_stride);
                    U::multiply_rows(whole, w, packed.as_ptr(), sums.as_mut_ptr(), add);
                    (add, next) = (true, whole);
                }
                while next < whole + usize::from(rest > 0) {
                    let count = DEPTH.min(problem.depth - next * DEPTH);
                    edge.fill(0);
                    for i in 0..width {
                        let from = problem.b.at(col + i, next * DEPTH).start.cast::<u16>();
                        std::ptr::copy_nonoverlapping(from, edge.as_mut_ptr().add(i * DEPTH), count);
                    }
                    let w = (edge.as_ptr(), DEPTH);
                    U::multiply_rows(1, w, packed.as_ptr().add(next * TILE), sums.as_mut_ptr(), add);
                    (add, next) = (true, next + 1);
                }
                for row in 0..problem.rows {
                    let c = problem.c.add(row * problem.c_stride + col);
                    for i in 0..width {
                        let mut sum = sums[i * SIDE + row];
                        if !problem.bias.is_null() {
                            sum += problem.bias.add(col + i).read();
                        }
                        c.add(i).write(sum);
                    }
                }
            }
            U::end();
        }
    }
}
