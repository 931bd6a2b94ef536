//! Rows added to rows that an index names, in a fixed order: what the backward passes of embedding, gather and latent
//! share on a GPU. On the CPU each of them adds by itself. Kernels: cuda/scatter.cu.
//! Parity: tests/parity/embedding.rs, gather.rs and latent.rs.
//!
//! Contributions are sorted by the row they go to, earlier ones first; then each run of one row is added by one warp in
//! that order. The sums depend neither on the blocks' order nor on rows that others name.

use super::embedding::Soft;
use super::launch::{ABSENT, arguments, kernels, size};
use super::mask::{MaskAt, mask_arguments};
use super::{Tensor, View, ViewMut};
use crate::base::{Dtype, Error, Result};
use crate::device::{Argument, Device, Grid, Kernel, Launcher};

kernels!("scatter":
    SORT_ROWS = "scatter_sort_rows",
    SORT_TOKENS = "scatter_sort_tokens",
    SORT_LATENTS = "scatter_sort_latents",
    ORDER_ROWS = "scatter_order_rows",
    ORDER_TOKENS = "scatter_order_tokens",
    ORDER_LATENTS = "scatter_order_latents",
    TILES_ROWS = "scatter_tiles_rows",
    TILES_TOKENS = "scatter_tiles_tokens",
    TILES_LATENTS = "scatter_tiles_latents",
    RANKS = "scatter_ranks",
    ADD_ROWS_F32 = "scatter_add_rows_f32",
    ADD_ROWS_BF16 = "scatter_add_rows_bf16",
    ADD_ROWS_BF16_F32 = "scatter_add_rows_bf16_f32",
    ADD_TOKENS_F32 = "scatter_add_tokens_f32",
    ADD_TOKENS_BF16 = "scatter_add_tokens_bf16",
    ADD_LATENTS_F32 = "scatter_add_latents_f32",
    ADD_LATENTS_BF16 = "scatter_add_latents_bf16",
);

/// Numbers of 4 bytes in a sector of device memory.
const SECTOR: usize = 8;
/// Most contributions that one block sorts, how many a thread takes, and the first row number that it cannot tell from
/// none.
const SORTED: u32 = 1024;
const SORT_KEYS: u32 = 4;
const NO_KEY: u32 = (1 << 21) - 1;
/// Most contributions that find their places by counting, those of a block, and its threads.
const COUNTED: u32 = 8192;
const COUNTS: u32 = 32;
const COUNT_BLOCK: u32 = 1024;
/// Contributions of a block that sorts, and its threads.
const TILE: u32 = 512;
/// Contributions and threads of a block that adds.
const SLOTS: u32 = 32;
const ADD_BLOCK: u32 = 128;

/// Room for the order of contributions. The CPU needs none.
#[derive(Debug, Default)]
pub struct Order {
    /// U32 `[4, entries]`: keys and entries sorted in tiles, then pairs of both sorted altogether, in two rows.
    lists: Option<Tensor>,
}

impl Order {
    /// Room for `entries` contributions: positions, times the terms of a mixture where there are mixtures. A call with
    /// more makes the room larger.
    pub fn reserve(device: &Device, entries: usize) -> Result<Order> {
        let mut order = Order::default();
        if matches!(device, Device::Gpu(_)) {
            order.fit(device, entries)?;
        }
        Ok(order)
    }

    /// The three lists, each with room for `entries`, and beginning at a sector of device memory.
    fn fit(&mut self, device: &Device, entries: usize) -> Result<[Argument; 3]> {
        let entries = entries.next_multiple_of(SECTOR);
        if self.lists.as_ref().is_none_or(|lists| lists.shape().dims()[1] < entries) {
            self.lists = None;
            self.lists = Some(Tensor::zeros(device, [4, entries], Dtype::U32)?);
        }
        let mut addresses = [ABSENT; 3];
        if let Some(lists) = &self.lists {
            for (row, address) in addresses.iter_mut().enumerate() {
                *address = lists.rows(row..row + 1)?.address()?;
            }
        }
        Ok(addresses)
    }
}

/// Which row of the target each contribution goes to, and what it is multiplied by.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) enum Contributions<'a> {
    /// Contribution n to row `index[n]`; U32 `[N, 1]`.
    Rows(View<'a>),
    /// Position n to row `ids[n]` (I32 `[N, 1]`), or with weights to the rows of its mixture.
    Tokens(View<'a>, Option<Soft<'a>>),
    /// Position n, where `ids[n]` is -1, to row `source[n]` unless that is -1 (I32 `[N, 1]` both), masked.
    Latents(View<'a>, View<'a>, Option<MaskAt<'a>>),
}

/// `to[key(e)] += factor(e) * from[row(e)]`, e ascending. The caller has checked shapes and dtypes.
///
/// # Errors
/// Dtypes that no kernel takes; more contributions or columns than a kernel indexes.
pub(in crate::ops) fn add(
    gpu: &dyn Launcher,
    contributions: Contributions,
    from: View,
    to: ViewMut,
    order: &mut Order,
) -> Result<()> {
    // A mixture of no terms contributes nothing, but its position still has an entry.
    let terms = match contributions {
        Contributions::Tokens(_, Some(soft)) => soft.ids.cols().max(1),
        _ => 1,
    };
    let (entries, cols) = (from.count() * terms, from.cols());
    if entries == 0 || cols == 0 || to.count() == 0 {
        return Ok(());
    }
    let [tile_keys, tile_entries, sorted] = order.fit(from.device(), entries)?;
    let count = size("scattered rows", entries)?;
    let bound = size("rows of the target", to.count())?;
    let (sort, order, tiles, mut list) = match contributions {
        Contributions::Rows(index) => (&SORT_ROWS, &ORDER_ROWS, &TILES_ROWS, vec![index.address()?]),
        Contributions::Tokens(ids, soft) => {
            let (soft_ids, mixtures) = match soft {
                Some(soft) if soft.ids.cols() > 0 => (soft.ids.address()?, soft.ids.count()),
                _ => (ABSENT, 0),
            };
            let mixtures = size("mixtures", mixtures)?.into();
            let list = vec![ids.address()?, soft_ids, mixtures, size("terms", terms)?.into()];
            (&SORT_TOKENS, &ORDER_TOKENS, &TILES_TOKENS, list)
        }
        Contributions::Latents(ids, source, _) => {
            (&SORT_LATENTS, &ORDER_LATENTS, &TILES_LATENTS, vec![ids.address()?, source.address()?])
        }
    };
    list.extend(arguments![count, bound]);
    if count <= SORTED && bound <= NO_KEY {
        list.push(sorted);
        let threads = count.div_ceil(SORT_KEYS).next_power_of_two().max(32);
        gpu.launch(sort, Grid::linear(1, threads), &list)?;
    } else if count <= COUNTED {
        list.push(sorted);
        gpu.launch(order, Grid::linear(count.div_ceil(COUNTS), COUNT_BLOCK), &list)?;
    } else {
        let grid = Grid::linear(count.div_ceil(TILE), TILE);
        list.extend([tile_keys, tile_entries]);
        gpu.launch(tiles, grid, &list)?;
        gpu.launch(&RANKS, grid, &arguments![tile_keys, tile_entries, count, sorted])?;
    }
    let (kernel, mut list) = adder(contributions, from.dtype(), to.dtype(), terms)?;
    let lanes = if cols.is_multiple_of(4) { 128 } else { 32 };
    let blocks = [count.div_ceil(SLOTS), size("columns", cols)?.div_ceil(lanes), 1];
    list.extend(arguments![sorted, count, from.address()?, size("columns", cols)?, to.address()?]);
    gpu.launch(kernel, Grid { blocks, threads: [ADD_BLOCK, 1, 1], shared_bytes: 0 }, &list)
}

/// The kernel that adds, and its first arguments.
fn adder(
    contributions: Contributions,
    from: Dtype,
    to: Dtype,
    terms: usize,
) -> Result<(&'static Kernel, Vec<Argument>)> {
    let refuse = || Error::dtype("scatter", format!("{from} added to {to}"), "f32 or bf16 on a GPU");
    match contributions {
        Contributions::Tokens(ids, Some(soft)) if soft.ids.cols() > 0 => {
            let kernel = match (from, to) {
                (Dtype::F32, Dtype::F32) => &ADD_TOKENS_F32,
                (Dtype::Bf16, Dtype::F32) => &ADD_TOKENS_BF16,
                _ => return Err(refuse()),
            };
            let terms = size("terms", terms)?.into();
            Ok((kernel, vec![ids.address()?, soft.weights.address()?, terms]))
        }
        // A token's weight is 1.
        Contributions::Rows(_) | Contributions::Tokens(..) => match (from, to) {
            (Dtype::F32, Dtype::F32) => Ok((&ADD_ROWS_F32, Vec::new())),
            (Dtype::Bf16, Dtype::Bf16) => Ok((&ADD_ROWS_BF16, Vec::new())),
            (Dtype::Bf16, Dtype::F32) => Ok((&ADD_ROWS_BF16_F32, Vec::new())),
            _ => Err(refuse()),
        },
        Contributions::Latents(_, _, mask) => {
            let mask = mask_arguments(&mask)?;
            match (from, to) {
                (Dtype::F32, Dtype::F32) => Ok((&ADD_LATENTS_F32, mask.to_vec())),
                (Dtype::Bf16, Dtype::Bf16) => Ok((&ADD_LATENTS_BF16, mask.to_vec())),
                _ => Err(refuse()),
            }
        }
    }
}
