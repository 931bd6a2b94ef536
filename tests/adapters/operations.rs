//! Operations beside frozen parameters: without a gradient to add to, the others have the bits that they have with one.
//! And the two operations that adapters brought: multiples, and products that are added.

use crate::parity::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::linear::{self, Accumulate, Layout, Projection};
use latch::ops::log_probability::{self, Inputs, Outputs, Upstream};
use latch::ops::residual_norm::{self, Norm, NormGradients};
use latch::ops::scatter::Order;
use latch::ops::{Tensor, elementwise, embedding, layernorm, rmsnorm};

fn everywhere() -> Vec<Device> {
    std::iter::once(Device::cpu()).chain(gpu::devices()).collect()
}

fn tensor(device: &Device, name: &str, shape: [usize; 2], dtype: Dtype) -> Tensor {
    gpu::tensor(device, shape, &gpu::exact(name, shape[0] * shape[1], Dtype::Bf16), dtype)
}

fn vector(device: &Device, name: &str, length: usize) -> Tensor {
    gpu::tensor(device, [length], &gpu::exact(name, length, Dtype::F32), Dtype::F32)
}

fn zeros(device: &Device, shape: [usize; 2]) -> Tensor {
    Tensor::zeros(device, shape, Dtype::F32).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.download::<f32>().unwrap().iter().map(|value| value.to_bits()).collect()
}

#[test]
fn norms_of_frozen_gains() {
    // One block of rows, and several: a single block adds to the gradient itself.
    for (rows, cols) in [(3, 7), (71, 768), (2, 8200)] {
        for device in everywhere() {
            let [x, dy] = ["x", "dy"].map(|name| tensor(&device, name, [rows, cols], Dtype::F32));
            let (w, b) = (vector(&device, "w", cols), vector(&device, "b", cols));
            let mut y = zeros(&device, [rows, cols]);
            let mut rms = rmsnorm::Saved::reserve(&device, rows, cols, Dtype::F32).unwrap();
            rmsnorm::forward(x.view(), &w, 1e-5, y.view_mut(), &mut rms, 0..rows).unwrap();
            let mut layer = layernorm::Saved::reserve(&device, rows, cols, Dtype::F32).unwrap();
            layernorm::forward(x.view(), (&w, &b), 1e-5, y.view_mut(), &mut layer, 0..rows).unwrap();
            let gain = || Tensor::zeros(&device, [cols], Dtype::F32).unwrap();
            let run = |trained: bool| {
                let (mut dw, mut db) = (gain(), gain());
                let mut all = Vec::new();
                let mut dx = zeros(&device, [rows, cols]);
                let of_gain = trained.then_some(&mut dw);
                rmsnorm::backward(dy.view(), x.view(), &w, &rms, 0..rows, dx.view_mut(), of_gain).unwrap();
                all.push(bits(&dx));
                let both = trained.then_some(layernorm::Gradients { dw: &mut dw, db: &mut db });
                layernorm::backward(dy.view(), x.view(), &w, &layer, 0..rows, dx.view_mut(), both).unwrap();
                all.push(bits(&dx));
                for of_layer in [false, true] {
                    let mut stream = tensor(&device, "stream", [rows, cols], Dtype::F32);
                    let norm = match of_layer {
                        false => NormGradients::Rms { w: &w, saved: &rms, dw: trained.then_some(&mut dw) },
                        true => {
                            let both = trained.then_some(layernorm::Gradients { dw: &mut dw, db: &mut db });
                            NormGradients::Layer { w: &w, saved: &layer, gradients: both }
                        }
                    };
                    let out = (stream.view_mut(), dx.view_mut());
                    residual_norm::backward((dy.view(), x.view()), None, norm, out, 0..rows).unwrap();
                    all.extend([bits(&stream), bits(&dx)]);
                }
                let moved = bits(&dw).iter().chain(&bits(&db)).any(|&bits| bits != 0);
                assert_eq!(moved, trained, "{} {rows} x {cols}", device.name());
                all
            };
            assert_eq!(run(true), run(false), "{} {rows} x {cols}", device.name());
        }
    }
    // The sum's forward is the norms' own, so that their backward may read what it kept.
    let device = Device::cpu();
    let (x, w) = (tensor(&device, "x", [2, 5], Dtype::F32), vector(&device, "w", 5));
    let mut saved = rmsnorm::Saved::reserve(&device, 2, 5, Dtype::F32).unwrap();
    let (mut sum, mut normed) = (zeros(&device, [2, 5]), zeros(&device, [2, 5]));
    let norm = Norm::Rms { w: &w, saved: &mut saved };
    let out = (sum.view_mut(), normed.view_mut());
    residual_norm::forward((x.view(), x.view()), None, norm, 1e-5, out, 0..2).unwrap();
    assert_eq!(sum.download::<f32>().unwrap()[0], 2.0 * x.download::<f32>().unwrap()[0]);
}

#[test]
fn scores_of_a_frozen_head_and_inputs_of_a_frozen_table() {
    let (rows, width, vocabulary) = (5, 36, 300);
    for device in everywhere() {
        let h = tensor(&device, "h", [rows, width], Dtype::F32);
        let w = tensor(&device, "w", [vocabulary, width], Dtype::F32);
        let targets = Tensor::from_host(&device, [rows, 1], &[3_u32, 299, 0, 17, 128]).unwrap();
        let coefficient = tensor(&device, "c", [rows, 1], Dtype::F32);
        let inputs = Inputs { h: h.view(), w: &w, targets: targets.view(), inverse_temperature: 1.0 };
        let run = |trained: bool| {
            let head = [vocabulary, width];
            let mut saved = log_probability::Saved::reserve(&device, rows, head, Dtype::F32).unwrap();
            let mut log_probability = zeros(&device, [rows, 1]);
            let out = Outputs { log_probability: log_probability.view_mut(), entropy: None };
            log_probability::forward(&inputs, out, &mut saved, 0..rows).unwrap();
            let upstream = Upstream { d_log_probability: coefficient.view(), d_entropy: None };
            let (mut dh, mut dw) = (zeros(&device, [rows, width]), zeros(&device, head));
            let wanted = trained.then_some((&mut dw, Accumulate::Add));
            let multiplied = device.traffic().count().products;
            log_probability::backward(&upstream, &inputs, &mut saved, 0..rows, dh.view_mut(), wanted)
                .unwrap();
            let multiplied = device.traffic().count().products - multiplied;
            assert_eq!(bits(&dw).iter().any(|&bits| bits != 0), trained);
            (bits(&dh), multiplied)
        };
        let ((with, some), (without, fewer)) = (run(true), run(false));
        assert_eq!(with, without, "{}", device.name());
        // A CPU's panels are one operation to the counter.
        let counted = matches!(device, Device::Gpu(_));
        assert!(
            !counted || fewer < some,
            "{}: {fewer} products, {some} with the head's gradient",
            device.name()
        );

        let ids = Tensor::from_host(&device, [rows, 1], &[1_i32, -1, 7, 299, 1]).unwrap();
        let positions = Tensor::from_host(&device, [rows, 1], &[0_u32, 1, 2, 3, 4]).unwrap();
        let inputs = embedding::Inputs { ids: ids.view(), positions: positions.view(), soft: None };
        let mut order = Order::reserve(&device, rows).unwrap();
        embedding::backward(h.view(), &inputs, &w, None, None, None, &mut order).unwrap();
    }
}

#[test]
fn multiples_have_one_rounding() {
    for device in everywhere() {
        for count in gpu::COUNTS {
            for (dtype, factor) in [(Dtype::F32, 2.0), (Dtype::F32, -0.3), (Dtype::Bf16, 0.7)] {
                if dtype == Dtype::Bf16 && device.name() == Device::cpu().name() {
                    continue;
                }
                for skip in [0, 3] {
                    let values = gpu::exact("y", count + skip + 1, Dtype::Bf16);
                    let mut y = gpu::tensor(&device, [count + skip + 1, 1], &values, dtype);
                    elementwise::scale(y.rows_mut(skip..skip + count).unwrap(), factor).unwrap();
                    let factor = f64::from(factor as f32);
                    let scaled: Vec<f64> = values[skip..skip + count].iter().map(|v| v * factor).collect();
                    let found = gpu::values(y.view());
                    assert_eq!(found[skip..skip + count], gpu::round(&scaled, dtype), "{dtype} {count}");
                    assert_eq!(
                        (found[..skip].to_vec(), found[skip + count]),
                        (values[..skip].to_vec(), values[skip + count])
                    );
                }
            }
        }
    }
}

#[test]
fn products_are_added() {
    for (rows, inputs, outputs, window) in [(1, 3, 5, 0..5), (7, 16, 40, 8..31), (70, 4, 300, 0..300)] {
        for layout in [Layout::OutIn, Layout::InOut] {
            let p = Projection { layout, inputs, outputs: window.clone() };
            let shape = if layout == Layout::OutIn { [outputs, inputs] } else { [inputs, outputs] };
            let run = |device: &Device, dtype: Dtype| {
                let x = tensor(device, "x", [rows, inputs], dtype);
                let w = tensor(device, "w", shape, dtype);
                let mut y = tensor(device, "y", [rows, window.len()], dtype);
                linear::forward_add(x.view(), &p, &w, y.view_mut()).unwrap();
                gpu::values(y.view())
            };
            let expected = run(&Device::cpu(), Dtype::F64);
            // The same without the addition, and the sum by hand.
            let (x, w) = (
                tensor(&Device::cpu(), "x", [rows, inputs], Dtype::F64),
                tensor(&Device::cpu(), "w", shape, Dtype::F64),
            );
            let mut product = Tensor::zeros(&Device::cpu(), [rows, window.len()], Dtype::F64).unwrap();
            linear::forward(x.view(), &p, &w, None, product.view_mut()).unwrap();
            let before = gpu::exact("y", rows * window.len(), Dtype::Bf16);
            for ((sum, product), before) in expected.iter().zip(gpu::values(product.view())).zip(before) {
                assert!((sum - product - before).abs() <= 1e-13 * (1.0 + sum.abs()));
            }
            for device in everywhere() {
                let found = run(&device, Dtype::F32);
                gpu::compare(
                    &format!("{} {layout:?}", device.name()),
                    Dtype::F32,
                    inputs + 1,
                    &found,
                    &expected,
                );
            }
        }
    }
}
