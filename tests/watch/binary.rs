//! The binary: once, as JSON, following, refusals; a real run; a long one.

use super::*;
use crate::binaries::{refuses, run as start, stderr, stdout, train};
use std::io::{BufRead, BufReader, BufWriter};
use std::process::{Command, Stdio};

const WATCH: &str = env!("CARGO_BIN_EXE_watch");

fn json_of(path: &Path) -> Value {
    let text = stdout(&start(WATCH, &[path.to_str().unwrap(), "--json"]));
    assert_eq!(text.lines().count(), 1);
    serde_json::from_str(&text).unwrap()
}

/// The same but for the last place of numbers, which reading and writing them again may change.
#[track_caller]
fn same(found: &Value, expected: &Value) {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.len(), b.len());
            b.iter().for_each(|(key, value)| same(&a[key], value));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| same(a, b));
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} and {b}");
        }
        _ => assert_eq!(found, expected),
    }
}

/// Everything that is shown of a real run is what its own summary and its own terminal say.
#[test]
fn a_real_run_is_shown_as_it_was() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("run");
    let arms = "grpo.arms=[\"sft\", \"dropout_all\", \"temp\"]";
    let output = train(&["--out", path.to_str().unwrap(), "--set", arms, "--set", "run.log_every=1"]);
    let tables = stdout(&output);
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(path.join("summary.json")).unwrap()).unwrap();
    let before: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let shown = json_of(&path);
    assert_eq!((&shown["state"], &shown["step"]), (&json!("ended"), &summary["steps"]));
    same(&shown["summary"], &summary);
    assert_eq!(shown["problems"], json!([]));
    let part = &shown["part"];
    assert_eq!(
        (&part["name"], &part["kind"], &part["update"], &part["updates"]),
        (&json!("temp"), &json!("arm"), &json!(3), &json!(3))
    );
    assert_eq!(part["number"], part["parts"]);
    for model in summary["models"].as_array().unwrap() {
        let name = model["name"].as_str().unwrap();
        let asked = shown["evaluations"]
            .as_array()
            .unwrap()
            .iter()
            .find(|asked| asked["what"] == format!("{name}, test"));
        let asked = asked.unwrap_or_else(|| panic!("{name} in {shown:#}"));
        let accuracy = |value: &Value| value.as_f64().unwrap();
        assert!(
            (accuracy(&asked["accuracy"]) - accuracy(&model["det"]["accuracy"]["value"])).abs() < 1e-4,
            "{name}"
        );
        assert_eq!(asked["problems"], model["det"]["problems"]);
        let Some(arm) = shown["arms"].get(name) else {
            assert!(["coconut", "sft"].contains(&name), "{name}");
            continue;
        };
        for key in arm.as_object().unwrap().keys() {
            assert_eq!(arm[key], model["tally"][key], "{key} of {name}");
        }
        assert_eq!(arm["updates"], 3);
    }
    for stage in summary["stages"].as_array().unwrap() {
        let what = format!("after {}, validation", stage["name"].as_str().unwrap());
        let asked =
            shown["evaluations"].as_array().unwrap().iter().find(|asked| asked["what"] == what).unwrap();
        assert!(
            (asked["accuracy"].as_f64().unwrap() - stage["accuracy"]["value"].as_f64().unwrap()).abs() < 1e-4
        );
    }
    assert_eq!(shown["checkpoint"]["step"], summary["steps"]);

    // The last step line is the one that train printed, and its tables stand below.
    let view = stdout(&start(WATCH, &[path.to_str().unwrap()]));
    let printed = stderr(&output);
    let line =
        view.lines().find(|line| line.trim_start().starts_with("3/3")).unwrap_or_else(|| panic!("{view}"));
    assert!(printed.lines().any(|other| other == line), "{line}\n{printed}");
    assert!(printed.contains("reward       groups") && view.contains("reward       groups"));
    let closing = &view[view.find("stage ").unwrap()..];
    assert!(tables.starts_with(closing), "{closing}\n{tables}");
    assert!(!view.contains('\x1b'));
    let after: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(before, after, "nothing is written");
}

#[test]
fn an_object_comes_with_each_change_until_the_run_ends() {
    let home = TempDir::new().unwrap();
    let path = folder(home.path(), "run", &[], &[]);
    let lock = File::open(&path).unwrap();
    lock.lock().unwrap();
    let mut child = Command::new(WATCH)
        .args([path.to_str().unwrap(), "--json", "--follow"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut objects = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&objects.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["state"], "waiting");
    for n in 1..=3_u64 {
        append(
            &path,
            "metrics.jsonl",
            &format!("{}\n", update("temp", n, 0.25 * n as f64, json!({"groups/live": n}))),
        );
        let shown = next();
        assert_eq!((&shown["state"], &shown["step"]), (&json!("at work"), &json!(n)));
        assert_eq!(shown["curves"]["reward"]["last"], json!(0.25 * n as f64));
        assert_eq!(shown["curves"]["live groups"]["high"], json!(n as f64));
    }
    fs::write(path.join("summary.json"), "{}").unwrap();
    drop(lock);
    // The summary may be seen before the folder is free.
    let last = std::iter::from_fn(|| Some(next())).find(|shown| shown["state"] == "ended").unwrap();
    assert_eq!(last["step"], 3);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_is_no_run_is_refused_and_a_young_run_is_not() {
    let home = TempDir::new().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    refuses(&start(WATCH, &[]), 2, &["RUN"]);
    refuses(
        &start(WATCH, &[&at("nowhere")]),
        2,
        &["nowhere", "is not there, expected the folder of a run", "runs/default-01"],
    );
    fs::write(home.path().join("file"), "").unwrap();
    refuses(&start(WATCH, &[&at("file")]), 2, &["is a file, expected the folder of a run"]);
    fs::create_dir(home.path().join("empty")).unwrap();
    refuses(&start(WATCH, &[&at("empty")]), 2, &["holds no run (it has no recipe.toml)"]);
    refuses(&start(WATCH, &[&at("empty"), "--once", "--keep"]), 2, &["--keep"]);
    let path = folder(home.path(), "young", &[], &[]);
    assert!(stdout(&start(WATCH, &[&at("young")])).contains("no update yet: waiting for the first"));
    fs::remove_file(path.join("metrics.jsonl")).unwrap();
    assert_eq!(json_of(&path)["state"], "waiting");
    fs::write(path.join("metrics.jsonl"), "{\"schema\": 7}\n").unwrap();
    refuses(&start(WATCH, &[&at("young")]), 2, &["line 1 names schema 7, expected 1", "version"]);
    // A recipe of another version is no reason to show nothing.
    lines(&path, "metrics", &[update("temp", 4, 0.5, json!({}))]);
    append(&path, "recipe.toml", "\n[unheard]\nof = 1\n");
    let shown = json_of(&path);
    assert_eq!((&shown["step"], &shown["part"]["name"]), (&json!(4), &json!("temp")));
    assert!(shown["problems"][0].as_str().unwrap().contains("recipe.toml"), "{shown:#}");
}

/// A million updates, in less memory than their file.
#[cfg(unix)]
#[test]
fn a_million_updates_take_little_memory() {
    let home = TempDir::new().unwrap();
    let path = folder(home.path(), "run", &[], &[]);
    let updates = 1_000_000_u64;
    for (name, keys) in [
        ("metrics", "\"groups/live\":1,\"entropy\":0.5,\"timing_s/step\":0.25"),
        ("samples", "\"answer\":\"x\""),
    ] {
        let file = OpenOptions::new().append(true).open(path.join(format!("{name}.jsonl"))).unwrap();
        let mut out = BufWriter::new(file);
        for n in 1..=updates {
            let reward = if n == 777_777 { 9.0 } else { f64::from(u8::from(n % 2 == 0)) };
            writeln!(out, "{{\"step\":{n},\"part\":\"temp\",\"update\":{n},\"reward\":{reward},{keys}}}")
                .unwrap();
        }
        out.flush().unwrap();
    }
    assert!(fs::metadata(path.join("metrics.jsonl")).unwrap().len() > 100_000_000);
    // Addresses of 80 MiB, program and libraries included.
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 81920 && exec \"$0\" \"$1\" --json", WATCH, path.to_str().unwrap()])
        .output()
        .unwrap();
    let shown: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let reward = &shown["curves"]["reward"];
    assert_eq!((&shown["step"], &reward["values"]), (&json!(updates), &json!(updates)));
    assert_eq!((&reward["low"], &reward["high"], &reward["last"]), (&json!(0.0), &json!(9.0), &json!(1.0)));
    assert!((reward["mean"].as_f64().unwrap() - 0.5).abs() < 1e-4);
    assert_eq!(shown["updates_s"], json!(0.25 * updates as f64));
    assert_eq!(shown["arms"]["temp"]["live"], json!(updates));
    assert_eq!(shown["samples"]["best"]["answer"], "x");
}
