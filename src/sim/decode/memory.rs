//! Loads, stores, atomics, asynchronous copies.

use super::operands::bank;
use super::{Constant, Decoder};
use crate::sim::access::{Order, Scope};
use crate::sim::counters::Class;
use crate::sim::fault::Result;
use crate::sim::instruction::{AddressSpace, Atomic, AtomicOp, Bank, Copy, Elements, Op, Transfer};
use crate::sim::parse::Operand;
use crate::sim::program::Type;

const SPACES: [(&str, AddressSpace); 8] = [
    ("global", AddressSpace::Global),
    ("const", AddressSpace::Global),
    ("shared", AddressSpace::Shared),
    ("shared::cta", AddressSpace::Shared),
    ("local", AddressSpace::Local),
    ("param", AddressSpace::Parameter),
    ("param::entry", AddressSpace::Parameter),
    ("generic", AddressSpace::Generic),
];

/// Hints to caches, which change nothing that a program can see.
const HINTS: [&str; 19] = [
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "L2::evict_first",
    "L2::evict_last",
    "L2::evict_normal",
];

impl<'a> Decoder<'_, 'a> {
    /// Decodes the statement if it is of this kind.
    pub(super) fn memory(&mut self) -> Result<bool> {
        match self.head {
            "ld" | "ldu" => self.load()?,
            "st" => self.store()?,
            "atom" | "red" => self.atomic()?,
            "cp" => self.copy()?,
            "prefetch" | "prefetchu" => self.prefetch()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn space(&mut self) -> AddressSpace {
        let names = SPACES.map(|(name, _)| name);
        self.takes_one(&names).map_or(AddressSpace::Generic, |which| SPACES[which].1)
    }

    fn hints(&mut self) {
        while self.takes_one(&HINTS).is_some() {}
    }

    /// The ordering and scope that an access names.
    fn order(&mut self, default: Order) -> Order {
        let scope = self.scope();
        match self.takes_one(&["weak", "volatile", "relaxed", "acquire", "release", "acq_rel"]) {
            Some(0) => Order::Weak,
            Some(1) => Order::Volatile,
            Some(2) => Order::Relaxed(scope),
            Some(3) => Order::Acquire(scope),
            Some(4) => Order::Release(scope),
            Some(5) => Order::AcquireRelease(scope),
            _ => default,
        }
    }

    pub(super) fn scope(&mut self) -> Scope {
        match self.takes_one(&["cta", "gpu", "sys", "cluster"]) {
            Some(0) => Scope::Block,
            Some(2) => Scope::System,
            _ => Scope::Device,
        }
    }

    fn memory_class(space: AddressSpace) -> Class {
        match space {
            AddressSpace::Shared => Class::Shared,
            AddressSpace::Local => Class::Local,
            AddressSpace::Parameter => Class::Move,
            _ => Class::Global,
        }
    }

    fn lanes_of_vector(&mut self) -> usize {
        match self.takes_one(&["v2", "v4", "v8"]) {
            Some(which) => 2 << which,
            None => 1,
        }
    }

    /// The registers of a load's or store's elements. A register may be wider than the element.
    fn registers(&mut self, index: usize, ty: Type, count: usize, load: bool) -> Result<Elements> {
        let operands = self.elements(index)?;
        if operands.len() != count || ty == Type::Pred {
            return Err(self.unknown("the vector"));
        }
        let mut registers = Vec::new();
        let mut found = None;
        let mut width = 16;
        for operand in &operands {
            let element = match operand {
                Operand::Register(register) => {
                    width = 8 * register.ty.bytes();
                    if register.bank == Bank::Predicates || register.ty.bytes() < ty.bytes() {
                        return Err(self.unknown("a register narrower than its element"));
                    }
                    (register.bank, register.index)
                }
                Operand::Sink if load => (bank(ty), self.scratch(bank(ty))),
                _ if !load => (bank(ty), self.source_of(operand, ty)?),
                _ => return Err(self.unknown("the result")),
            };
            if *found.get_or_insert(element.0) != element.0 {
                return Err(self.unknown("registers of two widths"));
            }
            registers.push(element.1);
        }
        let signed = load && super::integers::is_signed(ty) && width > 8 * ty.bytes();
        let bank = found.unwrap_or(Bank::Words);
        Ok(Elements { bank, bytes: ty.bytes(), sign: if signed { width.max(16) } else { 0 }, registers })
    }

    fn load(&mut self) -> Result<()> {
        let ty = self.takes_type()?;
        let space = self.space();
        self.hints();
        let order = self.order(Order::Weak);
        let count = self.lanes_of_vector();
        self.class(Self::memory_class(space));
        self.expect_operands(2)?;
        let address = self.address(1, space)?;
        let elements = self.registers(0, ty, count, true)?;
        self.builder.emit(Op::Load(Box::new(Transfer { address, elements, order })));
        Ok(())
    }

    fn store(&mut self) -> Result<()> {
        let ty = self.takes_type()?;
        let space = self.space();
        self.hints();
        let order = self.order(Order::Weak);
        let count = self.lanes_of_vector();
        self.class(Self::memory_class(space));
        self.expect_operands(2)?;
        if space == AddressSpace::Parameter {
            return Err(self.unknown("the space"));
        }
        let address = self.address(0, space)?;
        let elements = self.registers(1, ty, count, false)?;
        self.builder.emit(Op::Store(Box::new(Transfer { address, elements, order })));
        Ok(())
    }

    fn prefetch(&mut self) -> Result<()> {
        self.class(Class::Global);
        self.space();
        self.takes_one(&["L1", "L2", "L2::evict_last", "L2::evict_normal"]);
        self.expect_operands(1)?;
        self.builder.emit(Op::Nothing);
        Ok(())
    }

    fn atomic(&mut self) -> Result<()> {
        self.class(Class::Atomic);
        let ty = self.takes_type()?;
        let space = self.space();
        let order = self.order(Order::Relaxed(Scope::Device));
        self.hints();
        self.takes("noftz");
        let names = ["and", "or", "xor", "exch", "cas", "add", "inc", "dec", "min", "max"];
        let which = self.takes_one(&names);
        let signed = super::integers::is_signed(ty);
        let op = match (which, ty) {
            (Some(0), Type::B32 | Type::B64) => AtomicOp::And,
            (Some(1), Type::B32 | Type::B64) => AtomicOp::Or,
            (Some(2), Type::B32 | Type::B64) => AtomicOp::Xor,
            (Some(3), Type::B32 | Type::B64 | Type::U32 | Type::S32 | Type::F32 | Type::U64) => {
                AtomicOp::Exchange
            }
            (Some(4), Type::B16 | Type::B32 | Type::B64 | Type::U32 | Type::S32 | Type::U64) => {
                AtomicOp::CompareSwap
            }
            (Some(5), Type::U32 | Type::S32 | Type::U64 | Type::S64) => AtomicOp::Add,
            (Some(5), Type::F32) => AtomicOp::AddF32,
            (Some(5), Type::F64) => AtomicOp::AddF64,
            (Some(5), Type::F16) => AtomicOp::AddF16,
            (Some(5), Type::F16x2) => AtomicOp::AddF16x2,
            (Some(5), Type::Bf16) => AtomicOp::AddBf16,
            (Some(5), Type::Bf16x2) => AtomicOp::AddBf16x2,
            (Some(6), Type::U32) => AtomicOp::Increment,
            (Some(7), Type::U32) => AtomicOp::Decrement,
            (Some(8), Type::U32 | Type::S32 | Type::U64 | Type::S64) if signed => AtomicOp::MinSigned,
            (Some(9), Type::U32 | Type::S32 | Type::U64 | Type::S64) if signed => AtomicOp::MaxSigned,
            (Some(8), Type::U32 | Type::U64) => AtomicOp::MinUnsigned,
            (Some(9), Type::U32 | Type::U64) => AtomicOp::MaxUnsigned,
            _ => return Err(self.unknown("the operation")),
        };
        let returns = self.head == "atom";
        let first = usize::from(returns);
        let swap = op == AtomicOp::CompareSwap;
        self.expect_operands(first + 2 + usize::from(swap))?;
        let d = if returns { Some(self.target(0, ty)?) } else { None };
        let address = self.address(first, space)?;
        let a = self.source(first + 1, ty)?;
        let b = if swap { self.source(first + 2, ty)? } else { a };
        let atomic = Atomic { op, bank: bank(ty), bytes: ty.bytes(), address, d, a, b, order };
        self.builder.emit(Op::Atomic(Box::new(atomic)));
        Ok(())
    }

    /// `cp.async` and what belongs to it.
    fn copy(&mut self) -> Result<()> {
        self.class(Class::Copy);
        if !self.takes("async") {
            return Err(self.unknown("this copy"));
        }
        if self.takes("commit_group") {
            self.expect_operands(0)?;
            self.builder.emit(Op::CopyCommit);
            return Ok(());
        }
        if self.takes("wait_all") {
            self.expect_operands(0)?;
            self.builder.emit(Op::CopyWait(None));
            return Ok(());
        }
        if self.takes("wait_group") {
            self.expect_operands(1)?;
            let pending =
                u32::try_from(self.immediate(0)?).map_err(|_| self.unknown("the number of groups"))?;
            self.builder.emit(Op::CopyWait(Some(pending)));
            return Ok(());
        }
        let cached = match self.takes_one(&["ca", "cg"]) {
            Some(which) => which == 0,
            None => return Err(self.unknown("the cache level")),
        };
        self.hints();
        if !(self.takes("shared") || self.takes("shared::cta")) || !self.takes("global") {
            return Err(self.unknown("the spaces"));
        }
        let count = self.statement.operands.len();
        if !(3..=5).contains(&count) {
            return Err(self.unknown("the number of operands"));
        }
        let bytes = self.immediate(2)?;
        if !(bytes == 16 || cached && (bytes == 4 || bytes == 8)) {
            return Err(self.unknown("the size"));
        }
        let to = self.address(0, AddressSpace::Shared)?;
        let from = self.address(1, AddressSpace::Global)?;
        let (mut source_bytes, mut ignore) = (None, None);
        if count > 3 {
            match self.operand(3)? {
                Operand::Not(_) => ignore = Some(self.predicate(3)?),
                Operand::Register(register) if register.bank == Bank::Predicates => {
                    ignore = Some(self.predicate(3)?)
                }
                _ => source_bytes = Some(self.source(3, Type::U32)?),
            }
        }
        if count > 4 {
            return Err(self.unknown("the cache policy"));
        }
        let copy = Copy { to, from, bytes: bytes as u32, source_bytes, ignore };
        self.builder.emit(Op::Copy(Box::new(copy)));
        Ok(())
    }

    /// The register of an immediate that counts or names something.
    pub(super) fn count(&mut self, index: usize) -> Result<u32> {
        match self.operand(index)? {
            Operand::Integer(value) => {
                let value = *value as u64 & 0xffff_ffff;
                Ok(self.builder.constant(Bank::Words, Constant::Value(value)))
            }
            _ => self.source(index, Type::U32),
        }
    }
}
