//! AdamW's kernels: the bits of the CPU's f32, f64 within tolerance, and one launch for many tensors.

use crate::parity::gpu;
use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::adamw::{self, Batch, Hyper, Moments};

const HYPER: Hyper = Hyper { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1 };
const SIZES: [usize; 7] = [1, 3, 768, 4096, 4097, 20_011, 37 * 896];

/// Parameter, moments and master after `steps` steps of one tensor, widened.
pub fn run(device: &Device, dtype: Dtype, state: Dtype, count: usize, steps: u64) -> Vec<Vec<f64>> {
    // bf16 numbers, so that all dtypes begin alike.
    let mut p = gpu::tensor(device, [count], &gpu::exact("adamw p", count, Dtype::Bf16), dtype);
    let mut moments = Moments::new(&p).unwrap();
    let scale = gpu::tensor(device, [1], &[0.75], state);
    for step in 1..=steps {
        let gradient = gpu::exact(&format!("adamw g {step}"), count, Dtype::F32);
        let gradient = gpu::tensor(device, [count], &gradient, state);
        adamw::step(&mut p, &gradient, &mut moments, &Hyper { step, ..HYPER }, &scale).unwrap();
    }
    values(&p, &moments).collect()
}

/// A parameter, its moments and its master, widened.
fn values(p: &Tensor, moments: &Moments) -> impl Iterator<Item = Vec<f64>> {
    let parts = [p, &moments.m, &moments.v].map(|part| gpu::values(part.view()));
    let master = moments.has_master().then(|| {
        let mut master = vec![0.0; p.shape().elements()];
        moments.read_master(p, 0, &mut master).unwrap();
        master.into_iter().map(f64::from).collect()
    });
    parts.into_iter().chain(master)
}

#[test]
fn kernels_have_the_bits_of_the_cpu() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for count in SIZES {
                let (found, cpu) = (
                    run(&device, dtype, Dtype::F32, count, 3),
                    run(&Device::cpu(), dtype, Dtype::F32, count, 3),
                );
                assert_eq!(found, cpu, "{} {dtype} {count}", device.name());
                let exact = run(&Device::cpu(), Dtype::F64, Dtype::F64, count, 3);
                for (name, part) in ["p", "m", "v"].into_iter().zip(0..) {
                    let what = format!("{} adamw {dtype} {count} {name}", device.name());
                    gpu::compare(&what, dtype, 3, &found[part], &exact[part]);
                }
            }
        }
    }
}

/// Parameters of both dtypes, their gradients and moments.
struct Model {
    parameters: Vec<Tensor>,
    moments: Vec<Moments>,
    gradients: Vec<Tensor>,
}

impl Model {
    fn new(device: &Device) -> Model {
        let mut parameters = Vec::new();
        let mut gradients = Vec::new();
        for (at, count) in [5, 0, 4096, 9001, 768, 3].into_iter().enumerate() {
            let dtype = gpu::DTYPES[at % 2];
            let values = gpu::exact(&format!("parameter {at}"), count, dtype);
            parameters.push(gpu::tensor(device, [count], &values, dtype));
            let values = gpu::exact(&format!("gradient {at}"), count, Dtype::F32);
            gradients.push(gpu::tensor(device, [count], &values, Dtype::F32));
        }
        let moments = parameters.iter().map(|p| Moments::new(p).unwrap()).collect();
        Model { parameters, moments, gradients }
    }

    fn values(&self) -> Vec<Vec<f64>> {
        self.parameters.iter().zip(&self.moments).flat_map(|(p, moments)| values(p, moments)).collect()
    }
}

#[test]
fn one_launch_steps_all_tensors_as_single_steps_do() {
    for device in std::iter::once(Device::cpu()).chain(gpu::devices()) {
        let (mut together, mut alone, mut batch) =
            (Model::new(&device), Model::new(&device), Batch::default());
        let scale = gpu::tensor(&device, [1], &[0.5], Dtype::F32);
        let mut uploads = Vec::new();
        for step in 1..=3 {
            let hyper = Hyper { step, ..HYPER };
            let before = device.traffic().count().uploads;
            let gradients: Vec<&Tensor> = together.gradients.iter().collect();
            adamw::step_all(
                &mut together.parameters,
                &gradients,
                &mut together.moments,
                &hyper,
                &scale,
                &mut batch,
            )
            .unwrap();
            uploads.push(device.traffic().count().uploads - before);
            for ((p, g), m) in alone.parameters.iter_mut().zip(&alone.gradients).zip(&mut alone.moments) {
                adamw::step(p, g, m, &hyper, &scale).unwrap();
            }
        }
        assert_eq!(together.values(), alone.values(), "{}", device.name());
        assert_eq!(uploads[1..], [0, 0], "the table of addresses is built once");
        // Another place for a gradient is noticed.
        let moved = gpu::tensor(&device, [5], &[1.0; 5], Dtype::F32);
        let hyper = Hyper { step: 4, ..HYPER };
        let gradients: Vec<&Tensor> = std::iter::once(&moved).chain(&together.gradients[1..]).collect();
        let (parameters, moments) = (&mut together.parameters, &mut together.moments);
        adamw::step_all(parameters, &gradients, moments, &hyper, &scale, &mut batch).unwrap();
        for (at, (p, m)) in alone.parameters.iter_mut().zip(&mut alone.moments).enumerate() {
            adamw::step(p, gradients[at], m, &hyper, &scale).unwrap();
        }
        assert_eq!(together.values(), alone.values(), "{}", device.name());
    }
}

#[test]
fn a_bf16_parameter_is_its_rounded_master() {
    for device in gpu::devices() {
        let found = run(&device, Dtype::Bf16, Dtype::F32, 4101, 5);
        let rounded: Vec<f64> = found[3].iter().map(|&m| f64::from(bf16::from_f64(m))).collect();
        assert_eq!(found[0], rounded);
        assert_ne!(found[0], found[3], "the master keeps what rounding loses");
    }
}

#[test]
fn lists_that_do_not_fit_are_named() {
    for device in std::iter::once(Device::cpu()).chain(gpu::devices()) {
        let mut model = Model::new(&device);
        let scale = gpu::tensor(&device, [1], &[1.0], Dtype::F32);
        let gradients: Vec<&Tensor> = model.gradients[1..].iter().collect();
        let (parameters, moments) = (&mut model.parameters, &mut model.moments);
        let mut step = |gradients: &[&Tensor]| {
            let batch = &mut Batch::default();
            adamw::step_all(parameters, gradients, moments, &HYPER, &scale, batch).unwrap_err().to_string()
        };
        assert_eq!(
            step(&gradients),
            "adamw lists: found 5 gradients and 6 moments, expected 6, one for each parameter"
        );
        let gradients: Vec<&Tensor> = model.gradients.iter().rev().collect();
        assert_eq!(step(&gradients), "adamw gradient: found [3], expected [5]");
    }
}
