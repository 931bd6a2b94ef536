//! Floating-point arithmetic in f32 and f64, with all rounding modes.
//!
//! Instructions whose name ends in `_mode` read their rounding, flushing and saturation from their operands' mode;
//! the others are the common case, to nearest without flushing.

use super::access::LANES;
use super::instruction::Bank;
use super::registers::{Lane, Operands, Registers, Run, Signature, lanes};
use super::rounding::{Rounding, finish, flush, odd, odd_sum, round_single, single};

lanes! {
    add_f32(a: f32, b: f32) -> f32 { a + b }
    sub_f32(a: f32, b: f32) -> f32 { a - b }
    mul_f32(a: f32, b: f32) -> f32 { a * b }
    div_f32(a: f32, b: f32) -> f32 { a / b }
    rcp_f32(a: f32) -> f32 { 1.0 / a }
    sqrt_f32(a: f32) -> f32 { a.sqrt() }
    add_f32_mode[mode](a: f32, b: f32) -> f32 { single(odd_sum(flush(a, mode).into(), flush(b, mode).into()), mode) }
    sub_f32_mode[mode](a: f32, b: f32) -> f32 { single(odd_sum(flush(a, mode).into(), (-flush(b, mode)).into()), mode) }
    mul_f32_mode[mode](a: f32, b: f32) -> f32 { single(f64::from(flush(a, mode)) * f64::from(flush(b, mode)), mode) }
    fma_f32_mode[mode](a: f32, b: f32, c: f32) -> f32 {
        let product = f64::from(flush(a, mode)) * f64::from(flush(b, mode));
        single(odd_sum(product, flush(c, mode).into()), mode)
    }
    // A quotient or a root of f32 numbers in f64 lies on an f32 number only if it is one, so rounding it again is right.
    div_f32_mode[mode](a: f32, b: f32) -> f32 { divide(flush(a, mode), flush(b, mode), mode) }
    rcp_f32_mode[mode](a: f32) -> f32 { divide(1.0, flush(a, mode), mode) }
    sqrt_f32_mode[mode](a: f32) -> f32 { root(flush(a, mode), mode) }

    neg_f32(a: f32) -> f32 { -a }
    neg_f32_mode[mode](a: f32) -> f32 { -flush(a, mode) }
    abs_f32(a: f32) -> f32 { a.abs() }
    abs_f32_mode[mode](a: f32) -> f32 { flush(a, mode).abs() }
    min_f32(a: f32, b: f32) -> f32 { smaller(a, b) }
    max_f32(a: f32, b: f32) -> f32 { -smaller(-a, -b) }
    min_f32_mode[mode](a: f32, b: f32) -> f32 { smaller(flush(a, mode), flush(b, mode)) }
    max_f32_mode[mode](a: f32, b: f32) -> f32 { -smaller(-flush(a, mode), -flush(b, mode)) }
    min_f32_nan[mode](a: f32, b: f32) -> f32 { if a.is_nan() || b.is_nan() { NAN } else { smaller(flush(a, mode), flush(b, mode)) } }
    max_f32_nan[mode](a: f32, b: f32) -> f32 { if a.is_nan() || b.is_nan() { NAN } else { -smaller(-flush(a, mode), -flush(b, mode)) } }
    copysign_f32(a: f32, b: f32) -> f32 { b.copysign(a) }
    finite_f32(a: f32) -> bool { a.is_finite() }
    infinite_f32(a: f32) -> bool { a.is_infinite() }
    number_f32(a: f32) -> bool { !a.is_nan() }
    notanumber_f32(a: f32) -> bool { a.is_nan() }
    normal_f32(a: f32) -> bool { a.is_normal() }
    subnormal_f32(a: f32) -> bool { a.is_subnormal() }

    add_f64(a: f64, b: f64) -> f64 { a + b }
    sub_f64(a: f64, b: f64) -> f64 { a - b }
    mul_f64(a: f64, b: f64) -> f64 { a * b }
    div_f64(a: f64, b: f64) -> f64 { a / b }
    rcp_f64(a: f64) -> f64 { 1.0 / a }
    sqrt_f64(a: f64) -> f64 { a.sqrt() }
    fma_f64(a: f64, b: f64, c: f64) -> f64 { a.mul_add(b, c) }
    add_f64_mode[mode](a: f64, b: f64) -> f64 { directed(a + b, sum_error(a, b), mode) }
    sub_f64_mode[mode](a: f64, b: f64) -> f64 { directed(a - b, sum_error(a, -b), mode) }
    mul_f64_mode[mode](a: f64, b: f64) -> f64 { directed(a * b, a.mul_add(b, -(a * b)), mode) }
    fma_f64_mode[mode](a: f64, b: f64, c: f64) -> f64 { directed(a.mul_add(b, c), fma_error(a, b, c), mode) }
    div_f64_mode[mode](a: f64, b: f64) -> f64 { let q = a / b; directed(q, (-q).mul_add(b, a) * b.signum(), mode) }
    rcp_f64_mode[mode](a: f64) -> f64 { let q = 1.0 / a; directed(q, (-q).mul_add(a, 1.0) * a.signum(), mode) }
    sqrt_f64_mode[mode](a: f64) -> f64 { let r = a.sqrt(); directed(r, (-r).mul_add(r, a), mode) }
    neg_f64(a: f64) -> f64 { -a }
    abs_f64(a: f64) -> f64 { a.abs() }
    min_f64(a: f64, b: f64) -> f64 { smaller64(a, b) }
    max_f64(a: f64, b: f64) -> f64 { -smaller64(-a, -b) }
    copysign_f64(a: f64, b: f64) -> f64 { b.copysign(a) }
    finite_f64(a: f64) -> bool { a.is_finite() }
    infinite_f64(a: f64) -> bool { a.is_infinite() }
    number_f64(a: f64) -> bool { !a.is_nan() }
    notanumber_f64(a: f64) -> bool { a.is_nan() }
    normal_f64(a: f64) -> bool { a.is_normal() }
    subnormal_f64(a: f64) -> bool { a.is_subnormal() }
}

/// The NaN that a device writes.
pub(super) const NAN: f32 = f32::from_bits(0x7fff_ffff);

/// d = a * b + c, rounded once: see [`fused`].
#[allow(non_upper_case_globals)]
pub(super) const fma_f32: Run =
    Run { call: fused, banks: &Signature { result: Bank::Words, sources: &[Bank::Words; 3] } };

/// A product of f32 numbers is exact in f64. Rounding the sum to f64 and then to f32 goes wrong only where the f64
/// sum lies exactly between two f32 numbers, or where the result is subnormal; those lanes are done again exactly.
fn fused(registers: &mut Registers, o: &Operands, active: u32) {
    let (a, b, c) = (f32::row(registers, o.a), f32::row(registers, o.b), f32::row(registers, o.c));
    let mut out = [0; LANES];
    let mut doubtful = 0u32;
    for lane in 0..LANES {
        let (a, b, c) = (f32::from_bits(a[lane]), f32::from_bits(b[lane]), f32::from_bits(c[lane]));
        if cfg!(target_feature = "fma") {
            out[lane] = a.mul_add(b, c).to_bits();
        } else {
            let sum = f64::from(a) * f64::from(b) + f64::from(c);
            let result = (sum as f32).to_bits();
            out[lane] = result;
            doubtful |= u32::from(sum.to_bits() as u32 & 0x1fff_ffff == 0x1000_0000);
            doubtful |= u32::from(result & 0x7f80_0000 == 0 && sum.to_bits() << 1 != 0);
        }
    }
    if doubtful != 0 {
        for lane in 0..LANES {
            let (a, b, c) = (f32::from_bits(a[lane]), f32::from_bits(b[lane]), f32::from_bits(c[lane]));
            out[lane] = (odd_sum(f64::from(a) * f64::from(b), c.into()) as f32).to_bits();
        }
    }
    f32::put(registers, o.d, &out, active);
}

fn divide(a: f32, b: f32, mode: u32) -> f32 {
    if mode & 7 == 0 {
        return finish(a / b, mode);
    }
    let quotient = f64::from(a) / f64::from(b);
    finish(round_single(quotient, Rounding::of(mode)), mode)
}

fn root(a: f32, mode: u32) -> f32 {
    if mode & 7 == 0 {
        return finish(a.sqrt(), mode);
    }
    finish(round_single(f64::from(a).sqrt(), Rounding::of(mode)), mode)
}

/// The smaller number; a NaN gives way to the other operand, and -0 is smaller than +0.
#[inline(always)]
pub(super) fn smaller(a: f32, b: f32) -> f32 {
    let signed_zero = f32::from_bits(a.to_bits() | b.to_bits());
    let least = if a == b {
        signed_zero
    } else if a < b {
        a
    } else {
        b
    };
    let one = if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else {
        least
    };
    if a.is_nan() && b.is_nan() { NAN } else { one }
}

fn smaller64(a: f64, b: f64) -> f64 {
    let signed_zero = f64::from_bits(a.to_bits() | b.to_bits());
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => signed_zero,
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

/// What a + b lost in rounding.
fn sum_error(a: f64, b: f64) -> f64 {
    let s = a + b;
    let b_part = s - a;
    (a - (s - b_part)) + (b - b_part)
}

/// The sign of what a * b + c lost in rounding; its size is approximate.
fn fma_error(a: f64, b: f64, c: f64) -> f64 {
    let rounded = a.mul_add(b, c);
    let product = a * b;
    let product_error = a.mul_add(b, -product);
    let sum = product + c;
    let sum_lost = sum_error(product, c);
    (sum - rounded) + (sum_lost + product_error)
}

/// A result rounded to nearest, moved by one place where the mode wants the other side.
fn directed(nearest: f64, error: f64, mode: u32) -> f64 {
    match Rounding::of(mode) {
        Rounding::Up if error > 0.0 => nearest.next_up(),
        Rounding::Down if error < 0.0 => nearest.next_down(),
        Rounding::Zero if error < 0.0 && nearest > 0.0 => nearest.next_down(),
        Rounding::Zero if error > 0.0 && nearest < 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

/// Comparisons of floats: ordered ones are false with a NaN, unordered ones true.
macro_rules! comparisons {
    ($module:ident, $type:ty, $flush:expr) => {
        /// Comparisons of one width.
        pub(in crate::sim) mod $module {
            use super::*;
            lanes! {
                eq[mode](a: $type, b: $type) -> bool { let f = $flush; f(a, mode) == f(b, mode) }
                ne[mode](a: $type, b: $type) -> bool { let f = $flush; f(a, mode) < f(b, mode) || f(a, mode) > f(b, mode) }
                lt[mode](a: $type, b: $type) -> bool { let f = $flush; f(a, mode) < f(b, mode) }
                le[mode](a: $type, b: $type) -> bool { let f = $flush; f(a, mode) <= f(b, mode) }
                equ[mode](a: $type, b: $type) -> bool { let f = $flush; !(f(a, mode) < f(b, mode) || f(a, mode) > f(b, mode)) }
                neu[mode](a: $type, b: $type) -> bool { let f = $flush; f(a, mode) != f(b, mode) }
                ltu[mode](a: $type, b: $type) -> bool { let f = $flush; a.is_nan() || b.is_nan() || f(a, mode) < f(b, mode) }
                leu[mode](a: $type, b: $type) -> bool { let f = $flush; a.is_nan() || b.is_nan() || f(a, mode) <= f(b, mode) }
                num(a: $type, b: $type) -> bool { !a.is_nan() && !b.is_nan() }
                nan(a: $type, b: $type) -> bool { a.is_nan() || b.is_nan() }
            }
        }
    };
}
comparisons!(compare_f32, f32, flush);
comparisons!(compare_f64, f64, |x: f64, _mode: u32| x);

/// f64 from an exact sum of two parts, rounded to odd; for conversions of wide integers.
pub(super) fn odd_of_integer(value: i128) -> f64 {
    let near = value as f64;
    odd(near, (value - near as i128) as f64)
}
