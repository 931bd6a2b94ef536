//! What a GPU is and what it has done: properties, limits of a grid, statistics.

use super::launcher::{Grid, Kernel};
use super::signature::threads;
use super::{ArenaCount, Held, MemoryPeak};
use crate::base::{Error, Result};

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its name, e.g. `NVIDIA H100 PCIe`.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// The CUDA version that the driver is for, major and minor; none where no driver stands behind it.
    pub driver: Option<(u32, u32)>,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// Bytes of the level-2 cache.
    pub l2_bytes: usize,
    /// Most blocks along each axis of a grid.
    pub most_blocks: [u32; 3],
    /// Most threads along each axis of a block.
    pub most_threads: [u32; 3],
    /// Most threads of a block.
    pub most_threads_of_a_block: u32,
    /// Most bytes of shared memory of a block, static and dynamic together, once a kernel has opted in.
    pub most_shared_bytes: u32,
}

impl Properties {
    /// Checks a grid against the limits.
    ///
    /// # Errors
    /// An empty grid, or one beyond a limit, with the kernel, what was found and what is allowed.
    pub fn check(&self, kernel: &Kernel, grid: Grid) -> Result<()> {
        let fault = |what: String| {
            Err(Error::device(
                format!("kernel `{}`: {what}", kernel.entry),
                "cut the batch or the sequence into smaller parts",
            ))
        };
        for (axis, name) in ["x", "y", "z"].iter().enumerate() {
            if grid.blocks[axis] == 0 || grid.threads[axis] == 0 {
                return Err(Error::device(
                    format!(
                        "kernel `{}`: an empty grid, {:?} blocks of {:?} threads",
                        kernel.entry, grid.blocks, grid.threads
                    ),
                    "this is a fault of the operation's GPU arm in src/ops: it must return when nothing is to be done",
                ));
            }
            if grid.blocks[axis] > self.most_blocks[axis] {
                return fault(format!(
                    "{} blocks along {name}, {} takes at most {}",
                    grid.blocks[axis], self.name, self.most_blocks[axis]
                ));
            }
            if grid.threads[axis] > self.most_threads[axis] {
                return fault(format!(
                    "{} threads along {name}, {} takes at most {}",
                    grid.threads[axis], self.name, self.most_threads[axis]
                ));
            }
        }
        let block = threads(grid.threads);
        if block > u64::from(self.most_threads_of_a_block) {
            return fault(format!(
                "a block of {block} threads, {} takes at most {}",
                self.name, self.most_threads_of_a_block
            ));
        }
        if grid.shared_bytes > self.most_shared_bytes {
            return fault(format!(
                "{} bytes of shared memory a block, {} has at most {}",
                grid.shared_bytes, self.name, self.most_shared_bytes
            ));
        }
        Ok(())
    }

    /// Checks that a block of `kernel`, which declares `own` bytes of shared memory, may have `dynamic` more.
    ///
    /// # Errors
    /// More than a block of this GPU may have, both together.
    pub fn check_shared(&self, kernel: &Kernel, own: u32, dynamic: u32) -> Result<()> {
        let (all, most) = (u64::from(own) + u64::from(dynamic), self.most_shared_bytes);
        if all <= u64::from(most) {
            return Ok(());
        }
        Err(Error::device(
            format!(
                "kernel `{}` needs {all} bytes of shared memory a block ({own} of them its own), {} has at most {most}",
                kernel.entry, self.name
            ),
            "report the GPU's name; use --device cpu meanwhile",
        ))
    }

    /// Checks that a GPU of this compute capability takes PTX of a `.target`, such as `sm_80` (this and later ones) or
    /// `sm_90a` (9.0 alone).
    ///
    /// # Errors
    /// A target that it does not take, by the file's name.
    pub fn check_target(&self, file: &str, target: &str) -> Result<()> {
        let (major, minor) = self.compute_capability;
        let (number, alone) = match target.strip_suffix('a') {
            Some(number) => (number, true),
            None => (target, false),
        };
        let asks = number.strip_prefix("sm_").and_then(|number| number.parse::<u32>().ok());
        let has = 10 * major + minor;
        let takes = asks.is_some_and(|asks| if alone { has == asks } else { has >= asks });
        if takes {
            return Ok(());
        }
        let only = if alone { " and runs on no other GPU" } else { "" };
        Err(Error::device(
            format!(
                "{file} is compiled for {target}{only}; {} is of compute capability {major}.{minor}",
                self.name
            ),
            "choose the kernel by the GPU's compute capability (Properties::compute_capability), as src/ops/product/hopper.rs does",
        ))
    }
}

/// What a kernel cost so far; only the simulator counts.
#[derive(Clone, Debug)]
pub struct KernelCount {
    /// Which kernel.
    pub kernel: &'static Kernel,
    /// How often it ran.
    pub launches: usize,
    /// All its launches together.
    pub counters: crate::sim::Counters,
}

/// What a device has done since it was opened. Crossings and bytes are in [`super::Traffic`].
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Times the driver was asked for device memory.
    pub driver_allocations: usize,
    /// Bytes of device memory now taken from the driver.
    pub driver_bytes: usize,
    /// Times the driver was asked for pinned host memory.
    pub pinned_allocations: usize,
    /// Bytes of pinned host memory.
    pub pinned_bytes: usize,
    /// Kernels launched one by one.
    pub launches: usize,
    /// Graphs launched.
    pub graph_launches: usize,
    /// What each arena holds, in the order of [`super::Arena::ALL`].
    pub arenas: Vec<ArenaCount>,
    /// What they held when most was held in all.
    pub peak: MemoryPeak,
    /// Blocks that are held now.
    pub held: Vec<Held>,
    /// What each kernel cost, in the simulator.
    pub kernels: Vec<KernelCount>,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::device) fn small() -> Properties {
        Properties {
            name: "a small GPU".into(),
            compute_capability: (8, 0),
            driver: None,
            multiprocessors: 1,
            memory_bytes: 1 << 20,
            l2_bytes: 1 << 16,
            most_blocks: [i32::MAX as u32, 65_535, 65_535],
            most_threads: [1024, 1024, 64],
            most_threads_of_a_block: 1024,
            most_shared_bytes: 99 * 1024,
        }
    }

    #[test]
    fn targets_and_the_gpus_that_take_them() {
        let takes = |compute_capability, target| {
            Properties { compute_capability, ..small() }.check_target("ptx/t.ptx", target).is_ok()
        };
        for later in [(8, 0), (8, 9), (9, 0), (12, 0)] {
            assert!(takes(later, "sm_80"), "{later:?}");
            assert_eq!(takes(later, "sm_90a"), later == (9, 0), "{later:?}");
        }
        assert!(!takes((7, 5), "sm_80") && !takes((8, 0), "sm_86") && !takes((9, 0), "compute_80"));
        let message = small().check_target("ptx/t.ptx", "sm_90a").unwrap_err().to_string();
        for part in ["ptx/t.ptx", "sm_90a", "no other GPU", "a small GPU", "8.0"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn grids_at_and_beyond_each_limit() {
        static KERNEL: Kernel = Kernel::new("t", "", "t_fwd");
        let gpu = small();
        let grid = |blocks, threads, shared_bytes| Grid { blocks, threads, shared_bytes };
        for inside in [
            grid([i32::MAX as u32, 65_535, 65_535], [1024, 1, 1], 99 * 1024),
            grid([1, 1, 1], [16, 1, 64], 0),
            grid([1, 1, 1], [1, 1024, 1], 0),
        ] {
            assert!(gpu.check(&KERNEL, inside).is_ok(), "{inside:?}");
        }
        for (beyond, says) in [
            (grid([0, 1, 1], [32, 1, 1], 0), "an empty grid"),
            (grid([1, 1, 1], [32, 0, 1], 0), "an empty grid"),
            (grid([1 << 31, 1, 1], [32, 1, 1], 0), "2147483648 blocks along x"),
            (grid([1, 65_536, 1], [32, 1, 1], 0), "65536 blocks along y"),
            (grid([1, 1, 65_536], [32, 1, 1], 0), "65536 blocks along z"),
            (grid([1, 1, 1], [1025, 1, 1], 0), "1025 threads along x"),
            (grid([1, 1, 1], [1, 1, 65], 0), "65 threads along z"),
            (grid([1, 1, 1], [1024, 2, 1], 0), "a block of 2048 threads"),
            (grid([1, 1, 1], [32, 1, 1], 99 * 1024 + 1), "101377 bytes of shared memory"),
        ] {
            let message = gpu.check(&KERNEL, beyond).unwrap_err().to_string();
            assert!(message.contains("`t_fwd`") && message.contains(says), "{says}: {message}");
        }
        // What a kernel declares counts too, which a grid does not say.
        assert!(gpu.check_shared(&KERNEL, 1024, 98 * 1024).is_ok());
        let message = gpu.check_shared(&KERNEL, 1025, 98 * 1024).unwrap_err().to_string();
        assert!(message.contains("`t_fwd` needs 101377 bytes") && message.contains("(1025 of"), "{message}");
    }
}
