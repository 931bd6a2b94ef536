//! Experiments before they run: what is missing in their folder, and the memory that it takes, on the device to the byte.

use crate::admission::{own, sim, untouched};
use crate::binaries::{experiment, refuses, stdout};
use crate::story::{fresh, straight};
use latch::device::{Arena, Device};
use latch::run::admission::need;
use latch::run::experiments::{Agenda, Experiment, Finding, Kept, Laboratory, Notice, Variation, compare};
use latch::run::recipe::Recipe;
use std::collections::BTreeMap;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::Path;

/// Arms of an update or two on few problems, which a simulated GPU runs in seconds.
fn recipe(changes: &[&str]) -> Recipe {
    let small = [
        "data.limit_train=8",
        "data.limit_valid=2",
        "data.limit_test=2",
        "coconut.extra_epochs=0",
        "coconut.max_latent_stage=1",
        "grpo.arms=",
        "grpo.updates=1",
        "grpo.inner_epochs=1",
        "lepo.latents=2",
        "model.width=32",
        "model.mlp_hidden=64",
    ];
    fresh(&[&small[..], changes].concat())
}

fn agenda<'a>(
    recipe: &'a Recipe,
    list: &'a [Experiment],
    seeds: Range<u64>,
    folder: &Path,
    device: &Device,
) -> Agenda<'a> {
    Agenda::of(recipe, list, seeds, Kept::read(folder, recipe).unwrap(), device).unwrap()
}

/// Runs experiments on `device` in `folder`.
fn run(recipe: &Recipe, list: &[Experiment], seeds: Range<u64>, folder: &Path, device: &Device) {
    let mut laboratory = Laboratory::open(folder, recipe, device.clone()).unwrap();
    for one in list {
        for seed in seeds.clone() {
            let mut watch = |_: &Notice| ControlFlow::Continue(());
            laboratory.run(recipe, seed, &one.variations(recipe), &mut watch).unwrap();
        }
    }
}

/// A base is the model that the main job has before its arms, also where phases have settings of their own.
#[test]
fn a_base_is_the_model_of_the_main_job() {
    let own =
        ["coconut.clip=0.01", "coconut.weight_decay=0.5", "coconut.reset_optimizer=never", "grpo.arms="];
    let recipe = fresh(&own);
    let home = tempfile::tempdir().unwrap();
    straight(&recipe, &home.path().join("run"));
    let folder = home.path().join("experiments");
    let mut laboratory = Laboratory::open(&folder, &recipe, Device::cpu()).unwrap();
    laboratory.run(&recipe, recipe.seed, &[], &mut |_| ControlFlow::Continue(())).unwrap();
    let weights = |path: &Path| fs::read(path.join("model.safetensors")).unwrap();
    let base = folder.join("base").join(format!("seed-{}", recipe.seed));
    assert!(weights(&base) == weights(&home.path().join("run/models/coconut")));
}

/// On a simulated GPU: at the edge of what is accepted it runs, and holds what was forecast.
#[test]
fn the_rehearsed_peak_is_what_the_device_comes_to() {
    for (changes, list) in [
        (&["grpo.kl_beta=0.1"][..], &[Experiment::E6][..]),
        (&["adapter.rank=4", "model.dtype=bf16"], &[Experiment::E10]),
    ] {
        let recipe = recipe(changes);
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("experiments");
        let roomy = sim(1 << 30);
        let first = agenda(&recipe, list, 3..4, &folder, &roomy);
        let all = need(&roomy, &|device| first.rehearsed(device).map(drop), 0).unwrap();
        assert!(!folder.exists(), "looking leaves nothing");
        let edge = sim(all.free);
        first.admit(&edge).unwrap();
        run(&recipe, list, 3..4, &folder, &edge);
        // Kind by kind and to the byte.
        assert_eq!(edge.memory_peak(), all.peak, "{changes:?}");
        assert!(edge.close().unwrap().is_empty());
        untouched(roomy);
    }
}

/// The same on the CPU, for all that arms can be: two bases, soft latents, gates, the rollouts that measure a spread; anew,
/// with the bases kept, and with everything kept.
#[test]
fn the_rehearsed_peak_is_that_of_any_experiment_from_where_its_folder_stands() {
    let device = Device::cpu();
    for (changes, list) in [
        (&["grpo.kl_beta=0.1"][..], &[Experiment::Methods, Experiment::E5][..]),
        (&["grpo.prompts=1", "grpo.group=2", "cot.batch=1", "coconut.batch=1"], &[Experiment::E7]),
        (&[], &[Experiment::Soft]),
    ] {
        let recipe = recipe(changes);
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("experiments");
        let rehearsed = || {
            let agenda = agenda(&recipe, list, 3..5, &folder, &device);
            agenda.rehearsed(&device.accountant(None)).unwrap().peak
        };
        let ran = || {
            let device = Device::cpu();
            run(&recipe, list, 3..5, &folder, &device);
            device.memory_peak()
        };
        let anew = rehearsed();
        assert_eq!(ran(), anew, "{list:?}");
        std::fs::remove_file(folder.join("results.jsonl")).unwrap();
        let from_bases = rehearsed();
        assert!(from_bases.total() <= anew.total());
        assert_eq!(ran(), from_bases, "{list:?}, bases kept");
        assert_eq!((rehearsed().total(), ran().total()), (0, 0), "{list:?}, all kept");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let big = recipe(&["cot.batch=8", "grpo.prompts=8", "grpo.group=6", "evaluation.batch=64"]);
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("experiments");
    let list = [Experiment::E1];
    let roomy = sim(1 << 30);
    let all = agenda(&big, &list, 0..1, &folder, &roomy);
    let need = need(&roomy, &|device| all.rehearsed(device).map(drop), 0).unwrap();
    let below = need.free * 9 / 10;
    let device = sim(below);
    let message = agenda(&big, &list, 0..1, &folder, &device).admit(&device).unwrap_err().to_string();
    for says in [
        format!("sim has {below} of its {} bytes free", below + own()),
        "this experiment needs ".into(),
        format!("weights {}", need.peak.of(Arena::Weights)),
        format!("activations (tape) {}", need.peak.of(Arena::Tape)),
        "rounding to blocks ".into(),
    ] {
        assert!(message.contains(&says), "{says}: {message}");
    }
    let (_, advice) = message.split_once("enough would be: ").unwrap();
    for cure in advice.split("; or ") {
        let mut cured = big.clone();
        for set in cure.split(" and ") {
            cured.set(set.trim().strip_prefix("--set ").unwrap()).unwrap();
        }
        agenda(&cured, &list, 0..1, &folder, &device)
            .admit(&device)
            .unwrap_or_else(|error| panic!("{cure}: {error}"));
    }
    untouched(device);
    assert!(!folder.exists());
}

#[test]
fn the_binary_shows_what_it_would_do_and_refuses_what_it_cannot() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("experiments");
    let out = folder.to_str().unwrap();
    let dry =
        stdout(&experiment(&["e4", "e6", "--seeds", "2", "--dry-run", "--device", "cpu", "--out", out]));
    for part in [
        "seed = 0",
        "model     llama",
        "what if the update runs under another mask",
        "6 arms: same mask, latent; same mask, all; fresh mask, latent",
        "seeds     2, from 0 to 1",
        // Two seeds; base, six arms of e4, and of e6's four the two that e4 has not.
        "missing   18 results and 2 base models",
        "problems  64 train, 16 valid, 16 test",
        "words     1 epochs of 64 examples",
        "no mask, all 3 updates of 2 prompts x 4 rollouts",
        "sft continued 3 updates",
        "most memory is held in: ",
        "weights",
        "optimiser moments",
        "KV cache",
        "copies of weights",
        "total",
    ] {
        assert!(dry.contains(part), "{part}\n{dry}");
    }
    assert!(!folder.exists(), "looking leaves nothing");
    let dry = stdout(&experiment(&["e6", "--seeds", "1", "--dry-run", "--device", "sim", "--out", out]));
    assert!(dry.contains("rounding to blocks") && dry.contains("seed      0"), "{dry}");

    // What was found is not missing.
    stdout(&experiment(&["e6", "--seeds", "1", "--quiet", "--device", "cpu", "--out", out]));
    let dry = stdout(&experiment(&["e6", "--seeds", "2", "--dry-run", "--device", "cpu", "--out", out]));
    assert!(dry.contains("missing   5 results and 1 base models"), "{dry}");
    let other = ["e6", "--dry-run", "--device", "cpu", "--out", out, "--set", "grpo.group=3"];
    refuses(&experiment(&other), 2, &["holds experiments with grpo.group = 4, now it is 3", "--out"]);

    let huge = ["--set", "model.layers=8", "--set", "model.width=4096", "--set", "model.mlp_hidden=16384"];
    let more = ["--set", "model.heads=32", "--set", "model.kv_heads=32", "--set", "grpo.tape_mib=0"];
    let more = [&more[..], &["--seeds", "1", "--device", "sim"]].concat();
    let elsewhere = home.path().join("huge");
    let base = [&["e6", "--out", elsewhere.to_str().unwrap()], &huge[..], &more].concat();
    refuses(
        &experiment(&base),
        1,
        &[
            "sim has 17179852800 of its 17179869184 bytes free",
            "this experiment needs ",
            "optimiser moments ",
        ],
    );
    assert!(!elsewhere.exists());
    assert!(stdout(&experiment(&[&base[..], &["--dry-run"]].concat())).contains("may not fit"));
}

#[test]
fn a_gap_that_is_no_number_is_kept_and_shown() {
    let found = |key: &str, gap: f64| Finding {
        seed: 0,
        key: key.into(),
        accuracy: 0.5,
        right: "10".into(),
        shifted: BTreeMap::new(),
        dead_groups: 0.0,
        reward_deviation: 0.0,
        distinct_answers: 0.0,
        last_reward: 0.0,
        log_ratio: gap,
        replay_gap: gap,
        latent_noise: 0.0,
        updates: 0,
        seconds: 0.0,
    };
    for gap in [f64::NAN, f64::INFINITY] {
        let line = serde_json::json!(found("words", gap)).to_string();
        let kept: Finding = serde_json::from_str(&line).unwrap();
        let seeds = [vec![found("base", 0.0), kept], vec![found("base", 0.0), found("words", 0.25)]];
        let compared = compare(&[Variation::Words("words".into())], &seeds).unwrap();
        assert_eq!(compared[1].replay_gap.to_string(), gap.to_string(), "{line}");
        assert_eq!(compared[1].log_ratio.to_string(), gap.to_string(), "{line}");
    }
}
