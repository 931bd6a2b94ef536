//! A segment: the next positions of some rows, and what each of them reads as its input.
//!
//! Everything a latent model does is a list of segments: the prompt (many tokens), latent steps (one position a
//! row, fed the row's previous final hidden state), the answer (one token a row while sampling, or all at once).

use super::gate_room::Mixtures;
use super::soft::Draw;
use crate::base::rng::StreamKey;

/// What stands at a position in place of a token embedding.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A token of the vocabulary.
    Token(u32),
    /// The final hidden state, after the final norm, of the row's previous position (algorithms: Coconut A.2).
    /// It must be the row's first position in its segment, because that state must exist already.
    Latent,
    /// The same of another row: what that row would read now.
    LatentOf(u32),
    /// A weighted sum of token embeddings; every soft position of one segment has the same number of terms.
    Soft(Vec<(u32, f64)>),
    /// A mixture that the device draws from what the row's previous position predicts, under the law of
    /// [`Segment::draw`]. As for a latent, that position must have run already; it begins a segment of its own kind.
    Drawn,
    /// An embedding of the model's width, without that of the position: what [`super::Action::input`] holds. Stands in a
    /// segment of tokens and of its own kind.
    Embedded(Vec<f64>),
    /// An embedding that stands in its place among those of [`super::Model::embed_mixtures`]. Stands in such a segment, but
    /// not beside [`Input::Embedded`].
    Kept(usize),
    /// A sampled token whose embedding the model's gates mix with that of the mixture it was sampled from, one of
    /// [`Segment::mixtures`] (HRPO). Stands in a segment of tokens and of its own kind.
    Gated(u32),
}

/// Positions to append, packed: no padding, any order of rows, each row's positions in rising order.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// The row of each position.
    pub rows: Vec<u32>,
    /// The input of each position.
    pub inputs: Vec<Input>,
    /// The mask instance of each position (-1 = unmasked); empty = nothing is masked.
    pub instances: Vec<i32>,
    /// Gaussian noise on the inputs of a segment of latents, or of drawn mixtures.
    pub noise: Option<LatentNoise>,
    /// How the mixtures of a segment of [`Input::Drawn`] are drawn.
    pub draw: Option<Draw>,
    /// The mixtures of [`Input::Gated`].
    pub mixtures: Mixtures,
}

/// Gaussian noise that is added to each latent, or drawn mixture, of a segment. A constant of the rollout, as its masks are: gradients
/// pass it by.
#[derive(Clone, Debug)]
pub struct LatentNoise {
    /// Standard deviation.
    pub deviation: f64,
    /// Stream (purpose `LatentNoise`) and step of each position.
    pub keys: Vec<(StreamKey, u32)>,
}

impl Segment {
    /// An empty segment.
    pub fn new() -> Segment {
        Segment::default()
    }

    /// Appends one unmasked position.
    pub fn push(&mut self, row: u32, input: Input) {
        self.rows.push(row);
        self.inputs.push(input);
        if !self.instances.is_empty() {
            self.instances.push(-1);
        }
    }

    /// Appends one position under mask instance `instance`.
    pub fn push_masked(&mut self, row: u32, input: Input, instance: u32) {
        self.instances.resize(self.rows.len(), -1);
        self.rows.push(row);
        self.inputs.push(input);
        self.instances.push(instance as i32);
    }

    /// Appends one position under the mask instance, if any.
    pub fn push_under(&mut self, row: u32, input: Input, instance: Option<u32>) {
        match instance {
            Some(instance) => self.push_masked(row, input, instance),
            None => self.push(row, input),
        }
    }

    /// Appends tokens of one row.
    pub fn extend_tokens(&mut self, row: u32, tokens: &[u32]) {
        for &token in tokens {
            self.push(row, Input::Token(token));
        }
    }

    /// A segment of one row's tokens.
    pub fn of_tokens(row: u32, tokens: &[u32]) -> Segment {
        let mut segment = Segment::new();
        segment.extend_tokens(row, tokens);
        segment
    }

    /// One latent step of each row in `rows`.
    pub fn latent_step(rows: impl IntoIterator<Item = u32>) -> Segment {
        let mut segment = Segment::new();
        for row in rows {
            segment.push(row, Input::Latent);
        }
        segment
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
