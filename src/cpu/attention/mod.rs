//! Causal attention of a packed segment over the slots of a key-value cache. Operation: ops/attention.rs.
//!
//! ```text
//! forward   s[j] = scale * q . k[j]      j = 0..=p, the keys of the query's row (p: its absolute position)
//!           w = softmax(s)               out = sum_j w[j] v[j]              lse = log sum_j exp(s[j])
//! backward  w[j] = exp(s[j] - lse)       delta = dout . out                 ds[j] = w[j] (dout . v[j] - delta)
//!           dq = scale * sum_j ds[j] k[j]     dk[j] += scale * ds[j] q      dv[j] += w[j] dout
//! ```
//!
//! The forward pass is blocked as in FlashAttention-2 (Dao 2023, algorithm 1), the backward pass recomputes the
//! weights from `lse` (algorithm 2), with one difference that the bit contract asks for: the blocks are anchored.
//!
//! **Order of sums.** Keys are reduced in blocks of [`BLOCK`] anchored at absolute position 0. A score is one
//! chain of fused multiply-adds over the head's dimensions; a block's maximum, weights, sum (lanes) and weighted
//! values (one chain over ascending keys) depend on that block's keys alone; blocks are merged in ascending order.
//! Keys beyond a query's position are never touched. So a query's bits depend on its own vector and on its row's
//! keys: not on how the segment was cut, on other rows, on where the keys lie, or on the threads.
//!
//! **Cache.** One layer's keys are `[kv_heads][blocks][head_dim][BLOCK]` (lanes over keys for the scores), its
//! values `[kv_heads][blocks][BLOCK][padded]` with `padded` = head_dim rounded up to [`LANES`] (lanes over
//! dimensions for the weighted sum; the padding stays 0). Gradients of keys and values have the same layouts.

mod backward;
mod forward;
mod plan;
mod product;
mod scratch;

pub use backward::{BackwardInputs, Gradients, backward};
pub use forward::{ForwardInputs, forward};
pub use plan::{Plan, Segment};

use super::float::LANES;

/// Keys of one block: positions `BLOCK * b .. BLOCK * (b + 1)` of a row are reduced together.
pub const BLOCK: usize = 64;

/// Sizes of one layer's attention and of its cache.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; query head h reads key-value head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Blocks of slots in the cache.
    pub blocks: usize,
    /// Factor of the scores.
    pub scale: f64,
}

impl Sizes {
    /// Query heads that read one key-value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// `head_dim` rounded up to whole vectors.
    pub fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Elements of one block of keys of one head.
    pub fn key_block(&self) -> usize {
        self.head_dim * BLOCK
    }

    /// Elements of one block of values of one head.
    pub fn value_block(&self) -> usize {
        BLOCK * self.padded()
    }
}

/// Query rows worked on together: their keys stay in the first-level cache. A multiple of the tile's rows.
const QUERIES: usize = 48;
