//! The other supervised schools as whole jobs: iCoT and CODI, stopped and gone on with, and settings they refuse.

use crate::story::{fresh, results, run, same, stops_after, straight};
use latch::model::{LATENT_CONFIG, Precision};
use latch::run::evaluation::{Ask, Examiner};
use latch::run::folder::Existing;
use latch::run::recipe::Recipe;
use latch::run::story::Event;
use latch::run::student::Student;
use latch::run::{problems, settings};
use std::ops::ControlFlow;
use std::path::Path;

/// Three updates in words, then two epochs of two updates: two tokens an epoch, everything from the third on.
const ICOT: &[&str] = &[
    "coconut.variant=icot",
    "icot.removal_per_epoch=2",
    "icot.removal_max=3",
    "icot.removal_smoothing=1.5",
    "icot.epochs=2",
    "icot.batch=12",
    "icot.learning_rate=0.0005",
    "grpo.arms=",
];

/// Three updates in words, four by CODI's loss, and an arm of two updates on the model it makes.
const CODI: &[&str] = &[
    "coconut.variant=codi",
    "codi.latents=3",
    "codi.projector=10",
    "codi.epochs=2",
    "codi.batch=12",
    "codi.learning_rate=0.0005",
    "codi.warmup_steps=2",
    "grpo.arms=dropout_latent",
    "grpo.updates=2",
];

#[test]
fn schools_that_were_stopped_come_to_the_same_bits() {
    let home = tempfile::tempdir().unwrap();
    let bf16 = [CODI, &["model.dtype=bf16"]].concat();
    for (name, changes, steps, stops) in [
        ("icot", ICOT, 7, &[2, 4, 5][..]),
        ("codi", CODI, 9, &[3, 5, 8][..]),
        ("codi in bf16", &bf16, 9, &[6][..]),
    ] {
        let distils = changes.contains(&"coconut.variant=codi");
        let recipe = fresh(changes);
        let once = home.path().join(name);
        let progress = straight(&recipe, &once);
        assert_eq!(progress.step, steps, "{name}");
        let expected = results(&once);
        for &step in stops {
            let path = home.path().join(format!("{name}-{step}"));
            run(&recipe, &path, Existing::Refuse, &mut stops_after(step, 0)).unwrap();
            let (_, again) =
                run(&recipe, &path, Existing::Resume, &mut |_| ControlFlow::Continue(())).unwrap();
            same(&results(&path), &expected, &format!("{name}, stopped after {step}"));
            assert_eq!((again.stages, again.entries), (progress.stages.clone(), progress.entries.clone()));
        }
        let terms = expected["metrics.jsonl"].matches("loss/distill").count();
        assert_eq!(terms, if distils { 4 } else { 0 }, "{name}");
        assert_eq!(expected.contains_key("coconut projector"), distils, "{:?}", expected.keys());
        let stages: Vec<&str> = progress.stages.iter().map(|stage| stage.name.as_str()).collect();
        match distils {
            true => assert_eq!(stages, ["words", "codi"]),
            false => assert_eq!(stages, ["words", "removal 1", "removal 2"]),
        }
    }
    asked_again(&home.path().join("codi/models/coconut"), &fresh(CODI));
    without_its_projector(&home.path().join("codi/models/coconut"));
}

/// A saved model answers as it did, its latents pass through the projector it was saved with.
fn asked_again(folder: &Path, recipe: &Recipe) {
    let device = latch::device::Device::cpu();
    let student = Student::load(folder, &device, Precision::of(latch::base::Dtype::F32)).unwrap();
    assert_eq!(student.model.projector().map(|projector| projector.hidden), Some(10));
    let curriculum = settings::curriculum(recipe);
    let stop = student.markers.stop;
    let problems = problems::load(recipe, &student.tokenizer, stop, &curriculum, 100).unwrap();
    let examiner = Examiner {
        curriculum: &curriculum,
        markers: student.markers,
        tokenizer: &student.tokenizer,
        extractor: settings::extractor(recipe),
        max_new_tokens: 5,
        batch: 4,
        seed: recipe.seed,
        hrpo: &recipe.hrpo,
    };
    let ask = Ask::deterministic(curriculum.max_latent_stage + 1);
    let ids = |student: &Student| {
        let outcome = examiner.ask(&student.model, &problems.valid.items, &ask).unwrap();
        outcome
            .answers
            .into_iter()
            .flatten()
            .map(|a| (a.ids, a.log_probability.to_bits()))
            .collect::<Vec<_>>()
    };
    let expected = ids(&student);
    let again = Student::load(folder, &device, Precision::of(latch::base::Dtype::F32)).unwrap();
    assert_eq!(ids(&again), expected);
    let mut moved = again;
    let last = moved.model.parameters().len() - 1;
    let shifted: Vec<f32> =
        moved.model.parameters()[last].download::<f32>().unwrap().iter().map(|v| v + 1.0).collect();
    moved.model.parameters_mut()[last].upload(&shifted).unwrap();
    assert_ne!(ids(&moved), expected, "answers do not depend on the projector");
}

/// Its files gone, a model whose latents need them is not run without.
fn without_its_projector(folder: &Path) {
    let text = std::fs::read_to_string(folder.join(LATENT_CONFIG)).unwrap();
    assert!(text.contains("\"projector\": true"), "{text}");
    for name in ["latent_projector.json", "latent_projector.safetensors"] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    let path = format!("model.path={}", folder.display());
    let recipe = fresh(&[CODI, &[path.as_str()]].concat());
    let message = Student::of(&recipe, &latch::device::Device::cpu()).unwrap_err().to_string();
    for word in ["pass through a projector", "latent_projector.json is missing", LATENT_CONFIG] {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
}

#[test]
fn a_state_that_no_answer_has_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let recipe = fresh(&[CODI, &["cot.epochs=0", "codi.distill_token=9"]].concat());
    let message =
        run(&recipe, &home.path().join("run"), Existing::Refuse, &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string();
    assert!(message.contains("answer token 9") && message.contains("codi.distill_token"), "{message}");
}

#[test]
fn answers_that_are_too_short_to_distil_from_are_found_before_anything_is_trained() {
    let home = tempfile::tempdir().unwrap();
    // Answers of one digit and of two: some have a fourth token, some have not.
    let recipe = fresh(&[CODI, &["data.words_bound=200", "codi.distill_token=3"]].concat());
    let mut updates = 0;
    let mut watch = |event: &Event| {
        updates += usize::from(matches!(event, Event::Supervised { .. }));
        ControlFlow::Continue(())
    };
    let message =
        run(&recipe, &home.path().join("run"), Existing::Refuse, &mut watch).unwrap_err().to_string();
    assert!(message.contains("answer token 3") && message.contains("training problem"), "{message}");
    assert_eq!(updates, 0);
}
