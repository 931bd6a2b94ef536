//! Statements to instructions. Each file knows the opcodes of one kind; what none of them knows is a fault.

mod allocate;
mod builder;
mod control;
mod floats;
mod integers;
mod matrices;
mod memory;
mod moves;
mod operands;

pub(in crate::sim) use builder::{Builder, Code, Constant, Special};

use super::counters::Class;
use super::fault::{Fault, Kind, Result};
use super::instruction::{Bank, Guard, Op};
use super::parse::{Operand, Statement};
use super::program::Type;
use super::registers::{Operands, Run};

/// A statement that is being decoded.
struct Decoder<'b, 'a> {
    builder: &'b mut Builder<'a>,
    statement: &'b Statement<'a>,
    /// The opcode up to its first dot.
    head: &'a str,
    /// What of the opcode's modifiers nobody has understood yet.
    modifiers: Vec<&'a str>,
}

/// Decodes one statement and adds its instructions to the builder.
pub(in crate::sim) fn decode<'a>(builder: &mut Builder<'a>, statement: &Statement<'a>) -> Result<()> {
    let mut parts = statement.opcode.split('.');
    let head = parts.next().unwrap_or("");
    let mut decoder = Decoder { builder, statement, head, modifiers: parts.collect() };
    decoder.begin();
    let done = decoder.integers()?
        || decoder.floats()?
        || decoder.moves()?
        || decoder.memory()?
        || decoder.control()?
        || decoder.matrices()?;
    if !done || !decoder.modifiers.is_empty() {
        return Err(decoder.unknown("this form"));
    }
    Ok(())
}

impl<'a> Decoder<'_, 'a> {
    fn begin(&mut self) {
        self.builder.line = self.statement.line;
        self.builder.guard =
            self.statement.guard.map(|(register, negated)| Guard { predicate: register.index, negated });
        self.builder.started = false;
        self.builder.class = None;
    }

    /// The fault of an instruction that the simulator does not know.
    fn unknown(&self, what: &str) -> Fault {
        let mut problem =
            format!("the simulator does not know {what} of instruction `{}`", self.statement.opcode);
        let left: Vec<&str> = self.modifiers.iter().copied().filter(|m| Type::named(m).is_none()).collect();
        if !left.is_empty() {
            problem += &format!(" (left over: .{})", left.join(" ."));
        }
        let advice = "write the kernel without it, or teach it to src/sim/decode and src/sim";
        Fault::new(Kind::UnknownInstruction, problem, advice)
    }

    /// Takes a modifier if it is there.
    fn takes(&mut self, modifier: &str) -> bool {
        match self.modifiers.iter().position(|&m| m == modifier) {
            Some(at) => {
                self.modifiers.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier that is one of these and returns its index.
    fn takes_one(&mut self, choices: &[&str]) -> Option<usize> {
        for at in 0..self.modifiers.len() {
            if let Some(choice) = choices.iter().position(|&c| c == self.modifiers[at]) {
                self.modifiers.remove(at);
                return Some(choice);
            }
        }
        None
    }

    /// Takes the last modifier, which must be a type.
    fn takes_type(&mut self) -> Result<Type> {
        match self.modifiers.last().and_then(|m| Type::named(m)) {
            Some(ty) => {
                self.modifiers.pop();
                Ok(ty)
            }
            None => Err(self.unknown("the type")),
        }
    }

    fn class(&mut self, class: Class) {
        self.builder.class = Some(class);
    }

    fn operand(&self, index: usize) -> Result<&Operand<'a>> {
        self.statement.operands.get(index).ok_or_else(|| self.unknown("the number of operands"))
    }

    fn expect_operands(&self, count: usize) -> Result<()> {
        if self.statement.operands.len() == count {
            Ok(())
        } else {
            Err(self.unknown("the number of operands"))
        }
    }

    /// Emits an instruction whose operands, result first, have these types.
    fn lanes(&mut self, run: Run, types: &[Type], mode: u32) -> Result<()> {
        self.expect_operands(types.len())?;
        debug_assert_eq!(types.len(), run.banks.sources.len() + 1);
        debug_assert!(
            types[1..].iter().zip(run.banks.sources).all(|(&ty, &bank)| operands::bank(ty) == bank)
        );
        let mut indices = [0; 5];
        for (i, &ty) in types.iter().enumerate() {
            indices[i] = if i == 0 { self.target(0, ty)? } else { self.source(i, ty)? };
        }
        let [d, a, b, c, e] = indices;
        self.builder.emit(Op::Lanes(run, Operands { d, a, b, c, e, mode }));
        Ok(())
    }

    /// Emits a part of an instruction between registers that are known already.
    fn part(&mut self, run: Run, operands: Operands) {
        self.builder.emit(Op::Lanes(run, operands));
    }

    fn scratch(&mut self, bank: Bank) -> u32 {
        self.builder.fresh(bank)
    }
}
