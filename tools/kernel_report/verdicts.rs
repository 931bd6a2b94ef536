//! Which bars were kept, missed and listed, over all tables.

use latch::verify::workloads::bars::{Bar, KnownMiss, Verdict, known};
use std::collections::BTreeMap;

/// Counts of verdicts, and the misses.
#[derive(Default)]
pub struct Verdicts {
    counts: BTreeMap<Bar, [usize; 3]>,
    worst: BTreeMap<Bar, (f64, String)>,
    missed: Vec<String>,
    listed: BTreeMap<String, &'static KnownMiss>,
}

impl Verdicts {
    /// Notes a verdict of `who` (a kernel, or a step), and returns the mark to print behind its value.
    pub fn note(&mut self, who: &str, verdict: &Verdict) -> char {
        let miss = known(who, verdict);
        let (place, mark) = match (verdict.passes(), miss) {
            (true, _) => (0, ' '),
            (false, Some(_)) => (1, '~'),
            (false, None) => (2, '!'),
        };
        self.counts.entry(verdict.bar).or_default()[place] += 1;
        let worse = |old: f64| match verdict.bar {
            Bar::Tensor => verdict.found < old,
            _ => verdict.found > old,
        };
        if self.worst.get(&verdict.bar).is_none_or(|(old, _)| worse(*old)) {
            self.worst.insert(verdict.bar, (verdict.found, who.to_string()));
        }
        if place == 2 {
            self.missed.push(format!("{who}: {} {:.3}", verdict.bar, verdict.found));
        }
        if let Some(miss) = miss.filter(|_| place == 1) {
            self.listed.insert(format!("{} {}", miss.kernel, miss.bar), miss);
        }
        mark
    }

    /// Misses that no list holds.
    pub fn unlisted(&self) -> usize {
        self.missed.len()
    }

    /// The summary.
    pub fn print(&self) {
        println!("\n{:8} {:>6} {:>6} {:>8} {:>7}  worst", "bar", "limit", "kept", "listed", "missed");
        for (bar, [kept, listed, missed]) in &self.counts {
            let (worst, who) = self.worst.get(bar).cloned().unwrap_or_default();
            println!("{bar:8} {:>6.2} {kept:>6} {listed:>8} {missed:>7}  {worst:.3} {who}", bar.limit());
        }
        for miss in self.listed.values() {
            println!("listed: {} {} up to {:.2}: {}", miss.kernel, miss.bar, miss.at_most, miss.reason);
        }
        for miss in &self.missed {
            println!("missed: {miss}");
        }
    }
}
