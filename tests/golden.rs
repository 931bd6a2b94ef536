//! Whole models against Hugging Face transformers: logits, loss, every gradient, greedy text, through latents,
//! masks and soft positions. Golden files: tests/golden, made by tools/golden.py.

use latch::base::Dtype;
use latch::device::Device;
use latch::model::{Model, Precision};
use latch::ops::mask::SiteKind;
use latch::ops::sampler::Law;
use latch::rollout::generate::{Options, generate};
use latch::run::probe::{self, Answer, Request};
use safetensors::SafeTensors;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Largest difference of a logit from transformers' in float64.
pub const LOGITS_F32: f64 = 1e-4;
pub const LOGITS_F64: f64 = 3e-6;
/// Largest difference of a gradient entry, relative to the largest entry of its tensor.
pub const GRADIENT_F32: f64 = 1e-3;
pub const GRADIENT_F64: f64 = 1e-6;

/// Where golden files are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn models() -> Vec<PathBuf> {
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").exists())
        .collect();
    models.sort();
    assert!(models.len() >= 6, "golden models are missing: {models:?}");
    models
}

fn cases(model: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(model.join("cases"))
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().to_str()?.strip_suffix(".in.safetensors").map(String::from)
        })
        .collect();
    names.sort();
    assert!(!names.is_empty(), "{} has no cases", model.display());
    names
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f64> {
    let tensor = tensors.tensor(name).unwrap_or_else(|_| panic!("golden tensor {name} is missing"));
    tensor.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
}

/// Largest absolute difference.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(f, e)| if f.is_nan() { f64::INFINITY } else { (f - e).abs() })
        .fold(0.0, f64::max)
}

/// Compares what was found with a golden file.
pub fn compare(model: &Model, case: &Path, found: &Answer, logit_bound: f64, gradient_bound: f64) {
    let bytes = std::fs::read(case).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let name = case.display();
    let logits = distance(&found.logits, &floats(&golden, "logits"));
    assert!(logits <= logit_bound, "{name}: logits differ by {logits:.2e}");
    let loss = (found.loss.unwrap() - floats(&golden, "loss")[0]).abs();
    assert!(loss <= logit_bound, "{name}: loss differs by {loss:.2e}");
    let mut compared = 0;
    for (name_of, gradient) in model.trained_names().iter().zip(&found.gradients) {
        let expected = floats(&golden, &format!("grad/{name_of}"));
        let largest = expected.iter().fold(0.0_f64, |m, g| m.max(g.abs()));
        let error = distance(gradient, &expected) / largest.max(1e-12);
        assert!(error <= gradient_bound, "{name}: gradient of {name_of} differs by {error:.2e}");
        compared += 1;
    }
    let gradients = golden.names().iter().filter(|name| name.starts_with("grad/")).count();
    assert_eq!(compared, gradients, "{name}: numbers of gradients");
}

fn check(dtype: Dtype, logit_bound: f64, gradient_bound: f64) {
    for folder in models() {
        let model = Model::load(&folder, &Device::cpu(), Precision::of(dtype)).unwrap();
        for case in cases(&folder) {
            let file = |end: &str| folder.join("cases").join(format!("{case}.{end}.safetensors"));
            let request: Request = probe::read(&file("in")).unwrap();
            let answer = probe::probe(&model, &request).unwrap();
            compare(&model, &file("out"), &answer, logit_bound, gradient_bound);
        }
    }
}

#[test]
fn every_model_and_case_in_f32() {
    check(Dtype::F32, LOGITS_F32, GRADIENT_F32);
}

#[test]
fn every_model_and_case_in_f64() {
    check(Dtype::F64, LOGITS_F64, GRADIENT_F64);
}

/// Masks for some layers only: the others are as if their bits were all kept, at a p that scales nothing.
#[test]
fn a_layer_without_a_mask_is_not_masked() {
    let folder = folder().join("qwen3");
    let model = Model::load(&folder, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
    let mut whole = probe::read(&folder.join("cases/masked.in.safetensors")).unwrap();
    whole.p = 0.0;
    let kept = |(layer, kind): &(usize, SiteKind)| *layer == 1 && *kind != SiteKind::AttnOut;
    let mut some = whole.clone();
    some.masks.retain(|site, _| kept(site));
    assert_eq!(some.masks.len(), 2, "mlp_hid and mlp_out of layer 1");
    whole.masks.iter_mut().filter(|(site, _)| !kept(site)).for_each(|(_, bytes)| bytes.fill(1));
    let run = |request: &Request| probe::probe(&model, request).unwrap();
    let (some_found, whole_found) = (run(&some), run(&whole));
    assert_eq!(some_found.logits, whole_found.logits);
    assert_eq!(some_found.gradients, whole_found.gradients);
    some.p = 0.25;
    assert_ne!(run(&some).logits, some_found.logits);
    some.masks.clear();
    assert_ne!(run(&some).logits, some_found.logits);
}

/// Each number that is read is checked before anything runs, and named with its place; what is not read is let alone.
#[test]
fn a_request_with_impossible_numbers_is_refused() {
    let folder = folder().join("qwen3");
    let model = Model::load(&folder, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
    let soft = probe::read(&folder.join("cases/soft.in.safetensors")).unwrap();
    let vocabulary = model.config().vocab as i64;
    // A soft position beyond the first row's first, and another position.
    let at = soft.ids.iter().rposition(|&id| id == -2).unwrap();
    let other = soft.ids.iter().position(|&id| id >= 0).unwrap();
    let place = |n: usize| format!("at row {}, position {}", n / soft.length, n % soft.length);
    let refuses = |change: &dyn Fn(&mut Request), words: &[&str]| {
        let mut request = soft.clone();
        change(&mut request);
        let message = probe::probe(&model, &request).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(message.contains(word), "`{word}` is missing in: {message}"));
    };
    let last = format!("0 to {}", vocabulary - 1);
    for weight in [f32::NAN, f32::INFINITY, -0.25] {
        let found = format!("{weight} {}", place(at));
        refuses(
            &|r| r.soft_weights[at * r.terms + 1] = weight,
            &["soft_weights", &found, "finite", "from 0"],
        );
    }
    for id in [-1, vocabulary, i64::MAX] {
        let found = format!("{id} {}", place(at));
        refuses(&|r| r.soft_ids[at * r.terms] = id, &["soft_ids", &found, &last]);
    }
    for id in [-3, vocabulary, i64::MIN, 1 << 40] {
        let found = format!("{id} {}", place(other));
        refuses(&|r| r.ids[other] = id, &["ids", &found, &last, "-1 is a latent"]);
    }
    for label in [-1, vocabulary, 1 << 32] {
        let found = format!("{label} {}", place(at));
        refuses(&|r| r.labels[at] = label, &["labels", &found, &last, "-100 is not trained"]);
    }
    let masked = probe::read(&folder.join("cases/masked.in.safetensors")).unwrap();
    for p in [f64::NAN, -0.1, 1.0] {
        let message = probe::probe(&model, &Request { p, ..masked.clone() }).unwrap_err().to_string();
        assert!(message.contains(&format!("found {p}, expected 0 <= p < 1")), "{message}");
    }
    // Beside a position that is none of soft terms, nothing is read.
    let mut unread = soft.clone();
    (unread.soft_weights[other * soft.terms], unread.soft_ids[other * soft.terms]) = (f32::NAN, -7);
    let run = |request: &Request| probe::probe(&model, request).unwrap().logits;
    assert_eq!(run(&unread), run(&soft));
}

#[test]
fn both_forms_of_config_json_give_the_same_bits() {
    let mut compared = 0;
    for folder in models() {
        for form in ["config-v4.json", "config-v5.json"] {
            if !folder.join(form).exists() {
                continue;
            }
            let copy = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
                }
            }
            std::fs::copy(folder.join(form), copy.path().join("config.json")).unwrap();
            let request = probe::read(&folder.join("cases/plain.in.safetensors")).unwrap();
            let run = |path: &Path| {
                let model = Model::load(path, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
                probe::probe(&model, &request).unwrap().logits
            };
            assert_eq!(run(&folder), run(copy.path()), "{} {form}", folder.display());
            compared += 1;
        }
    }
    assert!(compared >= 4, "only {compared} second forms found");
}

#[test]
fn greedy_text() {
    let mut compared = 0;
    for folder in models() {
        let text = std::fs::read_to_string(folder.join("greedy.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let model = Model::load(&folder, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
        for (kind, case) in golden.as_object().unwrap() {
            let ids = |key: &str| -> Vec<u32> {
                let list = case.get(key).and_then(|v| v.as_array()).cloned().unwrap_or_default();
                list.iter().map(|v| v.as_u64().unwrap() as u32).collect()
            };
            let options = Options {
                soft: None,
                latents: case.get("latents").and_then(|v| v.as_u64()).unwrap_or(0) as usize,
                after_latents: ids("after"),
                law: Law::Greedy,
                max_new_tokens: ids("tokens").len(),
                stop: vec![],
                seed: 0,
            };
            // Twice the same prompt: a batch must not change the text.
            let prompts = vec![ids("prompt"), ids("prompt")];
            let (found, _) = generate(&model, &prompts, &options, |_, _| ControlFlow::Continue(())).unwrap();
            for row in &found {
                assert_eq!(row.ids, ids("tokens"), "{} {kind}", folder.display());
            }
            assert_eq!(found[0], found[1]);
            compared += 1;
        }
    }
    assert!(compared >= 8, "only {compared} texts compared");
}
