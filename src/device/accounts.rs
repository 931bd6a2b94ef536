//! A driver that keeps accounts of memory and runs nothing. Under the runtime's pool it takes, byte for byte, what the
//! real driver would have to give, so that whoever reserves there first knows whether there is room.

use super::driver::{Driver, Executable, Failure, Function, Launch, Mark, Node, Outcome, Pinned, Sizes};
use super::{Kernel, LibraryProduct, Properties, Stream};
use std::collections::HashMap;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Accounts {
    properties: Properties,
    sizes: Sizes,
    free: usize,
    taken: HashMap<u64, usize>,
    next_address: u64,
    next_number: usize,
}

impl Accounts {
    /// The accounts of a device with `memory` bytes to give; none = no end.
    pub(super) fn new(properties: Properties, sizes: Sizes, memory: Option<usize>) -> Accounts {
        Accounts {
            properties,
            // What a real driver keeps for itself is not among the bytes it is said to have.
            sizes: Sizes { own: 0, ..sizes },
            free: memory.unwrap_or(usize::MAX),
            taken: HashMap::new(),
            next_address: 1 << 40,
            next_number: 0,
        }
    }

    fn number(&mut self) -> usize {
        self.next_number += 1;
        self.next_number
    }
}

impl Driver for Accounts {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory_free(&mut self) -> Outcome<usize> {
        Ok(self.free)
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn allocate(&mut self, bytes: usize) -> Outcome<u64> {
        let bytes = bytes.checked_next_multiple_of(self.sizes.grain).ok_or(Failure::OutOfMemory)?;
        self.free = self.free.checked_sub(bytes).ok_or(Failure::OutOfMemory)?;
        let address = self.next_address;
        // The addresses mean nothing, but no two blocks have the same.
        self.next_address = address.wrapping_add(bytes as u64).next_multiple_of(256);
        self.taken.insert(address, bytes);
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Outcome<()> {
        self.free += self.taken.remove(&address).unwrap_or(0);
        Ok(())
    }

    fn carve(&mut self, _: u64, _: usize) -> Outcome<()> {
        Ok(())
    }

    fn release(&mut self, _: u64, _: Option<Mark>) -> Outcome<()> {
        Ok(())
    }

    fn pin(&mut self, _: usize) -> Outcome<Pinned> {
        Ok(self.number())
    }

    fn write_pinned(&mut self, _: Pinned, _: usize, _: &[u8]) -> Outcome<()> {
        Ok(())
    }

    fn read_pinned(&mut self, _: Pinned, _: usize, bytes: &mut [u8]) -> Outcome<()> {
        bytes.fill(0);
        Ok(())
    }

    fn load(&mut self, _: &'static Kernel) -> Outcome<Function> {
        Ok(self.number())
    }

    fn launch(&mut self, _: Stream, _: &Launch) -> Outcome<()> {
        Ok(())
    }

    fn upload(&mut self, _: Stream, _: (Pinned, usize), _: u64, _: usize) -> Outcome<()> {
        Ok(())
    }

    fn download(&mut self, _: Stream, _: u64, _: (Pinned, usize), _: usize) -> Outcome<()> {
        Ok(())
    }

    fn clear(&mut self, _: Stream, _: u64, _: usize) -> Outcome<()> {
        Ok(())
    }

    fn copy(&mut self, _: Stream, _: u64, _: u64, _: usize) -> Outcome<()> {
        Ok(())
    }

    fn record(&mut self, _: Stream) -> Outcome<Mark> {
        Ok(self.number())
    }

    fn wait(&mut self, _: Stream, _: Mark) -> Outcome<()> {
        Ok(())
    }

    fn reached(&mut self, _: Mark) -> Outcome<bool> {
        Ok(true)
    }

    fn wait_host(&mut self, _: Mark) -> Outcome<()> {
        Ok(())
    }

    fn elapsed(&mut self, _: Mark, _: Mark) -> Outcome<Option<f32>> {
        Ok(None)
    }

    fn forget(&mut self, _: Mark) {}

    fn synchronise(&mut self) -> Outcome<()> {
        Ok(())
    }

    /// Whether there is one is asked when the real device is opened for work; a rehearsal goes on with any choice.
    fn library(&mut self) -> Outcome<Option<String>> {
        Ok(Some("accounts".into()))
    }

    fn multiply(&mut self, _: &LibraryProduct) -> Outcome<()> {
        Ok(())
    }

    fn instantiate(&mut self, _: &[Node]) -> Outcome<Executable> {
        Ok(self.number())
    }

    fn update(&mut self, _: Executable, _: usize, _: &Node) -> Outcome<()> {
        Ok(())
    }

    fn launch_graph(&mut self, _: Stream, _: Executable) -> Outcome<()> {
        Ok(())
    }

    fn discard(&mut self, _: Executable) {}
}

#[cfg(test)]
mod tests {
    use super::super::{Arena, Device, SimulatorOptions};
    use crate::base::Dtype;

    #[test]
    fn an_accountant_is_full_when_its_device_would_be() {
        let bytes = 40 << 20;
        let real = Device::simulated_with(SimulatorOptions { memory_bytes: bytes, ..Default::default() });
        // Blocks of slabs and blocks of their own, until no more fits, with some given back on the way.
        let fill = |device: &Device| {
            let mut held = Vec::new();
            for round in 0.. {
                let _arena = Arena::ALL[round % 3].enter();
                match device.allocate(Dtype::F32, 1000 + 70_001 * (round % 7)) {
                    Ok(buffer) => held.push(buffer),
                    Err(error) => return (round, device.memory_peak(), error.to_string()),
                }
                if round % 5 == 4 {
                    held.swap_remove(0);
                }
            }
            unreachable!()
        };
        let accounts = real.accountant(Some(bytes as usize));
        let (expected, found) = (fill(&real), fill(&accounts));
        assert_eq!((found.0, found.1), (expected.0, expected.1));
        assert!(found.2.contains("out of memory") && expected.2.contains("out of memory"));
        assert!(expected.0 > 50, "{}", expected.0);
    }

    #[test]
    fn what_runs_there_runs_nowhere() {
        let real = Device::simulated();
        real.use_graphs(false);
        let Device::Gpu(gpu) = real.accountant(None) else { unreachable!() };
        assert!(!gpu.uses_graphs());
        let address = gpu.allocate(8).unwrap();
        gpu.upload(address, &[1; 8]).unwrap();
        let mut back = [7; 8];
        gpu.download(address, &mut back).unwrap();
        assert_eq!(back, [0; 8]);
        gpu.free(address, 8);
        assert!(gpu.statistics().held.is_empty());
        assert_eq!(real.traffic().count().allocations, 0);
    }
}
