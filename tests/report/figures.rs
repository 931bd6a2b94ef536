//! What is drawn: every point reads back as its number.

use super::*;
use crate::binaries::{refuses, run as start, stdout};
use tempfile::TempDir;

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

/// The cells of the table that has a column of this name, by row, from that column.
fn column(document: &Document, title: &str) -> Vec<String> {
    let has = |row: &Node| all_text(*row).contains(title);
    let table =
        named(document.root(), "table").find(|table| named(*table, "tr").any(|row| has(&row))).unwrap();
    let rows: Vec<Vec<String>> = named(table, "tr")
        .map(|row| row.children().filter(|cell| cell.is_element()).map(all_text).collect())
        .collect();
    let place = rows[0].iter().position(|cell| cell == title).unwrap_or_else(|| panic!("{:?}", rows[0]));
    rows[1..].iter().map(|row| row[place].clone()).collect()
}

#[test]
fn a_replay_gap_that_is_no_number_is_larger_than_any() {
    let home = TempDir::new().unwrap();
    let mut all: Vec<Value> =
        (1..=9).map(|n| update("temp", n, noise(n), json!({"replay_gap": 0.0}))).collect();
    let whole = folder(home.path(), "whole", &[], &all);
    assert_eq!(column(&parsed(&drawn(&whole).1), "largest replay gap"), ["0"]);
    all[4]["replay_gap"] = Value::Null;
    all[4]["nonfinite"] = json!(["replay_gap"]);
    let broken = folder(home.path(), "broken", &[], &all);
    assert_eq!(column(&parsed(&drawn(&broken).1), "largest replay gap"), ["not finite in 1 of 9"]);
}

#[test]
fn each_pass_at_k_has_its_own_k() {
    let home = TempDir::new().unwrap();
    let run = |name: &str, k: u64| {
        let path = folder(home.path(), name, &[], &[]);
        let share = json!({"value": 0.5, "low": 0.25, "high": 0.75});
        let mode = json!({"accuracy": share, "k": k, "pass_at_k": 0.75});
        let models = json!([{"name": "temp", "det": {"accuracy": share}, "modes": {"mc": mode}}]);
        fs::write(path.join("summary.json"), json!({"models": models}).to_string()).unwrap();
        path
    };
    let (a, b, c) = (run("a", 8), run("b", 8), run("c", 4));
    let out = home.path().join("out.html");
    let cells = |runs: &[PathBuf], title: &str| {
        write(runs, Some(&out)).unwrap();
        column(&parsed(&fs::read_to_string(&out).unwrap()), title)
    };
    assert_eq!(cells(&[a.clone(), b], "mc pass@8"), ["75.0", "75.0"]);
    assert_eq!(cells(&[a, c], "mc pass@k"), ["75.0 (k = 8)", "75.0 (k = 4)"]);
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
