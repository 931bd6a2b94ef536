//! The fused residual sum and norm: mathematics, the bits of the separate operations, every device.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::residual_norm::{Norm, NormGradients, backward, forward};
use latch::ops::{Tensor, elementwise, layernorm, masked_residual, rmsnorm};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::residual_norm::cases());
}

const EPS: f64 = 1e-2;

#[derive(Clone, Copy, Debug)]
struct Run {
    rows: usize,
    cols: usize,
    layer: bool,
    masked: bool,
    /// One kernel, or one after the other.
    fused: bool,
}

/// y, normed, dy, dbranch, dw, db on one device; matrices hold numbers that bf16 holds. db is empty for RMS norm.
fn run(device: &Device, dtype: Dtype, run: Run) -> [Vec<f64>; 6] {
    let Run { rows, cols, layer, masked, fused } = run;
    let matrix =
        |name: &str| gpu::tensor(device, [rows, cols], &gpu::exact(name, rows * cols, Dtype::Bf16), dtype);
    let vector =
        |name: &str| gpu::tensor(device, [cols], &gpu::exact(name, cols, Dtype::F32), dtype.accumulation());
    let zeros = || Tensor::zeros(device, [rows, cols], dtype).unwrap();
    let (x, branch, dnormed) = (matrix("x"), matrix("branch"), matrix("dnormed"));
    let (w, b, mut dw, mut db) = (vector("w"), vector("b"), vector("dw"), vector("db"));
    let (mut y, mut normed, mut dy, mut dbranch) = (zeros(), zeros(), matrix("dy"), zeros());
    let (masks, instance) = gpu::masks(device, rows, cols);
    let mask = gpu::masked_site(&masks, instance.view()).filter(|_| masked);
    let mut rms = rmsnorm::Saved::reserve(device, rows, cols, dtype).unwrap();
    let mut kept = layernorm::Saved::reserve(device, rows, cols, dtype).unwrap();
    let at = 0..rows;
    if fused {
        let norm = match layer {
            false => Norm::Rms { w: &w, saved: &mut rms },
            true => Norm::Layer { w: &w, b: &b, saved: &mut kept },
        };
        let outputs = (y.view_mut(), normed.view_mut());
        forward((x.view(), branch.view()), mask, norm, EPS, outputs, at.clone()).unwrap();
        let norm = match layer {
            false => NormGradients::Rms { w: &w, saved: &rms, dw: Some(&mut dw) },
            true => {
                let gradients = layernorm::Gradients { dw: &mut dw, db: &mut db };
                NormGradients::Layer { w: &w, saved: &kept, gradients: Some(gradients) }
            }
        };
        let streams = (dy.view_mut(), dbranch.view_mut());
        backward((dnormed.view(), y.view()), mask, norm, streams, at).unwrap();
    } else {
        masked_residual::forward(x.view(), branch.view(), mask, y.view_mut()).unwrap();
        let mut dx = zeros();
        if layer {
            layernorm::forward(y.view(), (&w, &b), EPS, normed.view_mut(), &mut kept, at.clone()).unwrap();
            let gradients = layernorm::Gradients { dw: &mut dw, db: &mut db };
            layernorm::backward(dnormed.view(), y.view(), &w, &kept, at, dx.view_mut(), gradients).unwrap();
        } else {
            rmsnorm::forward(y.view(), &w, EPS, normed.view_mut(), &mut rms, at.clone()).unwrap();
            rmsnorm::backward(dnormed.view(), y.view(), &w, &rms, at, dx.view_mut(), &mut dw).unwrap();
        }
        elementwise::add(dx.view(), dy.view_mut()).unwrap();
        masked_residual::backward(dy.view(), mask, dbranch.view_mut()).unwrap();
    }
    let db = if layer { gpu::values(db.view()) } else { Vec::new() };
    let [y, normed, dy, dbranch, dw] = [y, normed, dy, dbranch, dw].map(|tensor| gpu::values(tensor.view()));
    [y, normed, dy, dbranch, dw, db]
}

/// Both norms, with masks and without, at the given shapes.
fn runs(shapes: &[(usize, usize)]) -> Vec<Run> {
    let mut runs = Vec::new();
    for &(rows, cols) in shapes {
        for (layer, masked) in [(false, false), (false, true), (true, false), (true, true)] {
            runs.push(Run { rows, cols, layer, masked, fused: true });
        }
    }
    runs
}

#[test]
fn the_cpu_s_bits_are_those_of_the_separate_operations() {
    for of in runs(&[(1, 1), (5, 123), (7, 768)]) {
        for dtype in [Dtype::F32, Dtype::F64] {
            let separate = run(&Device::cpu(), dtype, Run { fused: false, ..of });
            assert_eq!(run(&Device::cpu(), dtype, of), separate, "{dtype} {of:?}");
        }
    }
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for of in runs(&gpu::ROW_SHAPES) {
            let expected = run(&Device::cpu(), Dtype::F64, of);
            for dtype in gpu::DTYPES {
                let found = run(&device, dtype, of);
                let terms = [1, of.cols, of.cols, of.cols, of.rows, of.rows];
                for (part, name) in ["y", "normed", "dy", "dbranch", "dw", "db"].into_iter().enumerate() {
                    let what = format!("residual_norm {name} {dtype} {of:?}");
                    gpu::compare(&what, dtype, terms[part], &found[part], &expected[part]);
                }
            }
        }
    }
}

/// Forward has the bits of the separate kernels. Backward rounds once less in bf16; f32 has the same bits there too.
#[test]
fn gpu_bits_are_those_of_the_separate_kernels_under_any_order_of_blocks() {
    for of in runs(&[(71, 768), (5, 123), (3, 1536)]) {
        for dtype in gpu::DTYPES {
            let [first, second] = gpu::orders().map(|device| run(&device, dtype, of));
            assert_eq!(first, second, "{dtype} {of:?} under another order of blocks");
            let separate = run(&gpu::devices()[0], dtype, Run { fused: false, ..of });
            let same = if dtype == Dtype::F32 { 0..6 } else { 0..2 };
            assert_eq!(first[same.clone()], separate[same], "{dtype} {of:?}");
        }
    }
}
