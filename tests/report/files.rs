//! What is read and told: samples, whole runs, and files that are torn, missing or no run's.

use super::*;
use crate::binaries::{refuses, run as start, stderr, stdout};
use crate::story;
use tempfile::TempDir;

#[test]
fn texts_cannot_break_out_of_the_page() {
    let home = TempDir::new().unwrap();
    let evil = "</td><script>alert(\"1\")</script> & 'q' \u{0}\u{1b}[31m\u{202e}back\u{feff}\u{fffe}\r\n\t]]> <!-- é 😀";
    let part = "a<b>&\"c'\u{7}";
    let all =
        [1, 2].map(|n| update(part, n, 0.5 * n as f64, json!({"</title><svg onload=x>": n, "t": "text"})));
    let path = folder(home.path(), "run <&>", &[], &all);
    let sample = json!({"step": 2, "part": part, "update": 2, "question": evil, "gold": "&amp;", "answer": evil,
                        "reward": 1.0, "advantage": 0.5, "ids": [1, 2], "logprobs": [-0.1, null]});
    lines(&path, "samples", &[sample]);
    fs::write(path.join("environment.json"), json!({"device": evil}).to_string()).unwrap();
    let (_, text) = drawn(&path);
    let document = parsed(&text);
    let shown = evil
        .replace('\u{0}', "␀")
        .replace('\u{1b}', "␛")
        .replace('\u{202e}', "[U+202E]")
        .replace('\u{fffe}', "\u{fffd}")
        .replace('\r', "␍");
    let cells: Vec<String> = named(document.root(), "td").map(all_text).collect();
    assert_eq!(cells.iter().filter(|cell| **cell == shown).count(), 3, "{cells:#?}");
    assert!(cells.contains(&"&amp;".to_string()));
    assert!(Seen::find(&document, "</title><svg onload=x>").is_some());
    assert_eq!(named(document.root(), "h1").map(all_text).collect::<Vec<_>>(), ["run <&>"]);
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!text.contains(control));
    // A name must not be able to end the style sheet, and the sheet itself must mean the same in HTML and XML.
    let style = all_text(named(document.root(), "style").next().unwrap());
    assert!(!style.contains(['<', '&']) && style.contains("prefers-color-scheme: dark"));
}

#[test]
fn torn_and_malformed_lines_are_counted() {
    let home = TempDir::new().unwrap();
    let all: Vec<Value> = (1..=5).map(|n| update("temp", n, noise(n), json!({}))).collect();
    let path = folder(home.path(), "run", &[], &all);
    let metrics = path.join("metrics.jsonl");
    let mut text = fs::read_to_string(&metrics).unwrap().into_bytes();
    text.extend_from_slice(b"not json\n[1, 2]\n{\"part\": \"temp\", \"reward\": 1}\n\xff\xfe\n\n");
    text.extend_from_slice(update("temp", 6, 0.25, json!({})).to_string().as_bytes());
    text.extend_from_slice(b"\n{\"step\": 7, \"part\": \"temp\", \"upd");
    fs::write(&metrics, text).unwrap();
    let sample = |n: u64, reward: Value| json!({"step": n, "part": "temp", "update": n, "answer": "x", "reward": reward});
    lines(&path, "samples", &[sample(1, json!(1.0)), sample(1, Value::Null), sample(1, json!("one"))]);
    fs::remove_file(path.join("environment.json")).unwrap();

    let output = start(REPORT, &[path.to_str().unwrap(), "--json"]);
    let line = stdout(&output);
    assert_eq!(line.lines().count(), 1);
    let found: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(found["report"], path.join("report.html").display().to_string());
    assert_eq!((&found["torn_files"], &found["malformed_lines"]), (&json!(1), &json!(6)));
    assert_eq!((&found["missing_files"], &found["values_not_finite"]), (&json!(1), &json!(0)));
    let text = fs::read_to_string(path.join("report.html")).unwrap();
    let document = parsed(&text);
    let told: Vec<String> =
        named(classed(document.root(), "problems").next().unwrap(), "li").map(all_text).collect();
    let told = told.join("\n");
    for words in [
        "metrics.jsonl: its last line is torn",
        "metrics.jsonl: 5 malformed lines left out, the first is line 7",
        "samples.jsonl: 1 malformed line left out, the first is line 4",
        "samples.jsonl: 1 rollouts have no finite reward",
        "environment.json: is not there",
    ] {
        assert!(told.contains(words), "`{words}` is missing in: {told}");
        assert!(
            found["problems"].as_array().unwrap().iter().any(|p| p.as_str().unwrap().contains(words)),
            "{words}"
        );
    }
    let reward = Seen::of(&document, "Mean reward of an update");
    assert_eq!(reward.values("temp", "line").len(), 6);
    assert!(
        all_text(document.root())
            .contains("Not finished: 6 updates so far, the last one is update 6 of temp.")
    );
}

#[test]
fn best_and_worst_of_the_last_updates_are_shown() {
    let home = TempDir::new().unwrap();
    let path = folder(home.path(), "run", &[], &[update("temp", 1, 0.5, json!({}))]);
    let mut all = Vec::new();
    for update in 1..=6_u64 {
        for rollout in 0..5 {
            let reward = if update == 6 {
                1.0
            } else {
                f64::from(u8::from(rollout == 3)) - f64::from(u8::from(rollout == 1))
            };
            all.push(json!({"step": update, "part": "temp", "update": update, "question": "q",
                            "answer": format!("{update}.{rollout} {}", "long ".repeat(200)), "reward": reward}));
        }
    }
    lines(&path, "samples", &all);
    let (_, text) = drawn(&path);
    let document = parsed(&text);
    let table = classed(document.root(), "samples").next().unwrap();
    let rows: Vec<Vec<String>> =
        named(table, "tr").skip(1).map(|row| row.children().map(all_text).collect()).collect();
    let seen: Vec<[&str; 4]> = rows
        .iter()
        .map(|row| [row[0].as_str(), &row[1], row[6].split(' ').next().unwrap(), &row[7]])
        .collect();
    let expected = [
        ["6", "all 5 equal", "6.0", "27"],
        ["5", "✓ best", "5.3", "25"],
        ["5", "✗ worst", "5.1", "23"],
        ["4", "✓ best", "4.3", "20"],
        ["4", "✗ worst", "4.1", "18"],
        ["3", "✓ best", "3.3", "15"],
        ["3", "✗ worst", "3.1", "13"],
    ];
    assert_eq!(seen, expected);
    assert!(rows[0][6].ends_with("… (404 characters more)"), "{}", rows[0][6]);
}

#[test]
fn what_is_no_run_is_refused() {
    let home = TempDir::new().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    let report = |arguments: &[&str]| start(REPORT, arguments);
    refuses(&report(&[]), 2, &["RUN"]);
    refuses(
        &report(&[&at("nowhere")]),
        2,
        &["nowhere", "is not there, expected the folder of a run", "runs/default-01"],
    );
    fs::write(home.path().join("file"), "").unwrap();
    refuses(&report(&[&at("file")]), 2, &["is a file, expected the folder of a run"]);
    fs::create_dir(home.path().join("empty")).unwrap();
    refuses(&report(&[&at("empty")]), 2, &["empty", "holds no run (it has no recipe.toml)", "train"]);

    let path = folder(home.path(), "young", &[], &[]);
    refuses(
        &report(&[&at("young")]),
        2,
        &["metrics.jsonl", "has no update that can be read", "first update"],
    );
    fs::remove_file(path.join("metrics.jsonl")).unwrap();
    refuses(&report(&[&at("young")]), 2, &["metrics.jsonl", "is not there", "first update"]);
    fs::write(path.join("metrics.jsonl"), "{\"schema\": 7}\n").unwrap();
    refuses(&report(&[&at("young")]), 2, &["line 1 names schema 7, expected 1", "version"]);
    assert!(!path.join("report.html").exists());

    let path = folder(home.path(), "run", &[], &[update("temp", 1, 0.5, json!({}))]);
    let metrics = path.join("metrics.jsonl").display().to_string();
    let before = fs::read(&metrics).unwrap();
    refuses(&report(&[&at("run"), "--out", &metrics]), 2, &["is there already and is no report", "--out"]);
    assert_eq!(fs::read(&metrics).unwrap(), before);
    refuses(
        &report(&[&at("run"), "--out", &at("empty")]),
        2,
        &["is a folder, expected the name of the report"],
    );
    refuses(
        &report(&[&at("run"), "--out", &at("no/r.html")]),
        2,
        &["is no folder, expected that of the report"],
    );
    // A report is replaced by the next one.
    assert_eq!(stdout(&report(&[&at("run")])), stdout(&report(&[&at("run")])));
}

#[test]
fn a_story_is_told_as_its_summary_has_it() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("run");
    story::straight(&story::recipe(&[]), &path);
    let (_, text) = drawn(&path);
    let document = parsed(&text);
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(path.join("summary.json")).unwrap()).unwrap();
    let rows: Vec<Vec<String>> =
        named(document.root(), "tr").map(|row| row.children().map(all_text).collect()).collect();
    let percent = |value: &Value| format!("{:.1}", 100.0 * value.as_f64().unwrap());
    let share = |share: &Value| {
        format!("{} [{}, {}]", percent(&share["value"]), percent(&share["low"]), percent(&share["high"]))
    };
    let models = summary["models"].as_array().unwrap();
    let names: Vec<&str> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["coconut", "temp", "dropout_all", "sft"]);
    for model in models {
        let accuracy = share(&model["det"]["accuracy"]);
        let row = rows.iter().find(|row| row[0] == model["name"].as_str().unwrap() && row[1] == accuracy);
        let row = row.unwrap_or_else(|| panic!("{accuracy} of {} in {rows:?}", model["name"]));
        assert!(row.contains(&percent(&model["removed"]["value"])), "{row:?}");
        if let Some(p) = model["against_coconut"]["mcnemar_p"].as_f64() {
            assert_eq!(row[3], format!("{p:.3}"));
        }
    }
    for stage in summary["stages"].as_array().unwrap() {
        let name = stage["name"].as_str().unwrap();
        assert!(
            rows.iter().any(|row| row[0] == name && row.get(3) == Some(&share(&stage["accuracy"]))),
            "{name}"
        );
    }
    // Each update of each arm, and each key of the metrics, is somewhere.
    let reward = Seen::of(&document, "Mean reward of an update");
    for arm in ["temp", "dropout_all"] {
        assert_eq!(reward.values(arm, "line").len(), 4);
        assert_eq!(reward.values(arm, "dot").len(), 2);
        assert!(Seen::find(&document, &format!("Groups of an update: {arm}")).is_some());
    }
    let metrics = fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    let mut keys: HashSet<String> = HashSet::new();
    for line in metrics.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        keys.extend(line.as_object().unwrap().keys().cloned());
    }
    assert!(
        keys.contains("latent_norm")
            && Seen::find(&document, "Norm of the latents (mean over steps)").is_some()
    );
    assert!(classed(document.root(), "samples").next().is_some_and(|table| all_text(table).contains("best")));
}

#[test]
fn train_draws_its_report_and_does_not_fail_without_it() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("run");
    let out = path.to_str().unwrap();
    let shown = stdout(&crate::binaries::train(&["--out", out, "--set", "grpo.arms=[]"]));
    assert!(shown.ends_with(&format!("its report: {out}/report.html\n")), "{shown}");
    let page = fs::read_to_string(path.join("report.html")).unwrap();
    let document = parsed(&page);
    assert_eq!(named(document.root(), "h1").map(all_text).collect::<Vec<_>>(), ["run"]);
    assert!(classed(document.root(), "problems").next().is_none(), "{page}");

    fs::remove_file(path.join("report.html")).unwrap();
    fs::create_dir(path.join("report.html")).unwrap();
    let output = start(env!("CARGO_BIN_EXE_train"), &["--resume", "--quiet", "--out", out]);
    assert!(!stdout(&output).contains("its report"));
    let log = fs::read_to_string(path.join("log.txt")).unwrap();
    for text in [stderr(&output), log] {
        assert!(
            text.contains("warning: the report was not written") && text.contains("is a folder"),
            "{text}"
        );
    }
}
