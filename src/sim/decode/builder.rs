//! Collects the code of an entry: registers, constants, variables' places, labels.

use crate::sim::counters::Class;
use crate::sim::fault::{Fault, Kind, Result};
use crate::sim::instruction::{Bank, Guard, Instruction, Op};
use crate::sim::parse::{Cursor, Register};
use crate::sim::program::Type;
use std::collections::HashMap;

/// A value that stands in a register before a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::sim) enum Constant {
    Value(u64),
    /// A variable of the program and an offset.
    Variable(usize, i64),
    /// The start of dynamic shared memory and an offset.
    DynamicShared(i64),
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::sim) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
    Warp,
    Warps,
    Zero,
    One,
    MaskEqual,
    MaskLessEqual,
    MaskLess,
    MaskGreaterEqual,
    MaskGreater,
    DynamicSharedBytes,
    TotalSharedBytes,
}

/// An entry ready to run.
#[derive(Debug, Default)]
pub(in crate::sim) struct Code {
    pub instructions: Vec<Instruction>,
    pub words: u32,
    pub doubles: u32,
    pub predicates: u32,
    pub word_constants: Vec<(u32, Constant)>,
    pub double_constants: Vec<(u32, Constant)>,
    pub predicate_constants: Vec<(u32, bool)>,
    pub specials: Vec<(u32, Special)>,
    /// Registers of each bank that may be read before they are written; they start as zero.
    pub unwritten: [Vec<u32>; 3],
    /// Registers in which products of warpgroups are summed; each keeps its place for the whole kernel.
    pub accumulators: Vec<u32>,
    /// Bytes of static shared memory, and where dynamic shared memory starts.
    pub static_shared: u32,
    pub dynamic_shared_at: u32,
    /// Bytes of local memory of a thread.
    pub local: u32,
}

/// A branch whose label is not placed yet.
struct Fixup<'a> {
    instruction: usize,
    scope: usize,
    name: &'a str,
    line: u32,
}

/// See the module.
#[derive(Default)]
pub(in crate::sim) struct Builder<'a> {
    code: Code,
    word_constants: HashMap<Constant, u32>,
    double_constants: HashMap<Constant, u32>,
    specials: HashMap<Special, u32>,
    parents: Vec<usize>,
    scopes: Vec<usize>,
    labels: HashMap<(usize, &'a str), u32>,
    tables: HashMap<&'a str, Vec<&'a str>>,
    fixups: Vec<Fixup<'a>>,
    shared: u64,
    local: u64,
    carry: Option<u32>,
    /// Whether the file is for devices with warpgroups.
    pub warpgroups: bool,
    /// Guard, line and class of the statement that is being decoded, and whether its first part was emitted.
    pub(super) guard: Option<Guard>,
    pub(super) line: u32,
    pub(super) class: Option<Class>,
    pub(super) started: bool,
}

impl<'a> Builder<'a> {
    pub fn enter_scope(&mut self) {
        let parent = self.scopes.last().copied().unwrap_or(usize::MAX);
        self.parents.push(parent);
        self.scopes.push(self.parents.len() - 1);
    }

    pub fn leave_scope(&mut self) {
        self.scopes.pop();
    }

    fn scope(&self) -> usize {
        self.scopes.last().copied().unwrap_or(0)
    }

    /// A register that nothing uses yet.
    pub fn register(&mut self, ty: Type) -> Register {
        let bank = match ty {
            Type::Pred => Bank::Predicates,
            _ if ty.bytes() == 8 => Bank::Doubles,
            _ => Bank::Words,
        };
        Register { bank, index: self.fresh(bank), ty }
    }

    pub fn fresh(&mut self, bank: Bank) -> u32 {
        let count = match bank {
            Bank::Words => &mut self.code.words,
            Bank::Doubles => &mut self.code.doubles,
            Bank::Predicates => &mut self.code.predicates,
        };
        *count += 1;
        *count - 1
    }

    /// The register that holds a constant.
    pub fn constant(&mut self, bank: Bank, constant: Constant) -> u32 {
        let known = if bank == Bank::Words { &self.word_constants } else { &self.double_constants };
        if let Some(&index) = known.get(&constant) {
            return index;
        }
        let index = self.fresh(bank);
        if bank == Bank::Words {
            self.word_constants.insert(constant, index);
            self.code.word_constants.push((index, constant));
        } else {
            self.double_constants.insert(constant, index);
            self.code.double_constants.push((index, constant));
        }
        index
    }

    /// The predicate that is always true, or always false.
    pub fn truth(&mut self, value: bool) -> u32 {
        if let Some(&(index, _)) = self.code.predicate_constants.iter().find(|(_, known)| *known == value) {
            return index;
        }
        let index = self.fresh(Bank::Predicates);
        self.code.predicate_constants.push((index, value));
        index
    }

    /// The register that holds a special register's value.
    pub fn special(&mut self, special: Special) -> u32 {
        if let Some(&index) = self.specials.get(&special) {
            return index;
        }
        let index = self.fresh(Bank::Words);
        self.specials.insert(special, index);
        self.code.specials.push((index, special));
        index
    }

    /// The predicate that holds the carry of `add.cc` and its like.
    pub fn carry(&mut self) -> u32 {
        if let Some(carry) = self.carry {
            return carry;
        }
        let carry = self.fresh(Bank::Predicates);
        self.carry = Some(carry);
        carry
    }

    /// Room in static shared memory.
    pub fn place_shared(&mut self, cursor: &Cursor<'_>, alignment: u64, bytes: u64) -> Result<u64> {
        let at =
            self.shared.checked_next_multiple_of(alignment).filter(|at| at + bytes <= 1 << 20 && bytes > 0);
        let Some(at) = at else { return Err(cursor.fault("more shared memory than any device has")) };
        self.shared = at + bytes;
        Ok(at)
    }

    /// Room in a thread's local memory.
    pub fn place_local(&mut self, cursor: &Cursor<'_>, alignment: u64, bytes: u64) -> Result<u64> {
        let at = self.local.checked_next_multiple_of(alignment).filter(|at| at + bytes <= 1 << 19);
        let Some(at) = at else {
            return Err(cursor.fault("more local memory than any device gives a thread"));
        };
        self.local = at + bytes;
        Ok(at)
    }

    pub fn label(&mut self, cursor: &Cursor<'_>, name: &'a str) -> Result<()> {
        let at = self.code.instructions.len() as u32;
        if self.labels.insert((self.scope(), name), at).is_some() {
            return Err(cursor.fault(format!("label `{name}` stands there twice")));
        }
        Ok(())
    }

    pub fn table(&mut self, name: &'a str, targets: Vec<&'a str>) {
        self.tables.insert(name, targets);
    }

    /// Adds an instruction, or the next part of one.
    pub fn emit(&mut self, op: Op) {
        let class = self.class.unwrap_or(Class::Integer);
        let counts = !std::mem::replace(&mut self.started, true);
        let (guard, line, accumulators) = (self.guard, self.line, Box::default());
        self.code.instructions.push(Instruction { op, guard, line, class, counts, accumulators });
    }

    /// Adds a branch, or a branch through a table, to a label that may come later.
    pub fn emit_branch(&mut self, op: Op, name: &'a str) {
        let instruction = self.code.instructions.len();
        self.fixups.push(Fixup { instruction, scope: self.scope(), name, line: self.line });
        self.emit(op);
    }

    fn find_label(&self, mut scope: usize, name: &str) -> Option<u32> {
        loop {
            if let Some(&at) = self.labels.get(&(scope, name)) {
                return Some(at);
            }
            scope = self.parents.get(scope).copied().filter(|&parent| parent != usize::MAX)?;
        }
    }

    /// Ends the body: places labels and dynamic shared memory.
    pub fn finish(&mut self, cursor: &Cursor<'_>) -> Result<()> {
        self.guard = None;
        self.started = false;
        self.class = Some(Class::Control);
        self.emit(Op::Exit);
        for fixup in std::mem::take(&mut self.fixups) {
            let missing = |name: &str| {
                let advice = "compile the source again with tools/ptx.py";
                Fault::text(Kind::Syntax, cursor.file, fixup.line, format!("no label `{name}`"), advice)
            };
            let table = self.tables.get(fixup.name).cloned();
            let one = self.find_label(fixup.scope, fixup.name);
            let places: Option<Vec<u32>> = table
                .as_ref()
                .map(|names| names.iter().filter_map(|name| self.find_label(fixup.scope, name)).collect());
            match &mut self.code.instructions[fixup.instruction].op {
                Op::Branch(target) => *target = one.ok_or_else(|| missing(fixup.name))?,
                Op::BranchTable(targets, _) => {
                    let places = places.filter(|p| Some(p.len()) == table.as_ref().map(Vec::len));
                    *targets = places.ok_or_else(|| missing(fixup.name))?;
                }
                _ => {}
            }
        }
        super::allocate::allocate(&mut self.code);
        self.code.static_shared = self.shared as u32;
        self.code.dynamic_shared_at = (self.shared as u32).next_multiple_of(16);
        self.code.local = (self.local as u32).next_multiple_of(16);
        Ok(())
    }

    /// What was collected.
    pub fn code(self) -> Code {
        self.code
    }
}
