//! Work on several threads, by rayon: waiting workers park instead of spinning.
//!
//! Results never depend on the number of threads: tasks own disjoint outputs, and sums over rows are split at
//! fixed places and merged in order.

use rayon::prelude::*;

/// Work below twice this many elementary operations is not worth waking a second thread for: a core does some 30 in
/// a nanosecond, and a parked thread takes some ten microseconds to come. A decode step of a small model is hundreds
/// of sections shorter than that.
const WORTH: usize = 1 << 18;

/// Runs `body` with `threads` workers (0 = one per core). Everything below uses them.
/// Running inside the pool also spares each parallel section a hand-over between threads.
pub fn with_threads<R: Send>(threads: usize, body: impl FnOnce() -> R + Send) -> R {
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build() {
        Ok(pool) => pool.install(body),
        // The system refuses more threads: the caller's own is enough, and the bits are the same.
        Err(_) => body(),
    }
}

/// Number of workers.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// How many tasks `units` of work costing `cost` operations each should be cut into (at least 1).
pub fn task_count(units: usize, cost: usize) -> usize {
    let total = units.saturating_mul(cost.max(1));
    // Four tasks a thread even out cores that are shared with other programs.
    units.min(total / WORTH).min(4 * threads()).max(1)
}

/// Calls `f(first_row, rows)` on disjoint runs of whole rows of `out` (`cols` elements each; the last row may be
/// shorter), possibly in parallel.
/// `cost` is the work of one row in elementary operations.
pub fn rows<T: Send>(out: &mut [T], cols: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if out.is_empty() || cols == 0 {
        return;
    }
    let count = out.len().div_ceil(cols);
    let tasks = task_count(count, cost);
    if tasks == 1 || threads() == 1 {
        return f(0, out);
    }
    let each = count.div_ceil(tasks);
    out.par_chunks_mut(each * cols).enumerate().for_each(|(task, chunk)| f(task * each, chunk));
}

/// Like [`rows`] with two outputs of the same number of rows.
pub fn rows2<A: Send, B: Send>(
    (a, a_cols): (&mut [A], usize),
    (b, b_cols): (&mut [B], usize),
    cost: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    if a.is_empty() || a_cols == 0 || b_cols == 0 {
        return;
    }
    let count = a.len() / a_cols;
    let tasks = task_count(count, cost);
    if tasks == 1 || threads() == 1 {
        return f(0, a, b);
    }
    let each = count.div_ceil(tasks);
    a.par_chunks_mut(each * a_cols)
        .zip(b.par_chunks_mut(each * b_cols))
        .enumerate()
        .for_each(|(task, (a, b))| f(task * each, a, b));
}

/// Slices of one length that can be cut at the same place: one, or tuples of them.
pub trait Cut: Send + Sized {
    /// Number of elements of each slice.
    fn count(&self) -> usize;
    /// The elements before `at`, and the rest.
    fn cut(self, at: usize) -> (Self, Self);
}

impl<T: Send> Cut for &mut [T] {
    fn count(&self) -> usize {
        self.len()
    }
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }
}

impl<A: Cut, B: Cut> Cut for (A, B) {
    fn count(&self) -> usize {
        self.0.count()
    }
    fn cut(self, at: usize) -> (Self, Self) {
        let ((a, c), (b, d)) = (self.0.cut(at), self.1.cut(at));
        ((a, b), (c, d))
    }
}

/// Calls `f(first, part)` on disjoint parts of several slices at once, possibly in parallel; elements are
/// independent of each other. `cost` is the work of one element.
pub fn elements<S: Cut>(slices: S, cost: usize, f: impl Fn(usize, S) + Sync) {
    let count = slices.count();
    let tasks = if threads() == 1 { 1 } else { task_count(count, cost) };
    halve(slices, 0, count.div_ceil(tasks).max(1), &f);
}

fn halve<S: Cut>(slices: S, first: usize, each: usize, f: &(impl Fn(usize, S) + Sync)) {
    let count = slices.count();
    if count <= each {
        return f(first, slices);
    }
    let at = count.div_ceil(each) / 2 * each;
    let (left, right) = slices.cut(at);
    rayon::join(|| halve(left, first, each, f), || halve(right, first + at, each, f));
}
