//! Soft steps whose action is a noisy embedding (Soft Tokens), and what is counted of soft steps.

use crate::soft::{
    LIMITS, bits, drawing, flat, form, masked, model, moved, objective, prompts, sampled, scored, settings,
    thoughts, updated,
};
use latch::base::Dtype;
use latch::device::Device;
use latch::learn::objective::Preset;
use latch::learn::policy::Settings;
use latch::learn::soft_policy::SoftEstimator;
use latch::model::{
    Action, Churn, Input, Model, NoisyInput, Projector, Record, Room, RowPlan, Scores, Segment, Sequences,
    SoftLaw, SoftRoom, SoftScores,
};
use latch::ops::Tensor;
use latch::ops::gaussian_density::Normal;
use latch::ops::policy_loss::Statistic;
use latch::ops::sampler::Law;
use latch::ops::soft_action::{Perturbation, Proxy, Score};
use latch::rollout::audit::Audit;
use latch::rollout::group::{Drawing, Rollouts, SoftReplay, SoftThoughts, Trajectory};
use latch::rollout::masks::Masking;
use std::ops::ControlFlow;

/// Thoughts whose noisy embeddings are the actions.
fn embedded(masking: Masking) -> Drawing {
    let thoughts = SoftThoughts { replay: SoftReplay::Inputs, ..thoughts(Perturbation::None, false) };
    Drawing { masking, latent_noise: 0.05, ..drawing(thoughts) }
}

fn audited(model: &Model, drawing: &Drawing, trajectory: &Trajectory) -> f64 {
    let mut audit = Audit::reserve(model, form(6), drawing.clone(), 7).unwrap();
    audit.gap(model, &prompts()[trajectory.member.prompt], trajectory).unwrap()
}

#[test]
fn noisy_embeddings_are_audited_and_replayed_to_the_bit() {
    for family in ["gpt2", "llama"] {
        let model = model(family, Dtype::F32, &Device::cpu());
        for masking in [Masking::NONE, masked(0.2)] {
            let drawing = embedded(masking);
            let (_, trajectories) = sampled(&model, &form(6), &drawing, Record::Nothing);
            let said: Vec<f64> =
                trajectories.iter().flat_map(|t| t.log_probabilities.iter().copied()).collect();
            for trajectory in &trajectories {
                assert_eq!(audited(&model, &drawing, trajectory), 0.0, "{family}");
                let width = model.config().width;
                assert!(trajectory.actions.iter().all(|action| action.input.len() == width));
            }
            let mut rollouts =
                Rollouts::reserve(&model, form(6), drawing, LIMITS, Record::LayerInputs).unwrap();
            rollouts.replay(&model, &prompts(), &trajectories.iter().collect::<Vec<_>>()).unwrap();
            let mut scores = Scores::reserve(&model, 60).unwrap();
            let again = scored(&model, &rollouts, &trajectories, &mut scores);
            assert_eq!(bits(&again), bits(&said), "{family}");
            // Each step is predicted from where it was predicted when it was drawn.
            let steps: Vec<usize> = rollouts.thinking().iter().map(Vec::len).collect();
            assert_eq!(steps, trajectories.iter().map(|t| t.actions.len()).collect::<Vec<_>>());
        }
    }
}

#[test]
fn noisy_embeddings_are_mixtures_with_their_own_noise() {
    let model = model("llama", Dtype::F64, &Device::cpu());
    let drawing = embedded(Masking::NONE);
    let (_, noisy) = sampled(&model, &form(1), &drawing, Record::Nothing);
    let quiet = Drawing { latent_noise: 0.0, ..drawing };
    let (_, clean) = sampled(&model, &form(1), &quiet, Record::Nothing);
    let list = model.parameter_list();
    let table = list.iter().position(|parameter| parameter.name.contains("embed_tokens")).unwrap();
    let table = model.parameters()[table].download::<f64>().unwrap();
    let width = model.config().width;
    let (mut squares, mut count) = (0.0, 0.0);
    for (noisy, clean) in noisy.iter().zip(&clean) {
        let (noisy, clean) = (&noisy.actions[0], &clean.actions[0]);
        assert_eq!((&noisy.ids, &noisy.weights), (&clean.ids, &clean.weights));
        for column in 0..width {
            let pairs = clean.ids.iter().zip(&clean.weights);
            let mean: f64 = pairs.map(|(&id, weight)| weight * table[id as usize * width + column]).sum();
            assert!((clean.input[column] - mean).abs() < 1e-12 * mean.abs().max(1.0));
            squares += (noisy.input[column] - mean).powi(2);
            count += 1.0;
        }
    }
    // 288 normals of deviation 0.05: their root mean square is within 20 % of it.
    let deviation = f64::sqrt(squares / count);
    assert!((deviation / 0.05 - 1.0).abs() < 0.2, "{deviation} of {count} numbers");
}

#[test]
fn a_noisy_rollout_is_the_same_in_any_batch() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    let drawing = embedded(Masking::NONE);
    let (_, all) = sampled(&model, &form(6), &drawing, Record::Everything);
    let alone = Drawing { share: false, ..drawing };
    let mut rollouts = Rollouts::reserve(&model, form(6), alone, LIMITS, Record::Nothing).unwrap();
    for trajectory in &all {
        let prompt = prompts()[trajectory.member.prompt].clone();
        let member = latch::rollout::group::Member { prompt: 0, ..trajectory.member };
        let go = |_, _| ControlFlow::Continue(());
        let mut again = rollouts.sample(&model, &[prompt], &[member], go).unwrap().remove(0);
        again.member = trajectory.member;
        assert_eq!(&again, trajectory);
    }
}

#[test]
fn an_audit_sees_another_embedding_and_none() {
    let model = model("gpt2", Dtype::F32, &Device::cpu());
    let drawing = embedded(Masking::NONE);
    let (_, trajectories) = sampled(&model, &form(6), &drawing, Record::Nothing);
    let good = &trajectories[0];
    let mut other = good.clone();
    other.actions[1].input[3] += 1e-3;
    let gap = audited(&model, &drawing, &other);
    assert!((gap - 1e-3).abs() < 1e-5, "{gap}");
    let mut other = good.clone();
    other.actions[0].input.clear();
    assert_eq!(audited(&model, &drawing, &other), f64::INFINITY);
}

#[test]
fn embedded_inputs_want_room_width_and_company() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    let width = model.config().width;
    let soft = SoftRoom { positions: 2, rows: 1, terms: 4, inputs: true, ..SoftRoom::default() };
    let room = Room { rows: 1, slots: 64, longest: 8, tape_positions: 8, soft };
    let refused = |room: Room, inputs: Vec<Input>| -> String {
        let mut sequences = Sequences::reserve(&model, model.device(), room, Record::Everything).unwrap();
        sequences.layout(&[RowPlan::own(8)]).unwrap();
        let mut segment = Segment::of_tokens(0, &[3, 4]);
        model.forward(&mut sequences, &segment, None).unwrap();
        segment = Segment::new();
        inputs.into_iter().for_each(|input| segment.push(0, input));
        model.forward(&mut sequences, &segment, None).unwrap_err().to_string()
    };
    let one = || Input::Embedded(vec![0.1; width]);
    let none = Room { soft: SoftRoom::default(), ..room };
    assert!(refused(none, vec![one()]).contains("SoftRoom::inputs"));
    assert!(
        refused(room, vec![Input::Embedded(vec![0.1; width + 1])]).contains("embedded input at position 0")
    );
    assert!(refused(room, vec![one(), one(), one()]).contains("2 positions as reserved"));
    assert!(refused(room, vec![Input::Soft(vec![(3, 1.0)]), one()]).contains("tokens alone"));
}

#[test]
fn support_churn_is_that_of_the_largest_logits() {
    let before = model("llama", Dtype::F64, &Device::cpu());
    let mut now = model("llama", Dtype::F64, &Device::cpu());
    moved(&mut now, 0.03);
    let top_k = 9;
    let law = SoftLaw {
        law: Law::Categorical { temperature: 0.9, top_k: Some(top_k), top_p: None, min_p: None },
        tau: 0.5,
        perturbation: Perturbation::None,
        proxy: Proxy::Argmax,
        hard: false,
    };
    let thoughts = SoftThoughts { law, proxies_stop: false, ..thoughts(Perturbation::None, false) };
    let drawing = drawing(thoughts);
    let (_, trajectories) = sampled(&before, &form(4), &drawing, Record::Nothing);
    let actions: Vec<&Action> = trajectories.iter().flat_map(|t| &t.actions).collect();
    let churn = |model: &Model| {
        let mut rollouts =
            Rollouts::reserve(model, form(4), drawing.clone(), LIMITS, Record::Everything).unwrap();
        rollouts.replay(model, &prompts(), &trajectories.iter().collect::<Vec<_>>()).unwrap();
        let at: Vec<u32> = rollouts.thinking().iter().flatten().copied().collect();
        let kind = Score::SoftCe { full: false };
        let mut scores = SoftScores::reserve(model, 48, top_k, kind, 1.0 / 0.9).unwrap();
        scores.watch_support(model, &law).unwrap();
        let found = scores.forward_watching(model, rollouts.sequences(), &at, &actions).unwrap();
        let mut expected = Churn::default();
        for (position, action) in at.iter().zip(&actions) {
            let mut logits = Tensor::zeros(model.device(), [1, model.config().vocab], Dtype::F64).unwrap();
            let position = *position as usize;
            let hidden = rollouts.sequences().hidden(position..position + 1).unwrap();
            model.logits(hidden, logits.view_mut()).unwrap();
            let logits = logits.download::<f64>().unwrap();
            let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
            ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            let kept = |id: &u32| ids[..top_k].contains(id);
            expected.kept += action.ids.len();
            expected.left += action.ids.iter().filter(|id| !kept(id)).count();
            expected.entered += ids[..top_k].iter().filter(|id| !action.ids.contains(id)).count();
        }
        assert_eq!(found, expected);
        found
    };
    assert_eq!(churn(&before), Churn { kept: 48 * top_k, left: 0, entered: 0 });
    let moved = churn(&now);
    assert!(moved.left > 10 && moved.left == moved.entered && moved.left < moved.kept / 2, "{moved:?}");
}

/// After a step of the optimiser the second pass sees other ratios, scores and ids.
#[test]
fn scores_ratios_and_kept_ids_move_with_the_model() {
    let thoughts = SoftThoughts { proxies_stop: false, ..thoughts(Perturbation::None, false) };
    let settings = Settings { passes: 2, ..settings(SoftEstimator::GaussEmbed { mean: true }, true) };
    let mut model = model("llama", Dtype::F64, &Device::cpu());
    let (report, _) = updated(&mut model, settings, thoughts, Preset::Rloo, 1e-3);
    let of = |pass: usize| report.passes[pass].soft.as_ref().unwrap();
    let (first, second) = (of(0), of(1));
    assert_eq!((first.mean(Statistic::Ratio), first.churn()), (1.0, (0.0, 0.0)));
    // A mean over the width of -n^2 / 2 with standard normal n.
    assert!((first.mean_score() + 0.5).abs() < 0.1, "{}", first.mean_score());
    assert!(second.mean(Statistic::Ratio) != 1.0 && second.mean_score() != first.mean_score());
    assert!(second.churn().0 > 0.0 && second.churn().1 > 0.0, "{:?}", second.churn());
}

/// The density's gradient reaches the table through the mean: without it the slope along the table is another one.
#[test]
fn the_embedding_table_is_part_of_the_mean() {
    let model = model("llama", Dtype::F64, &Device::cpu());
    let drawing = embedded(Masking::NONE);
    let (mut rollouts, trajectories) = sampled(&model, &form(4), &drawing, Record::Everything);
    let at: Vec<u32> = rollouts.thinking().iter().flatten().copied().collect();
    let actions: Vec<&Action> = trajectories.iter().flat_map(|t| &t.actions).collect();
    let kind = NoisyInput { tau: 0.5, normal: Normal { deviation: 0.05, mean: false } };
    let mut scores = SoftScores::reserve(&model, 48, 9, kind, 1.0 / 0.9).unwrap();
    scores.forward(&model, rollouts.sequences(), &at, &actions).unwrap();
    let mut gradients = model.gradients().unwrap();
    let (sequences, _) = rollouts.parts_mut();
    scores.backward(&model, sequences, &vec![1.0; at.len()], &mut gradients).unwrap();
    let list = model.parameter_list();
    let index = list.iter().position(|parameter| parameter.name.contains("embed_tokens")).unwrap();
    let (table, width) = (model.parameters()[index].download::<f64>().unwrap(), model.config().width);
    // By hand: sum over steps of y (x - y^T E) / sigma^2.
    let mut expected = vec![0.0; table.len()];
    for action in &actions {
        for column in 0..width {
            let pairs = || action.ids.iter().zip(&action.weights);
            let mean: f64 = pairs().map(|(&id, y)| y * table[id as usize * width + column]).sum();
            for (&id, y) in pairs() {
                expected[id as usize * width + column] += y * (action.input[column] - mean) / 0.0025;
            }
        }
    }
    let found = gradients.tensors().unwrap()[index].download::<f64>().unwrap();
    let largest = expected.iter().fold(0.0_f64, |largest, e| largest.max(e.abs()));
    let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(largest > 1.0 && apart < 1e-10 * largest, "{apart:e} of {largest:e}");
}

/// Mixtures do not pass through a projector: beside one, soft steps read and teach what they do without.
#[test]
fn soft_steps_beside_a_projector_leave_it_alone() {
    for case in 0..2 {
        let plain = model("llama", Dtype::F64, &Device::cpu());
        let with =
            model("llama", Dtype::F64, &Device::cpu()).with_random_projector(Projector::of(16), 3).unwrap();
        let (plain_objective, _) = objective(&plain, case, masked(0.2));
        let (objective, mut rollouts) = objective(&with, case, masked(0.2));
        assert_eq!(objective.trajectories, plain_objective.trajectories);
        let (mut expected, mut found) = (plain.gradients().unwrap(), with.gradients().unwrap());
        let value = plain_objective.at(&plain, Some(&mut expected));
        assert_eq!(objective.at(&with, Some(&mut found)).to_bits(), value.to_bits());
        let (expected, found) = (flat(&mut expected), flat(&mut found));
        assert!(found.len() > expected.len() && expected.iter().any(|g| *g != 0.0));
        assert_eq!(bits(&found[..expected.len()]), bits(&expected));
        assert!(found[expected.len()..].iter().all(|g| *g == 0.0));
        let mut from_tape = with.gradients().unwrap();
        objective.of(&with, &mut rollouts, Some(&mut from_tape));
        assert!(flat(&mut from_tape)[expected.len()..].iter().all(|g| *g == 0.0));
    }
}
