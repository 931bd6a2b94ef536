//! Rewards of a group's rollouts to advantages, and what becomes of groups that teach nothing.
//! Formulas: TRL trainer/grpo_trainer.py (`scale_rewards`), DAPO (arXiv 2503.14476), RLOO (2402.14740).

use crate::base::{Error, Result};
use std::str::FromStr;

/// What is subtracted from a reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// The mean of the group: (K-1)/K of the policy gradient.
    GroupMean,
    /// The mean of the group's other rewards: the policy gradient itself.
    LeaveOneOut,
    /// Nothing: the same expectation as leave-one-out, with more variance.
    None,
}

/// What the difference is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Nothing.
    None,
    /// The standard deviation of the group's rewards. It re-weights prompts; see algorithms B.4.
    GroupStd {
        /// Added to the deviation.
        epsilon: f64,
        /// Subtracted from the count in the variance.
        ddof: usize,
    },
    /// The standard deviation of all rewards of the batch.
    BatchStd {
        /// Added to the deviation.
        epsilon: f64,
        /// Subtracted from the count in the variance.
        ddof: usize,
    },
}

impl Scale {
    /// The deviation of the group as TRL takes it.
    pub const GROUP: Scale = Scale::GroupStd { epsilon: 1e-4, ddof: 1 };
    /// The deviation of the batch as TRL takes it.
    pub const BATCH: Scale = Scale::BatchStd { epsilon: 1e-4, ddof: 1 };
}

impl FromStr for Baseline {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "group_mean" => Ok(Baseline::GroupMean),
            "leave_one_out" => Ok(Baseline::LeaveOneOut),
            "none" => Ok(Baseline::None),
            other => Err(format!("unknown baseline `{other}`; known: group_mean, leave_one_out, none")),
        }
    }
}

impl FromStr for Scale {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "none" => Ok(Scale::None),
            "group_std" => Ok(Scale::GROUP),
            "batch_std" => Ok(Scale::BATCH),
            other => Err(format!("unknown scale of rewards `{other}`; known: none, group_std, batch_std")),
        }
    }
}

/// Advantages of every rollout, group by group. All rewards of a group equal: exactly 0 (with a baseline).
///
/// # Errors
/// No groups, an empty group, a group of one for leave-one-out, or a reward that is not finite.
pub fn advantages(groups: &[Vec<f64>], baseline: Baseline, scale: Scale) -> Result<Vec<Vec<f64>>> {
    for (index, group) in groups.iter().enumerate() {
        let least = if baseline == Baseline::LeaveOneOut { 2 } else { 1 };
        if group.len() < least {
            return Err(Error::input(
                format!("group {index}"),
                format!("{} rollouts, the baseline needs {least}", group.len()),
                "sample more rollouts a prompt",
            ));
        }
        if let Some(rollout) = group.iter().position(|reward| !reward.is_finite()) {
            return Err(Error::NotFinite {
                what: "a reward".into(),
                found: format!("{} of rollout {rollout} in group {index}", group[rollout]),
                advice: "look at the reward function; nothing was updated".into(),
            });
        }
    }
    let batch = match scale {
        Scale::BatchStd { ddof, .. } => {
            let all: Vec<f64> = groups.iter().flatten().copied().collect();
            deviation(&all, ddof)
        }
        _ => 0.0,
    };
    let of_group = |group: &Vec<f64>| -> Vec<f64> {
        let count = group.len() as f64;
        let mean = mean(group);
        let divisor = match scale {
            Scale::None => 1.0,
            Scale::GroupStd { epsilon, ddof } => deviation(group, ddof) + epsilon,
            Scale::BatchStd { epsilon, .. } => batch + epsilon,
        };
        let centred = |reward: f64| match baseline {
            Baseline::GroupMean => reward - mean,
            Baseline::LeaveOneOut => (reward - mean) * (count / (count - 1.0)),
            Baseline::None => reward,
        };
        group.iter().map(|&reward| centred(reward) / divisor).collect()
    };
    Ok(groups.iter().map(of_group).collect())
}

/// Mean relative to the first value, so that equal values have exactly their value as mean.
fn mean(values: &[f64]) -> f64 {
    let first = values.first().copied().unwrap_or(0.0);
    first + values.iter().map(|value| value - first).sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation; 0 where `ddof` leaves nothing to divide by, as in TRL.
fn deviation(values: &[f64], ddof: usize) -> f64 {
    if values.len() <= ddof {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (values.len() - ddof) as f64).sqrt()
}

/// What a group's rewards say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// Rewards differ: the group teaches.
    Mixed,
    /// All have the reward of a wrong answer.
    AllWrong,
    /// All have the reward of a right answer.
    AllRight,
    /// All have one other reward.
    AllEqual,
}

impl GroupKind {
    /// Of the rewards of one group, where a wrong answer has `wrong` and a right one `right`. Give the rewards
    /// before overlong shaping, which would make dead groups look alive.
    pub fn of(rewards: &[f64], wrong: f64, right: f64) -> GroupKind {
        match rewards.first() {
            Some(&first) if rewards.iter().any(|&reward| reward != first) => GroupKind::Mixed,
            Some(&first) if first == wrong => GroupKind::AllWrong,
            Some(&first) if first == right => GroupKind::AllRight,
            _ => GroupKind::AllEqual,
        }
    }

    /// Whether every centred advantage is 0.
    pub fn is_dead(self) -> bool {
        self != GroupKind::Mixed
    }
}

/// What dynamic sampling does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refill {
    /// Every group teaches.
    Complete,
    /// These groups are dead: sample other prompts in their place.
    Again(Vec<usize>),
    /// These groups are dead, and the limit of tries is reached: update without them.
    GiveUp(Vec<usize>),
}

/// Dynamic sampling (DAPO): groups that teach are kept, dead ones are sampled anew, at most `limit` batches in all.
/// `tries` is the number of batches sampled so far.
pub fn refill(kinds: &[GroupKind], tries: usize, limit: usize) -> Refill {
    let dead: Vec<usize> = (0..kinds.len()).filter(|&group| kinds[group].is_dead()).collect();
    match dead.is_empty() {
        true => Refill::Complete,
        false if tries < limit => Refill::Again(dead),
        false => Refill::GiveUp(dead),
    }
}

/// Overlong reward shaping (DAPO): answers that enter the last part of the allowed length lose reward linearly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlong {
    /// Length of that part, as a fraction of the largest length (DAPO: 4096 of 20480).
    pub buffer: f64,
    /// Reward lost at the largest length.
    pub factor: f64,
}

impl Overlong {
    /// What is added to the reward of an answer of `length` tokens: `min(-(length - (max - buffer)) / buffer *
    /// factor, 0)`; 0 where the buffer holds no token.
    pub fn penalty(&self, length: usize, max_length: usize) -> f64 {
        let buffer = (self.buffer * max_length as f64).round();
        if buffer < 1.0 {
            return 0.0;
        }
        let beyond = length as f64 - (max_length as f64 - buffer);
        (-beyond / buffer * self.factor).min(0.0)
    }
}
