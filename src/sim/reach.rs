//! Where an access lands: which live range, within which bounds, at which alignment.
//!
//! Most accesses of a warp are either 32 neighbours or one place for all lanes. [`Shape`] finds that out in one pass,
//! and then one check stands for 32. Otherwise the OR of all offsets, which is at least their largest, often shows
//! that every lane is within bounds; lanes are looked at one by one only where it does not.

use super::access::{Action, LANES};
use super::block::Shared;
use super::fault::{Fault, Kind, Result};
use super::launch::Grid;
use super::memory::Live;
use super::transfer::{Touch, lanes};
use super::warp::Warp;

/// How the addresses of a whole warp lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Each lane's bytes follow those of the lane before.
    Neighbours,
    /// All lanes touch the same bytes.
    Same,
    /// Anything else, or some lanes do not take part.
    Scattered,
}

impl Shape {
    /// The shape of accesses of `bytes` bytes.
    #[inline(always)]
    pub fn of(addresses: &[u64; LANES], active: u32, bytes: u32) -> Shape {
        if active != u32::MAX {
            return Shape::Scattered;
        }
        let first = addresses[0];
        let (mut apart, mut different) = (0, 0);
        for lane in 0..LANES {
            different |= addresses[lane] ^ first;
            apart |= addresses[lane] ^ first.wrapping_add(lane as u64 * u64::from(bytes));
        }
        match (apart, different) {
            (0, _) => Shape::Neighbours,
            (_, 0) => Shape::Same,
            _ => Shape::Scattered,
        }
    }

    /// Bytes that the lanes touch together.
    pub fn span(self, bytes: u32) -> u64 {
        match self {
            Shape::Neighbours => LANES as u64 * u64::from(bytes),
            _ => u64::from(bytes),
        }
    }
}

/// The OR of the addresses of active lanes.
#[inline(always)]
fn merged(addresses: &[u64; LANES], active: u32) -> u64 {
    let mut all = 0;
    for lane in 0..LANES {
        all |= if active & 1 << lane != 0 { addresses[lane] } else { 0 };
    }
    all
}

impl Warp {
    /// Refuses addresses that are no multiple of the access's size.
    #[inline(always)]
    pub(super) fn aligned(
        &self,
        grid: &Grid<'_>,
        touch: &Touch,
        addresses: &[u64; LANES],
        active: u32,
    ) -> Result<()> {
        if merged(addresses, active) & u64::from(touch.bytes - 1) == 0 {
            return Ok(());
        }
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

    /// The index of the live range that holds an address, starting from the range that the instruction met last.
    #[inline(always)]
    fn find(&self, grid: &Grid<'_>, shared: &mut Shared, pc: u32, address: u64, bytes: u64) -> Option<usize> {
        let hint = shared.hints[pc as usize] as usize;
        if grid.ranges.get(hint).is_some_and(|live| live.holds(address, bytes)) {
            return Some(hint);
        }
        let after = grid.ranges.partition_point(|live| live.range.base <= address);
        let index = after.checked_sub(1).filter(|&index| grid.ranges[index].holds(address, bytes))?;
        shared.hints[pc as usize] = index as u32;
        Some(index)
    }

    /// The live range that holds a whole warp's access, if one does.
    #[inline(always)]
    pub(super) fn range_of_all<'l>(
        &self,
        grid: &Grid<'l>,
        shared: &mut Shared,
        touch: &Touch,
        first: u64,
        shape: Shape,
    ) -> Option<(&'l Live, usize)> {
        let index = self.find(grid, shared, touch.pc, first, shape.span(touch.bytes))?;
        Some((&grid.ranges[index], index))
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
        let first = active.trailing_zeros();
        let address = addresses[first as usize];
        let bytes = u64::from(touch.bytes);
        let Some(index) = self.find(grid, shared, touch.pc, address, bytes) else {
            return Err(self.missing(grid, touch, first, address));
        };
        let live = &grid.ranges[index];
        let (base, size) = (live.range.base, live.range.bytes);
        let mut all = 0;
        for lane in 0..LANES {
            all |= if active & 1 << lane != 0 { addresses[lane].wrapping_sub(base) } else { 0 };
        }
        if all < size && size - all >= bytes {
            return Ok((live, index, active));
        }
        let mut within = 0;
        for lane in 0..LANES {
            within |= u32::from(live.holds(addresses[lane], bytes)) << lane;
        }
        Ok((live, index, within & active))
    }

    /// The fault of an address that no live range holds.
    #[cold]
    fn missing(&self, grid: &Grid<'_>, touch: &Touch, lane: u32, address: u64) -> Fault {
        let fault = (grid.missing)(address, u64::from(touch.bytes));
        let reads = matches!(touch.action, Action::Read | Action::CopyRead);
        let verb = if reads { "reads" } else { "writes" };
        grid.place(Fault { problem: format!("{verb} {}", fault.problem), ..fault }, touch.place, lane)
    }

    /// Refuses addresses beyond shared memory.
    #[inline(always)]
    pub(super) fn within_shared(
        &self,
        grid: &Grid<'_>,
        shared: &Shared,
        touch: &Touch,
        addresses: &[u64; LANES],
        active: u32,
    ) -> Result<()> {
        let (size, bytes) = (u64::from(shared.shared_bytes), u64::from(touch.bytes));
        let all = merged(addresses, active);
        if all < size && size - all >= bytes {
            return Ok(());
        }
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
    pub(super) fn local_place(
        &self,
        grid: &Grid<'_>,
        touch: &Touch,
        lane: usize,
        address: u64,
    ) -> Result<usize> {
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
}
