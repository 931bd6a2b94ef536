//! Which accesses of a block's threads happen before which: clocks that advance at synchronisation alone.
//!
//! Lanes are not assumed in lockstep. A thread's access is ordered before another thread's when a barrier of the
//! block, a barrier of some of its warps, or a warp synchronisation that names both lanes lies between, directly or
//! through others. What a full vector clock of 1024 threads would hold is kept exactly in less:
//!
//! * A warp has one clock. It advances when the warp synchronises after it has accessed memory, so all accesses of a
//!   warp between two synchronisations share a number.
//! * Within a warp, `full` says up to which clock all lanes know all lanes. Only a synchronisation of *some* lanes
//!   needs the 32 x 32 matrix `partial`; the next one of all lanes makes it superfluous.
//! * Between warps knowledge passes through block barriers alone, where every lane of a warp arrives, so it is the
//!   same for all lanes of a warp: one number per pair of warps. After a barrier of the whole block the rows are
//!   equal, and `everyone` holds them once.
//!
//! Knowledge that passes through memory (a fence, an atomic, a look at its result) is in `publish.rs`.

use crate::sim::access::LANES;

/// What one warp knows of itself.
#[derive(Clone, Debug)]
struct Warp {
    /// The number that accesses carry now.
    clock: u32,
    /// Whether memory was accessed since the clock advanced.
    touched: bool,
    /// Lanes that exist: fewer than 32 in a ragged last warp.
    lanes: u32,
    /// Accesses of this warp below this clock are known to all of its lanes.
    full: u32,
    /// Row `m`: lane `m` knows accesses of lane `l` below `partial[m][l]`. Only after a synchronisation of some lanes.
    partial: Option<Box<[[u32; LANES]; LANES]>>,
}

/// The clocks of one block.
#[derive(Clone, Debug)]
pub struct Order {
    warps: Vec<Warp>,
    /// Accesses of warp `v` below `everyone[v]` lie before the last barrier of the whole block.
    everyone: Vec<u32>,
    /// `between[w][v]`: accesses of warp `v` below it are known to warp `w`. Only after a barrier of some warps.
    between: Option<Vec<Vec<u32>>>,
}

/// What a thread knows at one moment, kept after the block went on.
#[derive(Clone, Debug)]
pub struct Knowledge {
    warp: usize,
    own: [u32; LANES],
    others: Vec<u32>,
}

/// What a warp knew when it arrived at a barrier for which it does not wait (`bar.arrive`).
#[derive(Clone, Debug)]
pub struct Arrived {
    warp: usize,
    clock: u32,
    others: Vec<u32>,
}

impl Order {
    /// A block of `threads` threads that have done nothing.
    pub fn new(threads: usize) -> Order {
        let warps = threads.div_ceil(LANES);
        let lanes = |w: usize| if (w + 1) * LANES <= threads { !0 } else { (1u32 << (threads % LANES)) - 1 };
        Order {
            warps: (0..warps)
                .map(|w| Warp { clock: 1, touched: false, lanes: lanes(w), full: 1, partial: None })
                .collect(),
            everyone: vec![1; warps],
            between: None,
        }
    }

    /// Warps of the block.
    pub fn warps(&self) -> usize {
        self.warps.len()
    }

    /// Notes that `warp` accesses memory and says under which clock.
    #[inline]
    pub fn access(&mut self, warp: usize) -> u32 {
        let warp = &mut self.warps[warp];
        warp.touched = true;
        warp.clock
    }

    /// Whether an access by `lane` of `warp` at `clock` happens before what `now` of `here` does next.
    #[inline]
    pub fn knows(&self, here: usize, now: usize, warp: usize, lane: usize, clock: u32) -> bool {
        if clock < self.everyone[warp] {
            return true;
        }
        if warp != here {
            return self.between.as_ref().is_some_and(|between| clock < between[here][warp]);
        }
        let warp = &self.warps[warp];
        lane == now || clock < warp.full || warp.partial.as_ref().is_some_and(|p| clock < p[now][lane])
    }

    /// The same for several lanes of `warp`, all at `clock`: those that are *not* known.
    #[inline]
    pub fn unknown(&self, here: usize, now: usize, warp: usize, lanes: u32, clock: u32) -> u32 {
        if clock < self.everyone[warp] || (warp == here && clock < self.warps[warp].full) {
            return 0;
        }
        let mut left = 0;
        for lane in lanes_of(lanes) {
            if !self.knows(here, now, warp, lane, clock) {
                left |= 1 << lane;
            }
        }
        left
    }

    /// Whether all lanes of `here` know what any lane of `warp` did at `clock`.
    #[inline]
    pub fn known_to_warp(&self, here: usize, warp: usize, clock: u32) -> bool {
        clock < self.everyone[warp]
            || (warp == here && clock < self.warps[warp].full)
            || (warp != here && self.between.as_ref().is_some_and(|between| clock < between[here][warp]))
    }

    /// Whether the accesses of `warp` at `clock` lie before the last barrier of the whole block.
    #[inline]
    pub fn before_block_barrier(&self, warp: usize, clock: u32) -> bool {
        clock < self.everyone[warp]
    }

    /// Whether some lanes of `warp` have synchronised without the others since all did.
    pub fn is_split(&self, warp: usize) -> bool {
        self.warps[warp].partial.is_some()
    }

    /// Whether some warps have met without the others since the last barrier of the whole block.
    pub fn has_partial_barriers(&self) -> bool {
        self.between.is_some()
    }

    /// The lanes `mask` of `warp` synchronise.
    pub fn sync_warp(&mut self, warp: usize, mask: u32) {
        let warp = &mut self.warps[warp];
        if warp.touched {
            warp.clock += 1;
            warp.touched = false;
        }
        if mask & warp.lanes == warp.lanes {
            warp.full = warp.clock;
            warp.partial = None;
            return;
        }
        let (full, clock) = (warp.full, warp.clock);
        let partial = warp.partial.get_or_insert_with(|| Box::new([[full; LANES]; LANES]));
        let mut joined = [full; LANES];
        for lane in lanes_of(mask) {
            for other in 0..LANES {
                joined[other] = joined[other].max(partial[lane][other]);
            }
        }
        for lane in lanes_of(mask) {
            joined[lane] = clock;
        }
        for lane in lanes_of(mask) {
            partial[lane] = joined;
        }
    }

    /// All lanes of `warp` pass a barrier without waiting.
    pub fn arrive(&mut self, warp: usize) -> Arrived {
        // The lanes need not have waited for each other: what each did before is known to those who wait, and to
        // nobody else.
        self.advance(warp);
        let others = match &self.between {
            Some(between) => between[warp].clone(),
            None => self.everyone.clone(),
        };
        Arrived { warp, clock: self.warps[warp].clock, others }
    }

    /// All lanes of the warps `met` waited at a barrier for each other, and for those of `arrived`, who did not.
    pub fn sync_warps(&mut self, met: &[usize], arrived: &[Arrived]) {
        for &warp in met {
            self.sync_warp(warp, !0);
        }
        if met.len() == self.warps.len() {
            for (known, warp) in self.everyone.iter_mut().zip(&self.warps) {
                *known = warp.clock;
            }
            self.between = None;
            return;
        }
        let everyone = &self.everyone;
        let between = self.between.get_or_insert_with(|| vec![everyone.clone(); everyone.len()]);
        let mut joined = everyone.clone();
        for &warp in met {
            for (known, &other) in joined.iter_mut().zip(&between[warp]) {
                *known = (*known).max(other);
            }
        }
        for early in arrived {
            for (known, &other) in joined.iter_mut().zip(&early.others) {
                *known = (*known).max(other);
            }
            joined[early.warp] = joined[early.warp].max(early.clock);
        }
        for &warp in met {
            joined[warp] = self.warps[warp].clock;
        }
        for &warp in met {
            between[warp].clone_from(&joined);
        }
    }

    /// Ends an interval without ordering anything: what `warp` does next carries a new clock.
    pub fn advance(&mut self, warp: usize) {
        let warp = &mut self.warps[warp];
        if warp.touched {
            warp.clock += 1;
            warp.touched = false;
        }
    }

    /// What `lane` of `warp` knows now, of itself all that it did.
    pub fn knowledge(&self, warp: usize, lane: usize) -> Knowledge {
        let here = &self.warps[warp];
        let mut own = match &here.partial {
            Some(partial) => partial[lane],
            None => [here.full; LANES],
        };
        own[lane] = here.clock + u32::from(here.touched);
        let others = match &self.between {
            Some(between) => between[warp].iter().zip(&self.everyone).map(|(&a, &b)| a.max(b)).collect(),
            None => self.everyone.clone(),
        };
        Knowledge { warp, own, others }
    }
}

impl Knowledge {
    /// Whether an access by `lane` of `warp` at `clock` was known.
    pub fn covers(&self, warp: usize, lane: usize, clock: u32) -> bool {
        clock < self.others[warp] || (warp == self.warp && clock < self.own[lane])
    }
}

/// The lanes of a mask, ascending.
pub fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: a vector clock of every thread, joined at every synchronisation.
    struct Vectors {
        known: Vec<Vec<u32>>,
    }

    impl Vectors {
        fn new(threads: usize) -> Vectors {
            Vectors { known: vec![vec![0; threads]; threads] }
        }

        fn access(&mut self, thread: usize) -> u32 {
            self.known[thread][thread] += 1;
            self.known[thread][thread]
        }

        fn sync(&mut self, threads: &[usize], arrived: &[Vec<u32>]) {
            let mut joined = vec![0; self.known.len()];
            for known in threads.iter().map(|&t| &self.known[t]).chain(arrived) {
                for (a, &b) in joined.iter_mut().zip(known) {
                    *a = (*a).max(b);
                }
            }
            for &t in threads {
                self.known[t].clone_from(&joined);
            }
        }
    }

    #[test]
    fn equals_full_vector_clocks_on_random_programs() {
        const THREADS: usize = 3 * LANES + 7;
        let warps = THREADS.div_ceil(LANES);
        let mut state = 12345u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) as usize) % below
        };
        let threads_of = |w: usize| w * LANES..((w + 1) * LANES).min(THREADS);
        let mut unordered = 0;
        for _ in 0..40 {
            let (mut order, mut vectors) = (Order::new(THREADS), Vectors::new(THREADS));
            // (thread, clock here, clock there)
            let mut past: Vec<(usize, u32, u32)> = Vec::new();
            for _ in 0..300 {
                match random(12) {
                    0 => {
                        let met: Vec<usize> = (0..warps).filter(|_| random(3) != 0).collect();
                        let arrive: Vec<usize> =
                            (0..warps).filter(|w| !met.contains(w) && random(2) == 0).collect();
                        let (mut early, mut early_there) = (Vec::new(), Vec::new());
                        for &warp in &arrive {
                            early.push(order.arrive(warp));
                            early_there.extend(threads_of(warp).map(|t| vectors.known[t].clone()));
                            // What it does after arriving is not ordered by the barrier.
                            let thread = threads_of(warp).start;
                            past.push((thread, order.access(warp), vectors.access(thread)));
                        }
                        if !met.is_empty() {
                            order.sync_warps(&met, &early);
                            let threads: Vec<usize> = met.iter().flat_map(|&w| threads_of(w)).collect();
                            vectors.sync(&threads, &early_there);
                        }
                    }
                    1 if random(4) == 0 => {
                        order.sync_warps(&(0..warps).collect::<Vec<_>>(), &[]);
                        vectors.sync(&(0..THREADS).collect::<Vec<_>>(), &[]);
                    }
                    1..=4 => {
                        let warp = random(warps);
                        let lanes = threads_of(warp).len();
                        let all = if lanes == LANES { !0 } else { (1u32 << lanes) - 1 };
                        let mask = match random(4) {
                            0 => !0,
                            1 => 0xffff,
                            2 => 0xffff_0000,
                            _ => random(1 << 31) as u32 * 2 + 1,
                        } & all;
                        if mask != 0 {
                            order.sync_warp(warp, mask);
                            let threads: Vec<usize> = lanes_of(mask).map(|l| warp * LANES + l).collect();
                            vectors.sync(&threads, &[]);
                        }
                    }
                    5 => order.advance(random(warps)),
                    _ => {
                        let thread = random(THREADS);
                        let (warp, lane) = (thread / LANES, thread % LANES);
                        for &(other, here, there) in past.iter().rev().take(60) {
                            let truth = vectors.known[thread][other] >= there;
                            let said = order.knows(warp, lane, other / LANES, other % LANES, here);
                            assert_eq!(said, truth, "thread {other} before {thread}");
                            let known = order.knowledge(warp, lane);
                            assert_eq!(known.covers(other / LANES, other % LANES, here), truth);
                            unordered += usize::from(!truth);
                        }
                        past.push((thread, order.access(warp), vectors.access(thread)));
                    }
                }
            }
        }
        assert!(unordered > 10_000, "only {unordered} unordered pairs were asked about");
    }

    #[test]
    fn a_lane_that_is_not_named_stays_unordered() {
        let mut order = Order::new(32);
        let clock = order.access(0);
        order.sync_warp(0, 0x0000_00ff);
        assert!(order.knows(0, 3, 0, 7, clock), "both named");
        assert!(!order.knows(0, 8, 0, 7, clock), "8 was not named");
        assert_eq!(order.unknown(0, 3, 0, 0xffff, clock), 0xff00);
    }

    #[test]
    fn a_warp_knows_what_all_of_its_lanes_know() {
        let mut order = Order::new(64);
        let clock = order.access(0);
        assert!(!order.known_to_warp(0, 0, clock));
        order.sync_warp(0, 0xffff);
        assert!(!order.known_to_warp(0, 0, clock), "half of the lanes");
        order.sync_warp(0, !0);
        assert!(order.known_to_warp(0, 0, clock) && !order.known_to_warp(1, 0, clock));
        order.sync_warps(&[0, 1], &[]);
        assert!(order.known_to_warp(1, 0, clock));
    }

    #[test]
    fn silence_does_not_advance_the_clock() {
        let mut order = Order::new(64);
        let before = order.access(0);
        for _ in 0..5 {
            order.sync_warp(0, !0);
        }
        assert_eq!(order.access(0), before + 1, "five shuffles, one interval");
    }
}
