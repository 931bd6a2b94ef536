//! The projector of latents (CODI, arXiv 2502.21074; algorithms A.2): what is fed back is no longer the final hidden
//! state itself but a small trained map of it.
//!
//! ```text
//! z = layer_norm(gelu(h W1 + b1) W2 + b2)         h[width] -> [hidden] -> z[width]
//! ```
//!
//! Its parameters follow those of the family in the model's list, under CODI's names, so that optimiser, gradients and
//! checkpoints know them; files keep them apart (projector_file.rs). Deviations: GELU in its tanh form, the one this
//! build computes, where CODI's module has the form with the error function (they differ by less than 5e-4); no dropout
//! (published: 0); first weights are normal with the variance of `torch.nn.Linear`'s uniform ones, first biases 0.

use super::architecture::{LinearPlan, NormPlan};
use super::families::{Layout, Parameter, Role};
use super::norm;
use super::parameters::Gradients;
use super::{Model, Precision};
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Error, Result, Shape};
use crate::device::{Arena, Device, Identity};
use crate::ops::linear::{self, Accumulate, Projection};
use crate::ops::mask::MaskAt;
use crate::ops::scatter::Order;
use crate::ops::{Tensor, View, ViewMut, gather, gelu, index, latent, random};
use std::ops::Range;
use std::sync::Arc;

/// What a projector is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Projector {
    /// Width between the two linear maps.
    pub hidden: usize,
    /// Added to the variance of its layer norm.
    pub eps: f64,
}

impl Projector {
    /// CODI's, with `hidden` in the middle.
    pub fn of(hidden: usize) -> Projector {
        Projector { hidden, eps: 1e-5 }
    }
}

/// What a parameter of the projector is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProjectorRole {
    /// `[hidden, width]`.
    InWeight,
    /// `[hidden]`.
    InBias,
    /// `[width, hidden]`.
    OutWeight,
    /// `[width]`.
    OutBias,
    /// Gain of the layer norm, `[width]`.
    NormGain,
    /// Its bias, `[width]`.
    NormBias,
}

/// The parameters of a projector for hidden states of `width`, in their order, under CODI's names.
pub(super) fn parameters(projector: &Projector, width: usize) -> [Parameter; 6] {
    use ProjectorRole::*;
    let (hidden, matrix, vector) = (projector.hidden, Layout::OutIn, Layout::Vector);
    [
        ("prj.1.weight", Shape::from([hidden, width]), InWeight, matrix),
        ("prj.1.bias", Shape::from([hidden]), InBias, vector),
        ("prj.3.weight", Shape::from([width, hidden]), OutWeight, matrix),
        ("prj.3.bias", Shape::from([width]), OutBias, vector),
        ("prj.ln.weight", Shape::from([width]), NormGain, vector),
        ("prj.ln.bias", Shape::from([width]), NormBias, vector),
    ]
    .map(|(name, shape, role, layout)| Parameter {
        name: name.into(),
        shape,
        role: Role::Projector(role),
        layout,
    })
}

/// Where the projector finds its weights.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub projector: Projector,
    /// Index of the first of its parameters.
    pub first: usize,
    inner: LinearPlan,
    outer: LinearPlan,
    norm: NormPlan,
}

impl Plan {
    fn new(projector: Projector, width: usize, first: usize) -> Plan {
        let linear = |weight, inputs, outputs| LinearPlan {
            weight,
            bias: Some(weight + 1),
            adapter: None,
            projection: Projection::whole(linear::Layout::OutIn, inputs, outputs),
        };
        Plan {
            projector,
            first,
            inner: linear(first, width, projector.hidden),
            outer: linear(first + 2, projector.hidden, width),
            norm: NormPlan { gain: first + 4, bias: Some(first + 5), eps: projector.eps },
        }
    }
}

impl Model {
    /// The projector of latents, where the model has one.
    pub fn projector(&self) -> Option<Projector> {
        self.projector.as_ref().map(|plan| plan.projector)
    }

    /// The same model with a projector whose parameters `fill(i, parameter, tensor)` writes into zeroed tensors.
    ///
    /// # Errors
    /// The model has one already, or those of `fill`.
    pub fn with_projector(
        mut self,
        projector: Projector,
        mut fill: impl FnMut(usize, &Parameter, &mut Tensor) -> Result<()>,
    ) -> Result<Model> {
        if self.projector.is_some() {
            return Err(Error::input(
                "projector",
                "the model has one already",
                "train the one it has, or start from a model without",
            ));
        }
        let (width, first, precision) = (self.config.width, self.parameters.len(), self.precision);
        let (Some(own), None) = (Arc::get_mut(&mut self.parameters), &self.adapters) else {
            return Err(Error::input(
                "projector",
                "the model's weights are shared or have an adapter",
                "add the projector before the adapter is made",
            ));
        };
        let _arena = Arena::Weights.enter();
        for (index, parameter) in parameters(&projector, width).into_iter().enumerate() {
            let mut tensor =
                Tensor::zeros(&self.device, parameter.shape, Precision::of_parameter(precision, &parameter))?;
            fill(index, &parameter, &mut tensor)?;
            self.architecture.list.push(parameter);
            own.push(tensor);
        }
        self.projector = Some(Plan::new(projector, width, first));
        self.identity = Identity::fresh();
        Ok(self)
    }

    /// The same model with an untrained projector. Its parameter i draws from the stream (seed; 0, n + i, 0, Init),
    /// where n is the number of the model's other parameters.
    ///
    /// # Errors
    /// The model has a projector already.
    pub fn with_random_projector(self, projector: Projector, seed: u64) -> Result<Model> {
        let first = self.parameters.len();
        self.with_projector(projector, |index, parameter, tensor| match parameter.role {
            Role::Projector(ProjectorRole::NormGain) => random::fill(tensor, 1.0),
            _ if parameter.layout == Layout::Vector => Ok(()),
            _ => {
                let (_, inputs) = parameter.shape.as_matrix();
                let key = StreamKey::new(seed, 0, (first + index) as u32, 0, Purpose::Init);
                random::normal(tensor, key, 1.0 / (3.0 * inputs as f64).sqrt())
            }
        })
    }
}

/// What the projector keeps and needs, by position on the tape.
#[derive(Debug)]
pub(super) struct Room {
    state: Tensor,
    inner: Tensor,
    active: Tensor,
    outer: Tensor,
    norm: norm::Saved,
    /// Of the segment at hand; rows count from its first position.
    projected: Tensor,
    /// 0, 1, 2, ...: each projected row is its position's own.
    own: Tensor,
    backward: Option<BackwardRoom>,
}

#[derive(Debug)]
struct BackwardRoom {
    own: Tensor,
    d_projected: Tensor,
    d_outer: Tensor,
    d_active: Tensor,
    d_inner: Tensor,
    d_state: Tensor,
}

impl Room {
    /// Room for `rows` positions of a model with a projector; none without.
    pub fn reserve(model: &Model, device: &Device, rows: usize, records: bool) -> Result<Option<Room>> {
        let Some(plan) = &model.projector else { return Ok(None) };
        let (width, hidden, dtype) = (model.config.width, plan.projector.hidden, model.dtype());
        let zeros = |cols: usize| Tensor::zeros(device, [rows, cols], dtype);
        let counted = |dtype: Dtype| -> Result<Tensor> {
            let mut tensor = Tensor::zeros(device, [rows, 1], dtype)?;
            match dtype {
                Dtype::U32 => tensor.upload(&(0..rows as u32).collect::<Vec<_>>())?,
                _ => tensor.upload(&(0..rows as i32).collect::<Vec<_>>())?,
            }
            Ok(tensor)
        };
        let backward = || -> Result<BackwardRoom> {
            let _arena = Arena::Workspace.enter();
            Ok(BackwardRoom {
                own: counted(Dtype::I32)?,
                d_projected: zeros(width)?,
                d_outer: zeros(width)?,
                d_active: zeros(hidden)?,
                d_inner: zeros(hidden)?,
                d_state: zeros(width)?,
            })
        };
        Ok(Some(Room {
            state: zeros(width)?,
            inner: zeros(hidden)?,
            active: zeros(hidden)?,
            outer: zeros(width)?,
            norm: norm::Saved::reserve(&plan.norm, device, rows, width, dtype)?,
            projected: zeros(width)?,
            own: counted(Dtype::U32)?,
            backward: records.then(backward).transpose()?,
        }))
    }

    /// Projects the state that each position of `at` would feed back; returns the projected states and the row of each
    /// position among them.
    pub fn forward(
        &mut self,
        model: &Model,
        feedback: View,
        feedback_rows: View,
        at: Range<usize>,
    ) -> Result<(View<'_>, View<'_>)> {
        let Some(plan) = &model.projector else { unreachable!("room is reserved for a projector") };
        let (parameters, run) = (&model.parameters, 0..at.len());
        let here = || at.clone();
        let linear = |plan: &LinearPlan, x: View, y: ViewMut| {
            let bias = plan.bias.map(|bias| &parameters[bias]);
            linear::forward(x, &plan.projection, &parameters[plan.weight], bias, y)
        };
        gather::forward(feedback, feedback_rows, self.state.rows_mut(here())?)?;
        linear(&plan.inner, self.state.rows(here())?, self.inner.rows_mut(here())?)?;
        gelu::forward(self.inner.rows(here())?, self.active.rows_mut(here())?)?;
        linear(&plan.outer, self.active.rows(here())?, self.outer.rows_mut(here())?)?;
        norm::forward(
            &plan.norm,
            parameters,
            self.outer.rows(here())?,
            self.projected.rows_mut(run.clone())?,
            &mut self.norm,
            here(),
        )?;
        Ok((self.projected.rows(run.clone())?, self.own.rows(run)?))
    }

    /// Gradients of [`Room::forward`] where positions `at` were latents (`ids` of -1): `stream` is the gradient of their
    /// inputs, `mask` what those were masked with. Adds to the projector's gradients, and hands each state's gradient
    /// to its row of `hidden_gradient`; none of `sources` where no gradient goes further.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &mut self,
        model: &Model,
        stream: View,
        (ids, sources): (View, Option<View>),
        mask: Option<MaskAt>,
        at: Range<usize>,
        hidden_gradient: ViewMut,
        order: &mut Order,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (Some(plan), Some(back)) = (&model.projector, &mut self.backward) else {
            unreachable!("room is reserved for a projector and for the walk back")
        };
        let (parameters, run) = (&model.parameters, 0..at.len());
        let here = || at.clone();
        let linear = |plan: &LinearPlan, (dy, x): (View, View), dx: ViewMut, all: &mut Gradients| {
            // Beside an adapter the projector is frozen, as all of the base is.
            let (dw, dbias) = all.of_linear(plan.weight, Some(plan.weight + 1), &plan.projection)?;
            let gradients = linear::Gradients { dx: Some((dx, Accumulate::Assign)), dw, dbias };
            linear::backward(dy, x, &plan.projection, &parameters[plan.weight], gradients)
        };
        // Positions of the segment that are no latents have no part in this: their rows stay zero.
        let blank = back.d_projected.rows_mut(run.clone())?;
        match blank.dtype() {
            Dtype::F64 => index::fill(blank, 0.0_f64)?,
            Dtype::Bf16 => index::fill(blank, half::bf16::ZERO)?,
            _ => index::fill(blank, 0.0_f32)?,
        }
        let d_projected = back.d_projected.rows_mut(run.clone())?;
        latent::backward(stream, ids, back.own.rows(run.clone())?, mask, d_projected, order)?;
        norm::backward(
            &plan.norm,
            parameters,
            (back.d_projected.rows(run.clone())?, self.outer.rows(here())?),
            &self.norm,
            here(),
            back.d_outer.rows_mut(run.clone())?,
            gradients,
        )?;
        let pair = (back.d_outer.rows(run.clone())?, self.active.rows(here())?);
        linear(&plan.outer, pair, back.d_active.rows_mut(run.clone())?, gradients)?;
        let d_inner = back.d_inner.rows_mut(run.clone())?;
        gelu::backward(back.d_active.rows(run.clone())?, self.inner.rows(here())?, d_inner)?;
        let pair = (back.d_inner.rows(run.clone())?, self.state.rows(here())?);
        linear(&plan.inner, pair, back.d_state.rows_mut(run.clone())?, gradients)?;
        match sources {
            None => Ok(()),
            Some(sources) => {
                latent::backward(back.d_state.rows(run)?, ids, sources, None, hidden_gradient, order)
            }
        }
    }
}
