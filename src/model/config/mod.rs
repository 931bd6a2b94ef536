//! What a model is: one description for GPT-2, Llama, Qwen2 and Qwen3, read from Hugging Face's config.json.
//!
//! Both forms are read that are found in the wild: transformers 4 (`rope_theta` + `rope_scaling`, `torch_dtype`) and
//! transformers 5 (`rope_parameters`, `dtype`). A setting that latch does not compute is an error, never ignored.
//! The raw JSON is kept, so that writing a config back loses no key.
//! Left out: the list of parameters (families.rs) and GGUF (gguf_model.rs makes the same JSON from its metadata).

mod keys;

use super::stored::Stored;
use crate::base::{Error, Result};
pub use crate::ops::rope::Scaling as RopeScaling;
use keys::Keys;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Largest config.json that is read; real ones have a few KiB.
const LARGEST_FILE: u64 = 16 << 20;

/// A family of models: how a layer is built and what its tensors are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Learned positions, LayerNorm, GELU, biases everywhere (`gpt2`).
    Gpt2,
    /// Rotary positions, RMS norm, SwiGLU (`llama`: Llama 2 and 3, SmolLM2).
    Llama,
    /// Llama with biases on query, key and value (`qwen2`: Qwen2 and 2.5).
    Qwen2,
    /// Llama with RMS norms on query and key (`qwen3`).
    Qwen3,
}

impl Family {
    /// All families: `model_type` and architecture of config.json.
    pub const ALL: [(Family, &'static str, &'static str); 4] = [
        (Family::Gpt2, "gpt2", "GPT2LMHeadModel"),
        (Family::Llama, "llama", "LlamaForCausalLM"),
        (Family::Qwen2, "qwen2", "Qwen2ForCausalLM"),
        (Family::Qwen3, "qwen3", "Qwen3ForCausalLM"),
    ];

    /// The `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        Family::ALL[self as usize].1
    }
}

/// The nonlinearity of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh form, not gated: `down(gelu(up(x)))`.
    GeluTanh,
    /// Gated SiLU: `down(silu(gate(x)) * up(x))`.
    Silu,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching for long contexts.
    pub scaling: RopeScaling,
}

/// Everything that determines a model's parameters and its forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Family.
    pub family: Family,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; need not be `width / heads`.
    pub head_dim: usize,
    /// Hidden width of the MLP.
    pub mlp_hidden: usize,
    /// Positions: rows of the position table (GPT-2), or the trained context.
    pub max_positions: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Nonlinearity of the MLP.
    pub activation: Activation,
    /// Rotary positions; `None` for GPT-2's learned ones.
    pub rope: Option<Rope>,
    /// Biases on query, key and value.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub output_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norms over each head of query and key.
    pub qk_norm: bool,
    /// The output head is the token embedding.
    pub tied: bool,
    /// Beginning-of-text token.
    pub bos: Option<u32>,
    /// End-of-text tokens; may be empty or several.
    pub eos: Vec<u32>,
    /// Padding token.
    pub pad: Option<u32>,
    /// How the weights were stored, where the file says.
    pub stored: Option<Stored>,
    raw: Map<String, Value>,
}

impl Config {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// The file is missing, not JSON, contradicts itself, or asks for something latch does not compute.
    pub fn from_folder(folder: &Path) -> Result<Config> {
        let path = folder.join("config.json");
        Config::from_json(read_json(&path)?, &path)
    }

    /// Reads the contents of a config.json; `path` names the source in errors.
    ///
    /// # Errors
    /// As [`Config::from_folder`].
    pub fn from_json(json: Value, path: &Path) -> Result<Config> {
        let Value::Object(raw) = json else {
            return Err(Error::file(path, "is not a JSON object", "expected Hugging Face's config.json"));
        };
        let keys = Keys { map: &raw, path };
        let family = keys.family()?;
        keys.refuse_unknown_arithmetic(family)?;
        let mut config = match family {
            Family::Gpt2 => keys.gpt2()?,
            _ => keys.llama_like(family)?,
        };
        config.check(&keys)?;
        config.raw = raw;
        Ok(config)
    }

    /// The config as config.json holds it: every key that was read, with vocabulary, tying and `dtype` as they are
    /// now.
    pub fn to_json(&self, stored: Stored) -> Value {
        let mut raw = self.raw.clone();
        let (_, model_type, architecture) = Family::ALL[self.family as usize];
        raw.insert("model_type".into(), json!(model_type));
        raw.insert("vocab_size".into(), json!(self.vocab));
        raw.insert("tie_word_embeddings".into(), json!(self.tied));
        raw.entry("architectures").or_insert_with(|| json!([architecture]));
        let older = raw.contains_key("torch_dtype");
        raw.insert(if older { "torch_dtype" } else { "dtype" }.into(), json!(stored.torch_name()));
        if older && raw.contains_key("dtype") {
            raw.insert("dtype".into(), json!(stored.torch_name()));
        }
        Value::Object(raw)
    }

    /// The name config.json uses for the width: for messages.
    pub fn width_key(&self) -> &'static str {
        if self.family == Family::Gpt2 { "n_embd" } else { "hidden_size" }
    }

    /// Columns of the query projection: `heads * head_dim`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the key and of the value projection: `kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Contradictions and sizes that cannot be real.
    fn check(&self, keys: &Keys) -> Result<()> {
        let sizes = [
            ("vocabulary", self.vocab, 1 << 24),
            ("width", self.width, 1 << 20),
            ("number of layers", self.layers, 1 << 12),
            ("number of heads", self.heads, 1 << 14),
            ("number of key/value heads", self.kv_heads, 1 << 14),
            ("head width", self.head_dim, 1 << 14),
            ("MLP width", self.mlp_hidden, 1 << 24),
            ("number of positions", self.max_positions, 1 << 28),
        ];
        for (what, found, most) in sizes {
            if found == 0 || found > most {
                return Err(keys.wrong(format!("the {what} is {found}, expected 1 to {most}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(keys.wrong(format!(
                "{} heads cannot share {} key/value heads: num_attention_heads must be a multiple of num_key_value_heads",
                self.heads, self.kv_heads
            )));
        }
        if let Some(rope) = &self.rope {
            if !self.head_dim.is_multiple_of(2) {
                return Err(
                    keys.wrong(format!("rotary positions need an even head width, found {}", self.head_dim))
                );
            }
            if !(rope.theta.is_finite() && rope.theta > 0.0) {
                return Err(keys.wrong(format!("rope_theta = {}, expected a positive number", rope.theta)));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0 && self.norm_eps < 1.0) {
            return Err(keys.wrong(format!("the norms' epsilon is {}, expected 0 to 1", self.norm_eps)));
        }
        let special = [self.bos, self.pad].into_iter().flatten().chain(self.eos.iter().copied());
        for id in special {
            if id as usize >= self.vocab {
                return Err(keys.wrong(format!("token id {id} is outside the vocabulary of {}", self.vocab)));
            }
        }
        Ok(())
    }
}

/// Reads a small JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let size = std::fs::metadata(path).map_err(Error::io(path, "cannot open"))?.len();
    if size > LARGEST_FILE {
        return Err(Error::file(path, format!("has {size} bytes"), "this is no configuration file"));
    }
    let text = std::fs::read(path).map_err(Error::io(path, "cannot read"))?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::file(path, format!("is not valid JSON: {error}"), "the download looks incomplete or damaged")
    })
}
