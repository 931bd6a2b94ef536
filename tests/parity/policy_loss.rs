//! Policy losses: values and derivatives against plain formulas in f64, ratios that are exactly 1, and bits that
//! depend on the row alone. The presets' golden numbers are in tests/learn.

mod kernels;

use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::policy_loss::{
    Estimator, Hyper, Inputs, Kl, Outputs, Ratio, Statistic, Surrogate, backward, forward,
};
use latch::verify::operations;
use latch::verify::operations::policy_loss::starts;
use std::ops::Range;

#[test]
fn gradient() {
    super::check_gradients(operations::policy_loss::cases());
}

#[derive(Clone)]
struct Problem {
    lengths: Vec<usize>,
    log_probability: Vec<f32>,
    old: Vec<f32>,
    reference: Vec<f32>,
    advantage: Vec<f32>,
    weight: Vec<f32>,
}

#[derive(Debug, PartialEq)]
struct Results {
    term: Vec<f32>,
    statistics: Vec<f32>,
    coefficient: Vec<f32>,
}

impl Problem {
    fn new(lengths: &[usize]) -> Problem {
        let tokens = lengths.iter().sum();
        let draw = |name: &str| super::normals_f32(&format!("policy_loss {name} {lengths:?}"), tokens);
        let log_probability: Vec<f32> = draw("new").iter().map(|x| -1.5 + 0.6 * x).collect();
        let near = |name: &str, by: f32| -> Vec<f32> {
            log_probability.iter().zip(draw(name)).map(|(x, noise)| x + by * noise).collect()
        };
        Problem {
            old: near("old", 0.5),
            reference: near("reference", 0.7),
            advantage: draw("advantage"),
            weight: draw("weight").iter().map(|x| 0.1 + x.abs()).collect(),
            lengths: lengths.to_vec(),
            log_probability,
        }
    }

    /// Rows `rows` alone.
    fn part(&self, rows: Range<usize>) -> Problem {
        let all = starts(&self.lengths);
        let tokens = all[rows.start] as usize..all[rows.end] as usize;
        let cut = |values: &[f32]| values[tokens.clone()].to_vec();
        Problem {
            lengths: self.lengths[rows].to_vec(),
            log_probability: cut(&self.log_probability),
            old: cut(&self.old),
            reference: cut(&self.reference),
            advantage: cut(&self.advantage),
            weight: cut(&self.weight),
        }
    }

    fn run(&self, hyper: &Hyper) -> Results {
        self.run_on(&Device::cpu(), hyper)
    }

    fn run_on(&self, device: &Device, hyper: &Hyper) -> Results {
        self.run_with(device, hyper, &starts(&self.lengths))
    }

    fn run_with(&self, device: &Device, hyper: &Hyper, starts: &[u32]) -> Results {
        let [term, statistics, coefficient] = self.tensors(device, hyper, starts, Dtype::F32);
        let values = |tensor: Tensor| tensor.download::<f32>().unwrap();
        Results { term: values(term), statistics: values(statistics), coefficient: values(coefficient) }
    }

    /// Terms, statistics and coefficients in f64.
    fn run_exactly(&self, hyper: &Hyper) -> [Vec<f64>; 3] {
        let tensors = self.tensors(&Device::cpu(), hyper, &starts(&self.lengths), Dtype::F64);
        tensors.map(|tensor| tensor.download::<f64>().unwrap())
    }

    fn tensors(&self, device: &Device, hyper: &Hyper, starts: &[u32], dtype: Dtype) -> [Tensor; 3] {
        let tokens = self.log_probability.len();
        let column = |values: &[f32]| {
            let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
            super::gpu::tensor(device, [tokens, 1], &values, dtype)
        };
        let (log_probability, old) = (column(&self.log_probability), column(&self.old));
        let (reference, advantage) = (column(&self.reference), column(&self.advantage));
        let weight = column(&self.weight);
        let starts = Tensor::from_host(device, [starts.len(), 1], starts).unwrap();
        let inputs = Inputs {
            log_probability: log_probability.view(),
            old: old.view(),
            reference: hyper.kl.map(|_| reference.view()),
            advantage: advantage.view(),
            starts: starts.view(),
        };
        let zeros = |cols| Tensor::zeros(device, [tokens, cols], dtype).unwrap();
        let (mut term, mut statistics, mut coefficient) = (zeros(1), zeros(Statistic::COUNT), zeros(1));
        let out = Outputs { term: term.view_mut(), statistics: statistics.view_mut() };
        forward(&inputs, hyper, out).unwrap();
        backward(weight.view(), &inputs, hyper, coefficient.view_mut()).unwrap();
        [term, statistics, coefficient]
    }

    /// Terms and coefficients by the formulas as papers write them, token by token in f64.
    fn naive(&self, hyper: &Hyper) -> Vec<[f64; 2]> {
        let starts = starts(&self.lengths);
        let mut all = Vec::new();
        for row in 0..self.lengths.len() {
            let tokens = starts[row] as usize..starts[row + 1] as usize;
            let x = |n: usize| f64::from(self.log_probability[n]) - f64::from(self.old[n]);
            let mean = tokens.clone().map(x).sum::<f64>() / tokens.len() as f64;
            let bound = hyper.clamp.unwrap();
            let of = |n: usize| if hyper.ratio == Ratio::Sequence { mean } else { x(n) };
            // Value, derivative by the log-ratio.
            let surrogate = |n: usize| -> (f64, f64) {
                let (rho, a) = (of(n).clamp(-bound, bound).exp(), f64::from(self.advantage[n]));
                let moves = f64::from(u8::from(of(n).abs() <= bound));
                match hyper.surrogate {
                    Surrogate::Clipped { low, high, delta, dual } => {
                        let capped = rho.min(delta.unwrap_or(f64::INFINITY));
                        let (first, second) = (capped * a, rho.clamp(1.0 - low, 1.0 + high) * a);
                        let mut gain = first.min(second);
                        let mut slope = if first <= second && capped == rho { rho * a } else { 0.0 };
                        if let (true, Some(dual)) = (a < 0.0, dual)
                            && gain < dual * a
                        {
                            (gain, slope) = (dual * a, 0.0);
                        }
                        (gain, slope * moves)
                    }
                    Surrogate::Weighted { high } => {
                        let weight = rho.min(high) * a;
                        (weight * f64::from(self.log_probability[n]), weight)
                    }
                    Surrogate::Soft { positive, negative } => {
                        let t = if a > 0.0 { positive } else { negative };
                        let gate = 1.0 / (1.0 + (-t * (rho - 1.0)).exp());
                        (4.0 / t * gate * a, 4.0 * gate * (1.0 - gate) * rho * a * moves)
                    }
                    Surrogate::Plain => (a * f64::from(self.log_probability[n]), a),
                }
            };
            let penalty = |n: usize| -> (f64, f64) {
                let Some(kl) = hyper.kl else { return (0.0, 0.0) };
                let d = f64::from(self.log_probability[n]) - f64::from(self.reference[n]);
                let k3 = (-d).exp() - 1.0 + d;
                let (value, slope) = match kl.estimator {
                    Estimator::K1 => (d, 1.0),
                    Estimator::K2 => (d * d / 2.0, d),
                    Estimator::K3 => (k3, 1.0 - (-d).exp()),
                    Estimator::K3Plus => (k3, d),
                };
                (kl.beta * value, kl.beta * slope)
            };
            let shared = hyper.ratio == Ratio::Sequence
                && matches!(hyper.surrogate, Surrogate::Clipped { .. } | Surrogate::Soft { .. });
            let row_slope: f64 =
                tokens.clone().map(|n| f64::from(self.weight[n]) * surrogate(n).1).sum::<f64>()
                    / tokens.len() as f64;
            for n in tokens {
                let weight = f64::from(self.weight[n]);
                let own = if shared { row_slope } else { weight * surrogate(n).1 };
                all.push([penalty(n).0 - surrogate(n).0, weight * penalty(n).1 - own]);
            }
        }
        all
    }
}

fn hypers() -> Vec<Hyper> {
    let clipped = Surrogate::Clipped { low: 0.2, high: 0.28, delta: None, dual: None };
    let both = Surrogate::Clipped { low: 0.1, high: 0.3, delta: Some(2.0), dual: Some(1.7) };
    let weighted = Surrogate::Weighted { high: 1.3 };
    let soft = Surrogate::Soft { positive: 1.0, negative: 1.05 };
    let estimators = [Estimator::K1, Estimator::K2, Estimator::K3, Estimator::K3Plus];
    let mut all = Vec::new();
    for surrogate in [clipped, both, weighted, soft, Surrogate::Plain] {
        for ratio in [Ratio::Token, Ratio::Sequence] {
            let plain = Hyper { ratio, surrogate, clamp: Some(20.0), kl: None };
            all.push(plain);
            all.extend(estimators.map(|estimator| Hyper {
                kl: Some(Kl { estimator, beta: 0.2, clamp: Some(20.0), cap: None }),
                ..plain
            }));
        }
    }
    all
}

/// What a broken kernel is tried on.
pub fn small(device: &Device) -> Vec<Vec<f64>> {
    let results = Problem::new(&[3, 70, 1]).run_on(device, &hypers()[0]);
    let parts = [results.term, results.statistics, results.coefficient];
    parts.map(|part| part.into_iter().map(f64::from).collect()).to_vec()
}

#[test]
fn values_and_coefficients_follow_the_formulas() {
    for lengths in [&[1][..], &[5, 1, 0, 33, 16, 2], &[300, 17]] {
        let problem = Problem::new(lengths);
        for hyper in hypers() {
            let found = problem.run(&hyper);
            for (n, [term, coefficient]) in problem.naive(&hyper).into_iter().enumerate() {
                let near = |found: f32, expected: f64| {
                    (f64::from(found) - expected).abs() <= 2e-6 * (1.0 + expected.abs())
                };
                assert!(near(found.term[n], term), "{hyper:?} term {n}: {} {term}", found.term[n]);
                let ours = found.coefficient[n];
                assert!(near(ours, coefficient), "{hyper:?} coefficient {n}: {ours} {coefficient}");
            }
        }
    }
}

#[test]
fn bounds_hold_values_and_stop_gradients() {
    let problem = Problem {
        lengths: vec![3],
        log_probability: vec![-1.0; 3],
        // Log-ratios 30, -30 and 0.
        old: vec![-31.0, 29.0, -1.0],
        reference: vec![-31.0, 29.0, -1.0],
        advantage: vec![-1.0, 1.0, 1.0],
        weight: vec![1.0; 3],
    };
    let wide = Surrogate::Clipped { low: 1.0, high: 1e30, delta: None, dual: None };
    let kl = Kl { estimator: Estimator::K3, beta: 1.0, clamp: Some(20.0), cap: Some(10.0) };
    let hyper = Hyper { ratio: Ratio::Token, surrogate: wide, clamp: Some(20.0), kl: Some(kl) };
    let found = problem.run(&hyper);
    let column = |which: Statistic| -> Vec<f64> {
        found.statistics.chunks(Statistic::COUNT).map(|row| f64::from(row[which as usize])).collect()
    };
    let ratios = column(Statistic::Ratio);
    assert!((ratios[0] / 20f64.exp() - 1.0).abs() < 1e-6 && (ratios[1] / (-20f64).exp() - 1.0).abs() < 1e-6);
    assert_eq!(column(Statistic::Kl), [10.0, 10.0, 0.0]);
    assert_eq!(found.coefficient, [0.0, 0.0, -1.0]);
}

#[test]
fn flags_say_what_was_clipped() {
    let ratios: [f32; 6] = [0.7, 1.5, 0.7, 1.5, 3.5, 1.0];
    let problem = Problem {
        lengths: vec![6],
        log_probability: vec![-1.0; 6],
        old: ratios.iter().map(|r| -1.0 - r.ln()).collect(),
        reference: vec![0.0; 6],
        advantage: vec![1.0, 1.0, -1.0, -1.0, -1.0, 1.0],
        weight: vec![1.0; 6],
    };
    let surrogate = Surrogate::Clipped { low: 0.2, high: 0.2, delta: None, dual: Some(3.0) };
    let found = problem.run(&Hyper { ratio: Ratio::Token, surrogate, clamp: Some(20.0), kl: None });
    let flags = |which: Statistic| -> Vec<f32> {
        found.statistics.chunks(Statistic::COUNT).map(|row| row[which as usize]).collect()
    };
    assert_eq!(flags(Statistic::ClippedLow), [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(flags(Statistic::ClippedHigh), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(flags(Statistic::Capped), [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    assert_eq!(flags(Statistic::Kl), [0.0; 6]);
    let moving: Vec<bool> = found.coefficient.iter().map(|&c| c != 0.0).collect();
    assert_eq!(moving, [true, false, false, true, false, true]);
    assert!((found.term[4] - 3.0).abs() < 1e-6, "verl: at most -3A");
}

#[test]
fn an_unmoved_policy_has_a_ratio_of_exactly_one() {
    let mut problem = Problem::new(&[7, 1, 40]);
    problem.old = problem.log_probability.clone();
    for hyper in hypers().into_iter().filter(|hyper| hyper.kl.is_none()) {
        let found = problem.run(&hyper);
        assert!(found.statistics.chunks(Statistic::COUNT).all(|row| row[0].to_bits() == 1f32.to_bits()));
        if hyper.ratio == Ratio::Token && !matches!(hyper.surrogate, Surrogate::Soft { .. }) {
            for (n, &coefficient) in found.coefficient.iter().enumerate() {
                assert_eq!(coefficient, -(problem.weight[n] * problem.advantage[n]), "{hyper:?}");
            }
        }
    }
}

#[test]
fn a_row_depends_on_itself_alone_and_nothing_on_threads() {
    // Enough work for several tasks.
    let lengths: Vec<usize> = (0..90).map(|row| (row * 37) % 101).collect();
    let problem = Problem::new(&lengths);
    let all = starts(&lengths);
    for hyper in hypers() {
        let whole = super::on_threads(1, || problem.run(&hyper));
        assert_eq!(whole, super::on_threads(3, || problem.run(&hyper)));
        for row in [0, 1, 44, 89] {
            let tokens = all[row] as usize..all[row + 1] as usize;
            let alone = problem.part(row..row + 1).run(&hyper);
            assert_eq!(alone.term, whole.term[tokens.clone()]);
            assert_eq!(alone.coefficient, whole.coefficient[tokens.clone()]);
            let five = |n: usize| n * Statistic::COUNT;
            assert_eq!(alone.statistics, whole.statistics[five(tokens.start)..five(tokens.end)]);
        }
    }
}

#[test]
fn numbers_that_are_none_reach_the_loss() {
    for hyper in hypers() {
        let mut problem = Problem::new(&[4, 4]);
        problem.log_probability[5] = f32::NAN;
        let found = problem.run(&hyper);
        assert!(found.term[5].is_nan() && found.coefficient[5].is_nan(), "{hyper:?}");
        assert!(found.term[..4].iter().all(|term| term.is_finite()));
    }
}

#[test]
fn wrong_operands_are_named() {
    let device = Device::cpu();
    let column = |rows| Tensor::zeros(&device, [rows, 1], Dtype::F32).unwrap();
    let plain = hypers()[0];
    let run = |old: &Tensor, starts: &[u32], reference: bool, hyper: &Hyper| {
        let (log_probability, mut coefficient) = (column(4), column(4));
        let starts = Tensor::from_host(&device, [starts.len(), 1], starts).unwrap();
        let inputs = Inputs {
            log_probability: log_probability.view(),
            old: old.view(),
            reference: reference.then(|| log_probability.view()),
            advantage: log_probability.view(),
            starts: starts.view(),
        };
        let message = backward(log_probability.view(), &inputs, hyper, coefficient.view_mut());
        message.unwrap_err().to_string()
    };
    let kl = Some(Kl { estimator: Estimator::K3, beta: -1.0, clamp: None, cap: None });
    let dual = Surrogate::Clipped { low: 0.2, high: 0.2, delta: None, dual: Some(1.0) };
    let delta = Surrogate::Clipped { low: 0.2, high: 0.2, delta: Some(1.1), dual: None };
    for (message, expected) in [
        (run(&column(3), &[0, 4], false, &plain), "policy_loss old: found 3 rows of 1, expected 4 rows of 1"),
        (run(&column(4), &[0, 3], false, &plain), "starts: found 0..3, expected 0..4"),
        (run(&column(4), &[0, 3, 2, 4], false, &plain), "row 1 from 3 to 2"),
        (run(&column(4), &[], false, &plain), "policy_loss starts: found 0 rows"),
        (run(&column(4), &[0, 4], true, &plain), "without a KL penalty"),
        (run(&column(4), &[0, 4], false, &Hyper { kl, ..plain }), "without log-probabilities of a reference"),
        (run(&column(4), &[0, 4], true, &Hyper { kl, ..plain }), "beta: found -1, expected 0 or more"),
        (run(&column(4), &[0, 4], false, &Hyper { surrogate: dual, ..plain }), "dual clip: found 1"),
        (
            run(&column(4), &[0, 4], false, &Hyper { surrogate: delta, ..plain }),
            "delta: found 1.1, expected more than 1 + high = 1.2",
        ),
        (run(&column(4), &[0, 4], false, &Hyper { clamp: Some(f64::NAN), ..plain }), "clamp: found NaN"),
    ] {
        assert!(message.contains(expected), "`{message}` lacks `{expected}`");
    }
}
