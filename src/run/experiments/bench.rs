//! One seed's base model and what is done with it: taught, varied, asked; or all of that rehearsed on an accountant.

use super::laboratory::{Finding, Notice, Watch};
use super::{Variation, matching};
use crate::base::{Error, Result};
use crate::device::Device;
use crate::learn::coconut::Curriculum;
use crate::learn::optimizer::Optimizer;
use crate::model::Model;
use crate::rollout::audit::worse;
use crate::rollout::masks::Masking;
use crate::run::problems::Problems;
use crate::run::recipe::{Recipe, Variant};
use crate::run::rehearsal::{arm_in_words, phase_in_words};
use crate::run::reinforcement::{self, Arm, ArmPlan, SoftPlan};
use crate::run::schooling::{self, Phase, School};
use crate::run::settings;
use crate::run::story::asks;
use crate::run::student::Student;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// Stands, in a rehearsal, for the deviation of noise that would be found: any that is not 0 takes the same memory.
const MATCHED: f64 = 1.0;

/// The recipe of a base: the whole curriculum, or its part in words.
pub(super) fn based(recipe: &Recipe, words: bool) -> Recipe {
    let mut recipe = recipe.clone();
    if words {
        recipe.coconut.variant = Variant::Cot;
    }
    recipe
}

/// Something to be done in a school that has its room.
type Lesson<'l> = &'l mut dyn FnMut(&mut School, &mut Model) -> Result<ControlFlow<()>>;

/// One seed's base model with everything that variations need.
pub(super) struct Bench {
    recipe: Recipe,
    curriculum: Curriculum,
    pub student: Student,
    problems: Arc<Problems>,
    /// Nothing is computed: weights are zeros, and what is reserved is counted.
    rehearsed: bool,
}

impl Bench {
    /// `student` with its problems, before it is taught.
    pub fn of(recipe: &Recipe, curriculum: Curriculum, student: Student, problems: Arc<Problems>) -> Bench {
        Bench { recipe: recipe.clone(), curriculum, student, problems, rehearsed: false }
    }

    /// The same on an accountant: all that [`Bench::of`] and then reading a base that is `kept`, or teaching one, take. And
    /// what is taught, in words.
    ///
    /// # Errors
    /// An accountant without room.
    pub fn rehearse(
        recipe: &Recipe,
        problems: Arc<Problems>,
        device: &Device,
        kept: bool,
    ) -> Result<(Bench, Vec<String>)> {
        let student = Student::blank_of(recipe, device)?;
        let bench = Bench::of(recipe, settings::curriculum(recipe), student, problems);
        let mut bench = Bench { rehearsed: true, ..bench };
        let mut lines = Vec::new();
        match kept {
            true => bench.student.model = bench.student.model.blank_twin()?,
            false => {
                let problems = bench.problems.clone();
                for phase in schooling::phases(recipe) {
                    lines.push(phase_in_words(&phase, &problems.train.items, bench.student.markers));
                }
                let _ = bench.teach(&mut |_, _| Ok(ControlFlow::Continue(())))?;
            }
        }
        Ok((bench, lines))
    }

    /// Words and curriculum: `lesson` is given each phase.
    pub fn teach(&mut self, lesson: Lesson) -> Result<ControlFlow<()>> {
        let Bench { recipe, student, problems, .. } = self;
        let phases = schooling::phases(recipe);
        let mut optimizer: Option<Optimizer> = None;
        for phase in &phases {
            let fresh = || Optimizer::new(&student.model, phase.optimizer());
            let own = optimizer.take().map_or_else(fresh, Ok)?;
            let items = &problems.train.items;
            let mut school = School::new(&student.model, phase, items, student.markers, recipe.seed, own)?;
            if lesson(&mut school, &mut student.model)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            optimizer = Some(school.into_optimizer());
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What `variation` comes to; none where the watcher stopped it.
    ///
    /// # Errors
    /// Those of training.
    pub fn vary(&self, variation: &Variation, watch: Watch) -> Result<Option<Finding>> {
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
            Variation::Words(_) => self.finding(&variation.key()).map(Some),
        }
    }

    /// Reserves what [`Bench::vary`] does, on the way; what is done, in words.
    ///
    /// # Errors
    /// Settings that contradict each other, one group of rollouts that does not fit the tape, or an accountant without
    /// room.
    pub fn rehearse_variation(&self, variation: &Variation) -> Result<Option<String>> {
        let arm = |plan: &ArmPlan| {
            let (model, arm) = self.arm_room(plan)?;
            let line = arm_in_words(&self.recipe, plan, &arm);
            drop(arm);
            self.ask_all(&model, plan.soft)?;
            Ok(Some(line))
        };
        match variation {
            Variation::Arm(plan) => arm(plan),
            Variation::Matched(plan, like) => {
                let (model, form, items) = (&self.student.model, self.form(), &self.problems.train.items);
                for drawn in [(like.masking.clone(), 0.0), (Masking::NONE, MATCHED)] {
                    drop(matching::reserve(model, &form, items, drawn, self.recipe.seed)?);
                }
                arm(&ArmPlan { latent_noise: MATCHED, ..(**plan).clone() })
            }
            Variation::Continued(name) => {
                let (phase, updates) = (self.last_phase()?, self.recipe.grpo.updates);
                let (model, school) = self.continued_room(&phase)?;
                drop(school);
                self.ask_all(&model, None)?;
                Ok(Some(format!("{name:<9} {updates} updates of {}, supervised", phase.name)))
            }
            Variation::Words(_) => self.rehearse_base().map(|()| None),
        }
    }

    /// Reserves what asking the base takes.
    ///
    /// # Errors
    /// An accountant without room.
    pub fn rehearse_base(&self) -> Result<()> {
        self.ask_all(&self.student.model, None).map(drop)
    }

    /// A copy of the base, to be changed.
    fn copy(&self) -> Result<Model> {
        match self.rehearsed {
            true => self.student.model.blank_duplicate(),
            false => self.student.model.duplicate(),
        }
    }

    /// The model that an arm starts from, and room for its updates.
    fn arm_room(&self, plan: &ArmPlan) -> Result<(Model, Arm<'_>)> {
        let (recipe, student) = (&self.recipe, &self.student);
        let mut model = self.copy()?;
        plan.prepare(&mut model, recipe)?;
        let reference = plan.objective.loss.kl.map(|_| self.copy()).transpose()?;
        let items = &self.problems.prompts().items;
        let arm = Arm::new(&model, recipe, plan, self.form(), items, &student.tokenizer, reference)?;
        Ok((model, arm))
    }

    fn last_phase(&self) -> Result<Phase> {
        schooling::phases(&self.recipe)
            .pop()
            .ok_or_else(|| Error::input("sft continued", "the recipe has no supervised phase", "give it one"))
    }

    /// The model that supervised training goes on with, and room for its updates.
    fn continued_room<'a>(&'a self, phase: &'a Phase) -> Result<(Model, School<'a>)> {
        let model = self.copy()?;
        let optimizer = Optimizer::new(&model, phase.optimizer())?;
        let (items, seed) = (&self.problems.train.items, self.recipe.seed);
        let school = School::new(&model, phase, items, self.student.markers, seed, optimizer)?;
        Ok((model, school))
    }

    fn form(&self) -> crate::rollout::group::Form {
        reinforcement::form(&self.recipe, &self.curriculum, &self.student.markers)
    }

    fn arm(&self, plan: &ArmPlan, key: String, watch: Watch) -> Result<Option<Finding>> {
        let began = Instant::now();
        let recipe = &self.recipe;
        let (mut model, mut arm) = self.arm_room(plan)?;
        let updates = recipe.grpo.updates;
        let mut finding =
            Finding { latent_noise: plan.latent_noise, updates, ..Finding::blank(recipe.seed, key) };
        let (mut groups, mut dead) = (0, 0);
        let last = updates - (updates / 4).max(1).min(updates)..updates;
        for update in 0..updates {
            let report = arm.update(&mut model, update)?;
            let counted = report.groups();
            groups += report.questions.len();
            dead += counted.dead_low + counted.dead_high;
            finding.reward_deviation += report.reward_deviation() / updates as f64;
            finding.replay_gap = worse(finding.replay_gap, report.replay_gap);
            finding.log_ratio = worse(finding.log_ratio, report.passes[0].log_ratio);
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
        drop(arm);
        self.examine(&model, plan.soft, finding).map(Some)
    }

    fn continued(&self, key: String, watch: Watch) -> Result<Option<Finding>> {
        let began = Instant::now();
        let phase = self.last_phase()?;
        let (mut model, mut school) = self.continued_room(&phase)?;
        let seed = self.recipe.seed;
        let updates = self.recipe.grpo.updates;
        for update in 0..updates {
            school.update(&mut model, update)?;
            if watch(&Notice::Progress(update + 1, updates)).is_break() {
                return Ok(None);
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        drop(school);
        self.examine(&model, None, Finding { updates, seconds, ..Finding::blank(seed, key) }).map(Some)
    }

    /// What the base itself comes to.
    ///
    /// # Errors
    /// Those of rollouts.
    pub fn finding(&self, key: &str) -> Result<Finding> {
        self.examine(&self.student.model, None, Finding::blank(self.recipe.seed, key.into()))
    }

    /// Fills in the accuracies.
    fn examine(&self, model: &Model, soft: Option<SoftPlan>, mut finding: Finding) -> Result<Finding> {
        let mut shares = self.ask_all(model, soft)?.into_iter().map(|right| {
            let marks = right.iter().map(|&right| if right { '1' } else { '0' }).collect();
            (right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64, marks)
        });
        (finding.accuracy, finding.right) = shares.next().unwrap_or_default();
        for (set, (accuracy, _)) in self.problems.shifted.iter().zip(shares) {
            finding.shifted.insert(set.name.clone(), accuracy);
        }
        Ok(finding)
    }

    /// Asks the test problems, then those of other distributions; soft latents are asked without their noise. By set,
    /// whether each answer is right; in a rehearsal none is.
    fn ask_all(&self, model: &Model, soft: Option<SoftPlan>) -> Result<Vec<Vec<bool>>> {
        let examiner = asks::examiner(&self.recipe, &self.curriculum, &self.student);
        let ask = asks::plain(&self.curriculum, soft);
        let shifted = self.problems.shifted.iter().map(|set| &set.items);
        std::iter::once(&self.problems.test.items)
            .chain(shifted)
            .map(|items| match self.rehearsed {
                true => examiner.rehearse(model, items, &ask).map(|()| Vec::new()),
                false => Ok(examiner.ask(model, items, &ask)?.first_right()),
            })
            .collect()
    }
}
