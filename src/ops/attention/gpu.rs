//! The GPU arms of ops/attention.rs. Kernels: cuda/attention.cu (plan, prompts), cuda/attention_decode.cu (single
//! steps), cuda/attention_backward.cu.

use super::{Inputs, Segment};
use crate::base::{Dtype, Error, Result};
use crate::cpu::attention::Sizes;
use crate::device::{Argument, Device, Grid, Kernel, Launcher};
use crate::ops::kv_cache::{CacheLayout, KvCache, SLOT_BLOCK};
use crate::ops::launch::{ABSENT, arguments, by_dtype, kernels, size};
use crate::ops::{Tensor, ViewMut};
use std::f64::consts::LOG2_E;

kernels!("attention":
    BEGIN_F32 = "attention_begin_f32",
    BEGIN_BF16 = "attention_begin_bf16",
    TILES_D64_F32 = "attention_fwd_d64_f32",
    TILES_D64_BF16 = "attention_fwd_d64_bf16",
    TILES_D128_F32 = "attention_fwd_d128_f32",
    TILES_D128_BF16 = "attention_fwd_d128_bf16",
    TILES_ANY_F32 = "attention_fwd_any_f32",
    TILES_ANY_BF16 = "attention_fwd_any_bf16",
);
kernels!("attention_decode":
    STEPS_D64_F32 = "attention_decode_fwd_d64_f32",
    STEPS_D64_BF16 = "attention_decode_fwd_d64_bf16",
    STEPS_D128_F32 = "attention_decode_fwd_d128_f32",
    STEPS_D128_BF16 = "attention_decode_fwd_d128_bf16",
    STEPS_ANY_F32 = "attention_decode_fwd_any_f32",
    STEPS_ANY_BF16 = "attention_decode_fwd_any_bf16",
    MERGE_F32 = "attention_decode_merge_f32",
    MERGE_BF16 = "attention_decode_merge_bf16",
);

/// Threads of a warp.
const WARP: usize = 32;
/// Blocks of threads of one launch that share the items of single steps: some for every multiprocessor.
const MOST_WIDE: usize = 512;
const MOST_NARROW: usize = 2048;
/// Threads of a block that plans and stores, and the most positions of a segment that is planned as single steps.
const PLAN_THREADS: usize = 512;
/// Threads of a block that merges partial results; a warp each.
const MERGE_THREADS: usize = 256;
/// Blocks of keys whose state is kept together.
const PART_BLOCKS: usize = 4;
/// Words of an entry of the plan.
const ENTRY: usize = 8;
/// Words of an item of work.
const ITEM: usize = 4;
/// Words before the items: how many there are.
const HEADER: usize = 16;

/// Kernels of one head dimension, and how much of a result a block of threads computes.
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
}

/// Which kernels serve a head dimension.
#[derive(Clone, Copy)]
enum HeadSize {
    D64,
    D128,
    Any,
}

impl Shape {
    fn new(head_dim: usize, dtype: Dtype) -> Result<Shape> {
        let (single, element) = (dtype == Dtype::F32, dtype.size());
        let (size, columns, warps) = match head_dim {
            64 => (HeadSize::D64, 64, 4),
            128 => (HeadSize::D128, 128, 4),
            1..=256 if single => (HeadSize::Any, 64, 1),
            1..=256 => (HeadSize::Any, 128, 4),
            _ => {
                return Err(Error::shape("attention head dimension on a GPU", head_dim, "at most 256"));
            }
        };
        Ok(Shape { size, element, head_dim, columns, warps })
    }

    /// The kernel for this head dimension, of pairs (f32, bf16) for 64, 128 and any.
    fn kernel(&self, kernels: [[&'static Kernel; 2]; 3]) -> &'static Kernel {
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

    /// Shared memory of a forward block of `warps` warps: queries, keys, values.
    fn forward_bytes(&self, warps: usize) -> usize {
        (16 * warps + SLOT_BLOCK) * self.row_bytes() + SLOT_BLOCK * self.columns * self.element
    }
}

/// Working memory of a segment's kernels, beside what backward needs. It holds nothing from one call to the next, so
/// kernels write it through a shared reference; everything is ordered on one stream.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The segment's positions in working order, [`ENTRY`] words each.
    entries: Tensor,
}

impl Scratch {
    pub fn reserve(device: &Device, rows: usize) -> Result<Option<Scratch>> {
        match device {
            Device::Cpu(_) => Ok(None),
            Device::Gpu(_) => {
                Ok(Some(Scratch { entries: Tensor::zeros(device, [rows, ENTRY], Dtype::U32)? }))
            }
        }
    }
}

/// Where the parts of the working memory of single steps lie in the layout's scratch.
struct StepMemory {
    counts: u64,
    wide: u64,
    narrow: u64,
    slots: u64,
    slot_sums: u64,
    capacity: usize,
}

impl StepMemory {
    /// None where the scratch cannot hold the work items of so many positions.
    fn new(layout: &CacheLayout, sizes: &Sizes, shape: &Shape, count: usize) -> Result<Option<StepMemory>> {
        let Some(scratch) = &layout.scratch else { return Ok(None) };
        let padded = sizes.head_dim.next_multiple_of(8);
        let tiles = count + count * sizes.group() / (16 * shape.warps) + 1;
        let fixed = HEADER + ITEM * tiles;
        let each = 2 * ITEM + sizes.heads * (padded + 2 * shape.column_blocks());
        let capacity = scratch.shape().elements().saturating_sub(fixed) / each;
        if count > PLAN_THREADS || capacity == 0 {
            return Ok(None);
        }
        let counts = scratch.address()?;
        let wide = counts + 4 * HEADER as u64;
        let narrow = wide + 4 * (ITEM * (tiles + capacity)) as u64;
        let slots = narrow + 4 * (ITEM * capacity) as u64;
        let slot_sums = slots + 4 * (capacity * sizes.heads * padded) as u64;
        Ok(Some(StepMemory { counts, wide, narrow, slots, slot_sums, capacity }))
    }
}

/// Forward on a GPU; operands are checked, and there is at least one position.
pub(super) fn forward(
    gpu: &dyn Launcher,
    inputs: Inputs,
    segment: &Segment,
    sizes: &Sizes,
    cache: &mut KvCache,
    (out, lse): (ViewMut, ViewMut),
    scratch: &Scratch,
) -> Result<()> {
    let Inputs { q, k, v } = inputs;
    let (count, dtype) = (q.count(), q.dtype());
    let shape = Shape::new(sizes.head_dim, dtype)?;
    let steps = StepMemory::new(segment.layout, sizes, &shape, count)?;
    let (n, group) = (size("attention positions", count)?, size("attention heads", sizes.group())?);
    let rows = size("attention query rows", count * sizes.group())?;
    let [heads, kv_heads, head_dim] = [sizes.heads, sizes.kv_heads, sizes.head_dim].map(|size| size as u32);
    let entries = Argument::Address(scratch.entries.address()?);
    let (keys, values) = (cache.k.view_mut().address()?, cache.v.view_mut().address()?);
    let at =
        |address: fn(&StepMemory) -> u64| steps.as_ref().map_or(ABSENT, |m| Argument::Address(address(m)));

    let plan_blocks = if steps.is_some() { 1 } else { count.div_ceil(PLAN_THREADS) };
    let store_blocks = count.div_ceil(PLAN_THREADS / WARP);
    let layout = segment.layout;
    gpu.launch(
        by_dtype("attention", dtype, &BEGIN_F32, &BEGIN_BF16)?,
        Grid::linear((plan_blocks + store_blocks) as u32, PLAN_THREADS as u32),
        &arguments![
            segment.rows.address()?,
            segment.positions.address()?,
            layout.prefix_slot.view().address()?,
            layout.prefix_len.view().address()?,
            layout.own_slot.view().address()?,
            n,
            k.address()?,
            v.address()?,
            keys,
            values,
            kv_heads,
            head_dim,
            entries,
            plan_blocks as u32,
            at(|m| m.counts),
            at(|m| m.wide),
            at(|m| m.narrow),
            group,
            (16 * shape.warps) as u32,
            steps.as_ref().map_or(0, |m| m.capacity as u32),
        ],
    )?;

    let column_blocks = shape.column_blocks();
    let (out, lse) = (out.address()?, lse.address()?);
    let launch = |kernel, warps: usize, blocks: usize, items: Argument, number: Argument| {
        let grid = Grid {
            blocks: [blocks as u32, kv_heads, column_blocks as u32],
            threads: [(WARP * warps) as u32, 1, 1],
            shared_bytes: shape.forward_bytes(warps) as u32,
        };
        let (slots, slot_sums) = (at(|m| m.slots), at(|m| m.slot_sums));
        let scale = (sizes.scale * LOG2_E) as f32;
        let arguments = arguments![
            q.address()?,
            keys,
            values,
            out,
            lse,
            entries,
            items,
            number,
            slots,
            slot_sums,
            rows,
            heads,
            kv_heads,
            head_dim,
            scale,
        ];
        gpu.launch(kernel, grid, &arguments)
    };
    let tiles = shape.kernel([
        [&TILES_D64_F32, &TILES_D64_BF16],
        [&TILES_D128_F32, &TILES_D128_BF16],
        [&TILES_ANY_F32, &TILES_ANY_BF16],
    ]);
    let Some(memory) = &steps else {
        return launch(tiles, shape.warps, (rows as usize).div_ceil(16 * shape.warps), ABSENT, ABSENT);
    };
    // How many items there are is known to the device alone: some blocks of threads share whatever there is.
    let parts = sizes.blocks.div_ceil(PART_BLOCKS);
    let spread = |most: usize, items: usize| items.clamp(1, (most / (sizes.kv_heads * column_blocks)).max(1));
    let wide = spread(MOST_WIDE, parts.max(count + rows as usize / (16 * shape.warps)));
    launch(tiles, shape.warps, wide, Argument::Address(memory.wide), Argument::Address(memory.counts))?;
    let kernel = shape.kernel([
        [&STEPS_D64_F32, &STEPS_D64_BF16],
        [&STEPS_D128_F32, &STEPS_D128_BF16],
        [&STEPS_ANY_F32, &STEPS_ANY_BF16],
    ]);
    let number = Argument::Address(memory.counts + Dtype::U32.size() as u64);
    launch(kernel, 1, spread(MOST_NARROW, count * parts), Argument::Address(memory.narrow), number)?;
    gpu.launch(
        by_dtype("attention", dtype, &MERGE_F32, &MERGE_BF16)?,
        Grid::linear((count * sizes.heads).div_ceil(MERGE_THREADS / WARP) as u32, MERGE_THREADS as u32),
        &arguments![
            Argument::Address(memory.slots),
            Argument::Address(memory.slot_sums),
            entries,
            n,
            heads,
            head_dim,
            column_blocks as u32,
            out,
            lse,
        ],
    )
}
