//! The report of runs: what is drawn reads back as the numbers in the files, the markup is whole, and what is torn,
//! missing or unknown is said and never fatal.

use crate::binaries::{refuses, run as start, stderr, stdout};
use crate::story;
use latch::run::recipe::Recipe;
use latch::run::report::{Written, write};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const REPORT: &str = env!("CARGO_BIN_EXE_report");

/// The folder `name` in `home`, as train leaves one, with these lines of metrics.
fn folder(home: &Path, name: &str, changes: &[&str], metrics: &[Value]) -> PathBuf {
    let path = home.join(name);
    fs::create_dir(&path).unwrap();
    let changes: Vec<String> = changes.iter().map(|text| text.to_string()).collect();
    fs::write(path.join("recipe.toml"), Recipe::resolve(None, &changes).unwrap().to_toml()).unwrap();
    fs::write(path.join("environment.json"), json!({"device": "cpu", "latch": "0"}).to_string()).unwrap();
    lines(&path, "metrics", metrics);
    lines(&path, "samples", &[]);
    path
}

fn lines(path: &Path, what: &str, lines: &[Value]) {
    let header = json!({"schema": 1, "what": what});
    let text: String = [&header].into_iter().chain(lines).map(|line| format!("{line}\n")).collect();
    fs::write(path.join(format!("{what}.jsonl")), text).unwrap();
}

/// Update `n` of an arm, with `keys` beside its reward.
fn update(part: &str, n: u64, reward: f64, keys: Value) -> Value {
    let mut line = json!({"step": n, "part": part, "update": n, "reward": reward});
    line.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    line
}

/// A number from 0 to 1 that looks random.
fn noise(n: u64) -> f64 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / (1u64 << 24) as f64
}

/// The report of one run, written and parsed as XML: every tag closed, every text escaped, no attribute twice.
fn drawn(path: &Path) -> (Written, String) {
    let written = write(&[path.to_path_buf()], None).unwrap();
    assert_eq!(written.path, path.join("report.html"));
    let text = fs::read_to_string(&written.path).unwrap();
    assert_eq!(text.len(), written.bytes);
    (written, text)
}

fn parsed(text: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).unwrap();
    let ids: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "an id twice");
    for node in document.descendants().filter(|node| node.is_element()) {
        for name in node.attribute("aria-labelledby").into_iter().flat_map(str::split_whitespace) {
            assert!(ids.contains(&name), "no element has the id {name}");
        }
        assert!(!["script", "link", "img", "iframe"].contains(&node.tag_name().name()), "{node:?}");
        for attribute in node.attributes() {
            assert!(!attribute.value().contains("://") || attribute.name() == "xmlns", "{attribute:?}");
        }
    }
    document
}

fn all_text(node: Node) -> String {
    node.descendants().filter(|node| node.is_text()).filter_map(|node| node.text()).collect()
}

fn named<'a>(node: Node<'a, 'a>, tag: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    node.descendants().filter(move |node| node.tag_name().name() == tag)
}

fn classed<'a>(node: Node<'a, 'a>, class: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    let has =
        move |node: &Node| node.attribute("class").is_some_and(|all| all.split(' ').any(|one| one == class));
    node.descendants().filter(has)
}

/// A figure of the page, with its axes as a reader takes them: from the labels beside the ticks.
struct Seen<'a> {
    node: Node<'a, 'a>,
    x: [f64; 2],
    y: [f64; 2],
}

impl<'a> Seen<'a> {
    fn find(document: &'a Document, title: &str) -> Option<Seen<'a>> {
        let mut all = named(document.root(), "figure");
        let node = all.find(|node| named(*node, "h3").any(|heading| all_text(heading) == title))?;
        Some(Seen { node, x: axis(node, "x"), y: axis(node, "y") })
    }

    fn of(document: &'a Document, title: &str) -> Seen<'a> {
        Seen::find(document, title).unwrap_or_else(|| panic!("no figure `{title}`"))
    }

    /// The values at the points of what is called `name` and has `class`.
    fn values(&self, name: &str, class: &str) -> Vec<(f64, f64)> {
        let mut values = Vec::new();
        for group in named(self.node, "g").filter(|group| all_text(*group).starts_with(name)) {
            for mark in classed(group, class) {
                let number = |name: &str| mark.attribute(name).unwrap().parse::<f64>().unwrap();
                let list = match mark.attribute("points") {
                    Some(list) => list
                        .split(' ')
                        .map(|pair| {
                            let (x, y) = pair.split_once(',').unwrap();
                            (x.parse().unwrap(), y.parse().unwrap())
                        })
                        .collect(),
                    None => vec![(number("cx"), number("cy"))],
                };
                values
                    .extend(list.into_iter().map(|(x, y): (f64, f64)| {
                        ((x - self.x[0]) / self.x[1], (y - self.y[0]) / self.y[1])
                    }));
            }
        }
        values
    }

    /// `values` are `expected`, within a pixel.
    #[track_caller]
    fn same(&self, values: &[(f64, f64)], expected: &[(f64, f64)]) {
        assert_eq!(values.len(), expected.len(), "{values:?}\n{expected:?}");
        for (found, expected) in values.iter().zip(expected) {
            let pixels =
                ((found.0 - expected.0) * self.x[1]).abs().max(((found.1 - expected.1) * self.y[1]).abs());
            assert!(pixels < 1.0, "found {found:?}, expected {expected:?}: {pixels} pixels apart");
        }
    }

    fn notes(&self) -> String {
        classed(self.node, "note").map(all_text).collect()
    }
}

/// Pixel of 0 and pixels a unit, from the first and the last label.
fn axis(node: Node, which: &str) -> [f64; 2] {
    let ticks: Vec<(f64, f64)> = classed(node, which)
        .map(|tick| (tick.attribute(which).unwrap().parse().unwrap(), all_text(tick).parse().unwrap()))
        .collect();
    let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
    assert!(first.1 != last.1, "one label is no axis: {ticks:?}");
    let unit = (last.0 - first.0) / (last.1 - first.1);
    [first.0 - first.1 * unit, unit]
}

#[test]
fn curves_read_back_as_the_numbers_of_the_metrics() {
    let home = TempDir::new().unwrap();
    let mut all = Vec::new();
    for (n, part) in
        [(1..=12, "words"), (1..=9, "stage 1")].into_iter().flat_map(|(to, part)| to.map(move |n| (n, part)))
    {
        all.push(json!({"step": n, "part": part, "update": n, "loss": 3.0 / n as f64, "learning_rate": 2e-6 * n as f64}));
    }
    let keys = |n: u64| {
        json!({"entropy": 100.0 * noise(n + 50) - 30.0, "grad_norm": [noise(n + 99), 7.0 + noise(n)],
               "loss": 1e-7 * (noise(n) - 0.5), "replay_gap": 0.0})
    };
    for n in 1..=30 {
        all.push(update("temp", n, noise(n), keys(n)));
        all.push(update("other", n, noise(n + 1000), keys(n + 7)));
        if n % 10 == 0 {
            all.push(json!({"step": n, "part": "temp", "update": n, "eval/accuracy": noise(n + 7)}));
        }
    }
    let path = folder(home.path(), "run", &[], &all);
    let (written, text) = drawn(&path);
    assert_eq!((written.counts, written.problems), (Default::default(), Vec::<String>::new()));
    let document = parsed(&text);
    let over = |value: &dyn Fn(u64) -> f64| (1..=30).map(|n| (n as f64, value(n))).collect::<Vec<_>>();

    let reward = Seen::of(&document, "Mean reward of an update");
    reward.same(&reward.values("temp", "line"), &over(&noise));
    reward.same(&reward.values("other", "line"), &over(&|n| noise(n + 1000)));
    let dots: Vec<(f64, f64)> = [10, 20, 30].map(|n| (n as f64, noise(n + 7))).into();
    reward.same(&reward.values("temp", "dot"), &dots);
    let entropy = Seen::of(&document, "Entropy (nats a token)");
    entropy.same(&entropy.values("temp", "line"), &over(&|n| 100.0 * noise(n + 50) - 30.0));
    let loss = Seen::of(&document, "Loss (first pass)");
    loss.same(&loss.values("temp", "line"), &over(&|n| 1e-7 * (noise(n) - 0.5)));
    assert!(
        classed(loss.node, "reading").map(all_text).any(|text| text.contains("Near 0 is normal in GRPO"))
    );
    let norm = Seen::of(&document, "Norm of the gradient before clipping (first pass)");
    norm.same(&norm.values("other", "line"), &over(&|n| noise(n + 7 + 99)));
    let second = Seen::of(&document, "grad_norm[1]");
    second.same(&second.values("temp", "line"), &over(&|n| 7.0 + noise(n)));
    let gap = Seen::of(&document, "Replay gap (largest difference of log-probabilities)");
    gap.same(&gap.values("temp", "line"), &over(&|_| 0.0));

    let loss = Seen::of(&document, "Loss (nats a trained token)");
    loss.same(
        &loss.values("words", "line"),
        &(1..=12).map(|n| (n as f64, 3.0 / n as f64)).collect::<Vec<_>>(),
    );
    loss.same(
        &loss.values("stage 1", "line"),
        &(1..=9).map(|n| ((12 + n) as f64, 3.0 / n as f64)).collect::<Vec<_>>(),
    );
    let rate = Seen::of(&document, "Learning rate");
    rate.same(
        &rate.values("words", "line"),
        &(1..=12).map(|n| (n as f64, 2e-6 * n as f64)).collect::<Vec<_>>(),
    );
    // What is not in the files is no figure.
    assert!(Seen::find(&document, "Norm of the latents (mean over steps)").is_none());
    assert!(!text.contains("Groups of an update"));
}

#[test]
fn groups_are_stacked_and_smoothed_lines_are_means() {
    let home = TempDir::new().unwrap();
    let count = |n: u64, which: u64| (noise(3 * n + which) * 9.0).floor();
    let all: Vec<Value> = (1..=60)
        .map(|n| {
            let keys = json!({"groups/all_wrong": count(n, 0), "groups/live": count(n, 1), "groups/all_right": count(n, 2)});
            update("temp", n, noise(n), keys)
        })
        .collect();
    let path = folder(home.path(), "run", &[], &all);
    let (_, text) = drawn(&path);
    let document = parsed(&text);
    let groups = Seen::of(&document, "Groups of an update: temp");
    let mut below = vec![0.0; 60];
    for (which, name) in ["all wrong", "live", "all right"].into_iter().enumerate() {
        let above: Vec<f64> = (1..=60).zip(&below).map(|(n, below)| below + count(n, which as u64)).collect();
        let place = |n: usize, list: &[f64]| ((n + 1) as f64, list[n]);
        let outline: Vec<(f64, f64)> =
            (0..60).map(|n| place(n, &above)).chain((0..60).rev().map(|n| place(n, &below))).collect();
        groups.same(&groups.values(name, "area"), &outline);
        below = above;
    }
    // Faint: every update; strong: the mean of the last five.
    let reward = Seen::of(&document, "Mean reward of an update");
    assert!(reward.notes().contains("mean of the last 5 updates"), "{}", reward.notes());
    let every: Vec<(f64, f64)> = (1..=60).map(|n| (n as f64, noise(n))).collect();
    reward.same(&reward.values("temp", "faint"), &every);
    let mean = |n: u64| {
        let of: Vec<f64> = (n.saturating_sub(4).max(1)..=n).map(noise).collect();
        (n as f64, of.iter().sum::<f64>() / of.len() as f64)
    };
    let strong: Vec<(f64, f64)> = (1..=60).map(mean).collect();
    reward.same(&reward.values("temp", "line")[60..], &strong);
}

#[test]
fn many_updates_stay_small_and_keep_their_extremes() {
    let home = TempDir::new().unwrap();
    let peak = 31_415;
    let all: Vec<Value> = (1..=50_000)
        .map(|n| {
            let mut keys = json!({"entropy": if n == peak { 9.0 } else { noise(n) }, "loss": noise(n + 1)});
            for extra in 0..20 {
                keys[format!("extra/{extra}")] = noise(n + extra).into();
            }
            update("temp", n, noise(n), keys)
        })
        .collect();
    let path = folder(home.path(), "run", &[], &all);
    let (written, text) = drawn(&path);
    assert!(written.bytes < 1_000_000, "{} bytes", written.bytes);
    let document = parsed(&text);
    let entropy = Seen::of(&document, "Entropy (nats a token)");
    let band = entropy.values("temp", "band");
    let (at, highest) = band.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!((highest - 9.0).abs() * entropy.y[1].abs() < 1.0, "{highest}");
    assert!((at - peak as f64).abs() < 200.0, "{at}");
    let line = entropy.values("temp", "line");
    let mean = line.iter().map(|point| point.1).sum::<f64>() / line.len() as f64;
    assert!((mean - 0.5).abs() < 0.02, "{mean}");
    assert!(entropy.notes().starts_with("Band: lowest to highest of each 64 updates"), "{}", entropy.notes());
}

#[test]
fn peaks_that_leave_the_figure_are_told() {
    let home = TempDir::new().unwrap();
    let norm = |n: u64| if n == 40 { 500.0 } else { 1.0 + noise(n) };
    let all: Vec<Value> =
        (1..=100).map(|n| update("temp", n, noise(n), json!({"grad_norm": [norm(n)]}))).collect();
    let path = folder(home.path(), "run", &[], &all);
    let (_, text) = drawn(&path);
    let document = parsed(&text);
    let figure = Seen::of(&document, "Norm of the gradient before clipping (first pass)");
    let values = figure.values("temp", "faint");
    assert!(values[39].1 > 3.0 && values[39].1 < 5.0, "{:?}", values[39]);
    assert!((values[40].1 - norm(41)).abs() * figure.y[1].abs() < 1.0);
    assert!(
        figure.notes().contains("1 peaks rise above it, the highest to 500 at 40 (temp)"),
        "{}",
        figure.notes()
    );
}

#[test]
fn what_is_not_finite_is_a_marked_gap() {
    let home = TempDir::new().unwrap();
    let mut all: Vec<Value> =
        (1..=9).map(|n| update("temp", n, noise(n), json!({"entropy": noise(n)}))).collect();
    all[4]["entropy"] = Value::Null;
    all[4]["nonfinite"] = json!(["entropy"]);
    all[6]["entropy"] = Value::Null;
    for line in &mut all {
        line["kl"] = Value::Null;
        line["nonfinite"] = match line["nonfinite"].is_null() {
            true => json!(["kl"]),
            false => json!(["entropy", "kl"]),
        };
    }
    let path = folder(home.path(), "run", &[], &all);
    let (written, text) = drawn(&path);
    let document = parsed(&text);
    let entropy = Seen::of(&document, "Entropy (nats a token)");
    let lines: Vec<Node> =
        classed(entropy.node, "line").filter(|node| node.tag_name().name() == "polyline").collect();
    let points = |node: &Node| node.attribute("points").unwrap().split(' ').count();
    assert_eq!(lines.iter().map(points).collect::<Vec<_>>(), [4, 2]);
    // A value between two gaps is a dot.
    let circles: Vec<Node> = named(entropy.node, "circle").collect();
    assert_eq!(circles.len(), 1);
    let place = |node: &Node, name: &str| node.attribute(name).unwrap().parse::<f64>().unwrap();
    assert!((place(&circles[0], "cx") - (entropy.x[0] + 6.0 * entropy.x[1])).abs() < 1.0);
    let crosses: Vec<f64> = classed(entropy.node, "gap")
        .map(|node| {
            node.attribute("d").unwrap()[1..].split(' ').next().unwrap().parse::<f64>().unwrap() + 3.5
        })
        .collect();
    for (cross, update) in crosses.iter().zip([5.0, 7.0]) {
        assert!((cross - (entropy.x[0] + update * entropy.x[1])).abs() < 1.0, "{crosses:?}");
    }
    assert_eq!(crosses.len(), 2);
    assert!(entropy.notes().contains("not finite"));
    // No finite value at all: no figure, and the reason is told.
    assert!(Seen::find(&document, "Divergence from the model before (KL, nats a token)").is_none());
    assert_eq!(written.counts.nonfinite, 11);
    let words = written.problems.join("\n");
    assert!(words.contains("entropy of temp (2), kl of temp (9)"), "{words}");
    assert!(words.contains("1 values are null and not named in `nonfinite`"), "{words}");
}

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
        .map(|row| [&row[0], &row[1], row[6].split(' ').next().unwrap(), &row[7]].map(|text: &str| text))
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
fn runs_share_their_figures() {
    let home = TempDir::new().unwrap();
    let run = |name: &str, seed: u64| {
        let all: Vec<Value> = (1..=20)
            .map(|n| update("temp", n, noise(n + seed), json!({"only here": n + seed, "constant": seed})))
            .collect();
        folder(home.path(), name, &[&format!("seed={seed}"), "grpo.group=16"], &all)
    };
    let (a, b) = (run("a", 3), run("b", 4));
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    refuses(&start(REPORT, &[a, b]), 2, &["--out", "2 runs", "--out runs/compared.html"]);
    let out = home.path().join("both.html");
    assert_eq!(stdout(&start(REPORT, &[a, b, "--out", out.to_str().unwrap()])).trim(), out.to_str().unwrap());
    let text = fs::read_to_string(&out).unwrap();
    let document = parsed(&text);
    let reward = Seen::of(&document, "Mean reward of an update");
    for (name, seed, colour) in [("a / temp", 3, "s0"), ("b / temp", 4, "s1")] {
        let expected: Vec<(f64, f64)> = (1..=20).map(|n| (n as f64, noise(n + seed))).collect();
        reward.same(&reward.values(name, "line"), &expected);
        assert_eq!(reward.values(name, colour).len(), 20);
    }
    let legend: Vec<String> =
        named(classed(reward.node, "legend").next().unwrap(), "span").map(all_text).collect();
    assert_eq!(legend, ["a / temp", "b / temp"]);
    let rows: Vec<Vec<String>> =
        named(document.root(), "tr").map(|row| row.children().map(all_text).collect()).collect();
    let has = |row: &[&str]| rows.iter().any(|found| found == row);
    assert!(has(&["key", "default", "a", "b"]) && has(&["seed", "0", "3", "4"]));
    assert!(has(&["grpo.group", "8", "16", "16"]), "{rows:?}");
    assert!(has(&["constant", "3 (a / temp), 4 (b / temp)", ""]), "{rows:?}");
    refuses(&start(REPORT, &[a, a, "--out", out.to_str().unwrap()]), 2, &["RUN", "named twice"]);
    // Folders of one name are told apart by their paths.
    let other = home.path().join("other");
    fs::create_dir(&other).unwrap();
    let again = folder(&other, "a", &[], &[update("temp", 1, 0.5, json!({}))]);
    write(&[PathBuf::from(a), again.clone()], Some(&out)).unwrap();
    let text = fs::read_to_string(&out).unwrap();
    assert!(text.contains(&format!("{} / temp", again.display())), "{text}");
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
        assert!(rows.iter().any(|row| row[0] == name && row[3] == share(&stage["accuracy"])), "{name}");
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
