//! CODI: against PyTorch (tools/codi_golden.py), in parts, with a teacher that is a constant, on devices that run the
//! shipped PTX; and its projector in files.

use crate::parity::gpu;
use crate::rollouts;
use latch::base::Dtype;
use latch::device::Device;
use latch::learn::codi::{self, Distiller, Lesson, Losses, Weights};
use latch::learn::supervised::{Example, Limits};
use latch::model::projector::Projector;
use latch::model::save::Companions;
use latch::model::{LATENT_CONFIG, Model, Precision, Record};
use latch::rollout::audit::Audit;
use latch::rollout::group::Rollouts;
use latch::rollout::masks::{Mode, Scope};
use latch::verify::codi::CodiSubject;
use latch::verify::gradient::{Effort, check_subject};
use latch::verify::models::{in_precision, rounded, small_config, small_model};
use latch::verify::rounding::bound;
use safetensors::SafeTensors;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A golden folder's lessons and weights.
fn golden(folder: &Path) -> (Vec<Lesson>, Weights) {
    let text = std::fs::read_to_string(folder.join("lessons.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let lessons = json["lessons"].as_array().unwrap().iter().map(|lesson| {
        let [question, start, end, steps, answer] =
            ["question", "start", "end", "steps", "answer"].map(|part| ids(&lesson[part]));
        Lesson {
            student: Example {
                prompt: [&question[..], &start].concat(),
                latents: json["thoughts"].as_u64().unwrap() as usize,
                end,
                answer: answer.clone(),
            },
            teacher: Example {
                prompt: question,
                latents: 0,
                end: Vec::new(),
                answer: [&steps[..], &answer].concat(),
            },
            tap: lesson["tap"].as_u64().unwrap() as usize,
            reasoning: steps.len(),
        }
    });
    let weight = |n: usize| json["weights"][n].as_f64().unwrap();
    let weights =
        Weights { student: weight(0), distill: weight(1), teacher: weight(2), ..Weights::default() };
    (lessons.collect(), weights)
}

fn folders() -> [PathBuf; 2] {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/codi");
    ["gpt2", "llama"].map(|name| golden.join(name))
}

fn values(tensor: &latch::ops::Tensor) -> Vec<f64> {
    gpu::values(tensor.view())
}

/// The terms and every gradient of `lessons` within `limits`.
fn run(model: &Model, lessons: &[Lesson], limits: Limits, weights: Weights) -> (Losses, Vec<Vec<f64>>) {
    let mut distiller = Distiller::new(model, limits, weights, Record::Everything).unwrap();
    let mut gradients = model.gradients().unwrap();
    let losses = distiller.gradient(model, lessons, &mut gradients).unwrap();
    (losses, gradients.tensors().unwrap().iter().map(values).collect())
}

fn at_once(lessons: &[Lesson]) -> Limits {
    codi::limits(lessons, lessons.len(), usize::MAX)
}

/// Largest difference of two gradients, relative to the largest entry of the second.
fn apart(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |most, e| most.max(e.abs()));
    let pairs = found.iter().zip(expected);
    pairs.map(|(f, e)| if f.is_nan() { f64::INFINITY } else { (f - e).abs() }).fold(0.0, f64::max)
        / largest.max(1e-12)
}

#[test]
fn terms_and_gradients_are_pytorchs() {
    for folder in folders() {
        let bytes = std::fs::read(folder.join("out.safetensors")).unwrap();
        let out = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f64> {
            let data = out.tensor(name).unwrap_or_else(|_| panic!("golden tensor {name} is missing"));
            data.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
        };
        let (lessons, weights) = golden(&folder);
        for (dtype, loss_bound, gradient_bound) in [(Dtype::F64, 1e-9, 1e-8), (Dtype::F32, 1e-5, 1e-3)] {
            let model = Model::load(&folder, &Device::cpu(), Precision::of(dtype)).unwrap();
            let (losses, gradients) = run(&model, &lessons, at_once(&lessons), weights);
            let found = [losses.student, losses.distill, losses.teacher];
            for (found, expected) in found.into_iter().zip(floats("terms")) {
                let error = (found - expected).abs() / expected.abs();
                assert!(error <= loss_bound, "{}, {dtype}: {found}, PyTorch {expected}", folder.display());
            }
            assert_eq!(gradients.len(), out.names().iter().filter(|name| name.starts_with("grad/")).count());
            for (parameter, gradient) in model.parameter_list().iter().zip(&gradients) {
                let error = apart(gradient, &floats(&format!("grad/{}", parameter.name)));
                let name = &parameter.name;
                assert!(
                    error <= gradient_bound,
                    "{}, {dtype}: {name} differs by {error:.2e}",
                    folder.display()
                );
            }
        }
    }
}

#[test]
fn the_whole_loss_agrees_with_differences() {
    let effort = Effort { random: 12, largest: 4, seed: 1 };
    for (family, record) in [("gpt2", Record::Everything), ("qwen2", Record::LayerInputs)] {
        let mut subject = CodiSubject::new(family, record, 5, &Device::cpu()).unwrap();
        for outcome in check_subject(&mut subject, effort, None).unwrap() {
            let errors = (outcome.worst_f64, outcome.worst_f32);
            assert!(outcome.passed, "{}: f64 and f32 errors {errors:?}", outcome.name);
        }
    }
}

/// Lessons of the golden GPT-2, and that model in f64.
fn model() -> (Model, Vec<Lesson>, Weights) {
    let folder = &folders()[0];
    let (lessons, weights) = golden(folder);
    (Model::load(folder, &Device::cpu(), Precision::of(Dtype::F64)).unwrap(), lessons, weights)
}

#[test]
fn parts_add_up_to_the_batch() {
    let (model, lessons, weights) = model();
    let limits = at_once(&lessons);
    let (losses, gradients) = run(&model, &lessons, limits, weights);
    // Two lessons at a time, then one: the deviation is still that of all of them.
    for rows in [4, 2] {
        let (in_parts, parts) = run(&model, &lessons, Limits { rows, ..limits }, weights);
        for (found, expected) in [
            (in_parts.student, losses.student),
            (in_parts.distill, losses.distill),
            (in_parts.teacher, losses.teacher),
        ] {
            assert!((found - expected).abs() < 1e-12, "{rows} rows: {in_parts:?}, at once {losses:?}");
        }
        for (found, expected) in parts.iter().zip(&gradients) {
            assert!(apart(found, expected) < 1e-10, "{rows} rows");
        }
    }
    // One lesson alone has another deviation, so the test above can fail.
    let alone: f64 = lessons
        .iter()
        .map(|lesson| run(&model, std::slice::from_ref(lesson), limits, weights).0.distill)
        .sum();
    assert!((alone / lessons.len() as f64 - losses.distill).abs() > 1e-6);
}

#[test]
fn the_teacher_is_a_constant() {
    let (mut model, lessons, weights) = model();
    let weights = Weights { student: 0.0, teacher: 0.0, ..weights };
    let mut distiller = Distiller::new(&model, at_once(&lessons), weights, Record::Everything).unwrap();
    let gradient = |distiller: &mut Distiller, model: &Model| {
        let mut gradients = model.gradients().unwrap();
        distiller.gradient(model, &lessons, &mut gradients).unwrap();
        gradients.tensors().unwrap().iter().map(values).collect::<Vec<_>>()
    };
    let free = gradient(&mut distiller, &model);
    distiller.hold(&model, &lessons).unwrap();
    assert_eq!(gradient(&mut distiller, &model), free, "a held teacher is the same constant");
    let held = distiller.losses(&model, &lessons).unwrap().distill;
    // Every parameter of the projector takes part.
    let own = model.parameters().len() - 6;
    for (parameter, gradient) in model.parameter_list()[own..].iter().zip(&free[own..]) {
        assert!(gradient.iter().any(|g| g.abs() > 1e-9), "{} has no gradient", parameter.name);
    }
    // A step against the gradient lowers the distance to the held teacher.
    for (tensor, gradient) in model.parameters_mut().iter_mut().zip(&free) {
        let moved: Vec<f64> = values(tensor).iter().zip(gradient).map(|(p, g)| p - 1e-3 * g).collect();
        tensor.upload(&moved).unwrap();
    }
    assert!(distiller.losses(&model, &lessons).unwrap().distill < held);
}

#[test]
fn devices_agree() {
    let folder = &folders()[1];
    let (lessons, weights) = golden(folder);
    let load = |device: &Device| Model::load(folder, device, Precision::of(Dtype::F32)).unwrap();
    let (expected, reference) = run(&load(&Device::cpu()), &lessons, at_once(&lessons), weights);
    for device in gpu::devices() {
        let model = load(&device);
        let (found, gradients) = run(&model, &lessons, at_once(&lessons), weights);
        for (found, expected) in [
            (found.student, expected.student),
            (found.distill, expected.distill),
            (found.teacher, expected.teacher),
        ] {
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs(),
                "{}: {found}, {expected}",
                device.name()
            );
        }
        for ((found, expected), parameter) in gradients.iter().zip(&reference).zip(model.parameter_list()) {
            let error = apart(found, expected);
            assert!(error <= 1e-3, "{}: {} differs by {error:.2e}", device.name(), parameter.name);
        }
    }
}

#[test]
fn with_bf16_activations_terms_and_gradients_are_near_those_of_f64() {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    for device in gpu::devices() {
        let folder = &folders()[0];
        let (lessons, weights) = golden(folder);
        let mut exact = Model::load(folder, &Device::cpu(), Precision::F64).unwrap();
        let low = rounded(&mut exact, &device, Precision::Bf16Activations).unwrap();
        let single = in_precision(&exact, &device, Precision::F32).unwrap();
        let [(expected, reference), (_, single), (found, gradients)] =
            [&exact, &single, &low].map(|model| run(model, &lessons, at_once(&lessons), weights));
        for (found, expected) in [(found.student, expected.student), (found.teacher, expected.teacher)] {
            assert!((found - expected).abs() <= 0.01 * expected, "{}: {found}, {expected}", device.name());
        }
        let distances = |found: &[Vec<f64>]| -> Vec<f64> {
            let of = |f: &Vec<f64>, e: &Vec<f64>| {
                norm(&mut f.iter().zip(e).map(|(f, e)| f - e)) / norm(&mut e.iter().copied())
            };
            found.iter().zip(&reference).map(|(f, e)| of(f, e)).collect()
        };
        let singles = distances(&single);
        let bound = bound(norm(&mut singles.iter().copied()) / (singles.len() as f64).sqrt());
        for (apart, parameter) in distances(&gradients).into_iter().zip(low.parameter_list()) {
            println!("{}: {apart:.1e} from f64, bound {bound:.1e}", parameter.name);
            assert!(
                apart <= bound,
                "{}: {} is {apart:.1e} off, bound {bound:.1e}",
                device.name(),
                parameter.name
            );
        }
    }
}

#[test]
fn rollouts_through_a_projector_are_computed_again_to_the_bit() {
    let plain = rollouts::model(Dtype::F32);
    let model = plain.duplicate().unwrap().with_random_projector(Projector::of(17), 3).unwrap();
    for device in gpu::devices().into_iter().chain([Device::cpu()]) {
        let here = crate::gpu_models::on(&device, &plain);
        let mut here = here.with_random_projector(Projector::of(17), 3).unwrap();
        for (to, from) in here.parameters_mut().iter_mut().zip(model.parameters()) {
            to.upload(&from.download::<f32>().unwrap()).unwrap();
        }
        for (scope, mode, share) in [(Scope::Latent, Mode::Shared, true), (Scope::All, Mode::PerStep, false)]
        {
            let drawing = rollouts::drawing(scope, mode, share);
            let (form, limits) = (rollouts::form(), rollouts::LIMITS);
            let mut group =
                Rollouts::reserve(&here, form.clone(), drawing.clone(), limits, Record::Everything).unwrap();
            let (prompts, members) = (rollouts::prompts(), rollouts::members(3, 4));
            let sampled = group.sample(&here, &prompts, &members, |_, _| ControlFlow::Continue(())).unwrap();
            let mut audit = Audit::reserve(&here, form, drawing, 70).unwrap();
            for trajectory in sampled.iter().step_by(3) {
                let prompt = &prompts[trajectory.member.prompt];
                assert_eq!(audit.gap(&here, prompt, trajectory).unwrap(), 0.0, "{}", device.name());
                // Without the projector the same tokens have other probabilities.
                if device.name() == "cpu" {
                    let mut other =
                        Audit::reserve(&plain, rollouts::form(), rollouts::drawing(scope, mode, share), 70)
                            .unwrap();
                    assert!(other.gap(&plain, prompt, trajectory).unwrap() > 1e-4);
                }
            }
        }
    }
}

#[test]
fn a_projector_is_saved_beside_the_weights_and_missed_when_it_is_gone() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    let config = small_config("llama-linear", 1, 29, 16, true).unwrap();
    let plain = small_model(config, 3).unwrap();
    let model = plain.duplicate().unwrap().with_random_projector(Projector::of(7), 4).unwrap();
    assert_eq!(model.duplicate().unwrap().projector(), Some(Projector::of(7)));
    let latents = Companions::of_contents(vec![(LATENT_CONFIG.into(), b"{\"projector\": true}".to_vec())]);
    model.save(&folder, &latents).unwrap();
    let load = || Model::load(&folder, &Device::cpu(), Precision::of(Dtype::F64));
    let again = load().unwrap();
    assert_eq!(again.projector(), model.projector());
    for ((a, b), parameter) in again.parameters().iter().zip(model.parameters()).zip(model.parameter_list()) {
        assert_eq!(values(a), values(b), "{}", parameter.name);
    }
    let says = |words: &[&str]| {
        let message = load().map(|_| ()).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "`{word}` is missing in: {message}");
        }
    };
    let weights = folder.join("latent_projector.safetensors");
    let kept = std::fs::read(&weights).unwrap();
    std::fs::remove_file(&weights).unwrap();
    says(&["latent_projector.safetensors is missing"]);
    std::fs::write(&weights, &kept).unwrap();
    let json = folder.join("latent_projector.json");
    let text = std::fs::read_to_string(&json).unwrap();
    std::fs::write(&json, text.replace("gelu_pytorch_tanh", "relu")).unwrap();
    says(&["latent_projector.json", "activation = \"relu\"", "gelu_pytorch_tanh"]);
    std::fs::write(&json, text.replace("\"hidden\": 7", "\"hidden\": 8")).unwrap();
    says(&["prj.1.weight", "[7, 16]", "[8, 16]", "another model"]);
    std::fs::remove_file(&json).unwrap();
    says(&["latents pass through a projector", "latent_projector.json is missing"]);
    // A model without one replaces it: nothing of the old projector stays behind.
    model.save(&folder, &latents).unwrap();
    plain.save(&folder, &Companions::of_contents(vec![(LATENT_CONFIG.into(), b"{}".to_vec())])).unwrap();
    assert_eq!(load().unwrap().projector(), None);
}

#[test]
fn misuse_is_named() {
    let (model, mut lessons, weights) = model();
    let limits = at_once(&lessons);
    let plain = small_model(small_config("gpt2", 1, 31, 32, true).unwrap(), 0).unwrap();
    let message = Distiller::new(&plain, limits, weights, Record::Everything).unwrap_err().to_string();
    assert!(message.contains("no projector") && message.contains("latent_projector.json"), "{message}");
    let message = model.duplicate().unwrap().with_random_projector(Projector::of(3), 0).unwrap_err();
    assert!(message.to_string().contains("has one already"), "{message}");
    let mut distiller = Distiller::new(&model, limits, weights, Record::Everything).unwrap();
    lessons[1].tap = 9;
    let message = distiller.losses(&model, &lessons).unwrap_err().to_string();
    assert!(message.contains("lesson 1") && message.contains("codi.distill_token"), "{message}");
}
