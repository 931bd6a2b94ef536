//! Causal attention of a packed segment. Kernels: cuda/attention.cu, cuda/attention_decode.cu,
//! cuda/attention_backward.cu. CPU: cpu/attention/. Parity: tests/parity/attention.rs. Bench: benches/ops/attention.rs.
//! The cache and its layout: ops/kv_cache.rs.
//!
//! A query's result has the same bits whether its row was computed at once, token by token or in any cut, in any
//! batch, with its prefix shared or its own, on any number of threads (how: cpu/attention/mod.rs).

mod gpu;

use super::append::Pair;
use super::kv_cache::{CacheLayout, KvCache};
use super::{Tensor, View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu::attention::{self as kernel, Plan, Sizes};
use crate::device::Device;
use std::ops::Range;

/// Heads of an attention layer; query head h reads key-value head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Factor of the scores, mostly `1 / sqrt(head_dim)`.
    pub scale: f64,
}

impl Geometry {
    pub(in crate::ops) fn sizes(&self, blocks: usize) -> Result<Sizes> {
        let &Geometry { heads, kv_heads, head_dim, scale } = self;
        if kv_heads == 0 || head_dim == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::shape(
                "attention geometry",
                format!("{heads} heads, {kv_heads} key-value heads, head dimension {head_dim}"),
                "positive numbers, heads a multiple of key-value heads",
            ));
        }
        Ok(Sizes { heads, kv_heads, head_dim, blocks, scale })
    }
}

/// A packed segment: whose positions stand in it, and where their keys lie. A row's positions may stand in any
/// order and among other rows'.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Row of each packed position, `[N, 1]` u32: an index into the layout.
    pub rows: View<'a>,
    /// Absolute position of each packed position, `[N, 1]` u32; at least the row's `prefix_len`.
    pub positions: View<'a>,
    /// Heads.
    pub geometry: &'a Geometry,
    /// Slots of the rows.
    pub layout: &'a CacheLayout,
}

/// What [`forward`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Queries `[N, heads * head_dim]`.
    pub q: View<'a>,
    /// Keys `[N, kv_heads * head_dim]`.
    pub k: View<'a>,
    /// Values `[N, kv_heads * head_dim]`.
    pub v: View<'a>,
}

/// What [`backward`] reads.
#[derive(Clone, Copy, Debug)]
pub struct BackwardInputs<'a> {
    /// Gradient of the output `[N, heads * head_dim]`.
    pub dout: View<'a>,
    /// The forward call's queries.
    pub q: View<'a>,
    /// The forward call's output.
    pub out: View<'a>,
    /// The cache; the slots that the segment reads are as they were in the forward call.
    pub cache: &'a KvCache,
    /// Keys and values before the segment's first position of a row are constants (`detach_kv`, algorithms.md
    /// A.6): they get no gradient from this segment. Queries are not affected.
    pub detach_cached: bool,
}

/// What [`backward`] assigns.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[N, heads * head_dim]`.
    pub dq: ViewMut<'a>,
    /// `[N, kv_heads * head_dim]`: complete gradients of the segment's own keys.
    pub dk: ViewMut<'a>,
    /// `[N, kv_heads * head_dim]`: complete gradients of the segment's own values.
    pub dv: ViewMut<'a>,
}

/// What the backward pass needs of the forward pass: how to turn each query's scores into weights. Reserved once for a
/// tape of rows; only [`forward`] fills it.
#[derive(Debug)]
pub struct Saved {
    /// CPU: the log-sum-exp of each query's scores, `[rows, heads]`. GPU: a maximum in powers of two and the inverse of
    /// the sum, `[rows, heads * 2]` (cuda/attention_forward.cuh).
    statistics: Tensor,
    /// Working memory of a GPU's kernels.
    scratch: Option<gpu::Scratch>,
}

impl Saved {
    /// Room for `rows` packed positions.
    pub fn reserve(device: &Device, rows: usize, heads: usize, dtype: Dtype) -> Result<Saved> {
        let columns = Saved::columns(device, heads);
        Ok(Saved {
            statistics: Tensor::zeros(device, [rows, columns], dtype.accumulation())?,
            scratch: gpu::Scratch::reserve(device, rows, heads)?,
        })
    }

    /// What is kept of a step of rows, and where it goes in that of a tape.
    pub fn append<'a>(&'a self, to: &'a mut Saved) -> Pair<'a> {
        Pair::new(&self.statistics, &mut to.statistics, 1)
    }

    /// Columns of the statistics of so many heads.
    fn columns(device: &Device, heads: usize) -> usize {
        match device {
            Device::Cpu(_) => heads,
            Device::Gpu(_) => 2 * heads,
        }
    }
}

/// Writes the segment's keys and values to their slots, then lets each query attend to its row's keys
/// `0..=position`; `out[N, heads * head_dim]`. Calling it again with the same segment changes nothing.
///
/// `at` is where in `saved` these positions are kept; its length must be N. Positions of a row must be computed in
/// ascending order over the calls: all keys that a query sees are in the cache or in this segment.
///
/// # Errors
/// Shapes or dtypes that do not fit; rows, positions or slots out of range, a position given twice. On a GPU the host
/// does not see rows and positions: there they are the caller's promise.
pub fn forward(
    inputs: Inputs,
    segment: &Segment,
    cache: &mut KvCache,
    mut out: ViewMut,
    saved: &mut Saved,
    at: Range<usize>,
) -> Result<()> {
    let Inputs { q, k, v } = inputs;
    let (count, dtype, geometry) = (q.count(), q.dtype(), segment.geometry);
    let sizes = cache.sizes("attention cache", geometry, dtype)?;
    let (width, kv_width) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    q.expect("attention q", count, width, dtype)?;
    k.expect("attention k", count, kv_width, dtype)?;
    v.expect("attention v", count, kv_width, dtype)?;
    out.expect("attention output", count, width, dtype)?;
    segment.rows.expect("attention rows", count, 1, Dtype::U32)?;
    segment.positions.expect("attention positions", count, 1, Dtype::U32)?;
    let mut statistics = saved.statistics.rows_mut(at)?;
    let columns = Saved::columns(q.device(), sizes.heads);
    statistics.expect("attention saved", count, columns, dtype.accumulation())?;
    match q.device() {
        Device::Cpu(_) => float_dispatch!("attention", dtype, T => {
            let inputs = kernel::ForwardInputs { q: q.slice::<T>()?, k: k.slice()?, v: v.slice()? };
            let slots = cache.slots();
            let (mut keys, mut values) = (cache.k.view_mut(), cache.v.view_mut());
            let cached = (keys.slice()?, values.slice()?);
            let (out, lse) = (out.slice()?, statistics.slice()?);
            Plan::with(&host(segment)?, slots, |plan| kernel::forward(&sizes, plan, inputs, cached, out, lse))?;
        }),
        Device::Gpu(_) if count == 0 => {}
        device @ Device::Gpu(gpu) => {
            let scratch = saved.scratch.as_ref().ok_or_else(|| elsewhere(device))?;
            gpu::forward(&**gpu, inputs, segment, &sizes, cache, (out, statistics), scratch)?;
        }
    }
    Ok(())
}

/// Gradients of [`forward`]. Adds the gradients of all keys and values that the segment's queries see, prefix and
/// own, to `grad` (a cache of the same geometry in the dtype [`accumulation`](Dtype::accumulation), cleared before an
/// update's first backward call); then assigns
/// `dq`, and reads the gradients of the segment's own keys and values out of `grad`.
///
/// Segments must come in reverse order: a row's later segments, and all readers of a prefix before the segment
/// that computed it. Then the segment's own gradients are complete. Sums over rows run in ascending order of rows.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    inputs: BackwardInputs,
    segment: &Segment,
    grad: &mut KvCache,
    saved: &Saved,
    at: Range<usize>,
    gradients: Gradients,
) -> Result<()> {
    let BackwardInputs { dout, q, out, cache, detach_cached } = inputs;
    let Gradients { mut dq, mut dk, mut dv } = gradients;
    let (count, dtype, geometry) = (q.count(), q.dtype(), segment.geometry);
    let sizes = cache.sizes("attention cache", geometry, dtype)?;
    if grad.sizes("attention gradient cache", geometry, dtype.accumulation())?.blocks != sizes.blocks {
        return Err(Error::shape(
            "attention gradient cache",
            grad.slots(),
            format!("{} slots", cache.slots()),
        ));
    }
    let (width, kv_width) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    for (what, view) in [("attention q", q), ("attention output", out), ("attention dout", dout)] {
        view.expect(what, count, width, dtype)?;
    }
    dq.expect("attention dq", count, width, dtype)?;
    dk.expect("attention dk", count, kv_width, dtype)?;
    dv.expect("attention dv", count, kv_width, dtype)?;
    segment.rows.expect("attention rows", count, 1, Dtype::U32)?;
    segment.positions.expect("attention positions", count, 1, Dtype::U32)?;
    let statistics = saved.statistics.rows(at)?;
    let columns = Saved::columns(q.device(), sizes.heads);
    statistics.expect("attention saved", count, columns, dtype.accumulation())?;
    match q.device() {
        Device::Cpu(_) => float_dispatch!("attention", dtype, T => {
            let inputs = kernel::BackwardInputs {
                dout: dout.slice::<T>()?,
                q: q.slice()?,
                out: out.slice()?,
                lse: statistics.slice()?,
                keys: cache.k.view().slice()?,
                values: cache.v.view().slice()?,
                detach_cached,
            };
            let (mut keys, mut values) = (grad.k.view_mut(), grad.v.view_mut());
            let grad = (keys.slice()?, values.slice()?);
            let gradients = kernel::Gradients { dq: dq.slice()?, dk: dk.slice()?, dv: dv.slice()? };
            let slots = cache.slots();
            Plan::with(&host(segment)?, slots, |plan| kernel::backward(&sizes, plan, inputs, grad, gradients))?;
        }),
        Device::Gpu(_) if count == 0 => {}
        device @ Device::Gpu(gpu) => {
            let scratch = saved.scratch.as_ref().ok_or_else(|| elsewhere(device))?;
            let gradients = Gradients { dq, dk, dv };
            gpu::backward(&**gpu, inputs, segment, &sizes, grad, (statistics, scratch), gradients)?;
        }
    }
    Ok(())
}

/// The error of a `Saved` that was reserved on the CPU for a computation elsewhere.
fn elsewhere(device: &Device) -> Error {
    Error::device(
        format!("attention's saved statistics are not on {}", device.name()),
        "reserve them on the device that holds the operands",
    )
}

/// The index data, for the CPU arm.
fn host<'a>(segment: &Segment<'a>) -> Result<kernel::Segment<'a>> {
    Ok(kernel::Segment {
        rows: segment.rows.slice()?,
        positions: segment.positions.slice()?,
        prefix_slot: segment.layout.prefix_slot.view().slice()?,
        prefix_len: segment.layout.prefix_len.view().slice()?,
        own_slot: segment.layout.own_slot.view().slice()?,
    })
}
