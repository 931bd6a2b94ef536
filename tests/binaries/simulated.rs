//! `train` in miniature with every kernel in the simulator.

use super::{generate, refuses, run, stdout, train};
use crate::parity::gpu;

/// What makes the story one that a simulated GPU runs in seconds.
const MINIATURE: [&str; 8] = [
    "data.limit_train=16",
    "data.limit_valid=4",
    "data.limit_test=4",
    "coconut.max_latent_stage=1",
    "evaluation.problems=4",
    "evaluation.modes=[\"det\"]",
    "grpo.updates=2",
    "grpo.arms=[\"dropout_latent\"]",
];

/// The story in miniature with every kernel in the simulator: what a GPU would run.
#[test]
fn train_runs_on_the_simulated_gpu() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("run");
    let mut arguments = vec!["--device", gpu::name(), "--quiet", "--out", out.to_str().unwrap()];
    arguments.extend(MINIATURE.iter().flat_map(|set| ["--set", set]));
    let tables = stdout(&train(&arguments));
    assert!(tables.contains("dropout_latent"), "{tables}");
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["models"][1]["tally"]["replay_gap"], 0.0);
    assert_eq!(summary["models"][1]["tally"]["rollouts"], 16);
    let environment = std::fs::read_to_string(out.join("environment.json")).unwrap();
    assert!(environment.contains(&format!("\"{}", gpu::name())), "{environment}");
}

/// The same with bf16 activations; and what is said where they cannot be had.
#[test]
fn train_runs_with_bf16_activations_on_the_simulated_gpu() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("run");
    let sets = ["grpo.verify_replay=true", "model.dtype=bf16-activations"];
    let mut arguments = vec!["--quiet", "--out", out.to_str().unwrap()];
    arguments.extend(MINIATURE.iter().chain(&sets).flat_map(|set| ["--set", set]));
    let on_cpu = train(&[&arguments[..], &["--device", "cpu"]].concat());
    refuses(&on_cpu, 2, &["model.dtype", "bf16-activations on the cpu", "--device cuda"]);
    let tables = stdout(&train(&[&arguments[..], &["--device", gpu::name()]].concat()));
    assert!(tables.contains("dropout_latent"), "{tables}");
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["models"][1]["tally"]["replay_gap"], 0.0);
    assert_eq!(summary["models"][1]["tally"]["rollouts"], 16);
    // A rollout as it was logged, in the precision it was sampled in.
    let place = format!("{}:2", out.join("samples.jsonl").display());
    let again = stdout(&generate(&["--replay", &place, "--device", gpu::name(), "--json"]));
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["same"], true, "{again}");
    let model = out.join("models").join("dropout_latent");
    let of_words = ["--model", model.to_str().unwrap(), "--limit", "2", "--bound", "12", "--steps", "2"];
    let precise = ["--max-new-tokens", "4", "--dtype", "bf16-activations", "--device", gpu::name(), "--json"];
    let scores = run(env!("CARGO_BIN_EXE_evaluate"), &[&of_words[..], &precise].concat());
    let scores: serde_json::Value = serde_json::from_str(&stdout(&scores)).unwrap();
    assert_eq!(scores["problems"], 2, "{scores}");
    let asked = ["--model", model.to_str().unwrap(), "--prompt", "2 + 3 =", "--latents", "2"];
    let precise = ["--max-new-tokens", "4", "--dtype", "bf16-activations"];
    stdout(&generate(&[&asked[..], &precise, &["--device", gpu::name()]].concat()));
    refuses(
        &generate(&[&asked[..], &precise, &["--device", "cpu"]].concat()),
        2,
        &["--dtype", "--device cuda"],
    );
}

/// LEPO in miniature, on the CPU and with every kernel in the simulator.
#[test]
fn train_runs_soft_latents_on_the_cpu_and_on_the_simulated_gpu() {
    for (device, estimator) in [("cpu", "soft_ce"), (gpu::name(), "soft_ce"), (gpu::name(), "pathwise")] {
        let work = tempfile::tempdir().unwrap();
        let out = work.path().join("run");
        let estimator = format!("lepo.estimator={estimator}");
        let sets = [
            "data.limit_train=16",
            "data.limit_valid=4",
            "data.limit_test=4",
            "coconut.variant=cot",
            "evaluation.problems=4",
            "evaluation.modes=[\"det\"]",
            "grpo.updates=2",
            "grpo.arms=[\"lepo\"]",
            "lepo.latents=3",
            "lepo.top_k=7",
            "lepo.proxies_stop=false",
            &estimator,
        ];
        let mut arguments = vec!["--device", device, "--quiet", "--out", out.to_str().unwrap()];
        arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
        let tables = stdout(&train(&arguments));
        assert!(tables.contains("lepo") && tables.contains("words"), "{tables}");
        let summary: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(out.join("summary.json")).unwrap()).unwrap();
        assert_eq!(summary["models"][1]["tally"]["replay_gap"], 0.0);
        assert_eq!(summary["models"][1]["tally"]["rollouts"], 16);
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        assert!(metrics.lines().any(|line| line.contains("soft/entropy")), "{metrics}");
        let samples = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(samples.lines().nth(1).unwrap()).unwrap();
        assert_eq!(line["proxies"].as_array().unwrap().len(), 3);
        let place = format!("{}:2", out.join("samples.jsonl").display());
        let again = run(env!("CARGO_BIN_EXE_generate"), &["--replay", &place, "--device", device]);
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    }
}
