//! The bytes of device memory, as 32-bit words that host threads share.
//!
//! Blocks run on several host threads and may touch the same words, rightly (atomics, neighbouring halves of a word)
//! or wrongly (races, which the checker reports). Words are atomics accessed without ordering, so that neither is
//! undefined behaviour of ours; on common machines such an access costs what a plain one costs.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// One run of bytes of device memory.
#[derive(Debug)]
pub(super) struct Region {
    /// Address of the first byte, a multiple of 256.
    pub base: u64,
    /// Length in bytes as asked for.
    pub bytes: u64,
    words: Box<[AtomicU32]>,
}

impl Region {
    /// Zeroed bytes, or nothing where the host has no room. The host gives pages as they are touched.
    pub fn new(base: u64, bytes: u64) -> Option<Region> {
        let words = bytemuck::allocation::try_zeroed_slice_box(bytes.div_ceil(4) as usize).ok()?;
        Some(Region { base, bytes, words })
    }

    /// All words.
    #[inline(always)]
    pub fn words(&self) -> &[AtomicU32] {
        &self.words
    }

    /// One byte, half-word, word or double word at a multiple of its size, zero-extended.
    #[inline(always)]
    pub fn load(&self, offset: u64, bytes: u32) -> u64 {
        let word = (offset >> 2) as usize;
        match bytes {
            1 => u64::from(self.words[word].load(Relaxed) >> (8 * (offset & 3)) & 0xff),
            2 => u64::from(self.words[word].load(Relaxed) >> (8 * (offset & 2)) & 0xffff),
            4 => u64::from(self.words[word].load(Relaxed)),
            _ => {
                u64::from(self.words[word].load(Relaxed))
                    | u64::from(self.words[word + 1].load(Relaxed)) << 32
            }
        }
    }

    /// Stores the low `bytes` bytes of `value` at a multiple of that size.
    #[inline(always)]
    pub fn store(&self, offset: u64, bytes: u32, value: u64) {
        let word = (offset >> 2) as usize;
        match bytes {
            1 => self.merge(word, 0xff << (8 * (offset & 3)), (value as u32 & 0xff) << (8 * (offset & 3))),
            2 => {
                self.merge(word, 0xffff << (8 * (offset & 2)), (value as u32 & 0xffff) << (8 * (offset & 2)))
            }
            4 => self.words[word].store(value as u32, Relaxed),
            _ => {
                self.words[word].store(value as u32, Relaxed);
                self.words[word + 1].store((value >> 32) as u32, Relaxed);
            }
        }
    }

    /// Replaces the bits of a word that `mask` names; the other bits may change under our hands.
    pub fn merge(&self, word: usize, mask: u32, bits: u32) {
        let word = &self.words[word];
        let mut old = word.load(Relaxed);
        while let Err(now) = word.compare_exchange_weak(old, old & !mask | bits, Relaxed, Relaxed) {
            old = now;
        }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset as usize;
        let mut out = out;
        while !out.is_empty() {
            let word = self.words[at / 4].load(Relaxed).to_le_bytes();
            let (start, count) = (at % 4, (4 - at % 4).min(out.len()));
            let (head, tail) = out.split_at_mut(count);
            head.copy_from_slice(&word[start..start + count]);
            (out, at) = (tail, at + count);
        }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let mut at = offset as usize;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (start, count) = (at % 4, (4 - at % 4).min(bytes.len()));
            let (head, tail) = bytes.split_at(count);
            let mut word = [0; 4];
            word[start..start + count].copy_from_slice(head);
            if count == 4 {
                self.words[at / 4].store(u32::from_le_bytes(word), Relaxed);
            } else {
                let mut mask = [0; 4];
                mask[start..start + count].fill(0xff);
                self.merge(at / 4, u32::from_le_bytes(mask), u32::from_le_bytes(word));
            }
            (bytes, at) = (tail, at + count);
        }
    }

    /// Sets bytes to one value.
    pub fn fill(&self, offset: u64, byte: u8, bytes: u64) {
        let (mut at, end) = (offset, offset + bytes);
        while at < end && at % 4 != 0 {
            self.store(at, 1, u64::from(byte));
            at += 1;
        }
        let whole = u32::from_le_bytes([byte; 4]);
        while at + 4 <= end {
            self.words[(at / 4) as usize].store(whole, Relaxed);
            at += 4;
        }
        while at < end {
            self.store(at, 1, u64::from(byte));
            at += 1;
        }
    }
}
