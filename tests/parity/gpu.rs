//! What parity tests of kernels share: the devices that run the shipped PTX, and the one comparison.

use half::bf16;
use latch::base::{Dtype, Shape};
use latch::device::Device;
use latch::ops::{Tensor, View};
use latch::verify::gradient::normals;
use latch::verify::tolerance::Tolerance;
use std::sync::OnceLock;

/// Devices that run the shipped PTX: the simulator, and a real GPU where there is one. Without one a line says so;
/// with `REQUIRE_CUDA=1` its absence is a failure.
pub fn devices() -> Vec<Device> {
    static SAID: OnceLock<()> = OnceLock::new();
    let mut devices = vec![Device::open("sim").expect("the simulator needs nothing")];
    match Device::open("cuda") {
        Ok(device) => devices.push(device),
        Err(error) => {
            let required = std::env::var("REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_CUDA=1: {error}");
            SAID.get_or_init(|| println!("skipped: no CUDA driver ({error})"));
        }
    }
    devices
}

/// The dtypes that activations have on a GPU.
pub const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// Standard normal numbers that `dtype` holds exactly, reproducible from a name: what is given to a kernel as
/// they are, and to the f64 reference as they are.
pub fn exact(name: &str, count: usize, dtype: Dtype) -> Vec<f64> {
    round(&normals(name, count), dtype)
}

/// The numbers as `dtype` stores them.
pub fn round(values: &[f64], dtype: Dtype) -> Vec<f64> {
    let one = |&value: &f64| match dtype {
        Dtype::F32 => f64::from(value as f32),
        Dtype::Bf16 => f64::from(f32::from(bf16::from_f64(value))),
        _ => value,
    };
    values.iter().map(one).collect()
}

/// A tensor of `dtype` with these values (f32, bf16 or f64).
pub fn tensor(device: &Device, shape: impl Into<Shape>, values: &[f64], dtype: Dtype) -> Tensor {
    let shape = shape.into();
    match dtype {
        Dtype::F64 => Tensor::from_host(device, shape, values),
        Dtype::F32 => {
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            Tensor::from_host(device, shape, &values)
        }
        Dtype::Bf16 => {
            let values: Vec<bf16> = values.iter().map(|&v| bf16::from_f64(v)).collect();
            Tensor::from_host(device, shape, &values)
        }
        other => panic!("{other} is no float"),
    }
    .unwrap()
}

/// The values of a window, widened.
pub fn values(view: View) -> Vec<f64> {
    match view.dtype() {
        Dtype::F64 => view.download::<f64>().unwrap(),
        Dtype::F32 => view.download::<f32>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Bf16 => {
            view.download::<bf16>().unwrap().into_iter().map(|v| f64::from(f32::from(v))).collect()
        }
        other => panic!("{other} is no float"),
    }
}

/// Fails unless a kernel's result agrees with the f64 reference; `dtype` is that of the activations, `terms` the
/// length of the longest reduction. Then it proves of this very pair that the comparison can fail: an element of at
/// least half the root mean square, scaled by 1.02 (bf16: 1.05), is found.
pub fn compare(what: &str, dtype: Dtype, terms: usize, found: &[f64], expected: &[f64]) {
    let tolerance = Tolerance::new(dtype, terms, expected);
    tolerance.compare(what, found, expected).unwrap_or_else(|error| panic!("{error}"));
    let rms = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len().max(1) as f64).sqrt();
    let factor = if dtype == Dtype::Bf16 { 1.05 } else { 1.02 };
    for (at, (&f, &e)) in found.iter().zip(expected).enumerate() {
        if e.abs() >= 0.5 * rms && e.is_finite() && e != 0.0 {
            let missed = tolerance.compare(what, &[f * factor], &[e]).is_ok();
            assert!(!missed, "{what}: element {at} scaled by {factor} would pass");
        }
    }
}
