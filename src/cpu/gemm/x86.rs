//! AVX2 and AVX-512 vectors. All arithmetic is the hardware's correctly rounded fused multiply-add and add.
#![allow(unsafe_code)]

use super::simd::{Body, Vector, VectorF32};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

/// Eight f32 in an AVX2 register.
#[derive(Clone, Copy)]
pub(super) struct F32x8(__m256);
/// Four f64 in an AVX2 register.
#[derive(Clone, Copy)]
pub(super) struct F64x4(__m256d);
/// Sixteen f32 in an AVX-512 register.
#[derive(Clone, Copy)]
pub(super) struct F32x16(__m512);
/// Eight f64 in an AVX-512 register.
#[derive(Clone, Copy)]
pub(super) struct F64x8(__m512d);

#[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c,lzcnt,popcnt")]
fn with_avx2(body: impl Body) {
    // SAFETY: this function has the instructions that its vectors promise.
    unsafe { body.run() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,f16c,lzcnt,popcnt")]
fn with_avx512(body: impl Body) {
    // SAFETY: this function has the instructions that its vectors promise.
    unsafe { body.run() }
}

macro_rules! vector {
    ($name:ident, $element:ty, $lanes:literal, $block:ty, $enter:ident, $splat:ident, $load:ident, $store:ident,
     $fma:ident, $add:ident, $transpose:expr, $columns:expr) => {
        // SAFETY (every method): the instruction set is the trait's promise, kept by the caller; loads and
        // stores are unaligned and touch the `LANES` elements that the caller promises.
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl Vector for $name {
            type Element = $element;
            type Block = $block;
            const LANES: usize = $lanes;
            const HARDWARE: bool = true;

            #[inline(always)]
            unsafe fn enter(body: impl Body) {
                unsafe { $enter(body) }
            }
            #[inline(always)]
            unsafe fn splat(value: $element) -> Self {
                $name(unsafe { $splat(value) })
            }
            #[inline(always)]
            unsafe fn load(from: *const $element) -> Self {
                $name(unsafe { $load(from) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $element) {
                unsafe { $store(to, self.0) }
            }
            #[inline(always)]
            unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                $name(unsafe { $fma(self.0, a.0, b.0) })
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                $name(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn transpose(block: &mut [Self; 8]) {
                unsafe { $transpose(block) }
            }
            #[inline(always)]
            unsafe fn load_columns(from: *const $element, stride: usize) -> [Self; 8] {
                unsafe { $columns(from, stride) }
            }
            #[inline(always)]
            unsafe fn prefetch<T>(at: *const T) {
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }
            #[inline(always)]
            unsafe fn prefetch_far<T>(at: *const T) {
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
            }
            #[inline(always)]
            unsafe fn prefetch_write<T>(at: *const T) {
                // A CPU without the instruction takes it for no operation.
                unsafe { asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
            }
        }
    };
}

vector!(
    F32x8,
    f32,
    8,
    F32x8,
    with_avx2,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    transpose_f32x8,
    columns_f32x8
);
vector!(
    F64x4,
    f64,
    4,
    F64x4,
    with_avx2,
    _mm256_set1_pd,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_fmadd_pd,
    _mm256_add_pd,
    transpose_f64x4,
    columns_f64x4
);
// Blocks are transposed with AVX2 registers at this level too: `Block` is never the 512-bit type.
vector!(
    F32x16,
    f32,
    16,
    F32x8,
    with_avx512,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    no_transpose,
    no_columns
);
vector!(
    F64x8,
    f64,
    8,
    F64x4,
    with_avx512,
    _mm512_set1_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_fmadd_pd,
    _mm512_add_pd,
    no_transpose,
    no_columns
);

/// Of the 512-bit types, which are never the `Block`.
unsafe fn no_transpose<V>(_: &mut [V; 8]) {
    unreachable!("blocks are transposed with 256-bit vectors")
}

/// As [`no_transpose`].
unsafe fn no_columns<T, V>(_: *const T, _: usize) -> [V; 8] {
    unreachable!("blocks are transposed with 256-bit vectors")
}

/// 8x8: pairs, quads, halves.
#[inline(always)]
unsafe fn transpose_f32x8(block: &mut [F32x8; 8]) {
    // SAFETY: the caller runs on a CPU with AVX2; only registers are touched.
    unsafe {
        let r =
            [block[0].0, block[1].0, block[2].0, block[3].0, block[4].0, block[5].0, block[6].0, block[7].0];
        let pairs = [
            _mm256_unpacklo_ps(r[0], r[1]),
            _mm256_unpackhi_ps(r[0], r[1]),
            _mm256_unpacklo_ps(r[2], r[3]),
            _mm256_unpackhi_ps(r[2], r[3]),
            _mm256_unpacklo_ps(r[4], r[5]),
            _mm256_unpackhi_ps(r[4], r[5]),
            _mm256_unpacklo_ps(r[6], r[7]),
            _mm256_unpackhi_ps(r[6], r[7]),
        ];
        let upper = [
            _mm256_shuffle_ps::<0x44>(pairs[0], pairs[2]),
            _mm256_shuffle_ps::<0xee>(pairs[0], pairs[2]),
            _mm256_shuffle_ps::<0x44>(pairs[1], pairs[3]),
            _mm256_shuffle_ps::<0xee>(pairs[1], pairs[3]),
        ];
        let lower = [
            _mm256_shuffle_ps::<0x44>(pairs[4], pairs[6]),
            _mm256_shuffle_ps::<0xee>(pairs[4], pairs[6]),
            _mm256_shuffle_ps::<0x44>(pairs[5], pairs[7]),
            _mm256_shuffle_ps::<0xee>(pairs[5], pairs[7]),
        ];
        for i in 0..4 {
            block[i] = F32x8(_mm256_permute2f128_ps::<0x20>(upper[i], lower[i]));
            block[i + 4] = F32x8(_mm256_permute2f128_ps::<0x31>(upper[i], lower[i]));
        }
    }
}

/// 8x8 from memory: rows i and i + 4 share a register from the start, which leaves the halves where they belong.
#[inline(always)]
unsafe fn columns_f32x8(from: *const f32, stride: usize) -> [F32x8; 8] {
    // SAFETY: the caller promises eight elements of eight rows, and AVX2.
    unsafe {
        let [a, b, c, d] = four_columns(from, stride);
        let [e, f, g, h] = four_columns(from.add(4), stride);
        [a, b, c, d, e, f, g, h]
    }
}

/// The first four columns of eight rows. (Functions, as closures in here are not sure to be inlined.)
#[inline(always)]
unsafe fn four_columns(from: *const f32, stride: usize) -> [F32x8; 4] {
    // SAFETY: the caller promises four elements of eight rows, and AVX2.
    unsafe {
        let r = [
            two_rows(from, stride),
            two_rows(from.add(stride), stride),
            two_rows(from.add(2 * stride), stride),
            two_rows(from.add(3 * stride), stride),
        ];
        let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
        let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
        [
            F32x8(_mm256_shuffle_ps::<0x44>(a, c)),
            F32x8(_mm256_shuffle_ps::<0xee>(a, c)),
            F32x8(_mm256_shuffle_ps::<0x44>(b, d)),
            F32x8(_mm256_shuffle_ps::<0xee>(b, d)),
        ]
    }
}

/// Four elements of a row beside four of the row four rows on.
#[inline(always)]
unsafe fn two_rows(from: *const f32, stride: usize) -> __m256 {
    // SAFETY: the caller promises four elements of both rows, and AVX2.
    unsafe {
        let low = _mm256_castps128_ps256(_mm_loadu_ps(from));
        _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from.add(4 * stride)))
    }
}

/// 4x4 from memory, in the first four places.
#[inline(always)]
unsafe fn columns_f64x4(from: *const f64, stride: usize) -> [F64x4; 8] {
    // SAFETY: the caller promises four elements of four rows, and AVX2.
    unsafe {
        let mut block = [F64x4(_mm256_setzero_pd()); 8];
        for (i, row) in block.iter_mut().enumerate().take(4) {
            *row = F64x4(_mm256_loadu_pd(from.add(i * stride)));
        }
        transpose_f64x4(&mut block);
        block
    }
}

/// 4x4 in the first four places.
#[inline(always)]
unsafe fn transpose_f64x4(block: &mut [F64x4; 8]) {
    // SAFETY: the caller runs on a CPU with AVX2; only registers are touched.
    unsafe {
        let r = [block[0].0, block[1].0, block[2].0, block[3].0];
        let (a, b) = (_mm256_unpacklo_pd(r[0], r[1]), _mm256_unpackhi_pd(r[0], r[1]));
        let (c, d) = (_mm256_unpacklo_pd(r[2], r[3]), _mm256_unpackhi_pd(r[2], r[3]));
        block[0] = F64x4(_mm256_permute2f128_pd::<0x20>(a, c));
        block[1] = F64x4(_mm256_permute2f128_pd::<0x20>(b, d));
        block[2] = F64x4(_mm256_permute2f128_pd::<0x31>(a, c));
        block[3] = F64x4(_mm256_permute2f128_pd::<0x31>(b, d));
    }
}

impl VectorF32 for F32x8 {
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: eight readable elements and AVX2, both promised by the caller.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            F32x8(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn load_rounded(from: *const f32) -> Self {
        // SAFETY: eight readable elements and AVX2, both promised by the caller.
        unsafe {
            let value = _mm256_loadu_ps(from);
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let carried = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            let chosen = _mm256_blendv_epi8(carried, quiet, nan);
            F32x8(_mm256_castsi256_ps(_mm256_and_si256(chosen, _mm256_set1_epi32(0xffff_0000_u32 as i32))))
        }
    }
}

impl VectorF32 for F32x16 {
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: sixteen readable elements and AVX-512, both promised by the caller.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            F32x16(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn load_rounded(from: *const f32) -> Self {
        // SAFETY: sixteen readable elements and AVX-512, both promised by the caller.
        unsafe {
            let (low, high) = (F32x8::load_rounded(from), F32x8::load_rounded(from.add(8)));
            let low = _mm512_castpd256_pd512(_mm256_castps_pd(low.0));
            F32x16(_mm512_castpd_ps(_mm512_insertf64x4::<1>(low, _mm256_castps_pd(high.0))))
        }
    }
}

/// Rows and columns of [`transpose_square`].
pub(super) const SQUARE: usize = 8;

/// Writes the transpose of 8 x 8 numbers of 16 bits: rows of `from` are `stride` apart, those of `to` `width`. Every x86-64
/// CPU has the instructions.
///
/// # Safety
/// 8 rows of 8 numbers are readable and writable there; no alignment is needed.
#[inline(always)]
pub(super) unsafe fn transpose_square(from: *const u16, stride: usize, to: *mut u16, width: usize) {
    // SAFETY: each access is of one of the rows that the caller promises.
    unsafe {
        let row = |i: usize| _mm_loadu_si128(from.add(i * stride).cast());
        // Rows 4 apart are interleaved, three times: pairs, fours, eights.
        let mut rows: [__m128i; SQUARE] = std::array::from_fn(row);
        for _ in 0..3 {
            let old = rows;
            for i in 0..SQUARE / 2 {
                rows[2 * i] = _mm_unpacklo_epi16(old[i], old[i + 4]);
                rows[2 * i + 1] = _mm_unpackhi_epi16(old[i], old[i + 4]);
            }
        }
        for (i, row) in rows.into_iter().enumerate() {
            _mm_storeu_si128(to.add(i * width).cast(), row);
        }
    }
}
