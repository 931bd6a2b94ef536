//! Soft steps: positions whose input is a mixture of token embeddings that the device draws from what the row's previous
//! position predicts (algorithms C.1). What they are; soft_tape.rs holds and runs them.
//!
//! ```text
//! previous hidden state h -> logits -> kept ids S -> g = a + noise on S -> y = softmax(g / tau) -> input y^T E
//! ```

use super::gate_room::GateRoom;
use crate::base::Result;
use crate::base::rng::StreamKey;
use crate::ops::sampler::{self, Law};
use crate::ops::soft_action::{self, Perturbation, Proxy};

/// How soft steps are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftLaw {
    /// Temperature of the logits and what is kept of them (categorical).
    pub law: Law,
    /// Temperature of the mixture.
    pub tau: f64,
    /// Noise on the kept logits.
    pub perturbation: Perturbation,
    /// Which token stands for the step in text and stopping.
    pub proxy: Proxy,
    /// The input is the one-hot of the largest weight, while gradients are the mixture's (straight-through).
    pub hard: bool,
}

impl SoftLaw {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the setting, its value and its range.
    pub fn validate(&self) -> Result<()> {
        sampler::Mixture { law: &self.law, tau: self.tau }.validate()?;
        self.settings().validate()
    }

    /// What the operation takes.
    pub fn settings(&self) -> soft_action::Settings {
        soft_action::Settings {
            inverse_temperature: self.law.inverse_temperature(),
            tau: self.tau,
            perturbation: self.perturbation,
            proxy: self.proxy,
            hard: self.hard,
        }
    }

    /// Ids that a mixture over a vocabulary of so many may hold.
    pub fn terms(&self, vocabulary: usize) -> usize {
        match self.law {
            Law::Categorical { top_k: Some(k), .. } => k.min(vocabulary),
            _ => vocabulary,
        }
    }
}

/// Draws of one segment.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The law, the same for all positions.
    pub law: SoftLaw,
    /// Stream (purpose `Gumbel`) and step of each position.
    pub keys: Vec<(StreamKey, u32)>,
    /// The kept ids of each position, ascending, where a stored support is replayed instead of selected anew.
    pub stored: Option<Vec<Vec<u32>>>,
}

/// Which gradients flow into soft inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SoftGradient {
    /// Through the weights to the logits they came from, and to the embedding table (algorithms C.3 iv).
    #[default]
    Pathwise,
    /// To the embedding table alone: weights are actions, the table is a parameter (C.3 ii).
    Table,
    /// Nowhere: the inputs are constants (LEPO as released).
    Nothing,
}

/// What was drawn at a soft step, on the host: enough to replay and to score it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Action {
    /// Kept ids, ascending.
    pub ids: Vec<u32>,
    /// Perturbed log-probabilities g of those ids.
    pub perturbed: Vec<f64>,
    /// Weights y of those ids.
    pub weights: Vec<f64>,
    /// The token that stands for the step.
    pub proxy: u32,
    /// The embedding that was read, noise and all, where it is the action ([`SoftRoom::inputs`]); empty elsewhere.
    pub input: Vec<f64>,
}

impl Action {
    /// Entropy of the weights (nats).
    pub fn entropy(&self) -> f64 {
        -self.weights.iter().filter(|&&y| y > 0.0).map(|&y| y * y.ln()).sum::<f64>()
    }

    /// The id of the largest weight; the lower of equals.
    pub fn largest(&self) -> Option<u32> {
        let mut best: Option<(u32, f64)> = None;
        for (&id, &weight) in self.ids.iter().zip(&self.weights) {
            if best.is_none_or(|(_, largest)| weight > largest) {
                best = Some((id, weight));
            }
        }
        best.map(|(id, _)| id)
    }
}

/// Room for soft steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftRoom {
    /// Soft positions of all rows together; 0 where nothing is drawn.
    pub positions: usize,
    /// Rows that draw at once.
    pub rows: usize,
    /// Terms of a mixture.
    pub terms: usize,
    /// Whether the law may be [`SoftLaw::hard`].
    pub hard: bool,
    /// Whether embeddings with their noise are kept as actions: inputs that are constants, and can be given again
    /// ([`super::Input::Embedded`]).
    pub inputs: bool,
    /// Positions whose tokens are mixed with what they were sampled from.
    pub gates: GateRoom,
}
