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
        let printed = (self.found * 100.0).round() / 100.0;
        match self.bar {
            Bar::Tensor => self.found >= self.bar.limit(),
            _ => printed <= self.bar.limit(),
        }
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

/// Operations on tensor cores over those that the operation's products need.
pub fn tensor(on_tensor_cores: u64, needed: usize) -> Option<Verdict> {
    (needed > 0).then(|| Verdict { bar: Bar::Tensor, found: on_tensor_cores as f64 / needed as f64 })
}

/// A kernel that is known to miss a bar, up to a value, and why that stands.
#[derive(Clone, Copy, Debug)]
pub struct KnownMiss {
    /// The entry, without its dtype.
    pub kernel: &'static str,
    /// The bar.
    pub bar: Bar,
    /// The largest value that is accepted.
    pub at_most: f64,
    /// Why.
    pub reason: &'static str,
}

/// The committed list.
pub const KNOWN_MISSES: &[KnownMiss] = &[
    KnownMiss {
        kernel: "mask_fill",
        bar: Bar::Sectors,
        at_most: 1.30,
        reason: "bound by Philox, 800 operations for 4 bytes: a site's bitmap is not a whole number of sectors",
    },
    KnownMiss {
        kernel: "scatter_ranks",
        bar: Bar::Sectors,
        at_most: 8.0,
        reason: "ids go to their places in a sorted list of a few KiB, by bisection",
    },
    KnownMiss {
        kernel: "log_probability_fwd_finish",
        bar: Bar::Sectors,
        at_most: 1.25,
        reason: "a row's 50 parts of 12 bytes begin anywhere in a sector; a thousandth of the operation's bytes",
    },
    KnownMiss {
        kernel: "linear_nt_",
        bar: Bar::Sectors,
        at_most: 1.30,
        reason: "the last panel of a vocabulary of 50257: its rows of logits begin anywhere in a sector",
    },
    KnownMiss {
        kernel: "linear_tn_",
        bar: Bar::Sectors,
        at_most: 4.5,
        reason: "the last panel of a vocabulary of 50257: its rows of gradients are read by single numbers",
    },
    KnownMiss {
        kernel: "sampler_fwd_score",
        bar: Bar::Sectors,
        at_most: 8.0,
        reason: "kept ids lie anywhere in their row of logits: a sector for each, some tens a row",
    },
    KnownMiss {
        kernel: "soft_action_fwd",
        bar: Bar::Sectors,
        at_most: 8.0,
        reason: "kept ids lie anywhere in their row of logits: a sector for each, some tens a row",
    },
    KnownMiss {
        kernel: "sampler_fwd_wide",
        bar: Bar::Banks,
        at_most: 2.5,
        reason: "top-p counts logits in a histogram in shared memory: the bins of a warp's 32 logits share banks",
    },
];

/// The known miss that covers a verdict of a kernel, if there is one.
pub fn known(kernel: &str, verdict: &Verdict) -> Option<&'static KnownMiss> {
    KNOWN_MISSES.iter().find(|miss| {
        kernel.starts_with(miss.kernel) && miss.bar == verdict.bar && verdict.found <= miss.at_most + 0.005
    })
}

#[cfg(test)]
mod tests {
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
    fn numbers_become_verdicts() {
        let found = verdicts(1.2, 2.0, 16);
        assert_eq!(found.map(|verdict| verdict.bar), [Bar::Sectors, Bar::Banks, Bar::Local]);
        assert!(found.iter().all(|verdict| !verdict.passes()));
        assert!(verdicts(1.0, 1.0, 0).iter().all(Verdict::passes));
        assert_eq!(tensor(50, 100).map(|verdict| verdict.passes()), Some(false));
        assert_eq!(tensor(0, 0), None);
    }

    #[test]
    fn a_known_miss_names_a_shipped_kernel_and_a_reason() {
        let report = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/ptx/REPORT.md"));
        for miss in KNOWN_MISSES {
            assert!(
                report.contains(&format!("| {}", miss.kernel)) || matches!(miss.bar, Bar::Step | Bar::Masks)
            );
            assert!(miss.reason.len() > 20 && miss.at_most > miss.bar.limit(), "{miss:?}");
        }
    }
}
