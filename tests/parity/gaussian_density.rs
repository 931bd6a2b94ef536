//! Density of noisy embeddings: gradients, values against the definition, its expectations, bits of a row, the kernels.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::gaussian_density::{Normal, backward, forward};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::gaussian_density::cases());
}

/// Scores, and gradients by the means of scores weighted by 0.5, -1, 1.5, ...
fn run(
    device: &Device,
    dtype: Dtype,
    (rows, cols): (usize, usize),
    (x, m): (&[f64], &[f64]),
    normal: Normal,
) -> [Vec<f64>; 2] {
    let operand = |values: &[f64]| gpu::tensor(device, [rows, cols], values, dtype);
    let (x, m) = (operand(x), operand(m));
    let weights: Vec<f64> = (0..rows).map(|row| 0.5 * (row as f64 + 1.0) * [1.0, -1.0][row % 2]).collect();
    let weights = gpu::tensor(device, [rows, 1], &weights, dtype.accumulation());
    let mut score = Tensor::zeros(device, [rows, 1], dtype.accumulation()).unwrap();
    let mut dm = Tensor::zeros(device, [rows, cols], dtype).unwrap();
    forward(x.view(), m.view(), &normal, score.view_mut()).unwrap();
    backward(x.view(), m.view(), &normal, weights.view(), dm.view_mut()).unwrap();
    [gpu::values(score.view()), gpu::values(dm.view())]
}

fn operands(rows: usize, cols: usize) -> (Vec<f64>, Vec<f64>) {
    let of = |name| gpu::exact(name, rows * cols, Dtype::Bf16);
    (of("gaussian_density x"), of("gaussian_density m"))
}

#[test]
fn values_follow_the_definition() {
    let (rows, cols) = (5, 37);
    let (x, m) = operands(rows, cols);
    for normal in [Normal { deviation: 0.7, mean: false }, Normal { deviation: 0.2, mean: true }] {
        let [score, _] = run(&Device::cpu(), Dtype::F64, (rows, cols), (&x, &m), normal);
        for (row, score) in score.iter().enumerate() {
            // By the density of each entry: the logarithm of the normal density less that at its mean.
            let at = |c: usize| {
                let e = (x[row * cols + c] - m[row * cols + c]) / normal.deviation;
                (-0.5 * e * e).exp().ln()
            };
            let sum: f64 = (0..cols).map(at).sum();
            let expected = if normal.mean { sum / cols as f64 } else { sum };
            assert!((score - expected).abs() < 1e-9 * expected.abs(), "{score} {expected}");
        }
    }
}

/// Over the law that x was drawn from, scores have no mean slope and ratios the mean 1.
#[test]
fn scores_have_mean_zero_and_ratios_mean_one() {
    let (deviation, cols) = (0.6, 2);
    let (old, new) = ([0.3, -0.4], [0.55, -0.1]);
    // Trapezoids, which converge faster than any power of the step.
    let axis: Vec<(f64, f64)> = (-64..=64)
        .map(|i| 0.15 * f64::from(i))
        .map(|n| (n, 0.15 * (-0.5 * n * n).exp() / (2.0 * std::f64::consts::PI).sqrt()))
        .collect();
    let (mut x, mut weights) = (Vec::new(), Vec::new());
    for a in &axis {
        for b in &axis {
            x.extend([old[0] + deviation * a.0, old[1] + deviation * b.0]);
            weights.push(a.1 * b.1);
        }
    }
    let rows = weights.len();
    let device = Device::cpu();
    let operand = |values: &[f64], cols| Tensor::from_host(&device, [rows, cols], values).unwrap();
    let normal = Normal { deviation, mean: false };
    let under = |m: &[f64; 2]| {
        let mut score = Tensor::zeros(&device, [rows, 1], Dtype::F64).unwrap();
        let m: Vec<f64> = (0..rows).flat_map(|_| *m).collect();
        forward(operand(&x, cols).view(), operand(&m, cols).view(), &normal, score.view_mut()).unwrap();
        score.download::<f64>().unwrap()
    };
    let pairs = under(&new).into_iter().zip(under(&old));
    let ratio: f64 = pairs.zip(&weights).map(|((new, old), weight)| weight * (new - old).exp()).sum();
    assert!((ratio - 1.0).abs() < 1e-9, "{ratio}");
    let means: Vec<f64> = (0..rows).flat_map(|_| old).collect();
    let mut dm = Tensor::zeros(&device, [rows, cols], Dtype::F64).unwrap();
    let (x, means, d) = (operand(&x, cols), operand(&means, cols), operand(&weights, 1));
    backward(x.view(), means.view(), &normal, d.view(), dm.view_mut()).unwrap();
    let dm = dm.download::<f64>().unwrap();
    for column in 0..cols {
        let sum: f64 = dm.iter().skip(column).step_by(cols).sum();
        let size: f64 = dm.iter().skip(column).step_by(cols).map(|d| d.abs()).sum();
        assert!(sum.abs() < 1e-12 && size > 0.5, "{sum:e} of {size}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_place_or_the_threads() {
    let (rows, cols, device) = (700, 123, Device::cpu());
    let tensor =
        |name| Tensor::from_host(&device, [rows, cols], &super::normals_f32(name, rows * cols)).unwrap();
    let (x, m) = (tensor("x"), tensor("m"));
    let run = |range: std::ops::Range<usize>| {
        let mut score = Tensor::zeros(&device, [range.len(), 1], Dtype::F32).unwrap();
        let normal = Normal { deviation: 0.5, mean: false };
        let (x, m) = (x.rows(range.clone()).unwrap(), m.rows(range).unwrap());
        forward(x, m, &normal, score.view_mut()).unwrap();
        score.download::<f32>().unwrap()
    };
    let whole = super::on_threads(1, || run(0..rows));
    assert_eq!(whole, super::on_threads(3, || run(0..rows)));
    assert_eq!(run(5..9), whole[5..9]);
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let zeros = |cols| Tensor::zeros(&device, [2, cols], Dtype::F32).unwrap();
    let (x, m, mut score) = (zeros(3), zeros(4), zeros(1));
    let message = |result: latch::base::Result<()>| result.unwrap_err().to_string();
    let normal = Normal { deviation: 1.0, mean: false };
    assert_eq!(
        message(forward(x.view(), m.view(), &normal, score.view_mut())),
        "gaussian density means: found 2 rows of 4, expected 2 rows of 3"
    );
    let point = Normal { deviation: 0.0, mean: false };
    let message = message(forward(x.view(), x.view(), &point, score.view_mut()));
    assert!(message.contains("deviation = 0") && message.contains("lepo.embedding_noise"), "{message}");
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for shape in gpu::ROW_SHAPES {
            let (x, m) = operands(shape.0, shape.1);
            for normal in [Normal { deviation: 0.4, mean: false }, Normal { deviation: 2.0, mean: true }] {
                let expected = run(&Device::cpu(), Dtype::F64, shape, (&x, &m), normal);
                for dtype in gpu::DTYPES {
                    let found = run(&device, dtype, shape, (&x, &m), normal);
                    for (part, name) in ["score", "dm"].into_iter().enumerate() {
                        let terms = if name == "dm" { 1 } else { shape.1 };
                        // Scores are f32 whatever the operands are.
                        let of = if name == "dm" { dtype } else { Dtype::F32 };
                        let what = format!("gaussian_density {name} {dtype} {shape:?} {normal:?}");
                        gpu::compare(&what, of, terms, &found[part], &expected[part]);
                    }
                }
            }
        }
    }
}

#[test]
fn gpu_bits_depend_on_the_row_alone() {
    let normal = Normal { deviation: 0.4, mean: false };
    let (x, m) = operands(9, 123);
    for dtype in gpu::DTYPES {
        let [first, second] = gpu::orders().map(|device| run(&device, dtype, (9, 123), (&x, &m), normal));
        assert_eq!(first, second, "{dtype} under another order of blocks");
        let few = (&x[..4 * 123], &m[..4 * 123]);
        let fewer = run(&gpu::devices()[0], dtype, (4, 123), few, normal);
        assert_eq!(fewer[0], first[0][..4], "{dtype}: rows of a smaller batch");
        assert_eq!(fewer[1], first[1][..4 * 123], "{dtype}: rows of a smaller batch");
    }
}
