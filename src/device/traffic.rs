//! Counters of what crosses between host and device, of device memory, of matrix products, and of how steps ran.

use super::arena::Books;
use super::{Arena, ArenaCount, MemoryPeak, StepRun};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

thread_local! {
    static PRODUCTS_HERE: Cell<usize> = const { Cell::new(0) };
}

/// Counts since the device was opened. Each device has its own, so tests in one process do not mix.
#[derive(Debug, Default)]
pub struct Traffic {
    uploads: AtomicUsize,
    downloads: AtomicUsize,
    bytes_up: AtomicUsize,
    bytes_down: AtomicUsize,
    allocations: AtomicUsize,
    bytes_held: AtomicUsize,
    bytes_high_water: AtomicUsize,
    products: AtomicUsize,
    steps: [AtomicUsize; 3],
    /// Memory of the host by arena; a GPU's is in the books of its pool.
    books: Mutex<Books>,
}

/// A reading of [`Traffic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficCount {
    /// Copies from host to device.
    pub uploads: usize,
    /// Copies from device to host.
    pub downloads: usize,
    /// Bytes uploaded.
    pub bytes_up: usize,
    /// Bytes downloaded.
    pub bytes_down: usize,
    /// Buffers ever allocated.
    pub allocations: usize,
    /// Bytes of buffers now alive.
    pub bytes_held: usize,
    /// Most bytes ever alive at once.
    pub bytes_high_water: usize,
    /// Matrix products of linear maps: one forward, one for each gradient of input or weight.
    pub products: usize,
    /// Steps of models on a GPU (a position for each of some rows) that ran launch by launch.
    pub steps_eager: usize,
    /// Steps that were captured, and launched as a graph for the first time.
    pub steps_captured: usize,
    /// Steps that were one launch of a graph captured before.
    pub steps_replayed: usize,
}

impl Traffic {
    /// Records a copy to the device.
    pub fn upload(&self, bytes: usize) {
        self.uploads.fetch_add(1, Relaxed);
        self.bytes_up.fetch_add(bytes, Relaxed);
    }

    /// Records a copy from the device.
    pub fn download(&self, bytes: usize) {
        self.downloads.fetch_add(1, Relaxed);
        self.bytes_down.fetch_add(bytes, Relaxed);
    }

    /// Records a new buffer.
    pub fn allocate(&self, bytes: usize) {
        self.allocations.fetch_add(1, Relaxed);
        let held = self.bytes_held.fetch_add(bytes, Relaxed) + bytes;
        self.bytes_high_water.fetch_max(held, Relaxed);
    }

    /// Records a buffer given back.
    pub fn free(&self, bytes: usize) {
        self.bytes_held.fetch_sub(bytes, Relaxed);
    }

    /// Records a new buffer of the host.
    pub(super) fn allocate_host(&self, arena: Arena, bytes: usize) {
        self.allocate(bytes);
        self.books().take(arena, bytes);
    }

    /// Records that it was given back.
    pub(super) fn free_host(&self, arena: Arena, bytes: usize) {
        self.free(bytes);
        self.books().give_back(arena, bytes);
    }

    /// What the host's arenas held when most was held in all.
    pub(super) fn peak(&self) -> MemoryPeak {
        self.books().peak()
    }

    /// What each arena of the host's memory holds.
    pub(super) fn host_arenas(&self) -> Vec<ArenaCount> {
        self.books().counts().to_vec()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records `count` matrix products.
    pub fn multiply(&self, count: usize) {
        self.products.fetch_add(count, Relaxed);
        PRODUCTS_HERE.set(PRODUCTS_HERE.get() + count);
    }

    /// Matrix products that the calling thread recorded, on all devices: the difference of two readings is that of the
    /// work between them, whatever other threads do.
    pub fn products_here() -> usize {
        PRODUCTS_HERE.get()
    }

    /// Records a step.
    pub fn step(&self, run: StepRun) {
        self.steps[run as usize].fetch_add(1, Relaxed);
    }

    /// The counts now.
    pub fn count(&self) -> TrafficCount {
        TrafficCount {
            uploads: self.uploads.load(Relaxed),
            downloads: self.downloads.load(Relaxed),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
            allocations: self.allocations.load(Relaxed),
            bytes_held: self.bytes_held.load(Relaxed),
            bytes_high_water: self.bytes_high_water.load(Relaxed),
            products: self.products.load(Relaxed),
            steps_eager: self.steps[StepRun::Eager as usize].load(Relaxed),
            steps_captured: self.steps[StepRun::Captured as usize].load(Relaxed),
            steps_replayed: self.steps[StepRun::Replayed as usize].load(Relaxed),
        }
    }
}
