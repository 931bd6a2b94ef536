//! The story that a recipe tells: its parts, and how long they are as far as recipe and log say so.

use crate::run::recipe::Recipe;
use crate::run::reinforcement::learning_rate;
use crate::run::schooling::updates_an_epoch;
use crate::run::story::{self, Part};
use crate::run::terminal::{GrpoStep, SupervisedStep};
use crate::run::watch::measured::Step;
use std::collections::HashMap;

/// A part to come, or that has begun.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Reinforcement learning, or school.
    pub rewarded: bool,
    /// Passes over the problems and examples an update; none where its updates are those of an arm.
    lesson: Option<(usize, usize)>,
    /// Whether it holds the policy near the model that it began with.
    anchored: bool,
}

/// What a recipe says about its run.
#[derive(Debug)]
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// Its parts.
    pub parts: Vec<Planned>,
}

impl Plan {
    /// The plan of a recipe.
    pub fn of(recipe: Recipe) -> Plan {
        let planned = |part: &Part| match part {
            Part::Phase(phase) => Planned {
                name: phase.name.clone(),
                rewarded: false,
                lesson: Some((phase.epochs, phase.batch)),
                anchored: false,
            },
            Part::Continued(phase) => {
                Planned { name: phase.name.clone(), rewarded: false, lesson: None, anchored: false }
            }
            Part::Arm(arm) => Planned {
                name: arm.name.clone(),
                rewarded: true,
                lesson: None,
                anchored: arm.objective.loss.kl.is_some(),
            },
        };
        Plan { parts: story::parts(&recipe).iter().map(planned).collect(), recipe }
    }

    /// The number of the part of that name, from 0.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.parts.iter().position(|part| part.name == name)
    }

    /// Updates of a part, where `told` holds those of parts that have begun. Lessons before the first of their kind has begun
    /// are unknown; afterwards they are known but for the last batch of each epoch.
    pub fn updates(&self, place: usize, told: &HashMap<String, u64>) -> Option<u64> {
        let part = &self.parts[place];
        if let Some(updates) = told.get(&part.name) {
            return Some(*updates);
        }
        let Some((epochs, batch)) = part.lesson else { return Some(self.recipe.grpo.updates as u64) };
        let problems = self.parts.iter().find_map(|other| {
            let (epochs, batch) = other.lesson?;
            let updates = *told.get(&other.name)? as usize;
            Some(updates / epochs.max(1) * batch)
        })?;
        Some((epochs * updates_an_epoch(problems, batch.max(1))) as u64)
    }

    /// What a line of metrics leaves out of a step of part `name` that has `updates`.
    pub fn complete(&self, step: Step, name: &str, updates: u64) -> Step {
        match step {
            Step::Supervised(step) => Step::Supervised(SupervisedStep { steps: updates, ..step }),
            Step::Rewarded(step) => {
                let anchored = self.place(name).is_none_or(|place| self.parts[place].anchored);
                let update = step.step.saturating_sub(1) as usize;
                Step::Rewarded(GrpoStep {
                    steps: updates,
                    learning_rate: learning_rate(&self.recipe, update),
                    kl: step.kl.filter(|_| anchored),
                    ..step
                })
            }
        }
    }
}
