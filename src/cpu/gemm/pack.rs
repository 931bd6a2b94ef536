//! Copies strips of an operand into panels: `panel[k][lane]`, the order in which the tile kernel reads.
//!
//! Panels are read with stride one, so strides of the operand (often multiples of 4 KiB, which all fall into
//! the same few cache sets) cost once instead of once per tile.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::simd::{Storage, Vector};

/// Elements that a panel's slot has beyond its contents: vector stores may run over, and slots do not start in
/// the same cache set.
pub(super) const SLACK: usize = 16;

/// How many k ahead of its use a row is asked for.
const AHEAD: usize = 8;

/// Lanes (rows of A or columns of B) of an operand: element (lane, k) is at `start + lane * lane_stride + k * k_stride`.
#[derive(Clone, Copy)]
pub struct Strip<S> {
    pub start: *const S,
    pub lanes: usize,
    pub lane_stride: usize,
    pub k_stride: usize,
}

// SAFETY: a strip is a shared view of a slice that its maker borrows for as long as strips are used.
unsafe impl<S: Sync> Sync for Strip<S> {}
// SAFETY: as above.
unsafe impl<S: Sync> Send for Strip<S> {}

impl<S> Strip<S> {
    /// The lanes from `lane` on, from depth `k` on.
    ///
    /// # Safety
    /// That element exists, or is one past the last lane.
    #[inline(always)]
    pub(super) unsafe fn at(&self, lane: usize, k: usize) -> Self {
        // SAFETY: inside the operand, by the caller's promise.
        let start = unsafe { self.start.add(lane * self.lane_stride + k * self.k_stride) };
        Strip { start, lanes: self.lanes - lane, ..*self }
    }
}

/// Packs all lanes of `strip`, `depth` deep, into panels of `width` lanes, `slot` elements apart. Missing lanes of
/// the last panel become zero.
///
/// # Safety
/// The strip is readable for its lanes and `depth`; `to` is writable for `slot` elements a panel; `slot` is at least
/// `depth * width + SLACK`, or without the slack where `width` is whole vectors; the CPU has `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn pack<V, S>(strip: Strip<S>, width: usize, depth: usize, to: *mut V::Element, slot: usize)
where
    V: Vector,
    S: Storage<V> + Storage<V::Block>,
{
    let panels = strip.lanes.div_ceil(width);
    // SAFETY: every panel stays in its slot, every read inside the strip (see the functions).
    unsafe {
        if strip.lane_stride == 1 {
            return pack_neighbours::<V, S>(strip, width, depth, to, slot);
        }
        for panel in 0..panels {
            let strip = strip.at(panel * width, 0);
            let to = to.add(panel * slot);
            if strip.k_stride == 1 {
                pack_transposed::<V::Block, S>(strip, width, depth, to);
            } else {
                pack_scattered::<V, S>(strip, width, depth, to);
            }
        }
    }
}

/// Packs a panel of at most `N` vectors of lanes, without vectors that have no lane.
///
/// # Safety
/// As [`pack`], for one panel.
#[inline(always)]
pub(super) unsafe fn pack_panel<V, S, const N: usize>(
    strip: Strip<S>,
    depth: usize,
    to: *mut V::Element,
    slot: usize,
) where
    V: Vector,
    S: Storage<V> + Storage<V::Block>,
{
    // SAFETY: passed on to the caller. A width that is known when this is compiled packs faster.
    unsafe {
        match strip.lanes.next_multiple_of(V::LANES) {
            width if width < N * V::LANES => pack::<V, S>(strip, width, depth, to, slot),
            _ => pack::<V, S>(strip, N * V::LANES, depth, to, slot),
        }
    }
}

/// Lanes are neighbours in memory: whole runs of them are read, k by k.
#[inline(always)]
unsafe fn pack_neighbours<V, S>(strip: Strip<S>, width: usize, depth: usize, to: *mut V::Element, slot: usize)
where
    V: Vector,
    S: Storage<V> + Storage<V::Block>,
{
    let rounded = width.next_multiple_of(V::LANES);
    // Panels whose vector reads stay inside the row. Their stores run over into the next k, which is written next,
    // or into the slack.
    let whole = if strip.lanes >= rounded { (strip.lanes - rounded) / width + 1 } else { 0 };
    // SAFETY: see above for whole panels; the rest is element by element.
    unsafe {
        for k in 0..depth {
            let from = strip.start.add(k * strip.k_stride);
            for panel in 0..whole {
                let (from, to) = (from.add(panel * width), to.add(panel * slot + k * width));
                // Rows of the operand are far apart: no stream for the hardware to see.
                V::prefetch(from.wrapping_add(AHEAD * strip.k_stride));
                let mut lane = 0;
                while lane < width {
                    <S as Storage<V>>::load(from.add(lane)).store(to.add(lane));
                    lane += V::LANES;
                }
            }
        }
        for panel in whole..strip.lanes.div_ceil(width) {
            pack_scattered::<V, S>(strip.at(panel * width, 0), width, depth, to.add(panel * slot));
        }
    }
}

/// k is contiguous in memory: square blocks are transposed in registers.
#[inline(always)]
unsafe fn pack_transposed<V, S>(strip: Strip<S>, width: usize, depth: usize, to: *mut V::Element)
where
    V: Vector,
    S: Storage<V>,
{
    let step = V::LANES;
    let blocks = depth - depth % step;
    // SAFETY: a block reads `step` elements from k on, k + step <= depth, of lanes that exist (missing ones repeat
    // the last and are overwritten by zero); stores stay in the panel, or run over its end into the slack.
    unsafe {
        let mut next = 0;
        while next < width {
            let first = next;
            next += step;
            let wanted = step.min(width - first);
            let present = strip.lanes.saturating_sub(first).min(wanted);
            if present < wanted {
                let rest = Strip { lanes: strip.lanes.min(width), ..strip };
                pack_lanes::<V, S>(rest, first..first + wanted, width, depth, to);
                continue;
            }
            let mut k = 0;
            while k < blocks {
                let from = strip.start.add(first * strip.lane_stride + k);
                for i in 0..step {
                    V::prefetch(from.wrapping_add((step + i) * strip.lane_stride));
                }
                let mut block = [V::splat(V::Element::default()); 8];
                if present == step {
                    block = S::load_columns(from, strip.lane_stride);
                } else {
                    for i in 0..step {
                        block[i] = S::load(from.add(i.min(present - 1) * strip.lane_stride));
                    }
                    V::transpose(&mut block);
                }
                for i in 0..step {
                    let to = to.add((k + i) * width + first);
                    if wanted == step || width < step {
                        block[i].store(to);
                    } else {
                        let mut lanes = [V::Element::default(); 8];
                        block[i].store(lanes.as_mut_ptr());
                        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, wanted);
                    }
                }
                k += step;
            }
            let tail = Strip { lanes: first + wanted, ..strip }.at(0, blocks);
            pack_lanes::<V, S>(tail, first..first + wanted, width, depth - blocks, to.add(blocks * width));
        }
    }
}

/// Any strides.
#[inline(always)]
unsafe fn pack_scattered<V, S>(strip: Strip<S>, width: usize, depth: usize, to: *mut V::Element)
where
    V: Vector,
    S: Storage<V>,
{
    // SAFETY: passed on to the caller.
    unsafe { pack_lanes::<V, S>(strip, 0..width, width, depth, to) }
}

/// The lanes `which` of one panel, element by element; those beyond the strip's become zero.
#[inline(always)]
unsafe fn pack_lanes<V, S>(
    strip: Strip<S>,
    which: std::ops::Range<usize>,
    width: usize,
    depth: usize,
    to: *mut V::Element,
) where
    V: Vector,
    S: Storage<V>,
{
    for k in 0..depth {
        for lane in which.clone() {
            // SAFETY: lanes below `strip.lanes` exist, and the panel has `width` lanes for every k.
            unsafe {
                let value = if lane < strip.lanes {
                    strip.start.add(lane * strip.lane_stride + k * strip.k_stride).read().widen()
                } else {
                    V::Element::default()
                };
                to.add(k * width + lane).write(value);
            }
        }
    }
}
