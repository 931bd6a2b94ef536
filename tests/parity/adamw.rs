//! AdamW: numbers worked out by hand, a naive f64 reference over many steps, bf16 masters, threads.

pub mod kernels;

use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::adamw::{self, Hyper, Moments};

const HYPER: Hyper = Hyper { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1 };

#[test]
fn two_steps_by_hand() {
    // p = 1. Step 1, g = 0.5: p -> 0.999; m = 0.05 (corrected 0.5); v = 0.00025 (corrected 0.25);
    // p -> 0.999 - 0.1 * 0.5 / (0.5 + 1e-8) = 0.899000002.
    // Step 2, g = -1: p -> 0.898101001998; m = -0.055 (over 0.19); v = 0.00124975 (over 0.001999).
    let device = Device::cpu();
    let mut p = Tensor::from_host(&device, [1], &[1.0_f64]).unwrap();
    let mut moments = Moments::new(&p).unwrap();
    // The gradients are given at twice their size and scaled back.
    let scale = Tensor::from_host(&device, [1], &[0.5_f64]).unwrap();
    let after_two = 0.898_101_001_998 + 0.1 * (0.055 / 0.19) / ((0.001_249_75_f64 / 0.001_999).sqrt() + 1e-8);
    for (step, gradient, expected) in [(1, 1.0, 0.899_000_002), (2, -2.0, after_two)] {
        let gradient = Tensor::from_host(&device, [1], &[gradient]).unwrap();
        adamw::step(&mut p, &gradient, &mut moments, &Hyper { step, ..HYPER }, &scale).unwrap();
        let found = p.download::<f64>().unwrap()[0];
        assert!((found - expected).abs() < 1e-12, "step {step}: {found}, expected {expected}");
    }
    assert!((moments.m.download::<f64>().unwrap()[0] + 0.055).abs() < 1e-15);
    assert!((moments.v.download::<f64>().unwrap()[0] - 0.001_249_75).abs() < 1e-15);
}

/// The reference: textbook form with corrected moments.
struct Reference {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Reference {
    fn new(p: &[f32]) -> Reference {
        let p: Vec<f64> = p.iter().map(|&p| f64::from(p)).collect();
        Reference { m: vec![0.0; p.len()], v: vec![0.0; p.len()], p }
    }

    fn step(&mut self, gradient: &[f32], h: &Hyper, scale: f64) {
        for i in 0..self.p.len() {
            let g = f64::from(gradient[i]) * scale;
            self.p[i] -= h.lr * h.weight_decay * self.p[i];
            self.m[i] = h.beta1 * self.m[i] + (1.0 - h.beta1) * g;
            self.v[i] = h.beta2 * self.v[i] + (1.0 - h.beta2) * g * g;
            let m = self.m[i] / (1.0 - h.beta1.powi(h.step as i32));
            let v = self.v[i] / (1.0 - h.beta2.powi(h.step as i32));
            self.p[i] -= h.lr * m / (v.sqrt() + h.eps);
        }
    }
}

#[test]
fn many_steps_follow_the_reference_on_any_thread_count() {
    let (device, count) = (Device::cpu(), 20_011);
    let start = super::normals_f32("p", count);
    let scale = Tensor::from_host(&device, [1], &[0.7_f32]).unwrap();
    let run = || {
        let mut p = Tensor::from_host(&device, [count], &start).unwrap();
        let mut moments = Moments::new(&p).unwrap();
        for step in 1..=10 {
            let gradient = super::normals_f32(&format!("g {step}"), count);
            let gradient = Tensor::from_host(&device, [count], &gradient).unwrap();
            let hyper = Hyper { lr: 1e-3, weight_decay: 0.1, step, ..HYPER };
            adamw::step(&mut p, &gradient, &mut moments, &hyper, &scale).unwrap();
        }
        [p, moments.m, moments.v].map(|t| t.download::<f32>().unwrap())
    };
    let found = super::on_threads(1, run);
    assert_eq!(found, super::on_threads(3, run));
    let mut reference = Reference::new(&start);
    for step in 1..=10 {
        let gradient = super::normals_f32(&format!("g {step}"), count);
        reference.step(&gradient, &Hyper { lr: 1e-3, weight_decay: 0.1, step, ..HYPER }, 0.7_f32.into());
    }
    for (name, found, exact) in
        [("p", &found[0], &reference.p), ("m", &found[1], &reference.m), ("v", &found[2], &reference.v)]
    {
        for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
            let error = (f64::from(*found) - exact).abs();
            assert!(error < 2e-6 * (0.1 + exact.abs()), "{name}[{i}]: {found}, exact {exact}");
        }
    }
}

#[test]
fn a_bf16_parameter_is_its_rounded_master() {
    let (device, count) = (Device::cpu(), 333);
    let start: Vec<bf16> = super::normals_f32("p", count).into_iter().map(bf16::from_f32).collect();
    let wide: Vec<f32> = start.iter().map(|p| p.to_f32()).collect();
    let mut narrow = Tensor::from_host(&device, [count], &start).unwrap();
    let mut full = Tensor::from_host(&device, [count], &wide).unwrap();
    let (mut with_master, mut without) = (Moments::new(&narrow).unwrap(), Moments::new(&full).unwrap());
    let scale = Tensor::from_host(&device, [1], &[1.0_f32]).unwrap();
    for step in 1..=20 {
        let gradient =
            Tensor::from_host(&device, [count], &super::normals_f32(&format!("g {step}"), count)).unwrap();
        // Steps far below a bf16's resolution: only the master can add them up.
        let hyper = Hyper { lr: 1e-4, step, ..HYPER };
        adamw::step(&mut narrow, &gradient, &mut with_master, &hyper, &scale).unwrap();
        adamw::step(&mut full, &gradient, &mut without, &hyper, &scale).unwrap();
    }
    let full = full.download::<f32>().unwrap();
    let mut master = vec![0.0; count];
    with_master.read_master(&narrow, 0, &mut master).unwrap();
    assert_eq!(master, full);
    let rounded: Vec<bf16> = full.iter().map(|&p| bf16::from_f32(p)).collect();
    assert_eq!(narrow.download::<bf16>().unwrap(), rounded);
}

#[test]
fn a_master_is_read_in_pieces_and_written_back() {
    let (device, count) = (Device::cpu(), 1001);
    let start: Vec<bf16> = super::normals_f32("p", count).into_iter().map(bf16::from_f32).collect();
    let mut p = Tensor::from_host(&device, [count], &start).unwrap();
    let mut moments = Moments::new(&p).unwrap();
    assert_eq!(moments.master_bytes(), 2 * (count + 1), "16 bits beside each");
    let scale = Tensor::from_host(&device, [1], &[1.0_f32]).unwrap();
    let gradient = Tensor::from_host(&device, [count], &super::normals_f32("g", count)).unwrap();
    adamw::step(&mut p, &gradient, &mut moments, &Hyper { lr: 1e-3, ..HYPER }, &scale).unwrap();
    let (mut whole, mut piece) = (vec![0.0; count], [0.0; 100]);
    moments.read_master(&p, 0, &mut whole).unwrap();
    moments.read_master(&p, 901, &mut piece).unwrap();
    assert_eq!(piece, whole[901..]);
    let mut anew = Moments::new(&p).unwrap();
    anew.read_master(&p, 901, &mut piece).unwrap();
    assert_ne!(piece, whole[901..], "a new master is the parameter");
    anew.write_master(&p, &whole).unwrap();
    anew.read_master(&p, 901, &mut piece).unwrap();
    assert_eq!(piece, whole[901..]);
    // Another parameter's master, too many elements, and a parameter without a master.
    whole[5] *= 2.0;
    let message = anew.write_master(&p, &whole).unwrap_err().to_string();
    assert!(
        message.contains("does not round to the parameter") && message.contains("one checkpoint"),
        "{message}"
    );
    let message = anew.read_master(&p, 902, &mut piece).unwrap_err().to_string();
    assert_eq!(message, "adamw master: found 1002 elements, expected [1001]");
    let full = Tensor::zeros(&device, [count], Dtype::F32).unwrap();
    let message = Moments::new(&full).unwrap().read_master(&full, 0, &mut piece).unwrap_err().to_string();
    assert_eq!(message, "adamw parameter: element type f32, expected bf16");
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let zeros = |count: usize| Tensor::zeros(&device, [count], Dtype::F32).unwrap();
    let (mut p, gradient, scale) = (zeros(3), zeros(3), zeros(1));
    let mut moments = Moments::new(&p).unwrap();
    let message = adamw::step(&mut p, &zeros(4), &mut moments, &HYPER, &scale).unwrap_err().to_string();
    assert_eq!(message, "adamw gradient: found [4], expected [3]");
    let zeroth = Hyper { step: 0, ..HYPER };
    let message = adamw::step(&mut p, &gradient, &mut moments, &zeroth, &scale).unwrap_err().to_string();
    assert!(message.contains("adamw step: found 0"), "{message}");
    let mut narrow = Tensor::zeros(&device, [3], Dtype::Bf16).unwrap();
    let message = adamw::step(&mut narrow, &gradient, &mut moments, &HYPER, &scale).unwrap_err().to_string();
    assert!(message.contains("bf16 with f32 moments and no master"), "{message}");
    let message = Moments::new(&Tensor::zeros(&device, [3], Dtype::U32).unwrap()).unwrap_err().to_string();
    assert_eq!(message, "adamw parameter: element type u32, expected f32, f64 or bf16");
}
