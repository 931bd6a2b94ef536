//! Stopped, killed, spoiled or finished: a story goes on to the same bits.

use super::*;

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
        // Inside the words, at their end, inside a stage, at the end of the curriculum, inside an arm, at its end, inside
        // the last.
        for step in [2, 3, 4, 7, 9, 11, 17] {
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
    let precision = recipe.model.dtype;
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
        let model = Model::load(&of(&once, name), &Device::cpu(), recipe.model.dtype).unwrap();
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
    assert!(forecast(&recipe, &problems, &Device::cpu()).is_ok());
}
