//! The special functions, within the error that the PTX manual documents, from polynomials in f64 of our own.
//!
//! A device's own approximations differ in the last places (ex2, lg2, rcp, rsqrt: about 1 to 2 units; sin and cos:
//! 2^-20.5 absolute; tanh: 2^-11 relative). These round nearly correctly and are the same on every host.

use super::float::NAN;
use super::registers::lanes;
use super::rounding::flush;

lanes! {
    ex2[mode](a: f32) -> f32 { canonical(flush(exp2(flush(a, mode)) as f32, mode)) }
    lg2[mode](a: f32) -> f32 { canonical(log2(flush(a, mode)) as f32) }
    rcp[mode](a: f32) -> f32 { canonical(flush(1.0 / flush(a, mode), mode)) }
    rsqrt[mode](a: f32) -> f32 { canonical((1.0 / f64::from(flush(a, mode)).sqrt()) as f32) }
    sqrt[mode](a: f32) -> f32 { canonical(flush(flush(a, mode).sqrt(), mode)) }
    sine[mode](a: f32) -> f32 { canonical(flush(sin_cos(flush(a, mode), 0), mode)) }
    cosine[mode](a: f32) -> f32 { canonical(sin_cos(flush(a, mode), 1)) }
    tanh(a: f32) -> f32 { canonical(hyperbolic(a)) }
    // The quick division answers 0 where the divisor is beyond 2^126.
    div[mode](a: f32, b: f32) -> f32 {
        let (a, b) = (flush(a, mode), flush(b, mode));
        let huge = b.abs() > f32::from_bits(253 << 23) && b.is_finite();
        if huge && a.is_infinite() { NAN } else if huge { 0.0f32.copysign(a) * b.signum() } else { flush(a / b, mode) }
    }
    div_full[mode](a: f32, b: f32) -> f32 { flush(flush(a, mode) / flush(b, mode), mode) }
    // In f64 these give the upper half of the result's bits.
    rcp_f64(a: f64) -> f64 { upper(1.0 / flush64(a)) }
    rsqrt_f64(a: f64) -> f64 { upper(1.0 / flush64(a).sqrt()) }
}

/// The one NaN that these instructions give; the host's arithmetic promises no payload.
#[inline(always)]
fn canonical(x: f32) -> f32 {
    if x.is_nan() { NAN } else { x }
}

fn upper(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & 0xffff_ffff_0000_0000)
}

fn flush64(x: f64) -> f64 {
    if x.is_subnormal() { 0.0f64.copysign(x) } else { x }
}

/// Adding this to an f64 leaves the nearest integer in the low bits of its mantissa.
const TO_INTEGER: f64 = 6755399441055744.0;

/// 2^x.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f64 {
    // Beyond these bounds the result is 0 or infinite in f32 whatever the bits.
    let bounded = f64::from(x).clamp(-200.0, 200.0);
    let shifted = bounded + TO_INTEGER;
    let whole = shifted - TO_INTEGER;
    // e^t by its series; |t| <= ln(2)/2, and what is left out is below 2^-37 of it.
    let t = (bounded - whole) * std::f64::consts::LN_2;
    let tail =
        1.0 / 120.0 + t * (1.0 / 720.0 + t * (1.0 / 5040.0 + t * (1.0 / 40320.0 + t * (1.0 / 362880.0))));
    let series = 1.0 + t * (1.0 + t * (0.5 + t * (1.0 / 6.0 + t * (1.0 / 24.0 + t * tail))));
    let power = f64::from_bits((shifted.to_bits().wrapping_add(1023)) << 52);
    if x.is_nan() { f64::from(NAN) } else { series * power }
}

/// log2(x).
#[inline(always)]
fn log2(x: f32) -> f64 {
    let bits = f64::from(x).to_bits();
    // x = m * 2^e with m between sqrt(1/2) and sqrt(2).
    let offset = bits.wrapping_sub(std::f64::consts::FRAC_1_SQRT_2.to_bits());
    let exponent = (offset as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((exponent as u64) << 52));
    // ln(m) = 2 atanh(t); what is left out is below 2^-36 of it.
    let t = (m - 1.0) / (m + 1.0);
    let q = t * t;
    let tail = 1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0)));
    let series = t * (1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * tail)));
    let value = exponent as f64 + series * (2.0 * std::f64::consts::LOG2_E);
    if x > 0.0 && x < f32::INFINITY {
        value
    } else if x == 0.0 {
        f64::NEG_INFINITY
    } else if x > 0.0 {
        f64::INFINITY
    } else {
        f64::from(NAN)
    }
}

/// sin(x) for quarter 0, cos(x) for quarter 1.
#[inline(always)]
fn sin_cos(x: f32, quarter: u64) -> f32 {
    let wide = f64::from(x);
    let turns = wide * std::f64::consts::FRAC_2_PI + TO_INTEGER;
    let whole = turns - TO_INTEGER;
    // pi/2 in two parts; the first has few enough bits that its multiples are exact.
    let r = (wide - whole * 1.570796326734125614166) - whole * 6.077100506506192601e-11;
    let q = r * r;
    let odd = r * (1.0 + q * (-1.0 / 6.0 + q * (1.0 / 120.0 + q * (-1.0 / 5040.0 + q * (1.0 / 362880.0)))));
    let tail = 1.0 / 24.0 + q * (-1.0 / 720.0 + q * (1.0 / 40320.0 - q * (1.0 / 3628800.0)));
    let even = 1.0 + q * (-0.5 + q * tail);
    let quadrant = turns.to_bits().wrapping_add(quarter);
    let value = if quadrant & 1 == 0 { odd } else { even };
    let value = if quadrant & 2 == 0 { value } else { -value };
    if x.is_finite() { value as f32 } else { NAN }
}

/// tanh(x).
pub(super) fn hyperbolic(x: f32) -> f32 {
    if x.abs() < 1e-4 || x.is_nan() {
        return x;
    }
    // (e^2x - 1) / (e^2x + 1) with e^2x = 2^(2x/ln 2).
    let grown = exp2_wide(f64::from(x.abs().min(30.0)) * 2.0 * std::f64::consts::LOG2_E);
    (((grown - 1.0) / (grown + 1.0)) as f32).copysign(x)
}

/// 2^x of an f64 between 0 and 100.
fn exp2_wide(x: f64) -> f64 {
    let whole = (x + TO_INTEGER) - TO_INTEGER;
    exp2((x - whole) as f32) * f64::from_bits(((whole as u64) + 1023) << 52)
}
