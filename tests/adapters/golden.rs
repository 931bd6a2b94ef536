//! Adapters against PEFT: logits, loss and the gradient of every tensor, through latents, masks and soft positions.
//! Golden files: tests/golden/adapters, made by tools/adapter_golden.py.

use crate::golden::{GRADIENT_F32, GRADIENT_F64, LOGITS_F32, LOGITS_F64, compare, folder};
use latch::base::Dtype;
use latch::device::Device;
use latch::model::{Model, Precision};
use latch::run::probe;
use std::path::PathBuf;

/// Folders of adapters, and the models that they belong to.
pub fn adapters() -> Vec<(PathBuf, PathBuf)> {
    let names = [
        ("gpt2", "gpt2"),
        ("llama", "llama_llama3"),
        ("llama_whole", "llama_llama3"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
    ];
    names.map(|(name, base)| (folder().join("adapters").join(name), folder().join(base))).to_vec()
}

fn check(dtype: Dtype, logit_bound: f64, gradient_bound: f64) {
    let mut compared = 0;
    for (adapter, base) in adapters() {
        let mut model = Model::load(&base, &Device::cpu(), Precision::of(dtype)).unwrap();
        model.load_adapter(&adapter).unwrap();
        for case in ["plain", "latent", "latent_uneven", "masked", "soft"] {
            let expected = adapter.join(format!("{case}.out.safetensors"));
            if !expected.exists() {
                continue;
            }
            let request = probe::read(&base.join(format!("cases/{case}.in.safetensors"))).unwrap();
            let answer = probe::probe(&model, &request).unwrap();
            compare(&model, &expected, &answer, logit_bound, gradient_bound);
            compared += 1;
        }
    }
    assert_eq!(compared, 12);
}

#[test]
fn every_adapter_and_case_in_f32() {
    check(Dtype::F32, LOGITS_F32, GRADIENT_F32);
}

#[test]
fn every_adapter_and_case_in_f64() {
    check(Dtype::F64, LOGITS_F64, GRADIENT_F64);
}

/// The comparison sees an adapter: without it, or with another scale, the logits are others.
#[test]
fn the_comparison_can_fail() {
    for (adapter, base) in adapters() {
        let mut model = Model::load(&base, &Device::cpu(), Precision::of(Dtype::F64)).unwrap();
        let case = if adapter.ends_with("qwen2") { "latent_uneven" } else { "latent" };
        let request = probe::read(&base.join(format!("cases/{case}.in.safetensors"))).unwrap();
        let without = probe::probe(&model, &request).unwrap().logits;
        model.load_adapter(&adapter).unwrap();
        let with = probe::probe(&model, &request).unwrap().logits;
        assert_eq!(probe::probe(&model.base(), &request).unwrap().logits, without);
        let apart = with.iter().zip(&without).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart > 100.0 * LOGITS_F32, "{}: {apart}", adapter.display());
    }
}
