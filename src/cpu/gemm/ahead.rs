//! What a tile asks the caches for while its k runs: lines that the tiles and panels after it will need.
//!
//! The hardware reads ahead along a run of lines, and neither a tile of C nor the source of a panel is one.
#![allow(unsafe_code)]

use super::simd::Vector;
use crate::base::pages::CACHE_LINE;

/// Runs of memory that will be read soon, asked for line by line.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    run: *const u8,
    /// Bytes of this run that were asked for.
    asked: usize,
    /// Bytes of each run, and from one run to the next.
    bytes: usize,
    stride: usize,
    /// Runs after this one.
    left: usize,
}

impl Lines {
    /// No lines.
    pub(super) const NONE: Lines = Lines { run: std::ptr::null(), asked: 0, bytes: 0, stride: 0, left: 0 };

    /// `runs` runs of `elements` numbers, which begin `stride` numbers apart.
    pub(super) fn new<S>(start: *const S, elements: usize, stride: usize, runs: usize) -> Lines {
        let size = size_of::<S>();
        Lines {
            run: start.cast(),
            asked: 0,
            bytes: elements * size,
            stride: stride * size,
            left: runs.saturating_sub(1),
        }
    }

    /// About how many lines these are.
    pub(super) fn count(&self) -> usize {
        (self.left + 1) * self.bytes.div_ceil(CACHE_LINE)
    }

    /// A line that was not asked for yet, or once more the last.
    #[inline(always)]
    fn next(&mut self) -> *const u8 {
        let line = self.run.wrapping_add(self.asked);
        if self.asked + CACHE_LINE < self.bytes {
            self.asked += CACHE_LINE;
        } else if self.left > 0 {
            self.left -= 1;
            self.asked = 0;
            self.run = self.run.wrapping_add(self.stride);
        }
        line
    }
}

/// What a tile asks for.
pub(super) struct Ahead<'a, T> {
    /// The next tile of C, which will be written; null for none.
    pub c: *const T,
    /// What will be packed next, and how many of its lines a tile asks for with each line of C.
    pub source: &'a mut Lines,
    pub share: usize,
}

impl<'a, T> Ahead<'a, T> {
    /// Asks for nothing.
    pub(super) fn nothing(source: &'a mut Lines) -> Self {
        Ahead { c: std::ptr::null(), source, share: 0 }
    }

    /// Asks for a line of C at `c`, and for lines of the source.
    ///
    /// # Safety
    /// The CPU has `V`'s instructions.
    #[inline(always)]
    pub(super) unsafe fn ask<V: Vector>(&mut self, c: *const T) {
        // SAFETY: by the caller's promise; asking for a line touches no memory that a program could see.
        unsafe {
            V::prefetch_write(c);
            for _ in 0..self.share {
                V::prefetch_far(self.source.next());
            }
        }
    }
}
