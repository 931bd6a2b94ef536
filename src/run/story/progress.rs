//! How far a story has come: everything, besides model and optimiser, that going on needs.

use crate::base::{Error, Result};
use crate::rollout::audit::worse;
use crate::run::checkpoints::Checkpoint;
use crate::run::evaluation::{Outcome, Scores, Share};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The job's state, written into every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Updates of all parts so far.
    pub step: u64,
    /// The part that is under way.
    pub part: usize,
    /// Its next update.
    pub update: usize,
    /// Questions drawn by the arm under way.
    pub drawn: usize,
    /// What each finished stage came to, on the validation problems.
    pub stages: Vec<StageResult>,
    /// What the base and each finished arm came to, on the test problems.
    pub entries: Vec<Entry>,
    /// Training loss of the latest supervised update of the part under way.
    #[serde(default)]
    pub loss: f64,
    /// The latest greedy accuracy on validation problems, and after which step.
    #[serde(default)]
    pub validation: Option<(u64, f64)>,
    /// Counts of the arm under way.
    pub tally: Tally,
    /// Seconds spent, by kind of work.
    pub seconds: BTreeMap<String, f64>,
}

/// Begins the text that stands for a number with a fraction.
const EXACT: &str = "f64 ";

impl Progress {
    /// As text, from which every number comes back to the bit: serde_json's quick reading of decimals may be off by one
    /// unit in the last place.
    ///
    /// # Errors
    /// None in practice: every field has a form in JSON.
    pub fn to_text(&self) -> serde_json::Result<String> {
        let mut value = serde_json::to_value(self)?;
        each(&mut value, &|value| match value {
            Value::Number(number) if number.is_f64() => {
                number.as_f64().map(|number| Value::String(format!("{EXACT}{number:?}")))
            }
            _ => None,
        });
        Ok(value.to_string())
    }

    /// How far the story was when `checkpoint` was written.
    ///
    /// # Errors
    /// A checkpoint of another job.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Progress> {
        Progress::from_text(&checkpoint.state().job).map_err(|error| {
            let problem = format!("holds another job's state: {error}");
            Error::file(checkpoint.path(), problem, "start a new run")
        })
    }

    /// The progress that [`Progress::to_text`] wrote.
    ///
    /// # Errors
    /// Another job's text.
    pub fn from_text(text: &str) -> serde_json::Result<Progress> {
        let mut value: Value = serde_json::from_str(text)?;
        each(&mut value, &|value| match value {
            Value::String(text) => {
                let number: f64 = text.strip_prefix(EXACT)?.parse().ok()?;
                serde_json::Number::from_f64(number).map(Value::Number)
            }
            _ => None,
        });
        serde_json::from_value(value)
    }
}

/// Replaces each leaf for which `change` has something else.
fn each(value: &mut Value, change: &dyn Fn(&Value) -> Option<Value>) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| each(value, change)),
        Value::Object(map) => map.values_mut().for_each(|value| each(value, change)),
        leaf => {
            if let Some(other) = change(leaf) {
                *leaf = other;
            }
        }
    }
}

/// Held-out accuracy at the end of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// Name of the stage.
    pub name: String,
    /// Its updates.
    pub updates: usize,
    /// Training loss of its last update.
    pub loss: f64,
    /// Greedy accuracy on the validation problems.
    pub accuracy: Share,
}

/// What an arm's updates added up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Updates.
    pub updates: usize,
    /// Rollouts sampled.
    pub rollouts: usize,
    /// Groups of which all rewards were equal and wrong.
    pub dead_low: usize,
    /// Groups of which all rewards were equal and right.
    pub dead_high: usize,
    /// Groups with different rewards.
    pub live: usize,
    /// Largest replay gap; infinite where other tokens were kept in a mixture.
    #[serde(with = "crate::run::unbounded")]
    pub replay_gap: f64,
    /// Rollouts audited.
    pub audited: usize,
    /// Mean reward of the first update.
    pub first_reward: f64,
    /// Mean reward of the last update.
    pub last_reward: f64,
}

impl Tally {
    /// Adds updates that came after these.
    pub fn add(&mut self, later: Tally) {
        *self = Tally {
            updates: self.updates + later.updates,
            rollouts: self.rollouts + later.rollouts,
            dead_low: self.dead_low + later.dead_low,
            dead_high: self.dead_high + later.dead_high,
            live: self.live + later.live,
            replay_gap: worse(self.replay_gap, later.replay_gap),
            audited: self.audited + later.audited,
            first_reward: if self.updates == 0 { later.first_reward } else { self.first_reward },
            last_reward: later.last_reward,
        };
    }

    /// Share of groups that taught nothing.
    pub fn dead_share(&self) -> f64 {
        let groups = self.dead_low + self.dead_high + self.live;
        (self.dead_low + self.dead_high) as f64 / groups.max(1) as f64
    }
}

/// One row of the closing table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `coconut`, or the arm.
    pub name: String,
    /// Greedy answers without masks: the headline.
    pub det: Scores,
    /// Right or wrong by test problem, `1` and `0`: what paired tests compare.
    pub right: String,
    /// The other ways of asking, by name.
    pub modes: BTreeMap<String, Scores>,
    /// Greedy accuracy with the latents removed.
    pub removed: Share,
    /// Greedy accuracy with another problem's latents.
    pub shuffled: Share,
    /// Greedy accuracy on other distributions, by name.
    pub shifted: BTreeMap<String, Share>,
    /// What its updates added up to; nothing for the base.
    pub tally: Tally,
}

impl Entry {
    /// Right or wrong by test problem.
    pub fn rights(&self) -> Vec<bool> {
        self.right.chars().map(|mark| mark == '1').collect()
    }
}

/// `1` for each right first answer, `0` for each other.
pub fn marks(outcome: &Outcome) -> String {
    outcome.first_right().into_iter().map(|right| if right { '1' } else { '0' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back_to_the_bit() {
        let low = 0.43448246478317476;
        let mut progress =
            Progress { step: 7, loss: low, validation: Some((7, 0.1 + 0.2)), ..Progress::default() };
        for n in 0..2000_u32 {
            progress.seconds.insert(format!("{n}"), f64::from(n).sqrt() / 3.0);
        }
        assert_eq!(Progress::from_text(&progress.to_text().unwrap()).unwrap(), progress);
    }
}
