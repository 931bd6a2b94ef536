//! What went wrong in the simulator: a sentence, a place, and advice.

use std::fmt;

/// Result with a [`Fault`].
pub type Result<T> = std::result::Result<T, Fault>;

/// What kind of fault it is; tests and the checker compare these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The PTX text cannot be understood.
    Syntax,
    /// An instruction, or one of its forms, that the simulator does not know.
    UnknownInstruction,
    /// A launch that a device would refuse: entry, parameters, grid, block, shared memory.
    Launch,
    /// An access outside every live allocation, or across an end of one.
    OutOfBounds,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// An access to memory that was given back.
    UseAfterFree,
    /// Memory that is used up, or an address that cannot be given back.
    Memory,
    /// A read of bytes that nobody wrote.
    Uninitialised,
    /// Two threads of a block touch the same bytes without an order between them.
    SharedRace,
    /// Two blocks touch the same bytes without an order between them.
    GlobalRace,
    /// Operations of two streams touch the same bytes without an order between them.
    StreamRace,
    /// A read of bytes that an asynchronous copy has not delivered.
    CopyNotVisible,
    /// A write to bytes that an asynchronous copy under way reads or writes.
    CopyDisturbed,
    /// A product of a warpgroup reads bytes of shared memory that no `fence.proxy.async` made visible to it.
    ProxyFence,
    /// A write to bytes of shared memory that a product of a warpgroup under way reads.
    ProductDisturbed,
    /// An access to a product's accumulators without the wait or the fence that it needs.
    ProductRegisters,
    /// An instruction of a warpgroup that its warps do not execute alike.
    Warpgroup,
    /// The mask of a `*.sync` instruction does not name the lanes that execute it.
    SyncMask,
    /// A barrier that some threads of a warp or of the block do not reach.
    Barrier,
    /// Threads wait for each other, or for something that never comes.
    Deadlock,
    /// Memory that nobody gave back.
    Leak,
    /// A `trap` instruction.
    Trap,
}

/// Where a fault happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The PTX file.
    pub file: String,
    /// The kernel.
    pub kernel: String,
    /// Line of the PTX file, from 1; 0 where none applies.
    pub line: u32,
    /// The block.
    pub block: Option<[u32; 3]>,
    /// The thread within its block.
    pub thread: Option<[u32; 3]>,
    /// The address.
    pub address: Option<u64>,
    /// The allocation that contains the address or is nearest to it, in words.
    pub nearest: Option<String>,
    /// The other party of a race, or who holds a copy or a barrier.
    pub other: Option<Party>,
}

/// A thread that another's fault involves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// What it did, a verb.
    pub did: &'static str,
    /// Line of the PTX file.
    pub line: u32,
    /// The block.
    pub block: [u32; 3],
    /// The thread within its block.
    pub thread: [u32; 3],
}

/// A fault: what happened, where, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: Kind,
    /// What happened, with numbers.
    pub problem: String,
    /// What to do next.
    pub advice: String,
    /// Where.
    pub site: Box<Site>,
}

impl Fault {
    /// A fault without a place yet.
    pub fn new(kind: Kind, problem: impl Into<String>, advice: impl Into<String>) -> Fault {
        Fault { kind, problem: problem.into(), advice: advice.into(), site: Box::default() }
    }

    /// A fault in the text of a file.
    pub fn text(
        kind: Kind,
        file: &str,
        line: u32,
        problem: impl Into<String>,
        advice: impl Into<String>,
    ) -> Fault {
        let mut fault = Fault::new(kind, problem, advice);
        fault.site.file = file.to_string();
        fault.site.line = line;
        fault
    }

    /// The same fault at an address.
    pub fn at_address(mut self, address: u64) -> Fault {
        self.site.address = Some(address);
        self
    }

    /// The same fault beside an allocation.
    pub fn near(mut self, nearest: impl Into<String>) -> Fault {
        self.site.nearest = Some(nearest.into());
        self
    }

    /// Everything but the advice: what happened and where.
    pub fn sentence(&self) -> String {
        let site = &self.site;
        let mut text = self.problem.clone();
        if let Some(address) = site.address {
            text += &format!("; address {address:#x}");
        }
        if let Some(nearest) = &site.nearest {
            text += &format!(", {nearest}");
        }
        if let Some(Party { did, line, block: [i, j, k], thread: [x, y, z] }) = site.other {
            text += &format!("; thread ({x}, {y}, {z}) of block ({i}, {j}, {k}) {did} it at line {line}");
        }
        let mut place = Vec::new();
        if !site.file.is_empty() {
            place.push(if site.line > 0 {
                format!("{}:{}", site.file, site.line)
            } else {
                site.file.clone()
            });
        }
        if !site.kernel.is_empty() {
            place.push(format!("kernel {}", site.kernel));
        }
        if let Some([x, y, z]) = site.block {
            place.push(format!("block ({x}, {y}, {z})"));
        }
        if let Some([x, y, z]) = site.thread {
            place.push(format!("thread ({x}, {y}, {z})"));
        }
        if place.is_empty() { text } else { format!("{}: {text}", place.join(", ")) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n       {}", self.sentence(), self.advice)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for crate::base::Error {
    fn from(fault: Fault) -> Self {
        crate::base::Error::device(fault.sentence(), fault.advice)
    }
}
