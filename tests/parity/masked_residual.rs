//! The masked residual sum: mathematics, exactness of dropped elements, independence of rows and threads.

use super::gpu;
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::mask::{MaskKey, MaskSet, SiteKind, Sites};
use latch::ops::{Tensor, masked_residual};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::masked_residual::cases());
}

#[test]
fn values_rows_and_threads() {
    let (rows, device) = (61, Device::cpu());
    for cols in [1, 33, 768] {
        let keys: Vec<MaskKey> = (0..5)
            .map(|rollout| MaskKey {
                stream: StreamKey::new(3, 0, 0, rollout, Purpose::Mask),
                step: 0,
                attempt: 0,
            })
            .collect();
        let masks =
            MaskSet::fill(&device, Sites::new(cols, 1, 1, &[SiteKind::AttnOut]), 0.25, &keys).unwrap();
        let bits = masks.bits().download::<u32>().unwrap();
        let instance: Vec<i32> = (0..rows as i32).map(|row| row % 6 - 1).collect();
        let instance_tensor = Tensor::from_host(&device, [rows, 1], &instance).unwrap();
        let (x, branch) = (super::normals_f32("x", rows * cols), super::normals_f32("branch", rows * cols));
        let x_tensor = Tensor::from_host(&device, [rows, cols], &x).unwrap();
        let branch_tensor = Tensor::from_host(&device, [rows, cols], &branch).unwrap();
        let run = |range: std::ops::Range<usize>| {
            let mut y = Tensor::zeros(&device, [range.len(), cols], Dtype::F32).unwrap();
            let mask = masks.at(SiteKind::AttnOut, 0, instance_tensor.rows(range.clone()).unwrap());
            let (x, b) = (x_tensor.rows(range.clone()).unwrap(), branch_tensor.rows(range).unwrap());
            masked_residual::forward(x, b, mask, y.view_mut()).unwrap();
            y.download::<f32>().unwrap()
        };
        let whole = super::on_threads(1, || run(0..rows));
        assert_eq!(whole, super::on_threads(3, || run(0..rows)));
        for row in [0, 1, 17, rows - 1] {
            assert_eq!(whole[row * cols..(row + 1) * cols], run(row..row + 1), "row {row}");
        }
        let words = cols.div_ceil(32);
        for (n, &found) in whole.iter().enumerate() {
            let (row, i) = (n / cols, n % cols);
            let m = match instance[row] {
                -1 => 1.0,
                r if bits[r as usize * words + i / 32] >> (i % 32) & 1 == 1 => 1.0 / 0.75,
                _ => 0.0,
            };
            let exact = f64::from(x[n]) + m * f64::from(branch[n]);
            if m == 0.0 {
                assert_eq!(found.to_bits(), x[n].to_bits());
            }
            assert!((f64::from(found) - exact).abs() <= 1e-6 * (1.0 + exact.abs()), "{found} {exact}");
        }
    }
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let zeros = |rows, cols| Tensor::zeros(&device, [rows, cols], Dtype::F32).unwrap();
    let (x, branch, mut y) = (zeros(2, 3), zeros(2, 4), zeros(2, 3));
    let message =
        masked_residual::forward(x.view(), branch.view(), None, y.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "masked_residual branch: found 2 rows of 4, expected 2 rows of 3");
    let wide = Tensor::zeros(&device, [2, 3], Dtype::F64).unwrap();
    let message = masked_residual::backward(wide.view(), None, y.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "masked_residual dbranch: element type f32, expected f64");
}

/// y and dbranch on one device; operands hold numbers that bf16 holds.
pub fn run(device: &Device, dtype: Dtype, (rows, cols): (usize, usize), masked: bool) -> [Vec<f64>; 2] {
    let matrix =
        |name: &str| gpu::tensor(device, [rows, cols], &gpu::exact(name, rows * cols, Dtype::Bf16), dtype);
    let (x, branch, dy) = (matrix("x"), matrix("branch"), matrix("dy"));
    let (masks, instance) = gpu::masks(device, rows, cols);
    let mask = gpu::masked_site(&masks, instance.view()).filter(|_| masked);
    let zeros = || Tensor::zeros(device, [rows, cols], dtype).unwrap();
    let (mut y, mut dbranch) = (zeros(), zeros());
    masked_residual::forward(x.view(), branch.view(), mask, y.view_mut()).unwrap();
    masked_residual::backward(dy.view(), mask, dbranch.view_mut()).unwrap();
    [gpu::values(y.view()), gpu::values(dbranch.view())]
}

#[test]
fn gpu_agrees_with_f64_and_drops_to_zero() {
    for device in gpu::devices() {
        for shape in gpu::ROW_SHAPES {
            for masked in [false, true] {
                let [y, dbranch] = run(&Device::cpu(), Dtype::F64, shape, masked);
                for dtype in gpu::DTYPES {
                    let found = run(&device, dtype, shape, masked);
                    let what = |name| format!("masked_residual {name} {dtype} {shape:?}, masked: {masked}");
                    gpu::compare(&what("y"), dtype, 1, &found[0], &y);
                    gpu::compare(&what("dbranch"), dtype, 1, &found[1], &dbranch);
                    for (at, (found, expected)) in found[1].iter().zip(&dbranch).enumerate() {
                        assert!(
                            *expected != 0.0 || found.to_bits() == 0,
                            "{}: element {at}",
                            what("dbranch")
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn gpu_bits_are_those_of_one_rounding_under_any_order_of_blocks() {
    for (rows, cols) in [(71, 768), (5, 123), (3, 1536)] {
        for dtype in gpu::DTYPES {
            let [first, second] = gpu::orders().map(|device| run(&device, dtype, (rows, cols), true));
            assert_eq!(first, second, "{dtype} {rows} x {cols} under another order of blocks");
            // f32 makes the CPU's one rounding; bf16 rounds what f32 holds.
            let cpu = run(&Device::cpu(), Dtype::F32, (rows, cols), true);
            assert_eq!(first, cpu.map(|values| gpu::round(&values, dtype)), "{dtype} {rows} x {cols}");
        }
    }
}

/// A row whose instance does not exist reads no bitmap and becomes NaN; its neighbours are as they should be.
#[test]
fn gpu_makes_a_row_of_an_instance_that_does_not_exist_nan() {
    for device in gpu::devices() {
        for (cols, dtype) in [(768, Dtype::F32), (33, Dtype::Bf16), (1536, Dtype::Bf16)] {
            let ones = gpu::tensor(&device, [3, cols], &vec![1.0; 3 * cols], dtype);
            let (masks, _) = gpu::masks(&device, 3, cols);
            let instance = Tensor::from_host(&device, [3, 1], &[-1_i32, 5, -1]).unwrap();
            let mut y = Tensor::zeros(&device, [3, cols], dtype).unwrap();
            let mask = gpu::masked_site(&masks, instance.view());
            masked_residual::forward(ones.view(), ones.view(), mask, y.view_mut()).unwrap();
            for (at, value) in gpu::values(y.view()).into_iter().enumerate() {
                assert!(if at / cols == 1 { value.is_nan() } else { value == 2.0 }, "{dtype} {at}: {value}");
            }
        }
    }
}
