//! Constants and normal numbers: the documented draws, their law, and agreement of every device.

use super::gpu;
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::{Tensor, random};

fn key(rollout: u32) -> StreamKey {
    StreamKey::new(11, 3, 5, rollout, Purpose::LatentNoise)
}

fn normal(device: &Device, dtype: Dtype, count: usize) -> Vec<f64> {
    let mut x = Tensor::zeros(device, [count, 1], dtype).unwrap();
    random::normal(&mut x, key(0), 0.75).unwrap();
    gpu::values(x.view())
}

/// Rows that hold numbers which bf16 holds, plus noise; row r at step `7 r`.
fn add_normal(device: &Device, dtype: Dtype, (rows, cols): (usize, usize)) -> Vec<f64> {
    let keys: Vec<u32> = (0..rows as u32).flat_map(|r| [key(r).0[0], key(r).0[1], 7 * r]).collect();
    let keys = Tensor::from_host(device, [rows, 3], &keys).unwrap();
    let mut x = gpu::tensor(device, [rows, cols], &gpu::exact("noise", rows * cols, Dtype::Bf16), dtype);
    random::add_normal(x.view_mut(), keys.view(), 0.5).unwrap();
    gpu::values(x.view())
}

#[test]
fn normals_have_their_law() {
    let count = 100_000;
    let x = normal(&Device::cpu(), Dtype::F64, count);
    let moment = |power| x.iter().map(|x| (x / 0.75).powi(power)).sum::<f64>() / count as f64;
    // Five deviations of the mean of x, x^2, x^4.
    for (power, expected, deviation) in
        [(1, 0.0, 1.0_f64), (2, 1.0, 2.0_f64.sqrt()), (4, 3.0, 96.0_f64.sqrt())]
    {
        assert!((moment(power) - expected).abs() < 5.0 * deviation / (count as f64).sqrt(), "moment {power}");
    }
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for count in gpu::COUNTS {
                let expected = normal(&Device::cpu(), Dtype::F64, count);
                gpu::compare(
                    &format!("normal {dtype} {count}"),
                    dtype,
                    1,
                    &normal(&device, dtype, count),
                    &expected,
                );
                let mut x = gpu::tensor(&device, [count, 1], &vec![1.0; count], dtype);
                random::fill(&mut x, -0.3).unwrap();
                assert_eq!(
                    gpu::values(x.view()),
                    gpu::round(&vec![-0.3; count], dtype),
                    "fill {dtype} {count}"
                );
            }
            for shape in gpu::ROW_SHAPES {
                let expected = add_normal(&Device::cpu(), Dtype::F64, shape);
                let found = add_normal(&device, dtype, shape);
                gpu::compare(&format!("noise {dtype} {shape:?}"), dtype, 2, &found, &expected);
            }
        }
    }
}

#[test]
fn gpu_bits_do_not_depend_on_the_order_of_blocks_or_the_batch() {
    for dtype in gpu::DTYPES {
        let [first, second] = gpu::orders().map(|device| {
            (
                normal(&device, dtype, 10_003),
                add_normal(&device, dtype, (71, 768)),
                add_normal(&device, dtype, (5, 123)),
            )
        });
        assert_eq!(first, second, "{dtype}");
        let device = &gpu::devices()[0];
        assert_eq!(normal(device, dtype, 33), first.0[..33]);
        assert_eq!(add_normal(device, dtype, (1, 768)), first.1[..768]);
    }
}
