//! Whole runs that train adapters: supervised stages, every arm, a KL reference; stopped, gone on with, saved both ways.

use super::bits;
use crate::story::{STEPS, fresh, recipe, results, run, same, stops_after, straight};
use latch::base::Dtype;
use latch::device::Device;
use latch::model::{Model, Precision};
use latch::run::checkpoints::Checkpoint;
use latch::run::dry_run::forecast;
use latch::run::folder::Existing;
use latch::run::recipe::Recipe;
use latch::run::story::{Ending, longest};
use latch::run::student::Student;
use latch::run::{problems, replay, settings};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

const ADAPTERS: [&str; 3] = ["adapter.rank=4", "adapter.alpha=16", "adapter.train_embeddings=true"];

fn adapted(changes: &[&str]) -> Recipe {
    recipe(&[&ADAPTERS[..], changes].concat())
}

fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

#[test]
fn a_run_that_was_stopped_comes_to_the_same_bits() {
    let home = tempfile::tempdir().unwrap();
    for (n, changes) in [
        vec!["adapter.save=separate", "coconut.reset_optimizer=stage"],
        vec![
            "adapter.save=merged",
            "model.dtype=bf16",
            "adapter.rslora=true",
            "adapter.train_embeddings=false",
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let recipe = adapted(&changes);
        let once = home.path().join(format!("{n}-once"));
        let progress = straight(&recipe, &once);
        assert_eq!((progress.step, progress.entries.len()), (STEPS, 4));
        let expected = results(&once);
        for step in [2, 7, 9, 17] {
            let path = home.path().join(format!("{n}-{step}"));
            run(&recipe, &path, Existing::Refuse, &mut stops_after(step, 0)).unwrap();
            let (ending, again) =
                run(&recipe, &path, Existing::Resume, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!((ending, again.step), (Ending::Complete, STEPS));
            same(&results(&path), &expected, &format!("{changes:?}, stopped after {step}"));
            assert_eq!(again.entries, progress.entries, "{changes:?} {step}");
        }
        // What was sampled is sampled again, from an arm's start and from a checkpoint.
        let lines = std::fs::read_to_string(once.join("samples.jsonl")).unwrap().lines().count();
        for line in [2, lines] {
            let replayed = replay::replay(&once.join("samples.jsonl"), line, &Device::cpu()).unwrap();
            assert_eq!(replayed.gap, 0.0, "{changes:?} line {line}");
        }
    }
}

#[test]
fn what_is_saved_is_what_was_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let (merged, separate) = (home.path().join("merged"), home.path().join("separate"));
    straight(&adapted(&["adapter.save=merged"]), &merged);
    let recipe = adapted(&["adapter.save=separate"]);
    straight(&recipe, &separate);
    assert_eq!(
        names(&merged.join("models")),
        set(&["coconut", "coconut-adapter", "dropout_all", "sft", "temp"])
    );
    // The base has all tokens already: it is the folder that the recipe names.
    assert_eq!(names(&separate.join("models")), set(&["coconut", "dropout_all", "sft", "temp"]));
    let base = Path::new(&recipe.model.path);
    let precision = Precision::of(Dtype::F32);
    let weights = Model::load(base, &Device::cpu(), precision).unwrap();
    for arm in ["coconut", "temp", "dropout_all", "sft"] {
        let mut model = Model::load(base, &Device::cpu(), precision).unwrap();
        model.load_adapter(&separate.join("models").join(arm)).unwrap();
        assert_eq!(model.adapter().unwrap().base, base.to_string_lossy());
        let folder = merged.join("models").join(arm);
        let folded = Model::load(&folder, &Device::cpu(), precision).unwrap();
        assert_eq!(bits(folded.parameters()), bits(model.merge().unwrap().parameters()), "{arm}");
        assert_eq!(bits(model.parameters()), bits(weights.parameters()), "{arm}: the base");
        assert!(folder.join("tokenizer.json").exists() && folder.join("latent_config.json").exists());
    }
    let newest = separate.join("checkpoints").join(format!("step-{STEPS:06}"));
    let checkpoint = Checkpoint::open(&newest).unwrap();
    let student = Student::of(&recipe, &Device::cpu()).unwrap();
    let again = checkpoint.model_like(&recipe, &student.model).unwrap();
    assert!(std::ptr::eq(again.parameters(), student.model.parameters()), "the base is shared");
    assert!(!newest.join("model.safetensors").exists());
    // A changed byte is found.
    let path = newest.join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let message = Checkpoint::open(&newest).unwrap_err().to_string();
    assert!(message.contains("adapter_model.safetensors") && message.contains("checksum"), "{message}");
}

#[test]
fn a_base_that_is_no_folder_yet_is_kept_beside_its_adapters() {
    let home = tempfile::tempdir().unwrap();
    let recipe = fresh(&[&ADAPTERS[..], &["adapter.save=separate", "grpo.arms=temp"]].concat());
    let path = home.path().join("run");
    straight(&recipe, &path);
    assert_eq!(names(&path.join("models")), set(&["base", "coconut", "temp"]));
    let student = Student::of(&recipe, &Device::cpu()).unwrap();
    let base = path.join("models").join("base");
    let mut model = Model::load(&base, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
    assert_eq!(bits(model.parameters()), bits(student.model.parameters()));
    model.load_adapter(&path.join("models").join("temp")).unwrap();
    assert_eq!(model.adapter().unwrap().base, base.to_string_lossy());
}

#[test]
fn the_forecast_has_lines_for_adapters() {
    let rows = |recipe: &Recipe| {
        let student = Student::of(recipe, &Device::cpu()).unwrap();
        let curriculum = settings::curriculum(recipe);
        let longest = longest(recipe, &student.model);
        let problems =
            problems::load(recipe, &student.tokenizer, student.markers.stop, &curriculum, longest).unwrap();
        let rows = forecast(recipe, &problems, &Device::cpu()).unwrap();
        let bytes = |tensors: &[latch::ops::Tensor]| tensors.iter().map(|t| t.bytes() as u64).sum::<u64>();
        (rows, bytes(student.model.parameters()), bytes(student.model.trained()))
    };
    // Groups so large that an arm takes more than a phase: the rows are of the moment that takes the most.
    let (full, weights, _) = rows(&recipe(&["adapter.rank=0", "grpo.group=64"]));
    let (found, frozen, trained) = rows(&adapted(&["adapter.train_embeddings=false", "grpo.group=64"]));
    assert_eq!(weights, frozen);
    let row = |name: &str| {
        let of = found.memory.iter().find(|row| row.name.starts_with(name));
        of.unwrap_or_else(|| panic!("no row {name}")).bytes
    };
    // The reference of the KL penalty has an adapter of its own.
    assert_eq!(
        (row("frozen weights"), row("adapters"), row("gradients of adapters")),
        (frozen, 2 * trained, trained)
    );
    let moments = row("optimiser moments of adapters");
    assert!(moments >= 2 * trained && moments < 2 * trained + 1024, "{moments} {trained}");
    // Weights, gradients and two moments of everything, against weights and three times the adapter.
    let saved = full.bytes() - found.bytes();
    assert!(saved > 2 * weights, "{saved} of {weights}");
    assert!(
        found.lines[2].contains("rank 4, scale 4") && found.lines[2].contains("are trained"),
        "{:?}",
        found.lines
    );
}

#[test]
fn mistakes_name_the_key() {
    let wrong = |changes: &[&str]| {
        let all: Vec<String> = changes.iter().map(|text| text.to_string()).collect();
        Recipe::resolve(None, &all).map(|recipe| Student::of(&recipe, &Device::cpu())).map_or_else(
            |error| error.to_string(),
            |student| student.err().map_or("nothing is wrong".into(), |error| error.to_string()),
        )
    };
    for (changes, parts) in [
        (vec!["adapter.rank=4", "adapter.targets="], vec!["adapter.targets is empty", "adapter.rank = 4"]),
        (vec!["adapter.rank=4", "adapter.targets=c_attn"], vec!["adapter.targets", "`c_attn`", "q_proj"]),
        (
            vec!["adapter.rank=4", "adapter.targets=all-linear,q_proj"],
            vec!["adapter.targets", "stands alone"],
        ),
        (vec!["adapter.train_embeddings=true"], vec!["adapter.rank = 0", "adapter.train_embeddings"]),
        (vec!["adapter.rank=4", "adapter.alpha=0"], vec!["`adapter.alpha` is 0", "above 0"]),
        (vec!["adapter.rank=-1"], vec!["`adapter.rank` is -1"]),
        (vec!["adapter.save=both"], vec!["`adapter.save`", "merged, separate"]),
    ] {
        let message = wrong(&changes);
        assert!(parts.iter().all(|part| message.contains(part)), "{changes:?}: {message}");
    }
}
