//! The main job: reasoning in words, the curriculum that turns steps into latents, reinforcement learning arms that all
//! start from there, and a table that compares them.
//!
//! A story is a list of parts, each a number of updates. After every update it can stop, and a checkpoint is enough to go
//! on to the same bits: data order, masks and tokens are functions of seed and place.

mod arms;
pub(super) mod asks;
mod closing;
mod memory;
mod progress;
mod stages;

pub use closing::{closing_table, of_summary, stage_table, summary, time_table};
pub use memory::MemoryUse;
pub use progress::{Entry, Progress, StageResult, Tally};

use super::adapters;
use super::checkpoints::{Checkpoints, Keep, TrainState};
use super::dry_run;
use super::evaluation::{Examiner, Scores};
use super::folder::RunFolder;
use super::metrics::{Lines, Record};
use super::problems::Problems;
use super::recipe::{Arm as ArmKey, Recipe, Variant};
use super::reinforcement::{self, ArmPlan};
use super::schooling::{self, Phase};
use super::settings;
use super::student::Student;
use crate::base::{Error, Result};
use crate::device::Device;
use crate::learn::coconut::{Curriculum, Variant as CurriculumVariant};
use crate::learn::optimizer::Optimizer;
use crate::learn::policy_report::Report;
use crate::learn::supervised::StepReport;
use crate::model::Model;
use crate::rollout::group::Form;
use crate::rollout::masks::{Masking, Scope};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

/// What a watcher is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// A part begins, or goes on.
    Part {
        /// Its name.
        name: &'a str,
        /// Its updates.
        updates: usize,
        /// Those done already.
        done: usize,
        /// Whether it is reinforcement learning.
        rewarded: bool,
    },
    /// A supervised update is done.
    Supervised {
        /// Its number in the part, from 1.
        update: usize,
        /// What it did.
        report: &'a StepReport,
        /// Learning rate used.
        learning_rate: f64,
        /// Seconds it took.
        seconds: f64,
    },
    /// An update of a policy is done.
    Rewarded {
        /// Its number in the part, from 1.
        update: usize,
        /// What it did.
        report: &'a Report,
        /// Its best and its worst rollout, then others, as text: as many as the recipe shows.
        samples: &'a [Sample],
        /// Learning rate used.
        learning_rate: f64,
        /// Seconds it took.
        seconds: f64,
    },
    /// Problems were asked.
    Evaluated {
        /// After which updates of which part, in words.
        what: &'a str,
        /// How well they were answered.
        scores: &'a Scores,
    },
    /// A checkpoint was written.
    Saved(&'a std::path::Path),
    /// Something worth knowing.
    Note(&'a str),
}

/// A rollout as text.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The question.
    pub question: String,
    /// The gold answer.
    pub gold: String,
    /// What was answered.
    pub answer: String,
    /// Its reward.
    pub reward: f64,
    /// Its advantage.
    pub advantage: f64,
}

/// How a story ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// All parts are done.
    Complete,
    /// The watcher stopped it; the checkpoint goes on from here.
    Stopped {
        /// The newest checkpoint.
        checkpoint: PathBuf,
    },
}

/// One part of a story.
#[derive(Clone, Debug)]
pub enum Part {
    /// Supervised training.
    Phase(Phase),
    /// Reinforcement learning.
    Arm(Box<ArmPlan>),
    /// Supervised training continued, for as many updates as an arm has.
    Continued(Phase),
}

/// A job under way.
pub struct Story<'a> {
    recipe: &'a Recipe,
    folder: &'a RunFolder,
    checkpoints: Checkpoints,
    metrics: Lines,
    samples: Lines,
    problems: Problems,
    curriculum: Curriculum,
    student: Student,
    parts: Vec<Part>,
    progress: Progress,
    /// The checkpoint to restore the optimiser from, until the part under way has done so.
    restored: Option<super::checkpoints::Checkpoint>,
    /// The optimiser that a phase hands to the next.
    optimizer: Option<Optimizer>,
    memory: MemoryUse,
}

/// The parts of a recipe.
pub fn parts(recipe: &Recipe) -> Vec<Part> {
    let phases = schooling::phases(recipe);
    let last = phases.last().cloned();
    let mut parts: Vec<Part> = phases.into_iter().map(Part::Phase).collect();
    for arm in &recipe.grpo.arms {
        let masked = |name: &str, scope| {
            Part::Arm(Box::new(ArmPlan::of(recipe, name, settings::masking(&recipe.mask, scope))))
        };
        match arm {
            ArmKey::Temp => parts.push(Part::Arm(Box::new(ArmPlan::of(recipe, "temp", Masking::NONE)))),
            ArmKey::DropoutLatent => parts.push(masked("dropout_latent", Scope::Latent)),
            ArmKey::DropoutAll => parts.push(masked("dropout_all", Scope::All)),
            ArmKey::Lepo => parts.push(Part::Arm(Box::new(ArmPlan::lepo(recipe, "lepo")))),
            ArmKey::Hrpo => parts.push(Part::Arm(Box::new(ArmPlan::hrpo(recipe, "hrpo")))),
            ArmKey::Sft => parts.extend(last.clone().map(|phase| {
                // New epochs, not those of the phase once more.
                let first_epoch = phase.first_epoch + phase.epochs;
                Part::Continued(Phase { name: "sft".into(), first_epoch, ..phase })
            })),
        }
    }
    parts
}

/// Refuses a recipe whose parts make no story.
///
/// # Errors
/// Supervised training is to go on, and there is none.
pub fn check(recipe: &Recipe) -> Result<()> {
    let taught = parts(recipe).iter().any(|part| matches!(part, Part::Phase(_)));
    match recipe.grpo.arms.contains(&ArmKey::Sft) && !taught {
        true => Err(Error::input(
            "grpo.arms",
            "sft continues supervised training, of which the recipe has none",
            "give cot or coconut at least one epoch, or leave sft away",
        )),
        false => Ok(()),
    }
}

impl<'a> Story<'a> {
    /// Opens a story in `folder`, where an earlier run of it may have left a checkpoint.
    ///
    /// # Errors
    /// A recipe that cannot be run, files that cannot be read, or a folder of another recipe.
    pub fn open(
        recipe: &'a Recipe,
        folder: &'a RunFolder,
        device: &'a Device,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Story<'a>> {
        let parts = parts(recipe);
        check(recipe)?;
        let curriculum = settings::curriculum(recipe);
        let problems = dry_run::problems(recipe, device)?;
        if problems.left_out() {
            let _ = watch(&Event::Note(&dry_run::counts(&problems)));
        }
        dry_run::admit(recipe, &problems, device)?;
        let memory = MemoryUse::of_forecast(recipe, &problems, device)?;
        let mut student = Student::of(recipe, device)?;
        student.describe_latents(form(recipe, &curriculum, &student).latents);
        adapters::keep_base(recipe, &mut student, &folder.models())?;
        let keep = Keep { last: recipe.run.keep_last, best: recipe.run.keep_best };
        let checkpoints = folder.checkpoints(keep)?;
        let mut progress = Progress::default();
        let mut restored = None;
        if folder.resumed() {
            let latest = checkpoints.latest()?;
            for sentence in &latest.skipped {
                let _ = watch(&Event::Note(sentence));
            }
            if let Some(checkpoint) = latest.checkpoint {
                progress = Progress::of_checkpoint(&checkpoint)?;
                // Two models for a moment: less than one with the gradients and moments that were forecast, since only
                // what trains leaves checkpoints (tests/admission.rs goes on at the edge of the forecast).
                student.model = checkpoint.model_like(recipe, &student.model)?;
                let note =
                    format!("going on after step {} of {}", progress.step, checkpoint.path().display());
                let _ = watch(&Event::Note(&note));
                restored = Some(checkpoint);
            }
        }
        let step = restored.is_some().then_some(progress.step);
        let (metrics, samples) = (folder.metrics(step)?.0, folder.samples(step)?.0);
        Ok(Story {
            parts,
            recipe,
            folder,
            checkpoints,
            metrics,
            samples,
            problems,
            curriculum,
            student,
            progress,
            restored,
            optimizer: None,
            memory,
        })
    }

    /// The problems.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    /// The model and its tokenizer.
    pub fn student(&self) -> &Student {
        &self.student
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The memory that was forecast, and since the story ended the most that was held.
    pub fn memory(&self) -> &MemoryUse {
        &self.memory
    }

    /// Runs what is left.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, with the step and the last good checkpoint; a disk that refuses.
    pub fn run(&mut self, watch: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<Ending> {
        while self.progress.part < self.parts.len() {
            let part = self.parts[self.progress.part].clone();
            let flow = match &part {
                Part::Phase(phase) => self.phase(phase, watch)?,
                Part::Continued(phase) => self.continued(phase, watch)?,
                Part::Arm(plan) => self.arm(plan, watch)?,
            };
            if flow.is_break() {
                return Ok(Ending::Stopped { checkpoint: self.newest()? });
            }
        }
        if self.parts.is_empty() || self.progress.entries.is_empty() {
            self.close("model", None, watch)?;
        }
        self.memory.look(self.student.model.device());
        self.folder.write_summary(&summary(self.recipe, &self.progress, &self.memory))?;
        Ok(Ending::Complete)
    }

    fn examiner(&self) -> Examiner<'_> {
        asks::examiner(self.recipe, &self.curriculum, &self.student)
    }

    /// Ends a part: the next one begins with its first update.
    fn part_done(&mut self) {
        self.progress.part += 1;
        (self.progress.update, self.progress.drawn, self.progress.tally) = (0, 0, Tally::default());
        self.progress.loss = 0.0;
    }

    /// What the model before reinforcement learning is called.
    fn base_name(&self) -> &'static str {
        match self.curriculum.variant {
            CurriculumVariant::Coconut => "coconut",
            CurriculumVariant::Cot => "words",
            CurriculumVariant::NoCot => "answers only",
            _ => "base",
        }
    }

    /// Keeps the model before reinforcement learning, from which every arm starts.
    fn save_start(&self) -> Result<()> {
        adapters::save_start(self.recipe, &self.student, &self.folder.models())
    }

    /// That model again.
    fn load_start(&self) -> Result<Model> {
        adapters::load_start(self.recipe, &self.student.model, &self.folder.models())
    }

    /// Writes a checkpoint.
    fn checkpoint(
        &mut self,
        optimizer: Option<&Optimizer>,
        score: Option<f64>,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<()> {
        let began = Instant::now();
        let job = self.progress.to_text().map_err(|error| {
            Error::input(
                "checkpoint",
                format!("the job's state has no text: {error}"),
                "report this as a bug",
            )
        })?;
        let state = TrainState { job, score };
        let Student { model, companions, .. } = &self.student;
        let path = self.checkpoints.save(self.progress.step, model, optimizer, &state, companions)?;
        self.spend("checkpoints", began);
        let _ = watch(&Event::Saved(&path));
        Ok(())
    }

    fn newest(&self) -> Result<PathBuf> {
        let latest = self.checkpoints.latest()?;
        Ok(latest.checkpoint.map_or_else(PathBuf::new, |checkpoint| checkpoint.path().to_path_buf()))
    }

    /// Adds the seconds since `began` to a kind of work.
    fn spend(&mut self, what: &str, began: Instant) {
        *self.progress.seconds.entry(what.into()).or_default() += began.elapsed().as_secs_f64();
    }

    /// Gives `optimizer` the state of the checkpoint that this story goes on from, once.
    fn restore(&mut self, optimizer: &mut Optimizer) -> Result<()> {
        match self.restored.take() {
            Some(checkpoint) if checkpoint.has_optimizer() => {
                checkpoint.restore(&self.student.model, optimizer)
            }
            _ => Ok(()),
        }
    }

    /// An error of an update, with what a person needs to find it again.
    fn fault(&self, error: Error, part: &str) -> Error {
        match error {
            Error::NotFinite { what, found, advice } => {
                let good = match self.newest() {
                    Ok(newest) if newest != PathBuf::new() => {
                        format!("The last good checkpoint is {}", newest.display())
                    }
                    _ => "No checkpoint was written yet".into(),
                };
                Error::NotFinite {
                    what,
                    found: format!(
                        "{found}; step {} of the run, update {} of {part}",
                        self.progress.step + 1,
                        self.progress.update + 1
                    ),
                    advice: format!("{advice}. {good}"),
                }
            }
            other => other,
        }
    }

    fn record(&self, part: &str, update: usize) -> Record {
        Record::new(self.progress.step).with("part", part).with("update", update)
    }
}

/// The form in which arms ask.
fn form(recipe: &Recipe, curriculum: &Curriculum, student: &Student) -> Form {
    reinforcement::form(recipe, curriculum, &student.markers)
}

/// The most positions an example may take.
pub fn longest(recipe: &Recipe, model: &Model) -> usize {
    let limit = model.config().max_positions;
    let asked = if recipe.data.max_positions == 0 { limit } else { recipe.data.max_positions.min(limit) };
    let thoughts = settings::curriculum(recipe).thoughts(usize::MAX, usize::MAX);
    let room =
        if matches!(recipe.coconut.variant, Variant::Coconut | Variant::Codi) { thoughts + 2 } else { 2 };
    // A question must leave room for the longest sampled answer.
    asked.min(limit.saturating_sub(room + recipe.grpo.max_new_tokens))
}
