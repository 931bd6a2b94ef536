//! Operands of statements, with names already resolved.

use crate::sim::instruction::Bank;
use crate::sim::program::Type;

/// A declared register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) struct Register {
    pub bank: Bank,
    pub index: u32,
    pub ty: Type,
}

/// What a name of a variable stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::sim) enum Symbol {
    /// `.global` or `.const`, by index in the program.
    Variable(usize),
    /// Static shared memory, by offset.
    Shared(u64),
    /// The start of dynamic shared memory.
    DynamicShared,
    /// The thread's local memory, by offset.
    Local(u64),
    /// A parameter of the entry, by offset.
    Parameter(u64),
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::sim) enum Operand<'a> {
    Register(Register),
    /// `!%p`.
    Not(Register),
    Integer(i128),
    Single(u32),
    Double(u64),
    Symbol(Symbol, i64),
    /// `%tid.x` and its like.
    Special(&'a str),
    /// A label, or another name that nothing declares.
    Name(&'a str),
    /// `[register or symbol or number + offset]`.
    Address(Box<Operand<'a>>, i64),
    Vector(Vec<Operand<'a>>),
    /// `(a, b)`, of a call.
    List(Vec<Operand<'a>>),
    /// `d|p`.
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `_`.
    Sink,
}

/// A statement of a body: guard, opcode and operands.
#[derive(Debug)]
pub(in crate::sim) struct Statement<'a> {
    pub line: u32,
    pub guard: Option<(Register, bool)>,
    /// The opcode with all its modifiers.
    pub opcode: &'a str,
    pub operands: Vec<Operand<'a>>,
}
