//! Gates in files and on a simulated GPU.

use super::*;
use crate::parity::gpu;
use latch::verify::models::{in_precision, rounded};
use latch::verify::rounding::bound;

#[test]
fn gates_are_kept_beside_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let companions = Companions::of_contents(Vec::new());
    let values = |model: &Model| -> Vec<Vec<f32>> {
        model.parameters().iter().map(|p| p.download::<f32>().unwrap()).collect()
    };
    let load = || -> Result<Model> { Model::load(folder.path(), &Device::cpu(), Precision::of(Dtype::F32)) };
    let model = model("llama", Dtype::F32, &Device::cpu());
    model.save(folder.path(), &companions).unwrap();
    let again = load().unwrap();
    assert!(again.has_gates());
    assert_eq!(values(&again), values(&model));
    assert_eq!(values(&model.duplicate().unwrap()), values(&model));
    let grown = model.with_vocabulary(64, 3).unwrap();
    let (products, lambda) = model.gate_parameters().unwrap();
    assert_eq!(values(&grown)[products.start..lambda.end], values(&model)[products.start..lambda.end]);
    // The family's file holds the family's parameters alone.
    let family = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    assert!(!String::from_utf8_lossy(&family).contains("thinking_residual"));

    let weights = folder.path().join("latent_gates.safetensors");
    let kept = std::fs::read(&weights).unwrap();
    std::fs::remove_file(&weights).unwrap();
    let message = load().unwrap_err().to_string();
    assert!(message.contains("hrpo.thinking") && message.contains("latent_gates.safetensors"), "{message}");
    std::fs::write(&weights, kept).unwrap();
    let config = folder.path().join("latent_gates.json");
    std::fs::write(&config, r#"{"type": "hrpo", "rate": 8, "width": 25}"#).unwrap();
    let message = load().unwrap_err().to_string();
    assert!(message.contains("width 25") && message.contains("24"), "{message}");
    std::fs::remove_file(&config).unwrap();
    assert!(load().unwrap_err().to_string().contains("latent_gates.json"));

    // A model without gates leaves none behind.
    plain_model("llama", Dtype::F32, &Device::cpu()).save(folder.path(), &companions).unwrap();
    assert!(!weights.exists() && !config.exists());
    assert!(!load().unwrap().has_gates());
}

/// Gated rollouts on a tape, sampled or given; their scores, and the gradient of a weighed sum of them.
fn run(model: &Model, given: Option<&[Trajectory]>) -> (Vec<Trajectory>, Vec<f64>, Vec<Vec<f64>>) {
    let drawing =
        Drawing { gate: Some(Gating { thinking: 3, ..gating() }), ..drawing(gating(), Masking::NONE) };
    let limits = Limits { prompts: 1, members: 2, prompt_tokens: 5 };
    let prompts = &prompts()[..1];
    let mut rollouts =
        Rollouts::reserve(model, short(), drawing.clone(), limits, Record::Everything).unwrap();
    let trajectories = match given {
        None => rollouts.sample(model, prompts, &members(1, 2), go).unwrap(),
        Some(given) => {
            rollouts.replay(model, prompts, &given.iter().collect::<Vec<_>>()).unwrap();
            given.to_vec()
        }
    };
    let mut scores = Scores::reserve(model, 12).unwrap();
    let values = scored(model, &rollouts, &trajectories, &mut scores);
    let mut gradients = model.gradients().unwrap();
    let (sequences, masks) = rollouts.parts_mut();
    let weights: Vec<f64> = (0..values.len()).map(|n| 0.3 * n as f64 - 0.7).collect();
    scores.backward(model, sequences, &weights, &mut gradients).unwrap();
    model.backward(sequences, masks, Truncation::default(), &mut gradients).unwrap();
    if given.is_none() {
        assert!(trajectories.iter().any(|t| t.mixtures.len() == 3), "{trajectories:?}");
        let mut audit = Audit::reserve(model, short(), drawing, 5).unwrap();
        for trajectory in &trajectories {
            assert_eq!(audit.gap(model, &prompts[0], trajectory).unwrap(), 0.0);
        }
    }
    let gradients = gradients.tensors().unwrap().iter().map(|t| t.view().numbers().unwrap()).collect();
    (trajectories, values, gradients)
}

fn short() -> Form {
    Form { max_new_tokens: 5, ..form() }
}

/// Whole models are compared as tests/gpu_models.rs does: by norms.
fn apart(found: &[f64], expected: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

#[test]
fn the_simulated_gpu_runs_gated_rollouts_and_their_gradients() {
    let device = gpu::device();
    let (gpu, cpu) = (model("llama", Dtype::F32, &device), model("llama", Dtype::F32, &Device::cpu()));
    let (trajectories, values, gradients) = run(&gpu, None);
    let (_, again, _) = run(&gpu, Some(&trajectories));
    assert_eq!(bits(&again), bits(&values));
    let (_, expected, expected_gradients) = run(&cpu, Some(&trajectories));
    for (a, b) in values.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
    }
    let (products, lambda) = gpu.gate_parameters().unwrap();
    for index in products.start..lambda.end {
        let apart = apart(&gradients[index], &expected_gradients[index]);
        assert!(apart <= 1e-4, "{}: {apart:e}", gpu.parameter_list()[index].name);
    }
}

#[test]
fn gated_rollouts_with_bf16_activations_have_the_gradients_of_f64() {
    let device = gpu::device();
    let mut exact = model("llama", Dtype::F64, &Device::cpu());
    let gpu = rounded(&mut exact, &device, Precision::Bf16Activations).unwrap();
    let (trajectories, values, gradients) = run(&gpu, None);
    let (_, again, again_gradients) = run(&gpu, Some(&trajectories));
    assert_eq!(bits(&again), bits(&values));
    let (_, expected, expected_gradients) = run(&exact, Some(&trajectories));
    let single = in_precision(&exact, &device, Precision::F32).unwrap();
    let (_, single, single_gradients) = run(&single, Some(&trajectories));
    assert!(apart(&values, &expected) <= bound(apart(&single, &expected)));
    let (products, lambda) = gpu.gate_parameters().unwrap();
    let of = |found: &[Vec<f64>]| -> Vec<f64> {
        (products.start..lambda.end).map(|at| apart(&found[at], &expected_gradients[at])).collect()
    };
    let singles = of(&single_gradients);
    let spread = (singles.iter().map(|d| d * d).sum::<f64>() / singles.len() as f64).sqrt();
    // The tape of sampling and that of a replay are walked in other units.
    let both = of(&gradients).into_iter().zip(of(&again_gradients));
    for (at, found) in (products.start..).zip(both.map(|(a, b)| a.max(b))) {
        let (name, bound) = (&gpu.parameter_list()[at].name, bound(spread));
        println!("{name}: {found:.1e} from f64, bound {bound:.1e}");
        assert!(found <= bound, "{name}: {found:.1e}, bound {bound:.1e}");
    }
}
