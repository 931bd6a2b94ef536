//! Checks of whole models: every family's layer and input, and every family through latent steps.

use super::gradient::{Subject, Variable, stream};
use super::operations::{dot, tensor, values};
use super::script::{self, Group, LAYER_TOKENS, Loss, Script};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::model::adapter::{ALL_LINEAR, Part};
use crate::model::families::{Layout, Parameter};
use crate::model::{
    AdapterConfig, Config, Embeddings, Model, Precision, Record, Scores, Sequences, SequencesPlan, Truncation,
};
use crate::ops::mask::MaskSet;
use crate::ops::{Tensor, elementwise};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A family with what sets it apart, at sizes that fill nothing: odd head counts, shared key heads, head widths
/// that are not width/heads, tied and untied heads.
pub const FAMILIES: [&str; 5] = ["gpt2", "llama", "llama-linear", "qwen2", "qwen3"];

/// config.json of one of [`FAMILIES`].
fn config_json(family: &str) -> Value {
    match family {
        "gpt2" => json!({"model_type": "gpt2", "n_embd": 15, "n_head": 3, "activation_function": "gelu_new",
            "n_inner": 37, "tie_word_embeddings": true}),
        "llama" => json!({"model_type": "llama", "hidden_size": 18, "num_attention_heads": 6,
            "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 23, "tie_word_embeddings": false,
            "rope_theta": 100.0, "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}),
        "llama-linear" => json!({"model_type": "llama", "hidden_size": 16, "num_attention_heads": 4,
            "num_key_value_heads": 4, "intermediate_size": 19, "tie_word_embeddings": true, "attention_bias": true,
            "mlp_bias": true, "rope_theta": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
        "qwen2" => json!({"model_type": "qwen2", "hidden_size": 20, "num_attention_heads": 5,
            "num_key_value_heads": 1, "intermediate_size": 21, "tie_word_embeddings": true, "rope_theta": 100.0}),
        _ => {
            json!({"model_type": "qwen3", "hidden_size": 14, "num_attention_heads": 3, "num_key_value_heads": 3,
            "head_dim": 6, "intermediate_size": 25, "tie_word_embeddings": false, "rope_theta": 100.0})
        }
    }
}

/// A small configuration of a family.
///
/// # Errors
/// The configuration is one this build does not compute.
pub fn small_config(
    family: &str,
    layers: usize,
    vocabulary: usize,
    positions: usize,
    tied: bool,
) -> Result<Config> {
    let mut fields = Map::new();
    if let Value::Object(own) = config_json(family) {
        fields = own;
    }
    let sizes = match family {
        "gpt2" => [("vocab_size", vocabulary), ("n_layer", layers), ("n_positions", positions)],
        _ => [
            ("vocab_size", vocabulary),
            ("num_hidden_layers", layers),
            ("max_position_embeddings", positions),
        ],
    };
    for (key, value) in sizes {
        fields.insert(key.into(), json!(value));
    }
    let eps = if family == "gpt2" { "layer_norm_epsilon" } else { "rms_norm_eps" };
    fields.insert(eps.into(), json!(1e-5));
    if tied {
        fields.insert("tie_word_embeddings".into(), json!(true));
    }
    Config::from_json(Value::Object(fields), Path::new("config.json"))
}

/// Weights at which every part of a model matters: matrices of deviation `1/sqrt(inputs)`, gains near one,
/// biases a tenth. (Initial weights of training would leave attention almost uniform, and its gradients tiny.)
///
/// # Errors
/// Those of uploads.
pub fn small_model(config: Config, seed: u64) -> Result<Model> {
    Model::build(config, &Device::cpu(), Precision::F64, |_, parameter, tensor| {
        let (deviation, mean) = spread(parameter);
        let mut draws = stream(&parameter.name, seed).draws(4, 0);
        let values: Vec<f64> = (0..parameter.shape.elements())
            .map(|_| f64::from((mean + deviation * draws.normal()) as f32))
            .collect();
        tensor.upload(&values)
    })
}

/// Gives the model an adapter of rank 3 on every matrix, at values where A and B matter; embedding and head are trained
/// besides.
///
/// # Errors
/// Those of uploads.
pub fn with_adapter(mut model: Model, seed: u64) -> Result<Model> {
    let config = AdapterConfig {
        rank: 3,
        alpha: 2.0,
        rslora: true,
        targets: vec![ALL_LINEAR.into()],
        embeddings: if model.config().tied { Embeddings::Tied } else { Embeddings::Both },
        base: String::new(),
    };
    model.adapt_with(config, |_, parameter, tensor| {
        let deviation = match parameter.part {
            Part::A => 1.0 / (parameter.shape.as_matrix().1 as f64).sqrt(),
            Part::B => 0.4,
            Part::Whole => return Ok(()),
        };
        let mut draws = stream(&parameter.name, seed).draws(4, 0);
        let values: Vec<f64> =
            (0..parameter.shape.elements()).map(|_| f64::from((deviation * draws.normal()) as f32)).collect();
        tensor.upload(&values)
    })?;
    Ok(model)
}

/// Deviation and mean of a parameter's entries.
fn spread(parameter: &Parameter) -> (f64, f64) {
    let (rows, cols) = parameter.shape.as_matrix();
    match parameter.layout {
        Layout::InOut => (1.0 / (rows as f64).sqrt(), 0.0),
        Layout::OutIn => (1.0 / (cols as f64).sqrt(), 0.0),
        Layout::Table => (0.7, 0.0),
        Layout::Vector if parameter.name.ends_with("bias") => (0.1, 0.0),
        Layout::Vector => (0.2, 1.0),
    }
}

/// A model, what it runs, and everything that running it needs.
pub(super) struct Runner {
    pub model: Model,
    pub masks: Option<MaskSet>,
    sequences: Sequences,
    scores: Option<Scores>,
    /// Gradient of the final hidden states, where the loss is taken of them directly.
    upstream: Option<Tensor>,
}

impl Runner {
    pub fn new(model: Model, script: &Script, group: Option<&Group>) -> Result<Runner> {
        let positions = script.positions();
        let plan = SequencesPlan {
            rows: script.rows.clone(),
            record: Record::Everything,
            tape_positions: positions,
        };
        let (scores, upstream) = match &script.loss {
            Loss::LogProbabilities { targets, .. } => (Some(Scores::reserve(&model, targets.len())?), None),
            Loss::Hidden(coefficients) => {
                let shape = [positions, model.config().width];
                (None, Some(tensor(model.device(), shape, coefficients, model.dtype())?))
            }
        };
        Ok(Runner {
            masks: group.map(|group| group.draw(&model)).transpose()?.flatten(),
            sequences: Sequences::new(&model, &plan)?,
            scores,
            upstream,
            model,
        })
    }

    pub fn loss(&mut self, script: &Script) -> Result<f64> {
        self.sequences.restart()?;
        for segment in &script.segments {
            self.model.forward(&mut self.sequences, segment, self.masks.as_ref())?;
        }
        match (&script.loss, &mut self.scores) {
            (Loss::LogProbabilities { positions, targets, coefficients }, Some(scores)) => {
                scores.forward(&self.model, &self.sequences, positions, targets, 1.0)?;
                Ok(dot(&scores.log_probabilities()?, coefficients))
            }
            (Loss::Hidden(coefficients), _) => {
                Ok(dot(&values(self.sequences.hidden(0..script.positions())?)?, coefficients))
            }
            (Loss::LogProbabilities { .. }, None) => unreachable!("reserved for this loss"),
        }
    }

    /// Logits of every position, after [`Runner::loss`].
    pub fn logits(&self, script: &Script) -> Result<Vec<f64>> {
        let (positions, dtype) = (script.positions(), self.model.dtype().accumulation());
        let mut logits = Tensor::zeros(self.model.device(), [positions, self.model.config().vocab], dtype)?;
        self.model.logits(self.sequences.hidden(0..positions)?, logits.view_mut())?;
        values(logits.view())
    }

    /// What was scored, where the loss is of log-probabilities, after [`Runner::loss`].
    pub fn log_probabilities(&self) -> Result<Vec<f64>> {
        self.scores.as_ref().map_or(Ok(Vec::new()), Scores::log_probabilities)
    }

    pub fn gradient(&mut self, script: &Script, truncation: Truncation) -> Result<Vec<Vec<f64>>> {
        self.loss(script)?;
        let mut gradients = self.model.gradients()?;
        if let (Loss::LogProbabilities { coefficients, .. }, Some(scores)) = (&script.loss, &mut self.scores)
        {
            scores.backward(&self.model, &mut self.sequences, coefficients, &mut gradients)?;
        }
        if let Some(upstream) = &self.upstream {
            elementwise::add(upstream.view(), self.sequences.hidden_gradient_mut()?)?;
        }
        self.model.backward(&mut self.sequences, self.masks.as_ref(), truncation, &mut gradients)?;
        gradients.tensors()?.iter().map(|gradient| values(gradient.view())).collect()
    }
}

/// A model as something to check: its variables are what is trained, its parameters or those of its adapter.
pub struct ModelSubject {
    name: String,
    variables: Vec<Variable>,
    script: Script,
    group: Option<Group>,
    /// In f64 on the CPU: the differences and the f64 gradient.
    exact: Runner,
    /// Where the f32 gradient is computed.
    device: Device,
    truncation: Truncation,
}

impl ModelSubject {
    /// One layer of a family, its input and the final norm after it.
    ///
    /// # Errors
    /// Those of building and planning.
    pub fn layer(family: &str, seed: u64, device: &Device) -> Result<ModelSubject> {
        // Tied, so that no head is listed that the loss does not use.
        let model = small_model(small_config(family, 1, LAYER_TOKENS, LAYER_TOKENS, true)?, seed)?;
        let script = script::layer(model.config().width);
        let mut subject = ModelSubject::new(format!("layer {family}"), model, script, None, device)?;
        for (variable, parameter) in subject.variables.iter_mut().zip(subject.exact.model.parameter_list()) {
            if parameter.role == crate::model::families::Role::TokenEmbedding {
                variable.name = "input".into();
            }
        }
        Ok(subject)
    }

    /// One layer of a family with an adapter beside frozen weights; its input is trained.
    ///
    /// # Errors
    /// Those of building and planning.
    pub fn adapted_layer(family: &str, seed: u64, device: &Device) -> Result<ModelSubject> {
        let model = small_model(small_config(family, 1, LAYER_TOKENS, LAYER_TOKENS, true)?, seed)?;
        let (script, model) = (script::layer(model.config().width), with_adapter(model, seed)?);
        ModelSubject::new(format!("layer {family}, adapted"), model, script, None, device)
    }

    /// A model that runs `group`; parameters in f64 on the CPU.
    ///
    /// # Errors
    /// Those of planning: a group longer than the model's positions.
    pub fn group(name: String, model: Model, group: Group, device: &Device) -> Result<ModelSubject> {
        let script = group.script(model.config().vocab);
        ModelSubject::new(name, model, script, Some(group), device)
    }

    fn new(
        name: String,
        model: Model,
        script: Script,
        group: Option<Group>,
        device: &Device,
    ) -> Result<ModelSubject> {
        let variables: Result<Vec<Variable>> = model
            .trained_names()
            .into_iter()
            .zip(model.trained())
            .map(|(name, tensor)| Ok(Variable { name: name.into(), values: tensor.download::<f64>()? }))
            .collect();
        Ok(ModelSubject {
            name,
            variables: variables?,
            exact: Runner::new(model, &script, group.as_ref())?,
            script,
            group,
            device: device.clone(),
            truncation: Truncation::default(),
        })
    }

    /// Truncates the gradient under test: a check must notice.
    pub fn truncate(&mut self, truncation: Truncation) {
        self.truncation = truncation;
    }

    /// The same model with the same values in f32 on the device under test.
    fn single(&self) -> Result<Runner> {
        Runner::new(
            in_precision(&self.exact.model, &self.device, Precision::F32)?,
            &self.script,
            self.group.as_ref(),
        )
    }
}

/// An f64 model with the same values, rounded to `precision`, on `device`.
///
/// # Errors
/// A device without the memory, or one that does not compute in this precision.
pub fn in_precision(exact: &Model, device: &Device, precision: Precision) -> Result<Model> {
    let narrow = |from: &Tensor, to: &mut Tensor| to.upload_numbers(0, &from.download::<f64>()?);
    let fill = |index: usize, tensor: &mut Tensor| narrow(&exact.parameters()[index], tensor);
    let config = exact.config().clone();
    let mut model = Model::build(config, device, precision, |index, _, t| fill(index, t))?;
    if let Some(projector) = exact.projector() {
        let first = model.parameters().len();
        model = model.with_projector(projector, |index, _, tensor| fill(first + index, tensor))?;
    }
    if exact.has_gates() {
        let first = model.parameters().len();
        model = model.with_gates(|index, _, tensor| fill(first + index, tensor))?;
    }
    if let Some(config) = exact.adapter() {
        model.adapt_with(config.clone(), |index, _, tensor| narrow(&exact.trained()[index], tensor))?;
    }
    Ok(model)
}

/// The same, and `exact` takes over the rounded values: both then hold the same numbers.
///
/// # Errors
/// As [`in_precision`].
pub fn rounded(exact: &mut Model, device: &Device, precision: Precision) -> Result<Model> {
    let low = in_precision(exact, device, precision)?;
    let take = |to: &mut [Tensor], from: &[Tensor]| -> Result<()> {
        to.iter_mut().zip(from).try_for_each(|(to, from)| to.upload_numbers(0, &from.view().numbers()?))
    };
    take(exact.trained_mut(), low.trained())?;
    take(exact.parameters_mut(), low.parameters())?;
    Ok(low)
}

impl Subject for ModelSubject {
    fn name(&self) -> &str {
        &self.name
    }

    fn variables(&self) -> &[Variable] {
        &self.variables
    }

    fn set(&mut self, variable: usize, at: usize, values: &[f64]) -> Result<()> {
        self.exact.model.trained_mut()[variable].upload_at(at, values)
    }

    fn loss(&mut self) -> Result<f64> {
        self.exact.loss(&self.script)
    }

    fn gradient(&mut self, dtype: Dtype) -> Result<Vec<Vec<f64>>> {
        match dtype {
            Dtype::F64 => self.exact.gradient(&self.script, self.truncation),
            _ => self.single()?.gradient(&self.script, self.truncation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Input, RowPlan};
    use crate::ops::mask::SiteKind;
    use crate::rollout::masks::{Masking, Mode, Scope};

    fn group(share: bool) -> Group {
        let masking =
            Masking { p: 0.2, sites: SiteKind::ALL.to_vec(), scope: Scope::Latent, mode: Mode::Shared };
        Group { prompt: 7, rollouts: 2, latents: 3, answer: 4, share, masking, seed: 0 }
    }

    #[test]
    fn a_shared_script_runs_the_prompt_once() {
        let (shared, own) = (group(true).script(31), group(false).script(31));
        assert_eq!(shared.positions(), 6 + 2 * (1 + 3 + 4));
        assert_eq!(own.positions(), 2 * 14);
        assert_eq!((shared.rows.len(), own.rows.len()), (3, 2));
        assert!(matches!(shared.rows[1], RowPlan { capacity: 14, prefix: Some((0, 6)) }));
        let inputs: Vec<&Input> = own.segments.iter().flat_map(|segment| &segment.inputs).collect();
        assert_eq!(inputs.iter().filter(|input| matches!(input, Input::Latent)).count(), 6);
        assert_eq!(inputs.iter().filter(|input| matches!(input, Input::Soft(_))).count(), 2);
        // Latent scope: the start token and the latents, no more.
        let masked =
            shared.segments.iter().flat_map(|s| &s.instances).filter(|&&instance| instance >= 0).count();
        assert_eq!(masked, 2 * 4);
        let Loss::LogProbabilities { positions, .. } = &shared.loss else { panic!("a score") };
        assert_eq!(positions.len(), 2 * 5);
        assert_eq!(positions[0] as usize, 6 + 2 * 3, "the first answer token is scored at the last latent");
    }

    #[test]
    fn a_layer_script_names_every_position() {
        let script = script::layer(5);
        assert_eq!(script.positions(), LAYER_TOKENS);
        let mut tokens: Vec<u32> = script
            .segments
            .iter()
            .flat_map(|segment| &segment.inputs)
            .map(|input| if let Input::Token(token) = input { *token } else { panic!("a token") })
            .collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..LAYER_TOKENS as u32).collect::<Vec<_>>());
    }
}
