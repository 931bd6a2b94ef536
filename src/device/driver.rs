//! The seam between latch and what executes: the CUDA driver (cuda.rs) and the simulator (simulated.rs) implement the
//! same few calls, and runtime.rs builds memory pool, staging, checks and graphs on either.

use super::properties::KernelCount;
use super::{Grid, Kernel, LibraryProduct, Properties, Stream};
use crate::base::Error;
use std::fmt::Debug;

/// Why a driver did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// No memory left; the runtime says what holds it.
    OutOfMemory,
    /// A kernel or a copy went wrong, and nothing can be run on the device from now on.
    Lost {
        /// What happened.
        problem: String,
        /// What to do next.
        advice: String,
    },
    /// Anything else.
    Refused(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Refused(error)
    }
}

/// Result of a driver's call.
pub(super) type Outcome<T> = std::result::Result<T, Failure>;

/// A loaded entry.
pub(super) type Function = usize;
/// Pinned host memory.
pub(super) type Pinned = usize;
/// A recorded point of a stream.
pub(super) type Mark = usize;
/// A graph that can be launched.
pub(super) type Executable = usize;

/// How a driver wants its memory cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Bytes of the slabs that small blocks of the pool are cut from.
    pub(super) slab: usize,
    /// Bytes that lie unused behind a block, so that a step beyond it is not a step into the next.
    pub(super) gap: usize,
    /// Bytes of a piece of pinned memory; larger uploads go piece by piece.
    pub(super) chunk: usize,
    /// What the driver gives is a multiple of this.
    pub(super) grain: usize,
    /// Bytes that the driver takes for itself after the device was opened: kernels when they are first launched, graphs.
    pub(super) own: usize,
}

/// A kernel with all it needs.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) function: Function,
    pub(super) grid: Grid,
    /// The arguments, packed as the entry wants them.
    pub(super) parameters: Vec<u8>,
}

/// One operation of a graph.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Launch(Launch),
    Clear { address: u64, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
}

/// What executes. Calls on a stream return before the work is done; their failures may show at a later call.
pub(super) trait Driver: Debug + Send {
    /// What the device is.
    fn properties(&self) -> &Properties;
    /// Bytes of device memory that the driver could still give.
    fn memory_free(&mut self) -> Outcome<usize>;

    /// How to cut memory.
    fn sizes(&self) -> Sizes;
    /// Takes memory; its address is a multiple of 256.
    fn allocate(&mut self, bytes: usize) -> Outcome<u64>;
    /// Gives memory back. Nothing that runs still uses it.
    fn free(&mut self, address: u64) -> Outcome<()>;
    /// Says that `bytes` bytes at `address`, inside allocated memory, are a block in use once the compute stream has got
    /// here.
    fn carve(&mut self, address: u64, bytes: usize) -> Outcome<()>;
    /// Says that the block at `address` is in use no more once the compute stream has got here and `until` is reached.
    fn release(&mut self, address: u64, until: Option<Mark>) -> Outcome<()>;

    /// Takes pinned host memory.
    fn pin(&mut self, bytes: usize) -> Outcome<Pinned>;
    /// Writes to pinned memory, now.
    fn write_pinned(&mut self, pinned: Pinned, at: usize, bytes: &[u8]) -> Outcome<()>;
    /// Reads pinned memory, now.
    fn read_pinned(&mut self, pinned: Pinned, at: usize, bytes: &mut [u8]) -> Outcome<()>;

    /// Finds an entry, loading its file first where needed.
    fn load(&mut self, kernel: &'static Kernel) -> Outcome<Function>;
    /// Runs a kernel.
    fn launch(&mut self, stream: Stream, launch: &Launch) -> Outcome<()>;
    /// Copies pinned memory, as it is when the copy runs, to the device.
    fn upload(&mut self, stream: Stream, from: (Pinned, usize), to: u64, bytes: usize) -> Outcome<()>;
    /// Copies device memory to pinned memory.
    fn download(&mut self, stream: Stream, from: u64, to: (Pinned, usize), bytes: usize) -> Outcome<()>;
    /// Sets bytes to zero.
    fn clear(&mut self, stream: Stream, address: u64, bytes: usize) -> Outcome<()>;
    /// Copies inside the device.
    fn copy(&mut self, stream: Stream, from: u64, to: u64, bytes: usize) -> Outcome<()>;

    /// Marks the point that `stream` has reached.
    fn record(&mut self, stream: Stream) -> Outcome<Mark>;
    /// Lets `stream` go on only when the mark is reached.
    fn wait(&mut self, stream: Stream, mark: Mark) -> Outcome<()>;
    /// Whether the mark is reached.
    fn reached(&mut self, mark: Mark) -> Outcome<bool>;
    /// Waits, on the host, until the mark is reached.
    fn wait_host(&mut self, mark: Mark) -> Outcome<()>;
    /// Milliseconds between two marks that are reached, where the device has a clock.
    fn elapsed(&mut self, from: Mark, to: Mark) -> Outcome<Option<f32>>;
    /// The mark will not be asked about again.
    fn forget(&mut self, mark: Mark);
    /// Waits, on the host, until everything has run.
    fn synchronise(&mut self) -> Outcome<()>;

    /// The name and version of the vendor's library of matrix products, where one is installed.
    fn library(&mut self) -> Outcome<Option<String>> {
        Ok(None)
    }
    /// Runs a product of that library on the compute stream.
    fn multiply(&mut self, product: &LibraryProduct) -> Outcome<()> {
        let _ = product;
        Err(Failure::Refused(Error::device(
            format!("{} has no library of matrix products", self.properties().name),
            "use latch's own products",
        )))
    }

    /// Makes a graph of operations that run one after another.
    fn instantiate(&mut self, nodes: &[Node]) -> Outcome<Executable>;
    /// Replaces one operation of a graph by another of the same kind.
    fn update(&mut self, graph: Executable, index: usize, node: &Node) -> Outcome<()>;
    /// Runs a graph.
    fn launch_graph(&mut self, stream: Stream, graph: Executable) -> Outcome<()>;
    /// The graph will not be launched again.
    fn discard(&mut self, graph: Executable);

    /// What each kernel cost, where that is counted.
    fn kernel_counts(&self) -> Vec<KernelCount> {
        Vec::new()
    }
}
