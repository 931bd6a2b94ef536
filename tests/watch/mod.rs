//! `watch`: what is followed is what is there, however the files grow, tear or are replaced; curves read back as their
//! values; nothing leaves its room.

mod binary;
mod following;

use crate::report::{folder, lines, noise, update};
use latch::run::watch::{Facts, Watch, draw, sparkline};
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Reads all there is.
fn read(watch: &mut Watch, now: SystemTime) -> bool {
    let mut news = false;
    loop {
        let came = watch.poll(now).unwrap();
        news |= came.news;
        if !came.more {
            return news;
        }
    }
}

fn fresh(path: &Path, now: SystemTime) -> Facts {
    let mut watch = Watch::open(path).unwrap();
    read(&mut watch, now);
    watch.facts(now)
}

fn append(path: &Path, name: &str, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path.join(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The dots of each column of cells, from the left.
fn heights(rows: &[String]) -> Vec<usize> {
    const BITS: [[u32; 4]; 2] = [[0x40, 0x04, 0x02, 0x01], [0x80, 0x20, 0x10, 0x08]];
    let cells: Vec<Vec<u32>> =
        rows.iter().map(|row| row.chars().map(|c| c as u32 - 0x2800).collect()).collect();
    (0..2 * cells[0].len())
        .map(|column| {
            let dots =
                cells.iter().rev().flat_map(|row| BITS[column % 2].map(|bit| row[column / 2] & bit != 0));
            let dots: Vec<bool> = dots.collect();
            let height = dots.iter().take_while(|dot| **dot).count();
            assert!(dots[height..].iter().all(|dot| !dot), "a column is filled from below: {rows:?}");
            height
        })
        .collect()
}

#[test]
fn dots_read_back_as_the_values_within_half_a_dot() {
    let (low, high) = (-0.25, 1.75);
    for rows in 1..=4 {
        let values: Vec<Option<f64>> =
            (0..200).map(|n| (n % 7 != 3).then(|| low + (high - low) * noise(n))).collect();
        let shown = sparkline(&values, (low, high), 100, rows);
        assert_eq!(shown.len(), rows);
        let heights = heights(&shown);
        assert_eq!(heights.len(), values.len());
        let dot = (high - low) / (4 * rows - 1) as f64;
        for (height, value) in heights.iter().zip(&values) {
            match value {
                None => assert_eq!(*height, 0),
                Some(value) => {
                    let back = low + (*height as f64 - 1.0) * dot;
                    assert!((back - value).abs() <= 0.5001 * dot, "{value} is drawn as {back}");
                }
            }
        }
        // A range of the largest numbers, and none at all.
        let wild = [Some(f64::MIN), Some(0.0), Some(f64::MAX)];
        let heights = super::watch::heights(&sparkline(&wild, (f64::MIN, f64::MAX), 3, rows));
        assert_eq!((heights[0], heights[5]), (1, 4 * rows));
        assert_eq!(super::watch::heights(&sparkline(&[Some(2.0); 3], (2.0, 2.0), 3, rows)), [1; 6]);
    }
}

/// The curve of the view is the curve of the file.
#[test]
fn a_drawn_curve_reads_back_as_the_rewards() {
    let home = TempDir::new().unwrap();
    let all: Vec<Value> = (1..=40).map(|n| update("temp", n, noise(n), json!({}))).collect();
    let path = folder(home.path(), "run", &[], &all);
    let lines = draw(&fresh(&path, SystemTime::now()), 100, None);
    let from = lines.iter().position(|line| line.starts_with("reward")).unwrap();
    let braille = |line: &String| line.chars().filter(|c| ('\u{2800}'..='\u{28ff}').contains(c)).collect();
    let shown: Vec<String> = lines[from..from + 2].iter().map(braille).collect();
    let heights: Vec<usize> = heights(&shown).chunks(2).map(|pair| pair[0]).collect();
    let rewards: Vec<f64> = (1..=40).map(noise).collect();
    let (low, high) = rewards.iter().fold((1.0_f64, 0.0_f64), |(l, h), r| (l.min(*r), h.max(*r)));
    assert_eq!(heights.len(), 40);
    for (height, reward) in heights.iter().zip(&rewards) {
        let back = low + (*height as f64 - 1.0) * (high - low) / 7.0;
        assert!((back - reward).abs() <= 0.501 * (high - low) / 7.0, "{reward} is drawn as {back}");
    }
    // Its range stands beside it.
    let numbers: Vec<f64> =
        lines[from].split_whitespace().filter_map(|word| word.trim_end_matches(',').parse().ok()).collect();
    for (found, expected) in numbers.iter().zip([low, high, rewards[39]]) {
        assert!((found - expected).abs() < 1e-4, "{}", lines[from]);
    }
    assert_eq!(numbers.len(), 3);
}

/// What never changes is told, and takes one row.
#[test]
fn a_constant_is_told() {
    let home = TempDir::new().unwrap();
    let all: Vec<Value> = (1..=5).map(|n| update("temp", n, 0.5, json!({"groups/live": n}))).collect();
    let lines = draw(&fresh(&folder(home.path(), "run", &[], &all), SystemTime::now()), 100, None);
    let from = lines.iter().position(|line| line.starts_with("reward")).unwrap();
    assert!(lines[from].ends_with("  always 0.5"), "{}", lines[from]);
    assert!(
        lines[from + 1].starts_with("live groups") && lines[from + 1].ends_with("  1 to 5, now 5"),
        "{lines:#?}"
    );
}

/// The cells that a terminal takes for a line of the texts used here.
fn cells(line: &str) -> usize {
    line.chars().map(|c| if matches!(c, '漢' | '字' | '😀') { 2 } else { 1 }).sum()
}

#[test]
fn nothing_leaves_its_room() {
    let home = TempDir::new().unwrap();
    let keys = json!({"groups/live": 0, "groups/all_wrong": 16, "entropy": null, "nonfinite": ["entropy"],
                      "completions/mean_length": 1e300, "grad_norm": [1e-9, 1e12], "timing_s/step": 0.5, "tokens": 7});
    let name = "漢字漢字 \u{1b}[2J a part with a long name";
    let all: Vec<Value> = (1..=50).map(|n| update(name, n, noise(n) * 1e6 - 5e5, keys.clone())).collect();
    let path = folder(home.path(), "run 😀", &[], &all);
    let text = "漢字😀\u{1b}[31m\u{7}\r\n".repeat(40);
    let sample = |reward: f64| json!({"step": 50, "part": name, "update": 50, "question": text, "gold": text, "answer": text, "reward": reward});
    lines(&path, "samples", &[sample(1.0), sample(0.0)]);
    append(&path, "metrics.jsonl", "no line\n{\"torn");
    append(&path, "log.txt", &format!("warning: {text}\nafter words, validation: accuracy 0.5000 of 16\n"));
    let facts = fresh(&path, SystemTime::now());
    assert!(facts.problems.len() >= 3, "{:?}", facts.problems);
    let waiting = fresh(&folder(home.path(), "young", &[], &[]), SystemTime::now());
    for facts in [&facts, &waiting, &Facts::default()] {
        for columns in (0..=60).chain([80, 110, 200]) {
            for rows in (0..=6).chain([8, 10, 12, 15, 20, 30, 500]) {
                let view = draw(facts, columns, Some(rows));
                assert!(view.len() <= rows, "{columns} x {rows}: {view:#?}");
                for line in &view {
                    assert!(cells(line) <= columns, "{columns} x {rows}: {line}");
                    assert!(!line.chars().any(char::is_control), "{line:?}");
                }
            }
        }
    }
    // The smallest terminal shows which part, whether it lives, and the reward; a large one everything.
    let small = draw(&facts, 20, Some(5)).join("\n");
    assert!(small.contains('漢') && small.contains("last line") && small.contains("reward"), "{small}");
    let large = draw(&facts, 120, Some(50)).join("\n");
    for words in [
        "reward",
        "live groups",
        "entropy",
        "latent |h|",
        "tok/s",
        "best",
        "worst",
        "checkpoint",
        "held-out",
        "note: ",
    ] {
        assert!(large.contains(words), "{words}\n{large}");
    }
}

#[test]
fn a_step_line_that_does_not_fit_stands_in_pairs() {
    let home = TempDir::new().unwrap();
    let keys = json!({"groups/live": 3, "groups/all_wrong": 1, "groups/all_right": 2, "entropy": 1.25, "kl": 0.5,
                      "completions/mean_length": 12.0, "latent_norm": 14.0, "latent_similarity": 0.5, "grad_norm": [9.0, 0.75],
                      "timing_s/step": 0.5, "tokens": 700});
    let path = folder(home.path(), "run", &[], &[update("temp", 1, 0.25, keys)]);
    let facts = fresh(&path, SystemTime::now());
    let values = ["1/", "0.25", "3 live 1↓ 2↑", "1.25", "12", "14.0 0.50", "0.75", "500 ms", "1.4k tok/s"];
    let wide = draw(&facts, 130, None);
    assert!(wide.iter().any(|line| values.iter().all(|value| line.contains(value))), "{wide:#?}");
    for columns in [24, 40, 60, 80] {
        let narrow = draw(&facts, columns, None).join("\n");
        let mut from = 0;
        for value in values {
            // In their order.
            from += narrow[from..].find(value).unwrap_or_else(|| panic!("{value} at {columns}:\n{narrow}"));
        }
    }
}
