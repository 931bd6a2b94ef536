//! Gumbel-Softmax mixtures on the CPU: gradient, definition, the token they are near, rows alone, messages.

use super::{filtered, naive, peaked};
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::sampler::{
    Law, Mixed, Mixture, Noise, Sampled, Support, Workspace, mixture, mixture_backward, sample,
};
use latch::verify::operations;
use std::ops::Range;

const SITE: u32 = 5;

/// Ids, counts and weights of some rows; row `r` has the stream of rollout `r`.
#[derive(Debug, PartialEq, Clone)]
struct Mixtures {
    ids: Vec<u32>,
    counts: Vec<u32>,
    weights: Vec<f32>,
}

fn key(row: usize) -> StreamKey {
    StreamKey::new(23, 0, 1, row as u32, Purpose::Gumbel)
}

fn streams(device: &Device, rows: Range<usize>) -> (Tensor, Tensor) {
    let keys: Vec<u32> = rows.clone().flat_map(|r| key(r).0).collect();
    let steps: Vec<u32> = rows.clone().map(|r| r as u32 % 3).collect();
    (
        Tensor::from_host(device, [rows.len(), 2], &keys).unwrap(),
        Tensor::from_host(device, [rows.len(), 1], &steps).unwrap(),
    )
}

fn mix(
    logits: &[f32],
    vocabulary: usize,
    rows: Range<usize>,
    law: &Law,
    tau: f64,
    capacity: usize,
) -> latch::base::Result<Mixtures> {
    let (device, n) = (Device::cpu(), rows.len());
    let (keys, steps) = streams(&device, rows.clone());
    let data = &logits[rows.start * vocabulary..rows.end * vocabulary];
    let logits = Tensor::from_host(&device, [n, vocabulary], data)?;
    let mut support = Support::reserve(&device, n + 2, capacity)?;
    let mut weights = Tensor::zeros(&device, [n, capacity], Dtype::F32)?;
    let out = Mixed {
        support: &mut support,
        at: 2..n + 2,
        weights: weights.view_mut(),
        workspace: &Workspace::default(),
    };
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: SITE };
    mixture(logits.view(), &Mixture { law, tau }, noise, out)?;
    Ok(Mixtures {
        ids: support.ids().rows(2..n + 2)?.download()?,
        counts: support.counts().rows(2..n + 2)?.download()?,
        weights: weights.download()?,
    })
}

#[test]
fn gradient() {
    super::super::check_gradients(operations::sampler::cases());
}

#[test]
fn weights_are_the_definition() {
    let (rows, vocabulary, capacity) = (9, 701, 701);
    let logits = peaked("mixture values", rows * vocabulary);
    for (law, tau) in [
        (filtered(1.0, Some(30), Some(0.95), None), 0.5),
        (filtered(1.4, None, Some(0.8), None), 1.0),
        (filtered(1.0, None, None, Some(0.05)), 0.1),
        (filtered(0.7, None, None, None), 0.3),
        (filtered(1.0, Some(1), None, None), 0.5),
    ] {
        let found = mix(&logits, vocabulary, 0..rows, &law, tau, capacity).unwrap();
        for row in 0..rows {
            let logits = &logits[row * vocabulary..(row + 1) * vocabulary];
            let kept = naive(logits, &law);
            let noisy = |id: u32| {
                let word = key(row).word(SITE, row as u32 % 3, id, 0);
                // The law is defined by the f32 number of the word.
                let u = f64::from(((word as f32 + 0.5) / 4_294_967_296.0).min(1.0 - 0.5_f32.powi(24)));
                (f64::from(logits[id as usize]) * law.inverse_temperature() - (-u.ln()).ln()) / tau
            };
            let largest = kept.iter().map(|k| noisy(k.0)).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = kept.iter().map(|k| (noisy(k.0) - largest).exp()).sum();
            let at = row * capacity;
            assert_eq!(found.counts[row] as usize, kept.len(), "{law:?} row {row}");
            for (i, (id, _)) in kept.iter().enumerate() {
                assert_eq!(found.ids[at + i], *id, "{law:?} row {row}");
                let expected = (noisy(*id) - largest).exp() / total;
                let error = (f64::from(found.weights[at + i]) - expected).abs();
                // Exponents are off by the noise's bound (3e-6 at its largest) and three roundings, both over tau.
                let off = 3e-6 / tau + 3.0 * 6e-8 * largest.abs();
                assert!(error < 1e-7 + 2.0 * off * expected, "{law:?} row {row} id {id}: {error:e}");
            }
            let unused = at + kept.len()..at + capacity;
            assert!(found.ids[unused.clone()].iter().all(|&id| id == 0));
            assert!(found.weights[unused].iter().all(|&weight| weight == 0.0));
        }
    }
}

#[test]
fn the_heaviest_id_is_the_token_drawn_with_the_same_noise() {
    let (rows, vocabulary, capacity) = (60, 333, 25);
    let logits = peaked("mixture token", rows * vocabulary);
    let law = filtered(0.9, Some(25), Some(0.97), None);
    let found = mix(&logits, vocabulary, 0..rows, &law, 0.7, capacity).unwrap();
    let device = Device::cpu();
    let (keys, steps) = streams(&device, 0..rows);
    let logits = Tensor::from_host(&device, [rows, vocabulary], &logits).unwrap();
    let mut tokens = Tensor::zeros(&device, [rows, 1], Dtype::U32).unwrap();
    let mut score = Tensor::zeros(&device, [rows, 1], Dtype::F32).unwrap();
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: SITE };
    let out = Sampled {
        tokens: tokens.view_mut(),
        log_probability: score.view_mut(),
        support: None,
        workspace: &Workspace::default(),
    };
    sample(logits.view(), &law, noise, out).unwrap();
    for (row, token) in tokens.download::<u32>().unwrap().into_iter().enumerate() {
        let weights = &found.weights[row * capacity..(row + 1) * capacity];
        let heaviest = (0..capacity).max_by(|&a, &b| weights[a].total_cmp(&weights[b])).unwrap();
        assert_eq!(found.ids[row * capacity + heaviest], token, "row {row}");
    }
}

#[test]
fn a_row_mixes_the_same_alone_in_a_batch_and_on_any_threads() {
    let (rows, vocabulary, capacity) = (37, 20_011, 400);
    let logits = peaked("mixture batch", rows * vocabulary);
    let law = filtered(1.0, Some(400), Some(0.9), None);
    let all = || mix(&logits, vocabulary, 0..rows, &law, 0.5, capacity).unwrap();
    let whole = super::super::on_threads(1, all);
    assert_eq!(whole, super::super::on_threads(3, all));
    for row in [0, 18, 36] {
        let alone = mix(&logits, vocabulary, row..row + 1, &law, 0.5, capacity).unwrap();
        assert_eq!(alone.counts[0], whole.counts[row]);
        assert_eq!(alone.ids, whole.ids[row * capacity..(row + 1) * capacity]);
        assert_eq!(alone.weights, whole.weights[row * capacity..(row + 1) * capacity]);
    }
}

#[test]
fn impossible_requests_are_named() {
    let mut logits = peaked("mixture errors", 3 * 50);
    let failure = |logits: &[f32], law: &Law, tau, capacity| {
        mix(logits, 50, 0..3, law, tau, capacity).unwrap_err().to_string()
    };
    let law = filtered(1.0, Some(8), None, None);
    let text = failure(&logits, &Law::Greedy, 0.5, 8);
    assert!(text.contains("mixture law") && text.contains("greedy has no noise"), "{text}");
    for tau in [0.0, -0.5, f64::NAN, f64::INFINITY] {
        let text = failure(&logits, &law, tau, 8);
        assert!(text.contains("mixture tau") && text.contains("at least 1e-6"), "{text}");
    }
    let text = failure(&logits, &Law::PLAIN, 0.5, 8);
    assert!(text.contains("row 0 keeps 50 tokens, the support has room for 8"), "{text}");
    logits[107] = f32::NAN;
    let text = failure(&logits, &law, 0.5, 8);
    assert!(text.contains("row 2, token 7 has NaN"), "{text}");
    logits[50..100].fill(f32::NEG_INFINITY);
    let text = failure(&logits, &law, 0.5, 8);
    assert!(text.contains("row 1 is minus infinity everywhere"), "{text}");
}

#[test]
fn a_support_of_another_vocabulary_is_refused() {
    let device = Device::cpu();
    let law = filtered(1.0, Some(3), None, None);
    let logits = Tensor::from_host(&device, [1, 6], &[0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let (keys, steps) = streams(&device, 0..1);
    let mut support = Support::reserve(&device, 1, 3).unwrap();
    let mut weights = Tensor::zeros(&device, [1, 3], Dtype::F32).unwrap();
    let out = Mixed {
        support: &mut support,
        at: 0..1,
        weights: weights.view_mut(),
        workspace: &Workspace::default(),
    };
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: SITE };
    let mixed = Mixture { law: &law, tau: 0.5 };
    mixture(logits.view(), &mixed, noise, out).unwrap();
    let dy = Tensor::from_host(&device, [1, 3], &[1.0_f32, -2.0, 0.5]).unwrap();
    let mut d_logits = Tensor::zeros(&device, [1, 5], Dtype::F32).unwrap();
    let text = mixture_backward(dy.view(), weights.view(), &mixed, &support, 0..1, d_logits.view_mut())
        .unwrap_err()
        .to_string();
    assert!(text.contains("row 0 holds ids outside the logits' vocabulary"), "{text}");
}
