//! The shadow of a block's shared memory: who wrote each cell last, who has read it since, whether a copy is under
//! way to it.
//!
//! A cell is as many bytes as the narrowest access so far, 16 at most: an access covers whole cells, so a cell has
//! one last writer. A narrower access splits all cells of the block. Of the readers since the last write a cell
//! keeps one warp's lanes; readers of several warps get a row beside the cells, until the next barrier of the block
//! makes them known to everyone. Of atomics only the last is kept.

use super::now::{Clash, Now, Touch};
use super::products::Products;
use crate::sim::access::LANES;

/// What a cell holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing that anyone wrote.
    #[default]
    Unwritten,
    /// The bytes of a plain store.
    Plain,
    /// The bytes of an atomic or a strong store.
    Strong,
    /// A copy to it is under way.
    Copying,
}

/// Lanes of one warp that read a cell.
#[derive(Clone, Copy, Debug, Default)]
struct Readers {
    lanes: u32,
    clock: u32,
    line: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    line: u32,
    clock: u32,
    thread: u16,
    state: State,
    /// The warp of `readers`.
    warp: u8,
    readers: Readers,
    /// Row of `rows` with the readers of all warps, where `epoch` is the block's; else there is none.
    row: u32,
    epoch: u32,
}

/// The shadow of one block.
#[derive(Debug)]
pub struct SharedShadow {
    /// Bytes of a cell: 16, 8, 4, 2 or 1.
    grain: u32,
    bytes: u32,
    cells: Vec<Cell>,
    rows: Vec<Readers>,
    /// How many products of warpgroups read each 16 bytes; empty before the first one.
    products: Vec<u32>,
    warps: usize,
    /// Barriers of the whole block so far, from 1.
    epoch: u32,
}

/// The widest cell that a run of bytes covers without a rest.
pub fn grain_of(address: u64, bytes: u32) -> u32 {
    1 << (address | u64::from(bytes) | 16).trailing_zeros()
}

impl SharedShadow {
    /// The shadow of `bytes` bytes that nobody wrote, of a block of `warps` warps.
    pub fn new(bytes: u32, warps: usize, grain: u32) -> SharedShadow {
        let cells = vec![Cell::default(); bytes.div_ceil(grain) as usize];
        SharedShadow { grain, bytes, cells, rows: Vec::new(), products: Vec::new(), warps, epoch: 1 }
    }

    /// Bytes of a cell now.
    pub fn grain(&self) -> u32 {
        self.grain
    }

    /// All threads of the block met.
    pub fn block_barrier(&mut self) {
        self.epoch += 1;
        self.rows.clear();
    }

    #[cold]
    fn split(&mut self, grain: u32) {
        let parts = (self.grain / grain) as usize;
        let mut cells = Vec::with_capacity(self.cells.len() * parts);
        self.cells.iter().for_each(|&cell| cells.resize(cells.len() + parts, cell));
        self.cells = cells;
        self.cells.truncate(self.bytes.div_ceil(grain) as usize);
        self.grain = grain;
    }

    /// The cells of a run of bytes that lies within the memory.
    fn cells_of(&mut self, offset: u64, bytes: u32) -> std::ops::Range<usize> {
        let grain = grain_of(offset, bytes);
        if grain < self.grain {
            self.split(grain);
        }
        // A power of two.
        let shift = self.grain.trailing_zeros();
        let first = offset as usize >> shift;
        first..first + (bytes >> shift) as usize
    }

    /// One thread touches bytes. `Err` says at which byte it clashes with what.
    pub fn touch(
        &mut self,
        now: &Now<'_>,
        touch: Touch,
        offset: u64,
        bytes: u32,
    ) -> Result<(), (u64, Clash)> {
        if touch.writes() && !self.products.is_empty() {
            let chunks = offset / 16..(offset + u64::from(bytes)).div_ceil(16);
            if let Some(chunk) = chunks.into_iter().find(|&chunk| self.products[chunk as usize] > 0) {
                return Err((offset.max(16 * chunk), Clash::Multiplied));
            }
        }
        for at in self.cells_of(offset, bytes) {
            if let Err(clash) = self.touch_cell(now, touch, at) {
                return Err((at as u64 * u64::from(self.grain), clash));
            }
        }
        Ok(())
    }

    /// The commonest touch in fewer steps: a plain load of a cell that was written before the last barrier of the block,
    /// and whose readers since are lanes of this warp at this clock, or none. `false` leaves the cell to
    /// [`SharedShadow::touch_cell`].
    #[inline(always)]
    fn is_read_after_a_barrier(&mut self, now: &Now<'_>, at: usize) -> bool {
        let epoch = self.epoch;
        let cell = &mut self.cells[at];
        let settled = matches!(cell.state, State::Plain | State::Strong)
            && cell.epoch != epoch
            && now.order.before_block_barrier(usize::from(cell.thread) / LANES, cell.clock);
        if !settled {
            return false;
        }
        if usize::from(cell.warp) == now.warp && cell.readers.clock == now.clock {
            (cell.readers.lanes, cell.readers.line) = (cell.readers.lanes | now.readers, now.line);
            return true;
        }
        let alone = now.order.before_block_barrier(cell.warp.into(), cell.readers.clock);
        if alone {
            cell.warp = now.warp as u8;
            cell.readers = Readers { lanes: now.readers, clock: now.clock, line: now.line };
        }
        alone
    }

    #[inline]
    fn touch_cell(&mut self, now: &Now<'_>, touch: Touch, at: usize) -> Result<(), Clash> {
        if touch == Touch::Read && self.is_read_after_a_barrier(now, at) {
            return Ok(());
        }
        let cell = self.cells[at];
        match cell.state {
            State::Unwritten if touch.reads() => return Err(Clash::Unwritten),
            State::Unwritten => {}
            State::Copying => {
                return Err(Clash::Copying { thread: cell.thread.into(), line: cell.line });
            }
            State::Strong if touch.is_strong() => {}
            State::Plain | State::Strong => {
                if let Some(reader) = now.ignorant(cell.thread.into(), cell.clock) {
                    let by = if cell.state == State::Plain { "wrote" } else { "changed atomically" };
                    return Err(Clash::Race { reader, thread: cell.thread.into(), line: cell.line, by });
                }
            }
        }
        if touch.writes() {
            self.check_readers(now, &cell)?;
            let state = match touch {
                Touch::Copy => State::Copying,
                _ if touch.is_strong() => State::Strong,
                _ => State::Plain,
            };
            self.cells[at] = Cell {
                line: now.line,
                clock: now.clock,
                thread: now.thread() as u16,
                state,
                ..Cell::default()
            };
        } else if touch == Touch::Read {
            self.add_reader(now, at);
        }
        Ok(())
    }

    /// A write must come after all reads.
    #[inline]
    fn check_readers(&self, now: &Now<'_>, cell: &Cell) -> Result<(), Clash> {
        let check = |warp: usize, readers: &Readers| match now.unknown_of(warp, readers.lanes, readers.clock)
        {
            0 => Ok(()),
            lanes => {
                let thread = warp * LANES + lanes.trailing_zeros() as usize;
                Err(Clash::Race { reader: now.lane, thread, line: readers.line, by: "read" })
            }
        };
        if cell.epoch == self.epoch {
            let row = cell.row as usize * self.warps;
            (0..self.warps).try_for_each(|warp| check(warp, &self.rows[row + warp]))
        } else {
            check(cell.warp.into(), &cell.readers)
        }
    }

    #[inline]
    fn add_reader(&mut self, now: &Now<'_>, at: usize) {
        let new = Readers { lanes: now.readers, clock: now.clock, line: now.line };
        let cell = &mut self.cells[at];
        if cell.epoch == self.epoch {
            let row = &mut self.rows[cell.row as usize * self.warps + now.warp];
            *row = merged(now, now.warp, *row, new);
        } else if usize::from(cell.warp) == now.warp {
            cell.readers = merged(now, now.warp, cell.readers, new);
        } else if now.unknown_of(cell.warp.into(), cell.readers.lanes, cell.readers.clock) == 0 {
            (cell.warp, cell.readers) = (now.warp as u8, new);
        } else {
            (cell.row, cell.epoch) = ((self.rows.len() / self.warps) as u32, self.epoch);
            let start = self.rows.len();
            self.rows.resize(start + self.warps, Readers::default());
            self.rows[start + usize::from(cell.warp)] = cell.readers;
            self.rows[start + now.warp] = new;
        }
    }

    /// A product begins to read 16 bytes.
    pub fn lend(&mut self, now: &Now<'_>, fences: &Products, offset: u32) -> Result<(), (u64, Clash)> {
        for at in self.cells_of(offset.into(), 16) {
            let cell = self.cells[at];
            let (thread, line) = (usize::from(cell.thread), cell.line);
            let clash = match cell.state {
                State::Unwritten => Some(Clash::Unwritten),
                State::Copying => Some(Clash::Copying { thread, line }),
                State::Plain | State::Strong => match now.ignorant(thread, cell.clock) {
                    Some(reader) => Some(Clash::Race { reader, thread, line, by: "wrote" }),
                    None if !fences.sees(now, thread, cell.clock) => Some(Clash::Unfenced { thread, line }),
                    None => None,
                },
            };
            if let Some(clash) = clash {
                return Err((at as u64 * u64::from(self.grain), clash));
            }
        }
        self.products.resize(self.bytes.div_ceil(16) as usize, 0);
        self.products[offset as usize / 16] += 1;
        Ok(())
    }

    /// A product has read 16 bytes: `now` waited for it.
    pub fn give_back(&mut self, now: &Now<'_>, offset: u32) {
        self.products[offset as usize / 16] -= 1;
        for at in self.cells_of(offset.into(), 16) {
            self.add_reader(now, at);
        }
    }

    /// The bytes of a copy arrive: from now on they are what `now` wrote.
    pub fn arrive(&mut self, now: &Now<'_>, offset: u64, bytes: u32) {
        for at in self.cells_of(offset, bytes) {
            let cell = &mut self.cells[at];
            if cell.state == State::Copying && usize::from(cell.thread) == now.thread() {
                (cell.state, cell.clock) = (State::Plain, now.clock);
            }
        }
    }
}

/// The readers of one warp with one more. Those that the new one knows are known to all who will know it.
#[inline]
fn merged(now: &Now<'_>, warp: usize, old: Readers, new: Readers) -> Readers {
    if old.clock == new.clock {
        Readers { lanes: old.lanes | new.lanes, ..new }
    } else if now.unknown_of(warp, old.lanes, old.clock) == 0 {
        new
    } else {
        // Lanes apart, after a synchronisation of some of them: the earlier clock, on the side of silence.
        Readers { lanes: old.lanes | new.lanes, clock: old.clock.min(new.clock), line: new.line }
    }
}
