//! Working memory of a thread, kept between calls: after the first call of a size nothing is allocated.

use crate::cpu::float::Float;
use std::cell::Cell;

/// One cache line, so that vectors never straddle two.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u64; 8]);

thread_local! {
    static LINES: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Calls `body` with one slice for each of `lengths`, each at the start of a cache line. Their contents are
/// whatever was left there. Nested calls are allowed; they work on memory of their own.
pub fn with<T: Float, const N: usize, R>(lengths: [usize; N], body: impl FnOnce([&mut [T]; N]) -> R) -> R {
    let per_line = size_of::<Line>() / size_of::<T>();
    let mut lines = LINES.take();
    let needed: usize = lengths.iter().map(|length| length.div_ceil(per_line)).sum();
    if lines.len() < needed {
        lines.resize(needed, Line([0; 8]));
    }
    let mut rest: &mut [T] = bytemuck::cast_slice_mut(&mut lines);
    let parts = lengths.map(|length| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(length.next_multiple_of(per_line));
        rest = after;
        &mut part[..length]
    });
    let result = body(parts);
    // A nested call left its memory here; the larger of the two is kept.
    let nested = LINES.take();
    LINES.set(if nested.len() > lines.len() { nested } else { lines });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_lengths_and_memory_is_kept() {
        let address = with([3, 17], |[a, b]: [&mut [f32]; 2]| {
            assert_eq!((a.len(), b.len()), (3, 17));
            assert_eq!((a.as_ptr() as usize % 64, b.as_ptr() as usize % 64), (0, 0));
            a.fill(1.0);
            with([5], |[c]: [&mut [f64]; 1]| c.fill(2.0));
            assert_eq!(a, [1.0; 3]);
            a.as_ptr() as usize
        });
        assert_eq!(address, with([3], |[a]: [&mut [f32]; 1]| a.as_ptr() as usize));
    }
}
