//! Supervised steps on latent examples: prompt, latent thoughts, answer; cross-entropy on the answer's tokens.
//!
//! The loss is the mean over all answer tokens of the batch (Coconut A.1). Rows are packed; prompt and answer are
//! one segment when there are no latents between them.

use super::optimizer::Optimizer;
use crate::base::{Error, Result};
use crate::model::{
    Gradients, Input, Model, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan, Truncation,
};

/// One training example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Tokens read before the thoughts; at least one.
    pub prompt: Vec<u32>,
    /// Latent steps between prompt and answer.
    pub latents: usize,
    /// Tokens that are trained, the stop token included; at least one.
    pub answer: Vec<u32>,
}

impl Example {
    /// Positions it occupies: the last answer token is only a target.
    pub fn positions(&self) -> usize {
        self.prompt.len() + self.latents + self.answer.len().saturating_sub(1)
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

/// The largest batch a [`Trainer`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Examples.
    pub rows: usize,
    /// Positions of one example.
    pub positions: usize,
    /// Answer tokens of one example.
    pub answer: usize,
}

impl Trainer {
    /// Reserves everything a batch within `limits` needs.
    ///
    /// # Errors
    /// An example longer than the model's position table.
    pub fn new(model: &Model, optimizer: Optimizer, limits: Limits, record: Record) -> Result<Trainer> {
        let plan = SequencesPlan {
            rows: vec![RowPlan::own(limits.positions); limits.rows],
            record,
            tape_positions: limits.rows * limits.positions,
        };
        Ok(Trainer {
            sequences: Sequences::new(model, &plan)?,
            scores: Scores::reserve(model, limits.rows * limits.answer)?,
            gradients: model.gradients()?,
            optimizer,
            limits,
        })
    }

    /// Forward, backward, clip, update.
    ///
    /// # Errors
    /// A batch beyond the limits, an empty prompt or answer, or a loss that is not finite (the parameters are then
    /// untouched).
    pub fn step(&mut self, model: &mut Model, batch: &[Example], learning_rate: f64) -> Result<StepReport> {
        self.check(batch)?;
        self.sequences.restart()?;
        let (positions, targets) = run(model, &mut self.sequences, batch)?;
        self.scores.forward(model, &self.sequences, &positions, &targets, 1.0)?;
        let loss = -self.scores.log_probabilities()?.iter().sum::<f64>() / targets.len() as f64;
        if !loss.is_finite() {
            return Err(Error::NotFinite {
                what: "the loss".into(),
                found: format!("{loss} at step {}", self.optimizer.step() + 1),
                advice: "lower the learning rate, or look for non-finite weights; nothing was updated".into(),
            });
        }
        self.gradients.clear()?;
        let coefficients = vec![-1.0 / targets.len() as f64; targets.len()];
        self.scores.backward(model, &mut self.sequences, &coefficients, &mut self.gradients)?;
        model.backward(&mut self.sequences, None, Truncation::default(), &mut self.gradients)?;
        let gradient_norm = self.optimizer.update(model, &self.gradients, learning_rate)?;
        Ok(StepReport { loss, gradient_norm, positions: batch.iter().map(Example::positions).sum() })
    }

    fn check(&self, batch: &[Example]) -> Result<()> {
        let limits = self.limits;
        if batch.is_empty() || batch.len() > limits.rows {
            return Err(Error::shape(
                "batch",
                format!("{} examples", batch.len()),
                format!("1 to {}", limits.rows),
            ));
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
            if example.positions() > limits.positions || example.answer.len() > limits.answer {
                return Err(Error::shape(
                    format!("example {index}"),
                    format!("{} positions, {} answer tokens", example.positions(), example.answer.len()),
                    format!("at most {} and {}", limits.positions, limits.answer),
                ));
            }
        }
        Ok(())
    }
}

/// Runs the examples; returns the positions on the tape that are scored and their targets.
fn run(model: &Model, sequences: &mut Sequences, batch: &[Example]) -> Result<(Vec<u32>, Vec<u32>)> {
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    let mut segment = Segment::new();
    // Tape position of each row's latest input.
    let mut latest = vec![0; batch.len()];
    for (row, example) in batch.iter().enumerate() {
        segment.extend_tokens(row as u32, &example.prompt);
        latest[row] = segment.len() - 1;
        if example.latents == 0 {
            for pair in example.answer.windows(2) {
                positions.push((segment.len() - 1) as u32);
                targets.push(pair[0]);
                segment.push(row as u32, Input::Token(pair[0]));
            }
            positions.push((segment.len() - 1) as u32);
            targets.extend(example.answer.last());
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
    let mut segment = Segment::new();
    let mut rest = Vec::new();
    for (row, example) in batch.iter().enumerate().filter(|(_, example)| example.latents > 0) {
        positions.push(latest[row] as u32);
        targets.push(example.answer[0]);
        for pair in example.answer.windows(2) {
            rest.push((segment.len(), pair[1]));
            segment.push(row as u32, Input::Token(pair[0]));
        }
    }
    let at = model.forward(sequences, &segment, None)?;
    for (offset, target) in rest {
        positions.push((at.start + offset) as u32);
        targets.push(target);
    }
    Ok((positions, targets))
}
