//! Few rows by strips of a B that was stored for a matrix unit (`prepacked`).
#![allow(unsafe_code)]

use super::pack::Strip;
use super::prepacked::Panels;
use super::prepacked_panels::each_problem;
use super::simd::{Body, Vector};
use super::tile::Product;
use super::units::{Bf16Bits, DEPTH, READING, RowPairs, SIDE, TILE, Unit};
use super::units_pack::{PackRows, pack_strips};
use super::workspace::{share, with_scratch};
use crate::cpu::parallel;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// Computes all problems, of one A of at most 32 rows.
///
/// # Safety
/// The problems' pointers are valid for their sizes, all have A's rows and depth, and their Bs are strips as [`write`]
/// writes them; the CPU has V's instructions and the unit.
pub(super) unsafe fn run<V, U, A>(problems: &[Product<f32, Panels<bf16>>], operand: Strip<A>)
where
    V: Vector<Element = f32>,
    U: Unit,
    A: Bf16Bits,
{
    let Some(&Product { rows, depth, .. }) = problems.first() else { return };
    let row_tiles = rows.div_ceil(SIDE);
    with_scratch(row_tiles * depth.div_ceil(DEPTH) * TILE, |a: &mut [u16]| {
        let (tiles, to) = (0..row_tiles, a.as_mut_ptr());
        // SAFETY: there is room for all tiles of A.
        unsafe { V::enter(PackRows { operand, tiles, depth, to, vector: PhantomData::<V> }) };
        let a: &[u16] = a;
        let strips = problems.iter().map(|problem| problem.cols.div_ceil(2 * SIDE)).sum();
        let tasks = parallel::task_count(strips, 2 * SIDE * depth * READING);
        parallel::for_each_task(tasks, |task| {
            with_scratch(4 * SIDE * SIDE, |sums: &mut [f32]| {
                each_problem(problems, 2 * SIDE, share(strips, tasks, task), |problem, strips| {
                    let rows = RowPairs { problem, a: a.as_ptr(), pairs: 0..row_tiles.div_ceil(2) };
                    // SAFETY: tasks own disjoint columns of C; A is packed.
                    unsafe { V::enter(Strips { rows, strips, sums, unit: PhantomData::<U> }) };
                });
            });
        });
    });
}

/// Computes all rows by some strips.
struct Strips<'a, U> {
    rows: RowPairs<'a, Panels<bf16>>,
    strips: Range<usize>,
    /// Four tiles.
    sums: &'a mut [f32],
    unit: PhantomData<U>,
}

impl<U: Unit> Body for Strips<'_, U> {
    #[inline(always)]
    unsafe fn run(self) {
        let problem = self.rows.problem;
        let depth_tiles = problem.depth.div_ceil(DEPTH);
        // SAFETY: strips are stored for all of k; the scratch holds the sums of four tiles.
        unsafe {
            U::begin(problem.rows.min(SIDE));
            for strip in self.strips {
                let b = problem.b.start.add(strip * problem.b.len).cast::<u16>();
                let place = (strip * 2 * SIDE, 0, depth_tiles);
                self.rows.multiply::<U, true>(place, b, self.sums.as_mut_ptr());
            }
            U::end();
        }
    }
}

/// Stores one strip of at most 32 columns, `depth` deep: tiles `[k tile][2][16 pairs][16 columns][2]`, zeros where
/// nothing is.
///
/// # Safety
/// The strip is readable for its lanes and `depth`, and `to` has room for whole tiles; the CPU has V's and the unit's
/// instructions.
pub(super) unsafe fn write<V: Vector<Element = f32>, U: Unit>(b: Strip<bf16>, depth: usize, to: *mut u16) {
    // SAFETY: passed on to the caller.
    unsafe { V::enter(Write { b, depth, to, types: PhantomData::<(V, U)> }) }
}

struct Write<V, U> {
    b: Strip<bf16>,
    depth: usize,
    to: *mut u16,
    types: PhantomData<(V, U)>,
}

impl<V: Vector<Element = f32>, U: Unit> Body for Write<V, U> {
    #[inline(always)]
    unsafe fn run(self) {
        // SAFETY: passed on to the caller. There is one strip: no second one's place matters.
        unsafe { pack_strips::<V, U, bf16>(self.b, self.depth, self.to, 0) }
    }
}
