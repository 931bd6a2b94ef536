//! Scratch memory that is kept between calls (fresh pages are slow), and how work is shared out.
#![allow(unsafe_code)]

use std::cell::RefCell;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    /// Scratch of this thread that is not in use. A stack, because a thread that waits for others may be handed
    /// another product meanwhile.
    static IDLE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `body` scratch for `elements` numbers, aligned to a cache line, with unspecified (but initialised) contents.
pub(super) fn with_scratch<T: bytemuck::Pod, R>(elements: usize, body: impl FnOnce(&mut [T]) -> R) -> R {
    let mut lines = IDLE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let count = (elements * size_of::<T>()).div_ceil(size_of::<Line>());
    if lines.len() < count {
        lines.resize(count, Line([0; 64]));
    }
    // SAFETY: the lines are initialised bytes, at least `elements * size_of::<T>()` of them, aligned to 64; T is
    // plain old data of a smaller alignment; the vector is neither moved nor touched while the slice lives.
    let slice = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<T>(), elements) };
    let result = body(slice);
    IDLE.with_borrow_mut(|idle| idle.push(lines));
    result
}

/// Run `index` of `parts` nearly equal runs of `total`.
pub(super) fn share(total: usize, parts: usize, index: usize) -> std::ops::Range<usize> {
    total * index / parts..total * (index + 1) / parts
}
