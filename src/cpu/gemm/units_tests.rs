//! The tiling against plain loops through a model of the instruction, and the instruction itself where there is one.

use super::*;
use crate::cpu::gemm::prepacked::Panels;
use crate::cpu::gemm::simd::Lanes;
use crate::cpu::gemm::units_strips;
use crate::cpu::gemm::{Accumulate, Bf16Operand, Matrix, MatrixMut, checked, lanes, retyped};

/// TDPBF16PS as the Intel SDM writes it.
struct Model;

thread_local! {
    /// Rows that tiles of A and C are configured for.
    static ROWS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

fn widened(bits: u16) -> f32 {
    flushed(f32::from_bits(u32::from(bits) << 16))
}

impl Unit for Model {
    unsafe fn begin(rows: usize) {
        ROWS.set(rows);
    }
    unsafe fn end() {}
    unsafe fn multiply(
        tile_rows: usize,
        depth: usize,
        (a, a_step): (*const u16, usize),
        b: *const u16,
        (c, c_stride): (*mut f32, usize),
        add: bool,
    ) {
        for (i, j) in (0..tile_rows).flat_map(|i| [(i, 0), (i, 1)]) {
            for (m, n) in (0..ROWS.get()).flat_map(|m| (0..SIDE).map(move |n| (m, n))) {
                // SAFETY: the trait's promise about the sizes.
                unsafe {
                    let sum = c.add((i * SIDE + m) * c_stride + j * SIDE + n);
                    let mut total = if add { *sum } else { 0.0 };
                    for k in 0..depth {
                        let a = std::slice::from_raw_parts(a.add(i * a_step + k * TILE), TILE);
                        let b = std::slice::from_raw_parts(b.add((2 * k + j) * TILE), TILE);
                        let left = |t: usize| widened(a[m * DEPTH + t]);
                        let right = |t: usize| widened(b[(t / 2 * SIDE + n) * 2 + t % 2]);
                        total = block(total, left, right);
                    }
                    *sum = total;
                }
            }
        }
    }
    unsafe fn multiply_rows(
        depth: usize,
        (w, w_stride): (*const u16, usize),
        columns: *const u16,
        to: *mut f32,
        add: bool,
    ) {
        for (m, n) in (0..SIDE).flat_map(|m| (0..SIDE).map(move |n| (m, n))) {
            // SAFETY: the trait's promise about the sizes.
            unsafe {
                let sum = to.add(m * SIDE + n);
                let mut total = if add { *sum } else { 0.0 };
                for k in 0..depth {
                    let left = |t: usize| widened(*w.add(m * w_stride + k * DEPTH + t));
                    let right = |t: usize| widened(*columns.add(k * TILE + (t / 2 * SIDE + n) * 2 + t % 2));
                    total = block(total, left, right);
                }
                *sum = total;
            }
        }
    }
    unsafe fn multiply_neighbours(
        depth: usize,
        a: *const u16,
        (b, b_stride): (*const u16, usize),
        (c, c_stride): (*mut f32, usize),
        add: bool,
        _: *mut u16,
    ) {
        for (m, n) in (0..ROWS.get()).flat_map(|m| (0..NEIGHBOURS).map(move |n| (m, n))) {
            // SAFETY: the trait's promise about the sizes.
            unsafe {
                let sum = c.add(m * c_stride + n);
                let mut total = if add { *sum } else { 0.0 };
                for k in 0..depth {
                    let left = |t: usize| widened(*a.add(k * TILE + m * DEPTH + t));
                    let right = |t: usize| widened(*b.add((k * DEPTH + t) * b_stride + n));
                    total = block(total, left, right);
                }
                *sum = total;
            }
        }
    }
}

/// What the instruction adds to one sum.
fn block(sum: f32, left: impl Fn(usize) -> f32, right: impl Fn(usize) -> f32) -> f32 {
    let mut parts = [0.0_f32; 2];
    for term in 0..DEPTH {
        let part = &mut parts[term % 2];
        *part = flushed(left(term).mul_add(right(term), *part));
    }
    flushed(flushed(sum) + flushed(parts[0] + parts[1]))
}

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// One product: sizes, which operands are transposed, whether B is stored in bf16, whether C is added to.
#[derive(Clone, Copy, Debug)]
struct Case {
    size: (usize, usize, usize),
    transposed: (bool, bool),
    stored: bool,
    add: bool,
}

impl Case {
    fn operands(self) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>) {
        let (m, k, n) = self.size;
        let b = numbers(k * n, 2).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
        (numbers(m * k, 1), b, numbers(n, 3), numbers(m * n, 4))
    }

    fn run<U: Unit>(self) -> Vec<f32> {
        let (m, k, n) = self.size;
        let (a, b, bias, mut c) = self.operands();
        let half: Vec<bf16> = b.iter().map(|&v| bf16::from_f32(v)).collect();
        let a = if self.transposed.0 {
            Matrix::row_major(&a, k, m).transposed()
        } else {
            Matrix::row_major(&a, m, k)
        };
        fn oriented<T>(data: &[T], k: usize, n: usize, transposed: bool) -> Matrix<'_, T> {
            if transposed {
                Matrix::row_major(data, n, k).transposed()
            } else {
                Matrix::row_major(data, k, n)
            }
        }
        let accumulate = if self.add { Accumulate::Add } else { Accumulate::Assign };
        let target = MatrixMut::row_major(&mut c, m, n);
        let strip = retyped::<f32, Rounded>(lanes(a));
        // SAFETY: `checked` has checked the sizes; tests run a unit where it is available, and Lanes need nothing.
        unsafe {
            if self.stored {
                let b = oriented(&half, k, n, self.transposed.1).transposed();
                let problem = checked((m, k), (lanes(b), k, n), target, accumulate, Some(&bias));
                run::<Lanes<f32>, U, _, _>(&problem.unwrap(), strip);
            } else {
                let b = oriented(&b, k, n, self.transposed.1).transposed();
                let b = retyped::<f32, Rounded>(lanes(b));
                let problem = checked((m, k), (b, k, n), target, accumulate, Some(&bias));
                run::<Lanes<f32>, U, _, _>(&problem.unwrap(), strip);
            }
        }
        c
    }

    /// The same by strips of B that were stored beforehand; A as it lies.
    fn run_stored<U: Unit>(self) -> Vec<f32> {
        let (m, k, n) = self.size;
        let (a, b, bias, mut c) = self.operands();
        let half: Vec<bf16> = b.iter().map(|&v| bf16::from_f32(v)).collect();
        let b = match self.transposed.1 {
            true => Matrix::row_major(&half, n, k),
            false => Matrix::row_major(&half, k, n).transposed(),
        };
        let len = k.next_multiple_of(DEPTH) * 2 * SIDE;
        // What is not written must not be read.
        let mut store = vec![bf16::NAN; n.div_ceil(2 * SIDE) * len];
        for (strip, to) in store.chunks_mut(len).enumerate() {
            let columns = b.window_rows(strip * 2 * SIDE..n.min((strip + 1) * 2 * SIDE));
            // SAFETY: the columns are B's, and the strip has its place; Lanes need nothing.
            unsafe { units_strips::write::<Lanes<f32>, U>(lanes(columns), k, to.as_mut_ptr().cast()) };
        }
        let accumulate = if self.add { Accumulate::Add } else { Accumulate::Assign };
        let panels = Panels { start: store.as_ptr(), len };
        let target = MatrixMut::row_major(&mut c, m, n);
        let problem = checked((m, k), (panels, k, n), target, accumulate, Some(&bias)).unwrap();
        let a = retyped::<f32, Rounded>(lanes(Matrix::row_major(&a, m, k)));
        // SAFETY: `checked` has checked the sizes, and all strips are stored; tests run a unit where it is available.
        unsafe { units_strips::run::<Lanes<f32>, U, _>(&[problem], a) };
        c
    }

    /// The chain of blocks of 32, as plainly as it can be written.
    fn plain(self) -> Vec<f32> {
        let (m, k, n) = self.size;
        let (a, b, bias, mut c) = self.operands();
        for row in 0..m {
            for col in 0..n {
                let mut sum = if self.add { c[row * n + col] } else { 0.0 };
                for first in (0..k).step_by(32) {
                    let mut parts = [0.0_f32; 2];
                    for p in first..k.min(first + 32) {
                        let left = if self.transposed.0 { a[p * m + row] } else { a[row * k + p] };
                        let right = if self.transposed.1 { b[col * k + p] } else { b[p * n + col] };
                        parts[p % 2] = bf16::from_f32(left).to_f32().mul_add(right, parts[p % 2]);
                    }
                    sum += parts[0] + parts[1];
                }
                c[row * n + col] = sum + bias[col];
            }
        }
        c
    }
}

fn cases() -> Vec<Case> {
    let sizes = [
        (1, 1, 1),
        (1, 64, 40),
        (3, 33, 17),
        (16, 32, 32),
        (17, 70, 33),
        (33, 600, 31),
        (40, 96, 64),
        (3, 40, 3200),
        (8, 96, 200),
        (16, 32, 64),
    ];
    let mut cases = Vec::new();
    for size in sizes {
        for (transposed, stored) in [
            ((false, false), true),
            ((false, true), true),
            ((false, false), false),
            ((true, false), false),
            ((true, true), false),
        ] {
            cases.push(Case { size, transposed, stored, add: cases.len() % 2 == 1 });
        }
    }
    cases
}

#[test]
fn tiling_is_the_chain_of_blocks() {
    for case in cases() {
        assert_eq!(case.run::<Model>(), case.plain(), "{case:?}");
    }
}

fn stored_cases() -> Vec<Case> {
    let sizes = (1..=32).map(|m| (m, 31 + m % 3, 30 + 35 * (m % 3))).chain([
        (1, 1, 1),
        (5, 64, 32),
        (16, 700, 33),
        (17, 32, 96),
        (32, 545, 64),
        (20, 2, 97),
    ]);
    sizes
        .enumerate()
        .map(|(at, size)| Case { size, transposed: (false, at % 2 == 0), stored: true, add: at % 3 == 0 })
        .collect()
}

#[test]
fn strips_stored_beforehand_are_the_chain_of_blocks() {
    for case in stored_cases() {
        assert_eq!(case.run_stored::<Model>(), case.plain(), "{case:?}");
    }
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn the_hardware_has_its_own_bits_for_strips_stored_beforehand() {
    use crate::cpu::gemm::amx::{Amx, available};
    if !available() {
        println!("skipped: no AMX on this CPU");
        return;
    }
    for case in stored_cases() {
        assert_eq!(case.run_stored::<Amx>(), case.run::<Amx>(), "{case:?}");
    }
}

#[test]
fn subnormal_sums_are_flushed() {
    let tiny = bf16::from_f32(1e-20).to_f32();
    let mut c = [0.0_f32];
    let target = MatrixMut::row_major(&mut c, 1, 1);
    let a = retyped::<f32, Rounded>(lanes(Matrix::row_major(&[tiny], 1, 1)));
    let b = retyped::<f32, Rounded>(lanes(Matrix::row_major(&[tiny], 1, 1)));
    let problem = checked((1, 1), (b, 1, 1), target, Accumulate::Assign, None).unwrap();
    // SAFETY: `checked` has checked the sizes.
    unsafe { run::<Lanes<f32>, Model, _, _>(&problem, a) };
    assert_eq!(c, [0.0]);
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn the_hardware_agrees_with_its_model() {
    use crate::cpu::gemm::amx::{Amx, available};
    if !available() {
        println!("skipped: no AMX on this CPU");
        return;
    }
    let mut equal = 0;
    let mut entries = 0;
    for case in cases() {
        let (found, model) = (case.run::<Amx>(), case.run::<Model>());
        // Two orders of one sum of k products below 1, in blocks of 32: each may be off by the roundings on the
        // longest path of additions. The model's order is what the manual says; the bits of a real machine are
        // counted, not promised.
        let depth = case.size.1 as f32;
        let bound = 2.0 * (18.0 + depth / 32.0) * f32::EPSILON / 2.0 * (depth + 2.0);
        for (found, model) in found.iter().zip(&model) {
            assert!((found - model).abs() <= bound, "{case:?}: {found} {model}");
            equal += usize::from(found == model);
            entries += 1;
        }
    }
    println!("{equal} of {entries} entries have the model's bits");
}

/// The public entry takes the unit for every number of rows, or for none, however B lies in memory.
#[test]
fn one_row_has_the_bits_of_many() {
    for (m, k, n) in [(40, 100, 50), (40, 96, 150)] {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let half: Vec<bf16> = b.iter().map(|&v| bf16::from_f32(v)).collect();
        let operands = [
            Bf16Operand::Rounded(Matrix::row_major(&b, k, n)),
            Bf16Operand::Stored(Matrix::row_major(&half, k, n)),
            Bf16Operand::Stored(Matrix::row_major(&half, n, k).transposed()),
        ];
        for b in operands {
            let product = |rows: Range<usize>| {
                let mut c = vec![0.0; rows.len() * n];
                let a = Matrix::row_major(&a, m, k).window_rows(rows.clone());
                let target = MatrixMut::row_major(&mut c, rows.len(), n);
                crate::cpu::gemm::gemm_bf16(a, b, target, Accumulate::Assign, None);
                c
            };
            let whole = product(0..m);
            for rows in [0..1, 7..9, 2..17, 20..40] {
                assert_eq!(product(rows.clone()), whole[rows.start * n..rows.end * n], "{rows:?}");
            }
        }
    }
}
