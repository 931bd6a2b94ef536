//! The main job: stopped and gone on with, it comes to the same bits; it stops where numbers end; it forecasts its memory.

mod odd;
mod stopped;
mod whole;

use latch::base::Result;
use latch::device::Device;
use latch::model::Model;
use latch::run::checkpoints::{self, Checkpoints, Keep};
use latch::run::dry_run::forecast;
use latch::run::folder::{Existing, RunFolder};
use latch::run::problems;
use latch::run::recipe::Recipe;
use latch::run::settings;
use latch::run::story::{Ending, Event, Progress, Story, longest};
use latch::run::student::Student;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

/// A story of seconds: 3 updates in words, 2 of stage 1, 2 with all steps removed, and 4 of each arm.
const TINY: &[&str] = &[
    "model.layers=1",
    "model.width=16",
    "model.heads=2",
    "model.kv_heads=2",
    "model.mlp_hidden=24",
    "model.max_positions=128",
    "data.limit_train=24",
    "grpo.fresh_problems=0",
    "data.limit_valid=6",
    "data.limit_test=5",
    "data.words_steps_min=1",
    "data.words_steps_max=1",
    "data.words_bound=8",
    "cot.epochs=1",
    "cot.batch=8",
    "cot.learning_rate=0.0005",
    "coconut.learning_rate=0.0005",
    "cot.warmup_steps=2",
    "coconut.max_latent_stage=1",
    "coconut.extra_epochs=1",
    "coconut.batch=12",
    "coconut.warmup_steps=2",
    "grpo.arms=temp,dropout_all,sft",
    "grpo.updates=4",
    "grpo.prompts=2",
    "grpo.group=3",
    "grpo.max_new_tokens=5",
    "grpo.inner_epochs=2",
    "grpo.kl_beta=0.05",
    "grpo.learning_rate=0.001",
    "evaluation.every=2",
    "evaluation.problems=4",
    "evaluation.modes=det,mc",
    "evaluation.masks=2",
    "evaluation.k=2",
    "evaluation.batch=4",
    "run.checkpoint_every=1",
    "run.keep_last=100",
];
/// Updates of all parts.
pub const STEPS: u64 = 19;

/// A model that answers in the right form, and is right now and then: groups are live.
fn base() -> &'static Path {
    static BASE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let home = BASE.get_or_init(|| {
        let home = tempfile::tempdir().unwrap();
        let changes = [
            "cot.epochs=0",
            "coconut.epochs_per_stage=0",
            "coconut.extra_epochs=20",
            "coconut.batch=8",
            "coconut.learning_rate=0.02",
            "grpo.arms=",
            "run.checkpoint_every=0",
        ];
        straight(&fresh(&changes), &home.path().join("run"));
        home
    });
    Box::leak(home.path().join("run").join("models").join("coconut").into_boxed_path())
}

/// The tiny recipe with a fresh model.
pub fn fresh(changes: &[&str]) -> Recipe {
    let all: Vec<String> = TINY.iter().chain(changes).map(|text| text.to_string()).collect();
    Recipe::resolve(None, &all).unwrap()
}

/// The tiny recipe with the model of [`base`].
pub fn recipe(changes: &[&str]) -> Recipe {
    let path = format!("model.path={}", base().display());
    fresh(&[&[path.as_str()], changes].concat())
}

/// Runs, or goes on with, the story in `path`.
pub fn run(
    recipe: &Recipe,
    path: &Path,
    existing: Existing,
    watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
) -> Result<(Ending, Progress)> {
    let folder = RunFolder::create(path, existing)?;
    folder.write_recipe(recipe)?;
    let device = Device::cpu();
    let mut story = Story::open(recipe, &folder, &device, watch)?;
    let ending = story.run(watch)?;
    Ok((ending, story.progress().clone()))
}

/// The same from its beginning to its end.
pub fn straight(recipe: &Recipe, path: &Path) -> Progress {
    let (ending, progress) = run(recipe, path, Existing::Refuse, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(ending, Ending::Complete);
    progress
}

/// Breaks after the update that makes `step` in all; counts from those done in `done`.
pub fn stops_after(step: u64, mut done: u64) -> impl FnMut(&Event) -> ControlFlow<()> {
    move |event| {
        done += u64::from(matches!(event, Event::Supervised { .. } | Event::Rewarded { .. }));
        match event {
            Event::Supervised { .. } | Event::Rewarded { .. } if done == step => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Everything in a run's folder that must not depend on how often it was stopped: models, lines and the summary, less
/// times.
pub fn results(path: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for model in fs::read_dir(path.join("models")).unwrap() {
        let folder = model.unwrap().path();
        let adapter = folder.join("adapter_model.safetensors");
        let weights = if adapter.exists() { adapter } else { folder.join("model.safetensors") };
        let weights = fs::read(weights).unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap().to_string();
        if let Ok(projector) = fs::read(folder.join("latent_projector.safetensors")) {
            all.insert(format!("{name} projector"), format!("{projector:x?}"));
        }
        all.insert(name, format!("{weights:x?}"));
    }
    let timeless = |text: &str| -> Value {
        let mut object: Map<String, Value> = serde_json::from_str(text).unwrap();
        object.retain(|name, _| !name.starts_with("timing_s/") && name != "seconds" && name != "memory");
        object.into()
    };
    for name in ["metrics.jsonl", "samples.jsonl"] {
        let text = fs::read_to_string(path.join(name)).unwrap();
        let lines: Vec<String> = text.lines().map(|line| timeless(line).to_string()).collect();
        all.insert(name.into(), lines.join("\n"));
    }
    let text = fs::read_to_string(path.join("summary.json")).unwrap();
    all.insert("summary".into(), timeless(&text).to_string());
    all
}

/// Compares two [`results`].
#[track_caller]
pub fn same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, text) in found {
        for (n, (a, b)) in text.lines().zip(expected[name].lines()).enumerate() {
            assert!(a == b, "{what}: line {} of {name}\n{:.600}\n{:.600}", n + 1, a, b);
        }
        assert_eq!(text.lines().count(), expected[name].lines().count(), "{what}: lines of {name}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { fs::copy(&path, &target).map(|_| ()).unwrap() }
    }
}
