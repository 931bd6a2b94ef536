//! Algorithms C.3: bias and variance of the estimators of soft latents on a toy whose expectations are integrals.
//!
//! The toy: embeddings E (tied to the head) and a matrix W. A position with input x has h = W x and logits E h. The
//! input of position 0 is a token, that of position t + 1 the mixture y_t^T E over a fixed support, y_t = softmax((a_t +
//! eps_t) / tau); the last position's logits give the answer, one token, and its reward.
//!
//! Expectations over the noise are sums over a grid, which for analytic integrands converge faster than any power of
//! the step. y and the density score depend on differences of a step's noise alone: with E = exp(-eps) they are
//! functions of s = E / sum E, uniform on the simplex, whose log-ratios to the last have the density (n-1)! prod s.
//! sum E is independent of s and has a Gamma(n) law; of it gumbel_g takes two Gauss points, exact for cubics.

use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::sampler::Support;
use latch::ops::soft_action::{Perturbation, Proxy, Score, Scored, Settings, backward, score_backward};
use latch::verify::gradient::normals;

const VOCABULARY: usize = 5;
const WIDTH: usize = 3;
const TAU: f64 = 0.7;
const PROMPT: usize = 0;
const PARAMETERS: usize = VOCABULARY * WIDTH + WIDTH * WIDTH;
/// Step and end of the grid of log-ratios.
const STEP: f64 = 0.8;
const END: f64 = 16.0;

/// Embeddings, then W, row-major.
type Parameters = [f64; PARAMETERS];

fn parameters() -> Parameters {
    let mut all = [0.0; PARAMETERS];
    let draws = normals("soft latents on a toy", PARAMETERS);
    for (i, (parameter, draw)) in all.iter_mut().zip(draws).enumerate() {
        *parameter = if i < VOCABULARY * WIDTH { 0.9 * draw } else { 0.7 * draw };
    }
    all
}

/// Noise of one soft step: standard Gumbel noise of each kept id, and the node's weight.
struct Node {
    noise: Vec<f64>,
    weight: f64,
}

/// The grid of a step that keeps `n` ids; with `sums` the law of sum E as well, otherwise its mean stands for it.
fn nodes(n: usize, sums: bool) -> Vec<Node> {
    let points = (2.0 * END / STEP) as usize + 1;
    // Gauss points of Gamma(n): the roots of the second Laguerre polynomial of order n - 1.
    let (n_, root) = (n as f64, (n as f64 + 1.0).sqrt());
    let (low, high) = (n_ + 1.0 - root, n_ + 1.0 + root);
    let upper = (n_ - low) / (high - low);
    let totals = if sums { vec![(low, 1.0 - upper), (high, upper)] } else { vec![(n_, 1.0)] };
    let factorial: f64 = (1..n).map(|i| i as f64).product();
    let mut all = Vec::new();
    for index in 0..points.pow(n as u32 - 1) {
        let ratio = |i: u32| STEP * (index / points.pow(i) % points) as f64 - END;
        // log of s, up to its sum.
        let mut log_s: Vec<f64> = (0..n as u32 - 1).map(ratio).collect();
        log_s.push(0.0);
        let largest = log_s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = log_s.iter().map(|l| (l - largest).exp()).sum::<f64>().ln() + largest;
        log_s.iter_mut().for_each(|l| *l -= sum);
        let density = factorial * log_s.iter().sum::<f64>().exp() * STEP.powi(n as i32 - 1);
        if density < 1e-13 {
            continue;
        }
        for &(total, share) in &totals {
            let noise = log_s.iter().map(|l| -(l + f64::ln(total))).collect();
            all.push(Node { noise, weight: density * share });
        }
    }
    all
}

/// What is sampled: the kept ids of each soft step, and the reward of an answer.
struct Toy {
    kept: &'static [&'static [u32]],
    reward: [f64; VOCABULARY],
    /// Added to the reward where a proxy drawn from the last y is this kept place.
    bonus: Option<usize>,
}

const ONE_STEP: Toy = Toy { kept: &[&[0, 2, 3]], reward: [0.0, 1.0, 0.0, 1.0, 0.0], bonus: None };
const TWO_STEPS: Toy = Toy { kept: &[&[1, 4], &[0, 2, 3]], reward: [0.0, 0.0, 1.0, 0.3, 1.0], bonus: None };

fn embedding(theta: &Parameters, id: usize) -> &[f64] {
    &theta[id * WIDTH..(id + 1) * WIDTH]
}

/// h = W x and the logits E h.
fn position(theta: &Parameters, x: &[f64]) -> ([f64; WIDTH], [f64; VOCABULARY]) {
    let w = &theta[VOCABULARY * WIDTH..];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let h: [f64; WIDTH] = std::array::from_fn(|i| dot(&w[i * WIDTH..(i + 1) * WIDTH], x));
    (h, std::array::from_fn(|id| dot(embedding(theta, id), &h)))
}

fn log_softmax(values: &[f64]) -> Vec<f64> {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = values.iter().map(|v| (v - largest).exp()).sum::<f64>().ln() + largest;
    values.iter().map(|v| v - log_sum).collect()
}

/// One trajectory up to the answer.
struct Trajectory {
    /// Inputs and hidden states of all positions, logits of all.
    x: Vec<Vec<f64>>,
    h: Vec<[f64; WIDTH]>,
    logits: Vec<[f64; VOCABULARY]>,
    /// g and y of the soft steps.
    g: Vec<Vec<f64>>,
    y: Vec<Vec<f64>>,
    /// ln pi of the answers.
    answers: Vec<f64>,
}

impl Toy {
    /// Runs the model under the noise of each step; `hard` feeds the largest of y forward.
    fn run(&self, theta: &Parameters, noise: &[&Node], hard: bool) -> Trajectory {
        let mut all = Trajectory {
            x: vec![embedding(theta, PROMPT).to_vec()],
            h: Vec::new(),
            logits: Vec::new(),
            g: Vec::new(),
            y: Vec::new(),
            answers: Vec::new(),
        };
        for (step, node) in noise.iter().enumerate() {
            let (h, logits) = position(theta, &all.x[step]);
            let kept = self.kept[step];
            let clean = log_softmax(&kept.iter().map(|&id| logits[id as usize]).collect::<Vec<_>>());
            let g: Vec<f64> = clean.iter().zip(&node.noise).map(|(a, noise)| a + noise).collect();
            let cold: Vec<f64> = g.iter().map(|g| g / TAU).collect();
            let y: Vec<f64> = log_softmax(&cold).into_iter().map(f64::exp).collect();
            let winner = (0..y.len()).fold(0, |best, i| if g[i] > g[best] { i } else { best });
            let mut x = vec![0.0; WIDTH];
            for (i, (&id, &y)) in kept.iter().zip(&y).enumerate() {
                let weight = if hard { f64::from(u8::from(i == winner)) } else { y };
                x.iter_mut().zip(embedding(theta, id as usize)).for_each(|(x, e)| *x += weight * e);
            }
            all.x.push(x);
            all.h.push(h);
            all.logits.push(logits);
            all.g.push(g);
            all.y.push(y);
        }
        let (h, logits) = position(theta, &all.x[noise.len()]);
        all.answers = log_softmax(&logits);
        all.h.push(h);
        all.logits.push(logits);
        all
    }

    /// Nodes of each step.
    fn grid(&self, sums: bool) -> Vec<Vec<Node>> {
        self.kept.iter().map(|kept| nodes(kept.len(), sums)).collect()
    }

    /// Calls `f` with every combination of nodes.
    fn each<'a>(grid: &'a [Vec<Node>], f: &mut dyn FnMut(&[&'a Node])) {
        match grid {
            [only] => only.iter().for_each(|node| f(&[node])),
            [first, second] => first.iter().for_each(|a| second.iter().for_each(|b| f(&[a, b]))),
            _ => unreachable!("one or two steps"),
        }
    }

    /// Expected reward given a trajectory.
    fn value(&self, trajectory: &Trajectory) -> f64 {
        let answer: f64 = self.reward.iter().zip(&trajectory.answers).map(|(r, log)| r * log.exp()).sum();
        answer + self.bonus.map_or(0.0, |place| trajectory.y[self.kept.len() - 1][place])
    }

    /// E[r] by the grid.
    fn expectation(&self, theta: &Parameters, grid: &[Vec<Node>]) -> f64 {
        let mut total = 0.0;
        Toy::each(grid, &mut |noise| {
            let weight: f64 = noise.iter().map(|node| node.weight).product();
            total += weight * self.value(&self.run(theta, noise, false));
        });
        total
    }

    /// E[r] where the largest of y is fed forward: its law is the softmax of a, and can be enumerated.
    fn hard_expectation(&self, theta: &Parameters) -> f64 {
        fn follow(toy: &Toy, theta: &Parameters, step: usize, x: &[f64]) -> f64 {
            let (_, logits) = position(theta, x);
            if step == toy.kept.len() {
                return log_softmax(&logits).iter().zip(toy.reward).map(|(log, r)| r * log.exp()).sum();
            }
            let kept = toy.kept[step];
            let clean = log_softmax(&kept.iter().map(|&id| logits[id as usize]).collect::<Vec<_>>());
            let next = |&id: &u32| follow(toy, theta, step + 1, embedding(theta, id as usize));
            kept.iter().zip(clean).map(|(id, log)| log.exp() * next(id)).sum()
        }
        follow(self, theta, 0, embedding(theta, PROMPT))
    }
}

/// Gradient by central differences of fourth order.
fn differences(f: impl Fn(&Parameters) -> f64) -> Vec<f64> {
    let theta = parameters();
    let by = |i: usize, step: f64| {
        let mut moved = theta;
        moved[i] += step;
        f(&moved)
    };
    let step = 2e-3;
    let slope = |i, step: f64| (by(i, step) - by(i, -step)) / (2.0 * step);
    (0..PARAMETERS).map(|i| (4.0 * slope(i, step) - slope(i, 2.0 * step)) / 3.0).collect()
}

/// An estimator: what stands for the score of a soft step, and where gradients flow.
#[derive(Clone, Copy)]
struct Estimator {
    name: &'static str,
    score: Option<Score>,
    /// Through y, with the noise held.
    through_y: bool,
    /// Into the embeddings that y mixes.
    into_embeddings: bool,
    hard: bool,
}

const CONCRETE: Score = Score::Concrete { tau: TAU, mean: false };
const GUMBEL_G: Score = Score::GumbelG { floor: None, clamp: None, mean: false };

const fn of(name: &'static str, score: Option<Score>, through_y: bool, into_embeddings: bool) -> Estimator {
    Estimator { name, score, through_y, into_embeddings, hard: false }
}

const PATHWISE: Estimator = of("pathwise", None, true, true);
const EXACT: Estimator = of("concrete", Some(CONCRETE), false, true);
const AUXILIARY: Estimator = of("gumbel_g", Some(GUMBEL_G), false, true);
const DETACHED: Estimator = of("concrete, constant inputs", Some(CONCRETE), false, false);
const RELEASED: Estimator = of("soft_ce, as released", Some(Score::SoftCe { full: true }), false, false);
const KEPT: Estimator = of("soft_ce, kept ids", Some(Score::SoftCe { full: false }), false, true);
const STRAIGHT: Estimator = Estimator { hard: true, ..of("straight_through", None, true, true) };
const NONE: Estimator = of("none", None, false, false);

/// Mean of an estimator and trace of its covariance.
struct Moments {
    mean: Vec<f64>,
    variance: f64,
}

/// Trajectories with what their losses leave at the logits, and their weights.
struct Rows {
    trajectories: Vec<Trajectory>,
    /// Which trajectory, gradient of the answer's logits, coefficient of the soft steps' scores, weight.
    of: Vec<(usize, [f64; VOCABULARY], f64, f64)>,
}

impl Toy {
    /// Gradients of one estimator by rows; the soft steps' parts come from the operations under test.
    fn gradients(&self, theta: &Parameters, rows: &Rows, estimator: &Estimator) -> Vec<Vec<f64>> {
        let (device, n) = (Device::cpu(), rows.of.len());
        let mut gradients = vec![vec![0.0; PARAMETERS]; n];
        let mut d_logits: Vec<[f64; VOCABULARY]> = rows.of.iter().map(|row| row.1).collect();
        for at in (0..=self.kept.len()).rev() {
            // Through the position's logits and hidden state to its input.
            let mut d_input = vec![[0.0; WIDTH]; n];
            for (row, (of, gradient)) in rows.of.iter().zip(&mut gradients).enumerate() {
                let trajectory = &rows.trajectories[of.0];
                let mut dh = [0.0; WIDTH];
                for (id, &d) in d_logits[row].iter().enumerate() {
                    for k in 0..WIDTH {
                        dh[k] += d * embedding(theta, id)[k];
                        gradient[id * WIDTH + k] += d * trajectory.h[at][k];
                    }
                }
                for (k, &d) in dh.iter().enumerate() {
                    for j in 0..WIDTH {
                        gradient[(VOCABULARY + k) * WIDTH + j] += d * trajectory.x[at][j];
                        d_input[row][j] += d * theta[(VOCABULARY + k) * WIDTH + j];
                    }
                }
                if at == 0 {
                    (0..WIDTH).for_each(|j| gradient[PROMPT * WIDTH + j] += d_input[row][j]);
                }
            }
            let Some(step) = at.checked_sub(1) else { break };
            let kept = self.kept[step];
            let wide = |of: &dyn Fn(usize) -> Vec<f64>| {
                let values: Vec<f64> = (0..n).flat_map(of).collect();
                Tensor::from_host(&device, [n, values.len() / n], &values).unwrap()
            };
            let y = wide(&|row| rows.trajectories[rows.of[row].0].y[step].clone());
            let mut support = Support::reserve(&device, n, kept.len()).unwrap();
            support.upload(0..n, &kept.repeat(n), &vec![kept.len() as u32; n]).unwrap();
            let mut total = vec![0.0; n * VOCABULARY];
            let mut add = |part: Tensor| {
                total.iter_mut().zip(part.download::<f64>().unwrap()).for_each(|(sum, d)| *sum += d);
            };
            let zeros = || Tensor::zeros(&device, [n, VOCABULARY], Dtype::F64).unwrap();
            if let Some(kind) = estimator.score {
                let logits = wide(&|row| rows.trajectories[rows.of[row].0].logits[step].to_vec());
                let g = wide(&|row| rows.trajectories[rows.of[row].0].g[step].clone());
                let scored = Scored {
                    logits: logits.view(),
                    inverse_temperature: 1.0,
                    support: &support,
                    at: 0..n,
                    perturbed: g.view(),
                    weights: y.view(),
                };
                let mut part = zeros();
                let coefficient = wide(&|row| vec![rows.of[row].2]);
                score_backward(coefficient.view(), &scored, &kind, part.view_mut()).unwrap();
                add(part);
            }
            if estimator.through_y {
                let dot = |row: usize, id: u32| -> f64 {
                    embedding(theta, id as usize).iter().zip(&d_input[row]).map(|(e, d)| e * d).sum()
                };
                let dy = wide(&|row| kept.iter().map(|&id| dot(row, id)).collect());
                let settings = Settings {
                    inverse_temperature: 1.0,
                    tau: TAU,
                    perturbation: Perturbation::Gumbel { clamp: None },
                    proxy: Proxy::Argmax,
                    hard: estimator.hard,
                };
                let mut part = zeros();
                backward(dy.view(), y.view(), &settings, &support, 0..n, part.view_mut()).unwrap();
                add(part);
            }
            if estimator.into_embeddings {
                for (row, gradient) in gradients.iter_mut().enumerate() {
                    let trajectory = &rows.trajectories[rows.of[row].0];
                    let (g, y) = (&trajectory.g[step], &trajectory.y[step]);
                    let winner = (0..y.len()).fold(0, |best, i| if g[i] > g[best] { i } else { best });
                    for (i, &id) in kept.iter().enumerate() {
                        let weight = if estimator.hard { f64::from(u8::from(i == winner)) } else { y[i] };
                        for j in 0..WIDTH {
                            gradient[id as usize * WIDTH + j] += weight * d_input[row][j];
                        }
                    }
                }
            }
            for (d, total) in d_logits.iter_mut().zip(total.chunks(VOCABULARY)) {
                d.copy_from_slice(total);
            }
        }
        gradients
    }

    /// Mean and variance over noise, answers and proxies; the advantage is the reward less its expectation.
    fn moments(&self, theta: &Parameters, estimator: &Estimator, baseline: f64) -> Moments {
        let grid = self.grid(matches!(estimator.score, Some(Score::GumbelG { .. })));
        let (mut mean, mut square) = (vec![0.0; PARAMETERS], 0.0);
        let mut rows = Rows { trajectories: Vec::new(), of: Vec::new() };
        let mut flush = |rows: &mut Rows| {
            for (gradient, of) in self.gradients(theta, rows, estimator).iter().zip(&rows.of) {
                mean.iter_mut().zip(gradient).for_each(|(mean, g)| *mean += of.3 * g);
                square += of.3 * gradient.iter().map(|g| g * g).sum::<f64>();
            }
            rows.trajectories.clear();
            rows.of.clear();
        };
        Toy::each(&grid, &mut |noise| {
            let weight: f64 = noise.iter().map(|node| node.weight).product();
            let trajectory = self.run(theta, noise, estimator.hard);
            // The proxy's place, where rewards ask for it.
            let places = match self.bonus {
                None => vec![(0.0, 1.0)],
                Some(place) => {
                    let y = trajectory.y[self.kept.len() - 1][place];
                    vec![(1.0, y), (0.0, 1.0 - y)]
                }
            };
            for (answer, log) in trajectory.answers.iter().enumerate() {
                for &(bonus, share) in &places {
                    let advantage = self.reward[answer] + bonus - baseline;
                    let one = |id: usize| f64::from(u8::from(id == answer));
                    let d = std::array::from_fn(|id| advantage * (one(id) - trajectory.answers[id].exp()));
                    rows.of.push((rows.trajectories.len(), d, advantage, weight * log.exp() * share));
                }
            }
            rows.trajectories.push(trajectory);
            if rows.of.len() > 4000 {
                flush(&mut rows);
            }
        });
        flush(&mut rows);
        let norm: f64 = mean.iter().map(|m| m * m).sum();
        Moments { mean, variance: square - norm }
    }

    /// Prints a line of each estimator beside the exact gradient, and returns their distances over its norm.
    fn table(&self, title: &str, estimators: &[Estimator]) -> Vec<(f64, f64)> {
        let theta = parameters();
        let grid = self.grid(false);
        let (soft, hard) = (self.expectation(&theta, &grid), self.hard_expectation(&theta));
        let exact = differences(|theta| self.expectation(theta, &grid));
        let exact_hard = differences(|theta| self.hard_expectation(theta));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        println!(
            "{title}: E[r] {soft:.4} (one token {hard:.4}), |gradient| {:.4}",
            dot(&exact, &exact).sqrt()
        );
        println!("{:28} {:>9} {:>8} {:>8} {:>10}", "estimator", "bias", "cosine", "norm", "variance");
        let line = |estimator: &Estimator| {
            let (exact, baseline) = if estimator.hard { (&exact_hard, hard) } else { (&exact, soft) };
            let found = self.moments(&theta, estimator, baseline);
            let apart: Vec<f64> = found.mean.iter().zip(exact).map(|(a, b)| a - b).collect();
            let (norm, size) = (dot(exact, exact).sqrt(), dot(&found.mean, &found.mean).sqrt());
            let bias = dot(&apart, &apart).sqrt() / norm;
            let cosine = dot(&found.mean, exact) / (norm * size);
            let variance = found.variance;
            println!("{:28} {bias:9.1e} {cosine:8.4} {:8.4} {variance:10.4}", estimator.name, size / norm);
            (bias, variance)
        };
        estimators.iter().map(line).collect()
    }
}

#[test]
fn the_grid_is_the_law_of_the_noise() {
    for n in [2, 3] {
        for sums in [false, true] {
            let all = nodes(n, sums);
            let mean =
                |f: &dyn Fn(&[f64]) -> f64| all.iter().map(|node| node.weight * f(&node.noise)).sum::<f64>();
            assert!((mean(&|_| 1.0) - 1.0).abs() < 1e-6, "{n} ids: total {}", mean(&|_| 1.0));
            for i in 0..n {
                // exp(-eps) is exponential: mean 1; its square has mean 2, and 1 + 1/n ... where sum E is its mean.
                let (first, second) = (mean(&|eps| (-eps[i]).exp()), mean(&|eps| (-2.0 * eps[i]).exp()));
                assert!((first - 1.0).abs() < 1e-5, "{n} ids: {first}");
                let expected = if sums { 2.0 } else { 2.0 * n as f64 / (n as f64 + 1.0) };
                assert!((second - expected).abs() < 1e-4, "{n} ids: {second} {expected}");
            }
        }
    }
    // The same expectation from the noise itself, without the reduction to differences: three dimensions for one step.
    let theta = parameters();
    let (step, points) = (0.5, 60);
    let axis: Vec<(f64, f64)> = (0..points)
        .map(|i| -4.0 + step * f64::from(i))
        .map(|eps: f64| (eps, step * (-eps - (-eps).exp()).exp()))
        .collect();
    let mut total = 0.0;
    for a in &axis {
        for b in &axis {
            for c in &axis {
                let node = Node { noise: vec![a.0, b.0, c.0], weight: a.1 * b.1 * c.1 };
                if node.weight > 1e-13 {
                    total += node.weight * ONE_STEP.value(&ONE_STEP.run(&theta, &[&node], false));
                }
            }
        }
    }
    let reduced = ONE_STEP.expectation(&theta, &ONE_STEP.grid(false));
    assert!((total - reduced).abs() < 1e-6, "{total} {reduced}");
}

#[test]
fn pathwise_and_the_exact_scores_are_unbiased_and_the_others_are_not() {
    for (title, toy) in [("one soft step", ONE_STEP), ("two soft steps", TWO_STEPS)] {
        let all = [PATHWISE, EXACT, AUXILIARY, DETACHED, RELEASED, KEPT, STRAIGHT, NONE];
        let found = toy.table(title, &all);
        for (estimator, (bias, _)) in all.iter().zip(&found) {
            let unbiased = ["pathwise", "concrete", "gumbel_g"].contains(&estimator.name);
            assert_eq!(*bias < 1e-4, unbiased, "{title}, {}: {bias:e}", estimator.name);
            assert!(unbiased || *bias > 1e-2, "{title}, {}: {bias:e}", estimator.name);
        }
        // concrete is the expectation of gumbel_g given what was sampled.
        assert!(found[1].1 < found[2].1, "{title}");
    }
}

#[test]
fn exact_scores_of_soft_steps_have_mean_zero_and_the_surrogate_has_not() {
    let theta = parameters();
    for estimator in [EXACT, AUXILIARY, RELEASED] {
        let grid = TWO_STEPS.grid(estimator.score == Some(GUMBEL_G));
        let mut mean = vec![0.0; PARAMETERS];
        for first in &grid[0] {
            let mut rows = Rows { trajectories: Vec::new(), of: Vec::new() };
            for second in &grid[1] {
                rows.of.push((rows.trajectories.len(), [0.0; VOCABULARY], 1.0, first.weight * second.weight));
                rows.trajectories.push(TWO_STEPS.run(&theta, &[first, second], false));
            }
            for (gradient, of) in TWO_STEPS.gradients(&theta, &rows, &estimator).iter().zip(&rows.of) {
                mean.iter_mut().zip(gradient).for_each(|(mean, g)| *mean += of.3 * g);
            }
        }
        let largest = mean.iter().fold(0.0, |largest: f64, m| largest.max(m.abs()));
        println!("E[score] of {}: largest entry {largest:.1e}", estimator.name);
        assert_eq!(largest < 1e-5, estimator.name != RELEASED.name, "{}: {largest:e}", estimator.name);
    }
}

/// A reward that reads proxies drawn from y: concrete scores all that was sampled, pathwise misses how y moves the draw.
#[test]
fn proxies_in_the_reward_bias_pathwise_alone_of_the_unbiased() {
    let toy = Toy { bonus: Some(1), ..ONE_STEP };
    let all = [PATHWISE, EXACT, AUXILIARY, RELEASED, KEPT, NONE];
    let found = toy.table("one soft step, a drawn proxy in the reward", &all);
    assert!(found[1].0 < 1e-4 && found[2].0 < 1e-4, "{found:?}");
    assert!(found[0].0 > 1e-2, "{found:?}");
}
