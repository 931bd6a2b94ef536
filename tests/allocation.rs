//! The test binary's allocator: counts, for each thread, the bytes it holds and the most it ever held.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // Constant and without a destructor, so that reading them never allocates.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    HELD.with(|held| {
        held.set(held.get() + change);
        MOST.with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only this thread's cells.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new exist together for a moment.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as above, and `pointer` comes from this allocator, so from the system's.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `body` and returns its result with the most bytes this thread held at once beyond those it held before.
/// Work that `body` hands to other threads is not counted.
pub fn most_held<R>(body: impl FnOnce() -> R) -> (R, usize) {
    let before = HELD.with(Cell::get);
    MOST.with(|most| most.set(before));
    let result = body();
    let most = MOST.with(Cell::get);
    (result, (most - before).max(0) as usize)
}

#[test]
fn allocations_are_counted() {
    let (length, most) = most_held(|| vec![1u8; 1 << 20].len());
    assert_eq!(length, 1 << 20);
    assert!((1 << 20..(1 << 20) + 4096).contains(&most), "{most}");
    let (_, most) = most_held(|| ());
    assert_eq!(most, 0);
}
