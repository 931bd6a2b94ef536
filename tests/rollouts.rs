//! Groups of rollouts: the same bits alone and together, sampled and replayed, shared and not; and an audit that
//! sees every difference.

use crate::models;
use latch::base::Dtype;
use latch::device::Device;
use latch::model::{Model, Record, Scores};
use latch::ops::mask::SiteKind;
use latch::ops::sampler::Law;
use latch::rollout::audit::Audit;
use latch::rollout::group::{Drawing, Form, Limits, Member, Rollouts, Thoughts, Trajectory, room};
use latch::rollout::masks::{Masking, Mode, Rollout, Scope};
use std::ops::ControlFlow;

pub fn model(dtype: Dtype) -> Model {
    models::random(models::gpt2(), 5, dtype, &Device::cpu())
}

pub fn form() -> Form {
    Form { start: vec![58], latents: 3, end: vec![59], stop: vec![7, 8, 9], max_new_tokens: 9 }
}

pub fn drawing(scope: Scope, mode: Mode, share: bool) -> Drawing {
    let masking = Masking { p: 0.2, sites: SiteKind::ALL.to_vec(), scope, mode };
    let law = Law::Categorical { temperature: 0.8, top_k: None, top_p: None, min_p: None };
    Drawing {
        gate: None,
        masking,
        latent_noise: 0.0,
        soft: None,
        thoughts: Thoughts::Own,
        law,
        seed: 11,
        share,
    }
}

pub fn prompts() -> Vec<Vec<u32>> {
    vec![vec![4, 8, 15, 16, 23], (0..70).map(|n| n % 50).collect(), vec![42]]
}

pub fn members(prompts: usize, group: u32) -> Vec<Member> {
    (0..prompts)
        .flat_map(|prompt| {
            (0..group).map(move |rollout| Member {
                prompt,
                coordinates: Rollout { update: 3, prompt: prompt as u32, rollout, attempt: 0 },
            })
        })
        .collect()
}

pub const LIMITS: Limits = Limits { prompts: 3, members: 12, prompt_tokens: 70 };

const CASES: [(Scope, Mode); 7] = [
    (Scope::Latent, Mode::Shared),
    (Scope::PromptLatent, Mode::Shared),
    (Scope::All, Mode::Shared),
    (Scope::All, Mode::PerStep),
    (Scope::All, Mode::PerPosition),
    (Scope::Latent, Mode::PerPosition),
    (Scope::Latent, Mode::None),
];

fn rollouts(model: &Model, drawing: Drawing, record: Record) -> Rollouts {
    Rollouts::reserve(model, form(), drawing, LIMITS, record).unwrap()
}

fn sample(rollouts: &mut Rollouts, model: &Model, group: u32) -> Vec<Trajectory> {
    rollouts.sample(model, &prompts(), &members(3, group), |_, _| ControlFlow::Continue(())).unwrap()
}

/// Log-probabilities of all tokens at the positions that predicted them.
pub fn scored(rollouts: &Rollouts, model: &Model, trajectories: &[Trajectory]) -> Vec<Vec<f64>> {
    let positions: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
    let targets: Vec<u32> = trajectories.iter().flat_map(|t| t.tokens.clone()).collect();
    let mut scores = Scores::reserve(model, targets.len()).unwrap();
    let inverse_temperature = rollouts.drawing().law.inverse_temperature();
    scores.forward(model, rollouts.sequences(), &positions, &targets, inverse_temperature).unwrap();
    let mut values = scores.log_probabilities().unwrap().into_iter();
    trajectories.iter().map(|t| values.by_ref().take(t.tokens.len()).collect()).collect()
}

#[test]
fn sampled_recorded_and_replayed_log_probabilities_are_equal_to_the_bit() {
    let model = model(Dtype::F32);
    for (scope, mode) in CASES {
        for share in [false, true] {
            let mut rollouts = rollouts(&model, drawing(scope, mode, share), Record::Everything);
            let sampled = sample(&mut rollouts, &model, 4);
            let old: Vec<Vec<f64>> = sampled.iter().map(|t| t.log_probabilities.clone()).collect();
            assert_eq!(scored(&rollouts, &model, &sampled), old, "tape, {scope:?} {mode:?} {share}");
            // Half of them, in another order of prompts' members.
            let some: Vec<&Trajectory> =
                sampled.iter().filter(|t| t.member.coordinates.rollout % 2 == 1).collect();
            rollouts.replay(&model, &prompts(), &some).unwrap();
            let again: Vec<Trajectory> = some.into_iter().cloned().collect();
            let old: Vec<Vec<f64>> = again.iter().map(|t| t.log_probabilities.clone()).collect();
            assert_eq!(scored(&rollouts, &model, &again), old, "replay, {scope:?} {mode:?} {share}");
        }
    }
}

#[test]
fn a_rollout_is_the_same_alone_in_a_group_shared_recorded_or_not() {
    let model = model(Dtype::F32);
    for (scope, mode) in CASES {
        let of =
            |share, record| sample(&mut rollouts(&model, drawing(scope, mode, share), record), &model, 4);
        let together = of(true, Record::Nothing);
        assert_eq!(of(false, Record::Nothing), together, "{scope:?} {mode:?}");
        assert_eq!(of(true, Record::Everything), together, "{scope:?} {mode:?}");
        let mut alone = rollouts(&model, drawing(scope, mode, true), Record::Nothing);
        for trajectory in &together {
            let prompt = vec![prompts()[trajectory.member.prompt].clone()];
            let member = Member { prompt: 0, ..trajectory.member };
            let found = alone.sample(&model, &prompt, &[member], |_, _| ControlFlow::Continue(())).unwrap();
            assert_eq!(found[0].tokens, trajectory.tokens, "{scope:?} {mode:?}");
            assert_eq!(found[0].log_probabilities, trajectory.log_probabilities, "{scope:?} {mode:?}");
        }
        let different = together[..4].iter().any(|t| t.tokens != together[0].tokens);
        assert!(different, "rollouts of one prompt differ, {scope:?} {mode:?}");
    }
}

#[test]
fn greedy_rollouts_differ_by_their_masks_alone() {
    let model = model(Dtype::F32);
    let greedy = |mode| Drawing { law: Law::Greedy, ..drawing(Scope::All, mode, true) };
    let masked = sample(&mut rollouts(&model, greedy(Mode::Shared), Record::Nothing), &model, 4);
    assert!(masked[..4].iter().any(|t| t.tokens != masked[0].tokens));
    let clean = sample(&mut rollouts(&model, greedy(Mode::None), Record::Nothing), &model, 4);
    assert!(clean[..4].iter().all(|t| t.tokens == clean[0].tokens));
}

#[test]
fn the_audit_finds_no_gap_and_sees_a_bit_a_token_and_a_position() {
    let model = model(Dtype::F32);
    for (scope, mode) in CASES {
        let drawing = drawing(scope, mode, true);
        let mut group = rollouts(&model, drawing.clone(), Record::Nothing);
        let sampled = sample(&mut group, &model, 4);
        let mut audit = Audit::reserve(&model, form(), drawing.clone(), 70).unwrap();
        let mut shorter = Audit::reserve(&model, Form { latents: 2, ..form() }, drawing, 70).unwrap();
        for trajectory in &sampled {
            let prompt = &prompts()[trajectory.member.prompt];
            assert_eq!(audit.gap(&model, prompt, trajectory).unwrap(), 0.0, "{scope:?} {mode:?}");
            let mut wrong = trajectory.clone();
            wrong.tokens[0] = (wrong.tokens[0] + 1) % 58;
            assert!(audit.gap(&model, prompt, &wrong).unwrap() > 0.0, "token, {scope:?} {mode:?}");
            assert!(shorter.gap(&model, prompt, trajectory).unwrap() > 0.0, "position, {scope:?} {mode:?}");
            if mode == Mode::Shared {
                let flip = |masks: &mut latch::ops::mask::MaskSet| masks.flip(1, SiteKind::MlpOut, 0, 5);
                assert!(audit.gap_with(&model, prompt, trajectory, flip).unwrap() > 0.0, "bit, {scope:?}");
            }
        }
    }
}

#[test]
fn room_is_reserved_once_and_reused() {
    let model = model(Dtype::F32);
    let mut group = rollouts(&model, drawing(Scope::Latent, Mode::Shared, true), Record::Everything);
    let first = sample(&mut group, &model, 4);
    let before = model.device().traffic().count();
    for round in 0..3 {
        let again = sample(&mut group, &model, 4);
        assert_eq!(again, first, "round {round}");
        group.replay(&model, &prompts(), &again.iter().collect::<Vec<_>>()).unwrap();
    }
    assert_eq!(model.device().traffic().count().allocations, before.allocations);
}

#[test]
fn batches_beyond_the_room_are_refused_with_numbers() {
    let model = model(Dtype::F32);
    let mut group = rollouts(&model, drawing(Scope::Latent, Mode::Shared, true), Record::Nothing);
    let go = |_: usize, _: u32| ControlFlow::Continue(());
    let message = group.sample(&model, &prompts(), &members(3, 5), go).unwrap_err().to_string();
    assert!(message.contains("15 rollouts") && message.contains("at most 3, 12 and 70"), "{message}");
    let empty = vec![vec![], vec![1]];
    let message = group.sample(&model, &empty, &members(2, 1), go).unwrap_err().to_string();
    assert!(message.contains("prompt 0 has no tokens"), "{message}");
    let message = group.sample(&model, &[vec![1]], &members(2, 1), go).unwrap_err().to_string();
    assert!(message.contains("a rollout of prompt 1 where 1 prompts are given"), "{message}");
}

#[test]
fn gaussian_noise_on_latents_is_drawn_from_keys_and_shares_the_prompt() {
    let model = model(Dtype::F32);
    let noisy = |share, latent_noise| Drawing {
        latent_noise,
        law: Law::Greedy,
        ..drawing(Scope::Latent, Mode::None, share)
    };
    let mut group = rollouts(&model, noisy(true, 2.0), Record::Everything);
    let together = sample(&mut group, &model, 4);
    let differs = |t: &Trajectory| t.log_probabilities != together[0].log_probabilities;
    assert!(together[1..4].iter().all(differs), "noise makes rollouts differ");
    let clean = sample(&mut rollouts(&model, noisy(true, 0.0), Record::Nothing), &model, 4);
    assert_eq!(clean[1].log_probabilities, clean[0].log_probabilities, "without it they are equal");
    assert_eq!(sample(&mut rollouts(&model, noisy(false, 2.0), Record::Nothing), &model, 4), together);
    let mut audit = Audit::reserve(&model, form(), noisy(true, 2.0), 70).unwrap();
    let mut other = Audit::reserve(&model, form(), noisy(true, 2.1), 70).unwrap();
    for trajectory in &together {
        let prompt = &prompts()[trajectory.member.prompt];
        assert_eq!(audit.gap(&model, prompt, trajectory).unwrap(), 0.0);
        assert!(other.gap(&model, prompt, trajectory).unwrap() > 0.0);
    }
}

#[test]
fn room_grows_with_the_batch_and_no_faster() {
    let model = model(Dtype::F32);
    for thoughts in [Thoughts::Own, Thoughts::Shuffled] {
        let drawing = Drawing { thoughts, ..drawing(Scope::Latent, Mode::None, true) };
        let of = |count: usize| {
            let limits = Limits { prompts: count, members: count, prompt_tokens: 40 };
            room(&model, &form(), &drawing, limits, Record::Nothing)
        };
        let (one, many) = (of(1), of(50));
        let sizes = |room: &latch::model::Room| [room.rows, room.slots, room.tape_positions];
        assert_eq!(sizes(&many), sizes(&one).map(|size| 50 * size), "{thoughts:?}");
    }
}
