//! The kernels of attention on every GPU device, simulated or real: against the f64 reference, and against themselves.

use super::{GEOMETRIES, Places, Problem, Results, Setting, gpu, of_row, run_on, shared_case, vectors};
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::attention::{self, Geometry, Inputs, Saved, Segment};
use latch::ops::kv_cache::{CacheLayout, CacheSpan, KvCache};

fn on_gpu(problem: &Problem, device: &Device, dtype: Dtype, detach_cached: bool) -> Results {
    run_on(problem, &Setting { device, dtype, rounding: dtype, detach_cached, out: None })
}

/// Outputs and gradients of every GPU in both dtypes agree with those of the CPU in f64, from the numbers that the
/// kernels were given; for the gradients these are the kernel's outputs too.
fn check(what: &str, problem: &Problem, longest: usize, detach_cached: bool) {
    for dtype in gpu::DTYPES {
        for device in gpu::devices() {
            let found = on_gpu(problem, &device, dtype, detach_cached);
            let (cpu, out) = (Device::cpu(), Some(&found.out[..]));
            let setting = Setting { device: &cpu, dtype: Dtype::F64, rounding: dtype, detach_cached, out };
            let expected = run_on(problem, &setting);
            let name = |part: &str| format!("{what}: {part} in {dtype} on {}", device.name());
            by_length(&name("out"), dtype, problem, &found.out, &expected.out);
            let readers: usize = problem.segments.iter().map(Vec::len).sum();
            let group = problem.geometry.heads / problem.geometry.kv_heads;
            let terms = (longest + problem.geometry.head_dim).max(readers * group);
            for (part, (found, expected)) in
                ["dq", "dk", "dv"].iter().zip(found.gradients.iter().zip(&expected.gradients))
            {
                gpu::compare(&name(part), dtype, terms, found, expected);
            }
        }
    }
}

/// Compares outputs among those of as many keys, up to a factor of two. The formula takes one root mean square for the
/// size of the terms of every sum; the mean of n values shrinks with n, so outputs of three keys and of two hundred
/// are not of one size, and each are to be judged by their own: the first by more, the last by less than the mean.
fn by_length(what: &str, dtype: Dtype, problem: &Problem, found: &[f64], expected: &[f64]) {
    let width = problem.geometry.heads * problem.geometry.head_dim;
    let keys: Vec<u32> = problem.segments.iter().flatten().map(|place| place.1 + 1).collect();
    assert_eq!((found.len(), expected.len()), (keys.len() * width, keys.len() * width), "{what}");
    for class in 0..=keys.iter().max().expect("a position").ilog2() {
        let of = |values: &[f64]| -> Vec<f64> {
            let rows = keys.iter().zip(values.chunks(width)).filter(|(keys, _)| keys.ilog2() == class);
            rows.flat_map(|(_, row)| row.to_vec()).collect()
        };
        let terms = (2 << class) + problem.geometry.head_dim;
        gpu::compare(&format!("{what}, {}.. keys", 1 << class), dtype, terms, &of(found), &of(expected));
    }
}

/// Head dimensions that have kernels of their own, and others, odd ones too.
const HEADS: [Geometry; 6] = [
    Geometry { heads: 2, kv_heads: 1, head_dim: 128, scale: 0.09 },
    Geometry { heads: 3, kv_heads: 3, head_dim: 64, scale: 0.125 },
    Geometry { heads: 3, kv_heads: 1, head_dim: 33, scale: 0.17 },
    Geometry { heads: 2, kv_heads: 2, head_dim: 20, scale: 0.22 },
    Geometry { heads: 1, kv_heads: 1, head_dim: 200, scale: 0.07 },
    Geometry { heads: 2, kv_heads: 1, head_dim: 256, scale: 0.0625 },
];

/// What a broken kernel is tried on: a prompt of more positions than are planned as single steps, then one, then more
/// than the kernel for steps plans for itself.
pub fn small(device: &Device, dtype: Dtype) -> Vec<Vec<f64>> {
    let geometry = &Geometry { heads: 2, kv_heads: 1, head_dim: 64, scale: 0.125 };
    let (span, slots) = CacheSpan::after(0, 0, 0, 554);
    let segments = [0..513, 513..514, 514..554].map(|run| run.map(|p| (0, p)).collect());
    let problem = Problem { geometry, spans: &[span], slots, segments: &segments, shared: 0 };
    let Results { out, gradients: [dq, dk, dv] } = on_gpu(&problem, device, dtype, false);
    vec![out, dq, dk, dv]
}

#[test]
fn kernels_match_the_reference() {
    let (spans, slots, segments) = shared_case();
    for geometry in GEOMETRIES.iter().chain(&HEADS) {
        let problem = Problem { geometry, spans: &spans, slots, segments: &segments, shared: 70 };
        check(&format!("{geometry:?}"), &problem, 200, false);
    }
}

#[test]
fn detached_keys_get_no_gradient() {
    let (spans, slots, segments) = shared_case();
    let geometry = &GEOMETRIES[2];
    let problem = Problem { geometry, spans: &spans, slots, segments: &segments, shared: 70 };
    check("detached", &problem, 200, true);
}

#[test]
fn one_key_is_its_own_answer() {
    let (span, slots) = CacheSpan::after(0, 0, 0, 1);
    let segments = [vec![(0, 0)]];
    for geometry in GEOMETRIES.iter().chain(&HEADS) {
        let problem = Problem { geometry, spans: &[span], slots, segments: &segments, shared: 0 };
        for dtype in gpu::DTYPES {
            let group = geometry.heads / geometry.kv_heads;
            let heads = |values: &[f64]| -> Vec<Vec<f64>> {
                values.chunks(geometry.head_dim).map(<[f64]>::to_vec).collect()
            };
            let [_, _, v, dout] = vectors(geometry, 0, 0, 0).map(|values| heads(&gpu::round(&values, dtype)));
            let out: Vec<f64> = (0..geometry.heads).flat_map(|head| v[head / group].clone()).collect();
            let sum = |d: usize, head: usize| dout[head * group..][..group].iter().map(|x| x[d]).sum();
            let dv: Vec<f64> = (0..geometry.kv_heads)
                .flat_map(|head| (0..geometry.head_dim).map(move |d| (d, head)))
                .map(|(d, head)| sum(d, head))
                .collect();
            for device in gpu::devices() {
                let found = on_gpu(&problem, &device, dtype, false);
                gpu::compare("the value", dtype, 1, &found.out, &out);
                gpu::compare("its gradient", dtype, group, &found.gradients[2], &dv);
            }
        }
    }
}

/// Two groups whose rollouts share their prompts, and one row alone: prompts of `lengths`, then `steps` single steps
/// of all rows, later rows first.
fn groups(lengths: [u32; 2], rollouts: u32, steps: u32) -> (Vec<CacheSpan>, usize, Vec<Places>) {
    let (mut spans, mut free) = (Vec::new(), 0);
    let mut place = |prefix: (u32, usize), own: usize| {
        let (span, next) = CacheSpan::after(free, prefix.0, prefix.1, own);
        free = next;
        spans.push(span);
        span.own_slot
    };
    let mut prompts = Places::new();
    let mut members = Vec::new();
    let mut row = 0;
    for length in lengths {
        let prompt = place((0, 0), length as usize);
        prompts.extend((0..length).map(|p| (row, p)));
        for _ in 0..rollouts {
            row += 1;
            place((prompt, length as usize), steps as usize);
            members.push((row, length));
        }
        row += 1;
    }
    place((0, 0), steps as usize);
    members.push((row, 0));
    let step = |n: u32| members.iter().rev().map(|&(row, start)| (row, start + n)).collect();
    let segments = std::iter::once(prompts).chain((0..steps).map(step)).collect();
    (spans, free, segments)
}

#[test]
fn single_steps_match_the_reference() {
    // Prompts that end inside a part of 256 keys, and rollouts that reach the next one.
    let (spans, slots, segments) = groups([150, 253], 5, 6);
    for geometry in [&GEOMETRIES[1], &GEOMETRIES[3], &HEADS[0], &HEADS[4]] {
        let problem = Problem { geometry, spans: &spans, slots, segments: &segments, shared: 0 };
        check(&format!("single steps, {geometry:?}"), &problem, 259, false);
    }
}

#[test]
fn more_rollouts_than_a_tile_holds() {
    let (spans, slots, segments) = groups([64, 130], 40, 2);
    let geometry = &GEOMETRIES[2];
    let problem = Problem { geometry, spans: &spans, slots, segments: &segments, shared: 0 };
    check("many rollouts", &problem, 132, false);
}

/// Items of as many query rows as keep a large GPU busy, of the widest heads that have both tiles: a block of 8.6, 8.9 and
/// 12.0 has 99 KiB, what the kernel declares included.
#[test]
fn steps_of_many_rows_fit_into_the_smallest_gpu() {
    const COUNT: usize = 33;
    let (span, slots) = CacheSpan::after(0, 0, 0, COUNT);
    let segments = [(0..COUNT as u32).map(|position| (0, position)).collect()];
    for (head_dim, dtype) in [(128, Dtype::F32), (256, Dtype::Bf16)] {
        let geometry = &Geometry { heads: 64, kv_heads: 1, head_dim, scale: 0.07 };
        let problem = Problem { geometry, spans: &[span], slots, segments: &segments, shared: 0 };
        let run = |device: &Device, held: Dtype| {
            let draw = |name: &str, width: usize| {
                gpu::tensor(device, [COUNT, width], &gpu::exact(name, COUNT * width, dtype), held)
            };
            let (q, k, v) = (draw("q", 64 * head_dim), draw("k", head_dim), draw("v", head_dim));
            let column = |value: fn(u32) -> u32| {
                let values: Vec<u32> = (0..COUNT as u32).map(value).collect();
                Tensor::from_host(device, [COUNT, 1], &values).unwrap()
            };
            let (rows, positions) = (column(|_| 0), column(|position| position));
            let layout = CacheLayout::new(device, &[span]).unwrap();
            let (rows, positions) = (rows.view(), positions.view());
            let segment = Segment { rows, positions, geometry, layout: &layout };
            let mut cache = KvCache::zeros(device, geometry, slots, held).unwrap();
            let mut saved = Saved::reserve(device, COUNT, 64, held).unwrap();
            let mut out = Tensor::zeros(device, [COUNT, 64 * head_dim], held).unwrap();
            let inputs = Inputs { q: q.view(), k: k.view(), v: v.view() };
            attention::forward(inputs, &segment, &mut cache, out.view_mut(), &mut saved, 0..COUNT).unwrap();
            gpu::values(out.view())
        };
        let expected = run(&Device::cpu(), Dtype::F64);
        for device in gpu::devices() {
            let what = format!("heads of {head_dim} in {dtype} on {}", device.name());
            by_length(&what, dtype, &problem, &run(&device, dtype), &expected);
        }
    }
}

#[test]
fn a_step_whose_parts_do_not_fit_is_tiled() {
    // The working memory of one row holds about 40 blocks of this geometry; position 12000 has 188. All keys are 0 but the last.
    let geometry = &Geometry { heads: 32, kv_heads: 2, head_dim: 192, scale: 0.1 };
    let (span, slots) = CacheSpan::after(0, 0, 0, 12_001);
    let step = |device: &Device, dtype: Dtype| {
        let draw = |name: &str, width: usize| {
            let values = gpu::exact(name, width, Dtype::F32);
            gpu::tensor(device, [1, width], &values, dtype)
        };
        let (q, k, v) = (draw("q", 32 * 192), draw("k", 2 * 192), draw("v", 2 * 192));
        let column = |value: u32| Tensor::from_host(device, [1, 1], &[value]).unwrap();
        let (rows, positions) = (column(0), column(12_000));
        let layout = CacheLayout::new(device, &[span]).unwrap();
        let (rows, positions) = (rows.view(), positions.view());
        let segment = Segment { rows, positions, geometry, layout: &layout };
        let mut cache = KvCache::zeros(device, geometry, slots, dtype).unwrap();
        let mut saved = Saved::reserve(device, 1, 32, dtype).unwrap();
        let mut out = Tensor::zeros(device, [1, 32 * 192], dtype).unwrap();
        let inputs = Inputs { q: q.view(), k: k.view(), v: v.view() };
        attention::forward(inputs, &segment, &mut cache, out.view_mut(), &mut saved, 0..1).unwrap();
        gpu::values(out.view())
    };
    let expected = step(&Device::cpu(), Dtype::F64);
    for device in gpu::devices() {
        gpu::compare("a long row", Dtype::F32, 12_001, &step(&device, Dtype::F32), &expected);
    }
}

/// Outputs of all rows, cut as `lengths` says, of one row of so many positions.
fn cut(geometry: &Geometry, device: &Device, dtype: Dtype, lengths: &[u32]) -> Vec<f64> {
    let (span, slots) = CacheSpan::after(0, 0, 0, lengths.iter().sum::<u32>() as usize);
    let mut start = 0;
    let segments: Vec<Places> = lengths
        .iter()
        .map(|length| {
            start += length;
            (start - length..start).map(|p| (0, p)).collect()
        })
        .collect();
    on_gpu(&Problem { geometry, spans: &[span], slots, segments: &segments, shared: 0 }, device, dtype, false)
        .out
}

#[test]
fn a_query_does_not_depend_on_how_its_row_was_cut() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for geometry in [&GEOMETRIES[1], &GEOMETRIES[3], &HEADS[0], &HEADS[4]] {
                let whole = cut(geometry, &device, dtype, &[290]);
                for lengths in [&[270, 1, 1, 1, 3, 14][..], &[7, 57, 1, 2, 60, 23, 140]] {
                    assert_eq!(
                        whole,
                        cut(geometry, &device, dtype, lengths),
                        "{geometry:?} {dtype} {lengths:?}"
                    );
                }
            }
            // Token by token, and a prompt longer than what is planned at once.
            let geometry = &GEOMETRIES[0];
            let whole = cut(geometry, &device, dtype, &[150]);
            assert_eq!(whole, cut(geometry, &device, dtype, &[1; 150]), "{dtype}");
            let whole = cut(geometry, &device, dtype, &[600]);
            assert_eq!(whole, cut(geometry, &device, dtype, &[590, 4, 1, 1, 1, 1, 1, 1]), "{dtype}");
        }
    }
}

#[test]
fn a_query_does_not_depend_on_its_batch_or_on_who_owns_the_prefix() {
    let (spans, slots, segments) = shared_case();
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for geometry in [&GEOMETRIES[1], &GEOMETRIES[3], &HEADS[0]] {
                let problem = Problem { geometry, spans: &spans, slots, segments: &segments, shared: 70 };
                let together = on_gpu(&problem, &device, dtype, false).out;
                for row in [1, 2, 3] {
                    let expected = of_row(&segments, &together, row);
                    let own = if row == 3 { 0 } else { 70 };
                    let last = own + (expected.len() / (geometry.heads * geometry.head_dim)) as u32;
                    let (_, free) = CacheSpan::after(0, 0, 0, 100);
                    let (span, slots) = CacheSpan::after(free, 0, 0, last as usize);
                    let mut spans = vec![CacheSpan::default(); row as usize];
                    spans.push(span);
                    let segments = [(0..last).map(|p| (row, p)).collect()];
                    let problem = Problem { geometry, spans: &spans, slots, segments: &segments, shared: 70 };
                    let out = on_gpu(&problem, &device, dtype, false).out;
                    assert_eq!(expected, out[out.len() - expected.len()..], "{geometry:?} {dtype} row {row}");
                }
            }
        }
    }
}

#[test]
fn single_steps_have_the_bits_of_a_prompt() {
    // The rollouts of groups, step by step with shared prompts, and each as one prompt of its own.
    let (spans, slots, segments) = groups([150, 253], 3, 5);
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for geometry in [&GEOMETRIES[1], &GEOMETRIES[3]] {
                let problem = Problem { geometry, spans: &spans, slots, segments: &segments, shared: 253 };
                let together = on_gpu(&problem, &device, dtype, false).out;
                for (row, length) in [(2_u32, 150), (7, 253), (8, 0)] {
                    let expected = of_row(&segments, &together, row);
                    let (span, slots) = CacheSpan::after(0, 0, 0, length as usize + 5);
                    let mut spans = vec![CacheSpan::default(); row as usize];
                    spans.push(span);
                    let segments = [(0..length + 5).map(|p| (row, p)).collect()];
                    let problem =
                        Problem { geometry, spans: &spans, slots, segments: &segments, shared: 253 };
                    let out = on_gpu(&problem, &device, dtype, false).out;
                    assert_eq!(expected, out[out.len() - expected.len()..], "{geometry:?} {dtype} row {row}");
                }
            }
        }
    }
}

#[test]
fn the_same_problem_has_the_same_gradients() {
    let (spans, slots, segments) = groups([70, 130], 4, 2);
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            let problem =
                Problem { geometry: &GEOMETRIES[3], spans: &spans, slots, segments: &segments, shared: 0 };
            let (one, other) =
                (on_gpu(&problem, &device, dtype, false), on_gpu(&problem, &device, dtype, false));
            assert_eq!(one.gradients, other.gradients);
            assert!(one.gradients.iter().flatten().all(|g| g.is_finite()));
        }
    }
}
