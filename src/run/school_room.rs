//! How a supervised phase trains its problems: as examples, or as lessons of a student that is its own teacher.

use super::problems::Item;
use super::schooling::Phase;
use crate::base::Result;
use crate::learn::coconut::{Curriculum, Markers, Variant};
use crate::learn::codi::{self, Lesson, Weights};
use crate::learn::codi_trainer;
use crate::learn::implicit;
use crate::learn::optimizer::Optimizer;
use crate::learn::supervised::{Example, Limits, StepReport, Trainer};
use crate::model::Model;
use crate::text::EncodedProblem;

/// Self-distillation in place of cross-entropy alone (CODI).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// Weights of its terms.
    pub weights: Weights,
    /// Answer tokens before the one whose prediction is distilled.
    pub tap: usize,
}

impl Distillation {
    /// `example`, as the student sees `problem`, with what the teacher sees.
    pub fn lesson(&self, problem: &EncodedProblem, example: Example, markers: &Markers) -> Lesson {
        let words = Curriculum {
            variant: Variant::Cot,
            thoughts_per_step: 0,
            max_latent_stage: 0,
            pad_latent_to_max: false,
            uniform_prob: 0.0,
            seed: 0,
        };
        Lesson {
            student: example,
            teacher: words.example(problem, 0, markers),
            tap: self.tap,
            reasoning: implicit::reasoning(problem),
        }
    }
}

/// Reserved room and optimiser of a phase.
#[derive(Debug)]
pub enum SchoolRoom {
    /// Cross-entropy of examples.
    Examples(Box<Trainer>),
    /// CODI's loss of lessons.
    Lessons(Box<codi_trainer::Trainer>, Distillation),
}

impl SchoolRoom {
    /// Room for any batch of the phase.
    ///
    /// # Errors
    /// A device without the memory, a phase that distils on a model without a projector, or from answers that are too short
    /// for it.
    pub fn new(
        model: &Model,
        phase: &Phase,
        items: &[Item],
        markers: Markers,
        optimizer: Optimizer,
    ) -> Result<SchoolRoom> {
        let (limits, record) = (limits_of(phase, items, markers), phase.record);
        Ok(match phase.distillation {
            None => SchoolRoom::Examples(Box::new(Trainer::new(model, optimizer, limits, record)?)),
            Some(distillation) => {
                // Now, not at the update that comes upon it.
                for item in items {
                    let example = phase.curriculum.example(&item.tokens, phase.stage, &markers);
                    let lesson = distillation.lesson(&item.tokens, example, &markers);
                    lesson.expect_tap(&format!("training problem {:?}", item.problem.question))?;
                }
                let weights = distillation.weights;
                let trainer = codi_trainer::Trainer::new(model, optimizer, limits, weights, record)?;
                SchoolRoom::Lessons(Box::new(trainer), distillation)
            }
        })
    }

    /// One update by the examples of some problems.
    ///
    /// # Errors
    /// A loss or gradient that is not finite.
    pub fn step(
        &mut self,
        model: &mut Model,
        examples: Vec<(&EncodedProblem, Example)>,
        markers: &Markers,
        learning_rate: f64,
    ) -> Result<StepReport> {
        match self {
            SchoolRoom::Examples(trainer) => {
                let examples: Vec<Example> = examples.into_iter().map(|(_, example)| example).collect();
                trainer.step(model, &examples, learning_rate)
            }
            SchoolRoom::Lessons(trainer, distillation) => {
                let lessons: Vec<Lesson> = examples
                    .into_iter()
                    .map(|(problem, example)| distillation.lesson(problem, example, markers))
                    .collect();
                trainer.step(model, &lessons, learning_rate)
            }
        }
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        match self {
            SchoolRoom::Examples(trainer) => trainer.optimizer(),
            SchoolRoom::Lessons(trainer, _) => trainer.optimizer(),
        }
    }

    /// The optimiser, to be restored.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer {
        match self {
            SchoolRoom::Examples(trainer) => trainer.optimizer_mut(),
            SchoolRoom::Lessons(trainer, _) => trainer.optimizer_mut(),
        }
    }

    /// The optimiser, for the next phase.
    pub fn into_optimizer(self) -> Optimizer {
        match self {
            SchoolRoom::Examples(trainer) => trainer.into_optimizer(),
            SchoolRoom::Lessons(trainer, _) => trainer.into_optimizer(),
        }
    }
}

/// The room that any batch of a phase needs.
pub fn limits_of(phase: &Phase, items: &[Item], markers: Markers) -> Limits {
    let longest = items.iter().map(|item| phase.longest(&item.tokens, &markers));
    match phase.distillation {
        None => Limits::of(&longest.collect::<Vec<Example>>(), phase.batch, phase.positions_at_once),
        Some(distillation) => {
            let lessons: Vec<Lesson> = longest
                .zip(items)
                .map(|(example, item)| distillation.lesson(&item.tokens, example, &markers))
                .collect();
            codi::limits(&lessons, phase.batch, phase.positions_at_once)
        }
    }
}
