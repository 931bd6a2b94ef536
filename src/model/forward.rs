//! Running a segment: its index goes to the device, its inputs are embedded (or fed back), layers run, and each
//! row's last final hidden state is stored for the next latent. Nothing is recomputed, nothing is padded.

use super::Model;
use super::block::{Block, Masks, Positions};
use super::norm;
use super::placing::{Placed, check_room};
use super::segment::{Input, LatentNoise, Segment};
use super::sequences::Sequences;
use super::soft_inputs::not_kept;
use super::soft_tape::SoftAt;
use super::steps::{Decode, Sampling, Under};
use super::tape::{Entry, Record};
use crate::base::{Error, Result};
use crate::device::{Device, StepRun};
use crate::ops::embedding;
use crate::ops::kv_cache::CacheLayout;
use crate::ops::mask::{self, MaskSet, SiteKind};
use crate::ops::rope::RopeTable;
use crate::ops::{latent, random};
use std::ops::Range;

impl Model {
    /// Runs a segment: appends its positions to their rows and returns where they stand on the tape.
    ///
    /// # Errors
    /// A token outside the vocabulary, a row that is full or unknown, a latent with nothing to feed back.
    pub fn forward(
        &self,
        sequences: &mut Sequences,
        segment: &Segment,
        masks: Option<&MaskSet>,
    ) -> Result<Range<usize>> {
        let at = sequences.tape.next(segment.len())?;
        if segment.is_empty() {
            return Ok(at);
        }
        let mut placed = self.place(sequences, segment, at.start)?;
        let kept = segment.inputs.iter().any(|input| matches!(input, Input::Kept(_)));
        let drawn = segment.draw.is_some() && sequences.soft_inputs.is_some();
        let embedded = kept || drawn || !placed.embedded.is_empty();
        if !placed.embedded.is_empty() {
            self.place_embedded(sequences, &mut placed)?;
        }
        let gated = match (&mut sequences.gated, placed.gated.is_empty()) {
            (_, true) => 0..0,
            (Some(gated), false) => gated.place(at.start, &placed.gated, &segment.mixtures)?,
            (None, false) => return Err(no_gates()),
        };
        let step = self.is_step(sequences, segment, &placed.last);
        let (index, first) = match &mut sequences.window {
            Some(window) if step => (window.index(), 0),
            other => {
                if let Some(window) = other {
                    window.at = None;
                }
                (&mut sequences.tape.index, at.start)
            }
        };
        index.rows.upload_at(first, &placed.rows)?;
        index.positions.upload_at(first, &placed.positions)?;
        index.ids.upload_at(first, &placed.ids)?;
        index.feedback_rows.upload_at(first, &placed.feedback_rows)?;
        index.last.upload_at(first, &placed.last)?;
        let masked = masks.is_some() && segment.instances.iter().any(|&instance| instance >= 0);
        match masked {
            true => index.instances.upload_at(first, &segment.instances)?,
            false if masks.is_some() => index.instances.upload_at(first, &vec![-1_i32; segment.len()])?,
            false => {}
        }
        let soft: Option<SoftAt> = match (placed.soft, &segment.draw) {
            (Some((ids, weights, terms)), None) => {
                let positions = runs(&placed.ids, at.start);
                Some(sequences.soft.upload(self.device(), (&ids, &weights, terms), positions)?)
            }
            (None, Some(draw)) => Some(self.draw(sequences, &placed.feedback_rows, draw, at.start)?),
            _ => None,
        };
        let mut noise = match &segment.noise {
            None => None,
            Some(noise) => Some(place_noise(sequences, segment, noise)?),
        };
        let soft = match soft {
            Some(drawn) if embedded => {
                self.keep_inputs(sequences, &drawn, at.start, noise.take())?;
                let places: Vec<u32> = drawn.rows().map(|place| place as u32).collect();
                sequences.tape.index.feedback_rows.upload_at(at.start, &places)?;
                None
            }
            soft => soft,
        };
        sequences.advance(&placed.rows, &placed.feeds, at.start);
        let latent = !placed.feeds.is_empty() && segment.draw.is_none();
        let entry = Entry { at: at.clone(), latent, masked, soft, embedded, feeds: placed.feeds, gated };
        match step {
            true => self.run_step(sequences, entry, Under { masks, noise }, None)?,
            false => self.run(sequences, entry, Under { masks, noise })?,
        }
        Ok(at)
    }

    /// Appends to each row of the segment at `previous` (one position a row) the token that `sampling` sampled last, and
    /// samples the next: all on the device, and nothing is uploaded. `masks` brings the number that mask instances grow
    /// by from the previous position (0: the same mask).
    ///
    /// # Errors
    /// A row that is full, or another number of rows than positions at `previous`.
    pub fn forward_sampled(
        &self,
        sequences: &mut Sequences,
        previous: Range<usize>,
        rows: &[u32],
        sampling: &mut dyn Sampling,
        masks: Option<(&MaskSet, i32)>,
    ) -> Result<Range<usize>> {
        let at = sequences.tape.next(rows.len())?;
        if previous.len() != rows.len() {
            return Err(Error::shape(
                "sampled tokens",
                previous.len(),
                format!("one position for each of {} rows", rows.len()),
            ));
        }
        for &row in rows {
            check_room(&sequences.rows, row, 1)?;
        }
        let mut decode = Decode { sampling, stride: masks.map(|(_, stride)| stride) };
        let in_place = match &sequences.window {
            Some(window) => window.at.as_ref() == Some(&previous),
            None => previous == at,
        };
        sequences.advance(rows, &[], at.start);
        let (soft, feeds, gated) = (None, Vec::new(), 0..0);
        let masked = masks.is_some();
        let entry = Entry { at: at.clone(), latent: false, masked, soft, embedded: false, feeds, gated };
        let under = Under { masks: masks.map(|(set, _)| set), noise: None };
        if in_place {
            self.run_step(sequences, entry, under, Some(decode))?;
        } else {
            if let Device::Gpu(gpu) = self.device() {
                gpu.traffic().step(StepRun::Eager);
            }
            if let Some(window) = &mut sequences.window {
                window.at = None;
            }
            decode.advance(&mut sequences.tape.index, previous, at.clone())?;
            self.run(sequences, entry, under)?;
            decode.sampling.sample(self, sequences.tape.hidden.rows(at.clone())?)?;
        }
        Ok(at)
    }

    /// Brings up embeddings that are given, and names their places; positions that read none name one that exists.
    fn place_embedded(&self, sequences: &mut Sequences, placed: &mut Placed) -> Result<()> {
        let Sequences { soft, soft_inputs, .. } = sequences;
        let Some(inputs) = soft_inputs else { return Err(not_kept()) };
        let at = soft.pass(placed.embedded.len() / self.config().width)?;
        for (row, id) in placed.feedback_rows.iter_mut().zip(&placed.ids) {
            *row = if *id == -1 { *row + at.start as u32 } else { 0 };
        }
        inputs.upload(at.start, &placed.embedded)
    }

    /// Runs the layers over the positions of `entry`, whose index is on the device, and appends it to the tape.
    fn run(&self, sequences: &mut Sequences, entry: Entry, under: Under) -> Result<()> {
        let at = entry.at.clone();
        self.embed(sequences, &entry, at.clone(), under)?;
        for layer in 0..self.architecture.layers.len() {
            self.run_layer(sequences, layer, at.clone(), under.masks.filter(|_| entry.masked), false)?;
        }
        self.finish(sequences, at)?;
        self.note(sequences, entry);
        Ok(())
    }

    /// The final norm over positions `at`, and each row's last hidden state.
    pub(super) fn finish(&self, sequences: &mut Sequences, at: Range<usize>) -> Result<()> {
        let tape = &mut sequences.tape;
        let (stream, hidden, saved) = tape.finish();
        norm::forward(
            &self.architecture.final_norm,
            &self.parameters,
            stream.rows(at.clone())?,
            hidden.rows_mut(at.clone())?,
            saved,
            at.clone(),
        )?;
        latent::store(
            tape.hidden.rows(at.clone())?,
            tape.index.rows.rows(at.clone())?,
            tape.index.last.rows(at)?,
            sequences.feedback.view_mut(),
        )
    }

    /// Appends an entry that has run to the tape.
    pub(super) fn note(&self, sequences: &mut Sequences, entry: Entry) {
        let tape = &mut sequences.tape;
        if tape.record != Record::Nothing {
            tape.filled = entry.at.end;
            tape.entries.push(entry);
        } else {
            sequences.soft.drop_guests();
        }
    }

    /// Writes the inputs of the first layer for `entry`, which stands at `at` of the tape at hand.
    pub(super) fn embed(
        &self,
        sequences: &mut Sequences,
        entry: &Entry,
        at: Range<usize>,
        Under { masks, noise }: Under,
    ) -> Result<()> {
        let masks = masks.filter(|_| entry.masked);
        let (tape, soft) = (&mut sequences.tape, &sequences.soft);
        let index = &tape.index;
        let site = |kind| -> Result<_> {
            Ok(match masks {
                None => None,
                Some(set) => set.at(kind, 0, index.instances.rows(at.clone())?),
            })
        };
        if let (Some(gated), false) = (&mut sequences.gated, entry.gated.is_empty()) {
            let (places, stream) = (entry.gated.clone(), tape.inputs[0].rows_mut(at.clone())?);
            let own = index.feedback_rows.rows(at.clone())?;
            gated.forward(self, places, (own, index.ids.rows(at.clone())?), stream)?;
        }
        if let (Some(inputs), true) = (&sequences.soft_inputs, entry.embedded) {
            let (own, ids) = (index.feedback_rows.rows(at.clone())?, index.ids.rows(at.clone())?);
            latent::forward(inputs.view(), own, ids, None, tape.inputs[0].rows_mut(at.clone())?)?;
        }
        let (latent_mask, embedding_mask) = (site(SiteKind::Latent)?, site(SiteKind::Emb)?);
        let (ids, positions) = (index.ids.rows(at.clone())?, index.positions.rows(at.clone())?);
        let feedback_rows = index.feedback_rows.rows(at.clone())?;
        let stream = &mut tape.inputs[0];
        if entry.latent {
            let (states, state_rows) = match &mut sequences.projected {
                None => (sequences.feedback.view(), feedback_rows),
                Some(room) => room.forward(self, sequences.feedback.view(), feedback_rows, at.clone())?,
            };
            latent::forward(states, state_rows, ids, latent_mask, stream.rows_mut(at.clone())?)?;
            if let Some(deviation) = noise {
                let keys = sequences.noise_keys.rows(0..at.len())?;
                random::add_normal(stream.rows_mut(at.clone())?, keys, deviation)?;
            }
        }
        let inputs = embedding::Inputs {
            ids,
            positions,
            soft: entry.soft.as_ref().map(|at| soft.view(at)).transpose()?,
        };
        let positions = self.architecture.position_embedding.map(|index| &self.parameters[index]);
        embedding::forward(&inputs, self.table(), positions, stream.rows_mut(at.clone())?)?;
        if let (Some(deviation), false) = (noise, entry.latent) {
            let keys = sequences.noise_keys.rows(0..at.len())?;
            random::add_normal(stream.rows_mut(at.clone())?, keys, deviation)?;
        }
        match embedding_mask {
            Some(mask) => mask::apply(stream.rows_mut(at)?, mask),
            None => Ok(()),
        }
    }

    /// Runs one layer over positions `at`. In recompute the output stream is left alone.
    pub(super) fn run_layer(
        &self,
        sequences: &mut Sequences,
        layer: usize,
        at: Range<usize>,
        masks: Option<&MaskSet>,
        again: bool,
    ) -> Result<()> {
        let block = self.block(layer, &sequences.cache_layout, sequences.rope.as_ref());
        let parts = sequences.tape.layer(layer);
        let index = parts.index;
        let on = Positions {
            rows: index.rows.rows(at.clone())?,
            positions: index.positions.rows(at.clone())?,
            masks: match masks {
                None => None,
                Some(set) => Some(Masks { set, instances: index.instances.rows(at.clone())? }),
            },
        };
        let y = if again { None } else { Some(parts.output.rows_mut(at.clone())?) };
        block.forward(
            on,
            (parts.input.rows(at.clone())?, y),
            &mut sequences.cache[layer],
            parts.kept,
            at,
            parts.work,
        )
    }

    /// One layer's fixed parts.
    pub(super) fn block<'a>(
        &'a self,
        layer: usize,
        cache_layout: &'a CacheLayout,
        rope: Option<&'a RopeTable>,
    ) -> Block<'a> {
        Block {
            layer,
            plan: &self.architecture.layers[layer],
            parameters: &self.parameters,
            adapters: self.adapters.as_ref(),
            geometry: &self.geometry,
            rope,
            cache_layout,
        }
    }
}

fn no_gates() -> Error {
    Error::input(
        "segment",
        "gated positions, where no room was reserved for any",
        "reserve it (SoftRoom::gates) for a model with gates",
    )
}

/// Runs of mixtures among `ids`, which stand at `at` of the tape.
fn runs(ids: &[i32], at: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for n in (0..ids.len()).filter(|&n| ids[n] < -1) {
        match runs.last_mut() {
            Some(run) if run.end == at + n => run.end += 1,
            _ => runs.push(at + n..at + n + 1),
        }
    }
    runs
}

/// Checks the noise of a segment of latents and brings its keys to the device; returns its deviation.
fn place_noise(sequences: &mut Sequences, segment: &Segment, noise: &LatentNoise) -> Result<f64> {
    let latents = segment
        .inputs
        .iter()
        .filter(|input| matches!(input, Input::Latent | Input::Drawn | Input::Soft(_)))
        .count();
    if latents != segment.len() || noise.keys.len() != segment.len() || !noise.deviation.is_finite() {
        return Err(Error::input(
            "latent noise",
            format!(
                "deviation {}, {} keys, {latents} latents among {} positions",
                noise.deviation,
                noise.keys.len(),
                segment.len()
            ),
            "give a segment of latents (or mixtures) alone one key a position and a finite deviation",
        ));
    }
    let keys: Vec<u32> = noise.keys.iter().flat_map(|(key, step)| [key.0[0], key.0[1], *step]).collect();
    sequences.noise_keys.upload_at(0, &keys)?;
    Ok(noise.deviation)
}
