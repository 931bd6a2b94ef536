//! What the benches of the memory-bound operations share: tensors, a check before the timing, and two ways to time:
//! criterion, or a table that quotes the triad of the same run.

use crate::machine::{Times, triad_once};
use criterion::{Criterion, Throughput};
use latch::base::Dtype;
use latch::device::{Device, Element};
use latch::ops::Tensor;
use latch::verify::gradient::normals;

/// Positions of a segment.
pub const ROWS: usize = 1024;
/// Width of the residual stream: a tensor of ROWS x WIDTH takes 3 MiB in f32.
pub const WIDTH: usize = 768;

/// What one run gets through.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// Bytes that the operation must read and write at least.
    Bytes(usize),
    /// Things of a kind that no bandwidth bounds.
    Elements(usize),
}

/// One operation, prepared and checked.
pub struct Case {
    pub name: String,
    pub amount: Amount,
    pub run: Box<dyn FnMut() + Send>,
}

impl Case {
    /// An operation that moves `bytes` an element of ROWS x WIDTH.
    pub fn moving(name: &str, bytes: usize, run: impl FnMut() + Send + 'static) -> Case {
        Case { name: name.into(), amount: Amount::Bytes(bytes * ROWS * WIDTH), run: Box::new(run) }
    }
}

/// Standard normal numbers that depend on `name` only.
pub fn random(name: &str, rows: usize, cols: usize) -> Tensor {
    let values: Vec<f32> = normals(name, rows * cols).into_iter().map(|value| value as f32).collect();
    Tensor::from_host(&Device::cpu(), [rows, cols], &values).expect("the values fit")
}

/// A parameter vector of `random` numbers.
pub fn vector(name: &str, count: usize) -> Tensor {
    let values: Vec<f32> = normals(name, count).into_iter().map(|value| value as f32).collect();
    Tensor::from_host(&Device::cpu(), [count], &values).expect("the values fit")
}

pub fn zeros(rows: usize, cols: usize) -> Tensor {
    Tensor::zeros(&Device::cpu(), [rows, cols], Dtype::F32).expect("memory")
}

/// `[ROWS, 1]`: the value of each row.
pub fn column<T: Element>(value: impl Fn(usize) -> T) -> Tensor {
    let values: Vec<T> = (0..ROWS).map(value).collect();
    Tensor::from_host(&Device::cpu(), [ROWS, 1], &values).expect("the values fit")
}

/// The numbers of an f32 tensor, in f64.
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.download::<f32>().expect("an f32 tensor").into_iter().map(f64::from).collect()
}

/// Fails unless every element is what the naive formula says.
pub fn check(what: &str, found: &Tensor, expected: impl Fn(usize) -> f64) {
    for (at, found) in numbers(found).into_iter().enumerate() {
        let expected = expected(at);
        assert!(
            (found - expected).abs() <= 1e-4 * (1.0 + expected.abs()),
            "{what}[{at}]: {found}, not {expected}"
        );
    }
}

/// Times all cases with criterion.
pub fn criterion(criterion: &mut Criterion, name: &str, cases: Vec<Case>) {
    let mut group = criterion.benchmark_group(name);
    for mut case in cases {
        group.throughput(match case.amount {
            Amount::Bytes(bytes) => Throughput::Bytes(bytes as u64),
            Amount::Elements(count) => Throughput::Elements(count as u64),
        });
        group.bench_function(&case.name, |bencher| bencher.iter(|| (case.run)()));
    }
    group.finish();
}

/// The triad a = b + s c over three tensors of ROWS x WIDTH: what memory gives an operation of that size.
pub fn triad() -> Case {
    let (b, c, mut a) =
        (vec![1.0_f32; ROWS * WIDTH], vec![1.0_f32; ROWS * WIDTH], vec![0.0_f32; ROWS * WIDTH]);
    Case::moving("triad", 12, move || triad_once(&mut a, &b, &c))
}

/// Prints every case in GB/s beside the triad of the same rounds.
pub fn table(cases: Vec<Case>, rounds: usize) {
    let mut cases: Vec<(Case, Times)> =
        std::iter::once(triad()).chain(cases).map(|case| (case, Times::default())).collect();
    for _ in 0..rounds {
        for (case, times) in &mut cases {
            // The first finds the caches as the last case left them.
            for _ in 0..3 {
                times.record(|| (case.run)());
            }
        }
    }
    line!("{:<28}{:>10}{:>10}  {:>9}", "f32, 1024 x 768", "best", "median", "of triad");
    let mut limit = f64::NAN;
    for (case, times) in &cases {
        let (amount, unit) = match case.amount {
            Amount::Bytes(bytes) => (bytes as f64, "GB/s"),
            Amount::Elements(count) => (count as f64, "G/s"),
        };
        let speed = amount / times.min() / 1e9;
        if case.name == "triad" {
            limit = speed;
        }
        let share = match case.amount {
            Amount::Bytes(_) => format!("{:>8.0}%", 100.0 * speed / limit),
            Amount::Elements(_) => String::new(),
        };
        line!("{:<28}{speed:>10.2}{:>10.2}  {share} {unit}", case.name, amount / times.median() / 1e9);
    }
}
