//! Threads that work on one section of tasks after another.
//!
//! A pass over a small model is hundreds of sections of some ten microseconds; waking a parked thread takes about as
//! long as such a section (on a virtual machine longer), and a queue of jobs costs microseconds at each hand-over. So a
//! section is one word that helpers watch, the door:
//!
//! ```text
//! caller   writes the section, opens the door, works, closes the door, waits until nobody is inside
//! helper   sees the door open, enters (one exchange of the same word), works, leaves
//!          a door that stays closed for LINGER: parks; an opening caller wakes who is parked, and does not wait for them
//! ```
//!
//! Closing and entering change one word, so a helper is inside or kept out, never between. Tasks are shared out before:
//! member i begins with share i and then takes from the ends of others' shares. As a member's share is the same in every
//! section of a kind, the weights that it reads and the rows that it wrote may still be in its own core's cache.
//!
//! A panic in a task ends its member's part of the section; the other members do what is left, and the caller panics when
//! nobody is inside.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a helper without work watches the door before it parks. It is short, because cores may be shared with other
/// programs.
const LINGER: Duration = Duration::from_micros(100);
/// Looks at the door between two looks at the clock.
const LOOKS: u32 = 32;
/// Looks of a waiting caller before it lets the system run somebody else: a helper may have been stopped inside.
const PATIENCE: u32 = 20_000;

/// The door's bits: open, a number of the section, how many helpers are inside.
const OPEN: u64 = 1 << 63;
const SECTION: u64 = 1 << 32;
const INSIDE: u64 = SECTION - 1;

/// What a section does for each task.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// Lines of memory that neighbours do not share (two, as lines are fetched in pairs).
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    door: Apart<AtomicU64>,
    /// `first << 32 | end` of the tasks left of each member's share; member 0 is the caller.
    shares: Box<[Apart<AtomicU64>]>,
    /// Which helpers are parked, or about to.
    asleep: Box<[Apart<AtomicBool>]>,
    /// What those inside work on; none while the door is closed and nobody is inside.
    work: UnsafeCell<Option<&'static Work<'static>>>,
    /// A caller has the section.
    taken: AtomicBool,
    /// A helper has panicked in this section: its payload is there.
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    ended: AtomicBool,
}

// SAFETY: `work` is written only by the caller that has taken the section, while the door is closed and nobody is
// inside, and read only by helpers that are inside; the door's word orders both.
unsafe impl Sync for Shared {}

thread_local! {
    /// Whether this thread is inside of a section.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread works on a section's task: what that begins runs on this thread alone.
pub(super) fn is_inside() -> bool {
    WORKING.get()
}

/// Sets whether this thread is inside until it is dropped.
pub(super) struct Inside(bool);

impl Inside {
    pub(super) fn set(inside: bool) -> Inside {
        Inside(WORKING.replace(inside))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        WORKING.set(self.0);
    }
}

/// A caller and its helpers.
pub(super) struct Team {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts `members - 1` helpers; fewer where the system refuses more threads (the bits are the same).
    pub(super) fn new(members: usize) -> Team {
        let members = members.max(1);
        let shared = Arc::new(Shared {
            door: Apart(AtomicU64::new(0)),
            shares: (0..members).map(|_| Apart(AtomicU64::new(0))).collect(),
            asleep: (1..members).map(|_| Apart(AtomicBool::new(false))).collect(),
            work: UnsafeCell::new(None),
            taken: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
            ended: AtomicBool::new(false),
        });
        let start = |member: usize| {
            let shared = shared.clone();
            let name = format!("worker {member}");
            std::thread::Builder::new().name(name).spawn(move || shared.serve(member)).ok()
        };
        let handles = (1..members).map_while(start).collect();
        Team { shared, handles }
    }

    /// Threads that work on a section.
    pub(super) fn members(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `work(task)` once for every task below `count` and returns when all are done. False, and nothing done, where
    /// another thread's section is under way.
    ///
    /// # Panics
    /// When a task does, after all members have left: with the caller's own panic, or else with a helper's.
    pub(super) fn run(&self, count: u32, work: &Work) -> bool {
        let shared = &*self.shared;
        if shared.taken.swap(true, Ordering::Acquire) {
            return false;
        }
        let members = self.members() as u64;
        for (member, share) in shared.shares.iter().take(self.members()).enumerate() {
            let at = |member: u64| u64::from(count) * member / members;
            let share_of = at(member as u64)..at(member as u64 + 1);
            share.0.store(share_of.start << 32 | share_of.end, Ordering::Relaxed);
        }
        // SAFETY: only the lifetime is changed. From here to `close` nothing panics but the caller's tasks, which are caught;
        // `close` returns when no helper is inside and none can enter. The door is closed and nobody is inside, so
        // nobody reads `work`.
        unsafe { *shared.work.get() = Some(std::mem::transmute::<&Work, &'static Work<'static>>(work)) };
        let section = shared.door.0.load(Ordering::Relaxed).wrapping_add(SECTION) & !OPEN;
        // A store, as nobody enters a closed door: what it replaces does not change any more.
        shared.door.0.store(section | OPEN, Ordering::SeqCst);
        let wanted = (count as usize).saturating_sub(1);
        for (asleep, handle) in shared.asleep.iter().zip(&self.handles).take(wanted) {
            // Either this sees a helper that is about to park, or that helper's last look sees the open door (both are
            // a store before a load, in the one order of sequentially consistent accesses).
            if asleep.0.load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.drain(0, self.members(), work)));
        let helpers = shared.close();
        if let Some(payload) = own.err().or(helpers) {
            resume_unwind(payload);
        }
        true
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A helper's panics were handed to callers.
            let _ = handle.join();
        }
    }
}

/// Leaves the section when dropped, however that comes about.
struct Leaving<'a>(&'a AtomicU64);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Shared {
    /// Closes the door, waits for those inside, and gives the section free: a helper's panic, if there was one.
    fn close(&self) -> Option<Box<dyn Any + Send>> {
        let mut inside = self.door.0.fetch_and(!OPEN, Ordering::AcqRel) & INSIDE;
        let mut looks = 0_u32;
        while inside != 0 {
            looks = looks.saturating_add(1);
            if looks < PATIENCE {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
            inside = self.door.0.load(Ordering::Acquire) & INSIDE;
        }
        // SAFETY: the door is closed and nobody is inside; this thread has the section.
        unsafe { *self.work.get() = None };
        let panic = match self.panicked.swap(false, Ordering::Relaxed) {
            true => self.panic.lock().unwrap_or_else(PoisonError::into_inner).take(),
            false => None,
        };
        self.taken.store(false, Ordering::Release);
        panic
    }

    /// A helper's life.
    fn serve(&self, member: usize) {
        let asleep = &self.asleep[member - 1].0;
        let (mut seen, mut looks, mut idle) = (0, 0, None);
        while !self.ended.load(Ordering::Relaxed) {
            let door = self.door.0.load(Ordering::Acquire);
            if door & OPEN != 0 && door & !INSIDE != seen {
                let entered =
                    self.door.0.compare_exchange(door, door + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    seen = door & !INSIDE;
                    self.help(member);
                    (looks, idle) = (0, None);
                }
                continue;
            }
            std::hint::spin_loop();
            looks += 1;
            if looks % LOOKS != 0 {
                continue;
            }
            let since = *idle.get_or_insert_with(Instant::now);
            if since.elapsed() > LINGER {
                asleep.store(true, Ordering::SeqCst);
                // A door that was opened before the caller could see us asleep.
                let door = self.door.0.load(Ordering::SeqCst);
                if (door & OPEN == 0 || door & !INSIDE == seen) && !self.ended.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                asleep.store(false, Ordering::SeqCst);
                (looks, idle) = (0, None);
            }
        }
    }

    /// What a helper that has entered does.
    fn help(&self, member: usize) {
        let _leaving = Leaving(&self.door.0);
        // SAFETY: this thread is inside, and `work` is not written while somebody is.
        let work = unsafe { *self.work.get() };
        let members = self.shares.len();
        let done = catch_unwind(AssertUnwindSafe(|| {
            if let Some(work) = work {
                self.drain(member, members, work);
            }
        }));
        if let Err(payload) = done {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// Does the tasks of the member's own share from its beginning, then those of others' from their ends.
    fn drain(&self, member: usize, members: usize, work: &Work) {
        let _inside = Inside::set(true);
        let take = |share: usize, next: fn(Range<u64>) -> (u64, Range<u64>)| {
            let share = &self.shares[share].0;
            let mut left = share.load(Ordering::Relaxed);
            loop {
                let tasks = left >> 32..left & INSIDE;
                if tasks.is_empty() {
                    return None;
                }
                let (task, rest) = next(tasks);
                let new = rest.start << 32 | rest.end;
                match share.compare_exchange_weak(left, new, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Some(task as usize),
                    Err(changed) => left = changed,
                }
            }
        };
        while let Some(task) = take(member, |tasks| (tasks.start, tasks.start + 1..tasks.end)) {
            work(task);
        }
        for other in (member + 1..members).chain(0..member) {
            while let Some(task) = take(other, |tasks| (tasks.end - 1, tasks.start..tasks.end - 1)) {
                work(task);
            }
        }
    }
}

#[cfg(test)]
mod tests;
