//! What `ops` needs of a GPU. The CUDA driver (cuda.rs) and the PTX simulator (simulated.rs) stand behind this same
//! trait, so that everything above runs the same code on both.

use super::{Download, Event, Graph, LibraryProduct, Matmul, Properties, Statistics, Stream, Traffic};
use crate::base::Result;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A kernel of the shipped PTX: one entry of one file.
///
/// The file's text is part of the binary; a launcher loads each file once, by its stem.
#[derive(Debug)]
pub struct Kernel {
    /// The operation's stem: `ptx/<stem>.ptx`, made from `cuda/<stem>.cu`.
    pub stem: &'static str,
    /// The whole PTX file.
    pub ptx: &'static str,
    /// Name of the entry.
    pub entry: &'static str,
}

impl Kernel {
    /// Entry `entry` of the file `ptx/<stem>.ptx` whose text is `ptx`.
    pub const fn new(stem: &'static str, ptx: &'static str, entry: &'static str) -> Kernel {
        Kernel { stem, ptx, entry }
    }
}

/// How many blocks of how many threads, and how much dynamic shared memory a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Grid {
    /// `blocks` blocks of `threads` threads, without dynamic shared memory.
    pub const fn linear(blocks: u32, threads: u32) -> Grid {
        Grid { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }
}

/// One argument of a kernel. A launcher compares each with the entry's signature before it launches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A device address, `.u64` (0 = an operand that is absent).
    Address(u64),
    /// `.u32`.
    U32(u32),
    /// `.u32` too: PTX does not tell signed from unsigned parameters.
    I32(i32),
    /// `.u64`, a count.
    U64(u64),
    /// `.f32`.
    F32(f32),
}

macro_rules! argument_from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Argument {
            fn from(value: $type) -> Argument {
                Argument::$variant(value)
            }
        }
    )*};
}
argument_from!(u32 => U32, i32 => I32, f32 => F32);

/// A GPU: memory, copies, launches, streams, graphs.
///
/// What names no stream runs on the compute stream, in the order of the calls; copies to the host wait for what they
/// read. Streams, events and graphs are for those who want copies beside the computation or fewer launches.
///
/// A kernel that goes wrong is reported by the call that waits for it, or by any call between. After that the device
/// is lost: every further call repeats what happened.
pub trait Launcher: Debug + Send + Sync {
    /// Short name for messages, e.g. `cuda:0 (NVIDIA H100 PCIe)`.
    fn name(&self) -> String;
    /// What the device is.
    fn properties(&self) -> &Properties;
    /// The counters of crossings and of memory.
    fn traffic(&self) -> &Traffic;
    /// What the device has done, and what its memory holds.
    fn statistics(&self) -> Statistics;
    /// Bytes of device memory that nobody has taken, the pool's free blocks included, less what the driver will take for
    /// kernels and graphs.
    fn memory_free(&self) -> Result<usize>;
    /// See [`super::Device::accountant`].
    fn accountant(&self, memory: Option<usize>) -> Arc<dyn Launcher>;

    /// Reserves `bytes` zeroed bytes in the current [`super::Arena`] and returns their address, a multiple of 256.
    ///
    /// # Errors
    /// The device is full: what was asked for, what there is, and what each arena holds.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Gives back memory that [`Launcher::allocate`] reserved, once the streams have got here.
    fn free(&self, address: u64, bytes: usize);
    /// Sets `bytes` bytes at `address` to zero.
    fn clear(&self, address: u64, bytes: usize) -> Result<()>;
    /// Copies host bytes to `address`. The slice may be changed when this returns.
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;
    /// Copies `bytes.len()` bytes at `address` to the host, and waits for them.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
    /// Copies `bytes` bytes from one device address to another; the two runs do not overlap.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Runs a kernel.
    ///
    /// # Errors
    /// An empty grid or one beyond the device's limits; arguments that do not fit the entry's signature; and, at
    /// this call or at a later one that waits, whatever went wrong while it ran.
    fn launch(&self, kernel: &'static Kernel, grid: Grid, arguments: &[Argument]) -> Result<()> {
        self.launch_on(Stream::Compute, kernel, grid, arguments)
    }

    /// Runs a kernel on a stream.
    fn launch_on(
        &self,
        stream: Stream,
        kernel: &'static Kernel,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<()>;
    /// Copies host bytes to `address` on a stream. The slice may be changed when this returns.
    fn upload_on(&self, stream: Stream, address: u64, bytes: &[u8]) -> Result<()>;
    /// Begins to copy `bytes` bytes at `address` to the host on a stream; [`Launcher::receive`] waits for them.
    fn download_on(&self, stream: Stream, address: u64, bytes: usize) -> Result<Download>;
    /// Waits for a download and copies it to `bytes`, whose length is the download's.
    fn receive(&self, download: Download, bytes: &mut [u8]) -> Result<()>;
    /// The point that `stream` has reached with what it was given so far.
    fn record(&self, stream: Stream) -> Result<Event>;
    /// Lets what `stream` is given from now on run only after the event.
    fn wait(&self, stream: Stream, event: &Event) -> Result<()>;
    /// Copies host bytes to `address` behind what the compute stream was given so far and beside what it is given from
    /// now on. The event is reached when they are there; graphs wait for it by themselves. The slice may be changed when
    /// this returns.
    fn prefetch(&self, address: u64, bytes: &[u8]) -> Result<Event> {
        let before = self.record(Stream::Compute)?;
        self.wait(Stream::Copy, &before)?;
        self.upload_on(Stream::Copy, address, bytes)?;
        self.record(Stream::Copy)
    }
    /// Begins to copy `bytes` bytes at `address` to the host behind what the compute stream was given so far and beside
    /// what it is given from now on, which must not write to them before [`Launcher::receive`].
    fn fetch(&self, address: u64, bytes: usize) -> Result<Download> {
        let written = self.record(Stream::Compute)?;
        self.wait(Stream::Copy, &written)?;
        self.download_on(Stream::Copy, address, bytes)
    }
    /// Whether everything before the event has run.
    fn reached(&self, event: &Event) -> Result<bool>;
    /// Milliseconds from one event to another; waits for both. `None` where time means nothing (the simulator).
    fn elapsed(&self, from: &Event, to: &Event) -> Result<Option<f32>>;
    /// Waits until everything has run.
    fn synchronise(&self) -> Result<()>;

    /// The name and version of the vendor's library of matrix products, where one is installed.
    fn matmul_library(&self) -> Result<Option<String>>;
    /// Says who multiplies matrices from now on.
    ///
    /// # Errors
    /// [`Matmul::Library`] without a library.
    fn choose_matmul(&self, choice: Matmul) -> Result<()>;
    /// Whether the library is to compute a product: a gradient, or one of a forward pass.
    fn library_multiplies(&self, gradient: bool) -> Result<bool>;
    /// Runs a product of that library on the compute stream. Its order of summation is the library's, and may depend
    /// on the number of rows: what must have the same bits in every batch is not for it.
    ///
    /// # Errors
    /// No such library; a product that it does not know; one asked for while a graph is captured.
    fn multiply(&self, product: &LibraryProduct) -> Result<()>;

    /// Whether steps that repeat are to be captured ([`super::Steps`]); true until somebody says otherwise.
    fn uses_graphs(&self) -> bool;
    /// Says so.
    fn use_graphs(&self, on: bool);

    /// Calls `body` and records its launches, clears and copies on the compute stream instead of running them.
    ///
    /// `body` must neither allocate nor upload, download or wait. Memory that it gives back stays until the graph is
    /// dropped; all other memory that the graph uses is kept alive by whoever launches it. Only the calling thread
    /// captures: what others ask of the device meanwhile runs as ever.
    ///
    /// # Errors
    /// What `body` returns; a call that cannot be part of a graph; a capture inside a capture.
    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Graph>;
    /// Whether the calling thread captures: then it may not allocate.
    fn captures(&self) -> bool;
    /// Runs a graph on the compute stream.
    fn launch_graph(&self, graph: &Graph) -> Result<()>;
    /// Gives operation `index` of a graph, a launch, other arguments.
    fn rebind(&self, graph: &mut Graph, index: usize, arguments: &[Argument]) -> Result<()>;
}

/// Memory on a GPU, given back when dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    launcher: Arc<dyn Launcher>,
    address: u64,
    bytes: usize,
    arriving: Arriving,
}

/// The newest copy under way to a piece of memory, until the compute stream was told to wait for it.
#[derive(Debug, Default)]
struct Arriving {
    /// Whether there is one: asked at every use.
    any: AtomicBool,
    event: Mutex<Option<Event>>,
}

impl DeviceMemory {
    /// Reserves zeroed memory.
    pub fn new(launcher: &Arc<dyn Launcher>, bytes: usize) -> Result<Self> {
        let address = launcher.allocate(bytes)?;
        Ok(DeviceMemory { launcher: launcher.clone(), address, bytes, arriving: Arriving::default() })
    }

    /// The device that holds it.
    pub fn launcher(&self) -> &dyn Launcher {
        &*self.launcher
    }

    /// Address of the first byte. Who reads or writes there calls [`DeviceMemory::settle`] first.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Begins to copy `bytes` to byte `at` and on, beside the computation.
    ///
    /// # Errors
    /// A device that failed; a capture under way.
    pub fn prefetch(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let event = self.launcher.prefetch(self.address + at, bytes)?;
        // The copy stream keeps its order: who waits for this copy has waited for the one before.
        *self.arriving.event.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(event);
        *self.arriving.any.get_mut() = true;
        Ok(())
    }

    /// Lets what the compute stream is given from now on see what was prefetched.
    ///
    /// # Errors
    /// A device that failed.
    pub fn settle(&self) -> Result<()> {
        if !self.arriving.any.load(Ordering::Acquire) {
            return Ok(());
        }
        // Under the lock, so that a second thread does not go on before the stream waits.
        let mut event = self.arriving.event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arrived) = &*event {
            self.launcher.wait(Stream::Compute, arrived)?;
        }
        *event = None;
        self.arriving.any.store(false, Ordering::Release);
        Ok(())
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.launcher.free(self.address, self.bytes);
    }
}
