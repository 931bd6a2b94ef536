//! In which order the simulated device does what its streams were given.
//!
//! Each stream is a queue of work, of points to reach and of points to wait for. Whatever stands at the head of a queue
//! may happen, except waiting for a point that is not reached. Among all that may happen the next is drawn at random,
//! from a seed, so that an order that no event forbids comes up under some seed.
//!
//! Clocks say what is ordered whatever comes up: of each stream, the newest operation that this one comes behind. A wait
//! hands on what the point came behind; the host's next operation comes behind whatever the host has seen, and the host
//! sees a point when it waited for it, or asked and was told yes. That it asked for one operation before another orders
//! nothing. (One lock lets the host's threads ask one after another; they count as one host.)

use super::super::Stream;
use crate::sim::access::{Clock, STREAMS, Stamp};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A clock behind which lies what lies behind either.
fn join(one: Clock, other: Clock) -> Clock {
    std::array::from_fn(|at| one[at].max(other[at]))
}

/// A point that is reached or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Flag {
    reached: Arc<AtomicBool>,
    /// What lies before the point.
    behind: Clock,
}

impl Flag {
    fn new(behind: Clock) -> Flag {
        Flag { behind, ..Flag::default() }
    }

    pub(super) fn is_reached(&self) -> bool {
        self.reached.load(Relaxed)
    }

    fn reach(&self) {
        self.reached.store(true, Relaxed);
    }
}

#[derive(Debug)]
enum Item<T> {
    Work(Stamp, T),
    Reach(Flag),
    Wait(Flag),
}

/// Work that belongs to no stream: it may happen once its conditions are reached.
#[derive(Debug)]
struct Loose<T> {
    conditions: Vec<Flag>,
    stamp: Stamp,
    work: T,
    done: Flag,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    streams: [VecDeque<Item<T>>; STREAMS],
    loose: Vec<Loose<T>>,
    random: u64,
    /// What the next operation of each stream comes behind.
    clocks: [Clock; STREAMS],
    /// What the host has seen.
    host: Clock,
    /// Operations asked for.
    asked: u64,
}

impl<T> Schedule<T> {
    pub(super) fn new(seed: u64) -> Schedule<T> {
        Schedule {
            streams: [VecDeque::new(), VecDeque::new()],
            loose: Vec::new(),
            random: seed,
            clocks: [Clock::default(); STREAMS],
            host: Clock::default(),
            asked: 0,
        }
    }

    /// What a stream's next operation comes behind.
    fn clock(&self, stream: usize) -> Clock {
        join(self.clocks[stream], self.host)
    }

    /// Gives a stream work; returns its place.
    pub(super) fn push(&mut self, stream: Stream, work: T) -> Stamp {
        let at = stream.index();
        let behind = self.clock(at);
        self.asked += 1;
        let number = behind[at] + 1;
        let stamp = Stamp { stream: Some(at), number, asked: self.asked, behind, settled: [0; STREAMS] };
        self.clocks[at] = behind;
        self.clocks[at][at] = number;
        self.streams[at].push_back(Item::Work(stamp, work));
        stamp
    }

    /// The host knows that a point is reached.
    pub(super) fn seen(&mut self, flag: &Flag) {
        self.host = join(self.host, flag.behind);
    }

    /// The host knows that everything has happened.
    pub(super) fn seen_all(&mut self) {
        self.host = self.clocks.into_iter().fold(self.host, join);
    }

    /// What the host has seen.
    pub(super) fn host(&self) -> &Clock {
        &self.host
    }

    /// Work that may happen after all `conditions`, one of which is a point that was recorded just now; returns the point
    /// behind it.
    pub(super) fn push_loose(&mut self, conditions: Vec<Flag>, work: T) -> Flag {
        self.asked += 1;
        let behind = conditions.iter().fold(self.host, |all, flag| join(all, flag.behind));
        let done = Flag::new(behind);
        let stamp = Stamp { asked: self.asked, behind, ..Stamp::default() };
        self.loose.push(Loose { conditions, stamp, work, done: done.clone() });
        done
    }

    /// The point behind everything that the stream was given so far.
    pub(super) fn record(&mut self, stream: Stream) -> Flag {
        let flag = Flag::new(self.clock(stream.index()));
        self.streams[stream.index()].push_back(Item::Reach(flag.clone()));
        flag
    }

    /// Lets a stream go on only behind a point.
    pub(super) fn wait(&mut self, stream: Stream, flag: Flag) {
        let clock = &mut self.clocks[stream.index()];
        *clock = join(*clock, flag.behind);
        self.streams[stream.index()].push_back(Item::Wait(flag));
    }

    /// The same for the simulator's own sake: no event that the program asked for, so nothing is ordered by it.
    pub(super) fn hold(&mut self, stream: Stream, flag: Flag) {
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

    /// The place of an operation that is about to run, with what all that is still to run, this one first, comes behind.
    fn settled(&self, stamp: Stamp) -> Stamp {
        // Later work of a stream comes behind whatever its earlier work does.
        let next = |stream: usize| {
            let waiting = self.streams[stream].iter().find_map(|item| match item {
                Item::Work(stamp, _) => Some(stamp.behind),
                _ => None,
            });
            waiting.unwrap_or_else(|| self.clock(stream))
        };
        let next: [Clock; STREAMS] = std::array::from_fn(next);
        let settled = std::array::from_fn(|of| {
            let now = (stamp.stream != Some(of)).then_some(stamp.behind[of]);
            let others = (0..STREAMS).filter(|&stream| stream != of).map(|stream| next[stream][of]);
            let loose = self.loose.iter().map(|loose| loose.stamp.behind[of]);
            now.into_iter().chain(others).chain(loose).min().unwrap_or(0)
        });
        Stamp { settled, ..stamp }
    }

    /// Work that may happen now, with its place. Its points are reached when the caller has done it, which it does before
    /// it asks again.
    pub(super) fn next(&mut self) -> Option<(Stamp, T)> {
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
                return Some((self.settled(loose.stamp), loose.work));
            }
            match self.streams[choice].pop_front() {
                Some(Item::Work(stamp, work)) => {
                    return Some((self.settled(stamp), work));
                }
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
        run(&mut schedule)
    }

    fn run(schedule: &mut Schedule<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| schedule.next()).map(|(_, work)| work).collect()
    }

    #[test]
    fn operations_come_behind_their_stream_its_events_and_what_the_host_saw() {
        for seed in 0..8 {
            let mut schedule = Schedule::new(seed);
            schedule.push(Stream::Compute, "1");
            let first = schedule.record(Stream::Compute);
            schedule.push(Stream::Compute, "2");
            schedule.wait(Stream::Copy, first);
            schedule.push(Stream::Copy, "3");
            let third = schedule.record(Stream::Copy);
            // That the host asks for 4 behind 3 says nothing.
            schedule.push(Stream::Compute, "4");
            schedule.seen(&third);
            schedule.push(Stream::Compute, "5");
            schedule.push(Stream::Copy, "6");
            // A hold is not the program's wait.
            let sixth = schedule.record(Stream::Copy);
            schedule.hold(Stream::Compute, sixth);
            schedule.push(Stream::Compute, "7");
            let conditions = vec![schedule.record(Stream::Compute), schedule.record(Stream::Copy)];
            let done = schedule.push_loose(conditions, "8");
            schedule.wait(Stream::Copy, done);
            schedule.push(Stream::Copy, "9");
            let mut found: Vec<_> = std::iter::from_fn(|| schedule.next()).collect();
            found.sort_by_key(|(_, name)| *name);
            let expected = [[0, 0], [1, 0], [1, 0], [2, 0], [3, 1], [1, 1], [4, 1], [5, 2], [5, 2]];
            for ((stamp, name), behind) in found.into_iter().zip(expected) {
                assert_eq!(stamp.behind, behind, "{name}");
            }
            schedule.seen_all();
            schedule.push(Stream::Copy, "10");
            schedule.push(Stream::Copy, "11");
            let (stamp, _) = schedule.next().unwrap();
            assert_eq!((stamp.behind, stamp.settled), ([5, 3], [5, 3]));
        }
    }

    /// What counts as settled is behind everything that runs later on another stream, under every order.
    #[test]
    fn what_is_settled_is_behind_all_that_comes_later() {
        for seed in 0..64 {
            let mut schedule = Schedule::new(seed);
            let mut draw = Schedule::<()>::new(seed + 100);
            let (mut flags, mut ran, mut settled) = (Vec::new(), 0, Clock::default());
            let mut check = |stamp: Stamp| {
                for at in (0..STREAMS).filter(|&at| stamp.stream != Some(at)) {
                    assert!(settled[at] <= stamp.behind[at], "seed {seed}: {stamp:?} after {settled:?}");
                    assert!(
                        stamp.settled[at] <= stamp.behind[at],
                        "seed {seed}: {stamp:?} itself is still to run"
                    );
                }
                assert!((0..STREAMS).all(|at| settled[at] <= stamp.settled[at]), "it only grows");
                settled = stamp.settled;
                ran += 1;
            };
            for _ in 0..200 {
                let stream = Stream::ALL[draw.draw(2)];
                match draw.draw(6) {
                    0 | 1 => drop(schedule.push(stream, "work")),
                    2 => flags.push(schedule.record(stream)),
                    3 if !flags.is_empty() => schedule.wait(stream, flags[draw.draw(flags.len())].clone()),
                    4 if !flags.is_empty() => {
                        let flag = flags[draw.draw(flags.len())].clone();
                        while !flag.is_reached()
                            && let Some((stamp, _)) = schedule.next()
                        {
                            check(stamp);
                        }
                        schedule.seen(&flag);
                    }
                    _ if flags.len() > 1 => {
                        let copied = flags[draw.draw(flags.len())].clone();
                        let conditions = vec![schedule.record(Stream::Compute), copied];
                        flags.push(schedule.push_loose(conditions, "loose"));
                    }
                    _ => {}
                }
            }
            std::iter::from_fn(|| schedule.next()).for_each(|(stamp, _)| check(stamp));
            assert!(ran > 60 && settled.iter().any(|&number| number > 0), "{ran}, {settled:?}");
        }
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
            let order = run(&mut schedule);
            assert_eq!(order[2..], ["release", "reuse"], "{order:?}");
        }
    }

    #[test]
    fn a_wait_for_what_never_comes_ends_the_run() {
        let mut schedule = Schedule::new(0);
        schedule.wait(Stream::Copy, Flag::default());
        schedule.push(Stream::Copy, "never");
        assert!(schedule.next().is_none());
        assert_eq!(schedule.waiting(), 2);
    }
}
