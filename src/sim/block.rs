//! One block: its warps, its memory, its barriers. A block runs on one host thread from its first instruction to its
//! last; its warps take turns, each until it has to wait.

use super::access::{BarrierArrival, BlockObserver, Place};
use super::counters::Counters;
use super::decode::Special;
use super::fault::{Fault, Kind, Result};
use super::instruction::{Barrier, BarrierReduce, Op};
use super::launch::Grid;
use super::warp::{Outcome, Wait, Warp};
use super::warpgroup::{self, Alike};

/// Barriers of a block.
const BARRIERS: usize = 16;
/// Instructions that a warp runs before another one gets its turn.
const TURN: u64 = 10_000;

/// What the warps of a block share.
pub(super) struct Shared {
    pub block: [u32; 3],
    /// Shared memory.
    pub words: Vec<u32>,
    pub shared_bytes: u32,
    /// Local memory of all threads, one after the other.
    pub local: Vec<u8>,
    pub observer: Option<Box<dyn BlockObserver>>,
    pub counters: Counters,
    /// How often each instruction ran, and with how many lanes in all.
    pub hits: Vec<[u64; 2]>,
    /// The range that each instruction met last.
    pub hints: Vec<u32>,
    /// Instructions of warps so far.
    pub steps: u64,
    /// What the warps of each warpgroup have in common.
    pub warpgroups: Vec<Alike>,
    barriers: [State; BARRIERS],
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Threads that arrived, and as a device counts them: whole warps.
    threads: u32,
    counted: u32,
    expected: Option<u32>,
    /// Lanes that arrived, warp by warp.
    lanes: Vec<u32>,
}

impl Shared {
    /// Lanes of a warp arrive at a barrier; returns its number.
    pub fn arrive(
        &mut self,
        grid: &Grid<'_>,
        warp: &Warp,
        barrier: &Barrier,
        active: u32,
        place: Place,
    ) -> Result<u32> {
        let lane = active.trailing_zeros() as usize;
        let id = warp.registers.words[barrier.id as usize][lane];
        let count = barrier.count.map(|register| warp.registers.words[register as usize][lane]);
        if id as usize >= BARRIERS {
            let fault = Fault::new(
                Kind::Barrier,
                format!("barrier {id} does not exist; a block has {BARRIERS}"),
                "number barriers from 0 to 15",
            );
            return Err(grid.place(fault, place, active.trailing_zeros()));
        }
        let state = &mut self.barriers[id as usize];
        if state.threads > 0 && state.expected != count {
            let fault = Fault::new(
                Kind::Barrier,
                format!(
                    "barrier {id} is reached with {count:?} threads after others came with {:?}",
                    state.expected
                ),
                "give all threads of a barrier the same number of threads",
            );
            return Err(grid.place(fault, place, active.trailing_zeros()));
        }
        state.expected = count;
        state.lanes.resize(grid.warps, 0);
        state.lanes[warp.index as usize] |= active;
        state.threads += active.count_ones();
        state.counted += if active == warp.live { 32 } else { active.count_ones() };
        if let Some(observer) = &mut self.observer {
            let arrival = BarrierArrival {
                id,
                count,
                active,
                live: warp.live,
                started: warp.started,
                aligned: barrier.aligned,
                arrive_only: barrier.arrive_only,
                at: place,
            };
            observer
                .barrier_arrival(&arrival)
                .map_err(|fault| grid.place(fault, place, active.trailing_zeros()))?;
        }
        Ok(id)
    }
}

/// A block with room for its warps, used for one block after the other.
pub(super) struct Block {
    warps: Vec<Warp>,
    pub shared: Shared,
}

impl Block {
    /// Room for blocks of a launch.
    pub fn new(grid: &Grid<'_>) -> Block {
        let warps = (0..grid.warps).map(|index| Warp::new(grid, index as u32)).collect();
        let instructions = grid.code.instructions.len();
        let shared = Shared {
            block: [0; 3],
            words: vec![0; grid.shared_bytes.div_ceil(4) as usize],
            shared_bytes: grid.shared_bytes,
            local: vec![0; grid.threads as usize * grid.code.local as usize],
            observer: None,
            counters: Counters::default(),
            hits: vec![[0; 2]; instructions],
            hints: vec![0; instructions],
            steps: 0,
            warpgroups: Vec::new(),
            barriers: Default::default(),
        };
        Block { warps, shared }
    }

    /// Runs one block to its end.
    pub fn run(
        &mut self,
        grid: &Grid<'_>,
        block: [u32; 3],
        observer: Option<Box<dyn BlockObserver>>,
    ) -> Result<()> {
        self.shared.block = block;
        self.shared.observer = observer;
        self.shared.words.fill(0);
        self.shared.local.fill(0);
        self.shared.barriers = Default::default();
        self.shared.steps = 0;
        self.shared.warpgroups.clear();
        self.shared.warpgroups.resize(grid.warps.div_ceil(warpgroup::WARPS), Alike::default());
        for warp in &mut self.warps {
            warp.start(grid, block);
        }
        self.shared.counters.warps += self.warps.len() as u64;
        let order = grid.order_of_warps(block);
        loop {
            let (mut moved, mut live) = (false, false);
            for &index in &order {
                let warp = &mut self.warps[index];
                if warp.live == 0 {
                    continue;
                }
                let before = self.shared.steps;
                let outcome = warp.run(grid, &mut self.shared, TURN)?;
                moved |= self.shared.steps != before || outcome == Outcome::Moved;
                moved |= self.complete_barriers(grid)?;
                live |= self.warps[index].live != 0;
            }
            if !live && self.warps.iter().all(|warp| warp.live == 0) {
                break;
            }
            if !moved {
                return Err(self.deadlock(grid));
            }
            if self.shared.steps > grid.patience {
                return Err(self.endless(grid));
            }
        }
        if let Some(fault) = self.shared.uneven_warpgroup(grid) {
            return Err(fault);
        }
        match self.shared.observer.take() {
            Some(observer) => observer.end().map_err(|fault| grid.place_block(fault, block)),
            None => Ok(()),
        }
    }

    /// Opens every barrier that has all its threads; tells whether there was one.
    fn complete_barriers(&mut self, grid: &Grid<'_>) -> Result<bool> {
        let mut any = false;
        for id in 0..BARRIERS {
            let state = &self.shared.barriers[id];
            if state.threads == 0 {
                continue;
            }
            let live: u32 = self.warps.iter().map(|warp| warp.live.count_ones()).sum();
            let complete = match state.expected {
                Some(count) => state.counted >= count,
                None => state.threads >= live,
            };
            if !complete {
                continue;
            }
            any = true;
            let state = std::mem::take(&mut self.shared.barriers[id]);
            if let Some(observer) = &mut self.shared.observer {
                observer
                    .barrier_complete(id as u32, &state.lanes)
                    .map_err(|fault| grid.place_block(fault, self.shared.block))?;
            }
            self.open(grid, id as u32);
        }
        Ok(any)
    }

    /// Lets the threads that wait at a barrier go on, with the barrier's result where it has one.
    fn open(&mut self, grid: &Grid<'_>, id: u32) {
        let (mut count, mut threads) = (0, 0);
        for warp in &self.warps {
            for group in warp.groups.iter().filter(|group| group.wait == Wait::Arrived(id)) {
                if let Op::Barrier(barrier) = &grid.code.instructions[group.pc as usize].op
                    && let Some((_, _, predicate, negated)) = barrier.reduce
                {
                    let row = warp.registers.predicates[predicate as usize];
                    let row = if negated { !row } else { row };
                    count += (row & group.mask).count_ones();
                    threads += group.mask.count_ones();
                }
            }
        }
        for warp in &mut self.warps {
            for group in warp.groups.iter_mut().filter(|group| group.wait == Wait::Arrived(id)) {
                if let Op::Barrier(barrier) = &grid.code.instructions[group.pc as usize].op
                    && let Some((op, d, _, _)) = barrier.reduce
                {
                    let holds = if op == BarrierReduce::And { count == threads } else { count > 0 };
                    if op == BarrierReduce::Count {
                        for lane in 0..32 {
                            if group.mask & 1 << lane != 0 {
                                warp.registers.words[d as usize][lane] = count;
                            }
                        }
                    } else {
                        let row = &mut warp.registers.predicates[d as usize];
                        *row = *row & !group.mask | if holds { group.mask } else { 0 };
                    }
                }
                group.wait = Wait::Ready;
                group.pc += 1;
            }
        }
    }

    /// The fault of a block in which nobody can go on.
    fn deadlock(&self, grid: &Grid<'_>) -> Fault {
        let mut words = Vec::new();
        let mut first = None;
        for warp in &self.warps {
            for group in &warp.groups {
                let line = grid.code.instructions[group.pc as usize].line;
                let what = match group.wait {
                    Wait::Arrived(id) => format!("at barrier {id}"),
                    Wait::Meet => "for lanes of their mask".to_string(),
                    _ => "at a barrier".to_string(),
                };
                first.get_or_insert((warp.index, group.mask.trailing_zeros(), line, group.wait));
                if words.len() < 4 {
                    words.push(format!(
                        "lanes {:#010x} of warp {} wait {what} in line {line}",
                        group.mask, warp.index
                    ));
                }
            }
        }
        let kind = match first {
            Some((_, _, _, Wait::Meet)) => Kind::SyncMask,
            _ => Kind::Deadlock,
        };
        let fault = Fault::new(
            kind,
            format!("no thread of the block can go on: {}", words.join("; ")),
            "let all threads that a barrier or a mask names reach it",
        );
        let (warp, lane, line, _) = first.unwrap_or((0, 0, 0, Wait::Ready));
        grid.place(fault, Place { line, block: self.shared.block, warp }, lane)
    }

    fn endless(&self, grid: &Grid<'_>) -> Fault {
        let fault = Fault::new(
            Kind::Deadlock,
            format!("the block ran {} instructions of warps without an end", self.shared.steps),
            "look for a loop that waits for what never comes, or raise the machine's patience",
        );
        grid.place_block(fault, self.shared.block)
    }
}

/// What a special register holds in each lane of a warp.
pub(super) fn special(grid: &Grid<'_>, special: Special, block: [u32; 3], warp: u32) -> [u32; 32] {
    std::array::from_fn(|lane| {
        let thread = grid.thread(warp, lane as u32);
        let bit = 1u32 << lane;
        match special {
            Special::Thread(axis) => thread[axis],
            Special::Threads(axis) => grid.block[axis],
            Special::Block(axis) => block[axis],
            Special::Blocks(axis) => grid.grid[axis],
            Special::Lane => lane as u32,
            Special::Warp => warp,
            Special::Warps => grid.warps as u32,
            Special::Zero => 0,
            Special::One => 1,
            Special::MaskEqual => bit,
            Special::MaskLessEqual => bit | (bit - 1),
            Special::MaskLess => bit - 1,
            Special::MaskGreaterEqual => !(bit - 1),
            Special::MaskGreater => !(bit | (bit - 1)),
            Special::DynamicSharedBytes => grid.dynamic_shared,
            Special::TotalSharedBytes => grid.shared_bytes,
        }
    })
}
