//! One pass over rollouts: weights, scores, losses, and the walk backward.

use super::super::objective::{Extent, weights};
use super::super::policy_batch::{Passed, Row};
use super::super::policy_plan::{parts, teacher, trains_dead_groups};
use super::super::policy_report::{Judged, Report};
use super::super::soft_policy::Steps;
use super::{Policy, Reference, Replay};
use crate::base::Result;
use crate::model::{Action, Model};
use std::time::Instant;

/// A rollout of the report, and the weight of each of its tokens and scored soft steps.
type Weighted = (usize, f64);

/// Tape positions that predict the tokens, and the soft steps, of some rollouts one after the other.
struct Predictors {
    tokens: Vec<u32>,
    actions: Vec<u32>,
}

impl Policy {
    /// Adds the gradient of the questions `of` to the gradients: from the tape (on which this rollout of the report is the
    /// first, of an update of so many questions), or by replay.
    pub(super) fn learn(
        &mut self,
        model: &Model,
        of: &[usize],
        on_tape: Option<(usize, usize)>,
        report: &mut Report,
        passed: &mut Passed,
    ) -> Result<()> {
        let counted: Vec<usize> =
            of.iter().flat_map(|&question| report.rollouts_of(&(question..question + 1))).collect();
        let judged: Vec<&Judged> = counted.iter().map(|&index| &report.rollouts[index]).collect();
        let prompts = on_tape.map_or(of.len(), |(_, questions)| questions);
        let weights = self.row_weights(&judged, prompts)?;
        // Rows that no gradient comes from are neither scored nor replayed.
        let idle = |judged: &Judged, weight: f64| {
            weight == 0.0 || (judged.advantage == 0.0 && !trains_dead_groups(&self.objective))
        };
        let rows: Vec<Weighted> = (counted.iter().zip(&judged).zip(weights))
            .filter(|((_, judged), weight)| !idle(judged, *weight))
            .map(|((&index, _), weight)| (index, weight))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        match on_tape {
            Some((first, _)) => {
                let of = |positions: &[Vec<u32>]| -> Vec<u32> {
                    rows.iter().flat_map(|(index, _)| positions[index - first].iter().copied()).collect()
                };
                let (tokens, actions) = (of(self.rollouts.predictors()), of(self.rollouts.thinking()));
                self.differentiate(model, &rows, &Predictors { tokens, actions }, report, passed)
            }
            None => {
                let group = self.settings.group;
                for part in parts(&rows, report, self.part, self.part * group) {
                    let began = Instant::now();
                    let (prompts, replayed) = teacher(part, report, self.settings.replay);
                    let rollouts = self.clean.as_mut().unwrap_or(&mut self.rollouts);
                    rollouts.replay(model, &prompts, &replayed.iter().collect::<Vec<_>>())?;
                    let of = |positions: &[Vec<u32>]| positions.iter().flatten().copied().collect();
                    let (tokens, actions) = (of(rollouts.predictors()), of(rollouts.thinking()));
                    report.times.rollout += began.elapsed();
                    self.differentiate(model, part, &Predictors { tokens, actions }, report, passed)?;
                }
                Ok(())
            }
        }
    }

    /// Tokens, and soft steps that have a loss of their own, of a rollout.
    fn scored(&self, judged: &Judged) -> usize {
        let actions = if self.soft.is_some() { judged.trajectory.actions.len() } else { 0 };
        judged.trajectory.tokens.len() + actions
    }

    /// The weight of each token (and scored soft step) of each of the rollouts `judged`, where an update has `prompts`
    /// groups; those that are not given count as rows without tokens.
    fn row_weights(&self, judged: &[&Judged], prompts: usize) -> Result<Vec<f64>> {
        let group = self.settings.group;
        let rows = judged.len().max(prompts * group);
        let mut lengths: Vec<usize> = judged.iter().map(|judged| self.scored(judged)).collect();
        let mut left_out: Vec<bool> = judged.iter().map(|judged| !judged.trajectory.stopped).collect();
        lengths.resize(rows, 0);
        left_out.resize(rows, false);
        let form = self.rollouts.form();
        let steps = if self.soft.is_some() { form.latents } else { 0 };
        let extent = Extent {
            lengths: &lengths,
            groups: &vec![group; rows / group],
            max_length: form.max_new_tokens + steps,
            left_out: if self.objective.mask_truncated { &left_out } else { &[] },
        };
        let weights = weights(self.objective.aggregation, &extent)?;
        let mut token = 0;
        let first = |&length: &usize| {
            let weight = if length == 0 { 0.0 } else { weights[token] };
            token += length;
            weight
        };
        Ok(lengths[..judged.len()].iter().map(first).collect())
    }

    /// Scores the rollouts `rows` at the tape positions `at`, and adds their gradient.
    fn differentiate(
        &mut self,
        model: &Model,
        rows: &[Weighted],
        at: &Predictors,
        report: &mut Report,
        passed: &mut Passed,
    ) -> Result<()> {
        let began = Instant::now();
        self.tokens(model, rows, &at.tokens, report, passed)?;
        self.actions(model, rows, &at.actions, report, passed)?;
        let rollouts = self.clean.as_mut().unwrap_or(&mut self.rollouts);
        let (sequences, masks) = rollouts.parts_mut();
        model.backward(sequences, masks, self.settings.truncation, &mut self.gradients)?;
        report.times.backward += began.elapsed();
        Ok(())
    }

    /// Leaves the gradient of the answers' tokens at the hidden states that predict them.
    fn tokens(
        &mut self,
        model: &Model,
        rows: &[Weighted],
        at: &[u32],
        report: &Report,
        passed: &mut Passed,
    ) -> Result<()> {
        let trajectory = |index: usize| &report.rollouts[index].trajectory;
        let targets: Vec<u32> =
            rows.iter().flat_map(|&(index, _)| trajectory(index).tokens.iter().copied()).collect();
        if targets.is_empty() {
            return Ok(());
        }
        let inverse_temperature = self.rollouts.drawing().law.inverse_temperature();
        let reference = match &mut self.reference {
            None => None,
            Some(reference) => {
                let (prompts, replayed) = teacher(rows, report, Replay::Same);
                let Reference { model, rollouts, scores } = reference;
                rollouts.replay(model, &prompts, &replayed.iter().collect::<Vec<_>>())?;
                let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
                scores.forward(model, rollouts.sequences(), &at, &targets, inverse_temperature)?;
                Some(scores.log_probabilities()?)
            }
        };
        let rollouts = self.clean.as_mut().unwrap_or(&mut self.rollouts);
        let (sequences, _) = rollouts.parts_mut();
        self.scores.forward(model, sequences, at, &targets, inverse_temperature)?;
        let old: Vec<f64> =
            rows.iter().flat_map(|&(index, _)| trajectory(index).log_probabilities.iter().copied()).collect();
        let batch = self::rows(rows, report, |judged| judged.trajectory.tokens.len());
        self.batch.load(&batch, &old, reference.as_deref())?;
        passed.count_entropy(&self.scores.entropies()?);
        let now = self.scores.log_probabilities()?;
        let (log_probability, coefficient) = self.scores.coefficients_mut()?;
        self.batch.run((log_probability, &now), coefficient, &self.objective.loss, passed)?;
        self.scores.backward_written(model, sequences, &mut self.gradients)
    }

    /// The same of soft steps, where they have a loss of their own.
    fn actions(
        &mut self,
        model: &Model,
        rows: &[Weighted],
        at: &[u32],
        report: &mut Report,
        passed: &mut Passed,
    ) -> Result<()> {
        let Some(soft) = &mut self.soft else { return Ok(()) };
        let judged = || rows.iter().map(|&(index, _)| &report.rollouts[index]);
        let actions: Vec<&Action> = judged().flat_map(|judged| &judged.trajectory.actions).collect();
        let old: Vec<f64> = judged().flat_map(|judged| judged.action_scores.iter().copied()).collect();
        let first = old.len() != actions.len();
        let batch = self::rows(rows, report, |judged| judged.trajectory.actions.len());
        let rollouts = self.clean.as_mut().unwrap_or(&mut self.rollouts);
        let (sequences, _) = rollouts.parts_mut();
        let of_soft = passed.soft.get_or_insert_default();
        let before = of_soft.loss;
        let steps = Steps {
            at,
            actions: &actions,
            old: (!first).then_some(&old),
            // A first pass gives the bits of sampling, from the tape or replayed, unless its masks are others.
            moved: !first || self.settings.replay != Replay::Same,
        };
        let now = soft.learn(model, sequences, &batch, &steps, &mut self.gradients, of_soft)?;
        passed.loss += of_soft.loss - before;
        if first {
            let mut now = now.into_iter();
            for &(index, _) in rows {
                let judged = &mut report.rollouts[index];
                judged.action_scores = now.by_ref().take(judged.trajectory.actions.len()).collect();
            }
        }
        Ok(())
    }
}

/// The rollouts that have something to score, in order.
fn rows(rows: &[Weighted], report: &Report, length: impl Fn(&Judged) -> usize) -> Vec<Row> {
    let row = |&(index, weight): &Weighted| {
        let judged = &report.rollouts[index];
        Row { length: length(judged), weight, advantage: judged.advantage }
    };
    rows.iter().map(row).filter(|row| row.length > 0).collect()
}
