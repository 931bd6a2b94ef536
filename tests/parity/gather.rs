//! Rows picked by index: values, the order of sums, kernels against f64, and indices that do not exist.

use super::gpu;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::scatter::Order;
use latch::ops::{Tensor, gather};

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
            gather::backward(dy_tensor.view(), choice_tensor.view(), dx.view_mut(), &mut Order::default())
                .unwrap();
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
    gather::backward(dy_tensor.view(), choice.view(), dx.view_mut(), &mut Order::default()).unwrap();
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
fn every_dtype_and_shape_agrees_with_f64() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for (rows, picked, cols) in [
                (1, 1, 1),
                (1, 5, 768),
                (37, 411, 33),
                (7, 3, 896),
                (60, 700, 12),
                (3, 2, 1030),
                (97, 8700, 4),
            ] {
                let choice: Vec<u32> = (0..picked).map(|n| (n * n * 3 % rows) as u32).collect();
                let x = gpu::exact("gather x", rows * cols, dtype);
                let dy = gpu::exact("gather dy", picked * cols, dtype);
                let run = |device: &Device, dtype: Dtype| {
                    let index = Tensor::from_host(device, [picked, 1], &choice).unwrap();
                    let source = gpu::tensor(device, [rows, cols], &x, dtype);
                    let mut y = Tensor::zeros(device, [picked, cols], dtype).unwrap();
                    gather::forward(source.view(), index.view(), y.view_mut()).unwrap();
                    let (dy, mut dx) = (
                        gpu::tensor(device, [picked, cols], &dy, dtype),
                        gpu::tensor(device, [rows, cols], &x, dtype),
                    );
                    gather::backward(dy.view(), index.view(), dx.view_mut(), &mut Order::default()).unwrap();
                    [gpu::values(y.view()), gpu::values(dx.view())]
                };
                let (found, exact) = (run(&device, dtype), run(&Device::cpu(), Dtype::F64));
                assert_eq!(found[0], exact[0], "copies are exact");
                let what = format!("{} gather {dtype} {picked} of {rows} x {cols}", device.name());
                gpu::compare(&what, dtype, picked, &found[1], &exact[1]);
                if dtype == Dtype::F32 {
                    assert_eq!(found, run(&Device::cpu(), dtype), "{what}: the CPU's order, the CPU's bits");
                }
            }
        }
    }
}

/// Contributions find their places whatever their indices are, sorted by one block, counted, or in tiles of 512 that are
/// merged: equal ones across tiles, runs that lie wholly before or behind, a warp whose keys are far apart where another
/// tile's are dense.
#[test]
fn contributions_are_added_in_their_order_however_their_indices_lie() {
    let rows = 2000;
    type Law = fn(usize) -> usize;
    let laws: [(&str, Law); 7] = [
        ("one", |_| 7),
        ("rising", |n| n),
        ("falling", |n| 1999 - n),
        ("two ends", |n| n % 2 * 1999),
        ("ends around a dense middle", |n| if n < 512 { n % 2 * 1999 } else { 1000 + n % 5 }),
        ("tiles apart", |n| (3 - n / 512 % 4) * 500 + n % 7),
        ("anywhere", |n| n * n * 31 % 1999),
    ];
    // One block of 32 threads, which have room for 128, to one of 256, for 1024; counted; tiles.
    let counts = [2, 127, 128, 129, 511, 700, 1024, 1025, 3 * 512 + 41, 17 * 512 + 41];
    for (device, picked) in gpu::devices().iter().flat_map(|device| counts.map(|picked| (device, picked))) {
        for (law, choose) in laws {
            // Several times as many as there are rows.
            let choose = |n: usize| choose(n % rows);
            let choice: Vec<u32> = (0..picked).map(|n| choose(n) as u32).collect();
            let run = |device: &Device| {
                let index = Tensor::from_host(device, [picked, 1], &choice).unwrap();
                let dy = gpu::tensor(device, [picked, 1], &gpu::exact("dy", picked, Dtype::F32), Dtype::F32);
                let mut dx = Tensor::zeros(device, [rows, 1], Dtype::F32).unwrap();
                gather::backward(dy.view(), index.view(), dx.view_mut(), &mut Order::default()).unwrap();
                gpu::values(dx.view())
            };
            let (found, expected) = (run(device), run(&Device::cpu()));
            assert_eq!(found, expected, "{law}, {picked} on {}", device.name());
        }
    }
}

/// One block sorts words of a key and an entry; a row too far down for such a word is found all the same.
#[test]
fn rows_beyond_what_one_block_sorts_get_their_own_contributions() {
    for device in gpu::devices() {
        for rows in [(1 << 21) - 1, (1 << 21) + 5] {
            let last = rows as u32 - 1;
            let choice = [last, 3, last - 1, last, 0, 3, (1 << 20) - 1, last];
            let index = Tensor::from_host(&device, [choice.len(), 1], &choice).unwrap();
            let dy = gpu::tensor(
                &device,
                [choice.len(), 1],
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0],
                Dtype::F32,
            );
            let mut dx = Tensor::zeros(&device, [rows, 1], Dtype::F32).unwrap();
            gather::backward(dy.view(), index.view(), dx.view_mut(), &mut Order::default()).unwrap();
            let found: Vec<(usize, f64)> =
                gpu::values(dx.view()).into_iter().enumerate().filter(|&(_, sum)| sum != 0.0).collect();
            let expected = [(0, 16.0), (3, 34.0), ((1 << 20) - 1, 64.0), (rows - 2, 4.0), (rows - 1, 137.0)];
            assert_eq!(found, expected, "{rows} rows on {}", device.name());
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_blocks() {
    // More than one block sorts find their places by counting, many are sorted in tiles.
    for ((rows, picked, cols), dtype) in [(60, 1300, 136), (70, 8300, 12)].into_iter().zip(gpu::DTYPES) {
        let choice: Vec<u32> = (0..picked).map(|n| (n * n * 3 % rows) as u32).collect();
        let dy = gpu::exact("gather dy", picked * cols, dtype);
        let [first, second] = gpu::orders().map(|device| {
            let index = Tensor::from_host(&device, [picked, 1], &choice).unwrap();
            let dy = gpu::tensor(&device, [picked, cols], &dy, dtype);
            let mut dx = Tensor::zeros(&device, [rows, cols], dtype).unwrap();
            gather::backward(dy.view(), index.view(), dx.view_mut(), &mut Order::default()).unwrap();
            gpu::values(dx.view())
        });
        assert_eq!(first, second, "{dtype}");
    }
}

#[test]
fn an_index_that_does_not_exist_becomes_nan() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for cols in [3, 8] {
                let x = gpu::tensor(&device, [2, cols], &gpu::exact("x", 2 * cols, dtype), dtype);
                let index = Tensor::from_host(&device, [3, 1], &[1, 2, 0_u32]).unwrap();
                let mut y = Tensor::zeros(&device, [3, cols], dtype).unwrap();
                gather::forward(x.view(), index.view(), y.view_mut()).unwrap();
                let (y, x) = (gpu::values(y.view()), gpu::values(x.view()));
                assert!(y[cols..2 * cols].iter().all(|v| v.is_nan()));
                assert_eq!([&y[..cols], &y[2 * cols..]].concat(), [&x[cols..], &x[..cols]].concat());
                let dy = gpu::tensor(&device, [3, cols], &vec![1.0; 3 * cols], dtype);
                let mut dx = Tensor::zeros(&device, [2, cols], dtype).unwrap();
                gather::backward(dy.view(), index.view(), dx.view_mut(), &mut Order::default()).unwrap();
                let dx = gpu::values(dx.view());
                assert!(dx[..cols].iter().all(|v| v.is_nan()) && dx[cols..].iter().all(|&v| v == 1.0));
            }
        }
    }
}

#[test]
fn room_for_the_order_is_reserved_once() {
    for device in gpu::devices() {
        let index = Tensor::from_host(&device, [600, 1], &vec![1_u32; 600]).unwrap();
        let dy = Tensor::zeros(&device, [600, 4], Dtype::F32).unwrap();
        let mut dx = Tensor::zeros(&device, [2, 4], Dtype::F32).unwrap();
        let mut order = Order::reserve(&device, 600).unwrap();
        let before = device.traffic().count().allocations;
        for count in [600, 1, 599] {
            let (dy, index) = (dy.rows(0..count).unwrap(), index.rows(0..count).unwrap());
            gather::backward(dy, index, dx.view_mut(), &mut order).unwrap();
        }
        assert_eq!(device.traffic().count().allocations, before);
    }
}
