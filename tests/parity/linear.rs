//! Linear maps: is the mathematics right, does a row depend on itself alone, do windows and errors behave?

use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::linear::{self, Accumulate, Gradients, Layout, Projection};
use latch::verify::gradient::normals;
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::linear::cases());
}

fn tensor(device: &Device, shape: [usize; 2], name: &str) -> Tensor {
    Tensor::from_host(device, shape, &super::normals_f32(name, shape[0] * shape[1])).unwrap()
}

#[test]
fn values_of_both_layouts_and_of_windows() {
    let device = Device::cpu();
    let (rows, inputs, total) = (5, 37, 60);
    let (x, w, b) = (normals("x", rows * inputs), normals("w", inputs * total), normals("b", total));
    for layout in [Layout::OutIn, Layout::InOut] {
        let shape = if layout == Layout::OutIn { [total, inputs] } else { [inputs, total] };
        for outputs in [0..total, 20..40, 59..60, 7..7] {
            let p = Projection { layout, inputs, outputs: outputs.clone() };
            let mut y = Tensor::zeros(&device, [rows, outputs.len()], Dtype::F64).unwrap();
            let x_tensor = Tensor::from_host(&device, [rows, inputs], &x).unwrap();
            let w_tensor = Tensor::from_host(&device, shape, &w).unwrap();
            let b_tensor = Tensor::from_host(&device, [total], &b).unwrap();
            linear::forward(x_tensor.view(), &p, &w_tensor, Some(&b_tensor), y.view_mut()).unwrap();
            for (at, found) in y.download::<f64>().unwrap().into_iter().enumerate() {
                let (row, out) = (at / outputs.len(), outputs.start + at % outputs.len());
                let weight =
                    |i: usize| if layout == Layout::OutIn { w[out * inputs + i] } else { w[i * total + out] };
                let expected = (0..inputs).map(|i| x[row * inputs + i] * weight(i)).sum::<f64>() + b[out];
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{layout:?} {outputs:?} at {row},{out}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_the_threads() {
    let device = Device::cpu();
    let (rows, inputs, outputs) = (37, 257, 123);
    let x = tensor(&device, [rows, inputs], "x");
    for (layout, shape) in [(Layout::OutIn, [outputs, inputs]), (Layout::InOut, [inputs, outputs])] {
        let w = tensor(&device, shape, "w");
        let half: Vec<bf16> = w.download::<f32>().unwrap().into_iter().map(bf16::from_f32).collect();
        let half = Tensor::from_host(&device, shape, &half).unwrap();
        let p = Projection::whole(layout, inputs, outputs);
        for w in [&w, &half] {
            let run = |range: std::ops::Range<usize>| {
                let mut y = Tensor::zeros(&device, [range.len(), outputs], Dtype::F32).unwrap();
                linear::forward(x.rows(range).unwrap(), &p, w, None, y.view_mut()).unwrap();
                y.download::<f32>().unwrap()
            };
            let whole = super::on_threads(1, || run(0..rows));
            assert_eq!(whole, super::on_threads(3, || run(0..rows)));
            for range in [0..1, 1..4, 17..25, 20..37, 36..37] {
                let expected = &whole[range.start * outputs..range.end * outputs];
                assert_eq!(expected, run(range.clone()), "{layout:?} {} rows {range:?}", w.dtype());
            }
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_threads() {
    let device = Device::cpu();
    let (rows, inputs, outputs) = (70, 130, 200);
    let (x, dy) = (tensor(&device, [rows, inputs], "x"), tensor(&device, [rows, outputs], "dy"));
    for (layout, shape) in [(Layout::OutIn, [outputs, inputs]), (Layout::InOut, [inputs, outputs])] {
        let w = tensor(&device, shape, "w");
        let p = Projection::whole(layout, inputs, outputs);
        let run = || {
            let mut dx = Tensor::zeros(&device, [rows, inputs], Dtype::F32).unwrap();
            let mut dw = Tensor::zeros(&device, shape, Dtype::F32).unwrap();
            let mut dbias = Tensor::zeros(&device, [outputs], Dtype::F32).unwrap();
            let dx_wanted = Some((dx.view_mut(), Accumulate::Assign));
            let wanted = Gradients { dx: dx_wanted, dw: Some(&mut dw), dbias: Some(&mut dbias) };
            linear::backward(dy.view(), x.view(), &p, &w, wanted).unwrap();
            [dx, dw, dbias].map(|t| t.download::<f32>().unwrap())
        };
        assert_eq!(super::on_threads(1, run), super::on_threads(3, run));
    }
}

/// Gradients with a bf16 weight are those of the rounded operands; dw is f32 and stays in its window.
#[test]
fn bf16_weights_have_f32_gradients_in_their_window() {
    let device = Device::cpu();
    let (rows, inputs, total, window) = (6, 20, 30, 10..25);
    let round = |v: &f32| bf16::from_f32(*v).to_f32();
    let (x, dy) = (tensor(&device, [rows, inputs], "x"), tensor(&device, [rows, window.len()], "dy"));
    for (layout, shape) in [(Layout::OutIn, [total, inputs]), (Layout::InOut, [inputs, total])] {
        let p = Projection { layout, inputs, outputs: window.clone() };
        let w: Vec<f32> = super::normals_f32("w", inputs * total).iter().map(round).collect();
        let half: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
        let gradients = |x: &Tensor, dy: &Tensor, w: &Tensor| {
            let mut dx = Tensor::zeros(&device, [rows, inputs], Dtype::F32).unwrap();
            let mut dw = Tensor::from_host(&device, shape, &vec![2.0_f32; inputs * total]).unwrap();
            let wanted =
                Gradients { dx: Some((dx.view_mut(), Accumulate::Assign)), dw: Some(&mut dw), dbias: None };
            linear::backward(dy.view(), x.view(), &p, w, wanted).unwrap();
            (dx.download::<f32>().unwrap(), dw.download::<f32>().unwrap())
        };
        let rounded = |t: &Tensor| {
            let values: Vec<f32> = t.download::<f32>().unwrap().iter().map(round).collect();
            Tensor::from_host(&device, t.shape(), &values).unwrap()
        };
        let found = gradients(&x, &dy, &Tensor::from_host(&device, shape, &half).unwrap());
        let expected =
            gradients(&rounded(&x), &rounded(&dy), &Tensor::from_host(&device, shape, &w).unwrap());
        for (found, expected) in [(&found.0, &expected.0), (&found.1, &expected.1)] {
            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert!((found - expected).abs() < 1e-4, "{layout:?} at {at}: {found} {expected}");
            }
        }
        let outside = (0..inputs * total).filter(|at| {
            let out = if layout == Layout::OutIn { at / inputs } else { at % total };
            !window.contains(&out)
        });
        for at in outside {
            assert_eq!(found.1[at], 2.0, "{layout:?}: wrote outside its window at {at}");
        }
    }
}

#[test]
fn dx_can_be_added() {
    let device = Device::cpu();
    let (x, w) = (tensor(&device, [2, 3], "x"), tensor(&device, [4, 3], "w"));
    let dy = tensor(&device, [2, 4], "dy");
    let p = Projection::whole(Layout::OutIn, 3, 4);
    let run = |start: f32, accumulate| {
        let mut dx = Tensor::from_host(&device, [2, 3], &[start; 6]).unwrap();
        let wanted = Gradients { dx: Some((dx.view_mut(), accumulate)), ..Gradients::default() };
        linear::backward(dy.view(), x.view(), &p, &w, wanted).unwrap();
        dx.download::<f32>().unwrap()
    };
    let assigned = run(f32::NAN, Accumulate::Assign);
    for (added, assigned) in run(8.0, Accumulate::Add).iter().zip(assigned) {
        assert!((added - 8.0 - assigned).abs() < 1e-5);
    }
}

#[test]
fn errors_say_what_was_found_and_expected() {
    let device = Device::cpu();
    let zeros = |shape: [usize; 2], dtype| Tensor::zeros(&device, shape, dtype).unwrap();
    let forward = |x: &Tensor, p: &Projection, w: &Tensor, bias: Option<&Tensor>, y: &mut Tensor| {
        linear::forward(x.view(), p, w, bias, y.view_mut()).unwrap_err().to_string()
    };
    let p = Projection::whole(Layout::OutIn, 3, 4);
    let (x, w) = (zeros([2, 3], Dtype::F32), zeros([4, 3], Dtype::F32));
    let mut y = zeros([2, 4], Dtype::F32);
    let message = forward(&x, &p, &zeros([4, 5], Dtype::F32), None, &mut y);
    assert_eq!(message, "linear weight: found [4, 5], expected [out, 3]");
    let message = forward(&x, &Projection { outputs: 2..6, ..p.clone() }, &w, None, &mut y);
    assert_eq!(message, "linear weight window: found 2..6, expected inside 0..4 outputs of [4, 3]");
    let message = forward(&x, &p, &w, None, &mut zeros([3, 4], Dtype::F32));
    assert_eq!(message, "linear output: found 3 rows of 4, expected 2 rows of 4");
    let message = forward(&zeros([2, 3], Dtype::F64), &p, &zeros([4, 3], Dtype::Bf16), None, &mut y);
    assert_eq!(message, "linear weight: element type bf16, expected f64");
    let message = forward(&zeros([2, 3], Dtype::Bf16), &p, &zeros([4, 3], Dtype::Bf16), None, &mut y);
    assert_eq!(message, "linear input: element type bf16, expected f32 or f64");
    let bias = Tensor::zeros(&device, [5], Dtype::F32).unwrap();
    let message = forward(&x, &p, &w, Some(&bias), &mut y);
    assert_eq!(message, "linear bias: found [5], expected [4]");
    let mut dw = zeros([3, 4], Dtype::F32);
    let wanted = Gradients { dw: Some(&mut dw), ..Gradients::default() };
    let dy = zeros([2, 4], Dtype::F32);
    let message = linear::backward(dy.view(), x.view(), &p, &w, wanted).unwrap_err().to_string();
    assert_eq!(message, "linear dw: found [3, 4], expected [4, 3]");
}
