//! Casts: rounding to nearest even, and the same bits on every device.

use super::gpu;
use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::cast::cast;

/// Halfway cases, both ends of the range, signed zeros, numbers below the normal ones.
const AWKWARD: [u32; 14] = [
    0x3f80_8000,
    0x3f81_8000,
    0x3f80_8001,
    0x3f80_7fff,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0,
    0x8000_0000,
    0x0000_8000,
    0x0001_8000,
    0x0080_0000,
    0x8000_0001,
];

/// `values` from element `skip` of a longer tensor on, rounded to bf16 and widened again.
fn run(device: &Device, values: &[f32], skip: usize) -> (Vec<u16>, Vec<u32>) {
    let count = values.len();
    let x = Tensor::from_host(device, [count + skip, 1], &[&vec![1.0; skip], values].concat()).unwrap();
    let mut rounded = Tensor::zeros(device, [count + skip, 1], Dtype::Bf16).unwrap();
    let mut widened = Tensor::zeros(device, [count + skip, 1], Dtype::F32).unwrap();
    let range = skip..count + skip;
    cast(x.rows(range.clone()).unwrap(), rounded.rows_mut(range.clone()).unwrap()).unwrap();
    cast(rounded.rows(range.clone()).unwrap(), widened.rows_mut(range.clone()).unwrap()).unwrap();
    let rounded: Vec<bf16> = rounded.rows(range.clone()).unwrap().download().unwrap();
    let widened: Vec<f32> = widened.rows(range).unwrap().download().unwrap();
    (rounded.into_iter().map(bf16::to_bits).collect(), widened.into_iter().map(f32::to_bits).collect())
}

fn values(count: usize) -> Vec<f32> {
    AWKWARD.map(f32::from_bits).into_iter().chain(super::normals_f32("cast", count)).take(count).collect()
}

#[test]
fn rounds_to_nearest_even() {
    let (rounded, widened) = run(&Device::cpu(), &values(5000), 0);
    let expected = [
        0x3f80, 0x3f82, 0x3f81, 0x3f80, 0x7f80, 0xff80, 0x7f80, 0xff80, 0, 0x8000, 0, 0x0002, 0x0080, 0x8000,
    ];
    assert_eq!(rounded[..14], expected);
    assert!(widened.iter().zip(&rounded).all(|(wide, &narrow)| *wide == u32::from(narrow) << 16));
    for (value, rounded) in values(5000).into_iter().zip(&rounded).skip(14) {
        let back = f32::from(bf16::from_bits(*rounded));
        assert!((back - value).abs() <= value.abs() / 256.0, "{value} became {back}");
    }
}

#[test]
fn gpu_bits_equal_the_cpu_s() {
    for device in gpu::devices().into_iter().chain(gpu::orders()) {
        for count in gpu::COUNTS {
            for skip in [0, 1, 4] {
                let values = values(count);
                assert_eq!(
                    run(&device, &values, skip),
                    run(&Device::cpu(), &values, 0),
                    "{count} from {skip}"
                );
            }
        }
        let nan = run(&device, &[f32::NAN; 9], 0).1;
        assert!(nan.into_iter().all(|bits| f32::from_bits(bits).is_nan()));
    }
}

#[test]
fn misuse_is_named() {
    let zeros = |cols, dtype| Tensor::zeros(&Device::cpu(), [2, cols], dtype).unwrap();
    let mut y = zeros(4, Dtype::Bf16);
    let message = cast(zeros(3, Dtype::F32).view(), y.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "cast output: found 2 rows of 4, expected 2 rows of 3");
    let message = cast(zeros(4, Dtype::F64).view(), y.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "cast: element type f64 to bf16, expected f32 to bf16, or bf16 to f32");
}
