//! Which bytes of device memory have been written: one bit a byte, kept from launch to launch.
//!
//! Host writes and fills write; copies within the device carry the bits along. A range that is written throughout
//! needs no bits, which is how most are from their first upload on.

use crate::sim::access::{MemoryEvent, Range};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The bits of one live range.
#[derive(Debug)]
pub struct Written {
    bytes: u64,
    /// All bytes are written.
    whole: AtomicBool,
    bits: OnceLock<Box<[AtomicU64]>>,
    /// Words below it have all their bits.
    settled: AtomicUsize,
    /// Something was written since the last look at whether everything is.
    news: AtomicBool,
}

/// The mask of `count` bits from `first` on; both within a word.
fn mask(first: u64, count: u64) -> u64 {
    if count == 64 { !0 } else { ((1 << count) - 1) << first }
}

impl Written {
    fn new(bytes: u64) -> Written {
        Written {
            bytes,
            whole: AtomicBool::new(false),
            bits: OnceLock::new(),
            settled: AtomicUsize::new(0),
            news: AtomicBool::new(false),
        }
    }

    /// Whether every byte is written.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.whole.load(Relaxed)
    }

    /// Notes that bytes are written.
    pub fn write(&self, offset: u64, bytes: u64) {
        if self.is_whole() {
            return;
        }
        if bytes == self.bytes {
            self.whole.store(true, Relaxed);
            return;
        }
        let bits = self.bits.get_or_init(|| {
            let words = self.bytes.div_ceil(64) as usize;
            let bits: Box<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
            // Bits beyond the end count as written, so that the last word can be full.
            if !self.bytes.is_multiple_of(64) {
                bits[words - 1].store(!0 << (self.bytes % 64), Relaxed);
            }
            bits
        });
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let (word, mask) = (&bits[(at / 64) as usize], mask(at % 64, count));
            if word.load(Relaxed) & mask != mask {
                word.fetch_or(mask, Relaxed);
                self.news.store(true, Relaxed);
            }
            at += count;
        }
    }

    /// Offset of the first byte of the run that nobody wrote.
    #[inline]
    pub fn first_unwritten(&self, offset: u64, bytes: u64) -> Option<u64> {
        if self.is_whole() || bytes == 0 {
            return None;
        }
        let Some(bits) = self.bits.get() else { return Some(offset) };
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let missing = !bits[(at / 64) as usize].load(Relaxed) & mask(at % 64, count);
            if missing != 0 {
                return Some(at / 64 * 64 + u64::from(missing.trailing_zeros()));
            }
            at += count;
        }
        None
    }

    /// Looks whether everything is written by now; the work is shared over all calls.
    fn settle(&self) {
        if self.is_whole() || !self.news.swap(false, Relaxed) {
            return;
        }
        let Some(bits) = self.bits.get() else { return };
        let start = self.settled.load(Relaxed);
        let full = bits[start..].iter().take_while(|word| word.load(Relaxed) == !0).count();
        self.settled.store(start + full, Relaxed);
        if start + full == bits.len() {
            self.whole.store(true, Relaxed);
        }
    }
}

/// The bits of every live range of a machine.
#[derive(Debug, Default)]
pub struct Ledger {
    ranges: Mutex<BTreeMap<u64, (Range, Arc<Written>)>>,
}

impl Ledger {
    fn ranges(&self) -> MutexGuard<'_, BTreeMap<u64, (Range, Arc<Written>)>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live range that holds an address.
    fn find(&self, address: u64) -> Option<(Range, Arc<Written>)> {
        let ranges = self.ranges();
        let (range, written) = ranges.range(..=address).next_back().map(|(_, found)| found)?;
        (address - range.base < range.bytes).then(|| (*range, written.clone()))
    }

    /// Takes note of what happens to memory. Returns the first byte of a host read that nobody wrote.
    pub fn note(&self, event: MemoryEvent) -> Option<u64> {
        match event {
            MemoryEvent::Allocated(range) => {
                self.ranges().insert(range.base, (range, Arc::new(Written::new(range.bytes))));
            }
            MemoryEvent::Freed { base, .. } => {
                self.ranges().remove(&base);
            }
            MemoryEvent::Written { address, bytes } => {
                if let Some((range, written)) = self.find(address) {
                    written.write(address - range.base, bytes);
                }
            }
            MemoryEvent::Read { address, bytes } => {
                let (range, written) = self.find(address)?;
                return written.first_unwritten(address - range.base, bytes).map(|at| range.base + at);
            }
            MemoryEvent::Copied { from, to, bytes } => {
                if let (Some((source, have)), Some((target, get))) = (self.find(from), self.find(to)) {
                    carry(&have, from - source.base, &get, to - target.base, bytes);
                }
            }
        }
        None
    }

    /// The bits of a range.
    pub fn of(&self, range: &Range) -> Arc<Written> {
        let known = self.ranges();
        let found = match known.get(&range.base) {
            Some((same, written)) if same == range => written.clone(),
            // A range that came to life before anyone looked: nobody can say what was written.
            _ => {
                let written = Written::new(range.bytes);
                written.write(0, range.bytes);
                Arc::new(written)
            }
        };
        found.settle();
        found
    }

    /// The ranges alive now, without the variables of files.
    pub fn alive(&self) -> Vec<Range> {
        self.ranges().values().map(|(range, _)| *range).filter(|range| !range.variable).collect()
    }
}

/// A copy makes written what was written at its source. (What the target held before is gone either way; a byte
/// that was written and is overwritten by one that was not stays written, on the side of silence.)
fn carry(have: &Written, from: u64, get: &Written, to: u64, bytes: u64) {
    let mut at = 0;
    while at < bytes {
        match have.first_unwritten(from + at, bytes - at) {
            None => {
                get.write(to + at, bytes - at);
                return;
            }
            Some(hole) => {
                let run = hole - (from + at);
                if run > 0 {
                    get.write(to + at, run);
                }
                at += run + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, bytes: u64) -> Range {
        Range { base, bytes, variable: false }
    }

    #[test]
    fn every_byte_has_its_own_bit() {
        for bytes in [1u64, 63, 64, 65, 200] {
            for skipped in 0..bytes {
                let written = Written::new(bytes);
                written.write(0, skipped);
                written.write(skipped + 1, bytes - skipped - 1);
                assert_eq!(written.first_unwritten(0, bytes), Some(skipped), "{bytes}");
                written.write(skipped, 1);
                assert_eq!(written.first_unwritten(0, bytes), None);
                written.settle();
                assert!(written.is_whole());
            }
        }
    }

    #[test]
    fn copies_carry_what_is_written() {
        let ledger = Ledger::default();
        ledger.note(MemoryEvent::Allocated(range(0x1000, 100)));
        ledger.note(MemoryEvent::Allocated(range(0x2000, 100)));
        ledger.note(MemoryEvent::Written { address: 0x1000, bytes: 40 });
        ledger.note(MemoryEvent::Written { address: 0x1032, bytes: 10 });
        ledger.note(MemoryEvent::Copied { from: 0x1008, to: 0x2000, bytes: 60 });
        let read = |address, bytes| ledger.note(MemoryEvent::Read { address, bytes });
        assert_eq!(read(0x2000, 32), None);
        assert_eq!(read(0x2000, 33), Some(0x2020));
        assert_eq!(read(0x202a, 10), None);
        assert_eq!(read(0x202a, 11), Some(0x2034));
    }

    #[test]
    fn memory_that_comes_back_is_unwritten() {
        let ledger = Ledger::default();
        let piece = range(0x1000, 64);
        ledger.note(MemoryEvent::Allocated(piece));
        ledger.note(MemoryEvent::Written { address: 0x1000, bytes: 64 });
        assert!(ledger.of(&piece).is_whole());
        ledger.note(MemoryEvent::Freed { base: 0x1000, bytes: 64 });
        ledger.note(MemoryEvent::Allocated(piece));
        assert_eq!(ledger.of(&piece).first_unwritten(0, 64), Some(0));
        assert_eq!(ledger.alive(), [piece]);
    }
}
