//! Running the gates of HRPO: the mixtures that tokens are sampled from, the inputs made of both, and their backward
//! pass. A place here is one gated position, in the order in which they stand on the tape.
//!
//! ```text
//! logits -> kept ids -> p = softmax(logits / T) -> p / |p|_2       noted beside the token that was drawn from them
//! place: token, mixture -> e, h -> W_r e + b_r, W_i e + b_i -> x   all places of a segment at once
//! ```
//!
//! Mixtures are constants: they are stored, and replayed as stored. That p depends on the weights is left out of the
//! gradient, as HRPO leaves it out.

use super::Model;
use super::architecture::LinearPlan;
use super::gates;
use super::parameters::Gradients;
use super::sequences::not_recording;
use super::soft_tape::packed;
use crate::base::{Dtype, Error, Result};
use crate::device::{Arena, Device};
use crate::ops::linear::{self, Accumulate};
use crate::ops::sampler::{self, Law, Noise, Support};
use crate::ops::scatter::Order;
use crate::ops::soft_action::{self, Perturbation, Proxy};
use crate::ops::{Tensor, View, ViewMut, embedding, gated_mixture, gather, latent, random, rmsnorm};
use std::ops::Range;

/// A weighted sum of tokens.
pub type Mixture = Vec<(u32, f64)>;

/// The mixtures of a segment's gated positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mixtures {
    /// Those that were noted since the last segment with gated positions ([`Model::note_mixtures`]), in their order.
    #[default]
    Noted,
    /// These, in the order of the positions.
    Stored(Vec<Mixture>),
}

/// Room for gated positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateRoom {
    /// Gated positions of all rows together; 0 where nothing is gated.
    pub positions: usize,
    /// Rows whose mixtures are noted at once.
    pub rows: usize,
    /// Terms of a mixture.
    pub terms: usize,
}

/// The gated positions of some sequences.
#[derive(Debug)]
pub(super) struct Gated {
    room: GateRoom,
    /// Places whose segments have run.
    filled: usize,
    /// Places whose mixtures are known.
    noted: usize,
    /// Where on the tape each filled place stands.
    at: Vec<usize>,
    support: Support,
    weights: Tensor,
    tokens: Tensor,
    kept: Kept,
    /// Inputs of the segment at hand.
    mixed: Tensor,
    /// -2, -3, ...: the nth mixture at hand.
    mixture_ids: Tensor,
    /// 0, where an embedding asks for positions and adds none.
    nowhere: Tensor,
    note: Note,
    backward: Option<Backward>,
}

/// What backward reads of each place, `[positions, width]`.
#[derive(Debug)]
struct Kept {
    token: Tensor,
    soft: Tensor,
    reset: Tensor,
    input: Tensor,
}

impl Kept {
    fn operands<'a>(&'a self, lambda: &'a Tensor, at: &Range<usize>) -> Result<gated_mixture::Inputs<'a>> {
        Ok(gated_mixture::Inputs {
            token: self.token.rows(at.clone())?,
            soft: self.soft.rows(at.clone())?,
            reset: self.reset.rows(at.clone())?,
            input: self.input.rows(at.clone())?,
            lambda,
        })
    }
}

/// Buffers for noting mixtures.
#[derive(Debug)]
struct Note {
    workspace: sampler::Workspace,
    perturbed: Tensor,
    softmax: Tensor,
    proxies: Tensor,
    keys: Tensor,
    steps: Tensor,
    /// 1 / sqrt(terms): makes the root mean square of a row its norm.
    gain: Tensor,
    norm: rmsnorm::Saved,
}

#[derive(Debug)]
struct Backward {
    index: Tensor,
    dx: Tensor,
    dtoken: Tensor,
    dreset: Tensor,
    dinput: Tensor,
    terms: Tensor,
    order: Order,
}

impl Gated {
    /// Room for a model with gates; none where nothing is gated.
    pub fn reserve(model: &Model, device: &Device, room: GateRoom, records: bool) -> Result<Option<Gated>> {
        let GateRoom { positions, rows, terms } = room;
        if positions == 0 {
            return Ok(None);
        }
        if model.gates.is_none() {
            return Err(gates::missing());
        }
        let (width, dtype) = (model.config.width, model.dtype());
        let weights = dtype.accumulation();
        let zeros = || Tensor::zeros(device, [positions, width], dtype);
        let column = |count: usize, dtype| Tensor::zeros(device, [count, 1], dtype);
        let backward = || -> Result<Backward> {
            let _arena = Arena::Workspace.enter();
            Ok(Backward {
                index: column(positions, Dtype::U32)?,
                dx: zeros()?,
                dtoken: zeros()?,
                dreset: zeros()?,
                dinput: zeros()?,
                terms: Tensor::zeros(device, [positions, width], weights)?,
                order: Order::reserve(device, positions)?,
            })
        };
        let note = || -> Result<Note> {
            let _arena = Arena::Workspace.enter();
            let mut gain = Tensor::zeros(device, [terms], weights)?;
            random::fill(&mut gain, 1.0 / (terms.max(1) as f64).sqrt())?;
            let of_terms = || Tensor::zeros(device, [rows, terms], weights);
            Ok(Note {
                workspace: sampler::Workspace::reserve(device, rows, model.config.vocab)?,
                perturbed: of_terms()?,
                softmax: of_terms()?,
                proxies: column(rows, Dtype::U32)?,
                keys: Tensor::zeros(device, [rows, 2], Dtype::U32)?,
                steps: column(rows, Dtype::U32)?,
                gain,
                norm: rmsnorm::Saved::reserve(device, rows, terms, weights)?,
            })
        };
        let mut mixture_ids = column(positions, Dtype::I32)?;
        mixture_ids.upload(&(0..positions as i32).map(|n| -2 - n).collect::<Vec<_>>())?;
        Ok(Some(Gated {
            room,
            filled: 0,
            noted: 0,
            at: Vec::with_capacity(positions),
            support: Support::reserve(device, positions, terms)?,
            weights: Tensor::zeros(device, [positions, terms], weights)?,
            tokens: column(positions, Dtype::I32)?,
            kept: Kept { token: zeros()?, soft: zeros()?, reset: zeros()?, input: zeros()? },
            mixed: zeros()?,
            mixture_ids,
            nowhere: column(positions, Dtype::U32)?,
            note: note()?,
            backward: records.then(backward).transpose()?,
        }))
    }

    /// Forgets all places.
    pub fn clear(&mut self) {
        (self.filled, self.noted) = (0, 0);
        self.at.clear();
    }

    fn expect_room(&self, more: usize) -> Result<()> {
        match self.noted + more <= self.room.positions {
            true => Ok(()),
            false => Err(Error::shape(
                "gated positions",
                format!("{more} more after {}", self.noted),
                format!("at most {} in all, as reserved", self.room.positions),
            )),
        }
    }

    /// Notes a mixture for each row of `logits`.
    fn note(&mut self, logits: View, law: &Law) -> Result<()> {
        let count = logits.count();
        self.expect_room(count)?;
        if count > self.room.rows {
            return Err(Error::shape("mixtures noted at once", count, format!("at most {}", self.room.rows)));
        }
        let (at, here) = (self.noted..self.noted + count, 0..count);
        let note = &mut self.note;
        let noise =
            Noise { keys: note.keys.rows(here.clone())?, steps: note.steps.rows(here.clone())?, site: 0 };
        let mixture = sampler::Mixture { law, tau: 1.0 };
        let weights = note.softmax.rows_mut(here.clone())?;
        sampler::mixture(
            logits,
            &mixture,
            noise,
            sampler::Mixed {
                support: &mut self.support,
                at: at.clone(),
                weights,
                workspace: &note.workspace,
            },
        )?;
        let settings = soft_action::Settings {
            inverse_temperature: law.inverse_temperature(),
            tau: 1.0,
            perturbation: Perturbation::None,
            proxy: Proxy::Argmax,
            hard: false,
        };
        let out = soft_action::Outputs {
            perturbed: note.perturbed.rows_mut(here.clone())?,
            weights: note.softmax.rows_mut(here.clone())?,
            soft: None,
            proxies: note.proxies.rows_mut(here.clone())?,
            entropies: None,
        };
        soft_action::forward(logits, &self.support, at.clone(), &settings, noise, out)?;
        let (softmax, weights) = (note.softmax.rows(here.clone())?, self.weights.rows_mut(at.clone())?);
        rmsnorm::forward(softmax, &note.gain, 0.0, weights, &mut note.norm, here)?;
        self.noted = at.end;
        Ok(())
    }

    /// Takes the mixtures of a segment that stands at `first` of the tape and has these tokens at these of its positions;
    /// returns their places.
    pub fn place(
        &mut self,
        first: usize,
        gated: &[(usize, i32)],
        mixtures: &Mixtures,
    ) -> Result<Range<usize>> {
        let tokens: Vec<i32> = gated.iter().map(|(_, token)| *token).collect();
        if let Mixtures::Stored(mixtures) = mixtures {
            if self.noted != self.filled || mixtures.len() != tokens.len() {
                return Err(Error::shape(
                    "stored mixtures",
                    format!("{}, and {} noted before", mixtures.len(), self.noted - self.filled),
                    format!("one for each of {} gated positions, none noted", tokens.len()),
                ));
            }
            self.expect_room(tokens.len())?;
            let (at, terms) = (self.noted..self.noted + tokens.len(), self.room.terms);
            let ids: Vec<Vec<u32>> = mixtures.iter().map(|m| m.iter().map(|(id, _)| *id).collect()).collect();
            let (ids, counts) = packed(&ids, mixtures.len(), terms)?;
            let mut weights = vec![0.0; tokens.len() * terms];
            for (mixture, weights) in mixtures.iter().zip(weights.chunks_exact_mut(terms.max(1))) {
                for ((_, given), weight) in mixture.iter().zip(weights) {
                    *weight = *given;
                }
            }
            self.support.upload(at.clone(), &ids, &counts)?;
            self.weights.upload_numbers(at.start * terms, &weights)?;
            self.noted = at.end;
        }
        let at = self.filled..self.filled + tokens.len();
        if at.end != self.noted {
            return Err(Error::shape(
                "gated positions",
                tokens.len(),
                format!("{}, as many as mixtures were noted", self.noted - self.filled),
            ));
        }
        self.tokens.upload_at(at.start, &tokens)?;
        self.at.extend(gated.iter().map(|(n, _)| first + n));
        self.filled = at.end;
        Ok(at)
    }

    /// The mixtures that were noted or stored since the rows were laid out (three downloads).
    pub fn mixtures(&self) -> Result<Vec<Mixture>> {
        let (rows, terms) = (0..self.noted, self.room.terms);
        let (ids, counts) = self.support.download(rows.clone())?;
        let weights = self.weights.rows(rows.clone())?.numbers()?;
        let mixture = |n: usize| {
            let kept = n * terms..n * terms + (counts[n] as usize).min(terms);
            ids[kept.clone()].iter().copied().zip(weights[kept].iter().copied()).collect()
        };
        Ok(rows.map(mixture).collect())
    }

    /// Writes the inputs of places `at` into the rows of `x` whose `ids` are -1: `own` is the place of each, counted from
    /// the first.
    pub fn forward(
        &mut self,
        model: &Model,
        at: Range<usize>,
        (own, ids): (View, View),
        x: ViewMut,
    ) -> Result<()> {
        let Some(plan) = &model.gates else { return Err(gates::missing()) };
        let here = 0..at.len();
        let table = model.table();
        let positions = self.nowhere.rows(here.clone())?;
        let tokens = embedding::Inputs { ids: self.tokens.rows(at.clone())?, positions, soft: None };
        embedding::forward(&tokens, table, None, self.kept.token.rows_mut(at.clone())?)?;
        let soft = embedding::Soft {
            ids: self.support.ids().rows(at.clone())?,
            weights: self.weights.rows(at.clone())?,
        };
        let mixtures =
            embedding::Inputs { ids: self.mixture_ids.rows(here.clone())?, positions, soft: Some(soft) };
        embedding::forward(&mixtures, table, None, self.kept.soft.rows_mut(at.clone())?)?;
        let Gated { kept, mixed, .. } = self;
        let linear = |plan: &LinearPlan, x: View, y: ViewMut| {
            let bias = plan.bias.map(|bias| &model.parameters[bias]);
            linear::forward(x, &plan.projection, &model.parameters[plan.weight], bias, y)
        };
        linear(&plan.reset, kept.token.rows(at.clone())?, kept.reset.rows_mut(at.clone())?)?;
        linear(&plan.input, kept.token.rows(at.clone())?, kept.input.rows_mut(at.clone())?)?;
        let operands = kept.operands(&model.parameters[plan.lambda], &at)?;
        gated_mixture::forward(&operands, mixed.rows_mut(here.clone())?)?;
        latent::forward(mixed.rows(here)?, own, ids, None, x)
    }

    /// Walks back from `stream`, the gradient of the inputs of a run of the tape that begins at position `first` and holds
    /// places `at`: adds to the gates' gradients and to the token embedding's.
    pub fn backward(
        &mut self,
        model: &Model,
        stream: View,
        first: usize,
        at: Range<usize>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Some(plan) = &model.gates else { return Err(gates::missing()) };
        let Some(back) = &mut self.backward else { return Err(not_recording()) };
        let Some(dlambda) = gradients.at(plan.lambda)? else { return Err(gates::frozen()) };
        let here = || 0..at.len();
        let rows: Vec<u32> = self.at[at.clone()].iter().map(|position| (position - first) as u32).collect();
        back.index.upload_at(0, &rows)?;
        gather::forward(stream, back.index.rows(here())?, back.dx.rows_mut(here())?)?;
        let lambda = &model.parameters[plan.lambda];
        let out = gated_mixture::Gradients {
            dtoken: back.dtoken.rows_mut(here())?,
            dreset: back.dreset.rows_mut(here())?,
            dinput: back.dinput.rows_mut(here())?,
            terms: back.terms.rows_mut(here())?,
            dlambda,
        };
        gated_mixture::backward(back.dx.rows(here())?, &self.kept.operands(lambda, &at)?, out)?;
        for (linear, dy) in [(&plan.reset, &back.dreset), (&plan.input, &back.dinput)] {
            let bias = Some(linear.weight + 1);
            let (dw, dbias) = gradients.of_linear(linear.weight, bias, &linear.projection)?;
            let dx = Some((back.dtoken.rows_mut(here())?, Accumulate::Add));
            let out = linear::Gradients { dx, dw, dbias };
            let (dy, x) = (dy.rows(here())?, self.kept.token.rows(at.clone())?);
            linear::backward(dy, x, &linear.projection, &model.parameters[linear.weight], out)?;
        }
        let [Some(dtable), _] = gradients.embeddings(None)? else { return Ok(()) };
        let inputs = embedding::Inputs {
            ids: self.tokens.rows(at.clone())?,
            positions: self.nowhere.rows(here())?,
            soft: None,
        };
        let dtoken = back.dtoken.rows(here())?;
        embedding::backward(dtoken, &inputs, model.table(), Some(dtable), None, None, &mut back.order)
    }
}

impl Model {
    /// Notes, for each row of `logits[n, vocab]`, the mixture that `law` makes of it: kept ids with the softmax at the
    /// law's temperature, divided by its 2-norm. The next segment reads them at its gated positions, in this order.
    ///
    /// # Errors
    /// No room was reserved, or a law that does not fit it.
    pub fn note_mixtures(&self, sequences: &mut super::Sequences, logits: View, law: &Law) -> Result<()> {
        match &mut sequences.gated {
            Some(gated) => gated.note(logits, law),
            None => Err(Error::input(
                "mixtures to note",
                "no room was reserved for gated positions",
                "reserve it (SoftRoom::gates)",
            )),
        }
    }
}
