//! Sums and copies of windows: values, and the bits of one rounding on every device.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::{Tensor, elementwise};

/// x + y and a copy of x, of `count` elements that begin `skip` elements into longer tensors, with what stands around
/// them.
pub fn run(device: &Device, dtype: Dtype, count: usize, skip: usize) -> [Vec<f64>; 2] {
    let operand = |name: &str| {
        let values = gpu::exact(name, count, Dtype::Bf16);
        gpu::tensor(device, [count + skip + 1, 1], &[vec![9.0; skip], values, vec![9.0]].concat(), dtype)
    };
    let (x, mut sum, mut copy) = (operand("x"), operand("y"), operand("y"));
    let x = x.rows(skip..skip + count).unwrap();
    elementwise::add(x, sum.rows_mut(skip..skip + count).unwrap()).unwrap();
    elementwise::copy(x, copy.rows_mut(skip..skip + count).unwrap()).unwrap();
    for tensor in [&sum, &copy] {
        let values = gpu::values(tensor.view());
        assert!(
            values[..skip].iter().chain(&values[skip + count..]).all(|&value| value == 9.0),
            "{dtype} {count}"
        );
    }
    [sum, copy].map(|tensor| gpu::values(tensor.rows(skip..skip + count).unwrap()))
}

#[test]
fn values_on_the_cpu() {
    let (x, y) = (gpu::exact("x", 10_003, Dtype::Bf16), gpu::exact("y", 10_003, Dtype::Bf16));
    let [sum, copy] = run(&Device::cpu(), Dtype::F64, 10_003, 0);
    assert!(sum.iter().zip(x.iter().zip(&y)).all(|(sum, (x, y))| *sum == x + y));
    assert_eq!(copy, x);
    let (x, mut y) = (
        Tensor::zeros(&Device::cpu(), [2, 3], Dtype::F32),
        Tensor::zeros(&Device::cpu(), [2, 4], Dtype::F32),
    );
    let message =
        elementwise::add(x.unwrap().view(), y.as_mut().unwrap().view_mut()).unwrap_err().to_string();
    assert_eq!(message, "add: found 2 rows of 4, expected 2 rows of 3");
}

#[test]
fn gpu_bits_are_those_of_one_rounding() {
    for device in gpu::devices().into_iter().chain(gpu::orders()) {
        for count in gpu::COUNTS {
            let [sum, copy] = run(&Device::cpu(), Dtype::F32, count, 0);
            for dtype in gpu::DTYPES {
                for skip in [0, 3, 8] {
                    let found = run(&device, dtype, count, skip);
                    gpu::compare(&format!("add {dtype} {count}"), dtype, 2, &found[0], &sum);
                    assert_eq!(found[0], gpu::round(&sum, dtype), "sum {dtype} {count} from {skip}");
                    assert_eq!(found[1], copy, "copy {dtype} {count} from {skip}");
                }
            }
        }
    }
}
