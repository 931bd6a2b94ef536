//! What a launch cost: instructions by class, divergence, tensor-core operations, bytes.

use super::traffic::Traffic;
use std::fmt;

/// Classes of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// Integer and bit arithmetic, comparisons, selections.
    Integer,
    /// Single precision, half precision and bf16 arithmetic.
    Float,
    /// Double precision arithmetic.
    Double,
    /// Reciprocals, roots, exponentials, logarithms, sines.
    Special,
    /// Conversions between types.
    Convert,
    /// Moves, address conversions, special registers, parameters.
    Move,
    /// Branches and exits.
    Control,
    /// Loads and stores of global memory.
    Global,
    /// Loads and stores of shared memory, `ldmatrix`.
    Shared,
    /// Loads and stores of local memory.
    Local,
    /// Atomics and reductions in memory.
    Atomic,
    /// `cp.async` and its groups.
    Copy,
    /// Barriers and fences, what orders products of warpgroups included.
    Barrier,
    /// Shuffles, votes, matches.
    Warp,
    /// `mma`, `wgmma.mma_async`.
    Matrix,
}

/// Number of classes.
pub const CLASSES: usize = Class::Matrix as usize + 1;

/// All classes, in order.
pub const ALL_CLASSES: [Class; CLASSES] = [
    Class::Integer,
    Class::Float,
    Class::Double,
    Class::Special,
    Class::Convert,
    Class::Move,
    Class::Control,
    Class::Global,
    Class::Shared,
    Class::Local,
    Class::Atomic,
    Class::Copy,
    Class::Barrier,
    Class::Warp,
    Class::Matrix,
];

/// What a launch cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Blocks of the grid.
    pub blocks: u64,
    /// Blocks that ran: fewer than `blocks` when a sample was asked for.
    pub blocks_run: u64,
    /// Warps that ran.
    pub warps: u64,
    /// Instructions of warps, by [`Class`].
    pub instructions: [u64; CLASSES],
    /// Instructions of threads, by [`Class`]: each warp instruction counts its active lanes.
    pub thread_instructions: [u64; CLASSES],
    /// Branches at which lanes of a warp went different ways.
    pub divergent_branches: u64,
    /// Multiply-adds on tensor cores.
    pub matrix_multiply_adds: u64,
    /// Bytes that lanes read from global memory, copies included.
    pub global_read_bytes: u64,
    /// Bytes that lanes wrote to global memory, atomics included.
    pub global_write_bytes: u64,
    /// Bytes that lanes read from shared memory.
    pub shared_read_bytes: u64,
    /// Bytes that lanes wrote to shared memory.
    pub shared_write_bytes: u64,
    /// Bytes of local memory that lanes read or wrote.
    pub local_bytes: u64,
    /// Sectors, banks and bytes touched; zeros where no observer counted them.
    pub traffic: Traffic,
}

impl Counters {
    /// Instructions of warps, all classes.
    pub fn warp_instructions(&self) -> u64 {
        self.instructions.iter().sum()
    }

    /// Instructions of threads, all classes.
    pub fn all_thread_instructions(&self) -> u64 {
        self.thread_instructions.iter().sum()
    }

    /// Instructions of warps of one class.
    pub fn of(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// Adds the counts of another part of the same launch, or of another launch.
    pub fn add(&mut self, other: &Counters) {
        self.blocks += other.blocks;
        self.blocks_run += other.blocks_run;
        self.warps += other.warps;
        for class in 0..CLASSES {
            self.instructions[class] += other.instructions[class];
            self.thread_instructions[class] += other.thread_instructions[class];
        }
        self.divergent_branches += other.divergent_branches;
        self.matrix_multiply_adds += other.matrix_multiply_adds;
        self.global_read_bytes += other.global_read_bytes;
        self.global_write_bytes += other.global_write_bytes;
        self.shared_read_bytes += other.shared_read_bytes;
        self.shared_write_bytes += other.shared_write_bytes;
        self.local_bytes += other.local_bytes;
        self.traffic.add(&other.traffic);
    }

    /// What was counted since `earlier`, a reading of the same counters.
    pub fn since(&self, earlier: &Counters) -> Counters {
        let mut rest = self.clone();
        rest.blocks -= earlier.blocks;
        rest.blocks_run -= earlier.blocks_run;
        rest.warps -= earlier.warps;
        for class in 0..CLASSES {
            rest.instructions[class] -= earlier.instructions[class];
            rest.thread_instructions[class] -= earlier.thread_instructions[class];
        }
        rest.divergent_branches -= earlier.divergent_branches;
        rest.matrix_multiply_adds -= earlier.matrix_multiply_adds;
        rest.global_read_bytes -= earlier.global_read_bytes;
        rest.global_write_bytes -= earlier.global_write_bytes;
        rest.shared_read_bytes -= earlier.shared_read_bytes;
        rest.shared_write_bytes -= earlier.shared_write_bytes;
        rest.local_bytes -= earlier.local_bytes;
        rest.traffic.subtract(&earlier.traffic);
        rest
    }

    /// What all blocks cost, where a sample of them ran: every count times blocks over blocks that ran.
    pub fn scaled(mut self) -> Counters {
        let (all, run) = (u128::from(self.blocks), u128::from(self.blocks_run));
        if run > 0 && run < all {
            let scale = |count: &mut u64| *count = (u128::from(*count) * all / run) as u64;
            self.instructions.iter_mut().chain(&mut self.thread_instructions).for_each(scale);
            [
                &mut self.warps,
                &mut self.divergent_branches,
                &mut self.matrix_multiply_adds,
                &mut self.global_read_bytes,
                &mut self.global_write_bytes,
                &mut self.shared_read_bytes,
                &mut self.shared_write_bytes,
                &mut self.local_bytes,
            ]
            .into_iter()
            .for_each(scale);
            self.traffic.each(scale);
        }
        self
    }

    /// Floating-point operations on tensor cores: two for each multiply-add.
    pub fn matrix_flops(&self) -> u64 {
        2 * self.matrix_multiply_adds
    }

    /// Active lanes over lanes, all instructions; 1 where nothing diverges and all warps are full.
    pub fn lane_share(&self) -> f64 {
        let lanes = 32 * self.warp_instructions();
        if lanes == 0 { 1.0 } else { self.all_thread_instructions() as f64 / lanes as f64 }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (blocks, run) = (self.blocks, self.blocks_run);
        let sample = if run < blocks { format!(" of which {run} ran") } else { String::new() };
        let instructions = self.warp_instructions();
        writeln!(f, "{blocks} blocks{sample}, {} warps, {instructions} warp instructions", self.warps)?;
        let classes = ALL_CLASSES.iter().filter(|&&class| self.of(class) > 0);
        let classes: Vec<String> = classes
            .map(|&class| format!("{} {}", format!("{class:?}").to_lowercase(), self.of(class)))
            .collect();
        writeln!(f, "  {}", classes.join(", "))?;
        writeln!(
            f,
            "lanes at work {:.1} %, divergent branches {}, tensor-core flops {}, local bytes {}",
            100.0 * self.lane_share(),
            self.divergent_branches,
            self.matrix_flops(),
            self.local_bytes
        )?;
        writeln!(
            f,
            "bytes by lanes: global {} read {} written, shared {} read {} written",
            self.global_read_bytes, self.global_write_bytes, self.shared_read_bytes, self.shared_write_bytes
        )?;
        self.traffic.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_sums() {
        let mut counters = Counters { blocks: 2, blocks_run: 2, warps: 4, ..Counters::default() };
        counters.instructions[Class::Matrix as usize] = 10;
        counters.thread_instructions[Class::Matrix as usize] = 160;
        counters.matrix_multiply_adds = 10 * 16 * 8 * 16;
        let one = counters.clone();
        counters.add(&one);
        assert_eq!((counters.warps, counters.of(Class::Matrix)), (8, 20));
        assert_eq!(counters.lane_share(), 0.5);
        let sampled = Counters { blocks_run: 1, blocks: 4, ..counters.clone() }.scaled();
        assert_eq!((sampled.warps, sampled.of(Class::Matrix), sampled.blocks_run), (32, 80, 1));
        assert_eq!(counters.clone().scaled(), counters, "nothing to scale where all ran");
        let text = counters.to_string();
        assert!(
            text.contains("matrix 20") && text.contains("50.0 %") && text.contains("flops 81920"),
            "{text}"
        );
        assert!(!text.contains("double"), "{text}");
    }
}
