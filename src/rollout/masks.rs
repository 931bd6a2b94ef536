//! Which mask a position runs under: sites, scope and mode (algorithms B.2), laid out as instances of one
//! [`MaskSet`] that anyone can rebuild from the seed and a rollout's coordinates.
//!
//! | mode | instances of a rollout | Philox step of a position |
//! |---|---|---|
//! | shared | 1 | 0 |
//! | per_step | latents + 2 | 0 in the prompt and at the start token, j at latent j = 1.., latents + 1 in the answer |
//! | per_position | length | its absolute position |
//! | none | 0 | - |

use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Error, Result};
use crate::model::Model;
use crate::ops::mask::{MaskKey, MaskSet, SiteKind, Sites};
use std::str::FromStr;

/// Which positions are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The start token and the latents: the prompt before them is shared by a group.
    Latent,
    /// Prompt and latents; the answer runs on clean weights.
    PromptLatent,
    /// Everything: each rollout is a sample of the weights.
    All,
}

/// How masks vary inside one rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One mask, held over every recurrence step.
    Shared,
    /// A fresh mask at each latent step.
    PerStep,
    /// A fresh mask at each position.
    PerPosition,
    /// No mask.
    None,
}

/// Where in a rollout a position stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A prompt token before the start token.
    Prompt,
    /// The start token: the first position that latent scope masks.
    Start,
    /// Latent j, counted from 1.
    Latent(usize),
    /// Anything after the latents.
    Answer,
}

impl FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "latent" => Ok(Scope::Latent),
            "prompt+latent" => Ok(Scope::PromptLatent),
            "all" => Ok(Scope::All),
            other => Err(format!("unknown mask scope `{other}`; known: latent, prompt+latent, all")),
        }
    }
}

impl FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "shared" => Ok(Mode::Shared),
            "per_step" => Ok(Mode::PerStep),
            "per_position" => Ok(Mode::PerPosition),
            "none" => Ok(Mode::None),
            other => Err(format!("unknown mask mode `{other}`; known: shared, per_step, per_position, none")),
        }
    }
}

impl Scope {
    /// Whether positions of `part` are masked.
    pub fn covers(self, part: Part) -> bool {
        match part {
            Part::Start | Part::Latent(_) => true,
            Part::Prompt => self != Scope::Latent,
            Part::Answer => self == Scope::All,
        }
    }
}

/// Dropout of a group of rollouts.
#[derive(Clone, Debug, PartialEq)]
pub struct Masking {
    /// Probability that an element is dropped, in [0, 1).
    pub p: f64,
    /// Places that are masked.
    pub sites: Vec<SiteKind>,
    /// Positions that are masked.
    pub scope: Scope,
    /// How masks vary inside a rollout.
    pub mode: Mode,
}

/// Coordinates of a rollout: with the seed, all that its masks depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Update in which it is drawn.
    pub update: u32,
    /// Its prompt.
    pub prompt: u32,
    /// Its number in the group.
    pub rollout: u32,
    /// Refill of the prompt within the update.
    pub attempt: u32,
}

impl Rollout {
    /// The stream of its soft steps' noise.
    pub fn gumbel(&self, seed: u64) -> StreamKey {
        StreamKey::new(seed, self.update, self.prompt, self.rollout, Purpose::Gumbel)
    }

    /// The stream of its noise on latents.
    pub fn noise(&self, seed: u64) -> StreamKey {
        StreamKey::new(seed, self.update, self.prompt, self.rollout, Purpose::LatentNoise)
    }
}

impl Masking {
    /// No mask at all.
    pub const NONE: Masking = Masking { p: 0.0, sites: Vec::new(), scope: Scope::Latent, mode: Mode::None };

    /// Whether anything can be dropped.
    pub fn is_active(&self) -> bool {
        self.p > 0.0 && self.mode != Mode::None && !self.sites.is_empty()
    }

    /// Instances that one rollout of `latents` latent steps and at most `length` positions takes.
    pub fn instances(&self, latents: usize, length: usize) -> usize {
        match self.mode {
            _ if !self.is_active() => 0,
            Mode::Shared => 1,
            Mode::PerStep => latents + 2,
            Mode::PerPosition => length,
            Mode::None => 0,
        }
    }

    /// Room for the bitmaps of `rollouts` rollouts; none when nothing is masked.
    ///
    /// # Errors
    /// `p` outside [0, 1).
    pub fn reserve(
        &self,
        model: &Model,
        latents: usize,
        length: usize,
        rollouts: usize,
    ) -> Result<Option<MaskSet>> {
        if !(0.0..1.0).contains(&self.p) {
            return Err(Error::input("mask probability", format!("{}", self.p), "use a number in [0, 1)"));
        }
        if !self.is_active() {
            return Ok(None);
        }
        let config = model.config();
        let sites = Sites::new(config.width, config.mlp_hidden, config.layers, &self.sites);
        MaskSet::reserve(model.device(), sites, self.p, rollouts * self.instances(latents, length)).map(Some)
    }
}

/// The instances of some rollouts' masks.
#[derive(Clone, Debug)]
pub struct MaskPlan {
    masking: Masking,
    latents: usize,
    /// Instances of one rollout.
    steps: usize,
    rollouts: Vec<Rollout>,
}

impl MaskPlan {
    /// Masks for `rollouts` with `latents` latent steps and at most `length` positions each.
    pub fn new(masking: Masking, latents: usize, length: usize, rollouts: Vec<Rollout>) -> MaskPlan {
        let steps = masking.instances(latents, length);
        MaskPlan { masking, latents, steps, rollouts }
    }

    /// The instance of rollout number `index` (of this plan) at `position`; none where it is not masked.
    pub fn instance(&self, index: usize, part: Part, position: usize) -> Option<u32> {
        if self.steps == 0 || !self.masking.scope.covers(part) {
            return None;
        }
        let step = match (self.masking.mode, part) {
            (Mode::Shared | Mode::None, _) => 0,
            (Mode::PerPosition, _) => position,
            (Mode::PerStep, Part::Prompt | Part::Start) => 0,
            (Mode::PerStep, Part::Latent(step)) => step,
            (Mode::PerStep, Part::Answer) => self.latents + 1,
        };
        Some((index * self.steps + step) as u32)
    }

    /// What the instance number grows by from one answer position to the next; none where answers are not masked.
    pub fn answer_stride(&self) -> Option<i32> {
        (self.steps > 0 && self.masking.scope == Scope::All)
            .then(|| i32::from(self.masking.mode == Mode::PerPosition))
    }

    /// Draws the bitmaps into `set`, which was reserved for at least as many rollouts.
    ///
    /// # Errors
    /// A set without room.
    pub fn draw_into(&self, set: &mut MaskSet, seed: u64) -> Result<()> {
        let keys: Vec<MaskKey> = self
            .rollouts
            .iter()
            .flat_map(|rollout| {
                let stream =
                    StreamKey::new(seed, rollout.update, rollout.prompt, rollout.rollout, Purpose::Mask);
                (0..self.steps).map(move |step| MaskKey {
                    stream,
                    step: step as u32,
                    attempt: rollout.attempt,
                })
            })
            .collect();
        set.draw(&keys)
    }

    /// Draws the bitmaps on the model's device; none when nothing is masked.
    ///
    /// # Errors
    /// `p` outside [0, 1).
    pub fn draw(&self, model: &Model, seed: u64) -> Result<Option<MaskSet>> {
        let length = self.steps;
        let Some(mut set) = self.masking.reserve(model, self.latents, length, self.rollouts.len())? else {
            return Ok(None);
        };
        self.draw_into(&mut set, seed)?;
        Ok(Some(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(scope: Scope, mode: Mode, p: f64) -> MaskPlan {
        let rollouts = (0..3).map(|rollout| Rollout { update: 0, prompt: 0, rollout, attempt: 0 }).collect();
        MaskPlan::new(Masking { p, sites: vec![SiteKind::AttnOut], scope, mode }, 4, 20, rollouts)
    }

    #[test]
    fn scopes_cover_what_they_name() {
        for (scope, covered) in [
            (Scope::Latent, [false, true, true, false]),
            (Scope::PromptLatent, [true, true, true, false]),
            (Scope::All, [true; 4]),
        ] {
            let parts = [Part::Prompt, Part::Start, Part::Latent(1), Part::Answer];
            assert_eq!(parts.map(|part| scope.covers(part)), covered, "{scope:?}");
        }
    }

    #[test]
    fn a_shared_mask_is_one_instance_and_fresh_masks_are_many() {
        let shared = plan(Scope::All, Mode::Shared, 0.1);
        assert_eq!(shared.instance(2, Part::Prompt, 0), shared.instance(2, Part::Answer, 19));
        assert_ne!(shared.instance(2, Part::Prompt, 0), shared.instance(1, Part::Prompt, 0));
        let per_step = plan(Scope::All, Mode::PerStep, 0.1);
        let steps: std::collections::BTreeSet<_> =
            (1..=4).map(|step| per_step.instance(1, Part::Latent(step), 9)).collect();
        assert_eq!(steps.len(), 4);
        let per_position = plan(Scope::All, Mode::PerPosition, 0.1);
        let [a, b] = [7, 8].map(|position| per_position.instance(1, Part::Answer, position).unwrap());
        assert_eq!(Some(b as i32 - a as i32), per_position.answer_stride());
    }

    #[test]
    fn nothing_is_masked_without_probability_or_mode() {
        assert_eq!(plan(Scope::All, Mode::Shared, 0.0).instance(0, Part::Latent(1), 3), None);
        assert_eq!(plan(Scope::All, Mode::None, 0.5).instance(0, Part::Latent(1), 3), None);
    }
}
