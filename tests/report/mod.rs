//! The report of runs: what is drawn reads back as the numbers in the files, the markup is whole, and what is torn,
//! missing or unknown is said and never fatal.

mod figures;
mod files;

use latch::run::recipe::Recipe;
use latch::run::report::{Written, write};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const REPORT: &str = env!("CARGO_BIN_EXE_report");

/// The folder `name` in `home`, as train leaves one, with these lines of metrics.
pub fn folder(home: &Path, name: &str, changes: &[&str], metrics: &[Value]) -> PathBuf {
    let path = home.join(name);
    fs::create_dir(&path).unwrap();
    let changes: Vec<String> = changes.iter().map(|text| text.to_string()).collect();
    fs::write(path.join("recipe.toml"), Recipe::resolve(None, &changes).unwrap().to_toml()).unwrap();
    fs::write(path.join("environment.json"), json!({"device": "cpu", "latch": "0"}).to_string()).unwrap();
    lines(&path, "metrics", metrics);
    lines(&path, "samples", &[]);
    path
}

pub fn lines(path: &Path, what: &str, lines: &[Value]) {
    let header = json!({"schema": 1, "what": what});
    let text: String = [&header].into_iter().chain(lines).map(|line| format!("{line}\n")).collect();
    fs::write(path.join(format!("{what}.jsonl")), text).unwrap();
}

/// Update `n` of an arm, with `keys` beside its reward.
pub fn update(part: &str, n: u64, reward: f64, keys: Value) -> Value {
    let mut line = json!({"step": n, "part": part, "update": n, "reward": reward});
    line.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    line
}

/// A number from 0 to 1 that looks random.
pub fn noise(n: u64) -> f64 {
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
                let list: Vec<(f64, f64)> = match mark.attribute("points") {
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
