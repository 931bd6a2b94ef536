//! The replay gap: a rollout computed again from its tokens and its key alone, in another batch and another
//! segmentation, against the log-probabilities it was sampled with. Exactly 0 until the weights move.

use super::geometry::{cosine, norm};
use super::group::{Drawing, Form, Trajectory};
use super::masks::{MaskPlan, Part, Rollout};
use super::sharing::soft_room;
use crate::base::Result;
use crate::model::{Draw, Input, LatentNoise, Model, Record, Room, RowPlan, Scores, Segment, Sequences};
use crate::ops::Tensor;
use crate::ops::mask::MaskSet;
use std::ops::Range;

/// Room to audit one rollout at a time.
#[derive(Debug)]
pub struct Audit {
    form: Form,
    drawing: Drawing,
    sequences: Sequences,
    scores: Scores,
    masks: Option<MaskSet>,
    /// Of one position, where answers are read with their mixtures.
    logits: Option<Tensor>,
    /// Where the states that the latents read stand on the tape.
    thoughts: Range<usize>,
}

/// How large thoughts are, and how alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ThoughtStatistics {
    /// Mean norm of the states that are fed back.
    pub norm: f64,
    /// Mean cosine of each with the one before; none of a single state.
    pub similarity: Option<f64>,
}

/// Row of the audited rollout; row 0 is a stranger that makes the batch another one.
const AUDITED: u32 = 1;

impl Audit {
    /// Room for a rollout of up to `prompt_tokens` prompt tokens.
    ///
    /// # Errors
    /// Rollouts longer than the model's position table.
    pub fn reserve(model: &Model, form: Form, drawing: Drawing, prompt_tokens: usize) -> Result<Audit> {
        let longest = form.positions(prompt_tokens, form.max_new_tokens.max(1));
        let room = Room {
            rows: 2,
            slots: 2 * Room::slots_of(longest, false),
            longest,
            tape_positions: longest + prompt_tokens,
            soft: soft_room(model, &form, &drawing, 1),
        };
        Ok(Audit {
            sequences: Sequences::reserve(model, model.device(), room, Record::LayerInputs)?,
            scores: Scores::reserve_to_read(model, form.max_new_tokens.max(1))?,
            logits: match drawing.gate {
                None => None,
                Some(_) => {
                    let dtype = model.dtype().accumulation();
                    Some(Tensor::zeros(model.device(), [1, model.config().vocab], dtype)?)
                }
            },
            masks: drawing.masking.reserve(model, form.latents, longest, 2)?,
            form,
            drawing,
            thoughts: 0..0,
        })
    }

    /// The largest difference of a log-probability (nats).
    ///
    /// # Errors
    /// A rollout beyond the room.
    pub fn gap(&mut self, model: &Model, prompt: &[u32], trajectory: &Trajectory) -> Result<f64> {
        self.gap_with(model, prompt, trajectory, |_| Ok(()))
    }

    /// The same after `perturb` has changed the masks: for tests that the gap can see a difference.
    ///
    /// # Errors
    /// As [`Audit::gap`], and those of `perturb`.
    pub fn gap_with(
        &mut self,
        model: &Model,
        prompt: &[u32],
        trajectory: &Trajectory,
        perturb: impl FnOnce(&mut MaskSet) -> Result<()>,
    ) -> Result<f64> {
        let replayed = self.log_probabilities(model, prompt, trajectory, perturb)?;
        let pairs = replayed.iter().zip(&trajectory.log_probabilities);
        // NaN must not pass for a small gap.
        let gap = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, worse);
        Ok(worse(worse(gap, self.gap_of_actions(trajectory)?), self.gap_of_mixtures(trajectory)?))
    }

    /// The largest difference of a perturbed log-probability, or of what was read, at a soft step; infinite where other ids were kept.
    fn gap_of_actions(&self, trajectory: &Trajectory) -> Result<f64> {
        if trajectory.actions.is_empty() {
            return Ok(0.0);
        }
        let drawn = self.sequences.actions()?;
        let mut gap = 0.0;
        for (now, then) in drawn.iter().zip(&trajectory.actions) {
            if now.ids != then.ids || now.proxy != then.proxy {
                return Ok(f64::INFINITY);
            }
            if now.input.len() != then.input.len() {
                return Ok(f64::INFINITY);
            }
            let (g, x) = (now.perturbed.iter().zip(&then.perturbed), now.input.iter().zip(&then.input));
            gap = g.chain(x).map(|(a, b)| (a - b).abs()).fold(gap, worse);
        }
        Ok(gap)
    }

    /// The largest difference of a mixture's weight; infinite where other ids were kept.
    fn gap_of_mixtures(&self, trajectory: &Trajectory) -> Result<f64> {
        let now = self.sequences.mixtures()?;
        if now.len() != trajectory.mixtures.len() {
            return Ok(f64::INFINITY);
        }
        let mut gap = 0.0;
        for (now, then) in now.iter().zip(&trajectory.mixtures) {
            if !now.iter().map(|(id, _)| id).eq(then.iter().map(|(id, _)| id)) {
                return Ok(f64::INFINITY);
            }
            gap = now.iter().zip(then).map(|((_, a), (_, b))| (a - b).abs()).fold(gap, worse);
        }
        Ok(gap)
    }

    /// The thoughts of the rollout that was audited last; none without latents (one download).
    ///
    /// # Errors
    /// Nothing was audited yet.
    pub fn thoughts(&self) -> Result<Option<ThoughtStatistics>> {
        let states = self.sequences.hidden(self.thoughts.clone())?;
        let (count, width) = (states.count(), states.cols());
        if count == 0 {
            return Ok(None);
        }
        let values = states.numbers()?;
        let states: Vec<&[f64]> = values.chunks_exact(width).collect();
        let norms: Vec<f64> = states.iter().map(|state| norm(state)).collect();
        let cosine = |n: usize| cosine(states[n], states[n + 1], [norms[n], norms[n + 1]]);
        Ok(Some(ThoughtStatistics {
            norm: norms.iter().sum::<f64>() / count as f64,
            similarity: (count > 1).then(|| (0..count - 1).map(cosine).sum::<f64>() / (count - 1) as f64),
        }))
    }

    fn log_probabilities(
        &mut self,
        model: &Model,
        prompt: &[u32],
        trajectory: &Trajectory,
        perturb: impl FnOnce(&mut MaskSet) -> Result<()>,
    ) -> Result<Vec<f64>> {
        // A rollout that a proxy stopped has no end marker and no answer.
        let silent = trajectory.tokens.is_empty();
        let steps = if self.drawing.soft.is_some() { trajectory.actions.len() } else { self.form.latents };
        let length = self.form.positions(prompt.len(), trajectory.tokens.len());
        self.sequences.layout(&[RowPlan::own(prompt.len()), RowPlan::own(length)])?;
        let stranger = Rollout { rollout: u32::MAX, ..trajectory.member.coordinates };
        let plan = MaskPlan::new(
            self.drawing.masking.clone(),
            self.form.latents,
            self.form.positions(prompt.len(), self.form.max_new_tokens),
            vec![stranger, trajectory.member.coordinates],
        );
        if let Some(masks) = &mut self.masks {
            plan.draw_into(masks, self.drawing.seed)?;
            perturb(masks)?;
        }
        let masks = self.masks.as_ref();
        let audited = AUDITED as usize;
        let mut latest = 0;
        let mut position = 0;
        // The prompt in two cuts, the first beside the stranger, who reads it backwards.
        let cut = prompt.len() / 2;
        for (cut, part) in [&prompt[..cut], &prompt[cut..]].into_iter().enumerate() {
            let mut segment = Segment::new();
            if cut == 0 {
                segment.extend_tokens(0, &prompt.iter().rev().copied().collect::<Vec<_>>());
            }
            for &token in part {
                let instance = plan.instance(audited, Part::Prompt, position);
                segment.push_under(AUDITED, Input::Token(token), instance);
                position += 1;
            }
            let at = model.forward(&mut self.sequences, &segment, masks)?;
            latest = at.end.saturating_sub(1);
        }
        for &token in &self.form.start {
            let segment = one(Input::Token(token), plan.instance(audited, Part::Start, position));
            latest = model.forward(&mut self.sequences, &segment, masks)?.start;
            position += 1;
        }
        self.thoughts = latest..latest + steps;
        for step in 1..=steps {
            let instance = plan.instance(audited, Part::Latent(step), position);
            let mut segment = match self.drawing.soft {
                None => one(Input::Latent, instance),
                Some(soft) => {
                    let mut segment = one(Input::Drawn, instance);
                    let key = trajectory.member.coordinates.gumbel(self.drawing.seed);
                    segment.draw = Some(Draw { law: soft.law, keys: vec![(key, step as u32)], stored: None });
                    segment
                }
            };
            segment.noise = (self.drawing.latent_noise != 0.0).then(|| LatentNoise {
                deviation: self.drawing.latent_noise,
                keys: vec![(trajectory.member.coordinates.noise(self.drawing.seed), step as u32)],
            });
            latest = model.forward(&mut self.sequences, &segment, masks)?.start;
            position += 1;
        }
        if silent {
            return Ok(Vec::new());
        }
        // The end marker and the answer in cuts of one, two, three, ... tokens.
        let answer = &trajectory.tokens[..trajectory.tokens.len().saturating_sub(1)];
        let rest: Vec<u32> = self.form.end.iter().chain(answer).copied().collect();
        let mut at = vec![latest as u32];
        let (mut done, mut size) = (0, 1);
        let gated = self.drawing.gate.as_ref().map_or(0, |gate| gate.gated(answer));
        let ends = self.form.end.len();
        while done < rest.len() {
            let mut segment = Segment::new();
            // What was read with its mixture is read so again, one by one: the mixture is what its logits give now.
            let token = done.checked_sub(ends).filter(|&token| token < gated);
            match (token, &self.drawing.gate, &mut self.logits) {
                (Some(_), Some(gate), Some(logits)) => {
                    let hidden = self.sequences.hidden(latest..latest + 1)?;
                    model.logits(hidden, logits.view_mut())?;
                    model.note_mixtures(&mut self.sequences, logits.view(), &gate.law)?;
                    let instance = plan.instance(audited, Part::Answer, position);
                    segment.push_under(AUDITED, Input::Gated(rest[done]), instance);
                }
                _ => {
                    // A cut of the end marker must not run into gated tokens.
                    let most = if gated > 0 && done < ends { ends } else { rest.len() };
                    for &token in &rest[done..(done + size).min(most)] {
                        let instance = plan.instance(audited, Part::Answer, position + segment.len());
                        segment.push_under(AUDITED, Input::Token(token), instance);
                    }
                    size += 1;
                }
            }
            (done, position) = (done + segment.len(), position + segment.len());
            let here = model.forward(&mut self.sequences, &segment, masks)?;
            latest = here.end - 1;
            at.extend(here.map(|n| n as u32));
        }
        let predictors = &at[self.form.end.len()..];
        let inverse_temperature = self.drawing.law.inverse_temperature();
        self.scores.forward(model, &self.sequences, predictors, &trajectory.tokens, inverse_temperature)?;
        self.scores.log_probabilities()
    }
}

/// The larger gap; NaN is larger than any.
pub fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b <= a { a } else { b }
}

fn one(input: Input, instance: Option<u32>) -> Segment {
    let mut segment = Segment::new();
    segment.push_under(AUDITED, input, instance);
    segment
}
