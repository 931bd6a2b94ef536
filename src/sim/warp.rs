//! One warp: groups of lanes that stand at the same instruction, and the loop that runs them.
//!
//! Lanes part at branches and meet again where their places meet. Of the groups that can run, the one furthest back
//! runs first, which brings lanes of structured code together at the first instruction they share. A group at a
//! `*.sync` instruction waits until the lanes of its mask have come; a group at a barrier arrives when no other lanes
//! of its warp can come along.

use super::access::{LANES, Place};
use super::block::{Shared, special};
use super::copies::Copies;
use super::decode::{Constant, Special};
use super::fault::{Fault, Kind, Result};
use super::instruction::{Bank, Instruction, Meeting, Op};
use super::launch::Grid;
use super::registers::Registers;
use super::warpgroup::Products;

/// Why a group stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Ready,
    /// At a `*.sync` instruction, for other lanes.
    Meet,
    /// At a barrier, for other lanes of its warp that may come along.
    Gather,
    /// At a barrier, counted.
    Arrived(u32),
}

/// Lanes at the same place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
}

/// How a turn of a warp ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Something happened besides instructions: an arrival, a meeting.
    Moved,
    Blocked,
}

/// A warp.
pub(super) struct Warp {
    pub index: u32,
    pub registers: Registers,
    /// Lanes that started, and those that have not exited.
    pub started: u32,
    pub live: u32,
    pub groups: Vec<Group>,
    pub copies: Copies,
    pub products: Products,
    /// Lets another group run first after one has had its turn.
    rotation: usize,
}

impl Warp {
    /// Room for one warp of a block; constants and what all blocks share are in place.
    pub fn new(grid: &Grid<'_>, index: u32) -> Warp {
        let code = grid.code;
        let mut registers = Registers {
            words: vec![[0; LANES]; code.words as usize],
            doubles: vec![[0; LANES]; code.doubles as usize],
            predicates: vec![0; code.predicates as usize],
        };
        let value = |constant: &Constant| match *constant {
            Constant::Value(value) => value,
            Constant::Variable(variable, offset) => grid.variables[variable].wrapping_add(offset as u64),
            Constant::DynamicShared(offset) => u64::from(code.dynamic_shared_at).wrapping_add(offset as u64),
        };
        for (register, constant) in &code.word_constants {
            registers.words[*register as usize] = [value(constant) as u32; LANES];
        }
        for (register, constant) in &code.double_constants {
            registers.doubles[*register as usize] = [value(constant); LANES];
        }
        for &(register, name) in &code.specials {
            registers.words[register as usize] = special(grid, name, [0; 3], index);
        }
        for &(register, value) in &code.predicate_constants {
            registers.predicates[register as usize] = if value { u32::MAX } else { 0 };
        }
        let threads = (grid.threads - index * LANES as u32).min(LANES as u32);
        let started = if threads == 32 { u32::MAX } else { (1 << threads) - 1 };
        Warp {
            index,
            registers,
            started,
            live: 0,
            groups: Vec::new(),
            copies: Copies::default(),
            products: Products::new(grid),
            rotation: 0,
        }
    }

    /// Puts all lanes at the first instruction of a block.
    pub fn start(&mut self, grid: &Grid<'_>, block: [u32; 3]) {
        for &(register, name) in &grid.code.specials {
            if let Special::Block(axis) = name {
                self.registers.words[register as usize] = [block[axis]; LANES];
            }
        }
        let [words, doubles, predicates] = &grid.code.unwritten;
        words.iter().for_each(|&register| self.registers.words[register as usize] = [0; LANES]);
        doubles.iter().for_each(|&register| self.registers.doubles[register as usize] = [0; LANES]);
        predicates.iter().for_each(|&register| self.registers.predicates[register as usize] = 0);
        self.live = self.started;
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: self.started, wait: Wait::Ready });
        self.copies.clear();
        self.products.clear();
        self.rotation = 0;
    }

    /// Runs until every group waits, or the turn is over.
    pub fn run(&mut self, grid: &Grid<'_>, shared: &mut Shared, turn: u64) -> Result<Outcome> {
        let end = shared.steps + turn;
        let mut outcome = Outcome::Blocked;
        let mut rotation = self.rotation;
        while shared.steps < end {
            self.merge();
            match self.choose(std::mem::take(&mut rotation)) {
                Some(group) => self.advance(grid, shared, group, end)?,
                None => {
                    if !self.gathered(grid, shared)? {
                        break;
                    }
                    outcome = Outcome::Moved;
                }
            }
        }
        if shared.steps >= end {
            self.rotation += 1;
        }
        Ok(outcome)
    }

    /// Joins groups at the same place, unless one is counted at a barrier already.
    fn merge(&mut self) {
        let mut first = 0;
        while first + 1 < self.groups.len() {
            let mut other = first + 1;
            while other < self.groups.len() {
                let (a, b) = (self.groups[first], self.groups[other]);
                let counted = |group: Group| matches!(group.wait, Wait::Arrived(_));
                if a.pc == b.pc && !counted(a) && !counted(b) {
                    self.groups[first].mask |= b.mask;
                    self.groups[first].wait = Wait::Ready;
                    self.groups.swap_remove(other);
                } else {
                    other += 1;
                }
            }
            first += 1;
        }
    }

    /// The group to run: the one furthest back, or another one at the start of a turn after a long one.
    fn choose(&self, rotation: usize) -> Option<usize> {
        if let [group] = &self.groups[..] {
            return (group.wait == Wait::Ready).then_some(0);
        }
        let mut ready: Vec<usize> =
            (0..self.groups.len()).filter(|&i| self.groups[i].wait == Wait::Ready).collect();
        let turn = rotation.checked_rem(ready.len())?;
        ready.sort_by_key(|&i| self.groups[i].pc);
        Some(ready[turn])
    }

    /// No group can run: lets groups at `bar.warp.sync` in different places meet, and groups at barriers arrive.
    fn gathered(&mut self, grid: &Grid<'_>, shared: &mut Shared) -> Result<bool> {
        let mut moved = false;
        for index in 0..self.groups.len() {
            let group = self.groups[index];
            if group.wait == Wait::Gather
                && let Op::Barrier(barrier) = &grid.code.instructions[group.pc as usize].op
            {
                let place = self.place(grid, shared, group.pc);
                let id = shared.arrive(grid, self, barrier, group.mask, place)?;
                self.groups[index].wait = Wait::Arrived(id);
                moved = true;
            }
        }
        Ok(moved | self.meet_apart(grid, shared)?)
    }

    /// Lets groups go on that wait for lanes which exited, and lanes that wait at several `bar.warp.sync` with one
    /// mask.
    fn meet_apart(&mut self, grid: &Grid<'_>, shared: &mut Shared) -> Result<bool> {
        let at_warp_sync = |warp: &Warp, group: &Group| match &grid.code.instructions[group.pc as usize].op {
            Op::Meet(meeting, Some(mask))
                if group.wait == Wait::Meet && matches!(**meeting, Meeting::Warp) =>
            {
                Some(warp.registers.words[*mask as usize][group.mask.trailing_zeros() as usize])
            }
            _ => None,
        };
        for index in 0..self.groups.len() {
            // Lanes that a group waited for may have exited.
            let Group { pc, mask, wait } = self.groups[index];
            if let (Op::Meet(_, Some(register)), Wait::Meet) = (&grid.code.instructions[pc as usize].op, wait)
            {
                let named = self.registers.words[*register as usize][mask.trailing_zeros() as usize];
                if named & self.live & !mask == 0 {
                    self.groups[index].wait = Wait::Ready;
                    return Ok(true);
                }
            } else if wait == Wait::Meet && self.live & !mask == 0 {
                self.groups[index].wait = Wait::Ready;
                return Ok(true);
            }
            let Some(mask) = at_warp_sync(self, &self.groups[index]) else { continue };
            let together: Vec<usize> = (0..self.groups.len())
                .filter(|&i| at_warp_sync(self, &self.groups[i]) == Some(mask))
                .collect();
            let lanes = together.iter().fold(0, |lanes, &i| lanes | self.groups[i].mask);
            if mask & self.live & !lanes == 0 {
                let pc = self.groups[index].pc;
                self.observe_meeting(grid, shared, pc, &Meeting::Warp, mask, lanes)?;
                for i in together {
                    self.groups[i].wait = Wait::Ready;
                    self.groups[i].pc += 1;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The mask of a `*.sync` instruction, and the lanes that have it: those of the first mask whose lanes are all
    /// here, or all lanes where none is complete.
    fn named(&self, register: Option<u32>, active: u32) -> (u32, u32) {
        let Some(register) = register else { return (u32::MAX, active) };
        let masks = &self.registers.words[register as usize];
        let first = masks[active.trailing_zeros() as usize];
        let mut left = active;
        while left != 0 {
            let named = masks[left.trailing_zeros() as usize];
            let same =
                (0..LANES).fold(0, |lanes, lane| lanes | u32::from(masks[lane] == named) << lane) & left;
            if named & self.live & !same == 0 {
                return (named, same);
            }
            left &= !same;
        }
        (first, active)
    }

    pub fn place(&self, grid: &Grid<'_>, shared: &Shared, pc: u32) -> Place {
        Place { line: grid.code.instructions[pc as usize].line, block: shared.block, warp: self.index }
    }

    /// Runs one group until it waits, parts, or comes to where another group stands.
    fn advance(&mut self, grid: &Grid<'_>, shared: &mut Shared, index: usize, end: u64) -> Result<()> {
        let code = &grid.code.instructions[..];
        let Group { mut pc, mut mask, .. } = self.groups[index];
        // The next place ahead at which another group stands.
        let others = self.groups.iter().enumerate().filter(|(i, group)| *i != index && group.pc > pc);
        let limit = others.map(|(_, group)| group.pc).min().unwrap_or(u32::MAX);
        let alone = self.groups.len() == 1;
        let mut wait = Wait::Ready;
        while shared.steps < end {
            if pc >= limit {
                break;
            }
            let instruction: &Instruction = &code[pc as usize];
            let active = match instruction.guard {
                None => mask,
                Some(guard) => {
                    let row = self.registers.predicates[guard.predicate as usize];
                    mask & if guard.negated { !row } else { row }
                }
            };
            shared.steps += 1;
            let hits = &mut shared.hits[pc as usize];
            hits[0] += 1;
            hits[1] += u64::from(active.count_ones());
            if !instruction.accumulators.is_empty() && active != 0 {
                self.touch_accumulators(grid, shared, pc, instruction, active)?;
            }
            match &instruction.op {
                Op::Lanes(run, operands) => {
                    (run.call)(&mut self.registers, operands, active);
                    pc += 1;
                }
                Op::Branch(target) => {
                    if active == mask {
                        let back = *target <= pc;
                        pc = *target;
                        if back && !alone {
                            break;
                        }
                    } else if active == 0 {
                        pc += 1;
                    } else {
                        shared.counters.divergent_branches += 1;
                        self.groups.push(Group { pc: *target, mask: active, wait: Wait::Ready });
                        mask &= !active;
                        pc += 1;
                        break;
                    }
                }
                Op::BranchTable(targets, register) => {
                    mask = self.branch_table(grid, shared, (pc, targets, *register), mask, active)?;
                    pc += 1;
                    break;
                }
                Op::Exit => {
                    if active != 0 {
                        self.exit(grid, shared, pc, active)?;
                        mask &= !active;
                    }
                    pc += 1;
                    if mask == 0 {
                        break;
                    }
                }
                Op::Meet(meeting, register) => {
                    if active == 0 {
                        pc += 1;
                        continue;
                    }
                    if active != mask {
                        // The lanes that the guard keeps away go on by themselves.
                        self.groups.push(Group { pc: pc + 1, mask: mask & !active, wait: Wait::Ready });
                        mask = active;
                    }
                    let (named, together) = self.named(*register, active);
                    if together != active {
                        // Lanes with another mask meet among themselves.
                        self.groups.push(Group { pc, mask: mask & !together, wait: Wait::Ready });
                        mask = together;
                    }
                    let active = together;
                    if named & self.live & !active != 0 {
                        wait = Wait::Meet;
                        shared.hits[pc as usize][0] -= 1;
                        shared.hits[pc as usize][1] -= u64::from(active.count_ones());
                        break;
                    }
                    self.observe_meeting(grid, shared, pc, meeting, named, active)?;
                    self.meet(grid, shared, pc, meeting, active)?;
                    pc += 1;
                    if !alone || self.groups.len() > 1 {
                        break;
                    }
                }
                Op::Barrier(barrier) => {
                    if active == 0 {
                        pc += 1;
                        continue;
                    }
                    if active != mask {
                        self.groups.push(Group { pc: pc + 1, mask: mask & !active, wait: Wait::Ready });
                        mask = active;
                    }
                    if active == self.live || barrier.arrive_only {
                        let place = self.place(grid, shared, pc);
                        let id = shared.arrive(grid, self, barrier, active, place)?;
                        if barrier.arrive_only {
                            pc += 1;
                            if self.groups.len() > 1 {
                                break;
                            }
                            continue;
                        }
                        wait = Wait::Arrived(id);
                    } else {
                        wait = Wait::Gather;
                    }
                    break;
                }
                Op::ActiveMask(d) => {
                    for lane in 0..LANES {
                        if active & 1 << lane != 0 {
                            self.registers.words[*d as usize][lane] = active;
                        }
                    }
                    pc += 1;
                }
                Op::Clock(bank, d) => {
                    self.clock(*bank, *d, active, shared.steps);
                    pc += 1;
                }
                Op::Trap if active != 0 => {
                    let fault = Fault::new(
                        Kind::Trap,
                        "the kernel gave up (trap)",
                        "look at the condition before it",
                    );
                    return Err(grid.place(fault, self.place(grid, shared, pc), active.trailing_zeros()));
                }
                Op::Trap | Op::Nothing => pc += 1,
                op => {
                    if active != 0 {
                        self.touch(grid, shared, pc, op, active)?;
                    }
                    pc += 1;
                }
            }
        }
        if mask == 0 {
            self.groups.swap_remove(index);
        } else {
            self.groups[index] = Group { pc, mask, wait };
        }
        Ok(())
    }

    fn clock(&mut self, bank: Bank, d: u32, active: u32, now: u64) {
        for lane in (0..LANES).filter(|lane| active & 1 << lane != 0) {
            match bank {
                Bank::Doubles => self.registers.doubles[d as usize][lane] = now,
                _ => self.registers.words[d as usize][lane] = now as u32,
            }
        }
    }

    /// Sends the active lanes to the places that a table names for them; returns the lanes that stay.
    fn branch_table(
        &mut self,
        grid: &Grid<'_>,
        shared: &Shared,
        (pc, targets, register): (u32, &[u32], u32),
        mask: u32,
        active: u32,
    ) -> Result<u32> {
        for lane in (0..LANES as u32).filter(|lane| active & 1 << lane != 0) {
            let choice = self.registers.words[register as usize][lane as usize];
            let Some(&target) = targets.get(choice as usize) else {
                let fault = Fault::new(
                    Kind::Trap,
                    format!("a branch to entry {choice} of a table of {}", targets.len()),
                    "look at the switch in the kernel's source",
                );
                return Err(grid.place(fault, self.place(grid, shared, pc), lane));
            };
            self.groups.push(Group { pc: target, mask: 1 << lane, wait: Wait::Ready });
        }
        Ok(mask & !active)
    }

    fn exit(&mut self, grid: &Grid<'_>, shared: &mut Shared, pc: u32, active: u32) -> Result<()> {
        self.live &= !active;
        self.copies.forget(active);
        let place = self.place(grid, shared, pc);
        match &mut shared.observer {
            Some(observer) => observer
                .exit(active, place)
                .map_err(|fault| grid.place(fault, place, active.trailing_zeros())),
            None => Ok(()),
        }
    }
}
