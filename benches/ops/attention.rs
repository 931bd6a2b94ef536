//! Attention: prefill, backward and decode, in floating-point operations (two a multiply-add) of the visible pairs.

use criterion::{BenchmarkId, Criterion, Throughput};
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::attention::{self, BackwardInputs, Geometry, Gradients, Inputs, Saved, Segment};
use latch::ops::kv_cache::{CacheLayout, CacheSpan, KvCache};
use latch::verify::gradient::normals;
use std::hint::black_box;

const GEOMETRY: Geometry = Geometry { heads: 12, kv_heads: 12, head_dim: 64, scale: 0.125 };
const WIDTH: usize = 12 * 64;

/// A packed segment and everything that attention over it touches.
struct Bench {
    x: [Tensor; 3],
    out: Tensor,
    gradients: [Tensor; 3],
    rows: Tensor,
    positions: Tensor,
    layout: CacheLayout,
    cache: KvCache,
    grad: KvCache,
    saved: Saved,
}

impl Bench {
    fn new(spans: &[CacheSpan], slots: usize, places: &[(u32, u32)]) -> Bench {
        let device = Device::cpu();
        let count = places.len();
        let random = |name: &str| {
            let data: Vec<f32> = normals(name, count * WIDTH).into_iter().map(|v| v as f32).collect();
            Tensor::from_host(&device, [count, WIDTH], &data).unwrap()
        };
        let zeros = || Tensor::zeros(&device, [count, WIDTH], Dtype::F32).unwrap();
        let column = |f: fn(&(u32, u32)) -> u32| {
            Tensor::from_host(&device, [count, 1], &places.iter().map(f).collect::<Vec<_>>()).unwrap()
        };
        Bench {
            x: [random("q"), random("k"), random("v")],
            out: zeros(),
            gradients: [zeros(), zeros(), zeros()],
            rows: column(|p| p.0),
            positions: column(|p| p.1),
            layout: CacheLayout::new(&device, spans).unwrap(),
            cache: KvCache::zeros(&device, &GEOMETRY, slots, Dtype::F32).unwrap(),
            grad: KvCache::zeros(&device, &GEOMETRY, slots, Dtype::F32).unwrap(),
            saved: Saved::reserve(&device, count, GEOMETRY.heads, Dtype::F32).unwrap(),
        }
    }

    fn forward(&mut self) {
        let [q, k, v] = &self.x;
        let segment = Segment {
            rows: self.rows.view(),
            positions: self.positions.view(),
            geometry: &GEOMETRY,
            layout: &self.layout,
        };
        let inputs = Inputs { q: q.view(), k: k.view(), v: v.view() };
        let at = 0..q.view().count();
        let (cache, saved) = (&mut self.cache, &mut self.saved);
        attention::forward(inputs, &segment, cache, self.out.view_mut(), saved, at).unwrap();
        black_box(&self.out);
    }

    fn backward(&mut self) {
        let segment = Segment {
            rows: self.rows.view(),
            positions: self.positions.view(),
            geometry: &GEOMETRY,
            layout: &self.layout,
        };
        let q = self.x[0].view();
        let inputs =
            BackwardInputs { dout: q, q, out: self.out.view(), cache: &self.cache, detach_cached: false };
        let [dq, dk, dv] = &mut self.gradients;
        let gradients = Gradients { dq: dq.view_mut(), dk: dk.view_mut(), dv: dv.view_mut() };
        let at = 0..q.count();
        attention::backward(inputs, &segment, &mut self.grad, &self.saved, at, gradients).unwrap();
        black_box(&self.gradients);
    }
}

/// Whole rows at once, and one position for each of eight rows behind 511 keys (each its own, or 448 shared).
pub fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for length in [256, 1024] {
        let (span, slots) = CacheSpan::after(0, 0, 0, length);
        let places: Vec<(u32, u32)> = (0..length as u32).map(|p| (0, p)).collect();
        let mut bench = Bench::new(&[span], slots, &places);
        let pairs = (length * (length + 1) / 2 * WIDTH) as u64;
        bench.forward();
        group.throughput(Throughput::Elements(4 * pairs));
        group.bench_function(BenchmarkId::new("forward/f32", length), |b| b.iter(|| bench.forward()));
        group.throughput(Throughput::Elements(10 * pairs));
        group.bench_function(BenchmarkId::new("backward/f32", length), |b| b.iter(|| bench.backward()));
    }
    for shared in [0, 448] {
        let (_, mut free) = CacheSpan::after(0, 0, 0, shared);
        let mut spans = Vec::new();
        for _ in 0..8 {
            let (span, next) = CacheSpan::after(free, 0, shared, 512 - shared);
            spans.push(span);
            free = next;
        }
        let places: Vec<(u32, u32)> = (0..8).map(|row| (row, 511)).collect();
        let mut bench = Bench::new(&spans, free, &places);
        group.throughput(Throughput::Elements((4 * 8 * 512 * WIDTH) as u64));
        let name = format!("8x512, {shared} shared");
        bench.forward();
        group.bench_function(BenchmarkId::new("decode forward/f32", &name), |b| b.iter(|| bench.forward()));
        group.throughput(Throughput::Elements((10 * 8 * 512 * WIDTH) as u64));
        group.bench_function(BenchmarkId::new("decode backward/f32", &name), |b| b.iter(|| bench.backward()));
    }
    group.finish();
}
