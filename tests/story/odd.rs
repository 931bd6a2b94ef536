//! Odd problems and settings: what nothing can be learned from is refused before anything is trained, what is left out is
//! told, and numbers are what they are named after.

use super::*;
use latch::learn::coconut::Curriculum;
use latch::rollout::group::Thoughts;
use latch::run::evaluation::{Answer, Ask, Examiner, Outcome};
use latch::run::problems::Item;
use latch::run::story::Tally;

/// A file of problems: question and answer, a line each.
fn file(home: &Path, name: &str, problems: &[(String, &str)]) -> String {
    let line = |(question, answer): &(String, &str)| {
        let answer = format!("It is <<{answer}={answer}>>{answer}.\n#### {answer}");
        format!("{}\n", serde_json::json!({"question": question, "answer": answer}))
    };
    let path = home.join(name);
    fs::write(&path, problems.iter().map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

/// The tiny recipe with training, validation and test problems of its own.
fn of_files(home: &Path, sets: [&[(String, &str)]; 3]) -> Recipe {
    let keys = ["train", "valid", "test"];
    let named = keys.iter().zip(sets);
    let mut changes: Vec<String> =
        named.map(|(key, set)| format!("data.{key}={}", file(home, &format!("{key}.jsonl"), set))).collect();
    changes.extend(["data.source=file".into(), "model.max_positions=256".into(), "grpo.arms=".into()]);
    fresh(&changes.iter().map(String::as_str).collect::<Vec<_>>())
}

fn numbered(beginning: &str, numbers: std::ops::Range<u32>) -> Vec<(String, &'static str)> {
    numbers
        .map(|n| (format!("{beginning}Tom has {n} apples and eats them. How many are left?"), "0"))
        .collect()
}

/// The message of a story that is refused, before any update.
#[track_caller]
fn refused(recipe: &Recipe, path: &Path) -> String {
    let mut updates = 0;
    let mut watch = |event: &Event| {
        updates += usize::from(matches!(event, Event::Supervised { .. } | Event::Rewarded { .. }));
        ControlFlow::Continue(())
    };
    let message = run(recipe, path, Existing::Refuse, &mut watch).err().unwrap().to_string();
    assert_eq!(updates, 0, "{message}");
    message
}

#[test]
fn examples_of_mixed_stages_have_room_at_any_stage() {
    let home = tempfile::tempdir().unwrap();
    let mixed = [
        "coconut.uniform_prob=0.5",
        "coconut.c_thought=20",
        "coconut.max_latent_stage=2",
        "data.words_steps_max=3",
        "model.max_positions=256",
        "grpo.arms=",
    ];
    assert_eq!(straight(&fresh(&mixed), &home.path().join("run")).stages.len(), 4);
}

#[test]
fn problems_that_nothing_could_be_learned_from_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    let (train, valid, test) = (numbered("", 0..9), numbered("", 10..13), numbered("", 20..23));
    // What all begin with makes all the same question.
    let long = "Solve the problem step by step, and write the answer behind four marks at the end. ";
    let begun = [numbered(long, 0..9), numbered(long, 10..13)];
    let message = refused(&of_files(home.path(), [&begun[0], &begun[1], &test]), &path("known"));
    for words in ["train problems", "9 asked in validation or test", "first 80 characters"] {
        assert!(message.contains(words), "`{words}` is missing in: {message}");
    }
    let texts: Vec<(String, &str)> = test.iter().map(|(question, _)| (question.clone(), "none")).collect();
    let message = refused(&of_files(home.path(), [&train, &valid, &texts]), &path("texts"));
    for words in ["test problems", "data.extractor", "\"none\"", "strict_string"] {
        assert!(message.contains(words), "`{words}` is missing in: {message}");
    }
    // The closing table asks each problem with the thoughts of another.
    let message = refused(&of_files(home.path(), [&train, &valid, &test[..1]]), &path("one"));
    for words in ["shuffled thoughts", "one problem", "data.test"] {
        assert!(message.contains(words), "`{words}` is missing in: {message}");
    }
}

#[test]
fn a_run_tells_which_problems_it_leaves_out() {
    let home = tempfile::tempdir().unwrap();
    let recipe = of_files(home.path(), [&numbered("", 0..9), &numbered("", 8..11), &numbered("", 20..23)]);
    let told = |path: &str, recipe: &Recipe| {
        let mut notes = Vec::new();
        let mut watch = |event: &Event| {
            if let Event::Note(note) = event {
                notes.push(note.to_string());
            }
            ControlFlow::Continue(())
        };
        run(recipe, &home.path().join(path), Existing::Refuse, &mut watch).unwrap();
        notes.join("\n")
    };
    let notes = told("some", &recipe);
    assert!(notes.contains("8 train, 3 valid, 3 test;") && notes.contains("where 1 are left out"), "{notes}");
    let recipe = of_files(home.path(), [&numbered("", 0..8), &numbered("", 8..11), &numbered("", 20..23)]);
    assert_eq!(told("none", &recipe), "");
}

#[test]
fn shuffled_thoughts_are_those_of_another_problem_in_any_batch() {
    let recipe = recipe(&["data.limit_test=7", "data.words_steps_max=2"]);
    let student = Student::of(&recipe, &Device::cpu()).unwrap();
    let plain = settings::curriculum(&recipe);
    let problems = problems::load(&recipe, &student.tokenizer, student.markers.stop, &plain, 100).unwrap();
    let ask =
        |items: &[Item], curriculum: &Curriculum, batch: usize, thoughts: Thoughts| -> Vec<(Vec<u32>, u64)> {
            let examiner = Examiner {
                curriculum,
                markers: student.markers,
                tokenizer: &student.tokenizer,
                extractor: settings::extractor(&recipe),
                max_new_tokens: 5,
                batch,
                seed: recipe.seed,
                hrpo: &recipe.hrpo,
            };
            let ask = Ask { thoughts, ..Ask::deterministic(curriculum.max_latent_stage + 1) };
            let outcome = examiner.ask(&student.model, items, &ask).unwrap();
            outcome.answers.into_iter().flatten().map(|a| (a.ids, a.log_probability.to_bits())).collect()
        };
    let items = &problems.test.items;
    let own = ask(items, &plain, 64, Thoughts::Own);
    let shuffled = ask(items, &plain, 64, Thoughts::Shuffled);
    for batch in [1, 2, 3, 6, 7] {
        assert_eq!(ask(items, &plain, batch, Thoughts::Shuffled), shuffled, "{batch} at once");
    }
    assert!(own.iter().zip(&shuffled).all(|(own, shuffled)| own != shuffled));
    // The only problem that has so many latents.
    let steps = |wanted: usize| items.iter().filter(move |item| item.tokens.steps.len() == wanted);
    let mixed: Vec<Item> = steps(1).take(1).chain(steps(2).take(2)).cloned().collect();
    assert_eq!(mixed.len(), 3);
    let each = Curriculum { max_latent_stage: 2, pad_latent_to_max: false, ..plain };
    let (own, shuffled) = (ask(&mixed, &each, 64, Thoughts::Own), ask(&mixed, &each, 64, Thoughts::Shuffled));
    assert!(own.iter().zip(&shuffled).all(|(own, shuffled)| own != shuffled), "{own:?} {shuffled:?}");
}

#[test]
fn answers_of_one_problem_have_an_interval() {
    let answer = |right: bool| Answer {
        text: String::new(),
        value: Some(right.to_string()),
        right,
        ids: vec![1],
        log_probability: 0.0,
    };
    let scores =
        Outcome { answers: vec![[true, false, true, false].map(answer).to_vec()] }.scores(2).unwrap();
    let accuracy = scores.accuracy;
    assert_eq!((scores.problems, scores.samples, accuracy.value), (1, 4, 0.5));
    assert!(
        accuracy.low > 0.1 && accuracy.low < 0.2 && accuracy.high > 0.8 && accuracy.high < 0.9,
        "{accuracy:?}"
    );
}

#[test]
fn as_many_samples_are_shown_as_the_recipe_says() {
    let home = tempfile::tempdir().unwrap();
    for (asked, expected) in [(0, 0), (1, 1), (5, 5), (50, 6)] {
        let recipe = recipe(&["grpo.arms=temp", &format!("run.samples_print={asked}")]);
        let mut watch = |event: &Event| {
            if let Event::Rewarded { samples, report, .. } = event {
                assert_eq!(samples.len(), expected);
                let reward =
                    |pick: fn(f64, f64) -> f64| report.rollouts.iter().map(|r| r.reward).reduce(pick);
                assert!(samples.first().is_none_or(|best| Some(best.reward) == reward(f64::max)));
                assert!(samples.get(1).is_none_or(|worst| Some(worst.reward) == reward(f64::min)));
            }
            ControlFlow::Continue(())
        };
        run(&recipe, &home.path().join(format!("{asked}")), Existing::Refuse, &mut watch).unwrap();
    }
}

#[test]
fn a_single_latent_has_no_similarity() {
    let home = tempfile::tempdir().unwrap();
    for (latents, expected) in [("1", 0), ("2", 4)] {
        let path = home.path().join(latents);
        straight(&fresh(&["grpo.arms=temp", &format!("coconut.c_thought={latents}")]), &path);
        let metrics = fs::read_to_string(path.join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.matches("\"latent_norm\"").count(), 4);
        assert_eq!(metrics.matches("\"latent_similarity\"").count(), expected);
    }
}

#[test]
fn a_gap_that_is_no_number_comes_back_from_a_checkpoint_and_a_summary() {
    for gap in [f64::INFINITY, f64::NAN, 0.5, 0.0] {
        let tally = Tally { replay_gap: gap, ..Tally::default() };
        let text = Progress { tally, ..Progress::default() }.to_text().unwrap();
        let found = Progress::from_text(&text).unwrap().tally.replay_gap;
        assert_eq!(found.to_string(), gap.to_string(), "{text}");
        let found: Tally = serde_json::from_str(&serde_json::to_string(&tally).unwrap()).unwrap();
        assert_eq!(found.replay_gap.to_string(), gap.to_string());
    }
    // What earlier versions wrote.
    let now = Progress::default().to_text().unwrap();
    let old = now.replace("\"replay_gap\":\"f64 0.0\"", "\"replay_gap\":null");
    assert_ne!(old, now);
    assert!(Progress::from_text(&old).unwrap().tally.replay_gap.is_nan(), "{old}");
}
