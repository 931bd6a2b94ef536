//! The expectation of the product's own estimator, over every reward pattern of a group.

use super::toy::{Enumeration, answers, column};
use latch::base::Dtype;
use latch::device::Device;
use latch::learn::advantages::{Baseline, Scale, advantages};
use latch::learn::objective::{Aggregation, Extent, Preset, weights};
use latch::ops::Tensor;
use latch::ops::policy_loss::{Inputs, backward};

/// Under which mask the update scores what a rollout sampled.
#[derive(Clone, Copy, PartialEq)]
pub enum Replay {
    /// The rollout's.
    Same,
    /// Another draw of the same law, or of the law given for the update.
    Fresh,
}

/// What is estimated, and how.
#[derive(Clone, Copy)]
pub struct Rule {
    pub rollouts: usize,
    pub baseline: Baseline,
    pub scale: Scale,
    pub replay: Replay,
    /// Whether the ratio between the masks is taken into account, or taken to be 1.
    pub ratio: bool,
}

impl Rule {
    pub fn plain(rollouts: usize, baseline: Baseline) -> Rule {
        Rule { rollouts, baseline, scale: Scale::None, replay: Replay::Same, ratio: true }
    }
}

/// Every (mask at the rollout, mask at the update, answer) with its probability, packed as rows of tokens.
struct Samples {
    probability: Vec<f64>,
    right: Vec<bool>,
    starts: Vec<u32>,
    new: Vec<f64>,
    old: Vec<f64>,
    /// Where each token's coefficient belongs among the pairs of the update.
    place: Vec<usize>,
}

impl Samples {
    fn new(rollout: &Enumeration, update: &Enumeration, rule: Rule) -> Samples {
        let mut samples = Samples {
            probability: vec![],
            right: vec![],
            starts: vec![0],
            new: vec![],
            old: vec![],
            place: vec![],
        };
        for (from, sampled) in rollout.law.outcomes.iter().enumerate() {
            for (to, scored) in update.law.outcomes.iter().enumerate() {
                if rule.replay == Replay::Same && from != to {
                    continue;
                }
                let q = if rule.replay == Replay::Same { 1.0 } else { scored.probability };
                for answer in answers() {
                    samples.probability.push(sampled.probability * q * rollout.likelihood(from, &answer));
                    samples.right.push(rollout.reward(&answer) == 1.0);
                    for &pair in &answer.pairs {
                        let new = update.log_probability(to, pair);
                        samples.new.push(new);
                        samples.old.push(if rule.ratio { rollout.log_probability(from, pair) } else { new });
                        samples.place.push(update.pair(to, pair));
                    }
                    samples.starts.push(samples.new.len() as u32);
                }
            }
        }
        samples
    }

    /// One number a row, for each of its tokens.
    fn by_token(&self, of: impl Fn(usize) -> f64) -> Vec<f64> {
        let rows = self.starts.windows(2).enumerate();
        rows.flat_map(|(row, ends)| vec![of(row); (ends[1] - ends[0]) as usize]).collect()
    }
}

/// Minus the expected gradient of the loss: an ascent direction of expected reward.
///
/// A group's loss is a sum over its rollouts, which are drawn independently. Given the rewards of all, rollout k
/// is distributed as any sample with reward r_k; so for each pattern of rewards the samples of a rollout's reward
/// are weighted by their probability and by that of the other rewards.
pub fn expected(rollout: &Enumeration, update: &Enumeration, rule: Rule) -> Vec<f64> {
    let samples = Samples::new(rollout, update, rule);
    let total: f64 = samples.probability.iter().sum();
    assert!((total - 1.0).abs() < 1e-12, "probabilities sum to {total}");
    let chosen = samples.probability.iter().zip(&samples.right).filter(|(_, right)| **right);
    let success: f64 = chosen.map(|(probability, _)| probability).sum();

    let loss = Preset::DropoutGrpo.objective().loss;
    let lengths = vec![2; rule.rollouts];
    let extent = Extent { lengths: &lengths, groups: &[rule.rollouts], max_length: 2, left_out: &[] };
    let share = weights(Aggregation::TokenSumOverGroup, &extent).unwrap();
    let (new, old) = (column(&samples.new), column(&samples.old));
    let starts = Tensor::from_host(&Device::cpu(), [samples.starts.len(), 1], &samples.starts).unwrap();
    let mut coefficient = Tensor::zeros(&Device::cpu(), [samples.new.len(), 1], Dtype::F64).unwrap();
    let mut sum = vec![0.0; update.spread(|_, _| 0.0).len()];
    for pattern in 0_u32..1 << rule.rollouts {
        let rewards: Vec<f64> = (0..rule.rollouts).map(|k| f64::from(pattern >> k & 1)).collect();
        let group = advantages(std::slice::from_ref(&rewards), rule.baseline, rule.scale).unwrap();
        for class in [0.0, 1.0] {
            // Rollouts of one reward have one advantage and one law: they are scored together.
            let alike: Vec<usize> = (0..rule.rollouts).filter(|&k| rewards[k] == class).collect();
            let Some(&k) = alike.first() else { continue };
            assert!(alike.iter().all(|&other| group[0][other] == group[0][k]));
            let others: f64 = (0..rule.rollouts)
                .filter(|&j| j != k)
                .map(|j| if rewards[j] == 1.0 { success } else { 1.0 - success })
                .product();
            let share: f64 = alike.iter().map(|&k| share[2 * k]).sum();
            let meant = |row: usize| samples.right[row] == (class == 1.0);
            let weight = samples
                .by_token(|row| if meant(row) { share * others * samples.probability[row] } else { 0.0 });
            let advantage = column(&samples.by_token(|_| group[0][k]));
            let inputs = Inputs {
                log_probability: new.view(),
                old: old.view(),
                reference: None,
                advantage: advantage.view(),
                starts: starts.view(),
            };
            backward(column(&weight).view(), &inputs, &loss, coefficient.view_mut()).unwrap();
            for (value, &place) in coefficient.download::<f64>().unwrap().iter().zip(&samples.place) {
                sum[place] -= value;
            }
        }
    }
    update.gradient(&sum)
}
