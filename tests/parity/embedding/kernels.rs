//! The kernels of embeddings against the CPU in f64: all dtypes, ragged widths, crowded ids; bits, and indices that do
//! not exist.

use crate::parity::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::embedding::{Inputs, Soft, backward, forward};
use latch::ops::scatter::Order;

const VOCABULARY: usize = 97;
const LENGTH: usize = 64;

/// Dtypes of tables and of activations.
const CASES: [[Dtype; 2]; 3] =
    [[Dtype::F32, Dtype::F32], [Dtype::Bf16, Dtype::Bf16], [Dtype::Bf16, Dtype::F32]];
const EXACT: [Dtype; 2] = [Dtype::F64, Dtype::F64];

#[derive(Clone)]
struct Problem {
    cols: usize,
    ids: Vec<i32>,
    positions: Vec<u32>,
    soft_ids: Vec<u32>,
    kept: usize,
    table: Vec<f64>,
    places: Vec<f64>,
    weights: Vec<f64>,
    before: Vec<f64>,
    dx: Vec<f64>,
    earlier: Vec<f64>,
}

#[derive(Debug, PartialEq)]
struct Results {
    x: Vec<f64>,
    dtable: Vec<f64>,
    dposition: Vec<f64>,
    dweights: Vec<f64>,
}

impl Problem {
    /// Rows of tokens (half of them one of three), latents and mixtures of `kept` terms (0: none).
    fn new(rows: usize, cols: usize, kept: usize, [stored, act]: [Dtype; 2]) -> Problem {
        let mixtures = if kept > 0 { rows.div_ceil(3) } else { 0 };
        let id = |n: usize| match n % 7 {
            1 => -1,
            2 if mixtures > 0 => -2 - (n * 5 % mixtures) as i32,
            3..=5 => (n % 3) as i32,
            _ => (n * 31 % VOCABULARY) as i32,
        };
        Problem {
            cols,
            ids: (0..rows).map(id).collect(),
            positions: (0..rows).map(|n| (n * n % LENGTH) as u32).collect(),
            soft_ids: (0..mixtures * kept).map(|i| (i * i * 7 % VOCABULARY) as u32).collect(),
            kept,
            table: gpu::exact("embedding table", VOCABULARY * cols, stored),
            places: gpu::exact("embedding places", LENGTH * cols, stored),
            weights: gpu::exact("embedding weights", mixtures * kept, Dtype::F32),
            before: gpu::exact("embedding before", rows * cols, act),
            dx: gpu::exact("embedding dx", rows * cols, act),
            earlier: gpu::exact("embedding earlier", VOCABULARY * cols, Dtype::F32),
        }
    }

    fn run(&self, device: &Device, [stored, act]: [Dtype; 2]) -> Results {
        let (rows, cols, sums) = (self.ids.len(), self.cols, act.accumulation());
        let ids = Tensor::from_host(device, [rows, 1], &self.ids).unwrap();
        let positions = Tensor::from_host(device, [rows, 1], &self.positions).unwrap();
        let shape = [self.soft_ids.len() / self.kept.max(1), self.kept];
        let soft_ids = Tensor::from_host(device, shape, &self.soft_ids).unwrap();
        let weights = gpu::tensor(device, shape, &self.weights, sums);
        let soft = (self.kept > 0).then(|| Soft { ids: soft_ids.view(), weights: weights.view() });
        let inputs = Inputs { ids: ids.view(), positions: positions.view(), soft };
        let table = gpu::tensor(device, [VOCABULARY, cols], &self.table, stored);
        let places = gpu::tensor(device, [LENGTH, cols], &self.places, stored);
        let mut x = gpu::tensor(device, [rows, cols], &self.before, act);
        forward(&inputs, &table, Some(&places), x.view_mut()).unwrap();
        let dx = gpu::tensor(device, [rows, cols], &self.dx, act);
        let mut dtable = gpu::tensor(device, [VOCABULARY, cols], &self.earlier, sums);
        let mut dposition = gpu::tensor(device, [LENGTH, cols], &self.earlier[..LENGTH * cols], sums);
        let mut dweights = gpu::tensor(device, shape, &self.weights, sums);
        let gradient = (self.kept > 0).then(|| dweights.view_mut());
        let (places, order) = (Some(&mut dposition), &mut Order::default());
        backward(dx.view(), &inputs, &table, &mut dtable, places, gradient, order).unwrap();
        Results {
            x: gpu::values(x.view()),
            dtable: gpu::values(dtable.view()),
            dposition: gpu::values(dposition.view()),
            dweights: gpu::values(dweights.view()),
        }
    }
}

/// What a broken kernel is tried on: a few rows of every kind.
pub fn small(device: &Device, dtype: Dtype) -> Vec<Vec<f64>> {
    let dtypes = [dtype, dtype];
    let Results { x, dtable, dposition, dweights } = Problem::new(37, 20, 3, dtypes).run(device, dtypes);
    vec![x, dtable, dposition, dweights]
}

#[test]
fn every_dtype_and_shape_agrees_with_f64() {
    for device in gpu::devices() {
        for dtypes in CASES {
            for (rows, cols, kept) in [
                (1, 1, 1),
                (1, 768, 0),
                (5, 33, 2),
                (301, 123, 4),
                (90, 12, 5),
                (40, 896, 33),
                (9, 1032, 3),
                (1500, 8, 0),
            ] {
                let problem = Problem::new(rows, cols, kept, dtypes);
                let found = problem.run(&device, dtypes);
                let exact = problem.run(&Device::cpu(), EXACT);
                let what = |part: &str| format!("{} {dtypes:?} {rows}x{cols} {part}", device.name());
                let act = dtypes[1];
                gpu::compare(&what("x"), act, kept + 1, &found.x, &exact.x);
                gpu::compare(&what("dtable"), act, rows, &found.dtable, &exact.dtable);
                gpu::compare(&what("dposition"), act, rows, &found.dposition, &exact.dposition);
                gpu::compare(&what("dweights"), act, cols, &found.dweights, &exact.dweights);
            }
        }
    }
}

#[test]
fn f32_sums_have_the_bits_of_the_cpu() {
    // The same fused chains in the same order: n, then j.
    for device in gpu::devices() {
        for (rows, cols, kept) in [(301, 123, 4), (2900, 12, 3), (3, 768, 70)] {
            let problem = Problem::new(rows, cols, kept, CASES[0]);
            let (found, cpu) = (problem.run(&device, CASES[0]), problem.run(&Device::cpu(), CASES[0]));
            assert_eq!(found.x, cpu.x);
            assert_eq!(found.dtable, cpu.dtable);
            assert_eq!(found.dposition, cpu.dposition);
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_blocks() {
    for dtypes in CASES {
        for (rows, cols, kept) in [(1100, 72, 3), (40, 1028, 2)] {
            let problem = Problem::new(rows, cols, kept, dtypes);
            let [first, second] = gpu::orders().map(|device| problem.run(&device, dtypes));
            assert_eq!(first, second, "{dtypes:?} {rows}x{cols}");
        }
    }
}

#[test]
fn a_row_depends_on_what_names_it_alone() {
    for device in gpu::devices() {
        for dtypes in CASES {
            let whole = Problem::new(700, 40, 2, dtypes);
            let all = whole.run(&device, dtypes);
            // The last rows alone: other blocks, other tiles, the same results.
            let (first, cols) = (650, whole.cols);
            let mut part = whole.clone();
            part.ids.drain(..first);
            part.positions.drain(..first);
            part.before.drain(..first * cols);
            part.dx.drain(..first * cols);
            assert_eq!(part.run(&device, dtypes).x, all.x[first * cols..]);
            // Positions that name another token leave the sum of token 2 as it is.
            let mut fewer = whole.clone();
            for id in &mut fewer.ids {
                *id = if *id == 0 || *id == 5 { 96 } else { *id };
            }
            let token = 2 * cols..3 * cols;
            assert_eq!(fewer.run(&device, dtypes).dtable[token.clone()], all.dtable[token]);
        }
    }
}

#[test]
fn indices_that_do_not_exist_become_nan_and_touch_nothing_else() {
    for device in gpu::devices() {
        for dtypes in CASES {
            for cols in [7, 16] {
                let good = Problem::new(20, cols, 2, dtypes);
                let clean = good.run(&device, dtypes);
                let row = |n: usize| n * cols..(n + 1) * cols;
                let nan = |values: &[f64]| values.iter().all(|v| v.is_nan());
                for (n, id) in [(0, VOCABULARY as i32), (6, i32::MAX), (7, i32::MIN), (13, -9)] {
                    let mut bad = good.clone();
                    bad.ids[n] = id;
                    let found = bad.run(&device, dtypes);
                    assert!(nan(&found.x[row(n)]), "{id}");
                    assert_eq!(found.x[..row(n).start], clean.x[..row(n).start]);
                    assert_eq!(found.x[row(n).end..], clean.x[row(n).end..]);
                    assert!(nan(&found.dtable[row(0)]), "{id}");
                    assert!(found.dtable[cols..].iter().all(|v| v.is_finite()), "{id}");
                }
                let mut bad = good.clone();
                bad.positions[3] = LENGTH as u32;
                let found = bad.run(&device, dtypes);
                assert!(nan(&found.x[row(3)]) && nan(&found.dposition[row(0)]));
                assert!(found.dposition[cols..].iter().all(|v| v.is_finite()));
                assert_eq!(found.dtable, clean.dtable);
                let mut bad = good.clone();
                let mixture = (-2 - bad.ids[2]) as usize;
                bad.soft_ids[2 * mixture + 1] = u32::MAX;
                let found = bad.run(&device, dtypes);
                assert!(nan(&found.x[row(2)]) && nan(&found.dtable[row(0)]));
                assert!(found.dweights[2 * mixture + 1].is_nan() && found.dweights[2 * mixture].is_finite());
            }
        }
    }
}

#[test]
fn without_positions_a_latent_row_is_left_alone() {
    for device in gpu::devices() {
        for [stored, act] in CASES {
            let ids = Tensor::from_host(&device, [3, 1], &[4_i32, -1, 0]).unwrap();
            let positions = Tensor::zeros(&device, [3, 1], Dtype::U32).unwrap();
            let inputs = Inputs { ids: ids.view(), positions: positions.view(), soft: None };
            let table = gpu::exact("table", 5 * 10, stored);
            let before = gpu::exact("before", 30, act);
            let mut x = gpu::tensor(&device, [3, 10], &before, act);
            let stored_table = gpu::tensor(&device, [5, 10], &table, stored);
            forward(&inputs, &stored_table, None, x.view_mut()).unwrap();
            let expected = [&table[40..50], &before[10..20], &table[..10]].concat();
            assert_eq!(gpu::values(x.view()), expected);
        }
    }
}

#[test]
fn nothing_to_do_is_no_launch() {
    for device in gpu::devices() {
        let (ids, positions) =
            (Tensor::zeros(&device, [0, 1], Dtype::I32), Tensor::zeros(&device, [0, 1], Dtype::U32));
        let (ids, positions) = (ids.unwrap(), positions.unwrap());
        let inputs = Inputs { ids: ids.view(), positions: positions.view(), soft: None };
        let zeros = |rows| Tensor::zeros(&device, [rows, 4], Dtype::F32).unwrap();
        let (table, mut x, mut dtable) = (zeros(5), zeros(0), zeros(5));
        forward(&inputs, &table, None, x.view_mut()).unwrap();
        backward(x.view(), &inputs, &table, &mut dtable, None, None, &mut Order::default()).unwrap();
        assert_eq!(dtable.download::<f32>().unwrap(), [0.0; 20]);
    }
}
