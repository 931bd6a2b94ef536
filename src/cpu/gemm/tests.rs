//! Every level, orientation and path against the chain of the order contract, bit for bit.

use super::*;

fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64) / f64::from(1_u32 << 30) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn levels() -> Vec<Level> {
    [Level::Portable, Level::Avx2, Level::Avx512].into_iter().filter(|&level| level <= isa::level()).collect()
}

/// The order contract, as plainly as it can be written.
fn chain<T: Float>(
    a: impl Fn(usize, usize) -> T,
    b: impl Fn(usize, usize) -> T,
    depth: usize,
    start: T,
    bias: Option<T>,
    (m, n): (usize, usize),
) -> T {
    let sum = (0..depth).fold(start, |c, k| a(m, k).mul_add(b(k, n), c));
    bias.map_or(sum, |bias| sum + bias)
}

fn cast<T: Float>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

/// A matrix stored row-major, transposed, as a window of a wider one, or with both strides odd.
fn stored<T: Float>(data: &[T], rows: usize, cols: usize, form: usize) -> (Vec<T>, (usize, usize), usize) {
    let (strides, first, len) = match form {
        0 => ((cols, 1), 0, rows * cols),
        1 => ((1, rows), 0, rows * cols),
        2 => ((cols + 5, 1), 3, rows * (cols + 5) + 3),
        _ => ((2 * cols + 3, 2), 1, rows * (2 * cols + 3) + 1),
    };
    let mut out = vec![T::from_f64(f64::NAN); len];
    for r in 0..rows {
        for c in 0..cols {
            out[first + r * strides.0 + c * strides.1] = data[r * cols + c];
        }
    }
    (out, strides, first)
}

fn check<T: Float>(
    level: Level,
    (m, k, n): (usize, usize, usize),
    forms: (usize, usize),
    add: bool,
    with_bias: bool,
) {
    let (a, b): (Vec<T>, Vec<T>) = (cast(&numbers(m * k, 1)), cast(&numbers(k * n, 2)));
    let (bias, old): (Vec<T>, Vec<T>) = (cast(&numbers(n, 3)), cast(&numbers(m * n, 4)));
    let (a_data, a_strides, a_first) = stored(&a, m, k, forms.0);
    let (b_data, b_strides, b_first) = stored(&b, k, n, forms.1);
    let c_stride = n + 3;
    let guard = T::from_f64(7.5);
    let mut c = vec![guard; m * c_stride];
    for row in 0..m {
        c[row * c_stride..][..n].copy_from_slice(&old[row * n..][..n]);
    }
    let accumulate = if add { Accumulate::Add } else { Accumulate::Assign };
    gemm_at(
        level,
        Matrix::new(&a_data[a_first..], (m, k), a_strides),
        Matrix::new(&b_data[b_first..], (k, n), b_strides),
        MatrixMut::new(&mut c, (m, n), c_stride),
        accumulate,
        with_bias.then_some(&bias[..]),
    );
    for row in 0..m {
        for col in 0..n {
            let start = if add { old[row * n + col] } else { T::ZERO };
            let bias = with_bias.then(|| bias[col]);
            let expected = chain(|m, p| a[m * k + p], |p, c| b[p * n + c], k, start, bias, (row, col));
            let found = c[row * c_stride + col];
            assert!(
                found == expected,
                "{level:?} {m}x{k}x{n} {forms:?} at {row},{col}: {found:?} {expected:?}"
            );
        }
        for &untouched in &c[row * c_stride + n..(row + 1) * c_stride] {
            assert!(untouched == guard, "{level:?} {m}x{k}x{n}: wrote beyond row {row}");
        }
    }
}

const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (1, 33, 70),
    (2, 300, 131),
    (3, 17, 64),
    (5, 260, 33),
    (8, 40, 129),
    (12, 19, 48),
    (13, 7, 17),
    (33, 7, 17),
    (31, 800, 50),
    (45, 500, 90),
    (64, 9, 200),
    (7, 520, 5),
    (100, 1, 3),
];

#[test]
fn every_path_is_the_chain() {
    for level in levels() {
        for (index, shape) in SHAPES.into_iter().enumerate() {
            for forms in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 3), (2, 1)] {
                // Software fused multiply-adds are slow: the portable level sees each shape in two forms.
                if level == Level::Portable && (forms.0 + 2 * forms.1 + index) % 3 != 0 {
                    continue;
                }
                check::<f32>(level, shape, forms, index % 2 == 0, forms.0 == 0);
                check::<f64>(level, shape, forms, index % 2 == 1, forms.1 == 0);
            }
        }
    }
}

#[test]
fn long_chains_in_several_blocks_are_the_chain() {
    check::<f32>(isa::level(), (34, 9001, 35), (0, 1), false, true);
    check::<f32>(isa::level(), (3, 9001, 35), (0, 1), true, true);
    check::<f64>(isa::level(), (35, 4500, 20), (1, 0), true, true);
}

#[test]
fn an_empty_chain_is_zero_or_the_old_value() {
    let mut c = [1.0_f32, 2.0];
    let (a, b) = (Matrix::row_major(&[0.0; 0], 1, 0), Matrix::row_major(&[0.0; 0], 0, 2));
    gemm(a, b, MatrixMut::row_major(&mut c, 1, 2), Accumulate::Add, Some(&[1.0, 1.0]));
    assert_eq!(c, [2.0, 3.0]);
    gemm(a, b, MatrixMut::row_major(&mut c, 1, 2), Accumulate::Assign, None);
    assert_eq!(c, [0.0, 0.0]);
}
