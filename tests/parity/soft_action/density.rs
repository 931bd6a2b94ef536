//! The laws of the noise and the densities by many draws under a fixed seed: means within four standard errors.

use super::*;

const DRAWS: usize = 40_000;

/// Mean of a number over the draws, and its distance from `expected` in standard errors.
fn distance(values: impl Iterator<Item = f64> + Clone, expected: f64) -> (f64, f64) {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|v| (v - mean) * (v - mean)).sum::<f64>() / (count - 1.0);
    (mean, (mean - expected).abs() / (variance / count).sqrt())
}

fn expect_mean(what: &str, values: impl Iterator<Item = f64> + Clone, expected: f64) {
    let (mean, errors) = distance(values, expected);
    assert!(errors <= 4.0, "{what}: mean {mean}, expected {expected}, {errors:.2} standard errors away");
}

const LOGITS: [f32; 6] = [1.2, -0.4, 0.3, 2.0, -1.5, 0.0];

/// Column `i` of rows of `width`.
fn column(values: &[f64], i: usize, width: usize) -> impl Iterator<Item = f64> + Clone + '_ {
    values.iter().skip(i).step_by(width).copied()
}

#[test]
fn the_exact_scores_have_mean_zero() {
    let problem = Problem::repeated(&LOGITS, DRAWS);
    for inverse_temperature in [1.0, 0.8] {
        let settings = Settings { inverse_temperature, ..settings(GUMBEL, 0.5) };
        let stored = problem.act_exactly(&settings);
        for (kind, zero) in [
            (Score::Concrete { tau: 0.5, mean: false }, true),
            (Score::GumbelG { floor: None, clamp: None, mean: false }, true),
            // A clamp that cuts the upper tail alone, and LEPO's surrogate, are seen not to be scores.
            (Score::GumbelG { floor: None, clamp: Some((-9.0, 1.0)), mean: false }, false),
            (Score::SoftCe { full: true }, false),
        ] {
            let [_, gradient] = problem.score_exactly(inverse_temperature, &stored, &kind);
            let errors: Vec<f64> = (0..6).map(|i| distance(column(&gradient, i, 6), 0.0).1).collect();
            println!("{kind:?} at 1/T {inverse_temperature}: {errors:.2?} standard errors from 0");
            assert_eq!(errors.iter().all(|&e| e <= 4.0), zero, "{kind:?}: {errors:?}");
        }
    }
}

#[test]
fn the_concrete_score_is_that_of_the_noise_and_the_least_variable() {
    let problem = Problem::repeated(&LOGITS, DRAWS);
    let stored = problem.act_exactly(&settings(GUMBEL, 0.4));
    let clean = problem.act_exactly(&settings(Perturbation::None, 0.4)).perturbed;
    let kind = Score::Concrete { tau: 0.4, mean: false };
    let [_, gradient] = problem.score_exactly(1.0, &stored, &kind);
    for row in 0..DRAWS {
        let noise: Vec<f64> = (0..6).map(|i| clean[6 * row + i] - stored.perturbed[6 * row + i]).collect();
        for (i, log) in log_softmax(&noise).into_iter().enumerate() {
            let expected = 1.0 - 6.0 * log.exp();
            assert!((gradient[6 * row + i] - expected).abs() < 1e-12, "row {row} id {i}");
        }
    }
    // Var[n s] = (n - 1) / (n + 1), whatever the probabilities are.
    for i in 0..6 {
        expect_mean("square of the score", column(&gradient, i, 6).map(|d| d * d), 5.0 / 7.0);
    }
    let squares = |of: &[f64]| of.iter().map(|d| d * d).sum::<f64>() / DRAWS as f64;
    let kind = Score::GumbelG { floor: None, clamp: None, mean: false };
    let [_, auxiliary] = problem.score_exactly(1.0, &stored, &kind);
    let (concrete, auxiliary) = (squares(&gradient), squares(&auxiliary));
    println!("sum of variances at n = 6: concrete {concrete:.3}, gumbel_g {auxiliary:.3}");
    assert!((concrete - 30.0 / 7.0).abs() < 0.1 && auxiliary > 1.1 * concrete);
}

#[test]
fn ratios_of_densities_have_mean_one() {
    let problem = Problem::repeated(&LOGITS, DRAWS);
    let by = [0.15, -0.1, 0.05, -0.2, 0.1, 0.12];
    let moved: Vec<f32> = LOGITS.iter().zip(by).map(|(logit, by)| logit + by).collect();
    let moved = Problem::repeated(&moved, DRAWS);
    for tau in [0.3, 1.0] {
        let stored = problem.act_exactly(&settings(GUMBEL, tau));
        for (kind, one) in [
            (Score::Concrete { tau, mean: false }, true),
            (Score::GumbelG { floor: None, clamp: None, mean: false }, true),
            // Noise that is clamped where it was not is no density of these actions.
            (Score::GumbelG { floor: None, clamp: Some((-9.0, 1.0)), mean: false }, false),
        ] {
            let [old, _] = problem.score_exactly(1.0, &stored, &kind);
            let [new, _] = moved.score_exactly(1.0, &stored, &kind);
            let ratios = old.iter().zip(&new).map(|(old, new)| (new - old).exp());
            let (mean, errors) = distance(ratios, 1.0);
            println!("{kind:?} of tau {tau}: mean ratio {mean:.4}, {errors:.2} standard errors from 1");
            assert_eq!(errors <= 4.0, one, "{kind:?}: mean {mean}, {errors} standard errors");
        }
    }
}

#[test]
fn the_density_integrates_to_one() {
    // Two ids: y = (u, 1 - u). Equal steps of the log-odds x, du = u (1 - u) dx.
    for (tau, logits) in [(0.5, [0.3_f32, -0.4]), (1.0, [0.0, 2.0]), (0.2, [1.0, 0.5])] {
        let (points, end) = (4001, 40.0);
        let problem = Problem::repeated(&logits, points);
        let x = |row: usize| -end + 2.0 * end * row as f64 / (points - 1) as f64;
        // g / tau has the log-odds x.
        let g: Vec<f64> = (0..points).flat_map(|row| [tau * x(row), 0.0]).collect();
        let y = vec![0.5; 2 * points];
        let stored =
            Actions { perturbed: g, weights: y.clone(), soft: y, proxies: vec![], entropies: vec![] };
        let [log_density, _] = problem.score_exactly(1.0, &stored, &Score::Concrete { tau, mean: false });
        let step = 2.0 * end / (points - 1) as f64;
        let integral: f64 = log_density
            .iter()
            .enumerate()
            .map(|(row, log)| log.exp() * step / ((1.0 + x(row).exp()) * (1.0 + (-x(row)).exp())))
            .sum();
        assert!((integral - 1.0).abs() < 2e-3, "tau {tau}: {integral}");
    }
}

#[test]
fn dirichlet_actions_have_their_moments() {
    let problem = Problem::repeated(&LOGITS, DRAWS);
    for concentration in [0.5, 6.0, 300.0] {
        let settings = settings(Perturbation::Dirichlet { concentration }, 0.5);
        let found = problem.act_exactly(&settings).weights;
        let p: Vec<f64> = log_softmax(&problem.scaled(0, 1.0)).into_iter().map(f64::exp).collect();
        for (i, p) in p.iter().enumerate() {
            expect_mean("Dirichlet weight", column(&found, i, 6), *p);
            let variance = p * (1.0 - p) / (concentration + 1.0);
            expect_mean("its square", column(&found, i, 6).map(|y| y * y), p * p + variance);
        }
    }
}

#[test]
fn gaussian_noise_has_the_logits_scale() {
    let problem = Problem::repeated(&LOGITS, DRAWS);
    let settings =
        Settings { inverse_temperature: 0.5, ..settings(Perturbation::Gaussian { strength: 0.3 }, 1.0) };
    let noisy = problem.act_exactly(&settings).perturbed;
    let clean = problem.act_exactly(&Settings { perturbation: Perturbation::None, ..settings }).perturbed;
    let s = problem.scaled(0, 0.5);
    let variance = 0.09 * s.iter().map(|s| s * s).sum::<f64>() / 6.0;
    for i in 0..6 {
        let noise = column(&noisy, i, 6).zip(column(&clean, i, 6)).map(|(noisy, clean)| noisy - clean);
        expect_mean("normal noise", noise.clone(), 0.0);
        expect_mean("its square", noise.clone().map(|x| x * x), variance);
        expect_mean("its fourth power", noise.map(|x| x.powi(4)), 3.0 * variance * variance);
    }
}

#[test]
fn drawn_proxies_follow_the_weights() {
    let problem = Problem::repeated(&LOGITS, DRAWS);
    let still = Settings { proxy: Proxy::Draw, ..settings(Perturbation::None, 0.8) };
    for settings in [still, Settings { perturbation: GUMBEL, ..still }] {
        let found = problem.act_exactly(&settings);
        for i in 0..6 {
            // 1[drawn] - y has mean 0 given y.
            let drawn = found.proxies.iter().map(|&proxy| f64::from(u8::from(proxy as usize == i)));
            let surplus = drawn.zip(column(&found.weights, i, 6)).map(|(drawn, y)| drawn - y);
            expect_mean("drawn over its weight", surplus, 0.0);
        }
    }
}
