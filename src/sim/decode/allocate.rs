//! Registers of a compiler's output are many and short-lived; a warp's are 32 lanes wide. Giving registers that are
//! never alive at the same time the same place keeps a warp's registers in the host's nearest cache.
//!
//! Liveness is found per basic block; each register's life is then one interval of instructions, and intervals take
//! places in order of their start. Lanes that part keep their values: an instruction writes its active lanes alone.

use super::Code;
use crate::sim::instruction::{Address, Bank, Barrier, Copy, Instruction, Meeting, Op, Warpgroup};
use std::collections::BTreeSet;

/// Whether an instruction reads or writes a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

/// Gives registers their places.
pub(super) fn allocate(code: &mut Code) {
    let counts = [code.words as usize, code.doubles as usize, code.predicates as usize];
    let base = [0, counts[0], counts[0] + counts[1]];
    let total: usize = counts.iter().sum();
    let number = |bank: Bank, index: u32| base[bank as usize] + index as usize;

    // What holds a constant keeps it for ever.
    let mut pinned = vec![false; total];
    code.word_constants.iter().for_each(|(index, _)| pinned[number(Bank::Words, *index)] = true);
    code.specials.iter().for_each(|(index, _)| pinned[number(Bank::Words, *index)] = true);
    code.double_constants.iter().for_each(|(index, _)| pinned[number(Bank::Doubles, *index)] = true);
    code.predicate_constants.iter().for_each(|(index, _)| pinned[number(Bank::Predicates, *index)] = true);

    // A product of a warpgroup may change its accumulators until somebody waits for it, whoever reads them: nothing
    // else may take their places.
    let mut accumulators: Vec<u32> = code.instructions.iter().flat_map(sums).copied().collect();
    accumulators.sort_unstable();
    accumulators.dedup();
    accumulators.iter().for_each(|&index| pinned[number(Bank::Words, index)] = true);

    let lives = lives(code, total, &number);
    let mut place = vec![u32::MAX; total];
    let mut used = [0u32; 3];
    for bank in 0..3 {
        for register in base[bank]..base[bank] + counts[bank] {
            if pinned[register] {
                place[register] = used[bank];
                used[bank] += 1;
            }
        }
    }
    let mut at_start = [Vec::new(), Vec::new(), Vec::new()];
    for bank in 0..3 {
        let range = base[bank]..base[bank] + counts[bank];
        let mut order: Vec<usize> = range.filter(|&r| !pinned[r] && lives[r].0 <= lives[r].1).collect();
        order.sort_by_key(|&register| lives[register].0);
        let mut ends: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut free: Vec<u32> = Vec::new();
        for register in order {
            let (start, end) = lives[register];
            while let Some(&(ended, slot)) = ends.first()
                && ended < start
            {
                ends.pop_first();
                free.push(slot);
            }
            let slot = free.pop().unwrap_or_else(|| {
                used[bank] += 1;
                used[bank] - 1
            });
            place[register] = slot;
            ends.insert((end, slot));
            if start == 0 {
                at_start[bank].push(slot);
            }
        }
    }

    let rename = |bank: Bank, index: &mut u32, _: Use| *index = place[number(bank, *index)].min(1 << 30);
    for instruction in &mut code.instructions {
        visit(instruction, &mut { rename });
    }
    code.word_constants.iter_mut().for_each(|(index, _)| *index = place[number(Bank::Words, *index)]);
    code.specials.iter_mut().for_each(|(index, _)| *index = place[number(Bank::Words, *index)]);
    code.double_constants.iter_mut().for_each(|(index, _)| *index = place[number(Bank::Doubles, *index)]);
    code.predicate_constants
        .iter_mut()
        .for_each(|(index, _)| *index = place[number(Bank::Predicates, *index)]);
    [code.words, code.doubles, code.predicates] = used;
    code.unwritten = at_start;
    code.accumulators = accumulators.iter().map(|&index| place[number(Bank::Words, index)]).collect();
    code.unwritten[Bank::Words as usize].extend(&code.accumulators);
    if !accumulators.is_empty() {
        mark(code);
    }
}

/// The registers in which an instruction sums a product of a warpgroup.
fn sums(instruction: &Instruction) -> &[u32] {
    if let Op::Meet(meeting, _) = &instruction.op
        && let Meeting::Warpgroup(work) = &**meeting
        && let Warpgroup::Multiply(product) = &**work
    {
        return &product.d;
    }
    &[]
}

/// Notes at each other instruction which accumulators of products it reads or writes.
fn mark(code: &mut Code) {
    let mut sums_up = vec![false; code.words as usize];
    code.accumulators.iter().for_each(|&index| sums_up[index as usize] = true);
    for instruction in &mut code.instructions {
        let mut found = Vec::new();
        if sums(instruction).is_empty() {
            visit(instruction, &mut |bank, index: &mut u32, what| {
                if bank == Bank::Words && sums_up.get(*index as usize) == Some(&true) {
                    found.push((*index, what == Use::Write));
                }
            });
        }
        instruction.accumulators = found.into();
    }
}

/// First and last place of each register's life: twice the instruction, plus one for a write. A register that may be
/// read before it is written lives from 0 on; one that never occurs has no life (1, 0).
fn lives(code: &mut Code, total: usize, number: &dyn Fn(Bank, u32) -> usize) -> Vec<(u32, u32)> {
    let length = code.instructions.len();
    let starts = block_starts(&code.instructions);
    let mut block_of = vec![0usize; length];
    for (block, &start) in starts.iter().enumerate() {
        let end = starts.get(block + 1).copied().unwrap_or(length);
        block_of[start..end].fill(block);
    }

    // What each block reads before writing it, and what it writes for sure. Only registers that some block reads
    // from another one take part in the search between blocks.
    let mut lives = vec![(1u32, 0u32); total];
    let mut written_in = vec![usize::MAX; total];
    let mut crossing = vec![u32::MAX; total];
    let mut names: Vec<usize> = Vec::new();
    let mut reads: Vec<Vec<u32>> = vec![Vec::new(); starts.len()];
    for at in 0..length {
        let block = block_of[at];
        let mut writes = Vec::new();
        let guarded = code.instructions[at].guard.is_some();
        visit(&mut code.instructions[at], &mut |bank, index: &mut u32, what| {
            let register = number(bank, *index);
            let place = 2 * at as u32 + u32::from(what == Use::Write);
            let life = &mut lives[register];
            *life = if life.0 > life.1 { (place, place) } else { (life.0.min(place), life.1.max(place)) };
            // A guarded write keeps the old value where the guard fails.
            if what == Use::Read || guarded {
                if written_in[register] != block {
                    if crossing[register] == u32::MAX {
                        crossing[register] = names.len() as u32;
                        names.push(register);
                    }
                    reads[block].push(crossing[register]);
                }
            } else {
                writes.push(register);
            }
        });
        writes.into_iter().for_each(|register| written_in[register] = block);
    }
    let mut kills: Vec<Vec<u32>> = vec![Vec::new(); starts.len()];
    for at in 0..length {
        if code.instructions[at].guard.is_none() {
            visit(&mut code.instructions[at], &mut |bank, index: &mut u32, what| {
                let name = crossing[number(bank, *index)];
                if what == Use::Write && name != u32::MAX {
                    kills[block_of[at]].push(name);
                }
            });
        }
    }

    let words = names.len().div_ceil(64);
    let mut live_in = vec![vec![0u64; words]; starts.len()];
    let mut live_out = vec![vec![0u64; words]; starts.len()];
    let next: Vec<Vec<usize>> = (0..starts.len())
        .map(|block| {
            let last = starts.get(block + 1).copied().unwrap_or(length) - 1;
            successors(&code.instructions, last).into_iter().map(|at| block_of[at]).collect()
        })
        .collect();
    let mut changed = true;
    while changed {
        changed = false;
        for block in (0..starts.len()).rev() {
            let mut out = vec![0u64; words];
            for &successor in &next[block] {
                out.iter_mut().zip(&live_in[successor]).for_each(|(out, &bits)| *out |= bits);
            }
            let mut into = out.clone();
            kills[block].iter().for_each(|&name| into[name as usize / 64] &= !(1 << (name % 64)));
            reads[block].iter().for_each(|&name| into[name as usize / 64] |= 1 << (name % 64));
            changed |= into != live_in[block];
            live_in[block] = into;
            live_out[block] = out;
        }
    }
    for block in 0..starts.len() {
        let (first, last) = (starts[block], starts.get(block + 1).copied().unwrap_or(length) - 1);
        for (name, &register) in names.iter().enumerate() {
            let life = &mut lives[register];
            if live_in[block][name / 64] >> (name % 64) & 1 == 1 {
                life.0 = life.0.min(2 * first as u32);
            }
            if live_out[block][name / 64] >> (name % 64) & 1 == 1 {
                life.1 = life.1.max(2 * last as u32 + 1);
            }
        }
    }
    lives
}

/// Instructions at which a block of straight code begins.
fn block_starts(instructions: &[Instruction]) -> Vec<usize> {
    let mut starts = BTreeSet::from([0]);
    for (at, instruction) in instructions.iter().enumerate() {
        match &instruction.op {
            Op::Branch(target) => {
                starts.insert(*target as usize);
                starts.insert(at + 1);
            }
            Op::BranchTable(targets, _) => {
                starts.extend(targets.iter().map(|&target| target as usize));
                starts.insert(at + 1);
            }
            Op::Exit => {
                starts.insert(at + 1);
            }
            _ => {}
        }
    }
    starts.into_iter().filter(|&start| start < instructions.len()).collect()
}

/// Where lanes may go after the last instruction of a block.
fn successors(instructions: &[Instruction], last: usize) -> Vec<usize> {
    let instruction = &instructions[last];
    let mut next: Vec<usize> = match &instruction.op {
        Op::Branch(target) => vec![*target as usize],
        Op::BranchTable(targets, _) => targets.iter().map(|&target| target as usize).collect(),
        _ => Vec::new(),
    };
    let leaves = matches!(instruction.op, Op::Branch(_) | Op::BranchTable(..) | Op::Exit);
    if !leaves || instruction.guard.is_some() {
        next.push(last + 1);
    }
    next.retain(|&at| at < instructions.len());
    next
}

/// Shows every register of an instruction to `see`: those that it reads, then those that it writes.
fn visit(instruction: &mut Instruction, see: &mut dyn FnMut(Bank, &mut u32, Use)) {
    use Bank::{Predicates, Words};
    use Use::{Read, Write};
    if let Some(guard) = &mut instruction.guard {
        see(Predicates, &mut guard.predicate, Read);
    }
    fn address(address: &mut Address, see: &mut dyn FnMut(Bank, &mut u32, Use)) {
        see(address.bank, &mut address.register, Read);
    }
    match &mut instruction.op {
        Op::Lanes(run, operands) => {
            let sources = [&mut operands.a, &mut operands.b, &mut operands.c, &mut operands.e];
            run.banks.sources.iter().zip(sources).for_each(|(&bank, source)| see(bank, source, Read));
            see(run.banks.result, &mut operands.d, Write);
        }
        Op::Branch(_)
        | Op::Exit
        | Op::Trap
        | Op::Nothing
        | Op::Fence(_)
        | Op::ProxyFence
        | Op::CopyCommit
        | Op::CopyWait(_) => {}
        Op::BranchTable(_, index) => see(Words, index, Read),
        Op::Load(load) => {
            address(&mut load.address, see);
            let bank = load.elements.bank;
            load.elements.registers.iter_mut().for_each(|register| see(bank, register, Write));
        }
        Op::Store(store) => {
            address(&mut store.address, see);
            let bank = store.elements.bank;
            store.elements.registers.iter_mut().for_each(|register| see(bank, register, Read));
        }
        Op::Atomic(atomic) => {
            address(&mut atomic.address, see);
            see(atomic.bank, &mut atomic.a, Read);
            see(atomic.bank, &mut atomic.b, Read);
            if let Some(d) = &mut atomic.d {
                see(atomic.bank, d, Write);
            }
        }
        Op::Meet(meeting, mask) => {
            if let Some(mask) = mask {
                see(Words, mask, Read);
            }
            meet(meeting, see);
        }
        Op::ActiveMask(d) => see(Words, d, Write),
        Op::Clock(bank, d) => see(*bank, d, Write),
        Op::Barrier(barrier) => {
            let Barrier { id, count, reduce, .. } = &mut **barrier;
            see(Words, id, Read);
            if let Some(count) = count {
                see(Words, count, Read);
            }
            if let Some((op, d, predicate, _)) = reduce {
                see(Predicates, predicate, Read);
                let count = *op == crate::sim::instruction::BarrierReduce::Count;
                see(if count { Words } else { Predicates }, d, Write);
            }
        }
        Op::Copy(copy) => {
            let Copy { to, from, source_bytes, ignore, .. } = &mut **copy;
            address(to, see);
            address(from, see);
            if let Some(register) = source_bytes {
                see(Words, register, Read);
            }
            if let Some((predicate, _)) = ignore {
                see(Predicates, predicate, Read);
            }
        }
    }
}

fn meet(meeting: &mut Meeting, see: &mut dyn FnMut(Bank, &mut u32, Use)) {
    use Bank::{Predicates, Words};
    use Use::{Read, Write};
    match meeting {
        Meeting::Warp => {}
        Meeting::Shuffle { d, valid, a, b, c, .. } => {
            [a, b, c].into_iter().for_each(|register| see(Words, register, Read));
            see(Words, d, Write);
            if let Some(valid) = valid {
                see(Predicates, valid, Write);
            }
        }
        Meeting::Vote { mode, d, a, .. } => {
            see(Predicates, a, Read);
            let ballot = *mode == crate::sim::instruction::VoteMode::Ballot;
            see(if ballot { Words } else { Predicates }, d, Write);
        }
        Meeting::MatchAny { bank, d, a } => {
            see(*bank, a, Read);
            see(Words, d, Write);
        }
        Meeting::MatchAll { bank, d, valid, a } => {
            see(*bank, a, Read);
            see(Words, d, Write);
            if let Some(valid) = valid {
                see(Predicates, valid, Write);
            }
        }
        Meeting::Reduce { d, a, .. } => {
            see(Words, a, Read);
            see(Words, d, Write);
        }
        Meeting::LoadMatrix { address, d, .. } => {
            see(address.bank, &mut address.register, Read);
            d.iter_mut().for_each(|register| see(Words, register, Write));
        }
        Meeting::Multiply(multiply) => {
            let sources = multiply.a.iter_mut().chain(&mut multiply.b).chain(&mut multiply.c);
            sources.for_each(|register| see(Words, register, Read));
            multiply.d.iter_mut().for_each(|register| see(Words, register, Write));
        }
        Meeting::Warpgroup(work) => {
            if let Warpgroup::Multiply(product) = &mut **work {
                product.descriptors.iter_mut().for_each(|register| see(Bank::Doubles, register, Read));
                see(Predicates, &mut product.accumulates.0, Read);
                // It reads them too, but they keep their places anyway.
                product.d.iter_mut().for_each(|register| see(Words, register, Write));
            }
        }
    }
}
