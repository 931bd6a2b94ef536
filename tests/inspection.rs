//! Looking into latent steps: what is followed is what a rollout does, and what is read is what stands there.

use crate::models;
use crate::rollouts::{LIMITS, drawing, form, members, model, prompts};
use latch::base::Dtype;
use latch::device::Device;
use latch::model::{Model, Record};
use latch::ops::sampler::Law;
use latch::rollout::audit::Audit;
use latch::rollout::group::{Drawing, Rollouts};
use latch::rollout::masks::{Masking, Mode, Scope};
use latch::run::inspection::{Fed, Followed, Masked, follow, mean_states, read, spread};
use latch::run::probe::{Request, probe};
use std::ops::ControlFlow;

fn alone(model: &Model, prompt: &[u32], fed: Fed) -> Followed {
    follow(model, prompt, &form(), fed, &Masked::none()).unwrap().remove(0)
}

#[test]
fn what_is_followed_is_what_a_greedy_rollout_does() {
    let model = model(Dtype::F32);
    for (scope, mode) in
        [(Scope::Latent, Mode::Shared), (Scope::All, Mode::PerPosition), (Scope::All, Mode::PerStep)]
    {
        let drawing = Drawing { law: Law::Greedy, ..drawing(scope, mode, true) };
        let mut rollouts =
            Rollouts::reserve(&model, form(), drawing.clone(), LIMITS, Record::Nothing).unwrap();
        let members = members(3, 4);
        let sampled =
            rollouts.sample(&model, &prompts(), &members, |_, _| ControlFlow::Continue(())).unwrap();
        let mut audit = Audit::reserve(&model, form(), drawing.clone(), 70).unwrap();
        for (number, prompt) in prompts().iter().enumerate() {
            let own = &sampled[number * 4..][..4];
            let masked = Masked {
                masking: drawing.masking.clone(),
                rollouts: own.iter().map(|trajectory| trajectory.member.coordinates).collect(),
                seed: drawing.seed,
            };
            let followed = follow(&model, prompt, &form(), Fed::Own, &masked).unwrap();
            for (followed, trajectory) in followed.iter().zip(own) {
                assert_eq!(followed.answer, trajectory.tokens, "{scope:?} {mode:?}");
                assert_eq!(audit.gap(&model, prompt, trajectory).unwrap(), 0.0);
                let thoughts = audit.thoughts().unwrap().unwrap();
                let (readings, _) = read(&model, followed, 1).unwrap();
                let norms: f64 = readings.iter().map(|reading| reading.norm).sum();
                let cosines: f64 = readings.iter().filter_map(|reading| reading.cosine).sum();
                assert!((norms / 3.0 - thoughts.norm).abs() < 1e-12, "{norms} {}", thoughts.norm);
                assert!((cosines / 2.0 - thoughts.similarity.unwrap()).abs() < 1e-12, "{cosines}");
            }
            let different = followed.iter().any(|other| other.states != followed[0].states);
            assert!(different && spread(&followed).iter().all(|&spread| spread > 0.0), "{scope:?} {mode:?}");
        }
    }
}

#[test]
fn logits_of_latent_steps_are_those_of_the_probe() {
    for config in [models::gpt2(), models::llama()] {
        let model = models::random(config, 3, Dtype::F32, &Device::cpu());
        let prompt = [4, 8, 15, 16, 23];
        let followed = alone(&model, &prompt, Fed::Own);
        let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
        ids.extend([58, -1, -1, -1]);
        let length = ids.len();
        let request = Request { rows: 1, length, ids, labels: vec![-100; length], ..Request::default() };
        let logits = probe(&model, &request).unwrap().logits;
        let vocab = model.config().vocab;
        // A state is that of the position before the one that reads it.
        for (step, found) in followed.logits.iter().enumerate() {
            assert_eq!(*found, logits[(5 + step) * vocab..][..vocab], "step {step}");
        }
    }
}

#[test]
fn given_states_take_the_place_of_a_rows_own() {
    let model = model(Dtype::F32);
    let prompt = [4, 8, 15, 16, 23];
    let own = alone(&model, &prompt, Fed::Own);
    assert_eq!(alone(&model, &prompt, Fed::Given(&own.states)), own);
    let unmoved = alone(&model, &prompt, Fed::Given(&mean_states(&own.states)));
    assert_eq!(unmoved.states[0], own.states[0], "read before anything is fed");
    assert_ne!(unmoved.states[1], own.states[1]);
    let short = follow(&model, &prompt, &form(), Fed::Given(&own.states[1..]), &Masked::none());
    let message = short.unwrap_err().to_string();
    assert!(message.contains("found 2") && message.contains("expected 3"), "{message}");
    assert!(follow(&model, &[99], &form(), Fed::Own, &Masked::none()).is_err(), "an unknown id");
}

#[test]
fn readings_are_those_of_plain_formulas() {
    let model = models::random(models::llama(), 9, Dtype::F64, &Device::cpu());
    let followed = alone(&model, &[5, 6, 7], Fed::Own);
    let (readings, embedding_norm) = read(&model, &followed, 4).unwrap();
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let table = model.table().view().numbers().unwrap();
    let rows: Vec<&[f64]> = table.chunks_exact(24).collect();
    let mean = rows.iter().map(|row| norm(row)).sum::<f64>() / rows.len() as f64;
    assert!((embedding_norm - mean).abs() < 1e-12);
    let near = |found: &[(u32, f64)], all: Vec<f64>| {
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|&a, &b| all[b].total_cmp(&all[a]));
        let expected: Vec<u32> = order[..4].iter().map(|&id| id as u32).collect();
        assert_eq!(found.iter().map(|&(id, _)| id).collect::<Vec<_>>(), expected);
        assert!(found.iter().all(|&(id, value)| (value - all[id as usize]).abs() < 1e-12));
    };
    for (n, reading) in readings.iter().enumerate() {
        let (state, logits) = (&followed.states[n], &followed.logits[n]);
        assert!((reading.norm - norm(state)).abs() < 1e-12);
        near(&reading.nearest, rows.iter().map(|row| dot(row, state) / norm(row) / norm(state)).collect());
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let p: Vec<f64> = logits.iter().map(|logit| logit.exp() / sum).collect();
        let entropy: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
        assert!((reading.entropy - entropy).abs() < 1e-12, "{} {entropy}", reading.entropy);
        near(&reading.predicted, p);
    }
    assert_eq!(readings[0].cosine, None);
}

#[test]
fn rollouts_lie_as_far_apart_as_their_states() {
    let of = |states: &[[f64; 2]]| Followed {
        states: states.iter().map(|state| state.to_vec()).collect(),
        logits: vec![],
        answer: vec![],
    };
    // Means (3, 4) and (0, 2): distances 1 and 1, then 0 and 0.
    let spread = spread(&[of(&[[2.0, 4.0], [0.0, 2.0]]), of(&[[4.0, 4.0], [0.0, 2.0]])]);
    assert_eq!(spread, [0.2, 0.0]);
    let model = model(Dtype::F32);
    let masked = Masked { masking: Masking::NONE, rollouts: vec![Default::default(); 2], seed: 0 };
    let same = follow(&model, &[1, 2], &form(), Fed::Own, &masked).unwrap();
    assert_eq!(latch::run::inspection::spread(&same), [0.0; 3]);
}

/// All rows that go on take one step together, whatever number there is.
#[test]
fn rows_of_an_answer_are_fed_together() {
    let model = model(Dtype::F32);
    let products = |rows: usize| {
        let masked = Masked { masking: Masking::NONE, rollouts: vec![Default::default(); rows], seed: 0 };
        let before = model.device().traffic().count().products;
        let followed = follow(&model, &[4, 8, 15], &form(), Fed::Own, &masked).unwrap();
        assert!(followed.iter().all(|other| *other == followed[0]));
        (followed[0].clone(), model.device().traffic().count().products - before)
    };
    let (one, three) = (products(1), products(3));
    assert_eq!(one.0, three.0);
    assert_eq!(one.1, three.1, "as many products");
}
