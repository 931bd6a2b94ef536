//! Layer norm: mathematics, values against a naive f64 formula, independence of rows and threads.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::{Tensor, layernorm};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::layernorm::cases());
}

#[test]
fn values_rows_and_threads() {
    let device = Device::cpu();
    for (rows, cols) in [(1, 1), (1, 33), (37, 123), (61, 768)] {
        // A mean far from zero: one pass over squares would lose the variance.
        let values: Vec<f32> = super::normals_f32("x", rows * cols).into_iter().map(|x| x + 300.0).collect();
        let (gain, bias) = (super::normals_f32("w", cols), super::normals_f32("b", cols));
        let x = Tensor::from_host(&device, [rows, cols], &values).unwrap();
        let w = Tensor::from_host(&device, [cols], &gain).unwrap();
        let b = Tensor::from_host(&device, [cols], &bias).unwrap();
        let run = |range: std::ops::Range<usize>| {
            let count = range.len();
            let mut y = Tensor::zeros(&device, [count, cols], Dtype::F32).unwrap();
            // The rows are kept somewhere inside a longer tape.
            let mut saved = layernorm::Saved::reserve(&device, count + 3, cols, Dtype::F32).unwrap();
            let x = x.rows(range).unwrap();
            layernorm::forward(x, (&w, &b), 1e-5, y.view_mut(), &mut saved, 3..count + 3).unwrap();
            let mut dx = Tensor::zeros(&device, [count, cols], Dtype::F32).unwrap();
            let (mut dw, mut db) = (
                Tensor::zeros(&device, [cols], Dtype::F32).unwrap(),
                Tensor::zeros(&device, [cols], Dtype::F32).unwrap(),
            );
            let gradients = layernorm::Gradients { dw: &mut dw, db: &mut db };
            layernorm::backward(x, x, &w, &saved, 3..count + 3, dx.view_mut(), gradients).unwrap();
            [y, dx, dw, db].map(|t| t.download::<f32>().unwrap())
        };
        let whole = super::on_threads(1, || run(0..rows));
        assert_eq!(whole, super::on_threads(3, || run(0..rows)));
        for row in [0, rows / 2, rows - 1] {
            let alone = run(row..row + 1);
            for part in 0..2 {
                assert_eq!(alone[part], whole[part][row * cols..(row + 1) * cols], "row {row}");
            }
        }
        for (y, x) in whole[0].chunks(cols).zip(values.chunks(cols)) {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / cols as f64;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / cols as f64;
            for c in 0..cols {
                let h = (f64::from(x[c]) - mean) / (variance + 1e-5).sqrt();
                let exact = h * f64::from(gain[c]) + f64::from(bias[c]);
                // x itself has an absolute error of 300 * 2^-24, which the norm leaves as it is.
                assert!((f64::from(y[c]) - exact).abs() < 2e-4 * (1.0 + exact.abs()), "{} {exact}", y[c]);
            }
        }
    }
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let zeros = |rows, cols| Tensor::zeros(&device, [rows, cols], Dtype::F32).unwrap();
    let vector = |cols: usize| Tensor::zeros(&device, [cols], Dtype::F32).unwrap();
    let (x, mut y) = (zeros(2, 3), zeros(2, 3));
    let mut saved = layernorm::Saved::reserve(&device, 2, 3, Dtype::F32).unwrap();
    let mut forward = |w: Tensor, b: Tensor, at| {
        layernorm::forward(x.view(), (&w, &b), 1e-5, y.view_mut(), &mut saved, at).unwrap_err().to_string()
    };
    assert_eq!(forward(vector(3), vector(4), 0..2), "layernorm bias: found [4], expected [3]");
    assert_eq!(forward(vector(2), vector(3), 0..2), "layernorm weight: found [2], expected [3]");
    let message = forward(vector(3), vector(3), 0..1);
    assert_eq!(message, "layernorm saved: found 1 rows of 2, expected 2 rows of 2");
    let message = forward(vector(3), vector(3), 1..3);
    assert_eq!(message, "window of rows: found 1..3, expected inside 0..2 of [2, 2]");
}

/// y, dx, dw and db (which start at some values) of some rows on one device, the rows kept inside a longer tape. All
/// operands hold numbers that bf16 holds; vectors, f32.
pub fn run(
    device: &Device,
    dtype: Dtype,
    (rows, cols): (usize, usize),
    range: std::ops::Range<usize>,
) -> [Vec<f64>; 4] {
    let wide = dtype.accumulation();
    let matrix = |name: &str| {
        // A mean that is not zero.
        let values: Vec<f64> = gpu::exact(name, rows * cols, Dtype::F64).iter().map(|x| x + 2.0).collect();
        gpu::tensor(device, [rows, cols], &gpu::round(&values, Dtype::Bf16), dtype)
    };
    let vector = |name: &str| gpu::tensor(device, [cols], &gpu::exact(name, cols, Dtype::F32), wide);
    let (x, dy, w, b) = (matrix("x"), matrix("dy"), vector("w"), vector("b"));
    let (mut dw, mut db) = (vector("dw"), vector("db"));
    let count = range.len();
    let zeros = || Tensor::zeros(device, [count, cols], dtype).unwrap();
    let (mut y, mut dx, at) = (zeros(), zeros(), 3..count + 3);
    let mut saved = layernorm::Saved::reserve(device, count + 3, cols, dtype).unwrap();
    let (x, dy) = (x.rows(range.clone()).unwrap(), dy.rows(range).unwrap());
    layernorm::forward(x, (&w, &b), 1e-2, y.view_mut(), &mut saved, at.clone()).unwrap();
    let gradients = layernorm::Gradients { dw: &mut dw, db: &mut db };
    layernorm::backward(dy, x, &w, &saved, at, dx.view_mut(), gradients).unwrap();
    [y, dx, dw, db].map(|tensor| gpu::values(tensor.view()))
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for shape in gpu::ROW_SHAPES {
            let expected = run(&Device::cpu(), Dtype::F64, shape, 0..shape.0);
            for dtype in gpu::DTYPES {
                let found = run(&device, dtype, shape, 0..shape.0);
                let terms = [shape.1, shape.1, shape.0, shape.0];
                for (part, name) in ["y", "dx", "dw", "db"].into_iter().enumerate() {
                    let what = format!("layernorm {name} {dtype} {shape:?}");
                    gpu::compare(&what, dtype, terms[part], &found[part], &expected[part]);
                }
            }
        }
    }
}

#[test]
fn gpu_bits_depend_on_the_row_alone() {
    for (rows, cols) in [(71, 768), (5, 123), (3, 1536)] {
        for dtype in gpu::DTYPES {
            let [first, second] = gpu::orders().map(|device| run(&device, dtype, (rows, cols), 0..rows));
            assert_eq!(first, second, "{dtype} {rows} x {cols} under another order of blocks");
            let device = &gpu::devices()[0];
            for range in [0..1, rows - 1..rows, 1..rows] {
                let part = run(device, dtype, (rows, cols), range.clone());
                let here = range.start * cols..range.end * cols;
                assert_eq!(part[0], first[0][here.clone()], "y of {range:?}, {dtype} {rows} x {cols}");
                assert_eq!(part[1], first[1][here], "dx of {range:?}, {dtype} {rows} x {cols}");
            }
        }
    }
}
