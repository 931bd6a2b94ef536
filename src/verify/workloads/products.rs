//! Matrix products of a layer and of the head: their operands once, and two operations a multiply-add.

use super::{Make, Setting, Work, moved};
use crate::base::{Dtype, Result};
use crate::ops::linear::{self, Accumulate, Layout, Projection};
use crate::ops::log_probability::{self, Outputs, Saved, Upstream};

pub(super) const LIST: &[(&str, Make)] = &[
    ("linear forward", |s| forward(s, s.positions(), [s.size.width, s.size.hidden], Layout::OutIn)),
    ("linear forward back", |s| forward(s, s.positions(), [s.size.hidden, s.size.width], Layout::InOut)),
    ("linear forward narrow", |s| forward(s, s.positions(), [s.size.hidden, s.size.width], Layout::OutIn)),
    ("linear forward back wide", |s| forward(s, s.positions(), [s.size.width, s.size.hidden], Layout::InOut)),
    ("linear forward step", |s| forward(s, s.sequences, [s.size.width, s.size.hidden], Layout::OutIn)),
    ("linear forward step back", |s| forward(s, s.sequences, [s.size.hidden, s.size.width], Layout::InOut)),
    // Logits are f32.
    ("linear forward head", |s| {
        forward_to(s, s.sequences, [s.size.width, s.size.vocabulary], Layout::OutIn, Dtype::F32)
    }),
    ("linear backward dx", |s| backward(s, s.size.hidden, [true, false, false])),
    ("linear backward dw", |s| backward(s, s.size.hidden, [false, true, false])),
    ("linear backward dw narrow", |s| backward(s, s.size.width, [false, true, false])),
    ("linear backward bias", |s| backward(s, s.size.hidden, [false, false, true])),
    ("log_probability forward", |s| {
        let (n, mut head) = (s.positions(), Head::new(s)?);
        let mut out = s.zeros(n, 1, Dtype::F32)?;
        let bytes = moved(&[&head.h, &head.w, &head.targets, &out]) + 12 * n;
        Work::multiplying(bytes, 2 * n * head.w.shape().elements(), move || {
            let Head { h, w, targets, saved } = &mut head;
            let inputs =
                log_probability::Inputs { h: h.view(), w, targets: targets.view(), inverse_temperature: 1.0 };
            let out = Outputs { log_probability: out.view_mut(), entropy: None };
            log_probability::forward(&inputs, out, saved, 0..n)
        })
    }),
    ("log_probability backward", |s| {
        let (n, mut head) = (s.positions(), Head::new(s)?);
        let upstream = s.normal("upstream", [n, 1], Dtype::F32, 1.0)?;
        let mut dh = s.blank(n, s.size.width)?;
        let mut dw = s.zeros(s.size.vocabulary, s.size.width, Dtype::F32)?;
        let bytes = moved(&[&head.h, &head.w, &head.targets, &upstream, &dh, &dw, &dw]) + 12 * n;
        // Logits again, dh and dw.
        Work::multiplying(bytes, 6 * n * head.w.shape().elements(), move || {
            let Head { h, w, targets, saved } = &mut head;
            let inputs =
                log_probability::Inputs { h: h.view(), w, targets: targets.view(), inverse_temperature: 1.0 };
            let upstream = Upstream { d_log_probability: upstream.view(), d_entropy: None };
            log_probability::backward(
                &upstream,
                &inputs,
                saved,
                0..n,
                dh.view_mut(),
                Some((&mut dw, Accumulate::Add)),
            )
        })
    }),
];

fn shape(layout: Layout, [inputs, outputs]: [usize; 2]) -> [usize; 2] {
    match layout {
        Layout::OutIn => [outputs, inputs],
        Layout::InOut => [inputs, outputs],
    }
}

fn forward(s: &Setting, rows: usize, sizes: [usize; 2], layout: Layout) -> Result<Work> {
    forward_to(s, rows, sizes, layout, s.dtype)
}

fn forward_to(s: &Setting, rows: usize, sizes: [usize; 2], layout: Layout, result: Dtype) -> Result<Work> {
    let ([inputs, outputs], [wide, deep]) = (sizes, shape(layout, sizes));
    let (x, w, mut y) =
        (s.activations("x", rows, inputs)?, s.matrix("w", wide, deep)?, s.zeros(rows, outputs, result)?);
    let projection = Projection::whole(layout, inputs, outputs);
    Work::multiplying(moved(&[&x, &w, &y]), 2 * rows * inputs * outputs, move || {
        linear::forward(x.view(), &projection, &w, None, y.view_mut())
    })
}

/// dx, dw, dbias of a layer's product: those that are wanted.
fn backward(s: &Setting, outputs: usize, [wants_dx, wants_dw, wants_bias]: [bool; 3]) -> Result<Work> {
    let (n, inputs) = (s.positions(), s.size.width);
    let (x, dy) = (s.activations("x", n, inputs)?, s.activations("dy", n, outputs)?);
    let (w, mut dx) = (s.matrix("w", outputs, inputs)?, s.blank(n, inputs)?);
    let (mut dw, mut dbias) = (s.zeros(outputs, inputs, Dtype::F32)?, s.vector("dbias", outputs)?);
    let projection = Projection::whole(Layout::OutIn, inputs, outputs);
    let product = 2 * n * inputs * outputs;
    let (bytes, flops) = match (wants_dx, wants_dw) {
        (true, _) => (moved(&[&dy, &w, &dx]), product),
        (_, true) => (moved(&[&dy, &x, &dw, &dw]), product),
        _ => (moved(&[&dy, &dbias, &dbias]), 0),
    };
    Work::multiplying(bytes, flops, move || {
        let gradients = linear::Gradients {
            dx: wants_dx.then(|| (dx.view_mut(), Accumulate::Assign)),
            dw: wants_dw.then_some((&mut dw, Accumulate::Add)),
            dbias: wants_bias.then_some(&mut dbias),
        };
        linear::backward(dy.view(), x.view(), &projection, &w, gradients)
    })
}

/// The output head and what it scores.
struct Head {
    h: crate::ops::Tensor,
    w: crate::ops::Tensor,
    targets: crate::ops::Tensor,
    saved: Saved,
}

impl Head {
    fn new(s: &Setting) -> Result<Head> {
        let (n, head) = (s.positions(), [s.size.vocabulary, s.size.width]);
        Ok(Head {
            h: s.activations("h", n, s.size.width)?,
            w: s.matrix("w", head[0], head[1])?,
            targets: s.column(n, |at| s.token(at) as u32)?,
            saved: Saved::reserve_to_differentiate(s.device, n, head, s.dtype)?,
        })
    }
}
