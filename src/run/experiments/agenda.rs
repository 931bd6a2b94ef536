//! What experiments still have to do in a folder, and what that takes: asked before anything is done.
//!
//! The memory is that of a rehearsal: the benches and arms themselves, in their order, on an accountant (run/admission.rs).

use super::bench::{Bench, based};
use super::laboratory::Finding;
use super::{Experiment, Variation};
use crate::base::{Error, Result};
use crate::device::Device;
use crate::run::admission;
use crate::run::dry_run::{self, Forecast};
use crate::run::problems::Problems;
use crate::run::recipe::Recipe;
use crate::run::rehearsal::{Rehearsed, Watched};
use crate::run::student::Student;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The key of what the model before came to.
pub(super) const BASE: &str = "base";
/// The recipe of a folder's experiments.
pub(super) const RECIPE: &str = "recipe.toml";

/// What tells one folder's experiments from another's: seeds are theirs alike.
pub(super) fn unseeded(recipe: &Recipe) -> Recipe {
    Recipe { seed: 0, ..recipe.clone() }
}

/// Where the base model of a seed is kept.
pub(super) fn base_folder(folder: &Path, seed: u64, words: bool) -> PathBuf {
    let kind = if words { "-words" } else { "" };
    folder.join("base").join(format!("seed-{seed}{kind}"))
}

/// What a folder keeps of earlier experiments.
#[derive(Clone, Debug)]
pub struct Kept {
    folder: PathBuf,
    /// The recipe, without its seed.
    recipe: Recipe,
    /// Results.
    pub(super) findings: Vec<Finding>,
}

impl Kept {
    /// Looks at `folder`, where experiments of `recipe` may have been; nothing is written, and it need not be there.
    ///
    /// # Errors
    /// No folder, or one of another recipe; results that cannot be read.
    pub fn read(folder: &Path, recipe: &Recipe) -> Result<Kept> {
        if folder.exists() && !folder.is_dir() {
            return Err(Error::file(
                folder,
                "is a file, expected a folder for experiments",
                "name another folder with --out",
            ));
        }
        let recipe = unseeded(recipe);
        let kept = folder.join(RECIPE);
        if kept.is_file() {
            let text = std::fs::read_to_string(&kept).map_err(Error::io(&kept, "cannot read"))?;
            let before = Recipe::parse(&text, &kept.display().to_string())?;
            if let Some((key, before, now)) = before.differences(&recipe).first() {
                return Err(Error::file(
                    &kept,
                    format!("holds experiments with {key} = {before}, now it is {now}"),
                    "name another folder with --out",
                ));
            }
        }
        let results = folder.join("results.jsonl");
        let mut findings = Vec::new();
        if results.is_file() {
            let text = std::fs::read_to_string(&results).map_err(Error::io(&results, "cannot read"))?;
            // A torn last line is a result that was being written: it is found again.
            findings.extend(text.lines().filter_map(|line| serde_json::from_str::<Finding>(line).ok()));
        }
        Ok(Kept { folder: folder.to_path_buf(), recipe, findings })
    }

    fn has_base(&self, seed: u64, words: bool) -> bool {
        base_folder(&self.folder, seed, words).is_dir()
    }
}

/// What is still to be done on one base.
pub(super) struct Session<'v> {
    /// The base is the model that reasons in words.
    pub words: bool,
    /// It is asked itself.
    pub base: bool,
    /// Each once, however often it is listed.
    pub variations: Vec<&'v Variation>,
}

/// What is missing of `variations` on one seed, of which the results with `known` keys are there.
pub(super) fn sessions<'v>(known: &dyn Fn(&str) -> bool, variations: &'v [Variation]) -> Vec<Session<'v>> {
    let session = |words: bool| {
        let mut keys = BTreeSet::new();
        let missing = |variation: &&Variation| {
            let key = variation.key();
            variation.words() == words && !known(&key) && keys.insert(key)
        };
        let variations: Vec<&Variation> = variations.iter().filter(missing).collect();
        Session { words, base: !words && !known(BASE), variations }
    };
    let all = [false, true].map(session).into_iter();
    all.filter(|session| session.base || !session.variations.is_empty()).collect()
}

/// Experiments that are about to run, with their problems.
pub struct Agenda<'a> {
    recipe: &'a Recipe,
    experiments: &'a [Experiment],
    seeds: Range<u64>,
    kept: Kept,
    /// By seed, and whether the base reasons in words.
    problems: BTreeMap<(u64, bool), Arc<Problems>>,
}

impl<'a> Agenda<'a> {
    /// What is missing in the folder of `kept` of `experiments` over `seeds`. Problems are read with the tokenizer of a
    /// model on an accountant of `device`, which is asked for nothing else.
    ///
    /// # Errors
    /// A recipe that cannot be run, problems that cannot be read.
    pub fn of(
        recipe: &'a Recipe,
        experiments: &'a [Experiment],
        seeds: Range<u64>,
        kept: Kept,
        device: &Device,
    ) -> Result<Agenda<'a>> {
        let mut agenda = Agenda { recipe, experiments, seeds, kept, problems: BTreeMap::new() };
        let mut problems = BTreeMap::new();
        agenda.visit(recipe, true, &mut |seed, session, _| {
            if let Entry::Vacant(place) = problems.entry((seed, session.words)) {
                let recipe = based(&Recipe { seed, ..recipe.clone() }, session.words);
                place.insert(Arc::new(dry_run::problems(&recipe, device)?));
            }
            Ok(())
        })?;
        agenda.problems = problems;
        Ok(agenda)
    }

    /// Shows `look` each session in the order in which they run, and whether its base is there. Where the recipe is not
    /// that of the folder, nothing is there.
    fn visit(
        &self,
        recipe: &Recipe,
        kept: bool,
        look: &mut dyn FnMut(u64, &Session, bool) -> Result<()>,
    ) -> Result<()> {
        let findings = if kept { &self.kept.findings[..] } else { &[] };
        let mut known: BTreeSet<(u64, String)> =
            findings.iter().map(|found| (found.seed, found.key.clone())).collect();
        let mut bases = BTreeSet::new();
        for experiment in self.experiments {
            let variations = experiment.variations(recipe);
            for seed in self.seeds.clone() {
                for session in sessions(&|key| known.contains(&(seed, key.into())), &variations) {
                    let base = (seed, session.words);
                    let there = bases.contains(&base) || (kept && self.kept.has_base(seed, session.words));
                    look(seed, &session, there)?;
                    bases.insert(base);
                    let keys = session.variations.iter().map(|variation| variation.key());
                    let keys = keys.chain(session.base.then(|| BASE.into()));
                    known.extend(keys.map(|key| (seed, key)).collect::<Vec<_>>());
                }
            }
        }
        Ok(())
    }

    /// Rehearses what is to be done by `recipe`: the agenda's, or a changed one whose experiments begin anew.
    ///
    /// # Errors
    /// Settings that contradict each other, one group of rollouts that does not fit the tape, or an accountant without
    /// room.
    fn rehearse(&self, recipe: &Recipe, device: &Device) -> Result<Rehearsed> {
        let kept = self.kept.recipe.differences(&unseeded(recipe)).is_empty();
        let mut watched = Watched::default();
        self.visit(recipe, kept, &mut |seed, session, there| {
            self.rehearse_session((recipe, device), seed, session, there, &mut watched)
        })?;
        if watched.model.is_none() {
            // All is there already.
            let blank = Student::blank_of(recipe, &device.accountant(None))?;
            watched.meet(&blank.model);
        }
        Ok(watched.finish(device))
    }

    fn rehearse_session(
        &self,
        (recipe, device): (&Recipe, &Device),
        seed: u64,
        session: &Session,
        there: bool,
        watched: &mut Watched,
    ) -> Result<()> {
        let recipe = based(&Recipe { seed, ..recipe.clone() }, session.words);
        // A recipe that makes more of the folder's experiments missing has the problems of the one that was asked for.
        let problems = match self.problems.get(&(seed, session.words)) {
            Some(problems) => problems.clone(),
            None => Arc::new(dry_run::problems(&recipe, device)?),
        };
        let base = if session.words { "base in words" } else { "base" };
        let before = device.memory_peak().total();
        let (bench, lines) = Bench::rehearse(&recipe, problems, device, there)?;
        watched.meet(&bench.student.model);
        watched.say(base, lines);
        if session.base {
            bench.rehearse_base()?;
        }
        watched.grown(device, before, base);
        for variation in &session.variations {
            let before = device.memory_peak().total();
            let line = bench.rehearse_variation(variation)?;
            watched.say(variation.name(), line);
            watched.grown(device, before, variation.name());
        }
        Ok(())
    }

    /// Refuses experiments that `device`, where it is a GPU, has no memory for.
    ///
    /// # Errors
    /// As [`admission::admit`], with the recipe's keys that would make them fit.
    pub fn admit(&self, device: &Device) -> Result<()> {
        let rehearse = |recipe: &Recipe, device: &Device| self.rehearse(recipe, device).map(drop);
        admission::admit(device, "this experiment", self.recipe, &rehearse, &dry_run::remedies())
    }

    /// What will be done, and the memory it takes of `device`.
    ///
    /// # Errors
    /// As [`Agenda::rehearsed`].
    pub fn forecast(&self, device: &Device) -> Result<Forecast> {
        let rehearse = |device: &Device| self.rehearse(self.recipe, device);
        dry_run::forecast_of(self.recipe, device, self.counts()?, &rehearse)
    }

    /// What was held when most was held, on `device`, an accountant.
    ///
    /// # Errors
    /// Settings that contradict each other, one group of rollouts that does not fit the tape, or an accountant without
    /// room.
    pub fn rehearsed(&self, device: &Device) -> Result<Rehearsed> {
        self.rehearse(self.recipe, device)
    }

    /// Experiments, arms, seeds, results and problems, in words.
    fn counts(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for experiment in self.experiments {
            let variations = experiment.variations(self.recipe);
            let names: Vec<&str> = variations.iter().map(Variation::name).collect();
            lines.push(format!("{:<9} {}", experiment.name(), experiment.question()));
            lines.push(format!("{:<9} {} arms: {}", "", variations.len(), names.join("; ")));
        }
        let (mut missing, mut bases) = (0, 0);
        self.visit(self.recipe, true, &mut |_, session, there| {
            missing += session.variations.len() + usize::from(session.base);
            bases += usize::from(!there);
            Ok(())
        })?;
        let (first, count) = (self.seeds.start, self.seeds.end - self.seeds.start);
        lines.push(match count {
            1 => format!("seed      {first}"),
            _ => format!("seeds     {count}, from {first} to {}", self.seeds.end - 1),
        });
        lines.push(format!(
            "missing   {missing} results and {bases} base models in {}; what is there is not done again",
            self.kept.folder.display()
        ));
        let mut shown = BTreeSet::new();
        for ((_, words), problems) in &self.problems {
            // Seeds differ in their problems, seldom in how many there are.
            let line = dry_run::counts(problems);
            let base = if *words { "base in words" } else { "base" };
            if shown.insert((line.clone(), *words)) {
                lines.push(match self.problems.keys().any(|(_, other)| other != words) {
                    true => format!("{line} ({base})"),
                    false => line,
                });
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_runs_equal_variations_once_and_leaves_out_what_is_known() {
        let recipe = Recipe::resolve(None, &["grpo.group=8".into(), "grpo.prompts=8".into()]).unwrap();
        let variations = Experiment::Methods.variations(&recipe);
        let none = sessions(&|_| false, &variations);
        assert_eq!(none.iter().map(|session| session.words).collect::<Vec<_>>(), [false, true]);
        assert_eq!((none[0].base, none[1].base), (true, false));
        let all: usize = none.iter().map(|session| session.variations.len()).sum();
        assert_eq!(all, variations.len());
        let twice = [variations.clone(), variations.clone()].concat();
        let again: usize = sessions(&|_| false, &twice).iter().map(|session| session.variations.len()).sum();
        assert_eq!(again, all);
        let known = variations[0].key();
        let left = sessions(&|key| key == BASE || key == known, &variations);
        assert_eq!((left[0].base, left[0].variations.len()), (false, none[0].variations.len() - 1));
        assert!(sessions(&|_| true, &variations).is_empty());
    }
}
