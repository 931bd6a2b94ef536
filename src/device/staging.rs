//! Pinned host memory between the caller's slices and the device.
//!
//! A copy that runs later must not read a slice that its owner may change meanwhile. So an upload is first written to
//! pinned memory, which stays untouched until the copy has run; a download lands in pinned memory and is handed out
//! when it has arrived. Pinned memory is reused, never given back before the device is closed.

use super::Stream;
use super::driver::{Driver, Mark, Outcome, Pinned};
use std::collections::{BTreeMap, VecDeque};

/// Most chunks of uploads; the next upload waits for the oldest.
const MOST_CHUNKS: usize = 8;
/// Downloads land in memory of at least this size.
const LEAST_LANDING: usize = 4096;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Staging {
    chunk_bytes: usize,
    chunks: usize,
    /// The chunk that each stream's uploads are written to, and how much of it is written.
    open: [Option<(Pinned, usize)>; 2],
    /// Full chunks, oldest first, with the mark behind their copies.
    flying: VecDeque<(Pinned, Mark)>,
    idle: Vec<Pinned>,
    /// Landing places that nobody uses, by size.
    landings: BTreeMap<usize, Vec<Pinned>>,
    allocations: usize,
    bytes: usize,
}

impl Staging {
    pub(super) fn new(chunk_bytes: usize) -> Staging {
        Staging {
            chunk_bytes,
            chunks: 0,
            open: [None, None],
            flying: VecDeque::new(),
            idle: Vec::new(),
            landings: BTreeMap::new(),
            allocations: 0,
            bytes: 0,
        }
    }

    /// Most bytes of one piece.
    pub(super) fn piece(&self) -> usize {
        self.chunk_bytes
    }

    /// Times the driver was asked for pinned memory, and bytes taken.
    pub(super) fn taken(&self) -> (usize, usize) {
        (self.allocations, self.bytes)
    }

    /// Copies `bytes` (at most a piece) to the device at `to`, on `stream`.
    pub(super) fn upload(
        &mut self,
        driver: &mut dyn Driver,
        stream: Stream,
        to: u64,
        bytes: &[u8],
    ) -> Outcome<()> {
        let (chunk, at) = match self.open[stream.index()] {
            Some((chunk, used)) if used + bytes.len() <= self.chunk_bytes => (chunk, used),
            full => {
                // The open chunk is forgotten first: when the driver fails, it must not be written to again.
                self.open[stream.index()] = None;
                if let Some((chunk, _)) = full {
                    self.flying.push_back((chunk, driver.record(stream)?));
                }
                (self.next_chunk(driver)?, 0)
            }
        };
        // Copies start at multiples of 64 bytes, whole lines of the host's cache.
        self.open[stream.index()] = Some((chunk, (at + bytes.len()).next_multiple_of(64)));
        driver.write_pinned(chunk, at, bytes)?;
        driver.upload(stream, (chunk, at), to, bytes.len())
    }

    /// A place of at least `bytes` bytes where a download can land.
    pub(super) fn land(&mut self, driver: &mut dyn Driver, bytes: usize) -> Outcome<Pinned> {
        let class = landing_class(bytes);
        match self.landings.get_mut(&class).and_then(Vec::pop) {
            Some(pinned) => Ok(pinned),
            None => self.pin(driver, class),
        }
    }

    /// The place of a download of `bytes` bytes may be used again.
    pub(super) fn landed(&mut self, pinned: Pinned, bytes: usize) {
        self.landings.entry(landing_class(bytes)).or_default().push(pinned);
    }

    /// Everything has run: all chunks can be written to again.
    pub(super) fn settled(&mut self, driver: &mut dyn Driver) {
        for (chunk, mark) in self.flying.drain(..) {
            driver.forget(mark);
            self.idle.push(chunk);
        }
        for open in self.open.iter_mut().flatten() {
            open.1 = 0;
        }
    }

    fn next_chunk(&mut self, driver: &mut dyn Driver) -> Outcome<Pinned> {
        if let Some(chunk) = self.idle.pop() {
            return Ok(chunk);
        }
        if let Some(&(chunk, mark)) = self.flying.front() {
            let reached = driver.reached(mark)?;
            if !reached && self.chunks >= MOST_CHUNKS {
                driver.wait_host(mark)?;
            }
            if reached || self.chunks >= MOST_CHUNKS {
                self.flying.pop_front();
                driver.forget(mark);
                return Ok(chunk);
            }
        }
        self.chunks += 1;
        self.pin(driver, self.chunk_bytes)
    }

    fn pin(&mut self, driver: &mut dyn Driver, bytes: usize) -> Outcome<Pinned> {
        let pinned = driver.pin(bytes)?;
        self.allocations += 1;
        self.bytes += bytes;
        Ok(pinned)
    }
}

fn landing_class(bytes: usize) -> usize {
    bytes.next_power_of_two().max(LEAST_LANDING)
}
