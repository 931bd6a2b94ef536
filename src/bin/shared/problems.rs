//! The flags that name problems, and the problems that they name.

use clap::Args;
use latch::base::{Error, Result};
use latch::run::problems::{self, Item};
use latch::run::student::Student;
use latch::text::{Problem, Templates, WordProblems};
use std::path::Path;

/// Generated problems where a command names no number of them.
const GENERATED: usize = 500;

/// Where problems come from.
#[derive(Args, Debug)]
#[command(next_help_heading = "Problems")]
pub struct ProblemArguments {
    /// Problem file, or `builtin` for generated word problems: those of a run with the same seed, steps and bound, first the
    /// ones it is tested on, then those it was tuned and trained on
    #[arg(long, default_value = "builtin")]
    pub data: String,
    /// Format of the file (auto looks at the first item)
    #[arg(long, default_value = "auto")]
    pub format: String,
    /// Leave out malformed items and count them
    #[arg(long)]
    pub skip_bad: bool,
    /// Steps of generated problems, e.g. 2 or 2-3
    #[arg(long, default_value = "2-3")]
    pub steps: String,
    /// Largest number of generated problems
    #[arg(long, default_value_t = 20)]
    pub bound: u32,
}

impl ProblemArguments {
    /// The first `limit` problems (0 = all), as text and as `student` reads them, and how many malformed ones were left
    /// out; `seed` is that of generated ones.
    ///
    /// # Errors
    /// A file that cannot be read, steps that are no numbers, no problems.
    pub fn items(&self, student: &Student, seed: u64, limit: usize) -> Result<(Vec<Item>, usize)> {
        let (mut problems, skipped) = match self.data.as_str() {
            "builtin" => (self.generated(seed, if limit == 0 { GENERATED } else { limit })?, 0),
            path => problems::read(Path::new(path), &self.format, self.skip_bad)?,
        };
        if limit > 0 {
            problems.truncate(limit);
        }
        if problems.is_empty() {
            let nothing = format!("{} holds no problems", self.data);
            return Err(Error::input("--data", nothing, "name another file"));
        }
        let encode = |(number, problem): (usize, Problem)| -> Result<Item> {
            let tokens = problem.encode(&student.tokenizer, student.markers.stop)?;
            Ok(Item { problem, tokens, number: number as u32 })
        };
        Ok((problems.into_iter().enumerate().map(encode).collect::<Result<_>>()?, skipped))
    }

    fn generated(&self, seed: u64, count: usize) -> Result<Vec<Problem>> {
        let wrong =
            || Error::input("--steps", format!("`{}`", self.steps), "give a number, or two as in 2-3");
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let (first, last) = self.steps.split_once('-').unwrap_or((&self.steps, &self.steps));
        let family = WordProblems {
            steps: number(first)?..=number(last)?,
            bound: self.bound,
            templates: Templates::Training,
            ..WordProblems::default()
        };
        Ok(family.split(seed, 0, 0, count)?.test)
    }
}
