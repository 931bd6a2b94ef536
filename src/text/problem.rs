//! One problem with its reasoning, as text and as tokens.

use super::Tokenizer;
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// A question, the steps that lead to its answer, and the answer: Coconut's record (facebookresearch/coconut, data/).
/// Fields that its files have beside these are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// What is asked.
    pub question: String,
    /// The steps in order, each a line without its end, e.g. `<<12+5=17>>`. May be empty.
    pub steps: Vec<String>,
    /// The answer alone, e.g. `17`.
    pub answer: String,
}

/// A problem as tokens. The pieces joined are the whole text's tokens; see [`Problem::check_pieces`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedProblem {
    /// The question and an end of line, with whatever the tokenizer puts before a text.
    pub question: Vec<u32>,
    /// Each step and an end of line.
    pub steps: Vec<Vec<u32>>,
    /// `### `, the answer, and the end-of-text token.
    pub answer: Vec<u32>,
}

/// What stands before an answer.
pub const ANSWER_MARK: &str = "### ";

impl Problem {
    /// The tokens of question, steps and answer, each encoded alone (algorithms A.1; Coconut's dataset.py). `end` is the
    /// end-of-text token.
    ///
    /// # Errors
    /// A text that the tokenizer cannot encode.
    pub fn encode(&self, tokenizer: &Tokenizer, end: u32) -> Result<EncodedProblem> {
        let steps = self.steps.iter().map(|step| tokenizer.encode(&format!("{step}\n"), false));
        let mut answer = tokenizer.encode(&format!("{ANSWER_MARK}{}", self.answer), false)?;
        answer.push(end);
        Ok(EncodedProblem {
            question: tokenizer.encode(&format!("{}\n", self.question), true)?,
            steps: steps.collect::<Result<_>>()?,
            answer,
        })
    }

    /// The whole text: question, steps and marked answer, a line each.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.question);
        for step in &self.steps {
            text.push_str(step);
            text.push('\n');
        }
        text + ANSWER_MARK + &self.answer
    }

    /// Checks that pieces encoded alone are the tokens of the whole text, which Coconut's loader asserts on its first
    /// sample. Where they are not, a model trained on pieces meets other tokens in plain text.
    ///
    /// # Errors
    /// They differ: the message shows where, with both tokens; or a text cannot be encoded.
    pub fn check_pieces(&self, tokenizer: &Tokenizer, end: u32) -> Result<()> {
        let pieces = self.encode(tokenizer, end)?;
        let joined: Vec<u32> = pieces
            .question
            .into_iter()
            .chain(pieces.steps.into_iter().flatten())
            .chain(pieces.answer)
            .collect();
        let mut whole = tokenizer.encode(&self.text(), true)?;
        whole.push(end);
        if joined == whole {
            return Ok(());
        }
        let at = joined.iter().zip(&whole).position(|(a, b)| a != b).unwrap_or(joined.len().min(whole.len()));
        let name = |ids: &[u32]| match ids.get(at) {
            Some(&id) => format!("{id} {:?}", tokenizer.token(id).unwrap_or_default()),
            None => "the end".to_string(),
        };
        Err(Error::input(
            "tokenizer",
            format!(
                "question, steps and answer encoded alone give other tokens than the whole text: token {at} is {} in the \
                 pieces, {} in the whole; the text is {:?}",
                name(&joined),
                name(&whole),
                self.text()
            ),
            "use a tokenizer that ends a token at the end of a line",
        ))
    }
}

/// Problems for training, validation and test; no question is in two of them, or twice in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Trained on.
    pub train: Vec<Problem>,
    /// For choosing settings.
    pub valid: Vec<Problem>,
    /// For reported results.
    pub test: Vec<Problem>,
}

/// Most problems that are made at once: beyond it they take more memory and time than any use of them is worth.
const MOST_MADE: usize = 10_000_000;

impl Split {
    /// Fills the parts with different questions of `make(0)`, `make(1)`, ... The test part comes first, then validation:
    /// they do not change with the number of training problems.
    ///
    /// # Errors
    /// `make` fails, or keeps repeating itself before all parts are full; more than ten million problems.
    pub fn of_distinct(
        what: &str,
        [train, valid, test]: [usize; 3],
        mut make: impl FnMut(u32) -> Result<Problem>,
    ) -> Result<Split> {
        let wanted = train.saturating_add(valid).saturating_add(test);
        if wanted > MOST_MADE {
            return Err(Error::input(
                what,
                format!("{wanted} are wanted, expected at most {MOST_MADE}"),
                "ask for fewer problems",
            ));
        }
        let tries = u32::try_from(wanted * 20 + 1000).unwrap_or(u32::MAX);
        let mut seen = HashSet::with_capacity(wanted);
        let mut all = Vec::with_capacity(wanted);
        for index in 0..tries {
            if all.len() == wanted {
                break;
            }
            let problem = make(index)?;
            if seen.insert(problem.question.clone()) {
                all.push(problem);
            }
        }
        if all.len() < wanted {
            return Err(Error::input(
                what,
                format!("only {} different questions among {tries} drawn, {wanted} are wanted", all.len()),
                "ask for fewer problems, or allow more steps, larger numbers or more templates",
            ));
        }
        let train = all.split_off(valid + test);
        let valid = all.split_off(test);
        Ok(Split { train, valid, test: all })
    }
}
