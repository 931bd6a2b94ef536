//! The gates of HRPO: mathematics against f64, the far ends, bits that depend on the element alone, kernels.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::gated_mixture::{Gradients, Inputs, backward, forward};
use latch::ops::{Tensor, View};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::gated_mixture::cases());
}

/// e, h, p, q, dx of `rows` rows and lambda, as f64 numbers that bf16 holds; lambda runs from rates where 1 - a^2 is
/// 1e-7 to rates where a is 0.
fn operands(rows: usize, cols: usize) -> ([Vec<f64>; 5], Vec<f64>) {
    let given = ["e", "h", "p", "q", "dx"].map(|name| {
        let scale = if name == "p" || name == "q" { 2.0 } else { 1.0 };
        let values: Vec<f64> = gpu::exact(name, rows * cols, Dtype::F64).iter().map(|x| scale * x).collect();
        gpu::round(&values, Dtype::Bf16)
    });
    let lambda: Vec<f64> =
        gpu::exact("lambda", cols, Dtype::F64).iter().map(|x| 4.0 * x.clamp(-2.0, 3.0) + 3.0).collect();
    (given, gpu::round(&lambda, Dtype::Bf16))
}

/// x, de, dp, dq and dlambda. Operands begin `skip` rows into longer tensors; dlambda begins at 1.
fn run(device: &Device, dtype: Dtype, (rows, cols): (usize, usize), skip: usize) -> [Vec<f64>; 5] {
    let (given, lambda) = operands(rows, cols);
    run_on(device, dtype, (rows, cols), skip, &given, &lambda)
}

fn run_on(
    device: &Device,
    dtype: Dtype,
    (rows, cols): (usize, usize),
    skip: usize,
    given: &[Vec<f64>; 5],
    lambda: &[f64],
) -> [Vec<f64>; 5] {
    let upload = |values: &Vec<f64>| {
        gpu::tensor(device, [rows + skip, cols], &[vec![0.0; skip * cols], values.clone()].concat(), dtype)
    };
    let tensors: Vec<Tensor> = given.iter().map(upload).collect();
    let views: Vec<View> = tensors.iter().map(|t| t.rows(skip..rows + skip).unwrap()).collect();
    let lambda = gpu::tensor(device, [cols], lambda, dtype.accumulation());
    let inputs =
        Inputs { token: views[0], soft: views[1], reset: views[2], input: views[3], lambda: &lambda };
    let zeros = |dtype| Tensor::zeros(device, [rows, cols], dtype).unwrap();
    let [mut x, mut de, mut dp, mut dq] = [(); 4].map(|()| zeros(dtype));
    let mut terms = zeros(dtype.accumulation());
    let mut dlambda = gpu::tensor(device, [cols], &vec![1.0; cols], dtype.accumulation());
    forward(&inputs, x.view_mut()).unwrap();
    let out = Gradients {
        dtoken: de.view_mut(),
        dreset: dp.view_mut(),
        dinput: dq.view_mut(),
        terms: terms.view_mut(),
        dlambda: &mut dlambda,
    };
    backward(views[4], &inputs, out).unwrap();
    [x.view(), de.view(), dp.view(), dq.view(), dlambda.view()].map(gpu::values)
}

#[test]
fn values_follow_the_formula_and_the_far_ends_are_finite() {
    let (rows, cols) = (5, 123);
    let (mut given, mut lambda) = operands(rows, cols);
    // A gate that is shut to the last bit, and a rate of 0: the token alone. A fast rate: the mixture alone.
    (given[2][0], given[2][1], lambda[2], lambda[3]) = (-800.0, 800.0, 900.0, -900.0);
    given[2][3] = 3.0;
    for dtype in [Dtype::F32, Dtype::F64] {
        let unit = if dtype == Dtype::F64 { 1e-13 } else { 3e-6 };
        let [x, de, dp, dq, dlambda] = run_on(&Device::cpu(), dtype, (rows, cols), 0, &given, &lambda);
        for at in 0..rows * cols {
            let [e, h, p, q, dx] = [0, 1, 2, 3, 4].map(|operand| given[operand][at]);
            let (r, i) = (1.0 / (1.0 + (-p).exp()), 1.0 / (1.0 + (-q).exp()));
            let softplus = (-lambda[at % cols].abs()).exp().ln_1p() + (-lambda[at % cols]).max(0.0);
            let a = (-8.0 * softplus * r).exp();
            let b = (-(-16.0 * softplus * r).exp_m1()).sqrt();
            let expected = a * e + b * i * h;
            assert!(
                (x[at] - expected).abs() <= unit * (e.abs() + h.abs()),
                "{dtype} x {at}: {} {expected}",
                x[at]
            );
            assert!((de[at] - dx * a).abs() <= unit * dx.abs(), "{dtype} de {at}");
            let expected = dx * b * h * i * (1.0 - i);
            assert!((dq[at] - expected).abs() <= unit * (dx * h).abs(), "{dtype} dq {at}");
        }
        assert_eq!((x[0], dp[0], dq[0]), (given[0][0], 0.0, 0.0), "shut");
        assert_eq!((x[2], dp[2], dq[2]), (given[0][2], 0.0, 0.0), "rate 0");
        assert!([x, de, dp, dq, dlambda].iter().flatten().all(|value| value.is_finite()), "{dtype}");
    }
}

#[test]
fn a_row_does_not_depend_on_the_batch_or_the_threads() {
    let (rows, cols) = (301, 123);
    let (given, lambda) = operands(rows, cols);
    let whole = super::on_threads(1, || run(&Device::cpu(), Dtype::F32, (rows, cols), 0));
    assert_eq!(whole, super::on_threads(3, || run(&Device::cpu(), Dtype::F32, (rows, cols), 0)));
    for first in [0, 7, 300] {
        let last = (first + 5).min(rows);
        let part = given.clone().map(|values| values[first * cols..last * cols].to_vec());
        let found = run_on(&Device::cpu(), Dtype::F32, (last - first, cols), 0, &part, &lambda);
        for (part, whole) in found.iter().zip(&whole).take(4) {
            assert_eq!(part[..], whole[first * cols..last * cols]);
        }
    }
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let zeros = |cols: usize| Tensor::zeros(&device, [2, cols], Dtype::F32).unwrap();
    let (operand, other, mut x) = (zeros(3), zeros(4), zeros(3));
    let lambda = Tensor::zeros(&device, [3], Dtype::F32).unwrap();
    let v = operand.view();
    let inputs = Inputs { token: v, soft: other.view(), reset: v, input: v, lambda: &lambda };
    let message = forward(&inputs, x.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "gated_mixture soft: found 2 rows of 4, expected 2 rows of 3");
    let lambda = Tensor::zeros(&device, [4], Dtype::F32).unwrap();
    let inputs = Inputs { token: v, soft: v, reset: v, input: v, lambda: &lambda };
    let message = forward(&inputs, x.view_mut()).unwrap_err().to_string();
    assert!(message.contains("gated_mixture lambda"), "{message}");
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for shape in [(1, 1), (1, 33), (5, 123), (7, 36), (71, 768), (40, 896)] {
            let expected = run(&Device::cpu(), Dtype::F64, shape, 0);
            for dtype in gpu::DTYPES {
                let found = run(&device, dtype, shape, 0);
                for (part, name) in ["x", "de", "dp", "dq", "dlambda"].into_iter().enumerate() {
                    let what = format!("gated_mixture {name} {dtype} {shape:?}");
                    let terms = if name == "dlambda" { shape.0 } else { 1 };
                    gpu::compare(&what, dtype, terms, &found[part], &expected[part]);
                }
            }
        }
    }
}

#[test]
fn gpu_bits_depend_on_the_element_alone() {
    for dtype in gpu::DTYPES {
        let [first, second] = gpu::orders().map(|device| run(&device, dtype, (37, 132), 0));
        assert_eq!(first, second, "{dtype} under another order of blocks");
        // A row of its own, where no access is wide, against the same row among others.
        let (given, lambda) = operands(37, 132);
        for row in [0, 36] {
            let part = given.clone().map(|values| values[row * 132..row * 132 + 131].to_vec());
            let device = &gpu::devices()[0];
            let found = run_on(device, dtype, (1, 131), 1, &part, &lambda[..131]);
            for (part, whole) in found.iter().zip(&first).take(4) {
                assert_eq!(part[..], whole[row * 132..row * 132 + 131], "{dtype} row {row}");
            }
        }
    }
}
