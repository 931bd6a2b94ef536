//! What the rollouts of a prompt have in common, computed once in a row of its own, and the room that a batch may take.

use super::masks::{MaskPlan, Part, Scope};
use super::plan::{Drawing, Form, Limits, Member, SoftReplay, Thoughts};
use crate::model::{GateRoom, Input, Model, Record, Room, SoftRoom};
use crate::ops::sampler::Law;

/// What the members of a prompt share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Nothing: masks cover the prompt, or every prompt has one member.
    Nothing,
    /// The prompt up to the start marker.
    Prompt,
    /// Prompt, thoughts and end marker: without masks they are the same for all.
    Thoughts,
}

/// What the members of a prompt share.
pub fn share(form: &Form, drawing: &Drawing, prompts: usize, members: usize) -> Share {
    let thinks = !form.start.is_empty() || form.latents > 0;
    let noisy = (drawing.latent_noise != 0.0 || drawing.soft.is_some()) && form.latents > 0;
    if drawing.thoughts == Thoughts::Shuffled {
        return Share::Nothing;
    }
    match (drawing.share && members > prompts, drawing.masking.is_active(), drawing.masking.scope) {
        (false, _, _) => Share::Nothing,
        (true, false, _) if noisy => Share::Prompt,
        (true, false, _) => Share::Thoughts,
        (true, true, Scope::Latent) if thinks => Share::Prompt,
        // Latent scope masks nothing where there is nothing to think.
        (true, true, Scope::Latent) => Share::Thoughts,
        (true, true, _) => Share::Nothing,
    }
}

/// The room that batches within `limits` may take.
pub fn room(model: &Model, form: &Form, drawing: &Drawing, limits: Limits, record: Record) -> Room {
    let longest = form.positions(limits.prompt_tokens, form.max_new_tokens);
    let Limits { prompts, members, prompt_tokens } = limits;
    let share = share(form, drawing, prompts, members);
    let shared = match share {
        Share::Nothing => 0,
        Share::Prompt => prompt_tokens,
        Share::Thoughts => form.positions(prompt_tokens, 0),
    };
    // A batch with one member a prompt shares nothing, whatever the largest batch does.
    let own = Room::slots_of(longest, false).max(Room::slots_of(longest - shared, true));
    let unshared = prompts.min(members) * longest;
    let shuffled = drawing.thoughts == Thoughts::Shuffled;
    // What a prompt whose thoughts others read takes for itself.
    let donor = if shuffled { form.positions(prompt_tokens, 0) } else { 0 };
    // A replay runs all soft steps of a rollout at once.
    let soft_steps = if drawing.soft.is_some() { form.latents } else { 0 };
    let step = form.start.len().max(form.end.len()).max(form.max_new_tokens).max(soft_steps).max(1);
    Room {
        rows: prompts + members,
        slots: prompts * Room::slots_of(shared.max(donor), false) + members * own,
        longest,
        tape_positions: prompts * donor
            + match (record, share) {
                (Record::Nothing, Share::Nothing) => members * prompt_tokens.max(step),
                (Record::Nothing, _) => (prompts * prompt_tokens).max(members * step),
                _ => (prompts * shared + members * (longest - shared)).max(unshared),
            },
        soft: soft_room(model, form, drawing, if shuffled { prompts + members } else { members }),
    }
}

/// The room for the mixtures of so many rows.
pub(super) fn soft_room(model: &Model, form: &Form, drawing: &Drawing, rows: usize) -> SoftRoom {
    let vocabulary = model.config().vocab;
    let gates = match &drawing.gate {
        Some(gate) => GateRoom {
            positions: rows * gate.thinking.min(form.max_new_tokens.saturating_sub(1)),
            rows,
            terms: kept_at_most(&gate.law, vocabulary),
        },
        None => GateRoom::default(),
    };
    match drawing.soft {
        Some(soft) if form.latents > 0 => SoftRoom {
            positions: rows * form.latents,
            rows,
            terms: soft.law.terms(vocabulary),
            hard: soft.law.hard,
            inputs: soft.replay == SoftReplay::Inputs,
            gates,
        },
        _ => SoftRoom { gates, ..SoftRoom::default() },
    }
}

/// Ids that a mixture under a law may hold.
fn kept_at_most(law: &Law, vocabulary: usize) -> usize {
    match law {
        Law::Categorical { top_k: Some(k), .. } => (*k).min(vocabulary),
        _ => vocabulary,
    }
}

/// The rows of one batch.
pub(super) struct Rows {
    pub share: Share,
    /// Row that holds what a prompt's members share.
    pub owners: Vec<u32>,
    /// Row of each member.
    pub members: Vec<u32>,
}

impl Rows {
    /// The rows that think: the owners where thoughts are shared, else the members.
    pub fn thinkers(&self) -> &[u32] {
        if self.share == Share::Thoughts { &self.owners } else { &self.members }
    }

    /// The mask of thinker `index`; shared thoughts have none.
    pub fn instance(&self, plan: &MaskPlan, index: usize, part: Part, position: usize) -> Option<u32> {
        if self.share == Share::Thoughts { None } else { plan.instance(index, part, position) }
    }

    /// What member `index` reads at a latent step.
    pub fn thought(&self, index: usize, members: &[Member]) -> Input {
        match (self.share, self.owners.len()) {
            (Share::Nothing, prompts @ 1..) => {
                Input::LatentOf(self.owners[(members[index].prompt + 1) % prompts])
            }
            _ => Input::Latent,
        }
    }

    /// The row whose latest position predicts the first answer token of member `index`.
    pub fn source(&self, index: usize, members: &[Member]) -> u32 {
        if self.share == Share::Thoughts { self.owners[members[index].prompt] } else { self.members[index] }
    }
}
