//! How far a story has come: everything, besides model and optimiser, that going on needs.

use crate::run::evaluation::{Outcome, Scores, Share};
use serde::{Deserialize, Serialize};
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
    /// Largest replay gap.
    pub replay_gap: f64,
    /// Rollouts audited.
    pub audited: usize,
    /// Mean reward of the first update.
    pub first_reward: f64,
    /// Mean reward of the last update.
    pub last_reward: f64,
}

impl Tally {
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
