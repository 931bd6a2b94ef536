//! What `ops` needs of a GPU. The CUDA driver (cuda.rs) and the PTX simulator (simulated.rs) stand behind this same
//! trait, so that everything above runs the same code on both.

use super::Traffic;
use crate::base::Result;
use std::fmt::Debug;
use std::sync::Arc;

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

/// A GPU: memory, copies, launches. Everything is ordered as called (one compute stream) unless a method says
/// otherwise; copies to the host wait for what they read.
pub trait Launcher: Debug + Send + Sync {
    /// Short name for messages, e.g. `cuda:0 (H100)`.
    fn name(&self) -> String;
    /// The counters of this device.
    fn traffic(&self) -> &Traffic;
    /// Reserves `bytes` zeroed bytes and returns their address, a multiple of 256.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Gives back memory that [`Launcher::allocate`] reserved.
    fn free(&self, address: u64, bytes: usize);
    /// Sets `bytes` bytes at `address` to zero.
    fn clear(&self, address: u64, bytes: usize) -> Result<()>;
    /// Copies host bytes to `address`.
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;
    /// Copies `bytes.len()` bytes at `address` to the host.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
    /// Copies `bytes` bytes from one device address to another; the two runs do not overlap.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Runs a kernel.
    ///
    /// # Errors
    /// An empty grid or one beyond the device's limits; arguments that do not fit the entry's signature; and, at
    /// this call or at a later one that waits, whatever went wrong while it ran.
    fn launch(&self, kernel: &'static Kernel, grid: Grid, arguments: &[Argument]) -> Result<()>;
}

/// Memory on a GPU, given back when dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    launcher: Arc<dyn Launcher>,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Reserves zeroed memory.
    pub fn new(launcher: &Arc<dyn Launcher>, bytes: usize) -> Result<Self> {
        let address = launcher.allocate(bytes)?;
        Ok(DeviceMemory { launcher: launcher.clone(), address, bytes })
    }

    /// The device that holds it.
    pub fn launcher(&self) -> &dyn Launcher {
        &*self.launcher
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.launcher.free(self.address, self.bytes);
    }
}
