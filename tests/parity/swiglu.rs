//! The gated unit: mathematics against f64, tails like bodies, and the flat ends.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::{Tensor, swiglu};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::swiglu::cases());
}

#[test]
fn values_and_far_ends() {
    let device = Device::cpu();
    let count = 1003;
    let gate: Vec<f32> = super::normals_f32("gate", count - 3)
        .into_iter()
        .map(|g| 10.0 * g)
        .chain([200.0, -200.0, 0.0])
        .collect();
    let up = super::normals_f32("up", count);
    let upload = |values: &[f32]| Tensor::from_host(&device, [count, 1], values).unwrap();
    let zeros = || Tensor::zeros(&device, [count, 1], Dtype::F32).unwrap();
    let (mut y, mut dgate, mut dup) = (zeros(), zeros(), zeros());
    let (g, u, ones) = (upload(&gate), upload(&up), upload(&vec![1.0; count]));
    swiglu::forward(g.view(), u.view(), y.view_mut()).unwrap();
    swiglu::backward(ones.view(), g.view(), u.view(), dgate.view_mut(), dup.view_mut()).unwrap();
    let (y, dup) = (y.download::<f32>().unwrap(), dup.download::<f32>().unwrap());
    for n in 0..count {
        let silu = f64::from(gate[n]) / (1.0 + (-f64::from(gate[n])).exp());
        let exact = silu * f64::from(up[n]);
        assert!(
            (f64::from(y[n]) - exact).abs() <= 1e-6 * exact.abs() + 1e-30,
            "{}: {} {exact}",
            gate[n],
            y[n]
        );
        assert!((f64::from(dup[n]) - silu).abs() <= 1e-6 * silu.abs() + 1e-30);
    }
    let dgate = dgate.download::<f32>().unwrap();
    assert_eq!(dgate[count - 3..], [up[count - 3], 0.0, up[count - 1] / 2.0]);
}

#[test]
fn an_element_does_not_depend_on_its_place_or_the_threads() {
    let (count, device) = (40_003, Device::cpu());
    let upload =
        |name: &str| Tensor::from_host(&device, [count, 1], &super::normals_f32(name, count)).unwrap();
    let (gate, up, dy) = (upload("gate"), upload("up"), upload("dy"));
    let run = |range: std::ops::Range<usize>| {
        let zeros = || Tensor::zeros(&device, [range.len(), 1], Dtype::F32).unwrap();
        let (mut y, mut dgate, mut dup) = (zeros(), zeros(), zeros());
        let (g, u) = (gate.rows(range.clone()).unwrap(), up.rows(range.clone()).unwrap());
        swiglu::forward(g, u, y.view_mut()).unwrap();
        swiglu::backward(dy.rows(range.clone()).unwrap(), g, u, dgate.view_mut(), dup.view_mut()).unwrap();
        [y, dgate, dup].map(|t| t.download::<f32>().unwrap())
    };
    let whole = super::on_threads(1, || run(0..count));
    assert_eq!(whole, super::on_threads(3, || run(0..count)));
    for start in [0, 5, 20_001, count - 1] {
        let end = (start + 19).min(count);
        for (part, whole) in run(start..end).iter().zip(&whole) {
            assert_eq!(part[..], whole[start..end]);
        }
    }
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let zeros = |cols: usize| Tensor::zeros(&device, [2, cols], Dtype::F32).unwrap();
    let (gate, up, mut y) = (zeros(3), zeros(4), zeros(3));
    let message = swiglu::forward(gate.view(), up.view(), y.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "swiglu up: found 2 rows of 4, expected 2 rows of 3");
}

/// y, dgate, dup of `count` elements that begin `skip` elements into longer tensors; operands hold numbers that bf16
/// holds, some far out.
pub fn run(device: &Device, dtype: Dtype, count: usize, skip: usize) -> [Vec<f64>; 3] {
    let operand = |name: &str| {
        let values: Vec<f64> = gpu::exact(name, count, Dtype::F64).iter().map(|x| 3.0 * x).collect();
        let values = gpu::round(&values, Dtype::Bf16);
        gpu::tensor(device, [count + skip, 1], &[vec![0.0; skip], values].concat(), dtype)
    };
    let operands = ["gate", "up", "dy"].map(operand);
    let t: Vec<_> = operands.iter().map(|tensor| tensor.rows(skip..count + skip).unwrap()).collect();
    let mut out = [(); 3].map(|()| Tensor::zeros(device, [count, 1], dtype).unwrap());
    swiglu::forward(t[0], t[1], out[0].view_mut()).unwrap();
    let [_, dgate, dup] = &mut out;
    swiglu::backward(t[2], t[0], t[1], dgate.view_mut(), dup.view_mut()).unwrap();
    out.map(|tensor| gpu::values(tensor.view()))
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for count in gpu::COUNTS {
            let expected = run(&Device::cpu(), Dtype::F64, count, 0);
            for dtype in gpu::DTYPES {
                let found = run(&device, dtype, count, 0);
                for (part, name) in ["y", "dgate", "dup"].into_iter().enumerate() {
                    let what = format!("swiglu {name} {dtype} {count}");
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
