//! What `ops` needs of a GPU. The CUDA driver and the PTX simulator stand behind this same trait.

use super::Traffic;
use crate::base::Result;
use std::fmt::Debug;
use std::sync::Arc;

/// A GPU: memory and copies. (Modules, launches, streams and graphs join it with the first kernel.)
pub trait Launcher: Debug + Send + Sync {
    /// Short name for messages, e.g. `cuda:0 (H100)`.
    fn name(&self) -> String;
    /// The counters of this device.
    fn traffic(&self) -> &Traffic;
    /// Reserves `bytes` zeroed bytes and returns their address.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Gives back memory that [`Launcher::allocate`] reserved.
    fn free(&self, address: u64, bytes: usize);
    /// Sets `bytes` bytes at `address` to zero.
    fn clear(&self, address: u64, bytes: usize) -> Result<()>;
    /// Copies host bytes to `address`.
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;
    /// Copies `bytes.len()` bytes at `address` to the host.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
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
