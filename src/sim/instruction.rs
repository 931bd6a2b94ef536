//! Instructions as warps run them: operands are indices, labels are places, immediates stand in registers.

use super::access::{Order, Scope};
use super::counters::Class;
use super::registers::{Operands, Run};

/// A predicate before an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    pub predicate: u32,
    pub negated: bool,
}

/// One instruction, or one part of an instruction that takes several.
#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub op: Op,
    pub guard: Option<Guard>,
    /// Line of the PTX file.
    pub line: u32,
    pub class: Class,
    /// Whether it stands for a whole instruction in the counts; later parts do not.
    pub counts: bool,
    /// Registers that it reads (`false`) or writes and that accumulate products of warpgroups elsewhere.
    pub accumulators: Box<[(u32, bool)]>,
}

/// Banks of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Bank {
    Words,
    Doubles,
    Predicates,
}

/// Spaces that an address can lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressSpace {
    /// Found out lane by lane from the address.
    Generic,
    Global,
    Shared,
    Local,
    Parameter,
}

/// An address: a register plus an offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub bank: Bank,
    pub register: u32,
    pub offset: i64,
    pub space: AddressSpace,
}

/// Registers of a load or a store: up to eight elements of one size.
#[derive(Clone, Debug)]
pub(super) struct Elements {
    pub bank: Bank,
    /// Bytes of an element in memory.
    pub bytes: u32,
    /// Bits that a loaded element is sign-extended to; 0 where it is zero-extended.
    pub sign: u32,
    pub registers: Vec<u32>,
}

/// A load or a store.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub address: Address,
    pub elements: Elements,
    pub order: Order,
}

/// Where an atomic operation happens and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtomicOp {
    And,
    Or,
    Xor,
    Exchange,
    CompareSwap,
    Add,
    Increment,
    Decrement,
    MinSigned,
    MaxSigned,
    MinUnsigned,
    MaxUnsigned,
    AddF32,
    AddF64,
    AddF16,
    AddF16x2,
    AddBf16,
    AddBf16x2,
}

/// `atom` and `red`.
#[derive(Clone, Debug)]
pub(super) struct Atomic {
    pub op: AtomicOp,
    pub bank: Bank,
    pub bytes: u32,
    pub address: Address,
    /// Where the old value goes; `red` has none.
    pub d: Option<u32>,
    pub a: u32,
    /// The third operand of a compare-and-swap.
    pub b: u32,
    pub order: Order,
}

/// Modes of `shfl.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// Modes of `vote.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Operations of `redux.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReduceOp {
    Add,
    And,
    Or,
    Xor,
    MinSigned,
    MaxSigned,
    MinUnsigned,
    MaxUnsigned,
}

/// What lanes do once the lanes that a mask names have come together.
#[derive(Clone, Debug)]
pub(super) enum Meeting {
    Warp,
    Shuffle {
        mode: ShuffleMode,
        d: u32,
        valid: Option<u32>,
        a: u32,
        b: u32,
        c: u32,
    },
    Vote {
        mode: VoteMode,
        d: u32,
        a: u32,
        negated: bool,
    },
    MatchAny {
        bank: Bank,
        d: u32,
        a: u32,
    },
    MatchAll {
        bank: Bank,
        d: u32,
        valid: Option<u32>,
        a: u32,
    },
    Reduce {
        op: ReduceOp,
        d: u32,
        a: u32,
    },
    LoadMatrix {
        address: Address,
        d: Vec<u32>,
        transposed: bool,
    },
    Multiply(Box<super::matrix::Multiply>),
    /// What a warp does for its warpgroup.
    Warpgroup(Box<Warpgroup>),
}

/// `wgmma`.
#[derive(Clone, Debug)]
pub(super) enum Warpgroup {
    Fence,
    Commit,
    /// Groups that may stay under way.
    Wait(u32),
    Multiply(super::warpgroup::Product),
}

/// What a barrier computes for the threads that wait at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BarrierReduce {
    Count,
    And,
    Or,
}

/// `bar` and `barrier`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Barrier {
    /// Register that holds the barrier's number.
    pub id: u32,
    /// Register that holds the number of threads.
    pub count: Option<u32>,
    pub arrive_only: bool,
    pub aligned: bool,
    /// Operation, result, predicate, and whether the predicate is negated.
    pub reduce: Option<(BarrierReduce, u32, u32, bool)>,
}

/// `cp.async`.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub to: Address,
    pub from: Address,
    pub bytes: u32,
    /// Register that holds how many bytes are read; the rest is filled with zeros.
    pub source_bytes: Option<u32>,
    /// Predicate under which nothing is read and all is zero.
    pub ignore: Option<(u32, bool)>,
}

/// What an instruction does.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Lanes(Run, Operands),
    Branch(u32),
    /// Table of targets, register of the index.
    BranchTable(Vec<u32>, u32),
    Exit,
    Trap,
    Nothing,
    Load(Box<Transfer>),
    Store(Box<Transfer>),
    Atomic(Box<Atomic>),
    Meet(Box<Meeting>, Option<u32>),
    ActiveMask(u32),
    Barrier(Box<Barrier>),
    Fence(Scope),
    /// Lets products of warpgroups see what the thread wrote to shared memory.
    ProxyFence,
    Copy(Box<Copy>),
    CopyCommit,
    /// Groups that may stay under way; `None` waits for all copies.
    CopyWait(Option<u32>),
    /// Instructions that the warp has run: 32 bits or 64.
    Clock(Bank, u32),
}
