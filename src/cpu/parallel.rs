//! Work on several threads: sections of tasks, done by a [`team`](team) of threads that stay awake between them.
//!
//! Results never depend on the number of threads: tasks own disjoint outputs, and sums over rows are split at
//! fixed places and merged in order. A section that a task begins runs on that task's thread alone.

mod team;

use std::cell::RefCell;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use team::{Inside, Team, is_inside};

/// Work below twice this many elementary operations is not worth sharing with a second thread: a core does some 30 in
/// a nanosecond, and an empty section with a watching helper takes just under a microsecond.
const WORTH: usize = 1 << 14;

/// Most threads that a command line may ask for: more than machines have cores.
pub const MOST: u64 = 1024;

thread_local! {
    /// The team of sections that this thread begins; `None`: everyone's.
    static TEAM: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
}

/// The threads of the system's cores, for callers outside of [`with_threads`].
fn everyone() -> &'static Arc<Team> {
    static EVERYONE: OnceLock<Arc<Team>> = OnceLock::new();
    EVERYONE.get_or_init(|| Arc::new(Team::new(cores())))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// Calls `body` with this thread's team.
fn with_team<R>(body: impl FnOnce(&Team) -> R) -> R {
    let team = TEAM.with_borrow(|team| team.clone());
    body(team.as_ref().unwrap_or_else(|| everyone()))
}

/// Runs `body` with `threads` threads, its own among them (0 = one per core). Everything below uses them.
pub fn with_threads<R>(threads: usize, body: impl FnOnce() -> R) -> R {
    struct Former(Option<Arc<Team>>);
    impl Drop for Former {
        fn drop(&mut self) {
            // Dropped here, not while TEAM is borrowed: this joins the threads.
            drop(TEAM.replace(self.0.take()));
        }
    }
    let members = if threads == 0 { cores() } else { threads };
    let _former = Former(TEAM.replace(Some(Arc::new(Team::new(members)))));
    let _inside = Inside::set(false);
    body()
}

/// Number of threads that a section begun here may use.
pub fn threads() -> usize {
    match is_inside() {
        true => 1,
        false => TEAM.with_borrow(|team| team.as_ref().unwrap_or_else(|| everyone()).members()),
    }
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

/// Calls `work(task)` once for every task below `count`, on all threads; each takes the next task when it is free. On
/// this thread alone inside of a task, and where another thread's section has the team.
pub fn for_each_task(count: usize, work: impl Fn(usize) + Sync) {
    let shared = count > 1
        && !is_inside()
        && u32::try_from(count)
            .is_ok_and(|count| with_team(|team| team.members() > 1 && team.run(count, &work)));
    if !shared {
        (0..count).for_each(work);
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

/// Implements [`Cut`] for a struct of slices of whole rows, a number type its parameter: one element a row in the slice
/// behind `by`; in each other slice as many as its length says, none where it is empty. A field behind the semicolon is
/// the same for all rows.
macro_rules! cut_by_rows {
    ($name:ident by $rows:ident: $($slice:ident),+ $(; $same:ident)?) => {
        impl<T: $crate::cpu::float::Float> $crate::cpu::parallel::Cut for $name<'_, T> {
            fn count(&self) -> usize {
                self.$rows.len()
            }
            fn cut(self, at: usize) -> (Self, Self) {
                let rows = self.$rows.len().max(1);
                $(
                    let width = self.$slice.len() / rows;
                    let $slice = self.$slice.split_at_mut(at * width);
                )+
                (
                    $name { $($slice: $slice.0,)+ $($same: self.$same)? },
                    $name { $($slice: $slice.1,)+ $($same: self.$same)? },
                )
            }
        }
    };
}
pub(super) use cut_by_rows;

/// Calls `f(first, part)` on disjoint parts of several slices at once, possibly in parallel; elements are
/// independent of each other. `cost` is the work of one element.
pub fn elements<S: Cut>(slices: S, cost: usize, f: impl Fn(usize, S) + Sync) {
    let count = slices.count();
    let tasks = if threads() == 1 { 1 } else { task_count(count, cost) };
    if tasks <= 1 {
        return f(0, slices);
    }
    let each = count.div_ceil(tasks);
    let mut parts = Vec::with_capacity(tasks);
    let (mut rest, mut first) = (slices, 0);
    while count - first > each {
        let (part, others) = rest.cut(each);
        parts.push(Mutex::new(Some((first, part))));
        (rest, first) = (others, first + each);
    }
    parts.push(Mutex::new(Some((first, rest))));
    for_each_task(parts.len(), |task| {
        let part = parts[task].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((first, part)) = part {
            f(first, part);
        }
    });
}

#[cfg(test)]
mod tests;
