//! Memory instructions of a warp: addresses, spaces, what an observer is told. Where an access lands is reach.rs; what
//! it does is load.rs, store.rs, atomics.rs and copies.rs.

use super::access::{Action, LANES, Order, Place, Scope, Space, WarpAccess};
use super::block::Shared;
use super::fault::Result;
use super::instruction::{Address, AddressSpace, Bank, Op, Transfer};
use super::launch::Grid;
use super::warp::Warp;
use super::windows::space_of;

/// Lanes of a mask, one after the other.
#[inline(always)]
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (lane < LANES as u32).then_some(lane as usize)
    })
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
            Op::ProxyFence => match &mut shared.observer {
                Some(observer) => observer.proxy_fence(active, place),
                None => Ok(()),
            }
            .map_err(|fault| grid.place(fault, place, active.trailing_zeros())),
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
            (Space::Shared, Action::Read | Action::CopyRead) => counters.shared_read_bytes += bytes,
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
}
