//! Which parameters a config asks for: Hugging Face's names, shapes, what each is for, and how matrices lie.
//!
//! One list drives loading, saving, initialisation and the optimiser. Names are those of transformers'
//! `named_parameters()`; files may leave the prefix away (GPT-2 on the hub has `wte.weight`), and may hold buffers
//! that are no parameters: [`Names::resolve`] settles both.

use super::config::{Config, Family};
use super::gates::GateRole;
use super::projector::ProjectorRole;
use crate::base::Shape;
use std::collections::HashMap;

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `[vocab, width]`, one row a token.
    TokenEmbedding,
    /// `[max_positions, width]`, GPT-2 only.
    PositionEmbedding,
    /// A parameter of layer `.0`.
    Layer(usize, LayerRole),
    /// Gain of the norm after the last layer, `[width]`.
    FinalNormGain,
    /// Its bias, GPT-2 only.
    FinalNormBias,
    /// `[vocab, width]`; absent when tied to the token embedding.
    OutputHead,
    /// A parameter of HRPO's gates, which no family has by itself.
    Gate(GateRole),
    /// A parameter of the projector of latents, which no family has by itself.
    Projector(ProjectorRole),
}

/// What a parameter of a layer is for. GPT-2's `c_fc` and `c_proj` are `Up` and `Down`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerRole {
    /// Gain of the norm before attention, `[width]`.
    Norm1Gain,
    /// Its bias, GPT-2 only.
    Norm1Bias,
    /// Query, key and value in one matrix, GPT-2 only: `[width, 3 * width]`, columns query, key, value.
    QkvWeight,
    /// Its bias, `[3 * width]`.
    QkvBias,
    /// `[heads * head_dim, width]`.
    QueryWeight,
    /// `[heads * head_dim]`.
    QueryBias,
    /// `[kv_heads * head_dim, width]`.
    KeyWeight,
    /// `[kv_heads * head_dim]`.
    KeyBias,
    /// `[kv_heads * head_dim, width]`.
    ValueWeight,
    /// `[kv_heads * head_dim]`.
    ValueBias,
    /// Gain of the norm over each query head, `[head_dim]`.
    QueryNorm,
    /// Gain of the norm over each key head, `[head_dim]`.
    KeyNorm,
    /// Attention output: from `heads * head_dim` to `width`.
    OutputWeight,
    /// `[width]`.
    OutputBias,
    /// Gain of the norm before the MLP, `[width]`.
    Norm2Gain,
    /// Its bias, GPT-2 only.
    Norm2Bias,
    /// Gate of a gated MLP: from `width` to `mlp_hidden`.
    GateWeight,
    /// `[mlp_hidden]`.
    GateBias,
    /// From `width` to `mlp_hidden`.
    UpWeight,
    /// `[mlp_hidden]`.
    UpBias,
    /// From `mlp_hidden` to `width`.
    DownWeight,
    /// `[width]`.
    DownBias,
}

/// How a parameter lies in a file and in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A projection, one row an output (`torch.nn.Linear`).
    OutIn,
    /// A projection, one row an input (GPT-2's `Conv1D`).
    InOut,
    /// A table of rows to look up.
    Table,
    /// A vector.
    Vector,
}

/// One parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Hugging Face's full name, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Shape as stored.
    pub shape: Shape,
    /// What it is for.
    pub role: Role,
    /// How it lies.
    pub layout: Layout,
}

/// The fewest tensors a layer of any family has; bounds the list before it is made.
pub(crate) const FEWEST_PER_LAYER: usize = 9;

/// All parameters of a model, embeddings first, then layer by layer, then the final norm and the head.
pub fn parameters(config: &Config) -> Vec<Parameter> {
    let mut list = List { config, parameters: Vec::new() };
    match config.family {
        Family::Gpt2 => list.gpt2(),
        _ => list.llama_like(),
    }
    list.parameters
}

/// Number of elements of all parameters.
pub fn parameter_count(config: &Config) -> usize {
    parameters(config).iter().map(|p| p.shape.elements()).sum()
}

struct List<'a> {
    config: &'a Config,
    parameters: Vec<Parameter>,
}

impl List<'_> {
    fn vector(&mut self, name: String, length: usize, role: Role) {
        self.parameters.push(Parameter { name, shape: length.into(), role, layout: Layout::Vector });
    }

    fn matrix(&mut self, name: String, shape: [usize; 2], role: Role, layout: Layout) {
        self.parameters.push(Parameter { name, shape: shape.into(), role, layout });
    }

    fn gpt2(&mut self) {
        use LayerRole::*;
        let c = self.config;
        let width = c.width;
        self.matrix("transformer.wte.weight".into(), [c.vocab, width], Role::TokenEmbedding, Layout::Table);
        let positions = [c.max_positions, width];
        self.matrix("transformer.wpe.weight".into(), positions, Role::PositionEmbedding, Layout::Table);
        for layer in 0..c.layers {
            let name = |rest: &str| format!("transformer.h.{layer}.{rest}");
            let role = |role| Role::Layer(layer, role);
            self.vector(name("ln_1.weight"), width, role(Norm1Gain));
            self.vector(name("ln_1.bias"), width, role(Norm1Bias));
            self.matrix(name("attn.c_attn.weight"), [width, 3 * width], role(QkvWeight), Layout::InOut);
            self.vector(name("attn.c_attn.bias"), 3 * width, role(QkvBias));
            self.matrix(name("attn.c_proj.weight"), [width, width], role(OutputWeight), Layout::InOut);
            self.vector(name("attn.c_proj.bias"), width, role(OutputBias));
            self.vector(name("ln_2.weight"), width, role(Norm2Gain));
            self.vector(name("ln_2.bias"), width, role(Norm2Bias));
            self.matrix(name("mlp.c_fc.weight"), [width, c.mlp_hidden], role(UpWeight), Layout::InOut);
            self.vector(name("mlp.c_fc.bias"), c.mlp_hidden, role(UpBias));
            self.matrix(name("mlp.c_proj.weight"), [c.mlp_hidden, width], role(DownWeight), Layout::InOut);
            self.vector(name("mlp.c_proj.bias"), width, role(DownBias));
        }
        self.vector("transformer.ln_f.weight".into(), width, Role::FinalNormGain);
        self.vector("transformer.ln_f.bias".into(), width, Role::FinalNormBias);
        self.head();
    }

    fn llama_like(&mut self) {
        use LayerRole::*;
        let c = self.config;
        let (width, query, kv) = (c.width, c.query_width(), c.kv_width());
        self.matrix(
            "model.embed_tokens.weight".into(),
            [c.vocab, width],
            Role::TokenEmbedding,
            Layout::Table,
        );
        for layer in 0..c.layers {
            let name = |rest: &str| format!("model.layers.{layer}.{rest}");
            let role = |role| Role::Layer(layer, role);
            self.vector(name("input_layernorm.weight"), width, role(Norm1Gain));
            for (part, out, weight, bias) in [
                ("q_proj", query, QueryWeight, QueryBias),
                ("k_proj", kv, KeyWeight, KeyBias),
                ("v_proj", kv, ValueWeight, ValueBias),
            ] {
                let stem = name(&format!("self_attn.{part}"));
                self.linear(stem, [out, width], c.qkv_bias, role(weight), role(bias));
            }
            if c.qk_norm {
                self.vector(name("self_attn.q_norm.weight"), c.head_dim, role(QueryNorm));
                self.vector(name("self_attn.k_norm.weight"), c.head_dim, role(KeyNorm));
            }
            let stem = name("self_attn.o_proj");
            self.linear(stem, [width, query], c.output_bias, role(OutputWeight), role(OutputBias));
            self.vector(name("post_attention_layernorm.weight"), width, role(Norm2Gain));
            for (part, shape, weight, bias) in [
                ("gate_proj", [c.mlp_hidden, width], GateWeight, GateBias),
                ("up_proj", [c.mlp_hidden, width], UpWeight, UpBias),
                ("down_proj", [width, c.mlp_hidden], DownWeight, DownBias),
            ] {
                self.linear(name(&format!("mlp.{part}")), shape, c.mlp_bias, role(weight), role(bias));
            }
        }
        self.vector("model.norm.weight".into(), width, Role::FinalNormGain);
        self.head();
    }

    fn linear(&mut self, stem: String, shape: [usize; 2], with_bias: bool, weight: Role, bias: Role) {
        self.matrix(format!("{stem}.weight"), shape, weight, Layout::OutIn);
        if with_bias {
            self.vector(format!("{stem}.bias"), shape[0], bias);
        }
    }

    fn head(&mut self) {
        let shape = [self.config.vocab, self.config.width];
        if !self.config.tied {
            self.matrix("lm_head.weight".into(), shape, Role::OutputHead, Layout::OutIn);
        }
    }
}

/// What a tensor in a file turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Parameter with this index in the list.
    Parameter(usize),
    /// An output head in the file of a tied model; must equal the token embedding.
    TiedHead,
    /// A buffer that transformers once saved (causal masks, rotary frequencies): not needed.
    Buffer,
    /// Nothing this model has.
    Unknown,
}

/// Finds parameters by the names files use.
#[derive(Debug)]
pub struct Names {
    by_name: HashMap<String, usize>,
    prefix: &'static str,
    tied: bool,
}

impl Names {
    /// The names of `parameters(config)`.
    pub fn new(config: &Config, parameters: &[Parameter]) -> Names {
        let by_name = parameters.iter().enumerate().map(|(i, p)| (p.name.clone(), i)).collect();
        let prefix = if config.family == Family::Gpt2 { "transformer." } else { "model." };
        Names { by_name, prefix, tied: config.tied }
    }

    /// What the tensor called `name` in a file is; with or without the family's prefix.
    pub fn resolve(&self, name: &str) -> Found {
        let index = self.by_name.get(name).or_else(|| self.by_name.get(&format!("{}{name}", self.prefix)));
        if let Some(index) = index {
            return Found::Parameter(*index);
        }
        if self.tied && name == "lm_head.weight" {
            return Found::TiedHead;
        }
        let buffers = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
        if buffers.iter().any(|end| name.ends_with(end)) {
            return Found::Buffer;
        }
        Found::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn config(json: serde_json::Value) -> Config {
        Config::from_json(json, Path::new("config.json")).unwrap()
    }

    #[test]
    fn counts_of_real_models() {
        let gpt2 = json!({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_head": 12, "n_layer": 12,
            "n_positions": 1024});
        assert_eq!(parameter_count(&config(gpt2)), 124_439_808);
        let smollm2 = json!({"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "num_attention_heads": 9,
            "num_key_value_heads": 3, "num_hidden_layers": 30, "intermediate_size": 1536,
            "max_position_embeddings": 8192, "tie_word_embeddings": true});
        assert_eq!(parameter_count(&config(smollm2)), 134_515_008);
        let qwen2 = json!({"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "num_attention_heads": 14,
            "num_key_value_heads": 2, "num_hidden_layers": 24, "intermediate_size": 4864,
            "max_position_embeddings": 32768, "tie_word_embeddings": true});
        assert_eq!(parameter_count(&config(qwen2)), 494_032_768);
        let qwen3 = json!({"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 28, "intermediate_size": 3072,
            "max_position_embeddings": 40960, "tie_word_embeddings": true});
        assert_eq!(parameter_count(&config(qwen3)), 596_049_920);
    }

    #[test]
    fn names_with_and_without_prefix() {
        let config =
            config(json!({"model_type": "gpt2", "vocab_size": 5, "n_embd": 4, "n_head": 2, "n_layer": 1,
            "n_positions": 8}));
        let list = parameters(&config);
        let names = Names::new(&config, &list);
        assert_eq!(names.resolve("wte.weight"), Found::Parameter(0));
        assert_eq!(names.resolve("transformer.wte.weight"), Found::Parameter(0));
        assert_eq!(names.resolve("h.0.attn.bias"), Found::Buffer);
        assert_eq!(names.resolve("lm_head.weight"), Found::TiedHead);
        assert_eq!(names.resolve("h.1.ln_1.weight"), Found::Unknown);
    }
}
