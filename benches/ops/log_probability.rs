//! The fused output head, forward and backward (GFLOP/s: 2, and 6, operations per hidden element and id), and the
//! sampler (ids per second). The matrix product alone is timed beside them: the head cannot be faster.

use criterion::{BenchmarkId, Criterion, Throughput};
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::cpu::gemm::{Accumulate, Matrix, MatrixMut, gemm};
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::log_probability::{Inputs, Outputs, Saved, Upstream, backward, forward};
use latch::ops::sampler::{Law, Noise, Sampled, Workspace, sample};
use latch::verify::gradient::normals;

fn random(name: &str, count: usize) -> Vec<f32> {
    normals(name, count).into_iter().map(|v| v as f32).collect()
}

/// Adds the benches of this file.
pub fn benches(criterion: &mut Criterion) {
    for (rows, width, vocabulary) in [(256, 256, 1000), (64, 256, 8192), (256, 768, 8192)] {
        head(criterion, rows, width, vocabulary);
    }
    for vocabulary in [50_257, 151_936] {
        draws(criterion, vocabulary);
    }
}

fn head(criterion: &mut Criterion, rows: usize, width: usize, vocabulary: usize) {
    let device = Device::cpu();
    let shape = format!("{rows}x{width}x{vocabulary}");
    let (h_data, w_data) = (random("bench h", rows * width), random("bench w", vocabulary * width));
    let h = Tensor::from_host(&device, [rows, width], &h_data).unwrap();
    let w = Tensor::from_host(&device, [vocabulary, width], &w_data).unwrap();
    let targets: Vec<u32> = (0..rows).map(|r| ((r * 7919) % vocabulary) as u32).collect();
    let targets = Tensor::from_host(&device, [rows, 1], &targets).unwrap();
    let zeros = |rows, cols| Tensor::zeros(&device, [rows, cols], Dtype::F32).unwrap();
    let inputs = Inputs { h: h.view(), w: &w, targets: targets.view(), inverse_temperature: 1.0 };
    let (mut score, mut entropy, mut dh, mut dw) =
        (zeros(rows, 1), zeros(rows, 1), zeros(rows, width), zeros(vocabulary, width));
    let mut saved = Saved::reserve(&device, rows, [vocabulary, width], Dtype::F32).unwrap();
    let dy = Tensor::from_host(&device, [rows, 1], &vec![-1.0 / rows as f32; rows]).unwrap();
    let product = (rows * width * vocabulary) as u64;

    let mut group = criterion.benchmark_group("log_probability");
    group.throughput(Throughput::Elements(2 * product));
    group.bench_function(BenchmarkId::new("gemm", &shape), |bencher| {
        let mut c = vec![0.0_f32; rows * vocabulary];
        bencher.iter(|| {
            let (a, b) =
                (Matrix::row_major(&h_data, rows, width), Matrix::row_major(&w_data, vocabulary, width));
            let c = MatrixMut::row_major(&mut c, rows, vocabulary);
            gemm(a, b.transposed(), c, Accumulate::Assign, None);
        });
    });
    group.bench_function(BenchmarkId::new("forward/f32", &shape), |bencher| {
        bencher.iter(|| {
            let out = Outputs { log_probability: score.view_mut(), entropy: Some(entropy.view_mut()) };
            forward(&inputs, out, &mut saved, 0..rows).unwrap();
        });
    });
    group.throughput(Throughput::Elements(6 * product));
    group.bench_function(BenchmarkId::new("backward/f32", &shape), |bencher| {
        let upstream = Upstream { d_log_probability: dy.view(), d_entropy: None };
        bencher.iter(|| {
            let dw = Some((&mut dw, Accumulate::Add));
            backward(&upstream, &inputs, &mut saved, 0..rows, dh.view_mut(), dw).unwrap();
        });
    });
    group.finish();
}

fn draws(criterion: &mut Criterion, vocabulary: usize) {
    let device = Device::cpu();
    let rows = 8;
    let keys: Vec<u32> =
        (0..rows as u32).flat_map(|r| StreamKey::new(1, 0, 0, r, Purpose::Token).0).collect();
    let keys = Tensor::from_host(&device, [rows, 2], &keys).unwrap();
    let steps = Tensor::zeros(&device, [rows, 1], Dtype::U32).unwrap();
    let mut tokens = Tensor::zeros(&device, [rows, 1], Dtype::U32).unwrap();
    let mut score = Tensor::zeros(&device, [rows, 1], Dtype::F32).unwrap();
    let filtered = |top_k, top_p, min_p| Law::Categorical { temperature: 0.8, top_k, top_p, min_p };
    let laws = [
        ("greedy", Law::Greedy),
        ("plain", Law::PLAIN),
        ("top_k=50", filtered(Some(50), None, None)),
        ("top_p=0.95", filtered(None, Some(0.95), None)),
        ("min_p=0.05", filtered(None, None, Some(0.05))),
    ];
    let mut group = criterion.benchmark_group("sampler");
    group.throughput(Throughput::Elements((rows * vocabulary) as u64));
    for (spread, kind) in [(3.0, "peaked"), (0.1, "flat")] {
        let logits: Vec<f32> =
            random("bench logits", rows * vocabulary).into_iter().map(|v| spread * v).collect();
        let logits = Tensor::from_host(&device, [rows, vocabulary], &logits).unwrap();
        for (name, law) in laws {
            let id = BenchmarkId::new(format!("{name}/{kind}"), format!("{rows}x{vocabulary}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    let out = Sampled {
                        tokens: tokens.view_mut(),
                        log_probability: score.view_mut(),
                        support: None,
                        workspace: &Workspace::default(),
                    };
                    let noise = Noise { keys: keys.view(), steps: steps.view(), site: 0 };
                    sample(logits.view(), &law, noise, out).unwrap();
                });
            });
        }
    }
    group.finish();
}
