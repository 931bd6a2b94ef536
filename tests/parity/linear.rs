//! Linear maps: is the mathematics right, does a row depend on itself alone, do windows and errors behave?

use super::gpu;
use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::linear::{self, Accumulate, Gradients, Layout, Projection};
use latch::ops::{Tensor, gelu};
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
            let wanted =
                Gradients { dx: dx_wanted, dw: Some((&mut dw, Accumulate::Add)), dbias: Some(&mut dbias) };
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
            let wanted = Gradients {
                dx: Some((dx.view_mut(), Accumulate::Assign)),
                dw: Some((&mut dw, Accumulate::Add)),
                dbias: None,
            };
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
    let wanted = Gradients { dw: Some((&mut dw, Accumulate::Add)), ..Gradients::default() };
    let dy = zeros([2, 4], Dtype::F32);
    let message = linear::backward(dy.view(), x.view(), &p, &w, wanted).unwrap_err().to_string();
    assert_eq!(message, "linear dw: found [3, 4], expected [4, 3]");
}

/// What activations and weights are on a GPU.
const KINDS: [(Dtype, Dtype); 3] =
    [(Dtype::F32, Dtype::F32), (Dtype::F32, Dtype::Bf16), (Dtype::Bf16, Dtype::Bf16)];

/// Values for a GPU, and the same ones as products see them: rounded to bf16 beside a bf16 weight.
struct Given {
    x: Vec<f64>,
    dy: Vec<f64>,
    w: Vec<f64>,
    bias: Vec<f64>,
}

impl Given {
    fn new((activations, weights): (Dtype, Dtype), rows: usize, p: &Projection, total: usize) -> Given {
        Given {
            x: gpu::exact("x", rows * p.inputs, activations),
            dy: gpu::exact("dy", rows * p.outputs.len(), activations),
            w: gpu::exact("w", total * p.inputs, weights),
            bias: gpu::exact("bias", total, Dtype::F32),
        }
    }

    fn as_multiplied(&self, weights: Dtype) -> (Vec<f64>, Vec<f64>) {
        (gpu::round(&self.x, weights), gpu::round(&self.dy, weights))
    }
}

/// Every result of a linear map, from values at `kind`'s dtypes: y, u and gelu(u), dx assigned and added, dw, dbias, dw
/// assigned.
fn results(
    device: &Device,
    (activations, weights): (Dtype, Dtype),
    p: &Projection,
    total: usize,
    (x, dy, given): (&[f64], &[f64], &Given),
) -> [Vec<f64>; 8] {
    let (rows, outputs) = (x.len() / p.inputs, p.outputs.len());
    let vectors = activations.accumulation();
    let shape = if p.layout == Layout::OutIn { [total, p.inputs] } else { [p.inputs, total] };
    let w = gpu::tensor(device, shape, &given.w, weights);
    let bias = gpu::tensor(device, [total], &given.bias, vectors);
    let (x, dy) = (
        gpu::tensor(device, [rows, p.inputs], x, activations),
        gpu::tensor(device, [rows, outputs], dy, activations),
    );
    let ones = |shape: [usize; 2], dtype| gpu::tensor(device, shape, &vec![1.0; shape[0] * shape[1]], dtype);
    let mut y = ones([rows, outputs], activations);
    linear::forward(x.view(), p, &w, Some(&bias), y.view_mut()).unwrap();
    let (mut u, mut activated) = (ones([rows, outputs], activations), ones([rows, outputs], activations));
    linear::forward_gelu(x.view(), p, &w, Some(&bias), u.view_mut(), activated.view_mut()).unwrap();
    let (mut dx, mut added) = (ones([rows, p.inputs], activations), ones([rows, p.inputs], activations));
    let (mut dw, mut dbias) =
        (ones(shape, vectors), gpu::tensor(device, [total], &vec![1.0; total], vectors));
    let gradients = Gradients {
        dx: Some((dx.view_mut(), Accumulate::Assign)),
        dw: Some((&mut dw, Accumulate::Add)),
        dbias: Some(&mut dbias),
    };
    linear::backward(dy.view(), x.view(), p, &w, gradients).unwrap();
    let mut assigned = ones(shape, vectors);
    let gradients = Gradients {
        dx: Some((added.view_mut(), Accumulate::Add)),
        dw: Some((&mut assigned, Accumulate::Assign)),
        dbias: None,
    };
    linear::backward(dy.view(), x.view(), p, &w, gradients).unwrap();
    [y, u, activated, dx, added, dw, dbias, assigned].map(|tensor| gpu::values(tensor.view()))
}

/// Compares all results with the f64 reference, which multiplies what the kernels multiply.
fn agrees(device: &Device, kind: (Dtype, Dtype), rows: usize, p: &Projection, total: usize) {
    let given = Given::new(kind, rows, p, total);
    let (x, dy) = given.as_multiplied(kind.1);
    let f64s = (Dtype::F64, Dtype::F64);
    let mut expected = results(&Device::cpu(), f64s, p, total, (&x, &dy, &given));
    // The sums for the bias read the gradient as it is.
    let as_given = results(&Device::cpu(), f64s, p, total, (&given.x, &given.dy, &given));
    expected[6] = as_given[6].clone();
    let found = results(device, kind, p, total, (&given.x, &given.dy, &given));
    let vectors = kind.0.accumulation();
    let (inputs, outputs) = (p.inputs, p.outputs.len());
    let results = [
        ("y", kind.0, inputs),
        ("u", kind.0, inputs),
        ("gelu(u)", kind.0, inputs),
        ("dx", kind.0, outputs),
        ("dx added", kind.0, outputs),
        ("dw", vectors, rows),
        ("dbias", vectors, rows),
        ("dw assigned", vectors, rows),
    ];
    for (((name, dtype, terms), found), expected) in results.into_iter().zip(&found).zip(&expected) {
        let what = format!("{} linear {kind:?} {p:?} rows {rows} {name}", device.name());
        gpu::compare(&what, dtype, terms, found, expected);
    }
    // Outside of its window a gradient is what it was.
    for (at, values) in found[5].iter().zip(&found[7]).enumerate() {
        let out = if p.layout == Layout::OutIn { at / inputs } else { at % total };
        assert!(p.outputs.contains(&out) || values == (&1.0, &1.0), "{kind:?} {p:?}: dw {at} changed");
    }
    for (out, &value) in found[6].iter().enumerate() {
        assert!(p.outputs.contains(&out) || value == 1.0, "{kind:?} {p:?}: dbias {out} changed");
    }
}

#[test]
fn gpu_results_agree_with_the_reference() {
    // Rows, inputs, total outputs, window: one of everything; odd sizes; windows that are aligned and that are not;
    // more than a tile of every kind, k of more than one chunk; a real width.
    let shapes = [
        (1, 1, 1, 0..1),
        (3, 5, 7, 2..7),
        (17, 40, 96, 32..64),
        (70, 131, 67, 0..67),
        (130, 264, 136, 8..136),
        (5, 768, 100, 1..34),
    ];
    for device in gpu::devices().into_iter().chain([gpu::hopper()]).chain(gpu::library()) {
        for kind in KINDS {
            for (rows, inputs, total, outputs) in shapes.clone() {
                for layout in [Layout::OutIn, Layout::InOut] {
                    agrees(
                        &device,
                        kind,
                        rows,
                        &Projection { layout, inputs, outputs: outputs.clone() },
                        total,
                    );
                }
            }
        }
    }
}

#[test]
fn gpu_results_agree_at_a_real_size() {
    let p = Projection::whole(Layout::OutIn, 768, 3072);
    for device in gpu::devices() {
        let kind = (Dtype::Bf16, Dtype::Bf16);
        let given = Given::new(kind, 256, &p, 3072);
        let x = gpu::tensor(&device, [256, 768], &given.x, kind.0);
        let w = gpu::tensor(&device, [3072, 768], &given.w, kind.1);
        let mut y = gpu::tensor(&device, [256, 3072], &vec![0.0; 256 * 3072], kind.0);
        linear::forward(x.view(), &p, &w, None, y.view_mut()).unwrap();
        let cpu = Device::cpu();
        let x = gpu::tensor(&cpu, [256, 768], &given.x, Dtype::F64);
        let w = gpu::tensor(&cpu, [3072, 768], &given.w, Dtype::F64);
        let mut expected = Tensor::zeros(&cpu, [256, 3072], Dtype::F64).unwrap();
        linear::forward(x.view(), &p, &w, None, expected.view_mut()).unwrap();
        gpu::compare("256x768x3072", kind.0, 768, &gpu::values(y.view()), &gpu::values(expected.view()));
    }
}

/// One row, few, a tile's worth, more: the same bits, whatever tile the number of rows calls for. So for windows.
#[test]
fn gpu_rows_depend_on_themselves_alone() {
    let (rows, inputs, total) = (130, 392, 200);
    for device in gpu::devices().into_iter().chain([gpu::hopper()]) {
        for (kind, layout) in KINDS.into_iter().zip([Layout::OutIn, Layout::InOut, Layout::OutIn]) {
            let p = Projection::whole(layout, inputs, total);
            let given = Given::new(kind, rows, &p, total);
            let shape = if layout == Layout::OutIn { [total, inputs] } else { [inputs, total] };
            let x = gpu::tensor(&device, [rows, inputs], &given.x, kind.0);
            let w = gpu::tensor(&device, shape, &given.w, kind.1);
            let bias = gpu::tensor(&device, [total], &given.bias, Dtype::F32);
            let run = |range: std::ops::Range<usize>, outputs: std::ops::Range<usize>| {
                let mut y = Tensor::zeros(&device, [range.len(), outputs.len()], kind.0).unwrap();
                let p = Projection { outputs, ..p.clone() };
                linear::forward(x.rows(range).unwrap(), &p, &w, Some(&bias), y.view_mut()).unwrap();
                gpu::values(y.view())
            };
            let whole = run(0..rows, 0..total);
            for count in [1, 3, 16, 17, 64] {
                let range = rows - count..rows;
                assert!(
                    run(range.clone(), 0..total) == whole[range.start * total..],
                    "{}: {kind:?} {count} rows have other bits",
                    device.name()
                );
            }
            for (range, window) in [(5..6, 0..40), (100..130, 33..200), (0..130, 64..128)] {
                let expected: Vec<f64> =
                    range.clone().flat_map(|row| whole[row * total..][window.clone()].to_vec()).collect();
                assert!(
                    run(range.clone(), window.clone()) == expected,
                    "{}: {kind:?} rows {range:?} outputs {window:?} have other bits",
                    device.name()
                );
            }
        }
    }
}

/// Logits and gradients that are summed up may be f32 beside bf16 activations; rounded, they are the bf16 ones.
#[test]
fn gpu_results_of_bf16_activations_may_be_f32() {
    let (rows, p) = (20, Projection::whole(Layout::OutIn, 72, 50));
    let kind = (Dtype::Bf16, Dtype::Bf16);
    let given = Given::new(kind, rows, &p, 50);
    for device in gpu::devices() {
        let x = gpu::tensor(&device, [rows, 72], &given.x, kind.0);
        let dy = gpu::tensor(&device, [rows, 50], &given.dy, kind.0);
        let w = gpu::tensor(&device, [50, 72], &given.w, kind.1);
        let run = |dtype| {
            let mut y = Tensor::zeros(&device, [rows, 50], dtype).unwrap();
            let mut dx = Tensor::zeros(&device, [rows, 72], dtype).unwrap();
            linear::forward(x.view(), &p, &w, None, y.view_mut()).unwrap();
            let gradients =
                Gradients { dx: Some((dx.view_mut(), Accumulate::Assign)), ..Gradients::default() };
            linear::backward(dy.view(), x.view(), &p, &w, gradients).unwrap();
            [y, dx].map(|tensor| gpu::values(tensor.view()))
        };
        let (wide, narrow) = (run(Dtype::F32), run(Dtype::Bf16));
        for (wide, narrow) in wide.iter().zip(&narrow) {
            assert_eq!(&gpu::round(wide, Dtype::Bf16), narrow);
            assert_ne!(wide, narrow);
        }
    }
}

/// Fused or one after the other: the same bits.
#[test]
fn gpu_fused_gelu_has_the_bits_of_gelu() {
    let (rows, p) = (19, Projection { layout: Layout::InOut, inputs: 24, outputs: 3..40 });
    for device in gpu::devices().into_iter().chain([gpu::hopper()]) {
        for kind in KINDS {
            let given = Given::new(kind, rows, &p, 50);
            let x = gpu::tensor(&device, [rows, 24], &given.x, kind.0);
            let w = gpu::tensor(&device, [24, 50], &given.w, kind.1);
            let zeros = || Tensor::zeros(&device, [rows, p.outputs.len()], kind.0).unwrap();
            let (mut u, mut fused, mut apart) = (zeros(), zeros(), zeros());
            linear::forward_gelu(x.view(), &p, &w, None, u.view_mut(), fused.view_mut()).unwrap();
            gelu::forward(u.view(), apart.view_mut()).unwrap();
            assert_eq!(gpu::values(fused.view()), gpu::values(apart.view()), "{} {kind:?}", device.name());
        }
    }
}

/// Sums and products of nothing: rows, outputs or inputs that do not exist.
#[test]
fn gpu_handles_empty_operands() {
    for device in gpu::devices() {
        for (rows, inputs, total, outputs) in [(0, 4, 5, 0..5), (3, 4, 5, 2..2), (3, 0, 5, 1..4)] {
            let p = Projection { layout: Layout::OutIn, inputs, outputs: outputs.clone() };
            let zeros = |shape: [usize; 2]| Tensor::zeros(&device, shape, Dtype::F32).unwrap();
            let (x, w, dy) = (zeros([rows, inputs]), zeros([total, inputs]), zeros([rows, outputs.len()]));
            let bias: Vec<f64> = (0..total).map(|at| at as f64).collect();
            let bias = gpu::tensor(&device, [total], &bias, Dtype::F32);
            let mut y =
                gpu::tensor(&device, [rows, outputs.len()], &vec![9.0; rows * outputs.len()], Dtype::F32);
            linear::forward(x.view(), &p, &w, Some(&bias), y.view_mut()).unwrap();
            let expected: Vec<f64> = (0..rows).flat_map(|_| outputs.clone()).map(|at| at as f64).collect();
            assert_eq!(gpu::values(y.view()), expected);
            let mut dx = gpu::tensor(&device, [rows, inputs], &vec![9.0; rows * inputs], Dtype::F32);
            let nines = vec![9.0; total * inputs];
            let (mut dw, mut dbias) = (
                gpu::tensor(&device, [total, inputs], &nines, Dtype::F32),
                gpu::tensor(&device, [total], &vec![1.0; total], Dtype::F32),
            );
            let gradients = Gradients {
                dx: Some((dx.view_mut(), Accumulate::Assign)),
                dw: Some((&mut dw, Accumulate::Assign)),
                dbias: Some(&mut dbias),
            };
            linear::backward(dy.view(), x.view(), &p, &w, gradients).unwrap();
            assert_eq!(gpu::values(dx.view()), vec![0.0; rows * inputs]);
            let in_window = |at: usize| outputs.contains(&(at / inputs));
            let expected = (0..total * inputs).map(|at| if in_window(at) { 0.0 } else { 9.0 });
            assert_eq!(gpu::values(dw.view()), expected.collect::<Vec<_>>());
            assert_eq!(gpu::values(dbias.view()), vec![1.0; total]);
        }
    }
}
