//! Attention: whole sequences forward and backward, and one position of each row of a group behind a shared prompt.

use super::{Make, Setting, Size, Work, moved};
use crate::base::Result;
use crate::ops::Tensor;
use crate::ops::attention::{self, BackwardInputs, Geometry, Gradients, Inputs, Saved, Segment};
use crate::ops::kv_cache::{CacheLayout, CacheSpan, KvCache};

pub(super) const LIST: &[(&str, Make)] = &[
    ("attention forward", forward),
    ("attention forward of heads of 128", |s| forward(&of_heads(s, 128))),
    ("attention forward of heads of 80", |s| forward(&of_heads(s, 80))),
    ("attention forward of heads of 256", |s| forward(&of_heads(s, 256))),
    ("attention backward", backward),
    ("attention backward of heads of 128", |s| backward(&of_heads(s, 128))),
    ("attention backward of heads of 80", |s| backward(&of_heads(s, 80))),
    ("attention backward of heads of 256", |s| backward(&of_heads(s, 256))),
    ("attention step", step),
    ("attention step of heads of 128", |s| step(&of_heads(s, 128))),
    ("attention step of heads of 80", |s| step(&of_heads(s, 80))),
    ("attention step of heads of 256", |s| step(&of_heads(s, 256))),
];

/// The same model with heads of another width: as many as fit its own, and as many of them for each head of keys and
/// values as it has.
fn of_heads<'a>(s: &Setting<'a>, head_dim: usize) -> Setting<'a> {
    let [heads, kv_heads] = s.size.heads;
    let count = s.size.width / head_dim;
    let kv_count = (count * kv_heads / heads).max(1);
    let size = Size { heads: [count / kv_count * kv_count, kv_count], head_dim, ..s.size };
    Setting { size, ..*s }
}

fn forward(s: &Setting) -> Result<Work> {
    let mut attention = Attention::whole(s)?;
    let [q, k, v] = &attention.x;
    // New keys and values are read, written to the cache, and read there.
    let bytes = moved(&[q, k, k, k, v, v, v, &attention.out]);
    let flops = 4 * attention.pairs(s);
    Work::multiplying(bytes, flops, move || attention.forward())
}

fn backward(s: &Setting) -> Result<Work> {
    let mut attention = Attention::whole(s)?;
    let [q, k, v] = &attention.x;
    // q, out, dout and the cache are read; dq, dk, dv written.
    let bytes = moved(&[q, q, &attention.out, k, v, q, k, v]);
    let flops = 10 * attention.pairs(s);
    // The plan of a forward call is what the backward call reads.
    attention.forward()?;
    Work::multiplying(bytes, flops, move || attention.backward())
}

fn step(s: &Setting) -> Result<Work> {
    let mut attention = Attention::step(s)?;
    let [q, k, v] = &attention.x;
    let kv_bytes = 2 * s.size.heads[1] * s.size.head_dim * s.dtype.size();
    let keys = SHARED + s.sequences * (KEYS - SHARED);
    let bytes = moved(&[q, k, v, &attention.out]) + keys * kv_bytes;
    let pairs = s.sequences * KEYS * s.size.heads[0] * s.size.head_dim;
    Work::multiplying(bytes, 4 * pairs, move || attention.forward())
}

/// Keys that a step's query sees.
const KEYS: usize = 1024;

/// Those of them that the group shares.
const SHARED: usize = KEYS - 64;

/// A packed segment and everything that attention over it touches.
struct Attention {
    geometry: Geometry,
    x: [Tensor; 3],
    out: Tensor,
    dout: Tensor,
    gradients: [Tensor; 3],
    rows: Tensor,
    positions: Tensor,
    layout: CacheLayout,
    cache: KvCache,
    grad: KvCache,
    saved: Saved,
}

impl Attention {
    /// All positions of all sequences, nothing shared.
    fn whole(s: &Setting) -> Result<Attention> {
        let (mut spans, mut free) = (Vec::new(), 0);
        for _ in 0..s.sequences {
            let (span, next) = CacheSpan::after(free, 0, 0, s.length);
            spans.push(span);
            free = next;
        }
        let at = |at: usize| ((at / s.length) as u32, (at % s.length) as u32);
        Attention::new(s, &spans, free, s.positions(), at)
    }

    /// The position after the last cached one of each row.
    fn step(s: &Setting) -> Result<Attention> {
        let (prompt, mut free) = CacheSpan::after(0, 0, 0, SHARED);
        let mut spans = vec![prompt];
        for _ in 0..s.sequences {
            let (span, next) = CacheSpan::after(free, prompt.own_slot, SHARED, KEYS - SHARED);
            spans.push(span);
            free = next;
        }
        Attention::new(s, &spans, free, s.sequences, |at| (at as u32 + 1, KEYS as u32 - 1))
    }

    fn new(
        s: &Setting,
        spans: &[CacheSpan],
        slots: usize,
        n: usize,
        at: impl Fn(usize) -> (u32, u32),
    ) -> Result<Attention> {
        let [heads, kv_heads] = s.size.heads;
        let head_dim = s.size.head_dim;
        let geometry = Geometry { heads, kv_heads, head_dim, scale: (head_dim as f64).powf(-0.5) };
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        Ok(Attention {
            geometry,
            x: [
                s.activations("q", n, width)?,
                s.activations("k", n, kv_width)?,
                s.activations("v", n, kv_width)?,
            ],
            out: s.blank(n, width)?,
            dout: s.activations("dout", n, width)?,
            gradients: [s.blank(n, width)?, s.blank(n, kv_width)?, s.blank(n, kv_width)?],
            rows: s.column(n, |place| at(place).0)?,
            positions: s.column(n, |place| at(place).1)?,
            layout: CacheLayout::new(s.device, spans)?,
            cache: KvCache::zeros(s.device, &geometry, slots, s.dtype)?,
            grad: KvCache::zeros(s.device, &geometry, slots, s.dtype.accumulation())?,
            saved: Saved::reserve(s.device, n, heads, s.dtype)?,
        })
    }

    /// Products of a query's and a key's numbers, over all pairs that are seen.
    fn pairs(&self, s: &Setting) -> usize {
        let Geometry { heads, head_dim, .. } = self.geometry;
        s.sequences * s.length * (s.length + 1) / 2 * heads * head_dim
    }

    fn forward(&mut self) -> Result<()> {
        let Attention { geometry, x: [q, k, v], out, rows, positions, layout, cache, saved, .. } = self;
        let segment = Segment { rows: rows.view(), positions: positions.view(), geometry, layout };
        let inputs = Inputs { q: q.view(), k: k.view(), v: v.view() };
        let at = 0..q.view().count();
        attention::forward(inputs, &segment, cache, out.view_mut(), saved, at)
    }

    fn backward(&mut self) -> Result<()> {
        let Attention { geometry, x: [q, ..], out, dout, gradients, rows, positions, layout, .. } = self;
        let segment = Segment { rows: rows.view(), positions: positions.view(), geometry, layout };
        let (dout, q) = (dout.view(), q.view());
        let cache = &self.cache;
        let inputs = BackwardInputs { dout, q, out: out.view(), cache, detach_cached: false };
        let [dq, dk, dv] = gradients;
        let gradients = Gradients { dq: dq.view_mut(), dk: dk.view_mut(), dv: dv.view_mut() };
        attention::backward(inputs, &segment, &mut self.grad, &self.saved, 0..q.count(), gradients)
    }
}
