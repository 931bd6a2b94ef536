//! A story without its work: the reservations of every part, by the code that runs the part and in its order, on a device
//! that keeps accounts. What that device held at most is what the story takes.

use super::problems::{Item, Problems};
use super::recipe::Recipe;
use super::reinforcement::{self, Arm, ArmPlan, SoftPlan};
use super::school_room::{SchoolRoom, limits_of};
use super::schooling::Phase;
use super::settings;
use super::story::asks::{self, Closing};
use super::story::{Part, parts};
use super::student::Student;
use crate::base::Result;
use crate::device::{Device, MemoryPeak};
use crate::learn::coconut::{Curriculum, Markers};
use crate::learn::optimizer::Optimizer;
use crate::learn::policy::Source;
use crate::model::Model;
use crate::ops::Tensor;
use std::collections::BTreeSet;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Rehearsed {
    /// The model, in words.
    pub model: String,
    /// What an adapter trains of it.
    pub adapter: Option<String>,
    /// Counts of each part, in words, a line each.
    pub lines: Vec<String>,
    /// What was held when most was held.
    pub peak: MemoryPeak,
    /// The part that this was in.
    pub worst: String,
    /// Bytes of the family's weights, and of what is trained in an adapter beside them.
    pub weights: [usize; 2],
}

/// What is noted while parts are rehearsed.
#[derive(Default)]
pub(super) struct Watched {
    /// The model in words, its adapter's, and bytes of weights: as [`Rehearsed`] has them.
    pub model: Option<(String, Option<String>, [usize; 2])>,
    said: BTreeSet<String>,
    lines: Vec<String>,
    worst: Option<String>,
}

impl Watched {
    /// The first model that is met is described.
    pub fn meet(&mut self, model: &Model) {
        if self.model.is_none() {
            let (words, adapter) = in_words(model);
            let bytes = |list: &[Tensor]| list.iter().map(|tensor| tensor.bytes()).sum();
            let adapted = model.adapter().map_or(0, |_| bytes(model.trained()));
            self.model = Some((words, adapter, [bytes(model.parameters()), adapted]));
        }
    }

    /// `part` was rehearsed on `device`, which had held `before` bytes at most.
    pub fn grown(&mut self, device: &Device, before: usize, part: &str) {
        if device.memory_peak().total() > before {
            self.worst = Some(part.into());
        }
    }

    /// Lines of `part`; of a part that comes again (of another seed) those of the first time.
    pub fn say(&mut self, part: &str, lines: impl IntoIterator<Item = String>) {
        if self.said.insert(part.into()) {
            self.lines.extend(lines);
        }
    }

    /// What came of it on `device`.
    pub fn finish(self, device: &Device) -> Rehearsed {
        let (model, adapter, weights) = self.model.unwrap_or_default();
        let worst = self.worst.unwrap_or_else(|| "the model".into());
        Rehearsed { model, adapter, lines: self.lines, peak: device.memory_peak(), worst, weights }
    }
}

/// Rehearses `recipe` with its problems on `device`, which keeps accounts ([`Device::accountant`]).
///
/// # Errors
/// Settings that contradict each other, one group of rollouts that does not fit the tape, or an accountant without room.
pub fn rehearse(recipe: &Recipe, problems: &Problems, device: &Device) -> Result<Rehearsed> {
    let student = Student::blank_of(recipe, device)?;
    let mut watched = Watched::default();
    watched.meet(&student.model);
    let mut stage = Stage {
        recipe,
        problems,
        curriculum: settings::curriculum(recipe),
        student,
        optimizer: None,
        closed: false,
    };
    let parts = parts(recipe);
    for (index, part) in parts.iter().enumerate() {
        let before = device.memory_peak().total();
        let line = match part {
            Part::Phase(phase) => {
                let line = stage.phase(phase)?;
                if !matches!(parts.get(index + 1), Some(Part::Phase(_))) {
                    stage.close(None)?;
                }
                line
            }
            Part::Continued(phase) => {
                stage.begin_arm()?;
                let line = stage.school(phase)?;
                stage.optimizer = None;
                stage.close(None)?;
                line
            }
            Part::Arm(plan) => stage.arm(plan)?,
        };
        let name = match part {
            Part::Phase(phase) | Part::Continued(phase) => &phase.name,
            Part::Arm(plan) => &plan.name,
        };
        watched.grown(device, before, name);
        watched.say(&format!("{index} {name}"), [line]);
    }
    if !stage.closed {
        stage.close(None)?;
    }
    Ok(watched.finish(device))
}

/// A supervised phase on the problems `items`, as a line of what will be done.
pub(super) fn phase_in_words(phase: &Phase, items: &[Item], markers: Markers) -> String {
    format!(
        "{:<9} {} epochs of {} examples, {} an update, longest {} positions",
        phase.name,
        phase.epochs,
        items.len(),
        phase.batch,
        limits_of(phase, items, markers).longest
    )
}

/// An arm that has its room, as a line of what will be done.
pub(super) fn arm_in_words(recipe: &Recipe, plan: &ArmPlan, arm: &Arm) -> String {
    let policy = arm.policy();
    let how = match policy.source() {
        Source::Tape => "gradients read the tape of sampling",
        Source::Replay => "gradients replay the rollouts",
    };
    format!(
        "{:<9} {} updates of {} prompts x {} rollouts, {} prompts at once, {how}",
        plan.name,
        recipe.grpo.updates,
        plan.prompts,
        plan.group,
        policy.prompts_at_once().min(plan.prompts),
    )
}

/// What a model is, and what its adapter trains.
fn in_words(model: &Model) -> (String, Option<String>) {
    let elements = |list: &[Tensor]| -> usize { list.iter().map(|tensor| tensor.shape().elements()).sum() };
    let (config, parameters) = (model.config(), elements(model.parameters()));
    let words = format!(
        "model     {} {} layers, width {}, vocabulary {}: {parameters} parameters",
        config.family.model_type(),
        config.layers,
        config.width,
        config.vocab
    );
    let adapter = model.adapter().map(|config| {
        let trained = elements(model.trained());
        format!(
            "adapter   rank {}, scale {}: {trained} of {} parameters are trained ({:.2} %)",
            config.rank,
            config.scale(),
            parameters + trained,
            100.0 * trained as f64 / (parameters + trained) as f64
        )
    });
    (words, adapter)
}

/// A story as far as its memory goes (compare run/story).
struct Stage<'a> {
    recipe: &'a Recipe,
    problems: &'a Problems,
    curriculum: Curriculum,
    student: Student,
    optimizer: Option<Optimizer>,
    closed: bool,
}

impl Stage<'_> {
    /// A phase of the curriculum, and its validation.
    fn phase(&mut self, phase: &Phase) -> Result<String> {
        let line = self.school(phase)?;
        let examiner = asks::phase_examiner(self.recipe, phase, &self.student, self.problems);
        let ask = super::evaluation::Ask::deterministic(phase.stage);
        examiner.rehearse(&self.student.model, &self.problems.valid.items, &ask)?;
        Ok(line)
    }

    /// Supervised updates, whose optimiser goes on to the next phase.
    fn school(&mut self, phase: &Phase) -> Result<String> {
        let (model, items, markers) = (&self.student.model, &self.problems.train.items, self.student.markers);
        let optimizer = match self.optimizer.take() {
            Some(optimizer) => optimizer,
            None => Optimizer::new(model, phase.optimizer())?,
        };
        let room = SchoolRoom::new(model, phase, items, markers, optimizer)?;
        self.optimizer = Some(room.into_optimizer());
        Ok(phase_in_words(phase, items, markers))
    }

    /// The model that every arm starts from is read while the one before is still there.
    fn begin_arm(&mut self) -> Result<()> {
        self.optimizer = None;
        match self.closed {
            false => self.close(None),
            true => {
                self.student.model = self.student.model.blank_twin()?;
                Ok(())
            }
        }
    }

    fn arm(&mut self, plan: &ArmPlan) -> Result<String> {
        self.begin_arm()?;
        plan.prepare(&mut self.student.model, self.recipe)?;
        let model: &Model = &self.student.model;
        let reference = plan.objective.loss.kl.map(|_| model.blank_twin()).transpose()?;
        let form = reinforcement::form(self.recipe, &self.curriculum, &self.student.markers);
        let items: &[Item] = &self.problems.prompts().items;
        let arm = Arm::new(model, self.recipe, plan, form, items, &self.student.tokenizer, reference)?;
        if self.recipe.evaluation.every > 0 {
            let items = asks::between(self.recipe, &self.problems.valid.items);
            let examiner = asks::examiner(self.recipe, &self.curriculum, &self.student);
            examiner.rehearse(model, items, &asks::plain(&self.curriculum, plan.soft))?;
        }
        let line = arm_in_words(self.recipe, plan, &arm);
        drop(arm);
        self.close(plan.soft)?;
        Ok(line)
    }

    /// The questions at the end.
    fn close(&mut self, soft: Option<SoftPlan>) -> Result<()> {
        let ways = Closing::of(self.recipe, &self.curriculum, soft);
        let examiner = asks::examiner(self.recipe, &self.curriculum, &self.student);
        let model = &self.student.model;
        let others = ways.modes.iter().map(|(_, ask)| ask);
        for ask in [&ways.plain, &ways.removed, &ways.shuffled].into_iter().chain(others) {
            examiner.rehearse(model, &self.problems.test.items, ask)?;
        }
        for set in &self.problems.shifted {
            examiner.rehearse(model, &set.items, &ways.plain)?;
        }
        self.closed = true;
        Ok(())
    }
}
