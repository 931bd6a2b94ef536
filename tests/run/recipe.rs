//! Recipes: every key is documented and read back, and mistakes are told with their line and the key that was meant.

use super::says;
use latch::run::recipe::{Arm, BUILT_IN, EvaluationMode, Recipe, name};
use std::collections::BTreeSet;

fn default() -> Recipe {
    Recipe::resolve(None, &[]).unwrap()
}

/// The message of a recipe that cannot be read.
#[track_caller]
fn fails(text: &str) -> String {
    Recipe::parse(text, "mine.toml").map(|_| ()).unwrap_err().to_string()
}

/// The message of an override that cannot be taken.
#[track_caller]
fn refuses(text: &str) -> String {
    default().set(text).unwrap_err().to_string()
}

#[test]
fn every_built_in_recipe_is_valid_and_says_how_to_run_it() {
    for (name, text) in BUILT_IN {
        Recipe::resolve(Some(name), &[]).unwrap();
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        assert!(
            header.len() >= 4 && header.iter().any(|line| line.starts_with("# Run:")),
            "{name} has no how-to"
        );
    }
}

#[test]
fn the_default_recipe_names_every_key_with_its_documentation() {
    let text = BUILT_IN[0].1;
    let mut section = String::new();
    let mut named = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, _)) = line.split_once(" = ") {
            assert!(named.insert(format!("{section}{key}")), "{section}{key} stands there twice");
        }
    }
    let recipe = default();
    let known: BTreeSet<String> = recipe.entries().into_iter().map(|(key, ..)| key).collect();
    assert_eq!(named, known);
    assert_eq!(named.len(), recipe.entries().len());
    for line in recipe.to_toml().lines().filter(|line| line.starts_with("# ")) {
        assert!(text.lines().any(|other| other == line), "recipes/default.toml lacks the line: {line}");
    }
}

#[test]
fn a_resolved_recipe_reads_back_as_itself() {
    let changes = [
        "seed=8446744073709551",
        "model.path=a \"quoted\" \\ path",
        "grpo.learning_rate=1.5e-5",
        "grpo.arms=[]",
        "evaluation.modes=mc+temp",
        "mask.sites=emb, latent",
    ];
    let mut recipe = default();
    for change in changes {
        recipe.set(change).unwrap();
    }
    assert_eq!(recipe.model.path, "a \"quoted\" \\ path");
    assert!(recipe.grpo.arms.is_empty());
    assert_eq!(recipe.evaluation.modes, [EvaluationMode::McTemp]);
    let text = recipe.to_toml();
    let again = Recipe::parse(&text, "recipe.toml").unwrap();
    assert_eq!(again, recipe);
    assert_eq!(again.to_toml(), text);
    let keys: Vec<String> = default().differences(&recipe).into_iter().map(|(key, ..)| key).collect();
    let expected =
        ["seed", "model.path", "grpo.arms", "grpo.learning_rate", "mask.sites", "evaluation.modes"];
    assert_eq!(keys, expected);
}

#[test]
fn what_a_recipe_leaves_out_is_the_default() {
    let recipe = Recipe::parse("grpo.group = 16\n[mask]\np = 0.25\n", "mine.toml").unwrap();
    assert_eq!((recipe.grpo.group, recipe.mask.p), (16, 0.25));
    let keys: Vec<String> = default().differences(&recipe).into_iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, ["grpo.group", "mask.p"]);
}

#[test]
fn unknown_keys_name_the_line_and_the_nearest_key() {
    let text = "# a comment\n[grpo]\nupdates = 3\ngruop = 8\n";
    assert_eq!(
        fails(text),
        "mine.toml line 4: unknown key `grpo.gruop`\n       did you mean `grpo.group`?  All keys: train --describe"
    );
    says(&fails("[grpo]\n\n  p = 0.1"), &["mine.toml line 3", "`grpo.p`", "`mask.p`"]);
    says(&fails("sede = 1"), &["mine.toml line 1", "`sede`", "did you mean `seed`?"]);
    says(
        &fails("[gpro]\ngroup = 8"),
        &["mine.toml line 1", "unknown section [gpro]", "did you mean [grpo]?"],
    );
    let far = fails("[grpo]\nzzzzzzzz = 8");
    says(&far, &["unknown key `grpo.zzzzzzzz`", "All keys"]);
    assert!(!far.contains("did you mean"), "{far}");
    says(&fails("grpo = 3"), &["line 1", "`grpo` is 3", "the section [grpo]"]);
    says(&fails("[[grpo]]\ngroup = 3"), &["line 1", "`grpo` is", "the section [grpo]"]);
    says(&fails("seed = 1\n[grpo\n"), &["mine.toml line 2", "key = value"]);
    says(&fails("seed = 1\nseed = 2"), &["mine.toml line 2", "duplicate"]);
}

#[test]
fn wrong_values_name_what_was_found_and_what_was_expected() {
    let cases: [(&str, &[&str]); 9] = [
        (
            "[grpo]\ngroup = \"eight\"",
            &["line 2", "`grpo.group` is \"eight\"", "a whole number from 1 to 4096"],
        ),
        ("[grpo]\ngroup = 0", &["`grpo.group` is 0", "from 1"]),
        ("[grpo]\ngroup = 2.5", &["is 2.5", "a whole number"]),
        ("[grpo]\ngroup = -1", &["is -1", "from 1"]),
        ("[mask]\np = 1.0", &["`mask.p` is 1.0", "from 0, below 1"]),
        ("[mask]\np = nan", &["`mask.p` is nan", "a number"]),
        (
            "[grpo]\narms = [\"temp\", \"drop\"]",
            &["[\"temp\", \"drop\"]", "temp, dropout_latent, dropout_all, lepo, hrpo, sft"],
        ),
        ("[mask]\nmode = \"sharde\"", &["\"sharde\"", "one of shared, per_step, per_position, none"]),
        ("[grpo]\ntemperature = 0", &["is 0", "above 0", "no score function"]),
    ];
    for (text, words) in cases {
        says(&fails(text), words);
    }
}

#[test]
fn overrides_have_the_same_errors() {
    let mut recipe = default();
    for text in ["grpo.group=16", "mask.mode = per_step", "grpo.arms=temp,dropout_all", "grpo.arms=[\"sft\"]"]
    {
        recipe.set(text).unwrap();
    }
    assert_eq!((recipe.grpo.group, &recipe.grpo.arms[..]), (16, &[Arm::Sft][..]));
    recipe.set("model.path=").unwrap();
    recipe.set("model.path=models/x=y").unwrap();
    assert_eq!(recipe.model.path, "models/x=y");
    says(&refuses("grpo.gruop=8"), &["--set grpo.gruop=8", "unknown key", "did you mean `grpo.group`?"]);
    says(&refuses("group=8"), &["unknown key `group`", "`grpo.group`"]);
    says(&refuses("grop.group=8"), &["unknown section [grop]", "[grpo]"]);
    says(&refuses("grpo.group=eight"), &["`grpo.group` is eight", "a whole number from 1 to 4096"]);
    says(&refuses("grpo.group="), &["`grpo.group` is empty", "a whole number"]);
    says(&refuses("grpo.verify_replay=yes"), &["`grpo.verify_replay` is yes", "true or false"]);
    says(&refuses("grpo.group"), &["--set grpo.group", "has no `=`"]);
    says(&refuses("model=3"), &["unknown key `model`"]);
}

#[test]
fn contradictions_are_found_after_all_overrides() {
    let resolve = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        Recipe::resolve(None, &overrides)
    };
    let cases: [(&[&str], &[&str]); 13] = [
        (
            &["model.width=100", "model.heads=3", "model.kv_heads=3"],
            &["model.width = 100", "model.heads = 3"],
        ),
        (&["model.kv_heads=3"], &["model.kv_heads = 3", "divide"]),
        (&["model.family=gpt2", "model.kv_heads=2"], &["model.kv_heads = 2", "llama"]),
        (
            &["data.words_steps_min=4", "data.words_steps_max=3"],
            &["words_steps_min = 4", "words_steps_max = 3"],
        ),
        (&["data.source=file"], &["data.train"]),
        (&["data.source=file", "data.train=a", "data.test=b"], &["data.valid and data.test"]),
        (&["grpo.group=1"], &["grpo.group = 1", "grpo.baseline"]),
        (&["mask.p=0"], &["grpo.arms", "mask.p = 0"]),
        (&["grpo.arms=hrpo", "hrpo.thinking=0"], &["grpo.arms", "hrpo.thinking = 0"]),
        (&["grpo.arms=hrpo", "grpo.learning_rate=0"], &["grpo.arms", "grpo.learning_rate = 0"]),
        (
            &["coconut.variant=codi", "adapter.rank=4", "adapter.targets=all-linear"],
            &["codi", "adapter.rank = 4", "projector"],
        ),
        (&["grpo.arms=temp,sft,temp"], &["grpo.arms", "temp twice"]),
        (&["evaluation.masks=4", "evaluation.k=8"], &["evaluation.k = 8", "evaluation.masks = 4"]),
    ];
    for (overrides, words) in cases {
        says(&resolve(overrides).unwrap_err().to_string(), words);
    }
    // Each alone would contradict the default; together they do not.
    resolve(&["model.heads=3", "model.kv_heads=3", "model.width=96"]).unwrap();
    // Sizes do not matter where a model is loaded.
    resolve(&["model.path=models/x", "model.kv_heads=3"]).unwrap();
}

#[test]
fn recipes_are_found_by_name_or_by_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, "[grpo]\ngroup = 4\n").unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(Recipe::resolve(Some(path), &[]).unwrap().grpo.group, 4);
    assert_eq!(
        (name(Some(path)), name(None), name(Some("prosqa"))),
        ("mine".into(), "default".into(), "prosqa".into())
    );
    let message = Recipe::resolve(Some("gsm8k"), &[]).unwrap_err().to_string();
    says(&message, &["`gsm8k`", "gsm8k-gpt2, gsm8k-smollm2", ".toml"]);
    let message = Recipe::resolve(Some("absent/mine.toml"), &[]).unwrap_err().to_string();
    says(&message, &["absent/mine.toml", "cannot read the recipe"]);
}

#[test]
fn the_description_has_every_key_value_and_range() {
    let text = default().describe();
    says(
        &text,
        &[
            "grpo.group = 8   (a whole number from 1 to 4096)",
            "Rollouts a prompt (K).",
            "[mask]  Dropout masks",
        ],
    );
    for (key, value, takes, doc) in default().entries() {
        says(&text, &[&format!("  {key} = {value}   ({takes})")]);
        assert!(doc.len() > 10 && !takes.is_empty(), "{key} has no documentation");
    }
}
