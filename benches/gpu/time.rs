//! Times on a card, by events on the compute stream, beside what the card was measured to copy and to multiply.
//!
//! The level-2 cache is flushed before each run by clearing twice its bytes; while that runs, the host enqueues the
//! work, so launches cost no time of their own unless they are many.

use crate::settings;
use latch::base::{Dtype, Result};
use latch::device::{Device, DeviceMemory, Launcher, Matmul};
use latch::ops::Tensor;
use latch::ops::linear::{self, Layout, Projection};
use latch::verify::workloads::{Setting, Workload};
use std::sync::Arc;

/// Runs before the timed ones, and those.
const WARM: usize = 3;
const TIMED: usize = 15;
/// Bytes of the copy that measures bandwidth, and rows of the square product.
const COPIED: usize = 256 << 20;
const SQUARE: usize = 4096;

/// A card with memory to flush its cache by.
struct Card<'a> {
    gpu: &'a Arc<dyn Launcher>,
    flush: DeviceMemory,
    flushed: usize,
}

impl<'a> Card<'a> {
    fn new(gpu: &'a Arc<dyn Launcher>) -> Result<Card<'a>> {
        let flushed = 2 * gpu.properties().l2_bytes.max(16 << 20);
        Ok(Card { gpu, flush: DeviceMemory::new(gpu, flushed)?, flushed })
    }

    /// Median seconds of `run`.
    fn time(&self, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
        let mut times = Vec::new();
        for turn in 0..WARM + TIMED {
            self.gpu.clear(self.flush.address(), self.flushed)?;
            let start = self.gpu.record(latch::device::Stream::Compute)?;
            run()?;
            let end = self.gpu.record(latch::device::Stream::Compute)?;
            if let Some(milliseconds) = self.gpu.elapsed(&start, &end)?.filter(|_| turn >= WARM) {
                times.push(f64::from(milliseconds) / 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times.get(times.len() / 2).copied().unwrap_or(f64::NAN))
    }
}

/// What the card was measured to do.
struct Ceilings {
    bytes_per_second: f64,
    operations_per_second: f64,
}

fn ceilings(device: &Device, card: &Card, library: bool) -> Result<Ceilings> {
    let (from, to) = (DeviceMemory::new(card.gpu, COPIED)?, DeviceMemory::new(card.gpu, COPIED)?);
    let copy = card.time(|| card.gpu.copy(from.address(), to.address(), COPIED))?;
    let zeros = |dtype| Tensor::zeros(device, [SQUARE, SQUARE], dtype);
    let (mut x, mut w, mut y) = (zeros(Dtype::Bf16)?, zeros(Dtype::Bf16)?, zeros(Dtype::F32)?);
    for tensor in [&mut x, &mut w] {
        use latch::base::rng::{Purpose, StreamKey};
        latch::ops::random::normal(tensor, StreamKey::new(1, 0, 0, 0, Purpose::Probe), 1.0)?;
    }
    let projection = Projection::whole(Layout::OutIn, SQUARE, SQUARE);
    device.choose_matmul(if library { Matmul::Library } else { Matmul::Own })?;
    let product = card.time(|| linear::forward(x.view(), &projection, &w, None, y.view_mut()))?;
    Ok(Ceilings {
        bytes_per_second: 2.0 * COPIED as f64 / copy,
        operations_per_second: 2.0 * (SQUARE as f64).powi(3) / product,
    })
}

/// Prints every workload in every size and dtype.
pub fn table(device: &Device, workloads: &[Workload]) -> Result<()> {
    let Device::Gpu(gpu) = device else {
        line!("SKIPPED: {} is no GPU; its benches are in `cargo bench --bench latch`", device.name());
        return Ok(());
    };
    let card = Card::new(gpu)?;
    let library = gpu.matmul_library()?;
    let found = ceilings(device, &card, library.is_some())?;
    line!("{}", gpu.name());
    line!(
        "ceilings: copy {:.0} GB/s; bf16 product of {SQUARE}^3 by {}: {:.1} TFLOP/s",
        found.bytes_per_second / 1e9,
        library.as_deref().unwrap_or("our kernel, cuBLASLt being absent"),
        found.operations_per_second / 1e12
    );
    settings(device, 512, |title, setting| {
        line!("\n{title}");
        line!(
            "{:36} {:>10} {:>8} {:>6} {:>9} {:>6} {:>14}",
            "operation",
            "us",
            "GB/s",
            "copy",
            "TFLOP/s",
            "gemm",
            "cuBLASLt us"
        );
        workloads
            .iter()
            .try_for_each(|workload| row(device, &card, &found, library.is_some(), setting, workload))
    })
}

fn row(
    device: &Device,
    card: &Card,
    ceilings: &Ceilings,
    library: bool,
    setting: &Setting,
    workload: &Workload,
) -> Result<()> {
    let mut work = (workload.make)(setting)?;
    device.choose_matmul(Matmul::Own)?;
    let seconds = card.time(|| (work.run)())?;
    let (bytes, operations) = (work.bytes as f64 / seconds, work.flops as f64 / seconds);
    let products = match work.flops {
        0 => format!("{:>9} {:>6}", "-", "-"),
        _ => {
            format!(
                "{:>9.1} {:>5.0}%",
                operations / 1e12,
                100.0 * operations / ceilings.operations_per_second
            )
        }
    };
    // The same operation with the library's products in place of ours.
    let rival = match library && workload.name.starts_with("linear") && work.flops > 0 {
        true => {
            device.choose_matmul(Matmul::Library)?;
            let theirs = card.time(|| (work.run)())?;
            format!("{:>10.1} {:.2}x", theirs * 1e6, theirs / seconds)
        }
        false => String::new(),
    };
    line!(
        "{:36} {:>10.1} {:>8.0} {:>5.0}% {products} {rival:>14}",
        workload.name,
        seconds * 1e6,
        bytes / 1e9,
        100.0 * bytes / ceilings.bytes_per_second
    );
    Ok(())
}
