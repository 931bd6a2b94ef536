//! Training of adapters on devices that run the shipped PTX, beside the CPU; by policies, with a base that is shared.

use super::{base, bits, config, lively};
use crate::gpu_models::CLOSE;
use crate::models::hidden_bits;
use crate::parity::gpu::devices;
use crate::policy;
use latch::base::Dtype;
use latch::device::Device;
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::supervised::{Example, Limits, Trainer};
use latch::model::{AdapterConfig, Embeddings, Model, Precision, Record};
use latch::ops::Tensor;

/// The same weights and adapter on another device, in f32 or with matrices of bf16.
fn on(device: &Device, model: &Model, dtype: Dtype) -> Model {
    let copy = |from: &Tensor, to: &mut Tensor| {
        let values: Vec<f32> = match from.dtype() {
            Dtype::Bf16 => from.download::<half::bf16>().unwrap().iter().map(|v| v.to_f32()).collect(),
            _ => from.download::<f32>().unwrap(),
        };
        match to.dtype() {
            Dtype::Bf16 => to.upload(&values.iter().map(|&v| half::bf16::from_f32(v)).collect::<Vec<_>>()),
            _ => to.upload(&values),
        }
    };
    let config = model.config().clone();
    let mut other = Model::build(config, device, Precision::of(dtype), |i, _, tensor| {
        copy(&model.parameters()[i], tensor)
    })
    .unwrap();
    if let Some(adapter) = model.adapter() {
        other.adapt_with(adapter.clone(), |i, _, tensor| copy(&model.trained()[i], tensor)).unwrap();
    }
    other
}

fn example(seed: u32, prompt: usize, latents: usize, answer: usize) -> Example {
    let tokens = |first: usize, count: usize| -> Vec<u32> {
        (first..first + count).map(|i| (seed * 13 + i as u32 * 7) % 50).collect()
    };
    Example { prompt: tokens(0, prompt), latents, end: vec![59], answer: tokens(prompt, answer) }
}

#[test]
fn training_steps_are_the_cpus() {
    let batch = [example(1, 9, 2, 5), example(2, 4, 2, 6), example(3, 17, 1, 3)];
    for (family, embeddings, dtype) in [
        ("gpt2", Embeddings::Frozen, Dtype::F32),
        ("llama", Embeddings::Both, Dtype::F32),
        ("qwen3", Embeddings::Frozen, Dtype::Bf16),
        ("qwen2", Embeddings::Tied, Dtype::F32),
    ] {
        let cpu = lively(base(family, Dtype::F32), AdapterConfig { embeddings, ..config(3) });
        let train = |device: &Device| {
            let mut model = on(device, &cpu, dtype);
            let frozen = bits(model.parameters());
            let optimizer = Optimizer::new(&model, optimizer::Settings::default()).unwrap();
            let limits = Limits::of(&batch, batch.len(), usize::MAX);
            let mut trainer = Trainer::new(&model, optimizer, limits, Record::Everything).unwrap();
            let numbers: Vec<f64> = (0..2)
                .flat_map(|_| {
                    let report = trainer.step(&mut model, &batch, 1e-3).unwrap();
                    [report.loss, report.gradient_norm]
                })
                .collect();
            assert_eq!(bits(model.parameters()), frozen, "{family}: the weights");
            numbers
        };
        let expected = train(&Device::cpu());
        // Activations that differ by f32's rounding may round to either side: one unit in the last place of bf16.
        let close = if dtype == Dtype::Bf16 { 1.0 / 256.0 } else { CLOSE };
        for device in devices() {
            // A gradient near zero may have either sign where operands are rounded, and AdamW's first step is one of signs.
            let compared = if dtype == Dtype::Bf16 { 2 } else { 4 };
            for (found, expected) in train(&device).iter().zip(&expected).take(compared) {
                let apart = (found - expected).abs() / expected.abs();
                assert!(apart <= close, "{} {family}: {found} and {expected}", device.name());
            }
        }
        assert!(expected[2] < expected[0], "{family}: a step lowers the loss");
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_any_cut_on_a_gpu() {
    for device in devices() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = on(&device, &lively(base("llama", Dtype::F32), config(3)), dtype);
            let whole = hidden_bits(&model, 30, &[], 0);
            assert_eq!(whole, hidden_bits(&model, 30, &[1, 2, 17, 29], 0), "{} {dtype}: cuts", device.name());
            assert_eq!(whole, hidden_bits(&model, 30, &[], 2), "{} {dtype}: a batch", device.name());
            assert_ne!(
                whole,
                hidden_bits(&model.base(), 30, &[], 0),
                "{} {dtype}: the adapter",
                device.name()
            );
        }
    }
}

#[test]
fn updates_of_a_policy_are_the_cpus() {
    policy::updates_on(&devices(), CLOSE, &|model| lively(model, config(3)));
}

#[test]
fn merged_on_a_gpu_is_merged_on_the_cpu() {
    for device in devices() {
        let cpu = lively(base("gpt2", Dtype::F32), config(2));
        let (here, there) = (on(&device, &cpu, Dtype::F32).merge().unwrap(), cpu.merge().unwrap());
        for (here, there) in here.parameters().iter().zip(there.parameters()) {
            let (here, there): (Vec<f32>, Vec<f32>) = (here.download().unwrap(), there.download().unwrap());
            for (a, b) in here.iter().zip(&there) {
                assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{}: {a} {b}", device.name());
            }
        }
    }
}
