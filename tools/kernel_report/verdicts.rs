//! Which bars were kept, missed and listed, over all tables, and which entries were launched.

use latch::verify::workloads::bars::{Bar, KnownMiss, Subject, Verdict, known, listed};
use latch::verify::workloads::coverage;
use std::collections::{BTreeMap, BTreeSet};

/// Counts of verdicts, and the misses.
#[derive(Default)]
pub struct Verdicts {
    counts: BTreeMap<Bar, [usize; 3]>,
    worst: BTreeMap<Bar, (f64, String)>,
    missed: Vec<String>,
    /// What was found, at worst, where a miss is listed.
    listed: BTreeMap<(Subject<'static>, Bar), (f64, &'static KnownMiss)>,
    launched: BTreeSet<&'static str>,
}

/// How a report must be to judge the lists themselves: nothing left out, at the sizes of the figures.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every size, dtype and workload, at the sizes that the list's figures are of.
    Whole,
    /// Some of it.
    Part,
}

impl Verdicts {
    /// Notes a verdict, and returns the mark to print behind its value. `kind` is told where the bar is missed.
    pub fn note(&mut self, at: &Subject, kind: &str, verdict: &Verdict) -> char {
        let (place, mark) = match (verdict.passes(), known(at, verdict)) {
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
            self.worst.insert(verdict.bar, (verdict.found, format!("{at} in {kind}")));
        }
        let miss = listed(at, verdict.bar);
        if place == 2 {
            let than = miss.map_or(String::new(), |miss| format!(", listed with {:.2}", miss.figure));
            self.missed.push(format!("{at} in {kind}: {} {:.3}{than}", verdict.bar, verdict.found));
        }
        if let Some(miss) = miss {
            let (found, _) = self.listed.entry((miss.at, miss.bar)).or_insert((verdict.found, miss));
            *found = found.max(verdict.found);
        }
        mark
    }

    /// Notes that an entry was launched.
    pub fn launched(&mut self, entry: &'static str) {
        self.launched.insert(entry);
    }

    /// What is wrong: bars that are missed and not listed, and of a whole report also listed misses that are none any
    /// more and shipped kernels that nothing launched.
    pub fn faults(&self, extent: Extent) -> Vec<String> {
        let mut faults: Vec<String> = self.missed.iter().map(|miss| format!("missed: {miss}")).collect();
        if extent == Extent::Whole {
            let kept = |(found, miss): &&(f64, &KnownMiss)| Verdict { bar: miss.bar, found: *found }.passes();
            faults.extend(
                self.listed.values().filter(kept).map(|(found, miss)| {
                    format!("listed, and yet kept: {} {} {found:.3}", miss.at, miss.bar)
                }),
            );
            let (missing, idle) = coverage::gaps(&self.launched);
            faults.extend(missing.iter().map(|entry| format!("launched by no workload: {entry}")));
            faults.extend(idle.iter().map(|entry| format!("needs no excuse in coverage.rs: {entry}")));
        }
        faults
    }

    /// The summary.
    pub fn text(&self, extent: Extent) -> String {
        let mut lines = vec![format!(
            "\n{:8} {:>6} {:>6} {:>8} {:>7}  worst",
            "bar", "limit", "kept", "listed", "missed"
        )];
        for (bar, [kept, listed, missed]) in &self.counts {
            let (worst, who) = self.worst.get(bar).cloned().unwrap_or_default();
            lines.push(format!(
                "{bar:8} {:>6.2} {kept:>6} {listed:>8} {missed:>7}  {worst:.3} {who}",
                bar.limit()
            ));
        }
        for (found, miss) in self.listed.values() {
            let (at, bar, figure, reason) = (miss.at, miss.bar, miss.figure, miss.reason);
            lines.push(format!("listed: {at} {bar} {found:.3} of {figure:.2}: {reason}"));
        }
        lines.extend(self.faults(extent));
        lines.join("\n") + "\n"
    }
}
