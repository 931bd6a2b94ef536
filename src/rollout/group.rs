//! Groups of rollouts: prompts, latent thoughts under each rollout's mask, and sampled answers.
//!
//! ```text
//! prompt | start | latent 1 .. latent L | end | answer ...
//! ```
//!
//! The rollouts of a prompt share what is the same for all of them ([`Share`]): computed once in a row of its own,
//! read by all members. What is sampled with the tape on can be differentiated as it stands; [`Rollouts::replay`]
//! runs the same positions again from tokens and keys alone.

use super::decode::Decoder;
use super::masks::{MaskPlan, Part};
use super::sharing::Rows;
use crate::base::{Error, Result};
use crate::model::{Input, Mixtures, Model, Record, RowPlan, Segment, Sequences};
use crate::ops::mask::MaskSet;
use crate::ops::sampler;
use std::ops::{ControlFlow, Range};
use std::time::Instant;

mod gate;
mod think;

pub use super::plan::{
    ColdStop, Drawing, Form, Gating, Limits, Member, SoftReplay, SoftThoughts, Thoughts, Timing, Trajectory,
};
pub use super::sharing::{Share, room, share};

/// Room for rollouts of one [`Form`], reused batch after batch.
#[derive(Debug)]
pub struct Rollouts {
    form: Form,
    drawing: Drawing,
    limits: Limits,
    sequences: Sequences,
    decoder: Decoder,
    masks: Option<MaskSet>,
    /// Position on the tape that predicts each answer token, by member.
    predictors: Vec<Vec<u32>>,
    /// The same of each soft step.
    thinking: Vec<Vec<u32>>,
    /// The member of each mixture that was drawn, in the order of drawing.
    drawn: Vec<usize>,
    /// The member of each mixture that was noted, in the order of noting.
    gated: Vec<usize>,
    /// Members that a proxy stopped.
    ended: Vec<bool>,
    /// Members that have done with thinking, and their cold steps so far.
    done: Vec<bool>,
    cold: Vec<usize>,
    timing: Timing,
}

impl Rollouts {
    /// Reserves everything a batch within `limits` needs.
    ///
    /// # Errors
    /// Rollouts longer than the model's position table, a law or a mask probability out of range.
    pub fn reserve(
        model: &Model,
        form: Form,
        drawing: Drawing,
        limits: Limits,
        record: Record,
    ) -> Result<Rollouts> {
        if let Some(soft) = &drawing.soft {
            soft.check(model.config().vocab)?;
        }
        if let Some(gate) = &drawing.gate {
            sampler::Mixture { law: &gate.law, tau: 1.0 }.validate()?;
        }
        let room = room(model, &form, &drawing, limits, record);
        let masks = drawing.masking.reserve(model, form.latents, room.longest, limits.members)?;
        Ok(Rollouts {
            sequences: Sequences::reserve(model, model.device(), room, record)?,
            decoder: Decoder::reserve(model, limits.members, form.max_new_tokens, drawing.law, drawing.seed)?,
            masks,
            form,
            drawing,
            limits,
            predictors: Vec::new(),
            thinking: Vec::new(),
            drawn: Vec::new(),
            gated: Vec::new(),
            ended: Vec::new(),
            done: Vec::new(),
            cold: Vec::new(),
            timing: Timing::default(),
        })
    }

    /// What all rollouts have in common.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// How rollouts are drawn.
    pub fn drawing(&self) -> &Drawing {
        &self.drawing
    }

    /// The sequences as the last batch left them.
    pub fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// The sequences, to be differentiated, and the masks they ran under.
    pub fn parts_mut(&mut self) -> (&mut Sequences, Option<&MaskSet>) {
        (&mut self.sequences, self.masks.as_ref())
    }

    /// The bitmaps of the last batch; flipping bits in them is what a test does.
    pub fn masks_mut(&mut self) -> Option<&mut MaskSet> {
        self.masks.as_mut()
    }

    /// By member, the position on the tape that predicts each answer token of the last batch.
    pub fn predictors(&self) -> &[Vec<u32>] {
        &self.predictors
    }

    /// By member, the position on the tape that predicts each soft step of the last batch.
    pub fn thinking(&self) -> &[Vec<u32>] {
        &self.thinking
    }

    /// Where the time of the last [`Rollouts::sample`] went.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Samples an answer for every member. `on_token(member, token)` sees each token as it is sampled and may stop
    /// all.
    ///
    /// # Errors
    /// A batch beyond the limits, an empty prompt, non-finite logits.
    pub fn sample(
        &mut self,
        model: &Model,
        prompts: &[Vec<u32>],
        members: &[Member],
        mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Trajectory>> {
        let began = Instant::now();
        let blank = |&member: &Member| Trajectory {
            member,
            actions: Vec::new(),
            mixtures: Vec::new(),
            tokens: Vec::new(),
            log_probabilities: Vec::new(),
            stopped: false,
        };
        let mut trajectories: Vec<Trajectory> = members.iter().map(blank).collect();
        self.timing = Timing::default();
        if members.is_empty() {
            return Ok(trajectories);
        }
        let plan = self.mask_plan(prompts, members);
        let rows = self.lay_out(prompts, members, &vec![self.form.max_new_tokens; members.len()], &plan)?;
        let mut latest = self.think(model, prompts, members, &rows, &plan)?;
        self.end(model, &rows, &plan, &mut latest)?;
        self.note_actions(&mut trajectories)?;
        self.timing.prefill = began.elapsed();
        self.predictors = vec![Vec::new(); members.len()];
        self.gated.clear();
        let mut active: Vec<usize> = (0..members.len()).filter(|&index| !self.ended[index]).collect();
        if self.form.max_new_tokens == 0 || active.is_empty() {
            return Ok(trajectories);
        }

        let decoding = Instant::now();
        self.decoder.restart()?;
        self.decoder.pack(active.iter().map(|&index| members[index].coordinates), 0)?;
        let sources: Vec<u32> = active.iter().map(|&index| rows.source(index, members)).collect();
        let mut tokens = self.decoder.first(model, &self.sequences, &active, &sources)?;
        for (&index, source) in active.iter().zip(&sources) {
            self.predictors[index].push(latest[*source as usize]);
        }
        let mut at: Option<Range<usize>> = None;
        for step in 1.. {
            self.timing.tokens += tokens.len();
            let mut halted = false;
            for (&index, &token) in active.iter().zip(&tokens) {
                trajectories[index].tokens.push(token);
                trajectories[index].stopped = self.form.stop.contains(&token);
                halted |= on_token(index, token).is_break();
            }
            let survivors: Vec<usize> =
                active.iter().copied().filter(|&index| !trajectories[index].stopped).collect();
            if survivors.is_empty() || halted || step == self.form.max_new_tokens {
                break;
            }
            let of: Vec<u32> = survivors.iter().map(|&index| rows.members[index]).collect();
            let gated = self.note_mixtures(model, &trajectories, &active, &survivors)?;
            let masks = self.masks.as_ref().zip(plan.answer_stride());
            let next = match at.take() {
                Some(previous) if survivors.len() == active.len() && gated.is_empty() => {
                    let sampling = &mut self.decoder;
                    let next = model.forward_sampled(&mut self.sequences, previous, &of, sampling, masks)?;
                    tokens = self.decoder.fetch(survivors.iter().copied())?;
                    next
                }
                _ => {
                    let mut segment = Segment::new();
                    for (&index, &row) in survivors.iter().zip(&of) {
                        let position = self.sequences.length(row);
                        let token = trajectories[index].tokens[trajectories[index].tokens.len() - 1];
                        let instance = plan.instance(index, Part::Answer, position);
                        let input = match gated.binary_search(&index) {
                            Ok(_) => Input::Gated(token),
                            Err(_) => Input::Token(token),
                        };
                        segment.push_under(row, input, instance);
                    }
                    self.decoder.pack(survivors.iter().map(|&index| members[index].coordinates), step)?;
                    let next = model.forward(&mut self.sequences, &segment, self.masks.as_ref())?;
                    tokens = self.decoder.next(model, &self.sequences, &survivors, next.clone())?;
                    next
                }
            };
            for (&index, position) in survivors.iter().zip(next.clone()) {
                self.predictors[index].push(position as u32);
            }
            (active, at) = (survivors, Some(next));
        }
        for (index, value) in self.decoder.log_probabilities()? {
            trajectories[index].log_probabilities.push(value);
        }
        self.note_gated(&mut trajectories)?;
        self.timing.decode = decoding.elapsed();
        Ok(trajectories)
    }

    /// Runs `trajectories` again from their tokens and keys: thoughts step by step, every answer in one segment.
    /// The results are those of sampling, to the bit.
    ///
    /// # Errors
    /// As [`Rollouts::sample`]; a trajectory without tokens or longer than the form allows.
    pub fn replay(
        &mut self,
        model: &Model,
        prompts: &[Vec<u32>],
        trajectories: &[&Trajectory],
    ) -> Result<()> {
        let members: Vec<Member> = trajectories.iter().map(|trajectory| trajectory.member).collect();
        let answers: Vec<usize> = trajectories.iter().map(|trajectory| trajectory.tokens.len()).collect();
        let silent = |index: usize| {
            self.drawing.soft.is_some() && trajectories[index].actions.len() <= self.form.latents
        };
        let fits = |(index, &n): (usize, &usize)| n <= self.form.max_new_tokens && (n > 0 || silent(index));
        if let Some(index) = answers.iter().enumerate().position(|answer| !fits(answer)) {
            return Err(Error::shape(
                format!("answer of trajectory {index}"),
                format!("{} tokens", answers[index]),
                format!("1 to {}", self.form.max_new_tokens),
            ));
        }
        let plan = self.mask_plan(prompts, &members);
        let rows = self.lay_out(prompts, &members, &answers, &plan)?;
        let mut latest = match self.drawing.soft {
            None => self.think(model, prompts, &members, &rows, &plan)?,
            Some(soft) => self.think_again(model, prompts, trajectories, soft, &rows, &plan)?,
        };
        self.end(model, &rows, &plan, &mut latest)?;
        self.predictors = (trajectories.iter().enumerate())
            .map(|(index, trajectory)| match trajectory.tokens.is_empty() {
                true => Vec::new(),
                false => vec![latest[rows.source(index, &members) as usize]],
            })
            .collect();
        let mut segment = Segment::new();
        let mut of = Vec::new();
        let mut mixtures = Vec::new();
        for (index, trajectory) in trajectories.iter().enumerate() {
            let row = rows.members[index];
            let first = self.sequences.length(row);
            let read = trajectory.tokens.len().saturating_sub(1);
            let gated = self.replays_gated(trajectory)?;
            mixtures.extend(trajectory.mixtures[..gated].iter().cloned());
            for (n, &token) in trajectory.tokens[..read].iter().enumerate() {
                let input = if n < gated { Input::Gated(token) } else { Input::Token(token) };
                segment.push_under(row, input, plan.instance(index, Part::Answer, first + n));
                of.push(index);
            }
        }
        segment.mixtures = Mixtures::Stored(mixtures);
        let at = model.forward(&mut self.sequences, &segment, self.masks.as_ref())?;
        for (index, position) in of.into_iter().zip(at) {
            self.predictors[index].push(position as u32);
        }
        Ok(())
    }

    fn mask_plan(&self, prompts: &[Vec<u32>], members: &[Member]) -> MaskPlan {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let length = self.form.positions(longest, self.form.max_new_tokens);
        let rollouts = members.iter().map(|member| member.coordinates).collect();
        MaskPlan::new(self.drawing.masking.clone(), self.form.latents, length, rollouts)
    }

    /// Checks the batch, lays its rows out and draws its masks.
    fn lay_out(
        &mut self,
        prompts: &[Vec<u32>],
        members: &[Member],
        answers: &[usize],
        plan: &MaskPlan,
    ) -> Result<Rows> {
        self.check(prompts, members)?;
        let share = share(&self.form, &self.drawing, prompts.len(), members.len());
        let form = &self.form;
        let prefix = |prompt: usize| match share {
            Share::Nothing => 0,
            Share::Prompt => prompts[prompt].len(),
            Share::Thoughts => form.positions(prompts[prompt].len(), 0),
        };
        let mut plans = Vec::new();
        let mut rows = Rows { share, owners: Vec::new(), members: Vec::new() };
        let shuffled = self.drawing.thoughts == Thoughts::Shuffled;
        if share != Share::Nothing || shuffled {
            let own = |prompt: usize| match shuffled {
                true => form.positions(prompts[prompt].len(), 0),
                false => prefix(prompt),
            };
            rows.owners = (0..prompts.len() as u32).collect();
            plans.extend((0..prompts.len()).map(|prompt| RowPlan::own(own(prompt))));
        }
        for (member, &answer) in members.iter().zip(answers) {
            let capacity = form.positions(prompts[member.prompt].len(), answer);
            rows.members.push(plans.len() as u32);
            plans.push(match share {
                Share::Nothing => RowPlan::own(capacity),
                _ => RowPlan::sharing(member.prompt as u32, prefix(member.prompt), capacity),
            });
        }
        self.sequences.layout(&plans)?;
        if let Some(set) = &mut self.masks {
            plan.draw_into(set, self.drawing.seed)?;
        }
        Ok(rows)
    }

    fn check(&self, prompts: &[Vec<u32>], members: &[Member]) -> Result<()> {
        let limits = self.limits;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if prompts.len() > limits.prompts || members.len() > limits.members || longest > limits.prompt_tokens
        {
            return Err(Error::shape(
                "rollouts",
                format!("{} prompts, {} rollouts, longest prompt {longest}", prompts.len(), members.len()),
                format!("at most {}, {} and {}", limits.prompts, limits.members, limits.prompt_tokens),
            ));
        }
        if let Some(prompt) = prompts.iter().position(Vec::is_empty) {
            return Err(Error::input(
                "prompt",
                format!("prompt {prompt} has no tokens"),
                "give at least one token (for example the beginning-of-text token)",
            ));
        }
        match members.iter().find(|member| member.prompt >= prompts.len()) {
            None => Ok(()),
            Some(member) => Err(Error::input(
                "rollouts",
                format!("a rollout of prompt {} where {} prompts are given", member.prompt, prompts.len()),
                "number prompts by their place in the batch",
            )),
        }
    }
}
