//! Estimators of the toy's gradient: mean and variance, from the operations under test.

use super::toy::{PARAMETERS, PROMPT, Parameters, TAU, Toy, Trajectory, VOCABULARY, WIDTH};
use super::toy::{differences, embedding, parameters, place_of_largest};
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::gaussian_density::{self, Normal};
use latch::ops::sampler::Support;
use latch::ops::soft_action::{Perturbation, Proxy, Score, Scored, Settings, backward, score_backward};

/// An estimator: what stands for the score of a soft step, and where gradients flow.
#[derive(Clone, Copy)]
pub struct Estimator {
    pub name: &'static str,
    pub score: Option<Score>,
    /// Through y, with the noise held.
    through_y: bool,
    /// Into the embeddings that y mixes.
    into_embeddings: bool,
    hard: bool,
    /// The density of the noisy embedding stands for the score; with the gradient into its mean's embeddings, or without.
    density: Option<bool>,
}

const CONCRETE: Score = Score::Concrete { tau: TAU, mean: false };
pub const GUMBEL_G: Score = Score::GumbelG { floor: None, clamp: None, mean: false };

const fn of(name: &'static str, score: Option<Score>, through_y: bool, into_embeddings: bool) -> Estimator {
    Estimator { name, score, through_y, into_embeddings, hard: false, density: None }
}

pub const PATHWISE: Estimator = of("pathwise", None, true, true);
pub const EXACT: Estimator = of("concrete", Some(CONCRETE), false, true);
pub const AUXILIARY: Estimator = of("gumbel_g", Some(GUMBEL_G), false, true);
pub const DETACHED: Estimator = of("concrete, constant inputs", Some(CONCRETE), false, false);
pub const RELEASED: Estimator = of("soft_ce, as released", Some(Score::SoftCe { full: true }), false, false);
pub const KEPT: Estimator = of("soft_ce, kept ids", Some(Score::SoftCe { full: false }), false, true);
pub const STRAIGHT: Estimator = Estimator { hard: true, ..of("straight_through", None, true, true) };
pub const GAUSS: Estimator = Estimator { density: Some(true), ..of("gauss_embed", None, false, false) };
pub const GAUSS_LOGITS: Estimator =
    Estimator { density: Some(false), ..of("gauss_embed, frozen mean table", None, false, false) };
pub const NONE: Estimator = of("none", None, false, false);

/// Mean of an estimator and trace of its covariance.
struct Moments {
    mean: Vec<f64>,
    variance: f64,
}

/// Trajectories with what their losses leave at the logits, and their weights.
pub struct Rows {
    pub trajectories: Vec<Trajectory>,
    /// Which trajectory, gradient of the answer's logits, coefficient of the soft steps' scores, weight.
    pub of: Vec<(usize, [f64; VOCABULARY], f64, f64)>,
}

impl Toy {
    /// Gradients of one estimator by rows; the soft steps' parts come from the operations under test.
    pub fn gradients(&self, theta: &Parameters, rows: &Rows, estimator: &Estimator) -> Vec<Vec<f64>> {
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
            let ids = |row: usize| &rows.trajectories[rows.of[row].0].kept[step];
            let capacity = ids(0).len();
            let wide = |of: &dyn Fn(usize) -> Vec<f64>| {
                let values: Vec<f64> = (0..n).flat_map(of).collect();
                Tensor::from_host(&device, [n, values.len() / n], &values).unwrap()
            };
            let y = wide(&|row| rows.trajectories[rows.of[row].0].y[step].clone());
            let mut support = Support::reserve(&device, n, capacity).unwrap();
            let all: Vec<u32> = (0..n).flat_map(|row| ids(row).clone()).collect();
            support.upload(0..n, &all, &vec![capacity as u32; n]).unwrap();
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
            if let (Some(into_mean), Some((deviation, _))) = (estimator.density, self.embedded) {
                // The mean p^T E of what was read, as the model computes it.
                let mean = |row: usize| -> Vec<f64> {
                    let y = &rows.trajectories[rows.of[row].0].y[step];
                    let entry = |j: usize| {
                        ids(row).iter().zip(y).map(|(&id, y)| y * embedding(theta, id as usize)[j]).sum()
                    };
                    (0..WIDTH).map(entry).collect()
                };
                let x = wide(&|row| rows.trajectories[rows.of[row].0].x[at].clone());
                let mean = wide(&mean);
                let coefficient = wide(&|row| vec![rows.of[row].2]);
                let mut dm = Tensor::zeros(&device, [n, WIDTH], Dtype::F64).unwrap();
                let normal = Normal { deviation, mean: false };
                gaussian_density::backward(x.view(), mean.view(), &normal, coefficient.view(), dm.view_mut())
                    .unwrap();
                let dm = dm.download::<f64>().unwrap();
                let dot = |row: usize, id: u32| -> f64 {
                    embedding(theta, id as usize).iter().zip(&dm[row * WIDTH..]).map(|(e, d)| e * d).sum()
                };
                let dp = wide(&|row| ids(row).iter().map(|&id| dot(row, id)).collect());
                let settings = Settings {
                    inverse_temperature: 1.0,
                    tau: TAU,
                    perturbation: Perturbation::None,
                    proxy: Proxy::Argmax,
                    hard: false,
                };
                let mut part = zeros();
                backward(dp.view(), y.view(), &settings, &support, 0..n, part.view_mut()).unwrap();
                add(part);
                for (row, gradient) in gradients.iter_mut().enumerate().filter(|_| into_mean) {
                    let trajectory = &rows.trajectories[rows.of[row].0];
                    for (&id, y) in trajectory.kept[step].iter().zip(&trajectory.y[step]) {
                        (0..WIDTH).for_each(|j| gradient[id as usize * WIDTH + j] += y * dm[row * WIDTH + j]);
                    }
                }
            }
            if estimator.through_y {
                let dot = |row: usize, id: u32| -> f64 {
                    embedding(theta, id as usize).iter().zip(&d_input[row]).map(|(e, d)| e * d).sum()
                };
                let dy = wide(&|row| ids(row).iter().map(|&id| dot(row, id)).collect());
                let settings = Settings {
                    inverse_temperature: 1.0,
                    tau: TAU,
                    perturbation: if self.embedded.is_some() {
                        Perturbation::None
                    } else {
                        Perturbation::Gumbel { clamp: None }
                    },
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
                    let winner = place_of_largest(g);
                    for (i, &id) in trajectory.kept[step].iter().enumerate() {
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
        let grid = self.grid(theta, matches!(estimator.score, Some(Score::GumbelG { .. })));
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
            let bonuses = self.bonuses(&trajectory);
            for (answer, log) in trajectory.answers.iter().enumerate() {
                for &(bonus, share) in &bonuses {
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
    pub fn table(&self, title: &str, estimators: &[Estimator]) -> Vec<(f64, f64)> {
        let theta = parameters();
        let (soft, hard) = (self.expectation(&theta), self.hard_expectation(&theta));
        let exact = differences(|theta| self.expectation(theta));
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
