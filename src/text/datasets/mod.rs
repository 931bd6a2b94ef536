//! Readers of data sets: seven file formats, one kind of problem. Nothing is downloaded, nothing is guessed: an item that
//! is not as its format says is an error with file and line, or is left out and listed.
//!
//! Answers come out in one spelling: without outer space, numbers without commas and without a fraction of zeros.

mod arrays;
mod asdiv;
mod gsm8k;
mod overlap;

pub use overlap::{SameQuestion, overlap};

use super::problem::Problem;
use crate::base::{Error, Result};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The format of a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// GSM8K: a JSON object a line, `question` and `answer`; steps are the `<<..>>` marks of the answer.
    Gsm8k,
    /// iCoT and GSM8K-Aug: `question||<<step>> <<step>> #### answer`, a line each.
    Icot,
    /// Coconut: a JSON array of `question`, `steps`, `answer`; other fields are ignored.
    Coconut,
    /// ProsQA: as Coconut's, with the graph beside it, which is ignored.
    ProsQa,
    /// SVAMP: a JSON array; the question is `Body`, a space and `Question`. Has no steps.
    Svamp,
    /// MultiArith: a JSON array of `sQuestion` and `lSolutions`. Has no steps.
    MultiArith,
    /// ASDiv: XML. The question is the body, a space and the question; units in brackets are dropped from answers, and
    /// answers of several parts are their parts with `; ` between them. Has no steps.
    Asdiv,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 7] = [
        Format::Gsm8k,
        Format::Icot,
        Format::Coconut,
        Format::ProsQa,
        Format::Svamp,
        Format::MultiArith,
        Format::Asdiv,
    ];

    /// Its name on command lines and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Format::Gsm8k => "gsm8k",
            Format::Icot => "icot",
            Format::Coconut => "coconut",
            Format::ProsQa => "prosqa",
            Format::Svamp => "svamp",
            Format::MultiArith => "multiarith",
            Format::Asdiv => "asdiv",
        }
    }

    /// The format of `text`, by its first item; `path` is for messages.
    ///
    /// # Errors
    /// No format fits.
    pub fn detect(path: &Path, text: &str) -> Result<Format> {
        let beginning = text.trim_start_matches('\u{feff}').trim_start();
        let first_line = beginning.split('\n').next().unwrap_or_default();
        let found = match beginning.chars().next() {
            Some('<') if beginning.contains("<ProblemSet") => Some(Format::Asdiv),
            Some('[') => arrays::detect(beginning),
            Some('{') => gsm8k::looks_like_jsonl(first_line).then_some(Format::Gsm8k),
            _ => first_line.contains("||").then_some(Format::Icot),
        };
        if beginning.is_empty() {
            return Err(Error::file(path, "is empty", "expected a file of problems; fetch it again"));
        }
        found.ok_or_else(|| {
            let shown: String = first_line.chars().take(60).collect();
            let problem = format!("begins with {shown:?}, which no known format does");
            Error::file(path, problem, format!("name the format if it is one of {}", Format::names()))
        })
    }

    fn names() -> String {
        Format::ALL.map(Format::name).join(", ")
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Format> {
        Format::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            Error::input(
                "data format",
                format!("`{name}` is not known"),
                format!("use one of {}", Format::names()),
            )
        })
    }
}

/// What to do with an item that is not as its format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBad {
    /// Stop with an error that names file and line.
    Fail,
    /// Leave it out and list it.
    Skip,
}

/// An item that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Its number in the file, from 1.
    pub item: usize,
    /// The line on which it begins, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {} (item {}): {}", self.line, self.item, self.reason)
    }
}

/// A file of problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The format it was read as.
    pub format: Format,
    /// The problems in the order of the file.
    pub problems: Vec<Problem>,
    /// What was left out.
    pub skipped: Vec<BadLine>,
}

impl Dataset {
    /// Problems without steps: they cannot teach a chain of thought.
    pub fn without_steps(&self) -> usize {
        self.problems.iter().filter(|problem| problem.steps.is_empty()).count()
    }

    /// Problems whose answer is not a number: only the strict extractor can find it.
    pub fn without_number(&self) -> usize {
        self.problems.iter().filter(|problem| problem.answer.parse::<f64>().is_err()).count()
    }
}

/// Reads a file; without a `format` the first item decides it.
///
/// # Errors
/// The file cannot be read, is not UTF-8, is broken so that no next item can be found, holds no problems, or has a bad
/// item under [`OnBad::Fail`].
pub fn read(path: &Path, format: Option<Format>, on_bad: OnBad) -> Result<Dataset> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "cannot open"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = line_at(&error.as_bytes()[..at]);
        Error::file(path, format!("line {line}: is not UTF-8"), "convert the file to UTF-8")
    })?;
    parse(path, &text, format, on_bad)
}

/// Reads the contents of a file; `path` is for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, text: &str, format: Option<Format>, on_bad: OnBad) -> Result<Dataset> {
    let text = text.trim_start_matches('\u{feff}');
    let format = match format {
        Some(format) => format,
        None => Format::detect(path, text)?,
    };
    let dataset = Dataset { format, problems: Vec::new(), skipped: Vec::new() };
    let mut items = Items { path, on_bad, dataset };
    match format {
        Format::Gsm8k => lines(text, &mut items, gsm8k::from_json_line)?,
        Format::Icot => lines(text, &mut items, gsm8k::from_icot_line)?,
        Format::Coconut | Format::ProsQa => arrays::read(text, &mut items, arrays::coconut)?,
        Format::Svamp => arrays::read(text, &mut items, arrays::svamp)?,
        Format::MultiArith => arrays::read(text, &mut items, arrays::multiarith)?,
        Format::Asdiv => asdiv::read(text, &mut items)?,
    }
    let Items { dataset, .. } = items;
    if dataset.problems.is_empty() {
        let problem = format!("holds no problem in format {format}; {} left out", dataset.skipped.len());
        return Err(Error::file(path, problem, "check the file, or name another format"));
    }
    Ok(dataset)
}

/// Collects items and knows what to do with bad ones.
struct Items<'a> {
    path: &'a Path,
    on_bad: OnBad,
    dataset: Dataset,
}

impl Items<'_> {
    /// Takes item `item`; `line` says where it begins and is asked for only if the item is bad.
    fn take(&mut self, item: usize, line: impl FnOnce() -> usize, found: Found) -> Result<()> {
        let reason = match found {
            Ok(problem) if problem.question.is_empty() => "the question is empty".to_string(),
            Ok(problem) if problem.answer.is_empty() => "the answer is empty".to_string(),
            Ok(problem) => {
                self.dataset.problems.push(problem);
                return Ok(());
            }
            Err(reason) => reason,
        };
        let bad = BadLine { item, line: line(), reason };
        match self.on_bad {
            OnBad::Skip => self.dataset.skipped.push(bad),
            OnBad::Fail => {
                let advice = "mend it, or leave bad items out with --skip-bad";
                return Err(Error::file(self.path, bad.to_string(), advice));
            }
        }
        Ok(())
    }

    /// The file is broken at a line, so that nothing after it can be found.
    fn broken(&self, line: usize, problem: &str) -> Error {
        let advice = "nothing after it can be read, with or without --skip-bad; fetch the file again";
        Error::file(self.path, format!("line {line}: {problem}"), advice)
    }
}

/// A problem, or why there is none.
type Found = std::result::Result<Problem, String>;

/// One item a line. Lines end with `\n` alone: other line separators of Unicode occur inside questions.
fn lines(text: &str, items: &mut Items, problem: impl Fn(&str) -> Found) -> Result<()> {
    let mut item = 0;
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.trim().is_empty() {
            continue;
        }
        item += 1;
        items.take(item, || index + 1, problem(line))?;
    }
    Ok(())
}

/// The number of the line on which `before` ends.
fn line_at(before: &[u8]) -> usize {
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// An answer in one spelling: numbers without commas, spaces, and a fraction of zeros; other texts without outer space.
fn normal_answer(text: &str) -> String {
    let text = text.trim();
    let compact: String = text.chars().filter(|c| *c != ',' && !c.is_whitespace()).collect();
    let digits = compact.strip_prefix('-').unwrap_or(&compact);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = !whole.is_empty() && whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit());
    match (is_number, compact.split_once('.')) {
        (false, _) => text.to_string(),
        (true, None) => compact,
        (true, Some((whole, fraction))) => {
            let fraction = fraction.trim_end_matches('0');
            if fraction.is_empty() { whole.to_string() } else { format!("{whole}.{fraction}") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::normal_answer;

    #[test]
    fn answers_have_one_spelling() {
        for (text, expected) in [
            (" 18 ", "18"),
            ("1,080", "1080"),
            ("109,200,000", "109200000"),
            ("18.0", "18"),
            ("18.", "18"),
            ("3.50", "3.5"),
            ("-7.0", "-7"),
            ("10 000", "10000"),
            ("100", "100"),
            ("3:30 p.m.", "3:30 p.m."),
            ("Tom is a lempus.", "Tom is a lempus."),
            ("5/2", "5/2"),
            ("1.2.3", "1.2.3"),
            ("-", "-"),
            ("11, twelve", "11, twelve"),
        ] {
            assert_eq!(normal_answer(text), expected, "{text:?}");
        }
    }
}
