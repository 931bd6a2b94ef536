//! `mma.sync`: products of small matrices whose elements lie scattered over the lanes of a warp.
//!
//! Products are exact in f32 for every input format here (bf16, f16, tf32), and sums are f32 to nearest in ascending
//! order of k, starting from the accumulator. A device sums in an order and with a truncation of its own; its results
//! differ in the last places, which is why kernels are compared with tolerances and never bit by bit across devices.

use super::access::LANES;
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
        for lane in 0..LANES {
            let (group, place) = (lane / 4, lane % 4);
            // Registers of A hold rows group and group + 8 in turn, then the next columns.
            for (i, &register) in self.a.iter().enumerate() {
                let word = registers.words[register as usize][lane];
                let row = group + 8 * (i % 2);
                match self.factor {
                    Factor::Tf32 => a[row][place + 4 * (i / 2)] = tf32_value(word),
                    _ => {
                        let [low, high] = self.halves(word);
                        a[row][2 * place + 8 * (i / 2)] = low;
                        a[row][2 * place + 8 * (i / 2) + 1] = high;
                    }
                }
            }
            for (i, &register) in self.b.iter().enumerate() {
                let word = registers.words[register as usize][lane];
                match self.factor {
                    Factor::Tf32 => b[place + 4 * i][group] = tf32_value(word),
                    _ => {
                        let [low, high] = self.halves(word);
                        b[2 * place + 8 * i][group] = low;
                        b[2 * place + 8 * i + 1][group] = high;
                    }
                }
            }
            for (i, &register) in self.c.iter().enumerate() {
                let word = registers.words[register as usize][lane];
                if self.half_result {
                    sums[group + 8 * i][2 * place] = from_f16(word as u16);
                    sums[group + 8 * i][2 * place + 1] = from_f16((word >> 16) as u16);
                } else {
                    sums[group + 8 * (i / 2)][2 * place + i % 2] = f32::from_bits(word);
                }
            }
        }
        accumulate(&a, &b, &mut sums, self.depth);
        for lane in 0..LANES {
            let (group, place) = (lane / 4, lane % 4);
            for (i, &register) in self.d.iter().enumerate() {
                registers.words[register as usize][lane] = if self.half_result {
                    let row = sums[group + 8 * i];
                    u32::from(to_f16(row[2 * place])) | u32::from(to_f16(row[2 * place + 1])) << 16
                } else {
                    sums[group + 8 * (i / 2)][2 * place + i % 2].to_bits()
                };
            }
        }
    }

    fn halves(&self, word: u32) -> [f32; 2] {
        let (low, high) = (word as u16, (word >> 16) as u16);
        match self.factor {
            Factor::F16 => [from_f16(low), from_f16(high)],
            _ => [from_bf16(low), from_bf16(high)],
        }
    }
}

/// Adds A B to the sums, term by term in ascending order of k.
#[inline]
pub(super) fn accumulate(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], sums: &mut [[f32; 8]; 16], depth: usize) {
    for (row, sum) in sums.iter_mut().enumerate() {
        for k in 0..depth {
            let factor = a[row][k];
            for col in 0..8 {
                sum[col] += factor * b[k][col];
            }
        }
    }
}

/// A register as a tf32 number: the low 13 bits of an f32 do not count.
fn tf32_value(word: u32) -> f32 {
    f32::from_bits(word & !0x1fff)
}
