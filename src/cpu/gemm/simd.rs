//! Vectors of one level each behind one trait, so that one kernel body serves AVX-512, AVX2 and plain arrays.
//!
//! Every operation is element by element and correctly rounded, so all implementations give the same bits.
#![allow(unsafe_code)]

use crate::cpu::Float;
use half::bf16;

/// Work that is compiled for a vector type's instructions. Not a closure: only a function marked
/// `#[inline(always)]` is sure to land inside [`Vector::enter`], and instructions reach only what does.
pub(super) trait Body {
    /// Implementations are marked `#[inline(always)]`, as is everything they call.
    ///
    /// # Safety
    /// The CPU has the instructions of the vector type that the body uses.
    unsafe fn run(self);
}

/// A register of neighbouring numbers.
///
/// # Safety
/// Every method may run only where the CPU has the type's instructions; pointers must be valid for `LANES`
/// elements (no alignment needed). [`Vector::enter`] compiles a body for those instructions.
pub(super) trait Vector: Copy + 'static {
    type Element: Float;
    /// The vector that square blocks are transposed with; at most eight lanes.
    type Block: Vector<Element = Self::Element>;
    const LANES: usize;
    /// Whether instructions of the machine stand behind it.
    const HARDWARE: bool;

    unsafe fn enter(body: impl Body);
    unsafe fn splat(value: Self::Element) -> Self;
    unsafe fn load(from: *const Self::Element) -> Self;
    unsafe fn store(self, to: *mut Self::Element);
    /// `self * a + b`, rounded once.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// Transposes the first `LANES` vectors as a square.
    unsafe fn transpose(block: &mut [Self; 8]);
    /// A square transposed: element (i, j) of `LANES` rows `stride` apart becomes lane i of vector j.
    #[inline(always)]
    unsafe fn load_columns(from: *const Self::Element, stride: usize) -> [Self; 8] {
        // SAFETY: the caller promises `LANES` elements of `LANES` rows.
        unsafe {
            let mut block = [Self::splat(Self::Element::default()); 8];
            for (i, row) in block.iter_mut().enumerate().take(Self::LANES) {
                *row = Self::load(from.add(i * stride));
            }
            Self::transpose(&mut block);
            block
        }
    }
    /// Asks for the cache line at `at`, which need not be valid memory.
    unsafe fn prefetch<T>(at: *const T);
    /// The same into the second level: for many lines that share a set of the first.
    unsafe fn prefetch_far<T>(at: *const T);
    /// Asks for the cache line at `at` to be written: no other core keeps it. It need not be valid memory.
    unsafe fn prefetch_write<T>(at: *const T);
}

/// f32 vectors also read bfloat16.
pub(super) trait VectorF32: Vector<Element = f32> {
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn load_rounded(from: *const f32) -> Self;
}

/// What an operand is stored as, and how a vector of `V` reads it.
///
/// # Safety
/// `load` as in [`Vector`].
pub(super) trait Storage<V: Vector>: Copy + Send + Sync + 'static {
    /// Whether it is `V::Element` itself.
    const PLAIN: bool;
    unsafe fn load(from: *const Self) -> V;
    /// As [`Vector::load_columns`].
    #[inline(always)]
    unsafe fn load_columns(from: *const Self, stride: usize) -> [V; 8] {
        // SAFETY: the caller promises `LANES` elements of `LANES` rows.
        unsafe {
            let mut block = [V::splat(V::Element::default()); 8];
            for (i, row) in block.iter_mut().enumerate().take(V::LANES) {
                *row = Self::load(from.add(i * stride));
            }
            V::transpose(&mut block);
            block
        }
    }
    fn widen(self) -> V::Element;
}

/// An f32 that takes part in the product rounded to bfloat16 (nearest even).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Rounded(pub f32);

macro_rules! plain_storage {
    ($type:ty) => {
        impl<V: Vector<Element = $type>> Storage<V> for $type {
            const PLAIN: bool = true;
            #[inline(always)]
            unsafe fn load(from: *const Self) -> V {
                // SAFETY: passed on to the caller.
                unsafe { V::load(from) }
            }
            #[inline(always)]
            unsafe fn load_columns(from: *const Self, stride: usize) -> [V; 8] {
                // SAFETY: passed on to the caller.
                unsafe { V::load_columns(from, stride) }
            }
            #[inline(always)]
            fn widen(self) -> $type {
                self
            }
        }
    };
}

plain_storage!(f32);
plain_storage!(f64);

impl<V: VectorF32> Storage<V> for bf16 {
    const PLAIN: bool = false;
    #[inline(always)]
    unsafe fn load(from: *const Self) -> V {
        // SAFETY: passed on to the caller.
        unsafe { V::load_bf16(from) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl<V: VectorF32> Storage<V> for Rounded {
    const PLAIN: bool = false;
    #[inline(always)]
    unsafe fn load(from: *const Self) -> V {
        // SAFETY: passed on to the caller; Rounded is a transparent f32.
        unsafe { V::load_rounded(from.cast()) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        round_bf16(self.0)
    }
}

/// The nearest bfloat16 (ties to even) as an f32; NaN stays NaN.
#[inline(always)]
pub(super) fn round_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    // Rounding could carry a NaN's payload into the sign: keep its upper half and make it quiet.
    f32::from_bits(if value.is_nan() { (bits & 0xffff_0000) | 0x0040_0000 } else { rounded })
}

/// Plain arrays: the meaning of every other implementation, and the level of CPUs without one.
#[derive(Clone, Copy)]
pub(super) struct Lanes<T>([T; 8]);

impl<T: Float> Vector for Lanes<T> {
    type Element = T;
    type Block = Self;
    const LANES: usize = 8;
    const HARDWARE: bool = false;

    #[inline(always)]
    unsafe fn enter(body: impl Body) {
        // SAFETY: passed on to the caller.
        unsafe { body.run() }
    }
    #[inline(always)]
    unsafe fn splat(value: T) -> Self {
        Lanes([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller's pointer is valid for eight elements.
        Lanes(unsafe { from.cast::<[T; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<[T; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        Lanes(std::array::from_fn(|i| self.0[i].mul_add(a.0[i], b.0[i])))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Lanes(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; 8]) {
        *block = std::array::from_fn(|i| Lanes(std::array::from_fn(|j| block[j].0[i])));
    }
    #[inline(always)]
    unsafe fn prefetch<P>(_at: *const P) {}
    #[inline(always)]
    unsafe fn prefetch_far<P>(_at: *const P) {}
    #[inline(always)]
    unsafe fn prefetch_write<P>(_at: *const P) {}
}

impl VectorF32 for Lanes<f32> {
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's pointer is valid for eight elements.
        let values = unsafe { from.cast::<[bf16; 8]>().read_unaligned() };
        Lanes(values.map(|v| f32::from_bits(u32::from(v.to_bits()) << 16)))
    }
    #[inline(always)]
    unsafe fn load_rounded(from: *const f32) -> Self {
        // SAFETY: as for `load_bf16`.
        Lanes(unsafe { Self::load(from) }.0.map(round_bf16))
    }
}
