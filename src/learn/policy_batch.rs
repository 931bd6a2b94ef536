//! The device buffers of a policy loss: what goes up, what comes down, and what is counted.

use crate::base::{Dtype, Error, Result};
use crate::model::{Churn, Model};
use crate::ops::policy_loss::{self, Hyper, Inputs, Outputs, Statistic};
use crate::ops::{Tensor, View, ViewMut};

/// One rollout in a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Scored tokens, or soft steps.
    pub length: usize,
    /// The weight of each.
    pub weight: f64,
    /// The rollout's advantage.
    pub advantage: f64,
}

/// What one pass measured over the tokens it trained.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// The loss.
    pub loss: f64,
    /// Tokens trained.
    pub tokens: usize,
    /// Sum over tokens of the entropy of the distribution they were drawn from (nats).
    entropy: f64,
    /// Sums over tokens of each [`Statistic`].
    statistics: [f64; Statistic::COUNT],
    /// Whether a reference was scored.
    pub has_reference: bool,
    /// Largest |ratio - 1|.
    pub ratio_spread: f64,
    /// Largest difference between a log-probability now and as sampled.
    pub log_ratio: f64,
    /// Of soft steps: the sum of their scores, and how the ids that they keep have changed since they were drawn.
    scores: f64,
    churn: Churn,
    /// The same of soft steps, whose loss is part of this one's; none where they have no loss of their own.
    pub soft: Option<Box<Passed>>,
}

impl Passed {
    /// Mean over tokens of a statistic; for flags, the share of tokens.
    pub fn mean(&self, statistic: Statistic) -> f64 {
        self.statistics[statistic as usize] / self.tokens.max(1) as f64
    }

    /// Tokens and soft steps trained.
    pub fn trained(&self) -> usize {
        self.tokens + self.soft.as_ref().map_or(0, |soft| soft.tokens)
    }

    /// Adds the scores of soft steps, and what became of their kept ids.
    pub(super) fn count_steps(&mut self, scores: &[f64], churn: Churn) {
        self.scores += scores.iter().sum::<f64>();
        self.churn.add(churn);
    }

    /// Mean score ("log-probability") of soft steps; 0 of tokens.
    pub fn mean_score(&self) -> f64 {
        self.scores / self.tokens.max(1) as f64
    }

    /// Of soft steps: shares, of the ids that were kept, of those that the logits of now would not keep, and of those that
    /// they would keep anew.
    pub fn churn(&self) -> (f64, f64) {
        let kept = self.churn.kept.max(1) as f64;
        (self.churn.left as f64 / kept, self.churn.entered as f64 / kept)
    }

    /// Adds the entropies (nats) of the distributions that tokens were drawn from.
    pub(super) fn count_entropy(&mut self, entropies: &[f64]) {
        self.entropy += entropies.iter().sum::<f64>();
    }

    /// Mean entropy (nats).
    pub fn entropy(&self) -> f64 {
        self.entropy / self.tokens.max(1) as f64
    }
}

/// Buffers for a number of rows and tokens.
#[derive(Debug)]
pub(super) struct Batch {
    tokens: usize,
    rows: usize,
    old: Tensor,
    reference: Tensor,
    has_reference: bool,
    advantage: Tensor,
    weight: Tensor,
    starts: Tensor,
    term: Tensor,
    statistics: Tensor,
    /// On the host: the same weights and log-probabilities.
    weights: Vec<f64>,
    sampled: Vec<f64>,
}

impl Batch {
    pub fn reserve(model: &Model, rows: usize, tokens: usize) -> Result<Batch> {
        let (device, dtype) = (model.device(), model.dtype().accumulation());
        let column = || Tensor::zeros(device, [tokens, 1], dtype);
        Ok(Batch {
            tokens: 0,
            rows: 0,
            old: column()?,
            reference: column()?,
            has_reference: false,
            advantage: column()?,
            weight: column()?,
            starts: Tensor::zeros(device, [rows + 1, 1], Dtype::U32)?,
            term: column()?,
            statistics: Tensor::zeros(device, [tokens, Statistic::COUNT], dtype)?,
            weights: Vec::with_capacity(tokens),
            sampled: Vec::with_capacity(tokens),
        })
    }

    /// Brings up `rows`, each token of a row with the row's weight, the log-probabilities they were drawn with, and
    /// those under the reference.
    pub fn load(&mut self, rows: &[Row], old: &[f64], reference: Option<&[f64]>) -> Result<()> {
        let per_token = |value: fn(&Row) -> f64| -> Vec<f64> {
            rows.iter().flat_map(|row| vec![value(row); row.length]).collect()
        };
        let starts: Vec<u32> = std::iter::once(0)
            .chain(rows.iter().scan(0, |end, row| {
                *end += row.length as u32;
                Some(*end)
            }))
            .collect();
        self.sampled.clear();
        self.sampled.extend(old);
        (self.rows, self.tokens) = (rows.len(), self.sampled.len());
        if starts[self.rows] as usize != self.tokens {
            return Err(Error::shape("log-probabilities of rollouts", self.tokens, starts[self.rows]));
        }
        self.weights = per_token(|row| row.weight);
        let advantages = per_token(|row| row.advantage);
        self.starts.upload_at(0, &starts)?;
        self.old.upload_numbers(0, &self.sampled)?;
        self.weight.upload_numbers(0, &self.weights)?;
        self.advantage.upload_numbers(0, &advantages)?;
        self.has_reference = reference.is_some();
        reference.map_or(Ok(()), |reference| self.reference.upload_numbers(0, reference))
    }

    /// Computes the loss of the log-probabilities of `now`, on the device and downloaded, and its gradient by them, the
    /// `coefficient`s; adds to what was `passed`.
    ///
    /// # Errors
    /// A loss that is not finite.
    pub fn run(
        &mut self,
        (log_probability, now): (View, &[f64]),
        coefficient: ViewMut,
        hyper: &Hyper,
        passed: &mut Passed,
    ) -> Result<()> {
        let tokens = 0..self.tokens;
        let inputs = Inputs {
            log_probability,
            old: self.old.rows(tokens.clone())?,
            reference: self.has_reference.then(|| self.reference.rows(tokens.clone())).transpose()?,
            advantage: self.advantage.rows(tokens.clone())?,
            starts: self.starts.rows(0..self.rows + 1)?,
        };
        let out = Outputs {
            term: self.term.rows_mut(tokens.clone())?,
            statistics: self.statistics.rows_mut(tokens.clone())?,
        };
        policy_loss::forward(&inputs, hyper, out)?;
        policy_loss::backward(self.weight.rows(tokens.clone())?, &inputs, hyper, coefficient)?;
        let terms = self.term.rows(tokens.clone())?.numbers()?;
        let loss: f64 = terms.iter().zip(&self.weights).map(|(term, weight)| term * weight).sum();
        if !loss.is_finite() {
            return Err(Error::NotFinite {
                what: "the policy loss".into(),
                found: loss.to_string(),
                advice: "lower the learning rate, or look for non-finite weights; nothing was updated".into(),
            });
        }
        passed.loss += loss;
        passed.has_reference = self.has_reference;
        passed.tokens += self.tokens;
        for token in self.statistics.rows(tokens)?.numbers()?.chunks_exact(Statistic::COUNT) {
            for (sum, value) in passed.statistics.iter_mut().zip(token) {
                *sum += value;
            }
            let spread = (token[Statistic::Ratio as usize] - 1.0).abs();
            passed.ratio_spread = passed.ratio_spread.max(spread);
        }
        for (now, sampled) in now.iter().zip(&self.sampled) {
            passed.log_ratio = passed.log_ratio.max((now - sampled).abs());
        }
        Ok(())
    }
}
