//! The keys of a config.json, read into a [`Config`]: each is read, refused or defaulted here and nowhere else.

use super::{Activation, Config, Family, Rope, RopeScaling};
use crate::base::{Error, Result};
use crate::model::stored::Stored;
use serde_json::{Map, Value};
use std::path::Path;

/// The context before it was stretched. Beside the scaling it wins over the one inside, and is the model's own context
/// where neither is given: transformers' rules.
const ORIGINAL: &str = "original_max_position_embeddings";

/// What GPT-2's own tokenizer begins and ends texts with. transformers writes it into the config of any GPT-2 whose
/// maker named no such token, whatever its vocabulary.
const GPT2_END_OF_TEXT: u32 = 50256;

/// The keys of one config.json, with its path for messages.
pub(super) struct Keys<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) path: &'a Path,
}

impl Keys<'_> {
    pub(super) fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::file(self.path, problem, "correct config.json, or fetch it again beside its weights")
    }

    fn unsupported(&self, problem: impl Into<String>) -> Error {
        Error::file(self.path, problem, "latch does not compute this; use another model")
    }

    /// The value, with `null` counted as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn size_or_none(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong(format!("{key} = {value}, expected a whole number")))
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.size_or_none(key)?.ok_or_else(|| self.wrong(format!("{key} is missing")))
    }

    fn number(&self, key: &str, absent: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(absent),
            Some(value) => {
                value.as_f64().ok_or_else(|| self.wrong(format!("{key} = {value}, expected a number")))
            }
        }
    }

    fn flag(&self, key: &str, absent: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(absent),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.wrong(format!("{key} = {value}, expected true or false")))
            }
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => {
                value.as_str().map(Some).ok_or_else(|| self.wrong(format!("{key} = {value}, expected text")))
            }
        }
    }

    /// A token id, a list of them, or nothing.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let wrong = |value: &Value| self.wrong(format!("{key} holds {value}, expected a token id"));
        let id =
            |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| wrong(value));
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    fn id(&self, key: &str) -> Result<Option<u32>> {
        // -1 stands for "none" in some older files.
        if self.get(key).and_then(Value::as_i64) == Some(-1) {
            return Ok(None);
        }
        Ok(self.ids(key)?.first().copied())
    }

    pub(super) fn family(&self) -> Result<Family> {
        let known = || Family::ALL.map(|(_, model_type, _)| model_type).join(", ");
        if let Some(name) = self.text("model_type")? {
            let found = Family::ALL.iter().find(|(_, model_type, _)| *model_type == name);
            return found.map(|(family, ..)| *family).ok_or_else(|| {
                let problem = format!("unknown architecture: model_type = \"{name}\"");
                Error::file(self.path, problem, format!("known: {}", known()))
            });
        }
        let name = self.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        let Some(name) = name else {
            return Err(self.wrong("model_type is missing"));
        };
        let found = Family::ALL.iter().find(|(_, _, architecture)| *architecture == name);
        found.map(|(family, ..)| *family).ok_or_else(|| {
            let problem = format!("unknown architecture: \"{name}\"");
            Error::file(self.path, problem, format!("known: {}", known()))
        })
    }

    /// Settings that change the arithmetic in ways latch does not follow.
    pub(super) fn refuse_unknown_arithmetic(&self, family: Family) -> Result<()> {
        for key in ["quantization_config", "attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"] {
            if let Some(value) = self.get(key) {
                return Err(self.unsupported(format!("{key} = {value} is not supported")));
            }
        }
        let factors = [
            "attention_multiplier",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
            "partial_rotary_factor",
        ];
        for key in factors {
            if self.number(key, 1.0)? != 1.0 {
                return Err(self.unsupported(format!("{key} = {} is not supported, only 1", self.map[key])));
            }
        }
        for key in ["rope_interleaved", "add_cross_attention", "scale_attn_by_inverse_layer_idx", "use_mrope"]
        {
            if self.flag(key, false)? {
                return Err(self.unsupported(format!("{key} = true is not supported")));
            }
        }
        if family == Family::Gpt2 && !self.flag("scale_attn_weights", true)? {
            return Err(self.unsupported("scale_attn_weights = false is not supported"));
        }
        for key in ["num_experts", "num_local_experts"] {
            if self.size_or_none(key)?.unwrap_or(0) > 1 {
                return Err(self.unsupported(format!(
                    "{key} = {}: mixtures of experts are not supported",
                    self.map[key]
                )));
            }
        }
        Ok(())
    }

    /// Sliding windows shorter than the context, where transformers would use them: where `layer_types` is given it alone
    /// decides. Without it Qwen slides if told so. GPT-2 and Llama never mask a window, but their cache drops what is beyond
    /// it, so that transformers' forward pass is one of full attention and its generation is not.
    fn refuse_sliding_window(&self, family: Family, layers: usize, positions: usize) -> Result<()> {
        if let Some(types) = self.get("layer_types") {
            let listed = types.as_array().filter(|list| list.len() == layers);
            let other = types.as_array().and_then(|list| list.iter().find(|t| **t != "full_attention"));
            return match (other, listed) {
                (Some(other), _) => Err(self
                    .unsupported(format!("layer_types holds {other}, only \"full_attention\" is supported"))),
                (None, Some(_)) => Ok(()),
                (None, None) => {
                    Err(self.wrong(format!("layer_types = {types}, expected a list of {layers} kinds")))
                }
            };
        }
        // transformers' defaults where a file says nothing: 4096 positions, from layer 28 on.
        let (absent, used) = match family {
            Family::Qwen2 | Family::Qwen3 => {
                let first = self.size_or_none("max_window_layers")?.unwrap_or(28);
                let used = self.flag("use_sliding_window", false)? && first < layers;
                ((!self.map.contains_key("sliding_window")).then_some(4096), used)
            }
            _ => (None, true),
        };
        let Some(window) = self.size_or_none("sliding_window")?.or(absent) else { return Ok(()) };
        if !used || window >= positions {
            return Ok(());
        }
        let problem = format!(
            "sliding_window = {window} of {positions} positions is not supported, only full attention"
        );
        match family {
            Family::Qwen2 | Family::Qwen3 => Err(self.unsupported(problem)),
            Family::Gpt2 | Family::Llama => Err(Error::file(
                self.path,
                format!("{problem}: transformers would drop keys beyond it when it generates"),
                "if the model was trained with full attention, remove sliding_window, or list every layer in layer_types as \"full_attention\"",
            )),
        }
    }

    fn activation(
        &self,
        key: &str,
        absent: &str,
        known: &[&str],
        activation: Activation,
    ) -> Result<Activation> {
        let name = self.text(key)?.unwrap_or(absent);
        if known.contains(&name) {
            return Ok(activation);
        }
        Err(self.unsupported(format!("{key} = \"{name}\" is not supported, only {}", known.join(", "))))
    }

    fn stored(&self) -> Result<Option<Stored>> {
        let Some(name) = self.text("dtype")?.or(self.text("torch_dtype")?) else { return Ok(None) };
        match Stored::from_torch_name(name.trim_start_matches("torch.")) {
            Some(stored) => Ok(Some(stored)),
            None if name == "auto" => Ok(None),
            None => Err(self
                .wrong(format!("dtype = \"{name}\" is unknown; known: float32, float16, bfloat16, float64"))),
        }
    }

    pub(super) fn gpt2(&self) -> Result<Config> {
        let width = self.size("n_embd")?;
        let heads = self.size("n_head")?;
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(self.wrong(format!("n_embd = {width} is not a multiple of n_head = {heads}")));
        }
        let vocab = self.size("vocab_size")?;
        let max_positions = match self.size_or_none("n_positions")? {
            Some(positions) => positions,
            None => self.size("n_ctx")?,
        };
        let layers = self.size("n_layer")?;
        self.refuse_sliding_window(Family::Gpt2, layers, max_positions)?;
        // transformers' defaults where an old file says nothing; and nothing where the vocabulary has no such token.
        let inside = vocab > GPT2_END_OF_TEXT as usize;
        let absent = |key: &str| (!self.map.contains_key(key) && inside).then_some(GPT2_END_OF_TEXT);
        let meant = |id: &u32| inside || *id != GPT2_END_OF_TEXT;
        let eos: Vec<u32> = self.ids("eos_token_id")?.into_iter().filter(meant).collect();
        let bos = self.id("bos_token_id")?.filter(meant);
        Ok(Config {
            family: Family::Gpt2,
            vocab,
            width,
            layers,
            heads,
            kv_heads: heads,
            head_dim: width / heads,
            mlp_hidden: self.size_or_none("n_inner")?.unwrap_or(width.saturating_mul(4)),
            max_positions,
            norm_eps: self.number("layer_norm_epsilon", 1e-5)?,
            activation: self.activation(
                "activation_function",
                "gelu_new",
                &["gelu_new", "gelu_pytorch_tanh", "gelu_fast"],
                Activation::GeluTanh,
            )?,
            rope: None,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            qk_norm: false,
            tied: self.flag("tie_word_embeddings", true)?,
            bos: bos.or(absent("bos_token_id")),
            eos: if eos.is_empty() { absent("eos_token_id").into_iter().collect() } else { eos },
            pad: self.id("pad_token_id")?,
            stored: self.stored()?,
            raw: Map::new(),
        })
    }

    pub(super) fn llama_like(&self, family: Family) -> Result<Config> {
        let (width, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let head_dim = match self.size_or_none("head_dim")? {
            Some(head_dim) => head_dim,
            // transformers' default of this family, whatever the width.
            None if family == Family::Qwen3 && !self.map.contains_key("head_dim") => 128,
            None if heads > 0 && width.is_multiple_of(heads) => width / heads,
            None => {
                return Err(self.wrong(format!(
                    "hidden_size = {width} is not a multiple of num_attention_heads = {heads}, and head_dim is not given"
                )));
            }
        };
        let layers = self.size("num_hidden_layers")?;
        let max_positions = self.size("max_position_embeddings")?;
        self.refuse_sliding_window(family, layers, max_positions)?;
        let attention_bias = family != Family::Qwen2 && self.flag("attention_bias", false)?;
        Ok(Config {
            family,
            vocab: self.size("vocab_size")?,
            width,
            layers,
            heads,
            kv_heads: self.size_or_none("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            mlp_hidden: self.size("intermediate_size")?,
            max_positions,
            norm_eps: self.number("rms_norm_eps", 1e-6)?,
            activation: self.activation("hidden_act", "silu", &["silu", "swish"], Activation::Silu)?,
            rope: Some(self.rope(max_positions)?),
            qkv_bias: attention_bias || family == Family::Qwen2,
            output_bias: attention_bias,
            mlp_bias: family == Family::Llama && self.flag("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            tied: self.flag("tie_word_embeddings", false)?,
            bos: self.id("bos_token_id")?,
            eos: self.ids("eos_token_id")?,
            pad: self.id("pad_token_id")?,
            stored: self.stored()?,
            raw: Map::new(),
        })
    }

    /// `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (transformers 4). A file that has both
    /// means `rope_scaling`, as it does to transformers 5.
    fn rope(&self, max_positions: usize) -> Result<Rope> {
        let object = |key: &str| match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(format!("{key} = {other}, expected an object"))),
        };
        let top = self.number("rope_theta", 10_000.0)?;
        // The order of transformers, which also passes over empty objects.
        let forms = [object("rope_scaling")?, object("rope_parameters")?];
        let Some(map) = forms.into_iter().flatten().find(|map| !map.is_empty()) else {
            return Ok(Rope { theta: top, scaling: RopeScaling::None });
        };
        let keys = Keys { map, path: self.path };
        if let Some(key) = map.iter().find_map(|(key, value)| value.is_object().then_some(key)) {
            return Err(
                self.unsupported(format!("rope settings per kind of layer (\"{key}\") are not supported"))
            );
        }
        if keys.number("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(self.unsupported("a partial_rotary_factor other than 1 is not supported"));
        }
        let kind = keys.text("rope_type")?.or(keys.text("type")?).unwrap_or("default");
        let positive = |key: &str| -> Result<f64> {
            let value = keys.number(key, f64::NAN)?;
            if value.is_finite() && value > 0.0 {
                return Ok(value);
            }
            let found = map.get(key).map_or("missing".to_string(), Value::to_string);
            Err(self.wrong(format!("rope scaling \"{kind}\": {key} is {found}, expected a positive number")))
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: positive("factor")? },
            "llama3" => {
                let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
                if high <= low {
                    return Err(self.wrong(format!(
                        "rope scaling \"llama3\": high_freq_factor = {high} must exceed low_freq_factor = {low}"
                    )));
                }
                RopeScaling::Llama3 {
                    factor: positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: match self.size_or_none(ORIGINAL)? {
                        Some(beside) => beside as f64,
                        None if keys.get(ORIGINAL).is_none() => max_positions as f64,
                        None => positive(ORIGINAL)?,
                    },
                }
            }
            other => {
                return Err(self.unsupported(format!(
                    "rope scaling \"{other}\" is not supported; known: default, linear, llama3"
                )));
            }
        };
        Ok(Rope { theta: keys.number("rope_theta", top)?, scaling })
    }
}
