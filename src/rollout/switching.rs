//! Generation that switches between tokens and mixtures of tokens by entropy (SwiReasoning, arXiv 2510.05069; inference
//! alone, no training).
//!
//! ```text
//! every step samples a token, which is said; what the next position reads is another matter:
//!   latent     p^T E, p the model's own softmax (before temperature and filters)
//!   explicit   the token
//! H = entropy of p; a row begins latent, with the reference H of its first step
//! latent   -> explicit  where H < reference        reads b p^T E + (1 - b) E[close]
//! explicit -> latent    where H > reference, `window` steps after the last switch, until `close` was said
//!                                                  reads a p^T E + (1 - a) E[open]
//! a switch makes H the reference;  a = alpha + (1 - alpha) t / T,  b likewise of beta
//! ```
//!
//! With a cap on switches to explicit (C), each one from the C-th on is followed by forced tokens: `close` up to 2 C, the
//! words that ask for an answer beyond, after which a row has a budget of tokens.
//!
//! As released (github.com/sdc17/SwiReasoning), but: a forced token counts as said when it comes to `close`, and is always
//! read as itself; tokens of formulas are not exempt from mixtures.

use super::decode::Decoder;
use super::masks::Rollout;
use crate::base::{Error, Result};
use crate::model::{Input, Model, Record, Room, RowPlan, Segment, Sequences, SoftLaw, SoftRoom};
use crate::ops::sampler::Law;
use crate::ops::soft_action::{Perturbation, Proxy};
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// When rows switch, and what they read then.
#[derive(Clone, Debug, PartialEq)]
pub struct Switching {
    /// Steps after a switch before a row may return to mixtures (released: 512).
    pub window: usize,
    /// Share of the mixture where a row returns to mixtures, at the first step; rises to 1 (released: 1).
    pub alpha: f64,
    /// Share of the mixture where a row turns to tokens, at the first step; rises to 1 (released: 0.7).
    pub beta: f64,
    /// The token that opens thinking, e.g. `<think>`.
    pub open: u32,
    /// The token that closes it; once it was said, tokens are read as they are.
    pub close: u32,
    /// A token that has a tenth of the first mixture (released: the line break).
    pub first: Option<u32>,
    /// Most tokens that a mixture holds; none = all.
    pub top_k: Option<usize>,
    /// Bound on switches.
    pub cap: Option<Cap>,
}

/// A bound on switches to tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Cap {
    /// So many switches (C).
    pub switches: usize,
    /// What is forced beyond twice as many (released: `</think>`, a blank line, "The final answer is").
    pub answer: Vec<u32>,
    /// Tokens from the switch that forces it to the end (released: 32).
    pub budget: usize,
}

impl Switching {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A share outside 0 to 1, an id outside the vocabulary, a cap that allows nothing.
    pub fn validate(&self, vocabulary: usize) -> Result<()> {
        for (name, share) in [("alpha", self.alpha), ("beta", self.beta)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::input(
                    format!("switching {name}"),
                    format!("found {share}, expected a number from 0 to 1"),
                    "it is the share of the mixture; 1 reads nothing but the mixture",
                ));
            }
        }
        let answer = self.cap.iter().flat_map(|cap| &cap.answer).copied();
        let mut ids = [self.open, self.close].into_iter().chain(self.first).chain(answer);
        if let Some(id) = ids.find(|id| *id as usize >= vocabulary) {
            return Err(Error::input(
                "switching",
                format!("token id {id}; the vocabulary has {vocabulary}"),
                "check that the ids belong to the model",
            ));
        }
        match &self.cap {
            Some(cap) if cap.switches == 0 || cap.budget == 0 => Err(Error::input(
                "switching cap",
                format!("{} switches, {} tokens for the answer", cap.switches, cap.budget),
                "give both at least 1, or no cap",
            )),
            _ => Ok(()),
        }
    }

    /// What mixtures are: the softmax itself.
    fn law(&self) -> SoftLaw {
        SoftLaw {
            law: Law::Categorical { temperature: 1.0, top_k: self.top_k, top_p: None, min_p: None },
            tau: 1.0,
            perturbation: Perturbation::None,
            proxy: Proxy::Argmax,
            hard: false,
        }
    }
}

/// What a position reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// The token that was said.
    Token,
    /// A mixture.
    Mixture,
    /// So much of a mixture, and the rest of a token's embedding.
    Blend {
        /// Share of the mixture.
        share: f64,
        /// The token.
        with: u32,
    },
}

/// The rule, for one row.
#[derive(Clone, Debug)]
struct Switch {
    latent: bool,
    locked: bool,
    reference: f64,
    stayed: usize,
    switches: usize,
    forced: VecDeque<u32>,
    /// Tokens left, once an answer was forced.
    budget: Option<usize>,
}

impl Switch {
    fn new() -> Switch {
        let (reference, forced) = (f64::NAN, VecDeque::new());
        Switch { latent: true, locked: false, reference, stayed: 0, switches: 0, forced, budget: None }
    }

    /// What step `step` of `steps` says, given what was sampled, and what the next position reads.
    fn step(
        &mut self,
        rule: &Switching,
        entropy: f64,
        sampled: u32,
        (step, steps): (usize, usize),
    ) -> (u32, Reading) {
        let forced = self.forced.pop_front();
        let token = forced.unwrap_or(sampled);
        self.locked |= token == rule.close;
        let (mut opens, mut closes) = (false, false);
        if step == 0 {
            self.reference = entropy;
        } else {
            self.stayed += 1;
            closes = self.latent && entropy < self.reference;
            let ready = self.stayed >= rule.window && !self.locked;
            opens = !self.latent && entropy > self.reference && ready;
        }
        if opens || closes {
            (self.latent, self.stayed, self.reference) = (opens, 0, entropy);
        }
        let share = |first: f64| first + (1.0 - first) * step as f64 / steps.max(1) as f64;
        let reading = match (forced, closes, self.latent && !self.locked) {
            (Some(_), ..) => Reading::Token,
            (None, true, _) => Reading::Blend { share: share(rule.beta), with: rule.close },
            (None, false, false) => Reading::Token,
            (None, false, true) => match (opens, step, rule.first) {
                (true, ..) => Reading::Blend { share: share(rule.alpha), with: rule.open },
                (false, 0, Some(first)) => Reading::Blend { share: 0.9, with: first },
                _ => Reading::Mixture,
            },
        };
        if let (Some(cap), true) = (&rule.cap, closes) {
            self.switches += 1;
            if self.switches > 2 * cap.switches {
                (self.forced, self.budget) = (cap.answer.iter().copied().collect(), Some(cap.budget));
            } else if self.switches >= cap.switches {
                self.forced = VecDeque::from([rule.close]);
            }
        }
        self.budget = self.budget.map(|left| left - 1);
        (token, reading)
    }

    /// Whether the budget of its answer is used up.
    fn spent(&self) -> bool {
        self.budget == Some(0)
    }
}

/// What came of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Switched {
    /// The tokens that were said, the stop token included.
    pub ids: Vec<u32>,
    /// What the position after each was given to read; the last is not read.
    pub readings: Vec<Reading>,
    /// Entropy of each step's softmax (nats).
    pub entropies: Vec<f64>,
    /// Whether a stop token ended it.
    pub stopped: bool,
}

/// What generation that switches needs besides the rule.
#[derive(Clone, Debug)]
pub struct SwitchedOptions {
    /// How tokens are sampled.
    pub law: Law,
    /// Most tokens to say per prompt.
    pub max_new_tokens: usize,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
    /// Seed of the sampling noise; row r uses the stream (0, r, 0, Token), as without switching.
    pub seed: u64,
}

/// Reserves what [`generate`] takes, and gives it back.
///
/// # Errors
/// As [`generate`], before anything is generated.
pub fn rehearse(
    model: &Model,
    prompts: &[Vec<u32>],
    rule: &Switching,
    options: &SwitchedOptions,
) -> Result<()> {
    match prompts.is_empty() || options.max_new_tokens == 0 {
        true => Ok(()),
        false => reserve(model, prompts, rule, options).map(drop),
    }
}

/// Room for at least one prompt and one token.
fn reserve(
    model: &Model,
    prompts: &[Vec<u32>],
    rule: &Switching,
    options: &SwitchedOptions,
) -> Result<(Sequences, Decoder)> {
    let (rows, more) = (prompts.len(), options.max_new_tokens - 1);
    let terms = rule.law().terms(model.config().vocab);
    let room = Room {
        rows,
        slots: prompts.iter().map(|prompt| Room::slots_of(prompt.len() + more, false)).sum(),
        longest: prompts.iter().map(Vec::len).max().unwrap_or(0) + more,
        tape_positions: prompts.iter().map(Vec::len).sum(),
        // Mixtures are made anew at each step.
        soft: SoftRoom { positions: rows, rows, terms, inputs: true, ..SoftRoom::default() },
    };
    Ok((
        Sequences::reserve(model, model.device(), room, Record::Nothing)?,
        Decoder::reserve(model, rows, options.max_new_tokens, options.law, options.seed)?,
    ))
}

/// Generates for all prompts together; each row has a mode of its own. `on_token(row, token)` sees each token as it is
/// said and may stop all.
///
/// # Errors
/// An empty prompt, one that with its answer exceeds the position table, a rule or law out of range, non-finite logits.
pub fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    rule: &Switching,
    options: &SwitchedOptions,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Switched>> {
    let (rows, steps) = (prompts.len(), options.max_new_tokens);
    rule.validate(model.config().vocab)?;
    let blank = Switched { ids: Vec::new(), readings: Vec::new(), entropies: Vec::new(), stopped: false };
    let mut all = vec![blank; rows];
    if rows == 0 || steps == 0 {
        return Ok(all);
    }
    if let Some(prompt) = prompts.iter().position(Vec::is_empty) {
        let advice = "give at least one token (for example the beginning-of-text token)";
        return Err(Error::input("prompt", format!("prompt {prompt} has no tokens"), advice));
    }
    let law = rule.law();
    let (mut sequences, mut decoder) = reserve(model, prompts, rule, options)?;
    let plans: Vec<RowPlan> = prompts.iter().map(|prompt| RowPlan::own(prompt.len() + steps - 1)).collect();
    sequences.layout(&plans)?;
    let mut segment = Segment::new();
    for (row, prompt) in prompts.iter().enumerate() {
        segment.extend_tokens(row as u32, prompt);
    }
    model.forward(&mut sequences, &segment, None)?;
    let mut states = vec![Switch::new(); rows];
    let mut active: Vec<usize> = (0..rows).collect();
    for step in 0..steps {
        let of = |&row: &usize| Rollout { prompt: row as u32, ..Rollout::default() };
        decoder.pack(active.iter().map(of), step)?;
        let sources: Vec<u32> = active.iter().map(|&row| row as u32).collect();
        let sampled = decoder.first(model, &sequences, &active, &sources)?;
        let entropies = model.embed_mixtures(&mut sequences, decoder.logits(0..active.len())?, &law)?;
        let mut segment = Segment::new();
        let (mut halted, mut survivors) = (false, Vec::new());
        for (place, &row) in active.iter().enumerate() {
            let (token, reading) = states[row].step(rule, entropies[place], sampled[place], (step, steps));
            let said = &mut all[row];
            said.ids.push(token);
            said.readings.push(reading);
            said.entropies.push(entropies[place]);
            said.stopped = options.stop.contains(&token);
            halted |= on_token(row, token).is_break();
            if said.stopped || states[row].spent() {
                continue;
            }
            if let Reading::Blend { share, with } = reading {
                model.blend(&mut sequences, place, share, with)?;
            }
            survivors.push(row);
            segment.push(
                row as u32,
                match reading {
                    Reading::Token => Input::Token(token),
                    Reading::Mixture | Reading::Blend { .. } => Input::Kept(place),
                },
            );
        }
        active = survivors;
        if active.is_empty() || halted || step + 1 == steps {
            break;
        }
        model.forward(&mut sequences, &segment, None)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Switching {
        let cap = Some(Cap { switches: 1, answer: vec![9, 8], budget: 3 });
        Switching { window: 2, alpha: 0.5, beta: 0.7, open: 1, close: 2, first: Some(3), top_k: None, cap }
    }

    /// Entropies by hand, and what the rule makes of them.
    fn run(rule: &Switching, entropies: &[f64], sampled: u32) -> Vec<(u32, Reading)> {
        let mut state = Switch::new();
        let steps = entropies.len();
        (0..steps).map(|step| state.step(rule, entropies[step], sampled, (step, steps))).collect()
    }

    #[test]
    fn modes_follow_entropy_reference_and_window() {
        let free = Switching { cap: None, ..rule() };
        let entropies = [2.0, 2.5, 1.0, 3.0, 3.0, 3.5, 2.9, 2.95, 3.0, 1.0];
        let blend = |share, with| Reading::Blend { share, with };
        let expected = [
            blend(0.9, 3),
            // 2.5 is above the reference of 2.
            Reading::Mixture,
            blend(0.7 + 0.3 * 0.2, 2),
            // Above the reference of 1, but one step after the switch.
            Reading::Token,
            blend(0.5 + 0.5 * 0.4, 1),
            Reading::Mixture,
            // Below the reference of 3.
            blend(0.7 + 0.3 * 0.6, 2),
            Reading::Token,
            blend(0.5 + 0.5 * 0.8, 1),
            blend(0.7 + 0.3 * 0.9, 2),
        ];
        let found = run(&free, &entropies, 7);
        assert!(found.iter().all(|(token, _)| *token == 7));
        for (step, ((_, found), expected)) in found.iter().zip(expected).enumerate() {
            match (found, expected) {
                (Reading::Blend { share, with }, Reading::Blend { share: s, with: w }) => {
                    assert!((share - s).abs() < 1e-12 && *with == w, "step {step}: {found:?} {expected:?}");
                }
                _ => assert_eq!(*found, expected, "step {step}"),
            }
        }
    }

    #[test]
    fn a_row_that_closed_its_thinking_reads_tokens() {
        let free = Switching { cap: None, first: None, ..rule() };
        // The sampled token is `close`: the row stays explicit although entropy rises.
        let found = run(&free, &[1.0, 2.0, 3.0, 4.0, 5.0], 2);
        assert!(found.iter().all(|(_, reading)| *reading == Reading::Token), "{found:?}");
    }

    #[test]
    fn the_cap_closes_and_then_asks_for_the_answer() {
        // A switch to tokens at steps 1, 4 and 7, where closing is forced to be a token that does not lock.
        let mut state = Switch::new();
        let rule = Switching { window: 1, ..rule() };
        let entropies = [5.0, 1.0, 1.0, 6.0, 1.0, 1.0, 6.0, 1.0, 1.0, 1.0];
        let mut said = Vec::new();
        for (step, entropy) in entropies.into_iter().enumerate() {
            let (token, _) = state.step(&rule, entropy, 7, (step, 10));
            // Only this test forgets that thinking was closed, to see more than one switch.
            state.locked = false;
            said.push(token);
            if state.spent() {
                break;
            }
        }
        // Switches 1 and 2 force `close`; the third forces the answer, and the budget of 3 counts from its step.
        assert_eq!(said, [7, 7, 2, 7, 7, 2, 7, 7, 9, 8]);
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let message = |rule: Switching| rule.validate(10).unwrap_err().to_string();
        assert!(message(Switching { beta: 1.5, ..rule() }).contains("beta"));
        assert!(message(Switching { open: 10, ..rule() }).contains("token id 10"));
        let cap = Some(Cap { switches: 0, answer: vec![], budget: 1 });
        assert!(message(Switching { cap, ..rule() }).contains("cap"));
        rule().validate(10).unwrap();
    }
}
