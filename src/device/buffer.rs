//! Memory of one dtype on one device.

use super::{Arena, Device, DeviceMemory, Download, Traffic};
use crate::base::pages::{PageVec, Refused};
use crate::base::{Dtype, Error, Result, host_memory};
use half::bf16;
use std::sync::Arc;

/// An element type that buffers hold.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// Its run-time tag.
    const DTYPE: Dtype;
    /// The host slice, when the buffer is on the CPU and has this type.
    fn host(storage: &Buffer) -> Option<&[Self]>;
    /// The same, mutable.
    fn host_mut(storage: &mut Buffer) -> Option<&mut [Self]>;
}

#[derive(Debug)]
enum Storage {
    F32(PageVec<f32>),
    F64(PageVec<f64>),
    Bf16(PageVec<bf16>),
    U32(PageVec<u32>),
    I32(PageVec<i32>),
    Gpu(DeviceMemory),
}

/// A run of elements of one dtype; its memory is counted and given back when dropped.
#[derive(Debug)]
pub struct Buffer {
    storage: Storage,
    dtype: Dtype,
    elements: usize,
    /// CPU buffers report to their device's counters, under their arena; GPU memory does so through its launcher.
    traffic: Option<(Arc<Traffic>, Arena)>,
}

impl Buffer {
    pub(super) fn zeros(device: &Device, dtype: Dtype, elements: usize) -> Result<Buffer> {
        let bytes = elements.saturating_mul(dtype.size());
        let (storage, traffic) = match device {
            Device::Cpu(traffic) => {
                let storage = match dtype {
                    Dtype::F32 => PageVec::try_zeroed(elements).map(Storage::F32),
                    Dtype::F64 => PageVec::try_zeroed(elements).map(Storage::F64),
                    Dtype::Bf16 => PageVec::try_zeroed(elements).map(Storage::Bf16),
                    Dtype::U32 => PageVec::try_zeroed(elements).map(Storage::U32),
                    Dtype::I32 => PageVec::try_zeroed(elements).map(Storage::I32),
                };
                let arena = Arena::current();
                let storage = storage.map_err(|refused| out_of_memory(&refused, arena, traffic))?;
                traffic.allocate_host(arena, bytes);
                (storage, Some((traffic.clone(), arena)))
            }
            Device::Gpu(launcher) => (Storage::Gpu(DeviceMemory::new(launcher, bytes)?), None),
        };
        Ok(Buffer { storage, dtype, elements, traffic })
    }

    /// The dtype.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Address of element `at`, when the memory is a GPU's.
    pub fn address(&self, at: usize) -> Option<u64> {
        match &self.storage {
            Storage::Gpu(memory) => Some(memory.address() + (at * self.dtype.size()) as u64),
            _ => None,
        }
    }

    /// Lets the compute stream wait for what was prefetched, where anything was; whoever takes an address calls it.
    ///
    /// # Errors
    /// A device that failed.
    pub fn settle(&self) -> Result<()> {
        match &self.storage {
            Storage::Gpu(memory) => memory.settle(),
            _ => Ok(()),
        }
    }

    /// Sets all elements to zero.
    pub fn clear(&mut self) -> Result<()> {
        self.settle()?;
        match &mut self.storage {
            Storage::F32(data) => data.fill(0.0),
            Storage::F64(data) => data.fill(0.0),
            Storage::Bf16(data) => data.fill(bf16::ZERO),
            Storage::U32(data) => data.fill(0),
            Storage::I32(data) => data.fill(0),
            Storage::Gpu(memory) => {
                memory.launcher().clear(memory.address(), self.elements * self.dtype.size())?
            }
        }
        Ok(())
    }

    /// The same as [`Buffer::upload`], on a GPU beside the computation: what uses the buffer next waits for it.
    pub fn prefetch<T: Element>(&mut self, at: usize, data: &[T]) -> Result<()> {
        match &mut self.storage {
            Storage::Gpu(memory) => {
                memory.prefetch((at * self.dtype.size()) as u64, bytemuck::cast_slice(data))
            }
            _ => self.upload(at, data),
        }
    }

    /// Begins to copy `elements` elements from `at` on to the host, beside the computation. None on the CPU, where there is
    /// nothing to wait for.
    pub(crate) fn fetch(&self, at: usize, elements: usize) -> Result<Option<Download>> {
        let Storage::Gpu(memory) = &self.storage else { return Ok(None) };
        memory.settle()?;
        let size = self.dtype.size();
        memory.launcher().fetch(memory.address() + (at * size) as u64, elements * size).map(Some)
    }

    /// Waits for a copy that [`Buffer::fetch`] began at `at`.
    pub(crate) fn receive<T: Element>(
        &self,
        download: Option<Download>,
        at: usize,
        out: &mut [T],
    ) -> Result<()> {
        match (&self.storage, download) {
            (Storage::Gpu(memory), Some(download)) => {
                memory.launcher().receive(download, bytemuck::cast_slice_mut(out))
            }
            _ => self.download(at, out),
        }
    }

    /// Copies `data` to element `at` and on. The caller has checked type and bounds.
    pub fn upload<T: Element>(&mut self, at: usize, data: &[T]) -> Result<()> {
        self.settle()?;
        let bytes: &[u8] = bytemuck::cast_slice(data);
        match &self.storage {
            Storage::Gpu(memory) => {
                let launcher = memory.launcher();
                launcher.upload(memory.address() + (at * self.dtype.size()) as u64, bytes)?;
            }
            _ => {
                if let Some(host) = T::host_mut(self) {
                    host[at..at + data.len()].copy_from_slice(data);
                }
                if let Some((traffic, _)) = &self.traffic {
                    traffic.upload(bytes.len());
                }
            }
        }
        Ok(())
    }

    /// Copies elements from `at` on into `out`. The caller has checked type and bounds.
    pub fn download<T: Element>(&self, at: usize, out: &mut [T]) -> Result<()> {
        self.settle()?;
        match &self.storage {
            Storage::Gpu(memory) => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
                let launcher = memory.launcher();
                launcher.download(memory.address() + (at * self.dtype.size()) as u64, bytes)?;
            }
            _ => {
                if let Some(host) = T::host(self) {
                    out.copy_from_slice(&host[at..at + out.len()]);
                }
                if let Some((traffic, _)) = &self.traffic {
                    traffic.download(std::mem::size_of_val(out));
                }
            }
        }
        Ok(())
    }
}

/// The error of a host that is full: what was to be held, what is, and what takes less.
fn out_of_memory(refused: &Refused, arena: Arena, traffic: &Traffic) -> Error {
    let held: Vec<String> = traffic
        .host_arenas()
        .iter()
        .filter(|count| count.held > 0)
        .map(|count| format!("{} {}", count.arena.name(), count.held))
        .collect();
    let held = if held.is_empty() { "none".into() } else { held.join(", ") };
    let free = host_memory::free().map_or("an unknown number of".into(), |free| free.to_string());
    Error::device(
        format!(
            "out of memory on the cpu, for the {}: {refused}; {free} bytes of the machine are free, and bytes held by tensors of this program are: {held}",
            arena.name()
        ),
        "end other programs, lift a limit of this process (ulimit -v), or take less: of a run, `train --dry-run` shows what \
         takes how much, and run.recompute, run.positions_at_once, grpo.tape_mib, evaluation.batch, run.weight_copies_mib, \
         model.dtype and adapter.rank change it; of generate and evaluate --max-new-tokens, --weight-copies-mib and --dtype bf16, \
         of evaluate --batch",
    )
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((traffic, arena)) = &self.traffic {
            traffic.free_host(*arena, self.elements * self.dtype.size());
        }
    }
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$variant;
            fn host(buffer: &Buffer) -> Option<&[Self]> {
                match &buffer.storage {
                    Storage::$variant(data) => Some(data),
                    _ => None,
                }
            }
            fn host_mut(buffer: &mut Buffer) -> Option<&mut [Self]> {
                match &mut buffer.storage {
                    Storage::$variant(data) => Some(data),
                    _ => None,
                }
            }
        }
    };
}

element!(f32, F32);
element!(f64, F64);
element!(bf16, Bf16);
element!(u32, U32);
element!(i32, I32);
