//! A launch: what a device would refuse, and the distribution of blocks over host threads.

use super::access::{LANES, LaunchInfo, LaunchObserver, Observer, Place, Range};
use super::block::Block;
use super::counters::{Class, Counters};
use super::decode::Code;
use super::fault::{Fault, Kind, Result};
use super::instruction::{Meeting, Op};
use super::machine::Launch;
use super::memory::Live;
use super::program::{Entry, Program};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The largest grid.
const GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// The largest block along each axis, and in all.
const BLOCK: [u32; 3] = [1024, 1024, 64];
const THREADS: u32 = 1024;
/// Shared memory of a block in all.
const SHARED: u32 = 227 << 10;
/// Instructions of warps, of the blocks that are left, from which on starting a thread pays: a few hundred microseconds.
const WORTH_A_THREAD: u64 = 8192;
/// Locks for atomics that span two words.
const LOCKS: usize = 64;

/// What does not change while a launch runs.
pub(super) struct Grid<'l> {
    pub file: &'l str,
    pub kernel: &'l str,
    pub code: &'l Code,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Threads and warps of a block.
    pub threads: u32,
    pub warps: usize,
    pub shared_bytes: u32,
    pub dynamic_shared: u32,
    /// The block of parameters, as words.
    pub parameters: Vec<u8>,
    pub ranges: &'l [Live],
    /// Addresses of the program's variables.
    pub variables: &'l [u64],
    pub locks: [Mutex<()>; LOCKS],
    pub patience: u64,
    pub seed: u64,
    /// Names an address that no live range holds.
    pub missing: &'l (dyn Fn(u64, u64) -> Fault + Sync),
}

impl Grid<'_> {
    /// The thread of a lane.
    pub fn thread(&self, warp: u32, lane: u32) -> [u32; 3] {
        let linear = warp * LANES as u32 + lane;
        let [x, y, _] = self.block;
        [linear % x, linear / x % y, linear / x / y]
    }

    /// A fault with its place.
    pub fn place(&self, mut fault: Fault, place: Place, lane: u32) -> Fault {
        if fault.site.line == 0 {
            fault.site.line = place.line;
        }
        fault.site.thread = fault.site.thread.or(Some(self.thread(place.warp, lane)));
        self.place_block(fault, place.block)
    }

    /// A fault of a block as a whole.
    pub fn place_block(&self, mut fault: Fault, block: [u32; 3]) -> Fault {
        fault.site.file = self.file.to_string();
        fault.site.kernel = self.kernel.to_string();
        fault.site.block = fault.site.block.or(Some(block));
        fault
    }

    /// The order in which the warps of a block take turns.
    pub fn order_of_warps(&self, block: [u32; 3]) -> Vec<usize> {
        let salt = u64::from(block[0]) ^ u64::from(block[1]) << 24 ^ u64::from(block[2]) << 44;
        permutation(
            self.warps,
            if self.seed == 0 { 0 } else { self.seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) },
        )
    }
}

/// 0, 1, 2, ... in an order that a seed chooses; 0 leaves it ascending.
pub(super) fn permutation(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = seed;
    for last in (1..if seed == 0 { 0 } else { count }).rev() {
        // A step of splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        order.swap(last, ((word ^ word >> 31) % (last as u64 + 1)) as usize);
    }
    order
}

fn refused(program: &Program, launch: &Launch<'_>, problem: String, advice: &str) -> Fault {
    let mut fault = Fault::text(Kind::Launch, program.file(), 0, problem, advice);
    fault.site.kernel = launch.entry.to_string();
    fault
}

/// Refuses what a device would refuse.
pub(super) fn check(program: &Program, entry: &Entry, launch: &Launch<'_>) -> Result<()> {
    let refuse = |problem: String, advice: &str| Err(refused(program, launch, problem, advice));
    let (grid, block) = (launch.grid, launch.block);
    for axis in 0..3 {
        let name = ["x", "y", "z"][axis];
        if grid[axis] == 0 || block[axis] == 0 {
            return refuse(
                format!("a grid of {grid:?} blocks of {block:?} threads is empty along {name}"),
                "launch at least one block of at least one thread, or nothing where there is nothing to do",
            );
        }
        if grid[axis] > GRID[axis] {
            return refuse(
                format!("{} blocks along {name}; a device takes at most {}", grid[axis], GRID[axis]),
                "spread the blocks over another axis, or let each do more",
            );
        }
        if block[axis] > BLOCK[axis] {
            return refuse(
                format!(
                    "{} threads along {name} in a block; a device takes at most {}",
                    block[axis], BLOCK[axis]
                ),
                "make the block smaller",
            );
        }
    }
    let threads: u32 = block.iter().product();
    if threads > THREADS {
        return refuse(
            format!("{threads} threads in a block; a device takes at most {THREADS}"),
            "make the block smaller",
        );
    }
    if let Some(limit) = entry.maxntid
        && threads > limit.iter().product()
    {
        return refuse(
            format!(
                "{threads} threads in a block; the kernel was compiled for at most {}",
                limit.iter().product::<u32>()
            ),
            "launch with the block that the kernel's source names",
        );
    }
    if let Some(required) = entry.reqntid
        && block != required
    {
        return refuse(
            format!("blocks of {block:?} threads; the kernel was compiled for {required:?}"),
            "launch with the block that the kernel's source names",
        );
    }
    let shared = u64::from(entry.code.dynamic_shared_at) + u64::from(launch.dynamic_shared);
    if shared > u64::from(SHARED) {
        return refuse(
            format!(
                "{} bytes of dynamic and {} bytes of static shared memory; a block has at most {SHARED}",
                launch.dynamic_shared, entry.static_shared
            ),
            "make the tiles smaller",
        );
    }
    if launch.parameters.len() != entry.parameter_bytes as usize {
        return refuse(
            format!(
                "{} bytes of parameters; the kernel takes {} ({} parameters)",
                launch.parameters.len(),
                entry.parameter_bytes,
                entry.parameters.len()
            ),
            "pass each parameter at the offset that the entry states",
        );
    }
    Ok(())
}

/// Where a launch runs.
pub(super) struct Surroundings<'l> {
    pub ranges: &'l [Live],
    pub variables: &'l [u64],
    pub observer: Option<&'l dyn Observer>,
    pub threads: usize,
    pub patience: u64,
    pub missing: &'l (dyn Fn(u64, u64) -> Fault + Sync),
}

/// Runs a launch that [`check`] let pass.
pub(super) fn run(
    program: &Program,
    entry: &Entry,
    launch: &Launch<'_>,
    around: &Surroundings<'_>,
) -> Result<Counters> {
    let total = launch.grid.iter().map(|&n| u64::from(n)).product::<u64>();
    if let Some(beyond) = launch.sample.and_then(|sample| sample.iter().find(|&&block| block >= total)) {
        return Err(refused(
            program,
            launch,
            format!("block {beyond} of the sample; the grid has {total}"),
            "sample blocks of the grid",
        ));
    }
    let threads: u32 = launch.block.iter().product();
    let dynamic_at =
        if launch.dynamic_shared > 0 { entry.code.dynamic_shared_at } else { entry.static_shared };
    let grid = Grid {
        file: program.file(),
        kernel: &entry.name,
        code: &entry.code,
        grid: launch.grid,
        block: launch.block,
        threads,
        warps: threads.div_ceil(LANES as u32) as usize,
        shared_bytes: dynamic_at + launch.dynamic_shared,
        dynamic_shared: launch.dynamic_shared,
        parameters: launch.parameters.to_vec(),
        ranges: around.ranges,
        variables: around.variables,
        locks: std::array::from_fn(|_| Mutex::new(())),
        patience: around.patience,
        seed: launch.seed,
        missing: around.missing,
    };
    let ranges: Vec<Range> = match around.observer {
        Some(_) => around.ranges.iter().map(|live| live.range).collect(),
        None => Vec::new(),
    };
    let info = LaunchInfo {
        file: grid.file,
        kernel: grid.kernel,
        grid: grid.grid,
        block: grid.block,
        shared_bytes: grid.shared_bytes,
        ranges: &ranges,
    };
    let observer = around.observer.and_then(|observer| observer.launch(&info));
    let count = launch.sample.map_or(total, |sample| sample.len() as u64) as usize;
    // An order of its own only where there are few enough blocks to list.
    let order =
        if launch.seed != 0 && count <= 1 << 24 { Some(permutation(count, launch.seed)) } else { None };
    let block_at = |turn: usize| {
        let place = order.as_ref().map_or(turn, |order| order[turn]);
        let linear = launch.sample.map_or(place as u64, |sample| sample[place]);
        let [x, y, _] = launch.grid.map(u64::from);
        [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32]
    };
    let mut counters = distribute(&grid, count, around.threads, &block_at, observer.as_deref())?;
    counters.blocks = total;
    counters.blocks_run = count as u64;
    if let Some(observer) = observer {
        observer.finish(&mut counters)?;
    }
    Ok(counters)
}

/// Runs blocks on host threads; each takes the next one in order. The caller's thread begins alone, and gets help once
/// what is left, going by the blocks that have run, is worth it. After a fault the blocks before it still end, so
/// the fault that is reported is the first in that order.
fn distribute(
    grid: &Grid<'_>,
    count: usize,
    threads: usize,
    block_at: &(dyn Fn(usize) -> [u32; 3] + Sync),
    observer: Option<&dyn LaunchObserver>,
) -> Result<Counters> {
    let next = AtomicUsize::new(0);
    let stop = AtomicUsize::new(usize::MAX);
    let found: Mutex<(Counters, Option<(usize, Fault)>)> = Mutex::new((Counters::default(), None));
    let work = |after: &mut dyn FnMut(u64)| {
        let mut block = Block::new(grid);
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            if turn >= count || turn > stop.load(Ordering::Relaxed) {
                break;
            }
            let at = block_at(turn);
            if let Err(fault) = block.run(grid, at, observer.map(|observer| observer.block(at))) {
                stop.fetch_min(turn, Ordering::Relaxed);
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                if found.1.as_ref().is_none_or(|(first, _)| turn < *first) {
                    found.1 = Some((turn, fault));
                }
                break;
            }
            after(block.shared.steps);
        }
        let counters = tally(grid.code, &block);
        found.lock().unwrap_or_else(PoisonError::into_inner).0.add(&counters);
    };
    let helpers = match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let helpers = helpers.min(count.div_ceil(2)).max(1);
    if helpers == 1 {
        work(&mut |_| ());
    } else {
        let work = &work;
        std::thread::scope(|scope| {
            let (mut blocks, mut steps, mut helped) = (0, 0, false);
            work(&mut |of_block| {
                (blocks, steps) = (blocks + 1, steps + of_block);
                let left = (count as u64).saturating_sub(blocks).saturating_mul(steps / blocks);
                if !helped && left > WORTH_A_THREAD {
                    helped = true;
                    (1..helpers).for_each(|_| {
                        scope.spawn(move || work(&mut |_| ()));
                    });
                }
            });
        });
    }
    let (counters, fault) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    match fault {
        Some((_, fault)) => Err(fault),
        None => Ok(counters),
    }
}

/// The counts by class, from how often each instruction ran.
fn tally(code: &Code, block: &Block) -> Counters {
    let mut counters = block.shared.counters.clone();
    for (instruction, [hits, lanes]) in code.instructions.iter().zip(&block.shared.hits) {
        if instruction.counts {
            counters.instructions[instruction.class as usize] += hits;
            counters.thread_instructions[instruction.class as usize] += lanes;
        }
        if instruction.class == Class::Matrix
            && let Op::Meet(meeting, _) = &instruction.op
        {
            counters.matrix_multiply_adds += hits
                * match &**meeting {
                    Meeting::Multiply(multiply) => multiply.multiply_adds(),
                    Meeting::Warpgroup(work) => work.multiply_adds(),
                    _ => 0,
                };
        }
    }
    counters
}
