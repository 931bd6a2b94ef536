//! In which order the simulated device does what its streams were given.
//!
//! Each stream is a queue of work, of points to reach and of points to wait for. Whatever stands at the head of a queue
//! may happen, except waiting for a point that is not reached. Among all that may happen the next is drawn at random,
//! from a seed, so that an order that no event forbids comes up under some seed.

use super::super::Stream;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A point that is reached or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Flag(Arc<AtomicBool>);

impl Flag {
    pub(super) fn is_reached(&self) -> bool {
        self.0.load(Relaxed)
    }

    fn reach(&self) {
        self.0.store(true, Relaxed);
    }
}

#[derive(Debug)]
enum Item<T> {
    Work(T),
    Reach(Flag),
    Wait(Flag),
}

/// Work that belongs to no stream: it may happen once its conditions are reached.
#[derive(Debug)]
struct Loose<T> {
    conditions: Vec<Flag>,
    work: T,
    done: Flag,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    streams: [VecDeque<Item<T>>; 2],
    loose: Vec<Loose<T>>,
    random: u64,
}

impl<T> Schedule<T> {
    pub(super) fn new(seed: u64) -> Schedule<T> {
        Schedule { streams: [VecDeque::new(), VecDeque::new()], loose: Vec::new(), random: seed }
    }

    /// Gives a stream work.
    pub(super) fn push(&mut self, stream: Stream, work: T) {
        self.streams[stream.index()].push_back(Item::Work(work));
    }

    /// Work that may happen after all `conditions`; returns the point behind it.
    pub(super) fn push_loose(&mut self, conditions: Vec<Flag>, work: T) -> Flag {
        let done = Flag::default();
        self.loose.push(Loose { conditions, work, done: done.clone() });
        done
    }

    /// The point behind everything that the stream was given so far.
    pub(super) fn record(&mut self, stream: Stream) -> Flag {
        let flag = Flag::default();
        self.streams[stream.index()].push_back(Item::Reach(flag.clone()));
        flag
    }

    /// Lets a stream go on only behind a point.
    pub(super) fn wait(&mut self, stream: Stream, flag: Flag) {
        self.streams[stream.index()].push_back(Item::Wait(flag));
    }

    /// How much waits.
    pub(super) fn waiting(&self) -> usize {
        self.streams.iter().map(VecDeque::len).sum::<usize>() + self.loose.len()
    }

    /// Drops everything that waits.
    pub(super) fn clear(&mut self) {
        self.streams.iter_mut().for_each(VecDeque::clear);
        self.loose.clear();
    }

    /// Work that may happen now. Its points are reached when the caller has done it, which it does before it asks again.
    pub(super) fn next(&mut self) -> Option<T> {
        loop {
            let heads = [0, 1].map(|at| match self.streams[at].front() {
                None => false,
                Some(Item::Wait(flag)) => flag.is_reached(),
                Some(_) => true,
            });
            let mut choices: Vec<usize> = (0..2).filter(|&at| heads[at]).collect();
            let free = |loose: &Loose<T>| loose.conditions.iter().all(Flag::is_reached);
            choices.extend((0..self.loose.len()).filter(|&at| free(&self.loose[at])).map(|at| at + 2));
            let &choice = choices.get(self.draw(choices.len()))?;
            if choice >= 2 {
                let loose = self.loose.remove(choice - 2);
                loose.done.reach();
                return Some(loose.work);
            }
            match self.streams[choice].pop_front() {
                Some(Item::Work(work)) => return Some(work),
                Some(Item::Reach(flag)) => flag.reach(),
                Some(Item::Wait(_)) | None => {}
            }
        }
    }

    /// A number below `count` (0 when `count` is 0), from the seed (splitmix64).
    fn draw(&mut self, count: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % count.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64, with_event: bool) -> Vec<&'static str> {
        let mut schedule = Schedule::new(seed);
        schedule.push(Stream::Compute, "write");
        let written = schedule.record(Stream::Compute);
        schedule.push(Stream::Compute, "more");
        if with_event {
            schedule.wait(Stream::Copy, written);
        }
        schedule.push(Stream::Copy, "read");
        std::iter::from_fn(|| schedule.next()).collect()
    }

    #[test]
    fn an_event_orders_streams_and_nothing_else_does() {
        let before =
            |order: &[&str], a, b| order.iter().position(|&x| x == a) < order.iter().position(|&x| x == b);
        let (mut read_first, mut read_between, mut read_last) = (false, false, false);
        for seed in 0..32 {
            let order = order(seed, true);
            assert_eq!(order.len(), 3);
            assert!(before(&order, "write", "more") && before(&order, "write", "read"), "{order:?}");
            read_between |= before(&order, "read", "more");
            read_last |= before(&order, "more", "read");
        }
        assert!(read_between && read_last, "an event must not order more than it says");
        for seed in 0..8 {
            let order = order(seed, false);
            assert!(before(&order, "write", "more"), "a stream keeps its order: {order:?}");
            read_first |= before(&order, "read", "write");
        }
        assert!(read_first, "without the event some seed reads too early");
    }

    #[test]
    fn the_same_seed_gives_the_same_order() {
        assert_eq!(order(5, false), order(5, false));
    }

    #[test]
    fn loose_work_waits_for_all_its_conditions() {
        for seed in 0..16 {
            let mut schedule = Schedule::new(seed);
            schedule.push(Stream::Compute, "a");
            schedule.push(Stream::Copy, "b");
            let conditions = vec![schedule.record(Stream::Compute), schedule.record(Stream::Copy)];
            let done = schedule.push_loose(conditions, "release");
            schedule.wait(Stream::Compute, done);
            schedule.push(Stream::Compute, "reuse");
            let order: Vec<_> = std::iter::from_fn(|| schedule.next()).collect();
            assert_eq!(order[2..], ["release", "reuse"], "{order:?}");
        }
    }

    #[test]
    fn a_wait_for_what_never_comes_ends_the_run() {
        let mut schedule = Schedule::new(0);
        schedule.wait(Stream::Copy, Flag::default());
        schedule.push(Stream::Copy, "never");
        assert_eq!(schedule.next(), None);
        assert_eq!(schedule.waiting(), 2);
    }
}
