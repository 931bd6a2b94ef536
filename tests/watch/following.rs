//! Files that grow while they are watched.

use super::*;
use latch::run::folder::{Existing, RunFolder};
use latch::run::watch::State;
use std::sync::atomic::{AtomicBool, Ordering};

/// An update whose numbers depend on `seed`, as a second try of the same run has other times.
fn line(part: &str, n: u64, seed: u64) -> String {
    let keys = json!({"groups/live": n % 3, "groups/all_wrong": 1, "groups/all_right": 0, "entropy": noise(n + seed),
                      "replay_gap": 0.0, "audited": 1, "timing_s/step": 0.5 + noise(n * 31 + seed)});
    format!("{}\n", update(part, n, noise(n * 7 + seed), keys))
}

fn rollout(n: u64, seed: u64) -> String {
    let reward = noise(n + seed);
    format!(
        "{}\n",
        json!({"step": n, "part": "temp", "update": n, "question": "q", "gold": "1", "answer": format!("{n}"), "reward": reward})
    )
}

/// Whatever becomes of the files, following them comes to what reading them from the beginning comes to.
#[test]
fn what_is_followed_is_what_is_there() {
    let home = TempDir::new().unwrap();
    let path = folder(home.path(), "run", &[], &[]);
    let lock = File::open(&path).unwrap();
    lock.lock().unwrap();
    let now = SystemTime::now() + Duration::from_secs(3600);
    let mut watch = Watch::open(&path).unwrap();
    let (mut n, mut torn, mut kinds) = (0, String::new(), [0; 6]);
    for round in 0..300_u64 {
        let kind = (noise(round * 101 + 5) * 6.0) as usize;
        kinds[kind] += 1;
        match kind {
            // Whole lines, after the rest of a torn one.
            0 | 1 => {
                append(&path, "metrics.jsonl", &std::mem::take(&mut torn));
                for _ in 0..=round % 4 {
                    n += 1;
                    append(
                        &path,
                        "metrics.jsonl",
                        &line(if n % 90 > 45 { "dropout_all" } else { "temp" }, n, round),
                    );
                    append(&path, "samples.jsonl", &rollout(n, round));
                }
                append(
                    &path,
                    "log.txt",
                    &format!("after {n} updates of temp, validation: accuracy 0.{round:04} of 9\n"),
                );
            }
            // Half a line.
            2 if torn.is_empty() => {
                n += 1;
                let whole = line("temp", n, round);
                let (begin, rest) = whole.split_at(whole.len() / 2);
                append(&path, "metrics.jsonl", begin);
                torn = rest.to_string();
            }
            // Cut back and grown past where it was, before anybody looked.
            3 => {
                let file = OpenOptions::new().write(true).open(path.join("metrics.jsonl")).unwrap();
                let text = fs::read_to_string(path.join("metrics.jsonl")).unwrap();
                let kept: Vec<&str> =
                    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
                let kept: usize = kept[..1 + (kept.len() - 1) / 2].iter().map(|line| line.len()).sum();
                file.set_len(kept as u64).unwrap();
                n /= 2;
                torn.clear();
                if round % 2 == 0 {
                    let longer = text.len();
                    while (fs::metadata(path.join("metrics.jsonl")).unwrap().len() as usize) < longer + 200 {
                        n += 1;
                        append(&path, "metrics.jsonl", &line("temp", n, round + 1000));
                    }
                }
            }
            // Replaced.
            4 if round % 5 == 0 => {
                n = 3;
                torn.clear();
                let text: String = (1..=n).map(|n| line("temp", n, round)).collect();
                fs::write(path.join("other"), format!("{}\n{text}", json!({"schema": 1, "what": "metrics"})))
                    .unwrap();
                fs::rename(path.join("other"), path.join("metrics.jsonl")).unwrap();
            }
            5 if round % 7 == 0 => {
                n = 0;
                torn.clear();
                lines(&path, "metrics", &[]);
                let _ = fs::remove_file(path.join("samples.jsonl"));
                let _ = fs::remove_file(path.join("log.txt"));
            }
            _ => append(&path, "metrics.jsonl", ""),
        }
        read(&mut watch, now);
        let (found, expected) = (watch.facts(now).json(), fresh(&path, now).json());
        // Both look at the size now and then, not at the same moments.
        let without = |mut facts: Value| {
            facts["disk"] = Value::Null;
            facts
        };
        assert_eq!(without(found), without(expected), "round {round}, kind {kind}");
        assert!(!read(&mut watch, now), "nothing new, round {round}");
    }
    assert!(kinds.iter().all(|count| *count > 10), "{kinds:?}");
}

#[test]
fn a_run_waits_works_stops_goes_on_and_ends() {
    let home = TempDir::new().unwrap();
    let path = folder(home.path(), "run", &[], &[]);
    let now = SystemTime::now();
    let mut watch = Watch::open(&path).unwrap();
    let look = |watch: &mut Watch, later: u64| {
        let now = now + Duration::from_secs(later);
        read(watch, now);
        let facts = watch.facts(now);
        (facts.state, facts.sentence.clone(), facts)
    };
    let (state, words, _) = look(&mut watch, 1);
    assert_eq!((state, words.as_str()), (State::Waiting, "no update yet: waiting for the first"));
    assert!(!watch.ended());
    let held = RunFolder::create(&path, Existing::Resume).unwrap();
    let (state, words, _) = look(&mut watch, 2);
    assert_eq!(state, State::Waiting);
    assert!(words.starts_with("at work: no update yet"), "{words}");

    // A part begins; its updates come; half a line is none, null is a gap.
    append(&path, "log.txt", "temp: 120 updates, 0 done\n");
    let (state, _, facts) = look(&mut watch, 3);
    assert_eq!(
        (state, facts.part.as_ref().map(|part| (part.update, part.updates))),
        (State::AtWork, Some((0, Some(120))))
    );
    append(&path, "metrics.jsonl", &format!("{}{}", line("temp", 1, 0), line("temp", 2, 0)));
    let third = line("temp", 3, 0).replace(&format!("\"reward\":{}", noise(21)), "\"reward\":null");
    assert!(third.contains("null"));
    append(&path, "metrics.jsonl", &third[..20]);
    let (_, words, facts) = look(&mut watch, 10);
    assert!(words.starts_with("at work; last line "), "{words}");
    assert_eq!(facts.step, 2);
    append(&path, "metrics.jsonl", &third[20..]);
    let (_, _, facts) = look(&mut watch, 11);
    let reward = &facts.json()["curves"]["reward"];
    assert_eq!(
        (&reward["values"], &reward["not_finite"], &reward["last"]),
        (&json!(3), &json!(1), &Value::Null)
    );
    assert!((reward["high"].as_f64().unwrap() - noise(7).max(noise(14))).abs() < 1e-12);
    // By the pace of the updates so far.
    let pace = (1..=3).map(|n| 0.5 + noise(n * 31)).sum::<f64>() / 3.0;
    assert!((facts.left.part.unwrap() - 117.0 * pace).abs() < 1e-9);
    assert!(facts.problems.iter().any(|words| words.contains("not finite")), "{:?}", facts.problems);

    // Silent, then gone.
    let (state, words, _) = look(&mut watch, 500);
    assert_eq!(state, State::AtWork);
    assert!(words.starts_with("at work, but nothing was written for"), "{words}");
    drop(held);
    for _ in 0..3 {
        look(&mut watch, 20);
    }
    let (state, words, _) = look(&mut watch, 20);
    assert_eq!(state, State::Stopped);
    assert!(
        words.contains("stopped or killed") && words.contains("no checkpoint") && watch.ended(),
        "{words}"
    );
    fs::create_dir_all(path.join("checkpoints/step-000003")).unwrap();
    let (_, words, facts) = look(&mut watch, 20);
    assert!(words.contains("--resume --out"), "{words}");
    assert_eq!(facts.checkpoint.map(|checkpoint| checkpoint.step), Some(3));

    // Gone on with, and over.
    let held = RunFolder::create(&path, Existing::Resume).unwrap();
    append(&path, "log.txt", "going on after step 2 of x\n");
    let (state, _, facts) = look(&mut watch, 21);
    assert!(state == State::AtWork && facts.resumed);
    fs::write(path.join("summary.json"), "{\"steps\": 3}").unwrap();
    assert_eq!(look(&mut watch, 22).0, State::AtWork, "it still draws its report");
    drop(held);
    let (state, words, facts) = look(&mut watch, 23);
    assert!(state == State::Ended && watch.ended() && words.starts_with("ended "), "{words}");
    assert_eq!(facts.json()["summary"]["steps"], 3);
    fs::remove_dir_all(&path).unwrap();
    let gone = watch.poll(now).unwrap_err();
    assert!(gone.exit_code() == 2 && gone.to_string().contains("is not there any more"), "{gone}");
}

/// An old run that nobody is at work in is over at the first look; one that was written to just now may live elsewhere.
#[test]
fn an_old_run_without_a_process_has_stopped() {
    let home = TempDir::new().unwrap();
    let path = folder(home.path(), "run", &[], &[update("temp", 1, 0.5, json!({}))]);
    assert_eq!(fresh(&path, SystemTime::now()).state, State::Unknown);
    assert_eq!(fresh(&path, SystemTime::now() + Duration::from_secs(120)).state, State::Stopped);
}

#[test]
fn who_watches_is_in_nobodys_way() {
    let home = TempDir::new().unwrap();
    let path = folder(home.path(), "run", &[], &[update("temp", 1, 0.5, json!({}))]);
    let before: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut watch = Watch::open(&path).unwrap();
            while !done.load(Ordering::Relaxed) {
                read(&mut watch, SystemTime::now());
            }
        });
        let refused = (0..200).filter(|_| RunFolder::create(&path, Existing::Resume).is_err()).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(refused, 0);
    });
    fs::remove_file(path.join("log.txt")).unwrap();
    let after: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(before, after);
}
