//! How many blocks of a kernel fit on a multiprocessor at once: from registers, shared memory and block size, as
//! NVIDIA's occupancy calculator has it.
//!
//! A block needs a slot, its warps need slots, its shared memory comes in units of 128 bytes with 1 KiB on top that
//! the system takes, and registers are given to a warp in units of 256 in one of four partitions of the register
//! file. The scarcest of the four is the limit. `ptx/REPORT.md` has registers and static shared memory of each kernel.

use super::fault::{Fault, Kind, Result};
use std::fmt;

/// What a multiprocessor of one architecture has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The architecture.
    pub name: &'static str,
    /// Warps that can be resident.
    pub warps: u32,
    /// Blocks that can be resident.
    pub blocks: u32,
    /// Bytes of shared memory for all blocks.
    pub shared_bytes: u32,
    /// Bytes of shared memory that one block can have.
    pub shared_bytes_of_block: u32,
}

/// The architectures of the committed report, in its order.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "sm_80",
        warps: 64,
        blocks: 32,
        shared_bytes: 164 << 10,
        shared_bytes_of_block: 163 << 10,
    },
    Target { name: "sm_86", warps: 48, blocks: 16, shared_bytes: 100 << 10, shared_bytes_of_block: 99 << 10 },
    Target { name: "sm_89", warps: 48, blocks: 24, shared_bytes: 100 << 10, shared_bytes_of_block: 99 << 10 },
    Target {
        name: "sm_90",
        warps: 64,
        blocks: 32,
        shared_bytes: 228 << 10,
        shared_bytes_of_block: 227 << 10,
    },
];

const REGISTERS: u32 = 65536;
const PARTITIONS: u32 = 4;
const REGISTER_UNIT: u32 = 256;
const MOST_REGISTERS_OF_THREAD: u32 = 255;
const MOST_THREADS_OF_BLOCK: u32 = 1024;
const SHARED_UNIT: u32 = 128;
const SHARED_OF_SYSTEM: u32 = 1024;
const LANES: u32 = super::access::LANES as u32;

/// What a kernel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory of a block, static and dynamic.
    pub shared_bytes: u32,
    /// Threads of a block.
    pub threads: u32,
}

/// What is scarcest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Slots for warps.
    Warps,
    /// Slots for blocks.
    Blocks,
    /// Registers.
    Registers,
    /// Shared memory.
    Shared,
}

/// What fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Blocks resident at once; 0 where the kernel cannot be launched.
    pub blocks: u32,
    /// Their warps.
    pub warps: u32,
    /// Warps that the multiprocessor could hold.
    pub most_warps: u32,
    /// What stops one more block.
    pub limit: Limit,
}

impl Occupancy {
    /// Resident warps over those that fit, 0 to 1.
    pub fn share(&self) -> f64 {
        f64::from(self.warps) / f64::from(self.most_warps)
    }
}

impl fmt::Display for Occupancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = format!("{:?}", self.limit).to_lowercase();
        write!(
            f,
            "{:.0} % ({} blocks, {} warps; limit: {limit})",
            100.0 * self.share(),
            self.blocks,
            self.warps
        )
    }
}

impl Target {
    /// How many blocks of that need fit at once.
    pub fn occupancy(&self, need: Need) -> Occupancy {
        let warps = need.threads.div_ceil(LANES).max(1);
        let shared = need.shared_bytes.next_multiple_of(SHARED_UNIT) + SHARED_OF_SYSTEM;
        let registers = (need.registers * LANES).next_multiple_of(REGISTER_UNIT).max(REGISTER_UNIT);
        let by_registers = REGISTERS / PARTITIONS / registers * PARTITIONS / warps;
        let fits = need.shared_bytes <= self.shared_bytes_of_block
            && need.registers <= MOST_REGISTERS_OF_THREAD
            && need.threads <= MOST_THREADS_OF_BLOCK;
        let limits = [
            (Limit::Warps, self.warps / warps),
            (Limit::Blocks, self.blocks),
            (Limit::Registers, by_registers),
            (Limit::Shared, self.shared_bytes / shared),
        ];
        let (mut limit, mut blocks) = limits[0];
        for (other, fewer) in limits {
            if fewer < blocks {
                (limit, blocks) = (other, fewer);
            }
        }
        let blocks = if fits { blocks } else { 0 };
        Occupancy { blocks, warps: blocks * warps, most_warps: self.warps, limit }
    }
}

/// A row of the committed report of what ptxas makes of each kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRow {
    /// Stem of the file.
    pub file: String,
    /// Name of the entry.
    pub kernel: String,
    /// Registers of a thread, by [`TARGETS`]; `None` where the file is not for that one. Those of `sm_90a` count as
    /// `sm_90`'s.
    pub registers: [Option<u32>; 4],
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Bytes of stack of a thread.
    pub stack_bytes: u32,
    /// Bytes of registers stored to memory for want of room.
    pub spilled_bytes: u32,
}

/// The rows of `ptx/REPORT.md`.
///
/// # Errors
/// A row that is not of the form the tool writes, by its line.
pub fn report_rows(text: &str) -> Result<Vec<ReportRow>> {
    let header = format!("| file | kernel | {} |", TARGETS.map(|target| target.name).join(" | "));
    let wrong = |line: usize, what: &str| {
        let advice = "make it again: tools/ptx.py --report";
        Fault::text(Kind::Syntax, "ptx/REPORT.md", line as u32 + 1, what, advice)
    };
    let mut lines = text.lines().enumerate().skip_while(|(_, line)| !line.starts_with(&header));
    if lines.next().is_none() {
        return Err(wrong(0, &format!("no table that begins with `{header}`")));
    }
    let rows = lines.skip(1).take_while(|(_, line)| line.starts_with('|'));
    rows.map(|(number, line)| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let count = |cell: &&str| match *cell {
            "-" => Some(None),
            digits => digits.parse::<u32>().ok().map(Some),
        };
        let numbers: Option<Vec<Option<u32>>> = cells.iter().skip(2).map(count).collect();
        match (cells.as_slice(), numbers.as_deref()) {
            (
                [file, kernel, ..],
                Some(&[a, b, c, d, Some(shared_bytes), Some(stack_bytes), Some(spilled_bytes)]),
            ) => Ok(ReportRow {
                file: file.to_string(),
                kernel: kernel.to_string(),
                registers: [a, b, c, d],
                shared_bytes,
                stack_bytes,
                spilled_bytes,
            }),
            _ => Err(wrong(
                number,
                &format!("a row that is not file, kernel, 4 registers (or -) and 3 numbers: `{line}`"),
            )),
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(target: &str, registers: u32, shared_bytes: u32, threads: u32) -> (u32, f64, Limit) {
        let target = TARGETS.iter().find(|t| t.name == target).unwrap();
        let found = target.occupancy(Need { registers, shared_bytes, threads });
        (found.blocks, found.share(), found.limit)
    }

    #[test]
    fn equals_the_occupancy_calculator() {
        // Registers: 32 a thread fill an A100 with 2048 threads, 64 with 1024, 128 with 512, 255 with 256.
        assert_eq!(of("sm_80", 32, 0, 256), (8, 1.0, Limit::Warps));
        assert_eq!(of("sm_80", 64, 0, 256), (4, 0.5, Limit::Registers));
        assert_eq!(of("sm_80", 128, 0, 256), (2, 0.25, Limit::Registers));
        assert_eq!(of("sm_80", 255, 0, 256), (1, 0.125, Limit::Registers));
        // 168 registers are 5376 a warp: three warps in each of four partitions, one block of eight.
        assert_eq!(of("sm_80", 168, 0, 256), (1, 0.125, Limit::Registers));
        assert_eq!(of("sm_80", 168, 0, 128), (3, 0.1875, Limit::Registers));
        // 33 registers are given as 40.
        assert_eq!(of("sm_80", 33, 0, 256), (6, 0.75, Limit::Registers));
        // Slots: 16, 24 and 32 blocks of two warps.
        assert_eq!(of("sm_86", 32, 0, 64), (16, 32.0 / 48.0, Limit::Blocks));
        assert_eq!(of("sm_89", 32, 0, 64), (24, 1.0, Limit::Warps));
        assert_eq!(of("sm_80", 32, 0, 64), (32, 1.0, Limit::Warps));
        assert_eq!(of("sm_90", 16, 0, 32), (32, 0.5, Limit::Blocks));
        // Shared memory: 48 KiB and the system's 1 KiB.
        assert_eq!(of("sm_80", 32, 48 << 10, 256), (3, 0.375, Limit::Shared));
        assert_eq!(of("sm_86", 32, 48 << 10, 256), (2, 16.0 / 48.0, Limit::Shared));
        assert_eq!(of("sm_90", 32, 48 << 10, 256), (4, 0.5, Limit::Shared));
        assert_eq!(of("sm_80", 32, 163 << 10, 256), (1, 0.125, Limit::Shared));
        assert_eq!(of("sm_86", 32, 163 << 10, 256).0, 0, "more than a block can have");
        // A block of 1024 threads on 1536.
        assert_eq!(of("sm_86", 40, 0, 1024), (1, 32.0 / 48.0, Limit::Warps));
        assert_eq!(of("sm_80", 65, 0, 1024).0, 0, "too many registers for one block");
    }

    #[test]
    fn rows_of_the_report() {
        let text = "# What\n\n| file | kernel | sm_80 | sm_86 | sm_89 | sm_90 | shared | stack | spills |\n\
                    |---|---|---|---|---|---|---|---|---|\n\
                    | rmsnorm | rmsnorm_fwd_f32 | 30 | 31 | 32 | 33 | 32 | 0 | 0 |\n\
                    | linear_sm90a | linear_nt | - | - | - | 168 | 0 | 0 | 0 |\n";
        let rows = report_rows(text).unwrap();
        assert_eq!(rows.len(), 2);
        let registers = [30, 31, 32, 33].map(Some);
        assert_eq!((rows[0].kernel.as_str(), rows[0].registers), ("rmsnorm_fwd_f32", registers));
        assert_eq!(rows[0].shared_bytes, 32);
        assert_eq!(rows[1].registers, [None, None, None, Some(168)]);
        assert!(report_rows(&text.replace("| 32 | 0 | 0 |", "| - | 0 | 0 |")).is_err());
        let message = report_rows(&text.replace("| 33 |", "|")).unwrap_err().to_string();
        assert!(message.contains("REPORT.md:5"), "{message}");
        assert!(report_rows("nothing").is_err());
    }
}
