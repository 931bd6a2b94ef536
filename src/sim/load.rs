//! Loads.

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
    pub(super) fn load(
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
            AddressSpace::Global => self.load_global(grid, shared, touch, addresses, active, elements),
            AddressSpace::Shared => self.load_shared(grid, shared, touch, addresses, active, elements),
            AddressSpace::Local => {
                shared.counters.local_bytes += u64::from(touch.bytes) * u64::from(active.count_ones());
                for lane in lanes(active) {
                    let at = self.local_place(grid, touch, lane, addresses[lane])?;
                    self.load_bytes(elements, lane, &shared.local[at..]);
                }
                Ok(())
            }
            _ => self.load_parameter(grid, touch, addresses, active, elements),
        }
    }

    fn load_global(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        touch: &Touch,
        addresses: &[u64; LANES],
        active: u32,
        elements: &Elements,
    ) -> Result<()> {
        let shape = Shape::of(addresses, active, touch.bytes);
        if shape != Shape::Scattered
            && let Some((live, range)) = self.range_of_all(grid, shared, touch, addresses[0], shape)
        {
            self.observe(grid, shared, touch, (Space::Global, range), addresses, (active, None))?;
            self.load_together(&live.region, addresses[0] - live.region.base, shape, elements);
            return Ok(());
        }
        let mut left = active;
        while left != 0 {
            let (live, range, mask) = self.range(grid, shared, touch, addresses, left)?;
            self.observe(grid, shared, touch, (Space::Global, range), addresses, (mask, None))?;
            let base = live.region.base;
            for (i, &register) in elements.registers.iter().enumerate() {
                let skip = i as u64 * u64::from(elements.bytes);
                if elements.plain_words() {
                    let words = live.region.words();
                    let row = &mut self.registers.words[register as usize];
                    let mut one = |lane: usize| {
                        let at = (addresses[lane] - base + skip) >> 2;
                        row[lane] = words[at as usize].load(Relaxed);
                    };
                    if mask == u32::MAX { (0..LANES).for_each(one) } else { lanes(mask).for_each(&mut one) }
                } else {
                    for lane in lanes(mask) {
                        let value = live.region.load(addresses[lane] - base + skip, elements.bytes);
                        self.put(elements, register, lane, value);
                    }
                }
            }
            left &= !mask;
        }
        Ok(())
    }

    /// Loads of neighbours, or of one place, by a whole warp.
    fn load_together(&mut self, region: &Region, at: u64, shape: Shape, elements: &Elements) {
        let (count, bytes) = (elements.registers.len(), u64::from(elements.bytes));
        if elements.plain_words() {
            let first = (at >> 2) as usize;
            let words = &region.words()[first..first + (shape.span(elements.bytes) as usize >> 2) * count];
            for (i, &register) in elements.registers.iter().enumerate() {
                let row = &mut self.registers.words[register as usize];
                match (shape, count) {
                    (Shape::Same, _) => *row = [words[i].load(Relaxed); LANES],
                    (_, 1) => row.iter_mut().zip(words).for_each(|(value, word)| *value = word.load(Relaxed)),
                    _ => {
                        let parts = words.chunks_exact(count);
                        row.iter_mut().zip(parts).for_each(|(value, part)| *value = part[i].load(Relaxed));
                    }
                }
            }
            return;
        }
        let step = if shape == Shape::Same { 0 } else { bytes * count as u64 };
        for (i, &register) in elements.registers.iter().enumerate() {
            for lane in 0..LANES {
                let place = at + lane as u64 * step + i as u64 * bytes;
                self.put(elements, register, lane, region.load(place, elements.bytes));
            }
        }
    }

    fn load_shared(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        touch: &Touch,
        addresses: &[u64; LANES],
        active: u32,
        elements: &Elements,
    ) -> Result<()> {
        self.within_shared(grid, shared, touch, addresses, active)?;
        self.observe(grid, shared, touch, (Space::Shared, 0), addresses, (active, None))?;
        for (i, &register) in elements.registers.iter().enumerate() {
            let skip = i as u64 * u64::from(elements.bytes);
            if elements.plain_words() {
                let words = &shared.words[..];
                let row = &mut self.registers.words[register as usize];
                let mut one = |lane: usize| row[lane] = words[((addresses[lane] + skip) >> 2) as usize];
                if active == u32::MAX { (0..LANES).for_each(one) } else { lanes(active).for_each(&mut one) }
            } else {
                for lane in lanes(active) {
                    let value = load_word(&shared.words, addresses[lane] + skip, elements.bytes);
                    self.put(elements, register, lane, value);
                }
            }
        }
        Ok(())
    }

    fn load_parameter(
        &mut self,
        grid: &Grid<'_>,
        touch: &Touch,
        addresses: &[u64; LANES],
        active: u32,
        elements: &Elements,
    ) -> Result<()> {
        // Most are read at one place by all lanes: one look stands for 32.
        let same = Shape::of(addresses, active, touch.bytes) == Shape::Same;
        for lane in lanes(if same { 1 } else { active }) {
            let (at, size) = (addresses[lane], grid.parameters.len() as u64);
            if at > size || size - at < u64::from(touch.bytes) {
                let fault = Fault::new(
                    Kind::OutOfBounds,
                    format!("{} bytes of parameters outside the kernel's", touch.bytes),
                    "check the index into the structure passed by value",
                )
                .at_address(at)
                .near(format!("the kernel has {size} bytes of parameters from address 0"));
                return Err(grid.place(fault, touch.place, lane as u32));
            }
            self.load_bytes(elements, lane, &grid.parameters[at as usize..]);
        }
        if same {
            for &register in &elements.registers {
                match elements.bank {
                    Bank::Doubles => {
                        let row = &mut self.registers.doubles[register as usize];
                        *row = [row[0]; LANES];
                    }
                    _ => {
                        let row = &mut self.registers.words[register as usize];
                        *row = [row[0]; LANES];
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the elements of one lane from bytes.
    fn load_bytes(&mut self, elements: &Elements, lane: usize, bytes: &[u8]) {
        let count = elements.bytes as usize;
        for (&register, part) in elements.registers.iter().zip(bytes.chunks_exact(count)) {
            let mut value = [0; 8];
            value[..count].copy_from_slice(part);
            self.put(elements, register, lane, u64::from_le_bytes(value));
        }
    }

    /// Writes a loaded element to its register.
    #[inline(always)]
    fn put(&mut self, elements: &Elements, register: u32, lane: usize, value: u64) {
        let value = if elements.sign == 0 {
            value
        } else {
            let up = 64 - 8 * elements.bytes;
            let wide = (value << up) as i64 >> up;
            if elements.sign == 64 { wide as u64 } else { wide as u64 & ((1 << elements.sign) - 1) }
        };
        match elements.bank {
            Bank::Doubles => self.registers.doubles[register as usize][lane] = value,
            _ => self.registers.words[register as usize][lane] = value as u32,
        }
    }
}

impl Elements {
    /// Whether each element is a word that fills its register.
    #[inline(always)]
    pub(super) fn plain_words(&self) -> bool {
        self.bytes == 4 && self.bank == Bank::Words
    }
}

/// One to eight bytes of shared memory at a multiple of their number.
#[inline(always)]
pub(super) fn load_word(words: &[u32], at: u64, bytes: u32) -> u64 {
    let word = (at >> 2) as usize;
    match bytes {
        1 => u64::from(words[word] >> (8 * (at & 3)) & 0xff),
        2 => u64::from(words[word] >> (8 * (at & 2)) & 0xffff),
        4 => u64::from(words[word]),
        _ => u64::from(words[word]) | u64::from(words[word + 1]) << 32,
    }
}
