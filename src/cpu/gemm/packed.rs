//! Products of many rows: B packed by the task that owns its columns; A read as it lies, or packed once and shared.
//!
//! ```text
//! for blocks of K (<= SUPER) and M (A block <= A_ELEMENTS)       where A is packed: by all threads, once
//!   tasks: runs of columns x runs of row panels
//!     for chunks of k (<= CHUNK_BYTES)
//!       for runs of ROW_PANELS row panels (they stay in L2)
//!         for each panel of B (stays in L1; packed when the first run of rows comes to it)
//!           for each panel of A: tile
//! ```
//!
//! While a tile is computed, the lines of the next tile of C and of the panel of B that is packed next are asked for
//! (`ahead`): two threads gained 5 to 13 % from that at 256 rows of GPT-2's shapes.
#![allow(unsafe_code)]

use super::ahead::{Ahead, Lines};
use super::pack::{SLACK, Strip, pack, pack_panel};
use super::simd::{Body, Storage, Vector};
use super::tile::{Ends, Problem, Rows, tile_clipped};
use super::workspace::{share, with_scratch};
use crate::cpu::parallel;
use std::ops::Range;

/// Longest run of k between two visits of a tile of C: a panel of B then takes 48 KiB.
const CHUNK_BYTES: usize = 256 * 4;
/// Longest run of k that A is packed for at a time.
const SUPER: usize = 4096;
/// Most elements of packed A (16 MiB of f32).
const A_ELEMENTS: usize = 4 << 20;
/// Most panels of B that a task packs at a time.
const COLUMN_PANELS: usize = 8;
/// Row panels between two visits of a panel of B.
const ROW_PANELS: usize = 16;

/// Most columns of a product that reads A in place: with 256 it gained a tenth, with 1024 nothing was left of that.
const IN_PLACE_COLUMNS: usize = 512;

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
struct Block<T, A> {
    /// A as it lies in memory.
    operand: Strip<A>,
    /// A packed, chunk by chunk, panel by panel, `slot` elements each; null where it is read as it lies.
    packed: Shared<T>,
    slot: usize,
    rows: Range<usize>,
    depth: Range<usize>,
    chunks: usize,
    ends: Ends<T>,
}

impl<T, A> Block<T, A> {
    /// The k of a chunk, in A and B.
    fn chunk(&self, chunk: usize) -> Range<usize> {
        let k = share(self.depth.len(), self.chunks, chunk);
        self.depth.start + k.start..self.depth.start + k.end
    }
}

/// Whether A is read as it lies: it must not need to be converted, a row's k must be neighbours (else every k of a tile is
/// a line of its own, all of them in few sets of the cache), and columns so few that packing does not pay.
fn is_read_in_place<V: Vector, A: Storage<V>>(a: &Strip<A>, cols: usize) -> bool {
    A::PLAIN && a.k_stride == 1 && cols <= IN_PLACE_COLUMNS
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
    if is_read_in_place::<V, A>(&a, problem.cols) {
        let ends = Ends { load: problem.add, bias: problem.bias };
        // SAFETY: the whole problem.
        return unsafe { run_block::<V, A, B, M, N>(problem, a, 0..problem.rows, 0..problem.depth, ends) };
    }
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
    let row_panels = rows.len().div_ceil(M);
    let operations = rows.len() * depth.len();
    let in_place = is_read_in_place::<V, A>(&operand, problem.cols);
    let slot = longest * M + SLACK;
    let elements = if in_place { 0 } else { chunks * row_panels * slot };
    with_scratch(elements, |scratch: &mut [V::Element]| {
        let packed = Shared(if in_place { std::ptr::null_mut() } else { scratch.as_mut_ptr() });
        let block = Block { operand, packed, slot, rows, depth, chunks, ends };
        if !in_place {
            let packers = parallel::task_count(row_panels, PACKING * operations / row_panels);
            parallel::for_each_task(packers, |task| {
                // SAFETY: tasks pack disjoint runs of panels.
                unsafe {
                    let panels = share(row_panels, packers, task);
                    V::enter(PackA::<V, A, M> { block: &block, panels });
                }
            });
        }
        let col_panels = problem.cols.div_ceil(V::LANES).div_ceil(N);
        let (across, down) = grid(row_panels, col_panels, operations * problem.cols);
        parallel::for_each_task(across * down, |task| {
            let cols = share(col_panels, across, task / down);
            let rows = share(row_panels, down, task % down);
            let slots = (slot, longest * N * V::LANES + SLACK);
            with_scratch(slots.0 + cols.len() * slots.1, |scratch: &mut [V::Element]| {
                // SAFETY: tasks own disjoint tiles of C; A is packed or read in place.
                unsafe {
                    let (rest, b) = scratch.split_at_mut(slots.0);
                    let (rest, b) = (rest.as_mut_ptr(), (b.as_mut_ptr(), slots.1));
                    let col_panels = (cols, col_panels);
                    V::enter(Tiles::<V, A, B, M, N> { problem, block: &block, rows, col_panels, rest, b });
                }
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
    block: &'a Block<V::Element, A>,
    panels: Range<usize>,
}

impl<V, A, const M: usize> Body for PackA<'_, V, A, M>
where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
{
    #[inline(always)]
    unsafe fn run(self) {
        let PackA { block, panels } = self;
        let row_panels = block.rows.len().div_ceil(M);
        let first = block.rows.start + panels.start * M;
        let lanes = (panels.len() * M).min(block.rows.end - first);
        for chunk in 0..block.chunks {
            let k = block.chunk(chunk);
            // SAFETY: rows and k are inside A; each panel has its slot.
            unsafe {
                let strip = block.operand.at(first, k.start);
                let to = block.packed.get().add((chunk * row_panels + panels.start) * block.slot);
                pack::<V, A>(Strip { lanes, ..strip }, M, k.len(), to, block.slot);
            }
        }
    }
}

/// Computes some row panels by some column panels.
struct Tiles<'a, V: Vector, A, B, const M: usize, const N: usize> {
    problem: &'a Problem<V::Element, B>,
    block: &'a Block<V::Element, A>,
    rows: Range<usize>,
    /// Which panels of columns, of how many.
    col_panels: (Range<usize>, usize),
    /// A slot for a row panel that is not whole, where A is read in place.
    rest: *mut V::Element,
    /// A slot for each panel of columns, so many elements apart.
    b: (*mut V::Element, usize),
}

impl<V, A, B, const M: usize, const N: usize> Body for Tiles<'_, V, A, B, M, N>
where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
    B: Storage<V> + Storage<V::Block>,
{
    #[inline(always)]
    unsafe fn run(self) {
        for chunk in 0..self.block.chunks {
            let mut group = self.rows.start;
            while group < self.rows.end {
                let end = (group + ROW_PANELS).min(self.rows.end);
                for panel in self.col_panels.0.clone() {
                    // SAFETY: the ranges are inside the operands.
                    unsafe { self.column(chunk, group..end, panel) };
                }
                group = end;
            }
        }
    }
}

impl<V, A, B, const M: usize, const N: usize> Tiles<'_, V, A, B, M, N>
where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
    B: Storage<V> + Storage<V::Block>,
{
    /// The columns of a panel. All panels have nearly the same number of vectors: one of a single vector would take
    /// longer than its share.
    #[inline(always)]
    fn columns(&self, panel: usize) -> Range<usize> {
        let vectors = share(self.problem.cols.div_ceil(V::LANES), self.col_panels.1, panel);
        vectors.start * V::LANES..(vectors.end * V::LANES).min(self.problem.cols)
    }

    /// The source of a panel of B.
    #[inline(always)]
    unsafe fn source(&self, chunk: usize, panel: usize) -> Strip<B> {
        let columns = self.columns(panel);
        // SAFETY: inside B.
        let strip = unsafe { self.problem.b.at(columns.start, self.block.chunk(chunk).start) };
        Strip { lanes: columns.len(), ..strip }
    }

    /// The lines of the panel of B that this task packs after this one.
    #[inline(always)]
    unsafe fn next_source(&self, chunk: usize, panel: usize) -> Lines {
        let panels = &self.col_panels.0;
        let (chunk, panel) =
            if panel + 1 < panels.end { (chunk, panel + 1) } else { (chunk + 1, panels.start) };
        if chunk == self.block.chunks {
            return Lines::NONE;
        }
        let depth = self.block.chunk(chunk).len();
        // SAFETY: inside B.
        let strip = unsafe { self.source(chunk, panel) };
        match strip.lane_stride {
            1 => Lines::new(strip.start, strip.lanes, strip.k_stride, depth),
            _ => Lines::new(strip.start, depth, strip.lane_stride, strip.lanes),
        }
    }

    /// The rows of a panel of A.
    #[inline(always)]
    unsafe fn left(&self, chunk: usize, panel: usize) -> Rows<V::Element> {
        let Block { operand, packed, slot, rows, .. } = self.block;
        // SAFETY: inside A.
        unsafe {
            if !packed.get().is_null() {
                let panels = rows.len().div_ceil(M);
                return Rows::Packed(packed.get().add((chunk * panels + panel) * slot));
            }
            let row = rows.start + panel * M;
            let k = self.block.chunk(chunk);
            let strip = operand.at(row, k.start);
            if row + M > rows.end {
                let strip = Strip { lanes: rows.end - row, ..strip };
                pack::<V, A>(strip, M, k.len(), self.rest, *slot);
                return Rows::Packed(self.rest);
            }
            // Only elements that need no conversion are read in place.
            Rows::InPlace(strip.start.cast(), strip.lane_stride)
        }
    }

    /// A panel of columns by a run of row panels.
    #[inline(always)]
    unsafe fn column(&self, chunk: usize, row_panels: Range<usize>, panel: usize) {
        let Tiles { problem, block, .. } = self;
        let columns = self.columns(panel);
        let depth = block.chunk(chunk).len();
        let load = block.ends.load || chunk > 0;
        let last = chunk + 1 == block.chunks && !block.ends.bias.is_null();
        // SAFETY: the ranges are inside the operands; tiles are clipped to C, and asking for lines beyond it is harmless.
        unsafe {
            let b = self.b.0.add((panel - self.col_panels.0.start) * self.b.1);
            let mut source = Lines::NONE;
            if row_panels.start == self.rows.start {
                pack_panel::<V, B, N>(self.source(chunk, panel), depth, b, self.b.1);
                source = self.next_source(chunk, panel);
            }
            let each = source.count().div_ceil(row_panels.len() * M * N);
            let bias = if last { block.ends.bias.add(columns.start) } else { std::ptr::null() };
            for row_panel in row_panels.clone() {
                let row = block.rows.start + row_panel * M;
                let c = |row: usize, col: usize| problem.c.wrapping_add(row * problem.c_stride + col);
                let next = match row_panel + 1 < row_panels.end {
                    true => c(row + M, columns.start),
                    false => c(block.rows.start + row_panels.start * M, columns.end),
                };
                tile_clipped::<V, M, N>(
                    (M.min(block.rows.end - row), columns.len()),
                    depth,
                    self.left(chunk, row_panel),
                    b,
                    (c(row, columns.start), problem.c_stride),
                    Ends { load, bias },
                    Ahead { c: next, source: &mut source, share: each },
                );
            }
        }
    }
}
