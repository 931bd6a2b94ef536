//! Attention over a segment: is the mathematics right, and does a query's result depend on its row alone?

use super::{gpu, on_threads};
use latch::base::{Dtype, Result};
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::attention::{self, BackwardInputs, Geometry, Gradients, Inputs, Saved, Segment};
use latch::ops::kv_cache::{CacheLayout, CacheSpan, KvCache, SLOT_BLOCK};
use latch::verify::gradient::normals;
use latch::verify::operations;

pub mod kernels;

/// (row, position) of each packed position of a segment.
type Places = Vec<(u32, u32)>;

#[test]
fn gradient() {
    super::check_gradients(operations::attention::cases());
}

/// Query, key, value and gradient of the output of a position: the first `shared` positions of all rows have the same.
fn vectors(geometry: &Geometry, row: u32, position: u32, shared: u32) -> [Vec<f64>; 4] {
    let owner = if position < shared { 0 } else { row };
    let draw = |stem: &str, width: usize| normals(&format!("{stem} {owner} {position}"), width);
    let kv_width = geometry.kv_heads * geometry.head_dim;
    let width = geometry.heads * geometry.head_dim;
    [draw("q", width), draw("k", kv_width), draw("v", kv_width), draw("dout", width)]
}

/// What a run over segments leaves, by packed position: outputs, and gradients of q, k and v.
struct Results {
    out: Vec<f64>,
    gradients: [Vec<f64>; 3],
}

/// Rows in a cache, and the segments that compute them.
struct Problem<'a> {
    geometry: &'a Geometry,
    spans: &'a [CacheSpan],
    slots: usize,
    segments: &'a [Places],
    /// Positions that all rows have in common.
    shared: u32,
}

/// Where and how a problem is run.
struct Setting<'a> {
    device: &'a Device,
    /// What tensors hold.
    dtype: Dtype,
    /// What the numbers are rounded to before.
    rounding: Dtype,
    detach_cached: bool,
    /// What backward is given as the forward pass's output, where it is not this run's own.
    out: Option<&'a [f64]>,
}

fn run(
    geometry: &Geometry,
    spans: &[CacheSpan],
    slots: usize,
    segments: &[Places],
    shared: u32,
    dtype: Dtype,
) -> Results {
    let problem = Problem { geometry, spans, slots, segments, shared };
    run_on(
        &problem,
        &Setting { device: &Device::cpu(), dtype, rounding: dtype, detach_cached: false, out: None },
    )
}

fn run_on(problem: &Problem, setting: &Setting) -> Results {
    let &Problem { geometry, spans, slots, segments, shared } = problem;
    let &Setting { device, dtype, rounding, detach_cached, .. } = setting;
    let count: usize = segments.iter().map(Vec::len).sum();
    let (width, kv_width) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
    let all: Vec<[Vec<f64>; 4]> =
        segments.iter().flatten().map(|&(row, position)| vectors(geometry, row, position, shared)).collect();
    let upload = |index: usize, width: usize| {
        let data: Vec<f64> = all.iter().flat_map(|vectors| vectors[index].clone()).collect();
        gpu::tensor(device, [count, width], &gpu::round(&data, rounding), dtype)
    };
    let (q, k, v, dout) = (upload(0, width), upload(1, kv_width), upload(2, kv_width), upload(3, width));
    let column = |f: fn(&(u32, u32)) -> u32| {
        let data: Vec<u32> = segments.iter().flatten().map(f).collect();
        Tensor::from_host(device, [count, 1], &data).unwrap()
    };
    let (rows, positions) = (column(|p| p.0), column(|p| p.1));
    let layout = CacheLayout::new(device, spans).unwrap();
    let mut cache = KvCache::zeros(device, geometry, slots, dtype).unwrap();
    // What an earlier rollout left in the slots must not matter.
    poison(device, geometry, &mut cache, slots, dtype);
    let mut saved = Saved::reserve(device, count, geometry.heads, dtype).unwrap();
    let mut out = Tensor::zeros(device, [count, width], dtype).unwrap();
    let mut ranges = Vec::new();
    let mut start = 0;
    for segment in segments {
        ranges.push(start..start + segment.len());
        start += segment.len();
    }
    let segment = |at: &std::ops::Range<usize>| Segment {
        rows: rows.rows(at.clone()).unwrap(),
        positions: positions.rows(at.clone()).unwrap(),
        geometry,
        layout: &layout,
    };
    for at in &ranges {
        let inputs = Inputs {
            q: q.rows(at.clone()).unwrap(),
            k: k.rows(at.clone()).unwrap(),
            v: v.rows(at.clone()).unwrap(),
        };
        let out = out.rows_mut(at.clone()).unwrap();
        attention::forward(inputs, &segment(at), &mut cache, out, &mut saved, at.clone()).unwrap();
    }
    let mut grad = KvCache::zeros(device, geometry, slots, dtype.accumulation()).unwrap();
    // Cleared gradients are as good as new ones.
    poison(device, geometry, &mut grad, slots, dtype.accumulation());
    grad.clear_slots(slots).unwrap();
    let given = setting.out.map(|out| gpu::tensor(device, [count, width], out, dtype));
    let given = given.as_ref().unwrap_or(&out);
    let zeros = |width| Tensor::zeros(device, [count, width], dtype).unwrap();
    let (mut dq, mut dk, mut dv) = (zeros(width), zeros(kv_width), zeros(kv_width));
    for at in ranges.iter().rev() {
        let inputs = BackwardInputs {
            dout: dout.rows(at.clone()).unwrap(),
            q: q.rows(at.clone()).unwrap(),
            out: given.rows(at.clone()).unwrap(),
            cache: &cache,
            detach_cached,
        };
        let gradients = Gradients {
            dq: dq.rows_mut(at.clone()).unwrap(),
            dk: dk.rows_mut(at.clone()).unwrap(),
            dv: dv.rows_mut(at.clone()).unwrap(),
        };
        attention::backward(inputs, &segment(at), &mut grad, &saved, at.clone(), gradients).unwrap();
    }
    let values = |tensor: &Tensor| gpu::values(tensor.view());
    Results { out: values(&out), gradients: [values(&dq), values(&dk), values(&dv)] }
}

/// Fills the cache with infinities, each block as a row of its own.
fn poison(device: &Device, geometry: &Geometry, cache: &mut KvCache, slots: usize, dtype: Dtype) {
    let (width, kv_width) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
    let tensor =
        |width: usize, value: f64| gpu::tensor(device, [slots, width], &vec![value; slots * width], dtype);
    let (q, k) = (tensor(width, 0.0), tensor(kv_width, f64::INFINITY));
    let (mut out, mut saved) =
        (tensor(width, 0.0), Saved::reserve(device, slots, geometry.heads, dtype).unwrap());
    let column = |f: fn(u32) -> u32| {
        let data: Vec<u32> = (0..slots as u32).map(f).collect();
        Tensor::from_host(device, [slots, 1], &data).unwrap()
    };
    let (rows, positions) =
        (column(|slot| slot / SLOT_BLOCK as u32), column(|slot| slot % SLOT_BLOCK as u32));
    let starts = (0..slots as u32).step_by(SLOT_BLOCK);
    let spans: Vec<CacheSpan> =
        starts.map(|own_slot| CacheSpan { own_slot, ..CacheSpan::default() }).collect();
    let layout = CacheLayout::new(device, &spans).unwrap();
    let (rows, positions) = (rows.view(), positions.view());
    let segment = Segment { rows, positions, geometry, layout: &layout };
    let inputs = Inputs { q: q.view(), k: k.view(), v: k.view() };
    attention::forward(inputs, &segment, cache, out.view_mut(), &mut saved, 0..slots).unwrap();
}

/// A prompt of 70 positions, two rows that continue it and one alone; prompts, one step, a packed answer.
fn shared_case() -> (Vec<CacheSpan>, usize, Vec<Places>) {
    let (prompt, free) = CacheSpan::after(0, 0, 0, 70);
    let (first, free) = CacheSpan::after(free, 0, 70, 130);
    let (second, free) = CacheSpan::after(free, 0, 70, 9);
    let (alone, slots) = CacheSpan::after(free, 0, 0, 140);
    let mut prompts: Places = (0..70).map(|p| (0, p)).collect();
    prompts.splice(30..30, (0..5).map(|p| (3, p)));
    let mut answers: Places = (71..200).map(|p| (1, p)).collect();
    answers.splice(50..50, (6..139).map(|p| (3, p)));
    answers.splice(20..20, [(2, 72), (2, 71)]);
    (vec![prompt, first, second, alone], slots, vec![prompts, vec![(2, 70), (3, 5), (1, 70)], answers])
}

const GEOMETRIES: [Geometry; 5] = [
    Geometry { heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0 },
    Geometry { heads: 3, kv_heads: 1, head_dim: 5, scale: 0.4 },
    Geometry { heads: 4, kv_heads: 2, head_dim: 12, scale: 0.3 },
    Geometry { heads: 14, kv_heads: 2, head_dim: 64, scale: 0.125 },
    Geometry { heads: 2, kv_heads: 2, head_dim: 80, scale: 0.1 },
];

#[test]
fn outputs_match_the_formula() {
    let (spans, slots, segments) = shared_case();
    for geometry in &GEOMETRIES {
        let exact = run(geometry, &spans, slots, &segments, 70, Dtype::F64).out;
        let single = run(geometry, &spans, slots, &segments, 70, Dtype::F32).out;
        let (heads, dim) = (geometry.heads, geometry.head_dim);
        let rows: Vec<Vec<[Vec<f64>; 4]>> =
            (0..4).map(|row| (0..200).map(|p| vectors(geometry, row, p, 70)).collect()).collect();
        for (place, &(row, position)) in segments.iter().flatten().enumerate() {
            let seen = &rows[row as usize][..=position as usize];
            let [q, ..] = &seen[position as usize];
            for head in 0..heads {
                let at = head / (heads / geometry.kv_heads) * dim;
                let weights: Vec<f64> = seen
                    .iter()
                    .map(|[_, k, ..]| {
                        let product: f64 = (0..dim).map(|d| q[head * dim + d] * k[at + d]).sum();
                        (geometry.scale * product).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    let expected =
                        weights.iter().zip(seen).map(|(w, [_, _, v, _])| w * v[at + d]).sum::<f64>() / total;
                    let index = (place * heads + head) * dim + d;
                    assert!((exact[index] - expected).abs() < 1e-12, "{geometry:?} {row} {position}");
                    assert!((single[index] - expected).abs() < 2e-5, "{geometry:?} {row} {position}");
                }
            }
        }
    }
}

/// Outputs of one row in order of positions.
fn of_row(segments: &[Places], out: &[f64], row: u32) -> Vec<f64> {
    let places: Vec<(u32, u32)> = segments.iter().flatten().copied().collect();
    let width = out.len() / places.len();
    let mut chosen: Vec<usize> = (0..places.len()).filter(|&i| places[i].0 == row).collect();
    chosen.sort_by_key(|&i| places[i].1);
    chosen.into_iter().flat_map(|i| out[i * width..(i + 1) * width].to_vec()).collect()
}

#[test]
fn a_query_does_not_depend_on_how_its_row_was_cut() {
    for geometry in &GEOMETRIES {
        let (span, slots) = CacheSpan::after(0, 0, 0, 150);
        let cut = |lengths: &[u32]| -> Vec<f64> {
            let mut start = 0;
            let segments: Vec<Places> = lengths
                .iter()
                .map(|length| {
                    start += length;
                    (start - length..start).map(|p| (0, p)).collect()
                })
                .collect();
            run(geometry, &[span], slots, &segments, 0, Dtype::F32).out
        };
        let whole = cut(&[150]);
        assert_eq!(whole, cut(&[1; 150]), "{geometry:?}");
        assert_eq!(whole, cut(&[7, 57, 1, 2, 60, 23]), "{geometry:?}");
        assert_eq!(whole, cut(&[64, 64, 22]), "{geometry:?}");
    }
}

#[test]
fn a_query_does_not_depend_on_its_batch_or_on_who_owns_the_prefix() {
    let (spans, slots, segments) = shared_case();
    for geometry in &GEOMETRIES {
        let together = run(geometry, &spans, slots, &segments, 70, Dtype::F32).out;
        for row in [1, 2, 3] {
            let expected = of_row(&segments, &together, row);
            let own = if row == 3 { 0 } else { 70 };
            let last = own + (expected.len() / (geometry.heads * geometry.head_dim)) as u32;
            // Alone, at other slots, with the prefix recomputed as its own.
            let (_, free) = CacheSpan::after(0, 0, 0, 100);
            let (span, slots) = CacheSpan::after(free, 0, 0, last as usize);
            let mut spans = vec![CacheSpan::default(); row as usize];
            spans.push(span);
            let alone: Places = (0..last).map(|p| (row, p)).collect();
            let out = run(geometry, &spans, slots, &[alone], 70, Dtype::F32).out;
            assert_eq!(expected, out[out.len() - expected.len()..], "{geometry:?} row {row}");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (spans, slots, segments) = shared_case();
    for geometry in &GEOMETRIES {
        let one = on_threads(1, || run(geometry, &spans, slots, &segments, 70, Dtype::F32));
        let three = on_threads(3, || run(geometry, &spans, slots, &segments, 70, Dtype::F32));
        assert_eq!(one.out, three.out);
        assert_eq!(one.gradients, three.gradients);
        assert!(one.gradients.iter().flatten().all(|g| g.is_finite()));
    }
}

#[test]
fn recomputing_a_segment_changes_nothing() {
    let geometry = GEOMETRIES[2];
    let (span, slots) = CacheSpan::after(0, 0, 0, 90);
    let places: Places = (0..90).map(|p| (0, p)).collect();
    let once = run(&geometry, &[span], slots, std::slice::from_ref(&places), 0, Dtype::F32).out;
    // The same positions again, as a second segment, find their own keys in the cache.
    let twice = run(&geometry, &[span], slots, &[places.clone(), places], 0, Dtype::F32).out;
    assert_eq!(once, twice[..once.len()]);
    assert_eq!(once, twice[once.len()..]);
}

#[test]
fn wrong_operands_are_named() {
    let device = Device::cpu();
    let geometry = Geometry { heads: 2, kv_heads: 1, head_dim: 4, scale: 0.5 };
    let layout =
        CacheLayout::new(&device, &[CacheSpan { prefix_slot: 0, prefix_len: 3, own_slot: 67 }]).unwrap();
    let try_it = |row: u32, positions: [u32; 2], q_width: usize, slots: usize| -> Result<()> {
        let zeros = |width| Tensor::zeros(&device, [2, width], Dtype::F32);
        let (q, k, mut out) = (zeros(q_width)?, zeros(4)?, zeros(8)?);
        let rows = Tensor::from_host(&device, [2, 1], &[row; 2])?;
        let positions = Tensor::from_host(&device, [2, 1], &positions)?;
        let (rows, positions) = (rows.view(), positions.view());
        let segment = Segment { rows, positions, geometry: &geometry, layout: &layout };
        let mut cache = KvCache::zeros(&device, &geometry, slots, Dtype::F32)?;
        let mut saved = Saved::reserve(&device, 2, 2, Dtype::F32)?;
        let inputs = Inputs { q: q.view(), k: k.view(), v: k.view() };
        attention::forward(inputs, &segment, &mut cache, out.view_mut(), &mut saved, 0..2)
    };
    try_it(0, [3, 4], 8, 128).unwrap();
    for (result, expected) in [
        (try_it(0, [3, 4], 7, 128), "attention q: found 2 rows of 7, expected 2 rows of 8"),
        (try_it(1, [3, 4], 8, 128), "attention row of packed position 0: found 1, expected below 1"),
        (try_it(0, [2, 3], 8, 128), "position 2 is inside the shared prefix of 3 positions"),
        (try_it(0, [3, 3], 8, 128), "row 0 has position 3 twice"),
        (try_it(0, [3, 4], 8, 64), "position 3 needs slot 67"),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let odd = Geometry { heads: 3, kv_heads: 2, head_dim: 4, scale: 0.5 };
    let message = KvCache::zeros(&device, &odd, 64, Dtype::F32).unwrap_err().to_string();
    assert!(message.contains("3 heads, 2 key-value heads"), "{message}");
}
