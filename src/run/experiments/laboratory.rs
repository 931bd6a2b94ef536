//! A folder of base models and results: what is missing is run and kept.

use super::Variation;
use super::agenda::{BASE, Kept, RECIPE, base_folder, sessions, unseeded};
use super::bench::{Bench, based};
use crate::base::{Error, Result};
use crate::device::Device;
use crate::run::adapters;
use crate::run::folder::lock;
use crate::run::problems;
use crate::run::recipe::Recipe;
use crate::run::settings;
use crate::run::story::longest;
use crate::run::student::Student;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    #[serde(with = "crate::run::unbounded")]
    pub log_ratio: f64,
    /// Largest replay gap; infinite where other tokens were kept in a mixture.
    #[serde(with = "crate::run::unbounded")]
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

pub(super) type Watch<'w> = &'w mut dyn FnMut(&Notice) -> ControlFlow<()>;

impl Laboratory {
    /// Opens a folder; what was found there for the same recipe is not done again.
    ///
    /// # Errors
    /// A folder of another recipe, results that cannot be read, or another process at work there.
    pub fn open(folder: &Path, recipe: &Recipe, device: Device) -> Result<Laboratory> {
        fs::create_dir_all(folder).map_err(Error::io(folder, "cannot create the folder"))?;
        let lock = lock(folder)?;
        let findings = Kept::read(folder, recipe)?.findings;
        let kept = folder.join(RECIPE);
        if !kept.is_file() {
            fs::write(&kept, unseeded(recipe).to_toml()).map_err(Error::io(&kept, "cannot write"))?;
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
        let known = |findings: &[Finding], key: &str| {
            findings.iter().find(|found| found.seed == seed && found.key == key).cloned()
        };
        for session in sessions(&|key| known(&self.findings, key).is_some(), variations) {
            let Some(bench) = self.bench(&based(&recipe, session.words), session.words, watch)? else {
                return Ok(Vec::new());
            };
            if session.base {
                let found = bench.finding(BASE)?;
                self.keep(found, watch)?;
            }
            for variation in session.variations {
                if watch(&Notice::Begins { seed, what: variation.name() }).is_break() {
                    return Ok(Vec::new());
                }
                match bench.vary(variation, watch)? {
                    Some(found) => self.keep(found, watch)?,
                    None => return Ok(Vec::new()),
                }
            }
        }
        let keys = std::iter::once(BASE.to_string()).chain(variations.iter().map(Variation::key));
        Ok(keys.filter_map(|key| known(&self.findings, &key)).collect())
    }

    fn keep(&mut self, found: Finding, watch: Watch) -> Result<()> {
        let path = self.folder.join("results.jsonl");
        // A line that was torn stays apart from the next.
        let torn = fs::read(&path).is_ok_and(|text| text.last().is_some_and(|&byte| byte != b'\n'));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = file.map_err(Error::io(&path, "cannot open"))?;
        let line = format!("{}{}\n", if torn { "\n" } else { "" }, serde_json::json!(found));
        file.write_all(line.as_bytes()).map_err(Error::io(&path, "cannot write"))?;
        let _ = watch(&Notice::Found(&found));
        self.findings.push(found);
        Ok(())
    }

    /// The base model of a seed, trained or loaded.
    fn bench(&self, recipe: &Recipe, words: bool, watch: Watch) -> Result<Option<Bench>> {
        let folder = base_folder(&self.folder, recipe.seed, words);
        let curriculum = settings::curriculum(recipe);
        let student = Student::of(recipe, &self.device)?;
        let limit = longest(recipe, &student.model);
        let problems = problems::load(recipe, &student.tokenizer, student.markers.stop, &curriculum, limit)?;
        let mut bench = Bench::of(recipe, curriculum, student, Arc::new(problems));
        if folder.is_dir() {
            let model = adapters::load_exact(recipe, &bench.student.model, &folder)?;
            bench.student.model = model;
            return Ok(Some(bench));
        }
        if watch(&Notice::Begins { seed: recipe.seed, what: BASE }).is_break() {
            return Ok(None);
        }
        let flow = bench.teach(&mut |school, model| {
            for update in 0..school.updates() {
                school.update(model, update)?;
                if watch(&Notice::Progress(update + 1, school.updates())).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if flow.is_break() {
            return Ok(None);
        }
        adapters::save_exact(&bench.student.model, &folder, &bench.student.companions)?;
        Ok(Some(bench))
    }
}

impl Finding {
    pub(super) fn blank(seed: u64, key: String) -> Finding {
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
