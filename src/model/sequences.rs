//! Sequences in flight: rows, their KV cache, the states to feed back, and the tape. Room for all of them is
//! reserved when they are planned; forward.rs runs segments, backward.rs walks them in reverse.

use super::Model;
use super::gate_room::{Gated, Mixture};
use super::rows::{self, Row, RowPlan};
use super::soft::{Action, SoftRoom};
use super::soft_inputs::SoftInputs;
use super::soft_tape::{Draws, SoftTape};
use super::steps::Window;
use super::tape::{Feed, Record, Tape};
use crate::base::{Dtype, Error, Result};
use crate::device::{Arena, Device, Steps};
use crate::ops::kv_cache::{CacheLayout, CacheSpan, KvCache, SLOT_BLOCK};
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

/// Memory for sequences whose lengths are not known yet: [`Sequences::reserve`], then [`Sequences::layout`] for each
/// batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Rows.
    pub rows: usize,
    /// Cache slots: of each row its own positions, rounded up to whole blocks, and up to one block more where it
    /// shares a prefix ([`Room::slots_of`]).
    pub slots: usize,
    /// Positions of the longest row.
    pub longest: usize,
    /// Positions on the tape: of all segments when recording, of the longest segment otherwise.
    pub tape_positions: usize,
    /// Mixtures that are drawn, or given in that many terms.
    pub soft: SoftRoom,
}

impl Room {
    /// Slots that a row with so many positions of its own may take.
    pub fn slots_of(own_positions: usize, shares_a_prefix: bool) -> usize {
        (own_positions + usize::from(shares_a_prefix) * (SLOT_BLOCK - 1)).next_multiple_of(SLOT_BLOCK)
    }
}

/// Some sequences of one model.
#[derive(Debug)]
pub struct Sequences {
    pub(super) rows: Vec<Row>,
    pub(super) slots: usize,
    room: Room,
    pub(super) cache: Vec<KvCache>,
    pub(super) cache_layout: CacheLayout,
    pub(super) rope: Option<RopeTable>,
    /// Final hidden state of each row's latest position `[rows, width]`.
    pub(super) feedback: Tensor,
    /// Keys of a latent segment's noise `[rows, 3]`.
    pub(super) noise_keys: Tensor,
    pub(super) tape: Tape,
    /// Steps that were captured; they use the memory of this struct.
    pub(super) steps: Steps,
    pub(super) window: Option<Box<Window>>,
    pub(super) soft: SoftTape,
    pub(super) draws: Draws,
    /// Embeddings that are actions, where they are kept.
    pub(super) soft_inputs: Option<SoftInputs>,
    /// Gated positions, where there is room for any.
    pub(super) gated: Option<Gated>,
    /// Gradient of the final hidden states, by position on the tape; filled by scores and latents.
    pub(super) hidden_gradient: Option<Tensor>,
    pub(super) cache_gradient: Vec<KvCache>,
    pub(super) backward: Option<super::backward::Workspace>,
    /// Where latents are projected before they are fed back.
    pub(super) projected: Option<super::projector::Room>,
}

impl Sequences {
    /// Reserves everything that running (and, when recording, differentiating) the rows will need.
    ///
    /// # Errors
    /// A row longer than the model's position table, or a prefix that does not exist.
    pub fn new(model: &Model, plan: &SequencesPlan) -> Result<Sequences> {
        let (_, slots) = rows::plan(&plan.rows)?;
        let room = Room {
            rows: plan.rows.len(),
            slots,
            longest: plan.rows.iter().map(|row| row.capacity).max().unwrap_or(0),
            tape_positions: plan.tape_positions,
            soft: SoftRoom::default(),
        };
        let mut sequences = Sequences::reserve(model, model.device(), room, plan.record)?;
        sequences.layout(&plan.rows)?;
        Ok(sequences)
    }

    /// Reserves `room` on `device`; rows follow with [`Sequences::layout`].
    ///
    /// # Errors
    /// A row longer than the model's position table, or a device without the memory.
    pub fn reserve(model: &Model, device: &Device, room: Room, record: Record) -> Result<Sequences> {
        let dtype = model.dtype();
        let limit = model.config().max_positions;
        if room.longest > limit {
            return Err(Error::input(
                "sequence length",
                format!(
                    "{} positions (prompt, latents and answer together) exceed the model's {limit}",
                    room.longest
                ),
                "shorten the prompt, ask for fewer new tokens or latents, or use a model with a longer position table",
            ));
        }
        let width = model.config().width;
        let layers = model.architecture.layers.len();
        let slots = room.slots.max(1);
        let caches = |dtype: Dtype| -> Result<Vec<KvCache>> {
            (0..layers).map(|_| KvCache::zeros(device, &model.geometry, slots, dtype)).collect()
        };
        let records = record != Record::Nothing;
        // What is neither cache nor scratch memory is kept for the backward pass.
        let _arena = Arena::Tape.enter();
        Ok(Sequences {
            cache: caches(dtype)?,
            cache_gradient: if records { caches(dtype.accumulation())? } else { Vec::new() },
            cache_layout: CacheLayout::new(device, &vec![CacheSpan::default(); room.rows])?,
            rope: model.rope_table(device, room.longest)?,
            feedback: Tensor::zeros(device, [room.rows, width], dtype)?,
            noise_keys: {
                let _arena = Arena::Masks.enter();
                Tensor::zeros(device, [room.rows, 3], Dtype::U32)?
            },
            tape: Tape::reserve(
                device,
                &model.architecture,
                &model.geometry,
                width,
                room.tape_positions,
                dtype,
                record,
            )?,
            steps: Steps::default(),
            window: Window::reserve(
                device,
                (&model.architecture, &model.geometry),
                width,
                room.rows,
                dtype,
                record,
            )?,
            soft: SoftTape::reserve(model, device, room.soft)?,
            draws: Draws::reserve(model, device, room.soft)?,
            soft_inputs: SoftInputs::reserve(model, device, room.soft)?,
            gated: Gated::reserve(model, device, room.soft.gates, records)?,
            hidden_gradient: records
                .then(|| Tensor::zeros(device, [room.tape_positions, width], dtype))
                .transpose()?,
            backward: records
                .then(|| super::backward::Workspace::reserve(device, room.tape_positions, width, dtype))
                .transpose()?,
            projected: super::projector::Room::reserve(model, device, room.tape_positions, records)?,
            rows: Vec::new(),
            slots: 0,
            room,
        })
    }

    /// Bytes that [`Sequences::reserve`] takes: the same reservation with the device's accountant. On a GPU that captures
    /// steps the window that they run in is among them.
    ///
    /// # Errors
    /// As [`Sequences::reserve`].
    pub fn bytes(model: &Model, room: Room, record: Record) -> Result<usize> {
        let accountant = model.device().accountant(None);
        Sequences::reserve(model, &accountant, room, record)?;
        Ok(accountant.memory_peak().total())
    }

    /// Lays `rows` out anew in the reserved room and forgets all positions.
    ///
    /// # Errors
    /// Rows that do not fit the room, or a prefix that does not exist. Nothing has changed then.
    pub fn layout(&mut self, plans: &[RowPlan]) -> Result<()> {
        let (rows, slots) = rows::plan(plans)?;
        let longest = plans.iter().map(|row| row.capacity).max().unwrap_or(0);
        let room = self.room;
        if rows.len() > room.rows || slots > room.slots.max(1) || longest > room.longest {
            return Err(Error::shape(
                "rows",
                format!("{} rows, {slots} slots, longest {longest}", rows.len()),
                format!(
                    "at most {} rows, {} slots, longest {} as reserved",
                    room.rows, room.slots, room.longest
                ),
            ));
        }
        self.cache_layout.upload(&rows.iter().map(|row| row.span).collect::<Vec<_>>())?;
        (self.rows, self.slots) = (rows, slots);
        self.restart()
    }

    /// Forgets all positions; buffers, slots and prefixes stay as planned.
    pub fn restart(&mut self) -> Result<()> {
        for row in &mut self.rows {
            (row.length, row.latest, row.latents) = (row.prefix_length(), None, 0);
        }
        self.tape.filled = 0;
        self.tape.entries.clear();
        self.soft.clear();
        if let Some(gated) = &mut self.gated {
            gated.clear();
        }
        match &mut self.hidden_gradient {
            Some(gradient) => gradient.clear(),
            None => Ok(()),
        }
    }

    /// The actions drawn since the rows were laid out, in the order of drawing (a few downloads).
    ///
    /// # Errors
    /// A device that failed.
    pub fn actions(&self) -> Result<Vec<Action>> {
        self.latest_actions(self.soft.filled())
    }

    /// Entropies of the weights of the latest `count` mixtures that were drawn, in nats (one download).
    ///
    /// # Errors
    /// Fewer were drawn.
    pub fn soft_entropies(&self, count: usize) -> Result<Vec<f64>> {
        self.soft.entropies(count)
    }

    /// The latest `count` of them.
    ///
    /// # Errors
    /// Fewer were drawn.
    pub fn latest_actions(&self, count: usize) -> Result<Vec<Action>> {
        let mut actions = self.soft.actions(count)?;
        if let Some(inputs) = &self.soft_inputs {
            let filled = self.soft.filled();
            let read = inputs.values(filled - count..filled)?;
            actions.iter_mut().zip(read).for_each(|(action, input)| action.input = input);
        }
        Ok(actions)
    }

    /// The proxy ids of the latest `count` mixtures that were drawn (one download).
    ///
    /// # Errors
    /// Fewer were drawn.
    pub fn proxies(&self, count: usize) -> Result<Vec<u32>> {
        self.soft.proxies(count)
    }

    /// The mixtures that were noted (or given) since the rows were laid out, in their order (three downloads).
    ///
    /// # Errors
    /// A device that failed.
    pub fn mixtures(&self) -> Result<Vec<Mixture>> {
        self.gated.as_ref().map_or(Ok(Vec::new()), Gated::mixtures)
    }

    /// What was reserved.
    pub fn room(&self) -> Room {
        self.room
    }

    /// Positions held by a row, its prefix included.
    pub fn length(&self, row: u32) -> usize {
        self.rows.get(row as usize).map_or(0, |row| row.length)
    }

    /// Cache slots that the rows take (64-aligned spans of all rows).
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
        let Some(state) = self.rows.get(row as usize) else {
            return Err(Error::shape("row of a latent", row, format!("one of {} rows", self.rows.len())));
        };
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
