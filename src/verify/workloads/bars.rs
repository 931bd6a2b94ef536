//! What a kernel's counters must keep, and which kernels are known not to.

use std::fmt;

/// One bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bar {
    /// Sectors of device memory requested over the fewest: at most 1.10.
    Sectors,
    /// Accesses of shared memory over the fewest that the requests need: at most 1.05.
    Banks,
    /// Products run on tensor cores alone: their operations there are at least those that the work needs.
    Tensor,
    /// No bytes of local memory.
    Local,
    /// Bytes of a whole step over weights, cache and activations once: at most 1.15.
    Step,
    /// Bytes with masks over bytes without: at most 1.02.
    Masks,
}

impl Bar {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Bar::Sectors => "sectors",
            Bar::Banks => "banks",
            Bar::Tensor => "tensor",
            Bar::Local => "local",
            Bar::Step => "step",
            Bar::Masks => "masks",
        }
    }

    /// The largest value that passes ([`Bar::Tensor`]: the smallest).
    pub fn limit(self) -> f64 {
        match self {
            Bar::Sectors => 1.10,
            Bar::Banks => 1.05,
            Bar::Tensor => 1.0,
            Bar::Local => 0.0,
            Bar::Step => 1.15,
            Bar::Masks => 1.02,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What was found of one bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Which.
    pub bar: Bar,
    /// The value.
    pub found: f64,
}

impl Verdict {
    /// Whether the bar is kept. Values count as they are printed, with two decimals.
    pub fn passes(&self) -> bool {
        match self.bar {
            Bar::Tensor => self.found >= self.bar.limit(),
            _ => self.printed() <= self.bar.limit(),
        }
    }

    /// The value with two decimals.
    pub fn printed(&self) -> f64 {
        (self.found * 100.0).round() / 100.0
    }
}

/// The verdicts of one kernel: sectors over ideal, accesses of shared memory over requests, bytes of local memory.
/// [`Bar::Tensor`] is that of a whole operation: [`tensor`].
pub fn verdicts(sectors: f64, banks: f64, local_bytes: u64) -> [Verdict; 3] {
    [
        Verdict { bar: Bar::Sectors, found: sectors },
        Verdict { bar: Bar::Banks, found: banks },
        Verdict { bar: Bar::Local, found: local_bytes as f64 },
    ]
}

/// Sectors requested over the fewest: those that the requests' bytes fill (`ideal`), where `scattered` of their 4-byte
/// numbers, which would fill an eighth of one, are in a sector of their own. A kernel that reads such a number twice pays
/// for the second sector.
pub fn sectors(requested: u64, ideal: u64, scattered: usize) -> f64 {
    let fewest = ideal as f64 + scattered as f64 * (1.0 - 1.0 / 8.0);
    if fewest == 0.0 { 1.0 } else { requested as f64 / fewest }
}

/// Operations on tensor cores over those that the operation's products need.
pub fn tensor(on_tensor_cores: u64, needed: usize) -> Option<Verdict> {
    (needed > 0).then(|| Verdict { bar: Bar::Tensor, found: on_tensor_cores as f64 / needed as f64 })
}

/// What a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject<'a> {
    /// The model whose size it is.
    pub size: &'a str,
    /// The workload, or the step.
    pub work: &'a str,
    /// The entry that was launched; empty where the whole work is judged.
    pub kernel: &'a str,
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subject { size, work, kernel } = self;
        if kernel.is_empty() {
            write!(f, "{work} at {size}")
        } else {
            write!(f, "{kernel} in {work} at {size}")
        }
    }
}

/// One kernel that is known to miss one bar in one workload at one size, by how much, and why that stands.
///
/// The figure is that of [`SEQUENCES`] sequences of [`LENGTH`] positions, as it is printed; more than that is a new miss.
#[derive(Clone, Copy, Debug)]
pub struct KnownMiss {
    /// Where.
    pub at: Subject<'static>,
    /// The bar.
    pub bar: Bar,
    /// What was found.
    pub figure: f64,
    /// Why.
    pub reason: &'static str,
}

/// What the figures of [`KNOWN_MISSES`] were counted at: sequences of a training step, or rollouts of a group.
pub const SEQUENCES: usize = 8;
/// Positions of each.
pub const LENGTH: usize = 64;

const fn miss(
    size: &'static str,
    kernel: &'static str,
    work: &'static str,
    bar: Bar,
    figure: f64,
    reason: &'static str,
) -> KnownMiss {
    KnownMiss { at: Subject { size, work, kernel }, bar, figure, reason }
}

const GPT2: &str = super::GPT2_SMALL.name;
const QWEN2: &str = super::QWEN.name;
const HISTOGRAM: &str = "top-p adds each logit's mass to one of 2048 buckets in shared memory, a word and its carry; the \
    logits choose the banks, and of 32 banks that 32 lanes choose the fullest gets 3.5, however buckets are laid out: some \
    900 accesses a block, about half a us of the 5 (Qwen: 12) that the kernel takes of an H200 for 8 rows; a bank of its \
    own for each lane takes 32 times the memory, buckets few enough for that one more pass over the logits";

/// The committed list.
pub const KNOWN_MISSES: &[KnownMiss] = &[
    miss(GPT2, "sampler_fwd_masses_f32", "sampler top-p", Bar::Banks, 2.04, HISTOGRAM),
    miss(QWEN2, "sampler_fwd_masses_f32", "sampler top-p", Bar::Banks, 2.11, HISTOGRAM),
];

/// The known miss that covers a verdict, if there is one: the same kernel, workload, size and bar, and no worse.
pub fn known(at: &Subject, verdict: &Verdict) -> Option<&'static KnownMiss> {
    listed(at, verdict.bar).filter(|miss| verdict.printed() <= miss.figure)
}

/// What the list says of a bar somewhere.
pub fn listed(at: &Subject, bar: Bar) -> Option<&'static KnownMiss> {
    KNOWN_MISSES.iter().find(|miss| miss.at == *at && miss.bar == bar)
}

#[cfg(test)]
mod tests {
    use super::super::coverage::shipped;
    use super::super::{GPT2_SMALL, QWEN};
    use super::*;

    #[test]
    fn bars_are_kept_up_to_their_limit() {
        for (bar, good, bad) in [
            (Bar::Sectors, 1.10, 1.11),
            (Bar::Banks, 1.05, 1.06),
            (Bar::Tensor, 1.0, 0.99),
            (Bar::Local, 0.0, 4.0),
            (Bar::Step, 1.15, 1.16),
            (Bar::Masks, 1.02, 1.03),
        ] {
            assert!(Verdict { bar, found: good }.passes() && !Verdict { bar, found: bad }.passes(), "{bar}");
        }
    }

    #[test]
    fn a_scattered_number_costs_its_sector_once() {
        // A warp picks 32 numbers: 32 sectors, where neighbours would fill 4.
        assert_eq!(sectors(32, 4, 0), 8.0);
        assert_eq!(sectors(32, 4, 32), 1.0);
        assert_eq!(sectors(64, 8, 32), 64.0 / 36.0, "read twice");
        assert_eq!(sectors(0, 0, 0), 1.0);
    }

    #[test]
    fn numbers_become_verdicts() {
        let found = verdicts(1.2, 2.0, 16);
        assert_eq!(found.map(|verdict| verdict.bar), [Bar::Sectors, Bar::Banks, Bar::Local]);
        assert!(found.iter().all(|verdict| !verdict.passes()));
        assert!(verdicts(1.0, 1.0, 0).iter().all(Verdict::passes));
        assert_eq!(tensor(50, 100).map(|verdict| verdict.passes()), Some(false));
        assert_eq!(tensor(0, 0), None);
    }

    #[test]
    fn a_known_miss_names_a_shipped_kernel_a_workload_a_size_and_a_reason() {
        let shipped: Vec<&str> = shipped().collect();
        let works: Vec<&str> = super::super::all().iter().map(|workload| workload.name).collect();
        for miss in KNOWN_MISSES {
            let Subject { size, work, kernel } = miss.at;
            assert!([GPT2_SMALL.name, QWEN.name].contains(&size), "{miss:?}");
            assert!(shipped.contains(&kernel) && works.contains(&work), "{miss:?}");
            assert!(miss.reason.len() > 20 && miss.figure > miss.bar.limit(), "{miss:?}");
            let same = KNOWN_MISSES.iter().filter(|other| other.at == miss.at && other.bar == miss.bar);
            assert_eq!(same.count(), 1, "{miss:?}");
        }
    }

    #[test]
    fn a_known_miss_covers_itself_alone_and_nothing_worse() {
        let miss = &KNOWN_MISSES[0];
        let found = |found| Verdict { bar: miss.bar, found };
        assert!(known(&miss.at, &found(miss.figure)).is_some());
        assert!(known(&miss.at, &found(miss.figure + 0.004)).is_some(), "as it is printed");
        assert!(known(&miss.at, &found(miss.figure + 0.01)).is_none(), "worse");
        let elsewhere = [
            Subject { size: "another size", ..miss.at },
            Subject { work: "another workload", ..miss.at },
            Subject { kernel: &miss.at.kernel[..miss.at.kernel.len() - 1], ..miss.at },
            Subject { kernel: "another_kernel", ..miss.at },
        ];
        assert!(elsewhere.iter().all(|at| known(at, &found(miss.figure)).is_none()));
        assert!(known(&miss.at, &Verdict { bar: Bar::Local, found: 4.0 }).is_none(), "another bar");
    }
}
