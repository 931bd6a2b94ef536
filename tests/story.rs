//! The main job: stopped and gone on with, it comes to the same bits; it stops where numbers end; it forecasts its memory.

use latch::base::Result;
use latch::device::Device;
use latch::model::{Model, Precision};
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
        object.retain(|name, _| !name.starts_with("timing_s/") && name != "seconds");
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

#[test]
fn a_story_that_was_stopped_comes_to_the_same_bits() {
    let home = tempfile::tempdir().unwrap();
    for (n, changes) in [
        // The optimiser goes on from words to stages with another decay and another clip.
        vec!["coconut.weight_decay=0.1", "coconut.clip=0.5"],
        vec!["coconut.reset_optimizer=epoch", "grpo.dynamic_sampling_refills=1", "grpo.preset=cispo"],
        vec!["coconut.reset_optimizer=stage", "coconut.uniform_prob=0.5", "model.dtype=bf16"],
    ]
    .into_iter()
    .enumerate()
    {
        let recipe = recipe(&changes);
        let once = home.path().join(format!("{n}-once"));
        let progress = straight(&recipe, &once);
        assert_eq!(progress.step, STEPS);
        let expected = results(&once);
        assert_eq!(progress.entries.len(), 4);
        assert!(progress.entries[1].tally.live > 0 && progress.entries[2].tally.live > 0, "arms that learn");
        assert!(expected["metrics.jsonl"].lines().count() > STEPS as usize && expected.len() == 7);
        // Inside the words, at their end, at the end of the curriculum, inside an arm, at its end, inside the last.
        for step in [2, 3, 7, 9, 11, 17] {
            let path = home.path().join(format!("{n}-{step}"));
            let (ending, _) = run(&recipe, &path, Existing::Refuse, &mut stops_after(step, 0)).unwrap();
            let newest = path.join("checkpoints").join(format!("step-{step:06}"));
            assert_eq!(ending, Ending::Stopped { checkpoint: newest });
            assert!(!path.join("summary.json").exists());
            let (ending, again) =
                run(&recipe, &path, Existing::Resume, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!((ending, again.step), (Ending::Complete, STEPS));
            same(&results(&path), &expected, &format!("{changes:?}, stopped after {step}"));
            assert_eq!(again.stages, progress.stages, "{changes:?} {step}");
            assert_eq!(again.entries, progress.entries, "{changes:?} {step}");
        }
    }
}

#[test]
fn a_story_goes_on_from_every_checkpoint_it_ever_wrote() {
    let home = tempfile::tempdir().unwrap();
    let recipe = recipe(&["coconut.weight_decay=0.1", "grpo.updates=2"]);
    let once = home.path().join("once");
    let mut copies = 0;
    // As a process leaves it that is killed right after a checkpoint was written.
    let mut watch = |event: &Event| {
        if let Event::Saved(_) = event {
            copy(&once, &home.path().join(copies.to_string()));
            copies += 1;
        }
        ControlFlow::Continue(())
    };
    let (_, progress) = run(&recipe, &once, Existing::Refuse, &mut watch).unwrap();
    let expected = results(&once);
    // 13 updates, and once more at the end of each of six parts.
    assert_eq!(copies, 19);
    for n in 0..copies {
        let path = home.path().join(n.to_string());
        let (_, again) = run(&recipe, &path, Existing::Resume, &mut |_| ControlFlow::Continue(())).unwrap();
        same(&results(&path), &expected, &format!("checkpoint number {n}"));
        assert_eq!((again.stages, again.entries), (progress.stages.clone(), progress.entries.clone()));
    }
}

/// Stops after `step` updates, spoils one weight in the checkpoint, goes on, and returns the message.
fn spoiled(recipe: &Recipe, step: u64) -> String {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("run");
    run(recipe, &path, Existing::Refuse, &mut stops_after(step, 0)).unwrap();
    let folder = path.join("checkpoints");
    let device = Device::cpu();
    let checkpoint = checkpoints::latest(&folder).unwrap().checkpoint.unwrap();
    let precision = Precision::of(recipe.model.dtype);
    let mut model = checkpoint.model(&device, precision).unwrap();
    let mut optimizer =
        latch::learn::optimizer::Optimizer::new(&model, settings::optimizer(0.0, 1.0)).unwrap();
    checkpoint.restore(&model, &mut optimizer).unwrap();
    // The last norm's weights: finite, so that the file can be read, but every logit overflows.
    let last = model.parameters().len() - 1;
    let width = model.config().width;
    model.parameters_mut()[last].upload_at(0, &vec![3e38_f32; width]).unwrap();
    let companions = Student::of(recipe, &device).unwrap().companions;
    let writer = Checkpoints::open(&folder, Keep { last: 100, best: false }).unwrap();
    writer.save(step, &model, Some(&optimizer), checkpoint.state(), &companions).unwrap();
    let before = fs::read(path.join("metrics.jsonl")).unwrap();
    let found = run(recipe, &path, Existing::Resume, &mut |_| ControlFlow::Continue(()));
    let message = found.expect_err("an error").to_string();
    assert_eq!(fs::read(path.join("metrics.jsonl")).unwrap(), before, "no line of a failed update");
    let newest = folder.join(format!("step-{step:06}"));
    assert!(message.contains(&newest.display().to_string()), "{message}");
    message
}

#[test]
fn numbers_that_are_not_finite_stop_with_step_part_and_checkpoint() {
    let recipe = recipe(&[]);
    let message = spoiled(&recipe, 2);
    for words in ["step 3 of the run", "update 3 of words", "The last good checkpoint is"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    let message = spoiled(&recipe, 9);
    for words in ["step 10 of the run", "update 3 of temp", "The last good checkpoint is"] {
        assert!(message.contains(words), "{words}: {message}");
    }
}

#[test]
fn the_forecast_of_memory_is_kept() {
    for changes in [
        vec![],
        vec!["evaluation.batch=64", "evaluation.masks=8", "data.limit_test=64"],
        vec!["model.family=gpt2", "model.width=64", "grpo.kl_beta=0", "coconut.reset_optimizer=epoch"],
        vec!["grpo.tape_mib=1", "grpo.prompts=12", "grpo.arms=dropout_all", "model.width=64"],
        vec!["grpo.arms=", "cot.batch=24"],
        vec!["grpo.arms=", "coconut.variant=codi", "codi.latents=3", "codi.epochs=1", "codi.batch=12"],
    ] {
        let recipe = fresh(&changes);
        let home = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(&home.path().join("run"), Existing::Refuse).unwrap();
        folder.write_recipe(&recipe).unwrap();
        let device = Device::cpu();
        let go = &mut |_: &Event| ControlFlow::Continue(());
        let mut story = Story::open(&recipe, &folder, &device, go).unwrap();
        let forecast = forecast(&recipe, story.student(), story.problems()).unwrap();
        let tensors: u64 = forecast.memory.iter().take(2).map(|row| row.bytes).sum();
        story.run(go).unwrap();
        let most = device.traffic().count().bytes_high_water as u64;
        assert!(
            most <= tensors,
            "{changes:?}: {most} bytes held, {tensors} forecast\n{}",
            forecast.text(None)
        );
        let factor = tensors as f64 / most as f64;
        assert!(
            factor <= 1.3,
            "{changes:?}: {most} bytes held, {tensors} forecast: {factor:.2} times\n{}",
            forecast.text(None)
        );
    }
}

#[test]
fn training_questions_that_are_asked_later_are_left_out_and_counted() {
    let home = tempfile::tempdir().unwrap();
    let line = |n: u32| {
        format!(
            "{{\"question\": \"Tom has {n} apples and gets 2 more apples. How many apples does Tom have?\", \
             \"answer\": \"He has {n} + 2 = <<{n}+2={}>>{} apples.\\n#### {}\"}}\n",
            n + 2,
            n + 2,
            n + 2
        )
    };
    let file = |name: &str, numbers: &[u32]| {
        let path = home.path().join(name);
        fs::write(&path, numbers.iter().map(|&n| line(n)).collect::<String>()).unwrap();
        path.display().to_string()
    };
    let train = file("train.jsonl", &[1, 2, 3, 4, 5, 6, 7, 8]);
    let (valid, test) = (file("valid.jsonl", &[3, 11, 12]), file("test.jsonl", &[3, 5, 6, 13]));
    let sources = [
        "data.source=file".to_string(),
        format!("data.train={train}"),
        format!("data.valid={valid}"),
        format!("data.test={test}"),
        "model.max_positions=256".into(),
    ];
    let recipe = fresh(&sources.iter().map(String::as_str).collect::<Vec<_>>());
    let student = Student::of(&recipe, &Device::cpu()).unwrap();
    let curriculum = settings::curriculum(&recipe);
    let longest = longest(&recipe, &student.model);
    let problems =
        problems::load(&recipe, &student.tokenizer, student.markers.stop, &curriculum, longest).unwrap();
    assert_eq!(problems.overlap, [1, 3]);
    let kept: Vec<bool> = [1, 2, 4, 7, 8]
        .iter()
        .zip(&problems.train.items)
        .map(|(n, item)| item.problem.question.contains(&format!("has {n} apples")))
        .collect();
    assert_eq!((problems.train.items.len(), kept), (5, vec![true; 5]));
    let numbers: Vec<u32> = problems.train.items.iter().map(|item| item.number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    assert_eq!((problems.valid.items.len(), problems.test.items.len()), (3, 4));
    let forecast = forecast(&recipe, &student, &problems).unwrap();
    let words =
        "5 train, 3 valid, 4 test; 0 malformed, 0 too long; 1 and 3 shared with training, left out there";
    assert!(forecast.lines[1].contains(words), "{}", forecast.lines[1]);
}

#[test]
fn a_story_without_arms_or_without_a_curriculum_has_its_table() {
    let home = tempfile::tempdir().unwrap();
    let none = ["cot.epochs=0", "coconut.epochs_per_stage=0", "coconut.extra_epochs=0"];
    let names = |progress: &Progress| progress.entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>();

    let path = home.path().join("no arms");
    let progress = straight(&recipe(&["grpo.arms="]), &path);
    assert_eq!((names(&progress), progress.step), (vec!["coconut".to_string()], 7));

    let path = home.path().join("nothing");
    let nothing = [&none[..], &["grpo.arms="]].concat();
    let progress = straight(&recipe(&nothing), &path);
    assert_eq!((names(&progress), progress.step), (vec!["model".to_string()], 0));
    let (ending, again) =
        run(&recipe(&nothing), &path, Existing::Resume, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((ending, names(&again)), (Ending::Complete, names(&progress)));

    let path = home.path().join("arms alone");
    let arms = recipe(&[&none[..], &["grpo.arms=temp,dropout_latent"]].concat());
    let progress = straight(&arms, &path);
    assert_eq!(names(&progress), ["coconut", "temp", "dropout_latent"]);
    let expected = results(&path);
    let stopped = home.path().join("arms alone, stopped");
    run(&arms, &stopped, Existing::Refuse, &mut stops_after(2, 0)).unwrap();
    run(&arms, &stopped, Existing::Resume, &mut |_| ControlFlow::Continue(())).unwrap();
    same(&results(&stopped), &expected, "arms alone");
    // The base is this run's, not that of the run before it in the folder.
    let other = fresh(&[&none[..], &["grpo.arms=temp,dropout_latent", "seed=7"]].concat());
    let (_, cleaned) = run(&other, &path, Existing::Clean, &mut |_| ControlFlow::Continue(())).unwrap();
    let anew = home.path().join("anew");
    assert_eq!(straight(&other, &anew).entries, cleaned.entries);
    same(&results(&path), &results(&anew), "cleaned");

    let folder = home.path().join("sft of nothing");
    let sft = recipe(&[&none[..], &["grpo.arms=temp,sft"]].concat());
    let message =
        run(&sft, &folder, Existing::Refuse, &mut |_| ControlFlow::Continue(())).err().unwrap().to_string();
    assert!(
        message.contains("grpo.arms") && message.contains("sft continues supervised training"),
        "{message}"
    );
}

#[test]
fn a_finished_story_that_is_resumed_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let recipe = recipe(&["grpo.arms=temp"]);
    let path = home.path().join("run");
    let progress = straight(&recipe, &path);
    let expected = results(&path);
    let (ending, again) = run(&recipe, &path, Existing::Resume, &mut stops_after(1, 0)).unwrap();
    assert_eq!((ending, again.entries), (Ending::Complete, progress.entries));
    same(&results(&path), &expected, "resumed");
}

#[test]
fn every_arm_starts_from_the_base() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("run");
    // Arms without updates are the base, to the bit.
    straight(&recipe(&["grpo.updates=0"]), &path);
    let all = results(&path);
    for arm in ["temp", "dropout_all", "sft"] {
        assert!(all[arm] == all["coconut"], "{arm}");
    }
    let path = home.path().join("moved");
    straight(&recipe(&[]), &path);
    let all = results(&path);
    for arm in ["temp", "dropout_all", "sft"] {
        assert!(all[arm] != all["coconut"], "{arm}");
    }
}

#[test]
fn checkpoints_are_chosen_by_validation_problems() {
    let home = tempfile::tempdir().unwrap();
    let recipe = recipe(&["grpo.arms=temp,dropout_all"]);
    let path = home.path().join("run");
    let mut scores: BTreeMap<String, Option<f64>> = BTreeMap::new();
    let mut asked = None;
    let mut watch = |event: &Event| {
        match event {
            Event::Evaluated { what, scores } if what.contains("validation") => {
                asked = Some(scores.accuracy.value)
            }
            Event::Supervised { .. } | Event::Rewarded { .. } => asked = None,
            Event::Saved(path) => {
                scores.insert(path.file_name().unwrap().to_str().unwrap().into(), asked);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    };
    run(&recipe, &path, Existing::Refuse, &mut watch).unwrap();
    assert_eq!(scores.len(), 15);
    for (name, score) in scores {
        let checkpoint = checkpoints::Checkpoint::open(&path.join("checkpoints").join(&name)).unwrap();
        assert_eq!(checkpoint.state().score, score, "{name}");
    }
    let model =
        Model::load(&path.join("models").join("temp"), &Device::cpu(), Precision::of(recipe.model.dtype));
    assert!(model.is_ok());
}

/// Gates come with the arm, stay with its checkpoints and its model, and the next arm starts without them.
#[test]
fn an_arm_with_gates_goes_on_from_its_checkpoints_and_keeps_its_gates() {
    let home = tempfile::tempdir().unwrap();
    let changes = [
        "coconut.variant=no_cot",
        "cot.epochs=0",
        "coconut.epochs_per_stage=0",
        "coconut.extra_epochs=0",
        "grpo.arms=hrpo,temp",
        "grpo.updates=3",
        "hrpo.thinking=3",
        "hrpo.top_k=5",
        "hrpo.mark=9",
    ];
    let recipe = recipe(&changes);
    let once = home.path().join("once");
    let progress = straight(&recipe, &once);
    assert_eq!((progress.step, progress.entries.len()), (6, 3));
    assert_eq!(progress.entries[1].tally.replay_gap, 0.0);
    assert!(progress.entries[1].tally.audited > 0);
    let of = |run: &Path, name: &str| run.join("models").join(name);
    let files = ["latent_gates.json", "latent_gates.safetensors", "latent_gating.json"];
    for (name, there) in [("coconut", false), ("hrpo", true), ("temp", false)] {
        for file in files {
            assert_eq!(of(&once, name).join(file).is_file(), there, "{name}/{file}");
        }
        let model = Model::load(&of(&once, name), &Device::cpu(), Precision::of(recipe.model.dtype)).unwrap();
        assert_eq!(model.has_gates(), there, "{name}");
    }
    let gating = latch::run::student::gating_of(&of(&once, "hrpo")).unwrap().hrpo;
    assert_eq!((gating.thinking, gating.top_k, gating.mark.as_str()), (3, 5, "9"));
    let gates = |run: &Path| fs::read(of(run, "hrpo").join("latent_gates.safetensors")).unwrap();
    for step in [1, 2, 3, 4] {
        let path = home.path().join(step.to_string());
        run(&recipe, &path, Existing::Refuse, &mut stops_after(step, 0)).unwrap();
        let (ending, again) =
            run(&recipe, &path, Existing::Resume, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(ending, Ending::Complete);
        same(&results(&path), &results(&once), &format!("stopped after {step}"));
        assert_eq!(again.entries, progress.entries, "{step}");
        assert!(gates(&path) == gates(&once), "gates, stopped after {step}");
    }
    // The forecast of memory knows the gates.
    let student = Student::of(&recipe, &Device::cpu()).unwrap();
    let curriculum = settings::curriculum(&recipe);
    let limit = longest(&recipe, &student.model);
    let problems =
        problems::load(&recipe, &student.tokenizer, student.markers.stop, &curriculum, limit).unwrap();
    assert!(forecast(&recipe, &student, &problems).is_ok());
}
