//! Transformers with latent recurrence: files in and out, layers, segments, the tape, and the backward walk.
//!
//! ```text
//! config, families      what a checkpoint says, and the list of its parameters
//! weights, gguf, save   files in and out; peft: adapters
//! precision             what parameters and activations are held in
//! architecture          where each operation finds its weights
//! adapter               low-rank adapters beside frozen weights
//! rows, segment         sequences, shared prefixes, and what stands at a position
//! block                 one layer, forward and backward
//! tape, sequences       what is kept; forward: running segments; backward: walking them in reverse
//! gates, gate_room      HRPO: a sampled token and its mixture as one input
//! projector, taps       CODI: a trained map before the feedback; states of every layer, and gradients that enter there
//! soft                  mixtures of token embeddings; soft_tape: drawn on the device and back; soft_scores: log-densities
//! scores                log-probabilities of given tokens, where every loss enters; logits: the head where logits exist
//! ```

mod adapted;
pub mod adapter;
mod architecture;
mod backward;
mod block;
mod change;

mod checkpoint;
pub mod config;
pub mod families;
pub mod folder;
mod forward;
mod gate_file;
mod gate_room;
pub mod gates;
mod generation_config;
pub mod gguf;
pub mod gguf_model;
mod logits;
pub mod mapped;
mod module_file;
mod norm;
mod parameters;
pub mod peft;
mod placing;
mod precision;
pub mod projector;
mod projector_file;
mod rows;
pub mod safetensors_file;
pub mod save;
mod scores;
mod segment;
mod sequences;
pub mod soft;
mod soft_density;
mod soft_inputs;
mod soft_scores;
mod soft_support;
mod soft_tape;
pub mod steps;
pub mod stored;
mod tape;
mod taps;
pub mod weights;

pub use adapter::{AdapterConfig, Embeddings};
pub use backward::Truncation;
pub(crate) use checkpoint::write_tensor;
pub use config::Config;
pub use gate_room::{GateRoom, Mixture, Mixtures};
pub use parameters::Gradients;
pub use precision::Precision;
pub use projector::Projector;
pub use rows::RowPlan;
pub use scores::Scores;
pub use segment::{Input, LatentNoise, Segment};
pub use sequences::{Room, Sequences, SequencesPlan};
pub use soft::{Action, Draw, SoftGradient, SoftLaw, SoftRoom};
pub use soft_density::NoisyInput;
pub use soft_scores::{SoftScore, SoftScores};
pub use soft_support::Churn;
pub use steps::Sampling;
pub use tape::Record;
pub use taps::Taps;

use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};
use crate::device::{Arena, Device, Identity};
use crate::ops::attention::Geometry;
use crate::ops::rope::{self, RopeTable};
use crate::ops::{Tensor, random};
use adapter::Adapters;
use architecture::Architecture;
use std::sync::Arc;

/// A model: its configuration and its parameters on a device.
#[derive(Debug)]
pub struct Model {
    config: Config,
    architecture: Architecture,
    geometry: Geometry,
    /// Shared with copies where an adapter is trained instead.
    parameters: Arc<Vec<Tensor>>,
    adapters: Option<Adapters>,
    device: Device,
    precision: Precision,
    gates: Option<gates::Plan>,
    projector: Option<projector::Plan>,
    /// Another one whenever what runs may be another, the values of the parameters aside.
    identity: Identity,
}

/// What the latent steps of a saved model are: beside the weights.
pub const LATENT_CONFIG: &str = "latent_config.json";

impl Model {
    /// A model with random weights: normal with standard deviation 0.02 for matrices (the projections into the
    /// residual stream scaled by `1/sqrt(2 layers)`, GPT-2's rule), gains 1, biases 0.
    ///
    /// Parameter i draws from the stream (seed; 0, i, 0, Init).
    pub fn random(config: Config, seed: u64, device: &Device, precision: Precision) -> Result<Model> {
        let residual = 1.0 / (2.0 * config.layers.max(1) as f64).sqrt();
        Model::build(config, device, precision, |index, parameter, tensor| {
            use families::LayerRole::{DownWeight, KeyNorm, Norm1Gain, Norm2Gain, OutputWeight, QueryNorm};
            use families::Role;
            let deviation = match parameter.role {
                Role::FinalNormGain | Role::Layer(_, Norm1Gain | Norm2Gain | QueryNorm | KeyNorm) => {
                    return random::fill(tensor, 1.0);
                }
                _ if parameter.layout == families::Layout::Vector => return Ok(()),
                Role::Layer(_, OutputWeight | DownWeight) => 0.02 * residual,
                _ => 0.02,
            };
            random::normal(tensor, StreamKey::new(seed, 0, index as u32, 0, Purpose::Init), deviation)
        })
    }

    /// A model whose parameters `fill(i, parameter, tensor)` writes into zeroed tensors, one after the other.
    ///
    /// # Errors
    /// Those of `fill`, and a precision that the device does not compute in.
    pub fn build(
        config: Config,
        device: &Device,
        precision: Precision,
        fill: impl FnMut(usize, &families::Parameter, &mut Tensor) -> Result<()>,
    ) -> Result<Model> {
        precision.check(device)?;
        Model::assemble(config, device, precision, fill)
    }

    /// [`Model::build`] whether the device computes in that precision or not: a model of the GPU's may be laid out in the
    /// host's memory to count its bytes.
    fn assemble(
        config: Config,
        device: &Device,
        precision: Precision,
        mut fill: impl FnMut(usize, &families::Parameter, &mut Tensor) -> Result<()>,
    ) -> Result<Model> {
        let _arena = Arena::Weights.enter();
        let architecture = Architecture::of(&config)?;
        let mut parameters = Vec::with_capacity(architecture.list.len());
        for (index, parameter) in architecture.list.iter().enumerate() {
            let mut tensor = Tensor::zeros(device, parameter.shape, precision.of_parameter(parameter))?;
            fill(index, parameter, &mut tensor)?;
            parameters.push(tensor);
        }
        let geometry = Geometry {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f64).sqrt(),
        };
        Ok(Model {
            config,
            architecture,
            geometry,
            parameters: Arc::new(parameters),
            adapters: None,
            device: device.clone(),
            precision,
            gates: None,
            projector: None,
            identity: Identity::fresh(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device that holds the parameters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What parameters and activations are held in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The dtype of activations and of their gradients.
    pub fn dtype(&self) -> Dtype {
        self.precision.activations()
    }

    /// What each parameter is, in the order of [`Model::parameters`].
    pub fn parameter_list(&self) -> &[families::Parameter] {
        &self.architecture.list
    }

    /// The parameters, without those of an adapter.
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// The parameters, to write. Those that another model shares are frozen: there are none of them here.
    pub fn parameters_mut(&mut self) -> &mut [Tensor] {
        Arc::get_mut(&mut self.parameters).map_or(&mut [], |own| own.as_mut_slice())
    }

    /// Rotary tables for positions `0..positions` on `device`; none where positions are learned.
    fn rope_table(&self, device: &Device, positions: usize) -> Result<Option<RopeTable>> {
        let Some(rope) = &self.config.rope else { return Ok(None) };
        let frequencies = rope::inverse_frequencies(self.config.head_dim, rope.theta, rope.scaling)?;
        RopeTable::new(device, &frequencies, positions.max(1), self.dtype()).map(Some)
    }
}
