//! Where tensors live: the host's memory, or a GPU behind a [`Launcher`].
//!
//! `ops` matches on [`Device`] and calls a CPU kernel or launches one; nothing above `ops` sees data, only
//! [`crate::ops::Tensor`]. Uploads and downloads are the only crossings, and both are counted here.

mod accounts;
mod arena;
mod buffer;
mod cuda;
mod driver;
mod graph;
mod launcher;
mod library;
mod opening;
mod pool;
mod properties;
mod runtime;
mod signature;
mod simulated;
mod staging;
mod steps;
mod stream;
mod texts;
mod traffic;

pub use arena::{Arena, ArenaCount, ArenaScope, Held, MemoryPeak};
pub use buffer::{Buffer, Element};
pub use graph::{Graph, GraphOperation};
pub use launcher::{Argument, DeviceMemory, Grid, Kernel, Launcher};
pub use library::{LibraryMatrix, LibraryProduct, Matmul};
pub use opening::{Choice, leak_in_words};
pub use properties::{KernelCount, Properties, Statistics};
pub use signature::{Parameter, ParameterType, Signature, Signatures};
pub use simulated::{SimulatorOptions, Waits};
pub use steps::{Identity, StepRun, Steps};
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

    /// Whether steps that repeat become graphs, which they do unless this says otherwise. The results have the same bits;
    /// the CPU knows no graphs.
    pub fn use_graphs(&self, on: bool) {
        if let Device::Gpu(launcher) = self {
            launcher.use_graphs(on);
        }
    }

    /// A device of this one's kind that keeps accounts of its memory and does nothing else: what is reserved there takes
    /// what it would take here, the pool's rounding included, and what runs there has no results. On the CPU it is a
    /// device of its own, of whose pages few are touched as long as nothing is written.
    ///
    /// A GPU's accountant has `memory` bytes to give and is full beyond; none = no end.
    pub fn accountant(&self, memory: Option<usize>) -> Device {
        match self {
            Device::Cpu(_) => Device::cpu(),
            Device::Gpu(launcher) => Device::Gpu(launcher.accountant(memory)),
        }
    }

    /// What each arena held at the moment when most was held in all.
    pub fn memory_peak(&self) -> MemoryPeak {
        match self {
            Device::Cpu(traffic) => traffic.peak(),
            Device::Gpu(launcher) => launcher.statistics().peak,
        }
    }

    /// Zeroed memory for `elements` numbers of `dtype`.
    pub fn allocate(&self, dtype: Dtype, elements: usize) -> Result<Buffer> {
        Buffer::zeros(self, dtype, elements)
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
    fn cuda_is_a_sentence_never_a_panic() {
        // No machine has so many, and most have none.
        let message = Device::open("cuda:4096").unwrap_err().to_string();
        assert!(message.contains("--device cpu"), "{message}");
    }
}
