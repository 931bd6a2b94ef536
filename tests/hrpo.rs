//! HRPO: gated rollouts against their replays, to the bit; gradients against finite differences; the formulas of the gates
//! against PyTorch (tools/hrpo_golden.py); gates in files.

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

#[test]
fn gating_ends_with_the_mark_or_the_count() {
    let gate = |mark: &[u32], thinking| Gating { mark: mark.to_vec(), thinking, ..gating() };
    assert_eq!(gate(&[], 3).gated(&[1, 2]), 2);
    assert_eq!(gate(&[], 3).gated(&[1, 2, 3, 4]), 3);
    assert_eq!(gate(&[2], 3).gated(&[1, 2, 3, 4]), 1);
    assert_eq!(gate(&[2, 3], 9).gated(&[1, 2, 2, 3, 4]), 3);
    assert_eq!(gate(&[2, 3], 2).gated(&[1, 2, 2, 3, 4]), 2);
    assert_eq!(gate(&[2, 3], 9).gated(&[1, 2]), 2);
    assert_eq!(gate(&[1], 9).gated(&[1]), 0);
    assert_eq!(gate(&[1], 9).gated(&[]), 0);
}

#[test]
fn rollouts_are_audited_and_replayed_to_the_bit() {
    for family in ["gpt2", "llama"] {
        let model = model(family, Dtype::F32, &Device::cpu());
        for masking in [Masking::NONE, masked()] {
            let drawing = with_a_mark(&model, masking);
            let gate = drawing.gate.clone().unwrap();
            let (_, trajectories) = sampled(&model, &drawing, Record::Nothing);
            let (mut marked, mut counted, mut several) = (0, 0, 0);
            let mut audit = Audit::reserve(&model, form(), drawing.clone(), 7).unwrap();
            for trajectory in &trajectories {
                let prompt = &prompts()[trajectory.member.prompt];
                assert_eq!(audit.gap(&model, prompt, trajectory).unwrap(), 0.0, "{family} {drawing:?}");
                let read = trajectory.tokens.len() - 1;
                assert_eq!(trajectory.mixtures.len(), gate.gated(&trajectory.tokens[..read]));
                marked += usize::from(trajectory.mixtures.len() < read.min(THINKING));
                counted += usize::from(trajectory.mixtures.len() == THINKING && read > THINKING);
                for mixture in &trajectory.mixtures {
                    let square: f64 = mixture.iter().map(|(_, weight)| weight * weight).sum();
                    assert!((square - 1.0).abs() < 1e-6, "{mixture:?}");
                    assert!(mixture.is_sorted_by(|a, b| a.0 < b.0) && mixture.len() <= 9);
                    several += usize::from(mixture.len() > 1);
                }
            }
            assert!(marked > 0 && counted > 0 && several > 0, "{family}: {marked} {counted} {several}");
            let said: Vec<f64> =
                trajectories.iter().flat_map(|t| t.log_probabilities.iter().copied()).collect();
            let mut scores = Scores::reserve(&model, 12 * LONGEST).unwrap();
            for record in [Record::Nothing, Record::Everything, Record::LayerInputs] {
                let (again, drawn) = match record {
                    // Nothing is kept: only the trajectories can be compared.
                    Record::Nothing => (None, sampled(&model, &drawing, record).1),
                    _ => {
                        let (rollouts, drawn) = sampled(&model, &drawing, record);
                        (Some(rollouts), drawn)
                    }
                };
                assert_eq!(drawn, trajectories);
                if let Some(rollouts) = again {
                    assert_eq!(bits(&scored(&model, &rollouts, &drawn, &mut scores)), bits(&said));
                    let rollouts = replayed(&model, &drawing, &drawn, record);
                    assert_eq!(
                        bits(&scored(&model, &rollouts, &drawn, &mut scores)),
                        bits(&said),
                        "{family}"
                    );
                }
            }
            // The gates matter: without them the same tokens have other probabilities.
            let plain = Drawing { gate: None, ..drawing.clone() };
            let rollouts = replayed(&model, &plain, &trajectories, Record::Everything);
            assert_ne!(bits(&scored(&model, &rollouts, &trajectories, &mut scores)), bits(&said));
        }
    }
}

#[test]
fn a_rollout_is_the_same_in_any_batch_and_without_sharing() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    for masking in [Masking::NONE, masked()] {
        let drawing = with_a_mark(&model, masking);
        let (_, all) = sampled(&model, &drawing, Record::Everything);
        let alone = Drawing { share: false, ..drawing };
        let mut rollouts = Rollouts::reserve(&model, form(), alone, LIMITS, Record::Nothing).unwrap();
        for trajectory in &all {
            let prompt = prompts()[trajectory.member.prompt].clone();
            let member = Member { prompt: 0, ..trajectory.member };
            let mut again = rollouts.sample(&model, &[prompt], &[member], go).unwrap().remove(0);
            again.member = trajectory.member;
            assert_eq!(&again, trajectory);
        }
    }
}

#[test]
fn an_audit_sees_another_mixture_and_misuse_is_named() {
    let model = model("gpt2", Dtype::F32, &Device::cpu());
    let drawing = drawing(gating(), Masking::NONE);
    let (_, trajectories) = sampled(&model, &drawing, Record::Nothing);
    let good = trajectories.iter().find(|t| t.mixtures.len() > 2).unwrap();
    let mut audit = Audit::reserve(&model, form(), drawing.clone(), 7).unwrap();
    let mut gap = |t: &Trajectory| audit.gap(&model, &prompts()[t.member.prompt], t).unwrap();
    assert_eq!(gap(good), 0.0);
    let mut other = good.clone();
    other.mixtures[0][0].1 += 0.1;
    assert!(gap(&other) > 0.0);
    let mut other = good.clone();
    other.mixtures.pop();
    let mut rollouts = Rollouts::reserve(&model, form(), drawing.clone(), LIMITS, Record::Nothing).unwrap();
    let message = rollouts.replay(&model, &prompts(), &[&other]).unwrap_err().to_string();
    assert!(message.contains("mixtures of a trajectory"), "{message}");

    let without = plain_model("gpt2", Dtype::F32, &Device::cpu());
    let message = Rollouts::reserve(&without, form(), drawing.clone(), LIMITS, Record::Nothing)
        .unwrap_err()
        .to_string();
    assert!(message.contains("hrpo.thinking") && message.contains("no gates"), "{message}");
    let message = plain_model("gpt2", Dtype::F32, &Device::cpu()).with_random_gates(1, 1.0).unwrap_err();
    assert!(message.to_string().contains("hrpo.least_share"), "{message}");
    let greedy = Drawing { gate: Some(Gating { law: Law::Greedy, ..gating() }), ..drawing };
    assert!(Rollouts::reserve(&model, form(), greedy, LIMITS, Record::Nothing).is_err());

    let mut sequences = room(&model, 4, Record::Everything);
    let run = |sequences: &mut Sequences, inputs: Vec<Input>, mixtures: Mixtures| {
        let rows = vec![0; inputs.len()];
        model.forward(sequences, &Segment { rows, inputs, mixtures, ..Segment::new() }, None)
    };
    let message = run(&mut sequences, vec![Input::Gated(3)], Mixtures::Noted).unwrap_err().to_string();
    assert!(message.contains("as many as mixtures were noted"), "{message}");
    run(&mut sequences, vec![Input::Token(3)], Mixtures::Noted).unwrap();
    let message = run(&mut sequences, vec![Input::Gated(3), Input::Latent], Mixtures::Noted).unwrap_err();
    assert!(message.to_string().contains("tokens alone"), "{message}");
    let one = || Mixtures::Stored(vec![vec![(2, 1.0)]]);
    let message = run(&mut sequences, vec![Input::Gated(3), Input::Gated(4)], one()).unwrap_err().to_string();
    assert!(message.contains("stored mixtures"), "{message}");
    run(&mut sequences, vec![Input::Gated(3)], one()).unwrap();
    assert_eq!(sequences.mixtures().unwrap(), [[(2, 1.0)]]);
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

/// Answers' log-probabilities with a coefficient each.
struct Objective {
    drawing: Drawing,
    trajectories: Vec<Trajectory>,
}

impl Objective {
    fn at(&self, model: &Model, gradients: Option<&mut Gradients>) -> f64 {
        let mut rollouts = replayed(model, &self.drawing, &self.trajectories, Record::Everything);
        self.of(model, &mut rollouts, gradients)
    }

    fn of(&self, model: &Model, rollouts: &mut Rollouts, gradients: Option<&mut Gradients>) -> f64 {
        let mut scores = Scores::reserve(model, 12 * LONGEST).unwrap();
        let values = scored(model, rollouts, &self.trajectories, &mut scores);
        let weights: Vec<f64> = (0..values.len()).map(|n| ((n * 37 + 11) % 19) as f64 / 10.0 - 0.9).collect();
        if let Some(gradients) = gradients {
            let (sequences, masks) = rollouts.parts_mut();
            scores.backward(model, sequences, &weights, gradients).unwrap();
            model.backward(sequences, masks, Truncation::default(), gradients).unwrap();
        }
        values.iter().zip(&weights).map(|(a, b)| a * b).sum()
    }
}

fn flat(gradients: &Gradients) -> Vec<f64> {
    gradients.tensors().iter().flat_map(|tensor| tensor.download::<f64>().unwrap()).collect()
}

/// Ids that no prompt and no answer of the gradient checks holds: their mixtures are constants there.
const APART: std::ops::Range<u32> = 40..61;

/// Moves parameters by `step` along a fixed random direction, all or the gates' alone; returns the direction. Rows of
/// the token embedding that mixtures are made of stay: mixtures are constants, so the gradient does not know them.
fn moved(model: &mut Model, step: f64, gates_alone: bool) -> Vec<f64> {
    let (products, lambda) = model.gate_parameters().unwrap();
    let table =
        model.parameter_list().iter().position(|p| p.name.contains("wte") || p.name.contains("embed"));
    let width = model.config().width;
    let mut direction = Vec::new();
    for (index, parameter) in model.parameters_mut().iter_mut().enumerate() {
        let mut draws = StreamKey::new(9, 0, index as u32, 0, Purpose::Probe).draws(0, 0);
        let values = parameter.download::<f64>().unwrap();
        let stays = |at: usize| match gates_alone {
            true => !products.contains(&index) && !lambda.contains(&index),
            false => Some(index) == table && APART.contains(&((at / width) as u32)),
        };
        let own: Vec<f64> = (0..values.len())
            .map(|at| (at, draws.below(2001) as f64 / 1000.0 - 1.0))
            .map(|(at, d)| if stays(at) { 0.0 } else { d })
            .collect();
        let values: Vec<f64> = values.iter().zip(&own).map(|(value, d)| value + step * d).collect();
        parameter.upload(&values).unwrap();
        direction.extend(own);
    }
    direction
}

#[test]
fn gradients_through_the_gates_are_the_differences() {
    for family in ["gpt2", "llama"] {
        for masking in [Masking::NONE, masked()] {
            let model = model(family, Dtype::F64, &Device::cpu());
            let drawing = drawing(gating(), masking);
            let (_, mut trajectories) = sampled(&model, &drawing, Record::Nothing);
            // Mixtures of ids apart; tokens of the others.
            for trajectory in &mut trajectories {
                trajectory.tokens.iter_mut().for_each(|token| *token %= APART.start);
                for (n, mixture) in trajectory.mixtures.iter_mut().enumerate() {
                    let id = |k: usize| APART.start + ((5 * n + 3 * k) % APART.len()) as u32;
                    *mixture = vec![(id(0), 0.8), (id(1), -0.3), (id(2), 0.5)];
                }
            }
            let objective = Objective { drawing, trajectories };
            let mut gradients = model.gradients().unwrap();
            objective.at(&model, Some(&mut gradients));
            for gates_alone in [true, false] {
                let at = |step: f64| {
                    let mut model = self::model(family, Dtype::F64, &Device::cpu());
                    let direction = moved(&mut model, step, gates_alone);
                    (objective.at(&model, None), direction)
                };
                let central = |h: f64| (at(h).0 - at(-h).0) / (2.0 * h);
                let difference = (4.0 * central(1e-6) - central(2e-6)) / 3.0;
                let direction = at(0.0).1;
                let slope: f64 = flat(&gradients).iter().zip(&direction).map(|(g, d)| g * d).sum();
                let error = (slope - difference).abs() / slope.abs().max(difference.abs());
                assert!(slope.abs() > 1e-3, "{family}: {slope}");
                assert!(error < 1e-6, "{family}, gates alone {gates_alone}: {slope} {difference} {error:e}");
            }
            // Each of the five has a gradient of its own, which a planted fault would spoil.
            let (products, lambda) = model.gate_parameters().unwrap();
            for index in products.start..lambda.end {
                let own = gradients.tensors()[index].download::<f64>().unwrap();
                assert!(own.iter().filter(|g| **g != 0.0).count() > own.len() / 2, "parameter {index}");
            }
        }
    }
}

#[test]
fn the_tape_of_sampling_and_a_replay_give_the_same_gradients() {
    for (family, masking) in [("gpt2", Masking::NONE), ("llama", masked())] {
        let model = model(family, Dtype::F64, &Device::cpu());
        let drawing = with_a_mark(&model, masking);
        let (mut rollouts, trajectories) = sampled(&model, &drawing, Record::Everything);
        let objective = Objective { drawing, trajectories };
        let (mut tape, mut replay) = (model.gradients().unwrap(), model.gradients().unwrap());
        let a = objective.of(&model, &mut rollouts, Some(&mut tape));
        let b = objective.at(&model, Some(&mut replay));
        assert_eq!(a.to_bits(), b.to_bits());
        let (tape, replay) = (flat(&tape), flat(&replay));
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let apart: Vec<f64> = tape.iter().zip(&replay).map(|(a, b)| a - b).collect();
        assert!(norm(&apart) <= 1e-12 * norm(&tape), "{:e}", norm(&apart) / norm(&tape));
        assert!(norm(&tape) > 0.0);
    }
}

#[test]
fn an_update_moves_gates_at_rates_of_their_own_and_the_reference_reads_plain_tokens() {
    let gradient = |passes: usize, bytes: usize, kl: bool| {
        let mut model = model("llama", Dtype::F64, &Device::cpu());
        let before: Vec<Vec<f64>> = model.parameters().iter().map(|p| p.download().unwrap()).collect();
        let (products, lambda) = model.gate_parameters().unwrap();
        let mut optimizer = Optimizer::new(
            &model,
            optimizer::Settings { weight_decay: 0.0, clip: None, ..Default::default() },
        )
        .unwrap();
        optimizer.set_rates(&[(products.clone(), 100.0), (lambda.clone(), 1000.0)]).unwrap();
        let mut objective = Preset::TrlBnpo.objective();
        let reference = kl.then(|| plain_model("llama", Dtype::F64, &Device::cpu()));
        objective.loss.kl =
            kl.then_some(Kl { estimator: Estimator::K3, beta: 0.005, clamp: None, cap: None });
        let settings = Settings {
            group: 4,
            prompts: 3,
            prompt_tokens: 7,
            passes,
            truncation: Truncation::default(),
            tape_bytes: bytes,
            audit_all: true,
            reference_masked: false,
            refills: 0,
            replay: Replay::Same,
            soft: None,
        };
        let drawn = (form(), drawing(gating(), Masking::NONE));
        let mut policy = Policy::new(&model, drawn, objective, settings, optimizer, reference).unwrap();
        let mut left = prompts().into_iter().enumerate();
        let draw = |n: usize| {
            let question = |(number, tokens)| Question { tokens, number: number as u32 };
            left.by_ref().take(n).map(question).collect::<Vec<_>>()
        };
        let reward = |_: &Question, t: &Trajectory| Ok(f64::from(t.tokens.iter().sum::<u32>() % 3) / 2.0);
        let report = policy.update(&mut model, 3, 1e-6, draw, reward).unwrap();
        assert_eq!((report.replay_gap, report.audited), (0.0, 12));
        // Adam's first step is the learning rate, whatever the gradient.
        if passes == 1 {
            for (index, before) in before.iter().enumerate() {
                let rate = match index {
                    _ if products.contains(&index) => 1e-4,
                    _ if lambda.contains(&index) => 1e-3,
                    _ => 1e-6,
                };
                let after = model.parameters()[index].download::<f64>().unwrap();
                let step = after.iter().zip(before).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!((step / rate - 1.0).abs() < 1e-2, "parameter {index}: {step:e} at rate {rate:e}");
            }
        }
        (report.source.unwrap(), report.passes[0].loss, flat(policy.gradients()))
    };
    let (source, loss, tape) = gradient(1, usize::MAX, false);
    assert_eq!(source, Source::Tape);
    assert!(loss.is_finite() && tape.iter().any(|g| *g != 0.0));
    // Before the first step the policy differs from a reference that reads plain tokens, so the penalty is there.
    let (_, held, _) = gradient(1, usize::MAX, true);
    assert!(held > loss + 1e-6, "{held} {loss}");
    let (_, again, _) = gradient(2, usize::MAX, true);
    assert_eq!(again.to_bits(), held.to_bits());
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
fn near(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{what} {at}: {a} {b}");
    }
}

#[test]
fn gates_and_mixtures_are_those_of_the_formulas_in_pytorch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/hrpo.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let device = Device::cpu();
    let upload = |name: &str, rows: usize| {
        let values = floats(&golden[name]);
        Tensor::from_host(&device, [rows, values.len() / rows], &values).unwrap()
    };
    // Mixtures, through the model's own door.
    let model = model("llama", Dtype::F64, &device);
    let mut sequences = room(&model, 4, Record::Nothing);
    let law = Law::Categorical {
        temperature: golden["temperature"].as_f64().unwrap(),
        top_k: Some(golden["top_k"].as_u64().unwrap() as usize),
        top_p: golden["top_p"].as_f64(),
        min_p: None,
    };
    model.note_mixtures(&mut sequences, upload("logits", 4).view(), &law).unwrap();
    let mixtures = sequences.mixtures().unwrap();
    let table = upload("table", 61);
    let width = table.shape().as_matrix().1;
    let embeddings = table.download::<f64>().unwrap();
    let mut soft = Vec::new();
    for (n, mixture) in mixtures.iter().enumerate() {
        let ids: Vec<f64> = mixture.iter().map(|(id, _)| f64::from(*id)).collect();
        assert_eq!(ids, floats(&golden["ids"][n]));
        near("p", &mixture.iter().map(|(_, p)| *p).collect::<Vec<_>>(), &floats(&golden["p"][n]));
        soft.extend(
            (0..width)
                .map(|c| mixture.iter().map(|(id, p)| p * embeddings[*id as usize * width + c]).sum::<f64>()),
        );
    }
    near("h", &soft, &floats(&golden["soft"]));

    // The gates.
    let tokens: Vec<usize> = floats(&golden["tokens"]).into_iter().map(|id| id as usize).collect();
    let e: Vec<f64> =
        tokens.iter().flat_map(|id| embeddings[id * width..(id + 1) * width].to_vec()).collect();
    let of = |values: &[f64]| Tensor::from_host(&device, [4, width], values).unwrap();
    let vector = |name: &str| Tensor::from_host(&device, [width], &floats(&golden[name])).unwrap();
    let zeros = || Tensor::zeros(&device, [4, width], Dtype::F64).unwrap();
    let values = |view: View| view.download::<f64>().unwrap();
    let (e, h, dx, lambda) = (of(&e), of(&soft), upload("dx", 4), vector("Lambda"));
    let shares = floats(&golden["shares"]);
    let own: Vec<f64> = shares.iter().map(|&share| latch::model::gates::lambda_of(share)).collect();
    near("Lambda of a share", &own, &values(lambda.view()));
    let projection = Projection::whole(linear::Layout::OutIn, width, width);
    let (w, b) = (["W_r", "W_i"].map(|name| upload(name, width)), ["b_r", "b_i"].map(vector));
    let [mut p, mut q, mut x, mut de, mut dp, mut dq, mut terms] = [(); 7].map(|()| zeros());
    linear::forward(e.view(), &projection, &w[0], Some(&b[0]), p.view_mut()).unwrap();
    linear::forward(e.view(), &projection, &w[1], Some(&b[1]), q.view_mut()).unwrap();
    let inputs = gated_mixture::Inputs {
        token: e.view(),
        soft: h.view(),
        reset: p.view(),
        input: q.view(),
        lambda: &lambda,
    };
    gated_mixture::forward(&inputs, x.view_mut()).unwrap();
    near("x", &values(x.view()), &floats(&golden["x"]));
    let mut dlambda = Tensor::zeros(&device, [width], Dtype::F64).unwrap();
    let out = gated_mixture::Gradients {
        dtoken: de.view_mut(),
        dreset: dp.view_mut(),
        dinput: dq.view_mut(),
        terms: terms.view_mut(),
        dlambda: &mut dlambda,
    };
    gated_mixture::backward(dx.view(), &inputs, out).unwrap();
    near("d Lambda", &values(dlambda.view()), &floats(&golden["d_Lambda"]));
    for (n, (gate, dy)) in [("r", &dp), ("i", &dq)].into_iter().enumerate() {
        let mut dw = Tensor::zeros(&device, [width, width], Dtype::F64).unwrap();
        let mut dbias = Tensor::zeros(&device, [width], Dtype::F64).unwrap();
        let dx = Some((de.view_mut(), Accumulate::Add));
        let out = linear::Gradients { dx, dw: Some(&mut dw), dbias: Some(&mut dbias) };
        linear::backward(dy.view(), e.view(), &projection, &w[n], out).unwrap();
        near("d W", &values(dw.view()), &floats(&golden[format!("d_W_{gate}")]));
        near("d b", &values(dbias.view()), &floats(&golden[format!("d_b_{gate}")]));
    }
    let (de, mut d_table) = (values(de.view()), vec![0.0; 61 * width]);
    for (n, id) in tokens.iter().enumerate() {
        (0..width).for_each(|c| d_table[id * width + c] += de[n * width + c]);
    }
    near("d e", &d_table, &floats(&golden["d_table"]));
}

#[test]
fn gates_are_kept_beside_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let companions = Companions::of_contents(Vec::new());
    let values = |model: &Model| -> Vec<Vec<f32>> {
        model.parameters().iter().map(|p| p.download::<f32>().unwrap()).collect()
    };
    let load = || -> Result<Model> { Model::load(folder.path(), &Device::cpu(), Precision::of(Dtype::F32)) };
    let model = model("llama", Dtype::F32, &Device::cpu());
    model.save(folder.path(), &companions).unwrap();
    let again = load().unwrap();
    assert!(again.has_gates());
    assert_eq!(values(&again), values(&model));
    assert_eq!(values(&model.duplicate().unwrap()), values(&model));
    let grown = model.with_vocabulary(64, 3).unwrap();
    let (products, lambda) = model.gate_parameters().unwrap();
    assert_eq!(values(&grown)[products.start..lambda.end], values(&model)[products.start..lambda.end]);
    // The family's file holds the family's parameters alone.
    let family = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    assert!(!String::from_utf8_lossy(&family).contains("thinking_residual"));

    let weights = folder.path().join("latent_gates.safetensors");
    let kept = std::fs::read(&weights).unwrap();
    std::fs::remove_file(&weights).unwrap();
    let message = load().unwrap_err().to_string();
    assert!(message.contains("hrpo.thinking") && message.contains("latent_gates.safetensors"), "{message}");
    std::fs::write(&weights, kept).unwrap();
    let config = folder.path().join("latent_gates.json");
    std::fs::write(&config, r#"{"type": "hrpo", "rate": 8, "width": 25}"#).unwrap();
    let message = load().unwrap_err().to_string();
    assert!(message.contains("width 25") && message.contains("24"), "{message}");
    std::fs::remove_file(&config).unwrap();
    assert!(load().unwrap_err().to_string().contains("latent_gates.json"));

    // A model without gates leaves none behind.
    plain_model("llama", Dtype::F32, &Device::cpu()).save(folder.path(), &companions).unwrap();
    assert!(!weights.exists() && !config.exists());
    assert!(!load().unwrap().has_gates());
}

#[test]
fn the_simulated_gpu_runs_gated_rollouts_and_their_gradients() {
    let device = Device::open("sim").unwrap();
    let (gpu, cpu) = (model("llama", Dtype::F32, &device), model("llama", Dtype::F32, &Device::cpu()));
    let drawing =
        Drawing { gate: Some(Gating { thinking: 3, ..gating() }), ..drawing(gating(), Masking::NONE) };
    let form = Form { max_new_tokens: 5, ..form() };
    let limits = Limits { prompts: 1, members: 2, prompt_tokens: 5 };
    let prompts = &prompts()[..1];
    let run = |model: &Model, given: Option<&[Trajectory]>| {
        let mut rollouts =
            Rollouts::reserve(model, form.clone(), drawing.clone(), limits, Record::Everything).unwrap();
        let trajectories = match given {
            None => rollouts.sample(model, prompts, &members(1, 2), go).unwrap(),
            Some(given) => {
                rollouts.replay(model, prompts, &given.iter().collect::<Vec<_>>()).unwrap();
                given.to_vec()
            }
        };
        let mut scores = Scores::reserve(model, 12).unwrap();
        let values = scored(model, &rollouts, &trajectories, &mut scores);
        let mut gradients = model.gradients().unwrap();
        let (sequences, masks) = rollouts.parts_mut();
        let weights: Vec<f64> = (0..values.len()).map(|n| 0.3 * n as f64 - 0.7).collect();
        scores.backward(model, sequences, &weights, &mut gradients).unwrap();
        model.backward(sequences, masks, Truncation::default(), &mut gradients).unwrap();
        let gradients: Vec<Vec<f64>> = (gradients.tensors().iter())
            .map(|t| t.download::<f32>().unwrap().into_iter().map(f64::from).collect())
            .collect();
        (trajectories, values, gradients)
    };
    let (trajectories, values, gradients) = run(&gpu, None);
    assert!(trajectories.iter().any(|t| t.mixtures.len() == 3), "{trajectories:?}");
    let mut audit = Audit::reserve(&gpu, form.clone(), drawing.clone(), 5).unwrap();
    for trajectory in &trajectories {
        assert_eq!(audit.gap(&gpu, &prompts[0], trajectory).unwrap(), 0.0);
    }
    let (_, again, _) = run(&gpu, Some(&trajectories));
    assert_eq!(bits(&again), bits(&values));
    let (_, expected, expected_gradients) = run(&cpu, Some(&trajectories));
    for (a, b) in values.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
    }
    let (products, lambda) = gpu.gate_parameters().unwrap();
    for index in products.start..lambda.end {
        let (found, expected) = (&gradients[index], &expected_gradients[index]);
        let name = &gpu.parameter_list()[index].name;
        // Whole models are compared as tests/gpu_models.rs does: by norms.
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let apart = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        assert!(apart <= 1e-4 * norm(&mut expected.iter().copied()), "{name}: {apart:e}");
    }
}
