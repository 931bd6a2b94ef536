//! Supervised phases: reasoning in words, then the curriculum. An epoch is a permutation of the training problems that
//! depends on seed and epoch alone.

use super::problems::Item;
use super::recipe::{Recipe, ResetOptimizer, Variant as VariantKey};
use super::school_room::{Distillation, SchoolRoom};
use super::settings;
use crate::base::Result;
use crate::base::rng::{Purpose, StreamKey};
use crate::learn::coconut::{Curriculum, Markers, Variant};
use crate::learn::implicit::{self, EVERYTHING, Removal};
use crate::learn::optimizer::{self, Optimizer};
use crate::learn::supervised::{Example, StepReport};
use crate::model::{Model, Record};
use crate::text::EncodedProblem;

/// One supervised phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// What it is called, e.g. `stage 2`.
    pub name: String,
    /// How problems become examples.
    pub curriculum: Curriculum,
    /// Stage of the curriculum.
    pub stage: usize,
    /// Reasoning that is taken away token by token instead of by stages, and the first epoch of that.
    pub removal: Option<(Removal, usize)>,
    /// Self-distillation, where the loss is more than cross-entropy.
    pub distillation: Option<Distillation>,
    /// Passes over the problems.
    pub epochs: usize,
    /// Number of its first epoch, over all phases.
    pub first_epoch: usize,
    /// Examples an update.
    pub batch: usize,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm; 0 = no clipping.
    pub clip: f64,
    /// Updates over which the learning rate rises.
    pub warmup_steps: usize,
    /// What is left of it at the end of the phase.
    pub decay: f64,
    /// Whether the optimiser starts afresh with the phase, with each of its epochs, or not at all.
    pub reset: ResetOptimizer,
    /// Positions of a batch that are on the tape at once; larger batches run in parts.
    pub positions_at_once: usize,
    /// What the tape keeps.
    pub record: Record,
}

impl Phase {
    /// How its optimiser steps.
    pub fn optimizer(&self) -> optimizer::Settings {
        settings::optimizer(self.weight_decay, self.clip)
    }
}

/// The supervised phases of a recipe.
pub fn phases(recipe: &Recipe) -> Vec<Phase> {
    let curriculum = settings::curriculum(recipe);
    let (cot, keys) = (&recipe.cot, &recipe.coconut);
    let (positions_at_once, record) = (recipe.run.positions_at_once, settings::record(recipe));
    let mut phases = Vec::new();
    let mut first_epoch = 0;
    let mut push = |phase: Phase| {
        if phase.epochs > 0 {
            first_epoch += phase.epochs;
            phases.push(Phase { first_epoch: first_epoch - phase.epochs, ..phase });
        }
    };
    if keys.variant != VariantKey::NoCot {
        push(Phase {
            name: "words".into(),
            curriculum: Curriculum { variant: Variant::Cot, uniform_prob: 0.0, ..curriculum },
            stage: 0,
            removal: None,
            distillation: None,
            epochs: cot.epochs,
            first_epoch: 0,
            batch: cot.batch,
            learning_rate: cot.learning_rate,
            weight_decay: cot.weight_decay,
            clip: cot.clip,
            warmup_steps: cot.warmup_steps,
            decay: cot.decay,
            reset: ResetOptimizer::Stage,
            positions_at_once,
            record,
        });
    }
    let stage = |name: String, stage: usize, epochs: usize| Phase {
        name,
        curriculum,
        stage,
        removal: None,
        distillation: None,
        epochs,
        first_epoch: 0,
        batch: keys.batch,
        learning_rate: keys.learning_rate,
        weight_decay: keys.weight_decay,
        clip: keys.clip,
        warmup_steps: keys.warmup_steps,
        decay: keys.decay,
        reset: keys.reset_optimizer,
        positions_at_once,
        record,
    };
    match keys.variant {
        VariantKey::Cot => {}
        VariantKey::Icot => {
            let (keys, removal, first) = (&recipe.icot, settings::removal(recipe), cot.epochs);
            for number in 0..keys.epochs {
                push(Phase {
                    name: format!("removal {}", number + 1),
                    curriculum,
                    stage: 0,
                    removal: Some((removal, first)),
                    distillation: None,
                    epochs: 1,
                    first_epoch: 0,
                    batch: keys.batch,
                    learning_rate: keys.learning_rate,
                    weight_decay: keys.weight_decay,
                    clip: keys.clip,
                    warmup_steps: 0,
                    decay: 1.0,
                    reset: if number == 0 { ResetOptimizer::Stage } else { ResetOptimizer::Never },
                    positions_at_once,
                    record,
                });
            }
        }
        VariantKey::Codi => {
            let keys = &recipe.codi;
            push(Phase {
                name: "codi".into(),
                curriculum,
                // All steps are latent from the beginning.
                stage: curriculum.max_latent_stage + 1,
                removal: None,
                distillation: Some(settings::distillation(recipe)),
                epochs: keys.epochs,
                first_epoch: 0,
                batch: keys.batch,
                learning_rate: keys.learning_rate,
                weight_decay: keys.weight_decay,
                clip: keys.clip,
                warmup_steps: keys.warmup_steps,
                decay: keys.decay,
                reset: ResetOptimizer::Stage,
                positions_at_once,
                record,
            });
        }
        VariantKey::NoCot => {
            let epochs = keys.epochs_per_stage * keys.max_latent_stage + keys.extra_epochs;
            push(stage("answers only".into(), 0, epochs));
        }
        _ => {
            for number in 1..=keys.max_latent_stage {
                push(stage(format!("stage {number}"), number, keys.epochs_per_stage));
            }
            push(stage("all steps removed".into(), keys.max_latent_stage + 1, keys.extra_epochs));
        }
    }
    phases
}

impl Phase {
    /// The example of `problem` at the end of the phase, of which an epoch has `problems` problems: the text that its
    /// answers are expected to have.
    pub fn at_end(&self, problem: &EncodedProblem, problems: usize, markers: &Markers) -> Example {
        match &self.removal {
            None => self.curriculum.example(problem, self.stage, markers),
            Some((removal, first)) => {
                let steps = updates_an_epoch(problems, self.batch);
                let last = (self.first_epoch + self.epochs - first) * steps - 1;
                removal.example(problem, removal.scheduled(last, steps))
            }
        }
    }

    /// The longest example of `problem` that the phase may train.
    pub(super) fn longest(&self, problem: &EncodedProblem, markers: &Markers) -> Example {
        // Where stages are mixed an example may be shown at any stage up to its number of steps, beyond the phase's own too.
        let stages = match self.curriculum.uniform_prob > 0.0 {
            true => 0..=self.stage.max(problem.steps.len()),
            false => self.stage..=self.stage,
        };
        let stages = stages.map(|stage| self.curriculum.example(problem, stage, markers));
        match &self.removal {
            Some((removal, _)) => removal.example(problem, 0),
            None => stages.max_by_key(Example::positions).unwrap_or_default(),
        }
    }
}

/// Updates of one epoch.
pub fn updates_an_epoch(problems: usize, batch: usize) -> usize {
    problems.div_ceil(batch)
}

/// The problems of an epoch, in their order.
pub fn order(problems: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut draws = StreamKey::new(seed, epoch as u32, 0, 0, Purpose::DataOrder).draws(0, 0);
    let mut all: Vec<usize> = (0..problems).collect();
    // Fisher and Yates.
    for last in (1..all.len()).rev() {
        all.swap(last, draws.below(last + 1));
    }
    all
}

/// A phase under way.
#[derive(Debug)]
pub struct School<'a> {
    phase: &'a Phase,
    items: &'a [Item],
    markers: Markers,
    seed: u64,
    room: SchoolRoom,
    order: (usize, Vec<usize>),
}

impl<'a> School<'a> {
    /// Reserves room for any batch of the phase.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn new(
        model: &Model,
        phase: &'a Phase,
        items: &'a [Item],
        markers: Markers,
        seed: u64,
        mut optimizer: Optimizer,
    ) -> Result<School<'a>> {
        // Moments go on from phase to phase; decay and clipping are each phase's own.
        optimizer.set_settings(phase.optimizer());
        let room = SchoolRoom::new(model, phase, items, markers, optimizer)?;
        Ok(School { phase, items, markers, seed, room, order: (usize::MAX, Vec::new()) })
    }

    /// Updates of the whole phase.
    pub fn updates(&self) -> usize {
        self.phase.epochs * updates_an_epoch(self.items.len(), self.phase.batch)
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        self.room.optimizer()
    }

    /// The optimiser, for the next phase.
    pub fn into_optimizer(self) -> Optimizer {
        self.room.into_optimizer()
    }

    /// The optimiser, to be restored.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer {
        self.room.optimizer_mut()
    }

    /// Update number `update` of the phase, from 0; returns its report and learning rate.
    ///
    /// # Errors
    /// A loss or gradient that is not finite.
    pub fn update(&mut self, model: &mut Model, update: usize) -> Result<(StepReport, f64)> {
        let an_epoch = updates_an_epoch(self.items.len(), self.phase.batch);
        let (epoch, batch) = (self.phase.first_epoch + update / an_epoch, update % an_epoch);
        if self.order.0 != epoch {
            self.order = (epoch, order(self.items.len(), self.seed, epoch));
        }
        let begins = batch == 0 && (update > 0 || self.phase.reset != ResetOptimizer::Never);
        if begins && (self.phase.reset == ResetOptimizer::Epoch || update == 0) {
            self.room.optimizer_mut().restart(self.phase.optimizer())?;
        }
        if let Some((removal, first)) = &self.phase.removal {
            let step = (epoch - first) * an_epoch + batch;
            let at = |step| removal.scheduled(step, an_epoch);
            if step > 0 && removal.resets(at(step - 1), at(step), self.emptied(removal, *first, step - 1)) {
                self.room.optimizer_mut().restart(self.phase.optimizer())?;
            }
        }
        let chosen = self.order.1.chunks(self.phase.batch).nth(batch).unwrap_or_default();
        let items = self.items;
        let examples: Vec<(&EncodedProblem, Example)> = chosen
            .iter()
            .map(|&index| {
                let item = &items[index];
                if let Some((removal, first)) = &self.phase.removal {
                    let scheduled = removal.scheduled((epoch - first) * an_epoch + batch, an_epoch);
                    let count = removal.count(scheduled, epoch as u32, item.number);
                    return (&item.tokens, removal.example(&item.tokens, count));
                }
                let steps = item.tokens.steps.len();
                let curriculum = &self.phase.curriculum;
                let stage = curriculum.stage_of(self.phase.stage, steps, epoch as u32, item.number);
                (&item.tokens, curriculum.example(&item.tokens, stage, &self.markers))
            })
            .collect();
        let warmth = (update + 1) as f64 / self.phase.warmup_steps.max(1) as f64;
        let done = update as f64 / self.updates().max(1) as f64;
        let left = 1.0 - (1.0 - self.phase.decay) * done.min(1.0);
        let learning_rate = self.phase.learning_rate * warmth.min(1.0) * left;
        Ok((self.room.step(model, examples, &self.markers, learning_rate)?, learning_rate))
    }

    /// Whether no example of step `step` of a removal that began with epoch `first` has any reasoning left.
    fn emptied(&self, removal: &Removal, first: usize, step: usize) -> bool {
        let an_epoch = updates_an_epoch(self.items.len(), self.phase.batch);
        let scheduled = removal.scheduled(step, an_epoch);
        if scheduled == EVERYTHING {
            return true;
        }
        let epoch = first + step / an_epoch;
        let order = order(self.items.len(), self.seed, epoch);
        let batch = order.chunks(self.phase.batch).nth(step % an_epoch).unwrap_or_default();
        (scheduled > 0 || removal.smoothing.is_some())
            && batch.iter().all(|&index| {
                let item = &self.items[index];
                removal.count(scheduled, epoch as u32, item.number) >= implicit::reasoning(&item.tokens)
            })
    }
}
