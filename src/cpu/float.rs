//! The element types that CPU kernels compute in: f32 for work, f64 for gradient checks.
//!
//! `exp` of f32 is our own polynomial, so that it vectorises, and so that a vector's tail gives the same bits
//! as its body. f64 uses the standard library: it is an oracle, not a fast path.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// A floating-point type that kernels compute in.
pub trait Float:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + bytemuck::Pod
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Minus infinity: the maximum of nothing.
    const NEG_INFINITY: Self;

    /// Nearest value.
    fn from_f64(value: f64) -> Self;
    /// Exact value.
    fn to_f64(self) -> f64;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// e^self. In f32 within 2 ulp; exactly 0 below -103.97, infinity above 88.73, NaN for NaN.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Whether neither infinite nor NaN.
    fn is_finite(self) -> bool;

    /// The larger; `self` when `other` is NaN.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// 1 / (1 + e^-self).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

/// 1.5 * 2^23: adding it rounds an f32 of magnitude below 2^22 to an integer, left in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts: the first has trailing zeros, so that `n * LN2_HIGH` is exact for |n| < 256.
const LN2_HIGH: f32 = 0.693_359_375;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e^x by x = n ln 2 + r, |r| <= ln(2)/2; the Taylor polynomial of degree 7 leaves 6e-9 relative.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -104.0 { -104.0 } else { clamped };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, clamped);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = 1.984_127e-4_f32;
    p = p.mul_add(r, 1.388_888_9e-3);
    p = p.mul_add(r, 8.333_334e-3);
    p = p.mul_add(r, 4.166_666_8e-2);
    p = p.mul_add(r, 0.166_666_67);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    // Two factors, because 2^n itself may be outside f32 (n = 128, and the denormal end).
    let n = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let half = n >> 1;
    let first = f32::from_bits(((half + 127) << 23) as u32);
    let second = f32::from_bits(((n - half + 127) << 23) as u32);
    let value = p * first * second;
    let value = if x < -103.972_08 { 0.0 } else { value };
    if x.is_nan() { x } else { value }
}

macro_rules! float {
    ($type:ident, $exp:expr) => {
        impl Float for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $type::NEG_INFINITY;

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                $type::mul_add(self, a, b)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $type::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $type::ln(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $type::abs(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $type::is_finite(self)
            }
        }
    };
}

float!(f32, exp_f32);
float!(f64, f64::exp);

/// Lanes of the fixed-order sums below; sixteen f32 fill an AVX-512 register or two AVX2 registers.
pub const LANES: usize = 16;

/// Sums sixteen partial sums in a fixed tree: halves are added until one is left.
#[inline(always)]
pub fn sum_lanes<T: Float>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum over i of f(i), i in 0..count, in the fixed order of all our row reductions: term i goes to lane i % 16
/// in ascending order, and the lanes are added by [`sum_lanes`]. The order depends on `count` alone.
#[inline(always)]
pub fn sum_over<T: Float>(count: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let whole = count - count % LANES;
    let mut base = 0;
    while base < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(base + lane);
        }
        base += LANES;
    }
    for i in whole..count {
        lanes[i - whole] += f(i);
    }
    sum_lanes(lanes)
}

/// Sum over i of f([a[i], b[i], ..]), in the order of [`sum_over`]; all slices have the length of the first.
/// Without an index check an element, so that it becomes plain vector code.
#[inline(always)]
pub fn sum_slices<T: Float, const N: usize>(slices: [&[T]; N], f: impl Fn([T; N]) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let chunks = slices.map(|slice| slice.as_chunks::<LANES>());
    for index in 0..chunks[0].0.len() {
        let chunk: [&[T; LANES]; N] = std::array::from_fn(|n| &chunks[n].0[index]);
        for lane in 0..LANES {
            lanes[lane] += f(std::array::from_fn(|n| chunk[n][lane]));
        }
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(chunks[0].1.len()) {
        *sum += f(std::array::from_fn(|n| chunks[n].1[lane]));
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_f32_is_within_two_ulp_and_handles_the_ends() {
        let mut worst = 0.0_f64;
        for i in -103_000..=88_700 {
            let x = i as f32 * 1e-3;
            let (found, exact) = (f64::from(Float::exp(x)), f64::from(x).exp());
            if exact > f64::from(f32::MIN_POSITIVE) {
                worst = worst.max(((found - exact) / exact).abs());
            } else {
                assert!((found - exact).abs() <= 1.5e-45, "{x}: {found} {exact}");
            }
        }
        assert!(worst < 2.0 * 1.2e-7, "worst relative error {worst}");
        assert_eq!(Float::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Float::exp(f32::INFINITY), f32::INFINITY);
        assert!(Float::exp(f32::NAN).is_nan());
        assert_eq!(Float::exp(0.0_f32), 1.0);
    }

    #[test]
    fn sum_over_visits_each_term_once() {
        for count in [0, 1, 15, 16, 17, 33, 100] {
            assert_eq!(sum_over(count, |i| i as f64), (0..count).map(|i| i as f64).sum::<f64>());
            // Values whose sum depends on its order: both forms agree to the bit.
            let a: Vec<f32> = (0..count).map(|i| 1.0 / (i as f32 + 0.7)).collect();
            let b: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37 - 9.0) * 1.1).collect();
            assert_eq!(sum_slices([&a, &b], |[a, b]| a * b), sum_over(count, |i| a[i] * b[i]));
        }
    }
}
