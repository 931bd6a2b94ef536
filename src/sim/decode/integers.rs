//! Integer and bit instructions, comparisons, selections.
//! One file, though long: a case for each instruction form, none of which knows another.

use super::Decoder;
use super::operands::bank;
use crate::sim::arithmetic::{self as bits, PERMUTE_MODES, b16, b32, b64};
use crate::sim::counters::Class;
use crate::sim::fault::Result;
use crate::sim::float::{compare_f32, compare_f64};
use crate::sim::half::{COMPARE, COMPARISONS, bf16, f16};
use crate::sim::instruction::{Bank, Guard};
use crate::sim::parse::Operand;
use crate::sim::program::Type;
use crate::sim::registers::{Operands, Run};
use crate::sim::rounding::FTZ;

/// The function of a name in the module of a type's width.
macro_rules! by_width {
    ($ty:expr, $name:ident) => {
        match $ty.bytes() {
            1 | 2 => b16::$name,
            4 => b32::$name,
            _ => b64::$name,
        }
    };
    ($ty:expr, $unsigned:ident, $signed:ident) => {
        if is_signed($ty) { by_width!($ty, $signed) } else { by_width!($ty, $unsigned) }
    };
}

pub(super) fn is_signed(ty: Type) -> bool {
    matches!(ty, Type::S8 | Type::S16 | Type::S32 | Type::S64)
}

fn is_integer(ty: Type) -> bool {
    use Type::{B16, B32, B64, S16, S32, S64, U16, U32, U64};
    matches!(ty, B16 | U16 | S16 | B32 | U32 | S32 | B64 | U64 | S64)
}

impl Decoder<'_, '_> {
    /// Decodes the statement if it is of this kind.
    pub(super) fn integers(&mut self) -> Result<bool> {
        // The mode of `prmt` stands behind its type.
        if self.head == "prmt" && self.modifiers.len() == 2 {
            self.modifiers.swap(0, 1);
        }
        let Some(ty) = self.modifiers.last().and_then(|m| Type::named(m)) else { return Ok(false) };
        match self.head {
            "setp" => return self.setp(ty),
            "set" => return self.set(ty),
            "selp" | "slct" => return self.select(ty),
            "and" | "or" | "xor" | "not" if ty == Type::Pred => return self.predicates(),
            "bfind" | "popc" | "clz" | "brev" | "bfe" | "bfi" | "bmsk" | "lop3" | "prmt" | "shf" | "dp4a"
            | "dp2a" => {
                return self.bit_fields(ty);
            }
            _ if !is_integer(ty) => return Ok(false),
            "add" | "sub" | "addc" | "subc" | "mad" | "madc"
                if self.head.ends_with('c') || self.modifiers.contains(&"cc") =>
            {
                return self.carries(ty);
            }
            _ => {}
        }
        let sat = self.modifiers.contains(&"sat");
        let run: Run = match self.head {
            "add" if sat => self.saturated(ty, by_width!(ty, add_saturated))?,
            "sub" if sat => self.saturated(ty, by_width!(ty, sub_saturated))?,
            "add" => by_width!(ty, add),
            "sub" => by_width!(ty, sub),
            "mul" | "mad" | "mul24" | "mad24" => return self.products(ty),
            "div" => by_width!(ty, div_unsigned, div_signed),
            "rem" => by_width!(ty, rem_unsigned, rem_signed),
            "min" => by_width!(ty, min_unsigned, min_signed),
            "max" => by_width!(ty, max_unsigned, max_signed),
            "and" => by_width!(ty, and),
            "or" => by_width!(ty, or),
            "xor" => by_width!(ty, xor),
            "shl" | "shr" => {
                self.takes_type()?;
                self.class(Class::Integer);
                let run = if self.head == "shl" {
                    by_width!(ty, shl)
                } else {
                    by_width!(ty, shr_unsigned, shr_signed)
                };
                self.lanes(run, &[ty, ty, Type::U32], 0)?;
                return Ok(true);
            }
            "sad" => {
                self.takes_type()?;
                self.class(Class::Integer);
                self.lanes(by_width!(ty, sad_unsigned, sad_signed), &[ty, ty, ty, ty], 0)?;
                return Ok(true);
            }
            "abs" | "neg" | "not" | "cnot" => {
                self.takes_type()?;
                self.class(Class::Integer);
                let run = match self.head {
                    "abs" => by_width!(ty, abs),
                    "neg" => by_width!(ty, neg),
                    "not" => by_width!(ty, not),
                    _ => by_width!(ty, cnot),
                };
                self.lanes(run, &[ty, ty], 0)?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        self.takes_type()?;
        self.class(Class::Integer);
        self.lanes(run, &[ty, ty, ty], 0)?;
        Ok(true)
    }

    fn saturated(&mut self, ty: Type, run: Run) -> Result<Run> {
        if ty == Type::S32 && self.takes("sat") { Ok(run) } else { Err(self.unknown("the saturation")) }
    }

    fn products(&mut self, ty: Type) -> Result<bool> {
        self.takes_type()?;
        self.class(Class::Integer);
        let (signed, add) = (is_signed(ty), self.head.starts_with("mad"));
        let part = self.takes_one(&["lo", "hi", "wide"]);
        let wider = match ty {
            Type::U16 => Type::U32,
            Type::S16 => Type::S32,
            Type::U32 => Type::U64,
            Type::S32 => Type::S64,
            _ => ty,
        };
        if self.head.ends_with("24") {
            let run: Run = match (part, signed) {
                (Some(0), false) => bits::mul24_low_unsigned,
                (Some(0), true) => bits::mul24_low_signed,
                (Some(1), false) => bits::mul24_high_unsigned,
                (Some(1), true) => bits::mul24_high_signed,
                _ => return Err(self.unknown("the part")),
            };
            return self.product_and_sum(run, ty, add);
        }
        match part {
            Some(0) if add => self.lanes(by_width!(ty, mad_low), &[ty; 4], 0)?,
            Some(0) => self.lanes(by_width!(ty, mul_low), &[ty; 3], 0)?,
            Some(1) if add && ty == Type::S32 && self.takes("sat") => {
                self.lanes(bits::mad_high_saturated, &[ty; 4], 0)?;
            }
            Some(1) => {
                return self.product_and_sum(by_width!(ty, mul_high_unsigned, mul_high_signed), ty, add);
            }
            Some(2) if wider != ty => {
                let run: Run = match (ty, add) {
                    (Type::U16, false) => bits::mul_wide_u16,
                    (Type::S16, false) => bits::mul_wide_s16,
                    (Type::U32, false) => bits::mul_wide_u32,
                    (_, false) => bits::mul_wide_s32,
                    (Type::U16, true) => bits::mad_wide_u16,
                    (Type::S16, true) => bits::mad_wide_s16,
                    (Type::U32, true) => bits::mad_wide_u32,
                    (_, true) => bits::mad_wide_s32,
                };
                let types = [wider, ty, ty, wider];
                self.lanes(run, if add { &types } else { &types[..3] }, 0)?;
            }
            _ => return Err(self.unknown("the part")),
        }
        Ok(true)
    }

    /// A product, and for `mad` a sum after it.
    fn product_and_sum(&mut self, run: Run, ty: Type, add: bool) -> Result<bool> {
        if !add {
            self.lanes(run, &[ty; 3], 0)?;
            return Ok(true);
        }
        self.expect_operands(4)?;
        let product = self.scratch(bank(ty));
        let operands =
            Operands { d: product, a: self.source(1, ty)?, b: self.source(2, ty)?, ..Operands::default() };
        self.part(run, operands);
        let operands =
            Operands { d: self.target(0, ty)?, a: product, b: self.source(3, ty)?, ..Operands::default() };
        self.part(by_width!(ty, add), operands);
        Ok(true)
    }

    /// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.lo.cc`, `madc.hi` and their like.
    fn carries(&mut self, ty: Type) -> Result<bool> {
        self.takes_type()?;
        self.class(Class::Integer);
        let (reads, writes) = (self.head.ends_with('c'), self.takes("cc"));
        let double = ty.bytes() == 8;
        if ty.bytes() < 4 {
            return Err(self.unknown("the type"));
        }
        let subtract = self.head.starts_with("sub");
        let (first, second) = if self.head.starts_with("mad") {
            self.expect_operands(4)?;
            let run = match self.takes_one(&["lo", "hi"]) {
                Some(0) => by_width!(ty, mul_low),
                Some(1) => by_width!(ty, mul_high_unsigned, mul_high_signed),
                _ => return Err(self.unknown("the part")),
            };
            let product = self.scratch(bank(ty));
            let operands = Operands {
                d: product,
                a: self.source(1, ty)?,
                b: self.source(2, ty)?,
                ..Operands::default()
            };
            self.part(run, operands);
            (product, self.source(3, ty)?)
        } else {
            self.expect_operands(3)?;
            (self.source(1, ty)?, self.source(2, ty)?)
        };
        let carry = self.builder.carry();
        // Without a carry to read, a predicate that nobody sets is false.
        let old = if reads { carry } else { self.scratch(Bank::Predicates) };
        let new = self.scratch(Bank::Predicates);
        let (carry_of, sum): (Run, Run) = match (subtract, double) {
            (false, false) => (bits::carry_of_sum_b32, bits::sum_with_carry_b32),
            (false, true) => (bits::carry_of_sum_b64, bits::sum_with_carry_b64),
            (true, false) => (bits::borrow_of_difference_b32, bits::difference_with_borrow_b32),
            (true, true) => (bits::borrow_of_difference_b64, bits::difference_with_borrow_b64),
        };
        let operands = Operands { d: new, a: first, b: second, c: old, ..Operands::default() };
        self.part(carry_of, operands);
        let d = self.target(0, ty)?;
        self.part(sum, Operands { d, ..operands });
        if writes {
            self.part(bits::predicate_mov, Operands { d: carry, a: new, ..Operands::default() });
        }
        Ok(true)
    }

    fn predicates(&mut self) -> Result<bool> {
        self.takes_type()?;
        self.class(Class::Integer);
        let run: Run = match self.head {
            "and" => bits::predicate_and,
            "or" => bits::predicate_or,
            "xor" => bits::predicate_xor,
            _ => bits::predicate_not,
        };
        let count = if self.head == "not" { 2 } else { 3 };
        self.lanes(run, &[Type::Pred; 3][..count], 0)?;
        Ok(true)
    }

    fn bit_fields(&mut self, ty: Type) -> Result<bool> {
        use Type::{B32, U32};
        self.takes_type()?;
        self.class(Class::Integer);
        let wide = ty.bytes() == 8;
        let pick = |narrow: Run, double: Run| if wide { double } else { narrow };
        match self.head {
            "popc" => self.lanes(pick(bits::popc_b32, bits::popc_b64), &[U32, ty], 0)?,
            "clz" => self.lanes(pick(bits::clz_b32, bits::clz_b64), &[U32, ty], 0)?,
            "brev" => self.lanes(pick(bits::brev_b32, bits::brev_b64), &[ty, ty], 0)?,
            "bfind" => {
                let shift = self.takes("shiftamt");
                let run: Run = match (ty, shift) {
                    (Type::U32, false) => bits::bfind_u32,
                    (Type::S32, false) => bits::bfind_s32,
                    (Type::U64, false) => bits::bfind_u64,
                    (Type::S64, false) => bits::bfind_s64,
                    (Type::U32, true) => bits::bfind_shift_u32,
                    (Type::S32, true) => bits::bfind_shift_s32,
                    (Type::U64, true) => bits::bfind_shift_u64,
                    (Type::S64, true) => bits::bfind_shift_s64,
                    _ => return Err(self.unknown("the type")),
                };
                self.lanes(run, &[U32, ty], 0)?;
            }
            "bfe" => {
                let run: Run = match ty {
                    Type::U32 => bits::bfe_u32,
                    Type::S32 => bits::bfe_s32,
                    Type::U64 => bits::bfe_u64,
                    Type::S64 => bits::bfe_s64,
                    _ => return Err(self.unknown("the type")),
                };
                self.lanes(run, &[ty, ty, U32, U32], 0)?;
            }
            "bfi" => self.lanes(pick(bits::bfi_b32, bits::bfi_b64), &[ty, ty, ty, U32, U32], 0)?,
            "bmsk" => match self.takes_one(&["clamp", "wrap"]) {
                Some(0) => self.lanes(bits::bmsk_clamp, &[B32, U32, U32], 0)?,
                Some(1) => self.lanes(bits::bmsk_wrap, &[B32, U32, U32], 0)?,
                _ => return Err(self.unknown("the mode")),
            },
            "lop3" => {
                let table = self.immediate(4)? as u32 & 0xff;
                self.expect_operands(5)?;
                let (d, a) = (self.target(0, B32)?, self.source(1, B32)?);
                let (b, c) = (self.source(2, B32)?, self.source(3, B32)?);
                self.part(bits::lop3, Operands { d, a, b, c, mode: table, e: 0 });
            }
            "prmt" => match self.takes_one(&PERMUTE_MODES) {
                Some(mode) => self.lanes(bits::prmt_mode, &[B32, B32, B32, B32], mode as u32)?,
                None => self.lanes(bits::prmt, &[B32, B32, B32, B32], 0)?,
            },
            "shf" => {
                let run: Run = match (self.takes_one(&["l", "r"]), self.takes_one(&["clamp", "wrap"])) {
                    (Some(0), Some(0)) => bits::shf_left_clamp,
                    (Some(0), Some(1)) => bits::shf_left_wrap,
                    (Some(1), Some(0)) => bits::shf_right_clamp,
                    (Some(1), Some(1)) => bits::shf_right_wrap,
                    _ => return Err(self.unknown("the mode")),
                };
                self.lanes(run, &[B32, B32, B32, U32], 0)?;
            }
            // dp4a.atype.btype: the last type is that of b, the one before it that of a.
            _ => {
                let b_signed = is_signed(ty);
                let a_signed = is_signed(self.takes_type()?);
                let upper = self.head == "dp2a" && self.takes_one(&["lo", "hi"]) == Some(1);
                let mode = u32::from(a_signed) | u32::from(b_signed) << 1 | u32::from(upper) << 2;
                let run: Run = if self.head == "dp4a" { bits::dp4a } else { bits::dp2a };
                self.lanes(run, &[B32, B32, B32, B32], mode)?;
            }
        }
        Ok(true)
    }

    /// The function that compares, its mode, and whether its operands are swapped and its result negated.
    fn comparison(&mut self, ty: Type) -> Result<(Run, u32, bool)> {
        let ftz = if self.takes("ftz") { FTZ } else { 0 };
        let names = ["lo", "ls", "hi", "hs"];
        let index = match self.takes_one(&COMPARISONS) {
            Some(index) => index,
            // Unsigned order under its old names.
            None => match self.takes_one(&names) {
                Some(index) => [2, 3, 4, 5][index],
                None => return Err(self.unknown("the comparison")),
            },
        };
        let name = COMPARISONS[index];
        let swap = matches!(name, "gt" | "ge" | "gtu" | "geu");
        macro_rules! float {
            ($module:ident) => {
                match name {
                    "eq" => $module::eq,
                    "ne" => $module::ne,
                    "lt" | "gt" => $module::lt,
                    "le" | "ge" => $module::le,
                    "equ" => $module::equ,
                    "neu" => $module::neu,
                    "ltu" | "gtu" => $module::ltu,
                    "leu" | "geu" => $module::leu,
                    "num" => $module::num,
                    _ => $module::nan,
                }
            };
        }
        let (run, mode): (Run, u32) = match ty {
            Type::F32 => (float!(compare_f32), ftz),
            Type::F64 => (float!(compare_f64), 0),
            Type::F16 => return Ok((f16::setp, ftz | (index as u32) << COMPARE, false)),
            Type::Bf16 => return Ok((bf16::setp, ftz | (index as u32) << COMPARE, false)),
            _ if is_integer(ty) => (
                match name {
                    "eq" => by_width!(ty, equal),
                    "ne" => by_width!(ty, not_equal),
                    "lt" | "gt" => by_width!(ty, less_unsigned, less_signed),
                    "le" | "ge" => by_width!(ty, less_equal_unsigned, less_equal_signed),
                    _ => return Err(self.unknown("the comparison")),
                },
                0,
            ),
            _ => return Err(self.unknown("the type")),
        };
        Ok((run, mode, swap))
    }

    /// Compares operands 1 and 2 into a predicate of its own, combined with operand 3 where `.and`, `.or` or `.xor` asks.
    fn compared(&mut self, ty: Type) -> Result<(u32, Option<(Run, u32)>)> {
        let combine = self.takes_one(&["and", "or", "xor"]);
        let (run, mode, swap) = self.comparison(ty)?;
        let (first, second) = (self.source(1, ty)?, self.source(2, ty)?);
        let (a, b) = if swap { (second, first) } else { (first, second) };
        let d = self.scratch(Bank::Predicates);
        self.part(run, Operands { d, a, b, mode, ..Operands::default() });
        let Some(combine) = combine else {
            self.expect_operands(3)?;
            return Ok((d, None));
        };
        self.expect_operands(4)?;
        let (mut other, negated) = self.predicate(3)?;
        if negated {
            let positive = self.scratch(Bank::Predicates);
            self.part(bits::predicate_not, Operands { d: positive, a: other, ..Operands::default() });
            other = positive;
        }
        let run: Run = [bits::predicate_and, bits::predicate_or, bits::predicate_xor][combine];
        Ok((d, Some((run, other))))
    }

    fn setp(&mut self, ty: Type) -> Result<bool> {
        self.takes_type()?;
        self.class(if is_integer(ty) { Class::Integer } else { Class::Float });
        if matches!(ty, Type::F16x2 | Type::Bf16x2) {
            return self.setp_pair(ty);
        }
        let (first, second) = match self.operand(0)?.clone() {
            Operand::Pair(first, second) => (*first, Some(*second)),
            operand => (operand, None),
        };
        // The common case is one instruction.
        if second.is_none() && !self.modifiers.iter().any(|m| matches!(*m, "and" | "or" | "xor")) {
            self.expect_operands(3)?;
            let (run, mode, swap) = self.comparison(ty)?;
            let (x, y) = (self.source(1, ty)?, self.source(2, ty)?);
            let (a, b) = if swap { (y, x) } else { (x, y) };
            let d = self.target(0, Type::Pred)?;
            self.part(run, Operands { d, a, b, mode, ..Operands::default() });
            return Ok(true);
        }
        if second.is_some() {
            self.keep_guard();
        }
        let (found, combine) = self.compared(ty)?;
        let opposite = self.scratch(Bank::Predicates);
        self.part(bits::predicate_not, Operands { d: opposite, a: found, ..Operands::default() });
        // Both values are ready before either result is written: a result may be the predicate combined with.
        for value in [found, opposite] {
            if let Some((run, other)) = combine {
                self.part(run, Operands { d: value, a: value, b: other, ..Operands::default() });
            }
        }
        for (value, result) in [(found, Some(first)), (opposite, second)] {
            let Some(result) = result else { continue };
            let d = self.target_of(&result, Type::Pred)?;
            self.part(bits::predicate_mov, Operands { d, a: value, ..Operands::default() });
        }
        Ok(true)
    }

    /// `setp.OP.f16x2 p|q`: one predicate for each half.
    fn setp_pair(&mut self, ty: Type) -> Result<bool> {
        let ftz = if self.takes("ftz") { FTZ } else { 0 };
        let Some(index) = self.takes_one(&COMPARISONS) else { return Err(self.unknown("the comparison")) };
        self.expect_operands(3)?;
        let Operand::Pair(low, high) = self.operand(0)?.clone() else {
            return Err(self.unknown("the result"));
        };
        self.keep_guard();
        let (a, b) = (self.source(1, ty)?, self.source(2, ty)?);
        let runs: [Run; 2] = if ty == Type::F16x2 {
            [f16::setp_low, f16::setp_high]
        } else {
            [bf16::setp_low, bf16::setp_high]
        };
        for (run, result) in runs.into_iter().zip([low, high]) {
            let d = self.target_of(&result, Type::Pred)?;
            self.part(
                run,
                Operands { d, a, b, mode: ftz | (index as u32) << COMPARE, ..Operands::default() },
            );
        }
        Ok(true)
    }

    /// `set.OP.dtype.stype`: all ones or 1.0 where the comparison holds.
    fn set(&mut self, ty: Type) -> Result<bool> {
        self.takes_type()?;
        self.class(Class::Integer);
        let result = self.takes_type()?;
        let (found, combine) = self.compared(ty)?;
        if let Some((run, other)) = combine {
            self.part(run, Operands { d: found, a: found, b: other, ..Operands::default() });
        }
        let run: Run = match result {
            Type::U32 | Type::S32 | Type::B32 => bits::ones_where,
            Type::F32 => bits::one_float_where,
            _ => return Err(self.unknown("the type of the result")),
        };
        let d = self.target(0, result)?;
        self.part(run, Operands { d, a: found, ..Operands::default() });
        Ok(true)
    }

    fn select(&mut self, ty: Type) -> Result<bool> {
        self.takes_type()?;
        self.class(Class::Integer);
        if self.head == "selp" {
            let run = if ty == Type::Pred { bits::predicate_select } else { by_width!(ty, select) };
            self.lanes(run, &[ty, ty, ty, Type::Pred], 0)?;
            return Ok(true);
        }
        // slct.dtype.ctype: the last type is that of the third operand.
        self.takes("ftz");
        let value = self.takes_type()?;
        let run = match ty {
            Type::F32 => by_width!(value, select_by_float),
            Type::S32 => by_width!(value, select_by_sign),
            _ => return Err(self.unknown("the type")),
        };
        self.lanes(run, &[value, value, value, ty], 0)?;
        Ok(true)
    }

    /// A guard's predicate may be a result of its own statement, whose later parts must still see the old value.
    fn keep_guard(&mut self) {
        if let Some(guard) = self.builder.guard.take() {
            let copy = self.scratch(Bank::Predicates);
            self.part(bits::predicate_mov, Operands { d: copy, a: guard.predicate, ..Operands::default() });
            self.builder.guard = Some(Guard { predicate: copy, negated: guard.negated });
        }
    }
}
