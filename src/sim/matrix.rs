//! `mma.sync`: products of small matrices whose elements lie scattered over the lanes of a warp.
//!
//! Products are exact in f32 for every input format here (bf16, f16, tf32), and sums are f32 to nearest in ascending
//! order of k, starting from the accumulator. A device sums in an order and with a truncation of its own; its results
//! differ in the last places, which is why kernels are compared with tolerances and never bit by bit across devices.

use super::registers::Registers;
use super::rounding::{from_bf16, from_f16, to_f16};

/// Formats of the factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Factor {
    F16,
    Bf16,
    Tf32,
}

/// A product of a 16 by `depth` and a `depth` by 8 matrix, added to a 16 by 8 one.
#[derive(Clone, Debug)]
pub(super) struct Multiply {
    pub factor: Factor,
    pub depth: usize,
    /// Whether the accumulator and the result are half precision, two to a register.
    pub half_result: bool,
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    pub c: Vec<u32>,
    pub d: Vec<u32>,
}

impl Multiply {
    /// Multiply-adds of one instruction.
    pub fn multiply_adds(&self) -> u64 {
        16 * 8 * self.depth as u64
    }

    /// Runs it on all lanes.
    pub fn run(&self, registers: &mut Registers) {
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 8]; 16];
        let mut sums = [[0f32; 8]; 16];
        match self.factor {
            Factor::Tf32 => self.gather_words(registers, &mut a, &mut b),
            Factor::F16 => self.gather_halves(registers, &mut a, &mut b, from_f16),
            Factor::Bf16 => self.gather_halves(registers, &mut a, &mut b, from_bf16),
        }
        for (i, &register) in self.c.iter().enumerate() {
            let words = registers.words[register as usize].as_chunks::<4>().0;
            if self.half_result {
                for (sums, words) in sums[8 * i..][..8].iter_mut().zip(words) {
                    for (pair, word) in sums.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                        *pair = [from_f16(*word as u16), from_f16((word >> 16) as u16)];
                    }
                }
            } else {
                for (sums, words) in sums[8 * (i / 2)..][..8].iter_mut().zip(words) {
                    for (pair, word) in sums.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                        pair[i % 2] = f32::from_bits(*word);
                    }
                }
            }
        }
        accumulate(&a, &b, &mut sums, self.depth);
        for (i, &register) in self.d.iter().enumerate() {
            let words = registers.words[register as usize].as_chunks_mut::<4>().0;
            if self.half_result {
                for (words, sums) in words.iter_mut().zip(&sums[8 * i..]) {
                    for (word, [low, high]) in words.iter_mut().zip(sums.as_chunks::<2>().0) {
                        *word = u32::from(to_f16(*low)) | u32::from(to_f16(*high)) << 16;
                    }
                }
            } else {
                for (words, sums) in words.iter_mut().zip(&sums[8 * (i / 2)..]) {
                    for (word, pair) in words.iter_mut().zip(sums.as_chunks::<2>().0) {
                        *word = pair[i % 2].to_bits();
                    }
                }
            }
        }
    }

    /// The factors where a register holds one element. Registers of A hold rows group and group + 8 in turn, then the
    /// next columns; a group is four lanes.
    fn gather_words(&self, registers: &Registers, a: &mut [[f32; 16]; 16], b: &mut [[f32; 8]; 16]) {
        for (i, &register) in self.a.iter().enumerate() {
            let words = registers.words[register as usize].as_chunks::<4>().0;
            for (row, words) in a[8 * (i % 2)..][..8].iter_mut().zip(words) {
                let row = &mut row[4 * (i / 2)..][..4];
                row.iter_mut().zip(words).for_each(|(value, &word)| *value = tf32_value(word));
            }
        }
        for (i, &register) in self.b.iter().enumerate() {
            let words = registers.words[register as usize].as_chunks::<4>().0;
            let rows = &mut b[4 * i..][..4];
            for (group, words) in words.iter().enumerate() {
                rows.iter_mut().zip(words).for_each(|(row, &word)| row[group] = tf32_value(word));
            }
        }
    }

    /// The same where a register holds two elements, of which `value` makes numbers.
    #[inline(always)]
    fn gather_halves(
        &self,
        registers: &Registers,
        a: &mut [[f32; 16]; 16],
        b: &mut [[f32; 8]; 16],
        value: impl Fn(u16) -> f32,
    ) {
        for (i, &register) in self.a.iter().enumerate() {
            let words = registers.words[register as usize].as_chunks::<4>().0;
            for (row, words) in a[8 * (i % 2)..][..8].iter_mut().zip(words) {
                let pairs = row[8 * (i / 2)..][..8].as_chunks_mut::<2>().0;
                for (pair, &word) in pairs.iter_mut().zip(words) {
                    *pair = [value(word as u16), value((word >> 16) as u16)];
                }
            }
        }
        for (i, &register) in self.b.iter().enumerate() {
            let words = registers.words[register as usize].as_chunks::<4>().0;
            let pairs = b[8 * i..][..8].as_chunks_mut::<2>().0;
            for (group, words) in words.iter().enumerate() {
                for ([low, high], &word) in pairs.iter_mut().zip(words) {
                    (low[group], high[group]) = (value(word as u16), value((word >> 16) as u16));
                }
            }
        }
    }
}

/// Adds A B to the sums, term by term in ascending order of k.
#[inline]
pub(super) fn accumulate(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], sums: &mut [[f32; 8]; 16], depth: usize) {
    // Rows are innermost: what one product waits for, 15 others lie between.
    for (k, b) in b.iter().enumerate().take(depth) {
        for (sum, a) in sums.iter_mut().zip(a) {
            for col in 0..8 {
                sum[col] += a[k] * b[col];
            }
        }
    }
}

/// A register as a tf32 number: the low 13 bits of an f32 do not count.
fn tf32_value(word: u32) -> f32 {
    f32::from_bits(word & !0x1fff)
}
