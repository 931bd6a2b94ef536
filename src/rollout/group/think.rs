//! The thinking part of a batch: prompts, start markers, latent steps, end markers; drawn, or again from actions.

use super::super::sharing::{Rows, Share};
use super::{Member, Rollouts, SoftReplay, SoftThoughts, Thoughts, Trajectory};
use crate::base::{Error, Result};
use crate::model::{Action, Draw, Input, LatentNoise, Model, Segment, Sequences, SoftLaw};
use crate::ops::mask::MaskSet;
use crate::ops::sampler::FAULTY;
use crate::rollout::masks::{MaskPlan, Part, Rollout};

impl Rollouts {
    /// Runs prompts, start markers and latent steps; returns each row's latest position on the tape.
    pub(super) fn think(
        &mut self,
        model: &Model,
        prompts: &[Vec<u32>],
        members: &[Member],
        rows: &Rows,
        plan: &MaskPlan,
    ) -> Result<Vec<u32>> {
        let mut latest = self.begin(model, prompts, members, rows, plan)?;
        let soft = self.drawing.soft;
        for step in 1..=self.form.latents {
            let active: Vec<usize> =
                (0..rows.thinkers().len()).filter(|&index| !self.done.get(index).unwrap_or(&false)).collect();
            match soft {
                Some(soft) if self.drawing.thoughts == Thoughts::Shuffled => {
                    self.shuffled_step(model, members, rows, plan, (step, soft), &mut latest)?;
                }
                Some(soft) => {
                    self.draw_step(model, members, rows, plan, (step, &active, soft), &mut latest)?;
                }
                None => self.latent_step(model, members, rows, plan, step, &mut latest)?,
            }
        }
        Ok(latest)
    }

    /// Runs prompts and start markers.
    fn begin(
        &mut self,
        model: &Model,
        prompts: &[Vec<u32>],
        members: &[Member],
        rows: &Rows,
        plan: &MaskPlan,
    ) -> Result<Vec<u32>> {
        self.thinking = vec![Vec::new(); members.len()];
        (self.ended, self.done) = (vec![false; members.len()], vec![false; members.len()]);
        self.cold = vec![0; members.len()];
        self.drawn.clear();
        let masks = self.masks.as_ref();
        let mut latest = vec![0; rows.owners.len() + rows.members.len()];
        let mut segment = Segment::new();
        match rows.share {
            Share::Nothing => {
                for (index, member) in members.iter().enumerate() {
                    for (position, &token) in prompts[member.prompt].iter().enumerate() {
                        let instance = plan.instance(index, Part::Prompt, position);
                        segment.push_under(rows.members[index], Input::Token(token), instance);
                    }
                }
                for (&owner, prompt) in rows.owners.iter().zip(prompts) {
                    segment.extend_tokens(owner, prompt);
                    segment.extend_tokens(owner, &self.form.start);
                }
            }
            _ => {
                for (owner, prompt) in rows.owners.iter().zip(prompts) {
                    segment.extend_tokens(*owner, prompt);
                }
            }
        }
        run(model, &mut self.sequences, &segment, masks, &mut latest)?;
        let mut segment = Segment::new();
        for (index, &row) in rows.thinkers().iter().enumerate() {
            let first = self.sequences.length(row);
            for (n, &token) in self.form.start.iter().enumerate() {
                let instance = rows.instance(plan, index, Part::Start, first + n);
                segment.push_under(row, Input::Token(token), instance);
            }
        }
        run(model, &mut self.sequences, &segment, masks, &mut latest)?;
        // A row that only reads a prefix stands where its owner stands.
        if rows.share == Share::Prompt && self.form.start.is_empty() {
            for (index, member) in members.iter().enumerate() {
                latest[rows.members[index] as usize] = latest[rows.owners[member.prompt] as usize];
            }
        }
        Ok(latest)
    }

    /// Feeds every thinker its own final hidden state.
    fn latent_step(
        &mut self,
        model: &Model,
        members: &[Member],
        rows: &Rows,
        plan: &MaskPlan,
        step: usize,
        latest: &mut [u32],
    ) -> Result<()> {
        let mut segment = Segment::new();
        for (index, &row) in rows.thinkers().iter().enumerate() {
            let position = self.sequences.length(row);
            let instance = rows.instance(plan, index, Part::Latent(step), position);
            segment.push_under(row, rows.thought(index, members), instance);
        }
        // Shuffled thoughts come from rows that think for themselves.
        for &owner in rows.owners.iter().filter(|_| rows.share == Share::Nothing) {
            segment.push(owner, Input::Latent);
        }
        segment.noise = self.noise(members.iter(), step).filter(|_| !segment.is_empty());
        run(model, &mut self.sequences, &segment, self.masks.as_ref(), latest)
    }

    /// Draws a mixture for each of the `active` members.
    fn draw_step(
        &mut self,
        model: &Model,
        members: &[Member],
        rows: &Rows,
        plan: &MaskPlan,
        (step, active, soft): (usize, &[usize], SoftThoughts),
        latest: &mut [u32],
    ) -> Result<()> {
        if active.is_empty() {
            return Ok(());
        }
        let mut segment = self.soft_segment(rows, plan, step, active, latest, |_| Input::Drawn);
        segment.draw = Some(self.draw_of(members, soft, step, active, None));
        segment.noise = self.noise(active.iter().map(|&index| &members[index]), step);
        run(model, &mut self.sequences, &segment, self.masks.as_ref(), latest)?;
        self.drawn.extend(active);
        if soft.proxies_stop || soft.leave_at.is_some() {
            for (&index, proxy) in active.iter().zip(self.sequences.proxies(active.len())?) {
                self.ended[index] = soft.proxies_stop && self.form.stop.contains(&proxy);
                self.done[index] = self.ended[index] || soft.leave_at == Some(proxy);
            }
        }
        if let Some(cold) = soft.cold {
            for (&index, entropy) in active.iter().zip(self.sequences.soft_entropies(active.len())?) {
                self.cold[index] = if entropy < cold.entropy { self.cold[index] + 1 } else { 0 };
                self.done[index] |= self.cold[index] >= cold.steps;
            }
        }
        Ok(())
    }

    /// Every prompt's own row draws a mixture, and the members read that of the next prompt.
    fn shuffled_step(
        &mut self,
        model: &Model,
        members: &[Member],
        rows: &Rows,
        plan: &MaskPlan,
        (step, soft): (usize, SoftThoughts),
        latest: &mut [u32],
    ) -> Result<()> {
        let owners = rows.owners.len();
        let mut segment = Segment::new();
        for &owner in &rows.owners {
            segment.push(owner, Input::Drawn);
        }
        // A prompt that has no member at hand thinks under a rollout number that no member has.
        let key = |prompt: usize| {
            let own = members.iter().find(|member| member.prompt == prompt);
            let coordinates = own.map_or(
                Rollout { prompt: prompt as u32, rollout: u32::MAX, ..Rollout::default() },
                |member| member.coordinates,
            );
            (coordinates.gumbel(self.drawing.seed), step as u32)
        };
        segment.draw = Some(Draw { law: soft.law, keys: (0..owners).map(key).collect(), stored: None });
        run(model, &mut self.sequences, &segment, None, latest)?;
        let actions = self.sequences.latest_actions(owners)?;
        let vocabulary = model.config().vocab;
        let all: Vec<usize> = (0..members.len()).collect();
        let segment = self.soft_segment(rows, plan, step, &all, latest, |index| {
            Input::Soft(mixture(&actions[(members[index].prompt + 1) % owners], &soft.law, vocabulary))
        });
        run(model, &mut self.sequences, &segment, self.masks.as_ref(), latest)
    }

    /// Runs prompts, start markers and the soft steps of `trajectories` again.
    pub(super) fn think_again(
        &mut self,
        model: &Model,
        prompts: &[Vec<u32>],
        trajectories: &[&Trajectory],
        soft: SoftThoughts,
        rows: &Rows,
        plan: &MaskPlan,
    ) -> Result<Vec<u32>> {
        let members: Vec<Member> = trajectories.iter().map(|trajectory| trajectory.member).collect();
        let mut latest = self.begin(model, prompts, &members, rows, plan)?;
        for (index, trajectory) in trajectories.iter().enumerate() {
            self.ended[index] = trajectory.tokens.is_empty();
        }
        let thinks = |step: usize| -> Vec<usize> {
            (0..trajectories.len()).filter(|&index| trajectories[index].actions.len() >= step).collect()
        };
        let feed = |action: &Action| mixture(action, &soft.law, model.config().vocab);
        let noise_free = self.drawing.latent_noise == 0.0;
        if soft.replay == SoftReplay::Inputs || (soft.replay == SoftReplay::Actions && noise_free) {
            return self.think_at_once(model, trajectories, soft, rows, plan, latest);
        }
        for step in 1..=self.form.latents {
            let active = thinks(step);
            if active.is_empty() {
                break;
            }
            let action = |index: usize| &trajectories[index].actions[step - 1];
            let mut segment = match soft.replay {
                SoftReplay::Actions | SoftReplay::Inputs => {
                    self.soft_segment(rows, plan, step, &active, &latest, |index| {
                        Input::Soft(feed(action(index)))
                    })
                }
                SoftReplay::Noise => self.soft_segment(rows, plan, step, &active, &latest, |_| Input::Drawn),
            };
            if soft.replay == SoftReplay::Noise {
                let stored = active.iter().map(|&index| action(index).ids.clone()).collect();
                segment.draw = Some(self.draw_of(&members, soft, step, &active, Some(stored)));
            }
            segment.noise = self.noise(active.iter().map(|&index| &members[index]), step);
            run(model, &mut self.sequences, &segment, self.masks.as_ref(), &mut latest)?;
        }
        Ok(latest)
    }

    /// All soft steps in one segment: their inputs are known.
    fn think_at_once(
        &mut self,
        model: &Model,
        trajectories: &[&Trajectory],
        soft: SoftThoughts,
        rows: &Rows,
        plan: &MaskPlan,
        mut latest: Vec<u32>,
    ) -> Result<Vec<u32>> {
        let mut segment = Segment::new();
        for (index, trajectory) in trajectories.iter().enumerate() {
            let row = rows.members[index];
            let first = self.sequences.length(row);
            for (n, action) in trajectory.actions.iter().enumerate() {
                let instance = plan.instance(index, Part::Latent(n + 1), first + n);
                let input = match soft.replay {
                    SoftReplay::Inputs => Input::Embedded(action.input.clone()),
                    _ => Input::Soft(mixture(action, &soft.law, model.config().vocab)),
                };
                segment.push_under(row, input, instance);
            }
        }
        let at = model.forward(&mut self.sequences, &segment, self.masks.as_ref())?;
        let mut position = at.start as u32;
        for (index, trajectory) in trajectories.iter().enumerate() {
            let latest = &mut latest[rows.members[index] as usize];
            for _ in &trajectory.actions {
                self.thinking[index].push(*latest);
                (*latest, position) = (position, position + 1);
            }
        }
        Ok(latest)
    }

    /// One position for each of `active`, and a note of what predicts it.
    fn soft_segment(
        &mut self,
        rows: &Rows,
        plan: &MaskPlan,
        step: usize,
        active: &[usize],
        latest: &[u32],
        input: impl Fn(usize) -> Input,
    ) -> Segment {
        let mut segment = Segment::new();
        for &index in active {
            let row = rows.members[index];
            let position = self.sequences.length(row);
            segment.push_under(row, input(index), plan.instance(index, Part::Latent(step), position));
            self.thinking[index].push(latest[row as usize]);
        }
        segment
    }

    fn draw_of(
        &self,
        members: &[Member],
        soft: SoftThoughts,
        step: usize,
        active: &[usize],
        stored: Option<Vec<Vec<u32>>>,
    ) -> Draw {
        let key = |&index: &usize| (members[index].coordinates.gumbel(self.drawing.seed), step as u32);
        Draw { law: soft.law, keys: active.iter().map(key).collect(), stored }
    }

    /// The noise on the latents of `members` at a step, if there is any.
    fn noise<'m>(&self, members: impl Iterator<Item = &'m Member>, step: usize) -> Option<LatentNoise> {
        (self.drawing.latent_noise != 0.0).then(|| LatentNoise {
            deviation: self.drawing.latent_noise,
            keys: members.map(|m| (m.coordinates.noise(self.drawing.seed), step as u32)).collect(),
        })
    }

    /// Runs the end markers of whoever goes on.
    pub(super) fn end(
        &mut self,
        model: &Model,
        rows: &Rows,
        plan: &MaskPlan,
        latest: &mut [u32],
    ) -> Result<()> {
        let mut segment = Segment::new();
        for (index, &row) in rows.thinkers().iter().enumerate() {
            if rows.share != Share::Thoughts && self.ended[index] {
                continue;
            }
            let first = self.sequences.length(row);
            for (n, &token) in self.form.end.iter().enumerate() {
                let instance = rows.instance(plan, index, Part::Answer, first + n);
                segment.push_under(row, Input::Token(token), instance);
            }
        }
        run(model, &mut self.sequences, &segment, self.masks.as_ref(), latest)
    }

    /// Brings what was drawn to the host, once, and gives each trajectory its own.
    pub(super) fn note_actions(&mut self, trajectories: &mut [Trajectory]) -> Result<()> {
        if self.drawn.is_empty() {
            return Ok(());
        }
        for (&index, action) in self.drawn.iter().zip(self.sequences.actions()?) {
            if action.proxy == FAULTY || action.weights.iter().any(|weight| !weight.is_finite()) {
                return Err(Error::NotFinite {
                    what: format!("soft step {} of rollout {index}", trajectories[index].actions.len() + 1),
                    found: "logits without a softmax".into(),
                    advice: "the weights or the hidden states are broken; check them, and the learning rate"
                        .into(),
                });
            }
            let trajectory = &mut trajectories[index];
            trajectory.actions.push(action);
            trajectory.stopped = self.ended[index];
        }
        Ok(())
    }
}

/// An action as an input: its weights, or the largest of them alone where inputs are hard.
fn mixture(action: &Action, law: &SoftLaw, vocabulary: usize) -> Vec<(u32, f64)> {
    let largest = action.largest();
    let fed = |(&id, &weight): (&u32, &f64)| match law.hard {
        true => (id, f64::from(u8::from(Some(id) == largest))),
        false => (id, weight),
    };
    let mut mixture: Vec<(u32, f64)> = action.ids.iter().zip(&action.weights).map(fed).collect();
    mixture.resize(law.terms(vocabulary).max(mixture.len()), (0, 0.0));
    mixture
}

/// Runs a segment and notes where each of its rows stands now.
fn run(
    model: &Model,
    sequences: &mut Sequences,
    segment: &Segment,
    masks: Option<&MaskSet>,
    latest: &mut [u32],
) -> Result<()> {
    let at = model.forward(sequences, segment, masks)?;
    for (&row, position) in segment.rows.iter().zip(at) {
        latest[row as usize] = position as u32;
    }
    Ok(())
}
