//! RoPE: is the rotation the published one, and does a row depend on its position alone?

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::rope::{self, RopeTable, Scaling, inverse_frequencies};
use latch::ops::{Tensor, View, ViewMut};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::rope::cases());
}

#[test]
fn values_match_complex_multiplication() {
    let (rows, heads, dim) = (3, 2, 10);
    let device = Device::cpu();
    let frequencies = inverse_frequencies(dim, 500.0, Scaling::None).unwrap();
    let table = RopeTable::new(&device, &frequencies, 1001, Dtype::F64).unwrap();
    let start = latch::verify::gradient::normals("rope x", rows * heads * dim);
    let positions = [0_u32, 7, 1000];
    let at = Tensor::from_host(&device, [rows, 1], &positions).unwrap();
    let mut x = Tensor::from_host(&device, [rows, heads * dim], &start).unwrap();
    rope::forward(x.view_mut(), heads, at.view(), &table).unwrap();
    let turned = x.download::<f64>().unwrap();
    for (i, &found) in turned.iter().enumerate() {
        let (row, d) = (i / (heads * dim), i % dim);
        let pair = d % (dim / 2);
        let base = i - d;
        // (re + i im) * e^(i angle)
        let (re, im) = (start[base + pair], start[base + pair + dim / 2]);
        let angle = f64::from(positions[row]) * 500_f64.powf(-(pair as f64) / (dim / 2) as f64);
        let expected = if d < dim / 2 {
            re * angle.cos() - im * angle.sin()
        } else {
            re * angle.sin() + im * angle.cos()
        };
        assert!((found - expected).abs() < 1e-12, "{i}: {found} {expected}");
    }
    rope::backward(x.view_mut(), heads, at.view(), &table).unwrap();
    for (back, start) in x.download::<f64>().unwrap().iter().zip(&start) {
        assert!((back - start).abs() < 1e-12);
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_the_threads() {
    let (rows, heads, dim) = (301, 3, 64);
    let device = Device::cpu();
    let frequencies = inverse_frequencies(dim, 1e4, Scaling::None).unwrap();
    let table = RopeTable::new(&device, &frequencies, rows, Dtype::F32).unwrap();
    let start = super::normals_f32("rope rows", rows * heads * dim);
    let positions: Vec<u32> = (0..rows as u32).map(|i| i * 7 % rows as u32).collect();
    let positions = Tensor::from_host(&device, [rows, 1], &positions).unwrap();
    let run = |range: std::ops::Range<usize>| {
        let mut x = Tensor::from_host(&device, [rows, heads * dim], &start).unwrap();
        let at = positions.rows(range.clone()).unwrap();
        rope::forward(x.rows_mut(range.clone()).unwrap(), heads, at, &table).unwrap();
        x.rows(range).unwrap().download::<f32>().unwrap()
    };
    let whole = super::on_threads(1, || run(0..rows));
    assert_eq!(whole, super::on_threads(3, || run(0..rows)));
    for row in [0, 17, 300] {
        assert_eq!(whole[row * heads * dim..(row + 1) * heads * dim], run(row..row + 1));
    }
}

#[test]
fn wrong_operands_are_named() {
    let device = Device::cpu();
    let table = RopeTable::new(&device, &[1.0, 0.1], 4, Dtype::F32).unwrap();
    let mut x = Tensor::zeros(&device, [2, 8], Dtype::F32).unwrap();
    let at = Tensor::from_host(&device, [2, 1], &[0_u32, 4]).unwrap();
    let message = rope::forward(x.view_mut(), 3, at.view(), &table).unwrap_err().to_string();
    assert!(message.contains("rope: found 2 rows of 8, expected 2 rows of 12"), "{message}");
    let message = rope::forward(x.view_mut(), 2, at.view(), &table).unwrap_err().to_string();
    assert!(message.contains("rope position: found 4, expected below 4"), "{message}");
}

/// Rotated and rotated back rows; operands hold numbers that bf16 holds, positions come in no order.
pub fn run(
    device: &Device,
    dtype: Dtype,
    (rows, heads, dim): (usize, usize, usize),
    range: std::ops::Range<usize>,
) -> [Vec<f64>; 2] {
    let frequencies = inverse_frequencies(dim, 1e4, Scaling::None).unwrap();
    let table = RopeTable::new(device, &frequencies, 300, dtype).unwrap();
    let positions: Vec<u32> = (0..rows as u32).map(|row| row * 97 % 300).collect();
    let positions = Tensor::from_host(device, [rows, 1], &positions).unwrap();
    let at = positions.rows(range.clone()).unwrap();
    let values = gpu::exact("rope", rows * heads * dim, Dtype::Bf16);
    let turn = |turn: fn(ViewMut, usize, View, &RopeTable) -> latch::base::Result<()>| {
        let mut x = gpu::tensor(device, [rows, heads * dim], &values, dtype);
        turn(x.rows_mut(range.clone()).unwrap(), heads, at, &table).unwrap();
        gpu::values(x.rows(range.clone()).unwrap())
    };
    [turn(rope::forward), turn(rope::backward)]
}

/// One pair, odd halves, many heads and few, rows that make a thread take all heads of its row.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 2), (3, 5, 6), (5, 3, 10), (2, 14, 64), (130, 2, 128), (300, 3, 64)];

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for shape in SHAPES {
            let expected = run(&Device::cpu(), Dtype::F64, shape, 0..shape.0);
            for dtype in gpu::DTYPES {
                let found = run(&device, dtype, shape, 0..shape.0);
                for (part, name) in ["forward", "backward"].into_iter().enumerate() {
                    let what = format!("rope {name} {dtype} {shape:?}");
                    gpu::compare(&what, dtype, 2, &found[part], &expected[part]);
                }
            }
        }
    }
}

#[test]
fn gpu_bits_depend_on_the_row_alone() {
    for shape @ (rows, heads, dim) in [(5, 3, 10), (300, 3, 64)] {
        for dtype in gpu::DTYPES {
            let [first, second] = gpu::orders().map(|device| run(&device, dtype, shape, 0..rows));
            assert_eq!(first, second, "{dtype} {shape:?} under another order of blocks");
            for row in [0, rows - 1] {
                let alone = run(&gpu::devices()[0], dtype, shape, row..row + 1);
                for part in 0..2 {
                    let width = heads * dim;
                    assert_eq!(
                        alone[part],
                        first[part][row * width..][..width],
                        "{dtype} {shape:?} row {row}"
                    );
                }
            }
        }
    }
}

/// A position beyond the table looks nothing up: the row becomes NaN, its neighbours turn.
#[test]
fn gpu_makes_a_row_beyond_the_table_nan() {
    for device in gpu::devices() {
        for (dtype, dim) in [(Dtype::F32, 8), (Dtype::Bf16, 6)] {
            let frequencies = inverse_frequencies(dim, 1e4, Scaling::None).unwrap();
            let table = RopeTable::new(&device, &frequencies, 4, dtype).unwrap();
            let positions = Tensor::from_host(&device, [3, 1], &[0_u32, 4, 3]).unwrap();
            let mut x = gpu::tensor(&device, [3, 2 * dim], &vec![1.0; 6 * dim], dtype);
            rope::forward(x.view_mut(), 2, positions.view(), &table).unwrap();
            for (at, value) in gpu::values(x.view()).into_iter().enumerate() {
                assert_eq!(value.is_nan(), at / (2 * dim) == 1, "{dtype} element {at}: {value}");
            }
        }
    }
}
