//! Scratch memory that is kept between calls (fresh pages are slow), and how work is shared out.

use crate::base::pages::PageVec;
use std::cell::RefCell;

/// Bytes that scratch grows by, at least.
const GRAIN: usize = 4096;

thread_local! {
    /// Scratch of this thread that is not in use. A stack, because a section's tasks borrow scratch of their
    /// own while the product that began it holds some.
    static IDLE: RefCell<Vec<PageVec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `body` scratch for `elements` numbers, aligned to a cache line, with unspecified (but initialised) contents.
pub(super) fn with_scratch<T: bytemuck::Pod, R>(elements: usize, body: impl FnOnce(&mut [T]) -> R) -> R {
    let mut memory = IDLE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let bytes = elements * size_of::<T>();
    // No memory would have no alignment.
    if memory.len() < bytes.max(1) {
        memory = PageVec::zeroed(bytes.max(1).next_multiple_of(GRAIN));
    }
    let result = body(bytemuck::cast_slice_mut(&mut memory[..bytes]));
    IDLE.with_borrow_mut(|idle| idle.push(memory));
    result
}

/// Run `index` of `parts` nearly equal runs of `total`.
pub(super) fn share(total: usize, parts: usize, index: usize) -> std::ops::Range<usize> {
    total * index / parts..total * (index + 1) / parts
}
