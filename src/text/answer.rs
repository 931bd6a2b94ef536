//! Answers in generated text: extraction and reward (algorithms E).

use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// How an answer is found in a text and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extractor {
    /// Coconut's rule (run.py): the text after the last `#` (the whole text where there is none), without commas and
    /// outer white space, is the same string as the gold answer. The only one for answers that are not numbers.
    StrictString,
    /// The same text as a number, within `1e-6 max(1, |gold|)` of the gold answer (LatentTTS).
    Numeric,
    /// CODI's rule: the last `-?\d+\.?\d*` anywhere in the text without its commas, equal to the gold number.
    LastNumber,
}

impl FromStr for Extractor {
    type Err = Error;

    fn from_str(name: &str) -> Result<Extractor> {
        match name {
            "strict_string" => Ok(Extractor::StrictString),
            "numeric" => Ok(Extractor::Numeric),
            "last_number" => Ok(Extractor::LastNumber),
            _ => Err(Error::input(
                "answer extractor",
                format!("`{name}` is not known"),
                "use strict_string, numeric or last_number",
            )),
        }
    }
}

/// 1 if the answer in `text` is `gold` and generation stopped by itself, else 0. `text` is what was generated, without
/// the end-of-text token; `stopped` says whether that token came.
pub fn reward(extractor: Extractor, text: &str, stopped: bool, gold: &str) -> f64 {
    f64::from(u8::from(stopped && is_right(extractor, text, gold)))
}

/// Whether the answer in `text` is `gold`.
pub fn is_right(extractor: Extractor, text: &str, gold: &str) -> bool {
    match extractor {
        // An empty answer is Coconut's own corner: it equals an empty gold alone, which no data set has.
        Extractor::StrictString => after_mark(text) == without_commas(gold),
        Extractor::Numeric => match (number(&after_mark(text)), number(&without_commas(gold))) {
            (Some(found), Some(gold)) => (found - gold).abs() <= 1e-6 * gold.abs().max(1.0),
            _ => false,
        },
        Extractor::LastNumber => match (last_number(text), number(&without_commas(gold))) {
            (Some(found), Some(gold)) => found == gold,
            _ => false,
        },
    }
}

/// The answer in `text` in one spelling, so that equal answers are equal strings and votes can be counted; none where
/// there is no answer. Numbers are written without trailing zeros.
pub fn extracted(extractor: Extractor, text: &str) -> Option<String> {
    let spelled = |value: f64| (value + 0.0).to_string();
    match extractor {
        Extractor::StrictString => Some(after_mark(text)).filter(|answer| !answer.is_empty()),
        Extractor::Numeric => number(&after_mark(text)).map(spelled),
        Extractor::LastNumber => last_number(text).map(spelled),
    }
}

fn without_commas(text: &str) -> String {
    text.replace(',', "").trim().to_string()
}

/// What stands after the last `#`.
fn after_mark(text: &str) -> String {
    without_commas(text.rsplit('#').next().unwrap_or(text))
}

/// A finite number written in digits; names of numbers (`inf`, `nan`) are none.
fn number(text: &str) -> Option<f64> {
    let spelled = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    text.parse().ok().filter(|value: &f64| spelled && value.is_finite())
}

/// The last `-?\d+\.?\d*`, matches found from left to right.
fn last_number(text: &str) -> Option<f64> {
    let text = text.replace(',', "");
    let bytes = text.as_bytes();
    let digits = |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let (mut at, mut last) = (0, None);
    while at < bytes.len() {
        let first = at + usize::from(bytes[at] == b'-');
        let mut end = digits(first);
        if end == first {
            at += 1;
            continue;
        }
        if bytes.get(end) == Some(&b'.') {
            end = digits(end + 1);
        }
        last = text[at..end].parse().ok().filter(|value: &f64| value.is_finite());
        at = end;
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use Extractor::{LastNumber, Numeric, StrictString};

    /// Text, gold, and whether each extractor finds gold in it: strict, numeric, last number.
    const CASES: &[(&str, &str, [bool; 3])] = &[
        ("### 18", "18", [true, true, true]),
        ("###  18", "18", [true, true, true]),
        ("### 18\n", "18", [true, true, true]),
        ("###18", "18", [true, true, true]),
        ("#### 1,000", "1000", [true, true, true]),
        ("#### 1000", "1,000", [true, true, true]),
        ("### 18.", "18", [false, true, true]),
        ("### 18.0", "18", [false, true, true]),
        ("### 18", "18.0", [false, true, true]),
        ("### -5", "-5", [true, true, true]),
        ("### 5", "-5", [false, false, false]),
        ("### - 5", "-5", [false, false, false]),
        ("### 3 apples", "3", [false, false, true]),
        ("### $3", "3", [false, false, true]),
        // Without a mark the whole text is the answer.
        ("18", "18", [true, true, true]),
        ("It is 18", "18", [false, false, true]),
        ("### 17 ### 18", "18", [true, true, true]),
        ("### 18 ### 17", "18", [false, false, false]),
        ("### 18 #", "18", [false, false, true]),
        ("", "18", [false, false, false]),
        ("###", "18", [false, false, false]),
        ("###", "0", [false, false, false]),
        ("### inf", "18", [false, false, false]),
        ("### nan", "nan", [true, false, false]),
        ("### 1e400", "inf", [false, false, false]),
        ("### 3-4", "-4", [false, false, true]),
        ("### .5", "0.5", [false, true, false]),
        ("### 0.33333333", "0.3333333", [false, true, false]),
        ("### 1000001", "1000000.5", [false, true, false]),
        ("### 118", "18", [false, false, false]),
        ("### Tom is a lempus.", "Tom is a lempus.", [true, false, false]),
        ("### Tom is a terpus.", "Tom is a lempus.", [false, false, false]),
        ("### ١٨", "18", [false, false, false]),
    ];

    #[test]
    fn answers_with_traps() {
        for (text, gold, expected) in CASES {
            let found = [StrictString, Numeric, LastNumber].map(|extractor| is_right(extractor, text, gold));
            assert_eq!(found, *expected, "text {text:?}, gold {gold:?}");
        }
    }

    #[test]
    fn a_reward_needs_the_answer_and_the_stop() {
        for extractor in [StrictString, Numeric, LastNumber] {
            assert_eq!(reward(extractor, "### 18", true, "18"), 1.0);
            assert_eq!(reward(extractor, "### 18", false, "18"), 0.0);
            assert_eq!(reward(extractor, "### 19", true, "18"), 0.0);
        }
    }

    #[test]
    fn votes_count_equal_answers_together() {
        for text in ["### 1,018", "### 1018.0", "###1018."] {
            assert_eq!(extracted(Numeric, text).as_deref(), Some("1018"));
            assert_eq!(extracted(LastNumber, text).as_deref(), Some("1018"));
        }
        assert_eq!(extracted(Numeric, "### -0").as_deref(), Some("0"));
        assert_eq!(extracted(Numeric, "### -1.50").as_deref(), Some("-1.5"));
        assert_eq!(extracted(StrictString, "### 1,018.0").as_deref(), Some("1018.0"));
        assert_eq!(extracted(StrictString, "###"), None);
        assert_eq!(extracted(Numeric, "### many"), None);
        assert_eq!(extracted(LastNumber, "none"), None);
    }

    #[test]
    fn names_are_read_and_others_refused() {
        assert_eq!("last_number".parse::<Extractor>().unwrap(), LastNumber);
        assert_eq!("numeric".parse::<Extractor>().unwrap(), Numeric);
        assert_eq!("strict_string".parse::<Extractor>().unwrap(), StrictString);
        let error = "exact".parse::<Extractor>().unwrap_err().to_string();
        assert!(
            error.contains("`exact`") && error.contains("strict_string, numeric or last_number"),
            "{error}"
        );
    }
}
