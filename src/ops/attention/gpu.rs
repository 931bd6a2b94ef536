//! The GPU arms of ops/attention.rs. Kernels: cuda/attention.cu (plan, prompts), cuda/attention_decode.cu (single
//! steps), cuda/attention_backward.cu.

use super::{BackwardInputs, Gradients, Inputs, Segment};
use crate::base::{Dtype, Error, Result};
use crate::cpu::attention::Sizes;
use crate::device::{Argument, Device, Grid, Kernel, Launcher};
use crate::ops::kv_cache::{CacheLayout, KvCache, SLOT_BLOCK};
use crate::ops::launch::{ABSENT, arguments, by_dtype, kernels, size};
use crate::ops::{Tensor, View, ViewMut};
use std::f64::consts::LOG2_E;

kernels!("attention":
    BEGIN_F32 = "attention_begin_f32",
    BEGIN_BF16 = "attention_begin_bf16",
    TILES_D64_F32 = "attention_fwd_d64_f32",
    TILES_D64_BF16 = "attention_fwd_d64_bf16",
    TILES_D128_F32 = "attention_fwd_d128_f32",
    TILES_D128_BF16 = "attention_fwd_d128_bf16",
    TILES_TO128_F32 = "attention_fwd_to128_f32",
    TILES_TO128_BF16 = "attention_fwd_to128_bf16",
    TILES_TO256_F32 = "attention_fwd_to256_f32",
    TILES_TO256_BF16 = "attention_fwd_to256_bf16",
);
kernels!("attention_decode":
    STEPS_D64_F32 = "attention_decode_d64_f32",
    STEPS_D64_BF16 = "attention_decode_d64_bf16",
    STEPS_D128_F32 = "attention_decode_d128_f32",
    STEPS_D128_BF16 = "attention_decode_d128_bf16",
    STEPS_TO128_F32 = "attention_decode_to128_f32",
    STEPS_TO128_BF16 = "attention_decode_to128_bf16",
    STEPS_TO256_F32 = "attention_decode_to256_f32",
    STEPS_TO256_BF16 = "attention_decode_to256_bf16",
);
kernels!("attention_backward":
    BACK_F32 = "attention_backward_begin_f32",
    BACK_BF16 = "attention_backward_begin_bf16",
    READS = "attention_backward_tiles",
    DQ_D64_F32 = "attention_backward_dq_d64_f32",
    DQ_D64_BF16 = "attention_backward_dq_d64_bf16",
    DQ_D128_F32 = "attention_backward_dq_d128_f32",
    DQ_D128_BF16 = "attention_backward_dq_d128_bf16",
    DQ_TO128_F32 = "attention_backward_dq_to128_f32",
    DQ_TO256_F32 = "attention_backward_dq_to256_f32",
    DQ_TO128_BF16 = "attention_backward_dq_to128_bf16",
    DQ_TO256_BF16 = "attention_backward_dq_to256_bf16",
    DKV_D64_F32 = "attention_backward_dkv_d64_f32",
    DKV_D64_BF16 = "attention_backward_dkv_d64_bf16",
    DKV_D128_F32 = "attention_backward_dkv_d128_f32",
    DKV_D128_BF16 = "attention_backward_dkv_d128_bf16",
    DKV_TO128_F32 = "attention_backward_dkv_to128_f32",
    DKV_TO256_F32 = "attention_backward_dkv_to256_f32",
    DKV_TO128_BF16 = "attention_backward_dkv_to128_bf16",
    DKV_TO256_BF16 = "attention_backward_dkv_to256_bf16",
    COLLECT_F32 = "attention_backward_collect_f32",
    COLLECT_BF16 = "attention_backward_collect_bf16",
);

/// Threads of a warp.
const WARP: usize = 32;
/// Warps of a block of threads that works on items of single steps or on a tile of a prompt.
const WARPS: usize = 4;
/// Blocks of threads of one launch that share the items of single steps: some for every multiprocessor.
const MOST_BLOCKS: usize = 1024;
/// Query rows of an item: few, so that there are many items, unless there would be more than keep a GPU busy.
const ITEM_ROWS: (usize, usize) = (16, 64);
/// Shared memory that every GPU has for a block (8.6, 8.9 and 12.0 no more), and what kernels of steps declare of it.
const SHARED_OF_BLOCK: usize = 99 << 10;
const SHARED_OF_STEPS: usize = 8 << 10;
/// Bytes of a head above which keys and values of an item take turns in one tile.
const IN_TURN: usize = 512;
/// Threads of a block that plans and stores.
const PLAN_THREADS: usize = 512;
/// Positions that are planned as single steps, at most: each reads its keys for itself, where a tile of many shares them.
const MOST_STEPS: usize = 256;
/// Words of an entry of the plan.
const ENTRY: usize = 8;
/// Words that say what a tile of query rows reads, and the fewest rows of such a tile.
const READS_WORDS: usize = 4;
const LEAST_READERS: usize = 16;
/// Threads of a block of the light kernels of the backward pass; some lanes a tile, a warp a position.
const LIGHT_THREADS: usize = 256;
/// Tiles of fewer rows are taken for gradients of queries where full ones would leave a GPU idle.
const FEW_BLOCKS: usize = 128;
/// Words of an item of work.
const ITEM: usize = 8;
/// What the address of partial results is a multiple of: rows of them are whole sectors then.
const SLOTS_AT: usize = 128;
/// The most positions of a segment that single steps are planned for by the kernel that computes them.
const FEW: usize = 32;
/// Words of the scratch before all others: how many items there are, and tickets of few positions, which nothing else
/// writes and every launch leaves 0.
const HEADER: usize = 16;
const FEW_TICKETS: usize = 4096;

/// Kernels of one head dimension, and how a block of threads is shaped; as the kernels are declared.
#[derive(Clone, Copy)]
struct Shape {
    size: HeadSize,
    /// Bytes of an element.
    element: usize,
    head_dim: usize,
    /// Columns of the result in a block.
    columns: usize,
    /// Warps of a block that computes tiles; 16 query rows each.
    warps: usize,
    /// The same where it computes gradients of queries.
    query_warps: usize,
    /// Tiles of 64 keys or values in its shared memory.
    query_tiles: usize,
    /// Warps of a block that computes gradients of keys and values; 16 keys each.
    key_warps: usize,
    /// Query rows that it takes up at a time, and how many times.
    key_queries: usize,
    key_stages: usize,
}

/// Which kernels serve a head dimension: those of exactly 64 and 128, and those of any up to a bound.
#[derive(Clone, Copy)]
enum HeadSize {
    D64,
    D128,
    To128,
    To256,
}

impl Shape {
    fn new(head_dim: usize, dtype: Dtype) -> Result<Shape> {
        let (single, element) = (dtype == Dtype::F32, dtype.size());
        let [columns, warps, query_warps, query_tiles, key_warps, key_queries, key_stages] =
            match (head_dim, single) {
                (64, false) => [64, 4, 4, 3, 4, 64, 2],
                (64, true) => [64, 4, 4, 3, 4, 32, 2],
                (1..=128, false) => [128, 4, 4, 3, 4, 32, 2],
                (1..=128, true) => [128, 4, 2, 2, 4, 16, 2],
                (129..=256, false) => [128, 4, 2, 2, 4, 32, 1],
                (129..=256, true) => [64, 1, 1, 1, 2, 16, 1],
                _ => return Err(Error::shape("attention head dimension on a GPU", head_dim, "at most 256")),
            };
        let size = match head_dim {
            64 => HeadSize::D64,
            128 => HeadSize::D128,
            ..=128 => HeadSize::To128,
            _ => HeadSize::To256,
        };
        Ok(Shape {
            size,
            element,
            head_dim,
            columns,
            warps,
            query_warps,
            query_tiles,
            key_warps,
            key_queries,
            key_stages,
        })
    }

    /// The kernel for this head dimension, of pairs (f32, bf16) for 64, 128, up to 128 and up to 256.
    fn kernel(&self, kernels: [[&'static Kernel; 2]; 4]) -> &'static Kernel {
        kernels[self.size as usize][usize::from(self.element == 2)]
    }

    /// Bytes of a row of the head dimension in shared memory: whole steps of 32 bytes, rows of 128.
    fn row_bytes(&self) -> usize {
        (self.head_dim * self.element).next_multiple_of(128)
    }

    /// Blocks of columns.
    fn column_blocks(&self) -> usize {
        self.head_dim.div_ceil(self.columns)
    }

    /// Shared memory of a block that computes a tile: queries, keys, values.
    fn tile_bytes(&self) -> usize {
        let value_bytes = self.row_bytes().min(self.columns * self.element);
        (16 * self.warps + SLOT_BLOCK) * self.row_bytes() + SLOT_BLOCK * value_bytes
    }

    fn in_turn(&self) -> bool {
        matches!(self.size, HeadSize::To256) && 256 * self.element > IN_TURN
    }

    /// Shared memory of a block that works on items of so many query rows: keys, values, queries.
    fn item_bytes(&self, rows: usize) -> usize {
        (rows + if self.in_turn() { SLOT_BLOCK } else { 2 * SLOT_BLOCK }) * self.row_bytes()
    }

    /// Query rows of an item of single steps, where there are so many in all. Heads of 512 bytes leave room for 48.
    fn item_rows(&self, rows: usize, kv_heads: usize) -> usize {
        let (few, many) = ITEM_ROWS;
        if self.in_turn() || rows.div_ceil(few) * kv_heads < FEW_BLOCKS {
            return few;
        }
        let room = SHARED_OF_BLOCK - SHARED_OF_STEPS - self.item_bytes(0);
        many.min(room / self.row_bytes() / few * few)
    }
}

/// Working memory of a segment's kernels. It holds nothing from one call to the next, so kernels write it through a
/// shared reference; everything is ordered on one stream.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The segment's positions in working order, [`ENTRY`] words each.
    entries: Tensor,
    /// dout . out of each position and head.
    delta: Tensor,
    /// What tiles of at least [`LEAST_READERS`] query rows read, [`READS_WORDS`] words each.
    reads: Tensor,
}

impl Scratch {
    pub fn reserve(device: &Device, rows: usize, heads: usize) -> Result<Option<Scratch>> {
        let tiles = (rows * heads).div_ceil(LEAST_READERS);
        match device {
            Device::Cpu(_) => Ok(None),
            Device::Gpu(_) => Ok(Some(Scratch {
                entries: Tensor::zeros(device, [rows.next_multiple_of(WARP), ENTRY], Dtype::U32)?,
                delta: Tensor::zeros(device, [rows, heads], Dtype::F32)?,
                reads: Tensor::zeros(device, [tiles, READS_WORDS], Dtype::U32)?,
            })),
        }
    }
}

/// What kernels are told of a segment of `n` positions.
fn index(segment: &Segment, n: u32) -> Result<[Argument; 6]> {
    let layout = segment.layout;
    Ok(arguments![
        segment.rows.address()?,
        segment.positions.address()?,
        layout.prefix_slot.view().address()?,
        layout.prefix_len.view().address()?,
        layout.own_slot.view().address()?,
        n,
    ])
}

/// Where the parts of the working memory of single steps lie in the layout's scratch.
struct StepMemory {
    /// Whether the kernel plans for itself: one launch instead of two.
    few: bool,
    number: u64,
    items: u64,
    tickets: u64,
    slots: u64,
    slot_sums: u64,
    capacity: usize,
}

impl StepMemory {
    /// None where there are more positions than are planned as single steps, or the scratch cannot hold their items.
    fn new(layout: &CacheLayout, sizes: &Sizes, count: usize) -> Result<Option<StepMemory>> {
        let Some(scratch) = &layout.scratch else { return Ok(None) };
        let (padded, tickets) = (sizes.head_dim.next_multiple_of(8), count * sizes.heads);
        let few = count <= FEW && tickets <= FEW_TICKETS;
        // Tiles that end in one entry's query rows, at most: what bounds the items by slots, or by entries.
        let tiles = sizes.group().div_ceil(ITEM_ROWS.0) + 1;
        let before = HEADER + FEW_TICKETS;
        let fixed = before + ITEM * tiles * count + tickets + SLOTS_AT / Dtype::U32.size();
        let each = ITEM * tiles + sizes.heads * (padded + 2);
        let capacity = scratch.shape().elements().saturating_sub(fixed) / each;
        if count > MOST_STEPS || capacity == 0 {
            return Ok(None);
        }
        let number = scratch.address()?;
        let first_tickets = number + 4 * HEADER as u64;
        let items = number + 4 * before as u64;
        let planned_tickets = items + 4 * (ITEM * tiles * (count + capacity)) as u64;
        let slots = (planned_tickets + 4 * tickets as u64).next_multiple_of(SLOTS_AT as u64);
        let slot_sums = slots + 4 * (capacity * sizes.heads * padded) as u64;
        let tickets = if few { first_tickets } else { planned_tickets };
        Ok(Some(StepMemory { few, number, items, tickets, slots, slot_sums, capacity }))
    }
}

/// Kernels find the largest score before they scale it.
fn positive(scale: f64) -> Result<()> {
    match scale > 0.0 && scale.is_finite() {
        true => Ok(()),
        false => Err(Error::shape("attention scale on a GPU", scale, "a positive number")),
    }
}

/// Forward on a GPU; operands are checked, and there is at least one position.
pub(super) fn forward(
    gpu: &dyn Launcher,
    inputs: Inputs,
    segment: &Segment,
    sizes: &Sizes,
    cache: &mut KvCache,
    (out, statistics): (ViewMut, ViewMut),
    scratch: &Scratch,
) -> Result<()> {
    let Inputs { q, k, v } = inputs;
    let (count, dtype) = (q.count(), q.dtype());
    let shape = Shape::new(sizes.head_dim, dtype)?;
    positive(sizes.scale)?;
    let steps = StepMemory::new(segment.layout, sizes, count)?;
    let (n, group) = (size("attention positions", count)?, size("attention heads", sizes.group())?);
    let rows = size("attention query rows", count * sizes.group())?;
    let [heads, kv_heads, head_dim] = [sizes.heads, sizes.kv_heads, sizes.head_dim].map(|size| size as u32);
    let item_rows = shape.item_rows(rows as usize, sizes.kv_heads);
    let entries = Argument::Address(scratch.entries.address()?);
    let (keys, values) = (cache.k.view_mut().address()?, cache.v.view_mut().address()?);
    let index = index(segment, n)?;
    let given = arguments![k.address()?, v.address()?];
    if !steps.as_ref().is_some_and(|memory| memory.few) {
        let at = |address: fn(&StepMemory) -> u64| {
            steps.as_ref().map_or(ABSENT, |m| Argument::Address(address(m)))
        };
        let plan_blocks = if steps.is_some() { 1 } else { count.div_ceil(PLAN_THREADS) };
        let store_blocks = count.div_ceil(PLAN_THREADS / WARP);
        let rest = arguments![
            keys,
            values,
            kv_heads,
            head_dim,
            entries,
            plan_blocks as u32,
            at(|m| m.number),
            at(|m| m.items),
            at(|m| m.tickets),
            group,
            item_rows as u32,
            steps.as_ref().map_or(0, |m| m.capacity as u32),
        ];
        gpu.launch(
            by_dtype("attention", dtype, &BEGIN_F32, &BEGIN_BF16)?,
            Grid::linear((plan_blocks + store_blocks) as u32, PLAN_THREADS as u32),
            &[&index[..], &given, &rest].concat(),
        )?;
    }

    let (out, statistics, scale) = (out.address()?, statistics.address()?, (sizes.scale * LOG2_E) as f32);
    let operands = arguments![q.address()?, keys, values, out, statistics, entries];
    let geometry = arguments![heads, kv_heads, head_dim, scale];
    let Some(memory) = &steps else {
        let kernel = shape.kernel([
            [&TILES_D64_F32, &TILES_D64_BF16],
            [&TILES_D128_F32, &TILES_D128_BF16],
            [&TILES_TO128_F32, &TILES_TO128_BF16],
            [&TILES_TO256_F32, &TILES_TO256_BF16],
        ]);
        let tiles = (rows as usize).div_ceil(16 * shape.warps);
        let grid = Grid {
            blocks: [size("attention blocks", tiles)?, kv_heads, shape.column_blocks() as u32],
            threads: [(WARP * shape.warps) as u32, 1, 1],
            shared_bytes: shape.tile_bytes() as u32,
        };
        return gpu.launch(kernel, grid, &[&operands[..], &arguments![rows], &geometry].concat());
    };
    let kernel = shape.kernel([
        [&STEPS_D64_F32, &STEPS_D64_BF16],
        [&STEPS_D128_F32, &STEPS_D128_BF16],
        [&STEPS_TO128_F32, &STEPS_TO128_BF16],
        [&STEPS_TO256_F32, &STEPS_TO256_BF16],
    ]);
    // How many items there are is known to the device alone: some blocks of threads share whatever there is. Where
    // rows have one position each, every block of slots is read by one item, or as many as the rows fill.
    let items = sizes.blocks.saturating_mul((rows as usize).div_ceil(item_rows));
    let grid = Grid {
        blocks: [items.clamp(1, (MOST_BLOCKS / sizes.kv_heads).max(1)) as u32, kv_heads, 1],
        threads: [(WARP * WARPS) as u32, 1, 1],
        shared_bytes: shape.item_bytes(item_rows) as u32,
    };
    let [items, number] = match memory.few {
        true => [ABSENT, ABSENT],
        false => [memory.items, memory.number].map(Argument::Address),
    };
    let places = arguments![
        items,
        number,
        Argument::Address(memory.slots),
        Argument::Address(memory.slot_sums),
        Argument::Address(memory.tickets),
        memory.capacity as u32,
    ];
    let last = arguments![item_rows as u32];
    gpu.launch(kernel, grid, &[&operands[..], &geometry, &places, &index, &given, &last].concat())
}

/// Backward on a GPU; operands are checked, and there is at least one position.
pub(super) fn backward(
    gpu: &dyn Launcher,
    inputs: BackwardInputs,
    segment: &Segment,
    sizes: &Sizes,
    grad: &mut KvCache,
    (statistics, scratch): (View, &Scratch),
    gradients: Gradients,
) -> Result<()> {
    let BackwardInputs { dout, q, out, cache, detach_cached } = inputs;
    let Gradients { dq, dk, dv } = gradients;
    let (count, dtype) = (q.count(), q.dtype());
    let shape = Shape::new(sizes.head_dim, dtype)?;
    let n = size("attention positions", count)?;
    let rows = size("attention query rows", count * sizes.group())?;
    let [heads, kv_heads, head_dim] = [sizes.heads, sizes.kv_heads, sizes.head_dim].map(|size| size as u32);
    let (entries, delta) = (scratch.entries.view().address()?, scratch.delta.view().address()?);
    let reads = scratch.reads.view().address()?;
    let index = index(segment, n)?;

    let plan_blocks = count.div_ceil(PLAN_THREADS);
    let delta_blocks = (count * sizes.heads).div_ceil(PLAN_THREADS / WARP);
    let rest =
        arguments![dout.address()?, out.address()?, delta, heads, head_dim, entries, plan_blocks as u32];
    gpu.launch(
        by_dtype("attention", dtype, &BACK_F32, &BACK_BF16)?,
        Grid::linear(size("attention blocks", plan_blocks + delta_blocks)?, PLAN_THREADS as u32),
        &[&index[..], &rest].concat(),
    )?;
    let tiles = (rows as usize).div_ceil(shape.key_queries);
    // Lanes of a tile: one for each entry that its query rows may belong to, but no more than a warp has.
    let (queries, group) = (shape.key_queries, sizes.group());
    let most = if queries.is_multiple_of(group) { queries / group } else { (queries - 2) / group + 2 };
    let lanes = most.next_power_of_two().min(WARP);
    gpu.launch(
        &READS,
        Grid::linear(
            size("attention blocks", (tiles * lanes).div_ceil(LIGHT_THREADS))?,
            LIGHT_THREADS as u32,
        ),
        &arguments![entries, rows, group as u32, queries as u32, tiles as u32, lanes as u32, reads],
    )?;

    let common = arguments![
        q.address()?,
        dout.address()?,
        cache.k.view().address()?,
        cache.v.view().address()?,
        statistics.address()?,
        delta,
        entries,
        rows,
        heads,
        kv_heads,
        head_dim,
        sizes.scale as f32,
        (sizes.scale * LOG2_E) as f32,
    ];
    let column_blocks = shape.column_blocks();
    let launch = |kernel, warps: usize, blocks: usize, bytes: usize, rest: &[Argument]| {
        let grid = Grid {
            blocks: [size("attention blocks", blocks)?, kv_heads, column_blocks as u32],
            threads: [(WARP * warps) as u32, 1, 1],
            shared_bytes: bytes as u32,
        };
        gpu.launch(kernel, grid, &[&common[..], rest].concat())
    };
    let full = 16 * shape.query_warps;
    let few = (rows as usize).div_ceil(full) * sizes.kv_heads < FEW_BLOCKS;
    let tile_rows = if few { 16 } else { full };
    launch(
        shape.kernel([
            [&DQ_D64_F32, &DQ_D64_BF16],
            [&DQ_D128_F32, &DQ_D128_BF16],
            [&DQ_TO128_F32, &DQ_TO128_BF16],
            [&DQ_TO256_F32, &DQ_TO256_BF16],
        ]),
        shape.query_warps,
        (rows as usize).div_ceil(tile_rows),
        (2 * full + shape.query_tiles * SLOT_BLOCK) * shape.row_bytes(),
        &arguments![tile_rows as u32, dq.address()?],
    )?;
    let keys = 16 * shape.key_warps;
    let (grad_keys, grad_values) = (grad.k.view_mut().address()?, grad.v.view_mut().address()?);
    launch(
        shape.kernel([
            [&DKV_D64_F32, &DKV_D64_BF16],
            [&DKV_D128_F32, &DKV_D128_BF16],
            [&DKV_TO128_F32, &DKV_TO128_BF16],
            [&DKV_TO256_F32, &DKV_TO256_BF16],
        ]),
        shape.key_warps,
        sizes.blocks * (SLOT_BLOCK / keys),
        2 * (keys + shape.key_stages * shape.key_queries) * shape.row_bytes(),
        &arguments![reads, tiles as u32, u32::from(detach_cached), grad_keys, grad_values],
    )?;
    let rest = arguments![grad_keys, grad_values, kv_heads, head_dim, dk.address()?, dv.address()?];
    gpu.launch(
        by_dtype("attention", dtype, &COLLECT_F32, &COLLECT_BF16)?,
        Grid::linear(count.div_ceil(LIGHT_THREADS / WARP) as u32, LIGHT_THREADS as u32),
        &[&index[..], &rest].concat(),
    )
}

#[cfg(test)]
mod tests;
