//! The files of a run, read for the report. What a killed or unfinished run leaves (a torn line, a file that is not there
//! yet) is counted and said, never a reason to fail.

use super::lines::{self, Faults};
use super::samples::{self, Samples};
use super::series::Series;
use crate::base::{Error, Result};
use crate::run::folder::RunFolder;
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Keys of a line that say where it stands, and those that are named elsewhere.
const PLACES: [&str; 5] = ["step", "part", "update", "nonfinite", "schema"];
/// Parts, keys of a part, numbers of a list, and evaluations that are kept; what is beyond is counted.
const PARTS: usize = 64;
const KEYS: usize = 200;
const ELEMENTS: usize = 8;
const EVALUATIONS: usize = 200;

/// One part of a run: a phase of supervised training, or an arm.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its last update.
    pub updates: u64,
    /// By key, its numbers over its updates, in the order in which they came first.
    pub series: Vec<(String, Series)>,
    places: HashMap<String, usize>,
}

impl Part {
    /// The numbers of a key.
    pub fn series(&self, key: &str) -> Option<&Series> {
        self.places.get(key).map(|&place| &self.series[place].1)
    }

    /// Whether it is reinforcement learning.
    pub fn rewarded(&self) -> bool {
        self.places.contains_key("reward")
    }
}

/// Everything the report shows of a run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// What it is called.
    pub label: String,
    /// Its folder.
    pub path: PathBuf,
    /// recipe.toml.
    pub recipe: String,
    /// environment.json.
    pub environment: Option<Value>,
    /// summary.json: only a finished run has one.
    pub summary: Option<Value>,
    /// Parts that have begun.
    pub parts: Vec<Part>,
    /// The last step.
    pub steps: u64,
    /// What log.txt says of accuracies, in its words.
    pub evaluations: Vec<String>,
    /// samples.jsonl.
    pub samples: Samples,
    /// What is missing or could not be read, in words.
    pub problems: Vec<String>,
    /// The same in numbers.
    pub counts: Counts,
}

/// Numbers of what is missing or could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files whose last line has no end.
    pub torn: u64,
    /// Lines that are no JSON of the expected form.
    pub malformed: u64,
    /// Files that are expected and not there, or cannot be understood.
    pub missing: u64,
    /// Values that are not finite.
    pub nonfinite: u64,
}

/// Reads the run in `path`; `label` is what it is called.
///
/// # Errors
/// The folder is not that of a run, a file cannot be read, is of another version, or nothing was measured yet.
pub fn run(path: &Path, label: &str) -> Result<Run> {
    RunFolder::expect_run(path)?;
    let mut run = Run { label: label.into(), path: path.into(), ..Run::default() };
    run.recipe = run.text("recipe.toml")?.unwrap_or_default();
    run.environment = run.json("environment.json", true)?;
    run.summary = run.json("summary.json", false)?;
    run.metrics()?;
    if run.parts.is_empty() && run.summary.is_none() {
        let metrics = path.join("metrics.jsonl");
        let problem = if metrics.exists() { "has no update that can be read" } else { "is not there" };
        let problem = format!("{problem}, expected a line of metrics an update");
        let advice = "wait for the run's first update, or look at its log.txt; --resume goes on with a run that was stopped";
        return Err(Error::file(&metrics, problem, advice));
    }
    run.samples()?;
    if run.summary.is_none() {
        run.log()?;
    }
    Ok(run)
}

impl Run {
    /// Part number `n`'s first update among all supervised ones, less one.
    pub fn supervised_before(&self, n: usize) -> u64 {
        self.parts[..n].iter().filter(|part| !part.rewarded()).map(|part| part.updates).sum()
    }

    fn missing(&mut self, name: &str, what: &str) {
        self.counts.missing += 1;
        self.problems.push(format!("{name}: {what}"));
    }

    /// A small file as text; bytes that are no UTF-8 become stand-ins.
    fn text(&mut self, name: &str) -> Result<Option<String>> {
        let path = self.path.join(name);
        let size = match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            size => size.map_err(Error::io(&path, "cannot look at"))?.len(),
        };
        if size > lines::WHOLE {
            self.missing(name, &lines::too_large(size));
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(Error::io(&path, "cannot read"))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn json(&mut self, name: &str, expected: bool) -> Result<Option<Value>> {
        let Some(text) = self.text(name)? else {
            if expected {
                self.missing(name, "is not there");
            }
            return Ok(None);
        };
        match lines::object(&text) {
            Ok(value) => Ok(Some(value)),
            Err(problem) => {
                self.missing(name, &problem);
                Ok(None)
            }
        }
    }

    fn faults(&mut self, name: &str, faults: &Faults) {
        if faults.torn {
            self.counts.torn += 1;
            let why = "the run was killed, or is writing it now";
            self.problems.push(format!("{name}: its last line is torn ({why}); left out"));
        }
        if faults.headless {
            self.problems.push(format!("{name}: line 1 is no header; read as lines of this version"));
        }
        if let Some(first) = faults.first {
            self.counts.malformed += faults.malformed;
            let lines = if faults.malformed == 1 { "line" } else { "lines" };
            self.problems.push(format!(
                "{name}: {} malformed {lines} left out, the first is line {first}",
                faults.malformed
            ));
        }
    }

    fn metrics(&mut self) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        if !path.exists() {
            self.missing("metrics.jsonl", "is not there");
            return Ok(());
        }
        let mut unnamed = 0;
        let mut beyond = Beyond::default();
        let faults = lines::each(&path, |_, text| match serde_json::from_slice::<Value>(text) {
            Ok(value) => self.take(&value, &mut unnamed, &mut beyond),
            Err(_) => false,
        })?;
        self.faults("metrics.jsonl", &faults);
        if unnamed > 0 {
            self.problems.push(format!(
                "metrics.jsonl: {unnamed} values are null and not named in `nonfinite`; shown as gaps"
            ));
        }
        if beyond != Beyond::default() {
            self.problems.push(format!(
                "metrics.jsonl: left out for their number: {} lines of parts beyond {PARTS}, {} values of keys beyond {KEYS} \
                 a part or of lists beyond {ELEMENTS} numbers",
                beyond.lines, beyond.values
            ));
        }
        let gaps: Vec<String> = self
            .parts
            .iter()
            .flat_map(|part| part.series.iter().map(move |(key, series)| (part, key, series.gaps())))
            .filter(|(.., gaps)| *gaps > 0)
            .map(|(part, key, gaps)| format!("{key} of {} ({gaps})", part.name))
            .collect();
        if !gaps.is_empty() {
            let (shown, more) = gaps.split_at(gaps.len().min(12));
            let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            self.problems.push(format!(
                "metrics.jsonl: values that are not finite, drawn as gaps with a cross: {}{more}",
                shown.join(", ")
            ));
        }
        self.counts.nonfinite =
            self.parts.iter().flat_map(|part| &part.series).map(|(_, series)| series.gaps()).sum();
        Ok(())
    }

    /// Takes a line of metrics; false where it is none.
    fn take(&mut self, value: &Value, unnamed: &mut u64, beyond: &mut Beyond) -> bool {
        let Some(object) = value.as_object() else { return false };
        let Some(step) = object.get("step").and_then(Value::as_u64) else { return false };
        self.steps = self.steps.max(step);
        let name = object.get("part").and_then(Value::as_str).unwrap_or("run");
        // Lines of a part follow each other.
        let place = match self.parts.iter().rposition(|part| part.name == name) {
            Some(place) => place,
            None if self.parts.len() == PARTS => {
                beyond.lines += 1;
                return true;
            }
            None => {
                self.parts.push(Part { name: name.into(), ..Part::default() });
                self.parts.len() - 1
            }
        };
        let part = &mut self.parts[place];
        let update = object.get("update").and_then(Value::as_u64).unwrap_or(step);
        part.updates = part.updates.max(update);
        let named: Vec<&str> = object
            .get("nonfinite")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let (mut cut, mut refused) = (0, 0);
        let mut put = |key: &str, value: &Value| {
            let number = match value {
                Value::Number(number) => number.as_f64(),
                Value::Null => {
                    *unnamed += u64::from(!named.contains(&key));
                    None
                }
                // Text and truth values are no curves.
                _ => return,
            };
            refused += u64::from(!part.put(key, update as f64, number));
        };
        for (key, value) in object.iter().filter(|(key, _)| !PLACES.contains(&key.as_str())) {
            match value {
                Value::Array(list) => {
                    for (n, value) in list.iter().take(ELEMENTS).enumerate() {
                        put(&format!("{key}[{n}]"), value);
                    }
                    cut += list.len().saturating_sub(ELEMENTS) as u64;
                }
                value => put(key, value),
            }
        }
        beyond.values += cut + refused;
        let number = |key: &str| object.get(key).and_then(Value::as_f64);
        if let (Some(tokens), Some(seconds)) = (number("tokens"), number("timing_s/step"))
            && seconds > 0.0
        {
            beyond.values += u64::from(!part.put(TOKENS_A_SECOND, update as f64, Some(tokens / seconds)));
        }
        true
    }

    fn samples(&mut self) -> Result<()> {
        let path = self.path.join("samples.jsonl");
        if !path.exists() {
            if self.parts.iter().any(Part::rewarded) {
                self.missing("samples.jsonl", "is not there");
            }
            return Ok(());
        }
        self.samples = samples::read(&path)?;
        let faults = self.samples.faults.clone();
        self.faults("samples.jsonl", &faults);
        if self.samples.unrewarded > 0 {
            let count = self.samples.unrewarded;
            self.problems.push(format!("samples.jsonl: {count} rollouts have no finite reward; not shown"));
        }
        Ok(())
    }

    /// Accuracies of an unfinished run stand in its log alone.
    fn log(&mut self) -> Result<()> {
        let Some(text) = self.text("log.txt")? else { return Ok(()) };
        let lines = text.lines().filter(|line| line.contains(": accuracy "));
        let all: Vec<String> = lines.map(String::from).collect();
        self.evaluations = all[all.len().saturating_sub(EVALUATIONS)..].to_vec();
        Ok(())
    }
}

/// A series that is no key of the file, but a quotient of two.
pub const TOKENS_A_SECOND: &str = "tokens / timing_s/step";

/// What is beyond the numbers that are kept.
#[derive(Default, PartialEq, Eq)]
struct Beyond {
    lines: u64,
    values: u64,
}

impl Part {
    /// Adds a number; false where there are too many keys.
    fn put(&mut self, key: &str, x: f64, value: Option<f64>) -> bool {
        let place = match self.places.get(key) {
            Some(&place) => place,
            None if self.series.len() == KEYS => return false,
            None => {
                self.places.insert(key.into(), self.series.len());
                self.series.push((key.into(), Series::default()));
                self.series.len() - 1
            }
        };
        self.series[place].1.push(x, value);
        true
    }
}
