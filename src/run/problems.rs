//! The problems of a run: generated or read, encoded, split, and what was left out.

use super::recipe::{Recipe, Source};
use super::settings;
use crate::base::{Error, Result};
use crate::learn::coconut::Curriculum;
use crate::text::answer::{self, Extractor};
use crate::text::datasets::{self, Format, OnBad, SameQuestion};
use crate::text::{
    ANSWER_MARK, EncodedProblem, GraphProblems, Problem, Split, Templates, Tokenizer, WordProblems,
};
use std::collections::BTreeSet;
use std::path::Path;

/// One problem, as text and as tokens.
#[derive(Clone, Debug)]
pub struct Item {
    /// As text.
    pub problem: Problem,
    /// As tokens.
    pub tokens: EncodedProblem,
    /// Its place in its set: with the seed, what randomness on it depends on.
    pub number: u32,
}

/// A set of problems for one purpose.
#[derive(Clone, Debug, Default)]
pub struct ProblemSet {
    /// What it is called in tables.
    pub name: String,
    /// The problems.
    pub items: Vec<Item>,
    /// Malformed items that were left out.
    pub bad: usize,
    /// Items longer than the run takes.
    pub too_long: usize,
}

/// All problems of a run.
#[derive(Clone, Debug)]
pub struct Problems {
    /// To train on.
    pub train: ProblemSet,
    /// Further problems for reinforcement learning, of which only answers are known to it; may be empty.
    pub fresh: ProblemSet,
    /// To tune on.
    pub valid: ProblemSet,
    /// To report.
    pub test: ProblemSet,
    /// Out of the training distribution: other stories, longer chains.
    pub shifted: Vec<ProblemSet>,
    /// Questions of validation and of test that the training file has too.
    pub overlap: [usize; 2],
    /// Training problems that are left out for that.
    pub known: usize,
}

impl Problems {
    /// Whether problems that were given are not used.
    pub fn left_out(&self) -> bool {
        let sets = [&self.train, &self.valid, &self.test];
        self.known > 0 || sets.into_iter().any(|set| set.bad + set.too_long > 0)
    }

    /// What reinforcement learning asks: the further problems, or those of training where there are none.
    pub fn prompts(&self) -> &ProblemSet {
        if self.fresh.items.is_empty() { &self.train } else { &self.fresh }
    }
}

/// Generates or reads the problems of `recipe`. `stop` ends every answer; `longest` is the most positions that an
/// example may take.
///
/// # Errors
/// A file that cannot be read or has malformed items, a family of problems that is too small, or nothing left.
pub fn load(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    stop: u32,
    curriculum: &Curriculum,
    longest: usize,
) -> Result<Problems> {
    let keys = &recipe.data;
    let encode = |name: &str, problems: Vec<Problem>, bad: usize| -> Result<ProblemSet> {
        let mut set = ProblemSet { name: name.into(), bad, ..ProblemSet::default() };
        if let Some(first) = problems.first() {
            first.check_pieces(tokenizer, stop)?;
        }
        for problem in problems {
            let tokens = problem.encode(tokenizer, stop)?;
            match positions(&tokens, curriculum) <= longest {
                true => set.items.push(Item { problem, tokens, number: set.items.len() as u32 }),
                false => set.too_long += 1,
            }
        }
        Ok(set)
    };
    let sizes = [keys.limit_train, keys.limit_valid, keys.limit_test];
    let fresh = recipe.grpo.fresh_problems;
    let problems = match keys.source {
        Source::Words => {
            let family = |steps, templates| WordProblems {
                steps,
                bound: keys.words_bound as u32,
                templates,
                ..WordProblems::default()
            };
            let steps = keys.words_steps_min..=keys.words_steps_max;
            let mut split = generated(sizes, |[train, valid, test]| {
                family(steps.clone(), Templates::Training).split(recipe.seed, train + fresh, valid, test)
            })?;
            let fresh = split.train.split_off(split.train.len() - fresh);
            let longer = keys.words_steps_max + 1..=keys.words_steps_max + 1;
            let stories = family(steps, Templates::HeldOut).split(recipe.seed, 0, 0, sizes[2])?;
            let longer = family(longer, Templates::Training).split(recipe.seed, 0, 0, sizes[2])?;
            Problems {
                train: encode("train", split.train, 0)?,
                fresh: encode("fresh", fresh, 0)?,
                valid: encode("valid", split.valid, 0)?,
                test: encode("test", split.test, 0)?,
                shifted: vec![
                    encode("other stories", stories.test, 0)?,
                    encode("one step more", longer.test, 0)?,
                ],
                overlap: [0, 0],
                known: 0,
            }
        }
        Source::Graph => {
            let kinds = keys.graph_nodes.saturating_sub(2);
            let family = |path| GraphProblems { path, kinds, edges: kinds + kinds / 2 };
            let path = keys.graph_path..=keys.graph_path;
            let mut split = generated(sizes, |[train, valid, test]| {
                family(path).split(recipe.seed, train + fresh, valid, test)
            })?;
            let fresh = split.train.split_off(split.train.len() - fresh);
            let longer = keys.graph_path + 1..=keys.graph_path + 1;
            let longer = family(longer).split(recipe.seed, 0, 0, sizes[2])?;
            Problems {
                train: encode("train", split.train, 0)?,
                fresh: encode("fresh", fresh, 0)?,
                valid: encode("valid", split.valid, 0)?,
                test: encode("test", split.test, 0)?,
                shifted: vec![encode("one step more", longer.test, 0)?],
                overlap: [0, 0],
                known: 0,
            }
        }
        Source::File => {
            let read = |path: &str, name: &str, limit: usize| -> Result<ProblemSet> {
                if path.is_empty() {
                    return Err(Error::input(
                        format!("data.{name}"),
                        "no file is named",
                        "set it, or use data.source = \"words\"",
                    ));
                }
                let (mut problems, bad) = read(Path::new(path), &keys.format.to_string(), keys.skip_bad)?;
                if limit > 0 {
                    problems.truncate(limit);
                }
                encode(name, problems, bad)
            };
            let train = read(&keys.train, "train", keys.limit_train)?;
            let valid = read(&keys.valid, "valid", keys.limit_valid)?;
            let test = read(&keys.test, "test", keys.limit_test)?;
            // Questions that are asked later are not trained on.
            let texts =
                |set: &ProblemSet| set.items.iter().map(|item| item.problem.clone()).collect::<Vec<_>>();
            let asked = texts(&train);
            let mut known: BTreeSet<usize> = BTreeSet::new();
            let overlap = [&valid, &test].map(|set| {
                let pairs = datasets::overlap(&asked, &texts(set), SameQuestion::First80);
                known.extend(pairs.iter().map(|(index, _)| *index));
                pairs.iter().map(|(_, index)| *index).collect::<BTreeSet<_>>().len()
            });
            let mut train = train;
            let mut index = 0;
            train.items.retain(|_| {
                index += 1;
                !known.contains(&(index - 1))
            });
            for (number, item) in train.items.iter_mut().enumerate() {
                item.number = number as u32;
            }
            Problems {
                train,
                fresh: ProblemSet::default(),
                valid,
                test,
                shifted: Vec::new(),
                overlap,
                known: known.len(),
            }
        }
    };
    for set in [&problems.train, &problems.valid, &problems.test] {
        if set.items.is_empty() {
            let known = if set.name == "train" { problems.known } else { 0 };
            return Err(Error::input(
                format!("{} problems", set.name),
                format!(
                    "none are left ({} malformed, {} longer than {longest} positions, {known} asked in validation or test)",
                    set.bad, set.too_long
                ),
                match (longest, known) {
                    (0, _) => {
                        "answers and latents leave questions no room: lower grpo.max_new_tokens, or take a model with more positions"
                    }
                    (_, 0) => "raise data.max_positions, or check the file",
                    _ => {
                        "questions whose first 80 characters are the same count as one: give other files, or leave out what all questions begin with"
                    }
                },
            ));
        }
        let extractor = settings::extractor(recipe);
        expect_readable(&format!("{} problems", set.name), &set.items, extractor, "data.extractor")?;
    }
    Ok(problems)
}

/// Refuses `problems`, called `what`, whose own answers would all count as wrong; `key` is what sets the extractor.
///
/// # Errors
/// They are such problems.
pub fn expect_readable(what: &str, problems: &[Item], extractor: Extractor, key: &str) -> Result<()> {
    let counts = |gold: &str| answer::is_right(extractor, &format!("{ANSWER_MARK}{gold}"), gold);
    match problems.first() {
        Some(first) if !problems.iter().any(|item| counts(&item.problem.answer)) => Err(Error::input(
            what,
            format!(
                "{key} finds none of their answers, e.g. {:?}: whatever is said would be wrong",
                first.problem.answer
            ),
            format!("set {key} to strict_string, which compares texts"),
        )),
        _ => Ok(()),
    }
}

/// The problems of a file, and how many malformed items were left out.
///
/// # Errors
/// An unreadable file, an unknown format, or a malformed item unless those are skipped.
pub fn read(path: &Path, format: &str, skip_bad: bool) -> Result<(Vec<Problem>, usize)> {
    let format: Option<Format> = match format {
        "auto" => None,
        name => Some(name.parse()?),
    };
    let on_bad = if skip_bad { OnBad::Skip } else { OnBad::Fail };
    let dataset = datasets::read(path, format, on_bad)?;
    Ok((dataset.problems, dataset.skipped.len()))
}

/// Generated sets need sizes: what is not limited gets a thousand.
fn generated(sizes: [usize; 3], split: impl FnOnce([usize; 3]) -> Result<Split>) -> Result<Split> {
    split(sizes.map(|size| if size == 0 { 1000 } else { size }))
}

/// The most positions that a problem takes at any stage.
fn positions(tokens: &EncodedProblem, curriculum: &Curriculum) -> usize {
    let steps: usize = tokens.steps.iter().map(Vec::len).sum();
    let thoughts = curriculum.thoughts_per_step * curriculum.max_latent_stage;
    tokens.question.len() + 2 + thoughts + steps + tokens.answer.len()
}
