//! What a batch of rollouts is: its form, its members, and what came of them.

use super::masks::{Masking, Rollout};
use crate::base::{Error, Result};
use crate::model::{Action, Mixture, SoftLaw};
use crate::ops::sampler::Law;
use std::time::Duration;

/// What the rollouts of a run have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Tokens between prompt and thoughts, e.g. the start-of-thought marker.
    pub start: Vec<u32>,
    /// Latent steps: the final hidden state is fed back so many times (Coconut A.5), or so many mixtures are drawn
    /// ([`Drawing::soft`]).
    pub latents: usize,
    /// Tokens between thoughts and answer, e.g. the end-of-thought marker.
    pub end: Vec<u32>,
    /// Tokens that end an answer; the stop token is part of the answer.
    pub stop: Vec<u32>,
    /// Most tokens to sample.
    pub max_new_tokens: usize,
}

impl Form {
    /// Positions of a rollout of `prompt` prompt tokens and `answer` answer tokens; the last is only a target.
    pub fn positions(&self, prompt: usize, answer: usize) -> usize {
        self.latents
            .saturating_add(prompt + self.start.len() + self.end.len())
            .saturating_add(answer.saturating_sub(1))
    }
}

/// How rollouts are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// Dropout of each rollout.
    pub masking: Masking,
    /// Standard deviation of Gaussian noise on each latent input, or drawn mixture; 0 = none.
    pub latent_noise: f64,
    /// Latents are mixtures of token embeddings instead of hidden states (LEPO, algorithms C.1).
    pub soft: Option<SoftThoughts>,
    /// The first answer tokens are mixed with what they were sampled from (HRPO, algorithms C.4).
    pub gate: Option<Gating>,
    /// Whose thoughts each answer is conditioned on.
    pub thoughts: Thoughts,
    /// Law of the answer's tokens.
    pub law: Law,
    /// Seed of masks and tokens; each rollout's coordinates do the rest.
    pub seed: u64,
    /// Whether members share what is the same for all of them. Results are the same to the bit.
    pub share: bool,
}

/// Thinking in answer tokens that are read together with the mixtures they were sampled from (HRPO).
#[derive(Clone, Debug, PartialEq)]
pub struct Gating {
    /// What a mixture holds of the logits that its token was drawn from (categorical): kept ids and their softmax.
    pub law: Law,
    /// So many tokens at most.
    pub thinking: usize,
    /// Thinking ends with these tokens in a row, the last of which is read as it is; none: only by `thinking`.
    pub mark: Vec<u32>,
}

impl Gating {
    /// How many of an answer's tokens, from the first, are read with their mixtures.
    pub fn gated(&self, tokens: &[u32]) -> usize {
        let length = self.mark.len();
        let marked = match length {
            0 => None,
            _ => {
                tokens.windows(length).position(|window| window == self.mark).map(|first| first + length - 1)
            }
        };
        marked.unwrap_or(tokens.len()).min(self.thinking)
    }
}

/// Thoughts that are mixtures of token embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftThoughts {
    /// How they are drawn.
    pub law: SoftLaw,
    /// Whether a proxy id that is a stop token ends the rollout.
    pub proxies_stop: bool,
    /// When a rollout stops thinking before the form's latents are used up, and goes on to its answer.
    pub cold: Option<ColdStop>,
    /// A proxy that does the same, e.g. an end-of-thinking token.
    pub leave_at: Option<u32>,
    /// What a replay feeds.
    pub replay: SoftReplay,
}

impl SoftThoughts {
    /// Checks the law, and that thinking can end as it is asked to.
    ///
    /// # Errors
    /// A law out of range, an entropy that is no number from 0 up, no cold steps, a token outside the vocabulary.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        self.law.validate()?;
        if let Some(cold) = self.cold {
            if !(cold.entropy.is_finite() && cold.entropy >= 0.0) {
                return Err(Error::input(
                    "cold stop's entropy",
                    format!("found {}, expected a number of at least 0", cold.entropy),
                    "0.01 nats is usual; leave it out to think all steps",
                ));
            }
            if cold.steps == 0 {
                return Err(Error::input(
                    "cold stop's steps",
                    "found 0, expected at least 1",
                    "leave the cold stop out to think all steps",
                ));
            }
        }
        match self.leave_at.filter(|&id| id as usize >= vocabulary) {
            Some(id) => Err(Error::input(
                "token that ends thinking",
                format!("id {id}; the vocabulary has {vocabulary}"),
                "check that the id belongs to the model",
            )),
            None => Ok(()),
        }
    }
}

/// Thinking ends after a run of steps whose weights have little entropy (Soft Thinking's cold stop: the released code
/// takes 0.01 nats and 256 steps).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColdStop {
    /// Entropy below which a step is cold (nats).
    pub entropy: f64,
    /// Cold steps in a row.
    pub steps: usize,
}

/// What a replay feeds at soft steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftReplay {
    /// The stored weights: actions are constants, so all steps of a rollout run in one segment.
    Actions,
    /// The stored embeddings, noise and all (Soft Tokens): they are the actions, so all steps of a rollout run in one
    /// segment.
    Inputs,
    /// The weights that the stored noise gives under the weights of now, on the stored support, step by step.
    Noise,
}

/// Whose thoughts an answer is conditioned on: questions asked of a model that may not need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoughts {
    /// Its own.
    Own,
    /// None: the form has no latent steps.
    Removed,
    /// Those of the next prompt in the batch, which may be one without members of its own: step j reads what that prompt,
    /// thinking undisturbed, read at step j. The first prompt comes after the last, so a batch of one prompt has its own.
    Shuffled,
}

/// The largest batch there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Prompts.
    pub prompts: usize,
    /// Rollouts in all.
    pub members: usize,
    /// Tokens of the longest prompt.
    pub prompt_tokens: usize,
}

/// One rollout to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Index of its prompt in the batch.
    pub prompt: usize,
    /// With the seed, all that its randomness depends on.
    pub coordinates: Rollout,
}

/// What came of one rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    /// Which rollout.
    pub member: Member,
    /// What was drawn at each soft step; fewer than the form's latents where a proxy stopped the rollout.
    pub actions: Vec<Action>,
    /// What the first answer tokens were mixed with when they were read ([`Drawing::gate`]).
    pub mixtures: Vec<Mixture>,
    /// Sampled tokens, the stop token included; none where a proxy stopped the rollout.
    pub tokens: Vec<u32>,
    /// Log-probability of each under the law it was sampled from (nats).
    pub log_probabilities: Vec<f64>,
    /// Whether a stop token (or a proxy that is one) ended it.
    pub stopped: bool,
}

impl Trajectory {
    /// All that it says: the proxies of soft steps, then the sampled tokens.
    pub fn said(&self) -> Vec<u32> {
        self.actions.iter().map(|action| action.proxy).chain(self.tokens.iter().copied()).collect()
    }
}

/// Where the time of [`Rollouts::sample`] went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Prompt and latents.
    pub prefill: Duration,
    /// Sampling.
    pub decode: Duration,
    /// Tokens sampled by all rows.
    pub tokens: usize,
}
