//! Input embeddings: mathematics, exact rows, the order of sums, and what happens to indices that do not exist.

pub mod kernels;

use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::embedding::{self, Inputs, Soft};
use latch::ops::scatter::Order;
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::embedding::cases());
}

const ROWS: usize = 301;
const COLS: usize = 123;
const VOCABULARY: usize = 97;
const LENGTH: usize = 64;

/// Ids with many repeats (a few tokens carry most), latents, and mixtures of `mixtures` rows.
fn ids(mixtures: usize) -> Vec<i32> {
    (0..ROWS)
        .map(|n| match n % 7 {
            0 => -1,
            1 if mixtures > 0 => -2 - (n % mixtures) as i32,
            2..=4 => (n % 3) as i32,
            _ => (n * 31 % VOCABULARY) as i32,
        })
        .collect()
}

struct Setup {
    device: Device,
    ids: Vec<i32>,
    positions: Vec<u32>,
    soft_ids: Vec<u32>,
    soft_weights: Vec<f32>,
}

impl Setup {
    fn new() -> Setup {
        Setup {
            device: Device::cpu(),
            ids: ids(5),
            positions: (0..ROWS).map(|n| (n * n % LENGTH) as u32).collect(),
            soft_ids: (0..20).map(|i| (i * i * 7 % VOCABULARY) as u32).collect(),
            soft_weights: super::normals_f32("weights", 20),
        }
    }

    /// Runs `body` with the inputs of rows `range`.
    fn with<R>(&self, range: std::ops::Range<usize>, body: impl FnOnce(&Inputs) -> R) -> R {
        let ids = Tensor::from_host(&self.device, [ROWS, 1], &self.ids).unwrap();
        let positions = Tensor::from_host(&self.device, [ROWS, 1], &self.positions).unwrap();
        let soft_ids = Tensor::from_host(&self.device, [5, 4], &self.soft_ids).unwrap();
        let weights = Tensor::from_host(&self.device, [5, 4], &self.soft_weights).unwrap();
        body(&Inputs {
            ids: ids.rows(range.clone()).unwrap(),
            positions: positions.rows(range).unwrap(),
            soft: Some(Soft { ids: soft_ids.view(), weights: weights.view() }),
        })
    }

    fn tensor(&self, shape: [usize; 2], name: &str) -> Tensor {
        Tensor::from_host(&self.device, shape, &super::normals_f32(name, shape[0] * shape[1])).unwrap()
    }
}

#[test]
fn forward_values_rows_and_threads() {
    let setup = Setup::new();
    let table = setup.tensor([VOCABULARY, COLS], "table");
    let position_table = setup.tensor([LENGTH, COLS], "positions");
    let before = super::normals_f32("before", ROWS * COLS);
    let run = |range: std::ops::Range<usize>| {
        let start = &before[range.start * COLS..range.end * COLS];
        let mut x = Tensor::from_host(&setup.device, [range.len(), COLS], start).unwrap();
        setup.with(range, |inputs| {
            embedding::forward(inputs, &table, Some(&position_table), x.view_mut()).unwrap()
        });
        x.download::<f32>().unwrap()
    };
    let whole = super::on_threads(1, || run(0..ROWS));
    assert_eq!(whole, super::on_threads(3, || run(0..ROWS)));
    assert_eq!(run(100..200), whole[100 * COLS..200 * COLS]);
    assert_eq!(run(8..9), whole[8 * COLS..9 * COLS]);

    let (table, positions) = (table.download::<f32>().unwrap(), position_table.download::<f32>().unwrap());
    for (n, &found) in whole.iter().enumerate() {
        let (row, c) = (n / COLS, n % COLS);
        let position = positions[setup.positions[row] as usize * COLS + c];
        match setup.ids[row] {
            -1 => assert_eq!(found, before[n] + position),
            id if id >= 0 => assert_eq!(found, table[id as usize * COLS + c] + position),
            id => {
                let s = (-2 - id) as usize;
                let exact: f64 = (4 * s..4 * s + 4)
                    .map(|j| {
                        f64::from(setup.soft_weights[j])
                            * f64::from(table[setup.soft_ids[j] as usize * COLS + c])
                    })
                    .sum::<f64>()
                    + f64::from(position);
                assert!((f64::from(found) - exact).abs() < 2e-6 * (1.0 + exact.abs()), "{found} {exact}");
            }
        }
    }
}

#[test]
fn backward_adds_in_packed_order_on_any_thread_count() {
    let setup = Setup::new();
    let table = setup.tensor([VOCABULARY, COLS], "table");
    let dx = super::normals_f32("dx", ROWS * COLS);
    let dx_tensor = Tensor::from_host(&setup.device, [ROWS, COLS], &dx).unwrap();
    let run = || {
        let mut dtable = setup.tensor([VOCABULARY, COLS], "earlier table");
        let mut dposition = setup.tensor([LENGTH, COLS], "earlier positions");
        let mut dweights = setup.tensor([5, 4], "stale");
        setup.with(0..ROWS, |inputs| {
            let (positions, weights) = (Some(&mut dposition), Some(dweights.view_mut()));
            embedding::backward(
                dx_tensor.view(),
                inputs,
                &table,
                &mut dtable,
                positions,
                weights,
                &mut Order::default(),
            )
            .unwrap();
        });
        [dtable, dposition, dweights].map(|t| t.download::<f32>().unwrap())
    };
    let found = super::on_threads(1, run);
    assert_eq!(found, super::on_threads(3, run));

    let mut dtable = super::normals_f32("earlier table", VOCABULARY * COLS);
    let mut dposition = super::normals_f32("earlier positions", LENGTH * COLS);
    let mut dweights = [0.0_f64; 20];
    let table = table.download::<f32>().unwrap();
    for (n, dx) in dx.chunks(COLS).enumerate() {
        for c in 0..COLS {
            dposition[setup.positions[n] as usize * COLS + c] += dx[c];
            match setup.ids[n] {
                -1 => {}
                id if id >= 0 => dtable[id as usize * COLS + c] += dx[c],
                id => {
                    let s = (-2 - id) as usize;
                    for j in 4 * s..4 * s + 4 {
                        let entry = setup.soft_ids[j] as usize * COLS + c;
                        dtable[entry] = dx[c].mul_add(setup.soft_weights[j], dtable[entry]);
                        dweights[j] += f64::from(dx[c]) * f64::from(table[entry]);
                    }
                }
            }
        }
    }
    assert_eq!(found[0], dtable, "table");
    assert_eq!(found[1], dposition, "positions");
    for (found, exact) in found[2].iter().zip(dweights) {
        assert!((f64::from(*found) - exact).abs() < 1e-4, "weight {found} {exact}");
    }
}

#[test]
fn bf16_tables_widen_exactly() {
    let setup = Setup::new();
    let narrow = |name: &str, rows: usize| -> Vec<bf16> {
        super::normals_f32(name, rows * COLS).into_iter().map(bf16::from_f32).collect()
    };
    let (table, positions) = (narrow("table", VOCABULARY), narrow("positions", LENGTH));
    let wide = |values: &[bf16]| -> Vec<f32> { values.iter().map(|v| v.to_f32()).collect() };
    let run = |table: &Tensor, positions: &Tensor| {
        let mut x = Tensor::zeros(&setup.device, [ROWS, COLS], Dtype::F32).unwrap();
        let mut dtable = Tensor::zeros(&setup.device, [VOCABULARY, COLS], Dtype::F32).unwrap();
        let mut dweights = Tensor::zeros(&setup.device, [5, 4], Dtype::F32).unwrap();
        setup.with(0..ROWS, |inputs| {
            embedding::forward(inputs, table, Some(positions), x.view_mut()).unwrap();
            let weights = Some(dweights.view_mut());
            embedding::backward(x.view(), inputs, table, &mut dtable, None, weights, &mut Order::default())
                .unwrap();
        });
        [x, dtable, dweights].map(|t| t.download::<f32>().unwrap())
    };
    let upload =
        |values: &[bf16]| Tensor::from_host(&setup.device, [values.len() / COLS, COLS], values).unwrap();
    let upload_wide = |values: &[bf16]| {
        Tensor::from_host(&setup.device, [values.len() / COLS, COLS], &wide(values)).unwrap()
    };
    let expected = run(&upload_wide(&table), &upload_wide(&positions));
    assert_eq!(run(&upload(&table), &upload(&positions)), expected);
    assert_eq!(run(&upload(&table), &upload_wide(&positions)), expected);
}

#[test]
fn indices_outside_their_tables_are_named() {
    let device = Device::cpu();
    let table = Tensor::zeros(&device, [10, 4], Dtype::F32).unwrap();
    let position_table = Tensor::zeros(&device, [3, 4], Dtype::F32).unwrap();
    let run = |ids: &[i32], positions: &[u32], soft: &[u32]| {
        let rows = ids.len();
        let ids = Tensor::from_host(&device, [rows, 1], ids).unwrap();
        let positions = Tensor::from_host(&device, [positions.len(), 1], positions).unwrap();
        let soft = Tensor::from_host(&device, [1, 2], soft).unwrap();
        let weights = Tensor::zeros(&device, [1, 2], Dtype::F32).unwrap();
        let soft = Some(Soft { ids: soft.view(), weights: weights.view() });
        let inputs = Inputs { ids: ids.view(), positions: positions.view(), soft };
        let mut x = Tensor::zeros(&device, [rows, 4], Dtype::F32).unwrap();
        embedding::forward(&inputs, &table, Some(&position_table), x.view_mut()).unwrap_err().to_string()
    };
    assert_eq!(run(&[1, 10], &[0, 0], &[0, 0]), "embedding ids: found index 10 at entry 1, expected -2..10");
    assert_eq!(run(&[-3], &[0], &[0, 0]), "embedding ids: found index -3 at entry 0, expected -2..10");
    assert_eq!(run(&[1], &[3], &[0, 0]), "embedding positions: found index 3 at entry 0, expected 0..3");
    assert_eq!(run(&[1], &[0], &[0, 10]), "embedding soft ids: found index 10 at entry 1, expected 0..10");
    assert_eq!(run(&[1], &[0, 0], &[0, 0]), "embedding positions: found 2 rows of 1, expected 1 rows of 1");
}
