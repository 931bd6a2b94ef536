//! Products of many rows: A packed once and shared, B packed by the task that owns its columns.
//!
//! ```text
//! for blocks of K (<= SUPER) and M (A block <= A_ELEMENTS)       A is packed by all threads, once
//!   tasks: runs of columns x runs of row panels
//!     for chunks of k (<= CHUNK)
//!       pack the task's columns of B: at most COLUMN_PANELS panels, they stay in L2
//!       for runs of ROW_PANELS row panels (they stay in L2)
//!         for each panel of B (stays in L1)
//!           for each panel of A: tile
//! ```
#![allow(unsafe_code)]

use super::pack::{SLACK, Strip, pack};
use super::simd::{Body, Storage, Vector};
use super::tile::{Ends, Problem, tile_clipped};
use super::workspace::{share, with_scratch};
use crate::cpu::parallel;
use std::ops::Range;

/// Longest run of k between two visits of a tile of C: a panel of B then takes 24 KiB of L1.
const CHUNK_BYTES: usize = 256 * 4;
/// Longest run of k that A is packed for at a time.
const SUPER: usize = 4096;
/// Most elements of packed A (16 MiB of f32).
const A_ELEMENTS: usize = 4 << 20;
/// Most panels of B that a task packs at a time.
const COLUMN_PANELS: usize = 8;
/// Row panels between two visits of a panel of B.
const ROW_PANELS: usize = 16;

/// Elementary operations that packing an element is worth.
const PACKING: usize = 8;

/// A pointer that tasks share.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: tasks write disjoint parts while packing and only read afterwards.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// One block of rows and k: what the tasks of one round share.
struct Block<T> {
    /// Packed A: chunk by chunk, panel by panel, `slot` elements each.
    a: Shared<T>,
    slot: usize,
    rows: Range<usize>,
    depth: Range<usize>,
    chunks: usize,
    ends: Ends<T>,
}

/// Computes the whole problem with tiles of `M` rows and `N` vectors.
///
/// # Safety
/// The problem's pointers are valid for its sizes, and the CPU has `V`'s instructions.
pub(super) unsafe fn run<V, A, B, const M: usize, const N: usize>(
    problem: &Problem<V::Element, B>,
    a: Strip<A>,
) where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
    B: Storage<V> + Storage<V::Block>,
{
    let supers = problem.depth.div_ceil(SUPER).max(1);
    for part in 0..supers {
        let depth = share(problem.depth, supers, part);
        let ends = Ends {
            load: problem.add || part > 0,
            bias: if part + 1 == supers { problem.bias } else { std::ptr::null() },
        };
        let row_limit = (A_ELEMENTS / depth.len().max(1)).max(M);
        let blocks = problem.rows.div_ceil(row_limit);
        let panels = problem.rows.div_ceil(M);
        for block in 0..blocks {
            let which = share(panels, blocks, block);
            let rows = which.start * M..(which.end * M).min(problem.rows);
            if !rows.is_empty() {
                // SAFETY: the ranges are inside the problem.
                unsafe { run_block::<V, A, B, M, N>(problem, a, rows, depth.clone(), ends) };
            }
        }
    }
}

unsafe fn run_block<V, A, B, const M: usize, const N: usize>(
    problem: &Problem<V::Element, B>,
    operand: Strip<A>,
    rows: Range<usize>,
    depth: Range<usize>,
    ends: Ends<V::Element>,
) where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
    B: Storage<V> + Storage<V::Block>,
{
    let chunks = depth.len().div_ceil(CHUNK_BYTES / size_of::<V::Element>()).max(1);
    let longest = depth.len().div_ceil(chunks);
    let slot = longest * M + SLACK;
    let row_panels = rows.len().div_ceil(M);
    with_scratch(chunks * row_panels * slot, |scratch: &mut [V::Element]| {
        let a = Shared(scratch.as_mut_ptr());
        let block = Block { a, slot, rows, depth, chunks, ends };
        let operations = block.rows.len() * block.depth.len();
        let packers = parallel::task_count(row_panels, PACKING * operations / row_panels);
        parallel::for_each_task(packers, |task| {
            // SAFETY: tasks pack disjoint runs of panels.
            unsafe {
                let panels = share(row_panels, packers, task);
                V::enter(PackA::<V, A, M> { operand, block: &block, panels });
            }
        });

        let col_panels = problem.cols.div_ceil(N * V::LANES);
        let (across, down) = grid(row_panels, col_panels, operations * problem.cols);
        parallel::for_each_task(across * down, |task| {
            let cols = share(col_panels, across, task / down);
            let rows = share(row_panels, down, task % down);
            let slot = longest * N * V::LANES + SLACK;
            with_scratch(cols.len() * slot, |b: &mut [V::Element]| {
                // SAFETY: tasks own disjoint tiles of C; A is packed.
                unsafe { V::enter(Tiles::<V, B, M, N> { problem, block: &block, rows, cols, b, slot }) }
            });
        });
    });
}

/// Into how many runs of columns and of rows the tiles are cut.
fn grid(row_panels: usize, col_panels: usize, operations: usize) -> (usize, usize) {
    let across = col_panels.div_ceil(COLUMN_PANELS);
    if parallel::threads() == 1 || parallel::task_count(row_panels * col_panels, operations) == 1 {
        return (across, 1);
    }
    // Enough tasks that the last ones to end leave no core idle for long; panels of B are packed once for every
    // run of rows, so columns are cut first.
    let wanted = 12 * parallel::threads();
    let across = across.max(wanted.min(col_panels.div_ceil(COLUMN_PANELS / 2)));
    let down = wanted.div_ceil(across).min(row_panels.div_ceil(ROW_PANELS));
    (across, down)
}

/// Packs some panels of A.
struct PackA<'a, V: Vector, A, const M: usize> {
    operand: Strip<A>,
    block: &'a Block<V::Element>,
    panels: Range<usize>,
}

impl<V, A, const M: usize> Body for PackA<'_, V, A, M>
where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
{
    #[inline(always)]
    unsafe fn run(self) {
        let PackA { operand, block, panels } = self;
        let row_panels = block.rows.len().div_ceil(M);
        let first = block.rows.start + panels.start * M;
        let lanes = (panels.len() * M).min(block.rows.end - first);
        for chunk in 0..block.chunks {
            let k = share(block.depth.len(), block.chunks, chunk);
            // SAFETY: rows and k are inside A; each panel has its slot.
            unsafe {
                let strip = operand.at(first, block.depth.start + k.start);
                let to = block.a.get().add((chunk * row_panels + panels.start) * block.slot);
                pack::<V, A>(Strip { lanes, ..strip }, M, k.len(), to, block.slot);
            }
        }
    }
}

/// Computes some row panels by some column panels.
struct Tiles<'a, V: Vector, B, const M: usize, const N: usize> {
    problem: &'a Problem<V::Element, B>,
    block: &'a Block<V::Element>,
    rows: Range<usize>,
    cols: Range<usize>,
    /// A slot for each panel of columns.
    b: &'a mut [V::Element],
    slot: usize,
}

impl<V, B, const M: usize, const N: usize> Body for Tiles<'_, V, B, M, N>
where
    V: Vector,
    B: Storage<V> + Storage<V::Block>,
{
    #[inline(always)]
    unsafe fn run(self) {
        let Tiles { problem, block, rows: row_panels, cols: col_panels, b, slot } = self;
        let width = N * V::LANES;
        let all_panels = block.rows.len().div_ceil(M);
        let cols = col_panels.start * width..(col_panels.end * width).min(problem.cols);
        for chunk in 0..block.chunks {
            let k = share(block.depth.len(), block.chunks, chunk);
            let load = block.ends.load || chunk > 0;
            let bias = if chunk + 1 == block.chunks { block.ends.bias } else { std::ptr::null() };
            // SAFETY: the ranges are inside the operands; tiles are clipped to C.
            unsafe {
                let strip = problem.b.at(cols.start, block.depth.start + k.start);
                pack::<V, B>(Strip { lanes: cols.len(), ..strip }, width, k.len(), b.as_mut_ptr(), slot);
                let mut group = row_panels.start;
                while group < row_panels.end {
                    let end = (group + ROW_PANELS).min(row_panels.end);
                    for panel in 0..col_panels.len() {
                        let col = cols.start + panel * width;
                        let size = width.min(cols.end - col);
                        let bias = if bias.is_null() { bias } else { bias.add(col) };
                        for row_panel in group..end {
                            let row = block.rows.start + row_panel * M;
                            tile_clipped::<V, M, N>(
                                (M.min(block.rows.end - row), size),
                                k.len(),
                                block.a.get().add((chunk * all_panels + row_panel) * block.slot),
                                b.as_ptr().add(panel * slot),
                                (problem.c.add(row * problem.c_stride + col), problem.c_stride),
                                Ends { load, bias },
                            );
                        }
                    }
                    group = end;
                }
            }
        }
    }
}
