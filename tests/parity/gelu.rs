//! GELU: mathematics against tanh in f64, tails like bodies, and the flat ends.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::{Tensor, gelu};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::gelu::cases());
}

/// GPT-2's formula, as written there.
fn naive(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

#[test]
fn values_follow_the_tanh_formula_everywhere() {
    let device = Device::cpu();
    let x: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.005).chain([1e4, -1e4, 3e38, -3e38, 0.0]).collect();
    let input = Tensor::from_host(&device, [x.len(), 1], &x).unwrap();
    let mut y = Tensor::zeros(&device, [x.len(), 1], Dtype::F32).unwrap();
    gelu::forward(input.view(), y.view_mut()).unwrap();
    for (x, y) in x.iter().zip(y.download::<f32>().unwrap()) {
        let exact = naive(f64::from(*x));
        // tanh leaves nothing of values below 1e-15; ours keeps them.
        assert!((f64::from(y) - exact).abs() <= 2e-6 * exact.abs() + 1e-9, "gelu({x}): {y}, exact {exact}");
    }
    // Far out the slope is 0 or 1, never a NaN.
    let far = Tensor::from_host(&device, [4, 1], &[-50.0_f32, 50.0, -1e4, 1e4]).unwrap();
    let ones = Tensor::from_host(&device, [4, 1], &[1.0_f32; 4]).unwrap();
    let mut dx = Tensor::zeros(&device, [4, 1], Dtype::F32).unwrap();
    gelu::backward(ones.view(), far.view(), dx.view_mut()).unwrap();
    assert_eq!(dx.download::<f32>().unwrap(), [0.0, 1.0, 0.0, 1.0]);
}

#[test]
fn an_element_does_not_depend_on_its_place_or_the_threads() {
    let (count, device) = (40_003, Device::cpu());
    let x = Tensor::from_host(&device, [count, 1], &super::normals_f32("x", count)).unwrap();
    let dy = Tensor::from_host(&device, [count, 1], &super::normals_f32("dy", count)).unwrap();
    let run = |range: std::ops::Range<usize>| {
        let mut y = Tensor::zeros(&device, [range.len(), 1], Dtype::F32).unwrap();
        let mut dx = Tensor::zeros(&device, [range.len(), 1], Dtype::F32).unwrap();
        let x = x.rows(range.clone()).unwrap();
        gelu::forward(x, y.view_mut()).unwrap();
        gelu::backward(dy.rows(range).unwrap(), x, dx.view_mut()).unwrap();
        [y.download::<f32>().unwrap(), dx.download::<f32>().unwrap()]
    };
    let whole = super::on_threads(1, || run(0..count));
    assert_eq!(whole, super::on_threads(3, || run(0..count)));
    for start in [0, 5, 20_001, count - 1] {
        let end = (start + 19).min(count);
        let [y, dx] = run(start..end);
        assert_eq!(y, whole[0][start..end]);
        assert_eq!(dx, whole[1][start..end]);
    }
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let (x, mut y) = (
        Tensor::zeros(&device, [2, 3], Dtype::F32).unwrap(),
        Tensor::zeros(&device, [2, 4], Dtype::F32).unwrap(),
    );
    let message = gelu::forward(x.view(), y.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "gelu output: found 2 rows of 4, expected 2 rows of 3");
}

/// y, dx of `count` elements that begin `skip` elements into longer tensors; operands hold numbers that bf16
/// holds, some far out.
pub fn run(device: &Device, dtype: Dtype, count: usize, skip: usize) -> [Vec<f64>; 2] {
    let operand = |name: &str| {
        let values: Vec<f64> = gpu::exact(name, count, Dtype::F64).iter().map(|x| 3.0 * x).collect();
        let values = gpu::round(&values, Dtype::Bf16);
        gpu::tensor(device, [count + skip, 1], &[vec![0.0; skip], values].concat(), dtype)
    };
    let operands = ["x", "dy"].map(operand);
    let t: Vec<_> = operands.iter().map(|tensor| tensor.rows(skip..count + skip).unwrap()).collect();
    let mut out = [(); 2].map(|()| Tensor::zeros(device, [count, 1], dtype).unwrap());
    gelu::forward(t[0], out[0].view_mut()).unwrap();
    gelu::backward(t[1], t[0], out[1].view_mut()).unwrap();
    out.map(|tensor| gpu::values(tensor.view()))
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for count in gpu::COUNTS {
            let expected = run(&Device::cpu(), Dtype::F64, count, 0);
            for dtype in gpu::DTYPES {
                let found = run(&device, dtype, count, 0);
                for (part, name) in ["y", "dx"].into_iter().enumerate() {
                    let what = format!("gelu {name} {dtype} {count}");
                    gpu::compare(&what, dtype, 1, &found[part], &expected[part]);
                }
            }
        }
    }
}

#[test]
fn gpu_bits_depend_on_the_element_alone() {
    for dtype in gpu::DTYPES {
        let [first, second] = gpu::orders().map(|device| run(&device, dtype, 10_003, 0));
        assert_eq!(first, second, "{dtype} under another order of blocks");
        // From an address that allows no wide access.
        assert_eq!(run(&gpu::devices()[0], dtype, 10_003, 3), first, "{dtype}");
    }
}
