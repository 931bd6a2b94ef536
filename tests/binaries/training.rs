//! `train`: a whole story and its folder, the binaries that ask its models, and what it refuses.

use super::{generate, refuses, run, stdout, train};
use std::io::Write;

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
    refuses(&replay(20), 2, &["does not keep the model of step", "keep more"]);

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
    refuses(&generate(&["--replay", &place]), 2, &["samples.jsonl", "no recipe.toml", "RUN/samples.jsonl"]);
    let place = format!("{}:99", out.join("samples.jsonl").display());
    refuses(&generate(&["--replay", &place]), 2, &["no line 99"]);
}

/// What would become of the folder is said, and refused as the run itself would.
#[test]
fn a_dry_run_looks_at_its_folder() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("a run");
    let folder = out.to_str().unwrap();
    let dry = |more: &[&str]| train(&[&["--dry-run", "--out", folder], more].concat());
    let begins = stdout(&dry(&[]));
    assert!(begins.contains(&format!("folder    {folder}: a run begins there")), "{begins}");
    assert!(begins.contains("disk      ") && begins.contains(" free: fits"), "{begins}");
    assert!(!out.exists(), "looking leaves nothing");
    refuses(&dry(&["--resume"]), 2, &["holds no run to go on with"]);
    // Somebody's file, and somebody's folder.
    let file = work.path().join("file");
    std::fs::write(&file, "").unwrap();
    for place in [file.clone(), file.join("below")] {
        refuses(
            &train(&["--dry-run", "--out", place.to_str().unwrap()]),
            2,
            &["is a file, expected a folder"],
        );
    }
    refuses(&train(&["--dry-run", "--out", work.path().to_str().unwrap()]), 2, &["holds no run"]);

    // A run that holds a few checkpoints.
    stdout(&train(&[
        "--quiet",
        "--out",
        folder,
        "--set",
        "grpo.arms=[\"temp\"]",
        "--set",
        "run.keep_last=3",
    ]));
    refuses(&dry(&[]), 2, &["holds a run already", "--resume"]);
    let same = ["--set", "grpo.arms=[\"temp\"]", "--set", "run.keep_last=3"];
    let cleaned = stdout(&dry(&[&["--clean"], &same[..]].concat()));
    assert!(cleaned.contains("the run that it holds is removed"), "{cleaned}");
    assert!(out.join("summary.json").is_file(), "nothing was removed");
    refuses(&dry(&["--resume"]), 2, &["--resume: the run in", "grpo.arms"]);
    let resume = || stdout(&run(env!("CARGO_BIN_EXE_train"), &["--dry-run", "--resume", "--out", folder]));
    let done = resume();
    assert!(done.contains("where all is done"), "{done}");

    // What was said of the disk is what is there: with the newest checkpoints torn, the one before has an optimiser.
    let mut steps: Vec<_> =
        std::fs::read_dir(out.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    steps.sort();
    let newest = steps.pop().unwrap();
    std::fs::write(newest.join("train_state.safetensors"), "torn").unwrap();
    let torn = resume();
    assert!(torn.contains("is skipped: ") && torn.contains("in temp after "), "{torn}");
    let step = steps.pop().unwrap();
    assert!(torn.contains(&format!("{}, in temp after 2 of its updates", step.display())), "{torn}");
    let size = |folder: &std::path::Path| -> u64 {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    let recipe = latch::run::folder::RunFolder::recipe_of(&out).unwrap();
    let disk = latch::run::prospect::Disk::of(&recipe, &latch::device::Device::cpu()).unwrap();
    let near = |said: u64, found: u64| found.abs_diff(said) < 64 << 10;
    assert!(near(disk.checkpoint, size(&step)), "{disk:?} {}", size(&step));
    let models: u64 = ["coconut", "temp"].map(|name| size(&out.join("models").join(name))).iter().sum();
    assert!(near(disk.models, models), "{disk:?} {models}");

    // While a run is at work there, no other begins.
    let held = latch::run::folder::RunFolder::create(&out, latch::run::folder::Existing::Resume).unwrap();
    if cfg!(unix) {
        let second = run(env!("CARGO_BIN_EXE_train"), &["--dry-run", "--resume", "--out", folder]);
        refuses(&second, 2, &["is in use"]);
    }
    drop(held);
    let elsewhere = work.path().join("elsewhere");
    let untaught = ["--dry-run", "--set", "cot.epochs=0", "--set", "coconut.variant=cot", "--out"];
    refuses(&train(&[&untaught[..], &[elsewhere.to_str().unwrap()]].concat()), 2, &["sft continues"]);
}
