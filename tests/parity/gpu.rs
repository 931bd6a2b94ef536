//! What parity tests of kernels share: the devices that run the shipped PTX, and the one comparison.

use half::bf16;
use latch::base::rng::{Purpose, StreamKey};
use latch::base::{Dtype, Shape};
use latch::device::{Device, Matmul, SimulatorOptions};
use latch::ops::mask::{MaskAt, MaskKey, MaskSet, SiteKind, Sites};
use latch::ops::{Tensor, View};
use latch::verify::gradient::normals;
use latch::verify::tolerance::{Tolerance, root_mean_square};
use std::sync::OnceLock;

/// Names the one device that tests of kernels and of models on a GPU use: `sim` or `cuda`.
const CHOICE: &str = "LATCH_TEST_DEVICE";

fn choice() -> Option<&'static str> {
    match std::env::var(CHOICE).ok().as_deref() {
        None | Some("") => None,
        Some("sim") => Some("sim"),
        Some("cuda") => Some("cuda"),
        Some(other) => panic!("{CHOICE}={other}: expected sim or cuda"),
    }
}

/// Devices that run the shipped PTX: the simulator, and a real GPU where there is one, or the one that
/// `LATCH_TEST_DEVICE` names. Without a GPU a line says so; with `REQUIRE_CUDA=1` its absence is a failure.
pub fn devices() -> Vec<Device> {
    static SAID: OnceLock<()> = OnceLock::new();
    let own = |device: Device| {
        // These tests are about our kernels, also where a library is installed.
        device.choose_matmul(Matmul::Own).expect("our kernels are always there");
        device
    };
    if choice().is_some() {
        return vec![own(device())];
    }
    let mut devices = vec![Device::open("sim").expect("the simulator needs nothing")];
    match Device::open("cuda") {
        Ok(device) => devices.push(own(device)),
        Err(error) => {
            let required = std::env::var("REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_CUDA=1: {error}");
            SAID.get_or_init(|| println!("skipped: no CUDA driver ({error})"));
        }
    }
    devices
}

/// A simulated Hopper, for operations that have kernels for compute capability 9.0.
pub fn hopper() -> Device {
    Device::simulated_with(SimulatorOptions { compute_capability: (9, 0), ..Default::default() })
}

/// A real GPU whose library multiplies, or a line that says why there is none.
pub fn library() -> Option<Device> {
    let opened =
        Device::open("cuda").and_then(|device| device.choose_matmul(Matmul::Library).map(|()| device));
    opened.inspect_err(|error| println!("skipped: no library of matrix products ({error})")).ok()
}

/// What `--device` is told in tests that use one device that runs the shipped PTX: `sim` unless `LATCH_TEST_DEVICE` says
/// otherwise.
pub fn name() -> &'static str {
    choice().unwrap_or("sim")
}

/// A device of its own of that name.
pub fn device() -> Device {
    Device::open(name()).unwrap_or_else(|error| panic!("{CHOICE}={}: {error}", name()))
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
        // Through f32: half rounds an f64 by its upper word alone, and ties then hide what decides them.
        Dtype::Bf16 => f64::from(f32::from(bf16::from_f32(value as f32))),
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
    let rms = root_mean_square(expected);
    let factor = if dtype == Dtype::Bf16 { 1.05 } else { 1.02 };
    for (at, (&f, &e)) in found.iter().zip(expected).enumerate() {
        if e.abs() >= 0.5 * rms && e.is_finite() && e != 0.0 {
            let missed = tolerance.compare(what, &[f * factor], &[e]).is_ok();
            assert!(!missed, "{what}: element {at} scaled by {factor} would pass");
        }
    }
}

/// Simulators that run the blocks of a kernel, and the warps of a block, in two different orders; on a card, which orders
/// them as it likes, that card twice.
pub fn orders() -> [Device; 2] {
    if name() == "cuda" {
        return [device(), device()];
    }
    [0, 0x5eed]
        .map(|block_order| Device::simulated_with(SimulatorOptions { block_order, ..Default::default() }))
}

/// Masks for operands of `rows` rows of `cols`: five instances and, row by row, -1, 0, 1, 2, 3, 4, -1, ... with every
/// instance three rows long, so that neighbouring rows share one and rows without a mask stand between.
pub fn masks(device: &Device, rows: usize, cols: usize) -> (MaskSet, Tensor) {
    let key = |rollout| MaskKey {
        stream: StreamKey::new(3, 1, 4, rollout, Purpose::Mask),
        step: rollout % 2,
        attempt: 1,
    };
    let keys: Vec<MaskKey> = (0..5).map(key).collect();
    // A site in front, so that the masked one does not begin at word 0.
    let sites = Sites::new(cols, 1, 1, &[SiteKind::Emb, SiteKind::AttnOut]);
    let set = MaskSet::fill(device, sites, 0.25, &keys).unwrap();
    let instance: Vec<i32> = (0..rows as i32).map(|row| row / 3 % 6 - 1).collect();
    (set, Tensor::from_host(device, [rows, 1], &instance).unwrap())
}

/// The site that [`masks`] is about.
pub fn masked_site<'a>(set: &'a MaskSet, instance: View<'a>) -> Option<MaskAt<'a>> {
    set.at(SiteKind::AttnOut, 0, instance)
}

/// Shapes of operands that kernels own by rows: one element, one row, columns that fill no access, real widths over
/// several blocks, widths of which a row belongs to a block, and one that no registers hold.
pub const ROW_SHAPES: [(usize, usize); 8] =
    [(1, 1), (1, 33), (5, 123), (7, 36), (71, 768), (40, 896), (3, 1536), (2, 8200)];

/// Numbers of elements of operands without rows: one, one access, one more, several blocks and a rest.
pub const COUNTS: [usize; 5] = [1, 8, 33, 768, 10_003];
