//! The keys and values of one layer, and where each row's lie. Attention: ops/attention.rs.

use super::Tensor;
use super::attention::Geometry;
use crate::base::{Dtype, Error, Result};
use crate::cpu::attention::{BLOCK, Sizes};
use crate::cpu::elementwise;
use crate::device::{Arena, Device};

/// Slots of a cache come in blocks of this many.
pub const SLOT_BLOCK: usize = BLOCK;

/// Where one row's keys lie in every layer's cache. Position p of the row is
///
/// ```text
/// slot prefix_slot + p                  p <  prefix_len    (another row's own slots, from its position 0 on)
/// slot own_slot + (p - prefix_len)      p >= prefix_len
/// ```
///
/// Keys are reduced in blocks of [`SLOT_BLOCK`] positions, and a block of positions must be a block of slots. Hence
/// the rule: `prefix_slot` is a multiple of [`SLOT_BLOCK`], and `own_slot` equals `prefix_len` modulo it. The slots
/// of two rows' own spans must not meet, and no two own spans use the same block. The row that owns a prefix has
/// no prefix itself. [`CacheSpan::after`] keeps the rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSpan {
    /// Slot of the shared prefix's position 0; unused when `prefix_len` is 0.
    pub prefix_slot: u32,
    /// Positions that are read from the shared prefix.
    pub prefix_len: u32,
    /// Slot of the row's position `prefix_len`.
    pub own_slot: u32,
}

impl CacheSpan {
    /// The span of a row with `own_len` positions of its own behind the first `prefix_len` positions at
    /// `prefix_slot`, in the first blocks that start at or after slot `free`; and the first slot free after it.
    ///
    /// ```
    /// use latch::ops::kv_cache::CacheSpan;
    /// let (prompt, free) = CacheSpan::after(0, 0, 0, 70);
    /// let (rollout, free) = CacheSpan::after(free, prompt.own_slot, 70, 100);
    /// assert_eq!((prompt.own_slot, rollout.own_slot, free), (0, 128 + 6, 256));
    /// ```
    pub fn after(free: usize, prefix_slot: u32, prefix_len: usize, own_len: usize) -> (CacheSpan, usize) {
        let own_slot = free.next_multiple_of(SLOT_BLOCK) + prefix_len % SLOT_BLOCK;
        let span = CacheSpan { prefix_slot, prefix_len: prefix_len as u32, own_slot: own_slot as u32 };
        (span, (own_slot + own_len).next_multiple_of(SLOT_BLOCK))
    }
}

/// Bytes of working memory that a GPU's layout has for each row, within bounds: partial results of single steps
/// (cuda/attention_decode.cu). Enough for 2000 positions of 28 heads of 128; longer rows take the slower way.
const SCRATCH_OF_ROW: usize = 512 << 10;
const SCRATCH_BOUNDS: (usize, usize) = (1 << 20, 64 << 20);

/// The [`CacheSpan`] of every row, on the device. One layout serves all layers.
#[derive(Debug)]
pub struct CacheLayout {
    /// `[rows, 1]` u32.
    pub(in crate::ops) prefix_slot: Tensor,
    /// `[rows, 1]` u32.
    pub(in crate::ops) prefix_len: Tensor,
    /// `[rows, 1]` u32.
    pub(in crate::ops) own_slot: Tensor,
    /// What kernels write and read within one call; on a GPU alone.
    pub(in crate::ops) scratch: Option<Tensor>,
}

impl CacheLayout {
    /// The layout of `spans`, one a row (three uploads).
    ///
    /// # Errors
    /// A span that breaks the alignment rule.
    pub fn new(device: &Device, spans: &[CacheSpan]) -> Result<CacheLayout> {
        let _arena = Arena::KvCache.enter();
        let zeros = || Tensor::zeros(device, [spans.len(), 1], Dtype::U32);
        let (least, most) = SCRATCH_BOUNDS;
        let scratch = match device {
            Device::Cpu(_) => None,
            Device::Gpu(_) => {
                let _arena = Arena::Workspace.enter();
                let bytes = (spans.len() * SCRATCH_OF_ROW).clamp(least, most);
                Some(Tensor::zeros(device, [bytes / Dtype::F32.size()], Dtype::F32)?)
            }
        };
        let mut layout =
            CacheLayout { prefix_slot: zeros()?, prefix_len: zeros()?, own_slot: zeros()?, scratch };
        layout.upload(spans)?;
        Ok(layout)
    }

    /// Replaces the spans of the first rows; at most as many as [`CacheLayout::new`] was given (three uploads).
    ///
    /// # Errors
    /// Too many spans, or one that breaks the alignment rule.
    pub fn upload(&mut self, spans: &[CacheSpan]) -> Result<()> {
        for (row, span) in spans.iter().enumerate() {
            let (prefix, own) = (span.prefix_slot as usize % SLOT_BLOCK, span.own_slot as usize % SLOT_BLOCK);
            if own != span.prefix_len as usize % SLOT_BLOCK || (span.prefix_len > 0 && prefix != 0) {
                return Err(Error::input(
                    format!("cache layout of row {row}"),
                    format!(
                        "{span:?}; expected prefix_slot a multiple of {SLOT_BLOCK} and own_slot equal to prefix_len modulo it"
                    ),
                    "lay rows out with CacheSpan::after",
                ));
            }
        }
        let column = |f: fn(&CacheSpan) -> u32| spans.iter().map(f).collect::<Vec<u32>>();
        self.prefix_slot.upload_at(0, &column(|span| span.prefix_slot))?;
        self.prefix_len.upload_at(0, &column(|span| span.prefix_len))?;
        self.own_slot.upload_at(0, &column(|span| span.own_slot))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.own_slot.shape().as_matrix().0
    }
}

/// Keys and values of one layer, or their gradients, in slots. How they lie inside is the kernels' business.
///
/// On a GPU gradients are summed in f32 beside bf16 activations: their cache has the dtype
/// [`accumulation`](Dtype::accumulation).
#[derive(Debug)]
pub struct KvCache {
    /// CPU `[kv_heads, blocks, head_dim, SLOT_BLOCK]`: scores have their lanes over keys.
    /// GPU `[blocks, kv_heads, SLOT_BLOCK, head_dim rounded up to 8]` (cuda/attention.cuh).
    pub(in crate::ops) k: Tensor,
    /// CPU `[kv_heads, blocks, SLOT_BLOCK, padded head_dim]`: weighted sums have theirs over dimensions.
    /// GPU as the keys.
    pub(in crate::ops) v: Tensor,
    kv_heads: usize,
    head_dim: usize,
    blocks: usize,
}

impl KvCache {
    /// A cache of zeros with at least `slots` slots (rounded up to whole blocks).
    ///
    /// # Errors
    /// A geometry that cannot be, or memory that the device does not have.
    pub fn zeros(device: &Device, geometry: &Geometry, slots: usize, dtype: Dtype) -> Result<KvCache> {
        let _arena = Arena::KvCache.enter();
        let blocks = slots.div_ceil(SLOT_BLOCK);
        let sizes = geometry.sizes(blocks)?;
        let (kv_heads, head_dim) = (sizes.kv_heads, sizes.head_dim);
        let (k, v) = match device {
            Device::Cpu(_) => {
                ([kv_heads, blocks, head_dim, SLOT_BLOCK], [kv_heads, blocks, SLOT_BLOCK, sizes.padded()])
            }
            Device::Gpu(_) => {
                let shape = [blocks, kv_heads, SLOT_BLOCK, head_dim.next_multiple_of(8)];
                (shape, shape)
            }
        };
        Ok(KvCache {
            k: Tensor::zeros(device, k, dtype)?,
            v: Tensor::zeros(device, v, dtype)?,
            kv_heads,
            head_dim,
            blocks,
        })
    }

    /// Slots it holds.
    pub fn slots(&self) -> usize {
        self.blocks * SLOT_BLOCK
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.k.bytes() + self.v.bytes()
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.k.dtype()
    }

    /// Sets everything to 0: before the first backward call of an update on a cache of gradients.
    ///
    /// # Errors
    /// A device without a kernel for it.
    pub fn clear(&mut self) -> Result<()> {
        self.clear_slots(self.slots())
    }

    /// Sets the first `slots` slots to zero (rounded up to whole blocks).
    pub fn clear_slots(&mut self, slots: usize) -> Result<()> {
        let device = self.k.device().clone();
        let (heads, blocks) = (self.kv_heads, self.blocks);
        let used = slots.div_ceil(SLOT_BLOCK).min(blocks);
        match &device {
            Device::Cpu(_) => super::float_dispatch!("cache", self.dtype(), T => {
                for tensor in [&mut self.k, &mut self.v] {
                    let mut view = tensor.view_mut();
                    let all = view.slice::<T>()?;
                    let head = all.len() / heads;
                    for of_head in all.chunks_exact_mut(head) {
                        elementwise::clear(&mut of_head[..head / blocks * used]);
                    }
                }
            }),
            // Blocks lie outside: the first ones are one run of bytes.
            Device::Gpu(gpu) if used > 0 => {
                for tensor in [&self.k, &self.v] {
                    gpu.clear(tensor.address()?, tensor.bytes() / blocks * used)?;
                }
            }
            Device::Gpu(_) => {}
        }
        Ok(())
    }

    /// The kernel's sizes, when the cache is one of `geometry` in `dtype`.
    pub(in crate::ops) fn sizes(&self, what: &str, geometry: &Geometry, dtype: Dtype) -> Result<Sizes> {
        if (self.kv_heads, self.head_dim) != (geometry.kv_heads, geometry.head_dim) {
            return Err(Error::shape(
                what,
                format!("{} key-value heads of {}", self.kv_heads, self.head_dim),
                format!("{} key-value heads of {}", geometry.kv_heads, geometry.head_dim),
            ));
        }
        self.k.expect_dtype(what, dtype)?;
        geometry.sizes(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_keep_the_rule() {
        for (free, prefix_len, own_len) in [(0, 0, 1), (64, 70, 1), (65, 64, 64), (192, 200, 300)] {
            let (span, next) = CacheSpan::after(free, 0, prefix_len, own_len);
            let own = span.own_slot as usize;
            assert_eq!(own % SLOT_BLOCK, prefix_len % SLOT_BLOCK);
            assert!(own >= free && next >= own + own_len && next % SLOT_BLOCK == 0);
            CacheLayout::new(&Device::cpu(), &[span]).unwrap();
        }
        let wrong = CacheSpan { prefix_slot: 0, prefix_len: 70, own_slot: 64 };
        let message = CacheLayout::new(&Device::cpu(), &[wrong]).unwrap_err().to_string();
        assert!(message.contains("cache layout of row 0") && message.contains("modulo"), "{message}");
    }
}
