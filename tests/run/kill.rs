//! Checkpoints under SIGKILL at random moments, and on a disk that is full.

use super::{all_bits, says, small, update};
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::learn::optimizer::{Optimizer, Settings};
use latch::model::save::Companions;
use latch::model::{Model, Precision};
use latch::run::checkpoints::{Checkpoint, Checkpoints, Keep, TrainState, latest};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FOLDER: &str = "LATCH_TEST_CHECKPOINTS";
const KEEP: Keep = Keep { last: 2, best: false };
const KILLS: u64 = 36;

/// This test binary again, running one of its ignored tests.
fn myself(test: &str) -> Vec<String> {
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_string();
    let test = format!("run::kill::{test}");
    [&program, "--exact", &test, "--ignored", "--nocapture", "--test-threads=1"].map(str::to_string).to_vec()
}

fn restored(checkpoint: &Checkpoint) -> (Model, Optimizer) {
    let model = checkpoint.model(&Device::cpu(), Precision::of(Dtype::F32)).unwrap();
    let mut optimizer = Optimizer::new(&model, Settings::default()).unwrap();
    checkpoint.restore(&model, &mut optimizer).unwrap();
    (model, optimizer)
}

/// The job of the process that is killed: goes on from the newest checkpoint, updates, saves, says so, forever.
/// Every third step is saved twice, so that replacing a checkpoint is killed too.
#[test]
#[ignore = "started by kills_at_random_moments_lose_at_most_one_save"]
fn saves_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let checkpoints = Checkpoints::open(Path::new(&folder), KEEP).unwrap();
    let (mut model, mut optimizer) = match checkpoints.latest().unwrap().checkpoint {
        Some(checkpoint) => restored(&checkpoint),
        None => small(Precision::of(Dtype::F32)),
    };
    let first = optimizer.step() + 1;
    println!("\nready");
    for step in first.. {
        update(&mut model, &mut optimizer, step);
        let state = TrainState { job: format!("step {step}"), score: None };
        for _ in 0..if step % 3 == 0 { 2 } else { 1 } {
            checkpoints.save(step, &model, Some(&optimizer), &state, &Companions::default()).unwrap();
            println!("saved {step}");
        }
    }
}

/// Kills the child after `delay`, and returns the last step that it said was saved.
fn kill_after(mut child: Child, delay: Duration) -> Option<u64> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap_or_default());
    assert!(lines.any(|line| line == "ready"), "the child did not start");
    std::thread::sleep(delay);
    // On Unix this is SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    lines.filter_map(|line| line.strip_prefix("saved ")?.parse().ok()).last()
}

#[test]
fn kills_at_random_moments_lose_at_most_one_save() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("checkpoints");
    let mut draws = StreamKey::new(3, 0, 0, 0, Purpose::Probe).draws(0, 0);
    // What an uninterrupted run would hold, as far as it was compared.
    let (mut model, mut optimizer) = small(Precision::of(Dtype::F32));
    // Disks differ: kill within the time of a few saves.
    let beside = Checkpoints::open(&place.path().join("beside"), KEEP).unwrap();
    let started = Instant::now();
    let state = TrainState { job: String::new(), score: None };
    for step in 1..=3 {
        beside.save(step, &model, Some(&optimizer), &state, &Companions::default()).unwrap();
    }
    let window = (2 * started.elapsed()).as_micros() as usize;
    let (mut reported, mut in_the_middle) = (0, 0);
    for kill in 0..KILLS {
        let command = myself("saves_until_it_is_killed");
        let child = Command::new(&command[0])
            .args(&command[1..])
            .env(FOLDER, &folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = kill_after(child, Duration::from_micros(draws.below(window) as u64));
        reported = said.unwrap_or(reported).max(reported);
        let hidden = |entry: std::io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))
        };
        in_the_middle += u64::from(folder.is_dir() && fs::read_dir(&folder).unwrap().any(hidden));
        let found = latest(&folder).unwrap();
        assert!(found.skipped.is_empty(), "kill {kill}: {:?}", found.skipped);
        let Some(checkpoint) = found.checkpoint else {
            assert_eq!(reported, 0, "kill {kill}: the checkpoint that was reported is gone");
            continue;
        };
        // One more may be there than was said.
        let step = checkpoint.step();
        assert!(step == reported || step == reported + 1, "kill {kill}: step {step}, reported {reported}");
        reported = step;
        assert_eq!(checkpoint.state().job, format!("step {step}"));
        while optimizer.step() < step {
            let next = optimizer.step() + 1;
            update(&mut model, &mut optimizer, next);
        }
        let (found_model, found_optimizer) = restored(&checkpoint);
        assert_eq!(all_bits(&found_model, &found_optimizer), all_bits(&model, &optimizer), "kill {kill}");
    }
    assert!(reported > 0, "no child saved anything");
    assert!(in_the_middle > KILLS / 4, "only {in_the_middle} of {KILLS} kills hit a save");
    // The next one that writes clears away what the killed ones left.
    Checkpoints::open(&folder, KEEP).unwrap();
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with("step-") && !name.ends_with("-again"), "{name} is left");
    }
}

/// Runs by itself only in the process that [`a_full_disk_leaves_the_old_checkpoints`] starts.
#[test]
#[ignore = "started by a_full_disk_leaves_the_old_checkpoints"]
fn saves_in_a_process_with_a_small_limit() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let checkpoints = Checkpoints::open(Path::new(&folder), KEEP).unwrap();
    let (model, optimizer) = restored(&checkpoints.latest().unwrap().checkpoint.unwrap());
    let state = TrainState { job: String::new(), score: None };
    let error = checkpoints.save(2, &model, Some(&optimizer), &state, &Companions::default()).unwrap_err();
    println!("refused: {error}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_checkpoints() {
    let place = tempfile::tempdir().unwrap();
    let (mut model, mut optimizer) = small(Precision::of(Dtype::F32));
    update(&mut model, &mut optimizer, 1);
    let state = TrainState { job: String::new(), score: None };
    let checkpoints = Checkpoints::open(place.path(), KEEP).unwrap();
    let path = checkpoints.save(1, &model, Some(&optimizer), &state, &Companions::default()).unwrap();
    let kib = |name: &str| fs::metadata(path.join(name)).unwrap().len() >> 10;
    let (weights, moments) = (kib("model.safetensors"), kib("train_state.safetensors"));
    assert!(weights > 32 && moments > weights + 32);
    // The system itself refuses to write more to a file, as a full disk would: in the weights, then in the moments.
    for (limit, file) in [(weights / 2, "model.safetensors"), (weights + 16, "train_state.safetensors")] {
        let command = myself("saves_in_a_process_with_a_small_limit");
        let output = Command::new("bash")
            .args(["-c", &format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"")])
            .args(&command)
            .env(FOLDER, place.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        says(&text, &["refused: ", "step-000002", file, "cannot write", "ulimit"]);
        let names: Vec<_> = fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["step-000001"], "something was left or lost");
        let found = latest(place.path()).unwrap().checkpoint.unwrap();
        let (found_model, found_optimizer) = restored(&found);
        assert_eq!(all_bits(&found_model, &found_optimizer), all_bits(&model, &optimizer));
    }
}
