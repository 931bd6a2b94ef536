//! The checker against its definition: on random programs, a race is reported exactly when some earlier access of
//! another thread to the same byte, one of the two a write, is not in a full vector clock's past.

use super::*;
use crate::sim::access::*;

const THREADS: usize = 2 * LANES + 5;
const BLOCK: [u32; 3] = [THREADS as u32, 1, 1];
const BASE: u64 = 0x10000;
const BYTES: u64 = 64;

struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % below
    }
}

/// Every access so far and a vector clock of every thread.
struct Definition {
    known: Vec<Vec<u32>>,
    past: Vec<(usize, u32, u64, u32, Action)>,
}

impl Definition {
    fn new(threads: usize) -> Definition {
        Definition { known: vec![vec![0; threads]; threads], past: Vec::new() }
    }

    fn sync(&mut self, threads: impl Iterator<Item = usize> + Clone) {
        let mut joined = vec![0; self.known.len()];
        for t in threads.clone() {
            joined.iter_mut().zip(&self.known[t]).for_each(|(a, &b)| *a = (*a).max(b));
        }
        threads.for_each(|t| self.known[t].clone_from(&joined));
    }

    /// Whether the access races with an earlier one.
    fn races(&mut self, thread: usize, address: u64, bytes: u32, action: Action) -> bool {
        let races = self.past.iter().any(|&(other, clock, at, count, did)| {
            other != thread
                && at < address + u64::from(bytes)
                && address < at + u64::from(count)
                && self.known[thread][other] < clock
                && !matches!((did, action), (Action::Read, Action::Read) | (Action::Atomic, Action::Atomic))
        });
        self.known[thread][thread] += 1;
        self.past.push((thread, self.known[thread][thread], address, bytes, action));
        races
    }
}

fn launch(checker: &Checker, grid: u32) -> Box<dyn LaunchObserver> {
    let range = Range { base: BASE, bytes: BYTES, variable: false };
    checker.memory(MemoryEvent::Allocated(range)).unwrap();
    checker.memory(MemoryEvent::Written { address: BASE, bytes: BYTES }).unwrap();
    let info = LaunchInfo {
        file: "test.ptx",
        kernel: "test",
        grid: [grid, 1, 1],
        block: BLOCK,
        shared_bytes: BYTES as u32,
        ranges: &[range],
    };
    checker.launch(&info).unwrap()
}

fn lanes_of_warp(warp: usize) -> u32 {
    let lanes = THREADS.saturating_sub(warp * LANES).min(LANES);
    if lanes == LANES { !0 } else { (1 << lanes) - 1 }
}

fn place(block: u32, thread: usize, line: u32) -> Place {
    Place { line, block: [block, 0, 0], warp: (thread / LANES) as u32 }
}

fn access(
    block: &mut dyn BlockObserver,
    at: Place,
    active: u32,
    (space, action): (Space, Action),
    address: u64,
    bytes: u32,
) -> Result<()> {
    let addresses = [address; LANES];
    block.access(&WarpAccess {
        space,
        action,
        order: super::super::access::Order::Weak,
        active,
        addresses: &addresses,
        bytes,
        read_bytes: None,
        range: 0,
        at,
    })
}

/// Runs random programs; returns how many raced, and how many of these were missed. A false alarm is a panic. `wide` lets
/// several lanes load one place together.
fn compare(space: Space, partial: bool, wide: bool, seed: u64) -> (usize, usize) {
    let mut random = Random(seed);
    let (mut raced, mut missed) = (0, 0);
    for _ in 0..1000 {
        let checker = Checker::new();
        let launch = launch(&checker, 1);
        let mut block = launch.block([0; 3]);
        let mut definition = Definition::new(THREADS);
        let base = if space == Space::Global { BASE } else { 0 };
        if space == Space::Shared {
            // Everything is written first, then everyone meets.
            for at in (0..BYTES).step_by(16) {
                access(&mut *block, place(0, 0, 1), 1, (space, Action::Write), at, 16).unwrap();
            }
            block.barrier_complete(0, &[!0, !0, lanes_of_warp(2)]).unwrap();
        }
        let mut log = Vec::new();
        // Programs of many synchronisations and few writes race late, others soon.
        let (meets, syncs, reads) = (random.below(8), random.below(16), 3 + random.below(30));
        for step in 0..200 {
            match random.below(8 + meets + syncs) {
                n if n < meets => {
                    let met: Vec<bool> = (0..3).map(|_| !partial || random.below(3) != 0).collect();
                    let threads: Vec<u32> =
                        (0..3).map(|w| if met[w] { lanes_of_warp(w) } else { 0 }).collect();
                    log.push(format!("barrier {met:?}"));
                    block.barrier_complete(0, &threads).unwrap();
                    definition.sync((0..THREADS).filter(|t| met[t / LANES]));
                }
                n if n < meets + syncs => {
                    let warp = random.below(3);
                    let half = [0xffff, 0xffff_0000, !0][if partial { random.below(3) } else { 2 }];
                    let mask = half & lanes_of_warp(warp);
                    if mask != 0 {
                        let at = place(0, warp * LANES, step);
                        let live = lanes_of_warp(warp);
                        log.push(format!("sync warp {warp} {mask:x}"));
                        block
                            .warp_sync(&WarpSync { kind: SyncKind::Warp, mask, active: mask, live, at })
                            .unwrap();
                        definition
                            .sync((0..THREADS).filter(|t| t / LANES == warp && mask >> (t % LANES) & 1 != 0));
                    }
                }
                _ => {
                    let thread = [0, 1, 17, 31, 32, 40, 66][random.below(7)];
                    let bytes = [1, 2, 4, 4, 8, 16][random.below(6)];
                    let offset = (random.below(BYTES as usize / bytes) * bytes) as u64;
                    let action =
                        [Action::Write, Action::Atomic].get(random.below(reads)).unwrap_or(&Action::Read);
                    let action = *action;
                    let bytes = bytes as u32;
                    let lane = 1 << (thread % LANES);
                    let others = if wide && action == Action::Read {
                        [0, 0xff, 0xaa00, !0][random.below(4)] & lanes_of_warp(thread / LANES)
                    } else {
                        0
                    };
                    let lanes = lane | others;
                    let first = thread / LANES * LANES;
                    let truth =
                        (0..LANES).filter(|lane| lanes >> lane & 1 != 0).fold(false, |races, lane| {
                            definition.races(first + lane, offset, bytes, action) | races
                        });
                    let found = access(
                        &mut *block,
                        place(0, thread, step),
                        lanes,
                        (space, action),
                        base + offset,
                        bytes,
                    );
                    log.push(format!("thread {thread} ({lanes:x}) {action:?} {offset}+{bytes}"));
                    assert!(truth || found.is_ok(), "false alarm: {found:?}\n{}", log.join("\n"));
                    raced += usize::from(truth);
                    missed += usize::from(truth && found.is_ok());
                    if truth {
                        break;
                    }
                }
            }
        }
    }
    (raced, missed)
}

#[test]
fn shared_memory_equals_the_definition() {
    let (raced, missed) = compare(Space::Shared, false, false, 1);
    assert!(raced > 400, "{raced} raced");
    assert!(missed * 100 <= raced, "{missed} of {raced} missed: of atomics only the last is kept");
    let (raced, missed) = compare(Space::Shared, true, false, 2);
    assert!(raced > 400 && missed * 50 <= raced, "{missed} of {raced} missed");
}

#[test]
fn loads_of_several_lanes_equal_the_definition() {
    let (raced, missed) = compare(Space::Shared, false, true, 5);
    assert!(raced > 400 && missed * 50 <= raced, "{missed} of {raced} missed");
    let (raced, missed) = compare(Space::Shared, true, true, 6);
    assert!(raced > 400 && missed * 20 <= raced, "{missed} of {raced} missed");
}

#[test]
fn device_memory_within_a_block_equals_the_definition() {
    let (raced, missed) = compare(Space::Global, false, false, 3);
    assert!(raced > 400 && missed * 50 <= raced, "{missed} of {raced} missed");
    let (raced, missed) = compare(Space::Global, true, false, 4);
    assert!(raced > 400 && missed * 20 <= raced, "{missed} of {raced} missed");
}
