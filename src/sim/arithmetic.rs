//! Integer and bit arithmetic, and comparisons of integers.

use super::registers::lanes;

/// What integers of one width can do.
macro_rules! width {
    ($module:ident, $u:ty, $s:ty) => {
        /// Integers of one width.
        pub(in crate::sim) mod $module {
            use super::lanes;
            lanes! {
                #[allow(dead_code)]
                mov(a: $u) -> $u { a }
                add(a: $u, b: $u) -> $u { a.wrapping_add(b) }
                sub(a: $u, b: $u) -> $u { a.wrapping_sub(b) }
                add_saturated(a: $s, b: $s) -> $s { a.saturating_add(b) }
                sub_saturated(a: $s, b: $s) -> $s { a.saturating_sub(b) }
                mul_low(a: $u, b: $u) -> $u { a.wrapping_mul(b) }
                mul_high_unsigned(a: $u, b: $u) -> $u { ((a as u128 * b as u128) >> <$u>::BITS) as $u }
                mul_high_signed(a: $s, b: $s) -> $s { ((a as i128 * b as i128) >> <$s>::BITS) as $s }
                mad_low(a: $u, b: $u, c: $u) -> $u { a.wrapping_mul(b).wrapping_add(c) }
                // A device gives all ones where it divides by zero.
                div_unsigned(a: $u, b: $u) -> $u { a.checked_div(b).unwrap_or(<$u>::MAX) }
                div_signed(a: $s, b: $s) -> $s { if b == 0 { -1 } else { a.wrapping_div(b) } }
                rem_unsigned(a: $u, b: $u) -> $u { a.checked_rem(b).unwrap_or(a) }
                rem_signed(a: $s, b: $s) -> $s { if b == 0 { a } else { a.wrapping_rem(b) } }
                abs(a: $s) -> $s { a.wrapping_abs() }
                neg(a: $s) -> $s { a.wrapping_neg() }
                min_unsigned(a: $u, b: $u) -> $u { a.min(b) }
                max_unsigned(a: $u, b: $u) -> $u { a.max(b) }
                min_signed(a: $s, b: $s) -> $s { a.min(b) }
                max_signed(a: $s, b: $s) -> $s { a.max(b) }
                and(a: $u, b: $u) -> $u { a & b }
                or(a: $u, b: $u) -> $u { a | b }
                xor(a: $u, b: $u) -> $u { a ^ b }
                not(a: $u) -> $u { !a }
                cnot(a: $u) -> $u { (a == 0) as $u }
                // Shifts by the width or more leave nothing, or the sign.
                shl(a: $u, b: u32) -> $u { if b < <$u>::BITS { a << b } else { 0 } }
                shr_unsigned(a: $u, b: u32) -> $u { if b < <$u>::BITS { a >> b } else { 0 } }
                shr_signed(a: $s, b: u32) -> $s { a >> b.min(<$u>::BITS - 1) }
                sad_unsigned(a: $u, b: $u, c: $u) -> $u { a.abs_diff(b).wrapping_add(c) }
                sad_signed(a: $s, b: $s, c: $u) -> $u { a.abs_diff(b).wrapping_add(c) }
                select(a: $u, b: $u, c: bool) -> $u { if c { a } else { b } }
                select_by_sign(a: $u, b: $u, c: i32) -> $u { if c >= 0 { a } else { b } }
                select_by_float(a: $u, b: $u, c: f32) -> $u { if c >= 0.0 { a } else { b } }
                equal(a: $u, b: $u) -> bool { a == b }
                not_equal(a: $u, b: $u) -> bool { a != b }
                less_unsigned(a: $u, b: $u) -> bool { a < b }
                less_equal_unsigned(a: $u, b: $u) -> bool { a <= b }
                less_signed(a: $s, b: $s) -> bool { a < b }
                less_equal_signed(a: $s, b: $s) -> bool { a <= b }
            }
        }
    };
}
width!(b16, u16, i16);
width!(b32, u32, i32);
width!(b64, u64, i64);

lanes! {
    mul_wide_u16(a: u16, b: u16) -> u32 { u32::from(a) * u32::from(b) }
    mul_wide_s16(a: i16, b: i16) -> i32 { i32::from(a) * i32::from(b) }
    mul_wide_u32(a: u32, b: u32) -> u64 { u64::from(a) * u64::from(b) }
    mul_wide_s32(a: i32, b: i32) -> i64 { i64::from(a) * i64::from(b) }
    mad_wide_u16(a: u16, b: u16, c: u32) -> u32 { (u32::from(a) * u32::from(b)).wrapping_add(c) }
    mad_wide_s16(a: i16, b: i16, c: i32) -> i32 { (i32::from(a) * i32::from(b)).wrapping_add(c) }
    mad_wide_u32(a: u32, b: u32, c: u64) -> u64 { (u64::from(a) * u64::from(b)).wrapping_add(c) }
    mad_wide_s32(a: i32, b: i32, c: i64) -> i64 { (i64::from(a) * i64::from(b)).wrapping_add(c) }
    mul24_low_unsigned(a: u32, b: u32) -> u32 { (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff) }
    mul24_low_signed(a: i32, b: i32) -> i32 { (a << 8 >> 8).wrapping_mul(b << 8 >> 8) }
    mul24_high_unsigned(a: u32, b: u32) -> u32 { ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> 16) as u32 }
    mul24_high_signed(a: i32, b: i32) -> i32 { ((i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8)) >> 16) as i32 }
    mad_high_saturated(a: i32, b: i32, c: i32) -> i32 { (((i64::from(a) * i64::from(b)) >> 32) as i32).saturating_add(c) }

    // Sums with a carry: first the carry that goes out, then the sum.
    carry_of_sum_b32(a: u32, b: u32, c: bool) -> bool { u64::from(a) + u64::from(b) + u64::from(c) > u64::from(u32::MAX) }
    sum_with_carry_b32(a: u32, b: u32, c: bool) -> u32 { a.wrapping_add(b).wrapping_add(u32::from(c)) }
    carry_of_sum_b64(a: u64, b: u64, c: bool) -> bool { u128::from(a) + u128::from(b) + u128::from(c) > u128::from(u64::MAX) }
    sum_with_carry_b64(a: u64, b: u64, c: bool) -> u64 { a.wrapping_add(b).wrapping_add(u64::from(c)) }
    borrow_of_difference_b32(a: u32, b: u32, c: bool) -> bool { u64::from(a) < u64::from(b) + u64::from(c) }
    difference_with_borrow_b32(a: u32, b: u32, c: bool) -> u32 { a.wrapping_sub(b).wrapping_sub(u32::from(c)) }
    borrow_of_difference_b64(a: u64, b: u64, c: bool) -> bool { u128::from(a) < u128::from(b) + u128::from(c) }
    difference_with_borrow_b64(a: u64, b: u64, c: bool) -> u64 { a.wrapping_sub(b).wrapping_sub(u64::from(c)) }

    // Predicates.
    predicate_mov(a: bool) -> bool { a }
    predicate_not(a: bool) -> bool { !a }
    predicate_and(a: bool, b: bool) -> bool { a && b }
    predicate_or(a: bool, b: bool) -> bool { a || b }
    predicate_xor(a: bool, b: bool) -> bool { a != b }
    predicate_select(a: bool, b: bool, c: bool) -> bool { if c { a } else { b } }
    ones_where(a: bool) -> u32 { if a { u32::MAX } else { 0 } }
    one_float_where(a: bool) -> f32 { if a { 1.0 } else { 0.0 } }

    // Bits.
    popc_b32(a: u32) -> u32 { a.count_ones() }
    popc_b64(a: u64) -> u32 { a.count_ones() }
    clz_b32(a: u32) -> u32 { a.leading_zeros() }
    clz_b64(a: u64) -> u32 { a.leading_zeros() }
    brev_b32(a: u32) -> u32 { a.reverse_bits() }
    brev_b64(a: u64) -> u64 { a.reverse_bits() }
    bfind_u32(a: u32) -> u32 { 31u32.wrapping_sub(a.leading_zeros()) }
    bfind_s32(a: i32) -> u32 { 31u32.wrapping_sub((a ^ a >> 31).leading_zeros()) }
    bfind_u64(a: u64) -> u32 { 63u32.wrapping_sub(a.leading_zeros()) }
    bfind_s64(a: i64) -> u32 { 63u32.wrapping_sub((a ^ a >> 63).leading_zeros()) }
    bfind_shift_u32(a: u32) -> u32 { if a == 0 { u32::MAX } else { a.leading_zeros() } }
    bfind_shift_s32(a: i32) -> u32 { let a = a ^ a >> 31; if a == 0 { u32::MAX } else { a.leading_zeros() } }
    bfind_shift_u64(a: u64) -> u32 { if a == 0 { u32::MAX } else { a.leading_zeros() } }
    bfind_shift_s64(a: i64) -> u32 { let a = a ^ a >> 63; if a == 0 { u32::MAX } else { a.leading_zeros() } }
    bfe_u32(a: u32, b: u32, c: u32) -> u32 { extract(u64::from(a), b, c, 32, false) as u32 }
    bfe_s32(a: u32, b: u32, c: u32) -> u32 { extract(u64::from(a), b, c, 32, true) as u32 }
    bfe_u64(a: u64, b: u32, c: u32) -> u64 { extract(a, b, c, 64, false) }
    bfe_s64(a: u64, b: u32, c: u32) -> u64 { extract(a, b, c, 64, true) }
    bfi_b32(a: u32, b: u32, c: u32, e: u32) -> u32 { insert(u64::from(a), u64::from(b), c, e, 32) as u32 }
    bfi_b64(a: u64, b: u64, c: u32, e: u32) -> u64 { insert(a, b, c, e, 64) }
    bmsk_clamp(a: u32, b: u32) -> u32 { mask_of(a, b) }
    bmsk_wrap(a: u32, b: u32) -> u32 { mask_of(a & 31, b & 31) }
    lop3[mode](a: u32, b: u32, c: u32) -> u32 { logic(a, b, c, mode) }
    prmt(a: u32, b: u32, c: u32) -> u32 { permute(a, b, c) }
    prmt_mode[mode](a: u32, b: u32, c: u32) -> u32 { permute(a, b, selectors(mode, c & 3)) }
    shf_left_wrap(a: u32, b: u32, c: u32) -> u32 { (join(a, b) << (c & 31) >> 32) as u32 }
    shf_left_clamp(a: u32, b: u32, c: u32) -> u32 { (join(a, b) << c.min(32) >> 32) as u32 }
    shf_right_wrap(a: u32, b: u32, c: u32) -> u32 { (join(a, b) >> (c & 31)) as u32 }
    shf_right_clamp(a: u32, b: u32, c: u32) -> u32 { (join(a, b) >> c.min(32)) as u32 }
    dp4a[mode](a: u32, b: u32, c: u32) -> u32 { dot4(a, b, c, mode) }
    dp2a[mode](a: u32, b: u32, c: u32) -> u32 { dot2(a, b, c, mode) }

    // Packing and unpacking of registers.
    pack_b32(a: u16, b: u16) -> u32 { u32::from(a) | u32::from(b) << 16 }
    pack_b64(a: u32, b: u32) -> u64 { join(a, b) }
    low_b16(a: u32) -> u16 { a as u16 }
    high_b16(a: u32) -> u16 { (a >> 16) as u16 }
    low_b32(a: u64) -> u32 { a as u32 }
    high_b32(a: u64) -> u32 { (a >> 32) as u32 }
    pack_b16(a: u8, b: u8) -> u16 { u16::from(a) | u16::from(b) << 8 }
    low_b8(a: u16) -> u8 { a as u8 }
    high_b8(a: u16) -> u8 { (a >> 8) as u8 }
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// `bfe`: `length` bits from `position` on, as the PTX manual writes it out bit by bit.
fn extract(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let sign_at = if length == 0 { return 0 } else { (position + length - 1).min(width - 1) };
    let sign = signed && a >> sign_at & 1 == 1;
    let shifted = if position < width { a >> position } else { 0 };
    let held = length.min(width.saturating_sub(position));
    let field = if held >= 64 { u64::MAX } else { (1 << held) - 1 };
    shifted & field | if sign { !field } else { 0 }
}

/// `bfi`: the low `length` bits of `a` replace those of `b` from `position` on.
fn insert(a: u64, b: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= width {
        return b;
    }
    let length = length.min(width - position);
    let field = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    b & !(field << position) | (a & field) << position
}

fn mask_of(position: u32, length: u32) -> u32 {
    if position >= 32 || length == 0 {
        return 0;
    }
    let field = if length >= 32 { u32::MAX } else { (1 << length) - 1 };
    field << position
}

/// `lop3`: bit `4a + 2b + c` of the table.
fn logic(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut result = 0;
    for row in 0..8 {
        if table >> row & 1 == 1 {
            let a = if row & 4 != 0 { a } else { !a };
            let b = if row & 2 != 0 { b } else { !b };
            let c = if row & 1 != 0 { c } else { !c };
            result |= a & b & c;
        }
    }
    result
}

/// `prmt`: each selector's low three bits choose a byte, its fourth bit spreads that byte's sign.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = join(a, b);
    let mut result = 0;
    for place in 0..4 {
        let choice = selector >> (4 * place) & 0xf;
        let byte = (bytes >> (8 * (choice & 7))) as u32 & 0xff;
        let byte = if choice & 8 == 0 {
            byte
        } else if byte & 0x80 != 0 {
            0xff
        } else {
            0
        };
        result |= byte << (8 * place);
    }
    result
}

/// Modes of `prmt`, in the order of [`selectors`].
pub(in crate::sim) const PERMUTE_MODES: [&str; 6] = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];

/// The selectors that a mode of `prmt` stands for.
fn selectors(mode: u32, c: u32) -> u32 {
    let table = match mode {
        0 => [0x3210, 0x4321, 0x5432, 0x6543],
        1 => [0x5670, 0x6701, 0x7012, 0x0123],
        2 => [0x0000, 0x1111, 0x2222, 0x3333],
        3 => [0x3210, 0x3211, 0x3222, 0x3333],
        4 => [0x0000, 0x1110, 0x2210, 0x3210],
        _ => [0x1010, 0x3232, 0x1010, 0x3232],
    };
    table[c as usize & 3]
}

/// Bytes of `a` times bytes of `b`; bits 0 and 1 of `signs` say which of them are signed.
fn dot4(a: u32, b: u32, c: u32, signs: u32) -> u32 {
    let mut sum = c;
    for byte in 0..4 {
        sum = sum.wrapping_add(
            signed_byte(a, byte, signs & 1).wrapping_mul(signed_byte(b, byte, signs & 2)) as u32
        );
    }
    sum
}

/// Halves of `a` times two bytes of `b`, the upper ones where bit 2 of `signs` is set.
fn dot2(a: u32, b: u32, c: u32, signs: u32) -> u32 {
    let mut sum = c;
    for half in 0..2 {
        let value = a >> (16 * half) & 0xffff;
        let value = if signs & 1 != 0 { i32::from(value as u16 as i16) } else { value as i32 };
        let byte = half + if signs & 4 != 0 { 2 } else { 0 };
        sum = sum.wrapping_add(value.wrapping_mul(signed_byte(b, byte, signs & 2)) as u32);
    }
    sum
}

fn signed_byte(word: u32, byte: u32, signed: u32) -> i32 {
    let value = (word >> (8 * byte)) as u8;
    if signed != 0 { i32::from(value as i8) } else { i32::from(value) }
}
