//! Where each operation finds its weights: the parameter list of a family resolved to indices, once.

use super::config::Config;
use super::families::{self, LayerRole, Parameter, Role};
use crate::base::{Error, Result};
use crate::ops::linear::{self, Projection};
use std::collections::HashMap;
use std::ops::Range;

/// A norm's parameters; with a bias it is a layer norm, without an RMS norm.
#[derive(Clone, Debug)]
pub struct NormPlan {
    /// Index of the gain.
    pub gain: usize,
    /// Index of the bias.
    pub bias: Option<usize>,
    /// Added to the variance.
    pub eps: f64,
}

/// A linear map's parameters: a window of a weight's outputs.
#[derive(Clone, Debug)]
pub struct LinearPlan {
    /// Index of the weight.
    pub weight: usize,
    /// Index of the bias.
    pub bias: Option<usize>,
    /// Layout and window.
    pub projection: Projection,
    /// Index of A among the tensors of the adapter, before B; none where the weight is not adapted.
    pub adapter: Option<usize>,
}

/// One transformer layer.
#[derive(Clone, Debug)]
pub struct LayerPlan {
    pub(super) norm1: NormPlan,
    pub(super) query: LinearPlan,
    pub(super) key: LinearPlan,
    pub(super) value: LinearPlan,
    pub(super) query_norm: Option<NormPlan>,
    pub(super) key_norm: Option<NormPlan>,
    pub(super) output: LinearPlan,
    pub(super) norm2: NormPlan,
    /// Gate of a SwiGLU MLP; absent in a GELU MLP.
    pub(super) gate: Option<LinearPlan>,
    pub(super) up: LinearPlan,
    pub(super) down: LinearPlan,
    /// Rank of the adapter; 0 = none.
    pub(super) rank: usize,
}

/// The whole model.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The parameters, in their order.
    pub(super) list: Vec<Parameter>,
    pub(super) token_embedding: usize,
    pub(super) position_embedding: Option<usize>,
    pub(super) layers: Vec<LayerPlan>,
    pub(super) final_norm: NormPlan,
    /// The output head `[vocab, width]`; the token embedding when tied.
    pub(super) head: usize,
}

impl Architecture {
    /// Resolves the parameter list of `config`.
    ///
    /// # Errors
    /// The family's list lacks a parameter that the layers need: a contradiction in the configuration.
    pub fn of(config: &Config) -> Result<Architecture> {
        let list = families::parameters(config);
        let index: HashMap<Role, usize> = list.iter().enumerate().map(|(index, p)| (p.role, index)).collect();
        let find = Finder { index, config };
        let layers: Result<Vec<_>> = (0..config.layers).map(|layer| find.layer(layer)).collect();
        let token_embedding = find.need(Role::TokenEmbedding)?;
        Ok(Architecture {
            token_embedding,
            position_embedding: find.get(Role::PositionEmbedding),
            layers: layers?,
            final_norm: find.norm(Role::FinalNormGain, Role::FinalNormBias)?,
            head: find.get(Role::OutputHead).unwrap_or(token_embedding),
            list,
        })
    }

    /// Resolves an adapter: `at` finds the A of a projection.
    pub(super) fn adapt(&mut self, rank: usize, at: impl Fn(&LinearPlan) -> Option<usize>) {
        for layer in &mut self.layers {
            layer.rank = rank;
            let LayerPlan { query, key, value, output, gate, up, down, .. } = layer;
            for plan in [query, key, value, output, up, down].into_iter().chain(gate) {
                plan.adapter = at(plan);
            }
        }
    }
}

struct Finder<'a> {
    index: HashMap<Role, usize>,
    config: &'a Config,
}

impl Finder<'_> {
    fn get(&self, role: Role) -> Option<usize> {
        self.index.get(&role).copied()
    }

    fn need(&self, role: Role) -> Result<usize> {
        self.get(role).ok_or_else(|| {
            Error::input(
                "config.json",
                format!("a model of type {} has no parameter for {role:?}", self.config.family.model_type()),
                "check the configuration against the model's family",
            )
        })
    }

    fn norm(&self, gain: Role, bias: Role) -> Result<NormPlan> {
        Ok(NormPlan { gain: self.need(gain)?, bias: self.get(bias), eps: self.config.norm_eps })
    }

    /// The map of `outputs` of a weight from `inputs`; the layout is the family's.
    fn linear(&self, weight: Role, bias: Role, inputs: usize, outputs: Range<usize>) -> Result<LinearPlan> {
        let weight = self.need(weight)?;
        let layout = match self.config.family {
            super::config::Family::Gpt2 => linear::Layout::InOut,
            _ => linear::Layout::OutIn,
        };
        let projection = Projection { layout, inputs, outputs };
        Ok(LinearPlan { weight, bias: self.get(bias), projection, adapter: None })
    }

    fn layer(&self, layer: usize) -> Result<LayerPlan> {
        use LayerRole::*;
        let config = self.config;
        let role = |role| Role::Layer(layer, role);
        let (width, hidden) = (config.width, config.mlp_hidden);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let fused = self.get(role(QkvWeight)).is_some();
        // Query, key and value are windows of one matrix in GPT-2, matrices of their own elsewhere.
        let head_map = |weight, bias, start: usize, outputs: usize| match fused {
            true => self.linear(role(QkvWeight), role(QkvBias), width, start..start + outputs),
            false => self.linear(role(weight), role(bias), width, 0..outputs),
        };
        let head_norm = |gain| -> Option<NormPlan> {
            let gain = self.get(role(gain))?;
            Some(NormPlan { gain, bias: None, eps: config.norm_eps })
        };
        let gate = match self.get(role(GateWeight)) {
            Some(_) => Some(self.linear(role(GateWeight), role(GateBias), width, 0..hidden)?),
            None => None,
        };
        Ok(LayerPlan {
            norm1: self.norm(role(Norm1Gain), role(Norm1Bias))?,
            query: head_map(QueryWeight, QueryBias, 0, queries)?,
            key: head_map(KeyWeight, KeyBias, queries, keys)?,
            value: head_map(ValueWeight, ValueBias, queries + keys, keys)?,
            query_norm: head_norm(QueryNorm),
            key_norm: head_norm(KeyNorm),
            output: self.linear(role(OutputWeight), role(OutputBias), queries, 0..width)?,
            norm2: self.norm(role(Norm2Gain), role(Norm2Bias))?,
            gate,
            up: self.linear(role(UpWeight), role(UpBias), width, 0..hidden)?,
            down: self.linear(role(DownWeight), role(DownBias), hidden, 0..width)?,
            rank: 0,
        })
    }
}
