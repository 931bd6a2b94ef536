//! Which bytes of device memory a launch touched, a bit a byte.

use super::Traffic;
use crate::sim::access::{Action, LANES, Range, Space, WarpAccess};
use crate::sim::reach::Shape;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Which bytes of device memory a launch touched.
#[derive(Debug)]
pub struct TrafficMeter {
    ranges: Vec<Touched>,
}

#[derive(Debug)]
struct Touched {
    base: u64,
    bytes: u64,
    read: OnceLock<Box<[AtomicU64]>>,
    written: OnceLock<Box<[AtomicU64]>>,
}

impl TrafficMeter {
    /// A launch over these live ranges that has touched nothing.
    pub fn new(ranges: &[Range]) -> TrafficMeter {
        let touched = |range: &Range| Touched {
            base: range.base,
            bytes: range.bytes,
            read: OnceLock::new(),
            written: OnceLock::new(),
        };
        TrafficMeter { ranges: ranges.iter().map(touched).collect() }
    }

    fn find(&self, hint: usize, address: u64) -> Option<&Touched> {
        let inside = |range: &&Touched| address.wrapping_sub(range.base) < range.bytes;
        self.ranges.get(hint).filter(inside).or_else(|| {
            let at = self.ranges.partition_point(|range| range.base <= address).checked_sub(1)?;
            self.ranges.get(at).filter(inside)
        })
    }

    /// Notes the bytes of one instruction.
    pub fn touch(&self, access: &WarpAccess<'_>) {
        if access.space != Space::Global {
            return;
        }
        let (reads, writes) = match access.action {
            Action::Read | Action::MatrixRead | Action::CopyRead => (true, false),
            Action::Write | Action::CopyWrite => (false, true),
            Action::Atomic => (true, true),
        };
        let shape = match access.read_bytes {
            None => Shape::of(access.addresses, access.active, access.bytes),
            Some(_) => Shape::Scattered,
        };
        if shape != Shape::Scattered
            && let Some(range) = self.find(access.range, access.addresses[0])
        {
            let (offset, bytes) = (access.addresses[0] - range.base, shape.span(access.bytes));
            if bytes <= range.bytes - offset {
                return range.mark_run(offset, bytes, reads, writes);
            }
        }
        // Neighbouring lanes mostly share a word of 64 bits: it is stored once.
        let mut open: Option<(&Touched, u64, u64)> = None;
        for lane in (0..LANES).filter(|lane| access.active >> lane & 1 != 0) {
            let address = access.addresses[lane];
            let bytes = access.read_bytes.map_or(access.bytes, |bytes| bytes[lane]);
            let range = match open {
                Some((range, ..)) if address.wrapping_sub(range.base) < range.bytes => Some(range),
                _ => self.find(access.range, address),
            };
            let Some(range) = range.filter(|_| bytes > 0) else { continue };
            let offset = address - range.base;
            // At most 32 bytes at a multiple of their number, or the start of such: within one word, unless a carved
            // range begins at an odd place.
            for (at, count) in split(offset, bytes.into()) {
                let (word, mask) = (at / 64, (((1u128 << count) - 1) as u64) << (at % 64));
                open = match open {
                    Some((same, at, bits)) if std::ptr::eq(same, range) && at == word => {
                        Some((same, at, bits | mask))
                    }
                    other => {
                        other
                            .into_iter()
                            .for_each(|(range, word, bits)| range.mark(word, bits, reads, writes));
                        Some((range, word, mask))
                    }
                };
            }
        }
        open.into_iter().for_each(|(range, word, bits)| range.mark(word, bits, reads, writes));
    }

    /// Lends the runs of bytes that were read, and those that were written (`true`), range by range: offsets of their first
    /// byte and of the byte behind their last, ascending.
    pub fn each_range(&self, mut lend: impl FnMut(u64, bool, Runs<'_>)) {
        for range in &self.ranges {
            for (written, map) in [(false, &range.read), (true, &range.written)] {
                if let Some(words) = map.get() {
                    lend(range.base, written, Runs { words, at: 0 });
                }
            }
        }
    }

    /// Adds the bytes touched.
    pub fn finish(&self, traffic: &mut Traffic) {
        // A word of the maps is 64 bytes: two sectors, as ranges begin at multiples of 256.
        let sectors = |word: u64| u64::from(word as u32 != 0) + u64::from(word >> 32 != 0);
        let count = |bits: &OnceLock<Box<[AtomicU64]>>| -> (u64, u64) {
            let words = bits.get().into_iter().flatten().map(|word| word.load(Relaxed));
            words.fold((0, 0), |(bytes, all), word| {
                (bytes + u64::from(word.count_ones()), all + sectors(word))
            })
        };
        for range in &self.ranges {
            let ((read, read_sectors), (written, written_sectors)) =
                (count(&range.read), count(&range.written));
            traffic.unique_read_bytes += read;
            traffic.unique_read_sectors += read_sectors;
            traffic.unique_written_bytes += written;
            traffic.unique_written_sectors += written_sectors;
        }
    }
}

/// Runs of bits that are set.
#[derive(Debug)]
pub struct Runs<'m> {
    words: &'m [AtomicU64],
    at: u64,
}

impl Runs<'_> {
    /// The first bit from `from` on that is `set`; the end where there is none.
    fn first(&self, from: u64, set: bool) -> u64 {
        let mut mask = !0 << (from % 64);
        for (index, word) in self.words.iter().enumerate().skip((from / 64) as usize) {
            let word = word.load(Relaxed);
            let bits = if set { word } else { !word } & mask;
            if bits != 0 {
                return 64 * index as u64 + u64::from(bits.trailing_zeros());
            }
            mask = !0;
        }
        64 * self.words.len() as u64
    }
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let first = self.first(self.at, true);
        self.at = self.first(first, false);
        (first < self.at).then_some((first, self.at))
    }
}

/// A run of bytes, cut at multiples of 64.
fn split(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let head = bytes.min(64 - offset % 64);
    [(offset, head), (offset + head, bytes - head)].into_iter().filter(|&(_, count)| count > 0)
}

impl Touched {
    /// Notes a run of bytes within the range.
    fn mark_run(&self, offset: u64, bytes: u64, reads: bool, writes: bool) {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            self.mark(at / 64, (((1u128 << count) - 1) as u64) << (at % 64), reads, writes);
            at += count;
        }
    }

    fn mark(&self, word: u64, bits: u64, reads: bool, writes: bool) {
        for (wanted, map) in [(reads, &self.read), (writes, &self.written)] {
            if wanted {
                let map =
                    map.get_or_init(|| (0..self.bytes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
                let word = &map[word as usize];
                if word.load(Relaxed) & bits != bits {
                    word.fetch_or(bits, Relaxed);
                }
            }
        }
    }
}
