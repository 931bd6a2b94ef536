//! Algorithms B.6: what common masks and shared masks do to variances. Measured by enumeration and printed; only
//! what theory promises is asserted.

use super::toy::{Answer, Enumeration, Law, PROBLEMS, Problem, answers, dot, flat, model, norm, place};
use latch::learn::advantages::{Baseline, Scale, advantages};
use latch::model::Model;
use latch::ops::mask::SiteKind;

/// Mean and variance of a number over a law's outcomes.
fn moments(of: &[(f64, f64)]) -> (f64, f64) {
    let mean = of.iter().map(|(q, value)| q * value).sum::<f64>();
    (mean, of.iter().map(|(q, value)| q * (value - mean) * (value - mean)).sum())
}

/// Expected reward by mask.
fn values(model: &Model, law: &Law, problem: Problem) -> Vec<(f64, f64)> {
    let all = Enumeration::new(model, law, problem);
    law.outcomes.iter().enumerate().map(|(n, outcome)| (outcome.probability, all.value(n))).collect()
}

/// Comparing theta' with theta under the same masks: their noise cancels, the smaller the step the more.
#[test]
fn common_masks_compare_parameters_with_less_noise() {
    let law = Law::shared_everywhere(&[SiteKind::AttnOut, SiteKind::MlpOut], 3, 0.3);
    for problem in PROBLEMS {
        let mut model = model();
        let before = values(&model, &law, problem);
        let start = flat(&model);
        let gradient = Enumeration::new(&model, &law, problem).exact();
        let size = norm(&start);
        let mut last = (f64::NAN, f64::NAN);
        for step in [0.1, 0.01, 0.001, 0.0001] {
            let scale = step * size / norm(&gradient);
            let moved: Vec<f64> = start.iter().zip(&gradient).map(|(x, g)| x + scale * g).collect();
            place(&mut model, &moved);
            let after = values(&model, &law, problem);
            let differences: Vec<(f64, f64)> =
                before.iter().zip(&after).map(|((q, a), (_, b))| (*q, b - a)).collect();
            let (gain, common) = moments(&differences);
            let fresh = moments(&before).1 + moments(&after).1;
            println!(
                "step {step} of the norm: J grows by {gain:.5}; variance {common:.2e} common, {fresh:.2e} fresh, ratio {:.1}",
                fresh / common
            );
            assert!(common < fresh && common / (gain * gain) < fresh / (gain * gain));
            last = (last.1, common);
        }
        // J(theta') - J(theta) under one mask is linear in a small step: its variance is quadratic.
        let ratio = last.1 / last.0;
        assert!((0.005..0.02).contains(&ratio), "{ratio}");
        assert!(last.1 < 1e-3 * moments(&before).1);
    }
}

/// Moments of one sample's score grad ln pi(y|m), by reward.
struct Scores {
    success: f64,
    /// E[g | r].
    mean: [Vec<f64>; 2],
    /// E[|g|^2 | r].
    square: [f64; 2],
}

fn scores(all: &Enumeration) -> Scores {
    let mut mass = [0.0; 2];
    let (mut mean, mut square) = ([Vec::new(), Vec::new()], [0.0; 2]);
    for (outcome, drawn) in all.law.outcomes.iter().enumerate() {
        let law = all.law.only(outcome);
        let alone = Enumeration::new(all.model, &law, all.problem);
        for answer in answers() {
            let probability = drawn.probability * all.likelihood(outcome, &answer);
            let this = |_: usize, a: &Answer| f64::from(u8::from(a.tokens == answer.tokens));
            let gradient = alone.gradient(&alone.spread(this));
            let class = usize::from(all.reward(&answer) == 1.0);
            mass[class] += probability;
            square[class] += probability * dot(&gradient, &gradient);
            mean[class].resize(gradient.len(), 0.0);
            mean[class].iter_mut().zip(&gradient).for_each(|(sum, g)| *sum += probability * g);
        }
    }
    for class in 0..2 {
        square[class] /= mass[class];
        mean[class].iter_mut().for_each(|sum| *sum /= mass[class]);
    }
    Scores { success: mass[1], mean, square }
}

/// Trace of the covariance of a group's update `(1/K) sum_k A_k g_k`, and the norm of its expectation, exactly.
fn trace(scores: &Scores, rollouts: usize, baseline: Baseline) -> (f64, f64) {
    let (mut square, mut expectation) = (0.0, vec![0.0; scores.mean[0].len()]);
    for pattern in 0_usize..1 << rollouts {
        let class = |k: usize| pattern >> k & 1;
        let rewards: Vec<f64> = (0..rollouts).map(|k| class(k) as f64).collect();
        let probability: f64 = (0..rollouts)
            .map(|k| if class(k) == 1 { scores.success } else { 1.0 - scores.success })
            .product();
        let a = &advantages(&[rewards], baseline, Scale::None).unwrap()[0];
        for j in 0..rollouts {
            for k in 0..rollouts {
                let product = match j == k {
                    true => scores.square[class(j)],
                    false => dot(&scores.mean[class(j)], &scores.mean[class(k)]),
                };
                square += probability * a[j] * a[k] * product / (rollouts * rollouts) as f64;
            }
            for (sum, g) in expectation.iter_mut().zip(&scores.mean[class(j)]) {
                *sum += probability * a[j] * g / rollouts as f64;
            }
        }
    }
    (square - dot(&expectation, &expectation), norm(&expectation))
}

#[test]
fn covariance_of_the_gradient_with_shared_fresh_and_no_masks() {
    let model = model();
    let kinds = [SiteKind::AttnOut];
    let laws = [
        ("shared", Law::shared(&kinds, 2, 0.5)),
        ("per_step", Law::per_step(&kinds, 2, 0.5)),
        ("none", Law::none()),
    ];
    for problem in PROBLEMS {
        for (name, law) in &laws {
            let all = Enumeration::new(&model, law, problem);
            let scores = scores(&all);
            let exact = norm(&all.exact());
            let reward_variance = scores.success * (1.0 - scores.success);
            let of_masks = moments(&values(&model, law, problem)).1;
            let mut traces = Vec::new();
            for rollouts in [2, 4, 8] {
                let (trace, expectation) = trace(&scores, rollouts, Baseline::LeaveOneOut);
                assert!((expectation / exact - 1.0).abs() < 1e-10, "unbiased: {expectation} {exact}");
                assert!(trace > 0.0);
                traces.push(trace);
            }
            println!(
                "{name:8} J {:.4}, Var r {reward_variance:.4} (masks {of_masks:.1e}), |grad J| {exact:.4}, trace K=2 {:.4}, K=4 {:.4}, K=8 {:.4}; by Var r, K=8: {:.4}",
                all.objective(),
                traces[0],
                traces[1],
                traces[2],
                traces[2] / reward_variance
            );
            // The estimator is a U-statistic of two rollouts: K times its variance never grows (Hoeffding, 1948).
            assert!(traces[1] <= traces[0] / 2.0 && traces[2] <= traces[1] / 2.0);
            // Of a reward's variance, the part between masks is a part.
            assert!(of_masks <= reward_variance && (name != &"none" || of_masks < 1e-30));
        }
    }
}
