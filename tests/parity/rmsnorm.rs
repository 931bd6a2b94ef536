//! RMS norm: is the mathematics right, and does a row's result depend on its row alone?

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
