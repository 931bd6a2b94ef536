//! What a GGUF file's metadata and tensor names mean: a config in Hugging Face's terms, Hugging Face's names, and the
//! tokenizer's parts.
//!
//! Conventions of llama.cpp's converter that are undone here:
//!   * architecture `llama`: rows of query and key are interleaved (2j, 2j + 1 rotate together) where Hugging Face
//!     keeps halves (j, j + head_dim / 2);
//!   * `gpt2`: `Conv1D` matrices are transposed;
//!   * Llama 3's rope scaling is stored as one divisor a frequency (`rope_freqs.weight`), from which its four numbers
//!     are recovered, and checked to give the same divisors;
//!   * no `output.weight` means that the output head is the token embedding.

use super::gguf::GgufFile;
use super::stored::Stored;
use crate::base::{Error, Result};
use crate::text::{GgufVocabulary, Tokenizer};
use serde_json::{Map, Value, json};

/// How a tensor lies in a file, seen from Hugging Face's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// The same way.
    Same,
    /// Rows and columns exchanged.
    Transposed,
    /// Rows of each head interleaved: file row `2j + half` is our row `half * head_dim / 2 + j`.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
}

const UNSUPPORTED: &str = "latch does not compute this; use another model";

/// The file's metadata with the architecture's prefix.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, rest: &str) -> String {
        format!("{}.{rest}", self.architecture)
    }

    fn size(&self, rest: &str) -> Result<Option<u64>> {
        self.file.whole(&self.key(rest))
    }

    fn required(&self, rest: &str) -> Result<u64> {
        let missing =
            || self.file.wrong(format!("metadata key {} is missing", self.key(rest)), "use another file");
        self.size(rest)?.ok_or_else(missing)
    }

    fn number(&self, rest: &str) -> Result<Option<f64>> {
        self.file.number(&self.key(rest))
    }

    fn unsupported(&self, problem: String) -> Error {
        self.file.wrong(problem, UNSUPPORTED)
    }
}

/// The architecture, if it is one we know.
fn architecture(file: &GgufFile) -> Result<&str> {
    let name = file.text("general.architecture")?;
    let known = ["gpt2", "llama", "qwen2", "qwen3"];
    match name {
        Some(name) if known.contains(&name) => Ok(name),
        Some(name) => Err(file.wrong(
            format!("unknown architecture: general.architecture = \"{name}\""),
            &format!("known: {}", known.join(", ")),
        )),
        None => Err(file.wrong("metadata key general.architecture is missing", "use another file")),
    }
}

/// The same model's config.json.
pub fn config_json(file: &GgufFile) -> Result<Value> {
    let keys = Keys { file, architecture: architecture(file)? };
    let find = |name: &str| file.tensors().iter().position(|tensor| tensor.name == name);
    if keys.size("expert_count")?.unwrap_or(0) > 1 {
        return Err(keys.unsupported("mixtures of experts are not supported".into()));
    }
    for rest in
        ["attention.scale", "logit_scale", "residual_scale", "embedding_scale", "attn_logit_softcapping"]
    {
        if file.has(&keys.key(rest)) {
            return Err(keys.unsupported(format!("metadata key {} is not supported", keys.key(rest))));
        }
    }
    let context = keys.required("context_length")?;
    if let Some(window) = keys.size("attention.sliding_window")?
        && window < context
    {
        return Err(keys.unsupported(format!("a sliding window of {window} positions is not supported")));
    }
    let Some(embedding) = find("token_embd.weight") else {
        return Err(file.wrong("has no tensor \"token_embd.weight\"", "the download looks incomplete"));
    };
    let vocab = file.tensors()[embedding].shape[0];
    let tied = match find("output.weight") {
        None => true,
        // Older converters wrote GPT-2's tied head a second time.
        Some(head) if keys.architecture == "gpt2" => {
            let (head, embedding) = (file.tensor(head), file.tensor(embedding));
            head.stored == embedding.stored && head.bytes == embedding.bytes
        }
        Some(_) => false,
    };
    let stored = match file.tensors()[embedding].stored {
        stored @ (Stored::F16 | Stored::Bf16) => stored,
        _ => Stored::F32,
    };
    let mut json = match keys.architecture {
        "gpt2" => gpt2_json(&keys)?,
        _ => llama_json(&keys)?,
    };
    let special = |name: &str| file.whole(&format!("tokenizer.ggml.{name}_token_id"));
    for (key, value) in [
        ("model_type", json!(keys.architecture)),
        ("vocab_size", json!(vocab)),
        ("tie_word_embeddings", json!(tied)),
        ("bos_token_id", json!(special("bos")?)),
        ("eos_token_id", json!(special("eos")?)),
        ("pad_token_id", json!(special("padding")?)),
        ("dtype", json!(stored.torch_name())),
        ("use_cache", json!(true)),
    ] {
        json.insert(key.into(), value);
    }
    Ok(Value::Object(json))
}

fn gpt2_json(keys: &Keys) -> Result<Map<String, Value>> {
    let json = json!({
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "n_embd": keys.required("embedding_length")?,
        "n_head": keys.required("attention.head_count")?,
        "n_inner": keys.required("feed_forward_length")?,
        "n_layer": keys.required("block_count")?,
        "n_positions": keys.required("context_length")?,
        "layer_norm_epsilon": shortest(keys.number("attention.layer_norm_epsilon")?.unwrap_or(1e-5)),
    });
    Ok(object(json))
}

fn llama_json(keys: &Keys) -> Result<Map<String, Value>> {
    let (width, heads) = (keys.required("embedding_length")?, keys.required("attention.head_count")?);
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && width.is_multiple_of(heads) => width / heads,
        None => {
            return Err(keys.unsupported(format!("a width of {width} does not divide into {heads} heads")));
        }
    };
    let value_length = keys.size("attention.value_length")?.unwrap_or(head_dim);
    if value_length != head_dim {
        return Err(
            keys.unsupported(format!("keys of {head_dim} with values of {value_length} are not supported"))
        );
    }
    let rotated = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    if rotated != head_dim {
        return Err(
            keys.unsupported(format!("rotating {rotated} of {head_dim} columns of a head is not supported"))
        );
    }
    let has = |name: &str| keys.file.tensors().iter().any(|tensor| tensor.name == name);
    let (qkv_bias, output_bias) = (has("blk.0.attn_q.bias"), has("blk.0.attn_output.bias"));
    if keys.architecture != "qwen2" && qkv_bias != output_bias {
        let problem = "has biases on only some of query, key, value and attention output";
        return Err(keys.unsupported(problem.into()));
    }
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let class = match keys.architecture {
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        _ => "LlamaForCausalLM",
    };
    let mut json = object(json!({
        "architectures": [class],
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": keys.required("feed_forward_length")?,
        "max_position_embeddings": keys.required("context_length")?,
        "num_attention_heads": heads,
        "num_hidden_layers": keys.required("block_count")?,
        "num_key_value_heads": keys.size("attention.head_count_kv")?.unwrap_or(heads),
        "rms_norm_eps": shortest(keys.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6)),
        "rope_theta": shortest(theta),
        "rope_scaling": rope_scaling(keys, shortest(theta), head_dim)?,
    }));
    if keys.architecture != "qwen2" {
        json.insert("attention_bias".into(), json!(qkv_bias));
    }
    if keys.architecture == "llama" {
        json.insert("mlp_bias".into(), json!(has("blk.0.ffn_up.bias")));
    }
    Ok(json)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The decimal number somebody meant before it was stored in single precision: 9.99999974e-6 is 1e-5.
fn shortest(value: f64) -> f64 {
    let single = value as f32;
    if f64::from(single) == value { single.to_string().parse().unwrap_or(value) } else { value }
}

fn rope_scaling(keys: &Keys, theta: f64, head_dim: u64) -> Result<Value> {
    let index = keys.file.tensors().iter().position(|tensor| tensor.name == "rope_freqs.weight");
    if let Some(index) = index {
        return llama3_scaling(keys, index, theta, head_dim);
    }
    let kind = keys.file.text(&keys.key("rope.scaling.type"))?;
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    match (kind, factor) {
        (Some("none"), _) | (None, None) => Ok(Value::Null),
        (Some("linear") | None, Some(factor)) => {
            Ok(json!({"rope_type": "linear", "factor": shortest(factor)}))
        }
        (Some(kind), _) => Err(keys.unsupported(format!("rope scaling \"{kind}\" is not supported"))),
    }
}

/// Recovers Llama 3's scaling from its divisors; the bounds 1 and 4 are those of every released Llama 3.
fn llama3_scaling(keys: &Keys, index: usize, theta: f64, head_dim: u64) -> Result<Value> {
    let tensor = keys.file.tensor(index);
    let half = (head_dim / 2) as usize;
    if tensor.shape != [half] || tensor.stored.block_elements() != 1 {
        let problem = format!("tensor \"rope_freqs.weight\" has shape {:?}, expected [{half}]", tensor.shape);
        return Err(keys.file.wrong(problem, "use another file"));
    }
    let mut divisors = vec![0f64; half];
    tensor.stored.decode(tensor.bytes, &mut divisors);
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let original = keys.size("rope.scaling.original_context_length")?.unwrap_or(8192);
    let (low, high) = (1.0, 4.0);
    for (j, found) in divisors.iter().enumerate() {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * j as f64 / head_dim as f64);
        let turns = original as f64 / wavelength;
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
        let close = (found - expected).abs() <= 1e-3 * expected;
        if !close {
            return Err(keys.unsupported(format!(
                "tensor \"rope_freqs.weight\" divides frequency {j} by {found}; Llama 3's rule for factor {factor} and \
                 {original} positions gives {expected}"
            )));
        }
    }
    Ok(
        json!({"rope_type": "llama3", "factor": shortest(factor), "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original}),
    )
}

/// Hugging Face's name of a tensor and how it lies; `None` for tensors that are no parameters. Names that are not
/// known come back unchanged, and are refused later as tensors this model does not have.
pub fn hugging_face_name(architecture: &str, name: &str, head_dim: usize) -> Option<(String, Arrangement)> {
    if name == "rope_freqs.weight" {
        return None;
    }
    let gpt2 = architecture == "gpt2";
    let same = |name: &str| Some((name.to_string(), Arrangement::Same));
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match (name, gpt2) {
            ("token_embd.weight", true) => same("transformer.wte.weight"),
            ("position_embd.weight", true) => same("transformer.wpe.weight"),
            ("output_norm.weight", true) => same("transformer.ln_f.weight"),
            ("output_norm.bias", true) => same("transformer.ln_f.bias"),
            ("token_embd.weight", false) => same("model.embed_tokens.weight"),
            ("output_norm.weight", false) => same("model.norm.weight"),
            ("output.weight", _) => same("lm_head.weight"),
            _ => same(name),
        };
    };
    let (part, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let hf = match (part, gpt2) {
        ("attn_norm", true) => "ln_1",
        ("attn_qkv", true) => "attn.c_attn",
        ("attn_output", true) => "attn.c_proj",
        ("ffn_norm", true) => "ln_2",
        ("ffn_up", true) => "mlp.c_fc",
        ("ffn_down", true) => "mlp.c_proj",
        ("attn_norm", false) => "input_layernorm",
        ("attn_q", false) => "self_attn.q_proj",
        ("attn_k", false) => "self_attn.k_proj",
        ("attn_v", false) => "self_attn.v_proj",
        ("attn_output", false) => "self_attn.o_proj",
        ("attn_q_norm", false) => "self_attn.q_norm",
        ("attn_k_norm", false) => "self_attn.k_norm",
        ("ffn_norm", false) => "post_attention_layernorm",
        ("ffn_gate", false) => "mlp.gate_proj",
        ("ffn_up", false) => "mlp.up_proj",
        ("ffn_down", false) => "mlp.down_proj",
        _ => return same(name),
    };
    let conv1d = gpt2 && kind == "weight" && !hf.starts_with("ln_");
    let arrangement = match part {
        _ if conv1d => Arrangement::Transposed,
        "attn_q" | "attn_k" if architecture == "llama" => Arrangement::Interleaved { head_dim },
        _ => Arrangement::Same,
    };
    let stem = if gpt2 { "transformer.h" } else { "model.layers" };
    Some((format!("{stem}.{layer}.{hf}.{kind}"), arrangement))
}

/// The parts of the file's tokenizer.
pub fn vocabulary(file: &GgufFile) -> Result<GgufVocabulary<'_>> {
    let missing = |key: &str| {
        file.wrong(format!("metadata key {key} is missing: the file has no tokenizer"), "use another file")
    };
    let key = |rest: &str| format!("tokenizer.ggml.{rest}");
    let id = |rest: &str| -> Result<Option<u32>> {
        Ok(file.whole(&key(&format!("{rest}_token_id")))?.and_then(|id| u32::try_from(id).ok()))
    };
    let pre = match file.text(&key("pre"))? {
        // Files made before the key existed: only GPT-2's own rule can be assumed.
        None if file.text("general.architecture")? == Some("gpt2") => Some("gpt-2"),
        pre => pre,
    };
    let numbers = |rest: &str| -> Result<Vec<f64>> { Ok(file.numbers(&key(rest))?.unwrap_or_default()) };
    Ok(GgufVocabulary {
        path: file.path(),
        model: file.text(&key("model"))?.ok_or_else(|| missing("tokenizer.ggml.model"))?,
        pre,
        tokens: file.texts(&key("tokens"))?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?,
        kinds: numbers("token_type")?.into_iter().map(|kind| kind as u32).collect(),
        scores: numbers("scores")?,
        merges: file.texts(&key("merges"))?.unwrap_or_default(),
        bos: id("bos")?,
        eos: id("eos")?,
        unknown: id("unknown")?,
        padding: id("padding")?,
        add_bos: file.flag(&key("add_bos_token"))?,
        add_eos: file.flag(&key("add_eos_token"))?,
        add_space_prefix: file.flag(&key("add_space_prefix"))?,
    })
}

/// The chat template's text.
pub fn chat_template(file: &GgufFile) -> Result<Option<&str>> {
    file.text("tokenizer.chat_template")
}

/// The files that stand beside the weights in a Hugging Face folder, made from the metadata: names and contents.
pub fn companion_files(file: &GgufFile) -> Result<Vec<(String, Vec<u8>)>> {
    let vocabulary = vocabulary(file)?;
    let tokenizer = Tokenizer::from_gguf(&vocabulary)?;
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let mut special = Map::new();
    for (name, id) in [
        ("bos_token", vocabulary.bos),
        ("eos_token", vocabulary.eos),
        ("unk_token", vocabulary.unknown),
        ("pad_token", vocabulary.padding),
    ] {
        if let Some(text) = token(id) {
            special.insert(name.into(), json!(text));
        }
    }
    let mut tokenizer_config = special.clone();
    tokenizer_config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    tokenizer_config.insert("clean_up_tokenization_spaces".into(), json!(false));
    let keys = Keys { file, architecture: architecture(file)? };
    tokenizer_config.insert("model_max_length".into(), json!(keys.required("context_length")?));
    let generation = json!({"_from_model_config": true, "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.padding});
    let mut files = vec![
        ("tokenizer.json".to_string(), tokenizer.to_json()?.into_bytes()),
        ("generation_config.json".to_string(), pretty(&generation)),
        ("special_tokens_map.json".to_string(), pretty(&Value::Object(special))),
    ];
    if let Some(template) = chat_template(file)? {
        // Both places: transformers before 4.50 reads only the key.
        tokenizer_config.insert("chat_template".into(), json!(template));
        files.push(("chat_template.jinja".to_string(), template.as_bytes().to_vec()));
    }
    files.push(("tokenizer_config.json".to_string(), pretty(&Value::Object(tokenizer_config))));
    Ok(files)
}

/// JSON as transformers writes it: indented, with a newline at the end.
pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
