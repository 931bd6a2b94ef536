//! Run folders and their lines: no run is lost by accident, and a resumed run's files are an uninterrupted one's.

use super::says;
use latch::base::Result;
use latch::device::Device;
use latch::run::checkpoints::Keep;
use latch::run::environment;
use latch::run::folder::{Existing, RunFolder};
use latch::run::metrics::{Cut, Lines, Record, line};
use latch::run::recipe::Recipe;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

fn recipe() -> Recipe {
    Recipe::resolve(None, &["grpo.group=16".into()]).unwrap()
}

/// A folder that holds a run.
fn run(path: &Path) -> RunFolder {
    let folder = RunFolder::create(path, Existing::Refuse).unwrap();
    folder.write_recipe(&recipe()).unwrap();
    folder
}

#[track_caller]
fn message(result: Result<RunFolder>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

/// Who watches a run locks its folder for a moment, to see whether anybody else does.
#[test]
fn a_lock_that_is_held_for_a_moment_is_waited_for() {
    let place = tempfile::tempdir().unwrap();
    drop(run(&place.path().join("run")));
    let path = place.path().join("run");
    // One try of many is enough: a machine may be too busy to give the lock back in time.
    let waited = (0..20).any(|_| {
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                drop(held);
            });
            RunFolder::create(&path, Existing::Resume).is_ok()
        })
    });
    assert!(waited);
}

#[test]
fn a_run_is_refused_resumed_or_cleaned_but_nothing_else_is_touched() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("deep/run");
    says(&message(RunFolder::create(&path, Existing::Resume)), &["holds no run to go on with"]);
    let folder = run(&path);
    assert!(!folder.resumed());
    folder.log("first").unwrap();
    folder.write_summary(&serde_json::json!({"accuracy": 0.5})).unwrap();
    folder.checkpoints(Keep { last: 1, best: false }).unwrap();
    fs::create_dir_all(path.join("checkpoints/step-000001")).unwrap();
    fs::write(path.join("notes.txt"), "mine").unwrap();

    // While that run is at work, nobody else is.
    for existing in [Existing::Refuse, Existing::Resume, Existing::Clean] {
        says(&message(RunFolder::create(&path, existing)), &["deep/run", "is in use", "--out"]);
    }
    assert!(path.join("summary.json").is_file());
    drop(folder);
    says(
        &message(RunFolder::create(&path, Existing::Refuse)),
        &["holds a run already", "--resume", "--clean"],
    );
    let resumed = RunFolder::create(&path, Existing::Resume).unwrap();
    assert!(resumed.resumed());
    assert_eq!(resumed.recipe().unwrap(), recipe());
    resumed.log("second").unwrap();
    assert_eq!(fs::read_to_string(path.join("log.txt")).unwrap(), "first\nsecond\n");

    drop(resumed);
    // A resumed run is not taken back; one that was just begun is, and nothing else.
    RunFolder::create(&path, Existing::Resume).unwrap().abandon();
    assert!(path.join("recipe.toml").is_file());
    RunFolder::create(&path, Existing::Clean).unwrap();
    let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["log.txt", "notes.txt"]);
    assert_eq!(fs::read_to_string(path.join("log.txt")).unwrap(), "");
    fs::remove_file(path.join("log.txt")).unwrap();
    says(&message(RunFolder::create(&path, Existing::Refuse)), &["holds no run"]);
    fs::remove_file(path.join("notes.txt")).unwrap();
    let begun = RunFolder::create(&path, Existing::Refuse).unwrap();
    begun.write_recipe(&recipe()).unwrap();
    begun.abandon();
    assert!(!path.exists());

    // What holds no run is nobody's to clean.
    let other = place.path().join("home");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.tex"), "mine").unwrap();
    for existing in [Existing::Refuse, Existing::Resume, Existing::Clean] {
        says(&message(RunFolder::create(&other, existing)), &["home", "no run", "choose another name"]);
        says(&message(RunFolder::create(&other.join("thesis.tex"), existing)), &["is a file"]);
    }
    assert_eq!(fs::read_to_string(other.join("thesis.tex")).unwrap(), "mine");
}

#[test]
fn runs_are_numbered() {
    let place = tempfile::tempdir().unwrap();
    let parent = place.path().join("runs");
    let newest = |name: &str| RunFolder::newest(&parent, name);
    says(&newest("default").unwrap_err().to_string(), &["runs", "holds no run default-NN", "--out"]);
    for expected in ["default-01", "default-02"] {
        let folder = RunFolder::numbered(&parent, "default").unwrap();
        assert!(folder.path().ends_with(expected));
        folder.write_recipe(&recipe()).unwrap();
    }
    fs::create_dir(parent.join("default-11")).unwrap();
    fs::create_dir(parent.join("default-copy")).unwrap();
    assert!(RunFolder::numbered(&parent, "default").unwrap().path().ends_with("default-12"));
    assert!(RunFolder::numbered(&parent, "prosqa").unwrap().path().ends_with("prosqa-01"));
    // The later ones never got a recipe.
    assert!(newest("default").unwrap().ends_with("default-02"));
}

#[test]
fn the_environment_is_recorded() {
    let place = tempfile::tempdir().unwrap();
    let folder = run(&place.path().join("run"));
    folder.write_environment(&environment::capture(&Device::cpu())).unwrap();
    let text = fs::read_to_string(folder.path().join("environment.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["latch"], env!("CARGO_PKG_VERSION"));
    assert_eq!(value["device"], "cpu");
    assert!(value["threads"].as_u64().unwrap() >= 1);
    assert!(["portable", "avx2", "avx512"].contains(&value["vectors"].as_str().unwrap()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::write(folder.path().join("plain"), "").unwrap();
        assert_eq!(mode(&folder.path().join("recipe.toml")), mode(&folder.path().join("plain")));
    }
}

fn record(step: u64) -> Record {
    Record::new(step).number("loss", 1.0 / step as f64).numbers("norms", &[0.5, 0.25]).with("stage", "cot")
}

fn write(lines: &mut Lines, steps: std::ops::RangeInclusive<u64>) {
    for step in steps {
        lines.write(record(step)).unwrap();
        // An evaluation stands beside the update of its step.
        if step.is_multiple_of(4) {
            lines.write(Record::new(step).with("accuracy", 0.5)).unwrap();
        }
    }
}

#[test]
fn a_resumed_file_equals_an_uninterrupted_one() {
    let place = tempfile::tempdir().unwrap();
    let whole = place.path().join("whole.jsonl");
    write(&mut Lines::create(&whole, "metrics").unwrap(), 1..=10);
    let whole = fs::read(&whole).unwrap();
    assert!(whole.starts_with(b"{\"schema\":1,\"what\":\"metrics\"}\n{\"step\":1,\"loss\":1.0,"));
    let path = place.path().join("cut.jsonl");
    // Killed in the middle of any line after step 4, resumed from step 4.
    write(&mut Lines::create(&path, "metrics").unwrap(), 1..=4);
    let shortest = fs::metadata(&path).unwrap().len() as usize;
    for length in shortest..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let (mut lines, cut) = Lines::resume(&path, "metrics", 4).unwrap();
        assert_eq!(cut.torn, whole[length - 1] != b'\n', "{length}");
        let ends = whole[shortest..length].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(cut.lines, ends, "{length}");
        write(&mut lines, 5..=10);
        assert_eq!(fs::read(&path).unwrap(), whole, "{length}");
    }
    // Killed while the header was written, or before there was a file.
    for length in [0, 5] {
        fs::write(&path, &whole[..length]).unwrap();
        let (mut lines, cut) = Lines::resume(&path, "metrics", 0).unwrap();
        assert_eq!(cut, Cut { lines: 0, torn: length > 0 });
        write(&mut lines, 1..=10);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    fs::remove_file(&path).unwrap();
    write(&mut Lines::resume(&path, "metrics", 0).unwrap().0, 1..=10);
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn a_run_folder_cuts_its_lines() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run");
    let folder = run(&path);
    write(&mut folder.metrics(None).unwrap().0, 1..=6);
    drop(folder);
    let folder = RunFolder::create(&path, Existing::Resume).unwrap();
    assert_eq!(folder.metrics(Some(5)).unwrap().1, Cut { lines: 1, torn: false });
    // Resumed before the first checkpoint: from the beginning.
    drop(folder.metrics(None).unwrap());
    assert_eq!(fs::read_to_string(path.join("metrics.jsonl")).unwrap().lines().count(), 1);
    assert_eq!(folder.samples(Some(5)).unwrap().1, Cut::default());
    assert!(path.join("samples.jsonl").is_file());
}

#[test]
fn damaged_lines_are_named() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.jsonl");
    let fails = |text: &str| {
        fs::write(&path, text).unwrap();
        Lines::resume(&path, "metrics", 9).map(|_| ()).unwrap_err().to_string()
    };
    let header = "{\"schema\":1}\n";
    says(
        &fails(&format!("{header}{{\"step\":1}}\nxx\n{{\"step\":2}}\n")),
        &["line 3 is not JSON", "damaged"],
    );
    says(&fails(&format!("{header}{{\"loss\":1}}\n")), &["line 2 has no step"]);
    says(&fails("{\"schema\":7}\n"), &["schema 7, expected 1"]);
    says(&fails("{\"step\":1}\n"), &["schema none, expected 1"]);
    // Nothing is cut off before everything was understood.
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n");
    let message = Lines::create(&path, "metrics").map(|_| ()).unwrap_err().to_string();
    says(&message, &["metrics.jsonl", "cannot create"]);
}

#[test]
fn numbers_that_are_not_finite_are_null_and_named() {
    let value = Record::new(3)
        .number("loss", f64::NAN)
        .number("reward", 0.25)
        .numbers("norms", &[1.0, f64::INFINITY])
        .maybe("kl", None)
        .maybe("entropy", Some(f64::NEG_INFINITY))
        .into_value();
    assert_eq!(
        value.to_string(),
        "{\"step\":3,\"loss\":null,\"reward\":0.25,\"norms\":[1.0,null],\"entropy\":null,\
         \"nonfinite\":[\"loss\",\"norms[1]\",\"entropy\"]}"
    );
}

#[test]
fn a_line_is_found_by_its_number() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("samples.jsonl");
    write(&mut Lines::create(&path, "samples").unwrap(), 1..=3);
    assert_eq!(line(&path, 1).unwrap()["what"], "samples");
    assert_eq!(line(&path, 4).unwrap()["step"], 3);
    says(&line(&path, 5).unwrap_err().to_string(), &["has 4 lines, no line 5", "header"]);
}
