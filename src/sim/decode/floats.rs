//! Floating-point arithmetic, special functions, and conversions.

use super::Decoder;
use super::operands::bank;
use crate::sim::approximate;
use crate::sim::convert::{self, Modifiers, choose, is_float};
use crate::sim::counters::Class;
use crate::sim::fault::Result;
use crate::sim::float;
use crate::sim::half::{NAN_WINS, bf16, f16};
use crate::sim::instruction::Bank;
use crate::sim::parse::Operand;
use crate::sim::program::Type;
use crate::sim::registers::{Operands, Run};
use crate::sim::rounding::{FTZ, RELU, Rounding, SAT};

const ROUNDINGS: [&str; 5] = ["rn", "rz", "rm", "rp", "rna"];

/// Picks a function of the half-precision module that fits a type.
macro_rules! narrow {
    ($ty:expr, $single:ident, $pair:ident) => {
        match $ty {
            Type::F16 => f16::$single,
            Type::Bf16 => bf16::$single,
            Type::F16x2 => f16::$pair,
            _ => bf16::$pair,
        }
    };
}

impl Decoder<'_, '_> {
    /// Decodes the statement if it is of this kind.
    pub(super) fn floats(&mut self) -> Result<bool> {
        if self.head == "cvt" {
            return self.convert();
        }
        let Some(ty) = self.modifiers.last().and_then(|m| Type::named(m)) else { return Ok(false) };
        let known = matches!(
            self.head,
            "add"
                | "sub"
                | "mul"
                | "fma"
                | "mad"
                | "div"
                | "rcp"
                | "sqrt"
                | "rsqrt"
                | "neg"
                | "abs"
                | "min"
                | "max"
                | "copysign"
                | "testp"
                | "ex2"
                | "lg2"
                | "sin"
                | "cos"
                | "tanh"
        );
        if !known {
            return Ok(false);
        }
        match ty {
            Type::F32 => self.single()?,
            Type::F64 => self.double()?,
            Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2 => self.half(ty)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes rounding, `.ftz` and `.sat`; returns the mode and whether a rounding was named.
    fn mode(&mut self) -> (u32, bool) {
        let rounding = self.takes_one(&ROUNDINGS);
        let mut mode = rounding.unwrap_or(0) as u32;
        for (name, bit) in [("ftz", FTZ), ("sat", SAT), ("relu", RELU), ("NaN", NAN_WINS)] {
            if self.takes(name) {
                mode |= bit;
            }
        }
        (mode, rounding.is_some())
    }

    fn single(&mut self) -> Result<()> {
        use Type::F32;
        self.takes_type()?;
        if self.head == "testp" {
            return self.test(F32);
        }
        let approximate = self.takes("approx");
        let full = self.takes("full");
        let (mode, _) = self.mode();
        let special = matches!(self.head, "ex2" | "lg2" | "rsqrt" | "sin" | "cos" | "tanh")
            || approximate && matches!(self.head, "rcp" | "sqrt" | "div");
        self.class(if special { Class::Special } else { Class::Float });
        if special && !approximate || approximate && !special {
            return Err(self.unknown("the precision"));
        }
        let pick = |plain: Run, moded: Run| if mode == 0 { plain } else { moded };
        let nan = mode & NAN_WINS != 0;
        let (run, count): (Run, usize) = match self.head {
            "add" => (pick(float::add_f32, float::add_f32_mode), 3),
            "sub" => (pick(float::sub_f32, float::sub_f32_mode), 3),
            "mul" => (pick(float::mul_f32, float::mul_f32_mode), 3),
            "fma" | "mad" => (pick(float::fma_f32, float::fma_f32_mode), 4),
            "div" if full => (approximate::div_full, 3),
            "div" if approximate => (approximate::div, 3),
            "div" => (pick(float::div_f32, float::div_f32_mode), 3),
            "rcp" if approximate => (approximate::rcp, 2),
            "rcp" => (pick(float::rcp_f32, float::rcp_f32_mode), 2),
            "sqrt" if approximate => (approximate::sqrt, 2),
            "sqrt" => (pick(float::sqrt_f32, float::sqrt_f32_mode), 2),
            "rsqrt" => (approximate::rsqrt, 2),
            "ex2" => (approximate::ex2, 2),
            "lg2" => (approximate::lg2, 2),
            "sin" => (approximate::sine, 2),
            "cos" => (approximate::cosine, 2),
            "tanh" => (approximate::tanh, 2),
            "neg" => (pick(float::neg_f32, float::neg_f32_mode), 2),
            "abs" => (pick(float::abs_f32, float::abs_f32_mode), 2),
            "min" if nan => (float::min_f32_nan, 3),
            "max" if nan => (float::max_f32_nan, 3),
            "min" => (pick(float::min_f32, float::min_f32_mode), 3),
            "max" => (pick(float::max_f32, float::max_f32_mode), 3),
            "copysign" => (float::copysign_f32, 3),
            _ => return Err(self.unknown("the operation")),
        };
        self.lanes(run, &[F32; 4][..count], mode)
    }

    fn test(&mut self, ty: Type) -> Result<()> {
        self.class(Class::Float);
        let names = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let Some(which) = self.takes_one(&names) else { return Err(self.unknown("the property")) };
        let singles: [Run; 6] = [
            float::finite_f32,
            float::infinite_f32,
            float::number_f32,
            float::notanumber_f32,
            float::normal_f32,
            float::subnormal_f32,
        ];
        let doubles: [Run; 6] = [
            float::finite_f64,
            float::infinite_f64,
            float::number_f64,
            float::notanumber_f64,
            float::normal_f64,
            float::subnormal_f64,
        ];
        self.lanes(if ty == Type::F32 { singles[which] } else { doubles[which] }, &[Type::Pred, ty], 0)
    }

    fn double(&mut self) -> Result<()> {
        use Type::F64;
        self.takes_type()?;
        if self.head == "testp" {
            return self.test(F64);
        }
        self.class(Class::Double);
        if self.takes("approx") {
            // These always flush; `.ftz` says so.
            self.takes("ftz");
            self.class(Class::Special);
            return match self.head {
                "rcp" => self.lanes(approximate::rcp_f64, &[F64, F64], 0),
                "rsqrt" => self.lanes(approximate::rsqrt_f64, &[F64, F64], 0),
                _ => Err(self.unknown("the precision")),
            };
        }
        let rounding = self.takes_one(&ROUNDINGS).unwrap_or(0);
        let mode = rounding as u32;
        let pick = |plain: Run, moded: Run| if mode == 0 { plain } else { moded };
        let (run, count): (Run, usize) = match self.head {
            "add" => (pick(float::add_f64, float::add_f64_mode), 3),
            "sub" => (pick(float::sub_f64, float::sub_f64_mode), 3),
            "mul" => (pick(float::mul_f64, float::mul_f64_mode), 3),
            "fma" | "mad" => (pick(float::fma_f64, float::fma_f64_mode), 4),
            "div" => (pick(float::div_f64, float::div_f64_mode), 3),
            "rcp" => (pick(float::rcp_f64, float::rcp_f64_mode), 2),
            "sqrt" => (pick(float::sqrt_f64, float::sqrt_f64_mode), 2),
            "neg" => (float::neg_f64, 2),
            "abs" => (float::abs_f64, 2),
            "min" => (float::min_f64, 3),
            "max" => (float::max_f64, 3),
            "copysign" => (float::copysign_f64, 3),
            _ => return Err(self.unknown("the operation")),
        };
        self.lanes(run, &[F64; 4][..count], mode)
    }

    fn half(&mut self, ty: Type) -> Result<()> {
        self.takes_type()?;
        self.class(Class::Float);
        if self.takes("approx") {
            self.class(Class::Special);
        }
        // `.noftz` names what happens anyway.
        self.takes("noftz");
        let (mode, _) = self.mode();
        let (run, count) = match self.head {
            "add" => (narrow!(ty, add, add_pair), 3),
            "sub" => (narrow!(ty, sub, sub_pair), 3),
            "mul" => (narrow!(ty, mul, mul_pair), 3),
            "fma" => (narrow!(ty, fma, fma_pair), 4),
            "min" => (narrow!(ty, min, min_pair), 3),
            "max" => (narrow!(ty, max, max_pair), 3),
            "neg" => (narrow!(ty, neg, neg_pair), 2),
            "abs" => (narrow!(ty, abs, abs_pair), 2),
            "ex2" => (narrow!(ty, ex2, ex2_pair), 2),
            "tanh" => (narrow!(ty, tanh, tanh_pair), 2),
            _ => return Err(self.unknown("the type")),
        };
        self.lanes(run, &[ty; 4][..count], mode)
    }

    fn convert(&mut self) -> Result<bool> {
        self.class(Class::Convert);
        if self.takes("tf32") {
            return self.convert_tf32();
        }
        let from = self.takes_type()?;
        let to = self.takes_type()?;
        let integer = self.takes_one(&["rni", "rzi", "rmi", "rpi"]).map(|which| Rounding::of(which as u32));
        let (mode, named) = self.mode();
        if mode & NAN_WINS != 0 || mode & 7 == 4 {
            return Err(self.unknown("the modifiers"));
        }
        if matches!(to, Type::F16x2 | Type::Bf16x2) {
            if from != Type::F32 || integer.is_some() {
                return Err(self.unknown("the types"));
            }
            let plain: Run = if to == Type::F16x2 { convert::f32s_to_f16x2 } else { convert::f32s_to_bf16x2 };
            let single = if to == Type::F16x2 { Type::F16 } else { Type::Bf16 };
            let run = if mode == 0 { plain } else { convert::f32s_to_pair };
            let mode = if mode == 0 { 0 } else { convert::pair_mode(single, mode) };
            self.lanes(run, &[to, Type::F32, Type::F32], mode)?;
            return Ok(true);
        }
        if to == Type::Pred || from == Type::Pred || matches!(from, Type::F16x2 | Type::Bf16x2) {
            return Err(self.unknown("the types"));
        }
        // Narrowing a float needs a rounding; a conversion to an integer needs one of its own kind.
        let narrows = is_float(to) && is_float(from) && to.bytes() < from.bytes();
        if narrows && !named && integer.is_none()
            || is_float(from) != is_float(to) && integer.is_none() && !named
        {
            return Err(self.unknown("the missing rounding"));
        }
        self.expect_operands(2)?;
        let (d, wide) = self.wide_target(0, to)?;
        let a = self.wide_source(1, from)?;
        let (run, mode) = choose(&Modifiers { to, from, mode, integer, wide });
        self.part(run, Operands { d, a, mode, ..Operands::default() });
        Ok(true)
    }

    fn convert_tf32(&mut self) -> Result<bool> {
        let from = self.takes_type()?;
        let rounding = self.takes_one(&ROUNDINGS);
        if from != Type::F32 || rounding != Some(4) {
            return Err(self.unknown("the types"));
        }
        self.lanes(convert::f32_to_tf32, &[Type::B32, Type::F32], 0)?;
        Ok(true)
    }

    /// A result whose register may be wider than its type; the flag says whether it has more than 16 bits.
    fn wide_target(&mut self, index: usize, ty: Type) -> Result<(u32, bool)> {
        match self.operand(index)? {
            Operand::Register(register) if register.bank == bank(ty) => {
                Ok((register.index, register.ty.bytes() > 2))
            }
            _ => Ok((self.target(index, ty)?, false)),
        }
    }

    /// A source whose register may be wider than its type.
    fn wide_source(&mut self, index: usize, ty: Type) -> Result<u32> {
        match self.operand(index)?.clone() {
            Operand::Register(register) if register.bank == Bank::Doubles && bank(ty) == Bank::Words => {
                let low = self.scratch(Bank::Words);
                let operands = Operands { d: low, a: register.index, ..Operands::default() };
                self.part(crate::sim::arithmetic::low_b32, operands);
                Ok(low)
            }
            _ => self.source(index, ty),
        }
    }
}
