//! Few rows by panels that vectors read (`prepacked`). All sums of a panel stay in registers; an element's chain is that
//! of the tile kernel.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::pack::Strip;
use super::prepacked::Panels;
use super::prepacked_order::WIDE;
use super::simd::{Body, Storage, Vector};
use super::stream::{Rows, with_rows};
use super::tile::Product;
use super::workspace::share;
use crate::base::pages::CACHE_LINE;
use crate::cpu::parallel;
use std::ops::Range;

/// Longest run of k between two visits of C, where a panel is read again for other rows: it then stays in L1.
const CHUNK: usize = 128;
/// Terms between their use and the request for their lines.
const AHEAD: usize = 32;
/// Terms that are added between two requests.
const STEP: usize = 4;

/// Cuts panels of several problems, counted through, into runs of one problem: calls `work(problem, panels)` for each of
/// the panels `which` of all.
pub(super) fn each_problem<T, B>(
    problems: &[Product<T, Panels<B>>],
    width: usize,
    which: Range<usize>,
    mut work: impl FnMut(&Product<T, Panels<B>>, Range<usize>),
) {
    let mut first = 0;
    for problem in problems {
        let end = first + problem.cols.div_ceil(width);
        let part = which.start.max(first)..which.end.min(end);
        if !part.is_empty() {
            work(problem, part.start - first..part.end - first);
        }
        first = end;
    }
}

/// Computes all problems, of one A; at most `TALL` rows at a time.
///
/// # Safety
/// The problems' pointers are valid for their sizes, all have A's rows and depth, and their Bs are panels of `V`; the CPU
/// has `V`'s instructions.
pub(super) unsafe fn multiply<V, A, B, const TALL: usize>(
    problems: &[Product<V::Element, Panels<B>>],
    a: Strip<A>,
) where
    V: Vector,
    A: Storage<V>,
    B: Storage<V>,
{
    let Some(&Product { rows, depth, .. }) = problems.first() else { return };
    let width = WIDE * V::LANES;
    let panels = problems.iter().map(|problem| problem.cols.div_ceil(width)).sum();
    let height = rows.div_ceil(rows.div_ceil(TALL));
    // Reading a number from a cache that cores share takes about as long as eight operations of a core.
    let tasks = parallel::task_count(panels, width * depth * (rows / 2 + 2 * size_of::<B>()));
    with_rows::<V, A>(a, rows, depth, |a| {
        parallel::for_each_task(tasks, |task| {
            each_problem(problems, width, share(panels, tasks, task), |problem, panels| {
                // SAFETY: tasks own different columns of C.
                unsafe {
                    match height {
                        1 => V::enter(FewRows::<V, B, 1, 1, 4> { problem, a, panels }),
                        2 => V::enter(FewRows::<V, B, 2, 2, 2> { problem, a, panels }),
                        3 | 4 => V::enter(FewRows::<V, B, 4, 3, 1> { problem, a, panels }),
                        5 | 6 => V::enter(FewRows::<V, B, 6, 5, 1> { problem, a, panels }),
                        _ => V::enter(FewRows::<V, B, 8, 7, 1> { problem, a, panels }),
                    }
                }
            });
        });
    });
}

/// Memory that is asked for little by little.
#[derive(Clone, Copy)]
struct Ahead<B> {
    next: *const B,
    /// Numbers from one request to the next.
    stride: usize,
    /// Whether nobody else asks for a part: then every line is asked for, else half of them.
    alone: bool,
}

impl<B> Ahead<B> {
    /// # Safety
    /// The CPU has `V`'s instructions.
    #[inline(always)]
    unsafe fn ask<V: Vector>(&mut self) {
        // Counts that the compiler knows: a loop with a count of this struct took a tenth of the product's time.
        let lines = (STEP * WIDE * V::LANES * size_of::<B>()).div_ceil(CACHE_LINE);
        // SAFETY: by the caller's promise; asking for a line touches no memory that a program could see.
        unsafe {
            for line in 0..lines.div_ceil(2) {
                V::prefetch(self.next.wrapping_add(line * CACHE_LINE / size_of::<B>()));
            }
            if self.alone {
                for line in lines.div_ceil(2)..lines {
                    V::prefetch(self.next.wrapping_add(line * CACHE_LINE / size_of::<B>()));
                }
            }
        }
        self.next = self.next.wrapping_add(self.stride);
    }
}

/// Adds terms `at..at + N` of `R` rows by `Q` panels, and moves the panels on.
///
/// # Safety
/// The CPU has `V`'s instructions, and the terms exist in A and in the panels.
#[inline(always)]
unsafe fn add_terms<V: Vector, B: Storage<V>, const N: usize, const Q: usize, const R: usize>(
    a: &[*const V::Element; R],
    at: usize,
    b: &mut [*const B; Q],
    sums: &mut [[[V; WIDE]; Q]; R],
) {
    let width = WIDE * V::LANES;
    // SAFETY: passed on to the caller.
    unsafe {
        for term in 0..N {
            let mut columns = [[V::splat(V::Element::default()); WIDE]; Q];
            for q in 0..Q {
                for j in 0..WIDE {
                    columns[q][j] = B::load(b[q].add(term * width + j * V::LANES));
                }
            }
            for i in 0..R {
                let factor = V::splat(*a[i].add(at + term));
                for q in 0..Q {
                    for j in 0..WIDE {
                        sums[i][q][j] = factor.mul_add(columns[q][j], sums[i][q][j]);
                    }
                }
            }
        }
        for q in 0..Q {
            b[q] = b[q].add(N * width);
        }
    }
}

/// All rows, in nearly equal runs of at most `M`, by some panels, `P` at a time. `L` is `M` or one less: runs that fit it
/// take no more.
struct FewRows<'a, V: Vector, B, const M: usize, const L: usize, const P: usize> {
    problem: &'a Product<V::Element, Panels<B>>,
    a: Rows<V::Element>,
    panels: Range<usize>,
}

impl<V: Vector, B: Storage<V>, const M: usize, const L: usize, const P: usize> Body
    for FewRows<'_, V, B, M, L, P>
{
    #[inline(always)]
    unsafe fn run(self) {
        let Range { start: mut panel, end } = self.panels.clone();
        // SAFETY: the panels exist.
        unsafe {
            while panel + P <= end {
                self.columns::<P>(panel);
                panel += P;
            }
            while panel < end {
                self.columns::<1>(panel);
                panel += 1;
            }
        }
    }
}

impl<V: Vector, B: Storage<V>, const M: usize, const L: usize, const P: usize> FewRows<'_, V, B, M, L, P> {
    /// All rows by `Q` panels from `panel` on.
    #[inline(always)]
    unsafe fn columns<const Q: usize>(&self, panel: usize) {
        let (rows, depth) = (self.problem.rows, self.problem.depth);
        let runs = rows.div_ceil(M);
        let chunks = if runs == 1 { 1 } else { depth.div_ceil(CHUNK) };
        for chunk in 0..chunks {
            let k = share(depth, chunks, chunk);
            for run in 0..runs {
                let rows = share(rows, runs, run);
                // SAFETY: rows, panels and k exist.
                unsafe {
                    if rows.len() <= L {
                        self.tile::<Q, L>(rows, panel, k.clone());
                    } else {
                        self.tile::<Q, M>(rows, panel, k.clone());
                    }
                }
            }
        }
    }

    /// The memory that will be read next: some lines ahead; or, where several runs of rows go through a chunk, each asks
    /// for its part of the chunk that follows.
    #[inline(always)]
    fn ahead<const Q: usize>(&self, row: usize, panel: usize, k: &Range<usize>) -> [Ahead<B>; Q] {
        let width = WIDE * V::LANES;
        let runs = self.problem.rows.div_ceil(M);
        std::array::from_fn(|q| {
            let panel = self.problem.b.start.wrapping_add((panel + q) * self.problem.b.len);
            let next = match runs {
                1 => (k.start + AHEAD) * width,
                _ => k.end * width + k.len() * width * row / self.problem.rows,
            };
            Ahead { next: panel.wrapping_add(next), stride: STEP * width / runs, alone: runs == 1 }
        })
    }

    /// Some rows, at most `R`, by `Q` panels from `panel` on: their chains continue through `k`.
    #[inline(always)]
    unsafe fn tile<const Q: usize, const R: usize>(&self, rows: Range<usize>, panel: usize, k: Range<usize>) {
        let problem = self.problem;
        let width = WIDE * V::LANES;
        let (row, rows) = (rows.start, rows.len());
        let zero = V::Element::default();
        // SAFETY: A's rows are valid for all k (missing rows repeat the last), B's panels too; C is written where it
        // exists, by way of lanes aside where a panel is cut by its edge.
        unsafe {
            let mut a = [self.a.start; R];
            for i in 0..R {
                a[i] = self.a.start.add((row + i.min(rows - 1)) * self.a.stride);
            }
            let panel_len = problem.b.len;
            let mut b = [problem.b.start; Q];
            for q in 0..Q {
                b[q] = problem.b.start.add((panel + q) * panel_len + k.start * width);
            }
            let whole = (panel + Q) * width <= problem.cols;
            let mut ahead = self.ahead::<Q>(row, panel, &k);
            let mut aside = [[[zero; 16]; WIDE]; Q];
            let mut sums = [[[V::splat(zero); WIDE]; Q]; R];
            let load = problem.add || k.start > 0;
            if load {
                for i in 0..rows {
                    let c = problem.c.add((row + i) * problem.c_stride + panel * width);
                    for q in 0..Q {
                        for j in 0..WIDE {
                            let at = q * width + j * V::LANES;
                            if !whole {
                                let left = problem.cols.saturating_sub(panel * width + at).min(V::LANES);
                                std::ptr::copy_nonoverlapping(
                                    c.wrapping_add(at),
                                    aside[q][j].as_mut_ptr(),
                                    left,
                                );
                                sums[i][q][j] = V::load(aside[q][j].as_ptr());
                            } else {
                                sums[i][q][j] = V::load(c.add(at));
                            }
                        }
                    }
                }
            }
            let mut at = k.start;
            while at + STEP <= k.end {
                for q in 0..Q {
                    ahead[q].ask::<V>();
                }
                add_terms::<V, B, STEP, Q, R>(&a, at, &mut b, &mut sums);
                at += STEP;
            }
            while at < k.end {
                add_terms::<V, B, 1, Q, R>(&a, at, &mut b, &mut sums);
                at += 1;
            }
            let bias = k.end == problem.depth && !problem.bias.is_null();
            for i in 0..rows {
                let c = problem.c.add((row + i) * problem.c_stride + panel * width);
                for q in 0..Q {
                    for j in 0..WIDE {
                        let at = q * width + j * V::LANES;
                        if whole {
                            let mut sum = sums[i][q][j];
                            if bias {
                                sum = sum.add(V::load(problem.bias.add(panel * width + at)));
                            }
                            sum.store(c.add(at));
                            continue;
                        }
                        let left = problem.cols.saturating_sub(panel * width + at).min(V::LANES);
                        let lanes = &mut aside[q][j];
                        sums[i][q][j].store(lanes.as_mut_ptr());
                        for lane in 0..left {
                            if bias {
                                lanes[lane] += *problem.bias.add(panel * width + at + lane);
                            }
                            *c.add(at + lane) = lanes[lane];
                        }
                    }
                }
            }
        }
    }
}
