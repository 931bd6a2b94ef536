//! Products of few rows by a B, or several, that was stored beforehand in the order in which they read it
//! (`prepacked_order`). So a product reads B as one run of memory, which the hardware fetches ahead at the speed of plain
//! reading; rows of a stored matrix are far apart, and windows of them short.
//!
//! An element's chain is that of every other kernel: the bits are those of [`gemm`](super::gemm) and
//! [`gemm_bf16`](super::gemm_bf16). Files: `prepacked_order` (how B is stored), `prepacked_panels` (vectors) and
//! `units_strips` (matrix unit) multiply.
#![allow(unsafe_code)]

use super::prepacked_order::{Order, Place, Sealed};
use super::tile::Product;
use super::workspace::share;
use super::{Accumulate, Matrix, MatrixMut, checked, lanes};
use crate::cpu::isa;
use crate::cpu::{Float, parallel};
use half::bf16;
use std::ops::Range;

/// Most rows of A.
pub const ROWS: usize = 32;

/// A type that matrices in reading order are stored in: f32, f64 or bfloat16.
pub trait Stored: bytemuck::Pod + Send + Sync + Sealed<Self::Sum> {
    /// What products are summed in, and A, C and biases are.
    type Sum: Float;
}

impl Stored for f32 {
    type Sum = f32;
}

impl Stored for f64 {
    type Sum = f64;
}

impl Stored for bf16 {
    type Sum = f32;
}

/// A matrix `[depth, cols]` in reading order.
#[derive(Clone, Copy, Debug)]
pub struct Prepacked<'a, T> {
    /// The panels, from the first that begins at a line's beginning.
    panels: &'a [T],
    depth: usize,
    cols: usize,
    order: Order,
}

/// Numbers that a matrix in reading order takes; `None` where this process has no such order.
pub fn prepacked_len<T: Stored>(depth: usize, cols: usize) -> Option<usize> {
    Some(Order::of::<T>(isa::level())?.room::<T>(depth, cols))
}

/// Stores `b` in reading order in `to`; `None` where this process has no such order.
///
/// # Panics
/// When `to` is shorter than [`prepacked_len`].
pub fn prepack<'a, T: Stored>(b: Matrix<T>, to: &'a mut [T]) -> Option<Prepacked<'a, T>> {
    Some(prepack_in(Order::of::<T>(isa::level())?, b, to))
}

pub(super) fn prepack_in<'a, T: Stored>(order: Order, b: Matrix<T>, to: &'a mut [T]) -> Prepacked<'a, T> {
    let (depth, cols) = (b.rows(), b.cols());
    let panels = cols.div_ceil(order.width());
    let room = order.panels_in(to, depth, cols);
    if depth > 0 && panels > 0 {
        let columns = lanes(b.transposed());
        let tasks = parallel::task_count(panels, 4 * order.width() * depth);
        let place = Place(to[room.clone()].as_mut_ptr());
        parallel::for_each_task(tasks, |task| {
            // SAFETY: the columns are B's, the room is that of all panels, and tasks write different ones; the order is
            // one that this CPU has.
            unsafe { T::write(order, columns, depth, share(panels, tasks, task), place.get()) }
        });
    }
    Prepacked { panels: &to[room], depth, cols, order }
}

impl<'a, T: Stored> Prepacked<'a, T> {
    /// What [`prepack`] stored of a matrix `[depth, cols]` in `numbers`, which have not moved since.
    ///
    /// # Panics
    /// When `numbers` is shorter than that, or this process has no such order.
    pub fn stored(numbers: &'a [T], depth: usize, cols: usize) -> Self {
        let Some(order) = Order::of::<T>(isa::level()) else {
            panic!("a matrix in reading order, in a process that has none");
        };
        Prepacked { panels: &numbers[order.panels_in(numbers, depth, cols)], depth, cols, order }
    }

    /// Whether `rows` are few, and the window `outputs` of a matrix's columns begins where a panel does.
    pub fn serves(rows: usize, outputs: &Range<usize>) -> bool {
        let order = Order::of::<T>(isa::level());
        rows <= ROWS && order.is_some_and(|order| outputs.start.is_multiple_of(order.width()))
    }

    /// The panels from the first of `outputs` on.
    fn window(&self, outputs: &Range<usize>) -> Panels<T> {
        let (width, len) = (self.order.width(), self.order.panel_len(self.depth));
        let inside = outputs.start <= outputs.end && outputs.end <= self.cols;
        assert!(inside && outputs.start.is_multiple_of(width), "{outputs:?} of {} columns", self.cols);
        Panels { start: self.panels[outputs.start / width * len..].as_ptr(), len }
    }
}

/// Panels of a matrix in reading order, as the right operand of a product: whole panels, as many as its columns touch.
#[derive(Clone, Copy)]
pub struct Panels<T> {
    pub start: *const T,
    /// Numbers of a panel.
    pub len: usize,
}

// SAFETY: a shared view of a slice that its maker borrows for as long as the panels are used.
unsafe impl<T: Sync> Sync for Panels<T> {}

/// One of several products of an A: C = A B + bias or C += A B + bias, where B is the window `outputs` of the columns of
/// `b`.
#[derive(Debug)]
pub struct Part<'a, B: Stored> {
    /// A whole matrix.
    pub b: Prepacked<'a, B>,
    /// Its columns that count.
    pub outputs: Range<usize>,
    /// `[rows of A, outputs]`.
    pub c: MatrixMut<'a, B::Sum>,
    /// Whether C is replaced or added to.
    pub accumulate: Accumulate,
    /// One number for each of `outputs`.
    pub bias: Option<&'a [B::Sum]>,
}

/// All parts, in one section of tasks. With a B in bfloat16, A is rounded to bfloat16 (nearest even) as it is read.
///
/// # Panics
/// When the shapes do not fit, A has more than [`ROWS`] rows, or a window begins inside of a panel
/// ([`Prepacked::serves`]).
pub fn gemm_prepacked<'a, B: Stored>(a: Matrix<B::Sum>, parts: impl IntoIterator<Item = Part<'a, B>>) {
    let (rows, depth) = (a.rows(), a.cols());
    assert!(rows <= ROWS, "{rows} rows by a matrix in reading order");
    let mut order = None;
    let problem = |part: Part<'a, B>| {
        let same = *order.get_or_insert(part.b.order) == part.b.order;
        assert!(same, "matrices in several reading orders");
        let b = (part.b.window(&part.outputs), part.b.depth, part.outputs.len());
        checked((rows, depth), b, part.c, part.accumulate, part.bias)
    };
    let problems: Vec<Product<B::Sum, Panels<B>>> = parts.into_iter().filter_map(problem).collect();
    if let Some(order) = order {
        // SAFETY: pointers and sizes were checked just now; all problems are of this A, in this order, which this CPU
        // has, as something was stored in it.
        unsafe { B::multiply(order, &problems, lanes(a)) }
    }
}

#[cfg(test)]
#[path = "prepacked_tests.rs"]
mod tests;
