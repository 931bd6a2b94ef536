//! What a model does in its latent steps, for one question: the states that are fed back, what the output head and the
//! embedding table make of them, how far masks move them, and whether the answer needs them.
//! `src/bin/inspect.rs` is its command line.

use crate::base::{Error, Result};
use crate::model::{Input, Model, Record, Room, RowPlan, Segment, Sequences, SoftRoom};
use crate::ops::Tensor;
use crate::ops::mask::MaskSet;
use crate::rollout::geometry::{cosine, dot, norm};
use crate::rollout::group::Form;
use crate::rollout::masks::{MaskPlan, Masking, Part, Rollout};

/// Rows of the embedding table that are looked at together.
const TABLE_ROWS: usize = 4096;

/// Whose states the latent steps read.
#[derive(Clone, Copy, Debug)]
pub enum Fed<'a> {
    /// The row's own: thinking as it was trained.
    Own,
    /// These, `[latents][width]`, in the place of every row's own.
    Given(&'a [Vec<f64>]),
}

/// Rollouts that are followed side by side.
#[derive(Clone, Debug)]
pub struct Masked {
    /// Their dropout; where nothing is masked they are all alike.
    pub masking: Masking,
    /// One row for each.
    pub rollouts: Vec<Rollout>,
    /// Seed of the masks.
    pub seed: u64,
}

impl Masked {
    /// One rollout without masks.
    pub fn none() -> Masked {
        Masked { masking: Masking::NONE, rollouts: vec![Rollout::default()], seed: 0 }
    }
}

/// What one rollout thought and said.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    /// `[latents][width]`: the final hidden state, after the final norm, that each latent step read; before a projector.
    /// Where states were given, what would have been read in their place.
    pub states: Vec<Vec<f64>>,
    /// `[latents][vocab]`: the output head's logits of these states.
    pub logits: Vec<Vec<f64>>,
    /// The greedy answer, its stop token included where it came to one.
    pub answer: Vec<u32>,
}

/// Runs `prompt` through the latent steps of `form` and answers greedily, each rollout of `masked` in a row of its own.
///
/// # Errors
/// An empty prompt, a given state for each latent step that is missing or of another width, ids outside the vocabulary,
/// more positions than the model has, logits that are no numbers.
pub fn follow(
    model: &Model,
    prompt: &[u32],
    form: &Form,
    fed: Fed,
    masked: &Masked,
) -> Result<Vec<Followed>> {
    let rows = masked.rollouts.len();
    let opening = prompt.len() + form.start.len();
    if opening == 0 || rows == 0 {
        return Err(Error::input("inspection", "an empty prompt, or no rollouts", "ask a question"));
    }
    if let Fed::Given(states) = fed
        && states.len() != form.latents
    {
        return Err(Error::shape("states to feed", states.len(), form.latents));
    }
    let longest = form.positions(prompt.len(), form.max_new_tokens);
    let positions = rows.saturating_mul(form.latents);
    let given = SoftRoom { positions, rows, terms: 1, inputs: true, ..SoftRoom::default() };
    let room = Room {
        rows,
        slots: rows * Room::slots_of(longest.min(model.config().max_positions), false),
        longest,
        tape_positions: rows * opening.max(form.end.len()),
        soft: if matches!(fed, Fed::Given(_)) { given } else { SoftRoom::default() },
    };
    // Refuses what is too long, before masks of that length are drawn.
    let mut sequences = Sequences::reserve(model, model.device(), room, Record::Nothing)?;
    sequences.layout(&vec![RowPlan::own(longest); rows])?;
    let plan = MaskPlan::new(masked.masking.clone(), form.latents, longest, masked.rollouts.clone());
    let masks = plan.draw(model, masked.seed)?;
    let logits = Tensor::zeros(model.device(), [rows, model.config().vocab], model.dtype().accumulation())?;
    let mut walk = Walk { model, sequences, logits, masks, plan, position: 0 };
    let mut followed = vec![Followed { states: vec![], logits: vec![], answer: vec![] }; rows];
    let all: Vec<usize> = (0..rows).collect();

    let tokens = |part: Part, tokens: &[u32]| -> Vec<(Part, Input)> {
        tokens.iter().map(|&token| (part, Input::Token(token))).collect()
    };
    let inputs = [tokens(Part::Prompt, prompt), tokens(Part::Start, &form.start)].concat();
    walk.step(&all, |_| inputs.clone())?;
    for latent in 1..=form.latents {
        for (followed, (state, logits)) in followed.iter_mut().zip(walk.latest()?) {
            followed.states.push(state);
            followed.logits.push(logits);
        }
        let input = match fed {
            Fed::Own => Input::Latent,
            Fed::Given(states) => Input::Embedded(states[latent - 1].clone()),
        };
        walk.step(&all, |_| vec![(Part::Latent(latent), input.clone())])?;
    }
    if !form.end.is_empty() {
        walk.step(&all, |_| tokens(Part::Answer, &form.end))?;
    }
    walk.answer(form, &mut followed)?;
    Ok(followed)
}

/// Rows on their way.
struct Walk<'a> {
    model: &'a Model,
    sequences: Sequences,
    /// `[rows, vocab]`.
    logits: Tensor,
    masks: Option<MaskSet>,
    plan: MaskPlan,
    /// Positions of each row that goes on: rows are at the same one.
    position: usize,
}

impl Walk<'_> {
    /// Feeds each of `rows` its `inputs`, of which all have the same number, in one segment.
    fn step(&mut self, rows: &[usize], inputs: impl Fn(usize) -> Vec<(Part, Input)>) -> Result<()> {
        let mut segment = Segment::new();
        let mut fed = 0;
        for &row in rows {
            let inputs = inputs(row);
            fed = inputs.len();
            for (n, (part, input)) in inputs.into_iter().enumerate() {
                let instance = self.plan.instance(row, part, self.position + n);
                segment.push_under(row as u32, input, instance);
            }
        }
        self.position += fed;
        self.model.forward(&mut self.sequences, &segment, self.masks.as_ref()).map(drop)
    }

    /// State and logits of each row's latest position.
    fn latest(&mut self) -> Result<Vec<(Vec<f64>, Vec<f64>)>> {
        let hidden = self.sequences.latest_hidden();
        self.model.logits(hidden, self.logits.view_mut())?;
        let (states, logits) = (hidden.numbers()?, self.logits.view().numbers()?);
        let (width, vocab) = (hidden.cols(), self.model.config().vocab);
        let rows = states.chunks_exact(width).zip(logits.chunks_exact(vocab));
        Ok(rows.map(|(state, logits)| (state.to_vec(), logits.to_vec())).collect())
    }

    /// Greedy answers of all rows, each until its stop token or as long as `form` allows.
    fn answer(&mut self, form: &Form, followed: &mut [Followed]) -> Result<()> {
        let mut going: Vec<usize> = (0..followed.len()).collect();
        for said in 1..=form.max_new_tokens {
            let latest = self.latest()?;
            let mut tokens = vec![0; followed.len()];
            for &row in &going {
                tokens[row] = most_likely(&latest[row].1)?;
                followed[row].answer.push(tokens[row]);
            }
            going.retain(|&row| !form.stop.contains(&tokens[row]));
            if going.is_empty() || said == form.max_new_tokens {
                break;
            }
            self.step(&going, |row| vec![(Part::Answer, Input::Token(tokens[row]))])?;
        }
        Ok(())
    }
}

/// The id of the largest logit, the lowest of equals.
fn most_likely(logits: &[f64]) -> Result<u32> {
    let mut best = (0, f64::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(Error::input(
                "model",
                format!("its logit of token {id} is not a number"),
                "look for NaN in its weights",
            ));
        }
        if logit > best.1 {
            best = (id, logit);
        }
    }
    Ok(best.0 as u32)
}

/// Token ids with what they are ranked by, largest first.
pub type Ranked = Vec<(u32, f64)>;

/// What can be read in one state.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Its Euclidean norm.
    pub norm: f64,
    /// Cosine with the state before it; none for the first.
    pub cosine: Option<f64>,
    /// Entropy (nats) of what the output head predicts from it.
    pub entropy: f64,
    /// The likeliest tokens of that prediction and their probabilities (the logit lens), most likely first.
    pub predicted: Ranked,
    /// The token embeddings nearest to it, by cosine, nearest first.
    pub nearest: Ranked,
}

/// Reads each state of a rollout; `top` tokens a list. Also the mean norm of the token embeddings, which states of a
/// model that feeds them back in their place may be compared with.
///
/// # Errors
/// Those of downloads.
pub fn read(model: &Model, followed: &Followed, top: usize) -> Result<(Vec<Reading>, f64)> {
    let norms: Vec<f64> = followed.states.iter().map(|state| norm(state)).collect();
    let (nearest, embedding_norm) = nearest(model, &followed.states, &norms, top)?;
    let readings = followed.logits.iter().zip(nearest).enumerate().map(|(n, (logits, nearest))| {
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        let probabilities = logits.iter().map(|logit| (logit - largest).exp() / sum);
        let mut predicted = Best::of(top);
        let mut entropy = 0.0;
        for (id, p) in probabilities.enumerate() {
            predicted.offer(id as u32, p);
            entropy -= if p > 0.0 { p * p.ln() } else { 0.0 };
        }
        let cosine = n
            .checked_sub(1)
            .map(|before| cosine(&followed.states[before], &followed.states[n], [norms[before], norms[n]]));
        Reading { norm: norms[n], cosine, entropy, predicted: predicted.found, nearest }
    });
    Ok((readings.collect(), embedding_norm))
}

/// The token embeddings nearest to each state, and the mean norm of all.
fn nearest(model: &Model, states: &[Vec<f64>], norms: &[f64], top: usize) -> Result<(Vec<Ranked>, f64)> {
    let (table, vocab, width) = (model.table(), model.config().vocab, model.config().width);
    let mut best: Vec<Best> = states.iter().map(|_| Best::of(top)).collect();
    let mut norm_sum = 0.0;
    for first in (0..vocab).step_by(TABLE_ROWS) {
        let rows = table.rows(first..(first + TABLE_ROWS).min(vocab))?.numbers()?;
        for (id, embedding) in (first as u32..).zip(rows.chunks_exact(width)) {
            let length = norm(embedding);
            norm_sum += length;
            for ((best, state), norm) in best.iter_mut().zip(states).zip(norms) {
                best.offer(id, cosine(state, embedding, [*norm, length]));
            }
        }
    }
    Ok((best.into_iter().map(|best| best.found).collect(), norm_sum / vocab as f64))
}

/// The largest numbers seen so far, largest first; of equals the ones that came first.
struct Best {
    most: usize,
    found: Ranked,
}

impl Best {
    fn of(most: usize) -> Best {
        Best { most, found: Vec::with_capacity(most + 1) }
    }

    fn offer(&mut self, id: u32, value: f64) {
        if self.found.len() == self.most && self.found.last().is_none_or(|last| value <= last.1) {
            return;
        }
        let place = self.found.partition_point(|&(_, found)| found >= value);
        self.found.insert(place, (id, value));
        self.found.truncate(self.most);
    }
}

/// The mean of a rollout's states, once for each latent step: thinking without movement.
pub fn mean_states(states: &[Vec<f64>]) -> Vec<Vec<f64>> {
    vec![mean(states); states.len()]
}

/// How far rollouts lie apart at each latent step: the root mean square of their distances from the mean state, as a share
/// of the mean's norm. 0 = all the same.
pub fn spread(rollouts: &[Followed]) -> Vec<f64> {
    let steps = rollouts.first().map_or(0, |rollout| rollout.states.len());
    let at = |step: usize| {
        let states: Vec<Vec<f64>> = rollouts.iter().map(|rollout| rollout.states[step].clone()).collect();
        let mean = mean(&states);
        let squares = states.iter().map(|state| {
            let difference: Vec<f64> = state.iter().zip(&mean).map(|(a, b)| a - b).collect();
            dot(&difference, &difference)
        });
        (squares.sum::<f64>() / states.len() as f64).sqrt() / norm(&mean).max(f64::MIN_POSITIVE)
    };
    (0..steps).map(at).collect()
}

fn mean(states: &[Vec<f64>]) -> Vec<f64> {
    let width = states.first().map_or(0, Vec::len);
    (0..width).map(|i| states.iter().map(|state| state[i]).sum::<f64>() / states.len() as f64).collect()
}
