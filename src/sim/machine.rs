//! The simulated device: memory, and launches of entries of a [`Program`].

use super::access::{MemoryEvent, Observer, Operation};
use super::counters::Counters;
use super::fault::{Fault, Kind, Result};
use super::launch::{Surroundings, check, run};
use super::memory::{Live, Memory};
use super::program::Program;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How a machine is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Host threads that run blocks; 0 takes as many as the machine has.
    pub threads: usize,
    /// Who looks at every access; `None` leaves bounds and alignment.
    pub observer: Option<Arc<dyn Observer>>,
    /// Warp instructions that a block may run before it is taken for one that never ends.
    pub patience: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { memory_bytes: 16 << 30, threads: 0, observer: None, patience: 1 << 36 }
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Name of the entry.
    pub entry: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
    /// The block of parameters, laid out as the entry says.
    pub parameters: &'a [u8],
    /// Run only these blocks, by linear index (x fastest); `None` runs all.
    pub sample: Option<&'a [u64]>,
    /// Order of blocks, and of warps within a block: 0 is ascending, any other number another order.
    pub seed: u64,
}

/// A simulated device.
#[derive(Debug)]
pub struct Machine {
    options: Options,
    memory: Mutex<Memory>,
    /// Addresses of the variables of each program that was launched.
    variables: Mutex<HashMap<u64, Arc<[u64]>>>,
}

impl Machine {
    /// A device with empty memory.
    pub fn new(options: Options) -> Machine {
        let memory = Mutex::new(Memory::new(options.memory_bytes));
        Machine { options, memory, variables: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: MemoryEvent) -> Result<()> {
        self.options.observer.as_ref().map_or(Ok(()), |observer| observer.memory(event))
    }

    /// Says whose work follows: an operation's, or, with `None`, the host's own.
    pub fn begin(&self, operation: Option<Operation>) {
        self.options.observer.iter().for_each(|observer| observer.operation(operation));
    }

    /// Reserves `bytes` bytes and returns their address, a multiple of 256. The bytes are zero, but count as
    /// unwritten.
    pub fn allocate(&self, bytes: u64) -> Result<u64> {
        let range = self.memory().allocate(bytes, false)?;
        self.tell(MemoryEvent::Allocated(range))?;
        Ok(range.base)
    }

    /// Gives back an allocation, with the pieces carved out of it.
    pub fn free(&self, address: u64) -> Result<()> {
        let dead = self.memory().free(address)?;
        dead.iter().try_for_each(|r| self.tell(MemoryEvent::Freed { base: r.base, bytes: r.bytes }))
    }

    /// Makes `bytes` bytes at `address`, within one allocation, an allocation of their own. With the first piece
    /// the allocation itself ends: what no piece covers is out of bounds.
    pub fn carve(&self, address: u64, bytes: u64) -> Result<()> {
        let (ended, piece) = self.memory().carve(address, bytes)?;
        if let Some(range) = ended {
            self.tell(MemoryEvent::Freed { base: range.base, bytes: range.bytes })?;
        }
        self.tell(MemoryEvent::Allocated(piece))
    }

    /// Ends a piece that [`Machine::carve`] made.
    pub fn release(&self, address: u64) -> Result<()> {
        let range = self.memory().release(address)?;
        self.tell(MemoryEvent::Freed { base: range.base, bytes: range.bytes })
    }

    /// Bytes allocated now; pieces are part of their allocation.
    pub fn used(&self) -> u64 {
        self.memory().used()
    }

    fn live(&self, address: u64, bytes: usize) -> Result<Option<Live>> {
        if bytes == 0 {
            return Ok(None);
        }
        self.memory().find(address, bytes as u64).cloned().map(Some)
    }

    /// Copies host bytes to the device.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let Some(live) = self.live(address, bytes.len())? else { return Ok(()) };
        live.region.write(address - live.region.base, bytes);
        self.tell(MemoryEvent::Written { address, bytes: bytes.len() as u64 })
    }

    /// Copies device bytes to the host.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let Some(live) = self.live(address, bytes.len())? else { return Ok(()) };
        self.tell(MemoryEvent::Read { address, bytes: bytes.len() as u64 })?;
        live.region.read(address - live.region.base, bytes);
        Ok(())
    }

    /// Sets `bytes` bytes to one value.
    pub fn fill(&self, address: u64, byte: u8, bytes: u64) -> Result<()> {
        let Some(live) = self.live(address, bytes as usize)? else { return Ok(()) };
        live.region.fill(address - live.region.base, byte, bytes);
        self.tell(MemoryEvent::Written { address, bytes })
    }

    /// Copies bytes within the device; the two runs may not overlap.
    pub fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        let (Some(source), Some(target)) = (self.live(from, bytes as usize)?, self.live(to, bytes as usize)?)
        else {
            return Ok(());
        };
        if from < to + bytes && to < from + bytes {
            return Err(Fault::new(
                Kind::Memory,
                format!("a copy of {bytes} bytes from {from:#x} to {to:#x} overlaps itself"),
                "copy through a third place",
            ));
        }
        let mut room = vec![0; (bytes as usize).min(1 << 20)];
        let mut done = 0;
        while done < bytes {
            let count = ((bytes - done) as usize).min(room.len());
            source.region.read(from - source.region.base + done, &mut room[..count]);
            target.region.write(to - target.region.base + done, &room[..count]);
            done += count as u64;
        }
        self.tell(MemoryEvent::Copied { from, to, bytes })
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// A launch that a device would refuse, and whatever goes wrong while the kernel runs.
    pub fn launch(&self, program: &Program, launch: &Launch<'_>) -> Result<Counters> {
        let entry = program.entry(launch.entry)?;
        check(program, entry, launch)?;
        let variables = self.variables(program)?;
        let ranges = self.memory().snapshot();
        let around = Surroundings {
            ranges: &ranges,
            variables: &variables,
            observer: self.options.observer.as_deref(),
            threads: self.options.threads,
            patience: self.options.patience,
            missing: &|address, bytes| self.memory().missing(address, bytes),
        };
        run(program, entry, launch, &around)
    }

    /// The address of a variable of a program (`.global` or `.const`), by its name in the file.
    pub fn variable(&self, program: &Program, name: &str) -> Result<u64> {
        let addresses = self.variables(program)?;
        match program.variables.iter().position(|variable| variable.name == name) {
            Some(index) => Ok(addresses[index]),
            None => Err(Fault::text(
                Kind::Launch,
                program.file(),
                0,
                format!("no variable `{name}`"),
                "name a .global or .const variable of the file",
            )),
        }
    }

    /// The addresses of a program's variables, which get their memory and their first values once.
    fn variables(&self, program: &Program) -> Result<Arc<[u64]>> {
        let mut known = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(addresses) = known.get(&program.id) {
            return Ok(addresses.clone());
        }
        let mut addresses = Vec::new();
        for variable in &program.variables {
            let range = self.memory().allocate(variable.bytes, true)?;
            self.tell(MemoryEvent::Allocated(range))?;
            // What the file does not say is zero.
            self.fill(range.base, 0, range.bytes)?;
            self.write(range.base, &variable.initial)?;
            addresses.push(range.base);
        }
        for (variable, &base) in program.variables.iter().zip(&addresses) {
            for &(at, other, plus) in &variable.addresses {
                self.write(base + at as u64, &addresses[other].wrapping_add(plus).to_le_bytes())?;
            }
        }
        let addresses: Arc<[u64]> = addresses.into();
        known.insert(program.id, addresses.clone());
        Ok(addresses)
    }
}
