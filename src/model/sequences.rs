//! Sequences in flight: rows, their KV cache, the states to feed back, and the tape. Room for all of them is
//! reserved when they are planned; forward.rs runs segments, backward.rs walks them in reverse.

use super::Model;
use super::rows::{self, Row, RowPlan};
use super::tape::{Feed, Record, Tape};
use crate::base::{Error, Result};
use crate::ops::embedding::Soft;
use crate::ops::kv_cache::{CacheLayout, KvCache};
use crate::ops::rope::RopeTable;
use crate::ops::{Tensor, View, ViewMut};
use std::ops::Range;

/// Room for some sequences.
#[derive(Clone, Debug)]
pub struct SequencesPlan {
    /// The rows.
    pub rows: Vec<RowPlan>,
    /// What the tape keeps.
    pub record: Record,
    /// Positions on the tape: of all segments when recording, of the longest segment otherwise.
    pub tape_positions: usize,
}

/// The soft inputs of one segment: `[positions, terms]` token ids and weights.
#[derive(Debug)]
pub(super) struct Mixture {
    pub ids: Tensor,
    pub weights: Tensor,
}

impl Mixture {
    pub fn view(&self) -> Soft<'_> {
        Soft { ids: self.ids.view(), weights: self.weights.view() }
    }
}

/// Some sequences of one model.
#[derive(Debug)]
pub struct Sequences {
    pub(super) rows: Vec<Row>,
    pub(super) slots: usize,
    pub(super) cache: Vec<KvCache>,
    pub(super) cache_layout: CacheLayout,
    pub(super) rope: Option<RopeTable>,
    /// Final hidden state of each row's latest position `[rows, width]`.
    pub(super) feedback: Tensor,
    pub(super) tape: Tape,
    pub(super) softs: Vec<Mixture>,
    /// Gradient of the final hidden states, by position on the tape; filled by scores and latents.
    pub(super) hidden_gradient: Option<Tensor>,
    pub(super) cache_gradient: Vec<KvCache>,
    pub(super) backward: Option<super::backward::Workspace>,
}

impl Sequences {
    /// Reserves everything that running (and, when recording, differentiating) the rows will need.
    ///
    /// # Errors
    /// A row longer than the model's position table, or a prefix that does not exist.
    pub fn new(model: &Model, plan: &SequencesPlan) -> Result<Sequences> {
        let (device, dtype) = (model.device(), model.dtype());
        let longest = plan.rows.iter().map(|row| row.capacity).max().unwrap_or(0);
        let limit = model.config().max_positions;
        if longest > limit {
            return Err(Error::input(
                "sequence length",
                format!(
                    "{longest} positions (prompt, latents and answer together) exceed the model's {limit}"
                ),
                "shorten the prompt, ask for fewer new tokens or latents, or use a model with a longer position table",
            ));
        }
        let (rows, slots) = rows::plan(&plan.rows)?;
        let width = model.config().width;
        let layers = model.architecture.layers.len();
        let caches = || -> Result<Vec<KvCache>> {
            (0..layers).map(|_| KvCache::zeros(device, &model.geometry, slots, dtype)).collect()
        };
        let records = plan.record != Record::Nothing;
        Ok(Sequences {
            cache: caches()?,
            cache_gradient: if records { caches()? } else { Vec::new() },
            cache_layout: rows::cache_layout(device, &rows)?,
            rope: model.rope_table(longest)?,
            feedback: Tensor::zeros(device, [rows.len(), width], dtype)?,
            tape: Tape::reserve(
                device,
                &model.architecture,
                &model.geometry,
                width,
                plan.tape_positions,
                dtype,
                plan.record,
            )?,
            softs: Vec::new(),
            hidden_gradient: records
                .then(|| Tensor::zeros(device, [plan.tape_positions, width], dtype))
                .transpose()?,
            backward: records
                .then(|| super::backward::Workspace::reserve(device, plan.tape_positions, width, dtype))
                .transpose()?,
            rows,
            slots,
        })
    }

    /// Forgets all positions; buffers, slots and prefixes stay as planned.
    pub fn restart(&mut self) -> Result<()> {
        for row in &mut self.rows {
            (row.length, row.latest, row.latents) = (row.prefix_length(), None, 0);
        }
        self.tape.filled = 0;
        self.tape.entries.clear();
        self.softs.clear();
        match &mut self.hidden_gradient {
            Some(gradient) => gradient.clear(),
            None => Ok(()),
        }
    }

    /// Positions held by a row, its prefix included.
    pub fn length(&self, row: u32) -> usize {
        self.rows.get(row as usize).map_or(0, |row| row.length)
    }

    /// Cache slots reserved (64-aligned spans of all rows).
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Final hidden states, after the final norm, of positions `at` as [`Model::forward`] returned them.
    pub fn hidden(&self, at: Range<usize>) -> Result<View<'_>> {
        self.tape.hidden.rows(at)
    }

    /// Final hidden state of each row's latest position `[rows, width]`: what a latent step would read.
    pub fn latest_hidden(&self) -> View<'_> {
        self.feedback.view()
    }

    /// Gradient of the final hidden states by position on the tape, to add to before [`Model::backward`].
    ///
    /// # Errors
    /// The tape does not record.
    pub fn hidden_gradient_mut(&mut self) -> Result<ViewMut<'_>> {
        match &mut self.hidden_gradient {
            Some(gradient) => Ok(gradient.view_mut()),
            None => Err(not_recording()),
        }
    }
}

pub(super) fn not_recording() -> Error {
    Error::input(
        "backward",
        "these sequences were run without recording",
        "plan them with Record::Everything or Record::LayerInputs",
    )
}

impl Sequences {
    /// Which row's feedback state, and which position of the tape, a latent of `row` reads now.
    pub(super) fn source_of(&self, row: u32) -> Result<(u32, usize)> {
        let state = &self.rows[row as usize];
        let nothing = || {
            Error::input(
                "segment",
                format!("row {row} begins with a latent, which has no earlier hidden state to read"),
                "give the row at least one token first",
            )
        };
        let source = match (state.latest, state.prefix) {
            (Some(latest), _) => (row, latest),
            (None, Some((of, length))) => {
                let owner = &self.rows[of as usize];
                if owner.length != length {
                    return Err(Error::input(
                        "segment",
                        format!(
                            "row {row} continues after position {length} of row {of}, which has gone on to {}",
                            owner.length
                        ),
                        "fork at the end of the prefix when a latent follows it directly",
                    ));
                }
                (of, owner.latest.ok_or_else(nothing)?)
            }
            (None, None) => return Err(nothing()),
        };
        Ok(source)
    }

    /// Moves the rows forward by the positions of a segment that stands at `at` on the tape.
    pub(super) fn advance(&mut self, rows: &[u32], feeds: &[Feed], at: usize) {
        for (n, &row) in rows.iter().enumerate() {
            let state = &mut self.rows[row as usize];
            state.length += 1;
            state.latest = Some(at + n);
        }
        for feed in feeds {
            self.rows[feed.row as usize].latents += 1;
        }
    }
}
