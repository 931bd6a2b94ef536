//! The matrix product: is it the chain that its contract states, at sizes that use every path?
//! (Levels and layouts are compared in src/cpu/gemm/tests.rs.)

use super::{normals_f32, on_threads};
use half::bf16;
use latch::cpu::gemm::{Accumulate, Bf16Operand, Matrix, MatrixMut, gemm, gemm_bf16};
use latch::verify::gradient::normals;

#[test]
fn values_against_plain_loops_in_f64() {
    for (m, k, n) in [(1, 1, 1), (1, 768, 50), (8, 257, 130), (13, 100, 77), (130, 700, 90)] {
        let (a, b) = (normals(&format!("a {m}"), m * k), normals(&format!("b {m}"), k * n));
        let bias = normals(&format!("bias {m}"), n);
        let (a32, b32): (Vec<f32>, Vec<f32>) =
            (a.iter().map(|&v| v as f32).collect(), b.iter().map(|&v| v as f32).collect());
        let mut c = vec![f64::NAN; m * n];
        let (left, right) = (Matrix::row_major(&a, m, k), Matrix::row_major(&b, k, n));
        gemm(left, right, MatrixMut::row_major(&mut c, m, n), Accumulate::Assign, Some(&bias));
        let mut c32 = vec![f32::NAN; m * n];
        let (left, right) = (Matrix::row_major(&a32, m, k), Matrix::row_major(&b32, k, n));
        gemm(left, right, MatrixMut::row_major(&mut c32, m, n), Accumulate::Assign, None);
        for row in 0..m {
            for col in 0..n {
                let terms = || (0..k).map(|p| a[row * k + p] * b[p * n + col]);
                let (sum, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                let at = row * n + col;
                assert!(
                    (c[at] - sum - bias[col]).abs() <= 1e-14 * (size + 1.0),
                    "f64 {m}x{k}x{n} at {row},{col}"
                );
                assert!(
                    (f64::from(c32[at]) - sum).abs() <= 1e-6 * (size + 1.0),
                    "f32 {m}x{k}x{n} at {row},{col}"
                );
            }
        }
    }
}

/// One row, few rows and many rows go different ways, as do one thread and three: the bits may not tell.
#[test]
fn a_row_does_not_depend_on_its_batch_the_window_or_the_threads() {
    let (m, k, n) = (70, 900, 333);
    let (a, b, bias) = (normals_f32("a", m * k), normals_f32("b", k * n), normals_f32("bias", n));
    let b16: Vec<bf16> = b.iter().map(|&v| bf16::from_f32(v)).collect();
    let product =
        |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>, transposed: bool, stored: bool| {
            let shape = (rows.len(), cols.len());
            let mut c = vec![f32::NAN; shape.0 * shape.1];
            let a = Matrix::row_major(&a, m, k).window_rows(rows);
            let target = MatrixMut::row_major(&mut c, shape.0, shape.1);
            let bias = Some(&bias[cols.clone()]);
            if stored {
                let b = if transposed {
                    Matrix::row_major(&b16, n, k).transposed()
                } else {
                    Matrix::row_major(&b16, k, n)
                };
                let b = Bf16Operand::Stored(b.window_cols(cols));
                gemm_bf16(a, b, target, Accumulate::Assign, bias);
            } else {
                let b = if transposed {
                    Matrix::row_major(&b, n, k).transposed()
                } else {
                    Matrix::row_major(&b, k, n)
                };
                gemm(a, b.window_cols(cols), target, Accumulate::Assign, bias);
            }
            c
        };
    for (transposed, stored) in [(false, false), (true, false), (false, true), (true, true)] {
        let whole = on_threads(1, || product(0..m, 0..n, transposed, stored));
        assert_eq!(whole, on_threads(3, || product(0..m, 0..n, transposed, stored)));
        for (rows, cols) in
            [(0..1, 0..n), (9..10, 5..6), (3..11, 100..333), (20..33, 64..128), (17..19, 0..n)]
        {
            let part = on_threads(3, || product(rows.clone(), cols.clone(), transposed, stored));
            for (row, part) in rows.clone().zip(part.chunks(cols.len())) {
                assert_eq!(&whole[row * n..][cols.clone()], part, "{rows:?} {cols:?} {transposed} {stored}");
            }
        }
    }
}

/// A sum may be cut anywhere along k, by accumulating.
#[test]
fn accumulating_continues_the_chain() {
    let (m, k, n) = (19, 500, 41);
    let (a, b) = (normals_f32("a", m * k), normals_f32("b", k * n));
    let (a, b) = (Matrix::row_major(&a, m, k), Matrix::row_major(&b, k, n));
    let (mut whole, mut pieces) = (vec![0.0; m * n], vec![f32::NAN; m * n]);
    gemm(a, b, MatrixMut::row_major(&mut whole, m, n), Accumulate::Assign, None);
    for (from, to, accumulate) in
        [(0, 33, Accumulate::Assign), (33, 34, Accumulate::Add), (34, k, Accumulate::Add)]
    {
        let target = MatrixMut::row_major(&mut pieces, m, n);
        gemm(a.window_cols(from..to), b.window_rows(from..to), target, accumulate, None);
    }
    assert_eq!(whole, pieces);
}

/// bf16 products equal the f32 product of the rounded numbers within the accumulation's rounding.
#[test]
fn bf16_rounds_to_nearest_even_and_accumulates_in_f32() {
    let (m, k, n) = (9, 130, 50);
    let (a, b) = (normals_f32("a", m * k), normals_f32("b", k * n));
    let mut c = vec![0.0_f32; m * n];
    gemm_bf16(
        Matrix::row_major(&a, m, k),
        Bf16Operand::Rounded(Matrix::row_major(&b, k, n)),
        MatrixMut::row_major(&mut c, m, n),
        Accumulate::Assign,
        None,
    );
    let round = |v: f32| f64::from(bf16::from_f32(v).to_f32());
    for row in 0..m {
        for col in 0..n {
            let terms = || (0..k).map(|p| round(a[row * k + p]) * round(b[p * n + col]));
            let (sum, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
            let found = f64::from(c[row * n + col]);
            assert!((found - sum).abs() <= 1e-6 * size, "at {row},{col}: {found} {sum}");
        }
    }
}
