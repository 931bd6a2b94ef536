//! Arithmetic of half precision and bf16, single and in pairs. Each result is computed exactly and rounded once.

use super::approximate::{exp2, hyperbolic};
use super::registers::lanes;
use super::rounding::{BF16, F16, FTZ, RELU, Rounding, SAT, from_bf16, from_f16, narrow, odd_sum};

/// One format's arithmetic on bits.
macro_rules! format {
    ($module:ident, $format:expr, $from:path) => {
        /// Arithmetic of one format.
        pub(in crate::sim) mod $module {
            use super::*;

            fn value(bits: u16, mode: u32) -> f64 {
                // An exponent field of zero is zero or a subnormal number.
                let subnormal = bits >> $format.mantissa & ((1 << $format.exponent) - 1) == 0;
                let bits = if mode & FTZ != 0 && subnormal { bits & 0x8000 } else { bits };
                f64::from($from(bits))
            }
            fn result(x: f64, mode: u32) -> u16 {
                let x = if mode & SAT != 0 { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
                let x = if mode & RELU != 0 && x < 0.0 { 0.0 } else { x };
                let bits = narrow(x, $format, Rounding::of(mode));
                let subnormal = bits >> $format.mantissa & ((1 << $format.exponent) - 1) == 0;
                if mode & FTZ != 0 && subnormal { bits & 0x8000 } else { bits }
            }
            fn add1(a: u16, b: u16, mode: u32) -> u16 { result(odd_sum(value(a, mode), value(b, mode)), mode) }
            fn sub1(a: u16, b: u16, mode: u32) -> u16 { result(odd_sum(value(a, mode), -value(b, mode)), mode) }
            fn mul1(a: u16, b: u16, mode: u32) -> u16 { result(value(a, mode) * value(b, mode), mode) }
            fn fma1(a: u16, b: u16, c: u16, mode: u32) -> u16 {
                result(odd_sum(value(a, mode) * value(b, mode), value(c, mode)), mode)
            }
            fn least(a: u16, b: u16, mode: u32, sign: f64) -> u16 {
                let (x, y) = (sign * value(a, mode), sign * value(b, mode));
                let nan = narrow(f64::NAN, $format, Rounding::Nearest);
                if x.is_nan() && y.is_nan() || mode & NAN_WINS != 0 && (x.is_nan() || y.is_nan()) {
                    nan
                } else if y.is_nan() || x < y || x == y && x.is_sign_negative() {
                    a
                } else {
                    b
                }
            }
            fn min1(a: u16, b: u16, mode: u32) -> u16 { least(a, b, mode, 1.0) }
            fn max1(a: u16, b: u16, mode: u32) -> u16 { least(a, b, mode, -1.0) }
            fn neg1(a: u16, _mode: u32) -> u16 { a ^ 0x8000 }
            fn abs1(a: u16, _mode: u32) -> u16 { a & 0x7fff }
            fn ex2_1(a: u16, mode: u32) -> u16 { result(exp2(value(a, mode) as f32), mode) }
            fn tanh1(a: u16, mode: u32) -> u16 { result(f64::from(hyperbolic(value(a, mode) as f32)), mode) }
            fn compare(a: u16, b: u16, mode: u32) -> Option<std::cmp::Ordering> {
                value(a, mode).partial_cmp(&value(b, mode))
            }

            lanes! {
                add[mode](a: u16, b: u16) -> u16 { add1(a, b, mode) }
                sub[mode](a: u16, b: u16) -> u16 { sub1(a, b, mode) }
                mul[mode](a: u16, b: u16) -> u16 { mul1(a, b, mode) }
                fma[mode](a: u16, b: u16, c: u16) -> u16 { fma1(a, b, c, mode) }
                min[mode](a: u16, b: u16) -> u16 { min1(a, b, mode) }
                max[mode](a: u16, b: u16) -> u16 { max1(a, b, mode) }
                neg[mode](a: u16) -> u16 { neg1(a, mode) }
                abs[mode](a: u16) -> u16 { abs1(a, mode) }
                ex2[mode](a: u16) -> u16 { ex2_1(a, mode) }
                tanh[mode](a: u16) -> u16 { tanh1(a, mode) }
                add_pair[mode](a: u32, b: u32) -> u32 { pair(a, b, 0, |a, b, _| add1(a, b, mode)) }
                sub_pair[mode](a: u32, b: u32) -> u32 { pair(a, b, 0, |a, b, _| sub1(a, b, mode)) }
                mul_pair[mode](a: u32, b: u32) -> u32 { pair(a, b, 0, |a, b, _| mul1(a, b, mode)) }
                fma_pair[mode](a: u32, b: u32, c: u32) -> u32 { pair(a, b, c, |a, b, c| fma1(a, b, c, mode)) }
                min_pair[mode](a: u32, b: u32) -> u32 { pair(a, b, 0, |a, b, _| min1(a, b, mode)) }
                max_pair[mode](a: u32, b: u32) -> u32 { pair(a, b, 0, |a, b, _| max1(a, b, mode)) }
                neg_pair[mode](a: u32) -> u32 { pair(a, 0, 0, |a, _, _| neg1(a, mode)) }
                abs_pair[mode](a: u32) -> u32 { pair(a, 0, 0, |a, _, _| abs1(a, mode)) }
                ex2_pair[mode](a: u32) -> u32 { pair(a, 0, 0, |a, _, _| ex2_1(a, mode)) }
                tanh_pair[mode](a: u32) -> u32 { pair(a, 0, 0, |a, _, _| tanh1(a, mode)) }
                // The operator stands above the bits of rounding: see COMPARE.
                setp[mode](a: u16, b: u16) -> bool { holds(compare(a, b, mode), mode >> COMPARE) }
                setp_low[mode](a: u32, b: u32) -> bool { holds(compare(a as u16, b as u16, mode), mode >> COMPARE) }
                setp_high[mode](a: u32, b: u32) -> bool {
                    holds(compare((a >> 16) as u16, (b >> 16) as u16, mode), mode >> COMPARE)
                }
            }

            /// A sum for `atom.add`.
            pub(in crate::sim) fn plain_sum(a: u16, b: u16) -> u16 {
                add1(a, b, 0)
            }
        }
    };
}
format!(f16, F16, from_f16);
format!(bf16, BF16, from_bf16);

/// Bit of a mode: `min` and `max` answer NaN where an operand is NaN.
pub(super) const NAN_WINS: u32 = 64;
/// Where a mode holds the index of a comparison in [`COMPARISONS`].
pub(super) const COMPARE: u32 = 8;
/// Comparisons of floats.
pub(super) const COMPARISONS: [&str; 14] =
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

/// Applies a function to both halves.
fn pair(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    let low = f(a as u16, b as u16, c as u16);
    let high = f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(low) | u32::from(high) << 16
}

fn holds(order: Option<std::cmp::Ordering>, comparison: u32) -> bool {
    let Some(order) = order else { return matches!(comparison, 6..=11 | 13) };
    match comparison {
        0 | 6 => order.is_eq(),
        1 | 7 => order.is_ne(),
        2 | 8 => order.is_lt(),
        3 | 9 => order.is_le(),
        4 | 10 => order.is_gt(),
        5 | 11 => order.is_ge(),
        12 => true,
        _ => false,
    }
}
