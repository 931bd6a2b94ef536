//! One transformer layer, forward and backward over a range of the tape.
//!
//! ```text
//! n1 = norm1(x)       q, k, v = n1 Wq, n1 Wk, n1 Wv     [q, k = per-head norm]     [q, k = rope]
//! a  = attention(q, cache + k, v)                       m  = x + mask_attn_out(a Wo)
//! n2 = norm2(m)       h = mask_mlp_hid(act(n2 Wup))     y  = m + mask_mlp_out(h Wdown)
//! ```
//!
//! Backward reads what forward kept in [`Activations`]; with recompute it is kept for one layer at a time and
//! forward runs again just before backward (the same bits: the cache is rewritten with what it holds).
//! One file, though long: each forward line stands beside the backward that undoes it.

use super::adapter::{Adapters, LowRank};
use super::architecture::{LayerPlan, LinearPlan, NormPlan};
use super::norm;
use super::parameters::Gradients;
use crate::base::{Dtype, Result};
use crate::device::{Arena, Device};
use crate::ops::append::Pair;
use crate::ops::attention::{self, Geometry};
use crate::ops::kv_cache::{CacheLayout, KvCache};
use crate::ops::linear::{self, Accumulate};
use crate::ops::mask::{self, MaskAt, SiteKind};
use crate::ops::rope::{self, RopeTable};
use crate::ops::{Tensor, View, ViewMut, elementwise, gelu, masked_residual, swiglu};
use std::ops::Range;

/// What backward needs of one layer, for a tape of positions.
#[derive(Debug)]
pub(super) struct Activations {
    norm1: norm::Saved,
    normed1: Tensor,
    /// Queries and keys as projected, where a per-head norm follows.
    raw: Option<[RawHeads; 2]>,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention: attention::Saved,
    attended: Tensor,
    middle: Tensor,
    norm2: norm::Saved,
    normed2: Tensor,
    gate: Option<Tensor>,
    up: Tensor,
    hidden: Tensor,
}

#[derive(Debug)]
struct RawHeads {
    projected: Tensor,
    norm: norm::Saved,
}

impl Activations {
    /// Room for `rows` positions.
    pub fn reserve(
        device: &Device,
        plan: &LayerPlan,
        geometry: &Geometry,
        rows: usize,
        dtype: Dtype,
    ) -> Result<Activations> {
        let zeros = |cols: usize| Tensor::zeros(device, [rows, cols], dtype);
        let width = plan.query.projection.inputs;
        let (queries, keys) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
        let hidden = plan.down.projection.inputs;
        let raw = |plan: &NormPlan, heads: usize| -> Result<RawHeads> {
            Ok(RawHeads {
                projected: zeros(heads * geometry.head_dim)?,
                norm: norm::Saved::reserve(plan, device, rows * heads, geometry.head_dim, dtype)?,
            })
        };
        Ok(Activations {
            norm1: norm::Saved::reserve(&plan.norm1, device, rows, width, dtype)?,
            normed1: zeros(width)?,
            raw: match (&plan.query_norm, &plan.key_norm) {
                (Some(q), Some(k)) => Some([raw(q, geometry.heads)?, raw(k, geometry.kv_heads)?]),
                _ => None,
            },
            query: zeros(queries)?,
            key: zeros(keys)?,
            value: zeros(keys)?,
            attention: attention::Saved::reserve(device, rows, geometry.heads, dtype)?,
            attended: zeros(queries)?,
            middle: zeros(width)?,
            norm2: norm::Saved::reserve(&plan.norm2, device, rows, width, dtype)?,
            normed2: zeros(width)?,
            gate: plan.gate.as_ref().map(|_| zeros(hidden)).transpose()?,
            up: zeros(hidden)?,
            hidden: zeros(hidden)?,
        })
    }
}

impl Activations {
    /// What is kept of a step, and where it goes in `to`, the activations of a tape of the same layer.
    pub fn append<'a>(&'a self, to: &'a mut Activations, geometry: &Geometry) -> Vec<Pair<'a>> {
        let mut pairs = Vec::with_capacity(16);
        let heads = [geometry.heads, geometry.kv_heads];
        if let (Some(from), Some(to)) = (&self.raw, &mut to.raw) {
            for ((from, to), heads) in from.iter().zip(to).zip(heads) {
                pairs.push(Pair::new(&from.projected, &mut to.projected, 1));
                pairs.extend(from.norm.append(&mut to.norm, heads));
            }
        }
        if let (Some(from), Some(to)) = (&self.gate, &mut to.gate) {
            pairs.push(Pair::new(from, to, 1));
        }
        pairs.extend(self.norm1.append(&mut to.norm1, 1));
        pairs.extend(self.norm2.append(&mut to.norm2, 1));
        pairs.push(self.attention.append(&mut to.attention));
        let whole = [
            (&self.normed1, &mut to.normed1),
            (&self.query, &mut to.query),
            (&self.key, &mut to.key),
            (&self.value, &mut to.value),
            (&self.attended, &mut to.attended),
            (&self.middle, &mut to.middle),
            (&self.normed2, &mut to.normed2),
            (&self.up, &mut to.up),
            (&self.hidden, &mut to.hidden),
        ];
        pairs.extend(whole.into_iter().map(|(from, to)| Pair::new(from, to, 1)));
        pairs
    }
}

/// Buffers that one layer at a time uses, for the longest run of positions differentiated or run at once.
#[derive(Debug)]
pub(super) struct Workspace {
    /// Output of a branch before it joins the residual stream, and its gradient.
    branch: Tensor,
    /// For the products of an adapter.
    low: Option<LowRank>,
    backward: Option<BackwardWorkspace>,
}

#[derive(Debug)]
struct BackwardWorkspace {
    d_normed: Tensor,
    d_input: Tensor,
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    d_attended: Tensor,
    /// Scratch of the per-head norms: as long as the queries.
    d_projected: Option<Tensor>,
    d_hidden: Tensor,
    d_gate: Option<Tensor>,
    d_up: Tensor,
}

impl Workspace {
    /// Room for `rows` positions; `differentiate` adds what backward needs.
    pub fn reserve(
        device: &Device,
        plan: &LayerPlan,
        geometry: &Geometry,
        rows: usize,
        dtype: Dtype,
        differentiate: bool,
    ) -> Result<Workspace> {
        let _arena = Arena::Workspace.enter();
        let zeros = |cols: usize| Tensor::zeros(device, [rows, cols], dtype);
        let width = plan.query.projection.inputs;
        let (queries, keys) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
        let hidden = plan.down.projection.inputs;
        let backward = || -> Result<BackwardWorkspace> {
            Ok(BackwardWorkspace {
                d_normed: zeros(width)?,
                d_input: zeros(width)?,
                d_query: zeros(queries)?,
                d_key: zeros(keys)?,
                d_value: zeros(keys)?,
                d_attended: zeros(queries)?,
                d_projected: plan.query_norm.as_ref().map(|_| zeros(queries)).transpose()?,
                d_hidden: zeros(hidden)?,
                d_gate: plan.gate.as_ref().map(|_| zeros(hidden)).transpose()?,
                d_up: zeros(hidden)?,
            })
        };
        Ok(Workspace {
            branch: zeros(width)?,
            low: LowRank::reserve(device, rows, plan.rank, dtype, differentiate)?,
            backward: differentiate.then(backward).transpose()?,
        })
    }
}

/// Everything about one layer that does not change between forward and backward.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub layer: usize,
    pub plan: &'a LayerPlan,
    pub parameters: &'a [Tensor],
    pub adapters: Option<&'a Adapters>,
    pub geometry: &'a Geometry,
    pub rope: Option<&'a RopeTable>,
    pub cache_layout: &'a CacheLayout,
}

/// The positions a layer runs on, and the masks over them.
#[derive(Clone, Copy)]
pub(super) struct Positions<'a> {
    pub rows: View<'a>,
    pub positions: View<'a>,
    pub masks: Option<Masks<'a>>,
}

/// A mask set and the instance of each position.
#[derive(Clone, Copy)]
pub(super) struct Masks<'a> {
    pub set: &'a mask::MaskSet,
    pub instances: View<'a>,
}

impl<'a> Positions<'a> {
    /// The mask of one site of one layer over these positions, if the site exists.
    pub fn mask(&self, layer: usize, kind: SiteKind) -> Option<MaskAt<'a>> {
        self.masks.and_then(|masks| masks.set.at(kind, layer, masks.instances))
    }
}

impl<'a> Block<'a> {
    fn segment(&self, on: Positions<'a>) -> attention::Segment<'a> {
        attention::Segment {
            rows: on.rows,
            positions: on.positions,
            geometry: self.geometry,
            layout: self.cache_layout,
        }
    }

    fn linear(&self, plan: &LinearPlan, x: View, mut y: ViewMut, low: &mut Option<LowRank>) -> Result<()> {
        let bias = plan.bias.map(|index| &self.parameters[index]);
        linear::forward(x, &plan.projection, &self.parameters[plan.weight], bias, y.reborrow())?;
        match (self.adapters, plan.adapter) {
            (Some(adapters), Some(at)) => adapters.forward(at, &plan.projection, x, y, low),
            _ => Ok(()),
        }
    }

    /// [`Block::linear`] of several plans that read the same input.
    fn linear_each<const N: usize>(
        &self,
        x: View,
        mut maps: [(&LinearPlan, ViewMut); N],
        low: &mut Option<LowRank>,
    ) -> Result<()> {
        let each = maps.each_mut().map(|(plan, y)| linear::Map {
            projection: &plan.projection,
            weight: &self.parameters[plan.weight],
            bias: plan.bias.map(|index| &self.parameters[index]),
            output: y.reborrow(),
        });
        linear::forward_each(x, each)?;
        for (plan, y) in maps {
            if let (Some(adapters), Some(at)) = (self.adapters, plan.adapter) {
                adapters.forward(at, &plan.projection, x, y, low)?;
            }
        }
        Ok(())
    }

    fn linear_backward(
        &self,
        plan: &LinearPlan,
        (dy, x): (View, View),
        (mut dx, accumulate): (ViewMut, Accumulate),
        gradients: &mut Gradients,
        low: &mut Option<LowRank>,
    ) -> Result<()> {
        let weight = &self.parameters[plan.weight];
        let (dw, dbias) = gradients.of_linear(plan.weight, plan.bias, &plan.projection)?;
        let wanted = linear::Gradients { dx: Some((dx.reborrow(), accumulate)), dw, dbias };
        linear::backward(dy, x, &plan.projection, weight, wanted)?;
        match (self.adapters, plan.adapter) {
            (Some(adapters), Some(at)) => {
                adapters.backward(at, &plan.projection, (dy, x), dx, gradients, low)
            }
            _ => Ok(()),
        }
    }

    /// Runs the layer: reads `x`, writes `y`, appends keys and values to `cache`, keeps `kept` at rows `at`.
    /// Without `y` it stops where backward has all it needs (recompute).
    pub fn forward(
        &self,
        on: Positions<'a>,
        (x, y): (View, Option<ViewMut>),
        cache: &mut KvCache,
        kept: &mut Activations,
        at: Range<usize>,
        work: &mut Workspace,
    ) -> Result<()> {
        let (plan, geometry, run) = (self.plan, self.geometry, 0..at.len());
        let here = || at.clone();
        norm::forward(
            &plan.norm1,
            self.parameters,
            x,
            kept.normed1.rows_mut(here())?,
            &mut kept.norm1,
            here(),
        )?;
        let normed = kept.normed1.rows(here())?;
        let value = kept.value.rows_mut(here())?;
        match &mut kept.raw {
            None => {
                let (query, key) = (kept.query.rows_mut(here())?, kept.key.rows_mut(here())?);
                let maps = [(&plan.query, query), (&plan.key, key), (&plan.value, value)];
                self.linear_each(normed, maps, &mut work.low)?;
            }
            Some([raw_query, raw_key]) => {
                self.linear(&plan.value, normed, value, &mut work.low)?;
                self.head_norm(
                    (&plan.query, &plan.query_norm),
                    normed,
                    &mut kept.query,
                    raw_query,
                    here(),
                    &mut work.low,
                )?;
                self.head_norm(
                    (&plan.key, &plan.key_norm),
                    normed,
                    &mut kept.key,
                    raw_key,
                    here(),
                    &mut work.low,
                )?;
            }
        }
        if let Some(table) = self.rope {
            rope::forward(kept.query.rows_mut(here())?, geometry.heads, on.positions, table)?;
            rope::forward(kept.key.rows_mut(here())?, geometry.kv_heads, on.positions, table)?;
        }
        let (q, k, v) = (kept.query.rows(here())?, kept.key.rows(here())?, kept.value.rows(here())?);
        attention::forward(
            attention::Inputs { q, k, v },
            &self.segment(on),
            cache,
            kept.attended.rows_mut(here())?,
            &mut kept.attention,
            here(),
        )?;
        self.linear(
            &plan.output,
            kept.attended.rows(here())?,
            work.branch.rows_mut(run.clone())?,
            &mut work.low,
        )?;
        norm::forward_of_sum(
            &plan.norm2,
            self.parameters,
            (x, work.branch.rows(run.clone())?),
            on.mask(self.layer, SiteKind::AttnOut),
            (kept.middle.rows_mut(here())?, kept.normed2.rows_mut(here())?),
            &mut kept.norm2,
            here(),
        )?;
        let middle = kept.middle.rows(here())?;
        let normed = kept.normed2.rows(here())?;
        let up = kept.up.rows_mut(here())?;
        match (&plan.gate, &mut kept.gate) {
            (Some(gate_plan), Some(gate)) => {
                let maps = [(gate_plan, gate.rows_mut(here())?), (&plan.up, up)];
                self.linear_each(normed, maps, &mut work.low)?;
                swiglu::forward(gate.rows(here())?, kept.up.rows(here())?, kept.hidden.rows_mut(here())?)?;
            }
            _ => {
                self.linear(&plan.up, normed, up, &mut work.low)?;
                gelu::forward(kept.up.rows(here())?, kept.hidden.rows_mut(here())?)?;
            }
        }
        if let Some(mask) = on.mask(self.layer, SiteKind::MlpHid) {
            mask::apply(kept.hidden.rows_mut(here())?, mask)?;
        }
        let Some(y) = y else { return Ok(()) };
        self.linear(
            &plan.down,
            kept.hidden.rows(here())?,
            work.branch.rows_mut(run.clone())?,
            &mut work.low,
        )?;
        let mask = on.mask(self.layer, SiteKind::MlpOut);
        masked_residual::forward(middle, work.branch.rows(run)?, mask, y)
    }

    /// Projects queries or keys and normalises each head (Qwen3).
    fn head_norm(
        &self,
        (linear, norm): (&LinearPlan, &Option<NormPlan>),
        x: View,
        out: &mut Tensor,
        raw: &mut RawHeads,
        at: Range<usize>,
        low: &mut Option<LowRank>,
    ) -> Result<()> {
        let Some(norm) = norm else { unreachable!("raw heads exist only where the plan has a norm") };
        let heads = linear.projection.outputs.len() / self.geometry.head_dim;
        self.linear(linear, x, raw.projected.rows_mut(at.clone())?, low)?;
        let projected = raw.projected.rows(at.clone())?.split(heads)?;
        let out = out.rows_mut(at.clone())?.split(heads)?;
        norm::forward(norm, self.parameters, projected, out, &mut raw.norm, at.start * heads..at.end * heads)
    }

    /// Walks the layer back: `dy` becomes the gradient of the input. `cache_gradient` is read and added to.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        on: Positions<'a>,
        x: View,
        dy: &mut Tensor,
        (cache, cache_gradient): (&KvCache, &mut KvCache),
        (kept, at): (&Activations, Range<usize>),
        work: &mut Workspace,
        gradients: &mut Gradients,
        detach_kv: bool,
    ) -> Result<()> {
        let Some(back) = &mut work.backward else {
            unreachable!("a recording tape reserves backward buffers")
        };
        let (plan, geometry, run) = (self.plan, self.geometry, 0..at.len());
        let here = || at.clone();
        let (branch, low) = (&mut work.branch, &mut work.low);

        // y = middle + mask(hidden Wdown)
        let mask = on.mask(self.layer, SiteKind::MlpOut);
        masked_residual::backward(dy.rows(run.clone())?, mask, branch.rows_mut(run.clone())?)?;
        let hidden = kept.hidden.rows(here())?;
        let d_hidden = (back.d_hidden.rows_mut(run.clone())?, Accumulate::Assign);
        self.linear_backward(&plan.down, (branch.rows(run.clone())?, hidden), d_hidden, gradients, low)?;
        if let Some(mask) = on.mask(self.layer, SiteKind::MlpHid) {
            mask::apply(back.d_hidden.rows_mut(run.clone())?, mask)?;
        }
        let (d_hidden, up, normed) =
            (back.d_hidden.rows(run.clone())?, kept.up.rows(here())?, kept.normed2.rows(here())?);
        let d_up = back.d_up.rows_mut(run.clone())?;
        match (&plan.gate, &kept.gate, &mut back.d_gate) {
            (Some(plan_gate), Some(gate), Some(d_gate)) => {
                swiglu::backward(d_hidden, gate.rows(here())?, up, d_gate.rows_mut(run.clone())?, d_up)?;
                let d_normed = (back.d_normed.rows_mut(run.clone())?, Accumulate::Assign);
                self.linear_backward(
                    plan_gate,
                    (d_gate.rows(run.clone())?, normed),
                    d_normed,
                    gradients,
                    low,
                )?;
                let d_normed = (back.d_normed.rows_mut(run.clone())?, Accumulate::Add);
                self.linear_backward(
                    &plan.up,
                    (back.d_up.rows(run.clone())?, normed),
                    d_normed,
                    gradients,
                    low,
                )?;
            }
            _ => {
                gelu::backward(d_hidden, up, d_up)?;
                let d_normed = (back.d_normed.rows_mut(run.clone())?, Accumulate::Assign);
                self.linear_backward(
                    &plan.up,
                    (back.d_up.rows(run.clone())?, normed),
                    d_normed,
                    gradients,
                    low,
                )?;
            }
        }

        // middle = x + mask(attended Wo), and its norm
        norm::backward_of_sum(
            &plan.norm2,
            self.parameters,
            (back.d_normed.rows(run.clone())?, kept.middle.rows(here())?),
            on.mask(self.layer, SiteKind::AttnOut),
            (&kept.norm2, here()),
            (dy.rows_mut(run.clone())?, branch.rows_mut(run.clone())?),
            gradients,
        )?;
        let d_attended = (back.d_attended.rows_mut(run.clone())?, Accumulate::Assign);
        let attended = kept.attended.rows(here())?;
        self.linear_backward(
            &plan.output,
            (branch.rows(run.clone())?, attended),
            d_attended,
            gradients,
            low,
        )?;
        attention::backward(
            attention::BackwardInputs {
                dout: back.d_attended.rows(run.clone())?,
                q: kept.query.rows(here())?,
                out: attended,
                cache,
                detach_cached: detach_kv,
            },
            &self.segment(on),
            cache_gradient,
            &kept.attention,
            here(),
            attention::Gradients {
                dq: back.d_query.rows_mut(run.clone())?,
                dk: back.d_key.rows_mut(run.clone())?,
                dv: back.d_value.rows_mut(run.clone())?,
            },
        )?;
        if let Some(table) = self.rope {
            rope::backward(back.d_query.rows_mut(run.clone())?, geometry.heads, on.positions, table)?;
            rope::backward(back.d_key.rows_mut(run.clone())?, geometry.kv_heads, on.positions, table)?;
        }
        if let (Some([raw_query, raw_key]), Some(scratch)) = (&kept.raw, &mut back.d_projected) {
            self.head_norm_backward(
                &plan.query_norm,
                &mut back.d_query,
                raw_query,
                scratch,
                here(),
                gradients,
            )?;
            self.head_norm_backward(&plan.key_norm, &mut back.d_key, raw_key, scratch, here(), gradients)?;
        }
        let normed = kept.normed1.rows(here())?;
        let d_normed = &mut back.d_normed;
        for (plan, d_projected, accumulate) in [
            (&plan.query, &back.d_query, Accumulate::Assign),
            (&plan.key, &back.d_key, Accumulate::Add),
            (&plan.value, &back.d_value, Accumulate::Add),
        ] {
            let d_normed = (d_normed.rows_mut(run.clone())?, accumulate);
            self.linear_backward(plan, (d_projected.rows(run.clone())?, normed), d_normed, gradients, low)?;
        }
        let pair = (d_normed.rows(run.clone())?, x);
        let d_input = back.d_input.rows_mut(run.clone())?;
        norm::backward(&plan.norm1, self.parameters, pair, &kept.norm1, here(), d_input, gradients)?;
        elementwise::add(back.d_input.rows(run.clone())?, dy.rows_mut(run)?)
    }

    /// Replaces the gradient of normalised heads by that of the projected ones.
    fn head_norm_backward(
        &self,
        norm: &Option<NormPlan>,
        gradient: &mut Tensor,
        raw: &RawHeads,
        scratch: &mut Tensor,
        at: Range<usize>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Some(norm) = norm else { unreachable!("raw heads exist only where the plan has a norm") };
        let (heads, run) = (gradient.shape().as_matrix().1 / self.geometry.head_dim, 0..at.len());
        // The scratch is as wide as the queries; keys use its first rows seen as heads.
        let parts = scratch.shape().as_matrix().1 / self.geometry.head_dim;
        let used = (at.len() * heads).div_ceil(parts);
        let pair = (gradient.rows(run.clone())?.split(heads)?, raw.projected.rows(at.clone())?.split(heads)?);
        let out = scratch.rows_mut(0..used)?.split(parts)?.rows(0..at.len() * heads)?;
        norm::backward(
            norm,
            self.parameters,
            pair,
            &raw.norm,
            at.start * heads..at.end * heads,
            out,
            gradients,
        )?;
        let from = scratch.rows(0..used)?.split(parts)?.rows(0..at.len() * heads)?;
        elementwise::copy(from, gradient.rows_mut(run)?.split(heads)?)
    }
}
