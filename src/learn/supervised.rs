//! Supervised steps on latent examples: prompt, latent thoughts, answer; cross-entropy on the answer's tokens.
//!
//! The loss is the mean over all answer tokens of the batch (Coconut A.1). Rows are packed; prompt and answer are
//! one segment when there are no latents between them. A batch larger than the reserved room runs in parts, whose
//! gradients add up to that of the whole batch.

use super::codi::Losses;
use super::optimizer::Optimizer;
use crate::base::{Error, Result};
use crate::model::{
    Gradients, Model, Record, Room, RowPlan, Scores, Segment, Sequences, SoftRoom, Truncation,
};

/// One training example.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// Tokens read before the thoughts; at least one.
    pub prompt: Vec<u32>,
    /// Latent steps between prompt and answer.
    pub latents: usize,
    /// Tokens read after the thoughts and not trained, e.g. the end marker.
    pub end: Vec<u32>,
    /// Tokens that are trained, the stop token included; at least one.
    pub answer: Vec<u32>,
}

impl Example {
    /// Positions it occupies: the last answer token is only a target.
    pub fn positions(&self) -> usize {
        self.prompt.len() + self.latents + self.end.len() + self.answer.len().saturating_sub(1)
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean cross-entropy of the answer tokens, nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Positions computed.
    pub positions: usize,
    /// Answer tokens trained.
    pub tokens: usize,
    /// The terms of a loss that distils (codi.rs).
    pub distillation: Option<Losses>,
}

/// Reserved room and state of a supervised run.
#[derive(Debug)]
pub struct Trainer {
    sequences: Sequences,
    scores: Scores,
    gradients: Gradients,
    optimizer: Optimizer,
    limits: Limits,
}

/// The room of a [`Trainer`]. A batch may be larger: it runs in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Examples at once.
    pub rows: usize,
    /// Positions of the longest example.
    pub longest: usize,
    /// Positions of all examples at once; at least `longest`.
    pub positions: usize,
}

impl Limits {
    /// Room for any `rows` of `examples` at once, or for as many as `positions` positions hold.
    pub fn of(examples: &[Example], rows: usize, positions: usize) -> Limits {
        let mut lengths: Vec<usize> = examples.iter().map(Example::positions).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let longest = lengths.first().copied().unwrap_or(1);
        let most = lengths.iter().take(rows).sum::<usize>().max(1);
        Limits { rows, longest, positions: most.min(positions.max(longest)) }
    }

    /// The room of the sequences.
    pub fn room(&self) -> Room {
        Room {
            rows: self.rows,
            slots: self.positions + self.rows * Room::slots_of(1, false),
            longest: self.longest,
            tape_positions: self.positions,
            soft: SoftRoom::default(),
        }
    }
}

impl Trainer {
    /// Reserves everything that batches need.
    ///
    /// # Errors
    /// An example longer than the model's position table.
    pub fn new(model: &Model, optimizer: Optimizer, limits: Limits, record: Record) -> Result<Trainer> {
        Ok(Trainer {
            sequences: Sequences::reserve(model, model.device(), limits.room(), record)?,
            scores: Scores::reserve(model, limits.positions)?,
            gradients: model.gradients()?,
            optimizer,
            limits,
        })
    }

    /// The optimiser, to be saved or replaced.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }

    /// The optimiser, for whoever goes on.
    pub fn into_optimizer(self) -> Optimizer {
        self.optimizer
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Forward, backward, clip, update.
    ///
    /// # Errors
    /// An empty batch, an example beyond the room, an empty prompt or answer, or a loss that is not finite (the
    /// parameters are then untouched).
    pub fn step(&mut self, model: &mut Model, batch: &[Example], learning_rate: f64) -> Result<StepReport> {
        self.check(batch)?;
        self.gradients.clear();
        let tokens: usize = batch.iter().map(|example| example.answer.len()).sum();
        let mut loss = 0.0;
        let mut rest = batch;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(self.fitting(rest));
            rest = after;
            loss += self.part(model, part, tokens)?;
        }
        let gradient_norm = self.optimizer.update(model, &mut self.gradients, learning_rate)?;
        let positions = batch.iter().map(Example::positions).sum();
        Ok(StepReport { loss, gradient_norm, positions, tokens, distillation: None })
    }

    /// The mean cross-entropy of the answer tokens of `batch`; nothing is trained.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn loss(&mut self, model: &Model, batch: &[Example]) -> Result<f64> {
        self.check(batch)?;
        let tokens: usize = batch.iter().map(|example| example.answer.len()).sum();
        let mut loss = 0.0;
        let mut rest = batch;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(self.fitting(rest));
            rest = after;
            loss += self.forward(model, part)? / tokens as f64;
        }
        Ok(loss)
    }

    /// How many of `examples` fit at once.
    fn fitting(&self, examples: &[Example]) -> usize {
        let mut positions = 0;
        let fits = |example: &&Example| {
            positions += example.positions();
            positions <= self.limits.positions
        };
        examples.iter().take(self.limits.rows).take_while(fits).count().max(1)
    }

    /// Runs and scores `part`; returns the sum of its tokens' cross-entropies.
    fn forward(&mut self, model: &Model, part: &[Example]) -> Result<f64> {
        let rows: Vec<RowPlan> = part.iter().map(|example| RowPlan::own(example.positions())).collect();
        self.sequences.layout(&rows)?;
        let (positions, targets) = run(model, &mut self.sequences, part)?;
        self.scores.forward(model, &self.sequences, &positions, &targets, 1.0)?;
        Ok(-self.scores.log_probabilities()?.iter().sum::<f64>())
    }

    /// Adds the gradient of `part`, one of the parts of a batch of `tokens` answer tokens; returns its loss.
    fn part(&mut self, model: &Model, part: &[Example], tokens: usize) -> Result<f64> {
        let loss = self.forward(model, part)? / tokens as f64;
        if !loss.is_finite() {
            return Err(Error::NotFinite {
                what: "the loss".into(),
                found: format!("{loss} at step {}", self.optimizer.step() + 1),
                advice: "lower the learning rate, or look for non-finite weights; nothing was updated".into(),
            });
        }
        let count = part.iter().map(|example| example.answer.len()).sum();
        let coefficients = vec![-1.0 / tokens as f64; count];
        self.scores.backward(model, &mut self.sequences, &coefficients, &mut self.gradients)?;
        model.backward(&mut self.sequences, None, Truncation::default(), &mut self.gradients)?;
        Ok(loss)
    }

    fn check(&self, batch: &[Example]) -> Result<()> {
        if batch.is_empty() {
            return Err(Error::shape("batch", "0 examples", "at least 1"));
        }
        for (index, example) in batch.iter().enumerate() {
            if example.prompt.is_empty() || example.answer.is_empty() {
                return Err(Error::input(
                    "batch",
                    format!(
                        "example {index} has {} prompt and {} answer tokens",
                        example.prompt.len(),
                        example.answer.len()
                    ),
                    "give every example at least one of each",
                ));
            }
            if example.positions() > self.limits.longest {
                return Err(Error::shape(
                    format!("example {index}"),
                    format!("{} positions", example.positions()),
                    format!("at most {}", self.limits.longest),
                ));
            }
        }
        Ok(())
    }
}

/// Runs the examples; returns the positions on the tape that are scored and their targets.
pub(super) fn run(
    model: &Model,
    sequences: &mut Sequences,
    batch: &[Example],
) -> Result<(Vec<u32>, Vec<u32>)> {
    // By row: the positions that predict the answer's tokens.
    let mut predictors: Vec<Vec<u32>> = vec![Vec::new(); batch.len()];
    let mut segment = Segment::new();
    let mut latest = vec![0; batch.len()];
    for (row, example) in batch.iter().enumerate() {
        segment.extend_tokens(row as u32, &example.prompt);
        latest[row] = segment.len() - 1;
        if example.latents == 0 {
            predictors[row] = answer(&mut segment, row, example, latest[row], 0);
        }
    }
    model.forward(sequences, &segment, None)?;
    let longest = batch.iter().map(|example| example.latents).max().unwrap_or(0);
    for step in 0..longest {
        let thinking = || (0..batch.len()).filter(|&row| step < batch[row].latents);
        let at = model.forward(sequences, &Segment::latent_step(thinking().map(|row| row as u32)), None)?;
        for (row, position) in thinking().zip(at) {
            latest[row] = position;
        }
    }
    let first = batch.iter().filter(|example| example.latents == 0).map(Example::positions).sum::<usize>()
        + batch.iter().filter(|e| e.latents > 0).map(|e| e.prompt.len() + e.latents).sum::<usize>();
    let mut segment = Segment::new();
    for (row, example) in batch.iter().enumerate().filter(|(_, example)| example.latents > 0) {
        predictors[row] = answer(&mut segment, row, example, latest[row], first);
    }
    model.forward(sequences, &segment, None)?;
    let targets = batch.iter().flat_map(|example| example.answer.iter().copied()).collect();
    Ok((predictors.into_iter().flatten().collect(), targets))
}

/// Appends the end marker and the answer of `row` to `segment`, which will stand at `first` on the tape; returns the
/// positions that predict the answer's tokens, where `latest` is the row's position before.
fn answer(segment: &mut Segment, row: usize, example: &Example, latest: usize, first: usize) -> Vec<u32> {
    let rest: Vec<u32> =
        example.end.iter().chain(&example.answer[..example.answer.len() - 1]).copied().collect();
    let begin = first + segment.len();
    segment.extend_tokens(row as u32, &rest);
    let at: Vec<u32> =
        std::iter::once(latest as u32).chain((begin..begin + rest.len()).map(|n| n as u32)).collect();
    at[example.end.len()..].to_vec()
}
