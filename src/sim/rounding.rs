//! Rounding: directed modes, flushing of subnormals, narrow formats. Everything goes through f64 values that were
//! "rounded to odd": exact, or with their last bit set, so that one more rounding to a narrower format is right.

/// Where an inexact result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Rounding {
    Nearest = 0,
    Zero = 1,
    Down = 2,
    Up = 3,
    /// To nearest, ties away from zero (`.rna`).
    NearestAway = 4,
}

/// Bit of a mode: subnormal inputs and results become zero.
pub(super) const FTZ: u32 = 8;
/// Bit of a mode: the result is clamped to [0, 1], NaN to 0.
pub(super) const SAT: u32 = 16;
/// Bit of a mode: negative results become 0.
pub(super) const RELU: u32 = 32;

impl Rounding {
    /// The rounding a mode holds.
    #[inline(always)]
    pub fn of(mode: u32) -> Rounding {
        match mode & 7 {
            0 => Rounding::Nearest,
            1 => Rounding::Zero,
            2 => Rounding::Down,
            3 => Rounding::Up,
            _ => Rounding::NearestAway,
        }
    }
}

/// `x`, or zero of its sign where it is subnormal and the mode flushes.
#[inline(always)]
pub(super) fn flush(x: f32, mode: u32) -> f32 {
    if mode & FTZ != 0 && x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 1 << 31) } else { x }
}

/// The result of an f32 instruction from an odd-rounded value.
#[inline(always)]
pub(super) fn single(x: f64, mode: u32) -> f32 {
    let rounded = round_single(x, Rounding::of(mode));
    finish(rounded, mode)
}

/// Applies `.ftz` and `.sat` to a result.
#[inline(always)]
pub(super) fn finish(x: f32, mode: u32) -> f32 {
    let x = flush(x, mode);
    if mode & SAT == 0 {
        x
    } else if x > 0.0 {
        x.min(1.0)
    } else {
        0.0
    }
}

/// An odd-rounded value to f32.
#[inline(always)]
pub(super) fn round_single(x: f64, rounding: Rounding) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    match rounding {
        Rounding::Zero if back.abs() > x.abs() => toward_zero(nearest),
        Rounding::Down if back > x => nearest.next_down(),
        Rounding::Up if back < x => nearest.next_up(),
        _ => nearest,
    }
}

fn toward_zero(x: f32) -> f32 {
    f32::from_bits(x.to_bits() - 1)
}

/// p + c rounded to odd.
#[inline(always)]
pub(super) fn odd_sum(p: f64, c: f64) -> f64 {
    let s = p + c;
    let c_part = s - p;
    let error = (p - (s - c_part)) + (c - c_part);
    odd(s, error)
}

/// The odd-rounded value of s + error, where |error| is at most half a unit of s.
#[inline(always)]
pub(super) fn odd(s: f64, error: f64) -> f64 {
    let bits = s.to_bits();
    // An infinite sum has NaN for its error.
    if bits & 1 == 0 && !error.is_nan() && error != 0.0 {
        if s == 0.0 {
            return error;
        }
        return f64::from_bits(if (error > 0.0) == (s > 0.0) { bits + 1 } else { bits - 1 });
    }
    s
}

/// A binary format narrower than f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// Bits of the mantissa, without the hidden one.
    pub mantissa: u32,
    /// Bits of the exponent.
    pub exponent: u32,
}

/// IEEE half precision.
pub(super) const F16: Format = Format { mantissa: 10, exponent: 5 };
/// The upper half of single precision.
pub(super) const BF16: Format = Format { mantissa: 7, exponent: 8 };

/// An odd-rounded value to the bits of a narrow format.
pub(super) fn narrow(x: f64, format: Format, rounding: Rounding) -> u16 {
    let Format { mantissa, exponent } = format;
    let sign = ((x.to_bits() >> 63) as u16) << (mantissa + exponent);
    let infinity = ((1u32 << exponent) - 1) << mantissa;
    if x.is_nan() {
        // The one NaN that a device writes.
        return ((1u32 << (mantissa + exponent)) - 1) as u16;
    }
    if x.is_infinite() {
        return sign | infinity as u16;
    }
    let bits = x.to_bits() & !(1 << 63);
    let bias = (1i64 << (exponent - 1)) - 1;
    let power = ((bits >> 52) as i64 - 1023).max(1 - bias);
    // The value in units of the last place of the result: an integer and a fraction.
    let significand = if bits >> 52 == 0 { 0 } else { bits & ((1 << 52) - 1) | 1 << 52 };
    let shift = (52 - i64::from(mantissa) + power - ((bits >> 52) as i64 - 1023)) as u32;
    let (whole, rest, half) = if shift > 62 {
        (0, u64::from(significand != 0), 2)
    } else {
        (significand >> shift, significand & ((1 << shift) - 1), 1u64 << (shift - 1))
    };
    let negative = sign != 0;
    let up = match rounding {
        Rounding::Nearest => rest > half || rest == half && whole & 1 == 1,
        Rounding::NearestAway => rest >= half,
        Rounding::Zero => false,
        Rounding::Down => negative && rest != 0,
        Rounding::Up => !negative && rest != 0,
    };
    let whole = whole + u64::from(up);
    // A normal number's hidden bit adds one to the exponent field that stands below it.
    let field = (power + bias - 1) as u64;
    let magnitude = if whole >> mantissa == 0 { whole } else { (field << mantissa) + whole };
    let magnitude = if magnitude >= u64::from(infinity) {
        match rounding {
            Rounding::Zero => infinity - 1,
            Rounding::Down if !negative => infinity - 1,
            Rounding::Up if negative => infinity - 1,
            _ => infinity,
        }
    } else {
        magnitude as u32
    };
    sign | magnitude as u16
}

/// The value of a half-precision number.
#[inline(always)]
pub(super) fn from_f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    // The same exponent field means 2^112 times less in single precision; infinities and NaN keep a full field.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
    let value = if magnitude >= 0x7c00 { 0x7f80_0000 | magnitude << 13 } else { scaled.to_bits() };
    f32::from_bits(value | sign)
}

/// The value of a bf16 number.
#[inline(always)]
pub(super) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 to bf16, to nearest even.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fff } else { rounded as u16 }
}

/// f32 to half precision, to nearest even.
#[inline(always)]
pub(super) fn to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 16) as u16 & 0x8000, bits & 0x7fff_ffff);
    let normal = magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    // Below 2^-14 adding 2^-1 puts the result's last place at the end of an f32's mantissa.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let value = if magnitude > 0x7f80_0000 {
        return 0x7fff;
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 113 << 23 {
        small
    } else {
        normal
    };
    sign | value as u16
}
