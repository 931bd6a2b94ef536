//! `mov` with packing and unpacking, address conversions, special registers that change.

use super::operands::bank;
use super::{Decoder, Special};
use crate::sim::arithmetic::{self as bits, b32, b64};
use crate::sim::counters::Class;
use crate::sim::fault::Result;
use crate::sim::instruction::{Bank, Op};
use crate::sim::parse::Operand;
use crate::sim::program::Type;
use crate::sim::registers::{Operands, Run};
use crate::sim::windows;

impl<'a> Decoder<'_, 'a> {
    /// Decodes the statement if it is of this kind.
    pub(super) fn moves(&mut self) -> Result<bool> {
        match self.head {
            "mov" => self.mov()?,
            "cvta" => self.cvta()?,
            "isspacep" => self.isspacep()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn mov(&mut self) -> Result<()> {
        self.class(Class::Move);
        let ty = self.takes_type()?;
        self.expect_operands(2)?;
        match (self.operand(0)?.clone(), self.operand(1)?.clone()) {
            (Operand::Vector(parts), source) => self.unpack(ty, &parts, &source),
            (_, Operand::Vector(parts)) => self.pack(ty, &parts),
            (_, Operand::Special("%clock" | "%clock64" | "%clock_hi" | "%globaltimer")) => {
                let d = self.target(0, ty)?;
                self.builder.emit(Op::Clock(bank(ty), d));
                Ok(())
            }
            // `%envreg` and its like are not known; a special register of 32 bits may fill one of 64.
            (_, Operand::Special("%gridid")) if bank(ty) == Bank::Doubles => {
                let d = self.target(0, ty)?;
                let a = self.builder.special(Special::Zero);
                self.part(crate::sim::convert::u32_to_u64, Operands { d, a, ..Operands::default() });
                Ok(())
            }
            _ => {
                let run: Run = match bank(ty) {
                    Bank::Words => b32::mov,
                    Bank::Doubles => b64::mov,
                    Bank::Predicates => bits::predicate_mov,
                };
                self.lanes(run, &[ty, ty], 0)
            }
        }
    }

    fn pack(&mut self, ty: Type, parts: &[Operand<'a>]) -> Result<()> {
        let d = self.target(0, ty)?;
        match (ty.bytes(), parts.len()) {
            (2, 2) => self.pack_two(bits::pack_b16, d, parts, Type::B8),
            (4, 2) => self.pack_two(bits::pack_b32, d, parts, Type::B16),
            (8, 2) => self.pack_two(bits::pack_b64, d, parts, Type::B32),
            (8, 4) => {
                let (low, high) = (self.scratch(Bank::Words), self.scratch(Bank::Words));
                self.pack_two(bits::pack_b32, low, &parts[..2], Type::B16)?;
                self.pack_two(bits::pack_b32, high, &parts[2..], Type::B16)?;
                self.part(bits::pack_b64, Operands { d, a: low, b: high, ..Operands::default() });
                Ok(())
            }
            (4, 4) => {
                let (low, high) = (self.scratch(Bank::Words), self.scratch(Bank::Words));
                self.pack_two(bits::pack_b16, low, &parts[..2], Type::B8)?;
                self.pack_two(bits::pack_b16, high, &parts[2..], Type::B8)?;
                self.part(bits::pack_b32, Operands { d, a: low, b: high, ..Operands::default() });
                Ok(())
            }
            _ => Err(self.unknown("the vector")),
        }
    }

    fn pack_two(&mut self, run: Run, d: u32, parts: &[Operand<'a>], ty: Type) -> Result<()> {
        let (a, b) = (self.source_of(&parts[0], ty)?, self.source_of(&parts[1], ty)?);
        self.part(run, Operands { d, a, b, ..Operands::default() });
        Ok(())
    }

    fn unpack(&mut self, ty: Type, parts: &[Operand<'a>], source: &Operand<'a>) -> Result<()> {
        let mut a = self.source_of(source, ty)?;
        // A part may be the source itself, as in {%r1, %r2} = {%r1}; read it all before writing.
        match (ty.bytes(), parts.len()) {
            (2, 2) => self.unpack_two([bits::low_b8, bits::high_b8], a, parts, Type::B8),
            (4, 2) => self.unpack_two([bits::low_b16, bits::high_b16], a, parts, Type::B16),
            (8, 2) => self.unpack_two([bits::low_b32, bits::high_b32], a, parts, Type::B32),
            (8, 4) => {
                let high = self.scratch(Bank::Words);
                let low = self.scratch(Bank::Words);
                self.part(bits::high_b32, Operands { d: high, a, ..Operands::default() });
                self.part(bits::low_b32, Operands { d: low, a, ..Operands::default() });
                self.unpack_two([bits::low_b16, bits::high_b16], low, &parts[..2], Type::B16)?;
                self.unpack_two([bits::low_b16, bits::high_b16], high, &parts[2..], Type::B16)
            }
            (4, 4) => {
                let copy = self.scratch(Bank::Words);
                self.part(b32::mov, Operands { d: copy, a, ..Operands::default() });
                a = copy;
                let (low, high) = (self.scratch(Bank::Words), self.scratch(Bank::Words));
                self.part(bits::low_b16, Operands { d: low, a, ..Operands::default() });
                self.part(bits::high_b16, Operands { d: high, a, ..Operands::default() });
                self.unpack_two([bits::low_b8, bits::high_b8], low, &parts[..2], Type::B8)?;
                self.unpack_two([bits::low_b8, bits::high_b8], high, &parts[2..], Type::B8)
            }
            _ => Err(self.unknown("the vector")),
        }
    }

    fn unpack_two(&mut self, runs: [Run; 2], a: u32, parts: &[Operand<'a>], ty: Type) -> Result<()> {
        let first = self.target_of(&parts[0], ty)?;
        let mut source = a;
        if first == a && bank(ty) == Bank::Words {
            source = self.scratch(Bank::Words);
            if ty != Type::B32 {
                self.part(b32::mov, Operands { d: source, a, ..Operands::default() });
            } else {
                source = a;
            }
        }
        self.part(runs[0], Operands { d: first, a: source, ..Operands::default() });
        let second = self.target_of(&parts[1], ty)?;
        self.part(runs[1], Operands { d: second, a: source, ..Operands::default() });
        Ok(())
    }

    /// Generic addresses are addresses of the space plus the base of the space's window; global's is zero.
    fn cvta(&mut self) -> Result<()> {
        self.class(Class::Move);
        let ty = self.takes_type()?;
        if bank(ty) != Bank::Doubles {
            return Err(self.unknown("the type"));
        }
        let to = self.takes("to");
        let run: Run =
            match (self.takes_one(&["global", "const", "shared", "local", "param", "shared::cta"]), to) {
                (Some(0 | 1), _) => b64::mov,
                (Some(2 | 5), false) => windows::from_shared,
                (Some(2 | 5), true) => windows::to_shared,
                (Some(3), false) => windows::from_local,
                (Some(3), true) => windows::to_local,
                (Some(4), false) => windows::from_parameter,
                (Some(4), true) => windows::to_parameter,
                _ => return Err(self.unknown("the space")),
            };
        self.lanes(run, &[ty, ty], 0)
    }

    fn isspacep(&mut self) -> Result<()> {
        self.class(Class::Move);
        let run: Run = match self.takes_one(&["global", "const", "shared", "local", "param", "shared::cta"]) {
            Some(0) => windows::is_global,
            Some(1) => windows::is_constant,
            Some(2 | 5) => windows::is_shared,
            Some(3) => windows::is_local,
            Some(4) => windows::is_parameter,
            _ => return Err(self.unknown("the space")),
        };
        self.lanes(run, &[Type::Pred, Type::B64], 0)
    }
}
