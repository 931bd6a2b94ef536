//! The device layer: memory pool, streams, graphs, checks, and what it says when something is wrong.

mod arenas;
mod beside;
mod crossings;
mod driver;
mod hopper;
mod launches;
mod library;
mod memory;
mod opening;
mod products;
mod streams;

use latch::device::{Device, Launcher, SimulatorOptions};
use std::sync::Arc;

/// A simulated GPU's launcher.
fn launcher(options: SimulatorOptions) -> Arc<dyn Launcher> {
    match Device::simulated_with(options) {
        Device::Gpu(launcher) => launcher,
        Device::Cpu(_) => unreachable!("a simulated device is a GPU"),
    }
}
