//! What must not change a bit: the batch, the cut, the base's being shared, and what is frozen.

use super::{base, bits, config, lively};
use crate::models::hidden_bits;
use latch::base::Dtype;
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::supervised::{Example, Limits, Trainer};
use latch::model::{AdapterConfig, Embeddings, Model, Record, RowPlan, Segment, Sequences, SequencesPlan};

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_any_cut() {
    for family in ["gpt2", "llama", "qwen3"] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = lively(base(family, dtype), config(3));
            let whole = hidden_bits(&model, 70, &[], 0);
            assert_eq!(whole, hidden_bits(&model, 70, &[1, 2, 30, 63, 64, 65], 0), "{family} {dtype}: cuts");
            assert_eq!(whole, hidden_bits(&model, 70, &[], 5), "{family} {dtype}: a batch");
            let one_by_one: Vec<usize> = (50..70).collect();
            assert_eq!(whole, hidden_bits(&model, 70, &one_by_one, 1), "{family} {dtype}: token by token");
            assert_ne!(
                whole,
                hidden_bits(&model.base(), 70, &[], 0),
                "{family} {dtype}: the adapter does something"
            );
        }
    }
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    for family in ["gpt2", "qwen2"] {
        let mut model = base(family, Dtype::F32);
        let before = hidden_bits(&model, 40, &[], 0);
        let whole = if family == "gpt2" { Embeddings::Tied } else { Embeddings::Frozen };
        model.adapt(AdapterConfig { embeddings: whole, ..config(4) }, 3).unwrap();
        assert_eq!(before, hidden_bits(&model, 40, &[], 0), "{family}");
    }
}

#[test]
fn a_is_drawn_as_peft_draws_it() {
    let mut model = base("llama", Dtype::F32);
    model.adapt(config(64), 3).unwrap();
    let mut seen = Vec::new();
    for (parameter, tensor) in model.adapter_list().iter().zip(model.trained()) {
        let values = tensor.download::<f32>().unwrap();
        if parameter.name.ends_with("lora_B.weight") {
            assert!(values.iter().all(|&v| v == 0.0));
            continue;
        }
        let inputs = parameter.shape.dims()[1];
        let bound = 1.0 / (inputs as f32).sqrt();
        assert!(values.iter().all(|v| v.abs() <= bound), "{}", parameter.name);
        // Variance of a uniform number: bound^2 / 3.
        let variance = values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64;
        let expected = f64::from(bound * bound) / 3.0;
        assert!((variance / expected - 1.0).abs() < 0.12, "{}: {variance} {expected}", parameter.name);
        seen.push(values[..4].to_vec());
    }
    let draws = seen.len();
    seen.sort_by(|a, b| a[0].total_cmp(&b[0]));
    seen.dedup();
    assert_eq!((seen.len(), draws), (14, 14), "each tensor has a stream of its own");
}

/// The copy of an adapted model shares the weights; its adapter is its own.
#[test]
fn copies_share_the_weights_alone() {
    let mut model = lively(base("llama", Dtype::F32), config(2));
    let held = || model.device().traffic().count().bytes_held;
    let before = held();
    let copy = model.duplicate().unwrap();
    let adapter: usize = model.trained().iter().map(|tensor| tensor.bytes()).sum();
    assert_eq!(held() - before, adapter, "a copy costs its adapter");
    let bare = model.base();
    assert_eq!(held() - before, adapter, "the base costs nothing");
    assert_eq!(bits(copy.trained()), bits(model.trained()));
    assert!(std::ptr::eq(copy.parameters(), model.parameters()));
    assert!(std::ptr::eq(bare.parameters(), model.parameters()));
    // Shared weights cannot be written to.
    assert!(model.parameters_mut().is_empty());
    model.trained_mut()[0].clear().unwrap();
    assert_ne!(bits(copy.trained()), bits(model.trained()));
    model.copy_from(&copy).unwrap();
    assert_eq!(bits(copy.trained()), bits(model.trained()));
    let other = lively(base("llama", Dtype::F32), config(2));
    let error = model.copy_from(&other).unwrap_err().to_string();
    assert!(error.contains("of another base"), "{error}");
}

#[test]
fn weights_stay_frozen_and_only_adapters_take_memory() {
    for (family, embeddings) in
        [("gpt2", Embeddings::Frozen), ("llama", Embeddings::Both), ("qwen2", Embeddings::Tied)]
    {
        let mut model = base(family, Dtype::F32);
        model.adapt(AdapterConfig { embeddings, ..config(2) }, 1).unwrap();
        let (frozen, start) = (bits(model.parameters()), bits(model.trained()));
        let adapter: usize = model.trained().iter().map(|tensor| tensor.bytes()).sum();
        let held = |model: &Model| model.device().traffic().count().bytes_held;

        let before = held(&model);
        let gradients = model.gradients().unwrap();
        assert_eq!(held(&model) - before, adapter, "{family}: gradients");
        drop(gradients);
        let settings = optimizer::Settings::default();
        let optimizer = Optimizer::new(&model, settings).unwrap();
        let moments: usize = optimizer.state(&model).unwrap().iter().map(|(_, tensor)| tensor.bytes()).sum();
        assert_eq!(moments, 2 * adapter, "{family}: moments");

        let example = |seed: u32| Example {
            prompt: (0..9).map(|i| (seed * 5 + i * 11) % 50).collect(),
            latents: 2,
            end: vec![59],
            answer: (0..4).map(|i| (seed * 3 + i * 7) % 50).collect(),
        };
        let batch = [example(1), example(2), example(3)];
        let limits = Limits::of(&batch, 3, usize::MAX);
        let mut trainer = Trainer::new(&model, optimizer, limits, Record::LayerInputs).unwrap();
        let losses: Vec<f64> =
            (0..30).map(|_| trainer.step(&mut model, &batch, 2e-2).unwrap().loss).collect();
        assert!(losses[29] < 0.8 * losses[0], "{family}: {losses:?}");
        assert_eq!(bits(model.parameters()), frozen, "{family}: the weights");
        assert_ne!(bits(model.trained()), start, "{family}: the adapter");
    }
}

/// With a matrix that is trained, frozen weights leave the gradients of an adapter what they are.
#[test]
fn recomputed_layers_and_cleared_gradients_have_the_same_bits() {
    // GPT-2's q, k and v share A, and have windows of one B.
    for family in ["qwen3", "gpt2"] {
        let model = lively(base(family, Dtype::F32), config(3));
        let add = |record: Record, gradients: &mut latch::model::Gradients| {
            let plan = SequencesPlan { rows: vec![RowPlan::own(12)], record, tape_positions: 12 };
            let mut sequences = Sequences::new(&model, &plan).unwrap();
            let mut segment = Segment::new();
            segment.extend_tokens(0, &[3, 1, 4, 1, 5, 9]);
            model.forward(&mut sequences, &segment, None).unwrap();
            model.forward(&mut sequences, &Segment::latent_step([0]), None).unwrap();
            let mut scores = latch::model::Scores::reserve(&model, 2).unwrap();
            scores.forward(&model, &sequences, &[5, 6], &[7, 8], 1.0).unwrap();
            scores.backward(&model, &mut sequences, &[-0.5, -0.5], gradients).unwrap();
            model.backward(&mut sequences, None, Default::default(), gradients).unwrap();
            bits(gradients.tensors().unwrap())
        };
        let run = |record: Record| {
            let mut gradients = model.gradients().unwrap();
            let fresh = add(record, &mut gradients);
            assert!(fresh.iter().any(|&bits| bits != 0));
            gradients.clear();
            assert_eq!(add(record, &mut gradients), fresh, "{family}: cleared");
            fresh
        };
        assert_eq!(run(Record::Everything), run(Record::LayerInputs), "{family}");
    }
}
