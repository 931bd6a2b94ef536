//! JSON lines: metrics.jsonl and samples.jsonl. The first line is a header, every other one an object with its step.
//!
//! A line is handed to the system whole and at once, so `tail -f` and a killed process see whole lines; the one that a crash
//! may tear is recognised by its missing end. A resumed run cuts its files back to the restored step.
//!
//! Of soft steps an update says (means over the steps; algorithms C.3):
//!
//! ```text
//! soft/kept, singleton_rate, entropy      ids of a mixture; share of steps with one; entropy of the weights (nats)
//! soft/proxy_disagreement                 share of steps whose proxy is not the id of the largest weight
//! soft/stopped_by_proxy                   share of rollouts that a proxy ended
//! where steps have a score of their own (soft_ce, concrete, gumbel_g, gauss_embed):
//! soft/loss, score                        first pass: their part of the loss; the score ("log-probability")
//! soft/ratio, ratio_spread                last pass: exp(score - score of the first pass), and its largest |ratio - 1|
//! soft/churn_left, churn_entered          last pass, over the ids that were kept: those that the logits of now would not
//!                                         keep, and those that they would keep anew; 0 in a first pass, whose logits are
//!                                         those of the draw
//! ```

use crate::base::{Error, Result};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// The version of the lines' form.
pub(in crate::run) const SCHEMA: u64 = 1;

/// One line: a step and named values. Numbers that are not finite are written as null and named in `nonfinite`.
#[derive(Clone, Debug)]
pub struct Record {
    fields: Map<String, Value>,
    nonfinite: Vec<String>,
}

impl Record {
    /// A line of `step`.
    pub fn new(step: u64) -> Record {
        let mut fields = Map::new();
        fields.insert("step".into(), step.into());
        Record { fields, nonfinite: Vec::new() }
    }

    fn finite(&mut self, name: String, value: f64) -> Value {
        let number = serde_json::Number::from_f64(value);
        if number.is_none() {
            self.nonfinite.push(name);
        }
        number.map_or(Value::Null, Value::Number)
    }

    /// Adds a number.
    pub fn number(mut self, name: &str, value: f64) -> Record {
        let value = self.finite(name.into(), value);
        self.fields.insert(name.into(), value);
        self
    }

    /// Adds a number that may be absent; then nothing is written.
    pub fn maybe(self, name: &str, value: Option<f64>) -> Record {
        match value {
            Some(value) => self.number(name, value),
            None => self,
        }
    }

    /// Adds a list of numbers; those that are not finite are named `name[i]`.
    pub fn numbers(mut self, name: &str, values: &[f64]) -> Record {
        let named = values.iter().enumerate().map(|(i, value)| (format!("{name}[{i}]"), *value));
        let list: Vec<Value> = named.map(|(name, value)| self.finite(name, value)).collect();
        self.fields.insert(name.into(), list.into());
        self
    }

    /// Adds text, a count, a truth value, or JSON whose numbers are known to be finite.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Record {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// The line's object.
    pub fn into_value(mut self) -> Value {
        if !self.nonfinite.is_empty() {
            self.fields.insert("nonfinite".into(), self.nonfinite.into());
        }
        Value::Object(self.fields)
    }
}

/// A file of lines that is being written.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: File,
}

/// What opening an existing file cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Whole lines of steps after the restored one.
    pub lines: usize,
    /// Whether the last line was torn.
    pub torn: bool,
}

impl Lines {
    /// A new file whose header names what it holds, e.g. `metrics`.
    ///
    /// # Errors
    /// The file exists or cannot be written to.
    pub fn create(path: &Path, what: &str) -> Result<Lines> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(Error::io(path, "cannot create"))?;
        let mut lines = Lines { path: path.to_path_buf(), file };
        lines.put(&serde_json::json!({"schema": SCHEMA, "what": what}))?;
        Ok(lines)
    }

    /// The file of a run that goes on after `step`: the first line of a later step and all after it are cut off, and a
    /// torn last line. Where there is no file, a new one.
    ///
    /// # Errors
    /// A file of another form, or a line that cannot be read, with its number.
    pub fn resume(path: &Path, what: &str, step: u64) -> Result<(Lines, Cut)> {
        if !path.exists() {
            return Ok((Lines::create(path, what)?, Cut::default()));
        }
        let mut reader = BufReader::new(File::open(path).map_err(Error::io(path, "cannot open"))?);
        let (mut kept, mut cut, mut number) = (0, Cut::default(), 0);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(Error::io(path, "cannot read"))?;
            if read == 0 {
                break;
            }
            number += 1;
            if !line.ends_with(b"\n") {
                cut.torn = true;
                break;
            }
            let value = parse(path, number, &line)?;
            if number == 1 {
                check_header(path, &value)?;
            } else if cut.lines > 0 || step_of(path, number, &value)? > step {
                cut.lines += 1;
                continue;
            }
            kept += read as u64;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path, "cannot open"))?;
        file.set_len(kept).map_err(Error::io(path, "cannot cut off the later lines"))?;
        let mut lines = Lines { path: path.to_path_buf(), file };
        if kept == 0 {
            lines.put(&serde_json::json!({"schema": SCHEMA, "what": what}))?;
        }
        Ok((lines, cut))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&mut self, record: Record) -> Result<()> {
        self.put(&record.into_value())
    }

    fn put(&mut self, value: &Value) -> Result<()> {
        let mut line = value.to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path, "cannot write"))
    }
}

/// Line `number` of a file (the header is line 1), as `samples.jsonl:N` names it.
///
/// # Errors
/// No such line, or one that is not JSON.
pub fn line(path: &Path, number: usize) -> Result<Value> {
    let reader = BufReader::new(File::open(path).map_err(Error::io(path, "cannot open"))?);
    let mut lines = 0;
    for (index, text) in reader.lines().enumerate() {
        lines = index + 1;
        if lines == number {
            let text = text.map_err(Error::io(path, "cannot read"))?;
            return parse(path, number, text.as_bytes());
        }
    }
    let advice = "line 1 is the header; count from there";
    Err(Error::file(path, format!("has {lines} lines, no line {number}"), advice))
}

fn parse(path: &Path, number: usize, line: &[u8]) -> Result<Value> {
    serde_json::from_slice(line).map_err(|error| {
        let problem = format!("line {number} is not JSON: {error}");
        Error::file(path, problem, "the file is damaged; mend or remove that line")
    })
}

fn check_header(path: &Path, value: &Value) -> Result<()> {
    match value["schema"].as_u64() {
        Some(SCHEMA) => Ok(()),
        found => {
            let found = found.map_or("none".to_string(), |schema| schema.to_string());
            let problem = format!("line 1 names schema {found}, expected {SCHEMA}");
            Err(Error::file(path, problem, "start a new run folder with this version"))
        }
    }
}

fn step_of(path: &Path, number: usize, value: &Value) -> Result<u64> {
    value["step"].as_u64().ok_or_else(|| {
        let problem = format!("line {number} has no step");
        Error::file(path, problem, "the file is damaged; mend or remove that line")
    })
}
