//! What an update of a policy did, rollout by rollout.

use super::policy::Source;
use super::policy_batch::Passed;
use crate::ops::policy_loss::Statistic;
use crate::rollout::audit::ThoughtStatistics;
use crate::rollout::group::Trajectory;
use std::ops::Range;
use std::time::Duration;

/// A prompt to roll out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its tokens, up to the start marker.
    pub tokens: Vec<u32>,
    /// Its number: with seed, update and rollout, what all randomness depends on.
    pub number: u32,
}

/// One rollout of an update, as it is logged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What was sampled. `member.prompt` is the place of its question in [`Report::questions`].
    pub trajectory: Trajectory,
    /// Its reward as judged: what tells dead groups from live ones.
    pub judged: f64,
    /// Its reward, length penalty included: what is learned from.
    pub reward: f64,
    /// Its advantage.
    pub advantage: f64,
    /// Scores of its soft steps in the first pass; none before, or where soft steps have no loss of their own.
    pub action_scores: Vec<f64>,
}

/// Where an update's time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Sampling and replays.
    pub rollout: Duration,
    /// Rewards.
    pub reward: Duration,
    /// Scores, losses and gradients.
    pub backward: Duration,
    /// Clipping and AdamW.
    pub optimizer: Duration,
    /// Audits.
    pub audit: Duration,
}

/// What an update did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The questions that were rolled out.
    pub questions: Vec<Question>,
    /// Every rollout, by question.
    pub rollouts: Vec<Judged>,
    /// What the passes measured; the first is on-policy.
    pub passes: Vec<Passed>,
    /// Where the first pass found its activations.
    pub source: Option<Source>,
    /// Norm of the gradient of each pass before clipping; none where no token had a weight.
    pub gradient_norms: Vec<f64>,
    /// Largest difference between a log-probability as sampled and as audited, before the weights moved.
    pub replay_gap: f64,
    /// Rollouts audited.
    pub audited: usize,
    /// Thoughts of the rollout audited last; none without latents.
    pub thoughts: Option<ThoughtStatistics>,
    /// Where the time went.
    pub times: Times,
    /// Tokens sampled.
    pub tokens: usize,
}

/// Groups by their rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// Equal rewards, none above 0: all wrong.
    pub dead_low: usize,
    /// Equal rewards above 0: all right.
    pub dead_high: usize,
    /// Different rewards.
    pub live: usize,
}

impl Report {
    /// The rollouts of a range of questions.
    pub fn rollouts_of(&self, questions: &Range<usize>) -> Range<usize> {
        let before = |question: usize| {
            self.rollouts.partition_point(|judged| judged.trajectory.member.prompt < question)
        };
        before(questions.start)..before(questions.end)
    }

    /// The rewards of one question's rollouts.
    pub fn rewards(&self, question: usize) -> Vec<f64> {
        let of = self.rollouts_of(&(question..question + 1));
        self.rollouts[of].iter().map(|judged| judged.reward).collect()
    }

    /// Whether the rewards of a question's rollouts differ, before penalties: answers of different lengths do not make
    /// a group live that is all wrong.
    pub fn is_live(&self, question: usize) -> bool {
        let of = &self.rollouts[self.rollouts_of(&(question..question + 1))];
        of.iter().any(|rollout| rollout.judged != of[0].judged)
    }

    /// Groups by their rewards.
    pub fn groups(&self) -> Groups {
        let mut groups = Groups::default();
        for question in 0..self.questions.len() {
            let first = self.rollouts_of(&(question..question + 1)).start;
            match (self.is_live(question), self.rollouts.get(first)) {
                (true, _) => groups.live += 1,
                (false, Some(rollout)) if rollout.judged > 0.0 => groups.dead_high += 1,
                _ => groups.dead_low += 1,
            }
        }
        groups
    }

    /// Mean reward.
    pub fn reward(&self) -> f64 {
        mean(self.rollouts.iter().map(|judged| judged.reward))
    }

    /// Mean over groups of the rewards' standard deviation (ddof 1).
    pub fn reward_deviation(&self) -> f64 {
        mean((0..self.questions.len()).map(|question| {
            let rewards = self.rewards(question);
            let centre = mean(rewards.iter().copied());
            let squares: f64 = rewards.iter().map(|reward| (reward - centre).powi(2)).sum();
            (squares / (rewards.len() as f64 - 1.0).max(1.0)).sqrt()
        }))
    }

    /// Mean estimate of the divergence from the reference in the last pass; none without one.
    pub fn kl(&self) -> Option<f64> {
        let last = self.passes.last()?;
        last.has_reference.then(|| last.mean(Statistic::Kl))
    }

    /// Mean length of the answers, in tokens.
    pub fn length(&self) -> f64 {
        mean(self.rollouts.iter().map(|judged| judged.trajectory.tokens.len() as f64))
    }

    /// Share of answers that did not end.
    pub fn truncated(&self) -> f64 {
        mean(self.rollouts.iter().map(|judged| f64::from(u8::from(!judged.trajectory.stopped))))
    }

    /// Mean negative log-probability of the sampled tokens: an estimate of the answers' entropy (nats a token).
    pub fn entropy(&self) -> f64 {
        mean(self.rollouts.iter().flat_map(|j| &j.trajectory.log_probabilities).map(|value| -value))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}
