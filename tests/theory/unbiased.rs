//! Algorithms B.4: what the expected update is, exactly.

use super::estimator::{Replay, Rule, expected};
use super::toy::{Enumeration, Law, PROBLEMS, answers, cosine, distance, flat, model, norm, place};
use latch::learn::advantages::{Baseline, Scale, advantages};
use latch::ops::mask::SiteKind;

const SITES: [SiteKind; 2] = [SiteKind::AttnOut, SiteKind::MlpOut];
/// Rounding of f64 through a few dozen products and sums.
const EXACT: f64 = 1e-10;

/// Six bits, at every position: 64 masks.
fn everywhere() -> Law {
    Law::shared_everywhere(&SITES, 3, 0.3)
}

#[test]
fn answers_and_masks_are_complete() {
    let (model, law) = (model(), everywhere());
    let total: f64 = law.outcomes.iter().map(|outcome| outcome.probability).sum();
    assert!((total - 1.0).abs() < 1e-14 && law.outcomes.len() == 64 && answers().len() == 21);
    for problem in PROBLEMS {
        let all = Enumeration::new(&model, &law, problem);
        for outcome in 0..64 {
            let sum: f64 = answers().iter().map(|answer| all.likelihood(outcome, answer)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{outcome}: {sum}");
        }
        let objective = all.objective();
        println!("J = {objective:.4}");
        assert!((0.02..0.98).contains(&objective), "{objective}");
    }
}

/// The backward pass against nothing but forward passes.
#[test]
fn the_exact_gradient_agrees_with_differences_of_the_objective() {
    // Sixteen masks.
    let (mut model, law) = (model(), Law::shared_everywhere(&SITES, 2, 0.3));
    let gradient = Enumeration::new(&model, &law, PROBLEMS[0]).exact();
    let centre = flat(&model);
    let largest = gradient.iter().fold(0.0_f64, |m, g| m.max(g.abs()));
    let mut worst = 0.0_f64;
    for entry in 0..centre.len() {
        let mut at = |by: f64| {
            let mut moved = centre.clone();
            moved[entry] += by;
            place(&mut model, &moved);
            Enumeration::new(&model, &law, PROBLEMS[0]).objective()
        };
        let h = 3e-4;
        // Fourth order.
        let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        worst = worst.max((slope - gradient[entry]).abs() / largest);
    }
    println!("{} entries, worst error {worst:.1e} of the largest", centre.len());
    assert!(worst < 1e-8, "{worst:e}");
}

#[test]
fn group_mean_is_a_fraction_of_the_gradient_and_leave_one_out_is_the_gradient() {
    let (model, law) = (model(), everywhere());
    for problem in PROBLEMS {
        let all = Enumeration::new(&model, &law, problem);
        let exact = all.exact();
        for rollouts in [2, 4, 8] {
            let fraction = (rollouts - 1) as f64 / rollouts as f64;
            for (baseline, scale) in
                [(Baseline::GroupMean, fraction), (Baseline::LeaveOneOut, 1.0), (Baseline::None, 1.0)]
            {
                let found = expected(&all, &all, Rule::plain(rollouts, baseline));
                let error = distance(&found, &exact, scale);
                println!("K = {rollouts}, {baseline:?}: {scale} x exact within {error:.1e}");
                assert!(error < EXACT, "K = {rollouts}, {baseline:?}: {error:e}");
            }
        }
    }
}

/// The real danger (iii): scoring under another mask than the one that sampled.
#[test]
fn fresh_or_absent_masks_at_the_update_are_biased() {
    let (model, law, none) = (model(), everywhere(), Law::none());
    for problem in PROBLEMS {
        let all = Enumeration::new(&model, &law, problem);
        let clean = Enumeration::new(&model, &none, problem);
        let exact = all.exact();
        for (name, update) in [("fresh", &all), ("absent", &clean)] {
            for ratio in [true, false] {
                let rule = Rule { replay: Replay::Fresh, ratio, ..Rule::plain(4, Baseline::GroupMean) };
                let found = expected(&all, update, rule);
                let (error, cosine) = (distance(&found, &exact, 0.75), cosine(&found, &exact));
                println!("{name} masks, ratio {ratio}: off by {:.0} %, cosine {cosine:.3}", 100.0 * error);
                // Not a scale alone: some of the error is direction.
                assert!(error > 0.02 && cosine < 0.9999, "{name} {ratio}: {error} {cosine}");
            }
        }
    }
}

/// Both are unbiased, each for its own objective.
#[test]
fn masks_per_step_are_unbiased_for_another_objective() {
    let model = model();
    let kinds = [SiteKind::AttnOut];
    let (shared, fresh) = (Law::shared(&kinds, 2, 0.5), Law::per_step(&kinds, 2, 0.5));
    for problem in PROBLEMS {
        let [a, b] = [&shared, &fresh].map(|law| Enumeration::new(&model, law, problem));
        let [exact_a, exact_b] = [a.exact(), b.exact()];
        for (all, exact) in [(&a, &exact_a), (&b, &exact_b)] {
            let found = expected(all, all, Rule::plain(4, Baseline::LeaveOneOut));
            assert!(distance(&found, exact, 1.0) < EXACT);
        }
        let (apart, cosine) = (distance(&exact_b, &exact_a, 1.0), cosine(&exact_b, &exact_a));
        println!(
            "J {:.5} shared, {:.5} per step; gradients {apart:.3} apart, cosine {cosine:.4}",
            a.objective(),
            b.objective()
        );
        assert!(apart > 1e-3 && (a.objective() - b.objective()).abs() > 1e-6);
    }
}

/// c_K(J) = E[A_1 | r_1 = 1] - E[A_1 | r_1 = 0]: the binomial sum.
fn c(rollouts: usize, j: f64, baseline: Baseline, scale: Scale) -> f64 {
    let others = rollouts - 1;
    let mut ways = 1.0;
    let mut sum = 0.0;
    for right in 0..=others {
        if right > 0 {
            ways *= (others - right + 1) as f64 / right as f64;
        }
        let probability = ways * j.powi(right as i32) * (1.0 - j).powi((others - right) as i32);
        let advantage = |own: f64| {
            let group: Vec<f64> =
                std::iter::once(own).chain((0..others).map(|k| f64::from(u8::from(k < right)))).collect();
            advantages(&[group], baseline, scale).unwrap()[0][0]
        };
        sum += probability * (advantage(1.0) - advantage(0.0));
    }
    sum
}

#[test]
fn a_deviation_weighs_prompts_anew_and_keeps_each_direction() {
    let (model, law) = (model(), everywhere());
    let pair = PROBLEMS.map(|problem| Enumeration::new(&model, &law, problem));
    let exact = [pair[0].exact(), pair[1].exact()];
    let [j0, j1] = [pair[0].objective(), pair[1].objective()];
    assert!((j0 - j1).abs() > 0.1, "the prompts differ in difficulty: {j0} {j1}");
    let sum = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let whole = sum(&exact[0], &exact[1]);
    for rollouts in [2, 4, 8] {
        for scale in [Scale::None, Scale::GROUP] {
            let rule = Rule { scale, ..Rule::plain(rollouts, Baseline::GroupMean) };
            let found = [0, 1].map(|x| expected(&pair[x], &pair[x], rule));
            let weights = [j0, j1].map(|j| c(rollouts, j, Baseline::GroupMean, scale));
            for x in 0..2 {
                let error = distance(&found[x], &exact[x], weights[x]);
                assert!(error < EXACT, "K = {rollouts}: not c_K(J) times the gradient: {error:e}");
            }
            let together = cosine(&sum(&found[0], &found[1]), &whole);
            println!(
                "K = {rollouts}, {scale:?}: c({j0:.3}) = {:.4}, c({j1:.3}) = {:.4}, cosine over both {together:.6}",
                weights[0], weights[1]
            );
            match scale {
                Scale::None => {
                    assert!((weights[0] - weights[1]).abs() < 1e-12 && 1.0 - together < 1e-12);
                }
                // Two rollouts disagree or not: their deviation is one number, and weighs nothing anew.
                _ if rollouts == 2 => assert!((weights[0] - weights[1]).abs() < 1e-12),
                _ => assert!((weights[0] / weights[1] - 1.0).abs() > 0.01 && 1.0 - together > 1e-7),
            }
        }
    }
    assert!(norm(&whole) > 0.0);
}

#[test]
fn deviations_weigh_as_published() {
    // Algorithms B.4, K = 8.
    for (j, expected) in [(0.05, 2.31), (0.27, 1.87), (0.5, 1.74), (0.9, 2.18)] {
        let found = c(8, j, Baseline::GroupMean, Scale::GROUP);
        assert!((found - expected).abs() < 0.005, "{j}: {found}");
    }
    // Dividing by nothing weighs all prompts alike.
    for j in [0.05, 0.5, 0.9] {
        assert!((c(8, j, Baseline::GroupMean, Scale::None) - 0.875).abs() < 1e-12);
        assert!((c(8, j, Baseline::LeaveOneOut, Scale::None) - 1.0).abs() < 1e-12);
        // Many rollouts: 1 / sqrt(J (1 - J)).
        let limit = c(400, j, Baseline::GroupMean, Scale::GROUP);
        assert!((limit * (j * (1.0 - j)).sqrt() - 1.0).abs() < 0.02, "{j}: {limit}");
    }
}
