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
use crate::learn::coconut::Curriculum;
use crate::learn::optimizer::Optimizer;
use crate::learn::policy::Source;
use crate::model::Model;
use crate::ops::Tensor;

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

/// Rehearses `recipe` with its problems on `device`, which keeps accounts ([`Device::accountant`]).
///
/// # Errors
/// Settings that contradict each other, one group of rollouts that does not fit the tape, or an accountant without room.
pub fn rehearse(recipe: &Recipe, problems: &Problems, device: &Device) -> Result<Rehearsed> {
    let student = Student::blank_of(recipe, device)?;
    let (model, adapter) = in_words(&student.model);
    let bytes = |list: &[Tensor]| list.iter().map(|tensor| tensor.bytes()).sum();
    let adapted = student.model.adapter().map_or(0, |_| bytes(student.model.trained()));
    let mut stage = Stage {
        weights: [bytes(student.model.parameters()), adapted],
        recipe,
        problems,
        curriculum: settings::curriculum(recipe),
        student,
        optimizer: None,
        closed: false,
    };
    let mut worst = "the model".to_string();
    let mut lines = Vec::new();
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
        if device.memory_peak().total() > before {
            worst = match part {
                Part::Phase(phase) | Part::Continued(phase) => phase.name.clone(),
                Part::Arm(plan) => plan.name.clone(),
            };
        }
        lines.push(line);
    }
    if !stage.closed {
        stage.close(None)?;
    }
    Ok(Rehearsed { model, adapter, lines, peak: device.memory_peak(), worst, weights: stage.weights })
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
    weights: [usize; 2],
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
            None => Optimizer::new(model, settings::optimizer(phase.weight_decay, phase.clip))?,
        };
        let room = SchoolRoom::new(model, phase, items, markers, optimizer)?;
        self.optimizer = Some(room.into_optimizer());
        Ok(format!(
            "{:<9} {} epochs of {} examples, {} an update, longest {} positions",
            phase.name,
            phase.epochs,
            items.len(),
            phase.batch,
            limits_of(phase, items, markers).longest
        ))
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
        let policy = arm.policy();
        let how = match policy.source() {
            Source::Tape => "gradients read the tape of sampling",
            Source::Replay => "gradients replay the rollouts",
        };
        let line = format!(
            "{:<9} {} updates of {} prompts x {} rollouts, {} prompts at once, {how}",
            plan.name,
            self.recipe.grpo.updates,
            plan.prompts,
            plan.group,
            policy.prompts_at_once().min(plan.prompts),
        );
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
