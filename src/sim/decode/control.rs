//! Branches, exits, barriers, fences, and what lanes of a warp do together.

use super::Decoder;
use super::operands::bank;
use crate::sim::access::Scope;
use crate::sim::counters::Class;
use crate::sim::fault::Result;
use crate::sim::instruction::{Bank, Barrier, BarrierReduce, Meeting, Op, ReduceOp, ShuffleMode, VoteMode};
use crate::sim::parse::Operand;
use crate::sim::program::Type;

impl<'a> Decoder<'_, 'a> {
    /// Decodes the statement if it is of this kind.
    pub(super) fn control(&mut self) -> Result<bool> {
        match self.head {
            "bra" => {
                self.class(Class::Control);
                self.takes("uni");
                self.expect_operands(1)?;
                let name = self.name(0)?;
                self.builder.emit_branch(Op::Branch(0), name);
            }
            "brx" => {
                self.class(Class::Control);
                if !self.takes("idx") {
                    return Err(self.unknown("the form"));
                }
                self.takes("uni");
                self.expect_operands(2)?;
                let index = self.source(0, Type::U32)?;
                let name = self.name(1)?;
                self.builder.emit_branch(Op::BranchTable(Vec::new(), index), name);
            }
            "ret" | "exit" => {
                self.class(Class::Control);
                self.takes("uni");
                self.expect_operands(0)?;
                self.builder.emit(Op::Exit);
            }
            "trap" | "brkpt" => {
                self.class(Class::Control);
                self.expect_operands(0)?;
                self.builder.emit(Op::Trap);
            }
            "nanosleep" => {
                self.class(Class::Control);
                self.takes_type()?;
                self.builder.emit(Op::Nothing);
            }
            "bar" | "barrier" => self.barrier()?,
            "membar" | "fence" => self.fence()?,
            "shfl" => self.shuffle()?,
            "vote" => self.vote()?,
            "match" => self.match_lanes()?,
            "redux" => self.reduce()?,
            "activemask" => {
                self.class(Class::Warp);
                let ty = self.takes_type()?;
                self.expect_operands(1)?;
                let d = self.target(0, ty)?;
                self.builder.emit(Op::ActiveMask(d));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn name(&self, index: usize) -> Result<&'a str> {
        match self.operand(index)? {
            Operand::Name(name) => Ok(name),
            _ => Err(self.unknown("the label")),
        }
    }

    fn barrier(&mut self) -> Result<()> {
        self.class(Class::Barrier);
        self.takes("cta");
        if self.takes("warp") {
            if self.head != "bar" || !self.takes("sync") {
                return Err(self.unknown("the form"));
            }
            self.expect_operands(1)?;
            let mask = self.count(0)?;
            self.builder.emit(Op::Meet(Box::new(Meeting::Warp), Some(mask)));
            return Ok(());
        }
        let aligned = self.takes("aligned") || self.head == "bar";
        let action = self.takes_one(&["sync", "arrive", "red"]);
        let count = self.statement.operands.len();
        match action {
            Some(2) => {
                let which = self.takes_one(&["popc", "and", "or"]);
                let ty = self.takes_type()?;
                let (op, result) = match (which, ty) {
                    (Some(0), Type::U32) => (BarrierReduce::Count, ty),
                    (Some(1), Type::Pred) => (BarrierReduce::And, ty),
                    (Some(2), Type::Pred) => (BarrierReduce::Or, ty),
                    _ => return Err(self.unknown("the operation")),
                };
                if !(3..=4).contains(&count) {
                    return Err(self.unknown("the number of operands"));
                }
                let d = self.target(0, result)?;
                let id = self.count(1)?;
                let threads = if count == 4 { Some(self.count(2)?) } else { None };
                let (predicate, negated) = self.predicate(count - 1)?;
                let reduce = Some((op, d, predicate, negated));
                let barrier = Barrier { id, count: threads, arrive_only: false, aligned, reduce };
                self.builder.emit(Op::Barrier(Box::new(barrier)));
            }
            Some(which) => {
                let arrive_only = which == 1;
                if !(1..=2).contains(&count) || arrive_only && count != 2 {
                    return Err(self.unknown("the number of operands"));
                }
                let id = self.count(0)?;
                let threads = if count == 2 { Some(self.count(1)?) } else { None };
                let barrier = Barrier { id, count: threads, arrive_only, aligned, reduce: None };
                self.builder.emit(Op::Barrier(Box::new(barrier)));
            }
            None => return Err(self.unknown("the form")),
        }
        Ok(())
    }

    fn fence(&mut self) -> Result<()> {
        self.class(Class::Barrier);
        self.expect_operands(0)?;
        let scope = if self.head == "membar" {
            match self.takes_one(&["cta", "gl", "sys"]) {
                Some(0) => Scope::Block,
                Some(1) => Scope::Device,
                Some(2) => Scope::System,
                _ => return Err(self.unknown("the scope")),
            }
        } else if self.takes("proxy") {
            if !self.takes("async") {
                return Err(self.unknown("the proxy"));
            }
            self.takes("shared::cta");
            self.builder.emit(Op::ProxyFence);
            return Ok(());
        } else {
            self.takes_one(&["sc", "acq_rel"]);
            self.scope()
        };
        self.builder.emit(Op::Fence(scope));
        Ok(())
    }

    fn shuffle(&mut self) -> Result<()> {
        self.class(Class::Warp);
        let ty = self.takes_type()?;
        if !self.takes("sync") || bank(ty) != Bank::Words {
            return Err(self.unknown("the form"));
        }
        let mode = match self.takes_one(&["up", "down", "bfly", "idx"]) {
            Some(0) => ShuffleMode::Up,
            Some(1) => ShuffleMode::Down,
            Some(2) => ShuffleMode::Butterfly,
            Some(3) => ShuffleMode::Index,
            _ => return Err(self.unknown("the mode")),
        };
        self.expect_operands(5)?;
        let (d, valid) = self.pair(0, ty)?;
        let a = self.source(1, ty)?;
        let (b, c, mask) = (self.count(2)?, self.count(3)?, self.count(4)?);
        self.builder.emit(Op::Meet(Box::new(Meeting::Shuffle { mode, d, valid, a, b, c }), Some(mask)));
        Ok(())
    }

    /// A result, and the predicate after `|` if there is one.
    fn pair(&mut self, index: usize, ty: Type) -> Result<(u32, Option<u32>)> {
        match self.operand(index)?.clone() {
            Operand::Pair(first, second) => {
                let d = self.target_of(&first, ty)?;
                Ok((d, Some(self.target_of(&second, Type::Pred)?)))
            }
            operand => Ok((self.target_of(&operand, ty)?, None)),
        }
    }

    fn vote(&mut self) -> Result<()> {
        self.class(Class::Warp);
        let ty = self.takes_type()?;
        if !self.takes("sync") {
            return Err(self.unknown("the form"));
        }
        let mode = match self.takes_one(&["all", "any", "uni", "ballot"]) {
            Some(0) => VoteMode::All,
            Some(1) => VoteMode::Any,
            Some(2) => VoteMode::Uniform,
            Some(3) => VoteMode::Ballot,
            _ => return Err(self.unknown("the mode")),
        };
        if (mode == VoteMode::Ballot) == (ty == Type::Pred) {
            return Err(self.unknown("the type"));
        }
        self.expect_operands(3)?;
        let d = self.target(0, ty)?;
        let (a, negated) = self.predicate(1)?;
        let mask = self.count(2)?;
        self.builder.emit(Op::Meet(Box::new(Meeting::Vote { mode, d, a, negated }), Some(mask)));
        Ok(())
    }

    fn match_lanes(&mut self) -> Result<()> {
        self.class(Class::Warp);
        let ty = self.takes_type()?;
        let which = self.takes_one(&["any", "all"]);
        if !self.takes("sync") {
            return Err(self.unknown("the form"));
        }
        self.expect_operands(3)?;
        let (d, valid) = self.pair(0, Type::B32)?;
        let a = self.source(1, ty)?;
        let mask = self.count(2)?;
        let meeting = match (which, valid) {
            (Some(0), None) => Meeting::MatchAny { bank: bank(ty), d, a },
            (Some(1), valid) => Meeting::MatchAll { bank: bank(ty), d, valid, a },
            _ => return Err(self.unknown("the mode")),
        };
        self.builder.emit(Op::Meet(Box::new(meeting), Some(mask)));
        Ok(())
    }

    fn reduce(&mut self) -> Result<()> {
        self.class(Class::Warp);
        let ty = self.takes_type()?;
        let op = match (self.takes_one(&["add", "and", "or", "xor", "min", "max"]), ty) {
            (Some(0), Type::U32 | Type::S32) => ReduceOp::Add,
            (Some(1), Type::B32) => ReduceOp::And,
            (Some(2), Type::B32) => ReduceOp::Or,
            (Some(3), Type::B32) => ReduceOp::Xor,
            (Some(4), Type::S32) => ReduceOp::MinSigned,
            (Some(5), Type::S32) => ReduceOp::MaxSigned,
            (Some(4), Type::U32) => ReduceOp::MinUnsigned,
            (Some(5), Type::U32) => ReduceOp::MaxUnsigned,
            _ => return Err(self.unknown("the operation")),
        };
        if !self.takes("sync") {
            return Err(self.unknown("the form"));
        }
        self.expect_operands(3)?;
        let d = self.target(0, ty)?;
        let a = self.source(1, ty)?;
        let mask = self.count(2)?;
        self.builder.emit(Op::Meet(Box::new(Meeting::Reduce { op, d, a }), Some(mask)));
        Ok(())
    }
}
