//! Adapters as files: what comes back, what is merged, what is refused.

use super::golden::adapters;
use super::{base, bits, config, lively};
use latch::base::Dtype;
use latch::device::Device;
use latch::model::adapter::ALL_LINEAR;
use latch::model::save::Companions;
use latch::model::{AdapterConfig, Embeddings, Model, Precision};
use latch::run::probe::{self, Answer};
use serde_json::{Value, json};
use std::path::Path;

fn load(folder: &Path, dtype: Dtype) -> Model {
    Model::load(folder, &Device::cpu(), Precision::of(dtype)).unwrap()
}

fn answer(model: &Model, base: &Path) -> Answer {
    let request = probe::read(&base.join("cases/latent.in.safetensors")).unwrap();
    probe::probe(model, &request).unwrap()
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn an_adapter_comes_back_to_the_bit() {
    for (adapter, base) in adapters() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut model = load(&base, dtype);
            model.load_adapter(&adapter).unwrap();
            let folder = tempfile::tempdir().unwrap();
            // Twice: into a new folder, and over an old one.
            for _ in 0..2 {
                model.name_base("the/base");
                model.save_adapter(&folder.path().join("a"), &Companions::default()).unwrap();
            }
            let mut again = load(&base, dtype);
            again.load_adapter(&folder.path().join("a")).unwrap();
            assert_eq!(bits(again.trained()), bits(model.trained()), "{}", adapter.display());
            assert_eq!(again.trained_names(), model.trained_names());
            let (a, b) = (again.adapter().unwrap(), model.adapter().unwrap());
            assert_eq!((a.rank, a.scale(), a.embeddings), (b.rank, b.scale(), b.embeddings));
        }
    }
}

#[test]
fn the_description_has_pefts_keys_and_values() {
    for (adapter, base) in adapters() {
        let mut model = load(&base, Dtype::F32);
        model.load_adapter(&adapter).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.name_base("the/base");
        model.save_adapter(&folder.path().join("a"), &Companions::default()).unwrap();
        let read = |folder: &Path| -> Value {
            serde_json::from_str(&std::fs::read_to_string(folder.join("adapter_config.json")).unwrap())
                .unwrap()
        };
        let (ours, theirs) = (read(&folder.path().join("a")), read(&adapter));
        assert_eq!(ours["base_model_name_or_path"], "the/base");
        for (key, value) in ours.as_object().unwrap() {
            let Some(other) = theirs.get(key) else { panic!("{key} is no key of PEFT") };
            let sorted = |value: &Value| {
                let mut list: Vec<String> =
                    value.as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_string()).collect();
                list.sort();
                list
            };
            match key.as_str() {
                "base_model_name_or_path" => {}
                "target_modules" => assert_eq!(sorted(value), sorted(other), "{key}"),
                // PEFT names a tied embedding twice, and leaves the head to be found.
                "modules_to_save" if value.is_array() => {
                    assert_eq!(value.as_array().unwrap()[0], other.as_array().unwrap()[0], "{key}");
                }
                _ => assert_eq!(value, other, "{key}"),
            }
        }
    }
}

#[test]
fn merged_models_compute_the_same() {
    for (adapter, base) in adapters() {
        let mut model = load(&base, Dtype::F64);
        model.load_adapter(&adapter).unwrap();
        let request = if adapter.ends_with("qwen2") { "latent_uneven" } else { "latent" };
        let request = probe::read(&base.join(format!("cases/{request}.in.safetensors"))).unwrap();
        let expected = probe::probe(&model, &request).unwrap().logits;
        let merged = model.merge().unwrap();
        assert!(merged.adapter().is_none());
        assert!(apart(&probe::probe(&merged, &request).unwrap().logits, &expected) < 1e-11);
        // A folder that knows nothing of adapters.
        let folder = tempfile::tempdir().unwrap();
        model.save(&folder.path().join("m"), &Companions::default()).unwrap();
        let opened = load(&folder.path().join("m"), Dtype::F64);
        assert_eq!(bits(opened.parameters()), bits(merged.parameters()));
        assert_ne!(bits(opened.parameters()), bits(model.parameters()));
    }
}

#[test]
fn bf16_weights_are_merged_with_one_rounding() {
    let adapted = |dtype| lively(base("llama", dtype), config(2));
    let (half, single) = (adapted(Dtype::Bf16), adapted(Dtype::F32));
    let merged = half.merge().unwrap();
    let list = half.parameter_list();
    let at = list.iter().position(|p| p.name.ends_with("0.mlp.down_proj.weight")).unwrap();
    let product = |model: &Model| -> Vec<f64> {
        let before: Vec<f32> = model.parameters()[at].download().unwrap();
        let after: Vec<f32> = model.merge().unwrap().parameters()[at].download().unwrap();
        after.iter().zip(&before).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
    };
    let before: Vec<half::bf16> = half.parameters()[at].download().unwrap();
    let found: Vec<half::bf16> = merged.parameters()[at].download().unwrap();
    for ((found, before), product) in found.iter().zip(&before).zip(product(&single)) {
        let expected = f64::from(*before) + product;
        let found = f64::from(*found);
        assert!((found - expected).abs() <= expected.abs() / 256.0 + 1e-7, "{found} {expected}");
    }
}

#[test]
fn embedding_and_head_that_came_apart_are_not_merged() {
    let mut model = base("gpt2", Dtype::F32);
    model.adapt(AdapterConfig { embeddings: Embeddings::Table, ..config(1) }, 1).unwrap();
    let message = model.merge().unwrap_err().to_string();
    assert!(message.contains("embedding and head apart"), "{message}");
    let folder = tempfile::tempdir().unwrap();
    assert!(model.save(&folder.path().join("m"), &Companions::default()).is_err());
    assert!(!folder.path().join("m").exists());
}

/// What loading `adapter`, with `change` made to its description, says on `base`.
fn refusal(adapter: &Path, base: &Path, change: impl Fn(&mut Value)) -> String {
    let copy = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(adapter.join(name), copy.path().join(name)).unwrap();
    }
    let path = copy.path().join("adapter_config.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
    let mut model = load(base, Dtype::F32);
    let message = model.load_adapter(copy.path()).unwrap_err().to_string();
    assert!(model.adapter().is_none(), "a refused adapter leaves the model as it was");
    message
}

fn says(message: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

#[test]
fn other_bases_are_refused_by_name() {
    let all = adapters();
    let find = |name: &str| all.iter().find(|(adapter, _)| adapter.ends_with(name)).unwrap();
    let ((llama, llama_base), (_, gpt2_base)) = (find("llama"), find("gpt2"));
    let (qwen2, qwen2_base) = find("qwen2");
    let same = |_: &mut Value| {};
    says(
        &refusal(llama, gpt2_base, same),
        &["_proj` is no matrix", "llama_llama3", "belongs to another base model"],
    );
    says(&refusal(llama, qwen2_base, same), &["the model needs", "llama_llama3", "another base model"]);
    says(&refusal(qwen2, llama_base, same), &["another base model"]);
    // The same sizes, other weights.
    let mut made = lively(base("llama", Dtype::F32), config(2));
    made.name_base("models/mine");
    let folder = tempfile::tempdir().unwrap();
    made.save_adapter(folder.path(), &Companions::default()).unwrap();
    let mut other =
        Model::random(made.config().clone(), 6, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
    let message = other.load_adapter(folder.path()).unwrap_err().to_string();
    says(&message, &["other weights of the same sizes", "models/mine"]);
    // The same weights in any precision are the same base.
    for dtype in [Dtype::F32, Dtype::F64] {
        base("llama", Dtype::F32).save(&folder.path().join("base"), &Companions::default()).unwrap();
        let mut again = load(&folder.path().join("base"), dtype);
        again.load_adapter(folder.path()).unwrap();
    }
    let mut rounded = load(&folder.path().join("base"), Dtype::Bf16);
    rounded.load_adapter(folder.path()).unwrap();
    let message = rounded.load_adapter(folder.path()).unwrap_err().to_string();
    says(&message, &["has one already"]);
}

#[test]
fn what_is_not_supported_is_named() {
    let all = adapters();
    let (adapter, base) = &all[1];
    let with = |key: &str, value: Value| refusal(adapter, base, |json| json[key] = value.clone());
    says(&with("peft_type", json!("IA3")), &["peft_type", "IA3"]);
    says(&with("use_dora", json!(true)), &["use_dora"]);
    // PEFT takes a part out of the base's weights before it adds these.
    says(
        &with("init_lora_weights", json!("pissa_niter_4")),
        &["init_lora_weights", "pissa_niter_4", "merge"],
    );
    says(&with("init_lora_weights", json!("olora")), &["olora"]);
    says(&with("rank_pattern", json!({"q_proj": 2})), &["rank_pattern"]);
    says(&with("layers_to_transform", json!([0])), &["layers_to_transform"]);
    says(&with("bias", json!("all")), &["bias", "all"]);
    says(&with("r", json!(-1)), &["r is -1"]);
    says(&with("r", json!(7)), &["the model needs [7, 36]", "another base model"]);
    says(&with("target_modules", json!("q_proj|v_proj")), &["target_modules"]);
    says(&with("target_modules", json!(["q_proj"])), &["for which the model has no place"]);
    says(&with("modules_to_save", json!(["score"])), &["whole module \"score\""]);
    let mut model = load(base, Dtype::F32);
    says(&model.load_adapter(base).unwrap_err().to_string(), &["has no adapter_config.json"]);
    let message = Model::load(adapter, &Device::cpu(), Precision::of(Dtype::F32)).unwrap_err().to_string();
    says(&message, &["is an adapter", "--adapter"]);
    for (config, parts) in [
        (AdapterConfig { rank: 0, ..config(1) }, vec!["rank 0"]),
        (AdapterConfig { alpha: f64::NAN, ..config(1) }, vec!["alpha NaN"]),
        (AdapterConfig { targets: vec!["c_attn".into()], ..config(1) }, vec!["c_attn", "q_proj", ALL_LINEAR]),
        (AdapterConfig { targets: vec![], ..config(1) }, vec!["no targets"]),
        (AdapterConfig { embeddings: Embeddings::Tied, ..config(1) }, vec!["the base has two"]),
    ] {
        says(&model.adapt(config, 0).unwrap_err().to_string(), &parts);
        assert!(model.adapter().is_none());
    }
    assert_eq!(answer(&model, base).gradients.len(), model.parameters().len());
}
