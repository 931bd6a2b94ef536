//! `cvt`: every pair of types. The pairs that kernels use much have functions of their own; the rest go through one
//! that reads types, rounding and saturation from the mode.

use super::float::{NAN, odd_of_integer};
use super::program::Type;
use super::registers::{Run, lanes};
use super::rounding::{
    BF16, F16, RELU, Rounding, SAT, finish, flush, from_bf16, from_f16, narrow, round_single, to_bf16, to_f16,
};

lanes! {
    u16_to_u32(a: u16) -> u32 { u32::from(a) }
    s16_to_s32(a: i16) -> i32 { i32::from(a) }
    u32_to_u64(a: u32) -> u64 { u64::from(a) }
    s32_to_s64(a: i32) -> i64 { i64::from(a) }
    u16_to_u64(a: u16) -> u64 { u64::from(a) }
    low_u32(a: u64) -> u32 { a as u32 }
    low_u16(a: u32) -> u16 { a as u16 }
    s32_to_f32(a: i32) -> f32 { a as f32 }
    u32_to_f32(a: u32) -> f32 { a as f32 }
    s32_to_f64(a: i32) -> f64 { f64::from(a) }
    f32_to_f64(a: f32) -> f64 { f64::from(a) }
    f64_to_f32(a: f64) -> f32 { a as f32 }
    f32_to_s32_zero(a: f32) -> i32 { a as i32 }
    f32_to_u32_zero(a: f32) -> u32 { a as u32 }
    f32_to_bf16(a: f32) -> u16 { to_bf16(a) }
    f32_to_f16(a: f32) -> u16 { to_f16(a) }
    bf16_to_f32(a: u16) -> f32 { from_bf16(a) }
    f16_to_f32(a: u16) -> f32 { from_f16(a) }
    // The first operand goes to the upper half.
    f32s_to_bf16x2(a: f32, b: f32) -> u32 { u32::from(to_bf16(a)) << 16 | u32::from(to_bf16(b)) }
    f32s_to_f16x2(a: f32, b: f32) -> u32 { u32::from(to_f16(a)) << 16 | u32::from(to_f16(b)) }
    f32s_to_pair[mode](a: f32, b: f32) -> u32 {
        let to = TYPES[(mode >> TO & 31) as usize];
        half(f64::from(a), to, mode) << 16 | half(f64::from(b), to, mode)
    }
    f32_to_tf32(a: f32) -> u32 { tf32(a) }
    words_to_words[mode](a: u32) -> u32 { convert(u64::from(a), mode) as u32 }
    words_to_doubles[mode](a: u32) -> u64 { convert(u64::from(a), mode) }
    doubles_to_words[mode](a: u64) -> u32 { convert(a, mode) as u32 }
    doubles_to_doubles[mode](a: u64) -> u64 { convert(a, mode) }
}

/// Types by their number in a mode.
const TYPES: [Type; 16] = [
    Type::U8,
    Type::S8,
    Type::U16,
    Type::S16,
    Type::U32,
    Type::S32,
    Type::U64,
    Type::S64,
    Type::F16,
    Type::Bf16,
    Type::F32,
    Type::F64,
    Type::B8,
    Type::B16,
    Type::B32,
    Type::B64,
];
/// Where a mode holds the type of the source, the type of the result, and the way to round to an integer.
const FROM: u32 = 8;
const TO: u32 = 13;
const INTEGER: u32 = 18;
/// Bit of a mode: an 8-bit result fills a register of 32 bits instead of one of 16.
const WIDE: u32 = 1 << 22;

/// The modifiers of a conversion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Modifiers {
    pub to: Type,
    pub from: Type,
    /// `.rn .rz .rm .rp .rna`, with [`super::rounding::FTZ`], [`SAT`] and [`RELU`].
    pub mode: u32,
    /// `.rni .rzi .rmi .rpi`.
    pub integer: Option<Rounding>,
    /// Whether the result's register has more than 16 bits.
    pub wide: bool,
}

/// The function and the mode for a conversion.
pub(super) fn choose(m: &Modifiers) -> (Run, u32) {
    use Type::{B16, B32, B64, Bf16, F16, F32, F64, S16, S32, S64, U16, U32, U64};
    let plain = m.mode == 0;
    let fast: Option<Run> = match (m.to, m.from, m.integer) {
        (U32 | S32 | B32, U16 | B16, None) if plain => Some(u16_to_u32),
        (U32 | S32, S16, None) if plain => Some(s16_to_s32),
        (U64 | S64 | B64, U32 | B32, None) if plain => Some(u32_to_u64),
        (U64 | S64, S32, None) if plain => Some(s32_to_s64),
        (U64 | S64, U16, None) if plain => Some(u16_to_u64),
        (U32 | S32 | B32, U64 | S64 | B64, None) if plain => Some(low_u32),
        (U16 | S16 | B16, U32 | S32 | B32, None) if plain => Some(low_u16),
        (F32, S32, None) if plain => Some(s32_to_f32),
        (F32, U32, None) if plain => Some(u32_to_f32),
        (F64, S32, None) if plain => Some(s32_to_f64),
        (F64, F32, None) if plain => Some(f32_to_f64),
        (F32, F64, None) if plain => Some(f64_to_f32),
        (S32, F32, Some(Rounding::Zero)) if plain => Some(f32_to_s32_zero),
        (U32, F32, Some(Rounding::Zero)) if plain => Some(f32_to_u32_zero),
        (Bf16, F32, None) if plain => Some(f32_to_bf16),
        (F16, F32, None) if plain => Some(f32_to_f16),
        (F32, Bf16, None) if plain => Some(bf16_to_f32),
        (F32, F16, None) if plain => Some(f16_to_f32),
        _ => None,
    };
    if let Some(run) = fast {
        return (run, 0);
    }
    let number = |ty: Type| TYPES.iter().position(|&t| t == ty).unwrap_or(0) as u32;
    let integer = m.integer.map_or(0, |rounding| rounding as u32 + 1);
    let mode = m.mode | number(m.from) << FROM | number(m.to) << TO | integer << INTEGER;
    let mode = mode | if m.wide { WIDE } else { 0 };
    let run: Run = match (m.to.bytes() == 8, m.from.bytes() == 8) {
        (false, false) => words_to_words,
        (true, false) => words_to_doubles,
        (false, true) => doubles_to_words,
        (true, true) => doubles_to_doubles,
    };
    (run, mode)
}

/// Whether a type is a number with a point.
pub(super) fn is_float(ty: Type) -> bool {
    matches!(ty, Type::F16 | Type::Bf16 | Type::F32 | Type::F64)
}

fn is_signed(ty: Type) -> bool {
    matches!(ty, Type::S8 | Type::S16 | Type::S32 | Type::S64)
}

/// One lane of any conversion, on bits.
fn convert(bits: u64, mode: u32) -> u64 {
    let (from, to) = (TYPES[(mode >> FROM & 31) as usize & 15], TYPES[(mode >> TO & 31) as usize & 15]);
    let integer = match mode >> INTEGER & 7 {
        0 => None,
        n => Some(Rounding::of(n - 1)),
    };
    match (is_float(from), is_float(to)) {
        (false, false) => integer_bits(value_of(bits, from), to, mode),
        (false, true) => {
            let value = value_of(bits, from);
            if to == Type::F64 {
                return float_to_integer_grid(value, mode).to_bits();
            }
            float_bits(odd_of_integer(value), to, mode)
        }
        (true, false) => {
            let x = float_of(bits, from, mode);
            integer_of_float(x, to, integer.unwrap_or(Rounding::Zero))
        }
        (true, true) => {
            let x = float_of(bits, from, mode);
            float_bits(integer.map_or(x, |rounding| round_integer(x, rounding)), to, mode)
        }
    }
}

/// An integer as an f64 in the mode's rounding.
fn float_to_integer_grid(value: i128, mode: u32) -> f64 {
    let near = value as f64;
    let lost = value - near as i128;
    match Rounding::of(mode) {
        Rounding::Down if lost < 0 => near.next_down(),
        Rounding::Up if lost > 0 => near.next_up(),
        Rounding::Zero if lost < 0 && near > 0.0 => near.next_down(),
        Rounding::Zero if lost > 0 && near < 0.0 => near.next_up(),
        _ => near,
    }
}

fn value_of(bits: u64, from: Type) -> i128 {
    match from {
        Type::U8 | Type::B8 => i128::from(bits as u8),
        Type::S8 => i128::from(bits as i8),
        Type::U16 | Type::B16 => i128::from(bits as u16),
        Type::S16 => i128::from(bits as i16),
        Type::U32 | Type::B32 => i128::from(bits as u32),
        Type::S32 => i128::from(bits as i32),
        Type::S64 => i128::from(bits as i64),
        _ => i128::from(bits),
    }
}

fn integer_bits(value: i128, to: Type, mode: u32) -> u64 {
    let width = 8 * to.bytes();
    let value = if mode & SAT == 0 {
        value
    } else if is_signed(to) {
        value.clamp(-(1 << (width - 1)), (1 << (width - 1)) - 1)
    } else {
        value.clamp(0, (1 << width) - 1)
    };
    match to {
        Type::U8 | Type::B8 => u64::from(value as u8),
        // A signed byte fills its register with its sign.
        Type::S8 if mode & WIDE == 0 => u64::from(value as i8 as i16 as u16),
        Type::S8 => u64::from(value as i8 as i32 as u32),
        Type::U16 | Type::S16 | Type::B16 => u64::from(value as u16),
        Type::U32 | Type::S32 | Type::B32 => u64::from(value as u32),
        _ => value as u64,
    }
}

fn float_of(bits: u64, from: Type, mode: u32) -> f64 {
    match from {
        Type::F16 => f64::from(from_f16(bits as u16)),
        Type::Bf16 => f64::from(from_bf16(bits as u16)),
        Type::F32 => f64::from(flush(f32::from_bits(bits as u32), mode)),
        _ => f64::from_bits(bits),
    }
}

fn round_integer(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::NearestAway => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// Floats outside an integer's range give its nearest end, NaN gives 0.
fn integer_of_float(x: f64, to: Type, rounding: Rounding) -> u64 {
    let x = round_integer(x, rounding);
    match to {
        Type::U8 => u64::from(x as u8),
        Type::S8 => u64::from(x as i8 as i16 as u16),
        Type::U16 => u64::from(x as u16),
        Type::S16 => u64::from(x as i16 as u16),
        Type::U32 => u64::from(x as u32),
        Type::S32 => u64::from(x as i32 as u32),
        Type::S64 => x as i64 as u64,
        _ => x as u64,
    }
}

fn float_bits(x: f64, to: Type, mode: u32) -> u64 {
    match to {
        Type::F16 | Type::Bf16 => u64::from(half(x, to, mode)),
        Type::F32 if x.is_nan() => u64::from(finish(NAN, mode).to_bits()),
        Type::F32 => u64::from(finish(round_single(x, Rounding::of(mode)), mode).to_bits()),
        _ if mode & SAT != 0 => (if x > 0.0 { x.min(1.0) } else { 0.0 }).to_bits(),
        _ => x.to_bits(),
    }
}

fn half(x: f64, to: Type, mode: u32) -> u32 {
    let x = if mode & RELU != 0 && x < 0.0 { 0.0 } else { x };
    let x = if mode & SAT != 0 { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    let format = if to == Type::F16 { F16 } else { BF16 };
    u32::from(narrow(x, format, Rounding::of(mode)))
}

/// f32 to the nearest number with ten bits of mantissa, ties away from zero.
pub(super) fn tf32(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return NAN.to_bits();
    }
    if x.is_infinite() {
        return bits;
    }
    (bits + 0x1000) & !0x1fff
}

/// The mode of [`f32s_to_pair`].
pub(super) fn pair_mode(to: Type, mode: u32) -> u32 {
    mode | (TYPES.iter().position(|&t| t == to).unwrap_or(0) as u32) << TO
}
