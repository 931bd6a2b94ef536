//! Work on several threads, by rayon: workers that find nothing to do look around for [`LINGER`], then park.
//!
//! Results never depend on the number of threads: tasks own disjoint outputs, and sums over rows are split at
//! fixed places and merged in order.
//!
//! **Hand-over.** A pass over a small model is hundreds of sections of some ten microseconds, and waking a parked thread
//! takes about as long as such a section (on a virtual machine longer). So [`join`] keeps both sides awake for a moment:
//! workers linger after a section for the next one, and the caller looks for pieces of work, rather than sleeps, while
//! the other half is being finished. The moment is short, because cores may be shared with other programs.

use rayon::Yield;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a thread without work looks for it before it parks.
const LINGER: Duration = Duration::from_micros(100);
/// Pauses between two looks.
const PAUSES: usize = 8;

/// Work below twice this many elementary operations is not worth sharing with a second thread: a core does some 30 in
/// a nanosecond, and handing over to a lingering thread takes a microsecond or two.
const WORTH: usize = 1 << 17;

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
    // Four tasks a thread even out cores that are shared with other programs; a few left over would keep one thread
    // busy alone.
    let threads = threads();
    match units.min(total / WORTH).min(4 * threads) {
        count if count > threads => count / threads * threads,
        count => count.max(1),
    }
}

thread_local! {
    /// Sections and moments of lingering that this thread is inside of.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
    /// How many workers linger for sections that this thread begins.
    static LINGERING: Arc<AtomicUsize> = Arc::new(AtomicUsize::new(0));
}

/// Counts a section of this thread until it is dropped.
struct Inside;

impl Inside {
    fn enter() -> Inside {
        INSIDE.set(INSIDE.get() + 1);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(INSIDE.get() - 1);
    }
}

/// Runs both, possibly in parallel. The second may be taken by another worker, or not start before the first has ended.
pub fn join<A: Send, B: Send>(first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B + Send) -> (A, B) {
    const WAITING: usize = 0;
    const STARTED: usize = 1;
    const DONE: usize = 2;
    if INSIDE.get() == 0 {
        invite();
    }
    let _inside = Inside::enter();
    let state = AtomicUsize::new(WAITING);
    rayon::join(
        || {
            let result = first();
            look_for_work(|| state.load(Ordering::Acquire) != STARTED);
            result
        },
        || {
            state.store(STARTED, Ordering::Release);
            let result = second();
            state.store(DONE, Ordering::Release);
            result
        },
    )
}

/// Lets the other workers linger, unless some do. One that is inside a section of its own stays there.
fn invite() {
    let others = threads() - 1;
    let Some(here) = rayon::current_thread_index().filter(|_| others > 0) else { return };
    LINGERING.with(|lingering| {
        if lingering.load(Ordering::Relaxed) > 0 {
            return;
        }
        lingering.store(others, Ordering::Relaxed);
        let lingering = lingering.clone();
        rayon::spawn_broadcast(move |at| {
            if at.index() == here {
                return;
            }
            if INSIDE.get() == 0 {
                let _inside = Inside::enter();
                look_for_work(|| false);
            }
            lingering.fetch_sub(1, Ordering::Relaxed);
        });
    });
}

/// Does what work there is until `enough()`, or until none was found for [`LINGER`].
fn look_for_work(enough: impl Fn() -> bool) {
    let mut idle: Option<Instant> = None;
    while !enough() {
        if let Some(Yield::Executed) = rayon::yield_now() {
            idle = None;
            continue;
        }
        match idle {
            None => idle = Some(Instant::now()),
            Some(since) if since.elapsed() > LINGER => return,
            Some(_) => (0..PAUSES).for_each(|_| std::hint::spin_loop()),
        }
    }
}

/// Calls `work(task)` once for every task below `count`, on all workers; each takes the next task when it is free.
pub fn for_each_task(count: usize, work: impl Fn(usize) + Sync) {
    let workers = threads().min(count);
    if workers <= 1 {
        return (0..count).for_each(work);
    }
    let next = AtomicUsize::new(0);
    let take = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= count {
                break;
            }
            work(task);
        }
    };
    on_workers(workers, &take);
}

fn on_workers(workers: usize, take: &(impl Fn() + Sync)) {
    match workers {
        1 => take(),
        _ => {
            let half = workers / 2;
            join(|| on_workers(workers - half, take), || on_workers(half, take));
        }
    }
}

/// Calls `f(first_row, rows)` on disjoint runs of whole rows of `out` (`cols` elements each; the last row may be
/// shorter), possibly in parallel.
/// `cost` is the work of one row in elementary operations.
pub fn rows<T: Send>(out: &mut [T], cols: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if out.is_empty() || cols == 0 {
        return;
    }
    elements(Rows { data: out, cols }, cost, |first, rows: Rows<T>| f(first, rows.data));
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
    let both = (Rows { data: a, cols: a_cols }, Rows { data: b, cols: b_cols });
    elements(both, cost, |first, (a, b): (Rows<A>, Rows<B>)| f(first, a.data, b.data));
}

/// Whole rows of a slice as the elements of a [`Cut`]; the last may be shorter.
#[derive(Debug)]
pub struct Rows<'a, T> {
    /// The rows' elements.
    pub data: &'a mut [T],
    /// Elements of a row.
    pub cols: usize,
}

impl<T: Send> Cut for Rows<'_, T> {
    fn count(&self) -> usize {
        self.data.len().div_ceil(self.cols)
    }
    fn cut(self, at: usize) -> (Self, Self) {
        let (left, right) = self.data.split_at_mut(at * self.cols);
        (Rows { data: left, cols: self.cols }, Rows { data: right, cols: self.cols })
    }
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
    join(|| halve(left, first, each, f), || halve(right, first + at, each, f));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_and_every_row_is_visited_once_on_any_number_of_threads() {
        for workers in 1..=5 {
            with_threads(workers, || {
                for count in [0, 1, 2, 7, 100] {
                    let visits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    for_each_task(count, |task| {
                        visits[task].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(visits.iter().all(|visits| visits.load(Ordering::Relaxed) == 1));
                    let (mut long, mut short) = (vec![0; 3 * count], vec![0; count]);
                    rows2((&mut long, 3), (&mut short, 1), WORTH, |first, long, short| {
                        for (row, (long, short)) in (first..).zip(long.chunks_mut(3).zip(short)) {
                            long.iter_mut().for_each(|value| *value += row + 1);
                            *short += row + 1;
                        }
                    });
                    assert!(short.iter().zip(1..).all(|(&value, row)| value == row));
                    assert!(long.chunks(3).zip(1..).all(|(values, row)| values == [row; 3]));
                    let mut ragged = vec![0; 3 * count + 2];
                    rows(&mut ragged, 3, WORTH, |first, part| {
                        part.chunks_mut(3).zip(first..).for_each(|(row, index)| row.fill(index));
                    });
                    assert!(ragged.iter().enumerate().all(|(at, &row)| row == at / 3));
                }
            });
        }
    }

    #[test]
    fn sections_nest_and_panics_pass() {
        with_threads(3, || {
            let sums: Vec<AtomicUsize> = (0..20).map(|_| AtomicUsize::new(0)).collect();
            for_each_task(20, |outer| {
                for_each_task(10, |inner| {
                    sums[outer].fetch_add(inner, Ordering::Relaxed);
                });
            });
            assert!(sums.iter().all(|sum| sum.load(Ordering::Relaxed) == 45));
            let failing = || for_each_task(8, |task| assert!(task != 5, "task five"));
            assert!(std::panic::catch_unwind(failing).is_err());
            assert_eq!(INSIDE.get(), 0);
            assert_eq!(join(|| 1, || 2), (1, 2));
        });
    }
}
