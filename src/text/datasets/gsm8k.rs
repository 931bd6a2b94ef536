//! GSM8K in its two line formats: OpenAI's JSON lines and the text lines of iCoT and GSM8K-Aug.

use super::{Found, normal_answer};
use crate::text::Problem;
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    question: String,
    answer: String,
}

/// Whether a first line is one of GSM8K's.
pub(super) fn looks_like_jsonl(line: &str) -> bool {
    serde_json::from_str::<Line>(line).is_ok()
}

/// `{"question": .., "answer": "sentences with <<a+b=c>>c marks\n#### answer"}`. Steps are the marks, in order; a
/// solution without marks has none.
pub(super) fn from_json_line(line: &str) -> Found {
    let Line { question, answer } = serde_json::from_str(line)
        .map_err(|error| format!("expected an object with question and answer: {error}"))?;
    let Some((solution, answer)) = answer.rsplit_once("####") else {
        return Err("the answer has no `####`".to_string());
    };
    let (steps, _) = marks(solution)?;
    Ok(Problem { question: question.trim().to_string(), steps, answer: normal_answer(answer) })
}

/// `question||<<step>> <<step>> #### answer`. The steps' part may be empty.
pub(super) fn from_icot_line(line: &str) -> Found {
    let Some((question, rest)) = line.split_once("||") else { return Err("has no `||`".to_string()) };
    let Some((solution, answer)) = rest.rsplit_once("####") else {
        return Err("has no `####` after `||`".to_string());
    };
    let (steps, between) = marks(solution)?;
    if let Some(text) = between.iter().find(|text| !text.trim().is_empty()) {
        return Err(format!("{text:?} stands between the steps, expected <<..>> and spaces alone"));
    }
    Ok(Problem { question: question.trim().to_string(), steps, answer: normal_answer(answer) })
}

/// The `<<..>>` marks of a text with their brackets, and the texts around them.
fn marks(text: &str) -> Result<(Vec<String>, Vec<&str>), String> {
    let (mut steps, mut between, mut rest) = (Vec::new(), Vec::new(), text);
    while let Some(first) = rest.find("<<") {
        let Some(length) = rest[first..].find(">>") else {
            let shown: String = rest[first..].chars().take(40).collect();
            return Err(format!("a step is not closed: {shown:?} has no `>>`"));
        };
        between.push(&rest[..first]);
        steps.push(rest[first..first + length + 2].to_string());
        rest = &rest[first + length + 2..];
    }
    between.push(rest);
    Ok((steps, between))
}
