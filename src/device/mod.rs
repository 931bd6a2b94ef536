//! Where tensors live: the host's memory, or a GPU behind a [`Launcher`].
//!
//! `ops` matches on [`Device`] and calls a CPU kernel or launches one; nothing above `ops` sees data, only
//! [`crate::ops::Tensor`]. Uploads and downloads are the only crossings, and both are counted here.

mod arena;
mod buffer;
mod cuda;
mod driver;
mod graph;
mod launcher;
mod library;
mod pool;
mod properties;
mod runtime;
mod signature;
mod simulated;
mod staging;
mod stream;
mod texts;
mod traffic;

pub use arena::{Arena, ArenaCount, ArenaScope, Held};
pub use buffer::{Buffer, Element};
pub use graph::{Graph, GraphOperation};
pub use launcher::{Argument, DeviceMemory, Grid, Kernel, Launcher};
pub use library::{LibraryMatrix, LibraryProduct, Matmul};
pub use properties::{KernelCount, Properties, Statistics};
pub use signature::{Parameter, ParameterType, Signature, Signatures};
pub use simulated::SimulatorOptions;
pub use stream::{Download, Event, Stream};
pub use traffic::{Traffic, TrafficCount};

use crate::base::{Dtype, Error, Result};
use std::sync::Arc;

/// A place that holds tensors and runs operations. Cheap to clone; clones share their counters.
#[derive(Clone, Debug)]
pub enum Device {
    /// The native CPU backend.
    Cpu(Arc<Traffic>),
    /// A GPU, real or simulated.
    Gpu(Arc<dyn Launcher>),
}

impl Device {
    /// A CPU device with fresh counters.
    pub fn cpu() -> Device {
        Device::Cpu(Arc::new(Traffic::default()))
    }

    /// A simulated GPU that runs the shipped PTX, with fresh memory and counters.
    pub fn simulated() -> Device {
        Device::simulated_with(SimulatorOptions::default())
    }

    /// A simulated GPU, made as asked.
    pub fn simulated_with(options: SimulatorOptions) -> Device {
        Device::Gpu(simulated::open(options))
    }

    /// The device a command line names: `auto`, `cpu`, `cuda`, `cuda:N` or `sim`.
    ///
    /// `auto` is the first CUDA device where a driver and a device answer that latch's kernels run on, else the CPU.
    ///
    /// # Errors
    /// A name that is none of these. For `cuda`, what is missing: the driver, a newer one, a device, or a newer one.
    pub fn open(name: &str) -> Result<Device> {
        match name {
            "cpu" => Ok(Device::cpu()),
            "sim" => Ok(Device::simulated()),
            "auto" => match cuda::probe(0) {
                Ok(found) => Ok(Device::Gpu(cuda::open(found)?)),
                Err(_) => Ok(Device::cpu()),
            },
            _ if name == "cuda" || name.starts_with("cuda:") => {
                let ordinal = match name.strip_prefix("cuda:") {
                    None => 0,
                    Some(digits) => digits.parse().map_err(|_| {
                        Error::input(
                            "--device",
                            format!("`{digits}` is not a device number"),
                            "write cuda:0, cuda:1, ...",
                        )
                    })?,
                };
                Ok(Device::Gpu(cuda::open(cuda::probe(ordinal)?)?))
            }
            other => Err(Error::input(
                "--device",
                format!("unknown device `{other}`"),
                "known devices: auto, cpu, cuda, cuda:N, sim",
            )),
        }
    }

    /// Short name for messages and records.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(_) => "cpu".into(),
            Device::Gpu(launcher) => launcher.name(),
        }
    }

    /// The counters of crossings and of memory.
    pub fn traffic(&self) -> &Traffic {
        match self {
            Device::Cpu(traffic) => traffic,
            Device::Gpu(launcher) => launcher.traffic(),
        }
    }

    /// Says who multiplies matrices from now on; a GPU begins with [`Matmul::Auto`].
    ///
    /// # Errors
    /// [`Matmul::Library`] where there is none: on the CPU, in the simulator, without cuBLASLt.
    pub fn choose_matmul(&self, choice: Matmul) -> Result<()> {
        match self {
            Device::Cpu(_) if choice == Matmul::Library => Err(Error::device(
                "matmul = \"cublaslt\" on the cpu, which has no such library",
                "use --device cuda, or leave out run.matmul",
            )),
            Device::Cpu(_) => Ok(()),
            Device::Gpu(launcher) => launcher.choose_matmul(choice),
        }
    }

    /// Zeroed memory for `elements` numbers of `dtype`.
    pub fn allocate(&self, dtype: Dtype, elements: usize) -> Result<Buffer> {
        Buffer::zeros(self, dtype, elements)
    }

    /// Waits for the device and reports the memory that is still held: whoever has dropped all tensors has leaked it.
    ///
    /// # Errors
    /// What went wrong on the device since somebody last waited for it.
    pub fn close(self) -> Result<Vec<Held>> {
        match self {
            Device::Cpu(_) => Ok(Vec::new()),
            Device::Gpu(launcher) => {
                launcher.synchronise()?;
                Ok(launcher.statistics().held)
            }
        }
    }

    /// The error of an operation that this device has no kernel for.
    pub fn no_kernel(&self, operation: &str) -> Error {
        Error::device(format!("{} has no kernel for {operation}", self.name()), "use --device cpu")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_cannot_be_chosen() {
        for device in [Device::cpu(), Device::simulated()] {
            device.choose_matmul(Matmul::Auto).unwrap();
            device.choose_matmul(Matmul::Own).unwrap();
            let message = device.choose_matmul(Matmul::Library).unwrap_err().to_string();
            assert!(message.contains("matmul = \"cublaslt\"") && message.contains("run.matmul"), "{message}");
        }
    }

    #[test]
    fn unknown_devices_are_named() {
        let message = Device::open("tpu").unwrap_err().to_string();
        assert!(message.contains("unknown device `tpu`") && message.contains("auto, cpu, cuda"), "{message}");
        let message = Device::open("cuda:x").unwrap_err().to_string();
        assert!(message.contains("`x` is not a device number"), "{message}");
    }

    #[test]
    fn cuda_is_a_sentence_never_a_panic() {
        let message = Device::open("cuda").unwrap_err().to_string();
        assert!(message.contains("--device cpu"), "{message}");
    }
}
