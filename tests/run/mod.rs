//! The mechanics of a run: recipes, folders, checkpoints.

mod checkpoints;
mod folder;
mod kill;
mod recipe;
mod student;

use latch::base::Dtype;
use latch::device::Device;
use latch::learn::optimizer::{Optimizer, Settings};
use latch::model::{
    Config, Model, Precision, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan, Truncation,
};
use latch::ops::Tensor;
use std::path::Path;

/// A message has all of these words.
#[track_caller]
fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
}

/// A small model, about 90 KiB in f32, and a fresh optimiser.
fn small(precision: Precision) -> (Model, Optimizer) {
    let config = serde_json::json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "rope_theta": 10000.0,
    });
    let config = Config::from_json(config, Path::new("test")).unwrap();
    let model = Model::random(config, 7, &Device::cpu(), precision).unwrap();
    let optimizer = Optimizer::new(&model, Settings::default()).unwrap();
    (model, optimizer)
}

/// One update; which one depends on `number` alone.
fn update(model: &mut Model, optimizer: &mut Optimizer, number: u64) {
    let rows = vec![RowPlan::own(8)];
    let plan = SequencesPlan { rows, record: Record::Everything, tape_positions: 8 };
    let mut sequences = Sequences::new(model, &plan).unwrap();
    let tokens: Vec<u32> = (0..6).map(|i| (number as u32 * 11 + i * i * 3 + 1) % 64).collect();
    model.forward(&mut sequences, &Segment::of_tokens(0, &tokens[..5]), None).unwrap();
    let mut scores = Scores::reserve(model, 5).unwrap();
    scores.forward(model, &sequences, &[0, 1, 2, 3, 4], &tokens[1..], 1.0).unwrap();
    let mut gradients = model.gradients().unwrap();
    scores.backward(model, &mut sequences, &[-0.2; 5], &mut gradients).unwrap();
    model.backward(&mut sequences, None, Truncation::default(), &mut gradients).unwrap();
    optimizer.update(model, &mut gradients, 1e-2).unwrap();
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    match tensor.dtype() {
        Dtype::F64 => tensor.download::<f64>().unwrap().into_iter().map(f64::to_bits).collect(),
        Dtype::Bf16 => {
            tensor.download::<half::bf16>().unwrap().into_iter().map(|v| u64::from(v.to_bits())).collect()
        }
        _ => tensor.download::<f32>().unwrap().into_iter().map(|v| u64::from(v.to_bits())).collect(),
    }
}

/// Every bit of a model and its optimiser.
fn all_bits(model: &Model, optimizer: &Optimizer) -> Vec<(String, Vec<u64>)> {
    let named = model.parameter_list().iter().zip(model.parameters());
    let mut list: Vec<(String, Vec<u64>)> = named.map(|(p, tensor)| (p.name.clone(), bits(tensor))).collect();
    for (name, state) in optimizer.state(model).unwrap() {
        let mut all = Vec::new();
        state
            .pieces(|piece| {
                all.extend(bits(piece));
                Ok(())
            })
            .unwrap();
        assert_eq!(all.len(), state.shape().elements(), "{name}");
        list.push((name, all));
    }
    list
}
