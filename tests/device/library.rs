//! What the launcher makes of cuBLASLt, against a library that we made (stand_in/libcublasLt.rs): the scenarios that
//! driver.rs runs in other processes.

use super::driver::{launcher, wander};
use super::launches::Vectors;
use half::bf16;
use latch::base::Dtype;
use latch::device::{LibraryMatrix, LibraryProduct, Matmul};

/// Row-major factors in every arrangement and dtype, against the definition, twice each.
pub fn library() {
    let gpu = launcher();
    assert_eq!(gpu.matmul_library().unwrap().as_deref(), Some("cuBLASLt 12.1.3"));
    let [m, n, k] = [3, 5, 4];
    let a = |row: usize, i: usize| (row * 2 + i) as f32;
    let b = |i: usize, col: usize| (i as f32) - (col as f32) * 0.5;
    // Elements lie `stride` apart from row to row, where `turned` by columns.
    let lay = |rows: usize, cols: usize, stride: usize, turned: bool, value: &dyn Fn(usize, usize) -> f32| {
        let lying = if turned { cols } else { rows };
        let mut data = vec![0.0f32; lying * stride];
        for row in 0..rows {
            for col in 0..cols {
                let (y, x) = if turned { (col, row) } else { (row, col) };
                data[y * stride + x] = value(row, col);
            }
        }
        data
    };
    let upload = |data: &[f32], dtype: Dtype| {
        let narrow: Vec<bf16> = data.iter().map(|&v| bf16::from_f32(v)).collect();
        let bytes: &[u8] =
            if dtype == Dtype::Bf16 { bytemuck::cast_slice(&narrow) } else { bytemuck::cast_slice(data) };
        let address = gpu.allocate(bytes.len()).unwrap();
        gpu.upload(address, bytes).unwrap();
        address
    };
    let download = |address: u64, count: usize, dtype: Dtype| -> Vec<f32> {
        let mut bytes = vec![0u8; count * dtype.size()];
        gpu.download(address, &mut bytes).unwrap();
        match dtype {
            Dtype::Bf16 => {
                bytemuck::pod_collect_to_vec::<u8, bf16>(&bytes).into_iter().map(f32::from).collect()
            }
            _ => bytemuck::pod_collect_to_vec(&bytes),
        }
    };
    for (dtype, c_dtype) in [(Dtype::F32, Dtype::F32), (Dtype::Bf16, Dtype::F32), (Dtype::Bf16, Dtype::Bf16)]
    {
        for (a_turned, b_turned) in [(false, false), (false, true), (true, false)] {
            let matrix =
                |address, dtype, stride, transposed| LibraryMatrix { address, dtype, stride, transposed };
            let at = upload(&lay(m, k, 7, a_turned, &a), dtype);
            let bt = upload(&lay(k, n, 6, b_turned, &b), dtype);
            let ct = upload(&vec![100.0; m * 8], c_dtype);
            let mut product = LibraryProduct {
                sizes: [m, n, k],
                a: matrix(at, dtype, 7, a_turned),
                b: matrix(bt, dtype, 6, b_turned),
                c: matrix(ct, c_dtype, 8, false),
                add: false,
                bias: None,
            };
            for times in [1.0, 2.0] {
                gpu.multiply(&product).unwrap();
                for (index, value) in download(ct, m * 8, c_dtype).into_iter().enumerate() {
                    let (row, col) = (index / 8, index % 8);
                    let sum: f32 = (0..k).map(|i| a(row, i) * b(i, col)).sum();
                    let expected = if col < n { times * sum } else { 100.0 };
                    assert_eq!(value, expected, "{dtype} {a_turned} {b_turned}, row {row}, column {col}");
                }
                product.add = true;
            }
            if c_dtype != Dtype::F32 {
                continue;
            }
            let bias = upload(&[10.0, 20.0, 30.0, 40.0, 50.0], Dtype::F32);
            gpu.multiply(&LibraryProduct { add: false, bias: Some(bias), ..product }).unwrap();
            for (index, value) in download(ct, m * 8, c_dtype).into_iter().enumerate() {
                let (row, col) = (index / 8, index % 8);
                let sum: f32 = (0..k).map(|i| a(row, i) * b(i, col)).sum();
                let expected = if col < n { sum + 10.0 * (col as f32 + 1.0) } else { 100.0 };
                assert_eq!(
                    value, expected,
                    "with a bias: {dtype} {a_turned} {b_turned}, row {row}, column {col}"
                );
            }
        }
    }
    // A window that starts at an odd address is another plan; one that the library has no kernel for is a sentence.
    let zeros = upload(&[0.0; 400], Dtype::F32);
    let matrix = |address, stride| LibraryMatrix { address, dtype: Dtype::F32, stride, transposed: false };
    let window = LibraryProduct {
        sizes: [m, n, k],
        a: matrix(zeros + 4, 7),
        b: matrix(zeros, 6),
        c: matrix(zeros + 256, 8),
        add: false,
        bias: None,
    };
    gpu.multiply(&window).unwrap();
    let odd = LibraryProduct { sizes: [3, 5, 13], a: matrix(zeros, 13), ..window };
    let message = gpu.multiply(&odd).unwrap_err().to_string();
    assert!(
        message.contains("planning a product of [3, 5, 13]") && message.contains("NOT_SUPPORTED"),
        "{message}"
    );
    let message = gpu.capture(&mut || gpu.multiply(&window)).unwrap_err().to_string();
    assert!(message.contains("a product of the library while a graph is captured"), "{message}");
}

/// A library that does not start.
pub fn no_library() {
    let gpu = launcher();
    assert!(!gpu.library_multiplies(true).unwrap());
    let message = gpu.choose_matmul(Matmul::Library).unwrap_err().to_string();
    for says in ["cuBLASLt does not start", "NOT_INITIALIZED (1)", "no newer than the driver"] {
        assert!(message.contains(says), "{says}: {message}");
    }
}

/// The library says of both failures that it could not execute.
pub fn failed_product() {
    let vectors = Vectors::new(launcher(), 16);
    let matrix = |address| LibraryMatrix { address, dtype: Dtype::F32, stride: 2, transposed: false };
    let product = LibraryProduct {
        sizes: [2, 2, 2],
        a: matrix(vectors.x),
        b: matrix(vectors.x),
        c: matrix(vectors.y),
        add: false,
        bias: None,
    };
    let message = vectors.gpu.multiply(&product).unwrap_err().to_string();
    assert!(message.contains("EXECUTION_FAILED (13)") && message.contains("own products"), "{message}");
    wander(&vectors);
    let message = vectors.gpu.multiply(&product).unwrap_err().to_string();
    for says in ["CUDA_ERROR_ILLEGAL_ADDRESS (700)", "since the last wait: ", "axpy"] {
        assert!(message.contains(says), "{says}: {message}");
    }
}
