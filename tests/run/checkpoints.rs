//! Checkpoints: they come back to the bit, and damaged ones are recognised and passed over.

use super::{all_bits, says, small, update};
use latch::base::Dtype;
use latch::device::Device;
use latch::learn::optimizer::{Optimizer, Settings};
use latch::model::Precision;
use latch::model::save::Companions;
use latch::run::checkpoints::{Checkpoint, Checkpoints, Keep, TrainState, latest};
use std::fs;
use std::path::Path;

const ALL: Keep = Keep { last: 100, best: false };

fn state(job: &str, score: Option<f64>) -> TrainState {
    TrainState { job: job.into(), score }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn five_updates_are_three_a_checkpoint_and_two() {
    for precision in [Dtype::F32, Dtype::F64, Dtype::Bf16].map(Precision::of) {
        let place = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(&place.path().join("checkpoints"), ALL).unwrap();
        let (mut model, mut optimizer) = small(precision);
        (1..=3).for_each(|number| update(&mut model, &mut optimizer, number));
        let saved = state("{\"stage\": 2, \"text\": \"naïve \\\" \\n\"}", Some(0.1 + 0.2));
        let companions = Companions::of_contents(vec![("tokenizer.json".into(), b"{}".to_vec())]);
        let path = checkpoints.save(3, &model, Some(&optimizer), &saved, &companions).unwrap();
        assert!(path.ends_with("checkpoints/step-000003"));
        let files = [
            "checksums.sha256",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "train_state.safetensors",
        ];
        assert_eq!(names(&path), files);

        let found = checkpoints.latest().unwrap();
        assert!(found.skipped.is_empty());
        let checkpoint = found.checkpoint.unwrap();
        assert_eq!((checkpoint.step(), checkpoint.state(), checkpoint.path()), (3, &saved, &*path));
        let mut other = checkpoint.model(&Device::cpu(), precision).unwrap();
        let mut restored = Optimizer::new(&other, Settings::default()).unwrap();
        checkpoint.restore(&other, &mut restored).unwrap();
        assert_eq!(restored.step(), 3);
        assert_eq!(all_bits(&other, &restored), all_bits(&model, &optimizer));
        for number in 4..=5 {
            update(&mut model, &mut optimizer, number);
            update(&mut other, &mut restored, number);
        }
        assert_eq!(all_bits(&other, &restored), all_bits(&model, &optimizer));
    }
}

#[test]
fn an_optimiser_of_another_kind_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(place.path(), ALL).unwrap();
    let (model, optimizer) = small(Precision::of(Dtype::F32));
    checkpoints.save(1, &model, Some(&optimizer), &state("", None), &Companions::default()).unwrap();
    checkpoints.save(2, &model, None, &state("", None), &Companions::default()).unwrap();
    let (other, mut fresh) = small(Precision::of(Dtype::F64));
    let open = |step: &str| Checkpoint::open(&place.path().join(step)).unwrap();
    let message = open("step-000001").restore(&other, &mut fresh).unwrap_err().to_string();
    says(&message, &["train_state.safetensors", "\"m.", "float32", "expected float64", "dtype of the run"]);
    assert!(open("step-000001").has_optimizer() && !open("step-000002").has_optimizer());
    let message = open("step-000002").restore(&other, &mut fresh).unwrap_err().to_string();
    says(&message, &["holds no optimiser state", "fresh optimiser"]);
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let place = tempfile::tempdir().unwrap();
    let keep = |last, best| Checkpoints::open(place.path(), Keep { last, best }).unwrap();
    let (model, _) = small(Precision::of(Dtype::F32));
    let save = |checkpoints: &Checkpoints, step, score| {
        checkpoints.save(step, &model, None, &state("", score), &Companions::default()).unwrap();
    };
    let scores = [Some(0.1), Some(0.9), None, Some(0.9), Some(f64::NAN), Some(0.3)];
    let checkpoints = keep(2, true);
    for (step, score) in (1..).zip(scores) {
        save(&checkpoints, step, score);
    }
    assert_eq!(names(place.path()), ["step-000002", "step-000005", "step-000006"]);
    assert_eq!(checkpoints.best().unwrap().unwrap().step(), 2);
    // A step that is saved again replaces itself.
    save(&checkpoints, 6, Some(0.95));
    assert_eq!(names(place.path()), ["step-000005", "step-000006"]);
    assert_eq!(checkpoints.best().unwrap().unwrap().state().score, Some(0.95));
    // The best one is damaged: the next best counts.
    save(&checkpoints, 7, Some(0.5));
    fs::write(place.path().join("step-000006/config.json"), "{}").unwrap();
    assert_eq!(checkpoints.best().unwrap().unwrap().step(), 7);
    // A run that went back to step 4 leaves nothing of its former future; other folders are not ours.
    fs::create_dir(place.path().join("step-000900-copy")).unwrap();
    save(&keep(2, false), 4, None);
    assert_eq!(names(place.path()), ["step-000004", "step-000900-copy"]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before_it() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(place.path(), ALL).unwrap();
    let (mut model, mut optimizer) = small(Precision::of(Dtype::F32));
    for step in 1..=2 {
        update(&mut model, &mut optimizer, step);
        let companions = Companions::of_contents(vec![("tokenizer.json".into(), b"{}".to_vec())]);
        checkpoints.save(step, &model, Some(&optimizer), &state("", None), &companions).unwrap();
    }
    let newest = place.path().join("step-000002");
    // Damages one file, looks, and mends it.
    let damaged = |name: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let path = newest.join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        damage(&mut bytes);
        assert_ne!(bytes, whole);
        fs::write(&path, bytes).unwrap();
        let found = latest(place.path()).unwrap();
        assert_eq!(found.checkpoint.unwrap().step(), 1, "{name}");
        assert_eq!(found.skipped.len(), 1);
        fs::write(&path, whole).unwrap();
        found.skipped.into_iter().next().unwrap()
    };
    for name in names(&newest) {
        let length = fs::metadata(newest.join(&name)).unwrap().len() as usize;
        // A cut of every kind, and a flipped bit in the first, the middle and the last byte.
        for cut in [0, 1, length / 2, length - 1] {
            let message = damaged(&name, &|bytes| bytes.truncate(cut));
            says(&message, &["checkpoint of step 2 is skipped", "step-000002/", "the one before it"]);
        }
        for at in [0, length / 2, length - 2] {
            let message = damaged(&name, &|bytes| bytes[at] ^= 1);
            says(&message, &["checkpoint of step 2 is skipped", "step-000002/"]);
        }
        let path = newest.join(&name);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let found = latest(place.path()).unwrap();
        assert_eq!(found.checkpoint.unwrap().step(), 1, "{name}");
        says(&found.skipped[0], &["step-000002/", &name]);
        fs::write(&path, whole).unwrap();
    }
    // Checksums that end early at a line's end.
    for lines in 0..4 {
        let message = damaged("checksums.sha256", &|bytes| {
            let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            let end = [0].into_iter().chain(ends).nth(lines).unwrap();
            bytes.truncate(end);
        });
        says(&message, &["checksums.sha256", "has no checksum of"]);
    }
    assert_eq!(latest(place.path()).unwrap().checkpoint.unwrap().step(), 2);
    // Nothing usable at all is no error.
    for step in ["step-000001", "step-000002"] {
        fs::write(place.path().join(step).join("config.json"), "").unwrap();
    }
    let found = latest(place.path()).unwrap();
    assert!(found.checkpoint.is_none());
    assert_eq!(found.skipped.len(), 2);
    assert!(latest(&place.path().join("absent")).unwrap().checkpoint.is_none());
}

#[test]
fn checksums_are_what_sha256sum_reads_and_are_not_copied_along() {
    let place = tempfile::tempdir().unwrap();
    let (model, _) = small(Precision::of(Dtype::F32));
    let checkpoints = Checkpoints::open(place.path(), ALL).unwrap();
    let companions = Companions::of_contents(vec![("a.txt".into(), b"abc".to_vec())]);
    let path = checkpoints.save(1, &model, None, &state("", None), &companions).unwrap();
    let text = fs::read_to_string(path.join("checksums.sha256")).unwrap();
    // FIPS 180-2's vector for "abc".
    says(&text, &["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a.txt\n"]);
    let copied: Vec<String> = Companions::of_folder(&path).unwrap().names().map(str::to_string).collect();
    assert_eq!(copied, ["a.txt"]);
}
