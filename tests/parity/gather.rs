//! Rows picked by index, and the small integer operations of a decode step.

use latch::base::Dtype;
use latch::device::Device;
use latch::ops::{Tensor, gather, index};

#[test]
fn rows_are_picked_and_gradients_added_in_order() {
    let (device, rows, picked) = (Device::cpu(), 37, 411);
    for cols in [1, 33, 768] {
        let choice: Vec<u32> = (0..picked).map(|n| (n * n * 3 % 29) as u32).collect();
        let choice_tensor = Tensor::from_host(&device, [picked, 1], &choice).unwrap();
        let x = super::normals_f32("x", rows * cols);
        let dy = super::normals_f32("dy", picked * cols);
        let x_tensor = Tensor::from_host(&device, [rows, cols], &x).unwrap();
        let dy_tensor = Tensor::from_host(&device, [picked, cols], &dy).unwrap();
        let run = || {
            let mut y = Tensor::zeros(&device, [picked, cols], Dtype::F32).unwrap();
            gather::forward(x_tensor.view(), choice_tensor.view(), y.view_mut()).unwrap();
            let mut dx = Tensor::from_host(&device, [rows, cols], &x).unwrap();
            gather::backward(dy_tensor.view(), choice_tensor.view(), dx.view_mut()).unwrap();
            [y, dx].map(|t| t.download::<f32>().unwrap())
        };
        let found = super::on_threads(1, run);
        assert_eq!(found, super::on_threads(3, run));
        let mut dx = x.clone();
        for (n, &from) in choice.iter().enumerate() {
            for c in 0..cols {
                let (from, to) = (from as usize * cols + c, n * cols + c);
                assert_eq!(found[0][to], x[from]);
                dx[from] += dy[to];
            }
        }
        assert_eq!(found[1], dx);
    }
}

#[test]
fn picking_is_linear_and_adding_is_its_transpose() {
    // <gather(x), dy> = <x, gather^T(dy)>, in f64.
    let (device, rows, cols, picked) = (Device::cpu(), 5, 7, 13);
    let choice: Vec<u32> = (0..picked).map(|n| (n % 4) as u32).collect();
    let choice = Tensor::from_host(&device, [picked, 1], &choice).unwrap();
    let x = latch::verify::gradient::normals("x", rows * cols);
    let dy = latch::verify::gradient::normals("dy", picked * cols);
    let mut y = Tensor::zeros(&device, [picked, cols], Dtype::F64).unwrap();
    let mut dx = Tensor::zeros(&device, [rows, cols], Dtype::F64).unwrap();
    gather::forward(
        Tensor::from_host(&device, [rows, cols], &x).unwrap().view(),
        choice.view(),
        y.view_mut(),
    )
    .unwrap();
    let dy_tensor = Tensor::from_host(&device, [picked, cols], &dy).unwrap();
    gather::backward(dy_tensor.view(), choice.view(), dx.view_mut()).unwrap();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (left, right) = (dot(&y.download::<f64>().unwrap(), &dy), dot(&x, &dx.download::<f64>().unwrap()));
    assert!((left - right).abs() < 1e-12 * left.abs().max(1.0), "{left} {right}");
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let x = Tensor::zeros(&device, [2, 3], Dtype::F32).unwrap();
    let mut y = Tensor::zeros(&device, [1, 3], Dtype::F32).unwrap();
    let outside = Tensor::from_host(&device, [1, 1], &[2_u32]).unwrap();
    let message = gather::forward(x.view(), outside.view(), y.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "gather index: found index 2 at entry 0, expected 0..2");
    let signed = Tensor::from_host(&device, [1, 1], &[0_i32]).unwrap();
    let message = gather::forward(x.view(), signed.view(), y.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "gather index: element type i32, expected u32");
}

#[test]
fn a_decode_step_needs_no_upload() {
    let device = Device::cpu();
    let mut positions = Tensor::from_host(&device, [4, 1], &[7_u32, 0, 41, 3]).unwrap();
    let mut ids = Tensor::from_host(&device, [4, 1], &[-1_i32; 4]).unwrap();
    let tokens = Tensor::from_host(&device, [4, 1], &[5_u32, 50_259, 0, 1]).unwrap();
    let before = device.traffic().count();
    index::advance(positions.rows_mut(1..4).unwrap(), 2).unwrap();
    index::set_ids(tokens.rows(0..3).unwrap(), ids.rows_mut(0..3).unwrap()).unwrap();
    assert_eq!(device.traffic().count(), before);
    assert_eq!(positions.download::<u32>().unwrap(), [7, 2, 43, 5]);
    assert_eq!(ids.download::<i32>().unwrap(), [5, 50_259, 0, -1]);
    index::fill(ids.rows_mut(1..2).unwrap(), -1_i32).unwrap();
    assert_eq!(ids.download::<i32>().unwrap(), [5, -1, 0, -1]);
    let message = index::fill(ids.view_mut(), 1_u32).unwrap_err().to_string();
    assert_eq!(message, "fill: element type i32, expected u32");
    let message = index::set_ids(tokens.view(), ids.rows_mut(0..3).unwrap()).unwrap_err().to_string();
    assert_eq!(message, "set_ids ids: found 3 rows of 1, expected 4 rows of 1");
}
