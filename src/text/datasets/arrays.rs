//! Data sets that are one JSON array: Coconut's, ProsQA, SVAMP, MultiArith.
//!
//! Items are read one by one, so that a bad one can be named with its line and left out.

use super::{Format, Found, Items, line_at, normal_answer};
use crate::base::Result;
use crate::text::Problem;
use serde::Deserialize;
use serde_json::Value;

/// The format of an array, by the fields of its first item.
pub(super) fn detect(text: &str) -> Option<Format> {
    let mut at = 1;
    let item = next_value(text, &mut at).ok()?;
    let has = |field: &str| item.get(field).is_some();
    match () {
        () if has("sQuestion") => Some(Format::MultiArith),
        () if has("Body") && has("Question") => Some(Format::Svamp),
        () if has("question") && has("neg_target") => Some(Format::ProsQa),
        () if has("question") && has("steps") => Some(Format::Coconut),
        () => None,
    }
}

/// Reads the items of an array.
pub(super) fn read(text: &str, items: &mut Items, problem: impl Fn(&Value) -> Found) -> Result<()> {
    let blank = |at: usize| at + (text.len() - at - text[at..].trim_start().len());
    // Lines are counted as items are passed; counting from the beginning each time would take the square.
    let (mut counted, mut line) = (0, 1);
    let mut line_of = |at: usize| {
        line += line_at(&text.as_bytes()[counted..at]) - 1;
        counted = at;
        line
    };
    let mut at = blank(0);
    if !text[at..].starts_with('[') {
        return Err(items.broken(line_of(at), "expected a JSON array, which begins with `[`"));
    }
    at = blank(at + 1);
    for item in 1.. {
        if text[at..].starts_with(']') && item == 1 {
            break;
        }
        let first = line_of(at);
        let value = next_value(text, &mut at).map_err(|(offset, problem)| {
            let line = first - 1 + offset.max(1);
            items.broken(line, &format!("item {item} is not valid JSON: {problem}"))
        })?;
        items.take(item, || first, problem(&value))?;
        at = blank(at);
        let sign = text[at..].chars().next();
        at = match sign {
            Some(',') => blank(at + 1),
            Some(']') => break,
            _ => {
                let found = sign.map_or("the end of the file".to_string(), |sign| format!("{sign:?}"));
                return Err(
                    items.broken(line_of(at), &format!("{found} after item {item}, expected `,` or `]`"))
                );
            }
        };
    }
    let end = text[at..].find(']').map_or(text.len(), |first| blank(at + first + 1));
    match text[end..].chars().next() {
        None => Ok(()),
        Some(sign) => Err(items.broken(line_of(end), &format!("{sign:?} after the end of the array"))),
    }
}

/// The JSON value at `at`, which moves behind it; or the line of the fault, counted from `at` as 1, and the fault.
fn next_value(text: &str, at: &mut usize) -> std::result::Result<Value, (usize, String)> {
    let mut values = serde_json::Deserializer::from_str(&text[*at..]).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => {
            *at += values.byte_offset();
            Ok(value)
        }
        Some(Err(error)) => {
            Err((error.line(), error.to_string().split(" at line").next().unwrap_or_default().into()))
        }
        None => Err((1, "the file ends".to_string())),
    }
}

/// `question`, `steps`, `answer`.
pub(super) fn coconut(item: &Value) -> Found {
    let problem = Problem::deserialize(item).map_err(|error| error.to_string())?;
    Ok(Problem {
        question: problem.question.trim().to_string(),
        steps: problem.steps.iter().map(|step| step.trim().to_string()).collect(),
        answer: normal_answer(&problem.answer),
    })
}

/// `Body`, `Question`, `Answer` (a number).
pub(super) fn svamp(item: &Value) -> Found {
    let question = format!("{} {}", text(item, "Body")?.trim(), text(item, "Question")?.trim());
    Ok(Problem { question, steps: Vec::new(), answer: number(&item["Answer"], "Answer")? })
}

/// `sQuestion`, `lSolutions` (one number).
pub(super) fn multiarith(item: &Value) -> Found {
    let question = text(item, "sQuestion")?.trim().to_string();
    let answer = match item["lSolutions"].as_array().map(Vec::as_slice) {
        Some([solution]) => number(solution, "lSolutions")?,
        _ => return Err(format!("lSolutions is {}, expected an array of one number", item["lSolutions"])),
    };
    Ok(Problem { question, steps: Vec::new(), answer })
}

fn text<'a>(item: &'a Value, field: &str) -> std::result::Result<&'a str, String> {
    item[field].as_str().ok_or_else(|| format!("{field} is {}, expected a text", item[field]))
}

fn number(value: &Value, field: &str) -> std::result::Result<String, String> {
    match value {
        Value::Number(number) => Ok(normal_answer(&number.to_string())),
        other => Err(format!("{field} is {other}, expected a number")),
    }
}
