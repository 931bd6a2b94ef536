//! Counters in the simulator: what does not depend on a card.

use crate::settings;
use latch::base::Result;
use latch::device::{Device, SimulatorOptions};
use latch::sim::Counters;
use latch::sim::check::Checker;
use latch::verify::workloads::{Setting, Workload};
use std::sync::Arc;

/// Prints every workload in every size and dtype, a sample of the blocks of large grids (src/sim/sample.rs).
pub fn table(workloads: &[Workload]) -> Result<()> {
    settings(&Device::cpu(), 64, |title, setting| {
        line!("\n{title}, counted in the simulator");
        line!(
            "{:36} {:>8} {:>14} {:>8} {:>6} {:>14} {:>10} {:>10}",
            "operation",
            "launches",
            "instructions",
            "sectors",
            "banks",
            "tensor flops",
            "MB",
            "floor MB"
        );
        workloads.iter().try_for_each(|workload| row(setting, workload))
    })
}

fn row(setting: &Setting, workload: &Workload) -> Result<()> {
    let observer = Arc::new(Checker::only_counters());
    let device = Device::simulated_with(SimulatorOptions {
        observer: Some(observer),
        sample: true,
        ..SimulatorOptions::default()
    });
    let Device::Gpu(gpu) = &device else { return Ok(()) };
    let mut work = (workload.make)(&Setting { device: &device, ..*setting })?;
    let total = || -> Result<(usize, Counters)> {
        gpu.synchronise()?;
        let kernels = gpu.statistics().kernels;
        Ok(kernels.into_iter().fold((0, Counters::default()), |(launches, mut all), kernel| {
            all.add(&kernel.counters);
            (launches + kernel.launches, all)
        }))
    };
    let (before, earlier) = total()?;
    (work.run)()?;
    let (after, counters) = total()?;
    let counters = counters.since(&earlier);
    let (global, shared) = (counters.traffic.global(), counters.traffic.shared());
    line!(
        "{:36} {:>8} {:>14} {:>8.2} {:>6.2} {:>14} {:>10.3} {:>10.3}",
        workload.name,
        after - before,
        counters.warp_instructions(),
        global.ratio(),
        shared.ratio(),
        counters.matrix_flops(),
        global.bytes() as f64 / 1e6,
        work.bytes as f64 / 1e6
    );
    Ok(())
}
