//! Smooth L1: gradients, values against the definition, bits of a row, and the kernels.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::{Tensor, smooth_l1};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::smooth_l1::cases());
}

/// Loss, mean and spread of a row by their definitions (torch.nn.SmoothL1Loss with reduction = "sum").
fn naive(x: &[f64], t: &[f64], beta: f64) -> [f64; 3] {
    let term = |(x, t): (&f64, &f64)| {
        let e = (x - t).abs();
        if e < beta { 0.5 * e * e / beta } else { e - 0.5 * beta }
    };
    let mean = t.iter().sum::<f64>() / t.len() as f64;
    [x.iter().zip(t).map(term).sum(), mean, t.iter().map(|t| (t - mean) * (t - mean)).sum()]
}

/// Statistics by column (loss, mean, spread), then dx, of operands whose targets have a mean and a large entry a row.
fn run(device: &Device, dtype: Dtype, (rows, cols): (usize, usize), beta: f64) -> [Vec<f64>; 4] {
    let x = gpu::exact("smooth_l1 x", rows * cols, Dtype::Bf16);
    let mut t = gpu::exact("smooth_l1 t", rows * cols, Dtype::Bf16);
    for (at, t) in t.iter_mut().enumerate() {
        *t = gpu::round(&[if at % cols == 0 { 40.0 * *t } else { *t + 0.25 }], Dtype::Bf16)[0];
    }
    let operand = |values: &[f64]| gpu::tensor(device, [rows, cols], values, dtype);
    let (x, t) = (operand(&x), operand(&t));
    let mut statistics = Tensor::zeros(device, [rows, 3], dtype.accumulation()).unwrap();
    let mut dx = Tensor::zeros(device, [rows, cols], dtype).unwrap();
    smooth_l1::forward(x.view(), t.view(), beta, statistics.view_mut()).unwrap();
    smooth_l1::backward(x.view(), t.view(), beta, 0.37, dx.view_mut()).unwrap();
    let statistics = gpu::values(statistics.view());
    let column = |n: usize| statistics.iter().skip(n).step_by(3).copied().collect();
    [column(0), column(1), column(2), gpu::values(dx.view())]
}

#[test]
fn values_follow_the_definition() {
    let (rows, cols, beta) = (7, 123, 0.8);
    let device = Device::cpu();
    let (x, t) = (super::normals_f32("x", rows * cols), super::normals_f32("t", rows * cols));
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    let (x64, t64) = (wide(&x), wide(&t));
    let tensor = |values: &[f32]| Tensor::from_host(&device, [rows, cols], values).unwrap();
    let mut statistics = Tensor::zeros(&device, [rows, 3], Dtype::F32).unwrap();
    smooth_l1::forward(tensor(&x).view(), tensor(&t).view(), beta, statistics.view_mut()).unwrap();
    let found = statistics.download::<f32>().unwrap();
    for row in 0..rows {
        let span = row * cols..(row + 1) * cols;
        let expected = naive(&x64[span.clone()], &t64[span], beta);
        for (found, expected) in found[3 * row..].iter().zip(expected) {
            let bound = 2e-6 * expected.abs() + 1e-6;
            assert!((f64::from(*found) - expected).abs() <= bound, "row {row}: {found}, expected {expected}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_place_or_the_threads() {
    let (rows, cols, device) = (700, 123, Device::cpu());
    let tensor =
        |name| Tensor::from_host(&device, [rows, cols], &super::normals_f32(name, rows * cols)).unwrap();
    let (x, t) = (tensor("x"), tensor("t"));
    let run = |range: std::ops::Range<usize>| {
        let mut statistics = Tensor::zeros(&device, [range.len(), 3], Dtype::F32).unwrap();
        let (x, t) = (x.rows(range.clone()).unwrap(), t.rows(range).unwrap());
        smooth_l1::forward(x, t, 1.0, statistics.view_mut()).unwrap();
        statistics.download::<f32>().unwrap()
    };
    let whole = super::on_threads(1, || run(0..rows));
    assert_eq!(whole, super::on_threads(3, || run(0..rows)));
    assert_eq!(run(5..9), whole[15..27]);
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let zeros = |cols| Tensor::zeros(&device, [2, cols], Dtype::F32).unwrap();
    let (x, t, mut out) = (zeros(3), zeros(4), zeros(3));
    let message = |result: latch::base::Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        message(smooth_l1::forward(x.view(), t.view(), 1.0, out.view_mut())),
        "smooth_l1 target: found 2 rows of 4, expected 2 rows of 3"
    );
    let message = message(smooth_l1::backward(x.view(), x.view(), 0.0, 1.0, out.view_mut()));
    assert!(message.contains("beta = 0") && message.contains("above 0"), "{message}");
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for shape in gpu::ROW_SHAPES {
            let expected = run(&Device::cpu(), Dtype::F64, shape, 0.75);
            for dtype in gpu::DTYPES {
                let found = run(&device, dtype, shape, 0.75);
                for (part, name) in ["loss", "mean", "spread", "dx"].into_iter().enumerate() {
                    let terms = if name == "dx" { 1 } else { shape.1 };
                    // Statistics are f32 whatever the operands are.
                    let of = if name == "dx" { dtype } else { Dtype::F32 };
                    let what = format!("smooth_l1 {name} {dtype} {shape:?}");
                    gpu::compare(&what, of, terms, &found[part], &expected[part]);
                }
            }
        }
    }
}

#[test]
fn gpu_bits_depend_on_the_row_alone() {
    for dtype in gpu::DTYPES {
        let [first, second] = gpu::orders().map(|device| run(&device, dtype, (9, 123), 1.0));
        assert_eq!(first, second, "{dtype} under another order of blocks");
        let fewer = run(&gpu::devices()[0], dtype, (4, 123), 1.0);
        for part in 0..3 {
            assert_eq!(fewer[part], first[part][..4], "{dtype}: rows of a smaller batch");
        }
    }
}
