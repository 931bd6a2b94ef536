//! Stores.

use super::access::{LANES, Space};
use super::block::Shared;
use super::fault::{Fault, Kind, Result};
use super::instruction::{AddressSpace, Bank, Elements};
use super::launch::Grid;
use super::reach::Shape;
use super::region::Region;
use super::transfer::{Touch, lanes};
use super::warp::Warp;
use std::sync::atomic::Ordering::Relaxed;

impl Warp {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn store(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        touch: &Touch,
        space: AddressSpace,
        addresses: &[u64; LANES],
        active: u32,
        elements: &Elements,
    ) -> Result<()> {
        self.aligned(grid, touch, addresses, active)?;
        match space {
            AddressSpace::Global => self.store_global(grid, shared, touch, addresses, active, elements),
            AddressSpace::Shared => {
                self.within_shared(grid, shared, touch, addresses, active)?;
                self.observe(grid, shared, touch, (Space::Shared, 0), addresses, (active, None))?;
                for (i, &register) in elements.registers.iter().enumerate() {
                    let skip = i as u64 * u64::from(elements.bytes);
                    for lane in lanes(active) {
                        let value = self.get(elements, register, lane);
                        store_word(&mut shared.words, addresses[lane] + skip, elements.bytes, value);
                    }
                }
                Ok(())
            }
            AddressSpace::Local => {
                shared.counters.local_bytes += u64::from(touch.bytes) * u64::from(active.count_ones());
                let bytes = elements.bytes as usize;
                for lane in lanes(active) {
                    let at = self.local_place(grid, touch, lane, addresses[lane])?;
                    for (i, &register) in elements.registers.iter().enumerate() {
                        let value = self.get(elements, register, lane).to_le_bytes();
                        shared.local[at + i * bytes..][..bytes].copy_from_slice(&value[..bytes]);
                    }
                }
                Ok(())
            }
            _ => {
                let fault =
                    Fault::new(Kind::OutOfBounds, "a store to parameters", "parameters are read-only");
                Err(grid.place(fault, touch.place, active.trailing_zeros()))
            }
        }
    }

    fn store_global(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        touch: &Touch,
        addresses: &[u64; LANES],
        active: u32,
        elements: &Elements,
    ) -> Result<()> {
        let shape = Shape::of(addresses, active, touch.bytes);
        if shape == Shape::Neighbours
            && elements.plain_words()
            && let Some((live, range)) = self.range_of_all(grid, shared, touch, addresses[0], shape)
        {
            self.observe(grid, shared, touch, (Space::Global, range), addresses, (active, None))?;
            let (first, count) =
                (((addresses[0] - live.region.base) >> 2) as usize, elements.registers.len());
            let words = &live.region.words()[first..first + LANES * count];
            for (i, &register) in elements.registers.iter().enumerate() {
                let row = &self.registers.words[register as usize];
                let parts = words.chunks_exact(count);
                row.iter().zip(parts).for_each(|(&value, part)| part[i].store(value, Relaxed));
            }
            return Ok(());
        }
        let mut left = active;
        while left != 0 {
            let (live, range, mask) = self.range(grid, shared, touch, addresses, left)?;
            self.observe(grid, shared, touch, (Space::Global, range), addresses, (mask, None))?;
            let base = live.region.base;
            for (i, &register) in elements.registers.iter().enumerate() {
                let skip = i as u64 * u64::from(elements.bytes);
                if elements.bytes == 2 && elements.bank == Bank::Words {
                    self.store_halves(&live.region, addresses, skip, mask, register);
                    continue;
                }
                for lane in lanes(mask) {
                    let value = self.get(elements, register, lane);
                    live.region.store(addresses[lane] - base + skip, elements.bytes, value);
                }
            }
            left &= !mask;
        }
        Ok(())
    }

    /// Stores half-words; two neighbours that fill a word store it whole, which needs no exchange with other threads.
    fn store_halves(&self, region: &Region, addresses: &[u64; LANES], skip: u64, mask: u32, register: u32) {
        let row = &self.registers.words[register as usize];
        let base = region.base;
        let mut lane = 0;
        while lane < LANES {
            if mask & 1 << lane != 0 {
                let at = addresses[lane] - base + skip;
                let pair = lane + 1 < LANES
                    && mask & 2 << lane != 0
                    && at.is_multiple_of(4)
                    && addresses[lane + 1] == addresses[lane] + 2;
                if pair {
                    region.store(at, 4, u64::from(row[lane] & 0xffff | row[lane + 1] << 16));
                    lane += 1;
                } else {
                    region.store(at, 2, u64::from(row[lane]));
                }
            }
            lane += 1;
        }
    }

    /// The value of a register to store.
    #[inline(always)]
    fn get(&self, elements: &Elements, register: u32, lane: usize) -> u64 {
        match elements.bank {
            Bank::Doubles => self.registers.doubles[register as usize][lane],
            _ => u64::from(self.registers.words[register as usize][lane]),
        }
    }
}

/// Stores one to eight bytes to shared memory at a multiple of their number.
#[inline(always)]
pub(super) fn store_word(words: &mut [u32], at: u64, bytes: u32, value: u64) {
    let word = (at >> 2) as usize;
    match bytes {
        1 => words[word] = words[word] & !(0xff << (8 * (at & 3))) | (value as u32 & 0xff) << (8 * (at & 3)),
        2 => {
            words[word] =
                words[word] & !(0xffff << (8 * (at & 2))) | (value as u32 & 0xffff) << (8 * (at & 2))
        }
        4 => words[word] = value as u32,
        _ => {
            words[word] = value as u32;
            words[word + 1] = (value >> 32) as u32;
        }
    }
}
