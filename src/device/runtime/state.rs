//! What a launcher keeps under its lock.

use super::super::driver::{Driver, Function, Launch, Mark, Outcome, Pinned};
use super::super::graph::Capture;
use super::super::pool::Pool;
use super::super::signature::{Signature, Signatures};
use super::super::staging::Staging;
use super::super::texts::Texts;
use super::super::{Arena, Argument, Grid, Kernel, Statistics, Stream};
use std::collections::{HashMap, VecDeque};

/// The headers of the files.
static SIGNATURES: Texts<Signatures> = Texts::new();

/// An entry that was launched before.
#[derive(Debug)]
struct Entry {
    signature: Signature,
    function: Function,
}

/// An event that somebody holds.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) stream: Stream,
    /// How many allocations the pool had made.
    pub(super) allocations: u64,
    /// Whether the compute stream waits for it already.
    pub(super) settled: bool,
}

/// Where a download lands.
#[derive(Debug)]
pub(super) struct Landing {
    pinned: Pinned,
    mark: Mark,
    bytes: usize,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) driver: Box<dyn Driver>,
    pub(super) pool: Pool,
    pub(super) staging: Staging,
    /// Entries by where their static lies.
    entries: HashMap<usize, Entry>,
    /// Graphs that are being captured, at most one by each thread: what other threads ask for meanwhile runs.
    pub(super) captures: Vec<Capture>,
    /// What happened when the device was lost, and what to do.
    pub(super) lost: Option<(String, String)>,
    /// Events by mark.
    pub(super) events: HashMap<u64, Recorded>,
    /// Whether the copy stream was given anything that the compute stream may not have waited for.
    pub(super) copying: bool,
    pub(super) landings: HashMap<u64, Landing>,
    next_landing: u64,
    /// Downloads whose ticket was dropped, oldest first.
    unwanted: VecDeque<Landing>,
    /// Memory that lives as long as a graph.
    pub(super) graphs: HashMap<u64, Vec<u64>>,
    pub(super) launches: usize,
    pub(super) graph_launches: usize,
}

impl State {
    pub(super) fn new(driver: Box<dyn Driver>) -> State {
        let sizes = driver.sizes();
        State {
            driver,
            pool: Pool::new(sizes),
            staging: Staging::new(sizes.chunk),
            entries: HashMap::new(),
            captures: Vec::new(),
            lost: None,
            events: HashMap::new(),
            copying: false,
            landings: HashMap::new(),
            next_landing: 0,
            unwanted: VecDeque::new(),
            graphs: HashMap::new(),
            launches: 0,
            graph_launches: 0,
        }
    }

    /// The capture that the calling thread is in.
    pub(super) fn capture(&mut self) -> Option<&mut Capture> {
        self.captures.iter_mut().find(|capture| capture.is_mine())
    }

    /// The same, which ends here.
    pub(super) fn end_capture(&mut self) -> Option<Capture> {
        let at = self.captures.iter().position(Capture::is_mine)?;
        Some(self.captures.swap_remove(at))
    }

    /// Clears up after tickets that were dropped.
    pub(super) fn collect(&mut self, events: Vec<u64>, downloads: Vec<u64>, graphs: Vec<u64>) -> Outcome<()> {
        for mark in events {
            if self.events.remove(&mark).is_some() {
                self.driver.forget(mark as usize);
            }
        }
        self.unwanted.extend(downloads.iter().filter_map(|id| self.landings.remove(id)));
        // A download that nobody wants may still land; its place is used again only when it has.
        while let Some(landing) = self.unwanted.front() {
            if !self.driver.reached(landing.mark)? {
                break;
            }
            self.driver.forget(landing.mark);
            self.staging.landed(landing.pinned, landing.bytes);
            self.unwanted.pop_front();
        }
        for id in graphs {
            self.driver.discard(id as usize);
            if let Some(freed) = self.graphs.remove(&id) {
                self.free_all(freed)?;
            }
        }
        Ok(())
    }

    /// A block of zeros.
    pub(super) fn reserve(&mut self, bytes: usize, arena: Arena) -> Outcome<u64> {
        let address = self.pool.allocate(&mut *self.driver, bytes, arena)?;
        if bytes > 0
            && let Err(failure) = self.driver.clear(Stream::Compute, address, bytes)
        {
            // The first failure is the one to report; a second one says the same of the same device.
            let _ = self.pool.free(&mut *self.driver, address);
            return Err(failure);
        }
        Ok(address)
    }

    /// Gives back blocks.
    pub(super) fn free_all(&mut self, addresses: Vec<u64>) -> Outcome<()> {
        for address in addresses {
            self.pool.free(&mut *self.driver, address)?;
        }
        Ok(())
    }

    /// A kernel's entry, found or loaded, with its arguments packed.
    pub(super) fn prepare(
        &mut self,
        kernel: &'static Kernel,
        grid: Grid,
        arguments: &[Argument],
    ) -> Outcome<Launch> {
        let key = std::ptr::from_ref(kernel).addr();
        if !self.entries.contains_key(&key) {
            let file = SIGNATURES.of(kernel.ptx, || Signatures::read(kernel.stem, kernel.ptx))?;
            let signature = file.of(kernel)?.clone();
            // A driver's own refusal would speak of an invalid image.
            self.driver.properties().check_target(&format!("ptx/{}.ptx", kernel.stem), &file.target)?;
            let function = self.driver.load(kernel)?;
            self.entries.insert(key, Entry { signature, function });
        }
        let entry = &self.entries[&key];
        entry.signature.check_block(kernel, grid)?;
        let parameters = entry.signature.pack(kernel, arguments)?;
        Ok(Launch { function: entry.function, grid, parameters })
    }

    /// Begins a copy to the host.
    pub(super) fn download(&mut self, stream: Stream, from: u64, bytes: usize) -> Outcome<Landing> {
        let pinned = self.staging.land(&mut *self.driver, bytes)?;
        if bytes > 0 {
            self.driver.download(stream, from, (pinned, 0), bytes)?;
        }
        Ok(Landing { pinned, mark: self.driver.record(stream)?, bytes })
    }

    /// Waits for a copy to the host and hands it out.
    pub(super) fn finish(&mut self, landing: Landing, out: &mut [u8]) -> Outcome<()> {
        self.driver.wait_host(landing.mark)?;
        self.driver.forget(landing.mark);
        self.driver.read_pinned(landing.pinned, 0, out)?;
        self.staging.landed(landing.pinned, landing.bytes);
        Ok(())
    }

    /// Keeps a download until it is received.
    pub(super) fn keep(&mut self, landing: Landing) -> u64 {
        self.next_landing += 1;
        self.landings.insert(self.next_landing, landing);
        self.next_landing
    }

    /// Lets the compute stream wait for everything that the copy stream was given: a graph does not say what it reads.
    pub(super) fn settle_copies(&mut self) -> Outcome<()> {
        if !std::mem::take(&mut self.copying) {
            return Ok(());
        }
        let mark = self.driver.record(Stream::Copy)?;
        let waited = self.driver.wait(Stream::Compute, mark);
        self.driver.forget(mark);
        for event in self.events.values_mut() {
            event.settled |= event.stream == Stream::Copy;
        }
        waited
    }

    /// Waits for everything.
    pub(super) fn synchronise(&mut self) -> Outcome<()> {
        self.driver.synchronise()?;
        self.pool.settled(&mut *self.driver);
        self.staging.settled(&mut *self.driver);
        Ok(())
    }

    pub(super) fn statistics(&self) -> Statistics {
        let (driver_allocations, driver_bytes) = self.pool.taken();
        let (pinned_allocations, pinned_bytes) = self.staging.taken();
        Statistics {
            driver_allocations,
            driver_bytes,
            pinned_allocations,
            pinned_bytes,
            launches: self.launches,
            graph_launches: self.graph_launches,
            arenas: self.pool.books().counts().to_vec(),
            peak: self.pool.books().peak(),
            held: self.pool.held(),
            kernels: self.driver.kernel_counts(),
        }
    }
}
