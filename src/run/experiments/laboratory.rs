//! Base models by seed, variations run from them, and what was found.

use super::Variation;
use super::matching;
use crate::base::{Error, Result};
use crate::device::Device;
use crate::learn::coconut::Curriculum;
use crate::learn::optimizer::Optimizer;
use crate::model::Model;
use crate::run::adapters;
use crate::run::evaluation::{Ask, Examiner};
use crate::run::folder::lock;
use crate::run::problems::{self, Item, Problems};
use crate::run::recipe::{Recipe, Variant};
use crate::run::reinforcement::{self, Arm, ArmPlan, SoftPlan};
use crate::run::schooling::{self, School};
use crate::run::settings;
use crate::run::story::longest;
use crate::run::student::Student;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What one variation came to on one seed. Everything is greedy accuracy on the test problems unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Seed of data, base model and updates.
    pub seed: u64,
    /// What was varied ([`Variation::key`]); `base` for the model before.
    pub key: String,
    /// Accuracy.
    pub accuracy: f64,
    /// Right or wrong by problem.
    pub right: String,
    /// Accuracy on other distributions.
    pub shifted: BTreeMap<String, f64>,
    /// Share of groups without different rewards.
    pub dead_groups: f64,
    /// Mean standard deviation of rewards inside a group.
    pub reward_deviation: f64,
    /// Mean number of different answers in a group.
    pub distinct_answers: f64,
    /// Mean reward over the last quarter of the updates.
    pub last_reward: f64,
    /// Largest difference of a log-probability between sampling and the update's first pass.
    pub log_ratio: f64,
    /// Largest replay gap.
    pub replay_gap: f64,
    /// Deviation of the noise on latents.
    pub latent_noise: f64,
    /// Updates.
    pub updates: usize,
    /// Seconds of training.
    pub seconds: f64,
}

/// What a watcher is told.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A base model is being trained, or a variation run.
    Begins {
        /// Seed.
        seed: u64,
        /// Base or variation.
        what: &'a str,
    },
    /// Updates done of how many.
    Progress(usize, usize),
    /// A result.
    Found(&'a Finding),
}

/// A folder with base models and results.
pub struct Laboratory {
    folder: PathBuf,
    /// Held as long as this is: two processes would run the same variations, and write over each other's bases.
    _lock: Option<File>,
    device: Device,
    findings: Vec<Finding>,
}

type Watch<'w> = &'w mut dyn FnMut(&Notice) -> ControlFlow<()>;

impl Laboratory {
    /// Opens a folder; what was found there for the same recipe is not done again.
    ///
    /// # Errors
    /// A folder of another recipe, results that cannot be read, or another process at work there.
    pub fn open(folder: &Path, recipe: &Recipe, device: Device) -> Result<Laboratory> {
        fs::create_dir_all(folder).map_err(Error::io(folder, "cannot create the folder"))?;
        let lock = lock(folder)?;
        let kept = folder.join("recipe.toml");
        let own = Recipe { seed: 0, ..recipe.clone() };
        if kept.is_file() {
            let text = fs::read_to_string(&kept).map_err(Error::io(&kept, "cannot read"))?;
            let before = Recipe::parse(&text, &kept.display().to_string())?;
            if let Some((key, before, now)) = before.differences(&own).first() {
                return Err(Error::file(
                    &kept,
                    format!("holds experiments with {key} = {before}, now it is {now}"),
                    "name another folder with --out",
                ));
            }
        } else {
            fs::write(&kept, own.to_toml()).map_err(Error::io(&kept, "cannot write"))?;
        }
        let results = folder.join("results.jsonl");
        let mut findings = Vec::new();
        if results.is_file() {
            let text = fs::read_to_string(&results).map_err(Error::io(&results, "cannot read"))?;
            // A torn last line is a result that was being written: it is found again.
            findings.extend(text.lines().filter_map(|line| serde_json::from_str::<Finding>(line).ok()));
        }
        Ok(Laboratory { folder: folder.to_path_buf(), _lock: lock, device, findings })
    }

    /// Runs what is missing of `variations` on `seed`; the base comes first in the answer.
    ///
    /// # Errors
    /// Those of training; the watcher's break ends with what there is.
    pub fn run(
        &mut self,
        recipe: &Recipe,
        seed: u64,
        variations: &[Variation],
        watch: Watch,
    ) -> Result<Vec<Finding>> {
        let recipe = Recipe { seed, ..recipe.clone() };
        let keys: Vec<String> =
            std::iter::once("base".to_string()).chain(variations.iter().map(Variation::key)).collect();
        let known = |findings: &[Finding], key: &str| {
            findings.iter().find(|found| found.seed == seed && found.key == key).cloned()
        };
        let missing = |findings: &[Finding], words: bool| {
            let base = !words && known(findings, "base").is_none();
            base || variations
                .iter()
                .zip(&keys[1..])
                .any(|(variation, key)| variation.words() == words && known(findings, key).is_none())
        };
        for words in [false, true] {
            if !missing(&self.findings, words) {
                continue;
            }
            let Some(bench) = self.bench(&based(&recipe, words), words, watch)? else {
                return Ok(Vec::new());
            };
            if !words && known(&self.findings, "base").is_none() {
                let found = bench.finding("base", &bench.student.model)?;
                self.keep(found, watch)?;
            }
            for (variation, key) in variations.iter().zip(&keys[1..]) {
                if variation.words() != words || known(&self.findings, key).is_some() {
                    continue;
                }
                if watch(&Notice::Begins { seed, what: variation.name() }).is_break() {
                    return Ok(Vec::new());
                }
                match bench.vary(variation, watch)? {
                    Some(found) => self.keep(found, watch)?,
                    None => return Ok(Vec::new()),
                }
            }
        }
        Ok(keys.iter().filter_map(|key| known(&self.findings, key)).collect())
    }

    fn keep(&mut self, found: Finding, watch: Watch) -> Result<()> {
        let path = self.folder.join("results.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = file.map_err(Error::io(&path, "cannot open"))?;
        let line = format!("{}\n", serde_json::json!(found));
        file.write_all(line.as_bytes()).map_err(Error::io(&path, "cannot write"))?;
        let _ = watch(&Notice::Found(&found));
        self.findings.push(found);
        Ok(())
    }

    /// The base model of a seed, trained or loaded.
    fn bench(&self, recipe: &Recipe, words: bool, watch: Watch) -> Result<Option<Bench>> {
        let kind = if words { "-words" } else { "" };
        let folder = self.folder.join("base").join(format!("seed-{}{kind}", recipe.seed));
        let curriculum = settings::curriculum(recipe);
        let mut student = Student::of(recipe, &self.device)?;
        let limit = longest(recipe, &student.model);
        let problems = problems::load(recipe, &student.tokenizer, student.markers.stop, &curriculum, limit)?;
        if folder.is_dir() {
            student.model = adapters::load_exact(recipe, &student.model, &folder)?;
        } else {
            if watch(&Notice::Begins { seed: recipe.seed, what: "base" }).is_break() {
                return Ok(None);
            }
            if teach(recipe, &mut student, &problems, watch)?.is_break() {
                return Ok(None);
            }
            adapters::save_exact(&student.model, &folder, &student.companions)?;
        }
        Ok(Some(Bench { recipe: recipe.clone(), curriculum, student, problems }))
    }
}

/// The recipe of a base: the whole curriculum, or its part in words.
fn based(recipe: &Recipe, words: bool) -> Recipe {
    let mut recipe = recipe.clone();
    if words {
        recipe.coconut.variant = Variant::Cot;
    }
    recipe
}

/// Words and curriculum.
fn teach(
    recipe: &Recipe,
    student: &mut Student,
    problems: &Problems,
    watch: Watch,
) -> Result<ControlFlow<()>> {
    let phases = schooling::phases(recipe);
    let mut optimizer: Option<Optimizer> = None;
    for phase in &phases {
        let fresh = || Optimizer::new(&student.model, settings::optimizer(phase.weight_decay, phase.clip));
        let own = optimizer.take().map_or_else(fresh, Ok)?;
        let items = &problems.train.items;
        let mut school = School::new(&student.model, phase, items, student.markers, recipe.seed, own)?;
        for update in 0..school.updates() {
            school.update(&mut student.model, update)?;
            if watch(&Notice::Progress(update + 1, school.updates())).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        optimizer = Some(school.into_optimizer());
    }
    Ok(ControlFlow::Continue(()))
}

/// One seed's base model with everything that variations need.
struct Bench {
    recipe: Recipe,
    curriculum: Curriculum,
    student: Student,
    problems: Problems,
}

impl Bench {
    fn vary(&self, variation: &Variation, watch: Watch) -> Result<Option<Finding>> {
        match variation {
            Variation::Arm(plan) => self.arm(plan, variation.key(), watch),
            Variation::Matched(plan, like) => {
                let form = self.form();
                let items = &self.problems.train.items;
                let (masking, seed) = (like.masking.clone(), self.recipe.seed);
                let latent_noise = matching::deviation(&self.student.model, &form, items, masking, seed)?;
                self.arm(&ArmPlan { latent_noise, ..(**plan).clone() }, variation.key(), watch)
            }
            Variation::Continued(_) => self.continued(variation.key(), watch),
            Variation::Words(_) => self.finding(&variation.key(), &self.student.model).map(Some),
        }
    }

    fn form(&self) -> crate::rollout::group::Form {
        reinforcement::form(&self.recipe, &self.curriculum, &self.student.markers)
    }

    fn arm(&self, plan: &ArmPlan, key: String, watch: Watch) -> Result<Option<Finding>> {
        let began = Instant::now();
        let (recipe, student) = (&self.recipe, &self.student);
        let mut model = student.model.duplicate()?;
        plan.prepare(&mut model, recipe)?;
        let reference = plan.objective.loss.kl.map(|_| student.model.duplicate()).transpose()?;
        let items = &self.problems.prompts().items;
        let mut arm = Arm::new(&model, recipe, plan, self.form(), items, &student.tokenizer, reference)?;
        let updates = recipe.grpo.updates;
        let mut finding =
            Finding { latent_noise: plan.latent_noise, updates, ..Finding::blank(recipe.seed, key) };
        let (mut groups, mut dead) = (0, 0);
        let last = updates - updates / 4..updates;
        for update in 0..updates {
            let report = arm.update(&mut model, update)?;
            let counted = report.groups();
            groups += report.questions.len();
            dead += counted.dead_low + counted.dead_high;
            finding.reward_deviation += report.reward_deviation() / updates as f64;
            finding.replay_gap = finding.replay_gap.max(report.replay_gap);
            finding.log_ratio = finding.log_ratio.max(report.passes[0].log_ratio);
            if last.contains(&update) {
                finding.last_reward += report.reward() / last.len() as f64;
            }
            let distinct: usize = (0..report.questions.len())
                .map(|question| {
                    let of = report.rollouts_of(&(question..question + 1));
                    report.rollouts[of].iter().map(|j| j.trajectory.said()).collect::<BTreeSet<_>>().len()
                })
                .sum();
            finding.distinct_answers += distinct as f64 / report.questions.len() as f64 / updates as f64;
            if watch(&Notice::Progress(update + 1, updates)).is_break() {
                return Ok(None);
            }
        }
        finding.dead_groups = dead as f64 / groups.max(1) as f64;
        finding.seconds = began.elapsed().as_secs_f64();
        self.examine(&model, plan.soft, finding).map(Some)
    }

    fn continued(&self, key: String, watch: Watch) -> Result<Option<Finding>> {
        let began = Instant::now();
        let phases = schooling::phases(&self.recipe);
        let Some(phase) = phases.last() else {
            return Err(Error::input("sft continued", "the recipe has no supervised phase", "give it one"));
        };
        let mut model = self.student.model.duplicate()?;
        let optimizer = Optimizer::new(&model, settings::optimizer(phase.weight_decay, phase.clip))?;
        let items = &self.problems.train.items;
        let seed = self.recipe.seed;
        let mut school = School::new(&model, phase, items, self.student.markers, seed, optimizer)?;
        let updates = self.recipe.grpo.updates;
        for update in 0..updates {
            school.update(&mut model, update)?;
            if watch(&Notice::Progress(update + 1, updates)).is_break() {
                return Ok(None);
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        self.examine(&model, None, Finding { updates, seconds, ..Finding::blank(seed, key) }).map(Some)
    }

    fn finding(&self, key: &str, model: &Model) -> Result<Finding> {
        self.examine(model, None, Finding::blank(self.recipe.seed, key.into()))
    }

    /// Fills in the accuracies; soft latents are asked without their noise.
    fn examine(&self, model: &Model, soft: Option<SoftPlan>, mut finding: Finding) -> Result<Finding> {
        let examiner = Examiner {
            curriculum: &self.curriculum,
            markers: self.student.markers,
            tokenizer: &self.student.tokenizer,
            extractor: settings::extractor(&self.recipe),
            max_new_tokens: self.recipe.grpo.max_new_tokens,
            batch: self.recipe.evaluation.batch,
            seed: self.recipe.seed,
            hrpo: &self.recipe.hrpo,
        };
        let ask = Ask {
            soft: soft.and_then(SoftPlan::asked).map(SoftPlan::quiet),
            ..Ask::deterministic(self.curriculum.max_latent_stage + 1)
        };
        let accuracy = |items: &[Item]| -> Result<(f64, String)> {
            let right = examiner.ask(model, items, &ask)?.first_right();
            let marks = right.iter().map(|&right| if right { '1' } else { '0' }).collect();
            Ok((right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64, marks))
        };
        (finding.accuracy, finding.right) = accuracy(&self.problems.test.items)?;
        for set in &self.problems.shifted {
            finding.shifted.insert(set.name.clone(), accuracy(&set.items)?.0);
        }
        Ok(finding)
    }
}

impl Finding {
    fn blank(seed: u64, key: String) -> Finding {
        Finding {
            seed,
            key,
            accuracy: 0.0,
            right: String::new(),
            shifted: BTreeMap::new(),
            dead_groups: 0.0,
            reward_deviation: 0.0,
            distinct_answers: 0.0,
            last_reward: 0.0,
            log_ratio: 0.0,
            replay_gap: 0.0,
            latent_noise: 0.0,
            updates: 0,
            seconds: 0.0,
        }
    }
}
