//! The order in which a matrix is stored for products of few rows (`prepacked`), and how it is brought into it.
//!
//! ```text
//! vectors      [panel][k][columns of a panel]                     a panel is two vectors wide
//! matrix unit  [panel][k tile][2][16 pairs][16 columns][2]        a panel is a strip, as `units_pack` packs
//! ```
//! Missing columns of the last panel, and missing terms of the last tile, are zeros.
#![allow(unsafe_code)]

use super::pack::{Strip, pack};
use super::prepacked::{Panels, Stored};
use super::prepacked_panels::multiply;
use super::simd::{Body, Rounded, Storage, Vector};
use super::tile::Product;
use super::units::{DEPTH, SIDE};
use super::{StorageF32, retyped};
use crate::base::pages::CACHE_LINE;
use crate::cpu::Float;
use crate::cpu::isa::Level;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// Vectors across a panel.
pub(super) const WIDE: usize = 2;

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    reader: Reader,
    /// Columns of a panel.
    width: usize,
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Vectors of a level.
    Vectors(Level),
    /// The matrix unit.
    Unit,
}

impl Order {
    /// The order of numbers of a type in a process of this level; `None` without vectors.
    pub(super) fn of<T: Stored>(level: Level) -> Option<Order> {
        if T::UNIT && level == Level::Avx512 && unit_available() {
            return Some(Order { reader: Reader::Unit, width: 2 * SIDE });
        }
        Order::of_vectors::<T>(level)
    }

    /// The order for vectors of a level.
    pub(super) fn of_vectors<T: Stored>(level: Level) -> Option<Order> {
        let bytes = match level {
            Level::Portable => return None,
            Level::Avx2 => 32,
            Level::Avx512 => 64,
        };
        Some(Order { reader: Reader::Vectors(level), width: WIDE * bytes / size_of::<T::Sum>() })
    }

    /// Columns of a panel.
    pub(super) fn width(self) -> usize {
        self.width
    }

    /// Numbers of a panel.
    pub(super) fn panel_len(self, depth: usize) -> usize {
        match self.reader {
            Reader::Vectors(_) => depth * self.width,
            Reader::Unit => depth.next_multiple_of(DEPTH) * self.width,
        }
    }

    /// Numbers of a matrix, wherever their memory begins.
    pub(super) fn room<T>(self, depth: usize, cols: usize) -> usize {
        cols.div_ceil(self.width) * self.panel_len(depth) + CACHE_LINE / size_of::<T>()
    }

    /// Where in `numbers` the panels of a matrix lie: from the first number on that begins a line.
    ///
    /// # Panics
    /// When there are fewer than [`Order::room`].
    pub(super) fn panels_in<T>(self, numbers: &[T], depth: usize, cols: usize) -> Range<usize> {
        let room = self.room::<T>(depth, cols);
        assert!(numbers.len() >= room, "{} numbers for {room} in reading order", numbers.len());
        // Numbers lie at multiples of their size.
        let first = (CACHE_LINE - numbers.as_ptr() as usize % CACHE_LINE) % CACHE_LINE / size_of::<T>();
        first..first + cols.div_ceil(self.width) * self.panel_len(depth)
    }
}

fn unit_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return super::amx::available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// A place that tasks share.
pub(super) struct Place<T>(pub *mut T);
// SAFETY: tasks write different panels.
unsafe impl<T: Send> Sync for Place<T> {}

impl<T> Place<T> {
    pub fn get(&self) -> *mut T {
        self.0
    }
}

/// What a stored type does in its orders; `S` is what its products are summed in.
pub trait Sealed<S>: Sized {
    /// Whether a matrix unit multiplies it, where there is one.
    const UNIT: bool;
    /// Writes panels `which` of `b` to their places from `to` on.
    ///
    /// # Safety
    /// `b`'s lanes are the matrix's columns, readable for `depth` (at least 1), `which` are among its panels, and `to` is
    /// writable for all of them; the CPU has what the order is for.
    unsafe fn write(order: Order, b: Strip<Self>, depth: usize, which: Range<usize>, to: *mut Self);
    /// Computes all problems, of one A.
    ///
    /// # Safety
    /// The problems' pointers are valid for their sizes, all have A's rows and depth, and B in this order; the CPU has
    /// what it is for.
    unsafe fn multiply(order: Order, problems: &[Product<S, Panels<Self>>], a: Strip<S>);
}

/// Writes some panels of a matrix for vectors.
struct Write<V: Vector, T> {
    b: Strip<T>,
    depth: usize,
    which: Range<usize>,
    to: *mut T,
    vector: PhantomData<V>,
}

impl<V: Vector<Element = T>, T: Float + Storage<V> + Storage<V::Block>> Body for Write<V, T> {
    #[inline(always)]
    unsafe fn run(self) {
        let width = WIDE * V::LANES;
        let (first, len) = (self.which.start * width, self.depth * width);
        let lanes = (self.which.len() * width).min(self.b.lanes - first);
        // SAFETY: the panels are inside the strip and have their places; a panel is whole vectors, so that no store runs
        // over its end.
        unsafe {
            let strip = Strip { lanes, ..self.b.at(first, 0) };
            pack::<V, T>(strip, width, self.depth, self.to.add(self.which.start * len), len);
        }
    }
}

macro_rules! float {
    ($type:ty, $avx512:ident, $avx2:ident, $multiply:expr) => {
        impl Sealed<$type> for $type {
            const UNIT: bool = false;
            unsafe fn write(order: Order, b: Strip<Self>, depth: usize, which: Range<usize>, to: *mut Self) {
                // SAFETY: passed on to the caller.
                unsafe {
                    match order.reader {
                        #[cfg(target_arch = "x86_64")]
                        Reader::Vectors(Level::Avx512) => {
                            use super::x86::$avx512 as V;
                            V::enter(Write::<V, $type> { b, depth, which, to, vector: PhantomData })
                        }
                        #[cfg(target_arch = "x86_64")]
                        Reader::Vectors(Level::Avx2) => {
                            use super::x86::$avx2 as V;
                            V::enter(Write::<V, $type> { b, depth, which, to, vector: PhantomData })
                        }
                        _ => unreachable!("numbers in {order:?}"),
                    }
                }
            }
            unsafe fn multiply(order: Order, problems: &[Product<$type, Panels<Self>>], a: Strip<$type>) {
                // SAFETY: passed on to the caller.
                unsafe { $multiply(order, problems, a) }
            }
        }
    };
}

float!(f32, F32x16, F32x8, multiply_f32);
float!(f64, F64x8, F64x4, multiply_f64);

impl Sealed<f32> for bf16 {
    const UNIT: bool = true;
    unsafe fn write(order: Order, b: Strip<Self>, depth: usize, which: Range<usize>, to: *mut Self) {
        let (width, len) = (order.width(), order.panel_len(depth));
        for panel in which {
            // SAFETY: the panel is inside the strip and has its place.
            unsafe {
                let (strip, to) = (b.at(panel * width, 0), to.add(panel * len));
                let strip = Strip { lanes: strip.lanes.min(width), ..strip };
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                if order.reader == Reader::Unit {
                    super::units_strips::write::<super::x86::F32x16, super::amx::Amx>(
                        strip,
                        depth,
                        to.cast(),
                    );
                    continue;
                }
                write_bf16(strip, width, depth, to);
            }
        }
    }
    unsafe fn multiply(order: Order, problems: &[Product<f32, Panels<Self>>], a: Strip<f32>) {
        let a = retyped::<f32, Rounded>(a);
        // SAFETY: passed on to the caller.
        unsafe {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            if order.reader == Reader::Unit {
                return super::units_strips::run::<super::x86::F32x16, super::amx::Amx, _>(problems, a);
            }
            multiply_f32(order, problems, a)
        }
    }
}

/// Writes a panel for vectors: bits alone move.
///
/// # Safety
/// The strip, of at most `width` lanes, is readable for `depth`, and `to` is writable for `depth` times `width`, a multiple
/// of 8.
unsafe fn write_bf16(strip: Strip<bf16>, width: usize, depth: usize, to: *mut bf16) {
    let mut done = 0;
    // SAFETY: lanes below the strip's and terms below `depth` exist, and the panel has `width` numbers for every term.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if strip.k_stride == 1 && strip.lanes == width {
            use super::x86::{SQUARE, transpose_square};
            done = depth - depth % SQUARE;
            for k in (0..done).step_by(SQUARE) {
                for lane in (0..width).step_by(SQUARE) {
                    let (from, to) = (strip.at(lane, k).start, to.add(k * width + lane));
                    transpose_square(from.cast(), strip.lane_stride, to.cast(), width);
                }
            }
        }
        for k in done..depth {
            let to = to.add(k * width);
            if strip.lane_stride == 1 {
                std::ptr::copy_nonoverlapping(strip.at(0, k).start, to, strip.lanes);
            } else {
                for lane in 0..strip.lanes {
                    to.add(lane).write(*strip.at(lane, k).start);
                }
            }
            for lane in strip.lanes..width {
                to.add(lane).write(bf16::ZERO);
            }
        }
    }
}

/// # Safety
/// As [`Sealed::multiply`].
unsafe fn multiply_f32<A: StorageF32, B: StorageF32>(
    order: Order,
    problems: &[Product<f32, Panels<B>>],
    a: Strip<A>,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        match order.reader {
            #[cfg(target_arch = "x86_64")]
            Reader::Vectors(Level::Avx512) => multiply::<super::x86::F32x16, A, B, 8>(problems, a),
            #[cfg(target_arch = "x86_64")]
            Reader::Vectors(Level::Avx2) => multiply::<super::x86::F32x8, A, B, 6>(problems, a),
            _ => unreachable!("numbers in {order:?}"),
        }
    }
}

/// # Safety
/// As [`Sealed::multiply`].
unsafe fn multiply_f64(order: Order, problems: &[Product<f64, Panels<f64>>], a: Strip<f64>) {
    // SAFETY: passed on to the caller.
    unsafe {
        match order.reader {
            #[cfg(target_arch = "x86_64")]
            Reader::Vectors(Level::Avx512) => multiply::<super::x86::F64x8, f64, f64, 8>(problems, a),
            #[cfg(target_arch = "x86_64")]
            Reader::Vectors(Level::Avx2) => multiply::<super::x86::F64x4, f64, f64, 6>(problems, a),
            _ => unreachable!("numbers in {order:?}"),
        }
    }
}
