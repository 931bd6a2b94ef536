//! Memory instructions of a warp: addresses, bounds, alignment, and the access itself.

use super::access::{Action, LANES, Order, Place, Scope, Space, WarpAccess};
use super::block::Shared;
use super::fault::{Fault, Kind, Result};
use super::instruction::{Address, AddressSpace, Bank, Copy, Elements, Op, Transfer};
use super::launch::Grid;
use super::memory::Live;
use super::warp::Warp;
use super::windows::space_of;
use std::sync::atomic::Ordering::Relaxed;

/// Lanes of a mask, one after the other.
#[inline(always)]
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask & 1 << lane != 0)
}

/// What the parts of an access have in common.
#[derive(Clone, Copy)]
pub(super) struct Touch {
    pub pc: u32,
    pub action: Action,
    pub order: Order,
    /// Bytes of a lane in all.
    pub bytes: u32,
    pub place: Place,
}

impl Warp {
    /// The addresses of an operand in all lanes.
    #[inline(always)]
    pub(super) fn addresses(&self, address: &Address) -> [u64; LANES] {
        match address.bank {
            Bank::Words => {
                let row = &self.registers.words[address.register as usize];
                std::array::from_fn(|lane| u64::from(row[lane].wrapping_add(address.offset as u32)))
            }
            _ => {
                let row = &self.registers.doubles[address.register as usize];
                std::array::from_fn(|lane| row[lane].wrapping_add(address.offset as u64))
            }
        }
    }

    /// Runs a memory instruction.
    pub(super) fn touch(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        pc: u32,
        op: &Op,
        active: u32,
    ) -> Result<()> {
        let place = self.place(grid, shared, pc);
        match op {
            Op::Load(load) => {
                let Transfer { address, elements, order } = &**load;
                let bytes = elements.bytes * elements.registers.len() as u32;
                let touch = Touch { pc, action: Action::Read, order: *order, bytes, place };
                let addresses = self.addresses(address);
                self.split(
                    grid,
                    shared,
                    address.space,
                    &addresses,
                    active,
                    |warp, shared, space, addresses, lanes| {
                        warp.load(grid, shared, &touch, space, addresses, lanes, elements)
                    },
                )
            }
            Op::Store(store) => {
                let Transfer { address, elements, order } = &**store;
                let bytes = elements.bytes * elements.registers.len() as u32;
                let touch = Touch { pc, action: Action::Write, order: *order, bytes, place };
                let addresses = self.addresses(address);
                self.split(
                    grid,
                    shared,
                    address.space,
                    &addresses,
                    active,
                    |warp, shared, space, addresses, lanes| {
                        warp.store(grid, shared, &touch, space, addresses, lanes, elements)
                    },
                )
            }
            Op::Atomic(atomic) => {
                let touch =
                    Touch { pc, action: Action::Atomic, order: atomic.order, bytes: atomic.bytes, place };
                let addresses = self.addresses(&atomic.address);
                let space = atomic.address.space;
                self.split(
                    grid,
                    shared,
                    space,
                    &addresses,
                    active,
                    |warp, shared, space, addresses, lanes| {
                        warp.atomic(grid, shared, &touch, space, addresses, lanes, atomic)
                    },
                )
            }
            Op::Fence(scope) => self.fence(grid, shared, *scope, active, place),
            Op::Copy(copy) => self.copy(grid, shared, pc, copy, active, place),
            Op::CopyCommit => {
                self.copies.commit(active);
                match &mut shared.observer {
                    Some(observer) => observer.copy_commit(active, place),
                    None => Ok(()),
                }
                .map_err(|fault| grid.place(fault, place, active.trailing_zeros()))
            }
            Op::CopyWait(pending) => {
                self.copies.wait(active, *pending, &mut shared.words);
                match &mut shared.observer {
                    Some(observer) => observer.copy_wait(active, *pending, place),
                    None => Ok(()),
                }
                .map_err(|fault| grid.place(fault, place, active.trailing_zeros()))
            }
            _ => Ok(()),
        }
    }

    fn fence(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        scope: Scope,
        active: u32,
        place: Place,
    ) -> Result<()> {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        match &mut shared.observer {
            Some(observer) => observer
                .fence(active, scope, place)
                .map_err(|fault| grid.place(fault, place, active.trailing_zeros())),
            None => Ok(()),
        }
    }

    /// Hands lanes to `access` by the space that their addresses lie in, as addresses within that space.
    #[inline(always)]
    pub(super) fn split(
        &mut self,
        _grid: &Grid<'_>,
        shared: &mut Shared,
        space: AddressSpace,
        addresses: &[u64; LANES],
        active: u32,
        mut access: impl FnMut(&mut Warp, &mut Shared, AddressSpace, &[u64; LANES], u32) -> Result<()>,
    ) -> Result<()> {
        if space != AddressSpace::Generic {
            return access(self, shared, space, addresses, active);
        }
        let mut left = active;
        while left != 0 {
            let (space, _) = space_of(addresses[left.trailing_zeros() as usize]);
            let mut same = 0;
            let mut within = [0; LANES];
            for lane in lanes(left) {
                let (of_lane, address) = space_of(addresses[lane]);
                within[lane] = address;
                same |= u32::from(of_lane == space) << lane;
            }
            access(self, shared, space, &within, same)?;
            left &= !same;
        }
        Ok(())
    }

    /// Refuses addresses that are no multiple of the access's size.
    fn aligned(&self, grid: &Grid<'_>, touch: &Touch, addresses: &[u64; LANES], active: u32) -> Result<()> {
        let odd = |address: u64| address & u64::from(touch.bytes - 1) != 0;
        let Some(lane) = lanes(active).find(|&lane| odd(addresses[lane])) else { return Ok(()) };
        let fault = Fault::new(
            Kind::Misaligned,
            format!(
                "an access of {} bytes at an address that is no multiple of {}",
                touch.bytes, touch.bytes
            ),
            "take a narrower access where rows are not aligned",
        )
        .at_address(addresses[lane]);
        Err(grid.place(fault, touch.place, lane as u32))
    }

    /// The live range of the first lane, and the lanes within it.
    #[inline(always)]
    pub(super) fn range<'l>(
        &self,
        grid: &Grid<'l>,
        shared: &mut Shared,
        touch: &Touch,
        addresses: &[u64; LANES],
        active: u32,
    ) -> Result<(&'l Live, usize, u32)> {
        let first = active.trailing_zeros() as usize;
        let hint = shared.hints[touch.pc as usize] as usize;
        let address = addresses[first];
        let bytes = u64::from(touch.bytes);
        let index = match grid.ranges.get(hint) {
            Some(live) if live.holds(address, bytes) => hint,
            _ => {
                let after = grid.ranges.partition_point(|live| live.range.base <= address);
                match after.checked_sub(1).filter(|&index| grid.ranges[index].holds(address, bytes)) {
                    Some(index) => {
                        shared.hints[touch.pc as usize] = index as u32;
                        index
                    }
                    None => {
                        let fault = (grid.missing)(address, bytes);
                        let verb = if touch.action == Action::Read || touch.action == Action::CopyRead {
                            "reads"
                        } else {
                            "writes"
                        };
                        let fault = Fault { problem: format!("{verb} {}", fault.problem), ..fault };
                        return Err(grid.place(fault, touch.place, first as u32));
                    }
                }
            }
        };
        let live = &grid.ranges[index];
        let mut within = 0;
        for lane in 0..LANES {
            within |= u32::from(live.holds(addresses[lane], bytes)) << lane;
        }
        Ok((live, index, within & active))
    }

    /// Tells the observer of an access, and counts its bytes.
    pub(super) fn observe(
        &self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        touch: &Touch,
        (space, range): (Space, usize),
        addresses: &[u64; LANES],
        (active, read_bytes): (u32, Option<&[u32; LANES]>),
    ) -> Result<()> {
        let bytes = u64::from(touch.bytes) * u64::from(active.count_ones());
        let counters = &mut shared.counters;
        match (space, touch.action) {
            (Space::Global, Action::Read) => counters.global_read_bytes += bytes,
            (Space::Global, Action::CopyRead) => {
                let read =
                    read_bytes.map_or(bytes, |read| lanes(active).map(|lane| u64::from(read[lane])).sum());
                counters.global_read_bytes += read;
            }
            (Space::Global, _) => counters.global_write_bytes += bytes,
            (Space::Shared, Action::Read | Action::MatrixRead | Action::CopyRead) => {
                counters.shared_read_bytes += bytes
            }
            (Space::Shared, _) => counters.shared_write_bytes += bytes,
        }
        let Some(observer) = &mut shared.observer else { return Ok(()) };
        let access = WarpAccess {
            space,
            action: touch.action,
            order: touch.order,
            active,
            addresses,
            bytes: touch.bytes,
            read_bytes,
            range,
            at: touch.place,
        };
        observer.access(&access).map_err(|fault| grid.place(fault, touch.place, active.trailing_zeros()))
    }

    /// Refuses addresses beyond shared memory.
    pub(super) fn within_shared(
        &self,
        grid: &Grid<'_>,
        shared: &Shared,
        touch: &Touch,
        addresses: &[u64; LANES],
        active: u32,
    ) -> Result<()> {
        let (size, bytes) = (u64::from(shared.shared_bytes), u64::from(touch.bytes));
        let out = |address: u64| address > size || size - address < bytes;
        let Some(lane) = lanes(active).find(|&lane| out(addresses[lane])) else { return Ok(()) };
        let fault = Fault::new(
            Kind::OutOfBounds,
            format!("{bytes} bytes of shared memory outside the block's"),
            "check the index against the array's size, and the launch's dynamic shared memory",
        )
        .at_address(addresses[lane])
        .near(format!("shared memory has {size} bytes from address 0"));
        Err(grid.place(fault, touch.place, lane as u32))
    }

    /// The places in a thread's own memory, or a fault.
    fn local_place(&self, grid: &Grid<'_>, touch: &Touch, lane: usize, address: u64) -> Result<usize> {
        let size = u64::from(grid.code.local);
        if address > size || size - address < u64::from(touch.bytes) {
            let fault = Fault::new(
                Kind::OutOfBounds,
                format!("{} bytes of local memory outside the thread's", touch.bytes),
                "check the index against the array's size",
            )
            .at_address(address)
            .near(format!("a thread has {size} bytes of local memory from address 0"));
            return Err(grid.place(fault, touch.place, lane as u32));
        }
        Ok(((self.index as usize * LANES + lane) as u64 * size + address) as usize)
    }

    #[allow(clippy::too_many_arguments)]
    fn load(
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
        let bytes = elements.bytes;
        match space {
            AddressSpace::Global => {
                let mut left = active;
                while left != 0 {
                    let (live, range, mask) = self.range(grid, shared, touch, addresses, left)?;
                    self.observe(grid, shared, touch, (Space::Global, range), addresses, (mask, None))?;
                    let base = live.region.base;
                    let words = live.region.words();
                    for (i, &register) in elements.registers.iter().enumerate() {
                        let skip = i as u64 * u64::from(bytes);
                        if bytes == 4 && elements.bank == Bank::Words {
                            let row = &mut self.registers.words[register as usize];
                            for lane in lanes(mask) {
                                let at = (addresses[lane] - base + skip) >> 2;
                                row[lane] = words[at as usize].load(Relaxed);
                            }
                        } else {
                            for lane in lanes(mask) {
                                let value = live.region.load(addresses[lane] - base + skip, bytes);
                                self.put(elements, register, lane, value);
                            }
                        }
                    }
                    left &= !mask;
                }
            }
            AddressSpace::Shared => {
                self.within_shared(grid, shared, touch, addresses, active)?;
                self.observe(grid, shared, touch, (Space::Shared, 0), addresses, (active, None))?;
                for (i, &register) in elements.registers.iter().enumerate() {
                    let skip = i as u64 * u64::from(bytes);
                    if bytes == 4 && elements.bank == Bank::Words {
                        let row = &mut self.registers.words[register as usize];
                        for lane in lanes(active) {
                            row[lane] = shared.words[((addresses[lane] + skip) >> 2) as usize];
                        }
                    } else {
                        for lane in lanes(active) {
                            let value = load_word(&shared.words, addresses[lane] + skip, bytes);
                            self.put(elements, register, lane, value);
                        }
                    }
                }
            }
            AddressSpace::Local => {
                shared.counters.local_bytes += u64::from(touch.bytes) * u64::from(active.count_ones());
                for lane in lanes(active) {
                    let at = self.local_place(grid, touch, lane, addresses[lane])?;
                    for (i, &register) in elements.registers.iter().enumerate() {
                        let value = load_bytes(&shared.local[at + i * bytes as usize..], bytes);
                        self.put(elements, register, lane, value);
                    }
                }
            }
            _ => {
                for lane in lanes(active) {
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
                    for (i, &register) in elements.registers.iter().enumerate() {
                        let value = load_bytes(&grid.parameters[at as usize + i * bytes as usize..], bytes);
                        self.put(elements, register, lane, value);
                    }
                }
            }
        }
        Ok(())
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

    /// The value of a register to store.
    #[inline(always)]
    fn get(&self, elements: &Elements, register: u32, lane: usize) -> u64 {
        match elements.bank {
            Bank::Doubles => self.registers.doubles[register as usize][lane],
            _ => u64::from(self.registers.words[register as usize][lane]),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn store(
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
        let bytes = elements.bytes;
        match space {
            AddressSpace::Global => {
                let mut left = active;
                while left != 0 {
                    let (live, range, mask) = self.range(grid, shared, touch, addresses, left)?;
                    self.observe(grid, shared, touch, (Space::Global, range), addresses, (mask, None))?;
                    let base = live.region.base;
                    for (i, &register) in elements.registers.iter().enumerate() {
                        let skip = i as u64 * u64::from(bytes);
                        if bytes == 4 && elements.bank == Bank::Words {
                            let row = &self.registers.words[register as usize];
                            let words = live.region.words();
                            for lane in lanes(mask) {
                                let at = (addresses[lane] - base + skip) >> 2;
                                words[at as usize].store(row[lane], Relaxed);
                            }
                        } else if bytes == 2 && elements.bank == Bank::Words {
                            self.store_halves(live, addresses, skip, mask, register);
                        } else {
                            for lane in lanes(mask) {
                                let value = self.get(elements, register, lane);
                                live.region.store(addresses[lane] - base + skip, bytes, value);
                            }
                        }
                    }
                    left &= !mask;
                }
            }
            AddressSpace::Shared => {
                self.within_shared(grid, shared, touch, addresses, active)?;
                self.observe(grid, shared, touch, (Space::Shared, 0), addresses, (active, None))?;
                for (i, &register) in elements.registers.iter().enumerate() {
                    let skip = i as u64 * u64::from(bytes);
                    for lane in lanes(active) {
                        let value = self.get(elements, register, lane);
                        store_word(&mut shared.words, addresses[lane] + skip, bytes, value);
                    }
                }
            }
            AddressSpace::Local => {
                shared.counters.local_bytes += u64::from(touch.bytes) * u64::from(active.count_ones());
                for lane in lanes(active) {
                    let at = self.local_place(grid, touch, lane, addresses[lane])?;
                    for (i, &register) in elements.registers.iter().enumerate() {
                        let value = self.get(elements, register, lane).to_le_bytes();
                        let at = at + i * bytes as usize;
                        shared.local[at..at + bytes as usize].copy_from_slice(&value[..bytes as usize]);
                    }
                }
            }
            _ => {
                let fault =
                    Fault::new(Kind::OutOfBounds, "a store to parameters", "parameters are read-only");
                return Err(grid.place(fault, touch.place, active.trailing_zeros()));
            }
        }
        Ok(())
    }

    /// Stores half-words; two neighbours that fill a word store it whole, which needs no exchange with other threads.
    fn store_halves(&self, live: &Live, addresses: &[u64; LANES], skip: u64, mask: u32, register: u32) {
        let row = &self.registers.words[register as usize];
        let base = live.region.base;
        let mut lane = 0;
        while lane < LANES {
            if mask & 1 << lane != 0 {
                let at = addresses[lane] - base + skip;
                let pair = lane + 1 < LANES
                    && mask & 2 << lane != 0
                    && at.is_multiple_of(4)
                    && addresses[lane + 1] == addresses[lane] + 2;
                if pair {
                    live.region.store(at, 4, u64::from(row[lane] & 0xffff | row[lane + 1] << 16));
                    lane += 1;
                } else {
                    live.region.store(at, 2, u64::from(row[lane]));
                }
            }
            lane += 1;
        }
    }

    fn copy(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        pc: u32,
        copy: &Copy,
        active: u32,
        place: Place,
    ) -> Result<()> {
        let (to, from) = (self.addresses(&copy.to), self.addresses(&copy.from));
        let mut read = [copy.bytes; LANES];
        if let Some(register) = copy.source_bytes {
            let row = &self.registers.words[register as usize];
            read = std::array::from_fn(|lane| row[lane].min(copy.bytes));
        }
        if let Some((predicate, negated)) = copy.ignore {
            let row = self.registers.predicates[predicate as usize];
            let row = if negated { !row } else { row };
            lanes(row).for_each(|lane| read[lane] = 0);
        }
        let whole = Touch { pc, action: Action::CopyRead, order: Order::Weak, bytes: copy.bytes, place };
        self.aligned(grid, &whole, &to, active)?;
        self.aligned(grid, &whole, &from, active)?;
        self.within_shared(grid, shared, &whole, &to, active)?;
        let mut data = [[0; 4]; LANES];
        let mut left = lanes(active).fold(0, |mask, lane| mask | u32::from(read[lane] > 0) << lane);
        while left != 0 {
            // Lanes that read less than the whole are looked up by what they read.
            let first = left.trailing_zeros() as usize;
            let alike = lanes(left).fold(0, |mask, lane| mask | u32::from(read[lane] == read[first]) << lane);
            let touch = Touch { bytes: read[first], ..whole };
            let (live, range, mask) = self.range(grid, shared, &touch, &from, alike)?;
            let touch = Touch { bytes: copy.bytes, ..whole };
            self.observe(grid, shared, &touch, (Space::Global, range), &from, (mask, Some(&read)))?;
            for lane in lanes(mask) {
                let mut bytes = [0; 16];
                live.region.read(from[lane] - live.region.base, &mut bytes[..read[lane] as usize]);
                for (i, word) in bytes.chunks_exact(4).enumerate() {
                    data[lane][i] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                }
            }
            left &= !mask;
        }
        let touch = Touch { action: Action::CopyWrite, ..whole };
        self.observe(grid, shared, &touch, (Space::Shared, 0), &to, (active, None))?;
        self.copies.issue(active, copy.bytes, std::array::from_fn(|lane| to[lane] as u32), data);
        Ok(())
    }
}

/// One to eight bytes as a number.
pub(super) fn load_bytes(bytes: &[u8], count: u32) -> u64 {
    let mut value = [0; 8];
    value[..count as usize].copy_from_slice(&bytes[..count as usize]);
    u64::from_le_bytes(value)
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
