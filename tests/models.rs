//! Small random models that tests share, and what several of them ask of a model.

use latch::base::Dtype;
use latch::device::Device;
use latch::model::config::Config;
use latch::model::{Model, Precision, Record, RowPlan, Segment, Sequences, SequencesPlan};
use serde_json::{Value, json};
use std::path::Path;

/// A config that stands in no file.
pub fn config(json: Value) -> Config {
    Config::from_json(json, Path::new("config.json")).unwrap()
}

/// GPT-2: 61 tokens, width 24, two layers of three heads, 128 positions.
pub fn gpt2() -> Config {
    config(json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 61, "n_embd": 24, "n_head": 3,
        "n_layer": 2, "n_positions": 128, "activation_function": "gelu_new",
    }))
}

/// A llama of the same size with grouped heads and a head of its own.
pub fn llama() -> Config {
    config(json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 61, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    }))
}

/// A llama with norms of each head, grouped heads and rotary positions, in three layers.
pub fn qwen3() -> Config {
    config(json!({
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 61, "hidden_size": 24,
        "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "num_hidden_layers": 3, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "attention_bias": false,
    }))
}

/// A model at its birth.
pub fn random(config: Config, seed: u64, dtype: Dtype, device: &Device) -> Model {
    Model::random(config, seed, device, Precision::of(dtype)).unwrap()
}

/// The bits of the final hidden states of the last row, cut at `cuts`, with `others` beside it that say something else.
pub fn hidden_bits(model: &Model, count: usize, cuts: &[usize], others: usize) -> Vec<u64> {
    let rows = vec![RowPlan::own(count); others + 1];
    let plan = SequencesPlan { rows, record: Record::Nothing, tape_positions: count * (others + 1) };
    let mut sequences = Sequences::new(model, &plan).unwrap();
    let tokens: Vec<u32> = (0..count as u32).map(|i| (i * 7 + i * i) % 50).collect();
    let (mut bits, mut start) = (Vec::new(), 0);
    for &end in cuts.iter().chain([&count]) {
        let mut segment = Segment::new();
        for other in 0..others {
            segment.extend_tokens(other as u32, &tokens[..end - start]);
        }
        segment.extend_tokens(others as u32, &tokens[start..end]);
        let at = model.forward(&mut sequences, &segment, None).unwrap();
        let own = sequences.hidden(at.end - (end - start)..at.end).unwrap();
        assert_eq!(own.dtype(), model.dtype());
        bits.extend(own.numbers().unwrap().iter().map(|v| v.to_bits()));
        start = end;
    }
    bits
}

/// The slope of `at` at 0: central differences of two step sizes, whose error falls from h^2 to h^4 (Richardson).
pub fn slope(mut at: impl FnMut(f64) -> f64) -> f64 {
    let mut central = |h: f64| (at(h) - at(-h)) / (2.0 * h);
    (4.0 * central(1e-6) - central(2e-6)) / 3.0
}

/// How far `found` lies from `expected`, over the norm of what was expected, which is not 0.
pub fn apart(found: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let whole = norm(&mut expected.iter().copied());
    assert!(whole > 0.0 && found.len() == expected.len());
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / whole
}
