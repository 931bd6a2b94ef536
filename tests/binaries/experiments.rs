//! `experiment`: tables over seeds, and folders that go on where they stopped.

use super::{TINY, refuses, run, stdout};
use latch::device::Device;
use latch::run::experiments::Laboratory;
use latch::run::folder::RunFolder;

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

#[test]
fn seeds_are_not_the_recipes() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("experiments");
    let more = ["e10", "--out", out.to_str().unwrap(), "--set", "seed = 3"];
    refuses(&run(env!("CARGO_BIN_EXE_experiment"), &more), 2, &["--set seed = 3", "--first-seed"]);
}

/// A result whose line was torn is found again, once.
#[test]
fn a_torn_result_is_found_again_once() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("experiments");
    let experiment = || {
        let more =
            ["e10", "E10", "--seeds", "1", "--device", "cpu", "--out", out.to_str().unwrap(), "--quiet"];
        stdout(&super::experiment(&more))
    };
    let tables = experiment();
    assert_eq!(tables.matches("e10:").count(), 1, "what is named twice is shown once");
    let path = out.join("results.jsonl");
    let results = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &results[..results.len() - 40]).unwrap();
    experiment();
    let mended = std::fs::read_to_string(&path).unwrap();
    let whole = |text: &str| {
        text.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count()
    };
    assert_eq!(whole(&mended), whole(&results), "{mended}");
    experiment();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), mended, "nothing is left to find");
}
