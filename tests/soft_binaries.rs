//! Binaries on soft latents, gates and switching.

use crate::binaries::{refuses, run, stdout, train};
use crate::parity::gpu;
use latch::run::recipe::{BUILT_IN, Recipe};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Trains in miniature and returns the folder of an arm's model.
fn trained(out: &Path, device: &str, arm: &str, sets: &[&str]) -> PathBuf {
    let arms = format!("grpo.arms=[\"{arm}\"]");
    let mut arguments = vec!["--device", device, "--quiet", "--out", out.to_str().unwrap(), "--set", &arms];
    let miniature = ["coconut.variant=cot", "evaluation.modes=[\"det\"]", "grpo.updates=2"];
    arguments.extend(miniature.iter().chain(sets).flat_map(|set| ["--set", set]));
    stdout(&train(&arguments));
    out.join("models").join(arm)
}

fn json(binary: &str, model: &Path, more: &[&str]) -> Value {
    let base = ["--model", model.to_str().unwrap(), "--json"];
    let text = stdout(&run(binary, &base.iter().chain(more).copied().collect::<Vec<_>>()));
    serde_json::from_str(text.trim()).unwrap()
}

/// Soft Tokens in miniature: noisy embeddings are replayed to the bit, their diagnostics logged, and answers asked hard.
#[test]
fn train_runs_soft_tokens_on_the_cpu_and_on_the_simulated_gpu() {
    let soft = [
        "data.limit_train=16",
        "data.limit_valid=4",
        "data.limit_test=4",
        "evaluation.problems=4",
        "lepo.latents=3",
        "lepo.top_k=7",
        "lepo.noise=none",
        "lepo.embedding_noise=0.02",
        "lepo.estimator=gauss_embed",
        "lepo.proxies_stop=false",
        "lepo.infer_hard=true",
        // Trains groups of equal rewards too, and lets a reference read what was read.
        "grpo.kl_beta=0.01",
    ];
    for device in ["cpu", gpu::name()] {
        let work = tempfile::tempdir().unwrap();
        let out = work.path().join("run");
        trained(&out, device, "lepo", &soft);
        let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
        let summary: Value = serde_json::from_str(&summary).unwrap();
        assert_eq!(summary["models"][1]["tally"]["replay_gap"], 0.0);
        // Asked hard, there is nothing that could be removed.
        let entry = &summary["models"][1];
        assert!(entry["removed"].is_object() && entry["removed"] == entry["det"]["accuracy"], "{entry}");
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let line = metrics.lines().find(|line| line.contains("soft/score")).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!((line["soft/ratio"].as_f64(), line["soft/churn_left"].as_f64()), (Some(1.0), Some(0.0)));
        assert!(line["soft/score"].as_f64().unwrap() < 0.0 && line["soft/churn_entered"] == 0.0, "{line}");
        let place = format!("{}:2", out.join("samples.jsonl").display());
        let replay = || run(env!("CARGO_BIN_EXE_generate"), &["--replay", &place, "--device", device]);
        let again = replay();
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        // Other proxies than were drawn: the rollout is not the one that was logged.
        let samples = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
        let first: Value = serde_json::from_str(samples.lines().nth(1).unwrap()).unwrap();
        let proxy = first["proxies"][0].as_u64().unwrap();
        let other =
            samples.replacen(&format!("\"proxies\":[{proxy}"), &format!("\"proxies\":[{}", proxy + 1), 1);
        std::fs::write(out.join("samples.jsonl"), other).unwrap();
        assert_eq!(replay().status.code(), Some(1));
    }
}

#[test]
fn evaluate_asks_with_soft_steps() {
    let work = tempfile::tempdir().unwrap();
    let model = trained(&work.path().join("run"), "cpu", "lepo", &["lepo.latents=3"]);
    let evaluate = |more: &[&str]| {
        let limit = ["--limit", "12", "--max-new-tokens", "12"];
        json(env!("CARGO_BIN_EXE_evaluate"), &model, &[&limit, more].concat())
    };
    let plain = evaluate(&[]);
    assert_eq!((plain["problems"].as_u64(), &plain["soft"]), (Some(12), &Value::Null));
    let soft = evaluate(&["--soft", "4"]);
    assert_eq!((soft["soft"].as_u64(), soft["latents"].as_u64()), (Some(4), Some(0)));
    // Greedy answers are asked without noise; sampled ones with it, from the same seed the same.
    assert_eq!(soft, evaluate(&["--soft", "4", "--soft-noise", "none"]));
    let sampled = ["--soft", "4", "--mode", "temp", "--masks", "3", "--read-proxies"];
    let once = evaluate(&sampled);
    assert_eq!(once, evaluate(&sampled));
    // Proxies are said too.
    let fewer = evaluate(&sampled[..6]);
    let tokens = |value: &Value| value["tokens"].as_f64().unwrap();
    assert!((tokens(&once) - tokens(&fewer) - 4.0).abs() < 1e-9 || tokens(&once) > tokens(&fewer));
    let masked = evaluate(&["--soft", "4", "--mode", "mc", "--masks", "3"]);
    assert_eq!(masked["average_by_probability"], Value::Null);
    let base = ["--model", model.to_str().unwrap()];
    let both = run(env!("CARGO_BIN_EXE_evaluate"), &[&base[..], &["--soft", "4", "--latents", "2"]].concat());
    assert!(!both.status.success());
    let sharp = run(env!("CARGO_BIN_EXE_evaluate"), &[&base[..], &["--soft", "4", "--tau", "0"]].concat());
    refuses(&sharp, 2, &["tau"]);
    // What could never end thinking, or keep all tokens, is refused and not left out.
    for (flags, words) in [
        (&["--cold-entropy", "nan"][..], ["entropy", "found NaN", "at least 0"]),
        (&["--cold-entropy", "0.01", "--cold-steps", "0"], ["cold stop's steps", "found 0", "at least 1"]),
        (&["--leave-at", "99999999"], ["ends thinking", "id 99999999", "the vocabulary has"]),
        (&["--soft-top-p", "2"], ["top_p", "found 2", "at most 1"]),
        (&["--soft-top-p", "nan"], ["top_p", "found NaN", "at most 1"]),
    ] {
        for (binary, more) in [
            (env!("CARGO_BIN_EXE_evaluate"), &["--limit", "2"]),
            (env!("CARGO_BIN_EXE_generate"), &["--prompt", "2 + 3 ="]),
        ] {
            refuses(&run(binary, &[&base[..], more, &["--soft", "4"], flags].concat()), 2, &words);
        }
    }
}

#[test]
fn generate_reads_a_model_with_gates_as_it_was_trained() {
    let work = tempfile::tempdir().unwrap();
    let sets = ["hrpo.thinking=6", "hrpo.mark=", "hrpo.least_share=0.01"];
    let out = work.path().join("run");
    let model = trained(&out, "cpu", "hrpo", &sets);
    // The first update's gates are in no file: they are drawn again.
    let place = format!("{}:2", out.join("samples.jsonl").display());
    let again = stdout(&run(env!("CARGO_BIN_EXE_generate"), &["--replay", &place, "--json"]));
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["same"], true, "{again}");
    let generate = |more: &[&str]| {
        let prompt = ["--prompt", "Tom has 3 apples and buys 4 more.", "-n", "12", "--ignore-eos", "-q"];
        json(env!("CARGO_BIN_EXE_generate"), &model, &[&prompt, more].concat())
    };
    let (gated, plain) = (generate(&[]), generate(&["--no-gates"]));
    assert_eq!(gated, generate(&[]));
    // The first token is predicted from the prompt alone; what follows has read it with its mixture.
    assert_eq!(gated["logprobs"][0], plain["logprobs"][0]);
    assert_ne!(gated["logprobs"], plain["logprobs"]);
    let evaluate = |more: &[&str]| {
        let limit = ["--limit", "8", "--max-new-tokens", "8", "--latents", "0"];
        json(env!("CARGO_BIN_EXE_evaluate"), &model, &[&limit, more].concat())
    };
    assert_eq!(evaluate(&[])["problems"], evaluate(&["--no-gates"])["problems"]);
}

#[test]
fn generate_switches_between_tokens_and_mixtures() {
    let work = tempfile::tempdir().unwrap();
    let model = trained(&work.path().join("run"), "cpu", "temp", &[]);
    let prompt = ["--prompt", "Tom has 3 apples and buys 4 more.", "-n", "20", "--ignore-eos", "-q"];
    let swi = ["--swi", "--swi-window", "1", "--swi-open", "5", "--swi-close", "6"];
    let generate = |more: &[&str]| json(env!("CARGO_BIN_EXE_generate"), &model, &[&prompt, more].concat());
    let found = generate(&swi);
    let readings = found["readings"].as_str().unwrap();
    assert_eq!((readings.len(), found["ids"].as_array().unwrap().len()), (20, 20));
    assert!(readings.starts_with('m') && readings.chars().all(|c| "tms".contains(c)), "{readings}");
    assert_eq!(found, generate(&swi));
    assert_eq!(generate(&[])["readings"], Value::Null);
    let base = ["--model", model.to_str().unwrap()];
    let nameless = run(env!("CARGO_BIN_EXE_generate"), &[&base[..], &prompt, &["--swi"]].concat());
    refuses(&nameless, 2, &["<think>", "--swi-open"]);
    let wide =
        run(env!("CARGO_BIN_EXE_generate"), &[&base[..], &prompt, &swi, &["--swi-beta", "1.5"]].concat());
    refuses(&wide, 2, &["beta", "1.5"]);
}

#[test]
fn help_names_every_built_in_recipe() {
    let help = stdout(&run(env!("CARGO_BIN_EXE_train"), &["--help"]));
    let help: String = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, _) in BUILT_IN {
        assert!(help.contains(name), "{name}\n{help}");
    }
}

/// What soft steps cannot be trained by is said before anything is trained.
#[test]
fn recipes_of_soft_steps_are_checked_first() {
    let sets = |more: &[&str]| -> String {
        let sets: Vec<String> = ["grpo.arms=[\"lepo\"]", "lepo.estimator=gauss_embed"]
            .iter()
            .chain(more)
            .map(|s| s.to_string())
            .collect();
        Recipe::resolve(None, &sets).map(|_| String::new()).unwrap_or_else(|error| error.to_string())
    };
    assert!(sets(&["lepo.noise=none"]).contains("lepo.embedding_noise = 0"));
    assert!(sets(&["lepo.embedding_noise=0.1"]).contains("lepo.noise"));
    assert_eq!(sets(&["lepo.noise=none", "lepo.embedding_noise=0.1"]), "");
}
