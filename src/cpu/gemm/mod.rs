//! The matrix product C = A B (+ bias), or C += A B, with strides on every operand.
//!
//! # The order contract
//! Every element of C is one chain of fused multiply-adds over ascending k,
//! ```text
//! c = 0, or what C held when accumulating
//! for k in 0..K   c = fma(a[m,k], b[k,n], c)
//! c = c + bias[n]                                  once, at the end
//! ```
//! whatever M, N, the strides, the tile, the number of threads and the vector level are. So one row alone (decode)
//! and the same row among thousands (prefill) have the same bits, AVX-512, AVX2 and the portable level have the
//! same bits, and a product may be computed in pieces of rows or columns, or in pieces of k by accumulating.
//! Blocking over k keeps the order: partial chains are stored and reloaded exactly.
//! (Which NaN comes out of several is not promised.)
//!
//! [`gemm`] works in f32 or f64. [`gemm_bf16`] multiplies bfloat16 numbers and accumulates in f32: with the same chain,
//! or, in a process whose CPU has AMX, with the chain of blocks that `units` states. Which of the two is a fact of the
//! process, never of the sizes.
//!
//! [`gemm_prepacked`] has the bits of these two; it multiplies few rows by matrices that were stored for that beforehand,
//! several in one section of tasks.
//!
//! Files: `matrix` (operands), `packed` (many rows), `ahead` (what it asks the caches for), `skinny`, `stream` and `spread`
//! (few rows), `prepacked`,
//! `prepacked_order` and `prepacked_panels` (few rows by a B in reading order), `tile` (the kernel),
//! `pack`, `simd` and `x86` (vectors), `units`, `units_pack`, `units_rows`, `units_neighbours`, `units_strips`
//! and `amx` (matrix units), `workspace` (scratch), `column_sums` (gradients of biases).
#![allow(unsafe_code)]

mod ahead;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod column_sums;
mod matrix;
mod pack;
mod packed;
mod prepacked;
mod prepacked_order;
mod prepacked_panels;
mod simd;
mod skinny;
mod spread;
mod stream;
mod tile;
mod units;
mod units_neighbours;
mod units_pack;
mod units_rows;
mod units_strips;
mod workspace;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use column_sums::add_column_sums;
pub use matrix::{Matrix, MatrixMut};
pub use prepacked::{Part, Prepacked, Stored, gemm_prepacked, prepack, prepacked_len};

use super::Float;
use super::isa::{self, Level};
use half::bf16;
use pack::Strip;
use simd::{Lanes, Rounded, Storage, Vector};
use std::any::TypeId;
use tile::{Problem, Product};
use units::Bf16Bits;

/// Whether a product replaces C or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// C = A B
    Assign,
    /// C += A B
    Add,
}

/// C = A B + bias or C += A B + bias: `a[M,K]`, `b[K,N]`, `c[M,N]`, `bias[N]`.
///
/// # Panics
/// When the shapes do not fit: the `ops` floor has checked them.
pub fn gemm<T: Float>(
    a: Matrix<T>,
    b: Matrix<T>,
    c: MatrixMut<T>,
    accumulate: Accumulate,
    bias: Option<&[T]>,
) {
    gemm_at(isa::level(), a, b, c, accumulate, bias);
}

/// The right operand of [`gemm_bf16`]: stored in bfloat16, or in f32 and rounded to bfloat16 (nearest even) when read.
#[derive(Clone, Copy, Debug)]
pub enum Bf16Operand<'a> {
    /// Stored numbers.
    Stored(Matrix<'a, bf16>),
    /// Numbers that are rounded on the way in.
    Rounded(Matrix<'a, f32>),
}

/// [`gemm`] of bfloat16 numbers; products are exact and accumulate in f32. `a` is rounded as it is read.
///
/// # Panics
/// When the shapes do not fit: the `ops` floor has checked them.
pub fn gemm_bf16(
    a: Matrix<f32>,
    b: Bf16Operand,
    c: MatrixMut<f32>,
    accumulate: Accumulate,
    bias: Option<&[f32]>,
) {
    gemm_bf16_at(isa::level(), a, b, c, accumulate, bias);
}

fn gemm_at<T: Float>(
    level: Level,
    a: Matrix<T>,
    b: Matrix<T>,
    c: MatrixMut<T>,
    accumulate: Accumulate,
    bias: Option<&[T]>,
) {
    let strip = lanes(a);
    let Some(problem) =
        checked((a.rows(), a.cols()), (lanes(b.transposed()), b.rows(), b.cols()), c, accumulate, bias)
    else {
        return;
    };
    if TypeId::of::<T>() == TypeId::of::<f32>() {
        // SAFETY: T is f32, so this changes no type; pointers and sizes were checked just now.
        unsafe {
            run_f32(level, &*(&raw const problem).cast::<Problem<f32, f32>>(), retyped::<T, f32>(strip))
        }
    } else {
        assert!(TypeId::of::<T>() == TypeId::of::<f64>(), "matrix products exist for f32 and f64");
        // SAFETY: T is f64, so this changes no type; pointers and sizes were checked just now.
        unsafe {
            run_f64(level, &*(&raw const problem).cast::<Problem<f64, f64>>(), retyped::<T, f64>(strip))
        }
    }
}

fn gemm_bf16_at(
    level: Level,
    a: Matrix<f32>,
    b: Bf16Operand,
    c: MatrixMut<f32>,
    accumulate: Accumulate,
    bias: Option<&[f32]>,
) {
    fn go<B: StorageF32 + Bf16Bits>(level: Level, a: Strip<Rounded>, problem: Option<Problem<f32, B>>) {
        let Some(problem) = problem else { return };
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if level == Level::Avx512 && amx::available() {
            // SAFETY: pointers and sizes were checked when the problem was made; the CPU has AVX-512 and AMX.
            return unsafe { units::run::<x86::F32x16, amx::Amx, Rounded, B>(&problem, a) };
        }
        // SAFETY: pointers and sizes were checked when the problem was made.
        unsafe { run_f32(level, &problem, a) }
    }
    let strip = retyped(lanes(a));
    let shape = (a.rows(), a.cols());
    match b {
        Bf16Operand::Stored(b) => {
            let b = (lanes(b.transposed()), b.rows(), b.cols());
            go(level, strip, checked(shape, b, c, accumulate, bias));
        }
        Bf16Operand::Rounded(b) => {
            let b = (retyped::<f32, Rounded>(lanes(b.transposed())), b.rows(), b.cols());
            go(level, strip, checked(shape, b, c, accumulate, bias));
        }
    }
}

/// The same strip under another type of the same layout: f32 as [`Rounded`], or a generic float as what it is.
fn retyped<S, T>(strip: Strip<S>) -> Strip<T> {
    let Strip { start, lanes, lane_stride, k_stride } = strip;
    Strip { start: start.cast(), lanes, lane_stride, k_stride }
}

/// The rows of a matrix as lanes.
fn lanes<T>(m: Matrix<T>) -> Strip<T> {
    let (start, lane_stride, k_stride) = m.parts();
    Strip { start, lanes: m.rows(), lane_stride, k_stride }
}

/// Checks that the shapes fit and does what needs no product; `None` when nothing is left to do.
fn checked<T: Float, O>(
    (rows, depth): (usize, usize),
    (b, b_depth, cols): (O, usize, usize),
    mut c: MatrixMut<T>,
    accumulate: Accumulate,
    bias: Option<&[T]>,
) -> Option<Product<T, O>> {
    assert!(
        depth == b_depth
            && (c.rows(), c.cols()) == (rows, cols)
            && bias.is_none_or(|bias| bias.len() == cols),
        "[{rows}, {depth}] x [{b_depth}, {cols}] with bias {:?} into [{}, {}]",
        bias.map(<[T]>::len),
        c.rows(),
        c.cols()
    );
    if rows == 0 || cols == 0 {
        return None;
    }
    if depth == 0 {
        c.each_row(|row| {
            if accumulate == Accumulate::Assign {
                row.fill(T::ZERO);
            }
            for (c, &bias) in row.iter_mut().zip(bias.unwrap_or_default()) {
                *c += bias;
            }
        });
        return None;
    }
    let (c, c_stride) = c.parts();
    let bias = bias.map_or(std::ptr::null(), <[T]>::as_ptr);
    Some(Product { rows, cols, depth, b, c, c_stride, add: accumulate == Accumulate::Add, bias })
}

/// What vectors of f32 can read at every level.
#[cfg(target_arch = "x86_64")]
trait StorageF32: Storage<Lanes<f32>> + Storage<x86::F32x8> + Storage<x86::F32x16> {}
#[cfg(target_arch = "x86_64")]
impl<S: Storage<Lanes<f32>> + Storage<x86::F32x8> + Storage<x86::F32x16>> StorageF32 for S {}
#[cfg(not(target_arch = "x86_64"))]
trait StorageF32: Storage<Lanes<f32>> {}
#[cfg(not(target_arch = "x86_64"))]
impl<S: Storage<Lanes<f32>>> StorageF32 for S {}

/// # Safety
/// The problem's pointers are valid for its sizes; `level` is one that this CPU has.
unsafe fn run_f32<A: StorageF32, B: StorageF32>(level: Level, problem: &Problem<f32, B>, a: Strip<A>) {
    // SAFETY: passed on to the caller.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => run::<x86::F32x16, A, B, 8, 3>(problem, a),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => run::<x86::F32x8, A, B, 6, 2>(problem, a),
            _ => run::<Lanes<f32>, A, B, 6, 1>(problem, a),
        }
    }
}

/// # Safety
/// As [`run_f32`].
unsafe fn run_f64(level: Level, problem: &Problem<f64, f64>, a: Strip<f64>) {
    // SAFETY: passed on to the caller.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => run::<x86::F64x8, f64, f64, 12, 2>(problem, a),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => run::<x86::F64x4, f64, f64, 6, 2>(problem, a),
            _ => run::<Lanes<f64>, f64, f64, 6, 1>(problem, a),
        }
    }
}

/// Few rows or many; both keep the order contract.
unsafe fn run<V, A, B, const M: usize, const N: usize>(problem: &Problem<V::Element, B>, a: Strip<A>)
where
    V: Vector,
    A: Storage<V> + Storage<V::Block>,
    B: Storage<V> + Storage<V::Block>,
{
    // Without vectors the special kernels for few rows would only be a second slow path (with the same bits).
    let unit = problem.b.lane_stride == 1 || problem.b.k_stride == 1;
    // SAFETY: passed on to the caller.
    unsafe {
        if V::HARDWARE && problem.rows <= skinny::ROWS && unit {
            skinny::run::<V, A, B>(problem, a);
        } else {
            packed::run::<V, A, B, M, N>(problem, a);
        }
    }
}

#[cfg(test)]
mod tests;
