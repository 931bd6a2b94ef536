//! What actions and scores are, by formulas written apart from the code.

use super::*;
use latch::cpu::gumbel;
use latch::ops::sampler::{Law, Mixed, Mixture, Workspace, mixture};

/// Standard normal `id` of a row's stream by Box and Muller.
fn normal(row: usize, id: u32) -> f64 {
    let (key, step) = stream(row);
    let uniform = |i: u32| (f64::from(key.word(SITE, step, i, 0)) + 0.5) / 2_f64.powi(32);
    let pair = id / 2 * 2;
    let radius = (-2.0 * uniform(pair).ln()).sqrt();
    let angle = std::f64::consts::TAU * uniform(pair + 1);
    radius * if id.is_multiple_of(2) { angle.cos() } else { angle.sin() }
}

/// Logarithm of the gamma variate of shape `alpha` of an id, by Marsaglia and Tsang.
fn log_gamma_variate(row: usize, id: u32, alpha: f64) -> f64 {
    let (key, step) = stream(row);
    let d = (alpha + 1.0) - 1.0 / 3.0;
    let c = (1.0 / 3.0) / d.sqrt();
    for attempt in 0.. {
        let words = key.block(SITE, step, id, attempt);
        let uniform = |i: usize| (f64::from(words[i]) + 0.5) / 2_f64.powi(32);
        let x = (-2.0 * uniform(0).ln()).sqrt() * (std::f64::consts::TAU * uniform(1)).cos();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && uniform(2).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln() + uniform(3).ln() / alpha;
        }
    }
    unreachable!()
}

/// g, y, the proxy and the entropy of a row.
fn naive(problem: &Problem, row: usize, settings: &Settings) -> (Vec<f64>, Vec<f64>, u32, f64) {
    let (key, step) = stream(row);
    let kept = &problem.kept[row];
    let s = problem.scaled(row, settings.inverse_temperature);
    let a = log_softmax(&s);
    let mut tau = settings.tau;
    let g: Vec<f64> = match settings.perturbation {
        Perturbation::None => a,
        Perturbation::Gumbel { clamp } => {
            let (low, high) = clamp.unwrap_or((-100.0, 100.0));
            let noise = |&id: &u32| f64::from(gumbel::noise(key.word(SITE, step, id, 0))).clamp(low, high);
            a.iter().zip(kept).map(|(a, id)| a + noise(id)).collect()
        }
        Perturbation::Gaussian { strength } => {
            let rms = (s.iter().map(|s| s * s).sum::<f64>() / s.len() as f64).sqrt();
            a.iter().zip(kept).map(|(a, &id)| a + strength * rms * normal(row, id)).collect()
        }
        Perturbation::Dirichlet { concentration } => {
            tau = 1.0;
            let alphas = a.iter().map(|a| concentration * a.exp());
            let logs: Vec<f64> =
                alphas.zip(kept).map(|(alpha, &id)| log_gamma_variate(row, id, alpha)).collect();
            log_softmax(&logs)
        }
    };
    let log_y = log_softmax(&g.iter().map(|g| g / tau).collect::<Vec<f64>>());
    let y: Vec<f64> = log_y.iter().map(|l| l.exp()).collect();
    let entropy = -y.iter().zip(&log_y).map(|(y, l)| if *y == 0.0 { 0.0 } else { y * l }).sum::<f64>();
    let proxy = match settings.proxy {
        Proxy::Argmax => {
            let largest = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            kept[s.iter().position(|s| *s == largest).unwrap()]
        }
        Proxy::Draw => {
            // Word 0 of the last block, which no id's noise reaches.
            let word = key.block(SITE, step, u32::MAX, 0)[0];
            let mut mass = 0.0;
            let place = y.iter().position(|y| {
                mass += y;
                mass > f64::from(word) / 2_f64.powi(32)
            });
            kept[place.unwrap()]
        }
    };
    (g, y, proxy, entropy)
}

#[test]
fn actions_are_their_definition() {
    let problem = ragged("soft actions");
    for perturbation in perturbations() {
        for (inverse_temperature, tau, proxy, hard) in [
            (1.0, 0.5, Proxy::Argmax, false),
            (1.4, 1.0, Proxy::Draw, false),
            (0.7, 0.1, Proxy::Draw, true),
            (1.0, 2.0, Proxy::Argmax, true),
        ] {
            let settings = Settings { inverse_temperature, tau, perturbation, proxy, hard };
            for (dtype, allowed) in [(Dtype::F64, 1e-11), (Dtype::F32, 4e-5)] {
                let found = problem.act(&Device::cpu(), dtype, 0..problem.rows(), &settings);
                for row in 0..problem.rows() {
                    let (g, y, proxy, entropy) = naive(&problem, row, &settings);
                    let (at, count) = (row * problem.capacity, g.len());
                    let near = |what: &str, found: f64, expected: f64| {
                        let within = allowed * (1.0 + expected.abs()) / tau.min(1.0);
                        assert!(
                            (found - expected).abs() <= within,
                            "{settings:?} row {row} {what}: {found} {expected}"
                        );
                    };
                    let winner = (0..count).fold(0, |best, i| if g[i] > g[best] { i } else { best });
                    for i in 0..count {
                        near("g", found.perturbed[at + i], g[i]);
                        near("y", found.soft[at + i], y[i]);
                        match hard {
                            true => assert_eq!(found.weights[at + i], f64::from(u8::from(i == winner))),
                            false => assert_eq!(found.weights[at + i], found.soft[at + i]),
                        }
                    }
                    near("entropy", found.entropies[row], entropy);
                    assert_eq!(found.proxies[row], proxy, "{settings:?} row {row}");
                    let unused = at + count..at + problem.capacity;
                    for values in [&found.perturbed, &found.weights, &found.soft] {
                        assert!(values[unused.clone()].iter().all(|&value| value == 0.0));
                    }
                }
            }
        }
    }
}

#[test]
fn gumbel_actions_are_the_samplers_mixtures() {
    let (device, rows, vocabulary, capacity, tau) = (Device::cpu(), 12, 301, 30, 0.4);
    let mut problem = Problem::new("soft action mixture", rows, vocabulary, capacity, |_, _| false);
    let law = Law::Categorical { temperature: 0.8, top_k: Some(30), top_p: Some(0.95), min_p: None };
    let keys: Vec<u32> = (0..rows).flat_map(|row| stream(row).0.0).collect();
    let steps: Vec<u32> = (0..rows).map(|row| stream(row).1).collect();
    let keys = Tensor::from_host(&device, [rows, 2], &keys).unwrap();
    let steps = Tensor::from_host(&device, [rows, 1], &steps).unwrap();
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: SITE };
    let logits = problem.logits(&device, Dtype::F32, &(0..rows));
    let mut support = Support::reserve(&device, rows, capacity).unwrap();
    let mut weights = Tensor::zeros(&device, [rows, capacity], Dtype::F32).unwrap();
    let out = Mixed {
        support: &mut support,
        at: 0..rows,
        weights: weights.view_mut(),
        workspace: &Workspace::default(),
    };
    mixture(logits.view(), &Mixture { law: &law, tau }, noise, out).unwrap();
    let (ids, counts) = support.download(0..rows).unwrap();
    problem.kept =
        ids.chunks(capacity).zip(&counts).map(|(ids, &count)| ids[..count as usize].to_vec()).collect();
    assert!(counts.iter().any(|&count| count < 30) && counts.iter().all(|&count| count > 1));

    let settings = Settings { inverse_temperature: law.inverse_temperature(), ..settings(GUMBEL, tau) };
    let found = problem.act(&device, Dtype::F32, 0..rows, &settings);
    for (n, (found, expected)) in found.weights.iter().zip(weights.download::<f32>().unwrap()).enumerate() {
        assert!((found - f64::from(expected)).abs() <= 4e-6, "weight {n}: {found} {expected}");
    }
    // The noise itself, which f64 holds exactly beside a, has the sampler's bits.
    let noisy = problem.act_exactly(&settings).perturbed;
    let clean = problem.act_exactly(&Settings { perturbation: Perturbation::None, ..settings }).perturbed;
    for row in 0..rows {
        let (key, step) = stream(row);
        for (i, &id) in problem.kept[row].iter().enumerate() {
            let at = row * capacity + i;
            let noise = gumbel::noise(key.word(SITE, step, id, 0));
            assert_eq!(((noisy[at] - clean[at]) as f32).to_bits(), noise.to_bits(), "row {row} id {id}");
        }
    }
}

#[test]
fn what_else_is_kept_changes_no_noise() {
    let few = Problem::new("soft action replay", 4, 50, 9, |row, id| id % 7 == row);
    let mut many = Problem::new("soft action replay", 4, 50, 50, |row, id| id % 7 == row || id % 3 == 0);
    many.logits = few.logits.clone();
    for perturbation in [GUMBEL, Perturbation::Gumbel { clamp: Some((-0.3, 0.9)) }] {
        let noise = |problem: &Problem, row: usize| -> Vec<(u32, f64)> {
            let noisy = problem.act_exactly(&settings(perturbation, 0.5)).perturbed;
            let clean = problem.act_exactly(&settings(Perturbation::None, 0.5)).perturbed;
            let at = row * problem.capacity;
            problem.kept[row].iter().enumerate().map(|(i, &id)| (id, noisy[at + i] - clean[at + i])).collect()
        };
        for row in 0..4 {
            let of_many = noise(&many, row);
            for (id, noise) in noise(&few, row) {
                let other = of_many.iter().find(|(other, _)| *other == id).unwrap().1;
                assert!((noise - other).abs() < 1e-14, "row {row} id {id}: {noise} {other}");
            }
        }
    }
}

/// Value of a score by its formula; the density of y as Maddison et al. print it.
fn naive_score(
    problem: &Problem,
    row: usize,
    inverse_temperature: f64,
    stored: &Actions,
    kind: &Score,
) -> f64 {
    let kept = &problem.kept[row];
    let (at, n) = (row * problem.capacity, kept.len());
    let (g, y) = (&stored.perturbed[at..at + n], &stored.soft[at..at + n]);
    let a = log_softmax(&problem.scaled(row, inverse_temperature));
    match *kind {
        Score::SoftCe { full } => {
            let all: Vec<f64> = problem.logits[row * problem.vocabulary..(row + 1) * problem.vocabulary]
                .iter()
                .map(|&l| f64::from(l) * inverse_temperature)
                .collect();
            let all = log_softmax(&all);
            (0..n).map(|i| y[i] * if full { all[kept[i] as usize] } else { a[i] }).sum()
        }
        _ if n == 1 => 0.0,
        Score::Concrete { tau, mean } => {
            let log_y = log_softmax(&g.iter().map(|g| g / tau).collect::<Vec<f64>>());
            let scaled: Vec<f64> = (0..n).map(|i| a[i] - tau * log_y[i]).collect();
            let largest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = scaled.iter().map(|s| (s - largest).exp()).sum::<f64>().ln() + largest;
            let factorial: f64 = (1..n).map(|i| (i as f64).ln()).sum();
            let sum: f64 = (0..n).map(|i| a[i] - (tau + 1.0) * log_y[i]).sum();
            let total = factorial + (n - 1) as f64 * tau.ln() + sum - n as f64 * log_sum;
            if mean { total / n as f64 } else { total }
        }
        Score::GumbelG { floor, clamp, mean } => {
            let (low, high) = clamp.unwrap_or((-1e3, 1e3));
            let counted: Vec<f64> = (0..n)
                .filter(|&i| a[i] > floor.unwrap_or(-1e9))
                .map(|i| (g[i] - a[i]).clamp(low, high))
                .map(|noise| -noise - (-noise).exp())
                .collect();
            let total: f64 = counted.iter().sum();
            if mean && !counted.is_empty() { total / counted.len() as f64 } else { total }
        }
    }
}

#[test]
fn scores_are_their_definition() {
    let acting = ragged("soft action scores, old");
    let mut scored = acting.clone();
    for (logit, by) in scored.logits.iter_mut().zip(super::super::normals_f32("soft action move", 9 * 61)) {
        *logit += 0.4 * by;
    }
    for (inverse_temperature, tau) in [(1.0, 0.5), (1.3, 0.5)] {
        let stored = acting.act_exactly(&Settings { inverse_temperature, ..settings(GUMBEL, tau) });
        for kind in scores() {
            let [found, _] = scored.score_exactly(inverse_temperature, &stored, &kind);
            for (row, found) in found.iter().enumerate() {
                let expected = naive_score(&scored, row, inverse_temperature, &stored, &kind);
                let near = (found - expected).abs() <= 1e-11 * (1.0 + expected.abs());
                assert!(near, "{kind:?} row {row}: {found} {expected}");
            }
        }
    }
}

#[test]
fn one_kept_id_has_no_density_and_no_gradient() {
    let problem = Problem::new("soft action single", 5, 40, 3, |row, id| id == 8 * row + 3);
    let stored = problem.act_exactly(&settings(GUMBEL, 0.3));
    assert!(stored.weights.chunks(3).all(|weights| weights == [1.0, 0.0, 0.0]));
    assert!(stored.entropies.iter().all(|&entropy| entropy == 0.0));
    assert_eq!(stored.proxies, [3, 11, 19, 27, 35]);
    for kind in scores() {
        let [found, gradient] = problem.score_exactly(1.0, &stored, &kind);
        let full = kind == Score::SoftCe { full: true };
        assert_eq!(found.iter().all(|&score| score == 0.0), !full, "{kind:?}: {found:?}");
        assert_eq!(gradient.iter().all(|&d| d == 0.0), !full, "{kind:?}");
    }
}

#[test]
fn densities_do_not_need_the_digits_of_the_weights() {
    // At tau 0.01 all but one weight underflow f32; the log-density is still that of f64.
    let problem = Problem::new("soft action cold", 6, 20, 20, |_, _| true);
    let settings = settings(GUMBEL, 0.01);
    let kind = Score::Concrete { tau: 0.01, mean: false };
    let (device, rows) = (Device::cpu(), 0..6);
    let stored = problem.act(&device, Dtype::F32, rows.clone(), &settings);
    assert!(stored.weights.chunks(20).all(|weights| weights.iter().filter(|&&w| w == 0.0).count() > 10));
    let [exact, slope] = problem.score_exactly(1.0, &stored, &kind);
    let ones = [1.0; 6];
    let [found, gradient] = problem.try_score(&device, Dtype::F32, rows, 1.0, &stored, &kind, &ones).unwrap();
    for (found, exact) in found.iter().zip(&exact) {
        assert!(exact.is_finite() && (found - exact).abs() <= 1e-6 * exact.abs(), "{found} {exact}");
    }
    for (found, exact) in gradient.iter().zip(&slope) {
        assert!((found - exact).abs() <= 3e-5, "{found} {exact}");
    }
}

#[test]
fn backward_is_the_jacobian_of_the_softmax() {
    let problem = ragged("soft action jacobian");
    let (tau, inverse_temperature) = (0.6, 1.2);
    for (perturbation, hard) in [(GUMBEL, false), (Perturbation::Gaussian { strength: 0.3 }, true)] {
        let settings = Settings { inverse_temperature, hard, ..settings(perturbation, tau) };
        let stored = problem.act_exactly(&settings);
        let dy: Vec<f64> = (0..9 * 23).map(|i| ((i * 29) % 13) as f64 / 5.0 - 1.1).collect();
        let found = problem.pull(&Device::cpu(), Dtype::F64, 0..9, &settings, &stored.soft, &dy);
        let mut expected = vec![0.0; 9 * 61];
        for row in 0..9 {
            let n = problem.kept[row].len();
            let (y, dy) = (&stored.soft[row * 23..row * 23 + n], &dy[row * 23..row * 23 + n]);
            for (i, &id) in problem.kept[row].iter().enumerate() {
                for j in 0..n {
                    let jacobian = y[j] * (f64::from(u8::from(i == j)) - y[i]) / tau * inverse_temperature;
                    expected[row * 61 + id as usize] += dy[j] * jacobian;
                }
            }
        }
        for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < 1e-12, "entry {n}: {found} {expected}");
        }
    }
}

#[test]
fn a_row_depends_on_itself_alone_and_nothing_on_threads() {
    // Enough work for several tasks.
    let problem =
        Problem::new("soft action rows", 900, 211, 60, |row, id| (id * 5 + row) % 211 < 1 + row % 60);
    for perturbation in perturbations() {
        let settings = Settings { proxy: Proxy::Draw, ..settings(perturbation, 0.5) };
        let run = |rows: Range<usize>| problem.act(&Device::cpu(), Dtype::F32, rows, &settings);
        let whole = super::super::on_threads(1, || run(0..900));
        assert_eq!(whole, super::super::on_threads(3, || run(0..900)));
        for row in [0, 451, 899] {
            let alone = run(row..row + 1);
            assert_eq!(alone.perturbed, whole.perturbed[row * 60..(row + 1) * 60]);
            assert_eq!(alone.weights, whole.weights[row * 60..(row + 1) * 60]);
            assert_eq!((alone.proxies[0], alone.entropies[0]), (whole.proxies[row], whole.entropies[row]));
        }
    }
    let whole = problem.act(&Device::cpu(), Dtype::F32, 0..900, &settings(GUMBEL, 0.5));
    let dy: Vec<f64> = (0..900).map(|row| 0.5 + f64::from(row) / 900.0).collect();
    for kind in scores() {
        let score = |rows: Range<usize>| {
            let (device, dtype) = (Device::cpu(), Dtype::F32);
            problem.try_score(&device, dtype, rows, 1.0, &whole, &kind, &dy).unwrap()
        };
        let all = super::super::on_threads(1, || score(0..900));
        assert_eq!(all, super::super::on_threads(3, || score(0..900)));
        for row in [0, 451, 899] {
            let alone = score(row..row + 1);
            assert_eq!(alone[0][0].to_bits(), all[0][row].to_bits());
            assert_eq!(alone[1], all[1][row * 211..(row + 1) * 211]);
        }
    }
}
