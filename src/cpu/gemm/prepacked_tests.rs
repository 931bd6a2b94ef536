//! Products by stored matrices against the chain of the order contract and against the products of matrices as they lie,
//! bit for bit, in every order that this CPU has.

use super::*;
use crate::cpu::gemm::{Bf16Operand, gemm_at, gemm_bf16_at};
use crate::cpu::isa::Level;

/// What the tests need of a stored type.
trait Tested: Stored {
    fn of(number: f64) -> Self;
    fn wide(self) -> Self::Sum;
    /// A number of A as it takes part.
    fn factor(number: Self::Sum) -> Self::Sum;
    fn gemm(
        level: Level,
        a: Matrix<Self::Sum>,
        b: Matrix<Self>,
        c: MatrixMut<Self::Sum>,
        accumulate: Accumulate,
        bias: Option<&[Self::Sum]>,
    );
}

macro_rules! float {
    ($type:ty) => {
        impl Tested for $type {
            fn of(number: f64) -> Self {
                number as $type
            }
            fn wide(self) -> Self {
                self
            }
            fn factor(number: Self) -> Self {
                number
            }
            fn gemm(
                level: Level,
                a: Matrix<Self>,
                b: Matrix<Self>,
                c: MatrixMut<Self>,
                accumulate: Accumulate,
                bias: Option<&[Self]>,
            ) {
                gemm_at(level, a, b, c, accumulate, bias);
            }
        }
    };
}

float!(f32);
float!(f64);

impl Tested for bf16 {
    fn of(number: f64) -> Self {
        bf16::from_f64(number)
    }
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn factor(number: f32) -> f32 {
        bf16::from_f32(number).to_f32()
    }
    fn gemm(
        level: Level,
        a: Matrix<f32>,
        b: Matrix<Self>,
        c: MatrixMut<f32>,
        accumulate: Accumulate,
        bias: Option<&[f32]>,
    ) {
        gemm_bf16_at(level, a, Bf16Operand::Stored(b), c, accumulate, bias);
    }
}

fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64) / f64::from(1_u32 << 30) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn cast<T: Float>(count: usize, seed: u64) -> Vec<T> {
    numbers(count, seed).into_iter().map(T::from_f64).collect()
}

/// The orders of vectors that this CPU has, with their levels.
fn vector_orders<B: Stored>() -> Vec<(Order, Level)> {
    let levels = [Level::Avx2, Level::Avx512].into_iter().filter(|&level| level <= isa::level());
    levels.filter_map(|level| Some((Order::of_vectors::<B>(level)?, level))).collect()
}

/// The process's own order, where it is the matrix unit's.
fn unit_order<B: Stored>() -> Option<Order> {
    let own = Order::of::<B>(isa::level())?;
    (Some(own) != Order::of_vectors::<B>(isa::level())).then_some(own)
}

fn orders<B: Stored>() -> Vec<Order> {
    vector_orders::<B>().into_iter().map(|(order, _)| order).chain(unit_order::<B>()).collect()
}

/// Shapes of A and B; how A lies, and B `[out, in]`.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    depth: usize,
    cols: usize,
    a_form: usize,
    transposed: bool,
}

/// A window of columns, whether C is added to, whether there is a bias.
type Window = (Range<usize>, bool, bool);

impl Case {
    fn b<T: Copy>(self, data: &[T]) -> Matrix<'_, T> {
        match self.transposed {
            true => Matrix::row_major(data, self.cols, self.depth).transposed(),
            false => Matrix::row_major(data, self.depth, self.cols),
        }
    }

    /// Where element (row, k) of A lies.
    fn a_strides(self) -> (usize, usize) {
        match self.a_form {
            0 => (self.depth, 1),
            1 => (self.depth + 5, 1),
            2 => (1, self.rows),
            _ => (2 * self.depth + 3, 2),
        }
    }

    /// All windows by one call, and what is left around them.
    fn check<B: Tested>(self, order: Order, level: Option<Level>, windows: &[Window]) {
        let Case { rows, depth, cols, .. } = self;
        let strides = self.a_strides();
        let a: Vec<B::Sum> = cast(rows * strides.0.max(1) + depth * strides.1 + 1, 1);
        let a_at = |row: usize, k: usize| B::factor(a[row * strides.0 + k * strides.1]);
        let data: Vec<B> = numbers(depth * cols, 2).into_iter().map(B::of).collect();
        let b_at = |k: usize, col: usize| {
            if self.transposed { data[col * depth + k].wide() } else { data[k * cols + col].wide() }
        };
        let bias: Vec<B::Sum> = cast(cols, 3);
        // Panels need not begin where the memory does.
        let mut store = vec![B::zeroed(); order.room::<B>(depth, cols) + 1];
        let stored = prepack_in(order, self.b(&data), &mut store[1..]);
        let guard = B::Sum::from_f64(7.5);
        let old: Vec<Vec<B::Sum>> = (0..windows.len())
            .map(|at| {
                let (width, stride) = (windows[at].0.len(), windows[at].0.len() + at % 4);
                let mut c = cast(rows * stride, 10 + at as u64);
                c.chunks_mut(stride.max(1)).for_each(|row| row[width..].fill(guard));
                c
            })
            .collect();
        let a_matrix = Matrix::new(&a, (rows, depth), strides);
        let accumulate = |add| if add { Accumulate::Add } else { Accumulate::Assign };
        fn target<'a, T>(c: &'a mut [T], rows: usize, windows: &[Window], at: usize) -> MatrixMut<'a, T> {
            let width = windows[at].0.len();
            MatrixMut::new(c, (rows, width), width + at % 4)
        }
        let mut found = old.clone();
        let parts =
            windows.iter().zip(&mut found).enumerate().map(|(at, ((outputs, add, biased), c))| Part {
                b: stored,
                outputs: outputs.clone(),
                c: target(c, rows, windows, at),
                accumulate: accumulate(*add),
                bias: biased.then_some(&bias[outputs.clone()]),
            });
        gemm_prepacked(a_matrix, parts);
        for (at, (outputs, add, biased)) in windows.iter().enumerate() {
            let context = format!("{order:?} {self:?} {outputs:?} add {add} bias {biased}");
            let bias = biased.then_some(&bias[outputs.clone()]);
            if let Some(level) = level {
                let mut c = old[at].clone();
                let window = self.b(&data).window_cols(outputs.clone());
                B::gemm(level, a_matrix, window, target(&mut c, rows, windows, at), accumulate(*add), bias);
                assert!(found[at] == c, "{context}: not the bits of gemm");
            }
            if unit_order::<B>() == Some(order) {
                continue;
            }
            let stride = outputs.len() + at % 4;
            for (place, &value) in found[at].iter().enumerate() {
                let (row, col) = (place / stride, place % stride);
                let mut sum = if *add || col >= outputs.len() { old[at][place] } else { B::Sum::ZERO };
                if col < outputs.len() {
                    sum = (0..depth).fold(sum, |c, k| a_at(row, k).mul_add(b_at(k, outputs.start + col), c));
                    sum = bias.map_or(sum, |bias| sum + bias[col]);
                }
                assert!(value == sum, "{context} at {row},{col}: {value:?} {sum:?}");
            }
        }
    }

    /// In every order.
    fn check_all<B: Tested>(self, windows: impl Fn(usize) -> Vec<Window>) {
        for (order, level) in vector_orders::<B>() {
            // On a machine with a matrix unit, bfloat16 of the widest level is multiplied by that.
            let same = level < isa::level() || unit_order::<B>().is_none();
            self.check::<B>(order, same.then_some(level), &windows(order.width()));
        }
        if let Some(order) = unit_order::<B>() {
            self.check::<B>(order, Some(isa::level()), &windows(order.width()));
        }
    }
}

#[test]
fn every_number_of_rows_is_the_chain() {
    fn each<B: Tested>() {
        for rows in 1..=ROWS {
            let (a_form, transposed) = (rows % 4, rows % 3 == 0);
            let case = Case { rows, depth: 65 + rows % 3, cols: 150, a_form, transposed };
            case.check_all::<B>(|_| vec![(0..150, rows % 2 == 0, rows % 5 != 0)]);
            let case = Case { rows, depth: 150, cols: 64, a_form: 0, transposed: !transposed };
            case.check_all::<B>(|_| vec![(0..64, rows % 2 == 1, rows % 5 == 0)]);
        }
    }
    each::<f32>();
    each::<f64>();
    each::<bf16>();
}

#[test]
fn edges_of_panels_and_tiles_are_the_chain() {
    fn each<B: Tested>() {
        for (at, depth) in [1, 2, 31, 32, 33, 127, 129, 300].into_iter().enumerate() {
            for (bt, cols) in [1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 65, 130].into_iter().enumerate() {
                let rows = [1, 2, 3, 5, 8, 9, 17, 32][(at + bt) % 8];
                let case = Case { rows, depth, cols, a_form: bt % 4, transposed: (at + bt) % 2 == 0 };
                case.check_all::<B>(|_| vec![(0..cols, bt % 2 == 0, at % 2 == 0)]);
            }
        }
    }
    each::<f32>();
    each::<f64>();
    each::<bf16>();
}

#[test]
fn several_windows_at_once_are_the_chain_on_any_number_of_threads() {
    fn each<B: Tested>() {
        for (rows, depth) in [(1, 200), (2, 33), (4, 65), (7, 130), (16, 64), (17, 90), (32, 100)] {
            for transposed in [false, true] {
                let case = Case { rows, depth, cols: 331, a_form: rows % 4, transposed };
                let windows = |width: usize| {
                    vec![
                        (0..331, false, true),
                        (width..width, true, false),
                        (width..width + 1, true, true),
                        (2 * width..5 * width - 3, false, false),
                        (5 * width..331, true, true),
                        (0..width, true, false),
                        (0..0, false, true),
                        (4 * width..5 * width, false, true),
                    ]
                };
                for threads in [1, 3] {
                    parallel::with_threads(threads, || case.check_all::<B>(windows));
                }
            }
        }
    }
    each::<f32>();
    each::<f64>();
    each::<bf16>();
}

#[test]
fn parts_are_of_different_matrices() {
    fn each<B: Tested>() {
        for order in orders::<B>() {
            let (rows, depth) = (6, 77);
            let a: Vec<B::Sum> = cast(rows * depth, 1);
            let a = Matrix::row_major(&a, rows, depth);
            let widths = [40, 1, 96, 33];
            let data: Vec<Vec<B>> = (0..4)
                .map(|at| numbers(depth * widths[at], at as u64).into_iter().map(B::of).collect())
                .collect();
            let mut stores: Vec<Vec<B>> =
                widths.iter().map(|&cols| vec![B::zeroed(); order.room::<B>(depth, cols)]).collect();
            let stored: Vec<Prepacked<B>> = stores
                .iter_mut()
                .enumerate()
                .map(|(at, store)| prepack_in(order, Matrix::row_major(&data[at], depth, widths[at]), store))
                .collect();
            let mut found: Vec<Vec<B::Sum>> = widths.iter().map(|&cols| cast(rows * cols, 9)).collect();
            let mut expected = found.clone();
            fn part<'a, B: Tested>(b: Prepacked<'a, B>, c: &'a mut [B::Sum], rows: usize) -> Part<'a, B> {
                let cols = b.cols;
                let c = MatrixMut::row_major(c, rows, cols);
                Part { b, outputs: 0..cols, c, accumulate: Accumulate::Add, bias: None }
            }
            gemm_prepacked(a, stored.iter().zip(&mut found).map(|(&b, c)| part(b, c, rows)));
            for (&b, c) in stored.iter().zip(&mut expected) {
                gemm_prepacked(a, [part(b, c, rows)]);
            }
            assert!(found == expected, "{order:?}");
        }
    }
    each::<f32>();
    each::<f64>();
    each::<bf16>();
}

#[test]
fn nothing_times_something_is_as_elsewhere() {
    fn each<B: Tested>() {
        for order in orders::<B>() {
            for (rows, depth, cols) in [(0, 5, 7), (3, 0, 7), (3, 5, 0), (0, 0, 0), (3, 0, 0)] {
                for add in [false, true] {
                    for transposed in [false, true] {
                        let case = Case { rows, depth, cols, a_form: 0, transposed };
                        case.check::<B>(
                            order,
                            Some(isa::level()),
                            &[(0..cols, add, true), (0..0, add, false)],
                        );
                    }
                }
            }
        }
        if let Some(order) = Order::of::<B>(isa::level()) {
            gemm_prepacked::<B>(Matrix::row_major(&[], 0, 3), []);
            let mut none = vec![B::zeroed(); order.room::<B>(0, 9)];
            assert_eq!(prepack_in(order, Matrix::row_major(&[], 0, 9), &mut none).panels.len(), 0);
        }
    }
    each::<f32>();
    each::<f64>();
    each::<bf16>();
}

#[test]
fn panels_begin_at_lines_wherever_the_memory_does() {
    fn each<B: Tested>() {
        for order in orders::<B>() {
            let (depth, cols) = (9, 50);
            let room = order.room::<B>(depth, cols);
            let store = vec![B::zeroed(); room + 70];
            for begin in 0..70 {
                let place = order.panels_in(&store[begin..begin + room], depth, cols);
                let panels = &store[begin..begin + room][place];
                assert_eq!(panels.as_ptr() as usize % 64, 0);
                assert_eq!(panels.len(), cols.div_ceil(order.width()) * order.panel_len(depth));
            }
        }
    }
    each::<f32>();
    each::<f64>();
    each::<bf16>();
}

#[test]
fn what_was_stored_is_found_again() {
    let Some(room) = prepacked_len::<bf16>(33, 40) else { return };
    let b: Vec<bf16> = numbers(33 * 40, 1).into_iter().map(bf16::from_f64).collect();
    let mut store = vec![bf16::ZERO; room];
    prepack(Matrix::row_major(&b, 33, 40), &mut store).unwrap();
    let a: Vec<f32> = cast(33, 2);
    let (mut found, mut expected) = ([0.0_f32; 40], [0.0_f32; 40]);
    let part = Part {
        b: Prepacked::stored(&store, 33, 40),
        outputs: 0..40,
        c: MatrixMut::row_major(&mut found, 1, 40),
        accumulate: Accumulate::Assign,
        bias: None,
    };
    let a = Matrix::row_major(&a, 1, 33);
    gemm_prepacked(a, [part]);
    let c = MatrixMut::row_major(&mut expected, 1, 40);
    crate::cpu::gemm::gemm_bf16(
        a,
        Bf16Operand::Stored(Matrix::row_major(&b, 33, 40)),
        c,
        Accumulate::Assign,
        None,
    );
    assert_eq!(found, expected);
}

#[test]
fn what_a_stored_matrix_cannot_serve_is_refused() {
    let Some(order) = Order::of::<f32>(isa::level()) else { return };
    let width = order.width();
    assert!(Prepacked::<f32>::serves(ROWS, &(width..width + 1)) && Prepacked::<f32>::serves(0, &(0..0)));
    assert!(!Prepacked::<f32>::serves(ROWS + 1, &(0..1)) && !Prepacked::<f32>::serves(1, &(1..2)));
    let mut store = vec![0.0_f32; order.room::<f32>(3, 3 * width)];
    let b = vec![1.0; 9 * width];
    let stored = prepack(Matrix::row_major(&b, 3, 3 * width), &mut store).unwrap();
    let refused = |rows: usize, outputs: Range<usize>, depth: usize| {
        let (a, mut c) = (vec![1.0; rows * depth], vec![0.0; rows * outputs.len()]);
        let c = MatrixMut::row_major(&mut c, rows, outputs.len());
        let part = Part { b: stored, outputs, c, accumulate: Accumulate::Assign, bias: None };
        let product = || gemm_prepacked(Matrix::row_major(&a, rows, depth), [part]);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(product)).is_err()
    };
    assert!(!refused(ROWS, width..3 * width, 3));
    assert!(refused(ROWS + 1, 0..width, 3), "too many rows");
    assert!(refused(1, 1..width, 3), "a window inside of a panel");
    assert!(refused(1, 2 * width..3 * width + 1, 3), "a window beyond the matrix");
    assert!(refused(1, 0..width, 4), "another depth");
    let short = || Prepacked::stored(&store[1..], 3, 3 * width).cols;
    assert!(std::panic::catch_unwind(short).is_err(), "numbers are missing");
}
