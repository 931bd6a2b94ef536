//! HRPO: gated rollouts against their replays, to the bit; gradients against finite differences; the formulas of the gates
//! against PyTorch (tools/hrpo_golden.py); gates in files.

mod beside;
mod bits;
mod formulas;
mod gradients;

use crate::soft::{form as soft_form, members, model as plain_model, prompts};
use latch::base::rng::{Purpose, StreamKey};
use latch::base::{Dtype, Result};
use latch::device::Device;
use latch::learn::objective::Preset;
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::policy::{Policy, Replay, Settings, Source};
use latch::learn::policy_report::Question;
use latch::model::save::Companions;
use latch::model::{
    GateRoom, Gradients, Input, Mixtures, Model, Precision, Record, Room, RowPlan, Scores, Segment,
    Sequences, SoftRoom, Truncation,
};
use latch::ops::gated_mixture;
use latch::ops::linear::{self, Accumulate, Projection};
use latch::ops::mask::SiteKind;
use latch::ops::policy_loss::{Estimator, Kl};
use latch::ops::sampler::Law;
use latch::ops::{Tensor, View};
use latch::rollout::audit::Audit;
use latch::rollout::group::{Drawing, Form, Gating, Limits, Member, Rollouts, Thoughts, Trajectory};
use latch::rollout::masks::{Masking, Mode, Scope};
use serde_json::Value;
use std::ops::ControlFlow;

const LIMITS: Limits = Limits { prompts: 3, members: 12, prompt_tokens: 7 };
const THINKING: usize = 5;
const LONGEST: usize = 9;

/// A small model with gates that differ from column to column and are well open.
fn model(family: &str, dtype: Dtype, device: &Device) -> Model {
    plain_model(family, dtype, device).with_random_gates(7, 0.3).unwrap()
}

fn gating() -> Gating {
    let law = Law::Categorical { temperature: 0.5, top_k: Some(9), top_p: Some(0.95), min_p: None };
    Gating { law, thinking: THINKING, mark: vec![] }
}

fn form() -> Form {
    Form { max_new_tokens: LONGEST, ..soft_form(0) }
}

fn drawing(gate: Gating, masking: Masking) -> Drawing {
    Drawing {
        masking,
        latent_noise: 0.0,
        soft: None,
        gate: Some(gate),
        thoughts: Thoughts::Own,
        law: Law::PLAIN,
        seed: 11,
        share: true,
    }
}

fn masked() -> Masking {
    Masking { p: 0.2, sites: SiteKind::ALL.to_vec(), scope: Scope::All, mode: Mode::PerStep }
}

fn go(_: usize, _: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn sampled(model: &Model, drawing: &Drawing, record: Record) -> (Rollouts, Vec<Trajectory>) {
    let mut rollouts = Rollouts::reserve(model, form(), drawing.clone(), LIMITS, record).unwrap();
    let trajectories = rollouts.sample(model, &prompts(), &members(3, 4), go).unwrap();
    (rollouts, trajectories)
}

/// Samples once without a mark, and takes two tokens in a row that some rollout says early as the mark.
fn with_a_mark(model: &Model, masking: Masking) -> Drawing {
    let plain = drawing(gating(), masking.clone());
    let (_, trajectories) = sampled(model, &plain, Record::Nothing);
    let spoken = trajectories.iter().find(|t| t.tokens.len() > 4).expect("a rollout of some length");
    drawing(Gating { mark: spoken.tokens[1..3].to_vec(), ..gating() }, masking)
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn scored(model: &Model, rollouts: &Rollouts, trajectories: &[Trajectory], scores: &mut Scores) -> Vec<f64> {
    let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
    let targets: Vec<u32> = trajectories.iter().flat_map(|t| t.tokens.iter().copied()).collect();
    scores.forward(model, rollouts.sequences(), &at, &targets, 1.0).unwrap();
    scores.log_probabilities().unwrap()
}

fn replayed(model: &Model, drawing: &Drawing, trajectories: &[Trajectory], record: Record) -> Rollouts {
    let mut rollouts = Rollouts::reserve(model, form(), drawing.clone(), LIMITS, record).unwrap();
    rollouts.replay(model, &prompts(), &trajectories.iter().collect::<Vec<_>>()).unwrap();
    rollouts
}

/// One row with room for gated positions.
fn room(model: &Model, gated: usize, record: Record) -> Sequences {
    let gates = GateRoom { positions: gated, rows: gated, terms: 9 };
    let soft = SoftRoom { gates, ..SoftRoom::default() };
    let room = Room { rows: 1, slots: 64, longest: 16, tape_positions: 16, soft };
    let mut sequences = Sequences::reserve(model, model.device(), room, record).unwrap();
    sequences.layout(&[RowPlan::own(16)]).unwrap();
    sequences
}
