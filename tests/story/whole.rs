//! Whole stories: memory as forecast, data kept apart, tables, arms from one base.

use super::*;

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
        let forecast = forecast(&recipe, story.problems(), &device).unwrap();
        let tensors = forecast.tensors();
        // Copies of weights for products of few rows are no tensors, and at most as many bytes as weights.
        let row = |name: &str| forecast.memory.iter().find(|row| row.name == name).map(|row| row.bytes);
        let expected = if latch::ops::vector_instructions() == "portable" { None } else { row("weights") };
        assert_eq!(row("copies of weights"), expected, "{changes:?}");
        story.run(go).unwrap();
        let most = device.traffic().count().bytes_high_water as u64;
        assert!(most <= tensors, "{changes:?}: {most} bytes held, {tensors} forecast\n{}", forecast.text());
        let factor = tensors as f64 / most as f64;
        assert!(
            factor <= 1.01,
            "{changes:?}: {most} bytes held, {tensors} forecast: {factor:.4} times\n{}",
            forecast.text()
        );
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    let home = tempfile::tempdir().unwrap();
    let run = |recompute: &str| {
        let path = home.path().join(recompute);
        straight(&recipe(&[&format!("run.recompute={recompute}")]), &path);
        results(&path)
    };
    same(&run("true"), &run("false"), "run.recompute");
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
    let forecast = forecast(&recipe, &problems, &Device::cpu()).unwrap();
    let words = "5 train, 3 valid, 4 test; 0 malformed, 0 too long; 1 and 3 shared with training, where 3 are left out";
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
    let model = Model::load(&path.join("models").join("temp"), &Device::cpu(), recipe.model.dtype);
    assert!(model.is_ok());
}
