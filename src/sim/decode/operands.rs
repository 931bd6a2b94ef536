//! Operands to indices of registers: immediates, addresses of variables and special registers get one of their own.

use super::{Constant, Decoder, Special};
use crate::sim::fault::Result;
use crate::sim::instruction::{Address, AddressSpace, Bank};
use crate::sim::parse::{Operand, Symbol};
use crate::sim::program::Type;

/// The bank that holds a type.
pub(super) fn bank(ty: Type) -> Bank {
    match ty {
        Type::Pred => Bank::Predicates,
        _ if ty.bytes() == 8 => Bank::Doubles,
        _ => Bank::Words,
    }
}

impl<'a> Decoder<'_, 'a> {
    /// The register that operand `index` names as a result; `_` gets one that nobody reads.
    pub(super) fn target(&mut self, index: usize, ty: Type) -> Result<u32> {
        let operand = self.operand(index)?.clone();
        self.target_of(&operand, ty)
    }

    pub(super) fn target_of(&mut self, operand: &Operand<'a>, ty: Type) -> Result<u32> {
        match operand {
            Operand::Register(register) if register.bank == bank(ty) => Ok(register.index),
            Operand::Sink => Ok(self.builder.fresh(bank(ty))),
            _ => Err(self.unknown("the result")),
        }
    }

    /// The register that holds the value of operand `index`.
    pub(super) fn source(&mut self, index: usize, ty: Type) -> Result<u32> {
        let operand = self.operand(index)?.clone();
        self.source_of(&operand, ty)
    }

    pub(super) fn source_of(&mut self, operand: &Operand<'a>, ty: Type) -> Result<u32> {
        let bank = bank(ty);
        match operand {
            Operand::Register(register) if register.bank == bank => return Ok(register.index),
            Operand::Special(name) => {
                if let Some(special) = special(name)
                    && bank == Bank::Words
                {
                    return Ok(self.builder.special(special));
                }
            }
            Operand::Symbol(symbol, offset) if bank != Bank::Predicates => {
                let constant = constant(*symbol, *offset);
                return Ok(self.builder.constant(bank, constant));
            }
            Operand::Integer(value) if bank == Bank::Predicates => {
                return Ok(self.builder.truth(*value != 0));
            }
            _ => {}
        }
        match literal(operand, ty) {
            Some(bits) if bank != Bank::Predicates => Ok(self.builder.constant(bank, Constant::Value(bits))),
            _ => Err(self.unknown(&format!("operand {} as {ty}", self.position(operand)))),
        }
    }

    fn position(&self, operand: &Operand<'a>) -> usize {
        self.statement.operands.iter().position(|o| o == operand).map_or(0, |at| at + 1)
    }

    /// A predicate operand and whether it is negated.
    pub(super) fn predicate(&mut self, index: usize) -> Result<(u32, bool)> {
        match self.operand(index)? {
            Operand::Register(register) if register.bank == Bank::Predicates => Ok((register.index, false)),
            Operand::Not(register) if register.bank == Bank::Predicates => Ok((register.index, true)),
            Operand::Integer(value) => {
                let value = *value != 0;
                Ok((self.builder.truth(value), false))
            }
            _ => Err(self.unknown("the predicate")),
        }
    }

    /// An immediate integer.
    pub(super) fn immediate(&self, index: usize) -> Result<i128> {
        match self.operand(index)? {
            Operand::Integer(value) => Ok(*value),
            _ => Err(self.unknown("an operand that should be an immediate")),
        }
    }

    /// A memory operand.
    pub(super) fn address(&mut self, index: usize, space: AddressSpace) -> Result<Address> {
        let Operand::Address(base, offset) = self.operand(index)?.clone() else {
            return Err(self.unknown("the address"));
        };
        let (bank, register, offset) = match &*base {
            Operand::Register(register) if register.bank != Bank::Predicates => {
                (register.bank, register.index, offset)
            }
            Operand::Symbol(symbol, plus) => {
                let constant = constant(*symbol, plus.wrapping_add(offset));
                (Bank::Doubles, self.builder.constant(Bank::Doubles, constant), 0)
            }
            Operand::Integer(value) => {
                let constant = Constant::Value((*value as u64).wrapping_add(offset as u64));
                (Bank::Doubles, self.builder.constant(Bank::Doubles, constant), 0)
            }
            _ => return Err(self.unknown("the address")),
        };
        Ok(Address { bank, register, offset, space })
    }

    /// The elements of a vector operand, or the operand itself.
    pub(super) fn elements(&self, index: usize) -> Result<Vec<Operand<'a>>> {
        Ok(match self.operand(index)? {
            Operand::Vector(elements) => elements.clone(),
            operand => vec![operand.clone()],
        })
    }
}

fn constant(symbol: Symbol, offset: i64) -> Constant {
    match symbol {
        Symbol::Variable(index) => Constant::Variable(index, offset),
        Symbol::DynamicShared => Constant::DynamicShared(offset),
        Symbol::Shared(at) | Symbol::Local(at) | Symbol::Parameter(at) => {
            Constant::Value(at.wrapping_add(offset as u64))
        }
    }
}

/// The bits of a literal of a type.
fn literal(operand: &Operand<'_>, ty: Type) -> Option<u64> {
    let bits = match (operand, ty) {
        (Operand::Integer(value), Type::F32) if *value != 0 && value.unsigned_abs() < 1 << 24 => {
            u64::from((*value as f32).to_bits())
        }
        (Operand::Integer(value), Type::F64) => (*value as f64).to_bits(),
        (Operand::Integer(value), _) => *value as u64,
        (Operand::Single(bits), Type::F64) => f64::from(f32::from_bits(*bits)).to_bits(),
        (Operand::Single(bits), _) => u64::from(*bits),
        (Operand::Double(bits), Type::F32) => u64::from((f64::from_bits(*bits) as f32).to_bits()),
        (Operand::Double(bits), _) if ty.bytes() == 8 => *bits,
        _ => return None,
    };
    Some(match ty.bytes() {
        1 => bits & 0xff,
        2 => bits & 0xffff,
        4 => bits & 0xffff_ffff,
        _ => bits,
    })
}

/// The special register of that name; `%clock` and its like are instructions, not registers.
fn special(name: &str) -> Option<Special> {
    let name = name.strip_prefix('%')?;
    if let Some((base, axis)) = name.split_once('.') {
        let axis = ["x", "y", "z"].iter().position(|&a| a == axis)?;
        return Some(match base {
            "tid" => Special::Thread(axis),
            "ntid" => Special::Threads(axis),
            "ctaid" => Special::Block(axis),
            "nctaid" => Special::Blocks(axis),
            _ => return None,
        });
    }
    Some(match name {
        "laneid" => Special::Lane,
        "warpid" => Special::Warp,
        "nwarpid" => Special::Warps,
        "smid" | "gridid" => Special::Zero,
        "nsmid" => Special::One,
        "lanemask_eq" => Special::MaskEqual,
        "lanemask_le" => Special::MaskLessEqual,
        "lanemask_lt" => Special::MaskLess,
        "lanemask_ge" => Special::MaskGreaterEqual,
        "lanemask_gt" => Special::MaskGreater,
        "dynamic_smem_size" => Special::DynamicSharedBytes,
        "total_smem_size" => Special::TotalSharedBytes,
        _ => return None,
    })
}
