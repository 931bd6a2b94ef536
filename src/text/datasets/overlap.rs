//! Questions that stand in two data sets.

use crate::text::Problem;
use std::collections::HashMap;

/// When two questions are the same. White space is collapsed first, the separators of Unicode included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameQuestion {
    /// The whole text.
    Whole,
    /// The first 80 characters: finds questions that were edited later on.
    First80,
}

/// Pairs `(index in train, index in valid)` of the same question, by valid and then train index.
pub fn overlap(train: &[Problem], valid: &[Problem], rule: SameQuestion) -> Vec<(usize, usize)> {
    let key = |problem: &Problem| {
        let words: Vec<&str> = problem.question.split_whitespace().collect();
        let text = words.join(" ");
        match rule {
            SameQuestion::Whole => text,
            SameQuestion::First80 => text.chars().take(80).collect(),
        }
    };
    let mut known: HashMap<String, Vec<usize>> = HashMap::with_capacity(train.len());
    for (index, problem) in train.iter().enumerate() {
        known.entry(key(problem)).or_default().push(index);
    }
    let pairs = valid.iter().enumerate().flat_map(|(index, problem)| {
        let same = known.get(&key(problem)).map(Vec::as_slice).unwrap_or_default();
        same.iter().map(move |train| (*train, index))
    });
    pairs.collect()
}
