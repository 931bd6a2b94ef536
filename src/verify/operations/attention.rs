//! Gradient checks of ops/attention.rs: rows in mixed order, a prefix that two rows share and that ends inside a
//! block, and several segments, differentiated in reverse.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::attention::{self, BackwardInputs, Geometry, Gradients, Inputs, Saved, Segment};
use crate::ops::kv_cache::{CacheLayout, CacheSpan, KvCache};
use crate::ops::{Tensor, View};
use crate::verify::gradient::{Case, Variable, normals};
use std::ops::Range;

/// Grouped heads and odd dimensions through all segments, attached and detached; one head of one dimension.
pub fn cases() -> Vec<Case<'static>> {
    let grouped = Geometry { heads: 3, kv_heads: 1, head_dim: 5, scale: 0.4 };
    let paired = Geometry { heads: 4, kv_heads: 2, head_dim: 16, scale: 0.25 };
    let smallest = Geometry { heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0 };
    vec![
        attached("attention 3:1 heads of 5", Run::shared_prefix(grouped)),
        attached("attention 4:2 heads of 16", Run::shared_prefix(paired)),
        attached("attention 1:1 heads of 1", Run::shared_prefix(smallest)),
        detached("attention detached", Run::shared_prefix(grouped)),
    ]
}

/// Rows laid out in a cache and the segments that compute them.
struct Run {
    geometry: Geometry,
    spans: Vec<CacheSpan>,
    slots: usize,
    /// (row, position) of each packed position.
    segments: Vec<Vec<(u32, u32)>>,
}

impl Run {
    /// Row 0 is a prompt of 70 positions that rows 1 and 2 continue; row 3 stands alone. Prompts, two single
    /// steps, then answers in one packed segment.
    fn shared_prefix(geometry: Geometry) -> Run {
        let (prompt, free) = CacheSpan::after(0, 0, 0, 70);
        let (first, free) = CacheSpan::after(free, prompt.own_slot, 70, 70);
        let (second, free) = CacheSpan::after(free, prompt.own_slot, 70, 6);
        let (alone, slots) = CacheSpan::after(free, 0, 0, 12);
        let mut prompts: Vec<(u32, u32)> = (0..70).map(|p| (0, p)).collect();
        for p in 0..4 {
            prompts.insert(9 * p as usize + 2, (3, p));
        }
        let mut answers: Vec<(u32, u32)> = (72..130).map(|p| (1, p)).collect();
        answers.splice(3..3, [(2, 72), (3, 6), (2, 73)]);
        answers.splice(20..20, [(3, 7), (2, 74)]);
        let steps = |n: u32| vec![(2, 70 + n), (3, 4 + n), (1, 70 + n)];
        Run {
            geometry,
            spans: vec![prompt, first, second, alone],
            slots,
            segments: vec![prompts, steps(0), steps(1), answers],
        }
    }

    fn positions(&self) -> usize {
        self.segments.iter().map(Vec::len).sum()
    }

    fn width(&self) -> usize {
        self.geometry.heads * self.geometry.head_dim
    }

    fn kv_width(&self) -> usize {
        self.geometry.kv_heads * self.geometry.head_dim
    }

    fn variables(&self, name: &str) -> Vec<Variable> {
        [("q", self.width()), ("k", self.kv_width()), ("v", self.kv_width())]
            .map(|(stem, width)| Variable {
                name: stem.into(),
                values: normals(&format!("{name} {stem}"), self.positions() * width),
            })
            .into()
    }
}

/// Tensors of one run: everything by packed position, segments one after the other.
struct Tape {
    device: Device,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    rows: Tensor,
    positions: Tensor,
    layout: CacheLayout,
    cache: KvCache,
    saved: Saved,
}

impl Tape {
    fn new(run: &Run, point: &[Vec<f64>], dtype: Dtype) -> Result<Tape> {
        let device = Device::cpu();
        let (count, width, kv_width) = (run.positions(), run.width(), run.kv_width());
        let index = |f: fn(&(u32, u32)) -> u32| {
            let data: Vec<u32> = run.segments.iter().flatten().map(f).collect();
            Tensor::from_host(&device, [count, 1], &data)
        };
        Ok(Tape {
            q: tensor(&device, [count, width], &point[0], dtype)?,
            k: tensor(&device, [count, kv_width], &point[1], dtype)?,
            v: tensor(&device, [count, kv_width], &point[2], dtype)?,
            out: Tensor::zeros(&device, [count, width], dtype)?,
            rows: index(|p| p.0)?,
            positions: index(|p| p.1)?,
            layout: CacheLayout::new(&device, &run.spans)?,
            cache: KvCache::zeros(&device, &run.geometry, run.slots, dtype)?,
            saved: Saved::reserve(&device, count, run.geometry.heads, dtype)?,
            device,
        })
    }

    /// Forward of the packed positions `at`.
    fn forward(&mut self, run: &Run, at: Range<usize>) -> Result<()> {
        let segment = Segment {
            rows: self.rows.rows(at.clone())?,
            positions: self.positions.rows(at.clone())?,
            geometry: &run.geometry,
            layout: &self.layout,
        };
        let inputs =
            Inputs { q: self.q.rows(at.clone())?, k: self.k.rows(at.clone())?, v: self.v.rows(at.clone())? };
        let out = self.out.rows_mut(at.clone())?;
        attention::forward(inputs, &segment, &mut self.cache, out, &mut self.saved, at)
    }

    /// Gradients of q, k and v for `dout`, segments in reverse.
    fn backward(&self, run: &Run, dout: View, detach_cached: bool) -> Result<Vec<Vec<f64>>> {
        let like = |t: &Tensor| Tensor::zeros(&self.device, t.shape(), t.dtype());
        let (mut dq, mut dk, mut dv) = (like(&self.q)?, like(&self.k)?, like(&self.v)?);
        let mut grad = KvCache::zeros(&self.device, &run.geometry, run.slots, self.q.dtype())?;
        let mut end = run.positions();
        for segment in run.segments.iter().rev() {
            let at = end - segment.len()..end;
            end = at.start;
            let inputs = BackwardInputs {
                dout: dout.rows(at.clone())?,
                q: self.q.rows(at.clone())?,
                out: self.out.rows(at.clone())?,
                cache: &self.cache,
                detach_cached,
            };
            let segment = Segment {
                rows: self.rows.rows(at.clone())?,
                positions: self.positions.rows(at.clone())?,
                geometry: &run.geometry,
                layout: &self.layout,
            };
            let gradients = Gradients {
                dq: dq.rows_mut(at.clone())?,
                dk: dk.rows_mut(at.clone())?,
                dv: dv.rows_mut(at.clone())?,
            };
            attention::backward(inputs, &segment, &mut grad, &self.saved, at, gradients)?;
        }
        Ok(vec![values(dq.view())?, values(dk.view())?, values(dv.view())?])
    }
}

fn gradient(
    run: &Run,
    point: &[Vec<f64>],
    dtype: Dtype,
    dout: &[f64],
    detach: bool,
) -> Result<Vec<Vec<f64>>> {
    let mut tape = Tape::new(run, point, dtype)?;
    let mut start = 0;
    for segment in &run.segments {
        tape.forward(run, start..start + segment.len())?;
        start += segment.len();
    }
    let dout = tensor(&tape.device, [run.positions(), run.width()], dout, dtype)?;
    tape.backward(run, dout.view(), detach)
}

fn attached(name: &str, run: Run) -> Case<'static> {
    let c = normals(&format!("{name} dout"), run.positions() * run.width());
    let (run, weights) = (std::rc::Rc::new(run), c.clone());
    Case {
        name: name.into(),
        variables: run.variables(name),
        loss: {
            let run = run.clone();
            Box::new(move |point| {
                let mut tape = Tape::new(&run, point, Dtype::F64)?;
                let mut start = 0;
                for segment in &run.segments {
                    tape.forward(&run, start..start + segment.len())?;
                    start += segment.len();
                }
                Ok(dot(&values(tape.out.view())?, &weights))
            })
        },
        gradient: Box::new(move |point, dtype| gradient(&run, point, dtype, &c, false)),
    }
}

/// The loss that `detach_cached` differentiates: each segment runs over a cache that earlier segments filled with
/// the constants of the point of evaluation.
fn detached(name: &str, run: Run) -> Case<'static> {
    let c = normals(&format!("{name} dout"), run.positions() * run.width());
    let (run, weights) = (std::rc::Rc::new(run), c.clone());
    let variables = run.variables(name);
    let constants: Vec<Vec<f64>> = variables.iter().map(|v| v.values.clone()).collect();
    Case {
        name: name.into(),
        variables,
        loss: {
            let run = run.clone();
            Box::new(move |point| {
                let (mut loss, mut start) = (0.0, 0);
                let width = run.width();
                let mut fixed = Tape::new(&run, &constants, Dtype::F64)?;
                let mut moved = Tape::new(&run, point, Dtype::F64)?;
                for segment in &run.segments {
                    let at = start..start + segment.len();
                    std::mem::swap(&mut fixed.cache, &mut moved.cache);
                    moved.forward(&run, at.clone())?;
                    std::mem::swap(&mut fixed.cache, &mut moved.cache);
                    // The same slots again, now with the constants.
                    fixed.forward(&run, at.clone())?;
                    let out = values(moved.out.rows(at.clone())?)?;
                    loss += dot(&out, &weights[at.start * width..at.end * width]);
                    start = at.end;
                }
                Ok(loss)
            })
        },
        gradient: Box::new(move |point, dtype| gradient(&run, point, dtype, &c, true)),
    }
}
