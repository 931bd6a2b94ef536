//! Embeddings that are actions (Soft Tokens): what a soft step was fed, noise and all, kept as it was.
//!
//! ```text
//! x = y^T E + sigma n                         drawn: the mixture as soft_tape.rs draws it, then normal noise
//! input = x + position embedding              x is a constant: gradients pass it by
//! ```
//!
//! The density of x under the model of now is soft_density.rs.

use super::Model;
use super::sequences::Sequences;
use super::soft::{SoftLaw, SoftRoom};
use super::soft_tape::SoftAt;
use crate::base::{Error, Result};
use crate::device::{Arena, Device};
use crate::ops::{Tensor, View, elementwise, embedding, random};
use std::ops::Range;

/// Embeddings by place among the mixtures.
#[derive(Debug)]
pub(super) struct SoftInputs {
    vectors: Tensor,
    /// I32 `[rows, 1]`: -2 - n, so that row n reads mixture n.
    places: Tensor,
    /// I32 `[1, 1]` and `[1, width]`: a token to blend with, and its embedding.
    token: Tensor,
    other: Tensor,
}

/// Ids by which `count` positions read the mixtures 0, 1, ... (ops/embedding.rs).
pub(super) fn mixture_ids(device: &Device, count: usize) -> Result<Tensor> {
    let ids: Vec<i32> = (0..count as i32).map(|n| -2 - n).collect();
    Tensor::from_host(device, [count, 1], &ids)
}

impl SoftInputs {
    /// The room, where inputs are kept.
    pub fn reserve(model: &Model, device: &Device, room: SoftRoom) -> Result<Option<SoftInputs>> {
        if !room.inputs {
            return Ok(None);
        }
        let _arena = Arena::Tape.enter();
        Ok(Some(SoftInputs {
            vectors: Tensor::zeros(device, [room.positions, model.config().width], model.dtype())?,
            places: mixture_ids(device, room.rows)?,
            token: mixture_ids(device, 1)?,
            other: Tensor::zeros(device, [1, model.config().width], model.dtype())?,
        }))
    }

    /// All places.
    pub fn view(&self) -> View<'_> {
        self.vectors.view()
    }

    /// Brings down the embeddings at some places.
    pub fn values(&self, rows: Range<usize>) -> Result<Vec<Vec<f64>>> {
        let vectors = self.vectors.rows(rows)?;
        let width = vectors.cols().max(1);
        Ok(vectors.numbers()?.chunks_exact(width).map(<[f64]>::to_vec).collect())
    }

    /// Brings up embeddings, one after the other, from place `first` on.
    pub fn upload(&mut self, first: usize, all: &[f64]) -> Result<()> {
        let at = first * self.vectors.view().cols();
        self.vectors.upload_numbers(at, all)
    }
}

impl Model {
    /// Embeds the mixtures that were drawn `at`, adds noise of `deviation` under the keys that stand in the sequences, and
    /// keeps the sum. `position` is where they stand on the tape.
    pub(super) fn keep_inputs(
        &self,
        sequences: &mut Sequences,
        at: &SoftAt,
        position: usize,
        deviation: Option<f64>,
    ) -> Result<()> {
        let Sequences { soft, soft_inputs, tape, noise_keys, .. } = sequences;
        let Some(inputs) = soft_inputs else { return Err(not_kept()) };
        let count = at.rows().len();
        let mixtures = embedding::Inputs {
            ids: inputs.places.rows(0..count)?,
            positions: tape.index.positions.rows(position..position + count)?,
            soft: Some(soft.view(at)?),
        };
        embedding::forward(&mixtures, self.table(), None, inputs.vectors.rows_mut(at.rows())?)?;
        match deviation {
            Some(deviation) => {
                random::add_normal(inputs.vectors.rows_mut(at.rows())?, noise_keys.rows(0..count)?, deviation)
            }
            None => Ok(()),
        }
    }
}

impl Model {
    /// Mixes the embeddings of each row of `logits[n, vocabulary]` under `law`, without noise, into the places 0, 1, ... of
    /// what [`super::Input::Kept`] reads, and returns the mixtures' entropies (nats; one download). Forgets the mixtures
    /// that stood there.
    ///
    /// # Errors
    /// Sequences that keep no embeddings, or fewer; logits without a softmax.
    pub fn embed_mixtures(&self, sequences: &mut Sequences, logits: View, law: &SoftLaw) -> Result<Vec<f64>> {
        let Sequences { soft, soft_inputs, draws, tape, .. } = sequences;
        let Some(inputs) = soft_inputs else { return Err(not_kept()) };
        let count = logits.count();
        let entropies = soft.mix(logits, law, draws)?;
        let mixtures = embedding::Inputs {
            ids: inputs.places.rows(0..count)?,
            positions: tape.index.positions.rows(0..count)?,
            soft: Some(soft.first(count)?),
        };
        embedding::forward(&mixtures, self.table(), None, inputs.vectors.rows_mut(0..count)?)?;
        Ok(entropies)
    }

    /// Makes the embedding at `place` so much of itself, and the rest that of a token.
    ///
    /// # Errors
    /// No such place, or an id outside the vocabulary.
    pub fn blend(&self, sequences: &mut Sequences, place: usize, share: f64, token: u32) -> Result<()> {
        let Sequences { soft_inputs, tape, .. } = sequences;
        let Some(inputs) = soft_inputs else { return Err(not_kept()) };
        inputs.token.upload_at(0, &[token as i32])?;
        let one = embedding::Inputs {
            ids: inputs.token.view(),
            positions: tape.index.positions.rows(0..1)?,
            soft: None,
        };
        embedding::forward(&one, self.table(), None, inputs.other.view_mut())?;
        elementwise::scale(inputs.other.view_mut(), 1.0 - share)?;
        elementwise::scale(inputs.vectors.rows_mut(place..place + 1)?, share)?;
        elementwise::add(inputs.other.view(), inputs.vectors.rows_mut(place..place + 1)?)
    }
}

/// Embeddings where there is no room for them.
pub(super) fn not_kept() -> Error {
    Error::input(
        "segment",
        "embedded inputs, which these sequences do not keep",
        "reserve them (SoftRoom::inputs)",
    )
}
