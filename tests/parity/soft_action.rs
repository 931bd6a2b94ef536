//! Soft actions and their scores: the definitions, the laws of the noise, densities that are densities, replay, bits
//! that depend on the row alone, messages.

mod definition;
mod density;
mod kernels;
mod messages;

use latch::base::rng::{Purpose, StreamKey};
use latch::base::{Dtype, Result};
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::sampler::{Noise, Support};
use latch::ops::soft_action::{
    Outputs, Perturbation, Proxy, Score, Scored, Settings, backward, forward, score, score_backward,
};
use latch::verify::operations;
use std::ops::Range;

const SITE: u32 = 6;

#[test]
fn gradient() {
    super::check_gradients(operations::soft_action::cases());
}

fn settings(perturbation: Perturbation, tau: f64) -> Settings {
    Settings { inverse_temperature: 1.0, tau, perturbation, proxy: Proxy::Argmax, hard: false }
}

const GUMBEL: Perturbation = Perturbation::Gumbel { clamp: None };

/// The stream of row `row`, and its step.
fn stream(row: usize) -> (StreamKey, u32) {
    (StreamKey::new(29, 1, 0, row as u32, Purpose::Gumbel), row as u32 % 3)
}

/// Rows of logits and the kept ids of each.
#[derive(Clone)]
struct Problem {
    logits: Vec<f32>,
    vocabulary: usize,
    capacity: usize,
    kept: Vec<Vec<u32>>,
}

/// What [`forward`] gives, widened.
#[derive(Clone, Debug, PartialEq)]
struct Actions {
    perturbed: Vec<f64>,
    weights: Vec<f64>,
    soft: Vec<f64>,
    proxies: Vec<u32>,
    entropies: Vec<f64>,
}

impl Problem {
    /// Normal logits of some rows; row r keeps every id of which `keeps(row, id)` says so.
    fn new(
        name: &str,
        rows: usize,
        vocabulary: usize,
        capacity: usize,
        keeps: impl Fn(usize, usize) -> bool,
    ) -> Problem {
        let logits = super::normals_f32(name, rows * vocabulary).iter().map(|x| 1.5 * x).collect();
        let kept = |row| (0..vocabulary).filter(|&id| keeps(row, id)).map(|id| id as u32).collect();
        Problem { logits, vocabulary, capacity, kept: (0..rows).map(kept).collect() }
    }

    /// One row's logits, all kept, many times over: row r differs by its stream alone.
    fn repeated(logits: &[f32], rows: usize) -> Problem {
        let vocabulary = logits.len();
        Problem {
            logits: logits.repeat(rows),
            vocabulary,
            capacity: vocabulary,
            kept: vec![(0..vocabulary as u32).collect(); rows],
        }
    }

    fn rows(&self) -> usize {
        self.kept.len()
    }

    fn logits(&self, device: &Device, dtype: Dtype, rows: &Range<usize>) -> Tensor {
        let logits = &self.logits[rows.start * self.vocabulary..rows.end * self.vocabulary];
        let logits: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        super::gpu::tensor(device, [rows.len(), self.vocabulary], &logits, dtype)
    }

    /// The rows' kept ids, from row 1 of a support on; ids beyond a row's count are no ids at all.
    fn support(&self, device: &Device, rows: &Range<usize>) -> Support {
        let n = rows.len();
        let mut support = Support::reserve(device, n + 1, self.capacity).unwrap();
        let mut ids = vec![u32::MAX; n * self.capacity];
        for (ids, kept) in ids.chunks_mut(self.capacity).zip(&self.kept[rows.clone()]) {
            ids[..kept.len()].copy_from_slice(kept);
        }
        let counts: Vec<u32> = self.kept[rows.clone()].iter().map(|kept| kept.len() as u32).collect();
        support.upload(1..n + 1, &ids, &counts).unwrap();
        support
    }

    fn try_act(
        &self,
        device: &Device,
        dtype: Dtype,
        rows: Range<usize>,
        settings: &Settings,
    ) -> Result<Actions> {
        let (n, k) = (rows.len(), self.capacity);
        let keys: Vec<u32> = rows.clone().flat_map(|row| stream(row).0.0).collect();
        let steps: Vec<u32> = rows.clone().map(|row| stream(row).1).collect();
        let keys = Tensor::from_host(device, [n, 2], &keys)?;
        let steps = Tensor::from_host(device, [n, 1], &steps)?;
        let noise = Noise { keys: keys.view(), steps: steps.view(), site: SITE };
        let logits = self.logits(device, dtype, &rows);
        let support = self.support(device, &rows);
        let wide = || super::gpu::tensor(device, [n, k], &vec![7.0; n * k], dtype);
        let (mut perturbed, mut weights, mut soft) = (wide(), wide(), wide());
        let mut proxies = Tensor::zeros(device, [n, 1], Dtype::U32)?;
        let mut entropies = Tensor::zeros(device, [n, 1], dtype)?;
        let out = Outputs {
            perturbed: perturbed.view_mut(),
            weights: weights.view_mut(),
            soft: Some(soft.view_mut()),
            proxies: proxies.view_mut(),
            entropies: Some(entropies.view_mut()),
        };
        forward(logits.view(), &support, 1..n + 1, settings, noise, out)?;
        let values = |tensor: Tensor| super::gpu::values(tensor.view());
        Ok(Actions {
            perturbed: values(perturbed),
            weights: values(weights),
            soft: values(soft),
            proxies: proxies.download()?,
            entropies: values(entropies),
        })
    }

    fn act(&self, device: &Device, dtype: Dtype, rows: Range<usize>, settings: &Settings) -> Actions {
        self.try_act(device, dtype, rows, settings).unwrap()
    }

    fn act_exactly(&self, settings: &Settings) -> Actions {
        self.act(&Device::cpu(), Dtype::F64, 0..self.rows(), settings)
    }

    /// Gradient of the logits by [`backward`].
    fn pull(
        &self,
        device: &Device,
        dtype: Dtype,
        rows: Range<usize>,
        settings: &Settings,
        soft: &[f64],
        dy: &[f64],
    ) -> Vec<f64> {
        let (n, k) = (rows.len(), self.capacity);
        let cut =
            |values: &[f64]| super::gpu::tensor(device, [n, k], &values[rows.start * k..rows.end * k], dtype);
        let (soft, dy) = (cut(soft), cut(dy));
        let mut d_logits = Tensor::zeros(device, [n, self.vocabulary], dtype).unwrap();
        let support = self.support(device, &rows);
        backward(dy.view(), soft.view(), settings, &support, 1..n + 1, d_logits.view_mut()).unwrap();
        super::gpu::values(d_logits.view())
    }

    /// Scores of stored g and y, and the gradient of `sum dy score`.
    #[allow(clippy::too_many_arguments)]
    fn try_score(
        &self,
        device: &Device,
        dtype: Dtype,
        rows: Range<usize>,
        inverse_temperature: f64,
        stored: &Actions,
        kind: &Score,
        dy: &[f64],
    ) -> Result<[Vec<f64>; 2]> {
        let (n, k) = (rows.len(), self.capacity);
        let cut =
            |values: &[f64]| super::gpu::tensor(device, [n, k], &values[rows.start * k..rows.end * k], dtype);
        let (perturbed, weights) = (cut(&stored.perturbed), cut(&stored.soft));
        let (logits, support) = (self.logits(device, dtype, &rows), self.support(device, &rows));
        let scored = Scored {
            logits: logits.view(),
            inverse_temperature,
            support: &support,
            at: 1..n + 1,
            perturbed: perturbed.view(),
            weights: weights.view(),
        };
        let mut out = Tensor::zeros(device, [n, 1], dtype)?;
        score(&scored, kind, out.view_mut())?;
        let dy = super::gpu::tensor(device, [n, 1], &dy[rows], dtype);
        let mut d_logits =
            super::gpu::tensor(device, [n, self.vocabulary], &vec![7.0; n * self.vocabulary], dtype);
        score_backward(dy.view(), &scored, kind, d_logits.view_mut())?;
        Ok([super::gpu::values(out.view()), super::gpu::values(d_logits.view())])
    }

    /// The same in f64 for all rows, with dy = 1.
    fn score_exactly(&self, inverse_temperature: f64, stored: &Actions, kind: &Score) -> [Vec<f64>; 2] {
        let ones = vec![1.0; self.rows()];
        let rows = 0..self.rows();
        self.try_score(&Device::cpu(), Dtype::F64, rows, inverse_temperature, stored, kind, &ones).unwrap()
    }

    /// Scaled logits of a row's kept ids in f64.
    fn scaled(&self, row: usize, inverse_temperature: f64) -> Vec<f64> {
        let logits = &self.logits[row * self.vocabulary..];
        self.kept[row].iter().map(|&id| f64::from(logits[id as usize]) * inverse_temperature).collect()
    }
}

/// Plain log-softmax.
fn log_softmax(values: &[f64]) -> Vec<f64> {
    let maximum = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = values.iter().map(|v| (v - maximum).exp()).sum::<f64>().ln() + maximum;
    values.iter().map(|v| v - log_sum).collect()
}

/// Every kind of noise.
fn perturbations() -> [Perturbation; 5] {
    [
        Perturbation::None,
        GUMBEL,
        Perturbation::Gumbel { clamp: Some((-1.5, 3.0)) },
        Perturbation::Gaussian { strength: 0.4 },
        Perturbation::Dirichlet { concentration: 3.0 },
    ]
}

/// Every kind of score.
fn scores() -> [Score; 6] {
    [
        Score::SoftCe { full: true },
        Score::SoftCe { full: false },
        Score::Concrete { tau: 0.5, mean: false },
        Score::Concrete { tau: 0.5, mean: true },
        Score::GumbelG { floor: None, clamp: None, mean: false },
        Score::GumbelG { floor: Some(-3.0), clamp: Some((-1.5, 3.0)), mean: true },
    ]
}

/// Supports of every size from one id on.
fn ragged(name: &str) -> Problem {
    let mut problem =
        Problem::new(name, 9, 61, 23, |row, id| (id * 7 + row) % 61 < [23, 1, 2, 9, 22][row % 5]);
    // A row whose largest kept logits are equal.
    let kept = problem.kept[3].clone();
    problem.logits[3 * 61 + kept[4] as usize] = 6.0;
    problem.logits[3 * 61 + kept[7] as usize] = 6.0;
    problem
}
