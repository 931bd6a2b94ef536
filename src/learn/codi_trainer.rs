//! Updates by CODI's loss (codi.rs).

use super::codi::{Distiller, Lesson, Weights};
use super::optimizer::Optimizer;
use super::supervised::{Limits, StepReport};
use crate::base::Result;
use crate::model::{Gradients, Model, Record};

/// Reserved room and state of a run.
#[derive(Debug)]
pub struct Trainer {
    distiller: Distiller,
    gradients: Gradients,
    optimizer: Optimizer,
    weights: Weights,
}

impl Trainer {
    /// Reserves everything that batches need; `limits` are [`super::codi::limits`].
    ///
    /// # Errors
    /// A model without a projector, a lesson longer than its position table, or a device without the memory.
    pub fn new(
        model: &Model,
        optimizer: Optimizer,
        limits: Limits,
        weights: Weights,
        record: Record,
    ) -> Result<Trainer> {
        Ok(Trainer {
            distiller: Distiller::new(model, limits, weights, record)?,
            gradients: model.gradients()?,
            optimizer,
            weights,
        })
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The optimiser, to be saved or replaced.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }

    /// The optimiser, for whoever goes on.
    pub fn into_optimizer(self) -> Optimizer {
        self.optimizer
    }

    /// Forward, backward, clip, update.
    ///
    /// # Errors
    /// Those of [`Distiller::gradient`], or a gradient that is not finite (the parameters are then untouched).
    pub fn step(&mut self, model: &mut Model, lessons: &[Lesson], learning_rate: f64) -> Result<StepReport> {
        self.gradients.clear();
        let losses = self.distiller.gradient(model, lessons, &mut self.gradients)?;
        let gradient_norm = self.optimizer.update(model, &mut self.gradients, learning_rate)?;
        let tokens = |lesson: &Lesson| lesson.student.answer.len() + lesson.teacher.answer.len();
        Ok(StepReport {
            loss: losses.total(&self.weights),
            gradient_norm,
            positions: lessons.iter().map(Lesson::positions).sum(),
            tokens: lessons.iter().map(tokens).sum(),
            distillation: Some(losses),
        })
    }
}
