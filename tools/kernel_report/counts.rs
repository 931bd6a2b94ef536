//! What the kernels of a simulated device have cost.

use latch::base::Result;
use latch::device::{Device, SimulatorOptions};
use latch::sim::Counters;
use latch::sim::check::Checker;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that counts, and runs a sample of large grids or all of every grid.
pub fn device(sample: bool, compute_capability: (u32, u32)) -> Device {
    let observer = Arc::new(Checker::only_counters());
    Device::simulated_with(SimulatorOptions {
        observer: Some(observer),
        sample,
        compute_capability,
        ..SimulatorOptions::default()
    })
}

/// One kernel's share of some work.
#[derive(Clone, Debug)]
pub struct Spent {
    pub entry: &'static str,
    pub launches: usize,
    pub counters: Counters,
}

/// What kernels had cost when it was last asked.
pub struct Seen(BTreeMap<&'static str, (usize, Counters)>);

impl Seen {
    pub fn of(device: &Device) -> Result<Seen> {
        let Device::Gpu(launcher) = device else { return Ok(Seen(BTreeMap::new())) };
        launcher.synchronise()?;
        let kernels = launcher.statistics().kernels;
        Ok(Seen(kernels.into_iter().map(|k| (k.kernel.entry, (k.launches, k.counters))).collect()))
    }

    /// What kernels have cost since.
    pub fn advance(&mut self, device: &Device) -> Result<Vec<Spent>> {
        let now = Seen::of(device)?;
        let mut spent = Vec::new();
        for (&entry, (launches, counters)) in &now.0 {
            let (before, old) = self.0.get(entry).cloned().unwrap_or_default();
            if *launches > before {
                spent.push(Spent { entry, launches: launches - before, counters: counters.since(&old) });
            }
        }
        self.0 = now.0;
        Ok(spent)
    }
}

/// All of some work's counters.
pub fn total(spent: &[Spent]) -> Counters {
    spent.iter().fold(Counters::default(), |mut all, one| {
        all.add(&one.counters);
        all
    })
}
