//! Operations over rows of the residual stream and of the MLP: bound by memory.

use super::{Make, Setting, Work, moved};
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};
use crate::ops::mask::{self, MaskKey, MaskSet, SiteKind, Sites};
use crate::ops::residual_norm::{self, Norm, NormGradients};
use crate::ops::rope::{self, RopeTable, Scaling, inverse_frequencies};
use crate::ops::scatter::Order;
use crate::ops::{Tensor, View};
use crate::ops::{
    cast, elementwise, gated_mixture, gather, gelu, latent, layernorm, masked_residual, random, rmsnorm,
    smooth_l1, swiglu,
};

pub(super) const LIST: &[(&str, Make)] = &[
    ("rmsnorm forward", |s| {
        let (n, d) = (s.positions(), s.size.width);
        let (x, w, mut y) = (s.activations("x", n, d)?, s.vector("w", d)?, s.blank(n, d)?);
        let mut saved = rmsnorm::Saved::reserve(s.device, n, d, s.dtype)?;
        Work::moving(moved(&[&x, &w, &y]) + 4 * n, move || {
            rmsnorm::forward(x.view(), &w, EPS, y.view_mut(), &mut saved, 0..n)
        })
    }),
    ("rmsnorm backward", |s| {
        let (n, d) = (s.positions(), s.size.width);
        let (x, w, dy) = (s.activations("x", n, d)?, s.vector("w", d)?, s.activations("dy", n, d)?);
        let (mut dx, mut dw) = (s.blank(n, d)?, s.vector("dw", d)?);
        let saved = rmsnorm::Saved::reserve(s.device, n, d, s.dtype)?;
        Work::moving(moved(&[&x, &w, &dy, &dx, &dw, &dw]) + 4 * n, move || {
            rmsnorm::backward(dy.view(), x.view(), &w, &saved, 0..n, dx.view_mut(), &mut dw)
        })
    }),
    ("layernorm forward", |s| {
        let (n, d) = (s.positions(), s.size.width);
        let (x, w, b, mut y) =
            (s.activations("x", n, d)?, s.vector("w", d)?, s.vector("b", d)?, s.blank(n, d)?);
        let mut saved = layernorm::Saved::reserve(s.device, n, d, s.dtype)?;
        Work::moving(moved(&[&x, &w, &b, &y]) + 8 * n, move || {
            layernorm::forward(x.view(), (&w, &b), EPS, y.view_mut(), &mut saved, 0..n)
        })
    }),
    ("layernorm backward", |s| {
        let (n, d) = (s.positions(), s.size.width);
        let (x, w, dy) = (s.activations("x", n, d)?, s.vector("w", d)?, s.activations("dy", n, d)?);
        let (mut dx, mut dw, mut db) = (s.blank(n, d)?, s.vector("dw", d)?, s.vector("db", d)?);
        let saved = layernorm::Saved::reserve(s.device, n, d, s.dtype)?;
        Work::moving(moved(&[&x, &w, &dy, &dx, &dw, &dw, &db, &db]) + 8 * n, move || {
            let gradients = layernorm::Gradients { dw: &mut dw, db: &mut db };
            layernorm::backward(dy.view(), x.view(), &w, &saved, 0..n, dx.view_mut(), gradients)
        })
    }),
    ("residual_norm forward rms", |s| residual_norm_forward(s, false)),
    ("residual_norm backward rms", |s| residual_norm_backward(s, false)),
    ("residual_norm forward layer", |s| residual_norm_forward(s, true)),
    ("residual_norm backward layer", |s| residual_norm_backward(s, true)),
    ("masked_residual forward", |s| {
        let (n, d) = (s.positions(), s.size.width);
        let (x, branch, mut y) = (s.activations("x", n, d)?, s.activations("branch", n, d)?, s.blank(n, d)?);
        let (set, instances) = masks(s)?;
        Work::moving(moved(&[&x, &branch, &y, &instances]) + mask_bytes(s), move || {
            let mask = set.at(SiteKind::MlpOut, 0, instances.view());
            masked_residual::forward(x.view(), branch.view(), mask, y.view_mut())
        })
    }),
    ("masked_residual backward", |s| {
        let (n, d) = (s.positions(), s.size.width);
        let (dy, mut dbranch) = (s.activations("dy", n, d)?, s.blank(n, d)?);
        let (set, instances) = masks(s)?;
        Work::moving(moved(&[&dy, &dbranch, &instances]) + mask_bytes(s), move || {
            let mask = set.at(SiteKind::MlpOut, 0, instances.view());
            masked_residual::backward(dy.view(), mask, dbranch.view_mut())
        })
    }),
    ("mask fill", |s| {
        let sites = sites(s, s.size.layers);
        let mut set = MaskSet::reserve(s.device, sites, 0.1, s.sequences)?;
        let keys: Vec<MaskKey> = (0..s.sequences).map(mask_key).collect();
        Work::moving(moved(&[set.bits()]) + 16 * s.sequences, move || set.draw(&keys))
    }),
    ("mask apply", |s| {
        let (set, instances) = masks(s)?;
        let mut x = s.activations("x", s.positions(), s.size.width)?;
        Work::moving(moved(&[&x, &x, &instances]) + mask_bytes(s), move || {
            match set.at(SiteKind::MlpOut, 0, instances.view()) {
                Some(at) => mask::apply(x.view_mut(), at),
                None => Ok(()),
            }
        })
    }),
    ("rope forward", |s| {
        let (heads, n) = (s.size.heads[0], s.positions());
        let mut x = s.activations("x", n, heads * s.size.head_dim)?;
        let positions = s.column(n, |at| (at % s.length) as u32)?;
        let table = rope_table(s)?;
        let angles = s.length * s.size.head_dim * 4;
        Work::moving(moved(&[&x, &x, &positions]) + angles, move || {
            rope::forward(x.view_mut(), heads, positions.view(), &table)
        })
    }),
    ("rope backward", |s| {
        let (heads, n) = (s.size.heads[1], s.positions());
        let mut dx = s.activations("dx", n, heads * s.size.head_dim)?;
        let positions = s.column(n, |at| (at % s.length) as u32)?;
        let table = rope_table(s)?;
        let angles = s.length * s.size.head_dim * 4;
        Work::moving(moved(&[&dx, &dx, &positions]) + angles, move || {
            rope::backward(dx.view_mut(), heads, positions.view(), &table)
        })
    }),
    ("gelu forward", |s| {
        let (x, mut y) = (hidden(s, "x")?, s.blank(s.positions(), s.size.hidden)?);
        Work::moving(moved(&[&x, &y]), move || gelu::forward(x.view(), y.view_mut()))
    }),
    ("gelu backward", |s| {
        let (dy, x, mut dx) = (hidden(s, "dy")?, hidden(s, "x")?, s.blank(s.positions(), s.size.hidden)?);
        Work::moving(moved(&[&dy, &x, &dx]), move || gelu::backward(dy.view(), x.view(), dx.view_mut()))
    }),
    ("swiglu forward", |s| {
        let (gate, up, mut y) =
            (hidden(s, "gate")?, hidden(s, "up")?, s.blank(s.positions(), s.size.hidden)?);
        Work::moving(moved(&[&gate, &up, &y]), move || swiglu::forward(gate.view(), up.view(), y.view_mut()))
    }),
    ("swiglu backward", |s| {
        let (dy, gate, up) = (hidden(s, "dy")?, hidden(s, "gate")?, hidden(s, "up")?);
        let (mut dgate, mut dup) = (s.blank(s.positions(), s.size.hidden)?, hidden(s, "dup")?);
        Work::moving(moved(&[&dy, &gate, &up, &dgate, &dup]), move || {
            swiglu::backward(dy.view(), gate.view(), up.view(), dgate.view_mut(), dup.view_mut())
        })
    }),
    ("elementwise add", |s| {
        let (x, mut y) = (stream(s, "x")?, stream(s, "y")?);
        Work::moving(moved(&[&x, &y, &y]), move || elementwise::add(x.view(), y.view_mut()))
    }),
    ("elementwise scale", |s| {
        let mut y = stream(s, "y")?;
        Work::moving(moved(&[&y, &y]), move || elementwise::scale(y.view_mut(), 0.5))
    }),
    ("cast to bf16", |s| casts(s, Dtype::F32, Dtype::Bf16)),
    ("cast to f32", |s| casts(s, Dtype::Bf16, Dtype::F32)),
    ("gather forward", |s| {
        let n = s.positions();
        let (x, index, mut y) = (stream(s, "x")?, every_second(s)?, s.blank(n / 2, s.size.width)?);
        Work::moving(moved(&[&y, &y, &index]), move || gather::forward(x.view(), index.view(), y.view_mut()))
    }),
    ("gather backward", |s| {
        let n = s.positions();
        let (dy, index) = (s.activations("dy", n / 2, s.size.width)?, every_second(s)?);
        let (mut dx, mut order) = (stream(s, "dx")?, Order::reserve(s.device, n)?);
        Work::moving(moved(&[&dy, &dy, &dy, &index]), move || {
            gather::backward(dy.view(), index.view(), dx.view_mut(), &mut order)
        })
    }),
    ("latent forward", |s| {
        let (n, d) = (s.sequences, s.size.width);
        let (hidden, rows) = (s.activations("hidden", n, d)?, s.column(n, |at| at as u32)?);
        let (ids, mut x) = (s.column(n, |_| -1)?, s.blank(n, d)?);
        Work::moving(moved(&[&hidden, &rows, &ids, &x]), move || {
            latent::forward(hidden.view(), rows.view(), ids.view(), None, x.view_mut())
        })
    }),
    ("latent backward", |s| {
        let (n, d) = (s.sequences, s.size.width);
        let (dx, ids) = (s.activations("dx", n, d)?, s.column(n, |_| -1)?);
        let (source, mut dhidden) = (s.column(n, |at| at as i32)?, s.activations("dhidden", n, d)?);
        let mut order = Order::reserve(s.device, n)?;
        Work::moving(moved(&[&dx, &ids, &source, &dhidden, &dhidden]), move || {
            latent::backward(dx.view(), ids.view(), source.view(), None, dhidden.view_mut(), &mut order)
        })
    }),
    ("latent store", |s| {
        let (n, d) = (s.sequences, s.size.width);
        let (hidden, rows) = (s.activations("hidden", n, d)?, s.column(n, |at| at as u32)?);
        let (last, mut feedback) = (s.column(n, |_| 1_u32)?, s.blank(n, d)?);
        Work::moving(moved(&[&hidden, &rows, &last, &feedback]), move || {
            latent::store(hidden.view(), rows.view(), last.view(), feedback.view_mut())
        })
    }),
    ("latent noise", |s| {
        let (n, d) = (s.sequences, s.size.width);
        let keys: Vec<u32> = (0..3 * n as u32).collect();
        let (mut x, keys) = (s.activations("x", n, d)?, Tensor::from_host(s.device, [n, 3], &keys)?);
        Work::moving(moved(&[&x, &x, &keys]), move || random::add_normal(x.view_mut(), keys.view(), 0.1))
    }),
    ("normal numbers", |s| {
        let mut x = s.blank(s.positions(), s.size.width)?;
        let key = StreamKey::new(1, 0, 0, 0, Purpose::Init);
        Work::moving(moved(&[&x]), move || random::normal(&mut x, key, 0.02))
    }),
    ("gated_mixture forward", |s| {
        let gates = Gates::new(s)?;
        let mut x = stream(s, "x")?;
        Work::moving(gates.bytes() + moved(&[&x]), move || {
            gated_mixture::forward(&gates.inputs(), x.view_mut())
        })
    }),
    ("gated_mixture backward", |s| {
        let (n, d) = (s.positions(), s.size.width);
        let (gates, dx) = (Gates::new(s)?, stream(s, "dx")?);
        let [mut dtoken, mut dreset, mut dinput] = [s.blank(n, d)?, s.blank(n, d)?, s.blank(n, d)?];
        let (mut terms, mut dlambda) = (s.zeros(n, d, Dtype::F32)?, s.vector("dlambda", d)?);
        // The terms are handed out by the caller, and written and read once.
        let out = moved(&[&dtoken, &dreset, &dinput, &terms, &terms, &dlambda, &dlambda]);
        Work::moving(gates.bytes() + moved(&[&dx]) + out, move || {
            let out = gated_mixture::Gradients {
                dtoken: dtoken.view_mut(),
                dreset: dreset.view_mut(),
                dinput: dinput.view_mut(),
                terms: terms.view_mut(),
                dlambda: &mut dlambda,
            };
            gated_mixture::backward(dx.view(), &gates.inputs(), out)
        })
    }),
    ("smooth_l1 forward", |s| {
        let (x, target) = (stream(s, "x")?, stream(s, "target")?);
        let mut statistics = s.zeros(s.positions(), 3, Dtype::F32)?;
        Work::moving(moved(&[&x, &target, &statistics]), move || {
            smooth_l1::forward(x.view(), target.view(), 1.0, statistics.view_mut())
        })
    }),
    ("smooth_l1 backward", |s| {
        let (x, target, mut dx) = (stream(s, "x")?, stream(s, "target")?, stream(s, "dx")?);
        Work::moving(moved(&[&x, &target, &dx]), move || {
            smooth_l1::backward(x.view(), target.view(), 1.0, 0.5, dx.view_mut())
        })
    }),
];

const EPS: f64 = 1e-6;

fn stream(s: &Setting, name: &str) -> Result<Tensor> {
    s.activations(name, s.positions(), s.size.width)
}

fn hidden(s: &Setting, name: &str) -> Result<Tensor> {
    s.activations(name, s.positions(), s.size.hidden)
}

fn every_second(s: &Setting) -> Result<Tensor> {
    s.column(s.positions() / 2, |at| 2 * at as u32)
}

fn rope_table(s: &Setting) -> Result<RopeTable> {
    let frequencies = inverse_frequencies(s.size.head_dim, 10_000.0, Scaling::None)?;
    RopeTable::new(s.device, &frequencies, s.length, s.dtype.accumulation())
}

fn casts(s: &Setting, from: Dtype, to: Dtype) -> Result<Work> {
    let (n, d) = (s.positions(), s.size.width);
    let (x, mut y) = (s.normal("x", [n, d], from, 1.0)?, s.zeros(n, d, to)?);
    Work::moving(moved(&[&x, &y]), move || cast::cast(x.view(), y.view_mut()))
}

fn sites(s: &Setting, layers: usize) -> Sites {
    Sites::new(s.size.width, s.size.hidden, layers, &[SiteKind::AttnOut, SiteKind::MlpOut])
}

fn mask_key(row: usize) -> MaskKey {
    MaskKey { stream: StreamKey::new(3, 0, 0, row as u32, Purpose::Mask), step: 0, attempt: 0 }
}

/// One mask a sequence, and the instance of each packed position.
fn masks(s: &Setting) -> Result<(MaskSet, Tensor)> {
    let keys: Vec<MaskKey> = (0..s.sequences).map(mask_key).collect();
    let set = MaskSet::fill(s.device, sites(s, 1), 0.1, &keys)?;
    Ok((set, s.column(s.positions(), |at| (at / s.length) as i32)?))
}

/// Bytes of the bitmaps of one site.
fn mask_bytes(s: &Setting) -> usize {
    s.sequences * s.size.width.div_ceil(32) * 4
}

fn residual_norm_forward(s: &Setting, layer: bool) -> Result<Work> {
    let (n, d) = (s.positions(), s.size.width);
    let (x, branch) = (stream(s, "x")?, stream(s, "branch")?);
    let (w, b, mut y, mut normed) = (s.vector("w", d)?, s.vector("b", d)?, s.blank(n, d)?, s.blank(n, d)?);
    let (set, instances) = masks(s)?;
    let mut rms = rmsnorm::Saved::reserve(s.device, n, d, s.dtype)?;
    let mut full = layernorm::Saved::reserve(s.device, n, d, s.dtype)?;
    let vectors = if layer { moved(&[&w, &b]) + 8 * n } else { moved(&[&w]) + 4 * n };
    let bytes = moved(&[&x, &branch, &y, &normed, &instances]) + mask_bytes(s) + vectors;
    Work::moving(bytes, move || {
        let norm = match layer {
            true => Norm::Layer { w: &w, b: &b, saved: &mut full },
            false => Norm::Rms { w: &w, saved: &mut rms },
        };
        let mask = set.at(SiteKind::MlpOut, 0, instances.view());
        let out = (y.view_mut(), normed.view_mut());
        residual_norm::forward((x.view(), branch.view()), mask, norm, EPS, out, 0..n)
    })
}

fn residual_norm_backward(s: &Setting, layer: bool) -> Result<Work> {
    let (n, d) = (s.positions(), s.size.width);
    let (dnormed, y, mut dy) = (stream(s, "dnormed")?, stream(s, "y")?, stream(s, "dy")?);
    let (w, mut dbranch) = (s.vector("w", d)?, s.blank(n, d)?);
    let (mut dw, mut db) = (s.vector("dw", d)?, s.vector("db", d)?);
    let (set, instances) = masks(s)?;
    let rms = rmsnorm::Saved::reserve(s.device, n, d, s.dtype)?;
    let full = layernorm::Saved::reserve(s.device, n, d, s.dtype)?;
    let vectors = moved(&[&w, &dw, &dw]) + if layer { moved(&[&db, &db]) + 8 * n } else { 4 * n };
    let bytes = moved(&[&dnormed, &y, &dy, &dy, &dbranch, &instances]) + mask_bytes(s) + vectors;
    Work::moving(bytes, move || {
        let norm = match layer {
            true => {
                let gradients = Some(layernorm::Gradients { dw: &mut dw, db: &mut db });
                NormGradients::Layer { w: &w, saved: &full, gradients }
            }
            false => NormGradients::Rms { w: &w, saved: &rms, dw: Some(&mut dw) },
        };
        let mask = set.at(SiteKind::MlpOut, 0, instances.view());
        let out = (dy.view_mut(), dbranch.view_mut());
        residual_norm::backward((dnormed.view(), y.view()), mask, norm, out, 0..n)
    })
}

/// What HRPO's gates read.
struct Gates {
    rows: [Tensor; 4],
    lambda: Tensor,
}

impl Gates {
    fn new(s: &Setting) -> Result<Gates> {
        let rows = [stream(s, "token")?, stream(s, "soft")?, stream(s, "reset")?, stream(s, "input")?];
        Ok(Gates { rows, lambda: s.vector("lambda", s.size.width)? })
    }

    fn bytes(&self) -> usize {
        self.rows.iter().map(Tensor::bytes).sum::<usize>() + self.lambda.bytes()
    }

    fn inputs(&self) -> gated_mixture::Inputs<'_> {
        let [token, soft, reset, input]: [View; 4] = self.rows.each_ref().map(Tensor::view);
        gated_mixture::Inputs { token, soft, reset, input, lambda: &self.lambda }
    }
}
