//! How a simulated GPU is made.

use crate::sim::access::Observer;
use crate::sim::check::Checker;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How a simulated GPU is made.
#[derive(Clone, Debug)]
pub struct SimulatorOptions {
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Which GPU it is, by compute capability: 8.0 has what every GPU has that kernels of `sm_80` run on; 9.0 is a Hopper,
    /// which also runs kernels of `sm_90a` and has 227 KiB of shared memory for a block.
    pub compute_capability: (u32, u32),
    /// Host threads that run blocks; 0 takes as many as the host has.
    pub threads: usize,
    /// Who looks at every access: by default the checker, which also counts what memory costs.
    pub observer: Option<Arc<dyn Observer>>,
    /// PTX that runs in place of shipped entries, by their names: a kernel under work, or one broken to see who notices.
    pub replaced: Vec<(&'static str, String)>,
    /// Which of the allowed orders the operations of different streams run in.
    pub schedule: u64,
    /// Counts waits, and can leave one out.
    pub waits: Waits,
    /// Which order the blocks of a kernel run in: 0 is ascending.
    pub block_order: u64,
    /// Runs a sample of the blocks of large grids and scales the counts ([`crate::sim::sample`]). Results are then
    /// incomplete: for those who ask what kernels cost.
    pub sample: bool,
}

/// The waits for events that streams and the host were asked for. One can be left out, to see who notices.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    asked: Arc<AtomicUsize>,
    left_out: Option<usize>,
}

impl Waits {
    /// All happen but the one with this number, from 0.
    pub fn without(number: usize) -> Waits {
        Waits { left_out: Some(number), ..Waits::default() }
    }

    /// How many were asked for.
    pub fn count(&self) -> usize {
        self.asked.load(Relaxed)
    }

    /// Whether the next is left out.
    pub(super) fn leaves_out_next(&self) -> bool {
        self.left_out == Some(self.asked.fetch_add(1, Relaxed))
    }
}

impl Default for SimulatorOptions {
    fn default() -> Self {
        let observer: Option<Arc<dyn Observer>> = Some(Arc::new(Checker::new()));
        SimulatorOptions {
            memory_bytes: 16 << 30,
            compute_capability: (8, 0),
            threads: 0,
            observer,
            replaced: Vec::new(),
            schedule: 0,
            waits: Waits::default(),
            block_order: 0,
            sample: false,
        }
    }
}
