//! Matrix products against the machine: share of the FMA peak for many rows, of the read bandwidth for few.
//! Operation: src/cpu/gemm, src/ops/linear.rs.

use crate::machine::{Times, peak_once, read_once, triad_once};
use criterion::{Criterion, Throughput};
use half::bf16;
use latch::cpu::gemm::{Accumulate, Bf16Operand, Matrix, MatrixMut, gemm, gemm_bf16};
use latch::cpu::parallel::with_threads;
use std::hint::black_box;

/// Rows, k, columns, and whether B is stored `[columns, k]`.
type Shape = (usize, usize, usize, bool);

const LARGE: [Shape; 6] = [
    (256, 768, 3072, false),
    (256, 768, 3072, true),
    (1024, 1024, 1024, false),
    (1024, 1024, 1024, true),
    (256, 256, 1024, false),
    (64, 768, 768, true),
];

const SKINNY: [Shape; 11] = [
    (1, 768, 3072, false),
    (1, 768, 3072, true),
    (1, 768, 50257, true),
    (1, 768, 50257, false),
    (4, 768, 3072, true),
    (8, 768, 3072, false),
    (8, 768, 3072, true),
    (12, 768, 3072, false),
    (12, 768, 3072, true),
    (24, 768, 3072, false),
    (24, 768, 3072, true),
];

struct Operands {
    shape: Shape,
    a: Vec<f32>,
    b: Vec<f32>,
    b16: Vec<bf16>,
    c: Vec<f32>,
}

impl Operands {
    fn new(shape: Shape) -> Self {
        let (m, k, n, _) = shape;
        let values =
            |count: usize| (0..count).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect::<Vec<_>>();
        let b = values(k * n);
        let b16 = b.iter().map(|&v| bf16::from_f32(v)).collect();
        Operands { shape, a: values(m * k), b, b16, c: vec![0.0; m * n] }
    }

    fn run(&mut self) {
        let (m, k, n, transposed) = self.shape;
        let b = if transposed {
            Matrix::row_major(&self.b, n, k).transposed()
        } else {
            Matrix::row_major(&self.b, k, n)
        };
        let c = MatrixMut::row_major(&mut self.c, m, n);
        gemm(Matrix::row_major(&self.a, m, k), b, c, Accumulate::Assign, None);
        black_box(&self.c);
    }

    fn run_bf16(&mut self) {
        let (m, k, n, transposed) = self.shape;
        let b = if transposed {
            Matrix::row_major(&self.b16, n, k).transposed()
        } else {
            Matrix::row_major(&self.b16, k, n)
        };
        let c = MatrixMut::row_major(&mut self.c, m, n);
        let a = Matrix::row_major(&self.a, m, k);
        gemm_bf16(a, Bf16Operand::Stored(b), c, Accumulate::Assign, None);
        black_box(&self.c);
    }

    fn operations(&self) -> f64 {
        let (m, k, n, _) = self.shape;
        2.0 * (m * k * n) as f64
    }
}

fn name((m, k, n, transposed): Shape) -> String {
    format!("{m}x{k}x{n}{}", if transposed { " (B^T)" } else { "" })
}

/// Criterion's timings of every shape on all cores.
pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gemm/f32");
    for shape in LARGE.into_iter().chain(SKINNY) {
        let mut operands = Operands::new(shape);
        group.throughput(Throughput::Elements(operands.operations() as u64));
        group.bench_function(name(operands.shape), |bencher| bencher.iter(|| operands.run()));
    }
    group.finish();
}

/// Prints the machine and every shape whose name contains `filter`, interleaved in `repeats` rounds, for each number of threads.
pub fn table(threads: &[usize], repeats: usize, filter: &str) {
    for &threads in threads {
        with_threads(threads, || table_on(threads, repeats, filter));
    }
}

fn table_on(threads: usize, repeats: usize, filter: &str) {
    let (small, large) = (vec![1.0_f32; 2 << 20], vec![1.0_f32; 32 << 20]);
    let mut target = vec![0.0_f32; 8 << 20];
    let mut peak = Times::default();
    let mut machine = vec![Times::default(); 3];
    let mut shapes: Vec<_> = LARGE
        .into_iter()
        .chain(SKINNY)
        .filter(|&shape| name(shape).contains(filter))
        .map(|shape| (Operands::new(shape), Times::default(), Times::default()))
        .collect();
    let mut burst = 0.0;
    for _ in 0..repeats {
        peak.record(|| burst = peak_once(threads));
        machine[0].record(|| read_once(&small));
        machine[1].record(|| read_once(&large));
        machine[2].record(|| triad_once(&mut target, &large[..8 << 20], &large[8 << 20..16 << 20]));
        for (operands, f32_times, bf16_times) in &mut shapes {
            // The first call of a shape in a round finds its operands in memory, as the neighbours left them.
            for _ in 0..4 {
                f32_times.record(|| operands.run());
            }
            for _ in 0..4 {
                bf16_times.record(|| operands.run_bf16());
            }
        }
        read_once(&small);
        machine[0].record(|| read_once(&small));
    }
    let giga = |amount: f64, times: &Times| {
        [times.min(), times.median(), times.cpu()].map(|seconds| amount / seconds / 1e9)
    };
    let mebibytes = f64::from(1 << 20);
    line!("\n{threads} thread(s), {repeats} rounds; cpu = by processor time, as if nobody shared the cores");
    line!("{:<26}{:>9}{:>9}{:>9}", "", "best", "median", "cpu");
    let line = |what: &str, [best, median, cpu]: [f64; 3], unit: &str| {
        line!("{what:<26}{best:>9.1}{median:>9.1}{cpu:>9.1}  {unit}");
    };
    let peak = giga(burst, &peak);
    let reads = [giga(8.0 * mebibytes, &machine[0]), giga(128.0 * mebibytes, &machine[1])];
    line("FMA peak (registers)", peak, "GFLOP/s");
    line("read 8 MiB", reads[0], "GB/s");
    line("read 128 MiB", reads[1], "GB/s");
    line("triad 3 x 32 MiB", giga(96.0 * mebibytes, &machine[2]), "GB/s");
    for (operands, f32_times, bf16_times) in &shapes {
        let (m, k, n, _) = operands.shape;
        for (label, times, size) in [("f32", f32_times, 4), ("bf16", bf16_times, 2)] {
            let speed = giga(operands.operations(), times);
            let percent = |found: [f64; 3], limit: [f64; 3]| {
                format!(
                    "best {:>4.0}%  cpu {:>4.0}%",
                    100.0 * found[0] / limit[0],
                    100.0 * found[2] / limit[2]
                )
            };
            let mut text = format!(
                "{:<21}{label:<5}{:>9.1}{:>9.1}{:>9.1}  GFLOP/s, of peak: {}",
                name(operands.shape),
                speed[0],
                speed[1],
                speed[2],
                percent(speed, peak)
            );
            if m <= 12 {
                let bytes = (k * n * size) as f64;
                let read = giga(bytes, times);
                let limit = reads[usize::from(bytes > 64e6)];
                text += &format!("; {:.1} GB/s, of read: {}", read[0], percent(read, limit));
            }
            line!("{text}");
        }
    }
}
