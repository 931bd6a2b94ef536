//! `wgmma`: what the four warps of a warpgroup do together on tensor cores.
//!
//! Warp w of the group computes rows 16 w to 16 w + 15 of the 64 by N result, when it comes to the instruction; the
//! arithmetic is that of `mma.sync`. On a device the product goes on until a wait covers its group, so its registers
//! may not be touched before. The group's warps must execute the same instructions with the same descriptors.
//!
//! Registers that accumulate products are noted at each instruction that touches them (decode/allocate.rs): that is
//! how accesses without the wait before them, or without the fence after them, are found.

use super::access::{LANES, Place};
use super::block::Shared;
use super::descriptor::{CHUNK, DEPTH, Operand};
use super::fault::{Fault, Kind, Result};
use super::instruction::{Instruction, Warpgroup};
use super::launch::Grid;
use super::matrix::accumulate;
use super::rounding::from_bf16;
use super::warp::Warp;
use std::collections::VecDeque;

/// Warps of a warpgroup.
pub(super) const WARPS: usize = 4;
/// Rows of a product, and those of one warp.
const ROWS: usize = 64;
const ROWS_OF_WARP: usize = ROWS / WARPS;

/// `wgmma.mma_async`: a 64 by 16 matrix times a 16 by `columns` one, both in shared memory.
#[derive(Clone, Debug)]
pub(super) struct Product {
    pub columns: usize,
    /// Four registers for each eight columns, laid out as those of `mma.sync`.
    pub d: Vec<u32>,
    /// Double words that describe A and B.
    pub descriptors: [u32; 2],
    /// Predicate under which the result is added to `d`, and whether it is negated; else `d` is replaced.
    pub accumulates: (u32, bool),
    /// Whether the product is subtracted.
    pub negated: bool,
    /// Whether A and B lie with their outer index along rows of memory, not with k.
    pub transposed: [bool; 2],
}

impl Warpgroup {
    /// Multiply-adds of one warp.
    pub fn multiply_adds(&self) -> u64 {
        match self {
            Warpgroup::Multiply(product) => (ROWS_OF_WARP * product.columns * DEPTH) as u64,
            _ => 0,
        }
    }
}

/// What an accumulator of a warp went through last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Another instruction touched it in this line; line 0 stands for the start of the kernel.
    Touched(u32),
    Fenced,
    /// A product of so many columns changes it, in a group that is not waited for.
    UnderWay {
        columns: usize,
        group: u32,
        line: u32,
    },
    /// Products of so many columns changed it, and were waited for.
    Done {
        columns: usize,
    },
}

/// The products of a warp.
#[derive(Clone, Debug)]
pub(super) struct Products {
    /// By register; those that accumulate nothing stand idle.
    states: Vec<State>,
    /// Groups that were closed.
    closed: u32,
}

impl Products {
    /// Room for kernels with so many registers; none where no instruction accumulates.
    pub fn new(grid: &Grid<'_>) -> Products {
        let count = if grid.code.accumulators.is_empty() { 0 } else { grid.code.words };
        Products { states: vec![State::Touched(0); count as usize], closed: 0 }
    }

    /// A new block begins.
    pub fn clear(&mut self) {
        self.states.fill(State::Touched(0));
        self.closed = 0;
    }
}

/// What the warps of a warpgroup have executed: place in the code and values that must be the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Alike {
    steps: VecDeque<(u32, [u64; 3])>,
    /// Steps that all warps have done and that are forgotten.
    forgotten: usize,
    done: [usize; WARPS],
}

impl Alike {
    /// Warp `warp` of the group executes its next step. `Err` is what another one did in its place.
    fn step(&mut self, warp: usize, step: (u32, [u64; 3])) -> std::result::Result<(), (u32, [u64; 3])> {
        match self.steps.get(self.done[warp] - self.forgotten) {
            Some(&other) if other != step => return Err(other),
            Some(_) => {}
            None => self.steps.push_back(step),
        }
        self.done[warp] += 1;
        while self.done.iter().all(|&done| done > self.forgotten) {
            self.steps.pop_front();
            self.forgotten += 1;
        }
        Ok(())
    }

    /// A warp that left out a step of the others, and the place of that step.
    pub fn left_out(&self) -> Option<(usize, u32)> {
        let (warp, &done) = self.done.iter().enumerate().min_by_key(|(_, done)| **done)?;
        self.steps.get(done - self.forgotten).map(|&(pc, _)| (warp, pc))
    }
}

fn uniform(row: impl IntoIterator<Item = u64>) -> Option<u64> {
    let mut row = row.into_iter();
    let first = row.next()?;
    row.all(|other| other == first).then_some(first)
}

impl Warp {
    /// Runs what a whole warp has come to.
    pub(super) fn warpgroup(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        pc: u32,
        work: &Warpgroup,
    ) -> Result<()> {
        let place = self.place(grid, shared, pc);
        let located = |fault: Fault| grid.place(fault, place, 0);
        let values = match work {
            Warpgroup::Multiply(product) => self.operands_of(product).map_err(located)?,
            _ => [0; 3],
        };
        self.alike(grid, shared, (pc, values), place).map_err(located)?;
        match work {
            Warpgroup::Fence => {
                for state in &mut self.products.states {
                    if !matches!(state, State::UnderWay { .. }) {
                        *state = State::Fenced;
                    }
                }
                Ok(())
            }
            Warpgroup::Commit => {
                self.products.closed += 1;
                shared.observer.as_mut().map_or(Ok(()), |o| o.product_commit(place)).map_err(located)
            }
            Warpgroup::Wait(pending) => {
                let closed = self.products.closed;
                for state in &mut self.products.states {
                    if let State::UnderWay { columns, group, .. } = *state
                        && group.saturating_add(*pending) < closed
                    {
                        *state = State::Done { columns };
                    }
                }
                shared.observer.as_mut().map_or(Ok(()), |o| o.product_wait(*pending, place)).map_err(located)
            }
            Warpgroup::Multiply(product) => self.product(shared, product, values, place).map_err(located),
        }
    }

    /// The descriptors and whether `d` is added to; all lanes must have the same.
    fn operands_of(&self, product: &Product) -> Result<[u64; 3]> {
        let differ = |what: &str| {
            let advice = "give all threads of the warpgroup the same descriptors and predicate: compute them from \
                          what the group has in common";
            Fault::new(
                Kind::Warpgroup,
                format!("lanes of a warp bring different {what} to a product"),
                advice,
            )
        };
        let [a, b] = product.descriptors.map(|register| uniform(self.registers.doubles[register as usize]));
        let (predicate, negated) = product.accumulates;
        let accumulates = match (self.registers.predicates[predicate as usize], negated) {
            (0, negated) => u64::from(negated),
            (u32::MAX, negated) => u64::from(!negated),
            _ => return Err(differ("predicates")),
        };
        Ok([
            a.ok_or_else(|| differ("descriptors of A"))?,
            b.ok_or_else(|| differ("descriptors of B"))?,
            accumulates,
        ])
    }

    /// All warps of the group are there and do the same.
    fn alike(&self, grid: &Grid<'_>, shared: &mut Shared, step: (u32, [u64; 3]), place: Place) -> Result<()> {
        let (group, within) = (self.index as usize / WARPS, self.index as usize % WARPS);
        if group * WARPS + WARPS > grid.warps {
            return Err(Fault::new(
                Kind::Warpgroup,
                format!("a warpgroup of {} warps", grid.warps - group * WARPS),
                "launch blocks of a multiple of 128 threads: a warpgroup is four warps in a row",
            ));
        }
        let Err((pc, values)) = shared.warpgroups[group].step(within, step) else { return Ok(()) };
        let line = grid.code.instructions[pc as usize].line;
        let problem = if line != place.line {
            format!("a warp of a warpgroup is here where another one of it executed line {line}")
        } else {
            format!(
                "warps of a warpgroup bring different values to a product: descriptors {:#018x} and {:#018x}, accumulates {}, \
                 where another one brought {:#018x}, {:#018x} and {}",
                step.1[0], step.1[1], step.1[2], values[0], values[1], values[2]
            )
        };
        let advice =
            "let all four warps of a warpgroup execute the same wgmma instructions with the same operands";
        Err(Fault::new(Kind::Warpgroup, problem, advice))
    }

    /// `wgmma.mma_async`.
    fn product(
        &mut self,
        shared: &mut Shared,
        product: &Product,
        [a, b, accumulates]: [u64; 3],
        place: Place,
    ) -> Result<()> {
        self.begin(product, place.line)?;
        let a = Operand::of(a, ROWS, product.transposed[0])?;
        let b = Operand::of(b, product.columns, product.transposed[1])?;
        let chunks = [a.chunks().collect::<Vec<u32>>(), b.chunks().collect()];
        let size = shared.shared_bytes;
        if let Some(&out) = chunks.iter().flatten().find(|&&at| at + CHUNK > size) {
            return Err(Fault::new(
                Kind::OutOfBounds,
                format!("{CHUNK} bytes of shared memory outside the block's"),
                "check address, leading and stride distance of the descriptors, and the launch's dynamic shared memory",
            )
            .at_address(out.into())
            .near(format!("shared memory has {size} bytes from address 0")));
        }
        shared.counters.shared_read_bytes +=
            u64::from(CHUNK) * (chunks[0].len() / WARPS + chunks[1].len()) as u64;
        if let Some(observer) = &mut shared.observer {
            // Which warp's part of the device reads which rows of A is not said anywhere: each counts as all.
            chunks.iter().try_for_each(|chunks| observer.product_read(chunks, place))?;
        }
        let first = self.index as usize % WARPS * ROWS_OF_WARP;
        let mut rows = [[0f32; DEPTH]; ROWS_OF_WARP];
        each_element(&a, &chunks[0], &shared.words, |row, k, value| {
            if let Some(of_warp) = row.checked_sub(first).filter(|&row| row < ROWS_OF_WARP) {
                rows[of_warp][k] = if product.negated { -value } else { value };
            }
        });
        let mut columns = vec![[[0f32; 8]; DEPTH]; product.columns / 8];
        each_element(&b, &chunks[1], &shared.words, |column, k, value| {
            columns[column / 8][k][column % 8] = value
        });
        for (part, d) in columns.iter().zip(product.d.chunks_exact(4)) {
            let mut sums = [[0f32; 8]; ROWS_OF_WARP];
            let place = |lane: usize, i: usize| (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            if accumulates != 0 {
                for (i, &register) in d.iter().enumerate() {
                    for (lane, &word) in self.registers.words[register as usize].iter().enumerate() {
                        let (row, column) = place(lane, i);
                        sums[row][column] = f32::from_bits(word);
                    }
                }
            }
            accumulate(&rows, part, &mut sums, DEPTH);
            for (i, &register) in d.iter().enumerate() {
                self.registers.words[register as usize] = std::array::from_fn(|lane| {
                    let (row, column) = place(lane, i);
                    sums[row][column].to_bits()
                });
            }
        }
        Ok(())
    }

    /// A product takes its accumulators, which nobody else may have touched since the last fence.
    fn begin(&mut self, product: &Product, line: u32) -> Result<()> {
        let Products { states, closed } = &mut self.products;
        for &register in &product.d {
            let state = &mut states[register as usize];
            let problem = match *state {
                State::Touched(0) => {
                    "a product whose accumulators no wgmma.fence was executed for since the kernel began"
                        .to_string()
                }
                State::Touched(line) => {
                    format!("a product whose accumulators line {line} touched, without a wgmma.fence since")
                }
                State::UnderWay { columns, line, .. } if columns != product.columns => {
                    format!(
                        "a product whose accumulators are those of another shape under way since line {line}"
                    )
                }
                State::Done { columns } if columns != product.columns => {
                    "a product whose accumulators were those of another shape, without a wgmma.fence since"
                        .to_string()
                }
                _ => {
                    *state = State::UnderWay { columns: product.columns, group: *closed, line };
                    continue;
                }
            };
            let advice =
                "put wgmma.fence.sync.aligned between the last other access to the registers and the product";
            return Err(Fault::new(Kind::ProductRegisters, problem, advice));
        }
        Ok(())
    }

    /// An instruction touches accumulators of products: none of them may be under way.
    #[cold]
    pub(super) fn touch_accumulators(
        &mut self,
        grid: &Grid<'_>,
        shared: &Shared,
        pc: u32,
        instruction: &Instruction,
        active: u32,
    ) -> Result<()> {
        for &(register, writes) in &instruction.accumulators {
            let state = &mut self.products.states[register as usize];
            if let State::UnderWay { line, .. } = *state {
                let verb = if writes { "writes" } else { "reads" };
                let fault = Fault::new(
                    Kind::ProductRegisters,
                    format!("{verb} an accumulator of the product of line {line}, which was not waited for"),
                    "close the product's group (wgmma.commit_group) and wait for it (wgmma.wait_group) before its registers are used",
                );
                return Err(grid.place(fault, self.place(grid, shared, pc), active.trailing_zeros()));
            }
            *state = State::Touched(instruction.line);
        }
        Ok(())
    }
}

/// Shows outer index, k and value of every element of an operand.
fn each_element(operand: &Operand, chunks: &[u32], words: &[u32], mut see: impl FnMut(usize, usize, f32)) {
    for (chunk, &at) in chunks.iter().enumerate() {
        for i in 0..8 {
            let word = words[at as usize / 4 + i / 2];
            let (outer, k) = operand.place(chunk, i);
            see(outer, k, from_bf16((word >> (16 * (i % 2))) as u16));
        }
    }
}

impl Shared {
    /// The fault of a warpgroup of which a warp left out an instruction of the others.
    pub(super) fn uneven_warpgroup(&self, grid: &Grid<'_>) -> Option<Fault> {
        let (group, (warp, pc)) =
            self.warpgroups.iter().enumerate().find_map(|(group, alike)| Some((group, alike.left_out()?)))?;
        let fault = Fault::new(
            Kind::Warpgroup,
            "a warp ended without this instruction, which others of its warpgroup executed",
            "let all four warps of a warpgroup execute the same wgmma instructions",
        );
        let line = grid.code.instructions[pc as usize].line;
        let warp = (group * WARPS + warp) as u32;
        Some(grid.place(fault, Place { line, block: self.block, warp }, 0))
    }
}

const _: () = assert!(DEPTH == 16 && ROWS_OF_WARP == 16 && LANES == 32);
