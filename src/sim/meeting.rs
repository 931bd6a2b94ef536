//! What lanes of a warp do together: shuffles, votes, matches, reductions, and work on matrices.

use super::access::{Action, LANES, Order, Space, SyncKind, WarpSync};
use super::block::Shared;
use super::fault::{Fault, Kind, Result};
use super::instruction::{Address, AddressSpace, Bank, Meeting, ReduceOp, ShuffleMode, VoteMode};
use super::launch::Grid;
use super::transfer::{Touch, lanes};
use super::warp::Warp;
use super::windows::space_of;

impl Warp {
    /// Tells the observer that lanes have come together.
    pub(super) fn observe_meeting(
        &self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        pc: u32,
        meeting: &Meeting,
        mask: u32,
        active: u32,
    ) -> Result<()> {
        let at = self.place(grid, shared, pc);
        let Some(observer) = &mut shared.observer else { return Ok(()) };
        let kind = match meeting {
            Meeting::Warp => SyncKind::Warp,
            Meeting::Shuffle { .. } => SyncKind::Shuffle,
            Meeting::Vote { .. } => SyncKind::Vote,
            Meeting::MatchAny { .. } | Meeting::MatchAll { .. } => SyncKind::Match,
            Meeting::Reduce { .. } => SyncKind::Reduce,
            Meeting::LoadMatrix { .. } | Meeting::Multiply(_) | Meeting::Warpgroup(_) => SyncKind::Matrix,
        };
        let sync = WarpSync { kind, mask, active, live: self.live, at };
        observer.warp_sync(&sync).map_err(|fault| grid.place(fault, at, active.trailing_zeros()))
    }

    /// Does what the lanes came together for.
    pub(super) fn meet(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        pc: u32,
        meeting: &Meeting,
        active: u32,
    ) -> Result<()> {
        match meeting {
            Meeting::Warp => {}
            Meeting::Shuffle { mode, d, valid, a, b, c } => {
                self.shuffle(*mode, (*d, *valid), (*a, *b, *c), active)
            }
            Meeting::Vote { mode, d, a, negated } => {
                let row = self.registers.predicates[*a as usize];
                let row = if *negated { !row } else { row } & active;
                let holds = match mode {
                    VoteMode::All => row == active,
                    VoteMode::Any => row != 0,
                    VoteMode::Uniform => row == active || row == 0,
                    VoteMode::Ballot => {
                        self.spread(*d, active, row);
                        return Ok(());
                    }
                };
                let result = &mut self.registers.predicates[*d as usize];
                *result = *result & !active | if holds { active } else { 0 };
            }
            Meeting::MatchAny { bank, d, a } => {
                let values = self.values(*bank, *a);
                for lane in lanes(active) {
                    let same = lanes(active).filter(|&other| values[other] == values[lane]);
                    self.registers.words[*d as usize][lane] = same.fold(0, |mask, other| mask | 1 << other);
                }
            }
            Meeting::MatchAll { bank, d, valid, a } => {
                let values = self.values(*bank, *a);
                let first = values[active.trailing_zeros() as usize];
                let all = lanes(active).all(|lane| values[lane] == first);
                self.spread(*d, active, if all { active } else { 0 });
                if let Some(valid) = valid {
                    let row = &mut self.registers.predicates[*valid as usize];
                    *row = *row & !active | if all { active } else { 0 };
                }
            }
            Meeting::Reduce { op, d, a } => {
                let row = self.registers.words[*a as usize];
                let values = lanes(active).map(|lane| row[lane]);
                let result = values.reduce(|x, y| match op {
                    ReduceOp::Add => x.wrapping_add(y),
                    ReduceOp::And => x & y,
                    ReduceOp::Or => x | y,
                    ReduceOp::Xor => x ^ y,
                    ReduceOp::MinSigned => (x as i32).min(y as i32) as u32,
                    ReduceOp::MaxSigned => (x as i32).max(y as i32) as u32,
                    ReduceOp::MinUnsigned => x.min(y),
                    ReduceOp::MaxUnsigned => x.max(y),
                });
                self.spread(*d, active, result.unwrap_or(0));
            }
            Meeting::LoadMatrix { address, d, transposed } => {
                self.load_matrix(grid, shared, pc, address, d, *transposed, active)?;
            }
            Meeting::Multiply(multiply) => {
                self.whole_warp(grid, shared, pc, active)?;
                multiply.run(&mut self.registers);
            }
            Meeting::Warpgroup(work) => {
                self.whole_warp(grid, shared, pc, active)?;
                self.warpgroup(grid, shared, pc, work)?;
            }
        }
        Ok(())
    }

    /// Gives every active lane the same value.
    fn spread(&mut self, d: u32, active: u32, value: u32) {
        for lane in lanes(active) {
            self.registers.words[d as usize][lane] = value;
        }
    }

    fn values(&self, bank: Bank, register: u32) -> [u64; LANES] {
        match bank {
            Bank::Doubles => self.registers.doubles[register as usize],
            _ => self.registers.words[register as usize].map(u64::from),
        }
    }

    /// `shfl.sync`, as the PTX manual writes it out.
    fn shuffle(
        &mut self,
        mode: ShuffleMode,
        (d, valid): (u32, Option<u32>),
        (a, b, c): (u32, u32, u32),
        active: u32,
    ) {
        let (source, by, clamp) = (
            self.registers.words[a as usize],
            self.registers.words[b as usize],
            self.registers.words[c as usize],
        );
        let mut out = [0; LANES];
        let mut good = 0;
        for lane in 0..LANES as u32 {
            let (by, clamp) = (by[lane as usize] & 31, clamp[lane as usize]);
            let (bound, segment) = (clamp & 31, clamp >> 8 & 31);
            let (last, first) = (lane & segment | bound & !segment, lane & segment);
            let (from, fits) = match mode {
                ShuffleMode::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= last as i32),
                ShuffleMode::Down => (lane + by, lane + by <= last),
                ShuffleMode::Butterfly => (lane ^ by, lane ^ by <= last),
                ShuffleMode::Index => {
                    let from = first | by & !segment;
                    (from, from <= last)
                }
            };
            let from = if fits { from } else { lane };
            out[lane as usize] = source[from as usize & 31];
            good |= u32::from(fits) << lane;
        }
        let row = &mut self.registers.words[d as usize];
        for lane in 0..LANES {
            row[lane] = if active & 1 << lane != 0 { out[lane] } else { row[lane] };
        }
        if let Some(valid) = valid {
            let row = &mut self.registers.predicates[valid as usize];
            *row = *row & !active | good & active;
        }
    }

    /// Work on matrices needs every lane of the warp.
    fn whole_warp(&self, grid: &Grid<'_>, shared: &Shared, pc: u32, active: u32) -> Result<()> {
        if active == u32::MAX {
            return Ok(());
        }
        let fault = Fault::new(
            Kind::SyncMask,
            format!("an instruction of the whole warp is executed by lanes {active:#010x} alone"),
            "let all 32 lanes reach it; blocks of such kernels have a multiple of 32 threads",
        );
        Err(grid.place(fault, self.place(grid, shared, pc), (!active).trailing_zeros()))
    }

    /// `ldmatrix`: lane i names row i of the matrices, 16 bytes each; each lane gets two elements of each matrix.
    #[allow(clippy::too_many_arguments)]
    fn load_matrix(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        pc: u32,
        address: &Address,
        d: &[u32],
        transposed: bool,
        active: u32,
    ) -> Result<()> {
        self.whole_warp(grid, shared, pc, active)?;
        let place = self.place(grid, shared, pc);
        let mut rows = self.addresses(address);
        let naming = if d.len() == 4 { u32::MAX } else { (1 << (8 * d.len())) - 1 };
        if address.space == AddressSpace::Generic {
            for lane in lanes(naming) {
                match space_of(rows[lane]) {
                    (AddressSpace::Shared, within) => rows[lane] = within,
                    _ => rows[lane] = u64::MAX,
                }
            }
        }
        let touch = Touch { pc, action: Action::MatrixRead, order: Order::Weak, bytes: 16, place };
        if let Some(lane) = lanes(naming).find(|&lane| !rows[lane].is_multiple_of(16)) {
            let fault = Fault::new(
                Kind::Misaligned,
                "a row of ldmatrix at an address that is no multiple of 16",
                "let rows in shared memory start at multiples of 16 bytes",
            )
            .at_address(rows[lane]);
            return Err(grid.place(fault, place, lane as u32));
        }
        self.within_shared(grid, shared, &touch, &rows, naming)?;
        self.observe(grid, shared, &touch, (Space::Shared, 0), &rows, (naming, None))?;
        for (matrix, &register) in d.iter().enumerate() {
            let row = |r: usize| (rows[8 * matrix + r] / 4) as usize;
            let mut out = [0; LANES];
            for lane in 0..LANES {
                let (major, minor) = (lane / 4, lane % 4);
                out[lane] = if transposed {
                    let element = |r: usize| shared.words[row(r) + major / 2] >> (16 * (major % 2)) & 0xffff;
                    element(2 * minor) | element(2 * minor + 1) << 16
                } else {
                    shared.words[row(major) + minor]
                };
            }
            self.registers.words[register as usize] = out;
        }
        Ok(())
    }
}
