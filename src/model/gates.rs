//! The gates of HRPO (arXiv 2505.18454; algorithms C.4): what a model needs to read a sampled token and the mixture
//! that it was sampled from as one input. gate_room.rs runs them, gate_file.rs keeps them.
//!
//! ```text
//! x = a e + sqrt(1 - a^2) (i h)       e: the token's embedding, h: the mixture's, a constant
//! r = sigmoid(W_r e + b_r)            i = sigmoid(W_i e + b_i)            a = exp(-8 softplus(-Lambda) r)
//! ```
//!
//! The parameters follow those of the family in the model's list, under the names of HRPO's modules, so that optimiser,
//! gradients and checkpoints know them; files keep them apart. Deviations: nothing is added to 1 - a^2 under the root
//! (released: 1e-8), since ops/gated_mixture.rs computes it without cancellation; first weights are normal with the
//! variance of `torch.nn.Linear`'s uniform ones, first biases 0.

use super::architecture::LinearPlan;
use super::change::Fill;
use super::families::{Layout, Parameter, Role};
use super::{Model, Precision};
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Error, Result, Shape};
use crate::device::{Arena, Identity};
use crate::ops::linear::{self, Projection};
use crate::ops::{Tensor, random};
use std::ops::Range;
use std::sync::Arc;

/// What a parameter of the gates is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GateRole {
    /// W_r, `[width, width]`.
    ResetWeight,
    /// b_r, `[width]`.
    ResetBias,
    /// W_i, `[width, width]`.
    InputWeight,
    /// b_i, `[width]`.
    InputBias,
    /// Lambda, `[width]`.
    Lambda,
}

/// The parameters for embeddings of `width`, in their order.
pub(super) fn parameters(width: usize) -> [Parameter; 5] {
    use GateRole::*;
    let (matrix, vector) = (Shape::from([width, width]), Shape::from([width]));
    [
        ("thinking_residual_gate_r.weight", matrix, ResetWeight, Layout::OutIn),
        ("thinking_residual_gate_r.bias", vector, ResetBias, Layout::Vector),
        ("thinking_residual_gate_i.weight", matrix, InputWeight, Layout::OutIn),
        ("thinking_residual_gate_i.bias", vector, InputBias, Layout::Vector),
        ("thinking_residual_Lambda.Lambda", vector, Lambda, Layout::Vector),
    ]
    .map(|(name, shape, role, layout)| Parameter {
        name: name.into(),
        shape,
        role: Role::Gate(role),
        layout,
    })
}

/// Where the gates find their weights.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Index of the first of their parameters.
    pub first: usize,
    pub reset: LinearPlan,
    pub input: LinearPlan,
    pub lambda: usize,
}

impl Plan {
    fn new(width: usize, first: usize) -> Plan {
        let linear = |weight| LinearPlan {
            weight,
            bias: Some(weight + 1),
            adapter: None,
            projection: Projection::whole(linear::Layout::OutIn, width, width),
        };
        Plan { first, reset: linear(first), input: linear(first + 2), lambda: first + 4 }
    }
}

/// Largest share of the token at the start, a^(1/r).
pub const LARGEST_SHARE: f64 = 0.999;

/// The Lambda of which exp(-8 softplus(-Lambda)) is `share`.
pub fn lambda_of(share: f64) -> f64 {
    -(-share.ln() / 8.0).exp_m1().ln()
}

impl Model {
    /// Whether the model has gates.
    pub fn has_gates(&self) -> bool {
        self.gates.is_some()
    }

    /// Where the gates' parameters stand in [`Model::parameters`]: the two products, and Lambda.
    pub fn gate_parameters(&self) -> Option<(Range<usize>, Range<usize>)> {
        self.gates.as_ref().map(|plan| (plan.first..plan.lambda, plan.lambda..plan.lambda + 1))
    }

    /// How many of the parameters are the family's.
    pub(super) fn family_parameters(&self) -> usize {
        let gates = self.gates.as_ref().map_or(self.parameters.len(), |plan| plan.first);
        self.projector.as_ref().map_or(gates, |plan| plan.first.min(gates))
    }

    /// The same model with gates whose parameters `fill(i, parameter, tensor)` writes into zeroed tensors.
    ///
    /// # Errors
    /// The model has gates already, or those of `fill`.
    pub fn with_gates(
        mut self,
        fill: impl FnMut(usize, &Parameter, &mut Tensor) -> Result<()>,
    ) -> Result<Model> {
        self.add_gates(fill)?;
        Ok(self)
    }

    fn add_gates(
        &mut self,
        mut fill: impl FnMut(usize, &Parameter, &mut Tensor) -> Result<()>,
    ) -> Result<()> {
        if self.gates.is_some() {
            return Err(Error::input(
                "gates",
                "the model has gates already",
                "train those it has, or start from a model without",
            ));
        }
        let (width, first, precision) = (self.config.width, self.parameters.len(), self.precision);
        let _arena = Arena::Weights.enter();
        let (mut list, mut tensors) = (Vec::new(), Vec::new());
        for (index, parameter) in parameters(width).into_iter().enumerate() {
            let dtype = Precision::of_parameter(precision, &parameter);
            let mut tensor = Tensor::zeros(&self.device, parameter.shape, dtype)?;
            fill(index, &parameter, &mut tensor)?;
            list.push(parameter);
            tensors.push(tensor);
        }
        let Some(parameters) = Arc::get_mut(&mut self.parameters).filter(|_| self.adapters.is_none()) else {
            return Err(frozen());
        };
        self.architecture.list.extend(list);
        parameters.extend(tensors);
        self.gates = Some(Plan::new(width, first));
        self.identity = Identity::fresh();
        Ok(())
    }

    /// The same model with untrained gates ([`Model::add_random_gates`]).
    ///
    /// # Errors
    /// The model has gates already, or a share that is not in 0..0.999.
    pub fn with_random_gates(mut self, seed: u64, least_share: f64) -> Result<Model> {
        self.add_random_gates(seed, least_share)?;
        Ok(self)
    }

    /// Adds untrained gates: a^(1/r) is uniform in `least_share`..0.999 over the columns. Parameter i of the gates draws
    /// from the stream (seed; 0, n + i, 0, Init), where n is the number of the model's other parameters.
    ///
    /// # Errors
    /// The model has gates already, or a share that is not in 0..0.999.
    pub fn add_random_gates(&mut self, seed: u64, least_share: f64) -> Result<()> {
        if !(least_share > 0.0 && least_share < LARGEST_SHARE) {
            return Err(Error::input(
                "hrpo.least_share",
                format!("found {least_share}, expected a number between 0 and {LARGEST_SHARE}"),
                "0.98 to 0.99 is usual: the nearer 1, the more of the token at the start",
            ));
        }
        let first = self.parameters.len();
        self.add_gates(|index, parameter, tensor| {
            let key = StreamKey::new(seed, 0, (first + index) as u32, 0, Purpose::Init);
            match parameter.role {
                Role::Gate(GateRole::Lambda) => {
                    let mut draws = key.draws(0, 0);
                    let columns = 0..parameter.shape.elements();
                    let shares =
                        columns.map(|_| least_share + (LARGEST_SHARE - least_share) * draws.uniform());
                    let lambda: Vec<f64> = shares.map(lambda_of).collect();
                    match tensor.dtype() {
                        Dtype::F64 => tensor.upload(&lambda),
                        _ => tensor.upload(&lambda.iter().map(|&value| value as f32).collect::<Vec<_>>()),
                    }
                }
                _ if parameter.layout == Layout::Vector => Ok(()),
                _ => {
                    let (_, inputs) = parameter.shape.as_matrix();
                    random::normal(tensor, key, 1.0 / (3.0 * inputs as f64).sqrt())
                }
            }
        })
    }

    /// `other` with this model's gates as `fill` makes them, where it has gates.
    pub(super) fn lend_gates(&self, other: Model, fill: &Fill) -> Result<Model> {
        let Some(plan) = &self.gates else { return Ok(other) };
        other.with_gates(|index, _, tensor| {
            fill(self.parameters[plan.first + index].view(), tensor.view_mut())
        })
    }
}

/// What to say where gates would be trained beside frozen weights.
pub(super) fn frozen() -> Error {
    Error::input(
        "gates",
        "the model's weights are frozen beside an adapter, and gates are among them",
        "train the arm `hrpo` with adapter.rank = 0",
    )
}

/// What to say where gates are needed and not there.
pub(super) fn missing() -> Error {
    Error::input(
        "hrpo.thinking",
        "the model has no gates to read a token and its mixture with",
        "train it with the arm `hrpo`, load a checkpoint with latent_gates.safetensors, or set hrpo.thinking = 0",
    )
}
