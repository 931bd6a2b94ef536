//! Model files: what is read, what is refused and with which words, and what saving keeps.
//! The builders here make files byte by byte, without the code under test.

mod config;
mod gguf;
mod golden;
mod mutation;
mod safetensors;
mod save;
mod tokenizer;

use latch::base::rng::{Purpose, StreamKey};
use latch::model::config::Config;
use latch::model::families;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// The message of an error that must be there.
fn message<T: std::fmt::Debug>(result: latch::base::Result<T>) -> String {
    result.expect_err("expected an error").to_string()
}

/// Fails unless `text` holds all of `parts`.
#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
}

/// A small Llama config that everything here starts from.
fn llama_json() -> Value {
    json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 9, "hidden_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float32", "a_key_we_do_not_know": [1, 2]})
}

fn gpt2_json() -> Value {
    json!({"model_type": "gpt2", "vocab_size": 9, "n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 16,
        "activation_function": "gelu_new"})
}

fn parse(json: Value) -> latch::base::Result<Config> {
    Config::from_json(json, Path::new("config.json"))
}

/// One tensor of a safetensors file to build.
#[derive(Clone, Debug)]
struct Raw {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Raw {
    fn f32(name: &str, shape: &[usize], values: &[f32]) -> Raw {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Raw { name: name.into(), dtype: "F32".into(), shape: shape.to_vec(), bytes }
    }
}

/// Standard normal values, reproducible from a number.
fn normals(seed: u64, count: usize) -> Vec<f32> {
    let mut draws = StreamKey::new(seed, 0, 0, 0, Purpose::Init).draws(0, 0);
    (0..count).map(|_| draws.normal() as f32).collect()
}

/// All parameters of a config with random values.
fn tensors(config: &Config) -> Vec<Raw> {
    let list = families::parameters(config);
    let raw = list
        .iter()
        .enumerate()
        .map(|(i, p)| Raw::f32(&p.name, p.shape.dims(), &normals(i as u64, p.shape.elements())));
    raw.collect()
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn safetensors_bytes(tensors: &[Raw]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for raw in tensors {
        let start = data.len();
        data.extend_from_slice(&raw.bytes);
        header.insert(
            raw.name.clone(),
            json!({"dtype": raw.dtype, "shape": raw.shape, "data_offsets": [start, data.len()]}),
        );
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A model folder with one safetensors file.
fn folder(config: &Value, tensors: &[Raw]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::write(folder.path().join("model.safetensors"), safetensors_bytes(tensors)).unwrap();
    folder
}

/// A model folder with two shards; every second tensor in each.
fn sharded(config: &Value, tensors: &[Raw]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut map = Map::new();
    for shard in 0..2 {
        let name = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let part: Vec<Raw> = tensors.iter().skip(shard).step_by(2).cloned().collect();
        for raw in &part {
            map.insert(raw.name.clone(), json!(name));
        }
        fs::write(folder.path().join(&name), safetensors_bytes(&part)).unwrap();
    }
    write_index(folder.path(), &Value::Object(map));
    folder
}

fn write_index(folder: &Path, map: &Value) {
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A GGUF file under construction.
#[derive(Clone, Default)]
struct Gguf {
    keys: Vec<u8>,
    key_count: u64,
    infos: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Gguf {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) -> &mut Gguf {
        self.keys.extend([gguf_text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
        self.key_count += 1;
        self
    }

    fn u32(&mut self, name: &str, value: u32) -> &mut Gguf {
        self.key(name, 4, &value.to_le_bytes())
    }

    fn f32(&mut self, name: &str, value: f32) -> &mut Gguf {
        self.key(name, 6, &value.to_le_bytes())
    }

    fn text(&mut self, name: &str, value: &str) -> &mut Gguf {
        self.key(name, 8, &gguf_text(value))
    }

    fn list(&mut self, name: &str, kind: u32, values: &[Vec<u8>]) -> &mut Gguf {
        let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.key(name, 9, &[head, values.concat()].concat())
    }

    fn texts(&mut self, name: &str, values: &[&str]) -> &mut Gguf {
        let values: Vec<Vec<u8>> = values.iter().map(|value| gguf_text(value)).collect();
        self.list(name, 8, &values)
    }

    /// `shape` outermost first, as we have it; the file has it reversed.
    fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) -> &mut Gguf {
        let offset = self.data.len() as u64;
        self.info(name, shape, kind, offset);
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    fn info(&mut self, name: &str, shape: &[usize], kind: u32, offset: u64) -> &mut Gguf {
        self.infos.extend(gguf_text(name));
        self.infos.extend((shape.len() as u32).to_le_bytes());
        for length in shape.iter().rev() {
            self.infos.extend((*length as u64).to_le_bytes());
        }
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn f32_tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Gguf {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, shape, 0, &bytes)
    }

    fn bytes(&self) -> Vec<u8> {
        let head = [
            &b"GGUF"[..],
            &3u32.to_le_bytes(),
            &self.tensor_count.to_le_bytes(),
            &self.key_count.to_le_bytes(),
        ];
        let mut bytes = [head.concat(), self.keys.clone(), self.infos.clone()].concat();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        [bytes, self.data.clone()].concat()
    }

    fn write(&self) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, self.bytes()).unwrap();
        (folder, path)
    }
}

/// The metadata of a GGUF file for the model of [`llama_json`], with `architecture`.
fn gguf_keys(architecture: &str) -> Gguf {
    let mut file = Gguf::default();
    let key = |rest: &str| format!("{architecture}.{rest}");
    file.text("general.architecture", architecture)
        .u32(&key("block_count"), 1)
        .u32(&key("context_length"), 128)
        .u32(&key("embedding_length"), 32)
        .u32(&key("feed_forward_length"), 64)
        .u32(&key("attention.head_count"), 4)
        .u32(&key("attention.head_count_kv"), 2)
        .u32(&key("attention.key_length"), 16)
        .u32(&key("attention.value_length"), 16)
        .u32(&key("rope.dimension_count"), 16)
        .f32(&key("rope.freq_base"), 10_000.0)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    file
}
