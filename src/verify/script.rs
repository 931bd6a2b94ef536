//! What a model runs in a check: segments and the loss over them, laid out once and run for every difference.

use super::gradient::{normals, stream};
use crate::base::Result;
use crate::model::{Input, Model, RowPlan, Segment};
use crate::ops::mask::MaskSet;
use crate::rollout::masks::{MaskPlan, Masking, Part, Rollout};

/// Segments, and what is made of their final hidden states.
#[derive(Clone, Debug)]
pub struct Script {
    /// The rows.
    pub rows: Vec<RowPlan>,
    /// What runs, in order; positions stand on the tape one after the other.
    pub segments: Vec<Segment>,
    /// The scalar.
    pub loss: Loss,
}

/// A scalar of the final hidden states.
#[derive(Clone, Debug)]
pub enum Loss {
    /// `sum(coefficients * hidden)`, one coefficient an element.
    Hidden(Vec<f64>),
    /// `sum_i coefficients[i] * log p(targets[i] | position positions[i] of the tape)`.
    LogProbabilities {
        /// Positions on the tape.
        positions: Vec<u32>,
        /// Tokens scored there.
        targets: Vec<u32>,
        /// One a token.
        coefficients: Vec<f64>,
    },
}

impl Script {
    /// Positions of all segments.
    pub fn positions(&self) -> usize {
        self.segments.iter().map(Segment::len).sum()
    }
}

/// A layer's check: two rows in two segments each, so that keys come from the cache and from the same segment,
/// across a block of 64 keys. Every position has a token of its own: with an embedding of one layer the
/// gradient of the token table is the gradient of the layer's input, row by row.
pub fn layer(width: usize) -> Script {
    const LENGTHS: [[u32; 2]; 2] = [[60, 8], [2, 1]];
    let mut segments = vec![Segment::new(), Segment::new()];
    let mut token = 0;
    for (row, lengths) in LENGTHS.iter().enumerate() {
        for (segment, &length) in segments.iter_mut().zip(lengths) {
            segment.extend_tokens(row as u32, &(token..token + length).collect::<Vec<_>>());
            token += length;
        }
    }
    let rows = LENGTHS.iter().map(|lengths| RowPlan::own(lengths.iter().sum::<u32>() as usize)).collect();
    Script { rows, segments, loss: Loss::Hidden(normals("layer loss", token as usize * width)) }
}

/// Tokens that [`layer`] needs: one a position.
pub const LAYER_TOKENS: usize = 71;

/// A group of rollouts of one prompt.
#[derive(Clone, Debug)]
pub struct Group {
    /// Tokens of the prompt; the last one plays the start token, which is computed per row.
    pub prompt: usize,
    /// Rows.
    pub rollouts: usize,
    /// Latent steps.
    pub latents: usize,
    /// Positions after the latents, of which the first is a soft mixture of three tokens.
    pub answer: usize,
    /// The rows read one prefix, computed once.
    pub share: bool,
    /// Dropout.
    pub masking: Masking,
    /// Chooses tokens and masks.
    pub seed: u64,
}

impl Group {
    /// Positions of one row.
    pub fn length(&self) -> usize {
        self.prompt + self.latents + self.answer
    }

    fn masks(&self) -> MaskPlan {
        let rollouts =
            (0..self.rollouts as u32).map(|rollout| Rollout { update: 3, prompt: 5, rollout, attempt: 0 });
        MaskPlan::new(self.masking.clone(), self.latents, self.length(), rollouts.collect())
    }

    /// Draws the masks on the model's device: the same bits for every dtype.
    ///
    /// # Errors
    /// A probability outside [0, 1).
    pub fn draw(&self, model: &Model) -> Result<Option<MaskSet>> {
        self.masks().draw(model, self.seed)
    }

    /// Lays out the segments for a model of `vocabulary` tokens: prompt, start token, latents, a soft position,
    /// the rest of the answer; each answer position's log-probability is scored, and that of the first answer
    /// token at the last latent.
    pub fn script(&self, vocabulary: usize) -> Script {
        let mut draws = stream("group", self.seed).draws(3, 0);
        let mut token = || draws.below(vocabulary) as u32;
        let prompt: Vec<u32> = (0..self.prompt).map(|_| token()).collect();
        let (shared, first) = (self.prompt - 1, u32::from(self.share));
        let masks = self.masks();
        let push =
            |segment: &mut Segment, rollout: usize, input: Input, part: Part, position: usize| match masks
                .instance(rollout, part, position)
            {
                Some(instance) => segment.push_masked(rollout as u32 + first, input, instance),
                None => segment.push(rollout as u32 + first, input),
            };

        let mut segments = vec![Segment::new()];
        match self.share {
            true => segments[0].extend_tokens(0, &prompt[..shared]),
            false => {
                for rollout in 0..self.rollouts {
                    for (position, &token) in prompt[..shared].iter().enumerate() {
                        push(&mut segments[0], rollout, Input::Token(token), Part::Prompt, position);
                    }
                }
            }
        }
        // One position of every row: the start token, the latents, the answer.
        for step in 0..=self.latents + self.answer {
            let mut segment = Segment::new();
            for rollout in 0..self.rollouts {
                let (input, part) = match step {
                    0 => (Input::Token(prompt[shared]), Part::Start),
                    _ if step <= self.latents => (Input::Latent, Part::Latent(step)),
                    _ if step == self.latents + 1 => {
                        let weights = [0.5, 0.375, 0.125];
                        (Input::Soft(weights.map(|weight| (token(), weight)).to_vec()), Part::Answer)
                    }
                    _ => (Input::Token(token()), Part::Answer),
                };
                push(&mut segment, rollout, input, part, shared + step);
            }
            segments.push(segment);
        }
        segments.retain(|segment| !segment.is_empty());

        let scored = self.rollouts * (self.answer + 1);
        let end = segments.iter().map(Segment::len).sum::<usize>();
        let mut rows = match self.share {
            true => vec![RowPlan::own(shared)],
            false => Vec::new(),
        };
        rows.resize(
            rows.len() + self.rollouts,
            if self.share { RowPlan::sharing(0, shared, self.length()) } else { RowPlan::own(self.length()) },
        );
        let loss = Loss::LogProbabilities {
            positions: (end - scored..end).map(|position| position as u32).collect(),
            targets: (0..scored).map(|_| token()).collect(),
            coefficients: normals("group coefficients", scored),
        };
        Script { rows, segments, loss }
    }
}
