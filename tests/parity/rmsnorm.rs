//! RMS norm: is the mathematics right, and does a row's result depend on its row alone?

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::{Tensor, rmsnorm};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::rmsnorm::cases());
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_the_threads() {
    let (rows, cols) = (37, 123);
    let device = Device::cpu();
    let x = Tensor::from_host(&device, [rows, cols], &super::normals_f32("x", rows * cols)).unwrap();
    let w = Tensor::from_host(&device, [cols], &super::normals_f32("w", cols)).unwrap();
    let run = |range: std::ops::Range<usize>| {
        let mut y = Tensor::zeros(&device, [range.len(), cols], Dtype::F32).unwrap();
        let mut saved = rmsnorm::Saved::reserve(&device, range.len(), cols, Dtype::F32).unwrap();
        let at = 0..range.len();
        rmsnorm::forward(x.rows(range).unwrap(), &w, 1e-5, y.view_mut(), &mut saved, at).unwrap();
        y.download::<f32>().unwrap()
    };
    let whole = super::on_threads(1, || run(0..rows));
    assert_eq!(whole, super::on_threads(3, || run(0..rows)));
    for row in [0, 1, 17, 36] {
        assert_eq!(whole[row * cols..(row + 1) * cols], run(row..row + 1), "row {row}");
    }
}

/// y, dx and dw (which starts at some values) of some rows on one device, the rows kept inside a longer tape. All
/// operands hold numbers that bf16 holds; vectors, f32.
pub fn run(
    device: &Device,
    dtype: Dtype,
    (rows, cols): (usize, usize),
    range: std::ops::Range<usize>,
) -> [Vec<f64>; 3] {
    let wide = dtype.accumulation();
    let matrix =
        |name: &str| gpu::tensor(device, [rows, cols], &gpu::exact(name, rows * cols, Dtype::Bf16), dtype);
    let vector = |name: &str| gpu::tensor(device, [cols], &gpu::exact(name, cols, Dtype::F32), wide);
    let (x, dy, w, mut dw) = (matrix("x"), matrix("dy"), vector("w"), vector("dw"));
    let count = range.len();
    let zeros = || Tensor::zeros(device, [count, cols], dtype).unwrap();
    let (mut y, mut dx, at) = (zeros(), zeros(), 3..count + 3);
    let mut saved = rmsnorm::Saved::reserve(device, count + 3, cols, dtype).unwrap();
    let (x, dy) = (x.rows(range.clone()).unwrap(), dy.rows(range).unwrap());
    // The gradient of a row of one element is all cancellation unless eps is as large as its square.
    let eps = if cols == 1 { 0.5 } else { 1e-5 };
    rmsnorm::forward(x, &w, eps, y.view_mut(), &mut saved, at.clone()).unwrap();
    rmsnorm::backward(dy, x, &w, &saved, at, dx.view_mut(), &mut dw).unwrap();
    [gpu::values(y.view()), gpu::values(dx.view()), gpu::values(dw.view())]
}

#[test]
fn gpu_agrees_with_f64() {
    for device in gpu::devices() {
        for shape in gpu::ROW_SHAPES {
            let [y, dx, dw] = run(&Device::cpu(), Dtype::F64, shape, 0..shape.0);
            for dtype in gpu::DTYPES {
                let found = run(&device, dtype, shape, 0..shape.0);
                let what = |name| format!("rmsnorm {name} {dtype} {shape:?}");
                gpu::compare(&what("y"), dtype, shape.1, &found[0], &y);
                gpu::compare(&what("dx"), dtype, shape.1, &found[1], &dx);
                gpu::compare(&what("dw"), dtype, shape.0, &found[2], &dw);
            }
        }
    }
}

#[test]
fn gpu_bits_depend_on_the_row_alone() {
    for (rows, cols) in [(71, 768), (5, 123), (3, 1536)] {
        for dtype in gpu::DTYPES {
            let [first, second] = gpu::orders().map(|device| run(&device, dtype, (rows, cols), 0..rows));
            assert_eq!(first, second, "{dtype} {rows} x {cols} under another order of blocks");
            let device = &gpu::devices()[0];
            for range in [0..1, rows - 1..rows, 1..rows] {
                let part = run(device, dtype, (rows, cols), range.clone());
                let here = range.start * cols..range.end * cols;
                assert_eq!(part[0], first[0][here.clone()], "y of {range:?}, {dtype} {rows} x {cols}");
                assert_eq!(part[1], first[1][here], "dx of {range:?}, {dtype} {rows} x {cols}");
            }
        }
    }
}
