//! Embedded word problems: a story whose quantity changes step by step, exact integer steps, one answer.
//!
//! A problem is a pure function of `(seed, index)`. Each step works on the result of the one before, the answer is the
//! last result, and it never equals a number that the question mentions, so that nothing can be copied.
//! The sentences stand in stories.rs.

use super::problem::{Problem, Split};
use super::stories::{HELD_OUT, NAMES, Story, TRAINING};
use crate::base::rng::{Draws, Purpose, StreamKey};
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// An operation of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// `a+b`.
    Add,
    /// `a-b`, at least 1.
    Subtract,
    /// `a*b`, b in 2..=9.
    Multiply,
    /// `a/b` without remainder, b in 2..=9.
    Divide,
}

impl Operation {
    /// All four.
    pub const ALL: [Operation; 4] =
        [Operation::Add, Operation::Subtract, Operation::Multiply, Operation::Divide];

    fn sign(self) -> char {
        match self {
            Operation::Add => '+',
            Operation::Subtract => '-',
            Operation::Multiply => '*',
            Operation::Divide => '/',
        }
    }

    /// The operands with which `value` leads to a result in `1..=bound`.
    fn operands(self, value: u32, bound: u32) -> Vec<u32> {
        match self {
            Operation::Add => (2..=bound.saturating_sub(value)).collect(),
            Operation::Subtract => (2..value).collect(),
            Operation::Multiply => (2..=9).filter(|b| value * b <= bound).collect(),
            Operation::Divide => (2..=9).filter(|b| value.is_multiple_of(*b)).collect(),
        }
    }

    fn apply(self, value: u32, operand: u32) -> u32 {
        match self {
            Operation::Add => value + operand,
            Operation::Subtract => value - operand,
            Operation::Multiply => value * operand,
            Operation::Divide => value / operand,
        }
    }
}

/// Which stories are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Templates {
    /// Eight stories to train on.
    Training,
    /// Three stories of the same words in other sentences.
    HeldOut,
    /// Both.
    All,
}

impl Templates {
    fn stories(self) -> Vec<&'static Story> {
        match self {
            Templates::Training => TRAINING.iter().collect(),
            Templates::HeldOut => HELD_OUT.iter().collect(),
            Templates::All => TRAINING.iter().chain(HELD_OUT).collect(),
        }
    }
}

/// A family of word problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordProblems {
    /// Number of steps; each number in it is equally likely.
    pub steps: RangeInclusive<usize>,
    /// Largest number: the first quantity lies in `2..=bound`, every result in `1..=bound`.
    pub bound: u32,
    /// Which stories.
    pub templates: Templates,
    /// Which operations; one named twice is drawn twice as often.
    pub operations: Vec<Operation>,
}

/// Largest `bound`; numbers stay short, and no product overflows.
const LARGEST_BOUND: u32 = 1_000_000;
/// Chains drawn before a family counts as empty.
const ATTEMPTS: u32 = 1000;

/// Longest chain: beyond it a story is longer than any model reads.
const MOST_STEPS: usize = 1000;

impl Default for WordProblems {
    /// Two or three steps, numbers below 100, training stories, all operations.
    fn default() -> Self {
        WordProblems {
            steps: 2..=3,
            bound: 99,
            templates: Templates::Training,
            operations: Operation::ALL.to_vec(),
        }
    }
}

impl WordProblems {
    /// Problem `index` of `seed`.
    ///
    /// # Errors
    /// The family is empty: no steps, no operations, or a bound that leaves no room for them.
    pub fn problem(&self, seed: u64, index: u32) -> Result<Problem> {
        self.check()?;
        let stories = self.templates.stories();
        let key = StreamKey::new(seed, 0, index, 0, Purpose::Problem);
        let mut draws = key.draws(0, 0);
        let story = stories[draws.below(stories.len())];
        let name = NAMES[draws.below(NAMES.len())];
        let things = story.things[draws.below(story.things.len())];
        let count = self.steps.start() + draws.below(self.steps.end() - self.steps.start() + 1);
        let chain = (1..=ATTEMPTS).find_map(|attempt| self.chain(count, &mut key.draws(0, attempt)));
        let Some((first, changes)) = chain else {
            return Err(self.wrong(format!(
                "no chain of {count} steps found for problem {index} with results in 1..={} in {ATTEMPTS} attempts",
                self.bound
            )));
        };
        let mut question = fill(story.opening, name, things, first);
        let (mut value, mut steps) = (first, Vec::with_capacity(count));
        for (operation, operand) in changes {
            let sentence = match operation {
                Operation::Add => story.add,
                Operation::Subtract => story.subtract,
                Operation::Multiply => story.multiply,
                Operation::Divide => story.divide,
            };
            question.push(' ');
            question.push_str(&fill(sentence, name, things, operand));
            let result = operation.apply(value, operand);
            steps.push(format!("<<{value}{}{operand}={result}>>", operation.sign()));
            value = result;
        }
        question.push(' ');
        question.push_str(&fill(story.question, name, things, 0));
        Ok(Problem { question, steps, answer: value.to_string() })
    }

    /// Different problems for training, validation and test, in the order of their index, test first.
    ///
    /// # Errors
    /// As [`WordProblems::problem`], and too few different questions.
    pub fn split(&self, seed: u64, train: usize, valid: usize, test: usize) -> Result<Split> {
        Split::of_distinct("word problems", [train, valid, test], |index| self.problem(seed, index))
    }

    /// A first quantity and the changes to it; none where a draw ends in a blind alley.
    fn chain(&self, count: usize, draws: &mut Draws) -> Option<(u32, Vec<(Operation, u32)>)> {
        let first = 2 + draws.below(self.bound as usize - 1) as u32;
        let (mut value, mut changes) = (first, Vec::with_capacity(count));
        for _ in 0..count {
            let possible: Vec<(Operation, Vec<u32>)> = self
                .operations
                .iter()
                .map(|operation| (*operation, operation.operands(value, self.bound)))
                .filter(|(_, operands)| !operands.is_empty())
                .collect();
            if possible.is_empty() {
                return None;
            }
            let (operation, operands) = &possible[draws.below(possible.len())];
            let operand = operands[draws.below(operands.len())];
            value = operation.apply(value, operand);
            changes.push((*operation, operand));
        }
        let mentioned = value == first || changes.iter().any(|(_, operand)| *operand == value);
        (!mentioned).then_some((first, changes))
    }

    fn check(&self) -> Result<()> {
        if *self.steps.start() == 0 || self.steps.is_empty() {
            return Err(
                self.wrong(format!("steps are {:?}, expected a range that begins at 1 or more", self.steps))
            );
        }
        if *self.steps.end() > MOST_STEPS {
            return Err(self.wrong(format!("steps are {:?}, expected at most {MOST_STEPS}", self.steps)));
        }
        if self.operations.is_empty() {
            return Err(self.wrong("no operations are allowed".to_string()));
        }
        if !(4..=LARGEST_BOUND).contains(&self.bound) {
            return Err(self.wrong(format!("bound is {}, expected 4 to {LARGEST_BOUND}", self.bound)));
        }
        Ok(())
    }

    fn wrong(&self, problem: String) -> Error {
        Error::input(
            "word problems",
            problem,
            "allow more operations, a larger bound or other numbers of steps",
        )
    }
}

/// A sentence with its slots filled.
fn fill(sentence: &str, (name, subject, pronoun): (&str, &str, &str), things: &str, number: u32) -> String {
    sentence
        .replace("{name}", name)
        .replace("{She}", subject)
        .replace("{she}", pronoun)
        .replace("{things}", things)
        .replace("{n}", &number.to_string())
}

/// Every sentence with every name and every thing, numbers as 0: the words of all problems.
pub(super) fn all_sentences() -> Vec<String> {
    let mut sentences = Vec::new();
    for story in TRAINING.iter().chain(HELD_OUT) {
        for sentence in story.sentences() {
            sentences.extend(NAMES.map(|name| fill(sentence, name, story.things[0], 0)));
            sentences.extend(story.things.iter().map(|things| fill(sentence, NAMES[0], things, 0)));
        }
    }
    sentences
}
