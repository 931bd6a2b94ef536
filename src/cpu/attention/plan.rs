//! Which query reads which slots: the segment's positions in the order in which they are worked on.

use super::BLOCK;
use crate::base::{Error, Result};
use std::cell::Cell;

/// The index data of a packed segment, and where each row's keys lie.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// Row of each position.
    pub rows: &'a [u32],
    /// Absolute position of each position.
    pub positions: &'a [u32],
    /// First slot of each row's shared prefix.
    pub prefix_slot: &'a [u32],
    /// Positions of each row's shared prefix.
    pub prefix_len: &'a [u32],
    /// Slot of each row's position `prefix_len`.
    pub own_slot: &'a [u32],
}

/// One position of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Rows of one number may share slots: the block where their position 0 lies.
    pub family: u32,
    /// Row.
    pub row: u32,
    /// Absolute position.
    pub position: u32,
    /// Place in the packed segment.
    pub place: u32,
    /// Positions of the shared prefix.
    pub prefix_len: u32,
    /// Block of slots that holds the prefix's block 0.
    pub prefix_block: u32,
    /// Block of slots that holds the row's own part of position block b, less b.
    pub own_block: i32,
}

/// Lanes `from..to` of one position block, and the block of slots that holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Block of slots.
    pub block: usize,
    /// First lane.
    pub from: usize,
    /// One past the last lane.
    pub to: usize,
}

impl Entry {
    /// Where the first `count` lanes of position block `block` lie: in the prefix, in the row's own slots, or
    /// first the one, then the other. Spans may be empty.
    #[inline(always)]
    pub fn spans(&self, block: usize, count: usize) -> [Span; 2] {
        let cut = (self.prefix_len as usize).saturating_sub(block * BLOCK).min(count);
        [
            Span { block: self.prefix_block as usize + block, from: 0, to: cut },
            Span { block: (i64::from(self.own_block) + block as i64) as usize, from: cut, to: count },
        ]
    }

    /// Block of slots and lane that hold this position itself.
    #[inline(always)]
    pub fn slot(&self) -> (usize, usize) {
        let (block, lane) = (self.position as usize / BLOCK, self.position as usize % BLOCK);
        ((i64::from(self.own_block) + block as i64) as usize, lane)
    }

    /// Keys of position block `block` that this query sees.
    #[inline(always)]
    pub fn visible(&self, block: usize) -> usize {
        (self.position as usize + 1).saturating_sub(block * BLOCK).min(BLOCK)
    }

    /// Whether the first `blocks` position blocks of both entries are the same slots.
    #[inline(always)]
    pub fn shares(&self, other: &Entry, blocks: usize) -> bool {
        self.row == other.row
            || self.family == other.family
                && self.prefix_len == other.prefix_len
                && blocks * BLOCK <= self.prefix_len as usize
    }
}

/// The positions of a segment by family, row and position.
#[derive(Debug, Default)]
pub struct Plan {
    /// In working order.
    pub entries: Vec<Entry>,
    /// For each place of the packed segment, its place in `entries`.
    pub order: Vec<u32>,
}

thread_local! {
    static PLAN: Cell<Plan> = const { Cell::new(Plan { entries: Vec::new(), order: Vec::new() }) };
}

impl Plan {
    /// Calls `body` with the plan of `segment` over a cache of `slots` slots. Its memory is kept for the next call.
    ///
    /// # Errors
    /// A row or slot out of range, slots that break the alignment rule, a position that belongs to the shared
    /// prefix, or a position given twice.
    pub fn with<R>(segment: &Segment, slots: usize, body: impl FnOnce(&Plan) -> R) -> Result<R> {
        let mut plan = PLAN.take();
        let result = plan.fill(segment, slots).map(|()| body(&plan));
        PLAN.set(plan);
        result
    }

    fn fill(&mut self, segment: &Segment, slots: usize) -> Result<()> {
        self.entries.clear();
        for (place, (&row, &position)) in segment.rows.iter().zip(segment.positions).enumerate() {
            self.entries.push(entry(segment, place, row, position, slots)?);
        }
        self.entries.sort_unstable();
        for pair in self.entries.windows(2) {
            if (pair[0].row, pair[0].position) == (pair[1].row, pair[1].position) {
                return Err(Error::input(
                    "attention positions",
                    format!("row {} has position {} twice in one segment", pair[0].row, pair[0].position),
                    "pack each position of a row once",
                ));
            }
        }
        self.order.clear();
        self.order.resize(self.entries.len(), 0);
        for (index, entry) in self.entries.iter().enumerate() {
            self.order[entry.place as usize] = index as u32;
        }
        Ok(())
    }
}

fn entry(segment: &Segment, place: usize, row: u32, position: u32, slots: usize) -> Result<Entry> {
    let known = segment.own_slot.len();
    let index = row as usize;
    if index >= known {
        return Err(Error::shape(
            format!("attention row of packed position {place}"),
            row,
            format!("below {known}, the rows of the cache layout"),
        ));
    }
    let (prefix_slot, prefix_len) = (segment.prefix_slot[index] as usize, segment.prefix_len[index] as usize);
    let (own_slot, position) = (segment.own_slot[index] as usize, position as usize);
    let broken = |problem: String| {
        Error::input(
            format!("attention cache layout of row {row}"),
            problem,
            "lay rows out with CacheSpan::after, which keeps the alignment",
        )
    };
    if own_slot % BLOCK != prefix_len % BLOCK || (prefix_len > 0 && !prefix_slot.is_multiple_of(BLOCK)) {
        return Err(broken(format!(
            "prefix slot {prefix_slot}, prefix length {prefix_len}, own slot {own_slot}; expected prefix slot a \
             multiple of {BLOCK} and own slot equal to the prefix length modulo {BLOCK}"
        )));
    }
    if position < prefix_len {
        return Err(broken(format!(
            "position {position} is inside the shared prefix of {prefix_len} positions"
        )));
    }
    let last = own_slot + (position - prefix_len);
    if last >= slots || (prefix_len > 0 && prefix_slot + prefix_len > slots) {
        return Err(broken(format!(
            "position {position} needs slot {last}, the prefix slots {prefix_slot}..{}; the cache has {slots}",
            prefix_slot + prefix_len
        )));
    }
    let (prefix_block, own_block) = (prefix_slot / BLOCK, own_slot / BLOCK);
    Ok(Entry {
        family: if prefix_len > 0 { prefix_block } else { own_block } as u32,
        row,
        position: position as u32,
        place: place as u32,
        prefix_len: prefix_len as u32,
        prefix_block: prefix_block as u32,
        own_block: own_block as i32 - (prefix_len / BLOCK) as i32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_follow_the_prefix_then_the_own_slots() {
        let segment = Segment {
            rows: &[1, 1, 0],
            positions: &[130, 70, 5],
            prefix_slot: &[0, 64],
            prefix_len: &[0, 70],
            own_slot: &[256, 518],
        };
        Plan::with(&segment, 640, |plan| {
            assert_eq!(plan.entries.iter().map(|e| e.place).collect::<Vec<_>>(), [1, 0, 2]);
            assert_eq!(plan.order, [1, 0, 2]);
            let entry = plan.entries[1];
            assert_eq!(entry.spans(0, 64)[0], Span { block: 1, from: 0, to: 64 });
            assert_eq!(entry.spans(0, 64)[1].from, 64);
            assert_eq!(
                entry.spans(1, 64),
                [Span { block: 2, from: 0, to: 6 }, Span { block: 8, from: 6, to: 64 }]
            );
            assert_eq!(entry.spans(2, 3)[1], Span { block: 9, from: 0, to: 3 });
            assert_eq!(entry.slot(), (9, 2));
            assert_eq!((entry.visible(1), entry.visible(2), entry.visible(3)), (64, 3, 0));
            assert!(entry.shares(&plan.entries[0], 3) && !entry.shares(&plan.entries[2], 1));
        })
        .unwrap();
    }
}
