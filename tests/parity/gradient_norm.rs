//! The global gradient norm: value, order, threads, the clip scale, and numbers that are not finite.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::gradient_norm::{self, GradientNorm};

/// Norm and scale of some gradients.
fn run(gradients: &[Vec<f32>], max_norm: f64) -> (f32, f32) {
    run_on(&Device::cpu(), gradients, max_norm)
}

/// The same on a device; a second call, of which nothing is uploaded or allocated, gives the same bits.
pub fn run_on(device: &Device, gradients: &[Vec<f32>], max_norm: f64) -> (f32, f32) {
    let counts: Vec<usize> = gradients.iter().map(Vec::len).collect();
    let tensors: Vec<Tensor> =
        gradients.iter().map(|g| Tensor::from_host(device, [g.len()], g).unwrap()).collect();
    let mut state = GradientNorm::reserve(device, &counts, Dtype::F32).unwrap();
    let list: Vec<&Tensor> = tensors.iter().collect();
    gradient_norm::forward(&list, max_norm, &mut state).unwrap();
    let results = |state: &GradientNorm| {
        (state.norm().download::<f32>().unwrap()[0], state.scale().download::<f32>().unwrap()[0])
    };
    let first = results(&state);
    let before = device.traffic().count();
    gradient_norm::forward(&list, max_norm, &mut state).unwrap();
    assert_eq!(device.traffic().count(), before, "the results stay on the device, nothing is allocated");
    let again = results(&state);
    assert_eq!((first.0.to_bits(), first.1.to_bits()), (again.0.to_bits(), again.1.to_bits()));
    first
}

fn gradients() -> Vec<Vec<f32>> {
    [1, 17, 4096, 4097, 300_003, 768]
        .into_iter()
        .map(|count| super::normals_f32(&format!("gradient {count}"), count))
        .collect()
}

#[test]
fn value_and_scale_on_any_thread_count() {
    let gradients = gradients();
    let exact = gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
    let found = super::on_threads(1, || run(&gradients, 1.0));
    assert_eq!(found, super::on_threads(3, || run(&gradients, 1.0)));
    assert!((f64::from(found.0) - exact).abs() < 1e-6 * exact, "{} {exact}", found.0);
    assert!((f64::from(found.1) - 1.0 / (exact + 1e-6)).abs() < 1e-6 / exact);
    assert_eq!(run(&gradients, f64::INFINITY), (found.0, 1.0));
    assert_eq!(run(&gradients, 1e6), (found.0, 1.0));
    assert_eq!(run(&[vec![3.0, 0.0], vec![-4.0]], 10.0), (5.0, 1.0));
    assert_eq!(run(&[vec![0.0; 5]], 1.0), (0.0, 1.0));
}

#[test]
fn one_bad_element_is_seen_in_the_norm() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut gradients = gradients();
        gradients[4][200_000] = bad;
        let (norm, scale) = run(&gradients, 1.0);
        assert!(!norm.is_finite(), "{bad} gave {norm}");
        // A NaN is never clipped away; an infinity becomes infinity * 0.
        assert!(scale.is_nan() || scale == 0.0, "{scale}");
    }
}

#[test]
fn kernels_agree_with_f64_and_see_bad_elements() {
    for device in gpu::devices() {
        let gradients = gradients();
        let exact = gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        let found = run_on(&device, &gradients, 1.0);
        for other in gpu::orders() {
            assert_eq!(run_on(&other, &gradients, 1.0), found, "another order of blocks");
        }
        let what = format!("{} norm and scale", device.name());
        gpu::compare(&what, Dtype::F32, 4096, &[f64::from(found.0)], &[exact]);
        gpu::compare(&what, Dtype::F32, 4096, &[f64::from(found.1)], &[1.0 / (exact + 1e-6)]);
        assert_eq!(run_on(&device, &gradients, f64::INFINITY), (found.0, 1.0));
        assert_eq!(run_on(&device, &gradients, 1e6), (found.0, 1.0));
        assert_eq!(run_on(&device, &[vec![3.0, 0.0], vec![], vec![-4.0]], 10.0), (5.0, 1.0));
        assert_eq!(run_on(&device, &[vec![0.0; 5]], 1.0), (0.0, 1.0));
        assert_eq!(run_on(&device, &[], 1.0), (0.0, 1.0));
        for bad in [f32::NAN, f32::INFINITY] {
            let mut gradients = gradients.clone();
            gradients[4][300_002] = bad;
            let (norm, scale) = run_on(&device, &gradients, 1.0);
            assert!(!norm.is_finite() && (scale.is_nan() || scale == 0.0), "{bad}: {norm} {scale}");
        }
    }
}

#[test]
fn gradients_of_other_sizes_than_reserved_are_refused() {
    for device in gpu::devices() {
        let zeros = |count: usize| Tensor::zeros(&device, [count], Dtype::F32).unwrap();
        let (first, second) = (zeros(10), zeros(20));
        let mut state = GradientNorm::reserve(&device, &[20, 10], Dtype::F32).unwrap();
        let message = gradient_norm::forward(&[&first, &second], 1.0, &mut state).unwrap_err().to_string();
        assert_eq!(message, "gradient_norm gradients: found other sizes, expected those reserved");
    }
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let gradient = Tensor::zeros(&device, [5000], Dtype::F32).unwrap();
    let mut state = GradientNorm::reserve(&device, &[5000], Dtype::F32).unwrap();
    let message = gradient_norm::forward(&[&gradient], 0.0, &mut state).unwrap_err().to_string();
    assert!(message.contains("max_norm: found 0"), "{message}");
    let message = gradient_norm::forward(&[&gradient], f64::NAN, &mut state).unwrap_err().to_string();
    assert!(message.contains("max_norm: found NaN"), "{message}");
    let message = gradient_norm::forward(&[], 1.0, &mut state).unwrap_err().to_string();
    assert_eq!(message, "gradient_norm sums: found [2, 1], expected [0, 1]");
    let wide = Tensor::zeros(&device, [5000], Dtype::F64).unwrap();
    let message = gradient_norm::forward(&[&wide], 1.0, &mut state).unwrap_err().to_string();
    assert_eq!(message, "gradient_norm gradient: element type f64, expected f32");
}
