//! Faults in words: the same sentence for the same mistake, with place, address and advice.

use super::now::{Clash, Touch};
use crate::sim::access::{LANES, LaunchInfo, Range};
use crate::sim::fault::{Fault, Kind, Party};
use crate::sim::memory::describe;

/// What every fault of a launch says.
#[derive(Clone, Debug)]
pub struct Launched {
    pub file: String,
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub ranges: Vec<Range>,
}

/// Who does something where.
#[derive(Clone, Copy, Debug)]
pub struct Actor {
    pub block: [u32; 3],
    pub warp: usize,
    pub lane: usize,
    pub line: u32,
}

impl Launched {
    pub fn new(info: &LaunchInfo<'_>) -> Launched {
        Launched {
            file: info.file.to_string(),
            kernel: info.kernel.to_string(),
            grid: info.grid,
            block: info.block,
            shared_bytes: info.shared_bytes,
            ranges: info.ranges.to_vec(),
        }
    }

    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }

    /// A block's linear index, x fastest.
    pub fn block_index(&self, [x, y, z]: [u32; 3]) -> u64 {
        let [width, height, _] = self.grid.map(u64::from);
        u64::from(x) + width * (u64::from(y) + height * u64::from(z))
    }

    pub fn block_at(&self, index: u64) -> [u32; 3] {
        unfold(index, self.grid)
    }

    pub fn thread_at(&self, thread: usize) -> [u32; 3] {
        unfold(thread as u64, self.block)
    }

    /// A fault without an address.
    pub fn fault(&self, kind: Kind, who: Actor, problem: String, advice: &str) -> Fault {
        let mut fault = Fault::new(kind, problem, advice);
        fault.site.file.clone_from(&self.file);
        fault.site.kernel.clone_from(&self.kernel);
        fault.site.line = who.line;
        fault.site.block = Some(who.block);
        fault.site.thread = Some(self.thread_at(who.warp * LANES + who.lane));
        fault
    }

    /// A party within the block of `who`.
    pub fn party(&self, who: Actor, thread: usize, line: u32, did: &'static str) -> Party {
        Party { did, line, block: who.block, thread: self.thread_at(thread) }
    }

    /// A clash in shared memory at `offset`.
    pub fn shared(&self, who: Actor, touch: Touch, bytes: u32, offset: u64, clash: Clash) -> Fault {
        let does = verb(touch);
        match clash {
            Clash::Unwritten => self
                .fault(
                    Kind::Uninitialised,
                    who,
                    format!("{does} {bytes} bytes of shared memory of which nobody wrote all"),
                    "write the memory first, or read only what was written",
                )
                .at_address(offset),
            Clash::Copying { thread, line } => {
                let fault = if touch.writes() && !touch.reads() {
                    self.fault(
                        Kind::CopyDisturbed,
                        who,
                        format!("{does} {bytes} bytes of shared memory to which a cp.async is under way"),
                        "wait for the copy and pass a barrier before the memory is used again",
                    )
                } else {
                    self.fault(
                        Kind::CopyNotVisible,
                        who,
                        format!("{does} {bytes} bytes of shared memory before the cp.async that writes them was waited for"),
                        "wait for the group (cp.async.wait_group) and pass a barrier before reading what was copied",
                    )
                };
                self.with_party(fault.at_address(offset), self.party(who, thread, line, "copies to"))
            }
            Clash::Unfenced { thread, line } => {
                let fault = self.fault(
                    Kind::ProxyFence,
                    who,
                    format!("a product {does} {bytes} bytes of shared memory whose writer executed no fence.proxy.async after them"),
                    "let each thread that writes operands, or waited for its cp.async of them, execute fence.proxy.async \
                     before the barrier that precedes the product",
                );
                self.with_party(fault.at_address(offset), self.party(who, thread, line, "wrote"))
            }
            Clash::Multiplied => self
                .fault(
                    Kind::ProductDisturbed,
                    who,
                    format!("{does} {bytes} bytes of shared memory that a product under way reads"),
                    "let every warp of the warpgroup wait for the product (wgmma.wait_group) and pass a barrier before its \
                     operands change",
                )
                .at_address(offset),
            Clash::Race { reader, thread, line, by } => {
                let who = Actor { lane: reader, ..who };
                let advice = if thread / LANES == who.warp {
                    "put __syncwarp() between them: lanes of a warp do not run in lockstep"
                } else {
                    "put __syncthreads() between them"
                };
                let fault = self.fault(
                    Kind::SharedRace,
                    who,
                    format!(
                        "{does} {bytes} bytes of shared memory without an order to another thread's access"
                    ),
                    advice,
                );
                self.with_party(fault.at_address(offset), self.party(who, thread, line, by))
            }
        }
    }

    /// A fault at an address of device memory.
    pub fn global(
        &self,
        kind: Kind,
        who: Actor,
        range: usize,
        address: u64,
        problem: String,
        advice: &str,
    ) -> Fault {
        let range = &self.ranges[range];
        let offset = address - range.base;
        self.fault(kind, who, problem, advice)
            .at_address(address)
            .near(format!("byte {offset} of the {}", describe(range)))
    }

    /// The same fault with its other party.
    pub fn with_party(&self, mut fault: Fault, party: Party) -> Fault {
        fault.site.other = Some(party);
        fault
    }
}

/// What a thread does, a verb.
pub fn verb(touch: Touch) -> &'static str {
    match touch {
        Touch::Read | Touch::StrongRead => "reads",
        Touch::Write | Touch::StrongWrite => "writes",
        Touch::Atomic => "changes atomically",
        Touch::Copy => "copies to",
    }
}

/// Lanes in words: `lanes 0-15, 31`.
pub fn lanes_in_words(mask: u32) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for lane in (0..LANES as u32).filter(|lane| mask >> lane & 1 != 0) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == lane => *last = lane,
            _ => runs.push((lane, lane)),
        }
    }
    let words: Vec<String> =
        runs.iter().map(|&(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    match mask.count_ones() {
        0 => "no lane".to_string(),
        1 => format!("lane {}", words.join(", ")),
        _ => format!("lanes {}", words.join(", ")),
    }
}

fn unfold(index: u64, [width, height, _]: [u32; 3]) -> [u32; 3] {
    let (width, height) = (u64::from(width), u64::from(height));
    [(index % width) as u32, (index / width % height) as u32, (index / width / height) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_read_as_runs() {
        assert_eq!(lanes_in_words(0x8000_ffff), "lanes 0-15, 31");
        assert_eq!(lanes_in_words(0x10), "lane 4");
        assert_eq!(lanes_in_words(0), "no lane");
    }
}
