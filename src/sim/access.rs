//! What an observer sees: every warp-level access to memory, and every event that orders threads.
//!
//! The machine does bounds and alignment itself. Everything else (uninitialised reads, races, masks, counters of
//! sectors and bank conflicts) is an [`Observer`]'s work: one per machine, one [`LaunchObserver`] per launch, one
//! [`BlockObserver`] per block. A block runs on one host thread, so its observer needs no locks; blocks run beside
//! each other, so a launch's observer does. A launch without an observer pays one branch per access.

use super::counters::Counters;
use super::fault::Result;
use std::fmt::{self, Debug};

/// Threads of a warp.
pub const LANES: usize = 32;

/// The memory that an access goes to. Local memory and parameters belong to one thread and are not observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Memory of the device; addresses are device addresses.
    Global,
    /// Memory of the block; addresses are offsets from its first byte.
    Shared,
}

/// How far an ordering reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The block.
    Block,
    /// The device.
    Device,
    /// Everything.
    System,
}

/// The memory ordering an access states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// A plain access.
    Weak,
    /// `.volatile`: relaxed at system scope.
    Volatile,
    /// `.relaxed`.
    Relaxed(Scope),
    /// `.acquire`.
    Acquire(Scope),
    /// `.release`.
    Release(Scope),
    /// `.acq_rel`.
    AcquireRelease(Scope),
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A load.
    Read,
    /// An `ldmatrix`: what is read at a lane's address goes to all lanes of the warp.
    MatrixRead,
    /// A store.
    Write,
    /// `atom` and `red`: reads and writes at once.
    Atomic,
    /// The source of a `cp.async`.
    CopyRead,
    /// The destination of a `cp.async`. The bytes arrive at the wait that covers the group, not now.
    CopyWrite,
}

/// Where an access stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line of the PTX file.
    pub line: u32,
    /// The block.
    pub block: [u32; 3],
    /// The warp within its block.
    pub warp: u32,
}

/// One memory instruction of one warp.
#[derive(Clone, Copy, Debug)]
pub struct WarpAccess<'a> {
    /// Which memory.
    pub space: Space,
    /// What it does.
    pub action: Action,
    /// The ordering it states; atomics without one are relaxed at device scope.
    pub order: Order,
    /// Lanes that take part, bit i for lane i.
    pub active: u32,
    /// Addresses; those of lanes that are not active mean nothing.
    pub addresses: &'a [u64; LANES],
    /// Bytes that each active lane touches, from its address on. An `ldmatrix` is seen as 8, 16 or 32 lanes that
    /// read one row of 16 bytes each. A `cp.async` that fills with zeros reads `read_bytes` and writes these.
    pub bytes: u32,
    /// For [`Action::CopyRead`]: bytes that each lane reads (its source size), else `None`.
    pub read_bytes: Option<&'a [u32; LANES]>,
    /// Index of the allocation of the first active lane in [`LaunchInfo::ranges`]; 0 for shared memory.
    pub range: usize,
    /// Where.
    pub at: Place,
}

/// A live run of device memory: an allocation, or a piece that was carved out of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Address of the first byte.
    pub base: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Whether it is a `.global` or `.const` variable of a PTX file.
    pub variable: bool,
}

/// What an observer is told about device memory, in the order in which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryEvent {
    /// A range came to life, with contents that nobody wrote. Carving a piece out of an allocation says so too.
    Allocated(Range),
    /// A range died.
    Freed {
        /// Address of the first byte.
        base: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// The host wrote bytes, or filled them.
    Written {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// The host reads bytes.
    Read {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// The device copies bytes.
    Copied {
        /// Address of the first byte read.
        from: u64,
        /// Address of the first byte written.
        to: u64,
        /// Length in bytes.
        bytes: u64,
    },
}

/// Streams of a device: 0 is for computation, 1 for copies.
pub const STREAMS: usize = 2;

/// Of each stream, how many of its operations lie behind.
pub type Clock = [u64; STREAMS];

/// What an operation that was given to a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A launch of this entry.
    Kernel(&'static str),
    /// A copy from the host.
    Upload,
    /// A copy to the host.
    Download,
    /// Bytes set to zero.
    Clear,
    /// A copy within the device.
    Copy,
    /// A block of memory gets an owner.
    Take,
    /// A block of memory loses its owner.
    GiveBack,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Deed::Kernel(entry) => write!(f, "kernel `{entry}`"),
            Deed::Upload => f.write_str("an upload"),
            Deed::Download => f.write_str("a download"),
            Deed::Clear => f.write_str("a clear"),
            Deed::Copy => f.write_str("a copy within the device"),
            Deed::Take => f.write_str("the block's allocation"),
            Deed::GiveBack => f.write_str("the block's release"),
        }
    }
}

/// An operation's place among those of all streams: what comes before it under every order that streams, events and the
/// host allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Its stream; `None` for what waits for points of streams and is part of none.
    pub stream: Option<usize>,
    /// Its number in its stream, from 1.
    pub number: u64,
    /// Its number among all operations, in the order in which the host asked for them.
    pub asked: u64,
    /// The newest operation of each stream that it comes behind: by an event, by what the host waited for before it asked,
    /// or in its own stream.
    pub behind: Clock,
    /// The newest operation of each stream that all that is still to run outside that stream, this one first, comes
    /// behind.
    pub settled: Clock,
}

/// What an observer is told when an operation begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub deed: Deed,
    /// Its place.
    pub stamp: Stamp,
}

/// What an observer is told when a launch begins.
#[derive(Clone, Copy, Debug)]
pub struct LaunchInfo<'a> {
    /// The PTX file.
    pub file: &'a str,
    /// The entry.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of shared memory of a block, static and dynamic.
    pub shared_bytes: u32,
    /// All live ranges, ascending by address; they do not change while a launch runs.
    pub ranges: &'a [Range],
}

/// Which instruction brings lanes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncKind {
    /// `bar.warp.sync`.
    Warp,
    /// `shfl.sync`.
    Shuffle,
    /// `vote.sync`.
    Vote,
    /// `match.sync`.
    Match,
    /// `redux.sync`.
    Reduce,
    /// `ldmatrix`, `mma`, `wgmma`: all lanes of the warp, no ordering of memory.
    Matrix,
}

/// Lanes of a warp that come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarpSync {
    /// Which instruction.
    pub kind: SyncKind,
    /// The lanes that its mask names.
    pub mask: u32,
    /// The lanes that execute it together.
    pub active: u32,
    /// The lanes of the warp that have not exited.
    pub live: u32,
    /// Where.
    pub at: Place,
}

/// Lanes of a warp that arrive at a barrier of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierArrival {
    /// Which barrier, 0 to 15.
    pub id: u32,
    /// Threads that the instruction says take part, or `None` for all threads of the block.
    pub count: Option<u32>,
    /// The lanes that arrive.
    pub active: u32,
    /// The lanes of the warp that have not exited.
    pub live: u32,
    /// The lanes that the warp started with.
    pub started: u32,
    /// Whether the instruction demands that all lanes of a warp execute it together (`bar.sync`, `.aligned`).
    pub aligned: bool,
    /// Whether the lanes go on without waiting (`bar.arrive`).
    pub arrive_only: bool,
    /// Where.
    pub at: Place,
}

/// Hears of everything on a machine.
pub trait Observer: Send + Sync + Debug {
    /// Something happens to device memory. A read of bytes that nobody wrote may be refused.
    fn memory(&self, event: MemoryEvent) -> Result<()> {
        let _ = event;
        Ok(())
    }

    /// What follows belongs to this operation of a stream; with `None`, to the host.
    fn operation(&self, operation: Option<Operation>) {
        let _ = operation;
    }

    /// A launch begins; `None` says that nobody looks at it.
    fn launch(&self, info: &LaunchInfo<'_>) -> Option<Box<dyn LaunchObserver>>;
}

/// Hears of one launch.
pub trait LaunchObserver: Send + Sync {
    /// A block begins.
    fn block(&self, block: [u32; 3]) -> Box<dyn BlockObserver>;

    /// All blocks have ended; adds what was counted to the launch's counters.
    fn finish(self: Box<Self>, counters: &mut Counters) -> Result<()>;
}

/// Hears of one block, in the order in which its warps run.
pub trait BlockObserver: Send {
    /// A warp touches memory, after bounds and alignment were found right and before the access happens.
    fn access(&mut self, access: &WarpAccess<'_>) -> Result<()>;

    /// Lanes of a warp come together at a `*.sync` instruction.
    fn warp_sync(&mut self, sync: &WarpSync) -> Result<()>;

    /// Lanes of a warp arrive at a barrier of the block.
    fn barrier_arrival(&mut self, arrival: &BarrierArrival) -> Result<()>;

    /// A barrier has all its arrivals: `threads` holds the lanes of each warp that took part.
    fn barrier_complete(&mut self, id: u32, threads: &[u32]) -> Result<()>;

    /// Lanes close their current group of copies (`cp.async.commit_group`).
    fn copy_commit(&mut self, active: u32, at: Place) -> Result<()>;

    /// Lanes wait until at most `pending` of their newest groups are under way; `None` waits for every copy, those
    /// without a group too (`cp.async.wait_all`). Called after the bytes have arrived.
    fn copy_wait(&mut self, active: u32, pending: Option<u32>, at: Place) -> Result<()>;

    /// Lanes execute a fence.
    fn fence(&mut self, active: u32, scope: Scope, at: Place) -> Result<()>;

    /// Lanes let products of warpgroups see what they wrote to shared memory (`fence.proxy.async`).
    fn proxy_fence(&mut self, active: u32, at: Place) -> Result<()>;

    /// A warp issues a product (`wgmma.mma_async`) that reads 16 bytes of shared memory at each of these offsets, until
    /// a wait covers its group.
    fn product_read(&mut self, chunks: &[u32], at: Place) -> Result<()>;

    /// A warp closes its current group of products (`wgmma.commit_group`).
    fn product_commit(&mut self, at: Place) -> Result<()>;

    /// A warp waits until at most `pending` of its newest groups of products are under way (`wgmma.wait_group`).
    fn product_wait(&mut self, pending: u32, at: Place) -> Result<()>;

    /// Lanes exit.
    fn exit(&mut self, active: u32, at: Place) -> Result<()>;

    /// The block has ended.
    fn end(self: Box<Self>) -> Result<()>;
}
