//! The Bayesian model average by probability (algorithms B.7): of the answers that some mask gave, the one with the
//! largest probability summed over all masks.

use super::evaluation::{Answer, Ask, Examiner, Outcome};
use super::problems::Item;
use crate::base::Result;
use crate::learn::estimators;
use crate::model::{Model, Record, Scores};
use crate::ops::sampler::Law;
use crate::rollout::group::{Drawing, Limits, Member, Rollouts, Trajectory};
use crate::rollout::masks::Rollout;

impl Examiner<'_> {
    /// Accuracy of the model average by probability, of answers that `ask` gave to `items`: each different answer is
    /// scored under each mask, at temperature 1.
    ///
    /// # Errors
    /// Those of rollouts.
    pub fn average_by_probability(
        &self,
        model: &Model,
        items: &[Item],
        ask: &Ask,
        outcome: &Outcome,
    ) -> Result<f64> {
        let mut right = 0;
        for (item, answers) in items.iter().zip(&outcome.answers) {
            let candidates = candidates(answers);
            let chosen = match candidates.len() {
                0 => None,
                1 => Some(0),
                _ => estimators::average_by_probability(&self.score(model, item, ask, &candidates)?),
            };
            right += usize::from(chosen.is_some_and(|chosen| candidates[chosen].right));
        }
        Ok(right as f64 / items.len().max(1) as f64)
    }

    /// Reserves what [`Examiner::average_by_probability`] takes for `items`, and gives it back.
    ///
    /// # Errors
    /// As [`Examiner::average_by_probability`], before anything is scored.
    pub fn rehearse_average(&self, model: &Model, items: &[Item], ask: &Ask) -> Result<()> {
        let positions = |item: &&Item| item.tokens.question.len() + item.tokens.steps.len();
        match items.iter().max_by_key(positions) {
            Some(longest) => self.score_room(model, longest, ask).map(drop),
            None => Ok(()),
        }
    }

    /// Room to score answers of one problem under all masks.
    fn score_room(&self, model: &Model, item: &Item, ask: &Ask) -> Result<(Rollouts, Scores)> {
        let steps = item.tokens.steps.len();
        let form = self.curriculum.form(ask.stage, steps, &self.markers, self.max_new_tokens);
        let drawing = Drawing {
            gate: None,
            masking: ask.masking.clone(),
            latent_noise: 0.0,
            soft: None,
            thoughts: ask.thoughts,
            law: Law::PLAIN,
            seed: self.seed,
            share: true,
        };
        let limits = Limits { prompts: 1, members: ask.samples, prompt_tokens: item.tokens.question.len() };
        Ok((
            Rollouts::reserve(model, form, drawing, limits, Record::LayerInputs)?,
            Scores::reserve_to_read(model, ask.samples * self.max_new_tokens)?,
        ))
    }

    /// `ln pi(candidate | mask)`, a row a candidate, a column a mask.
    fn score(&self, model: &Model, item: &Item, ask: &Ask, candidates: &[&Answer]) -> Result<Vec<Vec<f64>>> {
        let prompt = &item.tokens.question;
        let (mut rollouts, mut scores) = self.score_room(model, item, ask)?;
        let mut table = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let trajectories: Vec<Trajectory> = (0..ask.samples)
                .map(|rollout| Trajectory {
                    mixtures: Vec::new(),
                    member: Member {
                        prompt: 0,
                        coordinates: Rollout {
                            update: ask.key,
                            prompt: item.number,
                            rollout: rollout as u32,
                            attempt: 0,
                        },
                    },
                    actions: Vec::new(),
                    tokens: candidate.ids.clone(),
                    log_probabilities: Vec::new(),
                    stopped: true,
                })
                .collect();
            let borrowed: Vec<&Trajectory> = trajectories.iter().collect();
            rollouts.replay(model, std::slice::from_ref(prompt), &borrowed)?;
            let positions: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
            let targets: Vec<u32> = trajectories.iter().flat_map(|t| t.tokens.iter().copied()).collect();
            scores.forward(model, rollouts.sequences(), &positions, &targets, 1.0)?;
            let values = scores.log_probabilities()?;
            table.push(values.chunks_exact(candidate.ids.len()).map(|of| of.iter().sum()).collect());
        }
        Ok(table)
    }
}

/// The different answers, in the order of their first appearance.
fn candidates(answers: &[Answer]) -> Vec<&Answer> {
    let mut seen: Vec<&Answer> = Vec::new();
    for answer in answers.iter().filter(|answer| !answer.ids.is_empty()) {
        if seen.iter().all(|other| other.ids != answer.ids) {
            seen.push(answer);
        }
    }
    seen
}
