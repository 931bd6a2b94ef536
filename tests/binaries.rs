//! The binaries as a user meets them: output, files, exit codes, messages.
//! One file, though long: each test starts a binary as a child, and all share what starts and reads it.

use crate::parity::gpu;
use latch::device::Device;
use latch::run::experiments::Laboratory;
use latch::run::folder::RunFolder;
use safetensors::SafeTensors;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

pub fn run(binary: &str, arguments: &[&str]) -> Output {
    Command::new(binary).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn generate(arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_generate"), arguments)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The command fails with `code` and says all of `words`.
#[track_caller]
pub fn refuses(output: &Output, code: i32, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn generate_prints_one_json_line_a_prompt() {
    let model = golden("gpt2");
    let text = std::fs::read_to_string(model.join("greedy.json")).unwrap();
    let greedy: serde_json::Value = serde_json::from_str(&text).unwrap();
    let case = &greedy["plain"];
    let ids: Vec<String> = case["prompt"].as_array().unwrap().iter().map(|id| id.to_string()).collect();
    let ids = ids.join(",");
    let output = generate(&[
        "--model",
        model.to_str().unwrap(),
        "--prompt-ids",
        &ids,
        "--prompt-ids",
        "1,2",
        "--greedy",
        "--json",
        "--max-new-tokens",
        "12",
        "--ignore-eos",
    ]);
    let lines: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["ids"], case["tokens"]);
    assert_eq!(lines[0]["logprobs"].as_array().unwrap().len(), 12);
    assert!(stderr(&output).contains("tokens/s"));
}

#[test]
fn generate_gives_the_same_sample_for_the_same_seed_and_another_for_another() {
    let model = golden("qwen3");
    let sample = |seed: &str| {
        let model = model.to_str().unwrap();
        stdout(&generate(&[
            "--model",
            model,
            "--prompt-ids",
            "5,6",
            "--temperature",
            "1",
            "--seed",
            seed,
            "--latents",
            "2",
            "-q",
        ]))
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn generate_refuses_what_cannot_be_done() {
    let folder = golden("gpt2");
    let model = folder.to_str().unwrap();
    let long = vec!["1"; 70].join(",");
    refuses(&generate(&["--model", model, "--prompt-ids", &long]), 2, &["positions", "exceed the model's"]);
    refuses(&generate(&["--model", model, "--prompt-ids", "1,x"]), 2, &["`x` is no token id", "1,2,3"]);
    refuses(&generate(&["--model", model, "--prompt-ids", "9999"]), 2, &["token id 9999", "vocabulary"]);
    refuses(
        &generate(&["--model", model, "--prompt-ids", "1", "--temperature", "0"]),
        2,
        &["temperature", "greedy"],
    );
    refuses(&generate(&["--model", model, "--prompt", "text"]), 1, &["tokenizer.json"]);
    refuses(
        &generate(&["--model", "/nonexistent", "--prompt-ids", "1"]),
        1,
        &["/nonexistent", "no such file or folder", "nothing is downloaded"],
    );
    refuses(
        &generate(&["--model", model, "--prompt-ids", "1", "--device", "cuda:4096"]),
        1,
        &["cuda", "--device cpu"],
    );
    refuses(&generate(&["--model", model]), 2, &["--prompt"]);
}

#[test]
fn probe_writes_what_golden_files_hold() {
    let folder = golden("llama_head_dim");
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out.safetensors");
    let input = folder.join("cases/masked.in.safetensors");
    let output = run(
        env!("CARGO_BIN_EXE_probe"),
        &[
            "--model",
            folder.to_str().unwrap(),
            "--input",
            input.to_str().unwrap(),
            "--output",
            out.to_str().unwrap(),
        ],
    );
    stdout(&output);
    let (found, expected) =
        (std::fs::read(&out).unwrap(), std::fs::read(folder.join("cases/masked.out.safetensors")).unwrap());
    let (found, expected) =
        (SafeTensors::deserialize(&found).unwrap(), SafeTensors::deserialize(&expected).unwrap());
    let mut names: Vec<&str> = found.names();
    let mut golden: Vec<&str> = expected.names();
    names.sort_unstable();
    golden.sort_unstable();
    assert_eq!(names, golden);
    for name in names {
        assert_eq!(found.tensor(name).unwrap().shape(), expected.tensor(name).unwrap().shape(), "{name}");
    }
    let missing =
        run(env!("CARGO_BIN_EXE_probe"), &["--model", "x", "--input", "/nonexistent", "--output", "y"]);
    refuses(&missing, 1, &["/nonexistent", "cannot read"]);
    let unwritable = run(
        env!("CARGO_BIN_EXE_probe"),
        &[
            "--model",
            folder.to_str().unwrap(),
            "--input",
            input.to_str().unwrap(),
            "--output",
            "/nonexistent/out",
        ],
    );
    refuses(&unwritable, 1, &["/nonexistent/out", "cannot write", "no such folder"]);
    // A device is not replaced by a file; a folder stays one. Said before the model is opened.
    let link = work.path().join("device");
    #[cfg(unix)]
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    #[cfg(not(unix))]
    std::fs::create_dir(&link).unwrap();
    for place in [link.as_path(), work.path()] {
        let arguments = ["--model", "/nonexistent", "--input", input.to_str().unwrap(), "--output"];
        let place = place.to_str().unwrap();
        let output = run(env!("CARGO_BIN_EXE_probe"), &[&arguments[..], &[place]].concat());
        refuses(&output, 1, &[place, "cannot write", "what is there is no file"]);
    }
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink() || cfg!(not(unix)));
}

/// A run of a second: the whole story on a few problems.
const TINY: [&str; 34] = [
    "--set",
    "data.limit_train=64",
    "--set",
    "grpo.fresh_problems=64",
    "--set",
    "data.limit_valid=16",
    "--set",
    "data.limit_test=16",
    "--set",
    "model.layers=1",
    "--set",
    "model.width=32",
    "--set",
    "model.mlp_hidden=32",
    "--set",
    "cot.epochs=1",
    "--set",
    "coconut.extra_epochs=1",
    "--set",
    "grpo.updates=3",
    "--set",
    "grpo.prompts=2",
    "--set",
    "grpo.group=4",
    "--set",
    "evaluation.masks=2",
    "--set",
    "evaluation.k=2",
    "--set",
    "evaluation.every=2",
    "--set",
    "run.checkpoint_every=1",
    "--set",
    "grpo.arms=[\"temp\", \"dropout_latent\", \"dropout_all\", \"sft\"]",
];

pub fn train(more: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_train"), &TINY.iter().chain(more).copied().collect::<Vec<_>>())
}

#[test]
fn train_tells_the_whole_story_and_leaves_a_run() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("run");
    let folder = out.to_str().unwrap();
    let tables = stdout(&train(&["--quiet", "--out", folder]));
    for part in [
        "words",
        "stage 1",
        "stage 2",
        "all steps removed",
        "coconut",
        "temp",
        "dropout_latent",
        "dropout_all",
        "sft",
    ] {
        assert!(tables.contains(part), "{part}\n{tables}");
    }
    assert!(
        tables.contains("no latents") && tables.contains("shuffled") && tables.contains("time spent on"),
        "{tables}"
    );
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("summary.json")).unwrap()).unwrap();
    let names: Vec<&str> =
        summary["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["coconut", "temp", "dropout_latent", "dropout_all", "sft"]);
    assert_eq!(summary["models"][1]["tally"]["replay_gap"], 0.0);
    assert_eq!(summary["models"][1]["tally"]["rollouts"], 24);
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert!(
        metrics.starts_with("{\"schema\":1") && metrics.contains("\"frac_reward_zero_std\""),
        "{metrics}"
    );
    for file in ["recipe.toml", "environment.json", "samples.jsonl", "log.txt"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    refuses(&train(&["--out", folder]), 2, &["--resume", "--clean"]);

    // A rollout of the newest update is sampled again, to the bit; one whose weights are gone is refused.
    let samples = out.join("samples.jsonl");
    let lines = std::fs::read_to_string(&samples).unwrap().lines().count();
    let replay = |line: usize| {
        run(env!("CARGO_BIN_EXE_generate"), &["--replay", &format!("{}:{line}", samples.display()), "--json"])
    };
    assert_eq!(lines, 1 + 3 * 3 * 8);
    let first: serde_json::Value = serde_json::from_str(&stdout(&replay(2))).unwrap();
    assert_eq!((&first["same"], &first["ids"]), (&serde_json::json!(true), &first["logged_ids"]));
    refuses(&replay(20), 1, &["does not keep the model of step", "keep more"]);

    // What was trained answers questions.
    let model = out.join("models").join("dropout_all");
    let evaluate = |more: &[&str]| {
        let base = [
            "--model",
            model.to_str().unwrap(),
            "--limit",
            "8",
            "--bound",
            "12",
            "--steps",
            "2",
            "--max-new-tokens",
            "6",
        ];
        run(env!("CARGO_BIN_EXE_evaluate"), &base.iter().chain(more).copied().collect::<Vec<_>>())
    };
    for mode in ["det", "mc", "temp", "mc+temp"] {
        let scores = stdout(&evaluate(&["--mode", mode, "--masks", "4", "--k", "2", "--json"]));
        let scores: serde_json::Value = serde_json::from_str(&scores).unwrap();
        assert_eq!(
            (&scores["problems"], &scores["latents"]),
            (&serde_json::json!(8), &serde_json::json!(2)),
            "{mode}"
        );
        assert_eq!(scores["samples"], if mode == "det" { 1 } else { 4 }, "{mode}");
    }
    assert!(stdout(&evaluate(&["--thoughts", "shuffled"])).contains("accuracy"));
    refuses(&evaluate(&["--sites", "nowhere", "--mode", "mc"]), 2, &["nowhere", "attn_out"]);

    // And shows what it does in its latent steps.
    let inspect = |more: &[&str]| {
        let base = ["--model", model.to_str().unwrap(), "--max-new-tokens", "6"];
        run(env!("CARGO_BIN_EXE_inspect"), &base.iter().chain(more).copied().collect::<Vec<_>>())
    };
    let seen = stdout(&inspect(&["--bound", "12", "--steps", "2", "--limit", "2", "--json"]));
    assert_eq!(seen.lines().count(), 2);
    for line in seen.lines() {
        let seen: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(seen["latents"].as_array().unwrap().len(), 2);
        assert_eq!(seen["latents"][1]["predicted"].as_array().unwrap().len(), 4);
        assert_eq!(seen["latents"][0]["state"].as_array().unwrap().len(), 32);
        assert_eq!(seen["fewer_latents"].as_array().unwrap().len(), 2);
        let votes = seen["masked"]["answers"].as_array().unwrap();
        assert_eq!(votes.iter().map(|vote| vote["count"].as_u64().unwrap()).sum::<u64>(), 8);
        assert!(seen["mean_latents"]["text"].is_string() && !seen["expected"].as_str().unwrap().is_empty());
    }
    let seen = stdout(&inspect(&["--prompt", "Tom has 3 apples and buys 4 . How many ?", "--masks", "0"]));
    assert!(seen.contains("the head predicts") && seen.contains("with 0 latent steps"), "{seen}");
    assert!(!seen.contains("spread") && !seen.contains("expected"), "{seen}");
    refuses(&inspect(&["--latents", "0"]), 2, &["--latents", "no latent steps"]);
    refuses(&inspect(&["--latents", &usize::MAX.to_string()]), 2, &["positions", "exceed the model's"]);
    refuses(&inspect(&["--sites", "nowhere"]), 2, &["nowhere", "attn_out"]);
    refuses(&inspect(&["--p", "1"]), 2, &["--p: found 1"]);

    let most = usize::MAX.to_string();
    refuses(&evaluate(&["--latents", &most]), 2, &["positions", "exceed the model's"]);
    // A file beside the weights is named, not the key that it would set.
    std::fs::write(model.join("latent_gating.json"), "{\"thinking\": -1}").unwrap();
    refuses(&evaluate(&[]), 2, &["latent_gating.json: `hrpo.thinking` is -1"]);
}

#[test]
fn the_same_seed_gives_the_same_run_on_any_number_of_threads() {
    let work = tempfile::tempdir().unwrap();
    let losses = |name: &str, threads: &str| {
        let out = work.path().join(name);
        let json = stdout(&train(&["--json", "--threads", threads, "--out", out.to_str().unwrap()]));
        let mut summary: serde_json::Value = serde_json::from_str(&json).unwrap();
        for what in ["seconds", "memory"] {
            summary[what] = serde_json::Value::Null;
        }
        let samples = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
        (summary, samples)
    };
    assert_eq!(losses("one", "1"), losses("three", "3"));
}

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

#[test]
fn methods_and_soft_estimators_are_compared_from_both_bases() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("experiments");
    let more = [
        "methods",
        "soft",
        "--seeds",
        "1",
        "--out",
        out.to_str().unwrap(),
        "--quiet",
        "--set",
        "lepo.latents=2",
    ];
    let tables = stdout(&run(
        env!("CARGO_BIN_EXE_experiment"),
        &more.iter().chain(&TINY).copied().collect::<Vec<_>>(),
    ));
    for part in [
        "coconut, dropout latent",
        "words, before",
        "words, lepo soft_ce",
        "words, lepo pathwise",
        "straight_through",
        "concrete",
        "gumbel_g",
        "gauss_embed",
        "noise off",
        "tau 0.5",
        "L_g 1 (half)",
        "L_g 0 (tokens alone)",
    ] {
        assert!(tables.contains(part), "{part}\n{tables}");
    }
    let findings = std::fs::read_to_string(out.join("results.jsonl")).unwrap();
    for line in findings.lines() {
        let found: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(found["replay_gap"], 0.0, "{line}");
    }
}

#[test]
fn train_refuses_what_cannot_be_run_and_says_what_it_would_do() {
    let work = tempfile::tempdir().unwrap();
    let recipe = work.path().join("mine.toml");
    let mut file = std::fs::File::create(&recipe).unwrap();
    writeln!(file, "sed = 1").unwrap();
    refuses(&run(env!("CARGO_BIN_EXE_train"), &[recipe.to_str().unwrap()]), 2, &["mine.toml", "sed", "seed"]);
    refuses(&train(&["--set", "grpo.gruop=3", "--dry-run"]), 2, &["grpo.gruop", "grpo.group"]);
    refuses(&train(&["--set", "grpo.group=1", "--dry-run"]), 2, &["group"]);
    let crowded = train(&["--set", "model.max_positions=8", "--dry-run"]);
    refuses(&crowded, 2, &["none are left", "lower grpo.max_new_tokens"]);
    let many = train(&["--set", "grpo.fresh_problems=999999999", "--dry-run"]);
    refuses(&many, 2, &["word problems", "are wanted, expected at most 10000000"]);
    let forecast = stdout(&train(&["--dry-run"]));
    for part in
        ["64 train", "memory", "weights", "total", "gradients read the tape of sampling", "tape_mib = "]
    {
        assert!(forecast.contains(part), "{part}\n{forecast}");
    }
    assert!(stdout(&train(&["--describe"])).contains("grpo.group"));
}

#[test]
fn an_experiment_compares_variations_over_seeds_and_goes_on_where_it_stopped() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("experiments");
    let experiment = || {
        let more = ["e4", "e6", "--seeds", "2", "--out", out.to_str().unwrap(), "--quiet"];
        stdout(&run(env!("CARGO_BIN_EXE_experiment"), &more.iter().chain(&TINY).copied().collect::<Vec<_>>()))
    };
    let tables = experiment();
    for part in ["e4:", "e6:", "same mask, latent", "fresh mask, all", "sft continued", "before", "2 seeds"] {
        assert!(tables.contains(part), "{part}\n{tables}");
    }
    let results = std::fs::read_to_string(out.join("results.jsonl")).unwrap();
    // Two seeds; base, six variations of e4, and of e6's four the two that e4 does not have.
    assert_eq!(results.lines().count(), 2 * (1 + 6 + 2));
    assert_eq!(experiment(), tables, "nothing is run twice");
    assert_eq!(std::fs::read_to_string(out.join("results.jsonl")).unwrap(), results);
    assert!(out.join("e4.json").is_file());
    // One process at a time.
    let recipe = RunFolder::recipe_of(&out).unwrap();
    let held = Laboratory::open(&out, &recipe, Device::cpu()).unwrap();
    let more = ["e4", "--seeds", "2", "--out", out.to_str().unwrap(), "--quiet"];
    let second =
        run(env!("CARGO_BIN_EXE_experiment"), &more.iter().chain(&TINY).copied().collect::<Vec<_>>());
    if cfg!(unix) {
        refuses(&second, 2, &["experiments", "is in use", "--out"]);
    }
    drop(held);
}

/// `| head`: the reader has what it wanted.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let model = golden("gpt2");
    let model = model.to_str().unwrap();
    let begin = |binary: &str, arguments: &[&str]| {
        Command::new(binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let commands: [(&str, &[&str]); 6] = [
        (env!("CARGO_BIN_EXE_generate"), &["--model", model, "--prompt-ids", "1,2", "-n", "20", "--json"]),
        (env!("CARGO_BIN_EXE_generate"), &["--model", model, "--prompt-ids", "1,2", "-n", "20"]),
        (env!("CARGO_BIN_EXE_train"), &["--describe"]),
        (env!("CARGO_BIN_EXE_experiment"), &["list"]),
        (env!("CARGO_BIN_EXE_verify_grad"), &["--list"]),
        (
            env!("CARGO_BIN_EXE_kernel_report"),
            &["--shape", "gpt2-small", "--dtype", "f32", "--only", "elementwise scale"],
        ),
    ];
    for (binary, arguments) in commands {
        for words_too in [false, true] {
            let mut child = begin(binary, arguments).unwrap();
            drop(child.stdout.take());
            if words_too {
                drop(child.stderr.take());
            }
            let output = child.wait_with_output().unwrap();
            let message = stderr(&output);
            assert!(output.status.success(), "{binary} {arguments:?}: {:?} {message}", output.status);
            assert!(!message.contains("panicked"), "{binary} {arguments:?}: {message}");
        }
    }
}

#[test]
fn numbers_below_zero_and_beyond_reason_are_refused_by_name() {
    let model = golden("gpt2");
    let model = model.to_str().unwrap();
    let generate = |flag: &str, value: &str| generate(&["--model", model, "--prompt-ids", "1", flag, value]);
    refuses(&generate("--latents", "-3"), 2, &["'-3' for '--latents"]);
    refuses(&generate("-n", "-1"), 2, &["'-1' for '--max-new-tokens"]);
    refuses(&generate("-n", "0"), 2, &["'0' for '--max-new-tokens"]);
    refuses(&generate("--temperature", "nan"), 2, &["temperature", "NaN"]);
    refuses(&generate("--top-k", "0"), 2, &["top_k", "found 0", "leave top_k out"]);
    refuses(&generate("--top-p", "2"), 2, &["top_p", "found 2"]);
    refuses(&generate("--min-p", "nan"), 2, &["min_p", "found NaN"]);
    refuses(&generate("--temperature", "-1"), 2, &["temperature", "-1"]);
    refuses(&generate("--threads", "5000"), 2, &["--threads", "5000", "1024"]);
    // Before a model is opened.
    let evaluate = |flag: &str, value: &str| {
        run(env!("CARGO_BIN_EXE_evaluate"), &["--model", "/nonexistent", flag, value])
    };
    for (flag, value, range) in [
        ("--k", "0", "1..=4096"),
        ("--k", "5000", "1..=4096"),
        ("--masks", "0", "1..=4096"),
        ("--batch", "0", "1.."),
        ("--max-new-tokens", "0", "1.."),
    ] {
        refuses(&evaluate(flag, value), 2, &[&format!("'{value}' for '{flag}"), range]);
    }
    let experiment = |flag: &str, value: &str| run(env!("CARGO_BIN_EXE_experiment"), &["e1", flag, value]);
    refuses(&experiment("--seeds", "0"), 2, &["'0' for '--seeds", "1..="]);
    let late = u64::MAX.to_string();
    refuses(&experiment("--first-seed", &late), 2, &[&format!("'{late}' for '--first-seed"), "0..="]);
    // Also where the mode makes no use of it.
    let greedy = |flag: &str, value: &str| {
        run(env!("CARGO_BIN_EXE_evaluate"), &["--model", model, "--latents", "0", flag, value])
    };
    refuses(&greedy("--p", "1"), 2, &["--p", "found 1", "below 1"]);
    refuses(&greedy("--temperature", "nan"), 2, &["temperature", "found NaN"]);
    for key in ["grpo.prompts", "grpo.group", "grpo.max_new_tokens", "evaluation.masks", "evaluation.k"] {
        let dry = train(&["--dry-run", "--set", &format!("{key}=0")]);
        refuses(&dry, 2, &[&format!("`{key}` is 0"), "from 1 to"]);
    }
    let most = usize::MAX.to_string();
    refuses(&generate("--latents", &most), 2, &["positions", "exceed the model's 40"]);
}

#[test]
fn prompts_come_from_files_as_editors_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let (path, model) = (folder.path().join("präsent.txt"), folder.path().join("model"));
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("gpt2").join(file), model.join(file)).unwrap();
    }
    let tokenizer = r#"{"version": "1.0", "model": {"type": "BPE", "unk_token": "?", "merges": [],
        "vocab": {"a": 0, "b": 1, " ": 2, "?": 3}}}"#;
    std::fs::write(model.join("tokenizer.json"), tokenizer).unwrap();
    let ids = |contents: &[u8]| {
        std::fs::write(&path, contents).unwrap();
        let (model, path) = (model.to_str().unwrap(), path.to_str().unwrap());
        let output = generate(&["--model", model, "--prompt-file", path, "--json", "-n", "1"]);
        let line =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["prompt_ids"].clone();
        stdout(&output).lines().map(line).collect::<Vec<_>>()
    };
    let plain = ids(b"ab\nb a\n");
    assert_eq!(plain, [serde_json::json!([0, 1]), serde_json::json!([1, 2, 0])]);
    assert_eq!(ids(b"\xef\xbb\xbfab\r\n\r\nb a"), plain);
    std::fs::write(&path, b"ab\ncaf\xe9\n").unwrap();
    let arguments = ["--model", model.to_str().unwrap(), "--prompt-file", path.to_str().unwrap()];
    refuses(&generate(&arguments), 1, &["line 2", "not UTF-8"]);
}

/// A run that cannot begin leaves its folder free, so that the same command works once the reason is mended.
#[test]
fn a_run_that_cannot_begin_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("run");
    let folder = out.to_str().unwrap();
    let refused = train(&["--set", "model.path=\"/nonexistent\"", "--out", folder]);
    refuses(&refused, 2, &["/nonexistent", "no such file or folder", "model.path"]);
    assert!(!out.exists());
    // A folder that holds a run keeps it.
    stdout(&train(&["--quiet", "--out", folder, "--set", "grpo.arms=[]"]));
    let recipe = std::fs::read_to_string(out.join("recipe.toml")).unwrap();
    refuses(&train(&["--set", "model.path=\"/nonexistent\"", "--out", folder]), 2, &["holds a run already"]);
    refuses(&train(&["--resume", "--set", "seed=9", "--out", folder]), 2, &["--resume", "seed"]);
    // The folder knows its recipe.
    stdout(&run(env!("CARGO_BIN_EXE_train"), &["--resume", "--quiet", "--out", folder]));
    assert_eq!(std::fs::read_to_string(out.join("recipe.toml")).unwrap(), recipe);
    assert!(out.join("models").is_dir());

    let alone = work.path().join("samples.jsonl");
    std::fs::write(&alone, "{}\n{}\n").unwrap();
    let place = format!("{}:2", alone.display());
    refuses(&generate(&["--replay", &place]), 1, &["samples.jsonl", "no recipe.toml", "RUN/samples.jsonl"]);
    let place = format!("{}:99", out.join("samples.jsonl").display());
    refuses(&generate(&["--replay", &place]), 1, &["no line 99"]);
}

/// A heading holds for all flags that follow it, so what has none of its own comes first.
#[test]
fn flags_stand_under_their_own_headings_in_help() {
    for (binary, headings) in [
        (env!("CARGO_BIN_EXE_generate"), &["Soft thinking:", "Switching (SwiReasoning):"][..]),
        (env!("CARGO_BIN_EXE_evaluate"), &["Problems:", "Masks:", "Soft thinking:"][..]),
        (env!("CARGO_BIN_EXE_inspect"), &["Problems:", "Masks:"][..]),
    ] {
        let help = stdout(&run(binary, &["--help"]));
        let place = |what: &str| help.find(what).unwrap_or_else(|| panic!("{what} in {binary}:\n{help}"));
        for heading in headings {
            for flag in ["--seed", "--device", "--threads", "--json"] {
                assert!(place(&format!("      {flag}")) < place(heading), "{flag} stands under {heading}");
            }
        }
    }
}
